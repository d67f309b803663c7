//! Problems as a person needs them: what, why, what next. Each code is documented for users and never reused.

use std::path::Path;

use engine_protocol::v1::Finding;

/// Builds a finding.
pub fn finding(
    code: &str,
    summary: impl Into<String>,
    causes: &str,
    action: &str,
    critical: bool,
) -> Finding {
    Finding {
        code: code.to_owned(),
        summary: summary.into(),
        possible_causes: causes.to_owned(),
        recommended_action: action.to_owned(),
        critical,
    }
}

/// The path of the folder of recovered VMs leaves no room for the sockets of a VM.
pub fn recovery_folder_too_long(folder: &Path, most: usize) -> Finding {
    finding(
        "RECOVERY_FOLDER_TOO_LONG",
        format!(
            "recovery_folder {:?} has {} bytes, and at most {most} are possible; no virtual machine can be recovered on this host",
            folder.display().to_string(),
            folder.as_os_str().len()
        ),
        "The sockets of a recovered virtual machine lie in its folder there, and the address of a Unix socket has 107 bytes.",
        "Choose a shorter recovery_folder in the engine's configuration and start the engine again. Replication goes on meanwhile.",
        true,
    )
}

/// The VM is off, so there is nothing new to replicate.
pub fn vm_not_running(name: &str) -> Finding {
    finding(
        "VM_NOT_RUNNING",
        format!("virtual machine {name:?} is not running; no new recovery points are made"),
        "The virtual machine was stopped, or its process ended.",
        "Start the virtual machine. Replication goes on by itself.",
        false,
    )
}

/// The VM can't be found on this host.
pub fn vm_not_found(name: &str, id: &str) -> Finding {
    finding(
        "VM_NOT_FOUND",
        format!("virtual machine {name:?} ({id}) is not on this host"),
        "The virtual machine was removed or moved to another host.",
        "Put the virtual machine back on this host, or disable its replication.",
        true,
    )
}

/// A disk to replicate is not attached any more.
pub fn disk_not_found(name: &str, disk: &str) -> Finding {
    finding(
        "DISK_NOT_FOUND",
        format!("virtual machine {name:?} has no disk {disk}"),
        "The disk was removed from the virtual machine or replaced by another one.",
        "Attach the disk again, or disable and enable replication with the disks that are left.",
        true,
    )
}

/// The replica's place can't be used: a folder, or the URL of a container.
pub fn store_unavailable(place: &Path, cause: &str) -> Finding {
    let (what, causes, action) = if crate::stores::is_container(place) {
        (
            "container",
            "The network to it is down, the account's firewall refuses this host, or the account's credential is no longer good.",
            "Check the way from the host to the account and the account's credential. Captured changes are kept on the host and shipped when it answers.",
        )
    } else {
        (
            "folder",
            "The folder is missing, read-only or on a volume that is not mounted, or the network to it is down.",
            "Make the folder writable for the engine. Captured changes are kept on the host and shipped when it is back.",
        )
    };
    finding(
        "STORE_UNAVAILABLE",
        format!(
            "storage account {what} {} can't be used: {cause}",
            place.display()
        ),
        causes,
        action,
        true,
    )
}

/// The replica's volume is full.
pub fn store_full(folder: &Path) -> Finding {
    finding(
        "STORE_FULL",
        format!("storage account folder {} is full", folder.display()),
        "The volume has no free space left.",
        "Free space on the volume or shorten the retention of the policy. Shipping goes on by itself.",
        true,
    )
}

/// What the store holds is damaged.
pub fn store_damaged(folder: &Path, cause: &str) -> Finding {
    finding(
        "REPLICA_DAMAGED",
        format!("the replica in {} is damaged: {cause}", folder.display()),
        "Files of the replica were changed or lost outside of Site Recovery.",
        "Check the volume, then disable and enable replication to build a new replica.",
        true,
    )
}

/// Another activation of replication has taken over.
pub fn fenced(generation: u64) -> Finding {
    finding(
        "FENCED",
        format!(
            "the replica belongs to a newer activation than generation {generation}; this engine stopped writing"
        ),
        "Replication was enabled again elsewhere, or the virtual machine was failed over.",
        "Nothing to do if that was intended. Otherwise disable and enable replication.",
        true,
    )
}

/// Capturing a point did not work; the guest was not touched.
pub fn capture_failed(name: &str, cause: &str) -> Finding {
    finding(
        "CAPTURE_FAILED",
        format!("a recovery point of virtual machine {name:?} could not be captured: {cause}"),
        "The hypervisor refused to freeze a point, or a disk could not be read.",
        "See the engine's log on the host. The engine tries again by itself; tracked changes are not lost.",
        false,
    )
}

/// Too little room on the host for a capture.
pub fn host_space_low(folder: &Path, free_bytes: u64) -> Finding {
    finding(
        "HOST_SPACE_LOW",
        format!(
            "only {} MiB are free in {}; captures are paused",
            free_bytes >> 20,
            folder.display()
        ),
        "The volume of the virtual machine's disks is nearly full, maybe with changes that wait for the storage account.",
        "Free space on the volume. Changes stay tracked and the next capture holds all of them.",
        true,
    )
}

/// Many cycles wait for the store.
pub fn backlog(cycles: u64) -> Finding {
    finding(
        "REPLICATION_BACKLOG",
        format!("{cycles} captured cycles wait to be shipped"),
        "The storage account is slower than the changes of the virtual machine, or was away for a while.",
        "None if it shrinks. Otherwise raise the replication interval or give the storage account more throughput.",
        false,
    )
}

/// A recovered VM could not be made or started.
pub fn recovery_failed(name: &str, cause: &str, given_up: bool) -> Finding {
    finding(
        "RECOVERY_FAILED",
        format!("recovered virtual machine {name:?} could not be started: {cause}"),
        "The recovery point is gone or damaged, or the recovery host lacks memory, space or firmware.",
        if given_up {
            "See the engine's log on the recovery host, clean up this failover and start it again."
        } else {
            "The engine tries again by itself. See the engine's log on the recovery host."
        },
        true,
    )
}

/// An order of a failover can't be obeyed as it is; the one before stays in force.
pub fn order_not_taken(name: &str, cause: &str) -> Finding {
    finding(
        "ORDER_NOT_TAKEN",
        format!("an order for recovered virtual machine {name:?} is not obeyed: {cause}"),
        "Orchestrator and engine are of different versions, or the orchestrator's database was restored from an older copy.",
        "Bring orchestrator and engine to the same version. See the engine's log on the recovery host.",
        true,
    )
}

/// What a failover has ordered can't be done at the moment. Once it `lasts` it is critical: whoever waits may give up.
pub fn order_not_carried_out(name: &str, cause: &str, lasts: bool) -> Finding {
    finding(
        "ORDER_NOT_CARRIED_OUT",
        format!(
            "what is ordered for recovered virtual machine {name:?} could not be done: {cause}"
        ),
        "The storage account is away, the recovery point is gone or damaged, or the recovery host lacks memory, space or firmware.",
        "The engine tries again by itself. See the engine's log on the recovery host.",
        lasts,
    )
}

/// A VM is of a generation that the recovery host does not support, and its disk can't be converted.
pub fn generation_not_supported(name: &str, cause: &str, action: &str) -> Finding {
    finding(
        "GENERATION_NOT_SUPPORTED",
        format!("virtual machine {name:?} can't be recovered on this host: {cause}"),
        "Windows is never converted from generation 2 to generation 1, and a Linux disk needs a boot menu that GRUB can read and a gap for the boot loader.",
        action,
        true,
    )
}

/// A comparison is due and waits for its hours.
pub fn comparison_waits(until_unix_ms: i64) -> Finding {
    let until = time::OffsetDateTime::from_unix_timestamp(until_unix_ms / 1000)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| format!("{until_unix_ms} ms after 1970"));
    finding(
        "COMPARISON_WAITS",
        format!(
            "disks must be compared with the replica; that waits until {until}, and no recovery points are made before"
        ),
        "Changes of a disk are not all known, and the policy allows comparisons in certain hours only.",
        "None: it begins by itself. To begin at once, widen the comparison windows of the policy.",
        false,
    )
}

/// Another disk is attached where a replicated one was.
pub fn disk_replaced(name: &str, file: &str, disk: &str, by: &str) -> Finding {
    finding(
        "DISK_REPLACED",
        format!("disk {disk} of virtual machine {name:?} was replaced by disk {by} ({file})"),
        "The image was restored or made anew under the same name, so it is another disk.",
        "Put the former disk back, or exclude it from replication and include the new one.",
        true,
    )
}

/// A disk has become smaller, which a replica can't follow.
pub fn disk_shrunk(name: &str, disk: &str, from: u64, to: u64) -> Finding {
    finding(
        "DISK_SHRUNK",
        format!(
            "disk {disk} of virtual machine {name:?} was made smaller, from {from} to {to} bytes"
        ),
        "The disk was resized, or an older copy of it was put back.",
        "Exclude the disk from replication and include it again, or put the larger disk back.",
        true,
    )
}

/// The replica was complete once and is not there.
pub fn replica_missing(folder: &Path) -> Finding {
    finding(
        "REPLICA_MISSING",
        format!("the replica is not in {} any more", folder.display()),
        "The volume is not mounted, the storage account was emptied, or the replica was removed outside of Site Recovery.",
        "Bring the storage back. If the replica is lost, disable and enable replication to build a new one.",
        true,
    )
}

/// A disk copy can't be the start of base.
pub fn seed_unusable(path: &Path, cause: &str) -> Finding {
    finding(
        "SEED_UNUSABLE",
        format!("disk copy {} can't be used: {cause}", path.display()),
        "The file is missing, damaged, or no raw, VHD or VHDX image; or the storage account can't take it.",
        "Bring the copy again, or remove the seed from the protected item; then everything is sent over the network.",
        true,
    )
}

/// Stored bytes do not verify.
pub fn points_damaged(folder: &Path, places: usize, points: usize) -> Finding {
    finding(
        "POINTS_DAMAGED",
        format!(
            "{places} places of the replica in {} do not verify; {points} recovery points show it",
            folder.display()
        ),
        "The storage lost or changed bytes after they were acknowledged.",
        "Check the storage. The ranges are sent again, so points from now on are whole; older ones that show the damage should not be recovered.",
        true,
    )
}

/// Objects of points are damaged.
pub fn points_unreadable(folder: &Path, points: usize, first: &str) -> Finding {
    finding(
        "POINTS_UNREADABLE",
        format!(
            "{points} recovery points of the replica in {} can't be read and are not offered, the first is {first:?}",
            folder.display()
        ),
        "The storage lost or changed bytes of the points' objects after they were acknowledged.",
        "Check the storage. Other points are whole; restore the objects under points/ from a copy, or remove them.",
        true,
    )
}
