//! Replicas at rest: base, journal and recovery points of a protected VM over a store.
//!
//! ```text
//! <store>/<vault_key>/<item_id>/
//!   generation                  fencing generation; replaced first of all by a take-over. A removed
//!                               replica leaves it behind as its tombstone
//!   manifest                    disks, how far base is, whose journal counts; replaced under its version
//!   <disk>/base.vhd             fixed VHD: the disk as of base (a sparse file, a page blob)
//!   journal/<generation>-<position>.hrl   one cycle of the whole VM, immutable
//!   journal/<generation>-<position>-<first>-<id>.hrl   stands for the cycles from first on, once the
//!                               manifest says so
//!   points/<time>-<position>-<id>         recovery point = position + kind + VM configuration
//!   pins/<hash of owner>        a point that is in use and must stay
//!   verified                    how far the background verification is
//! ```
//!
//! The image of a point is `base + journal (base_position, position]`, later entries win. Which disks
//! it has, and how large they are, says the header of its journal object.
//!
//! | with → | append | add point | maintain | take-over | view, pinned | delete |
//! |---|---|---|---|---|---|---|
//! | append | one position, one content | section | only objects ≤ oldest kept point go | the older generation is refused, what it wrote unheard does not count | objects > p are not read | tombstone first |
//! | fill base of a joining disk | beside each other | beside each other | base of others only | fence | not in any point yet | tombstone first |
//! | maintain | | a point below the announced floor is refused | fence per round; redo-idempotent | the new owner redoes | never passes a pin | tombstone first |
//! | compaction, in maintain | never the head | a point inside of what is merged is refused | after the applier; given up where base comes to | given up, swept | goes on with the merged object; `Expired` at a position that nobody kept | tombstone first |
//! | view, not pinned | | | says `Expired` once base is moved past it, never wrong bytes | | | says `NotFound` |
//! | pin | | | counted in the manifest: a round that did not see it is refused; below the announced floor the pin is refused | | | refuses to delete |
//! | immutable point | | | stays | | | refuses to delete |
//! | verify | skips what is newer | | skips what is gone | the older generation is refused | | |
//!
//! The logic is written once, over a trait of what it needs of a place ([`StoreTarget`]): a folder, or a
//! container in Azure Storage, or one of them for base and another for the rest. The suite `conformance` (a feature) is what each must pass.
//!
//! What may go wrong: [`StoreError`] with [`ErrorKind`] and [`Outcome`]. Every operation may be
//! repeated after an unknown outcome.

mod apart;
mod apply;
mod azure;
mod base;
mod blocking;
mod changed;
mod compact;
#[cfg(feature = "conformance")]
pub mod conformance;
mod cycle;
mod direct;
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
mod seed;
mod stored;
mod takeover;
mod under_way;
mod verify;
mod view;
mod writer;

pub use azure::AzureTarget;
pub use changed::Changed;
pub use error::{ErrorKind, Outcome, StoreError};
pub use model::{
    Damage, DiskSpec, DiskStart, Generation, MaintenanceReport, Pin, PointKind, PointSelector,
    Position, RecoveryPoint, ReplicaKey, ReplicaState, RetentionPolicy, RetentionTier, StoreTarget,
};
pub use options::WriterOptions;
pub use reader::{ReplicaReader, ReplicaView, owner_generation};
pub use retention::{PointAge, expired_points, next_clock};
pub use seed::Seeded;
pub use takeover::{take_over, take_over_with};
pub use under_way::BaseWrites;
pub use verify::{BlockCheck, Finding, Verification, VerifyRequest, VerifyRound};
pub use writer::{
    Committed, CyclePlan, CycleWriter, JournalObject, ReplicaWriter, delete_replica,
    delete_replica_at, delete_replica_with_faults,
};
