//! A VM's part in a failback, and its power: stopped, shipped, started again.
//!
//! | wish | step | what the record tells then |
//! |---|---|---|
//! | runs, ships | round: freeze, compare, append, point | the instant that the replica has |
//! | kept | note, deallocate, a last round of what is off | `rest`: nothing of it is missing in the replica |
//! | runs again | forget `rest`, raise the fence, start | that it runs |
//! | runs, ships no more | snapshots go | nothing of the failback |
//!
//! Promises: "stopped" is said only when Azure says `deallocated` and the rest is in the store. A snapshot carries the recovery's id and the
//! number of its round; a round that was cut is never gone on with, its snapshots are removed by the next step, whoever takes it.

use std::sync::Arc;
use std::time::Duration;

use azure_compute::{InstanceView, Place, Power};

use super::blobs::{self, Reach};
use super::frozen::{self, Frozen};
use super::record::{self, AzureVm, WayBack};
use super::ship::{self, Ground};
use super::steps::{Next, Work};
use super::trouble::Trouble;
use super::wish::{Goal, Wish};
use crate::store::records::Stored;

/// From one round to the next while the VM runs. Of a managed disk Azure takes seven incremental snapshots in five minutes.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(300);
/// Premium page blobs: one snapshot in ten minutes.
const PREMIUM: Duration = Duration::from_secs(630);
/// Signatures live for hours, a round may take longer.
const RENEW: Duration = Duration::from_secs(600);
/// How often it is looked whether a VM that is kept is still off.
const LOOK: Duration = Duration::from_secs(30);

/// Whether the guest can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    On,
    Off,
}

/// Whether it runs behind the fence that it has to raise.
pub(super) fn is_on(vm: &AzureVm, takes: Option<u64>) -> bool {
    !vm.off && takes.is_none_or(|takes| vm.fenced >= takes)
}

/// As [`is_on`], and nothing is left of a failback.
pub(super) fn is_running(vm: &AzureVm, takes: Option<u64>) -> bool {
    is_on(vm, takes) && vm.back.is_none()
}

/// Whether it is off, and all that it wrote is in the replica; under this generation, if it ships.
pub(super) fn is_shipped(vm: &AzureVm, ships: u64) -> bool {
    let rest = vm.back.as_ref().filter(|back| back.rest);
    vm.off && rest.is_some_and(|back| ships == 0 || back.generation == ships)
}

pub(super) fn overtaken() -> Trouble {
    Trouble::passing(
        "Overtaken",
        "somebody newer takes care of the VM",
        "Another orchestrator goes on with it.",
    )
}

impl Work<'_> {
    /// One step of a VM that was made.
    pub(super) async fn live(
        &mut self,
        wish: &Wish,
        stored: Stored<AzureVm>,
    ) -> Result<Next, Trouble> {
        let vm = &stored.record;
        let epoch = wish.order.map_or(0, |(epoch, _)| epoch.0);
        if epoch < vm.epoch {
            return Err(overtaken());
        }
        if epoch > vm.epoch {
            let next = AzureVm {
                epoch,
                ..vm.clone()
            };
            record::keep(self.app, &stored, next).await?;
            return Ok(Next::Again);
        }
        match wish.goal {
            Goal::Runs(takes) if !is_on(vm, takes) => self.run_again(stored, takes).await,
            Goal::Left(takes) if !is_on(vm, Some(takes)) => {
                self.run_again(stored, Some(takes)).await
            }
            Goal::Runs(_) if wish.ships > 0 => self.ship(wish, stored, Guest::On).await,
            Goal::Runs(_) | Goal::Left(_) if vm.back.is_some() => self.end_back(stored).await,
            Goal::Left(_) => self.let_go(stored).await,
            Goal::Kept => self.keep_off(wish, stored).await,
            Goal::Runs(_) | Goal::Prepared | Goal::Absent => Ok(Next::Settled),
        }
    }

    /// Off, and what is not in the replica yet is shipped.
    async fn keep_off(&mut self, wish: &Wish, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        let vm = &stored.record;
        let plan = plan_of(vm)?;
        let seen = self.target.view(&plan.vm_id, &vm.id).await?;
        if !vm.off {
            // Better said while it runs than when nothing does.
            if let Some(seen) = seen.as_ref().filter(|_| wish.ships > 0) {
                frozen::check_disks(vm, &seen.disks)?;
            }
            let mut next = AzureVm {
                off: true,
                ..vm.clone()
            };
            if let Some(back) = &mut next.back {
                back.rest = false;
            }
            record::keep(self.app, &stored, next).await?;
            return Ok(Next::Again);
        }
        if seen.is_none_or(|seen| !seen.is_off()) {
            if is_shipped(vm, wish.ships) {
                tracing::warn!(vm = %vm.id, "somebody has started a VM that its failback keeps off; it is stopped again");
                let mut next = vm.clone();
                if let Some(back) = &mut next.back {
                    back.rest = false;
                }
                record::keep(self.app, &stored, next).await?;
                return Ok(Next::Again);
            }
            self.target.stop(&plan.vm_id, &vm.id, &self.cancel).await?;
            let seen = self.target.view(&plan.vm_id, &vm.id).await?;
            if seen.is_none_or(|seen| !seen.is_off()) {
                return Ok(Next::Later);
            }
        }
        if wish.ships > 0 && !is_shipped(vm, wish.ships) {
            return self.ship(wish, stored, Guest::Off).await;
        }
        if vm.back.as_ref().is_some_and(|back| back.has_snapshots) {
            self.sweep(vm, &[]).await?;
            let mut next = vm.clone();
            if let Some(back) = &mut next.back {
                back.has_snapshots = false;
                // What could be asked for changes since is gone.
                back.shipped = back.shipped.take().map(|shipped| record::Shipped {
                    round: 0,
                    snapshots: Vec::new(),
                    ..shipped
                });
            }
            record::keep(self.app, &stored, next).await?;
        }
        Ok(Next::In(LOOK))
    }

    /// Starts it again. That its rest was shipped is forgotten before it can write.
    async fn run_again(
        &self,
        stored: Stored<AzureVm>,
        takes: Option<u64>,
    ) -> Result<Next, Trouble> {
        let vm = &stored.record;
        if let Some(back) = vm.back.as_ref().filter(|back| back.rest) {
            let back = WayBack {
                rest: false,
                ..back.clone()
            };
            let next = AzureVm {
                back: Some(back),
                ..vm.clone()
            };
            record::keep(self.app, &stored, next).await?;
            return Ok(Next::Again);
        }
        if let Some(takes) = takes {
            let reach = Reach::of(self.app, vm).await?;
            let key = blobs::replica_key(vm)?;
            replica_store::take_over(&reach.store(), &key, replica_store::Generation(takes))
                .await?;
        }
        // Whoever was told to stop it meanwhile has changed the record.
        let stored = record::keep(self.app, &stored, vm.clone()).await?;
        let vm = &stored.record;
        let mut next = AzureVm {
            off: false,
            fenced: takes.unwrap_or(vm.fenced),
            ..vm.clone()
        };
        if vm.off {
            let plan = plan_of(vm)?;
            self.target.start(&plan.vm_id, &vm.id, &self.cancel).await?;
            let seen = self.target.view(&plan.vm_id, &vm.id).await?;
            if seen.is_none_or(|seen| seen.power != Power::Running) {
                return Ok(Next::Later);
            }
            next.started_unix_ms = self.app.now_ms();
        }
        record::keep(self.app, &stored, next).await?;
        Ok(Next::Again)
    }

    /// It ships no more: nothing of it is frozen.
    async fn end_back(&self, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        self.sweep(&stored.record, &[]).await?;
        let next = AzureVm {
            back: None,
            ..stored.record.clone()
        };
        record::keep(self.app, &stored, next).await?;
        Ok(Next::Again)
    }

    /// One round into the replica.
    async fn ship(
        &mut self,
        wish: &Wish,
        stored: Stored<AzureVm>,
        guest: Guest,
    ) -> Result<Next, Trouble> {
        let vm = &stored.record;
        let Some(back) = vm
            .back
            .as_ref()
            .filter(|back| back.generation == wish.ships)
        else {
            // What was shipped under another generation says nothing of today's replica.
            self.sweep(vm, &[]).await?;
            let back = WayBack {
                generation: wish.ships,
                round: vm.back.as_ref().map_or(0, |back| back.round),
                ..WayBack::default()
            };
            let next = AzureVm {
                back: Some(back),
                ..vm.clone()
            };
            record::keep(self.app, &stored, next).await?;
            return Ok(Next::Again);
        };
        let turn = match guest {
            Guest::On => tokio::select! {
                () = self.cancel.cancelled() => return Err(Trouble::interrupted()),
                turn = Arc::clone(&self.turns.rounds).acquire_owned() => turn.ok(),
            },
            // The rest of one that is off waits for nobody.
            Guest::Off => None,
        };
        self.sweep(vm, &frozen::names(vm, back)).await?;
        let begun = WayBack {
            round: back.round + 1,
            has_snapshots: true,
            ..back.clone()
        };
        let next = AzureVm {
            back: Some(begun),
            ..vm.clone()
        };
        let stored = record::keep(self.app, &stored, next).await?;
        let shipped = self.round(&stored.record, guest).await;
        drop(turn);
        let mut next = stored.record.clone();
        let round = shipped?;
        if let Some(back) = &mut next.back {
            back.shipped = Some(round.shipped);
            back.sent_bytes += round.sent_bytes;
            back.rest = round.is_rest;
        }
        let stored = record::keep(self.app, &stored, next).await?;
        Ok(match guest {
            Guest::Off => Next::Again,
            Guest::On => Next::In(self.interval(wish, &stored.record).await?),
        })
    }

    async fn round(&self, vm: &AzureVm, guest: Guest) -> Result<Round, Trouble> {
        let back = vm.back.as_ref().ok_or_else(overtaken)?;
        let before = self.look(vm).await?;
        frozen::check_disks(vm, &before.disks)?;
        let reach = Reach::of(self.app, vm).await?;
        // Opened first: where the store can't be reached, nothing is frozen for nothing. What somebody else appends meanwhile lies at
        // the position that ours is to have.
        let ground = Ground::open(self.app, &reach, vm, back.generation).await?;
        let now_ms = self.app.now_ms();
        let frozen = Frozen::take(self, &reach, vm, guest).await?;
        let shipped = async {
            // Who froze later has raised the round first, and is newer than we are.
            let now = record::get(self.app, &vm.id).await?;
            let now = now.and_then(|now| now.record.back);
            if now.is_none_or(|now| (now.generation, now.round) != (back.generation, back.round)) {
                return Err(overtaken());
            }
            ship::ship(&ground, &frozen, vm, back, now_ms).await
        };
        // Requests of Compute are not cut, so that none of them leaves something behind that nobody knows.
        let shipped = tokio::select! {
            () = self.cancel.cancelled() => Err(Trouble::interrupted()),
            () = self.renew(&reach, vm) => Err(Trouble::interrupted()),
            shipped = shipped => shipped,
        };
        frozen.close(self, vm).await;
        let (position, point_ms, sent_bytes, replica) = shipped?;
        // It may have been started behind our back while this was read: then it is no rest, whatever it is now.
        let is_rest = match guest {
            Guest::On => false,
            Guest::Off => {
                let after = self.look(vm).await?;
                after.is_off() && before.is_off() && after.changed == before.changed
            }
        };
        // A process that dies here finds that a round was begun and not noted: it compares.
        frozen.replace(back).await?;
        let shipped = record::Shipped {
            replica,
            position,
            point_ms,
            round: back.round,
            snapshots: frozen.snapshots(),
        };
        Ok(Round {
            shipped,
            sent_bytes,
            is_rest,
        })
    }

    async fn look(&self, vm: &AzureVm) -> Result<InstanceView, Trouble> {
        let seen = self.target.view(&plan_of(vm)?.vm_id, &vm.id).await?;
        seen.ok_or_else(|| {
            Trouble::lasting(
                "RecoveredVirtualMachineGone",
                "the VM in Azure is gone",
                "Look who removed it; its disks may still be there. Or cancel the failback.",
            )
        })
    }

    /// Renews signatures for as long as somebody works with them. Never ends.
    async fn renew(&self, reach: &Reach, vm: &AzureVm) {
        loop {
            tokio::time::sleep(RENEW).await;
            if let Err(trouble) = reach.renew(self.app, vm).await {
                tracing::warn!(vm = %vm.id, trouble = trouble.text, "the way to the storage account was not renewed; it is tried again");
            }
        }
    }

    /// The policy's interval, within what snapshots bear and downtime allows.
    async fn interval(&self, wish: &Wish, vm: &AzureVm) -> Result<Duration, Trouble> {
        let policy = blobs::policy(self.app, &wish.item).await?;
        let seconds = policy.map_or(0, |policy| policy.details.replication_interval);
        let interval = Duration::from_secs(seconds.into()).clamp(SHORTEST, LONGEST);
        let is_premium =
            frozen::is_of_blobs(vm) && Reach::of(self.app, vm).await?.base.is_premium();
        Ok(if is_premium { PREMIUM } else { interval })
    }

    /// Removes what failbacks have frozen of a VM and nobody needs any more.
    pub(super) async fn sweep(&self, vm: &AzureVm, keep: &[String]) -> Result<(), Trouble> {
        if vm.back.as_ref().is_none_or(|back| !back.has_snapshots) {
            return Ok(());
        }
        if frozen::is_of_blobs(vm) {
            let reach = Reach::of(self.app, vm).await?;
            return frozen::sweep_blobs(&reach, vm, keep).await;
        }
        self.sweep_managed(vm, keep).await
    }

    /// Snapshots of managed disks, whether or not the record knows of any. Those of page blobs go with the blobs.
    pub(super) async fn sweep_managed(&self, vm: &AzureVm, keep: &[String]) -> Result<(), Trouble> {
        let place = place_of(vm)?;
        for id in self.target.snapshots(place, &vm.id).await? {
            let name = id.rsplit('/').next().unwrap_or_default();
            if !keep.iter().any(|kept| kept.eq_ignore_ascii_case(name)) {
                self.target
                    .remove_snapshot(&id, &vm.id, &self.cancel)
                    .await?;
            }
        }
        Ok(())
    }
}

/// What became of a round.
struct Round {
    shipped: record::Shipped,
    sent_bytes: u64,
    /// The VM was off from before it was frozen until it was shipped.
    is_rest: bool,
}

fn lost(what: &str) -> Trouble {
    Trouble::lasting(
        "AzureTargetNotPossible",
        format!("the record of the VM has lost {what}"),
        "Restore the orchestrator's data folder.",
    )
}

/// What was made.
pub(super) fn plan_of(vm: &AzureVm) -> Result<&azure_compute::TargetPlan, Trouble> {
    vm.plan.as_ref().ok_or_else(|| lost("its plan"))
}

/// Where it was made.
pub(super) fn place_of(vm: &AzureVm) -> Result<&Place, Trouble> {
    vm.place.as_ref().ok_or_else(|| lost("its place"))
}
