//! How a replica is opened, and the medium of a target.

use std::sync::Arc;

use replication_log::KeyRing;

use crate::apart::ApartMedium;
use crate::azure::{AzureMedium, Holds};
use crate::compact::Compaction;
use crate::durable::Durable;
use crate::error::Result;
use crate::fault::Faults;
use crate::faulty::FaultyMedium;
use crate::folder::FolderMedium;
use crate::medium::Medium;
use crate::model::{ReplicaKey, StoreTarget};
use crate::replica::Replica;
use crate::under_way::BaseWrites;

/// What a writer is opened with besides its generation.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// Keys that journal objects need; new ones are encrypted with the active key, if there is one.
    pub keys: KeyRing,
    /// For how long nobody may delete points that are made from here on; see
    /// [`crate::ReplicaWriter::set_immutability_hours`].
    pub immutability_hours: u32,
    /// Take the replica as it is, whatever disks the VM has now: the next cycle says which ones. Without
    /// it other disks than those of the newest cycle are a `Conflict`.
    pub any_disks: bool,
    /// How many bytes of journal a round of maintenance merges at most; what is left goes on in the next
    /// one. `None`: 32 MiB. 0: the journal stays as it is.
    pub merge_bytes_per_round: Option<u64>,
    /// Counts writes to base, for a caller that gives some of them up.
    pub base_writes: BaseWrites,
    /// Faults in every durable step of a folder, for crash tests.
    pub faults: Option<Arc<dyn Faults>>,
    /// Faults in every call of the medium, whatever it is, for tests.
    pub medium_faults: Option<Arc<dyn Faults>>,
}

/// The place of a replica.
pub(crate) fn medium(
    target: &StoreTarget,
    key: &ReplicaKey,
    faults: Option<Arc<dyn Faults>>,
) -> Result<Arc<dyn Medium>> {
    match target {
        StoreTarget::Folder(folder) => {
            let durable = faults.map_or_else(Durable::default, Durable::with_faults);
            Ok(Arc::new(FolderMedium::new(folder, key, durable)))
        }
        StoreTarget::Azure(target) => Ok(Arc::new(AzureMedium::new(target, key, Holds::All)?)),
        StoreTarget::Apart { base, log } => {
            let base: Arc<dyn Medium> = match base.as_ref() {
                StoreTarget::Azure(target) => Arc::new(AzureMedium::new(target, key, Holds::Base)?),
                other => medium(other, key, faults.clone())?,
            };
            let log: Arc<dyn Medium> = match log.as_ref() {
                StoreTarget::Azure(target) => Arc::new(AzureMedium::new(target, key, Holds::Log)?),
                other => medium(other, key, faults)?,
            };
            Ok(Arc::new(ApartMedium::new(base, log)))
        }
    }
}

pub(crate) fn replica(
    target: &StoreTarget,
    key: &ReplicaKey,
    options: WriterOptions,
) -> Result<Arc<Replica>> {
    let mut medium = medium(target, key, options.faults)?;
    if let Some(faults) = options.medium_faults {
        medium = Arc::new(FaultyMedium::new(medium, faults));
    }
    Ok(Arc::new(Replica::new(
        medium,
        key.item_id(),
        Arc::new(options.keys),
        Compaction::of(options.merge_bytes_per_round),
    )))
}
