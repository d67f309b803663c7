//! A VM that is gone, or disks of it: made again, empty, before they are filled.
//!
//! ```text
//! "on its way" ─► VM and disks as the point tells, off ─► the round goes on: all that the maps tell of them differs
//! ```
//!
//! Promise: nothing that is there is touched; an empty disk is "on its way" before it is there, so no VM is started from it;
//! a try that was cut is repeated and ends at the same.

use replica_store::{PointSelector, RecoveryPoint, ReplicaReader};
use uuid::Uuid;

use super::record::Record;
use super::{LOST, LocalDisk, MADE, ReceiveError, Receiver, off};
use crate::replicator::kept::{Kept, Known};
use crate::vm_config::VmConfig;

impl Receiver {
    /// Makes again what is gone of the VM, and gives its disks.
    pub(super) async fn make_lost(
        &self,
        reader: &ReplicaReader,
        point: &RecoveryPoint,
        replica: Uuid,
        lost: ReceiveError,
    ) -> Result<Vec<LocalDisk>, ReceiveError> {
        tracing::warn!(
            item = self.item_id,
            point = %point.id,
            %lost,
            "what is gone of the virtual machine is made again, empty, to be filled from the replica"
        );
        let like = self.unless_stopped(self.as_it_was(reader, point)).await?;
        let to = Known {
            position: point.position,
            by: self.origin,
        };
        let record = Record::under_way(self.vm, replica, point.id, to);
        let (folder, item) = (self.state_folder.clone(), self.item_id.clone());
        off(move || {
            let kept = Kept::open(&folder, &item)
                .map_err(ReceiveError::io("read what is kept of the item"))?;
            record.write(kept.folder()).map_err(ReceiveError::io(
                "note that disks are on their way to a point",
            ))
        })
        .await?;
        self.pauses.pass(LOST).await;
        self.target.make(&like).await?;
        self.pauses.pass(MADE).await;
        self.target.disks().await
    }

    /// What the VM was made of at a point, each disk as large as it is there.
    async fn as_it_was(
        &self,
        reader: &ReplicaReader,
        point: &RecoveryPoint,
    ) -> Result<VmConfig, ReceiveError> {
        let view = reader.view(PointSelector::Id(point.id)).await;
        let view = view.map_err(ReceiveError::store(
            "open the newest point of the recovered virtual machine",
        ))?;
        let none = |problem: String| ReceiveError::NoConfiguration {
            point: point.id,
            problem,
        };
        let config = view.vm_config().cloned().unwrap_or_default();
        let mut like: VmConfig =
            serde_json::from_value(config).map_err(|error| none(error.to_string()))?;
        for disk in &mut like.disks {
            let there = view.disks().iter().find(|there| there.id == disk.id.0);
            if let Some(there) = there {
                disk.size_bytes = there.size_bytes;
            }
        }
        Ok(like)
    }
}
