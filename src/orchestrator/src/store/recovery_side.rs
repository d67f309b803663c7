//! What an item's record keeps of its recovered VM outside of drills.

use serde::{Deserialize, Serialize};

use super::records::Item;

/// What a failover decides about its recovered VM; whether it may run is told by the item's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySide {
    /// Recovery host's engine.
    pub engine_id: String,
    /// VM name.
    pub name: String,
    /// Recovery point; empty = the newest one when the VM is made.
    pub point_id: String,
    /// Instant of that point; 0 = not known yet.
    pub point_ms: i64,
    /// The recovery host is told of it. A plan waits with that for the VM's group.
    pub due: bool,
    /// Job that made it.
    pub job: String,
    /// When the job asked for it.
    pub asked_unix_ms: i64,
}

/// A failover that went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailover {
    /// End.
    pub time: String,
    /// Whether it was planned.
    pub planned: bool,
}

impl Item {
    /// Whether an engine has the VM, or its recovered one.
    #[must_use]
    pub fn needs_engine(&self, engine_id: &str) -> bool {
        let recovery = self.recovery.as_ref();
        self.engine_id == engine_id || recovery.is_some_and(|side| side.engine_id == engine_id)
    }
}
