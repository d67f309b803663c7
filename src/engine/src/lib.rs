//! The replication engine: tracks, ships, applies, recovers. One process on every host.
//!
//! ```text
//!  orchestrator ──DesiredState──► session ──► reconcile ──► replicator (one task an item) ──► replica store
//!       ▲                            ▲            └───────► recovered  (one task a VM)   ◄── replica store
//!       └───────EngineReport─────────┴── report ◄── board ◄── all tasks            hypervisor below all
//! ```
//!
//! Where to start reading: [`engine`] puts it together, [`replicator`] is the heart, [`replicator::state`]
//! says what is durable and in which order, [`recovered`] is the other direction.
//!
//! Promises: the engine may be killed at any instant and goes on without a full copy; the orchestrator may be
//! away and replication goes on; the store may be away and captures go on; the guest never waits for any of it.

pub mod backoff;
pub mod bench;
pub mod board;
pub mod config;
pub mod control;
pub mod convert;
#[cfg(unix)]
pub mod daemon;
pub mod desired;
pub mod durable;
pub mod engine;
pub mod facts;
pub mod finding;
pub mod group;
pub mod identity;
pub mod inspect;
pub mod instance;
pub mod location;
pub mod logging;
pub mod memory;
pub mod platform;
pub mod profile;
pub mod progress;
pub mod qualify;
pub mod receive;
pub mod reconcile;
pub mod recovered;
pub mod replicate;
pub mod replicator;
pub mod report;
pub mod schedule;
pub mod scripts;
#[cfg(windows)]
pub mod service;
pub mod session;
pub mod source;
pub mod stores;
#[cfg(unix)]
pub mod supervisor;
pub mod task;
pub mod throttle;
pub mod time_window;
pub mod verify;
pub mod vm_command;
pub mod vm_config;
