//! A source under orders on real QEMU, with a guest that writes while it shuts down.

#[allow(dead_code, reason = "of the double's tests one thing is used")]
#[path = "support/faults.rs"]
mod faults;
#[path = "../../hypervisor/tests/support/mod.rs"]
mod lab;
#[path = "support/qemu_source.rs"]
mod qemu_source;

use std::sync::Arc;

use engine::replicator::pauses::{self, NoPauses};
use faults::StopAt;
use hypervisor::Hypervisor;
use lab::{BLOCK, boot_sector, kill_qemu, qemu_pid};
use protection::life::{SourceOrder, SourceSaid};
use qemu_source::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_ships_the_guests_last_write_and_a_cancelled_one_lets_it_run_again() {
    let site = Site::new().await;
    let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
    engine.order(&site, 1, SourceOrder::Replicate(LICENCE));
    engine.wait("points", more_points(1)).await;
    site.lab.write(&site.vm, 1, 9 * BLOCK, 4096, 0x5a).await;
    engine.order(&site, 2, SourceOrder::ShipRest(LICENCE));
    let status = engine.says(2, SourceSaid::Shipped).await;
    let newest = status.recovery_points.last().unwrap();
    assert_eq!(status.source.unwrap().point_id, newest.id);
    assert!(
        newest.changed_bytes < 1 << 20,
        "its bitmaps told what changed: {} bytes",
        newest.changed_bytes
    );
    site.newest_point_is_the_images().await;

    engine.order(&site, 3, SourceOrder::Hold);
    engine.says(3, SourceSaid::Held).await;
    assert!(qemu_pid(&site.vm.folder).is_none(), "nothing of it is left");
    // By hand.
    site.lab.driver.start(site.vm.id).await.unwrap();
    boot_sector::is_up(&site.vm.folder).await;
    engine
        .wait("stopped", |_| qemu_pid(&site.vm.folder).is_none())
        .await;
    engine.says(3, SourceSaid::Held).await;

    let count = status.recovery_points.len();
    engine.order(&site, 4, SourceOrder::Replicate(LICENCE));
    engine.wait("points", more_points(count)).await;
    assert!(qemu_pid(&site.vm.folder).is_some());
    engine.stop().await;
}

#[test]
fn with_its_process_killed_behind_the_shutdown_the_images_are_compared_and_shipped() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().build().unwrap()
    };
    let first = runtime();
    let site = first.block_on(async {
        let site = Site::new().await;
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.order(&site, 1, SourceOrder::Replicate(LICENCE));
        engine.wait("points", more_points(1)).await;
        engine.stop().await;
        site.lab.write(&site.vm, 1, 3 * BLOCK, 4096, 0x6b).await;
        let stop_at = StopAt::new(Some(pauses::SHUT_DOWN), 0);
        let engine = Engine::start(&site, driver(&site), stop_at.clone());
        engine.order(&site, 2, SourceOrder::ShipRest(LICENCE));
        tokio::time::timeout(LIMIT, stop_at.reached.notified())
            .await
            .unwrap();
        kill_qemu(&site.vm.folder).await;
        site
    });
    // As `kill -9`: nothing of the engine comes to its end.
    first.shutdown_background();
    runtime().block_on(async {
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.says(2, SourceSaid::Shipped).await;
        site.newest_point_is_the_images().await;
        engine.stop().await;
    });
}
