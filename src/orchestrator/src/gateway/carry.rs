//! What an engine that has just started does not know yet, but we do.
//!
//! An engine that was killed reports again within a second, before it has opened its replicas: its items are missing or
//! come without points. The points are in the store all the same, and an operator in need must not see them vanish.
//! A replica that was complete always holds a point, so an empty list says "not known yet": the last figures stand until
//! the engine names points itself, begins a new activation, or says that the replica is being made or is gone.
//! Likewise a script that was seen stands until the engine has taken its orders in.
//!
//! And of a VM that its host lists no more we keep what it was like: it may be failed over because it is gone.

use engine_protocol::v1::{self, replication_status::State};

/// So many VMs that are gone are remembered for each host.
const GONE: usize = 256;

/// `next` with the figures of `known` where `next` can't have any yet.
#[must_use]
pub fn carry_over(known: &v1::EngineReport, mut next: v1::EngineReport) -> v1::EngineReport {
    for status in &mut next.replications {
        let same = |old: &&v1::ReplicationStatus| {
            old.item_id == status.item_id && old.generation == status.generation
        };
        let says_so = matches!(status.state(), State::InitialReplication | State::Retired);
        if says_so || !status.recovery_points.is_empty() {
            continue;
        }
        if let Some(old) = known.replications.iter().find(same) {
            *status = v1::ReplicationStatus {
                state: status.state,
                findings: std::mem::take(&mut status.findings),
                backlog_cycles: status.backlog_cycles,
                source: status.source.take(),
                ..old.clone()
            };
        }
    }
    // Once the engine has taken in what is desired, an item that it does not name is gone.
    if next.observed_generation < known.observed_generation {
        let missing = known.replications.iter().filter(|old| {
            !next
                .replications
                .iter()
                .any(|new| new.item_id == old.item_id)
        });
        let missing: Vec<_> = missing.cloned().collect();
        next.replications.extend(missing);
    }
    // 0 = nothing taken in since its start, in however many reports until then.
    if next.observed_generation < known.observed_generation || next.observed_generation == 0 {
        let is_missing = |old: &&v1::ScriptStatus| next.scripts.iter().all(|new| new.id != old.id);
        let missing: Vec<_> = known.scripts.iter().filter(is_missing).cloned().collect();
        next.scripts.extend(missing);
    }
    let is_gone = |old: &&v1::VirtualMachine| {
        let mut listed = next.virtual_machines.iter();
        !listed.any(|new| new.id.eq_ignore_ascii_case(&old.id))
    };
    let before = known.virtual_machines.iter().chain(&known.gone_machines);
    next.gone_machines = before.filter(is_gone).take(GONE).cloned().collect();
    next
}

#[cfg(test)]
mod tests {
    use engine_protocol::v1::script_status::Outcome;

    use super::*;

    fn status(item: &str, generation: u64, state: State, points: usize) -> v1::ReplicationStatus {
        v1::ReplicationStatus {
            item_id: item.to_owned(),
            generation,
            state: state.into(),
            recovery_points: vec![v1::RecoveryPoint::default(); points],
            ..v1::ReplicationStatus::default()
        }
    }

    fn report(
        observed_generation: u64,
        replications: Vec<v1::ReplicationStatus>,
    ) -> v1::EngineReport {
        v1::EngineReport {
            observed_generation,
            replications,
            ..v1::EngineReport::default()
        }
    }

    fn points(report: &v1::EngineReport) -> Vec<usize> {
        let each = report.replications.iter();
        each.map(|status| status.recovery_points.len()).collect()
    }

    #[test]
    fn points_stay_while_a_restarted_engine_opens_its_replicas() {
        let known = report(7, vec![status("a", 1, State::Protected, 3)]);
        assert_eq!(points(&carry_over(&known, report(0, vec![]))), [3]);
        for state in [
            State::Starting,
            State::Protected,
            State::Comparing,
            State::Blocked,
        ] {
            let carried = carry_over(&known, report(7, vec![status("a", 1, state, 0)]));
            assert_eq!(points(&carried), [3], "{state:?}");
            assert_eq!(carried.replications[0].state(), state);
        }
    }

    #[test]
    fn what_the_engine_says_itself_wins() {
        let known = report(7, vec![status("a", 1, State::Protected, 3)]);
        for (state, count) in [
            (State::Protected, 2),
            (State::InitialReplication, 0),
            (State::Retired, 0),
        ] {
            let said = report(7, vec![status("a", 1, state, count)]);
            assert_eq!(points(&carry_over(&known, said)), [count], "{state:?}");
        }
        let gone = report(7, vec![]);
        assert_eq!(points(&carry_over(&known, gone)), [0_usize; 0]);
    }

    #[test]
    fn a_script_stays_until_a_restarted_engine_has_taken_its_orders_in() {
        let script = |outcome: Outcome| v1::ScriptStatus {
            id: "s".to_owned(),
            outcome: outcome.into(),
            ..v1::ScriptStatus::default()
        };
        let known = v1::EngineReport {
            scripts: vec![script(Outcome::Running)],
            ..report(7, vec![])
        };
        let first = carry_over(&known, report(0, vec![]));
        assert_eq!(first.scripts, known.scripts);
        let second = carry_over(&first, report(0, vec![]));
        assert_eq!(second.scripts, known.scripts);
        let said = v1::EngineReport {
            scripts: vec![script(Outcome::Unknown)],
            ..report(0, vec![])
        };
        assert_eq!(carry_over(&second, said.clone()).scripts, said.scripts);
        let gone = carry_over(&second, report(7, vec![]));
        assert!(gone.scripts.is_empty());
    }

    #[test]
    fn a_vm_that_is_gone_is_remembered_until_it_is_back_whatever_the_engine_says() {
        let listed = |ids: &[&str]| v1::EngineReport {
            virtual_machines: ids
                .iter()
                .map(|id| v1::VirtualMachine {
                    id: (*id).to_owned(),
                    ..v1::VirtualMachine::default()
                })
                .collect(),
            ..report(7, vec![])
        };
        let gone = |report: &v1::EngineReport| -> Vec<String> {
            let all = report.gone_machines.iter();
            all.map(|vm| vm.id.clone()).collect()
        };
        let first = carry_over(&listed(&["a", "b"]), listed(&["b"]));
        assert_eq!(gone(&first), ["a"]);
        let second = carry_over(&first, listed(&[]));
        assert_eq!(gone(&second), ["b", "a"]);
        let back = carry_over(&second, listed(&["A"]));
        assert_eq!(gone(&back), ["b"]);
        let said = v1::EngineReport {
            gone_machines: listed(&["x"]).virtual_machines,
            ..listed(&[])
        };
        assert_eq!(gone(&carry_over(&back, said)), ["A", "b"]);
    }

    #[test]
    fn a_new_activation_inherits_nothing() {
        let known = report(7, vec![status("a", 1, State::Protected, 3)]);
        let anew = report(8, vec![status("a", 2, State::Starting, 0)]);
        assert_eq!(points(&carry_over(&known, anew)), [0]);
    }
}
