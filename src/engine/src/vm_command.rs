//! `vm`: lists, starts and stops the VMs of a folder with the engine's own driver. For labs and for operators
//! of a recovery host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hypervisor::{ErrorKind, Hypervisor, PowerState, Stop, VirtualMachine};
use serde_json::{Value, json};

use crate::platform;

/// How long a guest may take to shut down before it is turned off.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// The driver for the VMs of `folder`.
pub fn driver(folder: &Path) -> anyhow::Result<Arc<dyn Hypervisor>> {
    let folder = std::path::absolute(folder).context("VM folder")?;
    if !folder.is_dir() {
        bail!("VM folder {} does not exist", folder.display());
    }
    platform::driver(None, vec![folder], platform::user_scratch())
}

/// All VMs.
pub async fn list(host: &dyn Hypervisor) -> anyhow::Result<Value> {
    let machines = host
        .virtual_machines()
        .await
        .context("list the virtual machines")?;
    Ok(Value::Array(
        machines
            .iter()
            .map(|vm| {
                json!({
                    "id": vm.id.0,
                    "name": vm.name,
                    "generation": vm.generation.number(),
                    "powerState": match vm.power_state { PowerState::Running => "Running", PowerState::Off => "Off" },
                    "memoryBytes": vm.memory_bytes,
                    "processors": vm.processors,
                    "disks": vm.disks.iter().map(|disk| json!({ "id": disk.id.0, "name": disk.name, "sizeBytes": disk.size_bytes })).collect::<Vec<_>>(),
                    "findings": vm.findings.iter().map(|finding| format!("{}: {}", finding.code, finding.summary)).collect::<Vec<_>>(),
                })
            })
            .collect(),
    ))
}

/// Starts a VM, found by name or id.
pub async fn start(host: &dyn Hypervisor, name: &str) -> anyhow::Result<String> {
    let vm = find(host, name).await?;
    host.start(vm.id)
        .await
        .with_context(|| format!("start virtual machine {:?}", vm.name))?;
    Ok(format!("{} is running", vm.name))
}

/// Stops a VM: asks the guest first, unless `turn_off`.
pub async fn stop(host: &dyn Hypervisor, name: &str, turn_off: bool) -> anyhow::Result<String> {
    let vm = find(host, name).await?;
    let context = || format!("stop virtual machine {:?}", vm.name);
    if !turn_off {
        match host
            .stop(
                vm.id,
                Stop::Shutdown {
                    timeout: SHUTDOWN_LIMIT,
                },
            )
            .await
        {
            Ok(()) => return Ok(format!("{} is off", vm.name)),
            Err(error) if error.kind() == ErrorKind::Timeout => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
    host.stop(vm.id, Stop::TurnOff)
        .await
        .with_context(context)?;
    Ok(format!("{} is off (turned off)", vm.name))
}

/// What the VM has written to its console since its start.
pub async fn console(host: &dyn Hypervisor, name: &str) -> anyhow::Result<Vec<u8>> {
    let vm = find(host, name).await?;
    let path = host
        .console(vm.id)
        .await
        .with_context(|| format!("find the console of {:?}", vm.name))?;
    std::fs::read(&path).with_context(|| format!("read console {}", path.display()))
}

async fn find(host: &dyn Hypervisor, name: &str) -> anyhow::Result<VirtualMachine> {
    let machines = host
        .virtual_machines()
        .await
        .context("list the virtual machines")?;
    let known: Vec<String> = machines.iter().map(|vm| vm.name.clone()).collect();
    machines
        .into_iter()
        .find(|vm| vm.name == name || vm.id.to_string().eq_ignore_ascii_case(name))
        .with_context(|| {
            format!(
                "no virtual machine {name:?}; there are: {}",
                known.join(", ")
            )
        })
}
