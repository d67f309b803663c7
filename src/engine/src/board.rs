//! What the engine has observed, in one place: tasks write to it, the session and `status` read it.
//!
//! Promise: every change wakes the watchers, an unchanged value does not.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine_protocol::v1::{Evidence, RecoveredVmStatus, ReplicationStatus, ScriptStatus};
use tokio::sync::watch;

use crate::recovered::Questions;

/// Observed state of all items and recovered VMs.
#[derive(Debug)]
pub struct Board {
    content: Mutex<Content>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Content {
    observed_generation: u64,
    replications: BTreeMap<String, ReplicationStatus>,
    recovered: BTreeMap<String, RecoveredVmStatus>,
    /// What the orchestrator has not acknowledged, by recovered VM.
    evidence: BTreeMap<String, Evidence>,
    /// The recovered VM whose evidence was told last.
    told_of: String,
    scripts: Vec<ScriptStatus>,
    /// What is to be asked of guests, by recovered VM.
    questions: BTreeMap<String, Questions>,
}

/// A copy of the board's content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Newest desired state that was taken in whole.
    pub observed_generation: u64,
    /// By item id.
    pub replications: Vec<ReplicationStatus>,
    /// By id.
    pub recovered: Vec<RecoveredVmStatus>,
    /// Of every order that is listed.
    pub scripts: Vec<ScriptStatus>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            content: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Board {
    /// Wakes at each change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// All of it.
    pub fn snapshot(&self) -> Snapshot {
        let content = self.lock();
        Snapshot {
            observed_generation: content.observed_generation,
            replications: content.replications.values().cloned().collect(),
            recovered: content.recovered.values().cloned().collect(),
            scripts: content.scripts.clone(),
        }
    }

    /// What was seen of one recovered VM and is not acknowledged: of another one each time, so that evidence that is never
    /// acknowledged keeps no other from being told.
    pub fn evidence_in_turn(&self) -> Option<Evidence> {
        let mut content = self.lock();
        let behind = (Bound::Excluded(&content.told_of), Bound::Unbounded);
        let mut later = content.evidence.range::<String, _>(behind);
        let next = later.next().or_else(|| content.evidence.iter().next());
        let next = next.map(|(_, evidence)| evidence.clone())?;
        content.told_of.clone_from(&next.vm_id);
        Some(next)
    }

    /// The status of one item.
    pub fn replication(&self, item_id: &str) -> Option<ReplicationStatus> {
        self.lock().replications.get(item_id).cloned()
    }

    /// The status of one recovered VM.
    pub fn recovered(&self, id: &str) -> Option<RecoveredVmStatus> {
        self.lock().recovered.get(id).cloned()
    }

    /// A desired state was taken in whole.
    pub fn observe_generation(&self, generation: u64) {
        let mut content = self.lock();
        if content.observed_generation != generation {
            content.observed_generation = generation;
            drop(content);
            self.changed();
        }
    }

    /// Changes the status of an item, which is made when missing.
    pub fn update_replication(&self, item_id: &str, change: impl FnOnce(&mut ReplicationStatus)) {
        let mut content = self.lock();
        let status = content
            .replications
            .entry(item_id.to_owned())
            .or_insert_with(|| ReplicationStatus {
                item_id: item_id.to_owned(),
                ..ReplicationStatus::default()
            });
        let before = status.clone();
        change(status);
        let differs = *status != before;
        drop(content);
        if differs {
            self.changed();
        }
    }

    /// Changes the status of a recovered VM, which is made when missing.
    pub fn update_recovered(&self, id: &str, change: impl FnOnce(&mut RecoveredVmStatus)) {
        let mut content = self.lock();
        let status = content
            .recovered
            .entry(id.to_owned())
            .or_insert_with(|| RecoveredVmStatus {
                id: id.to_owned(),
                ..RecoveredVmStatus::default()
            });
        let before = status.clone();
        change(status);
        let differs = *status != before;
        drop(content);
        if differs {
            self.changed();
        }
    }

    /// The item is no longer this engine's business.
    pub fn drop_replication(&self, item_id: &str) {
        if self.lock().replications.remove(item_id).is_some() {
            self.changed();
        }
    }

    /// The recovered VM is gone, and with it what was seen of it.
    pub fn drop_recovered(&self, id: &str) {
        let mut content = self.lock();
        let evidence = content.evidence.remove(id);
        let gone = content.recovered.remove(id).is_some() || evidence.is_some();
        drop(content);
        if gone {
            self.changed();
        }
    }

    /// How far the scripts of recovery plans are.
    pub fn set_scripts(&self, scripts: Vec<ScriptStatus>) {
        let mut content = self.lock();
        if content.scripts != scripts {
            content.scripts = scripts;
            drop(content);
            self.changed();
        }
    }

    /// What is to be asked of the guests of recovered VMs; others are asked nothing.
    pub fn set_questions(&self, questions: BTreeMap<String, Questions>) {
        self.lock().questions = questions;
    }

    /// What is to be asked of the guest of a recovered VM.
    pub fn questions(&self, id: &str) -> Questions {
        self.lock().questions.get(id).cloned().unwrap_or_default()
    }

    /// Something was seen of a recovered VM; it is told until it is acknowledged.
    pub fn add_evidence(&self, evidence: Evidence) {
        let mut content = self.lock();
        content.evidence.insert(evidence.vm_id.clone(), evidence);
        drop(content);
        self.changed();
    }

    /// The orchestrator has kept this evidence; what was seen later is still to be told.
    pub fn evidence_received(&self, vm_id: &str, evidence_id: &str) {
        let mut content = self.lock();
        let kept = content.evidence.get(vm_id);
        if kept.is_some_and(|kept| kept.id == evidence_id) {
            content.evidence.remove(vm_id);
            drop(content);
            self.changed();
        }
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // A writer that panicked leaves whole values: each change is one assignment.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_wake_for_changes_and_only_for_changes() {
        let board = Board::default();
        let mut watch = board.watch();
        board.update_replication("a", |status| status.backlog_cycles = 1);
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        board.update_replication("a", |status| status.backlog_cycles = 1);
        board.drop_recovered("none");
        assert!(!watch.has_changed().unwrap());
        board.drop_replication("a");
        assert!(watch.has_changed().unwrap());
        assert_eq!(board.snapshot(), Snapshot::default());
    }

    #[test]
    fn evidence_is_told_of_one_vm_at_a_time_until_it_is_acknowledged() {
        let board = Board::default();
        let evidence = |vm: &str, id: &str| Evidence {
            vm_id: vm.to_owned(),
            id: id.to_owned(),
            ..Evidence::default()
        };
        let told = || board.evidence_in_turn().map(|evidence| evidence.id);
        board.add_evidence(evidence("a", "1"));
        board.add_evidence(evidence("b", "2"));
        board.add_evidence(evidence("a", "3"));
        // An acknowledgement of what was replaced meanwhile says nothing of what replaced it.
        board.evidence_received("a", "1");
        assert_eq!(told().as_deref(), Some("3"));
        board.evidence_received("a", "3");
        assert_eq!(told().as_deref(), Some("2"));
        assert_eq!(told().as_deref(), Some("2"));
        board.drop_recovered("b");
        assert_eq!(told(), None);
    }

    #[test]
    fn evidence_that_is_never_acknowledged_keeps_no_other_from_being_told() {
        let board = Board::default();
        for vm in ["a", "b", "c"] {
            board.add_evidence(Evidence {
                vm_id: vm.to_owned(),
                id: vm.to_uppercase(),
                ..Evidence::default()
            });
        }
        let told = || board.evidence_in_turn().map(|evidence| evidence.id);
        let turns: Vec<_> = (0..4).filter_map(|_| told()).collect();
        assert_eq!(turns, ["A", "B", "C", "A"]);
        board.evidence_received("b", "B");
        assert_eq!(
            told().as_deref(),
            Some("C"),
            "whose turn is over is left out"
        );
    }
}
