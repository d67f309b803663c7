//! Rings: formats and pure logic inside, mechanisms around them, programs outside.
//!
//! ```text
//!   ring 3  provider orchestrator engine cli xtask            (and the tests)
//!   ring 2  tf-provider arm-client azure-storage azure-compute replica-store hypervisor engine-protocol
//!           host-deploy
//!   ring 1  disk-image replication-log protection arm-model   (no tokio, no network)
//! ```

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::metadata::Metadata;

const RING_1: &[&str] = &["disk-image", "replication-log", "protection", "arm-model"];
const RING_2: &[&str] = &[
    "tf-provider",
    "arm-client",
    "azure-storage",
    "azure-compute",
    "replica-store",
    "hypervisor",
    "engine-protocol",
    "host-deploy",
    "plan-script",
];
const RING_3: &[&str] = &[
    "provider",
    "orchestrator",
    "engine",
    "cli",
    "xtask",
    "bench",
    "lab-guest",
    "system-tests",
    "crash-tests",
    "model-check",
];

/// Ring 1 is linked with none of these, not even through somebody else.
const NOT_IN_RING_1: &[&str] = &[
    "tokio", "hyper", "tonic", "axum", "reqwest", "rustls", "mio",
];
/// These know nothing of site recovery and stay publishable alone.
const ALONE: &[&str] = &["tf-provider"];

/// Checks every workspace member; says all findings at once.
pub fn check() -> Result<()> {
    let metadata = Metadata::read()?;
    let by_id = metadata.by_id();
    let mut findings = Vec::new();
    for member in metadata.members() {
        let Some(own) = ring(&member.name) else {
            findings.push(format!(
                "crate `{}` is in no ring; add it to src/xtask/src/rings.rs",
                member.name
            ));
            continue;
        };
        for used in metadata
            .linked(&member.id)
            .iter()
            .filter_map(|id| by_id.get(id))
        {
            let Some(theirs) = ring(&used.name).filter(|_| used.source.is_none()) else {
                continue;
            };
            if theirs > own || ALONE.contains(&member.name.as_str()) {
                findings.push(format!(
                    "`{}` (ring {own}) may not use `{}` (ring {theirs})",
                    member.name, used.name
                ));
            }
        }
        if own == 1 {
            let everything = reach(&metadata, &member.id);
            let names: BTreeSet<&str> = everything
                .iter()
                .filter_map(|id| by_id.get(id.as_str()))
                .map(|p| p.name.as_str())
                .collect();
            for banned in NOT_IN_RING_1
                .iter()
                .filter(|banned| names.contains(*banned))
            {
                findings.push(format!(
                    "`{}` is pure logic but is linked with `{banned}`",
                    member.name
                ));
            }
        }
    }
    if !findings.is_empty() {
        bail!("rings are broken:\n  {}", findings.join("\n  "));
    }
    println!(
        "rings: {} crates keep to their rings",
        metadata.workspace_members.len()
    );
    Ok(())
}

fn ring(name: &str) -> Option<u8> {
    [RING_1, RING_2, RING_3]
        .iter()
        .zip(1..)
        .find(|(ring, _)| ring.contains(&name))
        .map(|(_, number)| number)
}

/// Everything that `start` is linked with, at any distance.
fn reach(metadata: &Metadata, start: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start.to_owned()];
    while let Some(id) = open.pop() {
        if seen.insert(id.clone()) {
            open.extend(metadata.linked(&id).into_iter().map(str::to_owned));
        }
    }
    seen
}
