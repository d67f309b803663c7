//! A disk copy becomes the start of base, whatever its format, and however often it is cut.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use replica_store::{ErrorKind, Generation, ReplicaState, ReplicaWriter};
use support::*;

const SEED: u64 = 41;

fn raw(store: &Store) -> PathBuf {
    let path = store.path().join("copy.raw");
    let mut content = history(SEED, 0)[0][0].clone();
    content.resize(content.len().next_multiple_of(512), 0);
    std::fs::write(&path, content).unwrap();
    path
}

fn converted(raw: &Path, format: &str, options: &str) -> PathBuf {
    let path = raw.with_extension(format);
    let done = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format, "-o", options])
        .args([raw, &path])
        .status()
        .expect("qemu-img is installed, as the README asks");
    assert!(done.success());
    path
}

async fn base_of(writer: &ReplicaWriter) -> Vec<u8> {
    let length = SIZES[0] as usize;
    writer.base_read(disk(0), 0, length).await.unwrap().to_vec()
}

#[tokio::test]
async fn raw_vhd_and_vhdx_copies_give_the_same_base() {
    let wanted = history(SEED, 0)[0][0].clone();
    for format in ["raw", "vpc", "vhdx"] {
        let store = Store::new();
        let raw = raw(&store);
        let source = match format {
            "raw" => raw,
            "vpc" => converted(&raw, "vpc", "subformat=dynamic,force_size=on"),
            _ => converted(&raw, "vhdx", "subformat=dynamic"),
        };
        let writer = store.writer(1).await.unwrap();
        let seeded = writer
            .seed_base(disk(0), source.clone(), |_| {})
            .await
            .unwrap();
        assert_eq!(seeded.covered_bytes, SIZES[0], "{format}");
        assert!(seeded.written_bytes > 0);
        assert!(base_of(&writer).await == wanted, "{format}");
        assert_eq!(writer.state().await.unwrap(), ReplicaState::Partial);
        // Once more writes nothing.
        let again = writer.seed_base(disk(0), source, |_| {}).await.unwrap();
        assert_eq!(again.written_bytes, 0, "{format}");
        replicate_base(&writer, SEED).await.unwrap();
        let reader = store.reader().await.unwrap();
        assert_eq!(check_points(&reader, &history(SEED, 0), format).await, [0]);
    }
}

#[tokio::test]
async fn a_seeding_that_is_cut_anywhere_goes_on() {
    for mode in [Mode::Kill, Mode::Tear, Mode::KillAfter] {
        for at in 0.. {
            let store = Store::new();
            let source = raw(&store);
            let faults = Arc::new(Striker::new(at, mode));
            let opened = ReplicaWriter::open_with_faults(
                faults.clone(),
                &store.target(),
                &store.key(),
                Generation(1),
                &specs(),
            )
            .await;
            if let Ok(writer) = opened {
                let _ = writer.seed_base(disk(0), source.clone(), |_| {}).await;
            }
            let writer = store.writer(2).await.unwrap();
            writer.seed_base(disk(0), source, |_| {}).await.unwrap();
            assert!(
                base_of(&writer).await == history(SEED, 0)[0][0],
                "{mode:?} at {at}"
            );
            if !faults.has_struck() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_copy_that_is_no_image_or_comes_too_late_is_refused() {
    let store = Store::new();
    let writer = store.writer(1).await.unwrap();
    let broken = store.path().join("copy.vhdx");
    std::fs::write(&broken, [b"vhdxfile".as_slice(), &[0xff; 70_000]].concat()).unwrap();
    let error = writer.seed_base(disk(0), broken, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("copy.vhdx"), "{error}");
    let nowhere = store.path().join("nowhere");
    assert!(writer.seed_base(disk(0), nowhere, |_| {}).await.is_err());
    assert_eq!(writer.state().await.unwrap(), ReplicaState::Empty);
    replicate_base(&writer, SEED + 1).await.unwrap();
    let error = writer
        .seed_base(disk(0), raw(&store), |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
}
