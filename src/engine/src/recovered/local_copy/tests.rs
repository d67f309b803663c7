//! A copy against a disk in memory: right bytes whatever was read before, whatever is killed, whatever is damaged.

use std::sync::atomic::{AtomicU64, AtomicUsize};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::fill::{Filled, fill};
use super::*;

const POINT: Uuid = Uuid::from_u128(7);
const DISK: Uuid = Uuid::from_u128(8);
/// Not whole blocks, with a hole in the middle.
const SIZE: usize = 20 * BLOCK as usize + 1536;

/// A point's disk in a store, and what was read of it.
struct Store {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    read_bytes: AtomicU64,
    away: AtomicBool,
}

impl Store {
    fn new() -> Self {
        let hole = 3 * BLOCK as usize..9 * BLOCK as usize;
        let byte = |at| {
            if hole.contains(&at) {
                0
            } else {
                (at / 3 % 251) as u8 | 1
            }
        };
        Self {
            bytes: (0..SIZE).map(byte).collect(),
            reads: AtomicUsize::new(0),
            read_bytes: AtomicU64::new(0),
            away: AtomicBool::new(false),
        }
    }

    async fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.read_bytes.fetch_add(length as u64, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(io::Error::other("the store is away"));
        }
        let range = offset as usize..offset as usize + length;
        let found = self.bytes.get(range).map(Bytes::copy_from_slice);
        found.ok_or_else(|| io::Error::other("outside of the disk"))
    }
}

fn open(folder: &TempDir) -> Arc<LocalCopy> {
    let copy = LocalCopy::open(folder.path(), POINT, DISK, SIZE as u64).expect("open");
    copy.keep_more(true);
    Arc::new(copy)
}

async fn read(copy: &LocalCopy, store: &Store, offset: usize, length: usize) -> io::Result<Bytes> {
    let read = |offset, length| store.read(offset, length);
    copy.read(offset as u64, length, read).await
}

async fn filled(copy: &Arc<LocalCopy>, store: &Store) -> io::Result<Filled> {
    let read = |offset, length| store.read(offset, length);
    fill(copy, read, || true, &CancellationToken::new()).await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_read_gives_the_points_bytes_and_none_is_fetched_twice(
        reads in proptest::collection::vec((0_usize..SIZE, 1_usize..200_000), 1..30), reopen in any::<prop::sample::Index>())
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (folder, store) = (TempDir::new().expect("folder"), Store::new());
            let mut copy = open(&folder);
            let reopen = reopen.index(reads.len());
            for (index, (offset, length)) in reads.into_iter().enumerate() {
                if index == reopen {
                    copy.checkpoint().await.expect("checkpoint");
                    copy = open(&folder);
                }
                let length = length.min(SIZE - offset);
                let got = read(&copy, &store, offset, length).await.expect("read");
                assert!(got[..] == store.bytes[offset..offset + length], "{length} at {offset}");
                let before = store.reads.load(Ordering::SeqCst);
                read(&copy, &store, offset, length).await.expect("again");
                assert_eq!(store.reads.load(Ordering::SeqCst), before, "read twice");
            }
        });
    }
}

#[tokio::test]
async fn a_filled_copy_needs_no_store_also_after_a_restart() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let copy = open(&folder);
    read(&copy, &store, 100, 4096).await.expect("read");
    assert_eq!(filled(&copy, &store).await.expect("fill"), Filled::Complete);
    assert_eq!(copy.progress(), (SIZE as u64, SIZE as u64));
    // Each byte came once.
    assert_eq!(store.read_bytes.load(Ordering::SeqCst), SIZE as u64);
    store.away.store(true, Ordering::SeqCst);
    for copy in [copy, open(&folder)] {
        assert!(copy.is_complete());
        let all = read(&copy, &store, 0, SIZE).await.expect("all");
        assert!(all[..] == store.bytes[..]);
    }
}

#[tokio::test]
async fn a_copy_that_was_cut_off_keeps_what_was_durable_and_fetches_the_rest_again() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let copy = open(&folder);
    read(&copy, &store, 0, 4096).await.expect("read");
    copy.checkpoint().await.expect("checkpoint");
    read(&copy, &store, 12 * BLOCK as usize, 4096)
        .await
        .expect("read");
    // Killed before the next checkpoint, with anything in the blocks that the map does not name.
    drop(copy);
    let torn = File::options()
        .write(true)
        .open(path_of(folder.path(), DISK))
        .expect("copy");
    torn.write_all_at(&[0xee; 5000], 12 * BLOCK).expect("tear");
    let copy = open(&folder);
    assert_eq!(copy.progress().0, BLOCK);
    assert_eq!(filled(&copy, &store).await.expect("fill"), Filled::Complete);
    let all = read(&copy, &store, 0, SIZE).await.expect("all");
    assert!(all[..] == store.bytes[..]);
}

#[tokio::test]
async fn a_store_that_goes_away_costs_nothing_that_is_here_and_the_fill_goes_on_later() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let copy = open(&folder);
    read(&copy, &store, 0, 1).await.expect("read");
    store.away.store(true, Ordering::SeqCst);
    filled(&copy, &store).await.expect_err("away");
    assert_eq!(open(&folder).progress().0, BLOCK, "durable");
    read(&copy, &store, 17, 1000).await.expect("here");
    read(&copy, &store, 5 * BLOCK as usize, 1)
        .await
        .expect_err("not here");
    store.away.store(false, Ordering::SeqCst);
    assert_eq!(filled(&copy, &store).await.expect("fill"), Filled::Complete);
}

#[tokio::test]
async fn without_room_or_when_told_to_the_fill_stops_and_what_is_here_is_durable() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let copy = open(&folder);
    let read_store = |offset, length| store.read(offset, length);
    let stop = CancellationToken::new();
    read(&copy, &store, 0, 1).await.expect("read");
    let ended = fill(&copy, read_store, || false, &stop).await;
    assert_eq!(ended.expect("fill"), Filled::NoRoom);
    assert_eq!(open(&folder).progress().0, BLOCK);
    // A store that never answers holds no stop up.
    let silent = |_, _| {
        stop.cancel();
        std::future::pending::<io::Result<Bytes>>()
    };
    let ended = fill(&copy, silent, || true, &stop).await;
    assert_eq!(ended.expect("fill"), Filled::Stopped);
}

#[tokio::test]
async fn a_copy_of_another_point_or_of_another_size_or_with_a_damaged_map_begins_anew() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let begin = async |folder: &TempDir| {
        let copy = open(folder);
        assert_eq!(filled(&copy, &store).await.expect("fill"), Filled::Complete);
    };
    begin(&folder).await;
    let other = LocalCopy::open(folder.path(), DISK, DISK, SIZE as u64).expect("open");
    assert_eq!(other.progress().0, 0);
    begin(&folder).await;
    let grown = LocalCopy::open(folder.path(), POINT, DISK, SIZE as u64 + 512).expect("open");
    assert_eq!(grown.progress().0, 0);
    begin(&folder).await;
    let map = map_of(folder.path(), DISK);
    let mut bytes = std::fs::read(&map).expect("map");
    bytes[50] ^= 1;
    std::fs::write(&map, bytes).expect("damage");
    assert_eq!(open(&folder).progress().0, 0);
    begin(&folder).await;
    std::fs::remove_file(path_of(folder.path(), DISK)).expect("lose the data");
    assert_eq!(open(&folder).progress().0, 0);
}

#[tokio::test]
async fn a_hole_of_the_disk_takes_no_room() {
    use std::os::unix::fs::MetadataExt as _;
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    filled(&open(&folder), &store).await.expect("fill");
    let metadata = std::fs::metadata(path_of(folder.path(), DISK)).expect("copy");
    assert!(
        metadata.blocks() * 512 <= SIZE as u64 - 5 * BLOCK,
        "{metadata:?}"
    );
    remove_all(folder.path()).expect("remove");
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
}

#[tokio::test]
async fn a_copy_that_can_not_be_written_is_done_without_and_the_guest_reads_on() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let mut copy = LocalCopy::open(folder.path(), POINT, DISK, SIZE as u64).expect("open");
    copy.keep_more(true);
    // A file that nothing can be written to stands for a disk that is full or failing.
    copy.file = Arc::new(File::open(path_of(folder.path(), DISK)).expect("read only"));
    let copy = Arc::new(copy);
    let got = read(&copy, &store, 10, 100).await.expect("read");
    assert!(got[..] == store.bytes[10..110]);
    assert!(copy.is_broken() && !copy.is_complete());
    let got = read(&copy, &store, 10, 100).await.expect("read on");
    assert!(got[..] == store.bytes[10..110]);
    assert_eq!(filled(&copy, &store).await.expect("fill"), Filled::Broken);
}

#[tokio::test]
async fn nothing_is_kept_before_there_is_room_and_a_discarded_copy_gives_its_room_back() {
    use std::os::unix::fs::MetadataExt as _;
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let copy = open(&folder);
    copy.keep_more(false);
    read(&copy, &store, 10, 100).await.expect("read");
    assert_eq!(copy.progress().0, 0);
    copy.keep_more(true);
    assert_eq!(filled(&copy, &store).await.expect("fill"), Filled::Complete);
    copy.discard().await.expect("discard");
    let metadata = std::fs::metadata(path_of(folder.path(), DISK)).expect("copy");
    assert_eq!(metadata.blocks(), 0, "{metadata:?}");
    assert!(!copy.is_complete() && copy.progress().0 == 0);
    let got = read(&copy, &store, 10, 100).await.expect("read on");
    assert!(got[..] == store.bytes[10..110]);
    assert_eq!(open(&folder).progress().0, 0);
}

#[tokio::test]
async fn a_copy_is_not_made_anew_under_one_that_is_still_written() {
    let (folder, store) = (TempDir::new().expect("folder"), Store::new());
    let old = open(&folder);
    let new = open(&folder);
    read(&old, &store, 0, 4096).await.expect("read");
    old.checkpoint().await.expect("checkpoint");
    drop((old, new));
    let again = open(&folder);
    store.away.store(true, Ordering::SeqCst);
    let got = read(&again, &store, 0, 4096).await.expect("here");
    assert!(got[..] == store.bytes[..4096]);
}

#[test]
fn only_copies_and_their_maps_are_removed() {
    let folder = TempDir::new().expect("folder");
    let id = Uuid::from_u128(7);
    let ours = [
        format!("{id}.copy"),
        format!("{id}.copy.map"),
        format!(".{id}.copy.map.new"),
    ];
    let theirs = [
        "data.copy.vhdx".to_owned(),
        format!("{id}.copy.vhdx"),
        "vm.toml".to_owned(),
    ];
    for name in ours.iter().chain(&theirs) {
        std::fs::write(folder.path().join(name), "x").expect("write");
    }
    remove_all(folder.path()).expect("remove");
    for (names, there) in [(&ours, false), (&theirs, true)] {
        for name in names {
            assert_eq!(folder.path().join(name).exists(), there, "{name}");
        }
    }
}
