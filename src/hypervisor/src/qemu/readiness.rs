//! Whether a guest is up: its agent answers, its ports take connections.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::warn;

use super::agent::{Agent, AgentError};
use super::{FoundVm, QemuDriver, connect, from_qmp};
use crate::{ErrorKind, HypervisorError, PortAnswer, VmId};

/// For an agent that has its port open: it answers at once, or does not listen.
const AGENT_WITHIN: Duration = Duration::from_secs(2);
/// I/O ports of COM2 (16550): interrupts that are wanted, and the shape of the line.
const COM2_INTERRUPTS: &str = "0x2f9";
const COM2_LINE: &str = "0x2fb";
/// "Received data": set by a system whose program reads the port. Firmware and boot loaders read it without interrupts.
const RECEIVED: u8 = 0x01;
/// With it `COM2_INTERRUPTS` is something else.
const DIVISOR: u8 = 0x80;

impl QemuDriver {
    /// Opens the private segments of VMs that outlived another process.
    pub(super) fn reconnect(&self) {
        for found in self.all_found() {
            if found.folder.running_pid().is_some()
                && let Err(error) = self.segments.attach(&found)
            {
                warn!(vm = %found.config.name, ?error, "a running machine can't be connected to its private network");
            }
        }
    }

    /// See [`crate::Hypervisor::agent_answers`].
    pub(super) async fn ask_agent(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let found = self.find(vm)?;
        Ok(call(&found).await?.is_some())
    }

    /// See [`crate::Hypervisor::ask_port`].
    pub(super) async fn ask_for_port(
        &self,
        vm: VmId,
        port: u16,
    ) -> Result<PortAnswer, HypervisorError> {
        let found = self.find(vm)?;
        if found.folder.running_pid().is_none() {
            return Err(HypervisorError::new(
                ErrorKind::VmNotRunning,
                format!("ask vm {} for port {port}: it is off", found.config.name),
            ));
        }
        // One that keeps silent on the network may tell its agent.
        let told = if self.segments.is_quiet(vm) {
            let _lock = self.lock(vm).await;
            addresses(&found).await?
        } else {
            Vec::new()
        };
        Ok(self.segments.ask(vm, port, &told).await)
    }
}

/// An agent that has answered; `None` when there is none, or not yet.
async fn call(found: &FoundVm) -> Result<Option<Agent>, HypervisorError> {
    if !is_read(found).await? {
        return Ok(None);
    }
    let name = &found.config.name;
    let step = || format!("ask the guest agent of vm {name}");
    let mut agent = match Agent::call(&found.folder.agent_socket(), AGENT_WITHIN).await {
        Ok(agent) => agent,
        Err(AgentError::Port(error)) => {
            return Err(HypervisorError::with_source(
                ErrorKind::VmNotRunning,
                step(),
                error,
            ));
        }
        Err(_) => return Ok(None),
    };
    let pong = agent.execute("guest-ping", AGENT_WITHIN).await;
    Ok(pong.is_ok().then_some(agent))
}

/// Whether something in the guest reads the agent's port.
async fn is_read(found: &FoundVm) -> Result<bool, HypervisorError> {
    let mut qmp = connect(found).await?;
    let mut register = async |port: &str| {
        let line = format!("i /b {port}");
        let said = qmp
            .execute("human-monitor-command", json!({ "command-line": line }))
            .await
            .map_err(|error| {
                from_qmp(format!("look at COM2 of vm {}", found.config.name), error)
            })?;
        Ok::<_, HypervisorError>(value(&said))
    };
    let line = register(COM2_LINE).await?;
    let interrupts = register(COM2_INTERRUPTS).await?;
    Ok(matches!((line, interrupts), (Some(line), Some(interrupts))
        // A port that is not there reads as all ones.
        if line & DIVISOR == 0 && interrupts & RECEIVED != 0))
}

/// The number in `portb[0x02f9] = 0x05`.
fn value(said: &Value) -> Option<u8> {
    let (_, number) = said.as_str()?.trim().rsplit_once("0x")?;
    u8::from_str_radix(number, 16).ok()
}

/// What the guest's agent says of its IPv4 addresses, by card; nothing when there is no agent.
async fn addresses(found: &FoundVm) -> Result<Vec<(String, Ipv4Addr)>, HypervisorError> {
    let Some(mut agent) = call(found).await? else {
        return Ok(Vec::new());
    };
    let said = agent
        .execute("guest-network-get-interfaces", AGENT_WITHIN)
        .await;
    Ok(said.as_ref().map(of_interfaces).unwrap_or_default())
}

fn of_interfaces(said: &Value) -> Vec<(String, Ipv4Addr)> {
    let mut found = Vec::new();
    for interface in said.as_array().into_iter().flatten() {
        let Some(mac) = interface["hardware-address"].as_str() else {
            continue;
        };
        for address in interface["ip-addresses"].as_array().into_iter().flatten() {
            let text = address["ip-address"].as_str().unwrap_or_default();
            if let Ok(address) = text.parse::<Ipv4Addr>()
                && !address.is_loopback()
            {
                found.push((mac.to_owned(), address));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_read_out_of_the_monitors_words() {
        assert_eq!(value(&json!("portb[0x02f9] = 0x05\r\n")), Some(5));
        for said in ["", "unknown command: 'i'", "portb[0x02f9] = 0x105"] {
            assert_eq!(value(&json!(said)), None, "{said}");
        }
    }

    #[test]
    fn addresses_are_taken_from_an_agents_words_by_card_and_loopback_is_none() {
        let said = json!([
            { "name": "lo", "hardware-address": "00:00:00:00:00:00",
              "ip-addresses": [{ "ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8 }] },
            { "name": "eth0", "hardware-address": "52:54:00:01:02:03", "ip-addresses": [
                { "ip-address": "10.1.2.3", "ip-address-type": "ipv4", "prefix": 24 },
                { "ip-address": "fe80::1", "ip-address-type": "ipv6", "prefix": 64 }] },
            { "name": "odd" }, 7
        ]);
        let expected = ("52:54:00:01:02:03".to_owned(), Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(of_interfaces(&said), [expected]);
        assert_eq!(of_interfaces(&json!("no")), []);
    }
}
