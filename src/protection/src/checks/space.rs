//! Rules of room on the host: change logs lie beside the disks, and so does what a frozen point keeps of overwritten blocks.

use std::collections::BTreeMap;

use super::{Facts, Hit, Request, Rule, Severity, Theme};

/// Below this the engine pauses captures.
const LEAST_FREE: u64 = 128 << 20;

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "HostSpaceLow",
        theme: Theme::Space,
        title: "Less than 128 MiB are free on the volume of a disk",
        why: "The first copy needs room for what the guest overwrites meanwhile, and changes are logged beside the disk.",
        advice: "Free space on the volume, or move the disk to another one.",
        original: "the first copy fails",
        original_code: None,
        source: "replication process, initial and delta replication",
        azure: Severity::Blocks,
        recovery_host: Severity::Blocks,
        find: Some(|facts, request| {
            let volumes = volumes(facts, request);
            let low = volumes.iter().filter(|volume| volume.free < LEAST_FREE);
            low.map(|volume| {
                Hit::vm(format!(
                    "Only {} MiB are free on the volume of {}.",
                    volume.free >> 20,
                    volume.disks.join(", ")
                ))
            })
            .collect()
        }),
    },
    Rule {
        code: "ChangeLogSpace",
        theme: Theme::Space,
        title: "The volume of a disk has less room than its change log may take",
        why: "While the storage account is away, changes wait beside the disk up to the policy's log quota (50 % of the disk unless it says \
              otherwise); when the volume is full before, no points are made.",
        advice: "Free space on the volume, or lower the log quota of the policy (`log_quota_in_percent`).",
        original: "50 % of the disk, then a resynchronisation",
        original_code: None,
        source: "replication process, delta replication and log swap",
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            let volumes = volumes(facts, request);
            let short = volumes
                .iter()
                .filter(|volume| volume.free >= LEAST_FREE && volume.free < volume.log_quota);
            short
                .map(|volume| {
                    Hit::vm(format!(
                        "{} MiB are free on the volume of {}, and their change logs may take {} MiB.",
                        volume.free >> 20,
                        volume.disks.join(", "),
                        volume.log_quota >> 20
                    ))
                })
                .collect()
        }),
    },
];

/// A volume of the host, and what replication may put there.
struct Place<'a> {
    disks: Vec<&'a str>,
    free: u64,
    log_quota: u64,
}

/// By volume, the disks that are replicated.
fn volumes<'a>(facts: &'a Facts, request: &Request) -> Vec<Place<'a>> {
    let mut places: BTreeMap<&str, Place<'a>> = BTreeMap::new();
    for disk in facts.disks.iter().filter(|disk| request.includes(disk)) {
        let Some(free) = disk.volume_free_bytes else {
            continue;
        };
        let place = places.entry(disk.volume.as_str()).or_insert(Place {
            disks: Vec::new(),
            free,
            log_quota: 0,
        });
        place.disks.push(disk.name.as_str());
        place.free = place.free.min(free);
        let quota = disk.size_bytes / 100 * u64::from(request.quota_percent());
        place.log_quota = place.log_quota.saturating_add(quota);
    }
    places.into_values().collect()
}
