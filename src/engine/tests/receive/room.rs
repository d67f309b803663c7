//! A volume that is nearly full: the host's other VMs keep their room, and the failback goes on when there is some.

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine::receive::room::RESERVE_BYTES;
use engine::receive::{Came, ReceiveError, Receiver, Until};
use engine::replicator::pauses::NoPauses;

use crate::site::*;

/// A site whose images are as empty as after they were lost, and what they are to hold.
async fn emptied() -> (Site, Disks) {
    let (site, mut theirs) = Site::new(Format::VhdxDynamic).await;
    for (n, size) in SIZES.into_iter().enumerate() {
        std::fs::remove_file(site.path(n)).unwrap();
        let options = CreateOptions {
            block_size: Some(1 << 20),
            id: Some(id(n)),
            ..CreateOptions::new(site.format, size)
        };
        let made = DiskImage::create(site.path(n), &options).unwrap();
        made.close().unwrap();
    }
    let writer = site.writer(ORIGIN, &theirs).await;
    let written = scribble(&mut theirs, 7, 90);
    send(&writer, 3, &theirs, &written).await;
    (site, theirs)
}

fn held_bytes(site: &Site) -> u64 {
    let held = (0..SIZES.len()).map(|n| {
        let image = DiskImage::open(site.path(n), Access::ReadOnly).unwrap();
        let parts = image.allocated(0..SIZES[n]);
        parts.iter().map(|part| part.length).sum::<u64>()
    });
    held.sum()
}

/// Lets the volume become empty when the lack of room was told, and receives to the end; gives what was told and what the
/// images held then.
async fn run(site: &Site, receiver: Receiver, free: Arc<AtomicU64>) -> (Vec<String>, u64) {
    let told = Mutex::new((Vec::new(), 0));
    let capacity = free.clone();
    let tell = |error: Option<&ReceiveError>| {
        if let Some(error) = error {
            let finding = error.finding("web01", std::path::Path::new("store"));
            let mut told = told.lock().unwrap();
            told.0.push(format!(
                "{}: {} {}",
                finding.code, finding.summary, finding.recommended_action
            ));
            told.1 = held_bytes(site);
            capacity.store(u64::MAX, Ordering::SeqCst);
        }
    };
    receiver.run(Until::Equal, &tell).await;
    told.into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_to_a_volume_without_room_for_all_of_it_and_the_failback_goes_on_by_itself()
 {
    let (site, theirs) = emptied().await;
    let (mut receiver, vm) = site.receiver(Arc::new(NoPauses));
    // Some of it would fit.
    let free = Arc::new(AtomicU64::new(RESERVE_BYTES + 4 * MIB));
    let asked = free.clone();
    receiver.free_bytes = Arc::new(move |_| Some(asked.load(Ordering::SeqCst)));
    let (told, held) = run(&site, receiver, free).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("FAILBACK_NO_ROOM") && told[0].contains("1028 MiB are free"),
        "{told:?}"
    );
    assert_eq!(held, 0, "something was written");
    assert!(vm.is_received.load(Ordering::SeqCst));
    site.check_equal(&theirs).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_fills_up_meanwhile_keeps_its_reserve() {
    let (site, theirs) = emptied().await;
    // Nothing tells how much there is to write: it is judged as it comes.
    std::fs::remove_dir_all(site.maps()).unwrap();
    let (mut receiver, _) = site.receiver(Arc::new(NoPauses));
    let capacity = Arc::new(AtomicU64::new(RESERVE_BYTES + 9 * MIB));
    let asked = capacity.clone();
    let paths = [0, 1].map(|n| site.path(n));
    let used = move || {
        let files = paths.iter().map(|path| std::fs::metadata(path).unwrap());
        files.map(|file| file.blocks() * 512).sum::<u64>()
    };
    let before = used();
    let least = Arc::new(AtomicU64::new(u64::MAX));
    let seen = least.clone();
    receiver.free_bytes = Arc::new(move |_| {
        let free = asked
            .load(Ordering::SeqCst)
            .saturating_sub(used().saturating_sub(before));
        seen.fetch_min(free, Ordering::SeqCst);
        Some(free)
    });
    let (told, held) = run(&site, receiver, capacity).await;
    assert_eq!(told.len(), 1, "{told:?}");
    // Blocks of the images have holes, so what they hold is no measure of what the volume lost.
    assert!(held > 0, "nothing was written though some of it fits");
    // Logs and tables of the images take little.
    let least = least.load(Ordering::SeqCst);
    assert!(least >= RESERVE_BYTES - MIB, "{least} bytes were left");
    site.check_equal(&theirs).await;
}

#[tokio::test]
async fn what_replaces_blocks_that_an_image_holds_needs_no_room() {
    let (site, mut theirs) = Site::new(Format::VhdxDynamic).await;
    let writer = site.writer(ORIGIN, &theirs).await;
    let held = |n: usize, at: u64| {
        let image = DiskImage::open(site.path(n), Access::ReadOnly).unwrap();
        !image.allocated(at..at + 4096).is_empty()
    };
    let at = (0..SIZES[0]).step_by(4096).find(|at| held(0, *at)).unwrap();
    theirs[0][at as usize..at as usize + 4096].fill(0x5a);
    send(&writer, 3, &theirs, &vec![(0, at..at + 4096)]).await;
    let (mut receiver, _) = site.receiver(Arc::new(NoPauses));
    receiver.free_bytes = Arc::new(|_| Some(0));
    assert_eq!(receiver.round().await.unwrap(), Came::Arrived(point(3)));
    site.check_equal(&theirs).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_vm_gave_back_meanwhile_needs_no_room_and_the_wait_holds_nothing_in_the_store() {
    let (site, mut theirs) = emptied().await;
    let (mut receiver, _) = site.receiver(Arc::new(NoPauses));
    // Never enough for what was written.
    receiver.free_bytes = Arc::new(|_| Some(RESERVE_BYTES));
    let (store, told) = (site.reader().await, tokio::sync::Notify::new());
    let tell = |error: Option<&ReceiveError>| {
        if matches!(error, Some(ReceiveError::NoRoom(_))) {
            told.notify_one();
        }
    };
    let gives_back = async {
        told.notified().await;
        while !store.pins().await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let all = SIZES.iter().enumerate().map(|(n, size)| (n, 0..*size));
        for disk in &mut theirs {
            disk.fill(0);
        }
        let writer = site.writer(ORIGIN, &theirs).await;
        send(&writer, 4, &theirs, &all.collect()).await;
    };
    tokio::join!(receiver.run(Until::Equal, &tell), gives_back);
    assert_eq!(held_bytes(&site), 0, "something was written");
    site.check_equal(&theirs).await;
}
