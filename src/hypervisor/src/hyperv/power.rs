//! Starting and stopping VMs, and what their integration services say.

use std::time::Duration;

use super::host::{Host, Value};
use super::jobs::{self, failed};
use super::survey::{self, Machine, OFF, SAVED};
use crate::{ErrorKind, HypervisorError, PowerState, Stop, VmId};

/// `RequestedState`.
const ENABLED: i64 = 2;
const DISABLED: i64 = 3;
/// For Hyper-V's own part of it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a guest that shuts down.
const PAUSE: Duration = Duration::from_millis(500);
/// `OperationalStatus` of a heartbeat that is there.
const HEART_BEATS: i64 = 2;

fn request(host: &dyn Host, machine: &Machine, state: i64) -> Result<(), HypervisorError> {
    let arguments = vec![("RequestedState", Value::Number(state))];
    jobs::call(
        host,
        &machine.path,
        "RequestStateChange",
        arguments,
        PATIENCE,
    )
    .map(drop)
    .map_err(|error| error.context(format!("change the state of vm {}", machine.vm.name)))
}

/// Starts a VM, or lets a saved one go on.
pub(super) fn start(host: &dyn Host, vm: VmId) -> Result<(), HypervisorError> {
    let machine = survey::find(host, vm, "start")?;
    match machine.vm.power_state {
        PowerState::Running => Ok(()),
        PowerState::Off => request(host, &machine, ENABLED),
    }
}

/// Stops a VM and returns when it is off.
pub(super) fn stop(host: &dyn Host, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
    let machine = survey::find(host, vm, "stop")?;
    let name = &machine.vm.name;
    match (machine.enabled_state, how) {
        (OFF, _) => Ok(()),
        (_, Stop::TurnOff) => request(host, &machine, DISABLED),
        // Its memory holds what its disks lack.
        (SAVED, Stop::Shutdown { .. }) => Err(HypervisorError::new(
            ErrorKind::Refused,
            format!(
                "shut down vm {name}: it is saved; start it, so that its guest can shut down, or turn it off"
            ),
        )),
        (_, Stop::Shutdown { timeout }) => shut_down(host, &machine, timeout),
    }
}

fn shut_down(host: &dyn Host, machine: &Machine, timeout: Duration) -> Result<(), HypervisorError> {
    let name = &machine.vm.name;
    let step = format!("shut down vm {name}");
    let found = host
        .associated(&machine.path, "Msvm_ShutdownComponent")
        .map_err(|error| failed(&step, error))?;
    let Some(component) = found.first() else {
        return Err(HypervisorError::new(
            ErrorKind::Refused,
            format!(
                "{step}: its integration service for shutting down is off; turn it on in the vm's settings"
            ),
        ));
    };
    let arguments = vec![
        ("Force", Value::Bool(false)),
        ("Reason", Value::from("Site Recovery: planned failover")),
    ];
    jobs::call(
        host,
        &component.path,
        "InitiateShutdown",
        arguments,
        timeout,
    )
    .map_err(|error| error.context(step.clone()))?;
    let mut waited = Duration::ZERO;
    loop {
        match survey::find(host, machine.vm.id, "shut down")?.enabled_state {
            OFF => return Ok(()),
            _ if waited >= timeout => {
                return Err(HypervisorError::new(
                    ErrorKind::Timeout,
                    format!("{step}: its guest still runs after {} s", timeout.as_secs()),
                ));
            }
            _ => {}
        }
        host.pause(PAUSE);
        waited += PAUSE;
    }
}

/// Whether the heartbeat of the integration services is there.
pub(super) fn heart_beats(host: &dyn Host, vm: VmId) -> Result<bool, HypervisorError> {
    let machine = survey::find(host, vm, "look for the heartbeat of")?;
    let step = format!("look for the heartbeat of vm {}", machine.vm.name);
    if machine.vm.power_state == PowerState::Off {
        return Err(HypervisorError::new(ErrorKind::VmNotRunning, step));
    }
    let found = host
        .associated(&machine.path, "Msvm_HeartbeatComponent")
        .map_err(|error| failed(&step, error))?;
    let status = found
        .first()
        .and_then(|one| one.properties.get("OperationalStatus"));
    Ok(matches!(status, Some(Value::Numbers(all)) if all.first() == Some(&HEART_BEATS)))
}
