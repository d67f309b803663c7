//! A store that is full or can't be written says so, loses nothing, and works again afterwards.

mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use replica_store::fault::{Fault, Faults, StepKind};
use replica_store::{
    ErrorKind, Generation, ReplicaState, ReplicaWriter, RetentionPolicy, StoreTarget,
    delete_replica, delete_replica_with_faults,
};
use support::*;

const SEED: u64 = 13;

#[tokio::test]
async fn a_full_store_at_any_step_is_told_and_loses_nothing() {
    for (error, kind) in [
        (io::ErrorKind::StorageFull, ErrorKind::Full),
        (io::ErrorKind::QuotaExceeded, ErrorKind::Full),
        (io::ErrorKind::ReadOnlyFilesystem, ErrorKind::ReadOnly),
        (io::ErrorKind::PermissionDenied, ErrorKind::ReadOnly),
    ] {
        for at in 0.. {
            let store = Store::new();
            drop(store.filled(SEED, 2).await);
            let faults = Arc::new(Striker::new(at, Mode::Error(error)));
            let attempt = async {
                let writer = ReplicaWriter::open_with_faults(
                    faults.clone(),
                    &store.target(),
                    &store.key(),
                    Generation(2),
                    &specs(),
                )
                .await?;
                send(&writer, SEED, 3).await?;
                let policy = RetentionPolicy::hours(1);
                writer.maintain(point(3).time_unix_ms, policy).await
            };
            match attempt.await {
                Ok(_) => assert!(!faults.has_struck(), "step {at} was swallowed"),
                Err(error) => {
                    assert_eq!(error.kind(), kind, "{error}");
                    assert!(error.is_retryable());
                    assert!(
                        error.to_string().contains("item-1"),
                        "{error} names no path"
                    );
                }
            }
            let writer = store.writer(3).await.unwrap();
            send(&writer, SEED, 3).await.ok();
            writer.add_point(point(3)).await.unwrap();
            let reader = store.reader().await.unwrap();
            let kept = check_points(&reader, &history(SEED, 3), "full").await;
            assert!(kept.ends_with(&[2, 3]), "{kept:?}");
            if !faults.has_struck() {
                break;
            }
        }
    }
}

/// The same with the real thing: a file system of a few MiB.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_really_full_file_system_is_told_and_works_after_room_was_made() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use std::path::PathBuf;

    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    let remount = |path: &Path, flags: MsFlags, options: &str| {
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
    };

    let folder = tempfile::tempdir().unwrap();
    if remount(folder.path(), MsFlags::empty(), "size=6m").is_err() {
        eprintln!("not allowed to mount: the injected faults above must do");
        return;
    }
    let mounted = Mounted(folder.path().to_owned());
    let target = StoreTarget::Folder(folder.path().to_owned());
    let key = Store::new().key();
    let open = async |generation| {
        ReplicaWriter::open(&target, &key, Generation(generation), &specs()).await
    };
    let writer = open(1).await.unwrap();
    replicate_base(&writer, SEED).await.unwrap();
    let ballast = folder.path().join("ballast");
    let fill = |mut size: usize| {
        while std::fs::write(&ballast, vec![1u8; size]).is_err() {
            size -= 4096;
        }
    };
    fill(6 << 20);
    let error = send(&writer, SEED, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    let ReplicaState::Complete { head_position, .. } = writer.state().await.unwrap() else {
        panic!("base was complete");
    };
    assert_eq!(head_position.0, 0);
    std::fs::remove_file(&ballast).unwrap();
    send(&writer, SEED, 1).await.unwrap();

    remount(
        folder.path(),
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        "size=6m",
    )
    .unwrap();
    let error = send(&writer, SEED, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    let error = open(2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    // Recovery needs no write access.
    let reader = replica_store::ReplicaReader::open(&target, &key)
        .await
        .unwrap();
    let kept = check_points(&reader, &history(SEED, 1), "read-only").await;
    assert_eq!(kept, [0, 1]);
    remount(folder.path(), MsFlags::MS_REMOUNT, "size=6m").unwrap();
    send(&writer, SEED, 2).await.unwrap();

    // A removal needs no room: it makes some.
    fill(6 << 20);
    let error = send(&writer, SEED, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    let before = std::fs::metadata(&ballast).unwrap().len();
    delete_replica(&target, &key, Generation(1)).await.unwrap();
    assert!(
        replica_store::ReplicaReader::open(&target, &key)
            .await
            .is_err()
    );
    let error = open(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    fill(6 << 20);
    assert!(std::fs::metadata(&ballast).unwrap().len() > before + (1 << 20));
    drop(mounted);
}

/// A store without any room until something goes, and a process that is killed at a step.
#[derive(Debug)]
struct FullAndKilled {
    has_room: AtomicBool,
    killed: Striker,
}

impl Faults for FullAndKilled {
    fn before(&self, kind: StepKind, path: &Path) -> Fault {
        match self.killed.before(kind, path) {
            Fault::None => {}
            fault => return fault,
        }
        match kind {
            StepKind::Remove if !path.to_string_lossy().contains(".tmp-") => {
                self.has_room.store(true, Ordering::SeqCst);
                Fault::None
            }
            StepKind::Write | StepKind::CreateFile if !self.has_room.load(Ordering::SeqCst) => {
                Fault::Fail(io::ErrorKind::StorageFull)
            }
            _ => Fault::None,
        }
    }
}

#[tokio::test]
async fn a_replica_in_a_full_store_can_be_removed_whatever_dies_in_between() {
    for at in 0.. {
        let store = Store::new();
        drop(store.filled(SEED, 2).await);
        let faults = Arc::new(FullAndKilled {
            has_room: AtomicBool::new(false),
            killed: Striker::new(at, Mode::Kill),
        });
        let (target, key) = (store.target(), store.key());
        let removed =
            delete_replica_with_faults(faults.clone(), &target, &key, Generation(1)).await;
        if !faults.killed.has_struck() {
            removed.unwrap();
            assert!(store.is_removed(), "{:?}", store.files());
            assert!(at > 10);
            break;
        }
        // Whole or not there.
        if let Ok(reader) = store.reader().await {
            let kept = check_points(&reader, &history(SEED, 2), "removal").await;
            assert_eq!(kept, [0, 1, 2]);
        }
        delete_replica(&target, &key, Generation(1)).await.unwrap();
        assert!(store.is_removed(), "{:?}", store.files());
    }
}
