//! The plan of a VM in Azure before anything is touched: a drill or a failover that can't succeed there doesn't begin.

use arm_model::ArmError;
use arm_model::job::JobError;
use azure_compute::Severity;

use super::spec::{self, NoSpec, Wanted};
use super::trouble::Trouble;
use super::wish::Drill;
use super::{engine, is_engine};
use crate::fault::Fault;
use crate::saga::Run;
use crate::store::records::Item;

/// Plans the VM of an item that was given to Azure; of another host's there is nothing to do. What is only worth knowing is shown at
/// the job's present task.
///
/// # Errors
/// 409 at the setting that stands in the way, with everything else that does.
pub async fn failover(run: &mut Run<'_>, item: &Item, engine_id: &str) -> Result<(), Fault> {
    check(run, item, engine_id, None).await
}

/// As [`failover`], of a drill: in this network, or in one of its own.
///
/// # Errors
/// As [`failover`].
pub async fn drill(
    run: &mut Run<'_>,
    item: &Item,
    engine_id: &str,
    network_id: Option<String>,
) -> Result<(), Fault> {
    let drill = Drill {
        job: run.job.id.clone(),
        network_id,
    };
    check(run, item, engine_id, Some(&drill)).await
}

async fn check(
    run: &mut Run<'_>,
    item: &Item,
    engine_id: &str,
    drill: Option<&Drill>,
) -> Result<(), Fault> {
    if !is_engine(engine_id) {
        return Ok(());
    }
    let Some(target) = run.app.azure() else {
        return engine(run.app).map(drop);
    };
    let at = |property: &str| format!("properties.providerSpecificDetails.{property}");
    let wanted = Wanted {
        id: &format!("plan-{}", run.job.id.rsplit('/').next().unwrap_or_default()),
        item,
        drill,
        made: None,
    };
    let spec = match spec::build(run.app, &wanted).await {
        Ok(spec) => spec,
        Err(NoSpec::Store(error)) => return Err(error.into()),
        Err(NoSpec::Problem(problem)) => {
            let error = ArmError::new("AzureTargetNotPossible", problem.text);
            return Err(Fault::refuse(409, error.at(at(problem.property))));
        }
    };
    let plan = target.plan(&spec).await.map_err(|error| {
        let trouble = Trouble::from(error);
        let error = ArmError::new("AzureNotReachable", format!("{}.", trouble.text));
        Fault::refuse(
            409,
            error.at(item.id.clone()).advise("", &trouble.next_step),
        )
    })?;
    let (errors, others): (Vec<_>, Vec<_>) = plan
        .findings
        .iter()
        .partition(|finding| finding.severity == Severity::Error);
    let now = run.app.now_text();
    let (activity, node) = (run.job.properties.activity_id.clone(), run.job.node);
    if let Some(task) = run.job.properties.tasks.get_mut(node) {
        for finding in others
            .iter()
            .filter(|finding| finding.severity == Severity::Warning)
        {
            let warning =
                JobError::warning(&spec::told(finding, item), &task.task_id, &now, &activity);
            // A node that is repeated says it once.
            let message = &warning.service_error_details.message;
            if task
                .errors
                .iter()
                .all(|known| known.service_error_details.message != *message)
            {
                task.errors.push(warning);
            }
        }
    }
    let Some(first) = errors.first() else {
        return Ok(());
    };
    let mut error = spec::told(first, item);
    if let Some(rest) = errors.get(1..).filter(|rest| !rest.is_empty()) {
        let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
        error.message = format!("{} Also: {}.", error.message, rest.join(". "));
    }
    Err(Fault::refuse(409, error))
}
