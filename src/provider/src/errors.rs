//! Failures of the API and of deployments as diagnostics: what failed, why, what to do, where to look.

use arm_client::{ClientError, ClientErrorKind};
use host_deploy::DeployError;
use tf_provider::{Diagnostic, Diagnostics};

/// Names of the service's properties and the attributes they come from.
pub(crate) type Fields = &'static [(&'static str, &'static str)];

/// A failed call as a diagnostic; it points at an attribute when the service names the property at fault.
pub(crate) fn failed(
    summary: impl Into<String>,
    error: &ClientError,
    fields: Fields,
) -> Diagnostics {
    let mut diagnostic = Diagnostic::error(summary, detail(error));
    if let Some(attribute) = error
        .target()
        .and_then(|target| attribute_of(target, fields))
    {
        diagnostic = diagnostic.at(attribute);
    }
    diagnostic.into()
}

fn attribute_of(target: &str, fields: Fields) -> Option<&'static str> {
    let last = target.rsplit(['.', '/']).next().unwrap_or(target);
    let last = last.split('[').next().unwrap_or(last);
    fields
        .iter()
        .find(|(property, _)| property.eq_ignore_ascii_case(last))
        .map(|(_, attribute)| *attribute)
}

/// Cause, advice and where to find it again.
pub(crate) fn detail(error: &ClientError) -> String {
    let mut text = sentence(error.message());
    let mut advice = Vec::new();
    for entry in error.details() {
        if !entry.message.is_empty() && entry.message != error.message() {
            text.push_str(&format!("\n{}", sentence(&entry.message)));
        }
        if let Some(causes) = entry.possible_causes.as_deref().filter(|c| !c.is_empty()) {
            text.push_str(&format!("\nPossible cause: {}", sentence(causes)));
        }
        advice.extend(
            entry
                .recommended_action
                .as_deref()
                .filter(|a| !a.is_empty())
                .map(sentence),
        );
    }
    if advice.is_empty() {
        advice.extend(usual_advice(error.kind()).map(ToOwned::to_owned));
    }
    for line in advice {
        text.push_str(&format!("\nWhat to do: {line}"));
    }
    let mut marks = vec![format!("Call: {}", error.action())];
    if !error.code().is_empty() {
        marks.push(format!("error code: {}", error.code()));
    }
    if let Some(status) = error.status() {
        marks.push(format!("HTTP status: {status}"));
    }
    if let Some(job) = error.job_id() {
        marks.push(format!("job: {job}"));
    }
    if let Some(id) = error.request_id() {
        marks.push(format!("request id: {id}"));
    }
    text.push_str(&format!("\n\n{}.", marks.join(", ")));
    text
}

fn usual_advice(kind: ClientErrorKind) -> Option<&'static str> {
    Some(match kind {
        ClientErrorKind::Unreachable => {
            "Check that the orchestrator runs and that the provider's endpoint names its host and port."
        }
        ClientErrorKind::Untrusted => {
            "Set ca_file to the certificate of the authority that signed the orchestrator's certificate."
        }
        ClientErrorKind::Unauthorized => "Check tenant_id, client_id and client_secret.",
        ClientErrorKind::Forbidden => {
            "Ask for a role that allows this, such as Site Recovery Contributor."
        }
        ClientErrorKind::Conflict => {
            "Wait until the running operation has ended, then apply again."
        }
        ClientErrorKind::Throttled | ClientErrorKind::Service => {
            "Apply again; if it stays, look up the request id in the orchestrator's log."
        }
        ClientErrorKind::UnknownOutcome => {
            "It may have been carried out: run terraform plan to see how things are, then apply again."
        }
        ClientErrorKind::TimedOut => {
            "Apply again to go on waiting, or allow more time with timeouts."
        }
        ClientErrorKind::BadAnswer => "Check that the provider's endpoint is an orchestrator's.",
        ClientErrorKind::OperationFailed => {
            "Look at the job's tasks for the step that failed, then apply again."
        }
        _ => return None,
    })
}

/// A failed deployment as a diagnostic.
pub(crate) fn deploy_failed(summary: impl Into<String>, error: &DeployError) -> Diagnostics {
    let text = format!(
        "{}\nWhat to do: {}",
        sentence(&error.to_string()),
        sentence(error.next_step())
    );
    let mut diagnostic = Diagnostic::error(summary, text);
    let attribute = match error.step() {
        "checking vm_folder" => Some("vm_folder"),
        "checking data_folder" | "installing into" => Some("data_folder"),
        "checking recovery_folder" => Some("recovery_folder"),
        _ => None,
    };
    if let Some(attribute) = attribute {
        diagnostic = diagnostic.at(attribute);
    }
    diagnostic.into()
}

/// A capital first letter and a full stop.
pub(crate) fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut letters = text.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    let mut out: String = first.to_uppercase().chain(letters).collect();
    if !out.ends_with(['.', '!', '?', ':']) {
        out.push('.');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_of_the_service_leads_to_the_attribute() {
        let fields: Fields = &[("targetStorageAccountId", "target_storage_account_id")];
        let found = |target| attribute_of(target, fields);
        let whole = "properties.providerSpecificDetails.targetStorageAccountId";
        assert_eq!(found(whole), Some("target_storage_account_id"));
        assert_eq!(
            found("properties/TargetStorageAccountId"),
            Some("target_storage_account_id")
        );
        assert_eq!(
            found("targetStorageAccountId[0]"),
            Some("target_storage_account_id")
        );
        assert_eq!(found("properties.other"), None);
    }

    #[test]
    fn texts_become_sentences() {
        assert_eq!(sentence("no such folder"), "No such folder.");
        assert_eq!(sentence("Really?"), "Really?");
        assert_eq!(sentence(" "), "");
    }
}
