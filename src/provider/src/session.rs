//! What all handlers share.

use std::path::PathBuf;

use arm_client::Client;
use arm_model::ResourceGroupId;
use host_deploy::Secret;

/// A configured provider.
#[derive(Debug)]
pub struct Session {
    /// The orchestration API.
    pub(crate) api: Client,
    /// Subscription of everything that is made.
    pub(crate) subscription_id: String,
    /// The engine that is put onto hosts.
    pub(crate) engine_path: PathBuf,
    /// What hosts are signed in to with.
    pub(crate) ssh: SshSecrets,
}

/// Secrets for hosts that are reached over SSH. None of them is ever stored.
#[derive(Debug, Default)]
pub(crate) struct SshSecrets {
    pub(crate) private_key: Option<Secret>,
    pub(crate) passphrase: Option<Secret>,
    pub(crate) password: Option<Secret>,
}

impl Session {
    /// The group of a name in this subscription.
    pub(crate) fn group(&self, name: &str) -> ResourceGroupId {
        ResourceGroupId::new(&self.subscription_id, name)
    }
}
