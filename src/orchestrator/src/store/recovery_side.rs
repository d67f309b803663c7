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
    /// Of its newest failback.
    #[serde(default)]
    pub back: Option<WayBack>,
}

/// What a failback decides about the source; whether that may run is told by the item's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayBack {
    /// The source's host makes again what is gone of the VM.
    pub creates: bool,
    /// The source is told that it may run. A plan waits with that for the VM's group.
    pub due: bool,
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
    /// Whether what is gone of the source is made again while the disks of the VM come back.
    #[must_use]
    pub fn creates_source(&self) -> bool {
        let back = self.recovery.as_ref().and_then(|side| side.back);
        back.is_some_and(|back| back.creates) && crate::failover::ship_generation(&self.life) > 0
    }

    /// Whether the source has the right to run and is not told yet, because its group in a plan has not come.
    #[must_use]
    pub fn waits_for_its_group(&self) -> bool {
        let back = self.recovery.as_ref().and_then(|side| side.back);
        let starts = matches!(self.life.phase, protection::life::Phase::StartingSource(_));
        starts && back.is_some_and(|back| !back.due)
    }

    /// Whether an engine has the VM, or its recovered one.
    #[must_use]
    pub fn needs_engine(&self, engine_id: &str) -> bool {
        let recovery = self.recovery.as_ref();
        self.engine_id == engine_id || recovery.is_some_and(|side| side.engine_id == engine_id)
    }
}
