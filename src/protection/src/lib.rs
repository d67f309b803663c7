//! Life cycle of a protected VM as a pure state machine; RPO, health and plan order.
//!
//! ```text
//!  replication:  Enabling ──► InitialReplication ──► Protected ◄──► Resynchronising
//!                    │               │                  │                 │
//!                    └───────────────┴───► Disabling ◄──┴─────────────────┘
//!                                             │
//!                                             ▼
//!                                          Removed            Fenced ──► Disabling
//!
//!  drill:        None ──► Starting ──► WaitingForCleanup ──► CleaningUp ──► None
//! ```
//!
//! The two axes are independent: no drill event changes the replication state, and no report of an engine
//! changes the drill state. There is no clock, no network and no store in here.

pub mod health;
pub mod machine;
pub mod plan;
pub mod rpo;

pub use health::{Health, worst};
pub use machine::{
    Disabled, DrillState, Effect, Event, Generation, Item, Observed, Operation, Refusal,
    ReplicationState, step,
};
pub use plan::{PlanError, boot_order};
pub use rpo::rpo_seconds;
