//! Orders of several items of one host: none waits for another.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engine::desired::DesiredFile;
use engine::receive::{HeldVm, ReceiveError, Target as _};
use engine::reconcile::Reconciler;
use engine::replicator::Context;
use engine::replicator::pauses::NoPauses;
use engine::replicator::status::StatusLine;
use engine::replicator::throttle::{Class, Limit, Throttle};
use engine::source::Keeper;
use engine_protocol::v1::{self, DesiredState};
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use support::ordered::{LICENCE, message, says};
use support::{ITEM, World, life, wait_for};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const OTHER: &str = "22222222-3333-4444-5555-666666666666";

fn state(generation: u64, replications: Vec<v1::Replication>) -> Option<DesiredState> {
    Some(DesiredState {
        generation,
        replications,
        ..DesiredState::default()
    })
}

fn start(
    context: &Arc<Context>,
) -> (
    watch::Sender<Option<DesiredState>>,
    CancellationToken,
    tokio::task::JoinHandle<()>,
) {
    let (desired, seen) = watch::channel(None);
    let stop = CancellationToken::new();
    let file = DesiredFile::new(&context.state_folder);
    let reconciler = Reconciler::new(context.clone(), file, true, None);
    let task = tokio::spawn(reconciler.run(seen, stop.clone()));
    (desired, stop, task)
}

/// An item whose VM this host does not have.
fn other(world: &World) -> v1::Replication {
    v1::Replication {
        item_id: OTHER.to_owned(),
        vm_id: Uuid::from_u128(8).to_string(),
        vm_name: "web02".to_owned(),
        ..message(world, 1, SourceOrder::Hold)
    }
}

async fn comes_true(what: &str, is: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("never came true: {what}");
}

#[test]
fn a_vm_that_starts_slowly_holds_no_order_of_another_and_its_own_next_one_waits_for_it() {
    let world = World::new(9);
    world.host.set_running(false);
    world.host.hold_starts(true);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let (desired, seen) = watch::channel(None);
        let stop = CancellationToken::new();
        let file = DesiredFile::new(&context.state_folder);
        let reconciler = Reconciler::new(context.clone(), file, true, None);
        let task = tokio::spawn(reconciler.run(seen, stop.clone()));
        let board = &context.board;
        let observed = || board.snapshot().observed_generation;

        let run = message(&world, 1, SourceOrder::Run(LICENCE));
        desired.send_replace(state(1, vec![run]));
        comes_true("the VM is being started", || world.host.is_starting()).await;
        comes_true("the first state is taken", || observed() == 1).await;

        let hold = message(&world, 2, SourceOrder::Hold);
        desired.send_replace(state(2, vec![hold, other(&world)]));
        let found = || {
            let status = board.replication(OTHER).unwrap_or_default();
            let mut codes = status.findings.iter().map(|finding| finding.code.clone());
            codes.any(|code| code == "VM_NOT_FOUND")
        };
        comes_true("the other item obeys", found).await;
        assert!(world.host.is_starting(), "the first one is still busy");
        assert_eq!(observed(), 1, "not all of the second state is taken");

        // States go on to come, and what they no longer list ends beside the slow one.
        let hold = message(&world, 2, SourceOrder::Hold);
        desired.send_replace(state(3, vec![hold]));
        comes_true("the other item is gone", || {
            board.replication(OTHER).is_none()
        })
        .await;
        assert!(world.host.is_starting(), "the first one is still busy");

        world.host.hold_starts(false);
        let held = says(2, SourceSaid::Held);
        wait_for(&context, &world.host, "held", held).await;
        assert!(!world.host.is_running(), "held, and it runs");
        assert_eq!(world.host.powered().started, 1, "one order after another");
        comes_true("the newest state is taken", || observed() == 3).await;
        stop.cancel();
        task.await.unwrap();
    });
}

#[test]
fn items_that_do_not_end_keep_no_other_from_its_turn_however_many_they_are() {
    let world = World::new(9);
    world.host.set_running(false);
    world.host.hold_starts(true);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let (desired, stop, task) = start(&context);
        let board = &context.board;
        let world = &world;
        let stuck = |epoch: u64, order: SourceOrder| {
            let all = (0..40).map(move |n: u128| v1::Replication {
                item_id: Uuid::from_u128(100 + n).to_string(),
                ..message(world, epoch, order)
            });
            all.collect::<Vec<_>>()
        };
        desired.send_replace(state(1, stuck(1, SourceOrder::Run(LICENCE))));
        comes_true("all VMs are being started", || world.host.starting() == 40).await;
        let mut orders = stuck(2, SourceOrder::Hold);
        orders.push(other(world));
        desired.send_replace(state(2, orders));
        let found = || board.replication(OTHER).is_some();
        comes_true("the other item obeys", found).await;
        assert_eq!(world.host.starting(), 40, "the others are still busy");
        world.host.hold_starts(false);
        stop.cancel();
        task.await.unwrap();
    });
}

/// Panics in the item's task, in the middle of taking a message over.
#[derive(Default)]
struct Mine(AtomicBool);

#[async_trait]
impl Throttle for Mine {
    async fn acquire(&self, _item_id: &str, _bytes: u64, _class: Class) {}

    fn limit_item(&self, _item_id: &str, _limits: &[Limit]) {
        assert!(!self.0.load(Ordering::SeqCst), "a panic that was asked for");
    }

    fn limit_host(&self, _limits: &[Limit]) {}
}

#[test]
fn what_an_item_runs_ends_when_its_task_panics() {
    let world = World::new(9);
    life(async {
        let mine = Arc::new(Mine::default());
        let context = Arc::new(Context {
            throttle: mine.clone(),
            ..Arc::into_inner(world.context(Arc::new(NoPauses), None)).unwrap()
        });
        let (desired, stop, task) = start(&context);
        let item = |limit: Option<u64>| {
            let mut item = v1::Replication {
                order: None,
                ..message(&world, 1, SourceOrder::Hold)
            };
            let limits = limit.map(|bytes_per_second| v1::Throttle {
                bytes_per_second,
                ..v1::Throttle::default()
            });
            item.throttles = limits.into_iter().collect();
            item
        };
        let users = Arc::strong_count(&context);
        desired.send_replace(state(1, vec![item(None)]));
        comes_true("it replicates", || Arc::strong_count(&context) > users).await;
        mine.0.store(true, Ordering::SeqCst);
        desired.send_replace(state(2, vec![item(Some(1_000))]));
        comes_true("nothing runs any more", || {
            Arc::strong_count(&context) == users
        })
        .await;
        // The next message makes the item anew.
        mine.0.store(false, Ordering::SeqCst);
        desired.send_replace(state(3, vec![item(Some(1_000))]));
        comes_true("it replicates again", || {
            Arc::strong_count(&context) > users
        })
        .await;
        stop.cancel();
        task.await.unwrap();
    });
}

#[test]
fn each_write_of_a_failback_asks_whether_its_vm_is_off_and_nothing_of_the_others() {
    let world = World::new(14);
    world.host.set_running(false);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let (spec, epoch) = (world.spec(1), Generation(5));
        let folder = &context.state_folder;
        let keeper = Keeper::begin(folder, &spec.key, spec.vm, epoch, SourceOrder::Receive);
        let keeper = Arc::new(keeper.await.unwrap());
        let line = StatusLine::new(context.board.clone(), &spec);
        let held = HeldVm::new(context.clone(), spec, keeper, epoch, line);
        for _ in 0..50 {
            drop(held.may_write().await.unwrap());
        }
        assert_eq!(world.host.inventories(), 0);
        // Somebody starts it by hand: the very next write is refused.
        world.host.set_running(true);
        let refused = held.may_write().await.err().unwrap();
        assert!(matches!(refused, ReceiveError::Running(_)), "{refused:?}");
        world.host.set_running(false);
        drop(held.may_write().await.unwrap());
        let said = || context.board.replication(ITEM).unwrap_or_default().findings;
        held.leaves_out(vec!["data.vhdx".to_owned()]);
        assert_eq!(said()[0].code, "FAILBACK_DISKS_LEFT_OUT");
        assert!(said()[0].summary.contains("data.vhdx"), "{:?}", said());
        held.leaves_out(Vec::new());
        assert!(said().is_empty());
        let hold = held
            .keeper
            .take(held.spec.vm, Generation(6), SourceOrder::Hold);
        hold.await.unwrap();
        let refused = held.may_write().await.err().unwrap();
        assert!(matches!(refused, ReceiveError::Withdrawn), "{refused:?}");
    });
}
