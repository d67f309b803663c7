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
        &[
            "HOST",
            "SITE",
            "CONNECTION",
            "HEARTBEAT",
            "PROTECTED",
            "RECOVERY",
            "FREE",
            "ENGINE",
        ],
        |body| {
            let recovery = body.pointer("/properties/recoveryRole");
            vec![
                property(body, "friendlyName"),
                property(body, "fabricFriendlyName"),
                property(body, "connectionStatus"),
                time(&property(body, "lastHeartBeat")),
                property(body, "protectedItemCount"),
                if recovery == Some(&Value::Bool(true)) {
                    "yes"
                } else {
                    "no"
                }
                .to_owned(),
                bytes(body.pointer("/properties/freeBytes")),
                property(body, "providerVersion"),
            ]
        },
    )?;
    if !json {
        for line in host_troubles(bodies) {
            println!("{line}");
        }
    }
    Ok(())
}

/// What is wrong with hosts, below their table: nothing when nothing is.
fn host_troubles(bodies: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for body in bodies {
        let errors = body.pointer("/properties/healthErrorDetails");
        for error in errors.and_then(Value::as_array).into_iter().flatten() {
            let part = |name: &str| text(error, &format!("/{name}"));
            lines.push(String::new());
            lines.push(format!(
                "{}: {}: {}: {}",
                property(body, "friendlyName"),
                part("errorLevel"),
                part("errorCode"),
                part("errorMessage")
            ));
            let more = [part("possibleCauses"), part("recommendedAction")];
            let more = more.into_iter().filter(|words| !words.is_empty());
            lines.extend(more.map(|words| format!("  {words}")));
        }
    }
    lines
}

/// Storage accounts.
pub fn storage_accounts(bodies: &[Value], json: bool) -> Result<()> {
    let titles = &[
        "ACCOUNT",
        "LOCATION",
        "KIND",
        "PLACE",
        "CONTAINER",
        "ACCESS",
    ];
    table(bodies, json, titles, |body| {
        let folder = property(body, "folder");
        vec![
            text(body, "/name").to_owned(),
            text(body, "/location").to_owned(),
            text(body, "/sku/name").to_owned(),
            if folder.is_empty() {
                property(body, "blobEndpoint")
            } else {
                folder
            },
            property(body, "containerName"),
            property(body, "accessKind"),
        ]
    })
}

/// Replication policies.
pub fn policies(bodies: &[Value], json: bool) -> Result<()> {
    let titles = &[
        "POLICY",
        "INTERVAL",
        "ALL POINTS",
        "TIERS",
        "APP-CONSISTENT",
        "IMMUTABLE",
        "ENCRYPTION",
        "VERIFIED",
    ];
    table(bodies, json, titles, |body| {
        let number = |name: &str| {
            body.pointer(&format!("/properties/providerSpecificDetails/{name}"))
                .and_then(Value::as_u64)
                .unwrap_or_default()
        };
        let every = |number: u64, unit: &str| match number {
            0 => "off".to_owned(),
            number => format!("{number} {unit}"),
        };
        let tiers = body
            .pointer("/properties/providerSpecificDetails/retentionTiers")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        let minutes = number("applicationConsistentSnapshotFrequencyInMinutes");
        vec![
            text(body, "/name").to_owned(),
            format!("{} s", number("replicationInterval")),
            format!("{} h", number("recoveryPointHistoryDurationInHours")),
            tiers.to_string(),
            if minutes > 0 {
                every(minutes, "min")
            } else {
                every(number("applicationConsistentSnapshotFrequencyInHours"), "h")
            },
            every(number("immutabilityInHours"), "h"),
            text(body, "/properties/providerSpecificDetails/encryption").to_owned(),
            every(number("verificationIntervalInHours"), "h"),
        ]
    })
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
            vec![
                property(body, "friendlyName"),
                text(body, "/properties/customDetails/generation").to_owned(),
                text(body, "/properties/customDetails/osDetails/osType").to_owned(),
                disks.to_string(),
                property(body, "protectionStatus"),
                crate::show_vm::counted(body),
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
            "ACTIVE",
            "STATE",
            "HEALTH",
            "PROGRESS",
            "RPO",
            "BACKLOG",
            "LAST POINT",
            "CHANGED",
            "SENT",
            "TEST FAILOVER",
            "ALLOWED",
        ],
        |body| {
            let details = |name: &str| {
                number_or_text(body.pointer(&format!("/properties/providerSpecificDetails/{name}")))
            };
            let progress =
                details("initialReplicationDetails/initialReplicationProgressPercentage");
            let rpo = details("rpoInSeconds");
            let last_cycle = |name: &str| {
                bytes(body.pointer(&format!("/properties/providerSpecificDetails/{name}")))
            };
            vec![
                property(body, "friendlyName"),
                property(body, "activeLocation"),
                state(body),
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
                last_cycle("backlogBytes"),
                time(&details("lastRecoveryPointReceived")),
                last_cycle("lastCycleChangedBytes"),
                last_cycle("lastCycleSentBytes"),
                property(body, "testFailoverState"),
                allowed(body).join(" "),
            ]
        },
    )
}

/// Recovery points.
pub fn points(bodies: &[Value], json: bool) -> Result<()> {
    table(
        bodies,
        json,
        &[
            "TIME",
            "KIND",
            "POSITION",
            "CHANGED",
            "SENT",
            "NAME",
            "GROUP POINT",
        ],
        |body| {
            let details =
                |name: &str| body.pointer(&format!("/properties/providerSpecificDetails/{name}"));
            vec![
                time(&property(body, "recoveryPointTime")),
                property(body, "recoveryPointType"),
                number_or_text(details("position")),
                bytes(details("changedBytes")),
                bytes(details("sentBytes")),
                text(body, "/name").to_owned(),
                number_or_text(details("groupPointId")),
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
                time(&property(body, "startTime")),
                property(body, "scenarioName"),
                property(body, "targetObjectName"),
                property(body, "state"),
                text(body, "/name").to_owned(),
            ]
        },
    )
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

/// How a protected VM stands, for people: most of the states' names are for programs.
fn state(item: &Value) -> String {
    match property(item, "protectionStateDescription") {
        none if none.is_empty() => property(item, "protectionState"),
        words => words,
    }
}

/// What may be asked of an item or a plan next, in the API's words.
pub fn allowed(body: &Value) -> Vec<&str> {
    body.pointer("/properties/allowedOperations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// A property as text.
pub fn property(body: &Value, name: &str) -> String {
    number_or_text(body.pointer(&format!("/properties/{name}")))
}

/// A number or a text as text, nothing for anything else.
pub fn number_or_text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// A time to the second, so that columns line up; `--json` has all of it.
pub fn time(text: &str) -> String {
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text.to_owned(),
    }
}

/// Bytes for people: `12.3 MiB`.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn bytes(value: Option<&Value>) -> String {
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
    fn times_are_shown_to_the_second() {
        assert_eq!(
            super::time("2026-11-25T00:55:30.51Z"),
            "2026-11-25T00:55:30Z"
        );
        assert_eq!(super::time("2026-11-25T00:55:30Z"), "2026-11-25T00:55:30Z");
        assert_eq!(super::time(""), "");
    }

    #[test]
    fn what_is_wrong_with_a_host_is_said_below_the_table_with_its_cause_and_the_next_step() {
        let whole = json!({ "properties": { "friendlyName": "hv1", "healthErrorDetails": [] } });
        let away = json!({ "properties": { "friendlyName": "hv2", "healthErrorDetails": [{
            "errorLevel": "Warning", "errorCode": "HostDisconnected", "errorMessage": "It has not reported.",
            "possibleCauses": "The engine is stopped.", "recommendedAction": "Start it.",
        }] } });
        assert_eq!(super::host_troubles(std::slice::from_ref(&whole)), [""; 0]);
        assert_eq!(
            super::host_troubles(&[whole, away]),
            [
                "",
                "hv2: Warning: HostDisconnected: It has not reported.",
                "  The engine is stopped.",
                "  Start it.",
            ]
        );
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_keeps_them_above_one() {
        assert_eq!(super::bytes(Some(&json!(0))), "0 B");
        assert_eq!(super::bytes(Some(&json!(1023))), "1023 B");
        assert_eq!(super::bytes(Some(&json!(1536))), "1.5 KiB");
        assert_eq!(super::bytes(Some(&json!(3_u64 << 30))), "3.0 GiB");
        assert_eq!(super::bytes(None), "");
    }
}
