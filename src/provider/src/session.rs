//! What all handlers share.

use std::path::PathBuf;

use arm_client::Client;
use arm_model::ResourceGroupId;

/// A configured provider.
#[derive(Debug)]
pub struct Session {
    /// The orchestration API.
    pub(crate) api: Client,
    /// Subscription of everything that is made.
    pub(crate) subscription_id: String,
    /// The engine that is put onto hosts.
    pub(crate) engine_path: PathBuf,
}

impl Session {
    /// The group of a name in this subscription.
    pub(crate) fn group(&self, name: &str) -> ResourceGroupId {
        ResourceGroupId::new(&self.subscription_id, name)
    }
}
