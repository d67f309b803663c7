//! Rate limits hold for what a recovered VM ships.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use engine::recovered::RecoveredVms;
use engine::replicator::pauses::NoPauses;
use engine::replicator::throttle::{Class, Limit, Throttle};
use engine_protocol::v1;

use super::{Engine, ITEM, World, run, started};

/// Counts what passes, and keeps the limits that are in force.
#[derive(Default)]
struct Counting {
    passed: AtomicU64,
    limits: Mutex<Vec<(String, Vec<Limit>)>>,
}

#[async_trait]
impl Throttle for Counting {
    async fn acquire(&self, item_id: &str, bytes: u64, _class: Class) {
        assert_eq!(item_id, ITEM);
        self.passed.fetch_add(bytes, Ordering::SeqCst);
    }

    fn limit_item(&self, item_id: &str, limits: &[Limit]) {
        let limits = (item_id.to_owned(), limits.to_vec());
        self.limits.lock().unwrap().push(limits);
    }

    fn limit_host(&self, _limits: &[Limit]) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_recovered_vm_ships_passes_the_limits_of_its_item_and_its_host() {
    let mut world = World::new(true).await;
    let counting = Arc::new(Counting::default());
    let mut host = world.host(Arc::new(NoPauses));
    host.throttle = counting.clone();
    let mut engine = Engine {
        board: host.board.clone(),
        vms: RecoveredVms::new(Arc::new(host)),
    };
    started(&world, &mut engine).await;
    world.churn().await;
    let mut listed = world.listed(10, run(), true);
    listed.throttles = vec![v1::Throttle {
        bytes_per_second: 1 << 30,
        windows: Vec::new(),
    }];
    engine.tell(&listed).await;
    engine.ships_beyond(0).await;
    let first = world.newest_is_the_vm().await;
    assert!(first.sent_bytes > 0);
    assert!(counting.passed.load(Ordering::SeqCst) >= first.sent_bytes);
    let limits = counting.limits.lock().unwrap().clone();
    let (item, limits) = limits.last().unwrap();
    assert_eq!((item.as_str(), limits[0].bytes_per_second), (ITEM, 1 << 30));
    engine.vms.stop().await;
    let limits = counting.limits.lock().unwrap().clone();
    assert_eq!(limits.last(), Some(&(ITEM.to_owned(), Vec::new())), "over");
}
