//! Generation 2 → generation 1 and back for a disk with Linux on it, without touching a file system.
//!
//! ```text
//!   LBA 0             1 .. 33          34 ..                2048 ..                          end
//!   | boot code here | GPT, untouched | GRUB's core here   | partitions, untouched | spare GPT |
//!     table kept                        (or a BIOS boot partition, or another gap)
//!
//!   inspect ─► Inspection ─► verdict ─► Convertible | NotNeeded | Impossible, with reasons
//!   ConversionPlan::make(disk, loader) ─► pieces (offset, original bytes, new bytes) ─► to_bytes, kept beside the recovered VM
//!        plan.apply(disk)   plan.undo(disk)             on the recovered copy
//!        plan.convert(offset, buffer)   plan.restore(offset, buffer)    on bytes on their way, for layers above a replica
//! ```
//!
//! What it promises: nothing but the plan's pieces is written; each sector of a piece is either the original or the new one, so
//! a crash between any two writes is healed by doing the same again; and a sector that is neither is never written over.
//! UEFI firmware ignores all that is written here, so a converted disk starts either way.
//!
//! What it does not do: nothing of GRUB is part of this crate (see [`grub`]); Windows is judged, never converted; the replica
//! is never written. File systems are only looked at to say in advance whether a conversion can work.

mod esp;
mod fat;
pub mod grub;
mod inspect;
mod loader;
mod look;
mod plan;
mod signature;
mod space;
mod stored;
mod verdict;

pub use esp::SystemPartition;
pub use inspect::{BiosStart, Guest, InspectedPartition, Inspection, inspect};
pub use loader::{BootLoader, LoaderError};
pub use look::{Look, MOST_PARTITIONS, Table, look};
pub use plan::{BlockWrite, ConversionPlan, Piece, PlanError, PlanState};
pub use signature::Content;
pub use space::CorePlace;
pub use verdict::{Caution, Obstacle, USUAL_CORE_BYTES, Verdict, WindowsFinding, judge};

/// What BIOS calls a sector. Disks with larger ones are not converted.
const SECTOR: usize = 512;
