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
//! changes the drill state. Around both lies [`life`]: where the VM may run, from failover to failback.
//! There is no clock, no network and no store in here. `cargo xtask model` explores [`life`] with lost, repeated and
//! late messages, crashes and two orchestrators.

pub mod checks;
pub mod health;
pub mod life;
pub mod machine;
pub mod plan;
pub mod rpo;

pub use health::{Health, worst};
pub use life::{Life, step};
pub use machine::{
    Disabled, DrillState, Event, Generation, Item, Observed, Operation, Refusal, ReplicationState,
};
pub use plan::{PlanError, boot_order};
pub use rpo::rpo_seconds;
