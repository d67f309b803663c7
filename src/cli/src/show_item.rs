//! One protected VM for a person: how it stands, disk by disk, and what is wrong with it.

use anyhow::Result;
use serde_json::Value;

use crate::lookup::text;
use crate::show::{allowed, bytes, number_or_text, property, time, whole};

/// Prints the item, or its body as JSON.
pub fn show(item: &Value, json: bool) -> Result<()> {
    if json {
        return whole(item);
    }
    print!("{}", describe(item));
    Ok(())
}

fn describe(item: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            out.push_str(&format!("{name:<24}{value}\n"));
        }
    };
    let at = |name: &str| item.pointer(&format!("/properties/providerSpecificDetails/{name}"));
    let plain = |name: &str| number_or_text(at(name));
    let with = |name: &str, unit: &str| match plain(name) {
        empty if empty.is_empty() => empty,
        number => format!("{number} {unit}"),
    };
    line("VM", property(item, "friendlyName"));
    let state = property(item, "protectionState");
    let words = property(item, "protectionStateDescription");
    line(
        "State",
        if words.is_empty() || words == state {
            state
        } else {
            format!("{state} ({words})")
        },
    );
    line("Active location", property(item, "activeLocation"));
    line("Allowed operations", allowed(item).join(", "));
    line(
        "Test failover",
        match property(item, "testFailoverState") {
            idle if idle == "None" => String::new(),
            state => state,
        },
    );
    line(
        "Running job",
        match text(item, "/properties/currentScenario/scenarioName") {
            "" | "None" => String::new(),
            scenario => format!(
                "{scenario} {}",
                last_segment(text(item, "/properties/currentScenario/jobId"))
            ),
        },
    );
    line(
        "Last failover",
        time(&property(item, "lastSuccessfulFailoverTime")),
    );
    line(
        "Failover point",
        last_segment(&property(item, "failoverRecoveryPointId")).to_owned(),
    );
    line("Recovered VM", plain("recoveryAzureVmName"));
    line(
        "On its host",
        hydration(at("recoveredVmLocalBytes"), at("recoveredVmDiskBytes")),
    );
    line("Health", property(item, "replicationHealth"));
    line("Policy", property(item, "policyFriendlyName"));
    line("Replica", plain("replicaFolder"));
    line("Log", plain("logFolder"));
    line("Points", plain("recoveryPointCount"));
    line("RPO", with("rpoInSeconds", "s"));
    line("Newest point", time(&plain("lastRecoveryPointReceived")));
    line(
        "App-consistent point",
        time(&plain("lastAppConsistentTime")),
    );
    line("Points verified", time(&plain("lastVerifiedTime")));
    line("Immutable until", time(&plain("immutableUntil")));
    line(
        "Interval",
        with("effectiveReplicationIntervalInSeconds", "s"),
    );
    line("Degraded", plain("degradedReason"));
    line("Backlog", bytes(at("backlogBytes")));
    line(
        "Rate",
        match bytes(at("bytesPerSecond")) {
            empty if empty.is_empty() => empty,
            rate => format!("{rate}/s"),
        },
    );
    line("Time left", with("etaInSeconds", "s"));
    let (done, total) = (at("progressDoneBytes"), at("progressTotalBytes"));
    if total.and_then(Value::as_u64).is_some_and(|total| total > 0) {
        line("Progress", format!("{} of {}", bytes(done), bytes(total)));
    }
    let count = |name: &str| at(name).and_then(Value::as_u64).unwrap_or_default();
    let (asked, made) = (
        count("resynchronizationsRequested"),
        count("resynchronizationsCompleted"),
    );
    if asked > 0 {
        let standing = if made >= asked { "done" } else { "under way" };
        line(
            "Resynchronization",
            format!("{asked} asked for, {standing}"),
        );
    }
    line("Group", plain("multiVmGroupName"));
    line("Newest group point", plain("lastGroupPointId"));
    let key = plain("encryptionKeyId");
    let encryption = plain("encryption");
    line(
        "Encryption",
        if key.is_empty() {
            encryption
        } else {
            format!("{encryption}, key {key}")
        },
    );
    for disk in list(at("azureVmDiskDetails")) {
        let mut words = vec![bytes(disk.get("sizeInBytes"))];
        words.push(text(disk, "/trackingState").to_owned());
        words.push(match text(disk, "/trackingReason") {
            "" => String::new(),
            reason => format!("({reason})"),
        });
        words.retain(|word| !word.is_empty());
        line(
            "Disk",
            format!(
                "{} {}  {}",
                text(disk, "/vhdId"),
                text(disk, "/vhdName"),
                words.join(", ")
            ),
        );
    }
    for throttle in list(at("throttles")) {
        line("Throttle", throttle_text(throttle));
    }
    for error in list(item.pointer("/properties/healthErrors")) {
        let part = |name: &str| text(error, &format!("/{name}"));
        line(
            part("errorLevel"),
            format!("{}: {}", part("errorCode"), part("errorMessage")),
        );
        line("", part("possibleCauses").to_owned());
        line("", part("recommendedAction").to_owned());
    }
    out
}

fn last_segment(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// `6.0 MiB/s, Monday Tuesday, 08:00–18:00 +01:00`
pub fn throttle_text(throttle: &Value) -> String {
    let mut words = vec![format!("{}/s", bytes(throttle.get("bytesPerSecond")))];
    let days: Vec<&str> = list(throttle.get("days"))
        .filter_map(Value::as_str)
        .collect();
    if !days.is_empty() {
        words.push(days.join(" "));
    }
    let (start, end) = (text(throttle, "/startTime"), text(throttle, "/endTime"));
    if !start.is_empty() || !end.is_empty() {
        let midnight = |time: &str| {
            if time.is_empty() {
                "00:00".to_owned()
            } else {
                time.to_owned()
            }
        };
        words.push(
            format!(
                "{}–{} {}",
                midnight(start),
                midnight(end),
                text(throttle, "/utcOffset")
            )
            .trim_end()
            .to_owned(),
        );
    }
    words.join(", ")
}

/// How much of a recovered VM's disks its host holds.
fn hydration(local: Option<&Value>, whole: Option<&Value>) -> String {
    let amounts = local
        .and_then(Value::as_u64)
        .zip(whole.and_then(Value::as_u64));
    match amounts {
        Some((here, all)) if here < all => {
            format!(
                "{} of {}, the rest is read from the store",
                bytes(local),
                bytes(whole)
            )
        }
        Some(_) => format!("all {}", bytes(whole)),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_person_sees_tracking_cadence_and_problems() {
        let item = json!({ "properties": {
            "friendlyName": "web01", "protectionState": "Protected", "replicationHealth": "Warning",
            "healthErrors": [{ "errorLevel": "Warning", "errorCode": "TrackingSuspect", "errorMessage": "Changes may be unknown." }],
            "providerSpecificDetails": {
                "rpoInSeconds": 12, "backlogBytes": 2048, "degradedReason": "the store is slow",
                "resynchronizationsRequested": 2, "resynchronizationsCompleted": 1,
                "azureVmDiskDetails": [{ "vhdId": "d0", "trackingState": "Suspect", "trackingReason": "host lost power" }],
                "throttles": [{ "bytesPerSecond": 1_048_576, "days": ["Monday"], "startTime": "08:00" }],
            } } });
        let text = describe(&item);
        for part in [
            "12 s",
            "2.0 KiB",
            "the store is slow",
            "2 asked for, under way",
            "Suspect, (host lost power)",
            "1.0 MiB/s, Monday, 08:00–00:00",
            "TrackingSuspect: Changes may be unknown.",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_person_sees_where_a_vm_runs_and_what_can_be_asked_of_it() {
        let item = json!({ "properties": {
            "friendlyName": "web01", "protectionState": "PlannedFailoverCommitRequired",
            "protectionStateDescription": "Planned failover finished", "activeLocation": "Recovery",
            "testFailoverState": "None", "allowedOperations": ["Commit", "ChangePit"],
            "lastSuccessfulFailoverTime": "2031-03-04T05:06:07.5Z",
            "failoverRecoveryPointId": "/items/i/recoveryPoints/p7",
            "currentScenario": { "scenarioName": "PlannedFailover", "jobId": "/v/replicationJobs/j1" },
            "providerSpecificDetails": { "recoveredVmLocalBytes": 1024, "recoveredVmDiskBytes": 4096 },
        } });
        let text = describe(&item);
        for part in [
            "PlannedFailoverCommitRequired (Planned failover finished)",
            "Active location         Recovery",
            "Allowed operations      Commit, ChangePit",
            "Running job             PlannedFailover j1",
            "Last failover           2031-03-04T05:06:07Z",
            "Failover point          p7",
            "On its host             1.0 KiB of 4.0 KiB, the rest is read from the store",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("Test failover"), "no drill in\n{text}");
    }
}
