//! Readiness that a guest tells itself: its agent answers, or a TCP port takes connections, of every VM of the group.
//!
//! ```text
//!  question, stored ─► desired state ─► the recovery host's engine asks ─► status ─► this action ─► job, report
//! ```
//!
//! The question goes when the action has ended, however that is. A VM that was left behind is told as that already and is
//! not waited for.

use arm_model::test_failover::{DrillPort, DrillVm};
use arm_model::{ArmError, timestamp};
use engine_protocol::v1::RecoveredVmStatus;
use serde_json::json;

use super::{Seen, console, elapsed_ms, id, id_at, millis};
use crate::fault::Fault;
use crate::saga::steps::ActionStep;
use crate::saga::{Run, failures};
use crate::store::records::{self, Item, Question};
use crate::store::{Expect, StoreError};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Agent,
    Port(u16),
}

/// What a host says to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    /// First answer; 0 = none.
    at_ms: i64,
    /// What came instead.
    problem: String,
}

pub(super) async fn act(
    run: &mut Run<'_>,
    step: &ActionStep,
    asked: Asked,
    limit_seconds: u32,
) -> Result<Seen, Fault> {
    let elapsed = elapsed_ms(run);
    let (mut silent, mut answered) = (Vec::new(), Vec::new());
    let (mut unheard, mut told) = (false, Vec::new());
    let failed = failures::all(run);
    for id in &step.items {
        let key = id.to_ascii_lowercase();
        if failed.iter().any(|(about, _)| *about == key) {
            continue;
        }
        let Some(item) = records::get::<Item>(run.app.store.as_ref(), &key).await? else {
            continue;
        };
        let (engine, vm) = console::machine(run, &item.record, &key);
        put(run, &engine, &vm, asked).await?;
        let live = run.app.fleet.get(&engine).unwrap_or_default();
        let answer = answer(live.recovered(&vm), asked);
        if answer.at_ms > 0 {
            let at = timestamp::from_unix_ms(answer.at_ms);
            answered.push(json!({ "name": item.record.vm_name, "time": at }));
        } else {
            // After a restart of ours hosts need a moment to say what they see.
            unheard |= !live.connected(run.app.now_ms())
                && !run.is_away(&engine, run.app.patience.engine_ms);
            silent.push(format!("{} ({})", item.record.vm_name, answer.problem));
        }
        told.push((vm, answer));
    }
    if !silent.is_empty() && (elapsed < millis(limit_seconds) || unheard) {
        return Ok(Seen::Waits);
    }
    let details = &mut run.job.properties.custom_details.protected_item_details;
    for vm in details.iter_mut().flatten() {
        if let Some((_, answer)) = told.iter().find(|(id, _)| *id == vm.test_vm_name) {
            show(vm, asked, answer);
        }
    }
    let details = json!({ "answered": answered });
    if silent.is_empty() {
        return Ok(Seen::well(details));
    }
    let names = silent.join(", ");
    let (what, causes, next) = match asked {
        Asked::Agent => (
            "The guest agent".to_owned(),
            "The guest does not start from this recovery point, takes longer, or has no agent that listens where the recovery host asks.",
            "See the VM's console on the recovery host; give the check more time, or let the guest start its agent.",
        ),
        Asked::Port(port) => (
            format!("TCP port {port}"),
            "The service does not start, takes longer, or waits for an address: an isolated network has no DHCP server, and only addresses that the guest uses are asked.",
            "See the VM's console on the recovery host; give the check more time, or give the guest a fixed address.",
        ),
    };
    let error = ArmError::new(
        "VirtualMachineNotReady",
        format!("{what} did not answer in {limit_seconds} s: {names}."),
    )
    .advise(causes, next);
    Ok(Seen::badly(error, details))
}

fn answer(status: Option<&RecoveredVmStatus>, asked: Asked) -> Answer {
    let known = match asked {
        Asked::Agent => status.map(|status| (status.agent_answered_unix_ms, String::new())),
        Asked::Port(port) => status.and_then(|status| {
            let mut ports = status.ports.iter();
            let port = ports.find(|known| known.port == u32::from(port))?;
            Some((port.answered_unix_ms, port.problem.clone()))
        }),
    };
    let (at_ms, problem) = known.unwrap_or_default();
    let problem = match (problem.is_empty(), asked) {
        (false, _) => problem,
        (true, Asked::Agent) => "no answer".to_owned(),
        (true, Asked::Port(_)) => "the recovery host has not asked".to_owned(),
    };
    Answer { at_ms, problem }
}

/// For the job and its report.
fn show(vm: &mut DrillVm, asked: Asked, answer: &Answer) {
    let time = Some(answer.at_ms).filter(|ms| *ms > 0);
    let time = time.and_then(timestamp::from_unix_ms);
    match asked {
        Asked::Agent => {
            vm.guest_agent_silent = time.is_none();
            vm.guest_agent_time = time;
        }
        Asked::Port(port) => {
            let port = u32::from(port);
            vm.ports.retain(|known| known.port != port);
            let problem = if time.is_some() {
                String::new()
            } else {
                answer.problem.clone()
            };
            vm.ports.push(DrillPort {
                port,
                answered_time: time,
                problem,
            });
        }
    }
}

async fn put(run: &Run<'_>, engine: &str, vm: &str, asked: Asked) -> Result<(), Fault> {
    let key = records::question_key(&id(run).to_string(), vm);
    let store = run.app.store.as_ref();
    if store.get(&key).await?.is_some() {
        return Ok(());
    }
    let question = Question {
        engine_id: engine.to_owned(),
        vm_id: vm.to_owned(),
        port: match asked {
            Asked::Agent => None,
            Asked::Port(port) => Some(port),
        },
        job: run.job.id.clone(),
    };
    store
        .apply(vec![records::put(key, &question, Expect::Absent)?])
        .await?;
    run.app.ring();
    Ok(())
}

/// Asks no more, of an action that has ended.
pub(super) async fn forget(run: &Run<'_>) -> Result<(), StoreError> {
    remove(run, run.job.node).await
}

/// The same of an action that is taken back: an unwinding job counts the nodes that are still to undo.
pub(super) async fn withdraw(run: &Run<'_>) -> Result<(), StoreError> {
    remove(run, run.job.node.saturating_sub(1)).await
}

async fn remove(run: &Run<'_>, node: usize) -> Result<(), StoreError> {
    let below = records::question_key(&id_at(run, node).to_string(), "");
    let store = run.app.store.as_ref();
    let found = records::list::<Question>(store, &below).await?;
    if !found.is_empty() {
        let changes = found.into_iter().map(|one| records::delete(one.key));
        store.apply(changes.collect()).await?;
        run.app.ring();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine_protocol::v1::PortStatus;

    use super::*;

    #[test]
    fn a_host_that_says_nothing_of_a_port_has_not_asked_and_one_that_does_is_believed() {
        let mut status = RecoveredVmStatus {
            agent_answered_unix_ms: 7,
            ports: vec![PortStatus {
                port: 80,
                answered_unix_ms: 0,
                problem: "no answer came".to_owned(),
            }],
            ..RecoveredVmStatus::default()
        };
        let said = |status: &RecoveredVmStatus, asked| answer(Some(status), asked);
        assert_eq!(said(&status, Asked::Agent).at_ms, 7);
        assert_eq!(said(&status, Asked::Port(80)).problem, "no answer came");
        let other = said(&status, Asked::Port(443));
        assert_eq!((other.at_ms, other.problem.is_empty()), (0, false));
        assert_eq!(answer(None, Asked::Agent).at_ms, 0);
        status.ports[0].answered_unix_ms = 9;
        assert_eq!(said(&status, Asked::Port(80)).at_ms, 9);
    }

    #[test]
    fn the_report_keeps_the_newest_answer_of_each_port() {
        let mut vm = DrillVm::default();
        let answer = |at_ms, problem: &str| Answer {
            at_ms,
            problem: problem.to_owned(),
        };
        show(&mut vm, Asked::Port(80), &answer(0, "refused"));
        show(&mut vm, Asked::Port(443), &answer(1_000, ""));
        show(&mut vm, Asked::Port(80), &answer(2_000, "refused"));
        show(&mut vm, Asked::Agent, &answer(0, "no answer"));
        let ports: Vec<_> = vm
            .ports
            .iter()
            .map(|port| {
                (
                    port.port,
                    port.answered_time.is_some(),
                    port.problem.as_str(),
                )
            })
            .collect();
        assert_eq!(ports, [(443, true, ""), (80, true, "")]);
        assert!(vm.guest_agent_silent && vm.guest_agent_time.is_none());
    }
}
