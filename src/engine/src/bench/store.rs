//! What a store takes: cycles of 16 MiB of data that does not compress, each durable before the next.
//!
//! A deleted replica leaves its generation in the store, so that no stale engine makes it anew. Nobody else ever knew the
//! one that is made here, so in a folder that is removed too; in a container a blob of some bytes stays.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use replica_store::{
    DiskSpec, Generation, PointKind, Position, RecoveryPoint, ReplicaKey, ReplicaWriter,
    StoreTarget, delete_replica,
};
use uuid::Uuid;

use super::{Figure, Unit, noise};
use crate::location;

const CYCLE: usize = 16 << 20;
const PIECE: usize = 1 << 20;
const DISK: u64 = 64 << 20;

/// In a replica of its own, which is deleted afterwards.
pub(super) async fn cycles(store: &str, time: Duration) -> anyhow::Result<Vec<Figure>> {
    let target = location::target(store)?;
    let key = ReplicaKey::new("bench", format!("bench-{}", Uuid::new_v4().simple()))?;
    let measured = measure(&target, &key, time).await;
    let deleted = delete_replica(&target, &key, Generation(1))
        .await
        .context("delete what was written");
    let figures = measured?;
    deleted?;
    if let StoreTarget::Folder(folder) = &target {
        let vault = folder.join(key.vault_key());
        std::fs::remove_dir_all(vault.join(key.item_id()))
            .with_context(|| format!("remove what is left in {}", vault.display()))?;
        // Stays when it is not empty: it may be somebody's.
        std::fs::remove_dir(&vault).ok();
    }
    Ok(figures)
}

async fn measure(
    target: &StoreTarget,
    key: &ReplicaKey,
    time: Duration,
) -> anyhow::Result<Vec<Figure>> {
    let disk = Uuid::new_v4();
    let disks = [DiskSpec {
        id: disk,
        size_bytes: DISK,
        name: "bench".to_owned(),
    }];
    let writer = ReplicaWriter::open(target, key, Generation(1), &disks).await?;
    let data = Bytes::from(noise(10, CYCLE));
    let begin = Instant::now();
    for at in (0..CYCLE).step_by(PIECE) {
        writer
            .base_write(disk, at as u64, data.slice(at..at + PIECE))
            .await?;
    }
    writer.base_flush().await?;
    let base = CYCLE as f64 / begin.elapsed().as_secs_f64();
    writer
        .complete_base(RecoveryPoint {
            id: Uuid::new_v4(),
            time_unix_ms: 1,
            kind: PointKind::Crash,
            position: Position::BASE,
            vm_config: serde_json::Value::Null,
            changed_bytes: 0,
            sent_bytes: 0,
            group_point_id: None,
        })
        .await?;
    let begin = Instant::now();
    let mut position = Position::BASE;
    while position == Position::BASE || begin.elapsed() < time {
        position = position.next();
        let mut cycle = writer.begin_cycle(position, position.0 as i64 + 1).await?;
        for at in (0..CYCLE).step_by(PIECE) {
            cycle
                .write(disk, at as u64, data.slice(at..at + PIECE))
                .await?;
        }
        cycle.commit().await?;
    }
    let rate = position.0 as f64 * CYCLE as f64 / begin.elapsed().as_secs_f64();
    let figure = |name: &str, per_second| Figure {
        name: name.to_owned(),
        per_second,
        unit: Unit::Bytes,
    };
    Ok(vec![
        figure("store (base, 1 MiB writes)", base),
        figure("store (cycles of 16 MiB)", rate),
    ])
}
