//! Readiness: every VM of the group has written to its console. Where nobody asks for it, a VM that is silent counts as
//! up after a while; here it is a failure. A VM that was left behind is told as that already and is not waited for.

use arm_model::ArmError;
use engine_protocol::v1::recovered_vm_status::State;
use serde_json::{Value, json};

use super::{Seen, elapsed_ms, millis};
use crate::failover::vm_id;
use crate::fault::Fault;
use crate::saga::steps::ActionStep;
use crate::saga::{Run, failures};
use crate::store::records::{self, Item};

pub(super) async fn act(
    run: &mut Run<'_>,
    step: &ActionStep,
    limit_seconds: u32,
) -> Result<Seen, Fault> {
    let elapsed = elapsed_ms(run);
    let mut silent = Vec::new();
    let mut unheard = false;
    let failed = failures::all(run);
    for id in &step.items {
        let key = id.to_ascii_lowercase();
        if failed.iter().any(|(about, _)| *about == key) {
            continue;
        }
        let Some(item) = records::get::<Item>(run.app.store.as_ref(), &key).await? else {
            continue;
        };
        let (engine, id) = machine(run, &item.record, &key);
        let live = run.app.fleet.get(&engine).unwrap_or_default();
        let status = live.recovered(&id);
        if status.is_none_or(|status| status.state() != State::Booted) {
            // After a restart of ours hosts need a moment to say what they see.
            unheard |= !live.connected(run.app.now_ms())
                && !run.is_away(&engine, run.app.patience.engine_ms);
            silent.push(item.record.vm_name);
        }
    }
    if silent.is_empty() {
        return Ok(Seen::well(Value::Null));
    }
    if elapsed < millis(limit_seconds) || unheard {
        return Ok(Seen::Waits);
    }
    let names = silent.join(", ");
    let error = ArmError::new(
        "VirtualMachineNotReady",
        format!("{names} wrote nothing to the console in {limit_seconds} s."),
    )
    .advise(
        "The guest does not start from this recovery point, takes longer, or has no console on its serial port.",
        "See the VM's console on the recovery host; give the check more time, or let the guest write to its serial port.",
    );
    Ok(Seen::badly(error, json!({ "silent": silent })))
}

/// Recovery host's engine, and the VM's id there.
pub(super) fn machine(run: &Run<'_>, item: &Item, key: &str) -> (String, String) {
    let chosen = run.job.recall("vms").and_then(Value::as_array);
    let chosen = chosen.and_then(|all| all.iter().find(|one| one["item"] == *key));
    let text = |name: &str| chosen.and_then(|one| one[name].as_str()).map(str::to_owned);
    let side = item.recovery.as_ref().map(|side| side.engine_id.clone());
    // A drill's VM has an id of its own.
    let id = text("vm_id").or_else(|| vm_id(item).map(|id| id.to_string()));
    (
        text("engine_id").or(side).unwrap_or_default(),
        id.unwrap_or_default(),
    )
}
