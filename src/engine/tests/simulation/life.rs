//! One seed: lives of two engines over one host and one store, with everything that can go wrong, and a quiet end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::board::Board;
use engine::desired::DesiredFile;
use engine::reconcile::Reconciler;
use engine::replicator::Context;
use engine::replicator::pauses::{PLACES, Pauses};
use engine::replicator::throttle::Unthrottled;
use engine_protocol::v1::replication_status::State;
use engine_protocol::v1::{DesiredState, ReplicationStatus};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::faults::Random;
use super::host::SimHost;
use super::oracle::{self, Acknowledged};
use super::orchestrator::{ENGINES, Orchestrator, Wanted};
use super::store::{Fences, Watched};
use super::trace::{Injected, Trace};

const LIVES: u64 = 5;
const TICK: Duration = Duration::from_millis(500);
/// Ticks that the quiet end may take: an hour of the simulated world.
const MOST_TICKS: u64 = 7_200;
const MINUTE_MS: i64 = 60_000;

/// What a seed came to.
pub struct Outcome {
    pub hash: u64,
    pub events: u64,
    pub points: usize,
    pub acknowledged: usize,
    pub injected: Injected,
}

/// Stops an engine at places: for ever, by ending the life of both, or for a while, as a machine that is paused.
struct Places {
    engine: &'static str,
    crash_at: Option<(&'static str, AtomicU64)>,
    hang_percent: u64,
    random: Mutex<Random>,
    crashed: Arc<Notify>,
    trace: Trace,
}

#[async_trait]
impl Pauses for Places {
    async fn pass(&self, place: &'static str) {
        self.trace.event(&format!("{} {place}", self.engine));
        if let Some((wanted, visits)) = &self.crash_at
            && *wanted == place
        {
            let left = visits.load(Ordering::SeqCst);
            if left == 0 {
                self.trace.inject("crashes at a place");
                self.crashed.notify_one();
                std::future::pending::<()>().await;
            }
            visits.store(left - 1, Ordering::SeqCst);
        }
        let hang = {
            let mut random = self.random.lock().unwrap();
            random
                .chance(self.hang_percent)
                .then(|| Duration::from_secs(5 + random.below(90)))
        };
        if let Some(hang) = hang {
            self.trace.inject("engines paused for a while");
            tokio::time::sleep(hang).await;
        }
    }
}

struct World {
    folder: tempfile::TempDir,
    host: Arc<SimHost>,
    clock: Clock,
    trace: Trace,
    fences: Fences,
}

impl World {
    fn new(seed: u64, told: bool) -> Self {
        // Thousands of syncs: in memory where the machine has such a folder.
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        for name in ENGINES.iter().chain(&["store"]) {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let (clock, trace) = (Clock::new(), Trace::new(told));
        let vm = folder.path().join("vm");
        let host = Arc::new(SimHost::new(vm, seed, clock.clone(), trace.clone()));
        Self {
            folder,
            host,
            clock,
            trace,
            fences: Fences::default(),
        }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }
}

/// The engines of one life.
struct Engines {
    boards: [Arc<Board>; 2],
    stores: [Arc<Watched>; 2],
    senders: [watch::Sender<Option<DesiredState>>; 2],
    stop: CancellationToken,
    running: Vec<tokio::task::JoinHandle<()>>,
    full: Arc<AtomicBool>,
}

/// How rough a life is.
struct Roughness {
    store_percent: u64,
    hang_percent: u64,
    crash_at: Option<&'static str>,
}

impl Engines {
    fn start(
        world: &World,
        orchestrator: &Orchestrator,
        random: &mut Random,
        rough: &Roughness,
        crashed: &Arc<Notify>,
    ) -> Self {
        let stop = CancellationToken::new();
        let full = Arc::new(AtomicBool::new(false));
        let mut running = Vec::new();
        let victim = random.below(2) as usize;
        let parts = [0, 1].map(|number| {
            let engine = ENGINES[number];
            let crash_at = rough
                .crash_at
                .filter(|_| number == victim)
                .map(|place| (place, AtomicU64::new(random.below(4))));
            let pauses = Places {
                engine,
                crash_at,
                hang_percent: rough.hang_percent,
                random: Mutex::new(Random::new(random.next())),
                crashed: crashed.clone(),
                trace: world.trace.clone(),
            };
            let store = Watched::new(
                world.store(),
                engine,
                orchestrator.given[number].clone(),
                world.fences.clone(),
                world.trace.clone(),
                (random.next(), rough.store_percent),
            );
            let (clock, low) = (world.clock.clone(), full.clone());
            let board = Arc::new(Board::default());
            let state_folder = world.folder.path().join(engine);
            let context = Arc::new(Context {
                hypervisor: world.host.clone(),
                board: board.clone(),
                state_folder: state_folder.clone(),
                pauses: Arc::new(pauses),
                clock: Arc::new(move || clock.now()),
                store_faults: Some(store.clone()),
                free_bytes: Arc::new(move |_| {
                    Some(if low.load(Ordering::SeqCst) {
                        1 << 20
                    } else {
                        1 << 40
                    })
                }),
                throttle: Arc::new(Unthrottled),
                groups: Arc::default(),
            });
            let (sender, receiver) = watch::channel(None);
            let file = DesiredFile::new(&state_folder);
            let reconciler = Reconciler::new(context, file, true, None);
            running.push(tokio::spawn(reconciler.run(receiver, stop.clone())));
            (board, store, sender)
        });
        let [(board_a, store_a, sender_a), (board_b, store_b, sender_b)] = parts;
        Self {
            boards: [board_a, board_b],
            stores: [store_a, store_b],
            senders: [sender_a, sender_b],
            stop,
            running,
            full,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        for engine in self.running {
            engine.await.unwrap();
        }
    }

    fn note(&self, acknowledged: &mut Acknowledged) {
        for board in &self.boards {
            for status in board.snapshot().replications {
                acknowledged.note(&status);
            }
        }
    }
}

/// Runs `life` as one life of both engines' processes: what it leaves running ends with it, as by `kill -9`; the clock
/// jumps from timer to timer.
fn life<T>(world: &World, life: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let result = runtime.block_on(async {
        world.clock.begin();
        let result = life.await;
        world.clock.end();
        result
    });
    drop(runtime);
    result
}

/// One seed, from the first copy to the quiet end.
pub fn simulate(seed: u64, told: bool) -> Outcome {
    replica_store::fault::run_inline(true);
    let mut random = Random::new(seed);
    let world = World::new(seed, told);
    let mut orchestrator = Orchestrator::new(&world.host, &world.store(), world.trace.clone());
    let mut acknowledged = Acknowledged::default();
    orchestrator.send();
    for _ in 0..LIVES {
        rough_life(&world, &mut orchestrator, &mut acknowledged, &mut random);
        for _ in 0..random.below(20) {
            world.host.guest_writes();
        }
        if random.chance(30) {
            world.trace.inject("VMs restarted between lives");
            world.host.restart(random.below(2) as usize);
        }
        life(&world, look(&world, &orchestrator, &acknowledged));
    }
    let points = life(
        &world,
        quiet_end(&world, &mut orchestrator, &mut acknowledged, &mut random),
    );
    Outcome {
        hash: world.trace.hash(),
        events: world.trace.events(),
        points,
        acknowledged: acknowledged.count(),
        injected: world.trace.injected(),
    }
}

fn rough_life(
    world: &World,
    orchestrator: &mut Orchestrator,
    acknowledged: &mut Acknowledged,
    random: &mut Random,
) {
    let rough = Roughness {
        store_percent: [0, 0, 2, 6][random.below(4) as usize],
        hang_percent: [0, 0, 0, 2][random.below(4) as usize],
        crash_at: random
            .chance(60)
            .then(|| PLACES[random.below(PLACES.len() as u64) as usize]),
    };
    let seconds = 5 + random.below(120);
    let in_order = random.chance(25);
    life(world, async {
        let crashed = Arc::new(Notify::new());
        let engines = Engines::start(world, orchestrator, random, &rough, &crashed);
        let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let ended = loop {
            tokio::select! {
                biased;
                () = crashed.notified() => break false,
                () = tokio::time::sleep(TICK) => {}
            }
            tick(world, orchestrator, &engines, random);
            // Reports are lost and late as well: only some are taken.
            if random.chance(30) {
                engines.note(acknowledged);
            }
            if tokio::time::Instant::now() >= until {
                break true;
            }
        };
        world.host.fail_reads(false);
        if ended && in_order && rough.hang_percent == 0 {
            world.trace.event("orderly stop");
            engines.stop().await;
            assert!(
                !world.host.is_frozen(),
                "a point stays frozen after an orderly stop"
            );
        } else {
            world.trace.inject("kills in the middle of nothing");
        }
    });
}

/// Half a second of the simulated world.
fn tick(world: &World, orchestrator: &mut Orchestrator, engines: &Engines, random: &mut Random) {
    let host = &world.host;
    host.guest_writes();
    orchestrator.deliver(&engines.senders, random);
    if random.chance(3) {
        orchestrator.decide(host, random);
    }
    if random.chance(5) {
        orchestrator.send();
    }
    let machine = random.below(2) as usize;
    match random.below(400) {
        0..4 => {
            world.trace.inject("VMs restarted");
            host.restart(machine);
        }
        4..6 => {
            world.trace.inject("VMs turned off");
            host.turn_off(machine);
        }
        6..10 => {
            let away = random.chance(50);
            world.trace.inject("store away or back");
            engines.stores[random.below(2) as usize].set_away(away);
        }
        10..14 => {
            world.trace.inject("lost bitmaps");
            host.lose_bitmap(machine, random.below(4) as usize);
        }
        14..16 => {
            world.trace.inject("disks grown");
            host.grow(
                machine,
                random.below(4) as usize,
                1 + random.below(3) as usize,
            );
        }
        16..18 => {
            world.trace.inject("clock set forward");
            world
                .clock
                .jump(MINUTE_MS * (1 + random.below(100_000) as i64));
        }
        18..20 => {
            world.trace.inject("clock set back");
            world
                .clock
                .jump(-MINUTE_MS * (1 + random.below(1_000) as i64));
        }
        20..22 => {
            world.trace.inject("guest agent mute or back");
            host.agent_answers(machine, random.chance(50));
        }
        22..24 => {
            world.trace.inject("reads of frozen disks fail");
            host.fail_reads(true);
        }
        24..30 => host.fail_reads(false),
        30..32 => {
            world.trace.inject("host volume full or not");
            engines.full.store(random.chance(50), Ordering::SeqCst);
        }
        _ => {}
    }
}

async fn look(world: &World, orchestrator: &Orchestrator, acknowledged: &Acknowledged) -> usize {
    let violations = world.fences.violations();
    assert!(
        violations.is_empty(),
        "fenced engines wrote: {violations:#?}"
    );
    oracle::check(
        &world.host,
        &world.store(),
        &orchestrator.items,
        &orchestrator.keys(),
        acknowledged,
        orchestrator.points_may_go,
    )
    .await
}

/// Nothing goes wrong any more: every item comes back to regular points, and all of them are right.
async fn quiet_end(
    world: &World,
    orchestrator: &mut Orchestrator,
    acknowledged: &mut Acknowledged,
    random: &mut Random,
) -> usize {
    for machine in 0..world.host.machines().len() {
        world.host.restart(machine);
    }
    let rough = Roughness {
        store_percent: 0,
        hang_percent: 0,
        crash_at: None,
    };
    let crashed = Arc::new(Notify::new());
    let engines = Engines::start(world, orchestrator, random, &rough, &crashed);
    orchestrator.settle(&engines.senders);
    // Positions count up whatever the clock does.
    let mut first: Vec<Option<u64>> = vec![None; orchestrator.items.len()];
    let mut ticks = 0;
    loop {
        tokio::time::sleep(TICK).await;
        world.host.guest_writes();
        engines.note(acknowledged);
        let mut waiting = Vec::new();
        for (number, item) in orchestrator.items.iter().enumerate() {
            let status = engines.boards[item.engine].replication(&item.item_id);
            let newest = status.as_ref().and_then(|status| {
                let current = status.generation == item.generation
                    && status.state() == State::Protected
                    && status.backlog_cycles == 0;
                let positions = status.recovery_points.iter().map(|point| point.position);
                positions.max().filter(|_| current)
            });
            match (newest, first[number]) {
                (Some(newest), Some(begin)) if newest > begin => continue,
                (Some(newest), None) => first[number] = Some(newest),
                _ => {}
            }
            waiting.push(described(item, status.as_ref()));
        }
        if waiting.is_empty() {
            break;
        }
        ticks += 1;
        assert!(
            ticks < MOST_TICKS,
            "replication never came back: {waiting:#?}"
        );
    }
    engines.stop().await;
    assert!(
        !world.host.is_frozen(),
        "a point stays frozen after an orderly stop"
    );
    look(world, orchestrator, acknowledged).await
}

/// What somebody who looks into a failed seed wants to know first.
fn described(item: &Wanted, status: Option<&ReplicationStatus>) -> String {
    let Some(status) = status else {
        return format!("{} generation {}: no status", item.item_id, item.generation);
    };
    let newest = status
        .recovery_points
        .iter()
        .map(|point| point.position)
        .max();
    let findings = status.findings.iter().map(|finding| &finding.summary);
    let tracking = status
        .disks
        .iter()
        .map(|disk| (disk.tracking(), &disk.reason));
    format!(
        "{} wanted generation {} on {} has {}: {:?}, backlog {}, newest position {newest:?}, \
         findings {:?}, disks {:?}",
        item.item_id,
        item.generation,
        ENGINES[item.engine],
        status.generation,
        status.state(),
        status.backlog_cycles,
        findings.collect::<Vec<_>>(),
        tracking.collect::<Vec<_>>()
    )
}
