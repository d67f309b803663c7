//! How a VM stands.

use serde_json::Value;

/// Whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It runs.
    Running,
    /// It begins to.
    Starting,
    /// It is off and still pays for its machine.
    Stopped,
    /// It goes off.
    Stopping,
    /// It is off and has no machine.
    Deallocated,
    /// It gives its machine back.
    Deallocating,
    /// Azure doesn't say.
    Unknown,
}

/// A VM as Azure shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Whether it runs.
    pub power: Power,
    /// `provisioningState` of the VM.
    pub provisioning_state: String,
    /// Whether Azure's agent in the guest reports; `None` when there is none.
    pub agent_ready: Option<bool>,
    /// Its size.
    pub size: String,
    /// Messages of its statuses, as people read them.
    pub messages: Vec<String>,
    /// When an operation on it ended last, as Azure writes it: another text means that something was done to it since.
    pub changed: Option<String>,
    /// Disks that are attached, the one that it starts from first: ids of managed disks or addresses of page blobs, in lower case.
    pub disks: Vec<String>,
}

impl InstanceView {
    /// It is off, and no operation on it is under way: one that begins to start is shown as deallocated for a while.
    #[must_use]
    pub fn is_off(&self) -> bool {
        let under_way = ["creating", "updating", "deleting", "migrating"];
        let state = self.provisioning_state.to_ascii_lowercase();
        self.power == Power::Deallocated && !under_way.contains(&state.as_str())
    }
}

impl InstanceView {
    /// Reads a VM that was asked for with `$expand=instanceView`.
    pub fn from_vm(vm: &Value) -> InstanceView {
        let text = |path: &str| vm.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let statuses = |path: &str| -> Vec<&Value> {
            vm.pointer(path)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .collect()
        };
        let code = |status: &Value| {
            status
                .get("code")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_ascii_lowercase()
        };
        let all = statuses("/properties/instanceView/statuses");
        let power = all
            .iter()
            .map(|s| code(s))
            .find_map(|c| c.strip_prefix("powerstate/").map(power_of))
            .unwrap_or(Power::Unknown);
        let agent = statuses("/properties/instanceView/vmAgent/statuses");
        let data = statuses("/properties/storageProfile/dataDisks");
        let system = vm.pointer("/properties/storageProfile/osDisk");
        let disks = system.into_iter().chain(data);
        InstanceView {
            power,
            provisioning_state: text("/properties/provisioningState").to_owned(),
            agent_ready: (!agent.is_empty()).then(|| {
                agent
                    .iter()
                    .any(|s| code(s) == "provisioningstate/succeeded")
            }),
            size: text("/properties/hardwareProfile/vmSize").to_owned(),
            messages: all
                .iter()
                .filter_map(|s| s.get("message").or_else(|| s.get("displayStatus")))
                .filter_map(|m| m.as_str().map(ToOwned::to_owned))
                .collect(),
            changed: all
                .iter()
                .find(|s| code(s).starts_with("provisioningstate/"))
                .and_then(|s| s.get("time")?.as_str().map(ToOwned::to_owned)),
            disks: disks
                .filter_map(|disk| {
                    let managed = disk.pointer("/managedDisk/id");
                    let id = managed.or_else(|| disk.pointer("/vhd/uri"))?;
                    Some(id.as_str()?.to_ascii_lowercase())
                })
                .collect(),
        }
    }
}

fn power_of(word: &str) -> Power {
    match word {
        "running" => Power::Running,
        "starting" => Power::Starting,
        "stopped" => Power::Stopped,
        "stopping" => Power::Stopping,
        "deallocated" => Power::Deallocated,
        "deallocating" => Power::Deallocating,
        _ => Power::Unknown,
    }
}
