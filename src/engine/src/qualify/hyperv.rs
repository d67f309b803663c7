//! What the `hyperv` driver takes for granted beside what all drivers do: methods of WMI, virtdisk, RCT. Each is documented, or
//! was seen by others on real hosts; none could be tried where this was written.

use super::assumptions::{Assumption, Kind, Step};

const WMI: &str = "Microsoft: Hyper-V WMI provider (V2)";
const VIRTDISK: &str = "Microsoft: Virtual Hard Disk API (virtdisk.h)";
const SEEN: &str = "seen in public programs that back up Hyper-V";

const fn call(
    id: &'static str,
    step: Step,
    call: &'static str,
    text: &'static str,
    source: &'static str,
) -> Assumption {
    Assumption {
        id,
        step,
        driver: Some(Kind::Hyperv),
        call,
        text,
        source,
        untried: None,
    }
}

const fn untried(id: &'static str, text: &'static str, why: &'static str) -> Assumption {
    Assumption {
        untried: Some(why),
        ..call(id, Step::Elsewhere, "", text, SEEN)
    }
}

const TWO_HOSTS: &str = "it takes a second host; migrate a protected test machine and look whether its next cycle is small";

/// In the order of their steps.
pub(super) const ASSUMPTIONS: &[Assumption] = &[
    call(
        "hyperv-rights",
        Step::Host,
        "",
        "the account may do all of it (run this as the account of the service)",
        "Microsoft: local group Hyper-V Administrators",
    ),
    call(
        "hyperv-cluster",
        Step::Host,
        "MSCluster_Cluster",
        "root\\MSCluster answers, or is not there on a host without a cluster",
        WMI,
    ),
    call(
        "hyperv-define",
        Step::Create,
        "DefineSystem",
        "DefineSystem takes settings as embedded XML (WMI DTD 2.0)",
        SEEN,
    ),
    call(
        "hyperv-resources",
        Step::Create,
        "AddResourceSettings",
        "AddResourceSettings takes controllers, drives and VHDX files as embedded XML",
        SEEN,
    ),
    call(
        "hyperv-quantities",
        Step::Create,
        "ModifyResourceSettings",
        "ModifyResourceSettings sets memory and processors",
        WMI,
    ),
    call(
        "hyperv-notes",
        Step::Create,
        "ModifySystemSettings",
        "ModifySystemSettings keeps Notes, by which the machine is recognised",
        WMI,
    ),
    call(
        "hyperv-events",
        Step::Create,
        "",
        "a new virtual machine is told by an event subscription",
        WMI,
    ),
    call(
        "hyperv-start",
        Step::Start,
        "RequestStateChange",
        "RequestStateChange 2 starts it",
        WMI,
    ),
    call(
        "hyperv-checkpoint",
        Step::Freeze,
        "CreateSnapshot",
        "CreateSnapshot 32768 makes a recovery checkpoint with settings as embedded XML",
        SEEN,
    ),
    call(
        "hyperv-checkpoint-name",
        Step::Freeze,
        "ModifySystemSettings",
        "a recovery checkpoint can be named",
        SEEN,
    ),
    call(
        "hyperv-open-parent",
        Step::Freeze,
        "the checkpoint has no disk",
        "OpenVirtualDisk opens the frozen parent while the virtual machine runs",
        SEEN,
    ),
    call(
        "hyperv-attach-parent",
        Step::Freeze,
        "attach a disk for reading",
        "AttachVirtualDisk READ_ONLY, NO_LOCAL_HOST, takes it while the virtual machine runs",
        SEEN,
    ),
    call(
        "hyperv-convert",
        Step::Freeze,
        "tracked are",
        "ConvertToReferencePoint makes a reference point of the checkpoint, and Hyper-V merges it",
        SEEN,
    ),
    call(
        "hyperv-changes",
        Step::Track,
        "ask for changes since",
        "QueryChangesVirtualDisk answers for the frozen parent",
        VIRTDISK,
    ),
    call(
        "hyperv-rct-ids",
        Step::Track,
        "",
        "an RCT id of a reference point is known at the next checkpoint",
        VIRTDISK,
    ),
    call(
        "hyperv-destroy-reference-point",
        Step::Track,
        "DestroyReferencePoint",
        "DestroyReferencePoint drops an old reference point",
        WMI,
    ),
    call(
        "hyperv-turn-off",
        Step::PowerOff,
        "RequestStateChange",
        "RequestStateChange 3 turns it off",
        WMI,
    ),
    call(
        "hyperv-reference-point-off",
        Step::FreezeOff,
        "CreateReferencePoint",
        "CreateReferencePoint 1 (RCT) works on a machine that is off",
        WMI,
    ),
    call(
        "hyperv-destroy",
        Step::Remove,
        "DestroySystem",
        "DestroySystem deletes it",
        WMI,
    ),
    untried(
        "hyperv-live-migration",
        "RCT ids outlive a live migration",
        TWO_HOSTS,
    ),
    untried(
        "hyperv-quick-migration",
        "RCT ids outlive a quick migration and a failed one",
        TWO_HOSTS,
    ),
    untried(
        "hyperv-cluster-move",
        "the owner of a machine may change in the middle of a cycle, and its shared volume is read redirected",
        "it takes a failover cluster; move a protected test machine while it replicates",
    ),
    untried(
        "hyperv-storage-migration",
        "RCT ids outlive a storage migration",
        "it takes a second volume; move the disks of a protected test machine and look at its next cycle",
    ),
    untried(
        "hyperv-crash",
        "RCT ids outlive a crash of the host, or RCT says that it can't tell",
        "this command does not crash the host",
    ),
    untried(
        "hyperv-revert",
        "RCT says that it can't tell after a checkpoint was applied or a disk resized",
        "the driver has no call that applies checkpoints or resizes disks",
    ),
    untried(
        "hyperv-no-space",
        "Hyper-V pauses the machine, and merges later, when its volume is full",
        "this command does not fill volumes",
    ),
    untried(
        "hyperv-other-products",
        "Hyper-V Replica and other backup products on the same machine are not disturbed",
        "it takes their presence; protect a machine that has them",
    ),
    untried(
        "hyperv-defender",
        "Defender lets the engine read disks at full speed",
        "it takes the host's own policy; compare the figures of this report with exclusions and without",
    ),
    untried(
        "hyperv-vmm",
        "Virtual Machine Manager answers its PowerShell module",
        "it takes a VMM server; register one as a fabric",
    ),
];
