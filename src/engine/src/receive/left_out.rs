//! Disks that the recovered VM has and that are replicated here no more: they were excluded after the point was taken that it
//! was made from. Nothing of them is brought back, which must not happen unsaid.

use hypervisor::DiskId;
use replica_store::RecoveryPoint;

use super::{LocalDisk, Receiver};
use crate::vm_config::VmConfig;

impl Receiver {
    /// Tells the target of such disks, by their names; of none, too.
    pub(super) fn tell_left_out(&self, point: &RecoveryPoint, disks: &[LocalDisk]) {
        // A point that does not tell what the VM was made of has no disk that is known to be left out.
        let config = serde_json::from_value::<VmConfig>(point.vm_config.clone());
        let known = config.map(|config| config.disks).unwrap_or_default();
        let ours: Vec<DiskId> = disks.iter().map(|disk| disk.id).collect();
        let left_out = known.into_iter().filter(|disk| !ours.contains(&disk.id));
        self.target
            .leaves_out(left_out.map(|disk| disk.name).collect());
    }
}
