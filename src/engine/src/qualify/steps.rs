//! The steps on the throw-away VM, in order; what each proves stands in [`super::assumptions`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::try_join_all;
use hypervisor::{
    Changes, Consistency, DiskId, DiskSource, ErrorKind, FrozenPoint, Generation, HypervDriver,
    Hypervisor, NewDisk, NewVirtualMachine, PowerState, TrackingId, VirtualMachine, VmId,
};
use serde_json::Value;
use uuid::Uuid;

use super::assumptions::Step;
use super::guest::{self, Guest, SIZES, WRITTEN};
use super::ledger::{Figures, Ledger, Problem, Stop};
use super::record::Record;
use super::witness::{BLOCK, Witness, hash};

/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
const MEMORY: u64 = 64 << 20;

/// What is qualified.
pub struct Subject {
    /// The driver.
    pub driver: Arc<dyn Hypervisor>,
    /// The same, where it is that of Hyper-V.
    pub hyperv: Option<HypervDriver>,
}

/// A run.
pub(super) struct Run<'a> {
    pub ledger: Ledger,
    pub driver: Arc<Witness>,
    pub hyperv: Option<HypervDriver>,
    pub guest: &'a dyn Guest,
    pub record: &'a Record,
    pub folder: PathBuf,
    /// How long changes of the guest, points and events are waited for.
    pub patience: Duration,
    pub disks: [DiskId; 2],
    pub tracking: u64,
    /// The last point that was given back: changes since it are known.
    since: TrackingId,
    /// When the points were taken, by their numbers.
    taken: BTreeMap<u64, i64>,
    /// Told of the host, for the head of the report.
    pub host: Option<Value>,
}

pub(super) type Done = Result<(), Stop>;
pub(super) type Proof<T> = Result<(T, Figures), Problem>;

impl<'a> Run<'a> {
    pub fn new(
        subject: Subject,
        ledger: Ledger,
        guest: &'a dyn Guest,
        record: &'a Record,
        folder: PathBuf,
        patience: Duration,
    ) -> Self {
        Self {
            ledger,
            driver: Arc::new(Witness::new(subject.driver)),
            hyperv: subject.hyperv,
            guest,
            record,
            folder,
            patience,
            disks: [DiskId(Uuid::new_v4()), DiskId(Uuid::new_v4())],
            tracking: 0,
            since: TrackingId {
                generation: 1,
                number: 0,
            },
            taken: BTreeMap::new(),
            host: None,
        }
    }

    pub async fn step(&mut self, step: Step) -> Done {
        match step {
            Step::Host => self.look().await,
            Step::Create => self.create().await,
            Step::Start => self.start().await,
            Step::Freeze => self.freeze().await,
            Step::Track => self.track().await,
            Step::Abandon => self.abandon().await,
            Step::Application => self.application().await,
            Step::ShutDown => self.shut_down().await,
            Step::Protect => self.protect().await,
            Step::PowerOff => self.power_off().await,
            Step::FreezeOff => self.freeze_off().await,
            Step::Remove => self.remove().await,
            Step::FailBack => self.fail_back().await,
            Step::Elsewhere => Ok(()),
        }
    }

    /// Gives back what a step that broke off may have left frozen.
    pub async fn let_go(&self) {
        if let Err(error) = self.driver.clean_up(self.vm()).await {
            tracing::warn!(?error, "what a step left frozen stays until the end");
        }
    }

    pub fn vm(&self) -> VmId {
        VmId(self.record.source)
    }

    pub fn next(&mut self) -> TrackingId {
        self.tracking += 1;
        self.id()
    }

    fn id(&self) -> TrackingId {
        TrackingId {
            generation: 1,
            number: self.tracking,
        }
    }

    pub fn images(&self, which: &str) -> Vec<PathBuf> {
        let folder = self.folder.join("vms").join(which);
        (0..SIZES.len())
            .map(|index| folder.join(format!("disk{index}.vhdx")))
            .collect()
    }

    /// The VM to make out of the images in its folder.
    pub fn plan(&self, id: Uuid, which: &str) -> NewVirtualMachine {
        let images = self.images(which).into_iter().zip(self.disks);
        NewVirtualMachine {
            id: VmId(id),
            name: self.record.name(which),
            // The boot sector is one of a BIOS.
            generation: Generation::One,
            memory_bytes: MEMORY,
            processors: 1,
            os_type: String::new(),
            folder: self.folder.join("vms").join(which),
            disks: images
                .map(|(image, id)| NewDisk {
                    id,
                    source: DiskSource::Image(image),
                })
                .collect(),
            networks: Vec::new(),
        }
    }

    pub async fn listed(&self, vm: VmId) -> Result<Vec<VirtualMachine>, Problem> {
        let all = self.driver.virtual_machines().await?;
        Ok(all.into_iter().filter(|one| one.id == vm).collect())
    }

    /// That a VM which was made is listed as it was wished for.
    pub async fn is_as_wished(&self, wish: &NewVirtualMachine) -> Proof<()> {
        let found = self.listed(wish.id).await?;
        let [vm] = found.as_slice() else {
            return Err(Problem::wrong(format!(
                "it is listed {} times",
                found.len()
            )));
        };
        let disks: Vec<_> = vm
            .disks
            .iter()
            .map(|one| (one.id, one.size_bytes))
            .collect();
        let wished: Vec<_> = self.disks.into_iter().zip(SIZES).collect();
        if vm.name != wish.name || vm.generation != wish.generation || disks != wished {
            return Err(Problem::wrong(format!(
                "{}, {:?}, disks {disks:?}, in place of {wished:?}",
                vm.name, vm.generation
            )));
        }
        if vm.power_state != PowerState::Off {
            return Err(Problem::wrong("it is listed as running"));
        }
        match vm.findings.first() {
            None => Ok(((), Figures::default())),
            Some(finding) => Err(Problem::wrong(&finding.summary)),
        }
    }

    async fn look(&mut self) -> Done {
        let (driver, hyperv) = (self.driver.clone(), self.hyperv.clone());
        let facts = self
            .ledger
            .prove(&["hyperv-cluster", "host-answers"], async {
                let facts = driver.host().await?;
                let mut figures = Figures::default();
                if let Some(hyperv) = hyperv {
                    figures.add("inCluster", hyperv.cluster().await?.is_some());
                }
                let all = driver.virtual_machines().await?;
                figures.add("virtualMachines", all.len());
                figures.add("freeBytes", facts.free_bytes);
                Ok((facts, figures))
            })
            .await?;
        self.ledger.hide(&facts.name, "<host>");
        self.host = Some(serde_json::json!({
            "operatingSystem": facts.operating_system,
            "hypervisor": facts.hypervisor,
            "hypervisorVersion": facts.hypervisor_version,
            "accelerated": facts.accelerated,
        }));
        Ok(())
    }

    async fn create(&mut self) -> Done {
        let wish = self.plan(self.record.source, "source");
        let images = self.images("source");
        let (driver, disks) = (self.driver.clone(), self.disks);
        if let Some(hyperv) = &self.hyperv {
            // The subscription begins here; what it is good for shows below.
            if let Err(error) = hyperv.wait_for_change(Duration::ZERO).await {
                let failed = async { Err::<((), Figures), Problem>(error.into()) };
                soft(self.ledger.prove(&["hyperv-events"], failed).await)?;
            }
        }
        let ids = [
            "hyperv-define",
            "hyperv-resources",
            "hyperv-quantities",
            "hyperv-notes",
            "create-vm",
        ];
        let made = wish.clone();
        self.ledger
            .prove(&ids, async move {
                std::fs::create_dir_all(&made.folder)
                    .context("make the folder of the virtual machine")?;
                for (index, (image, id)) in images.iter().zip(disks).enumerate() {
                    guest::make_disk(image, index, id)?;
                }
                driver.create(made).await?;
                Ok(((), Figures::default()))
            })
            .await?;
        if let Some(hyperv) = self.hyperv.clone() {
            let patience = self.patience;
            let told = self.ledger.prove(&["hyperv-events"], async {
                if hyperv.wait_for_change(patience).await? {
                    Ok(((), Figures::default()))
                } else {
                    Err(Problem::wrong(
                        "no event came of the virtual machine that was made",
                    ))
                }
            });
            soft(told.await)?;
        }
        let seen = self.is_as_wished(&wish).await;
        self.ledger
            .prove(&["create-listed"], async { seen })
            .await?;
        let again = match self.driver.create(wish.clone()).await {
            Ok(()) => self.is_as_wished(&wish).await,
            Err(error) => Err(error.into()),
        };
        soft(
            self.ledger
                .prove(&["create-repeated"], async { again })
                .await,
        )
    }

    async fn start(&mut self) -> Done {
        let (driver, vm) = (self.driver.clone(), self.vm());
        let start = async {
            driver.start(vm).await?;
            driver.start(vm).await?;
            match driver.power_state(vm).await? {
                PowerState::Running => Ok(((), Figures::default())),
                PowerState::Off => Err(Problem::wrong("it is off")),
            }
        };
        self.ledger.prove(&["hyperv-start", "start"], start).await
    }

    pub(super) async fn frozen(
        &mut self,
        since: Option<TrackingId>,
        consistency: Consistency,
    ) -> Result<FrozenPoint, hypervisor::HypervisorError> {
        let next = self.next();
        let point = self
            .driver
            .freeze(self.vm(), &self.disks, since, next, consistency)
            .await?;
        self.taken.insert(next.number, point.taken_unix_ms);
        Ok(point)
    }

    async fn freeze(&mut self) -> Done {
        let first = self.images("source");
        let frozen = self.frozen(None, Consistency::Crash).await;
        let ids = [
            "hyperv-checkpoint",
            "hyperv-checkpoint-name",
            "hyperv-open-parent",
            "hyperv-attach-parent",
            "freeze",
        ];
        let point = self
            .ledger
            .prove(&ids, async {
                let point = frozen?;
                if point
                    .disks
                    .iter()
                    .any(|disk| disk.changes != Changes::Unknown)
                {
                    return Err(Problem::wrong("a first point knows changes"));
                }
                let mut figures = Figures::default();
                figures.add(
                    "guestHeldMilliseconds",
                    u64::try_from(point.pause.as_millis()).unwrap_or(u64::MAX),
                );
                Ok((point, figures))
            })
            .await?;
        self.read(&point).await?;
        let (driver, vm, disks, id) = (self.driver.clone(), self.vm(), self.disks, self.id());
        let begin = Instant::now();
        let released = driver.release(point).await;
        let took = begin.elapsed();
        self.since = id;
        self.ledger
            .prove(&["hyperv-convert", "release"], async {
                released?;
                let tracked = driver.tracking(vm).await?;
                if tracked != [id] {
                    return Err(Problem::wrong(format!(
                        "tracked are {tracked:?}, not {id:?} alone"
                    )));
                }
                let mut figures = Figures::default();
                figures.add(
                    "releaseMilliseconds",
                    u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                );
                Ok(((), figures))
            })
            .await?;
        let merged = self.ledger.prove(&["merge"], async {
            for (disk, file) in disks.into_iter().zip(first) {
                let now = driver.disk_path(vm, disk).await?;
                if now.file_name() != file.file_name() {
                    return Err(Problem::wrong(format!("it writes to {}", now.display())));
                }
            }
            Ok(((), Figures::default()))
        });
        soft(merged.await)
    }

    async fn read(&mut self, point: &FrozenPoint) -> Done {
        let read = async {
            let begin = Instant::now();
            try_join_all(point.disks.iter().map(hash)).await?;
            let mut figures = Figures::default();
            figures.rate(SIZES.iter().sum(), begin.elapsed());
            Ok(((), figures))
        };
        self.ledger.prove(&["frozen-read"], read).await?;
        Ok(())
    }

    /// The first point since `since` that has changes of the guest, given back, and what changed on each disk.
    async fn changed(&mut self, since: TrackingId) -> Result<Vec<Changes>, Problem> {
        let begin = Instant::now();
        loop {
            self.guest.write(self.vm(), self.disks[0]).await?;
            let point = self.frozen(Some(since), Consistency::Crash).await?;
            let changes: Vec<Changes> = point
                .disks
                .iter()
                .map(|disk| disk.changes.clone())
                .collect();
            self.driver.release(point).await?;
            self.since = self.id();
            let none = |changes: &Changes| changes == &Changes::Since(Vec::new());
            if !changes.first().is_some_and(none) {
                return Ok(changes);
            }
            if begin.elapsed() > self.patience || self.ledger.is_stopped() {
                return Err(Problem::wrong(format!(
                    "no change was told within {} s, although the guest writes all the time",
                    self.patience.as_secs()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads a point again and again while the guest, which writes by now, writes on.
    async fn read_again(&mut self) -> Done {
        let (guest, vm, first) = (self.guest, self.vm(), self.disks[0]);
        let since = self.since;
        let frozen = self.frozen(Some(since), Consistency::Crash).await;
        let point = self.ledger.prove(&["frozen-still"], async {
            Ok((frozen?, Figures::default()))
        });
        let point = point.await?;
        let still = async {
            let hashes = try_join_all(point.disks.iter().map(hash)).await?;
            tokio::time::sleep(guest.period()).await;
            guest.write(vm, first).await?;
            let again = try_join_all(point.disks.iter().map(hash)).await?;
            equal(&hashes, &again, "the second time other bytes came")?;
            Ok((hashes, Figures::default()))
        };
        let hashes = self.ledger.prove(&["frozen-still"], still).await;
        let parallel = async {
            let begin = Instant::now();
            let readers = (0..4).map(|_| try_join_all(point.disks.iter().map(hash)));
            let all = try_join_all(readers).await?;
            for one in &all {
                equal(&all[0], one, "one of four readers read other bytes")?;
            }
            let mut figures = Figures::default();
            figures.rate(4 * SIZES.iter().sum::<u64>(), begin.elapsed());
            Ok(((), figures))
        };
        let parallel = self.ledger.prove(&["frozen-parallel"], parallel).await;
        self.driver.release(point).await.map_err(|error| {
            tracing::warn!(
                ?error,
                "a point that was read again could not be given back"
            );
            Stop("frozen-still")
        })?;
        self.since = self.id();
        soft(hashes.map(drop))?;
        soft(parallel)
    }

    /// What differs between two points and was not told.
    fn missed(&self, since: TrackingId, told: &[Changes]) -> Result<(), Problem> {
        let times = self
            .taken
            .get(&since.number)
            .zip(self.taken.get(&self.tracking));
        for (index, disk) in self.disks.into_iter().enumerate() {
            let blocks =
                times.and_then(|(before, after)| self.driver.differing(disk, *before, *after));
            let Some(blocks) = blocks else {
                return Err(Problem::wrong(
                    "nobody has seen the points that it is between",
                ));
            };
            let is_told = |block: u64| {
                let mut all = extents(told).filter(|one| one.0 == index);
                all.any(|(_, offset, length)| offset < block + BLOCK && offset + length > block)
            };
            if let Some(block) = blocks.into_iter().find(|block| !is_told(*block)) {
                return Err(Problem::wrong(format!(
                    "the block at {block} of disk {index} differs from the point before, and is not told"
                )));
            }
        }
        Ok(())
    }

    async fn track(&mut self) -> Done {
        let since = self.since;
        let changed = self.changed(since).await;
        let unknown = |all: &[Changes]| all.contains(&Changes::Unknown);
        let known = match changed {
            Ok(all) if unknown(&all) => {
                let lost = Problem::wrong("the driver says that tracking can't tell");
                let id = if self.hyperv.is_some() {
                    "hyperv-rct-ids"
                } else {
                    "track"
                };
                self.ledger
                    .prove(&[id], async { Err::<((), Figures), _>(lost) })
                    .await?;
                return Ok(());
            }
            Ok(all) => {
                let bytes: u64 = extents(&all).map(|one| one.2).sum();
                let mut figures = Figures::default();
                figures.add("changedBytes", bytes);
                let ids = ["hyperv-changes", "hyperv-rct-ids", "track"];
                self.ledger
                    .prove(&ids, async { Ok((all, figures)) })
                    .await?
            }
            Err(problem) => {
                let ids = ["hyperv-changes", "track"];
                return self.ledger.prove(&ids, async { Err(problem) }).await;
            }
        };
        let missed = self.missed(since, &known);
        let complete = async {
            missed?;
            for (disk, offset, length) in extents(&known) {
                let inside = WRITTEN.start <= offset && offset + length <= WRITTEN.end;
                if disk != 0 || !inside {
                    return Err(Problem::wrong(format!(
                        "{length} bytes at {offset} of disk {disk}, where nobody wrote"
                    )));
                }
            }
            Ok(((), Figures::default()))
        };
        soft(self.ledger.prove(&["track-complete"], complete).await)?;
        self.read_again().await?;
        let (driver, vm, last) = (self.driver.clone(), self.vm(), self.id());
        let forgotten = async {
            driver.forget(vm, last).await?;
            match driver.tracking(vm).await?.as_slice() {
                [one] if *one == last => Ok(((), Figures::default())),
                other => Err(Problem::wrong(format!("left are {other:?}"))),
            }
        };
        let ids = ["hyperv-destroy-reference-point", "forget"];
        self.ledger.prove(&ids, forgotten).await
    }

    async fn abandon(&mut self) -> Done {
        let since = self.since;
        let left = match self.frozen(Some(since), Consistency::Crash).await {
            Ok(point) => {
                // As by a process that died: its files are closed, nothing is given back.
                drop(point);
                match self.frozen(Some(since), Consistency::Crash).await {
                    Err(error) if error.kind() == ErrorKind::Busy => Ok(((), Figures::default())),
                    Err(error) => Err(error.into()),
                    Ok(_) => Err(Problem::wrong("a second point was frozen beside the first")),
                }
            }
            Err(error) => Err(error.into()),
        };
        self.ledger.prove(&["abandon-busy"], async { left }).await?;
        let cleaned = match self.driver.clean_up(self.vm()).await {
            Ok(()) => self.changed(since).await,
            Err(error) => Err(error.into()),
        };
        let judged = match cleaned {
            Ok(all) if all.contains(&Changes::Unknown) => {
                Err(Problem::wrong("after it, tracking can't tell"))
            }
            Ok(all) => self.missed(since, &all),
            Err(problem) => Err(problem),
        };
        let judged = async { judged.map(|()| ((), Figures::default())) };
        self.ledger.prove(&["abandon-clean-up"], judged).await
    }
}

fn extents(all: &[Changes]) -> impl Iterator<Item = (usize, u64, u64)> {
    all.iter()
        .enumerate()
        .flat_map(|(disk, changes)| match changes {
            Changes::Since(list) => list
                .iter()
                .map(|one| (disk, one.offset, one.length))
                .collect(),
            Changes::Unknown => Vec::new(),
        })
}

pub(super) fn equal(left: &[blake3::Hash], right: &[blake3::Hash], what: &str) -> Proof<()> {
    if left == right {
        Ok(((), Figures::default()))
    } else {
        Err(Problem::wrong(what))
    }
}

/// For what nothing else depends on: the run goes on, but for an interrupt.
pub(super) fn soft(done: Done) -> Done {
    match done {
        Err(Stop(super::ledger::INTERRUPTED)) => done,
        _ => Ok(()),
    }
}
