//! Checks before protection, at plan time: what refuses a VM is an error at the argument that it follows from, what should be
//! known is a warning. The service judges; here it is only asked for exactly what is configured.

use arm_client::encode_segment;
use arm_model::protectable_item::ReadinessFinding;
use arm_model::{FabricId, Resource as Answer};
use serde_json::Value as Json;
use tf_provider::{Context, Diagnostic, Diagnostics, Object, Severity};

use super::request::Vm;
use crate::Session;
use crate::errors::sentence;
use crate::resources::protection::is_called;

/// The query that makes the service judge a VM for what is configured.
pub(super) fn query(config: &Object) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: &str| {
        let mark = if query.is_empty() { '?' } else { '&' };
        query.push(mark);
        query.push_str(&format!("{name}={}", encode_segment(value)));
    };
    add(
        "recoveryTarget",
        config.str("recovery_target").unwrap_or("RecoveryHost"),
    );
    // Only what a person chose: the computed list of all disks is no choice.
    let disks = config.strings("disks_to_include");
    if !disks.is_empty() && config.get("disks_to_include").is_wholly_known() {
        add("disksToInclude", &disks.join(","));
    }
    for (name, attribute) in [("vhdId", "os_disk_id"), ("osType", "os_type")] {
        if let Some(text) = config.str(attribute) {
            add(name, text);
        }
    }
    query
}

/// What the checks say of the configured VM, for a plan that makes it: errors go to `report`, warnings to `cx`. Nothing, as long
/// as the site, its hosts or the VM are not there yet: then creating it asks again.
pub(super) async fn at_plan(
    cx: &Context<Session>,
    session: &Session,
    config: &Object,
    report: &mut Diagnostics,
) {
    let (wanted, at) = match (config.str("vm_id"), config.str("vm_name")) {
        (Some(id), _) => (id, "vm_id"),
        (None, Some(name)) => (name, "vm_name"),
        (None, None) => return,
    };
    let Some(judged) = judged(session, config, wanted).await else {
        return;
    };
    for finding in &diagnostics(&judged, at) {
        if finding.severity == Severity::Error {
            report.push(finding.clone());
        } else {
            cx.warn(finding.clone());
        }
    }
}

/// The VM with the findings for what is configured, if it is there and not protected yet.
async fn judged(session: &Session, config: &Object, wanted: &str) -> Option<Vm> {
    let site = FabricId::parse(config.str("hyperv_site_id")?).ok()?;
    let containers = format!("{site}/replicationProtectionContainers");
    let containers = session.api.list::<Answer<Json>>(&containers).await.ok()?;
    let items = format!("{}/replicationProtectableItems", containers.first()?.id);
    let items = session.api.list::<Vm>(&items).await.ok()?;
    let mut named = items.iter().filter(|item| is_called(item, wanted));
    let (Some(item), None) = (named.next(), named.next()) else {
        return None;
    };
    // One that is protected already is not made: the refusal says so, and names it.
    if item.properties.protection_status == "Protected" {
        return None;
    }
    let path = format!("{}{}", item.id, query(config));
    session.api.find(&path).await.ok()?
}

/// Errors and warnings of a VM's findings.
pub(super) fn diagnostics(item: &Vm, at: &str) -> Diagnostics {
    let mut report = Diagnostics::new();
    let name = &item.properties.friendly_name;
    for finding in &item.properties.readiness_findings {
        let detail = detail(finding);
        match finding.severity.as_str() {
            ReadinessFinding::ERROR => report.push_error(
                attribute(finding, at),
                format!("The VM {name:?} can't be protected"),
                detail,
            ),
            ReadinessFinding::WARNING => report.push(
                // Terraform shows warnings of one summary as one.
                Diagnostic::warning(
                    format!("The VM {name:?} can be protected, but: {}", finding.code),
                    detail,
                )
                .at(at),
            ),
            _ => {}
        }
    }
    report
}

fn detail(finding: &ReadinessFinding) -> String {
    let mut text = format!("{}: {}", finding.code, sentence(&finding.summary_message));
    if !finding.possible_causes.is_empty() {
        text.push_str(&format!("\nWhy: {}", finding.possible_causes));
    }
    if !finding.recommended_action.is_empty() {
        text.push_str(&format!("\nWhat to do: {}", finding.recommended_action));
    }
    text
}

/// The argument that is at fault: that of the disks when a disk is, else the one that names the VM.
fn attribute<'a>(finding: &ReadinessFinding, at: &'a str) -> &'a str {
    match finding.vhd_id {
        Some(_) => "disks_to_include",
        None => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_service_is_asked_for_what_a_person_chose() {
        let config = Object::new().with("vm_name", "web01");
        assert_eq!(query(&config), "?recoveryTarget=RecoveryHost");
        let config = config
            .with("recovery_target", "Azure")
            .with("os_type", "Linux")
            .with("disks_to_include", vec!["D 0".to_owned(), "D1".to_owned()]);
        assert_eq!(
            query(&config),
            "?recoveryTarget=Azure&disksToInclude=D%200%2CD1&osType=Linux"
        );
    }

    #[test]
    fn what_refuses_is_an_error_at_its_argument_and_what_is_lifted_is_not_told() {
        let item: Vm = serde_json::from_value(json!({
            "id": "/1", "name": "guid", "properties": { "friendlyName": "web01", "readinessFindings": [
                { "code": "FourKNative", "severity": "Error", "vhdId": "D0", "summaryMessage": "Large sectors.", "recommendedAction": "Copy." },
                { "code": "FibreChannel", "severity": "Error", "summaryMessage": "An adapter." },
                { "code": "SecureBoot", "severity": "Warning", "summaryMessage": "It is on." },
                { "code": "LinuxGeneration2", "severity": "Lifted", "summaryMessage": "Linux." } ] }
        }))
        .unwrap();
        let report = diagnostics(&item, "vm_name");
        let told: Vec<(String, bool)> = report
            .iter()
            .map(|one| (one.attribute.to_string(), one.detail.contains("What to do")))
            .collect();
        assert_eq!(
            told,
            [
                ("disks_to_include".to_owned(), true),
                ("vm_name".to_owned(), false),
                ("vm_name".to_owned(), false)
            ]
        );
        assert!(report.has_errors());
    }
}
