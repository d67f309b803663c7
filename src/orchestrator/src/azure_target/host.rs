//! The recovery host that Azure is: reads its orders, has workers carry them out, reports.
//!
//! One worker for each VM, which ends when there is nothing to do; a change of its orders cuts it and begins another. Nothing is
//! remembered but what is in the store: after a restart the same orders and records lead to the same workers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use azure_compute::Target;
use engine_protocol::orders;
use engine_protocol::v1::{self, recovered_vm_status::State};
use protection::life::{RecoveryOrder, RecoverySaid};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::ENGINE;
use super::back;
use super::record::{self, AzureVm, Stage};
use super::steps::{self, Next, Turns, Work};
use super::trouble::Trouble;
use super::wish::{self, Goal, Wish};
use crate::app::App;
use crate::gateway::desired;
use crate::gateway::reports::Intake;
use crate::store::StoreError;
use crate::store::records::{self, Item};

/// How often it is looked anyway.
const RECHECK: Duration = Duration::from_secs(1);
/// How often it is reported that nothing is new.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After a step that failed; what needs a person is tried as well, because the person tells nobody.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_FINAL: Duration = Duration::from_secs(60);
/// VMs that are copied at once: their disks pass through this process.
const SIDE_BY_SIDE: usize = 4;

/// What a worker is to do.
#[derive(Debug, Clone)]
pub(super) enum Task {
    Towards(Box<Wish>),
    Remove,
}

impl Task {
    /// Whether a worker of this one may go on with another: only what is aimed at counts.
    fn is_same(&self, other: &Task) -> bool {
        match (self, other) {
            (Task::Remove, Task::Remove) => true,
            (Task::Towards(one), Task::Towards(other)) => {
                one.goal == other.goal
                    && one.point_id == other.point_id
                    && one.ships == other.ships
                    && one.order == other.order
            }
            _ => false,
        }
    }
}

struct Worker {
    task: Task,
    cancel: CancellationToken,
    handle: Option<JoinHandle<Result<Next, Trouble>>>,
    trouble: Option<Trouble>,
    /// Since when it gets no further, and how far it was.
    stuck: Option<(Instant, Option<(Stage, u64)>)>,
    not_before: Instant,
}

/// See the module.
pub(super) struct Host {
    app: Arc<App>,
    target: Arc<Target>,
    intake: Intake,
    workers: BTreeMap<String, Worker>,
    turns: Turns,
    reported: Option<(v1::EngineReport, Instant)>,
}

/// Makes Azure known as a host that has seen nothing yet: jobs that begin before its first report wait for it.
pub fn announce(app: &App) {
    let report = v1::EngineReport {
        host: Some(identity()),
        ..v1::EngineReport::default()
    };
    app.fleet.observe(ENGINE, Arc::new(report), app.now_ms());
}

/// Runs until it is stopped; workers are cut then, and go on at the next start.
pub async fn run(app: Arc<App>, target: Arc<Target>, stop: CancellationToken) {
    let mut host = Host::new(app, target);
    let mut bell = host.app.listen();
    loop {
        // What rings from here on is news; our own report is not.
        if let Err(error) = host.round().await {
            warn!(
                error = &error as &dyn std::error::Error,
                "the orders for Azure can't be read; trying again"
            );
        }
        bell.borrow_and_update();
        let seen = host.app.revision();
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    host.end().await;
                    return;
                }
                () = tokio::time::sleep(RECHECK) => break,
                rung = bell.changed() => {
                    // Reports of engines ring several times a second; orders follow from the store.
                    if rung.is_err() || host.app.revision() != seen || host.has_ended() {
                        break;
                    }
                }
            }
        }
    }
}

fn identity() -> v1::Host {
    v1::Host {
        name: arm_model::MICROSOFT_AZURE.to_owned(),
        operating_system: arm_model::MICROSOFT_AZURE.to_owned(),
        hypervisor: "Azure".to_owned(),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        recovery_role: true,
        recovery_generations: vec![1, 2],
        source_role: Some(false),
        ..v1::Host::default()
    }
}

// === impl Host ===

impl Host {
    pub(super) fn new(app: Arc<App>, target: Arc<Target>) -> Self {
        Self {
            intake: Intake::new(ENGINE),
            workers: BTreeMap::new(),
            turns: Turns::new(SIDE_BY_SIDE),
            reported: None,
            target,
            app,
        }
    }

    /// Looks at orders and records, has workers where there is something to do, and reports.
    async fn round(&mut self) -> Result<(), StoreError> {
        self.collect().await;
        // In this order: what is reported as observed was seen by what is read after it.
        let generation = desired::refresh(&self.app, ENGINE).await?.generation;
        let wishes: BTreeMap<String, Wish> = wish::all(&self.app)
            .await?
            .into_iter()
            .map(|wish| (wish.id.clone(), wish))
            .collect();
        let vms: BTreeMap<String, AzureVm> = record::all(&self.app)
            .await?
            .into_iter()
            .map(|vm| (vm.id.clone(), vm))
            .collect();
        let ids: BTreeSet<String> = wishes.keys().chain(vms.keys()).cloned().collect();
        self.judge(&vms);
        for id in &ids {
            let task = self.task(wishes.get(id), vms.get(id)).await?;
            self.tend(id, task);
        }
        self.workers.retain(|id, worker| {
            let is_known = ids.contains(id);
            if !is_known {
                // It is about to note a VM that nobody wishes any more.
                worker.cancel.cancel();
            }
            let stays = is_known || worker.handle.is_some();
            if !stays {
                debug!(vm = %id, "nothing is left to be done for a VM in Azure");
            }
            stays
        });
        let statuses = ids
            .iter()
            .filter_map(|id| self.status(wishes.get(id), vms.get(id), &vms));
        let report = v1::EngineReport {
            observed_generation: generation,
            host: Some(identity()),
            recovered_vms: statuses.collect(),
            ..v1::EngineReport::default()
        };
        let is_news = self
            .reported
            .as_ref()
            .is_none_or(|(last, at)| *last != report || at.elapsed() > HEARTBEAT);
        if is_news {
            self.intake.take(&self.app, report.clone()).await?;
            self.reported = Some((report, Instant::now()));
        }
        Ok(())
    }

    /// What passes by itself, and doesn't for as long as a VM may take to boot, is told as a failure: jobs wait no longer.
    fn judge(&mut self, vms: &BTreeMap<String, AzureVm>) {
        let patience = u64::try_from(self.app.patience.boot_ms).unwrap_or_default();
        for (id, worker) in &mut self.workers {
            let Some(trouble) = &mut worker.trouble else {
                worker.stuck = None;
                continue;
            };
            let now = vms.get(id).map(|vm| (vm.stage, vm.progress().0));
            match &worker.stuck {
                Some((since, at)) if *at == now => {
                    trouble.is_final |= since.elapsed() > Duration::from_millis(patience);
                }
                _ => worker.stuck = Some((Instant::now(), now)),
            }
        }
    }

    /// What is to be done for a VM, if anything is.
    pub(super) async fn task(
        &self,
        wish: Option<&Wish>,
        vm: Option<&AzureVm>,
    ) -> Result<Option<Task>, StoreError> {
        let Some(wish) = wish else {
            let Some(vm) = vm else { return Ok(None) };
            let item = records::get::<Item>(self.app.store.as_ref(), &vm.item).await?;
            if vm.is_dropped(item.as_ref().map(|item| &item.record)) {
                // Somebody dropped the record of a VM that runs, and may protect a VM of that name again: nobody may take the
                // running one away by mistake.
                return Ok(None);
            }
            return Ok(Some(Task::Remove));
        };
        if vm.is_some_and(|vm| vm.is_dropped(Some(&wish.item))) {
            return Ok(None);
        }
        Ok(match wish.goal {
            _ if steps::is_settled(wish, vm) => None,
            Goal::Absent => Some(Task::Remove),
            _ => Some(Task::Towards(Box::new(wish.clone()))),
        })
    }

    /// Lets the right worker work.
    fn tend(&mut self, id: &str, task: Option<Task>) {
        let known = self.workers.get_mut(id);
        let Some(task) = task else {
            if let Some(worker) = known {
                worker.cancel.cancel();
                worker.trouble = None;
            }
            return;
        };
        match known {
            Some(worker) if worker.handle.is_some() => {
                if !worker.task.is_same(&task) {
                    // The next one begins when this one has ended: two never work on one VM.
                    worker.cancel.cancel();
                }
                return;
            }
            Some(worker) if worker.task.is_same(&task) && Instant::now() < worker.not_before => {
                return;
            }
            _ => {}
        }
        let before = known.filter(|worker| worker.task.is_same(&task));
        let (trouble, stuck) = before
            .map(|worker| (worker.trouble.take(), worker.stuck.take()))
            .unwrap_or_default();
        let cancel = CancellationToken::new();
        let handle = tokio::spawn(work(
            Arc::clone(&self.app),
            Arc::clone(&self.target),
            self.turns.clone(),
            id.to_owned(),
            task.clone(),
            cancel.clone(),
        ));
        let worker = Worker {
            task,
            cancel,
            handle: Some(handle),
            trouble,
            stuck,
            not_before: Instant::now(),
        };
        self.workers.insert(id.to_owned(), worker);
    }

    fn has_ended(&self) -> bool {
        let mut handles = self
            .workers
            .values()
            .filter_map(|worker| worker.handle.as_ref());
        handles.any(JoinHandle::is_finished)
    }

    /// Takes up how workers ended.
    async fn collect(&mut self) {
        for (id, worker) in &mut self.workers {
            let Some(handle) = worker.handle.take_if(|handle| handle.is_finished()) else {
                continue;
            };
            let ended = handle.await.unwrap_or_else(|error| {
                Err(Trouble::passing(
                    "InternalError",
                    format!("the work ended abnormally: {error}"),
                    "It tries again by itself.",
                ))
            });
            match ended {
                Ok(next) => {
                    worker.trouble = None;
                    match next {
                        Next::Later => worker.not_before = Instant::now() + RECHECK,
                        Next::In(pause) => worker.not_before = Instant::now() + pause,
                        Next::Again | Next::Settled => {}
                    }
                }
                Err(_) if worker.cancel.is_cancelled() => worker.trouble = None,
                Err(trouble) => {
                    warn!(vm = %id, code = trouble.code, text = %trouble.text, "a step of a VM in Azure was not done");
                    let pause = if trouble.is_final { RETRY_FINAL } else { RETRY };
                    worker.not_before = Instant::now() + pause;
                    worker.trouble = Some(trouble);
                }
            }
        }
    }

    async fn end(&mut self) {
        for worker in self.workers.values() {
            worker.cancel.cancel();
        }
        for worker in self.workers.values_mut() {
            if let Some(handle) = worker.handle.take() {
                let _how_it_ended_is_in_the_record = handle.await;
            }
        }
    }

    /// Whether nothing of the item runs in Azure outside of drills, and nobody is about to make anything: another point, before it was
    /// taken back, was another VM, which has another id.
    fn is_absent(&self, item: &Item, vms: &BTreeMap<String, AzureVm>) -> bool {
        let is_made = |worker: &Worker| {
            worker.handle.is_some()
                && matches!(&worker.task, Task::Towards(wish) if wish.drill.is_none() && wish.item.id.eq_ignore_ascii_case(&item.id))
        };
        !vms.values().any(|vm| vm.stands_for(item)) && !self.workers.values().any(is_made)
    }

    /// What is said of a VM; nothing of one that is neither wished nor there.
    pub(super) fn status(
        &self,
        wish: Option<&Wish>,
        vm: Option<&AzureVm>,
        vms: &BTreeMap<String, AzureVm>,
    ) -> Option<v1::RecoveredVmStatus> {
        let id = wish.map(|wish| &wish.id).or(vm.map(|vm| &vm.id))?;
        let trouble = self
            .workers
            .get(id)
            .and_then(|worker| worker.trouble.as_ref());
        let stage = vm.map(|vm| vm.stage);
        let is_there = stage >= Some(Stage::Made);
        let prepared =
            stage >= Some(Stage::Planned) && wish.is_some_and(|wish| wish.goal == Goal::Prepared);
        let (done, all) = vm.map(AzureVm::progress).unwrap_or_default();
        let back = vm.and_then(|vm| vm.back.as_ref());
        Some(v1::RecoveredVmStatus {
            id: id.clone(),
            // Azure says of a VM that it runs; it doesn't look inside of a guest without an agent.
            state: match (is_there, trouble) {
                (true, _) if vm.is_some_and(|vm| vm.off) => State::Off,
                (true, _) => State::Booted,
                (_, Some(trouble)) if trouble.is_final => State::Failed,
                _ if prepared => State::Off,
                _ => State::Preparing,
            }
            .into(),
            started_unix_ms: vm.map_or(0, |vm| vm.started_unix_ms),
            point_id: vm.map(|vm| vm.point_id.clone()).unwrap_or_default(),
            point_time_unix_ms: vm.map_or(0, |vm| vm.point_ms),
            findings: trouble.map(Trouble::finding).into_iter().collect(),
            recovery: wish
                .filter(|wish| vm.is_none_or(|vm| !vm.is_dropped(Some(&wish.item))))
                .and_then(|wish| said(wish, vm, self.is_absent(&wish.item, vms))),
            shipped_bytes: back.map_or(0, |back| back.sent_bytes),
            shipped_unix_ms: back
                .and_then(|back| back.shipped.as_ref())
                .map_or(0, |shipped| shipped.point_ms),
            local_bytes: done,
            disk_bytes: all,
            ..v1::RecoveredVmStatus::default()
        })
    }
}

/// What is said of an order, once it is carried out. Absent: no other VM of the item stands, whatever its id.
fn said(wish: &Wish, vm: Option<&AzureVm>, absent: bool) -> Option<v1::RecoveryReport> {
    let (epoch, order) = wish.order?;
    let said = match (order, vm) {
        (RecoveryOrder::Absent, None) if absent => RecoverySaid::Absent,
        (RecoveryOrder::Run { takes, .. }, Some(vm))
            if vm.stage == Stage::Made && back::is_on(vm, Some(takes.0)) =>
        {
            RecoverySaid::Running
        }
        (RecoveryOrder::Stop, Some(vm)) if back::is_shipped(vm, wish.ships) => {
            RecoverySaid::Stopped
        }
        (RecoveryOrder::Leave { .. }, Some(vm)) if vm.stage == Stage::Left => RecoverySaid::Left,
        _ => return None,
    };
    Some(orders::recovery_report(epoch, said))
}

/// Works on one VM until there is nothing to do, something fails, or it is cut.
async fn work(
    app: Arc<App>,
    target: Arc<Target>,
    turns: Turns,
    id: String,
    task: Task,
    cancel: CancellationToken,
) -> Result<Next, Trouble> {
    let ended = async {
        let mut work = Work::new(&app, &target, turns, cancel.clone());
        loop {
            let next = match &task {
                Task::Remove => work.remove(&id).await?,
                Task::Towards(wish) => work.towards(wish).await?,
            };
            if next != Next::Again {
                return Ok(next);
            }
        }
    }
    .await;
    app.ring();
    ended
}
