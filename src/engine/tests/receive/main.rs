//! Failback at the source: real images in a folder, a store in a folder, a recovered VM that wrote on.

mod room;
mod site;
#[path = "../support/mod.rs"]
mod support;
mod whole;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use disk_image::{Access, DiskImage, Format};
use engine::receive::{Came, PLACES, ReceiveError, Until};
use engine::replicator::hashes::BLOCK;
use engine::replicator::pauses::{NoPauses, Pauses};
use engine::replicator::state::ItemFiles;
use replica_store::{ErrorKind, PointSelector, Position, RecoveryPoint, RetentionPolicy};
use serde_json::json;
use site::*;
use tokio::sync::Notify;

async fn planned_failback(format: Format) {
    let (site, shipped) = Site::new(format).await;
    let mut theirs = shipped.clone();
    // Nothing belongs to the recovered VM yet.
    assert_eq!(site.round().await.0, Came::Waits);
    assert_eq!(site.record(), None);
    let writer = site.writer(ORIGIN, &theirs).await;
    assert_eq!(site.round().await.0, Came::Waits);
    let written = scribble(&mut theirs, 7, 90);
    send(&writer, 3, &theirs, &written).await;

    let changed = differing(&shipped, &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(3)));
    assert!(changed > 0 && progress.received_bytes <= changed + changed / 10);
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 3);
    assert!(site.record().unwrap().has_arrived());

    // Again: nothing is written, and the image is not touched.
    let before = std::fs::metadata(site.path(0)).unwrap().modified().unwrap();
    assert_eq!(site.round().await.0, Came::Current(point(3)));
    let after = std::fs::metadata(site.path(0)).unwrap().modified().unwrap();
    assert_eq!(before, after);

    // The recovered VM writes on: the next round takes that and nothing else.
    let between = theirs.clone();
    let written = scribble(&mut theirs, 8, 40);
    send(&writer, 4, &theirs, &written).await;
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(4)));
    assert_eq!(progress.received_bytes, differing(&between, &theirs));
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 4);
    assert_eq!(site.reader().await.pins().await.unwrap(), []);
}

#[tokio::test]
async fn only_what_the_recovered_vm_changed_is_written_into_a_vhdx() {
    planned_failback(Format::VhdxDynamic).await;
}

#[tokio::test]
async fn only_what_the_recovered_vm_changed_is_written_into_a_vhd() {
    planned_failback(Format::VhdDynamic).await;
}

/// The source had written on, the recovered VM began at an older point: both sides differ from what was shipped.
async fn diverged() -> (Site, Disks) {
    let (site, shipped) = Site::new(Format::VhdxDynamic).await;
    let mut ours = shipped.clone();
    scribble(&mut ours, 20, 60);
    site.write_local(&ours);
    let mut theirs = shipped;
    let writer = site.writer(ORIGIN, &theirs).await;
    // Back to what an older point had, and on from there.
    let mut written = scribble(&mut theirs, 102, 50);
    written.extend(scribble(&mut theirs, 21, 70));
    send(&writer, 3, &theirs, &written).await;
    (site, theirs)
}

#[tokio::test]
async fn what_the_source_had_not_shipped_is_undone_and_nothing_equal_is_written() {
    let (site, theirs) = diverged().await;
    let differ = differing(&site.local(), &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(3)));
    assert_eq!(progress.received_bytes, differ);
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 3);
}

#[tokio::test]
async fn a_disk_that_was_excluded_after_the_point_is_said_to_be_left_out_in_every_round() {
    let (site, mut theirs) = Site::new(Format::VhdxDynamic).await;
    let written = scribble(&mut theirs, 40, 20);
    let writer = site.writer(ORIGIN, &theirs).await;
    let disk = |id, name: &str| json!({ "id": id, "name": name, "sizeBytes": 512, "operatingSystem": false });
    let gone = uuid::Uuid::from_u128(0xdead);
    let config = json!({ "name": "web01", "generation": 2, "processors": 1, "memoryBytes": 1, "osType": "Linux",
        "networkAdapters": [], "disks": [disk(id(0), "disk0"), disk(id(1), "disk1"), disk(gone, "scratch.vhdx")] });
    let shipped = RecoveryPoint {
        vm_config: config,
        ..point(3)
    };
    send_as(&writer, shipped, &theirs, &written).await;
    // Also when the disks hold the point already, as after a restart.
    for _ in 0..2 {
        let (receiver, vm) = site.receiver(Arc::new(NoPauses));
        receiver.round().await.unwrap();
        assert_eq!(*vm.left_out.lock().unwrap(), ["scratch.vhdx"]);
    }
    site.check_equal(&theirs).await;
}

#[tokio::test]
async fn a_kill_at_any_step_is_made_good_by_the_next_round() {
    for n in 0.. {
        let (site, mut theirs) = diverged().await;
        let kill = KillAt::new(n);
        let (receiver, _) = site.receiver(kill.clone());
        let ended = tokio::select! {
            came = receiver.round() => Some(came.unwrap()),
            () = kill.dead.notified() => None,
        };
        drop(receiver);
        let place = *kill.place.lock().unwrap();
        let context = format!("killed at step {n}, {place:?}");
        let record = site.record().unwrap();
        assert_eq!(
            record.has_arrived(),
            place.is_none_or(|place| place == PLACES[6]),
            "{context}"
        );
        // The recovered VM goes on meanwhile.
        if n % 2 == 1 {
            let writer = site.writer(ORIGIN, &theirs).await;
            let written = scribble(&mut theirs, 50 + n, 30);
            send(&writer, 4, &theirs, &written).await;
        }
        let newest = if n % 2 == 1 { 4 } else { 3 };
        let (receiver, vm) = site.receiver(Arc::new(NoPauses));
        let tell = |error: Option<&ReceiveError>| assert!(error.is_none(), "{context}: {error:?}");
        receiver.run(Until::Equal, &tell).await;
        assert!(vm.is_received.load(Ordering::SeqCst), "{context}");
        site.check_equal(&theirs).await;
        site.check_maps(&theirs, ORIGIN, newest);
        assert_eq!(site.reader().await.pins().await.unwrap(), [], "{context}");
        if ended.is_some() {
            assert!(n > 8, "only {n} steps");
            return;
        }
    }
}

#[tokio::test]
async fn without_maps_everything_is_compared_and_only_what_differs_is_written() {
    let (site, theirs) = diverged().await;
    std::fs::remove_dir_all(site.maps()).unwrap();
    let differ = differing(&site.local(), &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(3)));
    assert_eq!(progress.received_bytes, differ);
    site.check_equal(&theirs).await;
    // From now on there are maps.
    site.check_maps(&theirs, ORIGIN, 3);
}

#[tokio::test]
async fn a_journal_that_went_into_base_is_no_reason_to_miss_a_block() {
    let (site, mut theirs) = diverged().await;
    let writer = site.writer(ORIGIN, &theirs).await;
    let written = scribble(&mut theirs, 30, 30);
    send(&writer, 4, &theirs, &written).await;
    let now = point(4).time_unix_ms;
    let report = writer.maintain(now, RetentionPolicy::hours(0)).await;
    assert_eq!(report.unwrap().base_position_after, Position(4));
    let differ = differing(&site.local(), &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(4)));
    assert_eq!(progress.received_bytes, differ);
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 4);
}

#[tokio::test]
async fn a_map_of_a_cycle_that_the_store_never_counted_is_not_relied_upon() {
    let (site, mut theirs) = diverged().await;
    // The source believes that it had shipped a third cycle; in the store the third is the recovered VM's.
    let files = ItemFiles::new(&site.state(), ITEM);
    let mut state = files.load().unwrap().unwrap();
    state.shipped = 3;
    files.store(&state).unwrap();
    let writer = site.writer(ORIGIN, &theirs).await;
    let written = scribble(&mut theirs, 31, 30);
    send(&writer, 4, &theirs, &written).await;
    site.round().await;
    site.check_equal(&theirs).await;
}

#[tokio::test]
async fn a_disk_that_grew_at_the_recovery_side_grows_and_one_that_grew_here_shrinks() {
    for format in [Format::VhdxDynamic, Format::VhdDynamic] {
        let (site, shipped) = Site::new(format).await;
        // Here the second one grew, unshipped, and was written behind its old end.
        let mut image = DiskImage::open(site.path(1), Access::ReadWrite).unwrap();
        image.resize(SIZES[1] + 3 * MIB).unwrap();
        image.write_at(&[9; 5000], SIZES[1] + MIB).unwrap();
        image.close().unwrap();
        // There the first one.
        let mut theirs = shipped;
        theirs[0].resize((SIZES[0] + 4 * MIB) as usize, 0);
        let writer = site.writer(ORIGIN, &theirs).await;
        let mut written = scribble(&mut theirs, 40, 60);
        let end = SIZES[0] + 2 * MIB;
        theirs[0][end as usize..][..4096].fill(3);
        written.push((0, end..end + BLOCK));
        send(&writer, 3, &theirs, &written).await;
        let (came, _) = site.round().await;
        assert_eq!(came, Came::Arrived(point(3)));
        site.check_equal(&theirs).await;
        site.check_maps(&theirs, ORIGIN, 3);
    }
}

#[tokio::test]
async fn a_store_that_goes_away_in_the_middle_is_an_error_and_nothing_half_counts_as_arrived() {
    let (site, theirs) = diverged().await;
    let journal = site.folder.path().join("store/vault-0a1b2c3d").join(ITEM);
    let away = site.folder.path().join("away");
    struct Unplug(PathBuf, PathBuf);
    #[async_trait]
    impl Pauses for Unplug {
        async fn pass(&self, place: &'static str) {
            if place == engine::receive::UNDER_WAY {
                std::fs::rename(&self.0, &self.1).unwrap();
            }
        }
    }
    let unplug = Arc::new(Unplug(journal.clone(), away.clone()));
    let (receiver, vm) = site.receiver(unplug);
    let told = Arc::new(Notify::new());
    let (heard, stop) = (told.clone(), receiver.stop.clone());
    let run = tokio::spawn(async move {
        let tell = move |error: Option<&ReceiveError>| {
            if error.is_some() {
                heard.notify_one();
            }
        };
        receiver.run(Until::Equal, &tell).await;
    });
    told.notified().await;
    assert!(!vm.is_received.load(Ordering::SeqCst));
    assert!(!site.record().unwrap().has_arrived());
    stop.cancel();
    run.await.unwrap();
    std::fs::rename(&away, &journal).unwrap();

    let (receiver, vm) = site.receiver(Arc::new(NoPauses));
    receiver
        .run(Until::Equal, &|error| assert!(error.is_none(), "{error:?}"))
        .await;
    assert!(vm.is_received.load(Ordering::SeqCst));
    site.check_equal(&theirs).await;
}

#[tokio::test]
async fn the_right_to_write_is_asked_for_before_each_batch_and_its_loss_ends_the_work() {
    for allowed in 0.. {
        let (site, theirs) = diverged().await;
        let (receiver, vm) = site.receiver(Arc::new(NoPauses));
        vm.allowed.store(allowed, Ordering::SeqCst);
        let before = site.local();
        match receiver.round().await {
            Err(ReceiveError::Withdrawn) => {
                assert!(!site.record().unwrap().has_arrived());
                assert!(allowed > 0 || site.local() == before);
            }
            Ok(came) => {
                assert_eq!(came, Came::Arrived(point(3)));
                assert!(allowed > 5, "asked {allowed} times");
                site.check_equal(&theirs).await;
                return;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn an_image_that_is_open_elsewhere_is_not_written() {
    let (site, _) = diverged().await;
    let kill = KillAt::new(0);
    let (first, _) = site.receiver(kill.clone());
    let before = site.local();
    // A round that stands still holds the images, as a running VM would.
    let first = tokio::spawn(async move { first.round().await.map(drop) });
    kill.dead.notified().await;
    let (second, _) = site.receiver(Arc::new(NoPauses));
    match second.round().await {
        Err(ReceiveError::InUse(path)) => assert_eq!(path, site.path(0)),
        other => panic!("{other:?}"),
    }
    first.abort();
    assert!(site.local() == before);
}

#[tokio::test]
async fn a_replica_that_went_to_another_activation_is_not_received_any_more() {
    let (site, theirs) = diverged().await;
    drop(site.writer(3, &theirs).await);
    let (receiver, _) = site.receiver(Arc::new(NoPauses));
    match receiver.round().await {
        Err(ReceiveError::Store { source, .. }) => assert_eq!(source.kind(), ErrorKind::Fenced),
        other => panic!("{other:?}"),
    }
    assert_eq!(site.record(), None);
}

#[tokio::test]
async fn the_view_of_a_round_is_held_and_let_go_of() {
    let (site, _) = diverged().await;
    let kill = KillAt::new(0);
    let (receiver, _) = site.receiver(kill.clone());
    tokio::select! {
        _ = receiver.round() => panic!("it did not stand still"),
        () = kill.dead.notified() => {}
    }
    let pins = site.reader().await.pins().await.unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(pins[0].point_id, point(3).id);
    let (receiver, _) = site.receiver(Arc::new(NoPauses));
    receiver.run(Until::Equal, &|_| {}).await;
    assert_eq!(site.reader().await.pins().await.unwrap(), []);
    let view = site.reader().await.view(PointSelector::Newest).await;
    assert_eq!(view.unwrap().position(), Position(3));
}

#[tokio::test]
async fn disks_that_surely_hold_what_was_shipped_are_not_read_to_find_out() {
    let (site, shipped) = Site::new(Format::VhdDynamic).await;
    site.note_shipped().await;
    // A block that the map does not know would be asked about if the disk was compared with it.
    site.forget_block(0, 3);
    let mut theirs = shipped.clone();
    let writer = site.writer(ORIGIN, &theirs).await;
    let written = scribble(&mut theirs, 60, 40);
    send(&writer, 3, &theirs, &written).await;
    let (receiver, _) = site.receiver(Arc::new(NoPauses));
    let mut most = receiver.progress.subscribe();
    let watched = tokio::spawn(async move {
        let wanted = most.wait_for(|progress| progress.to_receive_bytes > 0);
        wanted.await.unwrap().to_receive_bytes
    });
    tokio::task::yield_now().await;
    assert_eq!(receiver.round().await.unwrap(), Came::Arrived(point(3)));
    assert!(watched.await.unwrap() <= written.len() as u64 * BLOCK);
    site.check_equal(&theirs).await;
}

#[test]
fn places_are_all_different() {
    let mut places = PLACES.to_vec();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), PLACES.len());
}
