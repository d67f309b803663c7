//! Data sources beyond those that read one resource by name.

mod protectable_vms;
mod recovery_points;

pub(crate) use protectable_vms::ProtectableVms;
pub(crate) use recovery_points::RecoveryPoints;
