//! One item's line on the board: its phase, its problems by origin, its figures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine_protocol::v1;
use replica_store::{PointKind, RecoveryPoint};
use v1::replication_status::State;

use super::spec::Spec;
use super::state::ItemState;
use super::trouble::{Trouble, chain};
use crate::board::Board;
use crate::finding;

/// The protocol carries at most this many points.
const MOST_POINTS: usize = 1000;
/// A backlog of this many cycles is worth a finding.
const NOTABLE_BACKLOG: u64 = 5;

/// Where a problem comes from: each origin clears only its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Freezing and reading.
    Capture,
    /// The store.
    Ship,
    /// The waiting cycles.
    Backlog,
    /// Retirement.
    Retire,
}

/// An item's line on the board.
pub struct StatusLine {
    board: Arc<Board>,
    item_id: String,
    generation: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    phase: State,
    problems: BTreeMap<Origin, (v1::Finding, bool)>,
}

impl StatusLine {
    /// A new line in phase `Starting`. Figures of an earlier run are kept until better ones come.
    pub fn new(board: Arc<Board>, spec: &Spec) -> Self {
        let line = Self {
            board,
            item_id: spec.item_id.clone(),
            generation: spec.generation.0,
            inner: Mutex::new(Inner {
                phase: State::Starting,
                problems: BTreeMap::new(),
            }),
        };
        line.change(|_, status| {
            status.progress_done_bytes = 0;
            status.progress_total_bytes = 0;
        });
        line
    }

    /// The item is in `phase`.
    pub fn phase(&self, phase: State) {
        self.change(|inner, _| inner.phase = phase);
    }

    /// How far initial replication or comparison is.
    pub fn progress(&self, done: u64, total: u64) {
        self.change(|_, status| {
            status.progress_done_bytes = done;
            status.progress_total_bytes = total;
        });
    }

    /// Something of `origin` went wrong; logged when it is new.
    pub fn problem(&self, origin: Origin, trouble: &Trouble, spec: &Spec) {
        let found = trouble.finding(spec);
        let blocks = trouble.blocks();
        self.change(|inner, _| {
            let before = inner.problems.insert(origin, (found.clone(), blocks));
            if before.is_none_or(|(before, _)| before != found) {
                tracing::warn!(
                    item = self.item_id,
                    code = found.code,
                    error = chain(trouble),
                    "replication has a problem"
                );
            }
        });
    }

    /// All is well with `origin`.
    pub fn clear(&self, origin: Origin) {
        self.change(|inner, _| {
            if let Some((finding, _)) = inner.problems.remove(&origin) {
                tracing::info!(item = self.item_id, code = finding.code, "problem is gone");
            }
        });
    }

    /// Cycles that wait for the store.
    pub fn backlog(&self, cycles: u64) {
        self.change(|inner, status| {
            status.backlog_cycles = cycles;
            if cycles >= NOTABLE_BACKLOG {
                inner
                    .problems
                    .insert(Origin::Backlog, (finding::backlog(cycles), false));
            } else {
                inner.problems.remove(&Origin::Backlog);
            }
        });
    }

    /// The figures that the state keeps.
    pub fn figures(&self, state: &ItemState) {
        self.change(|_, status| {
            status.total_sent_bytes = state.total_sent_bytes;
            status.last_cycle_changed_bytes = state.last_changed_bytes;
            status.last_cycle_sent_bytes = state.last_sent_bytes;
            status.last_cycle_unix_ms = state.last_cycle_unix_ms;
        });
    }

    /// The points that the store holds, oldest first.
    pub fn points(&self, points: &[RecoveryPoint]) {
        let newest = &points[points.len().saturating_sub(MOST_POINTS)..];
        let points: Vec<_> = newest.iter().map(point).collect();
        self.change(|_, status| status.recovery_points = points);
    }

    fn change(&self, change: impl FnOnce(&mut Inner, &mut v1::ReplicationStatus)) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.board.update_replication(&self.item_id, |status| {
            change(&mut inner, status);
            status.generation = self.generation;
            let final_phase = matches!(inner.phase, State::Fenced | State::Retired);
            let blocked = !final_phase && inner.problems.values().any(|(_, blocks)| *blocks);
            status.set_state(if blocked { State::Blocked } else { inner.phase });
            status.findings = inner
                .problems
                .values()
                .map(|(finding, _)| finding.clone())
                .collect();
        });
    }
}

/// A point as the protocol describes it.
pub fn point(point: &RecoveryPoint) -> v1::RecoveryPoint {
    v1::RecoveryPoint {
        id: point.id.to_string(),
        time_unix_ms: point.time_unix_ms,
        kind: match point.kind {
            PointKind::Crash => v1::recovery_point::Kind::CrashConsistent,
            PointKind::Application => v1::recovery_point::Kind::ApplicationConsistent,
        }
        .into(),
        position: point.position.0,
        changed_bytes: point.changed_bytes,
        sent_bytes: point.sent_bytes,
        group_point_id: point
            .group_point_id
            .map_or_else(String::new, |id| id.to_string()),
    }
}
