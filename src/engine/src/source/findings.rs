//! What a person must know of orders and of what stands in their way.

use std::time::Duration;

use engine_protocol::v1::Finding;

use crate::finding::finding;

/// The guest does not end.
pub fn shut_down_failed(name: &str, patience: Duration) -> Finding {
    finding(
        "SHUT_DOWN_FAILED",
        format!(
            "virtual machine {name:?} was asked to shut down for a failover and still runs after {} s",
            patience.as_secs()
        ),
        "The guest ignores the power button, waits for a person, installs updates, or hangs.",
        "Shut it down inside of the guest. It is asked again for as long as the failover waits, and never turned off by force: cancel the failover to let it run on.",
        true,
    )
}

/// The order can't be read.
pub fn order_unknown(name: &str) -> Finding {
    finding(
        "ORDER_UNKNOWN",
        format!(
            "an order of what virtual machine {name:?} may do is of a kind that this engine does not know; nothing of it is obeyed"
        ),
        "The orchestrator is of a later version than the engine.",
        "Bring the engine to the orchestrator's version.",
        true,
    )
}

/// Two orders under one number.
pub fn order_contradiction(name: &str, epoch: u64) -> Finding {
    finding(
        "ORDER_CONTRADICTION",
        format!(
            "order {epoch} of what virtual machine {name:?} may do came again with another content; the first one stays in force"
        ),
        "The orchestrator's database was restored from an older copy, or two orchestrators that know nothing of each other give orders.",
        "Stop all orchestrators but one. Then disable and enable replication, which draws new numbers.",
        true,
    )
}

/// An order and what it belongs to do not fit.
pub fn order_misfit(name: &str, cause: &str) -> Finding {
    finding(
        "ORDER_MISFIT",
        format!("virtual machine {name:?} is not replicated as ordered: {cause}"),
        "Orchestrator and engine are of different versions, or the protected item is damaged.",
        "Bring orchestrator and engine to the same version. If it stays, disable and enable replication.",
        true,
    )
}

/// What is known of orders can't be read or written.
pub fn guard_unusable(name: &str, cause: &str) -> Finding {
    finding(
        "GUARD_UNUSABLE",
        format!(
            "what was ordered last of virtual machine {name:?} can't be read or kept, so no order is obeyed: {cause}"
        ),
        "The engine's data folder is full, read-only or damaged.",
        "Make the data folder usable. If its guards are lost, make sure that no recovered copy of the virtual machine runs before the damaged file is removed.",
        true,
    )
}

/// Nobody says that the VM may be started.
pub fn start_withheld(name: &str, cause: &str) -> Finding {
    finding(
        "START_WITHHELD",
        format!("virtual machine {name:?} is not started: {cause}"),
        "The storage account can't be reached, or a recovered copy of the virtual machine has been started.",
        "Bring back the connection to the orchestrator or to the storage account; the engine tries again by itself. Do not start the virtual machine by hand while a copy may run.",
        true,
    )
}

/// A VM that shall be off runs, and is being stopped.
pub fn stopping(name: &str) -> Finding {
    finding(
        "STOPPING_HELD_VM",
        format!("virtual machine {name:?} must stay off and is running; it is being stopped"),
        "It ran when it was failed over, or was started by hand since.",
        "None. To run it again at this site, cancel the failover or fail back.",
        false,
    )
}

/// Disks of the recovered VM that a failback does not bring.
pub fn left_out(name: &str, disks: &[String]) -> Finding {
    finding(
        "FAILBACK_DISKS_LEFT_OUT",
        format!(
            "what the recovered copy of virtual machine {name:?} writes to {} is not brought back: this is not replicated any more",
            disks.join(", ")
        ),
        "The disks were excluded after the recovery point was taken that the virtual machine was made from.",
        "Copy what is needed of them before the failback is committed: then the recovered virtual machine goes. Or cancel the failback.",
        false,
    )
}

/// A failback was broken off in the middle.
pub fn half_received(name: &str) -> Finding {
    finding(
        "FAILBACK_HALF_RECEIVED",
        format!(
            "virtual machine {name:?} is not started: its disks hold a part of what its recovered copy wrote, and are of no point in time"
        ),
        "A failback was cancelled, or failed, while it wrote to the disks.",
        "Fail back again, to the end. The recovered virtual machine has everything.",
        true,
    )
}

/// The host did not do what the order wants.
pub fn power_failed(name: &str, doing: &str, cause: &str) -> Finding {
    finding(
        "POWER_FAILED",
        format!("virtual machine {name:?} could not be {doing}, as ordered: {cause}"),
        "The hypervisor does not answer, lacks memory, or refuses.",
        "See the engine's log on the host. The engine tries again by itself.",
        true,
    )
}
