//! Compaction of the journal in a folder: after a power loss at any step of thinning and merging, every point
//! that is there is right, none that retention keeps is gone, and the engine that starts again comes to the
//! same end, with nothing left over.
//!
//! The life that is cut: cycles, points thinned to one of three hours, a disk that is excluded inside of what
//! is merged, a take-over, the disk taken in again, points thinned further so that merged objects are merged
//! again, and base that takes them in.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use replica_store::fault::Faults;
use replica_store::{
    CyclePlan, DiskSpec, DiskStart, Generation, PointKind, PointSelector, Position, RecoveryPoint,
    ReplicaKey, ReplicaReader, ReplicaState, ReplicaView, ReplicaWriter, RetentionPolicy,
    RetentionTier, StoreError, StoreTarget, WriterOptions,
};
use replication_log::journal::CompressionLevel;
use uuid::Uuid;

use crate::random::Random;
use crate::replica_life::{Enumeration, Known, Powered, runtime, text};
use crate::tally::Tally;

const LAST: u64 = 9;
/// The power stays on until this point is there.
const FIRST_CUT: u64 = 4;
const HOUR_MS: i64 = 3_600_000;
const START_MS: i64 = 1_767_323_045_000;
const SIZE: usize = 49_152;
/// The disk that stays, and the one that is excluded at 4 and taken in again at 7.
const STAYS: Uuid = Uuid::from_u128(1);
const LEAVES: Uuid = Uuid::from_u128(2);

/// Both disks at a position; `None`: it has no such disk.
type Disks = [Option<Vec<u8>>; 2];

fn ids(position: u64) -> Vec<Uuid> {
    match position {
        4..=6 => vec![STAYS],
        _ => vec![STAYS, LEAVES],
    }
}

/// What a cycle writes: disk, offset, content.
fn changes(seed: u64, position: u64) -> Vec<(Uuid, usize, Vec<u8>)> {
    let mut random = Random::new(seed.wrapping_mul(1000) + position);
    let ids = ids(position);
    (0..4)
        .map(|n| {
            let id = ids[n % ids.len()];
            let length = 1 + random.below(9000) as usize;
            let offset = random.below((SIZE - length) as u64) as usize;
            let data = match random.below(4) {
                0 => vec![0; length],
                _ => random.bytes(length),
            };
            (id, offset, data)
        })
        .collect()
}

/// The disks at every position; while the second is excluded it is kept as it was.
fn history(seed: u64) -> Vec<Disks> {
    let mut now = [vec![0; SIZE], vec![0; SIZE]];
    (0..=LAST)
        .map(|position| {
            for (id, offset, data) in changes(seed, position) {
                let disk = &mut now[usize::from(id == LEAVES)];
                disk[offset..offset + data.len()].copy_from_slice(&data);
            }
            let has = ids(position).len() == 2;
            [Some(now[0].clone()), has.then(|| now[1].clone())]
        })
        .collect()
}

fn specs(position: u64) -> Vec<DiskSpec> {
    ids(position)
        .into_iter()
        .map(|id| DiskSpec {
            id,
            size_bytes: SIZE as u64,
            name: "disk.vhdx".to_owned(),
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

fn thinned(hours: u64) -> RetentionPolicy {
    let tier = RetentionTier {
        every_seconds: hours * 3600,
        for_seconds: 3_600_000,
    };
    let policy = RetentionPolicy::hours(0);
    policy.with_tiers(&[tier]).unwrap_or(policy)
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
        ReplicaKey::new("vault", "item")
    }

    fn known(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn open(&self, generation: u64) -> Result<ReplicaWriter, StoreError> {
        let options = WriterOptions {
            any_disks: true,
            faults: self.faults.clone(),
            // Some merges take several rounds.
            merge_bytes_per_round: self.seed.is_multiple_of(2).then_some(8000),
            ..WriterOptions::default()
        };
        let (target, key, disks) = (self.target(), Self::key()?, specs(0));
        ReplicaWriter::open_with(options, &target, &key, Generation(generation), &disks).await
    }

    async fn base(&self, writer: &ReplicaWriter, image: &Disks) -> Result<(), StoreError> {
        for (id, data) in [STAYS, LEAVES].into_iter().zip(image) {
            let data = data.clone().unwrap_or_default();
            writer.base_write(id, 0, data.into()).await?;
        }
        writer.base_flush().await?;
        writer.complete_base(point(0)).await?;
        self.known(|known| {
            known.acknowledged.insert(0);
        });
        Ok(())
    }

    async fn cycle(&self, writer: &ReplicaWriter, position: u64) -> Result<(), StoreError> {
        if position == 7 {
            self.take_in(writer).await?;
        }
        let plan = CyclePlan {
            position: Position(position),
            time_unix_ms: point(position).time_unix_ms,
            disks: Some(specs(position)),
            compression: CompressionLevel::FASTEST,
        };
        let mut cycle = writer.begin_cycle_with(plan).await?;
        for (id, offset, data) in changes(self.seed, position) {
            cycle.write(id, offset as u64, data.into()).await?;
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

    /// The disk that was excluded is known to the store, or begins anew with what it had.
    async fn take_in(&self, writer: &ReplicaWriter) -> Result<(), StoreError> {
        let Some(disk) = specs(0).pop() else {
            return Ok(());
        };
        let had = history(self.seed)[3][1].clone().unwrap_or_default();
        match writer.begin_disk(disk).await? {
            DiskStart::Empty | DiskStart::Partial => {
                writer.base_write(LEAVES, 0, had.into()).await?;
                writer.complete_disk(LEAVES).await
            }
            DiskStart::Ready | DiskStart::Known => Ok(()),
        }
    }

    /// Thins to one point of so many hours and merges what that leaves, round by round.
    async fn thin(&self, writer: &ReplicaWriter, now: u64, hours: u64) -> Result<(), StoreError> {
        let gone = (0..now).filter(|position| !position.is_multiple_of(hours));
        self.known(|known| known.retirable.extend(gone));
        let now = point(now).time_unix_ms;
        loop {
            let before = self.journal();
            let report = writer.maintain(now, thinned(hours)).await?;
            // A round that neither merges nor writes to the journal has nothing left to do.
            if report.merged_journal_objects == 0 && self.journal() == before && !self.is_merging()
            {
                return Ok(());
            }
        }
    }

    fn item(&self) -> std::path::PathBuf {
        self.folder.join("vault").join("item")
    }

    /// Names of the journal's objects.
    fn journal(&self) -> BTreeSet<String> {
        let Ok(listed) = std::fs::read_dir(self.item().join("journal")) else {
            return BTreeSet::new();
        };
        listed
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".hrl"))
            .collect()
    }

    fn is_merging(&self) -> bool {
        let manifest = std::fs::read_to_string(self.item().join("manifest"));
        manifest.is_ok_and(|text| text.contains("\"merging\""))
    }

    /// All of it, from the position after `head`.
    async fn run(
        &self,
        writer: ReplicaWriter,
        head: u64,
        generation: u64,
    ) -> Result<(), StoreError> {
        let mut writer = writer;
        for position in head + 1..=LAST {
            if position == 6 && generation == 1 {
                writer = self.open(2).await?;
            }
            self.cycle(&writer, position).await?;
            match position {
                5 => self.thin(&writer, 5, 3).await?,
                LAST => {
                    self.thin(&writer, LAST, 3).await?;
                    self.thin(&writer, LAST, 6).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

async fn image_of(view: &ReplicaView) -> Result<Disks, StoreError> {
    let mut image = [None, None];
    for spec in view.disks().to_vec() {
        let data = view.read(spec.id, 0, spec.size_bytes as usize).await?;
        image[usize::from(spec.id == LEAVES)] = Some(data.to_vec());
    }
    Ok(image)
}

async fn points(reader: &ReplicaReader, model: &[Disks]) -> Result<BTreeSet<u64>, String> {
    let mut positions = BTreeSet::new();
    for kept in reader.points().await.map_err(text)? {
        let position = kept.position.0;
        if kept != point(position) {
            return Err(format!("point {position} is not as it was added"));
        }
        let view = reader.view(PointSelector::Id(kept.id)).await;
        if image_of(&view.map_err(text)?).await.map_err(text)? != model[position as usize] {
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
    let (key, target) = (Life::key().map_err(text)?, life.target());
    let must: BTreeSet<u64> = known
        .acknowledged
        .difference(&known.retirable)
        .copied()
        .collect();
    match ReplicaReader::open(&target, &key).await {
        Ok(reader) => {
            let kept = points(&reader, model).await?;
            if !must.is_subset(&kept) {
                return Err(format!("of the points {must:?} only {kept:?} are left"));
            }
        }
        Err(error) if !must.is_empty() => return Err(format!("{must:?} are gone: {error}")),
        Err(_) => {}
    }
    let writer = life.open(3).await.map_err(text)?;
    let head = match writer.state().await.map_err(text)? {
        ReplicaState::Empty | ReplicaState::Partial => {
            life.base(&writer, &model[0]).await.map_err(text)?;
            0
        }
        ReplicaState::Complete { head_position, .. } => head_position.0,
    };
    // The point of the head may be missing: an acknowledged cycle, cut before the point.
    life.point(&writer, head).await.map_err(text)?;
    life.run(writer.clone(), head, 3).await.map_err(text)?;
    life.thin(&writer, LAST, 6).await.map_err(text)?;
    let reader = ReplicaReader::open(&target, &key).await.map_err(text)?;
    let kept = points(&reader, model).await?;
    if kept != BTreeSet::from([0, 6, LAST]) {
        return Err(format!("in the end points {kept:?} are kept"));
    }
    let journal = life.journal();
    if journal.len() != 1 + 3 {
        return Err(format!("1 to 6 are not one object: {journal:?}"));
    }
    let now = point(LAST).time_unix_ms;
    let none = RetentionPolicy::hours(0);
    writer.maintain(now, none).await.map_err(text)?;
    let kept = points(&reader, model).await?;
    if kept != BTreeSet::from([LAST]) || !life.journal().is_empty() {
        return Err(format!("base does not end the journal: {kept:?}"));
    }
    Ok(())
}

/// Lives once, and checks what a power loss before each step would leave.
pub fn enumerate(seed: u64) -> Tally {
    let model = history(seed);
    Enumeration {
        component: "compaction of the journal",
        seed,
        // What comes before the first merge is cut by the enumeration of the whole replica.
        may_fail: |known| known.acknowledged.contains(&FIRST_CUT),
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
        let writer = life.open(1).await.map_err(text)?;
        life.base(&writer, &model[0]).await.map_err(text)?;
        life.run(writer, 0, 1).await.map_err(text)
    })
}
