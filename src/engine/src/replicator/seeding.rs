//! Offline seeding: base begins as a disk copy that was brought to the store, and only differences are sent.
//!
//! The store copies; initial replication then compares base with the source, as after a cut. Repeating is resuming.

use std::sync::atomic::{AtomicU64, Ordering};

use engine_protocol::v1::replication_status::State;
use replica_store::ReplicaWriter;

use super::shared::{Item, Shared};
use super::trouble::Trouble;
use crate::task::blocking;

/// Fills base from the seeds that are not in it yet. `true` = base may hold something.
pub(super) async fn run(
    item: &Item,
    shared: &Shared,
    writer: &ReplicaWriter,
) -> Result<bool, Trouble> {
    let seeds = item.policy.borrow().seeds.clone();
    let state = shared.state().await;
    let size = |disk| {
        let found = state.disks.iter().find(|known| known.id == disk);
        found.map_or(0, |disk| disk.size_bytes)
    };
    let todo: Vec<_> = seeds
        .iter()
        .filter(|seed| item.spec.disks.contains(&seed.disk) && !state.seeded.contains(&seed.disk))
        .collect();
    let total: u64 = todo.iter().map(|seed| size(seed.disk)).sum();
    let mut done = 0;
    for seed in &todo {
        item.status.phase(State::InitialReplication);
        item.status.progress(done, total);
        let (status, at) = (item.status.clone(), AtomicU64::new(done));
        let progress = move |bytes: u64| {
            let before = at.fetch_add(bytes, Ordering::Relaxed);
            status.progress(before + bytes, total);
        };
        tracing::info!(
            item = item.spec.item_id,
            disk = %seed.disk,
            seed = %seed.path.display(),
            "base begins as a disk copy"
        );
        // An older copy may replace what an earlier try has filled: nobody vouches for that any more.
        let (state, maps, disk) = (shared.state().await, shared.maps.clone(), seed.disk);
        blocking(move || maps.begin_anew(&state, disk))
            .await
            .map_err(Trouble::io("begin a map of block hashes"))?;
        // Waited for to its end, also when the item stops: what goes on writing behind us would undo what comes after.
        let seeded = writer.seed_base(seed.disk.0, seed.path.clone(), progress);
        let seeded = seeded.await.map_err(|source| Trouble::Seed {
            path: seed.path.clone(),
            source,
        })?;
        tracing::info!(
            item = item.spec.item_id,
            disk = %seed.disk,
            covered_bytes = seeded.covered_bytes,
            written_bytes = seeded.written_bytes,
            "seeded; differences are next"
        );
        shared
            .update(item, |state| {
                state.seeded.insert(seed.disk);
            })
            .await?;
        done += size(seed.disk);
        if item.stop.is_cancelled() {
            return Err(Trouble::Stopped);
        }
    }
    let seeded = shared.state().await.seeded;
    Ok(item.spec.disks.iter().any(|disk| seeded.contains(disk)))
}
