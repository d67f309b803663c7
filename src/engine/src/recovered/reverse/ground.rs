//! What shipping stands on: the replica open for writing, the recovery point that the VM was made from, and which disk of
//! the VM is which of the replica.
//!
//! ```text
//!   recovered VM's disk   Uuid v5 of (VM, source's disk)      own id, same content
//!   replica's disk        source's id                         what journal objects name
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hypervisor::{DiskId, VmId};
use replica_store::{
    DiskSpec, Generation, Position, RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaState,
    ReplicaWriter, StoreTarget, WriterOptions,
};
use replication_log::KeyRing;
use uuid::Uuid;

use crate::recovered::Conversion;
use crate::vm_config::VmConfig;

/// What is to be shipped, and where to.
#[derive(Clone, Debug)]
pub struct Errand {
    /// The recovered VM.
    pub vm: VmId,
    /// Its name, for messages.
    pub name: String,
    /// Under which it ships: the store refuses everybody older.
    pub generation: Generation,
    /// Where the replica is.
    pub store: StoreTarget,
    /// Which replica.
    pub key: ReplicaKey,
    /// Keys that its objects need, and the one of new ones.
    pub keys: KeyRing,
    /// For so long nobody can delete the points that are shipped; 0 = no promise.
    pub immutability_hours: u32,
    /// From one point to the next while the VM runs.
    pub interval: Duration,
    /// The point that the VM was made from; it is held.
    pub point: Uuid,
    /// Where the VM's records lie.
    pub records: PathBuf,
    /// What its disks are read through, which the replica never sees.
    pub conversion: Option<Arc<Conversion>>,
}

/// The open replica.
pub(super) struct Ground {
    pub writer: ReplicaWriter,
    pub replica: Uuid,
    /// The point that the VM was made from.
    pub origin: RecoveryPoint,
    /// In the order of the VM.
    pub disks: Vec<Mapped>,
}

/// A disk of the VM and what it is in the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Of the recovered VM.
    pub own: DiskId,
    /// Of the source, and of the replica.
    pub source: Uuid,
    pub name: String,
}

/// The id of a recovered VM's disk that was made from a disk of the source.
pub fn own_disk(vm: Uuid, source: DiskId) -> DiskId {
    DiskId(Uuid::new_v5(&vm, source.0.as_bytes()))
}

impl Ground {
    /// Opens the replica, and refuses anybody older from here on. One that is not there is never made.
    pub async fn open(errand: &Errand) -> anyhow::Result<Self> {
        let reader = ReplicaReader::open_with_keys(&errand.store, &errand.key, errand.keys.clone())
            .await
            .context("open the replica that the recovered VM came from")?;
        let origin = reader
            .points()
            .await
            .context("look at the recovery points")?
            .into_iter()
            .find(|point| point.id == errand.point)
            .with_context(|| {
                format!(
                    "recovery point {}, which the recovered VM was made from, is not in the replica any more",
                    errand.point
                )
            })?;
        let config: VmConfig = serde_json::from_value(origin.vm_config.clone())
            .context("read the configuration in the recovery point")?;
        let options = WriterOptions {
            keys: errand.keys.clone(),
            immutability_hours: errand.immutability_hours,
            any_disks: true,
            ..WriterOptions::default()
        };
        let writer = ReplicaWriter::open_with(
            options,
            &errand.store,
            &errand.key,
            errand.generation,
            &specs(&config),
        )
        .await
        .context("open the replica for what the recovered VM writes")?;
        let replica = writer.replica_id().await.context("name the replica")?;
        Ok(Self {
            disks: mapped(errand.vm.0, &config),
            writer,
            replica,
            origin,
        })
    }

    /// The newest position.
    pub async fn head(&self) -> anyhow::Result<Position> {
        match self
            .writer
            .state()
            .await
            .context("look at the replica's head")?
        {
            ReplicaState::Complete { head_position, .. } => Ok(head_position),
            ReplicaState::Empty | ReplicaState::Partial => {
                bail!(
                    "the replica is not complete, so nothing can be added to it: resynchronize it from its source"
                )
            }
        }
    }
}

fn mapped(vm: Uuid, config: &VmConfig) -> Vec<Mapped> {
    let disks = config.disks.iter().map(|disk| Mapped {
        own: own_disk(vm, disk.id),
        source: disk.id.0,
        name: disk.name.clone(),
    });
    disks.collect()
}

fn specs(config: &VmConfig) -> Vec<DiskSpec> {
    let disks = config.disks.iter().map(|disk| DiskSpec {
        id: disk.id.0,
        size_bytes: disk.size_bytes,
        name: disk.name.clone(),
    });
    disks.collect()
}
