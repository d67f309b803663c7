//! Types of the Azure Resource Manager and Site Recovery REST surface.
//!
//! Both ends use them: the orchestrator answers with them, the provider and the CLI read them.
//! Reading is tolerant (missing means absent, unknown fields are kept in `extra`); writing uses the
//! current spelling of each name. [`case::normalise`] brings request bodies of older or sloppier
//! clients to that spelling. What ARM has no word for (registration keys, figures of a cycle, the
//! folder of a storage account) is marked as an extension where it stands.

pub mod case;
pub mod container;
pub mod drill_schedule;
pub mod envelope;
pub mod error;
pub mod fabric;
pub mod failover;
pub mod health;
pub mod id;
pub mod ids;
pub mod job;
pub mod neighbours;
pub mod network;
pub mod operation;
pub mod plan_action;
pub mod policy;
pub mod protectable_item;
pub mod protected_item;
pub mod recovery_plan;
pub mod recovery_point;
pub mod services_provider;
pub mod test_failover;
pub mod timestamp;
pub mod validate;
pub mod vault;
pub mod window;

pub use envelope::{Extra, Page, Resource, SystemData};
pub use error::{ArmError, ErrorEnvelope};
pub use id::{ArmId, IdError};
pub use ids::{
    ContainerId, DrillScheduleId, FabricId, JobId, MappingId, NetworkId, NetworkMappingId, PlanId,
    PolicyId, ProtectableItemId, ProtectedItemId, RecoveryPointId, ResourceGroupId,
    ServicesProviderId, StorageAccountId, VaultId, VirtualNetworkId,
};
pub use operation::{OperationState, OperationStatus};

/// Text that stands for Azure as the target where an ARM id is expected.
pub const MICROSOFT_AZURE: &str = "Microsoft Azure";
/// `instanceType` of everything that replicates Hyper-V VMs to Azure.
pub const HYPER_V_REPLICA_AZURE: &str = "HyperVReplicaAzure";
/// `instanceType` of a fabric of stand-alone Hyper-V hosts.
pub const HYPER_V_SITE: &str = "HyperVSite";
/// Version that our own clients send; the server accepts any well-formed date.
pub const API_VERSION: &str = "2025-08-01";
