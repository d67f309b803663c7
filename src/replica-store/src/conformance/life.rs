//! Random lives of a replica, sound ones and hard ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use replication_log::journal::CompressionLevel;
use uuid::Uuid;

use super::Place;
use super::model::{
    Chance, Change, Cut, Image, MINUTE_MS, Random, START_MS, differences, point, spec, specs,
};
use crate::{
    CyclePlan, DiskSpec, DiskStart, ErrorKind, Generation, PointSelector, Position, ReplicaReader,
    ReplicaState, ReplicaView, ReplicaWriter, RetentionPolicy, RetentionTier, StoreError,
    WriterOptions,
};

/// More repeats than any run of bad luck.
const PATIENCE: u32 = 200;

type Result<T> = std::result::Result<T, StoreError>;

/// A life without faults.
pub async fn life(place: &Place, seed: u64, steps: u32) {
    let mut world = World::new(place, seed);
    world.live(steps).await;
}

/// A life in which so many of a thousand calls fail. Whatever fails is repeated, by the same writer or
/// by one that takes over.
pub async fn hard_life(place: &Place, seed: u64, steps: u32, per_mille: u64) {
    let mut place = place.clone();
    place.faults = Some(Arc::new(Chance::new(seed, per_mille)));
    let mut world = World::new(&place, seed);
    world.live(steps).await;
}

/// A short life that is cut before (`at` even) or behind (`at` odd) a call, and resumed by another
/// writer. Says whether the life was that long.
pub async fn killed(place: &Place, seed: u64, at: u64) -> bool {
    let cut = Arc::new(Cut::new(at / 2, at % 2 == 1));
    let mut world = World::new(place, seed);
    world.place.faults = Some(cut.clone());
    world.patience = 1;
    let lived = world.try_live(14).await;
    if !cut.has_struck() {
        lived.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        return false;
    }
    // Everything that was acknowledged is there, before anybody mends.
    world.place.faults = None;
    world.patience = PATIENCE;
    world.check(&format!("cut at {at}")).await;
    world.writer = None;
    world.generation += 1;
    world.live(6).await;
    true
}

/// An engine, its VM, and what it knows to be in the store.
struct World {
    place: Place,
    seed: u64,
    random: Random,
    patience: u32,
    generation: u64,
    writer: Option<ReplicaWriter>,
    now: i64,
    /// The VM's disks.
    disks: Image,
    /// Disks that the VM has and that are not replicated (any more).
    excluded: Image,
    /// A disk that joins: what its base is to hold.
    joining: Option<(Uuid, Vec<u8>)>,
    next_disk: u128,
    begun: bool,
    head: Position,
    /// Disks at the positions of all points that were acknowledged, or may be there.
    history: BTreeMap<Position, Image>,
    times: BTreeMap<Position, i64>,
    /// Points that must be there.
    acknowledged: BTreeSet<Position>,
    pinned: Option<Position>,
}

impl World {
    fn new(place: &Place, seed: u64) -> Self {
        let mut random = Random::new(seed + 1);
        let mut disks = Image::new();
        let mut next_disk = 0xd15c_0000;
        for _ in 0..1 + random.below(2) {
            disks.insert(Uuid::from_u128(next_disk), content(&mut random));
            next_disk += 1;
        }
        World {
            place: place.clone(),
            seed,
            random,
            patience: PATIENCE,
            generation: 1,
            writer: None,
            now: START_MS,
            disks,
            excluded: Image::new(),
            joining: None,
            next_disk,
            begun: false,
            head: Position::BASE,
            history: BTreeMap::new(),
            times: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            pinned: None,
        }
    }

    async fn live(&mut self, steps: u32) {
        let seed = self.seed;
        self.try_live(steps)
            .await
            .unwrap_or_else(|error| panic!("seed {seed}: {error} ({:?})", error.kind()));
    }

    async fn try_live(&mut self, steps: u32) -> Result<()> {
        self.begin().await?;
        for step in 0..steps {
            self.now += MINUTE_MS * 10;
            match self.random.below(16) {
                0 => self.grow().await?,
                1 | 2 => self.begin_joining().await?,
                3 | 4 => self.join().await?,
                5 => self.exclude().await?,
                6 => self.include().await?,
                7 | 8 => self.maintain().await?,
                9 => self.pin().await?,
                10 => {
                    self.writer = None;
                    self.generation += self.random.below(2);
                }
                _ => self.cycle().await?,
            }
            if self.patience > 1 {
                self.check(&format!("step {step}")).await;
            }
        }
        Ok(())
    }

    /// Repeats what fails, now and then as another writer.
    async fn repeat<T>(&mut self, act: impl AsyncFn(&ReplicaWriter) -> Result<T>) -> Result<T> {
        let mut left = self.patience;
        loop {
            let done = match self.writer().await {
                Ok(writer) => act(&writer).await,
                Err(error) => Err(error),
            };
            left -= 1;
            match done {
                Err(error) if error.is_retryable() && left > 0 => {
                    if self.random.below(3) == 0 {
                        self.writer = None;
                        self.generation += self.random.below(2);
                    }
                }
                other => return other,
            }
        }
    }

    async fn writer(&mut self) -> Result<ReplicaWriter> {
        if let Some(writer) = &self.writer {
            return Ok(writer.clone());
        }
        let faults = self.place.faults.clone();
        let (faults, medium_faults) = if self.place.at_files {
            (faults, None)
        } else {
            (None, faults)
        };
        let options = WriterOptions {
            any_disks: true,
            faults,
            medium_faults,
            // Now and then a merge takes many rounds.
            merge_bytes_per_round: (!self.seed.is_multiple_of(2)).then_some(30_000),
            ..WriterOptions::default()
        };
        let writer = ReplicaWriter::open_with(
            options,
            &self.place.target,
            &self.place.key,
            Generation(self.generation),
            &specs(&self.disks),
        )
        .await?;
        self.writer = Some(writer.clone());
        Ok(writer)
    }

    /// Initial replication.
    async fn begin(&mut self) -> Result<()> {
        let state = self.repeat(async |writer| writer.state().await).await?;
        if let ReplicaState::Complete { head_position, .. } = state {
            return self.resume(head_position).await;
        }
        let disks = self.disks.clone();
        let first = point(Position::BASE, self.now);
        self.history.insert(Position::BASE, disks.clone());
        self.times.insert(Position::BASE, self.now);
        self.head = Position::BASE;
        self.repeat(async |writer| {
            if let ReplicaState::Complete { .. } = writer.state().await? {
                return writer.complete_base(first.clone()).await;
            }
            for (id, data) in &disks {
                fill(writer, *id, data).await?;
            }
            writer.base_flush().await?;
            writer.complete_base(first.clone()).await
        })
        .await?;
        self.acknowledged.insert(Position::BASE);
        self.begun = true;
        Ok(())
    }

    /// After a kill: what the store has decides. A cycle whose commit was not heard of may be there, a
    /// point as well. What the VM has beyond that, it has not any more: it was rolled back.
    async fn resume(&mut self, head: Position) -> Result<()> {
        assert!(
            head == self.head || head == self.head.next(),
            "seed {}: head is {head:?}, {:?} was acknowledged",
            self.seed,
            self.head
        );
        let view = self.repeat(async |writer| writer.head_view().await).await?;
        let stored = image_of(&view).await?;
        assert!(
            self.history.get(&head) == Some(&stored),
            "seed {}: the head at {head:?} differs from the model",
            self.seed
        );
        self.head = head;
        self.excluded.retain(|id, _| !stored.contains_key(id));
        self.disks = stored;
        self.joining = None;
        self.begun = true;
        let points = self.repeat(async |writer| writer.points().await).await?;
        self.acknowledged
            .extend(points.iter().map(|point| point.position));
        Ok(())
    }

    /// Some changes of the disks, sent as a cycle with its point.
    async fn cycle(&mut self) -> Result<()> {
        let before: BTreeMap<Uuid, Vec<u8>> = self.disks.clone();
        self.mutate();
        self.send(&before).await
    }

    fn mutate(&mut self) {
        let ids: Vec<(Uuid, u64)> = self
            .disks
            .iter()
            .map(|(id, data)| (*id, data.len() as u64))
            .collect();
        for _ in 0..self.random.below(6) {
            let (id, size) = ids[self.random.below(ids.len() as u64) as usize];
            Change::random(&mut self.random, id, size).apply(&mut self.disks);
        }
    }

    /// Sends what differs from `before`, which the store has of each disk.
    async fn send(&mut self, before: &Image) -> Result<()> {
        let position = self.head.next();
        let mut writes = Vec::new();
        for (id, data) in &self.disks {
            let old = before.get(id).map_or(&[][..], Vec::as_slice);
            for (at, block) in differences(old, data) {
                writes.push((*id, at, block));
            }
        }
        let plan = CyclePlan {
            position,
            time_unix_ms: self.now,
            disks: Some(specs(&self.disks)),
            compression: CompressionLevel::default(),
        };
        self.history.insert(position, self.disks.clone());
        self.times.insert(position, self.now);
        self.repeat(async |writer| {
            let mut cycle = writer.begin_cycle_with(plan.clone()).await?;
            for (id, at, block) in &writes {
                if block.iter().all(|byte| *byte == 0) {
                    cycle.zero(*id, *at, block.len() as u64).await?;
                } else {
                    cycle.write(*id, *at, Bytes::from(block.clone())).await?;
                }
            }
            cycle.commit().await
        })
        .await?;
        self.head = position;
        if self.random.below(5) > 0 {
            let point = point(position, self.now);
            self.repeat(async |writer| writer.add_point(point.clone()).await)
                .await?;
            self.acknowledged.insert(position);
        }
        Ok(())
    }

    async fn grow(&mut self) -> Result<()> {
        let before = self.disks.clone();
        let more = 512 * (1 + self.random.below(4000)) as usize;
        let at = self.random.below(self.disks.len() as u64) as usize;
        if let Some(data) = self.disks.values_mut().nth(at) {
            data.resize(data.len() + more, 0);
        }
        self.mutate();
        self.send(&before).await
    }

    async fn begin_joining(&mut self) -> Result<()> {
        if self.disks.len() >= 3 || self.joining.is_some() {
            return self.cycle().await;
        }
        let (id, data) = (Uuid::from_u128(self.next_disk), content(&mut self.random));
        self.next_disk += 1;
        let half = spec(id, data.len() as u64);
        let part = Bytes::copy_from_slice(&data[..data.len() / 3]);
        self.repeat(async |writer| {
            let started = writer.begin_disk(half.clone()).await?;
            assert_ne!(started, DiskStart::Known);
            writer.base_write(id, 0, part.clone()).await
        })
        .await?;
        self.joining = Some((id, data));
        Ok(())
    }

    /// The disk that joins is written in full and taken in; or it is given up.
    async fn join(&mut self) -> Result<()> {
        let Some((id, data)) = self.joining.take() else {
            return self.cycle().await;
        };
        if self.random.below(4) == 0 {
            return self
                .repeat(async |writer| writer.abandon_disk(id).await)
                .await;
        }
        let disk = spec(id, data.len() as u64);
        self.repeat(async |writer| {
            if writer.begin_disk(disk.clone()).await? != DiskStart::Ready {
                fill(writer, id, &data).await?;
                writer.base_flush().await?;
            }
            writer.complete_disk(id).await
        })
        .await?;
        let mut before = self.disks.clone();
        before.insert(id, data.clone());
        self.disks.insert(id, data);
        self.mutate();
        self.send(&before).await
    }

    async fn exclude(&mut self) -> Result<()> {
        if self.disks.len() < 2 {
            return self.cycle().await;
        }
        let before = self.disks.clone();
        let at = self.random.below(self.disks.len() as u64) as usize;
        if let Some(id) = self.disks.keys().nth(at).copied()
            && let Some(data) = self.disks.remove(&id)
        {
            self.excluded.insert(id, data);
        }
        self.send(&before).await
    }

    /// A disk that was excluded comes back, changed meanwhile.
    async fn include(&mut self) -> Result<()> {
        let Some(id) = self.excluded.keys().next().copied() else {
            return self.cycle().await;
        };
        let mut image = Image::new();
        let data = self.excluded.remove(&id).unwrap_or_default();
        let size = data.len() as u64;
        image.insert(id, data);
        Change::random(&mut self.random, id, size).apply(&mut image);
        let data = image.remove(&id).unwrap_or_default();
        let disk = spec(id, size);
        let stored = self
            .repeat(
                async |writer| match writer.begin_disk(disk.clone()).await? {
                    DiskStart::Known => read_disk(&writer.last_view().await?, &disk).await,
                    DiskStart::Ready => Ok(data.clone()),
                    DiskStart::Empty | DiskStart::Partial => {
                        fill(writer, id, &data).await?;
                        writer.complete_disk(id).await?;
                        Ok(data.clone())
                    }
                },
            )
            .await?;
        let mut before = self.disks.clone();
        before.insert(id, stored);
        self.disks.insert(id, data);
        self.send(&before).await
    }

    async fn maintain(&mut self) -> Result<()> {
        let hours = self.random.below(4) as u32;
        let now = self.now;
        // Thinned points leave stretches of journal that are merged.
        let tier = RetentionTier {
            every_seconds: 600 * (2 + self.random.below(6)),
            for_seconds: 360_000,
        };
        let tiers = if self.random.below(3) > 0 {
            &[tier][..]
        } else {
            &[]
        };
        let policy = RetentionPolicy::hours(hours);
        let policy = policy.with_tiers(tiers).unwrap_or(policy);
        // Whatever is older may go, once it has begun.
        let horizon = now - i64::from(hours) * 60 * MINUTE_MS;
        let (pinned, newest) = (self.pinned, self.acknowledged.last().copied());
        let times = &self.times;
        self.acknowledged.retain(|position| {
            let is_young = times.get(position).is_some_and(|time| *time >= horizon);
            Some(*position) == pinned || Some(*position) == newest || (hours > 0 && is_young)
        });
        let report = self
            .repeat(async |writer| writer.maintain(now, policy).await)
            .await?;
        assert!(report.damage.is_empty(), "seed {}: {report:?}", self.seed);
        Ok(())
    }

    async fn pin(&mut self) -> Result<()> {
        let reader = ReplicaReader::open(&self.place.target, &self.place.key).await?;
        if self.pinned.take().is_some() {
            return reader.unpin("drill").await;
        }
        let points = reader.points().await?;
        let chosen = &points[self.random.below(points.len() as u64) as usize];
        reader.pin(PointSelector::Id(chosen.id), "drill").await?;
        self.pinned = Some(chosen.position);
        Ok(())
    }

    /// Every point that is there reads as the model says, and none that must be there is missing.
    async fn check(&self, context: &str) {
        let context = format!("seed {} {context}", self.seed);
        let reader = match ReplicaReader::open(&self.place.target, &self.place.key).await {
            Err(error) if error.kind() == ErrorKind::NotFound && !self.begun => return,
            other => other.unwrap_or_else(|error| panic!("{context}: {error}")),
        };
        let points = reader
            .points()
            .await
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let kept: BTreeSet<Position> = points.iter().map(|point| point.position).collect();
        for position in &self.acknowledged {
            assert!(kept.contains(position), "{context}: lost {position:?}");
        }
        for point in points {
            let view = reader.view(PointSelector::Id(point.id)).await;
            let view = view.unwrap_or_else(|error| panic!("{context}: {error}"));
            let seen = image_of(&view).await;
            let seen = seen.unwrap_or_else(|error| panic!("{context}: {error}"));
            let expected = self.history.get(&point.position);
            assert!(
                expected == Some(&seen),
                "{context}: the point at {:?} differs from the model",
                point.position
            );
        }
    }
}

fn content(random: &mut Random) -> Vec<u8> {
    let size = 512 * (200 + random.below(2500));
    let id = Uuid::nil();
    let mut image = Image::from([(id, vec![0; size as usize])]);
    for _ in 0..3 {
        Change::random(random, id, size).apply(&mut image);
    }
    image.remove(&id).unwrap_or_default()
}

/// Writes all of a disk's base, in pieces, several at once.
async fn fill(writer: &ReplicaWriter, id: Uuid, data: &[u8]) -> Result<()> {
    const PIECE: usize = 300_000;
    let pieces = data
        .chunks(PIECE)
        .enumerate()
        .map(|(n, piece)| ((n * PIECE) as u64, Bytes::copy_from_slice(piece)));
    let mut tasks = tokio::task::JoinSet::new();
    for (at, piece) in pieces {
        let writer = writer.clone();
        tasks.spawn(async move { writer.base_write(id, at, piece).await });
    }
    let mut done = Ok(());
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok(written) => done = done.and(written),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    done
}

async fn read_disk(view: &ReplicaView, disk: &DiskSpec) -> Result<Vec<u8>> {
    let size = view
        .disks()
        .iter()
        .find(|known| known.id == disk.id)
        .map_or(disk.size_bytes, |known| known.size_bytes);
    Ok(view.read(disk.id, 0, size as usize).await?.to_vec())
}

pub(super) async fn image_of(view: &ReplicaView) -> Result<Image> {
    let mut image = Image::new();
    for disk in view.disks().to_vec() {
        image.insert(disk.id, read_disk(view, &disk).await?);
    }
    Ok(image)
}
