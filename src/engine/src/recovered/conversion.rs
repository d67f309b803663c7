//! Which generation a recovered VM gets, and what makes a disk of generation 2 start in generation 1.
//!
//! ```text
//!   host supports the VM's generation ─► kept, nothing here
//!   otherwise   system disk of the point ─► plan ─► <records>/<id>.conversion (fsync) ─► record says so (fsync)
//!                                                        ─► reads of that disk are converted on their way (`view`)
//!   failback    reads of the recovered VM's disk ─► converted sectors are the original ones again ─► replica (`reverse`)
//! ```
//!
//! Promise: a plan is durable before anything is read through it, and the same one is used as long as its VM lives: the
//! VM's layer holds copies of what it put there. A VM that has been made is never decided upon anew, whatever the
//! configuration says by then. Neither replica nor source is written.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use disk_image::boot::{ConversionPlan, Obstacle, PlanError};
use disk_image::{BlockRead, ImageError};
use engine_protocol::v1;
use hypervisor::{Generation, bios_boot_loader};
use replica_store::ReplicaView;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::RecoveryHost;
use super::making;
use super::places;
use super::read_ahead::ReadAhead;
use super::record::Record;
use crate::durable::{self, Access};
use crate::finding;
use crate::task::blocking;
use crate::vm_config::{DiskConfig, VmConfig};

/// What QEMU and Hyper-V give a recovered disk.
const SECTOR_BYTES: u32 = 512;

/// A disk of a recovered VM that is read otherwise than it is in the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// The disk, as the replica names it.
    disk: Uuid,
    plan: ConversionPlan,
}

/// How a VM is made.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub generation: Generation,
    pub conversion: Option<Arc<Conversion>>,
}

/// The host can't run the VM, now or later, as both are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Unfit {
    why: String,
    action: String,
}

impl Unfit {
    /// The one that an error comes from.
    pub(super) fn of(error: &anyhow::Error) -> Option<&Self> {
        error.chain().find_map(|cause| cause.downcast_ref())
    }

    /// As a person needs it.
    pub(super) fn finding(&self, name: &str) -> v1::Finding {
        finding::generation_not_supported(name, &self.why, &self.action)
    }
}

impl Conversion {
    /// Of a disk of the replica.
    #[must_use]
    pub fn new(disk: Uuid, plan: ConversionPlan) -> Self {
        Self { disk, plan }
    }

    /// The disk, as the replica names it.
    #[must_use]
    pub fn disk(&self) -> Uuid {
        self.disk
    }

    /// What the guest gets in place of `data`, which is at byte `offset` of a disk of the point.
    #[must_use]
    pub fn convert(&self, disk: Uuid, offset: u64, data: Bytes) -> Bytes {
        self.change(disk, offset, data, |at, data| self.plan.convert(at, data))
    }

    /// What the replica gets in place of `data`, which is at byte `offset` of a disk of the recovered VM: sectors that are
    /// as the conversion made them are the original ones, whatever the guest wrote itself stays. Whole sectors only.
    #[must_use]
    pub fn restore(&self, disk: Uuid, offset: u64, data: Bytes) -> Bytes {
        self.change(disk, offset, data, |at, data| self.plan.restore(at, data))
    }

    fn change(
        &self,
        disk: Uuid,
        offset: u64,
        data: Bytes,
        change: impl FnOnce(u64, &mut [u8]),
    ) -> Bytes {
        if disk != self.disk || !self.plan.touches(offset, data.len()) {
            return data;
        }
        let mut data = BytesMut::from(data);
        change(offset, &mut data);
        data.freeze()
    }
}

/// How the VM of a record is made, decided once. `scratch` is a folder that exists.
pub(super) async fn shape(
    host: &RecoveryHost,
    records: &Path,
    record: &mut Record,
    view: &ReplicaView,
    scratch: &Path,
) -> anyhow::Result<Shape> {
    let config = making::vm_config(view)?;
    let at_source = config
        .generation()
        .with_context(|| format!("generation {} is unknown", config.generation))?;
    if let Some(made) = record.generation {
        let generation = Generation::from_number(made)
            .with_context(|| format!("generation {made} is unknown"))?;
        return Ok(Shape {
            generation,
            conversion: kept(records, record, &config).await?,
        });
    }
    let is_made = record.made || record.started_unix_ms != 0;
    if is_made || host.generations.contains(&at_source) {
        return Ok(Shape {
            generation: at_source,
            conversion: None,
        });
    }
    if at_source == Generation::One {
        return Err(Unfit {
            why: "it is of generation 1, and this host supports generation 2 only".to_owned(),
            action: "Allow generation 1 on the recovery host (`recovery_generations`), or give the vault a recovery host that supports it."
                .to_owned(),
        }
        .into());
    }
    let disk = system_disk(&config)?;
    let plan = match read(records, record.id).await {
        // An engine that was killed had got so far.
        Ok(Some(plan)) if plan.disk_bytes() == disk.size_bytes => Some(plan),
        // One that can't be used was never used: the record would say so.
        _ => {
            let plan = make(view, disk, scratch).await?;
            if let Some(plan) = &plan {
                write(records, record.id, plan).await?;
                host.pauses.pass(places::CONVERSION_KEPT).await;
            }
            plan
        }
    };
    record.generation = Some(Generation::One.number());
    record.converted_disk = plan.is_some().then_some(disk.id.0);
    making::keep(records, record).await?;
    tracing::info!(vm = %record.id, name = record.name, disk = %disk.id, converted = plan.is_some(), "a virtual machine of generation 2 is recovered as generation 1");
    Ok(Shape {
        generation: Generation::One,
        conversion: plan.map(|plan| Arc::new(Conversion::new(disk.id.0, plan))),
    })
}

/// The conversion that a record speaks of.
async fn kept(
    records: &Path,
    record: &Record,
    config: &VmConfig,
) -> anyhow::Result<Option<Arc<Conversion>>> {
    let Some(disk) = record.converted_disk else {
        return Ok(None);
    };
    let path = file(records, record.id);
    let lost = || {
        format!(
            "{}, which says how the virtual machine's disk was converted to generation 1, is needed to go on: bring it back \
             from a copy, choose a recovery point anew, or undo the failover",
            path.display()
        )
    };
    let plan = read(records, record.id).await.with_context(lost)?;
    let plan = plan.with_context(lost)?;
    let known = config.disks.iter().find(|known| known.id.0 == disk);
    if known.is_none_or(|known| known.size_bytes != plan.disk_bytes()) {
        bail!("{} is of another disk: {}", path.display(), lost());
    }
    Ok(Some(Arc::new(Conversion::new(disk, plan))))
}

/// The disk that the VM starts from.
fn system_disk(config: &VmConfig) -> anyhow::Result<&DiskConfig> {
    let marked = config.disks.iter().find(|disk| disk.operating_system);
    marked
        .or(config.disks.first())
        .context("the recovery point has no disk to start from")
}

/// Plans the conversion of a disk of a point; none when it starts in generation 1 as it is.
async fn make(
    view: &ReplicaView,
    disk: &DiskConfig,
    scratch: &Path,
) -> anyhow::Result<Option<ConversionPlan>> {
    let stored = view.disks().iter().find(|stored| stored.id == disk.id.0);
    let stored = stored.with_context(|| format!("the replica has no disk {}", disk.id))?;
    let loader = bios_boot_loader(scratch)
        .await
        .context("convert the virtual machine to generation 1")?;
    let point = PointDisk {
        view: view.clone(),
        disk: stored.id,
        size_bytes: stored.size_bytes,
        ahead: ReadAhead::default(),
        runtime: Handle::current(),
    };
    let made = tokio::task::spawn_blocking(move || ConversionPlan::make(&point, &loader));
    match made.await.context("look at the virtual machine's disk")? {
        Ok(plan) => Ok(Some(plan)),
        Err(PlanError::NotNeeded) => Ok(None),
        Err(PlanError::Impossible(obstacles)) => Err(unfit(disk, &obstacles).into()),
        Err(error) => {
            Err(error).with_context(|| format!("plan the conversion of disk {:?}", disk.name))
        }
    }
}

fn unfit(disk: &DiskConfig, obstacles: &[Obstacle]) -> Unfit {
    let reasons: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
    let advice: BTreeSet<&str> = obstacles.iter().map(Obstacle::advice).collect();
    let advice: Vec<&str> = advice.into_iter().collect();
    Unfit {
        why: format!(
            "it is of generation 2, this host supports generation 1 only, and disk {:?} can't be converted: {}",
            disk.name,
            reasons.join("; ")
        ),
        action: format!(
            "To {}. A recovery host supports generation 2 when OVMF is installed on it and `recovery_generations` allows it.",
            advice.join("; ")
        ),
    }
}

/// A disk of a point, for code that waits for what it reads.
struct PointDisk {
    view: ReplicaView,
    disk: Uuid,
    size_bytes: u64,
    ahead: ReadAhead,
    runtime: Handle,
}

impl BlockRead for PointDisk {
    fn virtual_size(&self) -> u64 {
        self.size_bytes
    }

    fn logical_sector_size(&self) -> u32 {
        SECTOR_BYTES
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let failed = |error| ImageError::reading(format!("disk {}", self.disk), offset, error);
        let read = |offset, length| self.view.read(self.disk, offset, length);
        let got = self.ahead.read(self.size_bytes, offset, buffer.len(), read);
        let got = self
            .runtime
            .block_on(got)
            .map_err(|error| failed(io::Error::other(error)))?;
        if got.len() != buffer.len() {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        buffer.copy_from_slice(&got);
        Ok(())
    }
}

// === what is kept ===

fn file(records: &Path, id: Uuid) -> PathBuf {
    records.join(format!("{id}.conversion"))
}

async fn write(records: &Path, id: Uuid, plan: &ConversionPlan) -> anyhow::Result<()> {
    let (path, bytes) = (file(records, id), plan.to_bytes());
    blocking(move || durable::replace(&path, &bytes, Access::Plain))
        .await
        .context("keep how the virtual machine's disk is converted")
}

async fn read(records: &Path, id: Uuid) -> anyhow::Result<Option<ConversionPlan>> {
    let path = file(records, id);
    let bytes = blocking(move || match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    });
    match bytes.await? {
        Some(bytes) => Ok(Some(ConversionPlan::from_bytes(&bytes)?)),
        None => Ok(None),
    }
}

/// Removes what was kept of a VM that is gone, or that needs nothing of us any more. To be done before its record goes.
pub(super) fn remove(records: &Path, id: Uuid) -> io::Result<()> {
    durable::remove(&file(records, id))
}
