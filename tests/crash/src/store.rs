//! Manifest, points, journal and base of a replica in a folder: after a power loss at any step every point
//! that is there is right, no acknowledged one is gone unless retention may have retired it, and an engine
//! that starts again goes on to the same end.
//!
//! The life that is cut: initial replication, cycles, retention, a take-over, a key rotation, a disk
//! that grows, one that is added, one that is excluded.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use replica_store::fault::Faults;
use replica_store::{
    CyclePlan, DiskSpec, DiskStart, Generation, PointKind, PointSelector, Position, RecoveryPoint,
    ReplicaKey, ReplicaReader, ReplicaState, ReplicaView, ReplicaWriter, RetentionPolicy,
    StoreError, StoreTarget, WriterOptions,
};
use replication_log::KeyRing;
use replication_log::journal::CompressionLevel;
use uuid::Uuid;

use crate::random::Random;
use crate::replica_life::{Enumeration, Known, Powered, runtime, text};
use crate::tally::Tally;

const LAST: u64 = 6;
const HOUR_MS: i64 = 3_600_000;
const START_MS: i64 = 1_767_323_045_000;
/// The disk that grows, the one that is excluded in the end, the one that joins.
const GROWS: u128 = 1;
const LEAVES: u128 = 2;
const JOINS: u128 = 3;

/// Disks of one position, in the order of the cycle.
type Disks = Vec<(u128, Vec<u8>)>;

/// Which disks a position has, and how large they are.
fn sizes(position: u64) -> Vec<(u128, usize)> {
    let grown = if position >= 4 { 300_032 } else { 200_192 };
    let mut disks = vec![(GROWS, grown)];
    if position < LAST {
        disks.push((LEAVES, 90_112));
    }
    if position >= 5 {
        disks.push((JOINS, 70_144));
    }
    disks
}

/// What a cycle writes: a function of seed and position. `None`: zeroes.
fn changes(seed: u64, position: u64) -> Vec<(u128, usize, usize, Option<u64>)> {
    let mut random = Random::new(seed.wrapping_mul(1000) + position);
    let sizes = sizes(position);
    (0..4 + random.below(4))
        .map(|n| {
            // The disk that joins has its first content by changes of its own.
            let at = if position == 5 && n == 0 {
                sizes.len() - 1
            } else {
                random.below(sizes.len() as u64) as usize
            };
            let (disk, size) = sizes[at];
            let length = 1 + random.below(30_000) as usize;
            let offset = random.below((size - length) as u64) as usize;
            let content = (!random.chance(25)).then(|| random.number());
            (disk, offset, length, content)
        })
        .collect()
}

fn content(seed: Option<u64>, length: usize) -> Vec<u8> {
    seed.map_or_else(|| vec![0; length], |seed| Random::new(seed).bytes(length))
}

/// The disks at every position.
fn history(seed: u64) -> Vec<Disks> {
    let mut now: Disks = Vec::new();
    (0..=LAST)
        .map(|position| {
            now = sizes(position)
                .into_iter()
                .map(|(disk, size)| {
                    let before = now.iter().find(|(id, _)| *id == disk);
                    let mut data = before.map_or_else(Vec::new, |(_, data)| data.clone());
                    data.resize(size, 0);
                    (disk, data)
                })
                .collect();
            for (disk, offset, length, seed) in changes(seed, position) {
                if let Some((_, data)) = now.iter_mut().find(|(id, _)| *id == disk) {
                    data[offset..offset + length].copy_from_slice(&content(seed, length));
                }
            }
            now.clone()
        })
        .collect()
}

fn specs(position: u64) -> Vec<DiskSpec> {
    sizes(position)
        .into_iter()
        .map(|(disk, size)| DiskSpec {
            id: Uuid::from_u128(disk),
            size_bytes: size as u64,
            name: format!("disk{disk}.vhdx"),
        })
        .collect()
}

fn point(position: u64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(0x9017_0000 + u128::from(position)),
        time_unix_ms: START_MS + position as i64 * HOUR_MS,
        kind: PointKind::Crash,
        position: Position(position),
        vm_config: serde_json::json!({ "at": position }),
        changed_bytes: 1,
        sent_bytes: 1,
        group_point_id: None,
    }
}

/// Keys 1 to `count`; the last one writes.
fn keys(count: u8) -> KeyRing {
    let mut ring = KeyRing::new();
    for n in 1..=count {
        let id = Uuid::from_u128(u128::from(n));
        if ring.insert(id, &[n; 32]).is_ok() && n == count {
            ring.activate(Some(id)).unwrap_or_default();
        }
    }
    ring
}

struct Life<'a> {
    folder: &'a Path,
    seed: u64,
    faults: Option<Arc<dyn Faults>>,
    known: Arc<Mutex<Known>>,
}

impl Life<'_> {
    fn target(&self) -> StoreTarget {
        StoreTarget::Folder(self.folder.to_owned())
    }

    fn key() -> Result<ReplicaKey, StoreError> {
        ReplicaKey::new("vault-0a1b2c3d", "item-1")
    }

    fn known(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn open(&self, generation: u64, key_count: u8) -> Result<ReplicaWriter, StoreError> {
        let options = WriterOptions {
            keys: keys(key_count),
            any_disks: true,
            faults: self.faults.clone(),
            ..WriterOptions::default()
        };
        let generation = Generation(generation);
        let disks = specs(0);
        ReplicaWriter::open_with(options, &self.target(), &Self::key()?, generation, &disks).await
    }

    async fn base(&self, writer: &ReplicaWriter, image: &Disks) -> Result<(), StoreError> {
        for (disk, data) in image {
            let id = Uuid::from_u128(*disk);
            writer.base_write(id, 0, data.clone().into()).await?;
        }
        writer.base_flush().await?;
        writer.complete_base(point(0)).await?;
        self.known(|known| {
            known.acknowledged.insert(0);
        });
        Ok(())
    }

    /// The cycle of a position and its point.
    async fn cycle(&self, writer: &ReplicaWriter, position: u64) -> Result<(), StoreError> {
        if position == 5 {
            self.join(writer).await?;
        }
        let plan = CyclePlan {
            position: Position(position),
            time_unix_ms: point(position).time_unix_ms,
            disks: Some(specs(position)),
            compression: CompressionLevel::FASTEST,
        };
        let mut cycle = writer.begin_cycle_with(plan).await?;
        for (disk, offset, length, seed) in changes(self.seed, position) {
            let (id, offset) = (Uuid::from_u128(disk), offset as u64);
            match seed {
                Some(_) => {
                    cycle
                        .write(id, offset, content(seed, length).into())
                        .await?
                }
                None => cycle.zero(id, offset, length as u64).await?,
            }
        }
        cycle.commit().await?;
        self.point(writer, position).await
    }

    async fn point(&self, writer: &ReplicaWriter, position: u64) -> Result<(), StoreError> {
        writer.add_point(point(position)).await?;
        self.known(|known| {
            known.acknowledged.insert(position);
        });
        Ok(())
    }

    /// The base of the disk that joins is zero: what it holds comes with its first cycle.
    async fn join(&self, writer: &ReplicaWriter) -> Result<(), StoreError> {
        let Some(disk) = specs(5)
            .into_iter()
            .find(|disk| disk.id == Uuid::from_u128(JOINS))
        else {
            return Ok(());
        };
        let (id, size) = (disk.id, disk.size_bytes as usize);
        match writer.begin_disk(disk).await? {
            DiskStart::Empty | DiskStart::Partial => {
                writer.base_write(id, 0, vec![0; size].into()).await?;
                writer.base_flush().await?;
                writer.complete_disk(id).await
            }
            DiskStart::Ready | DiskStart::Known => Ok(()),
        }
    }

    async fn maintain(
        &self,
        writer: &ReplicaWriter,
        now: u64,
        hours: u32,
    ) -> Result<(), StoreError> {
        let oldest_kept = now.saturating_sub(u64::from(hours));
        self.known(|known| known.retirable.extend(0..oldest_kept));
        let now = point(now).time_unix_ms;
        writer
            .maintain(now, RetentionPolicy::hours(hours))
            .await
            .map(drop)
    }

    /// All of it, from the position after `head`.
    async fn run(
        &self,
        writer: ReplicaWriter,
        head: u64,
        writer_generation: u64,
    ) -> Result<(), StoreError> {
        let mut writer = writer;
        for position in head + 1..=LAST {
            if position == 4 && writer_generation == 1 {
                writer = self.open(2, 2).await?;
            }
            self.cycle(&writer, position).await?;
            match position {
                3 => self.maintain(&writer, 3, 2).await?,
                4 => self.maintain(&writer, 4, 1).await?,
                5 | LAST => self.maintain(&writer, position, 0).await?,
                _ => {}
            }
        }
        Ok(())
    }
}

async fn image_of(view: &ReplicaView) -> Result<Disks, StoreError> {
    let mut image = Disks::new();
    for spec in view.disks().to_vec() {
        let data = view.read(spec.id, 0, spec.size_bytes as usize).await?;
        image.push((spec.id.as_u128(), data.to_vec()));
    }
    image.sort_unstable_by_key(|(disk, _)| *disk);
    Ok(image)
}

/// All points equal the model; gives their positions.
async fn points(reader: &ReplicaReader, model: &[Disks]) -> Result<BTreeSet<u64>, String> {
    let mut positions = BTreeSet::new();
    for kept in reader.points().await.map_err(text)? {
        let position = kept.position.0;
        if kept != point(position) {
            return Err(format!("point {position} is not as it was added"));
        }
        let view = reader
            .view(PointSelector::Id(kept.id))
            .await
            .map_err(text)?;
        if image_of(&view).await.map_err(text)? != model[position as usize] {
            return Err(format!("point {position} differs from the source"));
        }
        positions.insert(position);
    }
    Ok(positions)
}

/// What a reader finds after the power loss, and what a restarted engine makes of it.
async fn check(folder: &Path, seed: u64, model: &[Disks], known: &Known) -> Result<(), String> {
    let life = Life {
        folder,
        seed,
        faults: None,
        known: Arc::default(),
    };
    let key = Life::key().map_err(text)?;
    let target = life.target();
    let reader = || ReplicaReader::open_with_keys(&target, &key, keys(3));
    let must: BTreeSet<u64> = known
        .acknowledged
        .difference(&known.retirable)
        .copied()
        .collect();
    match reader().await {
        Ok(reader) => {
            let kept = points(&reader, model).await?;
            if !must.is_subset(&kept) {
                return Err(format!(
                    "of the acknowledged points {must:?} only {kept:?} are left"
                ));
            }
        }
        Err(error) if !must.is_empty() => {
            return Err(format!(
                "the replica is gone, with points {must:?}: {error}"
            ));
        }
        Err(_) => {}
    }
    let writer = life.open(3, 3).await.map_err(text)?;
    let head = match writer.state().await.map_err(text)? {
        ReplicaState::Empty | ReplicaState::Partial => {
            life.base(&writer, &model[0]).await.map_err(text)?;
            0
        }
        ReplicaState::Complete { head_position, .. } => head_position.0,
    };
    let view = writer.head_view().await.map_err(text)?;
    if image_of(&view).await.map_err(text)? != model[head as usize] {
        return Err(format!("the head at {head} differs from the source"));
    }
    // The point of the head may be missing: an acknowledged cycle, cut before the point.
    life.point(&writer, head).await.map_err(text)?;
    life.run(writer.clone(), head, 3).await.map_err(text)?;
    life.maintain(&writer, LAST, 0).await.map_err(text)?;
    let kept = points(&reader().await.map_err(text)?, model).await?;
    if kept != BTreeSet::from([LAST]) {
        return Err(format!("in the end points {kept:?} are kept"));
    }
    Ok(())
}

/// Lives once, and checks what a power loss before each step would leave.
pub fn enumerate(seed: u64) -> Tally {
    let model = history(seed);
    Enumeration {
        component: "manifest, points, journal, base",
        seed,
        may_fail: |_| true,
        live: &|powered| live(seed, &model, powered),
        check: &|folder, known| runtime()?.block_on(check(folder, seed, &model, known)),
    }
    .run()
}

fn live(seed: u64, model: &[Disks], powered: Powered<'_>) -> Result<(), String> {
    let life = Life {
        folder: powered.folder,
        seed,
        faults: Some(powered.faults),
        known: powered.known,
    };
    runtime()?.block_on(async {
        let writer = life.open(1, 1).await.map_err(text)?;
        life.base(&writer, &model[0]).await.map_err(text)?;
        life.run(writer, 0, 1).await.map_err(text)
    })
}
