//! One item's line on the board: its phase, its problems by origin, its figures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_protocol::v1;
use hypervisor::DiskId;
use replica_store::{PointKind, RecoveryPoint};
use tokio::time::Instant;
use v1::disk_status::Tracking;
use v1::replication_status::State;

use super::rate::Rate;

use super::spec::Spec;
use super::state::{ItemDisk, ItemState};
use super::suspicion::Knowledge;
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
    /// Hours in which disks may be compared.
    Window,
    /// Proof of what the store holds.
    Verify,
    /// The list of points.
    Points,
    /// Retirement.
    Retire,
    /// The guest, asked to rest.
    Application,
    /// The VM's group.
    Group,
    /// The interval between cycles.
    Schedule,
    /// What the VM may do here.
    Order,
    /// Starting and stopping the VM.
    Power,
}

/// An item's line on the board. Cheap to clone.
#[derive(Clone)]
pub struct StatusLine {
    board: Arc<Board>,
    item_id: String,
    generation: u64,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    phase: State,
    problems: BTreeMap<Origin, (v1::Finding, bool)>,
    /// What went over the wire.
    rate: Rate,
    /// What was done by it: more, where it is compressed.
    done: Rate,
}

impl StatusLine {
    /// A new line in phase `Starting`. Figures of an earlier run are kept until better ones come.
    pub fn new(board: Arc<Board>, spec: &Spec) -> Self {
        let line = Self {
            board,
            item_id: spec.item_id.clone(),
            generation: spec.generation.0,
            inner: Arc::new(Mutex::new(Inner {
                phase: State::Starting,
                problems: BTreeMap::new(),
                rate: Rate::default(),
                done: Rate::default(),
            })),
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

    /// Something of `origin` that a person should know, and that stops nothing; `None` = no longer.
    pub fn notice(&self, origin: Origin, found: Option<v1::Finding>) {
        self.change(|inner, _| {
            let before = match found {
                Some(found) => inner.problems.insert(origin, (found, false)),
                None => inner.problems.remove(&origin),
            };
            let code =
                |found: Option<&(v1::Finding, bool)>| found.map(|(found, _)| found.code.clone());
            let (before, now) = (code(before.as_ref()), code(inner.problems.get(&origin)));
            if before != now {
                tracing::info!(item = self.item_id, ?before, ?now, "notice");
            }
        });
    }

    /// How often cycles come, and why that is less often than the policy says; empty = it is not.
    pub fn schedule(&self, effective: Duration, degraded_reason: &str) {
        self.change(|_, status| {
            status.effective_interval_seconds =
                u32::try_from(effective.as_secs()).unwrap_or(u32::MAX);
            degraded_reason.clone_into(&mut status.degraded_reason);
        });
    }

    /// Cycles that wait for the store, and their bytes.
    pub fn backlog(&self, cycles: u64, bytes: u64) {
        self.change(|inner, status| {
            status.backlog_cycles = cycles;
            status.backlog_bytes = bytes;
            if cycles >= NOTABLE_BACKLOG {
                inner
                    .problems
                    .insert(Origin::Backlog, (finding::backlog(cycles), false));
            } else {
                inner.problems.remove(&Origin::Backlog);
            }
        });
    }

    /// How far the changes of each disk are known.
    pub fn tracking(&self, disks: &[ItemDisk], known: &Knowledge, comparing: bool) {
        let disks = disks.iter().map(|disk| {
            let suspicion = known.suspects.get(&disk.id);
            let tracking = match suspicion {
                None => Tracking::Tracked,
                Some(_) if comparing => Tracking::Comparing,
                Some(_) => Tracking::Suspect,
            };
            v1::DiskStatus {
                disk_id: disk.id.to_string(),
                tracking: tracking.into(),
                reason: suspicion.map_or_else(String::new, |found| found.reason.clone()),
                compared_bytes: suspicion.map_or(0, |found| found.compared_bytes),
                size_bytes: disk.size_bytes,
            }
        });
        let disks: Vec<_> = disks.collect();
        let whole = known.is_whole();
        self.change(|inner, status| {
            status.disks = disks;
            if whole {
                inner.problems.remove(&Origin::Window);
            }
        });
    }

    /// A comparison has come so far on a disk.
    pub fn compared(&self, disk: DiskId, bytes: u64) {
        let id = disk.to_string();
        self.change(|_, status| {
            if let Some(disk) = status.disks.iter_mut().find(|disk| disk.disk_id == id) {
                disk.compared_bytes = bytes;
            }
        });
    }

    /// A comparison waits for its window, until then; `None` = it does not wait.
    pub fn comparison_waits(&self, until_unix_ms: Option<i64>) {
        self.change(|inner, _| match until_unix_ms {
            Some(until) => {
                let found = (finding::comparison_waits(until), false);
                inner.problems.insert(Origin::Window, found);
            }
            None => {
                inner.problems.remove(&Origin::Window);
            }
        });
    }

    /// So many bytes went to the store, and so many of what is to be done are done with them.
    pub fn sent(&self, bytes: u64, done_bytes: u64) {
        let now = Instant::now();
        self.change(|inner, status| {
            inner.rate.add(now, bytes);
            inner.done.add(now, done_bytes);
            status.bytes_per_second = inner.rate.per_second(now);
            status.eta_seconds = eta_seconds(status, inner.done.per_second(now));
        });
    }

    /// Time passes, and nothing else happens.
    pub fn tick(&self) {
        self.sent(0, 0);
    }

    /// The figures that the state keeps.
    pub fn figures(&self, state: &ItemState) {
        self.change(|_, status| {
            status.total_sent_bytes = state.total_sent_bytes;
            status.last_cycle_changed_bytes = state.last_changed_bytes;
            status.last_cycle_sent_bytes = state.last_sent_bytes;
            status.last_cycle_unix_ms = state.last_cycle_unix_ms;
            status.resynchronized = state.resynchronized;
            status.active_key_id = state
                .active_key
                .map_or_else(String::new, |key| key.to_string());
            status.key_ids = state.keys.keys().map(ToString::to_string).collect();
            status.last_verified_unix_ms = state.last_verified_unix_ms;
            if state.last_application_unix_ms > 0 {
                status.last_app_consistent_unix_ms = state.last_application_unix_ms;
            }
        });
    }

    /// The points that the store holds, oldest first.
    pub fn points(&self, points: &[RecoveryPoint]) {
        let newest = &points[points.len().saturating_sub(MOST_POINTS)..];
        let points: Vec<_> = newest.iter().map(point).collect();
        let application = v1::recovery_point::Kind::ApplicationConsistent;
        let newest = points
            .iter()
            .filter(|point| point.kind() == application)
            .map(|point| point.time_unix_ms)
            .max();
        self.change(|_, status| {
            status.recovery_points = points;
            if let Some(newest) = newest {
                status.last_app_consistent_unix_ms = newest;
            }
        });
    }

    /// Whether points are listed.
    pub fn has_points(&self) -> bool {
        let status = self.board.replication(&self.item_id);
        status.is_some_and(|status| !status.recovery_points.is_empty())
    }

    /// What there is to say of the order in force, as long as it is true.
    pub fn say(&self, report: Option<v1::SourceReport>) {
        self.change(|_, status| status.source = report);
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

/// Until what is known to be left is done, at the present rate; 0 = unknown, or nothing is left.
fn eta_seconds(status: &v1::ReplicationStatus, done_per_second: u64) -> u64 {
    let left = match status.state() {
        State::InitialReplication | State::Comparing => {
            let total = status.progress_total_bytes;
            total.saturating_sub(status.progress_done_bytes)
        }
        _ => status.backlog_bytes,
    };
    match done_per_second {
        0 => 0,
        rate => left.div_ceil(rate),
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
