//! Scripts: an order to a host's engine, or to this machine. At most once, whatever dies: see `plan_script`.

use std::time::Duration;

use arm_model::ArmError;
use arm_model::ServicesProviderId;
use arm_model::plan_action::Work;
use engine_protocol::v1::{self, script_status::Outcome as Said};
use plan_script::{Order, Outcome as Ran, Status};
use serde_json::json;

use super::{Of, Seen, context, millis};
use crate::fault::Fault;
use crate::saga::steps::ActionStep;
use crate::saga::{Outcome, Run};
use crate::store::Expect;
use crate::store::records::{self, ScriptOrder};

/// How a script ended, wherever it ran.
enum End {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    Unknown,
    Withdrawn,
    Refused(String),
}

pub(super) async fn act(
    run: &mut Run<'_>,
    of: &Of<'_>,
    step: &ActionStep,
    work: &Work,
) -> Result<Seen, Fault> {
    let Work::Script {
        path,
        limit_seconds,
        idempotent,
        ..
    } = work
    else {
        return Ok(Seen::Waits);
    };
    let (id, context) = (
        super::id(run).to_string(),
        context::of(run, of, step).await?,
    );
    let (end, output) = match engine(step) {
        None => {
            let Some(scripts) = run.app.scripts() else {
                return Ok(ended(
                    &End::Refused("the orchestrator runs no scripts".to_owned()),
                    "",
                    step,
                ));
            };
            let order = Order {
                id: id.clone(),
                path: path.clone(),
                context,
                limit: Duration::from_secs(u64::from(*limit_seconds)),
                repeatable: *idempotent,
            };
            scripts.take(&order).await;
            match scripts.status(&id).and_then(here) {
                None => return Ok(Seen::Waits),
                Some(end) => end,
            }
        }
        Some(engine) => {
            let order = ScriptOrder {
                id: id.clone(),
                engine_id: engine.clone(),
                path: path.clone(),
                context,
                timeout_seconds: *limit_seconds,
                repeatable: *idempotent,
                job: run.job.id.clone(),
            };
            give(run, &order).await?;
            let live = run.app.fleet.get(&engine).unwrap_or_default();
            let said = live.script(&id);
            match said.and_then(|status| there(status, *idempotent)) {
                Some(end) => end,
                None => return Ok(silent(run, &engine, &id, *limit_seconds)),
            }
        }
    };
    Ok(ended(&end, &output, step))
}

/// The host that runs it; none = this machine.
fn engine(step: &ActionStep) -> Option<String> {
    let host = step.action.custom_details.host_id.as_deref()?;
    let host = ServicesProviderId::parse(host).ok()?;
    Some(host.name().to_ascii_lowercase())
}

async fn give(run: &Run<'_>, order: &ScriptOrder) -> Result<(), Fault> {
    let store = run.app.store.as_ref();
    let key = records::script_key(&order.engine_id, &order.id);
    if store.get(&key).await?.is_none() {
        store
            .apply(vec![records::put(key, order, Expect::Absent)?])
            .await?;
        run.app.ring();
    }
    Ok(())
}

fn silent(run: &Run<'_>, engine: &str, id: &str, limit_seconds: u32) -> Seen {
    let live = run.app.fleet.get(engine).unwrap_or_default();
    let (patience, host) = (run.app.patience.engine_ms, live.host_name().to_owned());
    let runs = live.script(id).is_some();
    let is_over = run.waited_ms() > millis(limit_seconds) + patience;
    let message = if run.is_away(engine, patience) {
        format!("the host `{host}` is away; whether the script ran is not known.")
    } else if is_over {
        format!(
            "the host `{host}` did not say in time how the script ended; whether it ran is not known."
        )
    } else if !runs && run.waited_ms() > patience {
        format!("the host `{host}` does not take the script up.")
    } else {
        return Seen::Waits;
    };
    Seen::badly(
        ArmError::new("ScriptHostSilent", message).advise(
            "The engine on the host is stopped, can't reach the gateway, or is of a release without scripts.",
            "See on the host what the script did; start the engine or bring it to this release; then start the plan again.",
        ),
        json!({ "output": "" }),
    )
}

fn here(status: Status) -> Option<(End, String)> {
    let end = match status.outcome {
        Ran::Running => return None,
        Ran::Exited(code) => End::Exited(code),
        Ran::Signalled(signal) => End::Signalled(signal),
        Ran::TimedOut => End::TimedOut,
        Ran::Unknown => End::Unknown,
        Ran::Withdrawn => End::Withdrawn,
        Ran::Refused(reason) => End::Refused(reason),
    };
    Some((end, status.output))
}

fn there(status: &v1::ScriptStatus, idempotent: bool) -> Option<(End, String)> {
    let end = match status.outcome() {
        // The engine repeats it when it has its order again.
        Said::Unknown if idempotent => return None,
        Said::Unspecified | Said::Running => return None,
        Said::Exited => End::Exited(status.exit_code),
        Said::Signalled => End::Signalled(status.exit_code),
        Said::TimedOut => End::TimedOut,
        Said::Unknown => End::Unknown,
        Said::Withdrawn => End::Withdrawn,
        Said::Refused => End::Refused(status.reason.clone()),
    };
    Some((end, status.output.clone()))
}

fn ended(end: &End, output: &str, step: &ActionStep) -> Seen {
    let told = json!({ "output": output });
    let limit = step.action.custom_details.timeout.as_deref();
    let (code, message, next) = match end {
        End::Exited(0) => return Seen::well(told),
        End::Exited(exit) => (
            "ScriptFailed",
            format!("the script ended with code {exit}."),
            "See the script's output in the job; put right what it says, then start the plan again.",
        ),
        End::Signalled(signal) => (
            "ScriptFailed",
            format!("signal {signal} ended the script."),
            "See the script's output in the job, and what the machine's log says of it.",
        ),
        End::TimedOut => (
            "ScriptTimeout",
            format!(
                "the script took longer than its limit ({}) and was killed with its children.",
                limit.unwrap_or("10 minutes")
            ),
            "See the script's output in the job; give the action a longer time limit if it needs one.",
        ),
        End::Unknown => (
            "ScriptEndUnknown",
            "the script was started, and whoever ran it died: how it ended is not known."
                .to_owned(),
            "See on the machine what it did. A script that may run twice can be marked `idempotent`: then it is repeated.",
        ),
        End::Withdrawn => (
            "ScriptWithdrawn",
            "the script was killed because its order was withdrawn.".to_owned(),
            "Start the plan again.",
        ),
        End::Refused(reason) => (
            "ScriptRefused",
            format!("the script was not started: {reason}."),
            "Put right what is said, then start the plan again.",
        ),
    };
    Seen::badly(ArmError::new(code, message).advise("", next), told)
}

/// Takes the order back whose end is remembered.
pub(super) async fn forget(run: &Run<'_>, step: &ActionStep) -> Result<(), Fault> {
    if let (Ok(Work::Script { .. }), Some(engine)) = (step.action.work(), engine(step)) {
        let key = records::script_key(&engine, &super::id(run).to_string());
        run.app.store.apply(vec![records::delete(key)]).await?;
        run.app.ring();
    }
    Ok(())
}

/// Ends a script that still runs; done when it does not any more, as far as anybody can say.
pub(super) async fn withdraw(run: &Run<'_>, step: &ActionStep) -> Result<Outcome, Fault> {
    if !matches!(step.action.work(), Ok(Work::Script { .. })) {
        return Ok(Outcome::Done);
    }
    // An unwinding job counts the nodes that are still to undo.
    let id = super::id_at(run, run.job.node.saturating_sub(1)).to_string();
    let runs = match engine(step) {
        None => run.app.scripts().is_some_and(|scripts| {
            scripts.withdraw(&id);
            scripts
                .status(&id)
                .is_some_and(|one| one.outcome == Ran::Running)
        }),
        Some(engine) => {
            let key = records::script_key(&engine, &id);
            if run.app.store.get(&key).await?.is_some() {
                run.app.store.apply(vec![records::delete(key)]).await?;
                run.app.ring();
            }
            let live = run.app.fleet.get(&engine).unwrap_or_default();
            live.connected(run.app.now_ms())
                && live
                    .script(&id)
                    .is_some_and(|one| one.outcome() == Said::Running)
        }
    };
    let give_up = run.waited_ms() > run.app.patience.removal_ms;
    Ok(if runs && !give_up {
        Outcome::Wait
    } else {
        Outcome::Done
    })
}
