//! Azure as a recovery target: the VM that a recovery point becomes, its disks, NICs and addresses.
//!
//! ```text
//!  TargetSpec ─► Target::plan: facts (sizes, quotas, network, addresses, accounts) ─► decide (pure) ─► TargetPlan + findings
//!  TargetPlan ─► Target::make: security group ─► network ─► public addresses ─► disks ─► NICs ─► VM     each: look, PUT, look
//!  id         ─► Target::remove: VM ─► NICs ─► disks ─► …                                               only what carries the id
//!  disk       ─► Target::snapshot, open, close, remove_snapshot                                         a frozen state, read as a page blob
//! ```
//!
//! Promises:
//! - *Nothing twice, whatever dies*: names follow from the plan, and each resource carries the recovery's id and a digest of what it was made
//!   from. `make` looks before it writes, so a caller that was killed calls it again.
//! - *Nothing foreign*: a resource of the same name without our id is neither taken over nor removed.
//! - *Unknown outcomes*: a write whose answer was lost is decided by reading the resource.
//! - *Everything at once*: a plan says all that stands in the way, each with what to do next.
//!
//! The disks are page blobs with a fixed VHD that somebody else has materialised from the recovery point ([`DiskSpec::blob_uri`]). Managed disks are imported
//! from them; without managed disks the VM runs on the blobs themselves.
//!
//! Proven against a double of the documented contract (feature `double`) and Microsoft's Python SDK against that double, not against Azure.

mod bodies;
mod calls;
mod disks;
#[cfg(feature = "double")]
pub mod double;
mod error;
mod facts;
mod finding;
mod gather;
mod naming;
mod nics;
mod plan;
mod resource;
mod size;
mod snapshots;
mod spec;
mod tags;
mod target;
mod view;

pub use arm_client::{CancellationToken, ClientConfig, Retry, Secret};
pub use calls::Limits;
pub use error::{TargetError, TargetErrorKind};
pub use facts::{Account, AvailabilitySet, Facts, NetworkFacts};
pub use finding::{Finding, Severity};
pub use nics::{Availability, Subnet};
pub use plan::{TargetPlan, decide};
pub use resource::{Kind, Planned};
pub use size::{NoSize, Quota, Size};
pub use snapshots::Access;
pub use spec::{
    Address, DiskSpec, DiskType, Generation, Licence, Network, NicSpec, OsType, Place, Placement,
    PublicAddress, Selection, SubnetSpec, TargetSpec, WishedTags,
};
pub use tags::{OWNER_TAG, PLAN_TAG};
pub use target::{Made, Target};
pub use view::{InstanceView, Power};
