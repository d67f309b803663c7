//! What a person reads: tables with aligned columns; what a program reads: the bodies as JSON.

use anyhow::Result;
use serde_json::Value;

use crate::lookup::text;

/// Vaults.
pub fn vaults(bodies: &[Value], json: bool) -> Result<()> {
    table(bodies, json, &["NAME", "LOCATION", "ID"], |body| {
        vec![
            text(body, "/name").to_owned(),
            text(body, "/location").to_owned(),
            text(body, "/id").to_owned(),
        ]
    })
}

/// Hosts.
pub fn hosts(bodies: &[Value], json: bool) -> Result<()> {
    table(
        bodies,
        json,
        &["HOST", "SITE", "CONNECTION", "HEARTBEAT", "ENGINE"],
        |body| {
            [
                "friendlyName",
                "fabricFriendlyName",
                "connectionStatus",
                "lastHeartBeat",
                "providerVersion",
            ]
            .map(|name| property(body, name))
            .into()
        },
    )
}

/// VMs that hosts report.
pub fn vms(bodies: &[Value], json: bool) -> Result<()> {
    table(
        bodies,
        json,
        &["VM", "GENERATION", "OS", "DISKS", "STATUS", "FINDINGS"],
        |body| {
            let disks = body
                .pointer("/properties/customDetails/diskDetails")
                .and_then(Value::as_array)
                .map_or(0, Vec::len);
            let findings = body
                .pointer("/properties/protectionReadinessErrors")
                .and_then(Value::as_array);
            let findings: Vec<&str> = findings
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            vec![
                property(body, "friendlyName"),
                text(body, "/properties/customDetails/generation").to_owned(),
                text(body, "/properties/customDetails/osDetails/osType").to_owned(),
                disks.to_string(),
                property(body, "protectionStatus"),
                findings.join("; "),
            ]
        },
    )
}

/// Protected VMs.
pub fn items(bodies: &[Value], json: bool) -> Result<()> {
    table(
        bodies,
        json,
        &[
            "VM",
            "STATE",
            "HEALTH",
            "PROGRESS",
            "RPO",
            "LAST POINT",
            "TEST FAILOVER",
        ],
        |body| {
            let details = |name: &str| {
                number_or_text(body.pointer(&format!("/properties/providerSpecificDetails/{name}")))
            };
            let progress =
                details("initialReplicationDetails/initialReplicationProgressPercentage");
            let rpo = details("rpoInSeconds");
            vec![
                property(body, "friendlyName"),
                property(body, "protectionState"),
                property(body, "replicationHealth"),
                if progress.is_empty() {
                    progress
                } else {
                    format!("{progress} %")
                },
                if rpo.is_empty() {
                    rpo
                } else {
                    format!("{rpo} s")
                },
                details("lastRecoveryPointReceived"),
                property(body, "testFailoverState"),
            ]
        },
    )
}

/// Recovery points.
pub fn points(bodies: &[Value], json: bool) -> Result<()> {
    table(
        bodies,
        json,
        &["TIME", "KIND", "POSITION", "CHANGED", "SENT", "NAME"],
        |body| {
            let details =
                |name: &str| body.pointer(&format!("/properties/providerSpecificDetails/{name}"));
            vec![
                property(body, "recoveryPointTime"),
                property(body, "recoveryPointType"),
                number_or_text(details("position")),
                bytes(details("changedBytes")),
                bytes(details("sentBytes")),
                text(body, "/name").to_owned(),
            ]
        },
    )
}

/// Recovery plans.
pub fn plans(bodies: &[Value], json: bool) -> Result<()> {
    table(bodies, json, &["PLAN", "SITE", "STATUS"], |body| {
        vec![
            text(body, "/name").to_owned(),
            property(body, "primaryFabricFriendlyName"),
            property(body, "currentScenarioStatus"),
        ]
    })
}

/// Jobs.
pub fn jobs(bodies: &[Value], json: bool) -> Result<()> {
    table(
        bodies,
        json,
        &["STARTED", "JOB", "OBJECT", "STATE", "ID"],
        |body| {
            vec![
                property(body, "startTime"),
                property(body, "scenarioName"),
                property(body, "targetObjectName"),
                property(body, "state"),
                text(body, "/name").to_owned(),
            ]
        },
    )
}

/// One job with its tasks and errors.
pub fn job(body: &Value, json: bool) -> Result<()> {
    if json {
        return whole(body);
    }
    println!(
        "{} of {}: {}",
        property(body, "scenarioName"),
        property(body, "targetObjectName"),
        property(body, "state")
    );
    for task in body
        .pointer("/properties/tasks")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        println!(
            "  {:<12} {}",
            text(task, "/state"),
            text(task, "/friendlyName")
        );
    }
    for error in body
        .pointer("/properties/errors")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let details = ["serviceErrorDetails", "providerErrorDetails"]
            .map(|name| error.get(name))
            .into_iter()
            .flatten()
            .next();
        let part = |name: &str| {
            details
                .map(|details| text(details, &format!("/{name}")))
                .unwrap_or_default()
                .to_owned()
        };
        println!(
            "  error: {} {} {}",
            part("message"),
            part("possibleCauses"),
            part("recommendedAction")
        );
    }
    Ok(())
}

/// The body as it is.
pub fn whole(body: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(body)?);
    Ok(())
}

fn table(
    bodies: &[Value],
    json: bool,
    titles: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(bodies)?);
        return Ok(());
    }
    let mut rows = vec![
        titles
            .iter()
            .map(|title| (*title).to_owned())
            .collect::<Vec<_>>(),
    ];
    rows.extend(bodies.iter().map(row));
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    Ok(())
}

fn property(body: &Value, name: &str) -> String {
    number_or_text(body.pointer(&format!("/properties/{name}")))
}

fn number_or_text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Bytes for people: `12.3 MiB`.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn bytes(value: Option<&Value>) -> String {
    let Some(bytes) = value.and_then(Value::as_u64) else {
        return String::new();
    };
    let (mut amount, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{amount:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_keeps_them_above_one() {
        assert_eq!(super::bytes(Some(&json!(0))), "0 B");
        assert_eq!(super::bytes(Some(&json!(1023))), "1023 B");
        assert_eq!(super::bytes(Some(&json!(1536))), "1.5 KiB");
        assert_eq!(super::bytes(Some(&json!(3_u64 << 30))), "3.0 GiB");
        assert_eq!(super::bytes(None), "");
    }
}
