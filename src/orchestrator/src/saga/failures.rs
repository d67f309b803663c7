//! What went wrong in a job that goes on nevertheless: told when everything else is done.

use arm_model::ArmError;

use super::Run;
use crate::fault::Fault;

/// Remembers a failure, once for each of its objects.
pub(super) fn note(run: &mut Run<'_>, about: &str, error: ArmError) {
    let mut failures = all(run);
    let about = about.to_ascii_lowercase();
    if !failures.iter().any(|(known, _)| *known == about) {
        tracing::warn!(job = %run.job.id, about, code = %error.code, message = %error.message, "a part of the plan failed; the rest goes on");
        failures.push((about, error));
        let memo = serde_json::to_value(&failures).unwrap_or_default();
        run.job.remember("failures", memo);
    }
}

/// All of them, by their objects.
pub(super) fn all(run: &Run<'_>) -> Vec<(String, ArmError)> {
    let memo = run.job.recall("failures").cloned().unwrap_or_default();
    serde_json::from_value(memo).unwrap_or_default()
}

/// The first one, as the job's end.
pub(super) fn first(run: &Run<'_>) -> Option<Fault> {
    let (_, error) = all(run).into_iter().next()?;
    Some(Fault::refuse(409, error))
}
