//! Background proof of what the store holds: everything that points need is read again, a piece at a time.
//!
//! Journal objects carry checksums; base is compared with the maps of block hashes. What is found damaged is sent
//! again from the source with the next cycle, and a person is told which points show it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use replica_store::{BlockCheck, Position, VerifyRequest};
use uuid::Uuid;

use super::hashes::{BLOCK, BlockHash, BlockMap};
use super::shared::{Item, Shared};
use super::status::Origin;
use super::trouble::Trouble;
use crate::finding;

/// Read in one go; shipping waits for no more than this.
const BUDGET_BYTES: u64 = 128 << 20;

/// What maps say about the replica's head.
struct MapCheck {
    position: Position,
    maps: BTreeMap<Uuid, Arc<BlockMap>>,
}

impl std::fmt::Debug for MapCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapCheck")
            .field("position", &self.position)
            .field("disks", &self.maps.len())
            .finish()
    }
}

impl BlockCheck for MapCheck {
    fn position(&self) -> Position {
        self.position
    }

    fn differing(&self, disk: Uuid, offset: u64, data: &[u8]) -> Vec<Range<u64>> {
        let Some(map) = self.maps.get(&disk) else {
            return Vec::new();
        };
        // Parts of blocks can't be told; a reader asks for whole ones.
        let first = offset.div_ceil(BLOCK);
        let skip = usize::try_from(first * BLOCK - offset).unwrap_or(usize::MAX);
        let Some(data) = data.get(skip..).filter(|data| !data.is_empty()) else {
            return Vec::new();
        };
        let Ok(known) = map.get(first, data.len().div_ceil(BLOCK as usize)) else {
            return Vec::new();
        };
        let end_of_disk = map.header().size_bytes;
        let mut found: Vec<Range<u64>> = Vec::new();
        for ((block, known), data) in (first..).zip(known).zip(data.chunks(BLOCK as usize)) {
            let (start, end) = (block * BLOCK, block * BLOCK + data.len() as u64);
            let whole = data.len() as u64 == BLOCK || end == end_of_disk;
            if !whole || known == BlockHash::UNKNOWN || known == BlockHash::of(map.key(), data) {
                continue;
            }
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
        }
        found
    }
}

/// Verifies a piece when it is time to. `true` = there is more to do in this round.
pub(super) async fn step(item: &Item, shared: &Shared) -> Result<bool, Trouble> {
    let Some(every) = item.policy.borrow().verification else {
        return Ok(false);
    };
    let state = shared.state().await;
    if !state.complete {
        // There is no point yet that could be verified.
        return Ok(false);
    }
    let now = (item.context.clock)();
    if state.last_verified_unix_ms > 0
        && !shared.is_verifying()
        && elapsed(state.last_verified_unix_ms, now) < every
    {
        return Ok(false);
    }
    let disks = state.disks.iter();
    let maps = disks.filter_map(|disk| Some((disk.id.0, shared.maps.get(disk.id)?)));
    let check = MapCheck {
        position: Position(state.shipped),
        maps: maps.collect(),
    };
    let request = VerifyRequest {
        budget_bytes: BUDGET_BYTES,
        now_unix_ms: now,
        check: Some(Arc::new(check)),
    };
    let writer = shared.writer(item).await?;
    let found = writer.verify(request).await?;
    let under_way = found.round.is_some();
    shared.set_verifying(under_way);
    let rounds = found.round.iter().chain(&found.last);
    let damage: Vec<_> = rounds
        .filter(|round| round.finished_unix_ms == 0 || !under_way)
        .flat_map(|round| &round.findings)
        .collect();
    shared.doubt(damage.iter().map(|finding| &finding.damage));
    let points: std::collections::BTreeSet<_> =
        damage.iter().flat_map(|finding| &finding.points).collect();
    let told = (!damage.is_empty())
        .then(|| finding::points_damaged(&item.spec.store_folder, damage.len(), points.len()));
    item.status.notice(Origin::Verify, told);
    if let Some(last) = found.last.filter(|_| !under_way) {
        if last.findings.is_empty() {
            shared
                .update(item, |state| {
                    state.last_verified_unix_ms = last.finished_unix_ms;
                })
                .await?;
        } else {
            tracing::warn!(
                item = item.spec.item_id,
                findings = last.findings.len(),
                "what the store holds is damaged; it is sent again"
            );
            // The next round proves that it healed; it begins when the next cycle is there.
            shared
                .update(item, |state| state.last_verified_unix_ms = 0)
                .await?;
        }
    }
    Ok(under_way)
}

fn elapsed(since_unix_ms: i64, now_unix_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_unix_ms.saturating_sub(since_unix_ms)).unwrap_or(0))
}
