//! Asks the guest of a recovered VM whether it is up, as far as somebody wants to know: its agent, its TCP ports.
//!
//! Promise: each is asked until it has answered once, then left alone; none of it holds up what a VM needs, and neither an
//! answer nor its absence changes anything but what is told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use engine_protocol::v1::{self, PortStatus};
use hypervisor::{ErrorKind, HypervisorError, PortAnswer, VmId};
use tokio::time::Instant;
use uuid::Uuid;

use super::RecoveryHost;
use crate::engine::now_unix_ms;

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_secs(1);
/// The same when nobody has answered for long.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// What is long.
const LONG: Duration = Duration::from_secs(15 * 60);

/// What is to be asked of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    agent: bool,
    ports: Vec<u16>,
}

/// The same by VM, out of a desired state.
pub(super) fn questions(desired: &[v1::RecoveredVm]) -> BTreeMap<String, Questions> {
    let asked = desired.iter().map(|vm| {
        let ports = vm.ports.iter().filter_map(|port| u16::try_from(*port).ok());
        let mut ports: Vec<u16> = ports.filter(|port| *port > 0).collect();
        ports.sort_unstable();
        ports.dedup();
        let agent = vm.ask_agent;
        (vm.id.clone(), Questions { agent, ports })
    });
    asked
        .filter(|(_, questions)| *questions != Questions::default())
        .collect()
}

/// When the last of everything that is asked of a VM had answered; 0 = not all of it has, or nothing is asked.
pub(super) fn answered_unix_ms(host: &RecoveryHost, id: Uuid) -> i64 {
    let key = id.to_string();
    let known = host.board.recovered(&key).unwrap_or_default();
    let asked = host.board.questions(&key);
    let agent = asked.agent.then_some(known.agent_answered_unix_ms);
    let ports = asked.ports.iter().map(|port| {
        let mut told = known.ports.iter();
        let told = told.find(|known| known.port == u32::from(*port));
        told.map_or(0, |port| port.answered_unix_ms)
    });
    let times: Vec<i64> = agent.into_iter().chain(ports).collect();
    if times.contains(&0) {
        return 0;
    }
    times.into_iter().max().unwrap_or(0)
}

/// Asks for as long as the VM runs.
pub(super) async fn ask(host: &RecoveryHost, id: Uuid) -> Infallible {
    let key = id.to_string();
    // What was answered before the VM was started anew says nothing.
    host.board.update_recovered(&key, |status| {
        status.agent_answered_unix_ms = 0;
        status.ports.clear();
    });
    let begin = Instant::now();
    loop {
        let asked = host.board.questions(&key);
        let known = host.board.recovered(&key).unwrap_or_default();
        if asked.agent && known.agent_answered_unix_ms == 0 && agent_answers(host, id).await {
            let now = now_unix_ms();
            host.board
                .update_recovered(&key, |status| status.agent_answered_unix_ms = now);
        }
        let mut ports = Vec::with_capacity(asked.ports.len());
        for port in asked.ports {
            let number = u32::from(port);
            let before = known.ports.iter().find(|known| known.port == number);
            ports.push(match before {
                Some(answered) if answered.answered_unix_ms != 0 => answered.clone(),
                _ => told(port, &host.hypervisor.ask_port(VmId(id), port).await),
            });
        }
        if ports != known.ports {
            host.board
                .update_recovered(&key, |status| status.ports = ports);
        }
        let pause = if begin.elapsed() > LONG {
            LONG_PAUSE
        } else {
            PAUSE
        };
        tokio::time::sleep(pause).await;
    }
}

async fn agent_answers(host: &RecoveryHost, id: Uuid) -> bool {
    match host.hypervisor.agent_answers(VmId(id)).await {
        Ok(answers) => answers,
        Err(error) => {
            tracing::debug!(vm = %id, ?error, "the guest agent of a recovered VM can't be asked");
            false
        }
    }
}

fn told(port: u16, answer: &Result<PortAnswer, HypervisorError>) -> PortStatus {
    let problem = match answer {
        Ok(PortAnswer::Open) => {
            return PortStatus {
                port: port.into(),
                answered_unix_ms: now_unix_ms(),
                problem: String::new(),
            };
        }
        Ok(PortAnswer::Refused) => "the guest refuses connections",
        Ok(PortAnswer::Silent) => "no answer came",
        Ok(PortAnswer::NoAddress) => "its guest has shown no IPv4 address",
        Ok(PortAnswer::NoNeighbour) => {
            "all addresses beside its guest's are taken, so there is none to ask from"
        }
        Ok(PortAnswer::NotConnected) => "none of its adapters is in a network that can be asked",
        Err(error) if error.kind() == ErrorKind::VmNotRunning => "it does not run",
        Err(error) if error.kind() == ErrorKind::InvalidRequest => {
            "this host's hypervisor can't ask for ports"
        }
        Err(error) => {
            tracing::debug!(port, ?error, "a recovered VM can't be asked for a port");
            "it could not be asked"
        }
    };
    PortStatus {
        port: port.into(),
        answered_unix_ms: 0,
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn questions_are_read_once_each_and_numbers_that_are_no_ports_are_left_out() {
        let vm = |id: &str, ask_agent, ports: &[u32]| v1::RecoveredVm {
            id: id.to_owned(),
            ask_agent,
            ports: ports.to_vec(),
            ..v1::RecoveredVm::default()
        };
        let asked = questions(&[
            vm("a", true, &[443, 80, 443, 0, 65_536]),
            vm("b", false, &[]),
        ]);
        let expected = Questions {
            agent: true,
            ports: vec![80, 443],
        };
        assert_eq!(asked, BTreeMap::from([("a".to_owned(), expected)]));
    }

    #[test]
    fn a_guest_is_up_when_all_that_was_asked_has_answered() {
        let folder = tempfile::tempdir().unwrap();
        let hypervisor = hypervisor::FilesDriver::new(folder.path()).unwrap();
        let board = Arc::new(crate::board::Board::default());
        let host = RecoveryHost::new(Arc::new(hypervisor), board, "/nowhere".into());
        let id = Uuid::from_u128(7);
        let key = id.to_string();
        assert_eq!(answered_unix_ms(&host, id), 0, "nothing is asked");
        let asked = Questions {
            agent: true,
            ports: vec![80],
        };
        host.board
            .set_questions(BTreeMap::from([(key.clone(), asked)]));
        host.board
            .update_recovered(&key, |status| status.agent_answered_unix_ms = 5);
        assert_eq!(answered_unix_ms(&host, id), 0);
        host.board.update_recovered(&key, |status| {
            status.ports = vec![PortStatus {
                port: 80,
                answered_unix_ms: 9,
                problem: String::new(),
            }];
        });
        assert_eq!(answered_unix_ms(&host, id), 9);
    }

    #[test]
    fn only_a_port_that_takes_connections_has_answered() {
        for answer in [
            PortAnswer::Refused,
            PortAnswer::Silent,
            PortAnswer::NoNeighbour,
            PortAnswer::NoAddress,
            PortAnswer::NotConnected,
        ] {
            let status = told(80, &Ok(answer));
            assert!(status.answered_unix_ms == 0 && !status.problem.is_empty());
        }
        let open = told(80, &Ok(PortAnswer::Open));
        assert!(open.answered_unix_ms > 0 && open.problem.is_empty());
    }
}
