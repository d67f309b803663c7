//! From a wish to a VM in Azure and back to nothing, one stored step at a time.
//!
//! | stage | step | what the record tells then |
//! |---|---|---|
//! | none | note | that there may be something to remove |
//! | `Noted` | claim, copy a slice | which blobs, how far |
//! | `Materialised` | plan | every resource, before any of them is made |
//! | `Planned` | raise the store's fence | that no writer of before writes any more |
//! | `Fenced` | make, then tidy what managed disks no longer need | that it runs |
//! | `Made` | let go, when it is left for good | that nothing of it is ours |
//!
//! Each step may be repeated, whatever became of it: it looks, or it writes the same again.

use std::sync::Arc;
use std::time::Duration;

use azure_compute::{Severity, Target};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::back;
use super::blobs::{self, Reach};
use super::materialise::{self, Claimed};
use super::record::{self, AzureVm, ReplicaPlace, Stage};
use super::spec::{self, NoSpec, Wanted};
use super::trouble::Trouble;
use super::wish::{Drill, Goal, Wish};
use crate::app::App;
use crate::store::records::{self, Stored};
use crate::store::{Change, Expect};

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another step.
    Again,
    /// Nothing: it is as it shall be.
    Settled,
    /// Something else has to go first.
    Later,
    /// The same again after a while.
    In(Duration),
}

/// What is worked with, for as long as one worker lives.
pub(super) struct Work<'a> {
    pub(super) app: &'a App,
    pub(super) target: &'a Target,
    pub(super) cancel: CancellationToken,
    claimed: Option<Claimed>,
    pub(super) turns: Turns,
    turn: Option<OwnedSemaphorePermit>,
}

/// Who moves bytes through this process takes a turn. Nothing else waits for one, removal least of all.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    /// Recovery points that become page blobs.
    pub(super) copies: Arc<Semaphore>,
    /// Rounds of failbacks whose VMs run: turns of their own, as they last for hours, and a failover can't wait.
    pub(super) rounds: Arc<Semaphore>,
}

impl Turns {
    /// So many of each at once.
    pub(super) fn new(side_by_side: usize) -> Self {
        Self {
            copies: Arc::new(Semaphore::new(side_by_side)),
            rounds: Arc::new(Semaphore::new(side_by_side)),
        }
    }
}

/// Whether a VM is where its wish leads, and nothing has to be looked after.
pub(super) fn is_settled(wish: &Wish, vm: Option<&AzureVm>) -> bool {
    let stage = vm.map(|vm| vm.stage);
    match (wish.goal, vm) {
        (Goal::Absent, vm) => vm.is_none(),
        (_, Some(vm)) if vm.stage == Stage::Left => true,
        // What is not made can't be kept; what is kept is looked after, so that nobody starts it.
        (Goal::Kept, _) => stage < Some(Stage::Made),
        (Goal::Prepared, _) => stage >= Some(Stage::Planned),
        (Goal::Runs(takes), Some(vm)) => {
            vm.stage >= Stage::Made && wish.ships == 0 && back::is_running(vm, takes)
        }
        (Goal::Runs(_), None) | (Goal::Left(_), _) => false,
    }
}

// === impl Work ===

impl<'a> Work<'a> {
    pub(super) fn new(
        app: &'a App,
        target: &'a Target,
        turns: Turns,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            app,
            target,
            cancel,
            claimed: None,
            turns,
            turn: None,
        }
    }

    /// One step towards a wish.
    pub(super) async fn towards(&mut self, wish: &Wish) -> Result<Next, Trouble> {
        let stored = record::get(self.app, &wish.id).await?;
        if is_settled(wish, stored.as_ref().map(|stored| &stored.record)) {
            return Ok(Next::Settled);
        }
        if self.cancel.is_cancelled() {
            return Err(Trouble::interrupted());
        }
        let Some(stored) = stored else {
            return self.note(wish).await;
        };
        match stored.record.stage {
            Stage::Noted => self.copy(stored).await,
            Stage::Materialised => self.plan(wish, stored).await,
            Stage::Planned => self.fence(wish, stored).await,
            Stage::Fenced => self.make(stored).await,
            Stage::Made | Stage::Left => self.live(wish, stored).await,
        }
    }

    async fn note(&self, wish: &Wish) -> Result<Next, Trouble> {
        let item = wish.item.id.to_ascii_lowercase();
        // A VM of another point has the same name: it goes first.
        let others = record::all(self.app).await?;
        let in_the_way = |vm: &AzureVm| wish.drill.is_none() && vm.stands_for(&wish.item);
        if others.iter().any(in_the_way) {
            return Ok(Next::Later);
        }
        let vm = AzureVm {
            id: wish.id.clone(),
            item,
            correlation_id: wish.item.correlation_id.clone(),
            drill: wish.drill.as_ref().map(|drill| drill.job.clone()),
            point_id: wish.point_id.clone(),
            point_ms: 0,
            replica: ReplicaPlace::of(&wish.item),
            claims: 0,
            blobs: Vec::new(),
            place: None,
            plan: None,
            stage: Stage::Noted,
            started_unix_ms: 0,
            epoch: 0,
            fenced: 0,
            off: false,
            back: None,
        };
        let change = records::put(record::key(&vm.id), &vm, Expect::Absent)?;
        self.app.store.apply(vec![change]).await?;
        Ok(Next::Again)
    }

    async fn copy(&mut self, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        let Some(claimed) = &self.claimed else {
            self.turn = tokio::select! {
                () = self.cancel.cancelled() => return Err(Trouble::interrupted()),
                turn = Arc::clone(&self.turns.copies).acquire_owned() => turn.ok(),
            };
            let (claimed, _) = materialise::claim(self.app, stored).await?;
            self.claimed = Some(claimed);
            return Ok(Next::Again);
        };
        if claimed
            .slice(self.app, &stored, &self.cancel)
            .await?
            .is_none()
        {
            let stage = Stage::Materialised;
            let next = AzureVm {
                stage,
                ..stored.record.clone()
            };
            record::keep(self.app, &stored, next).await?;
            self.claimed = None;
            self.turn = None;
        }
        Ok(Next::Again)
    }

    async fn plan(&self, wish: &Wish, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        let wanted = Wanted {
            id: &wish.id,
            item: &wish.item,
            drill: wish.drill.as_ref(),
            made: Some(&stored.record),
        };
        let spec = match spec::build(self.app, &wanted).await {
            Ok(spec) => spec,
            Err(NoSpec::Store(error)) => return Err(error.into()),
            Err(NoSpec::Problem(problem)) => {
                return Err(Trouble::lasting(
                    "AzureTargetNotPossible",
                    format!(
                        "{}: {}",
                        problem.property,
                        problem.text.trim_end_matches('.')
                    ),
                    "Change the setting, then start the failover again.",
                ));
            }
        };
        let plan = self.target.plan(&spec).await?;
        let errors: Vec<String> = plan
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| format!("{}: {finding}", spec::property(finding)))
            .collect();
        if !errors.is_empty() {
            return Err(Trouble::lasting(
                "AzureTargetNotPossible",
                errors.join(". "),
                "Change the named settings, then start the failover again.",
            ));
        }
        let next = AzureVm {
            place: Some(spec.place),
            plan: Some(plan),
            stage: Stage::Planned,
            ..stored.record.clone()
        };
        record::keep(self.app, &stored, next).await?;
        Ok(Next::Again)
    }

    /// From here on nobody older writes to the replica: a source that comes back finds the fence and stays off. A drill raises none.
    async fn fence(&self, wish: &Wish, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        let takes = match wish.goal {
            Goal::Runs(takes) => takes,
            Goal::Left(takes) => Some(takes),
            Goal::Prepared | Goal::Absent | Goal::Kept => return Ok(Next::Settled),
        };
        if let Some(takes) = takes {
            let reach = Reach::of(self.app, &stored.record).await?;
            let key = blobs::replica_key(&stored.record)?;
            replica_store::take_over(&reach.store(), &key, replica_store::Generation(takes))
                .await?;
        }
        let next = AzureVm {
            stage: Stage::Fenced,
            fenced: takes.unwrap_or_default(),
            ..stored.record.clone()
        };
        record::keep(self.app, &stored, next).await?;
        Ok(Next::Again)
    }

    async fn make(&self, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        let Some(plan) = &stored.record.plan else {
            return Err(Trouble::lasting(
                "AzureTargetNotPossible",
                "the record of the VM has lost its plan",
                "Take the failover back and start it again.",
            ));
        };
        self.target.make(plan, &self.cancel).await?;
        self.tidy(&stored.record).await?;
        let next = AzureVm {
            stage: Stage::Made,
            started_unix_ms: self.app.now_ms(),
            ..stored.record.clone()
        };
        record::keep(self.app, &stored, next).await?;
        Ok(Next::Again)
    }

    /// What a VM that stands no longer needs of us: the point, and page blobs that managed disks were made from.
    async fn tidy(&self, vm: &AzureVm) -> Result<(), Trouble> {
        let reach = Reach::of(self.app, vm).await?;
        if vm.plan.as_ref().is_some_and(|plan| plan.blobs.is_empty()) {
            blobs::remove(&reach, vm).await?;
        }
        blobs::let_point_go(self.app, &reach, vm).await
    }

    /// The VM is its owner's. The record stays until its order does, so that a restart doesn't make another one.
    pub(super) async fn let_go(&self, stored: Stored<AzureVm>) -> Result<Next, Trouble> {
        self.tidy(&stored.record).await?;
        let next = AzureVm {
            stage: Stage::Left,
            ..stored.record.clone()
        };
        record::keep(self.app, &stored, next).await?;
        Ok(Next::Settled)
    }

    /// Takes a VM away with everything that was made for it, and only that.
    pub(super) async fn remove(&self, vm_id: &str) -> Result<Next, Trouble> {
        let Some(stored) = record::get(self.app, vm_id).await? else {
            return Ok(Next::Settled);
        };
        let vm = &stored.record;
        if vm.stage != Stage::Left {
            if let Some(place) = &vm.place {
                self.sweep_managed(vm, &[]).await?;
                self.target.remove(place, &vm.id, &self.cancel).await?;
                if let Some(job) = self.last_of_drill(vm).await? {
                    let drill = Drill {
                        job,
                        network_id: None,
                    };
                    let owner = spec::network_owner(&drill);
                    self.target.remove(place, &owner, &self.cancel).await?;
                }
            }
            let reach = Reach::of(self.app, vm).await?;
            blobs::remove(&reach, vm).await?;
            blobs::let_point_go(self.app, &reach, vm).await?;
        }
        let change = Change::Delete {
            key: stored.key.clone(),
            expect: Expect::Etag(stored.etag),
        };
        self.app.store.apply(vec![change]).await?;
        tracing::info!(vm = %vm.id, "a VM in Azure is gone, with its disks and addresses");
        Ok(Next::Settled)
    }

    /// The drill of a VM when no other of its VMs is left, which shared its network.
    async fn last_of_drill(&self, vm: &AzureVm) -> Result<Option<String>, Trouble> {
        let Some(drill) = &vm.drill else {
            return Ok(None);
        };
        let others = record::all(self.app).await?;
        let is_last = others
            .iter()
            .all(|other| other.id == vm.id || other.drill.as_ref() != Some(drill));
        Ok(is_last.then(|| drill.clone()))
    }
}
