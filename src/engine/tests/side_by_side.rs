//! Orders of several items of one host: none waits for another.

mod support;

use std::sync::Arc;
use std::time::Duration;

use engine::desired::DesiredFile;
use engine::reconcile::Reconciler;
use engine::replicator::pauses::NoPauses;
use engine_protocol::v1::{self, DesiredState};
use protection::life::{SourceOrder, SourceSaid};
use support::ordered::{LICENCE, message, says};
use support::{World, life, wait_for};
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
