//! A VM of a host before it is protected: its disks, and each finding of the checks with why and what to do.

use anyhow::Result;
use serde_json::Value;

use crate::lookup::text;
use crate::show;

/// Which severities there are, the worst first, and how a person calls several of them.
const SEVERITIES: [(&str, &str, &str); 3] = [
    ("Error", "refused", "refused"),
    ("Warning", "warning", "warnings"),
    ("Lifted", "lifted", "lifted"),
];

/// One VM.
pub fn show(body: &Value, json: bool) -> Result<()> {
    if json {
        return show::whole(body);
    }
    for line in lines(body) {
        println!("{line}");
    }
    Ok(())
}

fn lines(body: &Value) -> Vec<String> {
    let details = "/properties/customDetails";
    let mut lines = vec![
        format!("VM          {}", text(body, "/properties/friendlyName")),
        format!("id          {}", text(body, "/name")),
        format!("status      {}", text(body, "/properties/protectionStatus")),
        format!(
            "generation  {}",
            text(body, &format!("{details}/generation"))
        ),
        format!(
            "system      {}",
            text(body, &format!("{details}/osDetails/osType"))
        ),
    ];
    for disk in list(body, &format!("{details}/diskDetails")) {
        let size = disk.pointer("/maxSizeMB").and_then(Value::as_u64);
        lines.push(format!(
            "disk        {}  {} MiB  {}  {}",
            text(disk, "/vhdName"),
            size.unwrap_or_default(),
            text(disk, "/vhdType"),
            text(disk, "/vhdId")
        ));
    }
    lines.push(format!("findings    {}", counted(body)));
    for finding in list(body, "/properties/readinessFindings") {
        let targets: Vec<&str> = list(finding, "/recoveryTargets")
            .filter_map(Value::as_str)
            .collect();
        let severity = SEVERITIES
            .iter()
            .find(|(word, _, _)| *word == text(finding, "/severity"))
            .map_or("", |(_, one, _)| *one);
        lines.push(String::new());
        lines.push(format!(
            "{} ({severity}, {}): {}",
            text(finding, "/code"),
            targets.join(" and "),
            text(finding, "/summaryMessage")
        ));
        for (word, path) in [
            ("why", "/possibleCauses"),
            ("what to do", "/recommendedAction"),
            ("in Azure Site Recovery", "/originalCode"),
        ] {
            let said = text(finding, path);
            if !said.is_empty() {
                lines.push(format!("  {word}: {said}"));
            }
        }
    }
    lines
}

/// How many findings of each severity there are, for a column; the errors of a service that has no findings.
pub fn counted(body: &Value) -> String {
    let findings: Vec<&str> = list(body, "/properties/readinessFindings")
        .map(|finding| text(finding, "/severity"))
        .collect();
    if findings.is_empty() {
        let errors: Vec<&str> = list(body, "/properties/protectionReadinessErrors")
            .filter_map(Value::as_str)
            .collect();
        return errors.join("; ");
    }
    let parts: Vec<String> = SEVERITIES
        .iter()
        .filter_map(|(severity, one, several)| {
            let count = findings.iter().filter(|found| *found == severity).count();
            match count {
                0 => None,
                1 => Some(format!("1 {one}")),
                _ => Some(format!("{count} {several}")),
            }
        })
        .collect();
    parts.join(", ")
}

fn list<'a>(body: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    let entries = body.pointer(path).and_then(Value::as_array);
    entries.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_vm_is_shown_with_every_finding_and_what_to_do() {
        let body = json!({ "name": "guid", "properties": { "friendlyName": "web01", "readinessFindings": [
            { "code": "FourKNative", "severity": "Error", "recoveryTargets": ["Azure", "RecoveryHost"], "summaryMessage": "Large sectors.",
              "possibleCauses": "Because.", "recommendedAction": "Copy.", "originalCode": "70094" },
            { "code": "SecureBoot", "severity": "Warning", "recoveryTargets": ["Azure"], "summaryMessage": "It is on." },
            { "code": "VirtualTpm", "severity": "Warning", "recoveryTargets": ["Azure"], "summaryMessage": "It has one." } ] } });
        assert_eq!(counted(&body), "1 refused, 2 warnings");
        let text = lines(&body).join("\n");
        assert!(text.contains("FourKNative (refused, Azure and RecoveryHost): Large sectors.\n  why: Because.\n  what to do: Copy.\n  in Azure Site Recovery: 70094"));
        assert!(text.contains("SecureBoot (warning, Azure): It is on."));
        assert_eq!(counted(&json!({})), "");
    }
}
