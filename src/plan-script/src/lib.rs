//! Runs scripts of recovery plans, on a host's engine and on the orchestrator alike.
//!
//! ```text
//!  order ─► path inside the folder? ─► shell waits at its gate ─► note (fsync) ─► gate opens: exec script ─► note of the end
//!           no: refused                 dies with us: nothing ran      │ we die here: killed at the next start, end unknown
//! ```
//!
//! Promises:
//! - A script starts at most once for an order, whatever dies; only one that is declared repeatable runs again when its end
//!   is unknown. The note is durable before the first line of the script runs, its result before anybody is told.
//! - Scripts come from one folder that the machine's administrator chose; without one nothing runs.
//! - A script that takes longer than its limit is killed with all processes of its group.
//! - Nothing of the caller's environment reaches a script; its output is kept up to [`MOST_OUTPUT`] and never logged.

mod folder;
mod note;
#[cfg_attr(not(unix), path = "process_none.rs")]
mod process;
mod scripts;

pub use folder::{Refusal, relative};
pub use note::{Outcome, Status};
pub use scripts::{Order, Scripts};

/// Bytes of output that are kept, the last ones.
pub const MOST_OUTPUT: usize = 8 * 1024;
/// Environment variable with the path of a file that holds what standard input gives, too.
pub const CONTEXT_VARIABLE: &str = "SITERECOVERY_PLAN_CONTEXT";
