//! A store that is full or can't be written says so, loses nothing, and works again afterwards.

mod support;

use std::io;
use std::sync::Arc;

use replica_store::{
    ErrorKind, Generation, ReplicaState, ReplicaWriter, RetentionPolicy, StoreTarget,
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
    use std::path::{Path, PathBuf};

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
    let mut size = 6 << 20;
    while std::fs::write(&ballast, vec![1u8; size]).is_err() {
        size -= 4096;
    }
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
    drop(mounted);
}
