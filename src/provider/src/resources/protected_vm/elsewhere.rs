//! A protected VM that is failed over, or was migrated, outside of Terraform: a plan stays calm and says what is going on.
//!
//! ```text
//!   failed over   refresh: a warning; no difference     replacement: refused     destroy: a warning of what it means
//!   migrated      refresh: a warning, and the resource is gone: the plan would protect the source's VM anew
//! ```

use arm_model::failover::AT_RECOVERY;
use arm_model::job::JobProperties;
use arm_model::protected_item::ProtectedItemProperties;
use arm_model::{ProtectedItemId, Resource as Answer, VaultId};
use tf_provider::{Context, Diagnostic, Diagnostics, Plan};

use super::WHAT;
use crate::plain::stored_id;
use crate::remote::Remote;
use crate::{Session, timeouts};

/// Says of a VM that runs at the recovery side, or is on its way back, that it does.
pub(super) fn tell(cx: &Context<Session>, item: &ProtectedItemProperties) {
    if let Some(warning) = warning(item) {
        cx.warn(warning);
    }
}

fn warning(item: &ProtectedItemProperties) -> Option<Diagnostic> {
    let is_away = item.active_location == AT_RECOVERY;
    let comes_back = item.protection_state.contains("Failback");
    if !is_away && !comes_back {
        return None;
    }
    let name = &item.friendly_name;
    let summary = if is_away {
        format!("The VM {name} is failed over")
    } else {
        format!("The failback of the VM {name} is not over")
    };
    Some(Diagnostic::warning(
        summary,
        format!(
            "Its state is {} ({}). Nothing in this configuration changes because of that.\nPossible now: {}; see `siterecovery failover --help`.{}",
            item.protection_state,
            item.protection_state_description,
            item.allowed_operations.join(", "),
            if is_away {
                "\nDestroying the resource would complete the migration: the recovered VM stays, the source's VM stays off, and there is no failback."
            } else {
                ""
            }
        ),
    ))
}

/// Says of a VM that is protected no more that it was migrated, if it was: another plan would protect its source anew.
pub(super) async fn tell_migrated(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    id: &ProtectedItemId,
) -> Result<(), Diagnostics> {
    let Some(vault) = VaultId::of(id) else {
        return Ok(());
    };
    let path = format!("{vault}/replicationJobs?$filter=jobName eq 'CompleteMigration'");
    let jobs: Vec<Answer<JobProperties>> = remote.list(&path).await?;
    // The newest one first; one whose VM was protected again since would not be asked for.
    let of_ours = |job: &&Answer<JobProperties>| {
        let target = &job.properties.target_object_id;
        let name = target.rsplit('/').next().unwrap_or_default();
        name.eq_ignore_ascii_case(id.name())
    };
    if let Some(job) = jobs.iter().find(of_ours) {
        let name = &job.properties.target_object_name;
        cx.warn(Diagnostic::warning(
            format!("The VM {name} was migrated"),
            format!(
                "Its migration was completed outside of Terraform (job {}, {}): the recovered VM stays where it runs, and its protection has ended. \
                 The next apply would protect the source's VM anew.\nWhat to do: take the resource out of the configuration, unless you want that.",
                job.name,
                job.properties.end_time.as_deref().unwrap_or("not over yet")
            ),
        ));
    }
    Ok(())
}

/// Refuses to replace a VM that is failed over: that would leave the recovered VM to itself and protect the source, which is
/// off. Warns of a destruction.
pub(super) async fn guard(cx: &Context<Session>, plan: &Plan) -> Result<(), Diagnostics> {
    let replaces = !plan.destroy && !plan.requires_replace.is_empty();
    let Some(prior) = plan.prior.as_ref().filter(|_| replaces || plan.destroy) else {
        return Ok(());
    };
    if cx.client_if_configured().is_none() || prior.str("id").is_none() {
        return Ok(());
    }
    let remote = Remote::new(cx, WHAT, &[], timeouts::COPYING.read)?;
    let id: ProtectedItemId = stored_id(prior)?;
    let found = remote.find::<Answer<ProtectedItemProperties>>(id.as_str());
    let Some(item) = found.await? else {
        return Ok(());
    };
    let item = item.properties;
    if item.active_location != AT_RECOVERY {
        return Ok(());
    }
    if plan.destroy {
        tell(cx, &item);
        return Ok(());
    }
    let mut report = Diagnostics::new();
    for path in &plan.requires_replace {
        report.push_error(
            path.clone(),
            format!("The VM {} is failed over and can't be replaced", item.friendly_name),
            format!(
                "Changing this makes a new protected VM, which would end the protection of the one that runs at the recovery side (state {}).\nWhat \
                 to do: fail back first (`siterecovery failover back`), or take the change back.",
                item.protection_state
            ),
        );
    }
    Err(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vm_that_is_elsewhere_or_on_its_way_back_is_worth_a_warning() {
        let at = |location: &str, state: &str| {
            warning(&ProtectedItemProperties {
                friendly_name: "web01".to_owned(),
                active_location: location.to_owned(),
                protection_state: state.to_owned(),
                ..ProtectedItemProperties::default()
            })
        };
        assert!(at("Primary", "Protected").is_none());
        assert!(at("Primary", "PlannedFailoverInitiated").is_none());
        let away = at(AT_RECOVERY, "PlannedFailoverStatesBegin").expect("warning");
        assert!(away.detail.contains("Destroying"), "{away}");
        let back = at("Primary", "FailbackCommitRequired").expect("warning");
        assert!(back.summary.contains("failback") && !back.detail.contains("Destroying"));
    }
}
