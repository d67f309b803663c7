//! Drills that start by themselves: what is kept of a schedule and of its drills.
//!
//! ```text
//!  due ─► run noted (etag) ─► drill's job ─► ended ─► kept for a while ─► clean-up's job ─► done
//!     └► skipped, with the reason      │ failed                               │ failed: again, with pauses
//!                                      └────────── webhooks ◄─────────────────┘
//! ```
//!
//! Promise: one drill for each due time, whatever restarts in between. The due time is noted before the drill is asked for,
//! and the request's id follows from it, so a drill that began unheard is found again. What was due while nobody was there is
//! made up for once. Jobs of a clean-up are named after their run, so it is not asked for twice either. Webhooks are told
//! beside all of this.

pub mod due;
pub mod notify;
pub mod run;
mod tell;

use serde::{Deserialize, Serialize};

use crate::store::records::Record;
use due::Rule;

/// Runs that are remembered.
pub const KEEP_RUNS: usize = 30;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// ARM id.
    pub id: String,
    /// ARM id of the plan or the protected item.
    pub target: String,
    /// When.
    pub rule: Rule,
    /// Test VMs are kept for so long after their drill.
    pub keep_minutes: u32,
    /// Who is told.
    pub webhooks: Vec<String>,
    /// Told of drills that went well, too.
    pub always: bool,
    /// Drills start.
    pub enabled: bool,
    /// When it was made, or its rule changed.
    pub since_unix_ms: i64,
    /// Due times up to here are dealt with.
    pub done_until_unix_ms: i64,
    /// Newest last, at most [`KEEP_RUNS`].
    pub runs: Vec<Run>,
}

impl Record for Schedule {
    const KIND: &'static str = "drill-schedule";
}

/// One drill of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Due time.
    pub due_unix_ms: i64,
    /// What the schedule's target was when it was noted; empty in records of earlier releases.
    #[serde(default)]
    pub target: String,
    /// When it was seen to be due.
    pub noted_unix_ms: i64,
    /// Older due times that it stands for, too.
    pub missed: u32,
    /// ARM id of the drill's job; empty = it is still to be asked for, or was skipped.
    pub job: String,
    /// Why there was no drill; empty = there was one.
    pub skipped: String,
    /// Verdict of the report; empty = not over yet.
    pub verdict: String,
    /// Removal of the test VMs.
    pub cleanup: Cleanup,
    /// What is told of it.
    pub notice: Notice,
}

/// Removal of the test VMs of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cleanup {
    /// Its job; empty = not asked for.
    pub job: String,
    /// Nothing is left to be removed.
    pub done: bool,
    /// Tries that failed.
    pub failures: u32,
    /// Not before.
    pub not_before_unix_ms: i64,
    /// Why the last try failed.
    pub problem: String,
}

/// What is told of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Something is to be told.
    pub wanted: bool,
    /// It was told to all.
    pub delivered: bool,
    /// Webhooks that have taken it.
    pub taken_by: Vec<String>,
    /// Rounds of tries.
    pub tries: u32,
    /// Next round.
    pub next_try_unix_ms: i64,
    /// Why the last round failed; without addresses, which may hold secrets.
    pub problem: String,
}

impl Run {
    /// ARM id of what is drilled, also after the schedule was given another target.
    #[must_use]
    pub fn target<'a>(&'a self, schedule: &'a Schedule) -> &'a str {
        if self.target.is_empty() {
            &schedule.target
        } else {
            &self.target
        }
    }

    /// Whether its test VMs may still be there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.skipped.is_empty() && !self.cleanup.done
    }
}
