//! Crash enumeration: the power goes off at every write and every flush of everything that must survive it.
//!
//! ```text
//! workload ─► writer of the product ─► file double: durable bytes | changes since the last flush
//!                                        │ power off after operation n, for every n
//!                                        ▼
//!              states that the disk may be in (rules below) ─► reader of the product ─► model
//! ```
//!
//! | rule | what reached the disk of the changes since the last flush |
//! |---|---|
//! | none | nothing |
//! | all | everything, as after a kill of the process |
//! | prefix | the first k of them, for every k up to eight, else for four |
//! | reordered | any sectors of any of them, drawn |
//! | torn | the first k, and of the next one some sectors |
//!
//! Each component has a module that says what its promise is. A violation is told with the cut, the rule
//! and the seed; `cargo xtask crash --seed N` draws the same states again.

pub mod compaction;
pub mod cut_file;
pub mod hash_map;
pub mod hrl;
pub mod image;
pub mod journal;
pub mod power_folder;
pub mod random;
pub mod replica_life;
pub mod store;
pub mod tally;
