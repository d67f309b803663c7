//! Data sources beyond those that read one resource by name.

mod drill_schedule;
mod jobs;
mod protectable_vms;
mod recovery_points;
mod replication_health;

pub(crate) use drill_schedule::DrillSchedule;
pub(crate) use jobs::Jobs;
pub(crate) use protectable_vms::ProtectableVms;
pub(crate) use recovery_points::RecoveryPoints;
pub(crate) use replication_health::ReplicationHealth;
