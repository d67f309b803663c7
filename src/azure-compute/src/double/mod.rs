//! An in-process Azure Resource Manager for tests: the calls of Compute, Network and Storage management that recovery makes.
//!
//! Written from the documented contracts (REST references of `Microsoft.Compute` 2024-03-01, disks 2023-10-02, skus 2021-07-01,
//! `Microsoft.Network` 2023-09-01, `Microsoft.Storage` 2023-05-01, and "Track asynchronous Azure operations"):
//! - *everywhere*: `api-version` is required, of a version that the type has (400 `MissingApiVersionParameter`, 400
//!   `NoRegisteredProviderFound`); `location` is required; names and ids are compared without case; errors come in ARM's envelope; lists have pages
//!   with `nextLink`; tokens are asked for and expire (401).
//! - *asynchronous operations*: 201 or 202 with `Azure-AsyncOperation` (and `Location` for POST and DELETE); `provisioningState` `Creating`,
//!   `Updating`, `Deleting` until the operation ends after some polls, then `Succeeded`, `Failed` or gone. A failed operation leaves its resource as
//!   `Failed`. A second write beside a running one is 409 `Conflict` at Compute and 429 `AnotherOperationInProgress` at Network.
//! - *disks*: `Import` needs `sourceUri` and `storageAccountId` of the same region and a page blob that is a fixed VHD of whole mebibytes
//!   (400 `InvalidVhd`); `managedBy` and `diskState` follow attachment; an attached disk is not deleted (409 `OperationNotAllowed`).
//! - *snapshots*: incremental, of a disk that stands, at the instant of the request; `beginGetAccess` ends with `accessSAS` in its final answer,
//!   once at a time (409); an open one is not removed (409 `OperationNotAllowed`); `endGetAccess` may be repeated.
//! - *VMs*: size offered, not restricted, within quota, of the disks' generation, with room for disks and NICs; disks and NICs exist and belong to no
//!   other VM; unit numbers differ; one primary NIC; zones of VM and disks agree; a set excludes a zone. Creation starts the VM.
//! - *NICs*: subnet exists; a static address lies in it, is not one of Azure's five and is free (400 `PrivateIPAddressInUse`); a dynamic one is the next
//!   free; a NIC of a VM is not deleted (400 `NicInUse`), nor is a public address of a NIC, a subnet with NICs, a security group in use.
//!
//! Codes of refused imports other than `InvalidVhd` are as users report them; the reference does not list them. Not imitated: eventual
//! consistency of lists, quotas other than cores, role assignments.
//!
//! [`Faults`] adds what networks and regions do to single calls.

mod catalog;
mod compute;
mod faults;
mod network;
mod route;
mod server;
mod snapshots;
mod state;

pub use faults::{Call, Fault, Faults, Rule};
pub use server::{Double, World};
pub use state::Disks;
