//! The Hyper-V Replica log (MS-HRL) and the journal object that carries it.
//!
//! ```text
//!  source host                                   store
//!  disk0.7.hrl ─┐  one cycle of the whole VM     journal/<generation>-<position>.hrl
//!  disk1.7.hrl ─┴──────────────────────────────► (all disks, compressed, checksummed)
//! ```
//!
//! [`hrl`] is the published per-disk format that lies beside a disk and survives an outage;
//! [`journal`] is our immutable object of one cycle. Both are pure: no clock, no async, files
//! come in as traits. Readers verify every checksum and never trust a length.

pub mod hrl;
pub mod journal;
pub mod keys;
mod read_at;

pub use keys::KeyRing;
pub use read_at::ReadAt;
