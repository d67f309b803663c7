//! Replication into a folder with the engine's own replicator, the comparison of what it holds, and the way back.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine_protocol::v1;
use futures::future::try_join_all;
use hypervisor::{Changes, DiskId, Hypervisor as _, PowerState, Stop as Off, VmId};
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, ReplicaView, StoreTarget};

use super::guest::SIZES;
use super::ledger::{Figures, Problem, Stop};
use super::steps::{PAUSE, Proof, Run, equal, soft};
use super::witness::hash;
use crate::board::Board;
use crate::replicate;
use crate::replicator::Replicator;
use crate::replicator::spec::Spec;

const VAULT: &str = "qualify";
const PIECE: usize = 1 << 20;

/// The hash of everything that an image reads, by this engine's own code.
pub(super) fn hash_of_file(file: &Path) -> anyhow::Result<blake3::Hash> {
    let step = || format!("read {}", file.display());
    let image = DiskImage::open(file, Access::ReadOnly).with_context(step)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    for offset in (0..image.virtual_size()).step_by(PIECE) {
        image.read_at(&mut piece, offset).with_context(step)?;
        hasher.update(&piece);
    }
    Ok(hasher.finalize())
}

/// Every piece of a disk in the replica, in order.
async fn pieces(
    view: &ReplicaView,
    disk: DiskId,
    size: u64,
    mut each: impl FnMut(u64, &Bytes) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for offset in (0..size).step_by(PIECE) {
        let piece = view.read(disk.0, offset, PIECE).await;
        each(offset, &piece.context("read the replica")?)?;
    }
    Ok(())
}

impl Run<'_> {
    fn wanted(&self) -> v1::Replication {
        let folder = self.folder.join("store").display().to_string();
        v1::Replication {
            item_id: self.record.source.to_string(),
            vault_key: VAULT.to_owned(),
            generation: 1,
            vm_id: self.vm().to_string(),
            disk_ids: self.disks.iter().map(ToString::to_string).collect(),
            store: Some(v1::StoreTarget {
                kind: Some(v1::store_target::Kind::Folder(folder)),
                ..v1::StoreTarget::default()
            }),
            policy: Some(v1::Policy {
                replication_interval_seconds: 1,
                retention_hours: 1,
                ..v1::Policy::default()
            }),
            phase: v1::replication::Phase::Active.into(),
            vm_name: self.record.name("source"),
            ..v1::Replication::default()
        }
    }

    pub(super) async fn protect(&mut self) -> Result<(), Stop> {
        let before = self.driver.forget_all(self.vm()).await;
        let board = Arc::new(Board::default());
        let context = replicate::context(
            self.driver.clone(),
            board.clone(),
            self.folder.join("state"),
        );
        let read = Spec::read(&self.wanted());
        let started = async {
            before?;
            let (spec, wish) = read.map_err(|problem| anyhow!(problem))?;
            Ok::<_, Problem>(Replicator::start(context, spec, wish))
        };
        let replicator = match started.await {
            Ok(replicator) => replicator,
            Err(problem) => {
                let ids = ["hyperv-destroy-reference-point", "protect-first"];
                return self.ledger.prove(&ids, async { Err(problem) }).await;
            }
        };
        let done = self.follow(&board).await;
        // Whatever came of it, nothing works on the VM from here on.
        replicator.stop().await;
        done?;
        let compared = self.compare().await;
        self.ledger
            .prove(&["protect-equal"], async { compared })
            .await?;
        let (driver, vm) = (self.driver.clone(), self.vm());
        let forgotten = async {
            driver.forget_all(vm).await?;
            match driver.tracking(vm).await?.as_slice() {
                [] => Ok(((), Figures::default())),
                left => Err(Problem::wrong(format!("left are {left:?}"))),
            }
        };
        soft(self.ledger.prove(&["forget-all"], forgotten).await)
    }

    async fn follow(&mut self, board: &Board) -> Result<(), Stop> {
        let first = self.wait(board, |_| true).await.map(|point| {
            let mut figures = Figures::default();
            figures.add("sentBytes", point.sent_bytes);
            (point.position, figures)
        });
        let base = self
            .ledger
            .prove(&["protect-first"], async { first })
            .await?;
        let later = self
            .wait(board, |point| {
                point.position > base && point.changed_bytes > 0
            })
            .await;
        let delta = async {
            let point = later?;
            if point.changed_bytes >= SIZES.iter().sum() {
                return Err(Problem::wrong("all of the disks counted as changed"));
            }
            let mut figures = Figures::default();
            figures.add("changedBytes", point.changed_bytes);
            figures.add("sentBytes", point.sent_bytes);
            Ok(((), figures))
        };
        self.ledger.prove(&["protect-delta"], delta).await
    }

    /// The first point that is as wished for.
    async fn wait(
        &self,
        board: &Board,
        is_wished: impl Fn(&v1::RecoveryPoint) -> bool,
    ) -> Result<v1::RecoveryPoint, Problem> {
        let begin = Instant::now();
        loop {
            self.guest.write(self.vm(), self.disks[0]).await?;
            let status = board
                .replication(&self.record.source.to_string())
                .unwrap_or_default();
            if let Some(point) = status.recovery_points.iter().find(|point| is_wished(point)) {
                return Ok(point.clone());
            }
            if begin.elapsed() > self.patience || self.ledger.is_stopped() {
                let why = status.findings.first().map_or_else(
                    || format!("state {:?}", status.state()),
                    |finding| format!("{} {}", finding.summary, finding.possible_causes),
                );
                return Err(Problem::from(anyhow!(
                    "no such recovery point within {} s: {why}",
                    self.patience.as_secs()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn reader(&self) -> anyhow::Result<ReplicaReader> {
        let key = ReplicaKey::new(VAULT, self.record.source.to_string())?;
        let target = StoreTarget::Folder(self.folder.join("store"));
        ReplicaReader::open(&target, &key)
            .await
            .context("open the replica")
    }

    async fn compare(&self) -> Proof<()> {
        let reader = self.reader().await?;
        let points = reader.points().await.context("list the points")?;
        for point in &points {
            let view = reader.view(PointSelector::Id(point.id)).await;
            let view = view.context("open a point")?;
            for (disk, size) in self.disks.into_iter().zip(SIZES) {
                let mut hasher = blake3::Hasher::new();
                pieces(&view, disk, size, |_, piece| {
                    hasher.update(piece);
                    Ok(())
                })
                .await?;
                if self.driver.saw(point.time_unix_ms, disk) != Some(hasher.finalize()) {
                    return Err(Problem::wrong(format!(
                        "point {} is not what was frozen",
                        point.position.0
                    )));
                }
            }
        }
        let mut figures = Figures::default();
        figures.add("points", points.len());
        figures.add("bytes", points.len() as u64 * SIZES.iter().sum::<u64>());
        Ok(((), figures))
    }

    /// Writes the newest point into images; gives the hash of each of its disks.
    async fn bring_back(&self) -> anyhow::Result<Vec<blake3::Hash>> {
        let reader = self.reader().await?;
        let view = reader
            .view(PointSelector::Newest)
            .await
            .context("open the newest point")?;
        let mut hashes = Vec::new();
        let disks = self.disks.into_iter().zip(SIZES);
        for (file, (disk, size)) in self.images("back").into_iter().zip(disks) {
            let step = || format!("write {}", file.display());
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder).with_context(step)?;
            }
            let mut options = CreateOptions::new(Format::VhdxDynamic, size);
            options.block_size = Some(1 << 20);
            options.id = Some(disk.0);
            let mut image = DiskImage::create(&file, &options).with_context(step)?;
            let mut hasher = blake3::Hasher::new();
            pieces(&view, disk, size, |offset, piece| {
                hasher.update(piece);
                if piece.iter().any(|byte| *byte != 0) {
                    image.write_at(piece, offset)?;
                }
                Ok(())
            })
            .await?;
            image.close().with_context(step)?;
            hashes.push(hasher.finalize());
        }
        Ok(hashes)
    }

    pub(super) async fn fail_back(&mut self) -> Result<(), Stop> {
        let wish = self.plan(self.record.back, "back");
        let made = async {
            let hashes = self.bring_back().await?;
            self.driver.create(wish.clone()).await?;
            let ((), mut figures) = self.is_as_wished(&wish).await?;
            figures.add("bytes", SIZES.iter().sum::<u64>());
            Ok::<_, Problem>((hashes, figures))
        }
        .await;
        let expected = self
            .ledger
            .prove(&["fail-back-create"], async { made })
            .await?;
        let (driver, vm, disks, next) = (self.driver.clone(), wish.id, self.disks, self.next());
        let read = async {
            let point = driver.freeze_off(vm, &disks, None, next).await?;
            let hashes = try_join_all(point.disks.iter().map(hash)).await;
            driver.release(point).await?;
            equal(
                &expected,
                &hashes?,
                "its disks hold other bytes than the point",
            )
        };
        self.ledger.prove(&["fail-back-equal"], read).await?;
        let runs = self.runs_and_writes(vm, &expected).await;
        soft(self.ledger.prove(&["fail-back-runs"], async { runs }).await)
    }

    /// Starts it, waits until its first disk is another one than `before`, and turns it off.
    async fn runs_and_writes(&mut self, vm: VmId, before: &[blake3::Hash]) -> Proof<()> {
        self.driver.forget_all(vm).await?;
        self.driver.start(vm).await?;
        let begin = Instant::now();
        let mut figures = Figures::default();
        loop {
            self.guest.write(vm, self.disks[0]).await?;
            let next = self.next();
            let consistency = hypervisor::Consistency::Crash;
            let point = self.driver.freeze(vm, &self.disks, None, next, consistency);
            let point = point.await?;
            let known = point
                .disks
                .iter()
                .any(|disk| disk.changes != Changes::Unknown);
            let now = try_join_all(point.disks.iter().map(hash)).await;
            self.driver.release(point).await?;
            if known {
                return Err(Problem::wrong(
                    "a first point of a new machine knows changes",
                ));
            }
            if now?.first() != before.first() {
                figures.add(
                    "bootMilliseconds",
                    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
                );
                break;
            }
            if begin.elapsed() > self.patience || self.ledger.is_stopped() {
                return Err(Problem::wrong(format!(
                    "its guest wrote nothing within {} s",
                    self.patience.as_secs()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.driver.forget_all(vm).await?;
        self.driver.stop(vm, Off::TurnOff).await?;
        match self.driver.power_state(vm).await? {
            PowerState::Off => Ok(((), figures)),
            PowerState::Running => Err(Problem::wrong("it runs after it was turned off")),
        }
    }
}
