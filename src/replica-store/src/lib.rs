//! Replicas at rest: base, journal and recovery points of a protected VM over a store.
//!
//! ```text
//! <folder>/<vault_key>/<item_id>/
//!   lock                        OS lock, held during every mutation
//!   generation                  fencing generation; replaced first of all by a take-over
//!   manifest                    disks, how far base is; replaced atomically
//!   <disk>/base.vhd             sparse fixed VHD: the disk as of base_position
//!   journal/<generation>-<position>.hrl   one cycle of the whole VM, immutable
//!   points/<time>-<position>-<id>         recovery point = position + kind + VM configuration
//!   pins/<hash of owner>        a point that is in use and must stay
//! ```
//!
//! The image of a point is `base + journal (base_position, position]`, later entries win.
//!
//! | with → | append | add point | maintain | take-over | view, pinned | delete |
//! |---|---|---|---|---|---|---|
//! | append | lock; one position, one content | lock | lock; only objects ≤ oldest kept point go | the older generation is refused | objects > p are not read | lock |
//! | maintain | | a point below the announced floor is refused | lock per step; redo-idempotent | lock per step; the new owner redoes | never passes a pin | lock |
//! | view, not pinned | | | says `Expired` once base is moved past it, never wrong bytes | | | says `NotFound` |
//! | pin | | | lock; a pin below the announced floor is refused | | | refuses to delete |
//!
//! What may go wrong: [`StoreError`] with [`ErrorKind`] and [`Outcome`]. Every operation may be
//! repeated after an unknown outcome.

mod apply;
mod azure;
mod base;
mod blocking;
#[cfg(feature = "conformance")]
pub mod conformance;
mod cycle;
mod durable;
mod error;
pub mod fault;
mod faulty;
mod folder;
mod frames;
mod initial;
mod joining;
mod layout;
mod manifest;
mod medium;
mod model;
mod options;
mod overlay;
mod points;
mod reader;
mod removal;
mod replica;
mod retention;
mod stored;
mod takeover;
mod view;
mod writer;

pub use azure::AzureTarget;
pub use error::{ErrorKind, Outcome, StoreError};
pub use model::{
    Damage, DiskSpec, DiskStart, Generation, MaintenanceReport, Pin, PointKind, PointSelector,
    Position, RecoveryPoint, ReplicaKey, ReplicaState, RetentionPolicy, RetentionTier, StoreTarget,
};
pub use options::WriterOptions;
pub use reader::{ReplicaReader, ReplicaView};
pub use retention::{PointAge, expired_points, next_clock};
pub use writer::{
    Committed, CyclePlan, CycleWriter, JournalObject, ReplicaWriter, delete_replica,
    delete_replica_at, delete_replica_with_faults,
};
