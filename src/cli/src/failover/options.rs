//! The command line of `failover`.

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::confirm::Confirm;
use crate::lookup::{Vault, text};
use crate::plan_part::Part;
use crate::show;

/// Steps of failover and failback.
#[derive(Subcommand)]
pub enum Failover {
    /// Planned failover: shut the source down, send its last changes, start the recovered VM. Nothing is lost
    Planned(Planned),
    /// Unplanned failover: start the recovered VM from what is in the store; for a source that is lost
    Unplanned(Unplanned),
    /// Change recovery point: start the recovered VM from another point. Before commit only
    ChangePoint(ChangePoint),
    /// Commit a failover or a failback: the way back to before it goes
    Commit(Commit),
    /// Take back a failover or a failback that is not committed
    #[command(visible_alias = "undo")]
    Cancel(Simple),
    /// Failback: bring the VM back to its host with what changed since the failover
    Back(Back),
    /// Complete a failback that waits after its data was synchronised: a short rest, then the VM runs at its host
    Complete(Simple),
    /// Protect again after a committed failback (the portal's "Reverse replicate")
    Reprotect(Simple),
    /// Stay at the recovery side: the recovered VM is kept, protection ends
    CompleteMigration(CompleteMigration),
}

/// A protected VM or a plan.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Protected VM: VM name, item name or id
    pub(super) item: Option<String>,
    /// Recovery plan (name or id) in place of a VM: all of its VMs, group by group
    #[arg(long)]
    pub(super) plan: Option<String>,
}

/// How the job is waited for.
#[derive(Args)]
pub struct Waiting {
    /// Print the job's id and don't wait for its end
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Give up waiting after so many minutes; the job itself goes on
    #[arg(long, default_value_t = 1440)]
    pub(super) timeout_minutes: u64,
}

/// Options of `planned`.
#[derive(Args)]
pub struct Planned {
    #[command(flatten)]
    pub(super) which: Which,
    #[command(flatten)]
    pub(super) part: Part,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// Options of `unplanned`.
#[derive(Args)]
pub struct Unplanned {
    #[command(flatten)]
    pub(super) which: Which,
    #[command(flatten)]
    pub(super) part: Part,
    /// Recovery point: id or name, or latest, latest-processed, latest-app-consistent, latest-crash-consistent. The latest
    /// without it
    #[arg(long, conflicts_with = "at")]
    pub(super) point: Option<String>,
    /// The newest recovery point that is no younger than this time, such as 2031-03-04T05:06:07Z. For a VM only
    #[arg(long, conflicts_with = "plan")]
    pub(super) at: Option<String>,
    /// Which points VMs of a plan go to that share their points (multi_vm_group_name)
    #[arg(long, value_enum, requires = "plan", conflicts_with = "item")]
    pub(super) multi_vm_sync_point: Option<SyncPoint>,
    /// Try to shut the source down and to send its last changes first; go on when that fails
    #[arg(long)]
    pub(super) shut_down_source: bool,
    #[command(flatten)]
    pub(super) confirm: Confirm,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// Points of VMs that share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyncPoint {
    /// Each its own, of the kind that --point names
    PerVm,
    /// The newest one that all of a group have in common
    Shared,
}

/// Options of `change-point`.
#[derive(Args)]
pub struct ChangePoint {
    /// Protected VM: VM name, item name or id
    pub(super) item: String,
    /// Recovery point: id or name, or latest, latest-processed, latest-app-consistent, latest-crash-consistent
    #[arg(required_unless_present = "at", conflicts_with = "at")]
    pub(super) point: Option<String>,
    /// The newest recovery point that is no younger than this time, such as 2031-03-04T05:06:07Z
    #[arg(long)]
    pub(super) at: Option<String>,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// Options of `commit`.
#[derive(Args)]
pub struct Commit {
    #[command(flatten)]
    pub(super) which: Which,
    #[command(flatten)]
    pub(super) confirm: Confirm,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// Options of steps without any of their own.
#[derive(Args)]
pub struct Simple {
    #[command(flatten)]
    pub(super) which: Which,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// Options of `back`.
#[derive(Args)]
pub struct Back {
    #[command(flatten)]
    pub(super) which: Which,
    /// How data comes back
    #[arg(long, value_enum, default_value_t = Data::MinimiseDowntime)]
    pub(super) data: Data,
    /// Make again what is gone of the VM on its host: the VM itself, or disks of it. Without it such a failback is refused
    #[arg(long, visible_alias = "create-vm")]
    pub(super) create_vm_if_missing: bool,
    /// Another host of the site (name or id) that has the VM from then on; the host that it came from must not be there any
    /// more, and is kept from starting the VM when it returns. For a VM only
    #[arg(
        long,
        visible_alias = "to-host",
        requires = "create_vm_if_missing",
        conflicts_with = "plan"
    )]
    pub(super) host: Option<String>,
    #[command(flatten)]
    pub(super) confirm: Confirm,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// How a failback moves data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Data {
    /// Synchronise while the recovered VM runs, wait for `failover complete`, then a short rest
    MinimiseDowntime,
    /// Shut the recovered VM down first, then bring everything
    FullDownload,
}

/// Options of `complete-migration`.
#[derive(Args)]
pub struct CompleteMigration {
    /// Protected VM: VM name, item name or id
    pub(super) item: String,
    #[command(flatten)]
    pub(super) confirm: Confirm,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

// === impl Which ===

impl Which {
    /// What is named.
    pub(super) async fn find(&self, vault: &Vault) -> Result<Value> {
        match (&self.item, &self.plan) {
            (Some(item), _) => vault.item(item).await,
            (None, Some(plan)) => vault.plan(plan).await,
            (None, None) => bail!("a protected VM or --plan is needed"),
        }
    }

    /// Whether it is a plan.
    pub(super) fn is_plan(&self) -> bool {
        self.plan.is_some()
    }

    /// What a part of it is called in a sentence.
    pub(super) fn part_text(&self, target: &Value, part: &Part) -> String {
        if part.is_whole() {
            self.text(target)
        } else {
            format!("{} in plan {}", part.text(), named(target))
        }
    }

    /// What it is called in a sentence.
    pub(super) fn text(&self, target: &Value) -> String {
        let name = named(target);
        if self.is_plan() {
            format!("all VMs of plan {name}")
        } else {
            name
        }
    }
}

/// Name for people.
pub(super) fn named(target: &Value) -> String {
    match show::property(target, "friendlyName") {
        none if none.is_empty() => text(target, "/name").to_owned(),
        name => name,
    }
}
