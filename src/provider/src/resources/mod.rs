//! The managed resources.

mod association;
mod drill_schedule;
mod drill_vms;
mod host;
mod network_mapping;
mod plan;
mod plan_action;
mod policy;
mod protected_vm;
mod protection;
mod site;
mod storage_account;
pub(crate) mod test_failover;
mod vault;
mod virtual_network;

pub(crate) use association::Association;
pub(crate) use drill_schedule::DrillSchedule;
pub(crate) use host::HypervHost;
pub(crate) use network_mapping::NetworkMapping;
pub(crate) use plan::RecoveryPlan;
pub(crate) use policy::Policy;
pub(crate) use protected_vm::ProtectedVm;
pub(crate) use protection::{container_of, names_of, protectable_items};
pub(crate) use site::Site;
pub(crate) use storage_account::StorageAccount;
pub(crate) use test_failover::TestFailover;
pub(crate) use vault::Vault;
pub(crate) use virtual_network::VirtualNetwork;
