//! Findings of the schedule: what a person should know although replication goes on.

use std::time::Duration;

use engine_protocol::v1::Finding;
use hypervisor::QuiesceReason;

use crate::finding::finding;

/// The guest was asked to rest and did not confirm it.
pub(super) fn not_application_consistent(name: &str, reason: QuiesceReason, why: &str) -> Finding {
    let (code, causes, action) = match reason {
        QuiesceReason::NoAgent => (
            "GUEST_AGENT_MISSING",
            "No guest agent is installed or running in the virtual machine, or the guest was starting.",
            "Install and start the guest agent (Debian: package qemu-guest-agent). The next point is tried by itself.",
        ),
        QuiesceReason::Timeout => (
            "GUEST_QUIESCE_TIMEOUT",
            "The guest is too busy to write out its caches, a freeze script hangs, or something else thawed its file systems.",
            "Look at the guest's load and at the guest agent's freeze scripts. The next point is tried by itself.",
        ),
        QuiesceReason::Refused => (
            "GUEST_QUIESCE_REFUSED",
            "A freeze script of the guest agent failed, or a file system can't be frozen.",
            "See the guest agent's log in the guest, mend the script or the file system. The next point is tried by itself.",
        ),
        QuiesceReason::NothingToFreeze => (
            "GUEST_NOTHING_TO_FREEZE",
            "The guest has no mounted file system of a kind that can be frozen.",
            "Set the policy's application-consistent frequency to 0 for this virtual machine, or use a file system that can be frozen.",
        ),
    };
    finding(
        code,
        format!(
            "the newest application-consistent point of virtual machine {name:?} came to nothing, a crash-consistent one was \
             made: {why}"
        ),
        causes,
        action,
        false,
    )
}

/// The VM's group has no common point.
pub(super) fn no_group_point(name: &str, group: &str, why: &str) -> Finding {
    finding(
        "GROUP_POINT_MISSED",
        format!(
            "virtual machine {name:?} has a recovery point of its own, but group {group:?} has none that its members share: {why}"
        ),
        "A virtual machine of the group is off, is being compared, or took too long for its last cycle.",
        "None if it passes. Otherwise start the virtual machine, or take it out of the group.",
        false,
    )
}

/// Cycles can't keep up.
pub(super) fn degraded(name: &str, interval: Duration, effective: Duration, why: &str) -> Finding {
    finding(
        "REPLICATION_DEGRADED",
        format!(
            "virtual machine {name:?} is replicated every {} s instead of every {} s: {why}",
            effective.as_secs(),
            interval.as_secs()
        ),
        "More changes than host, network and storage account can carry in the interval, or a bandwidth limit.",
        "None if it passes: the interval comes back by itself. Otherwise raise the limit, the storage account's \
         performance, or the policy's replication interval.",
        false,
    )
}
