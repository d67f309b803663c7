//! Where samples come from: change tracking of running VMs, or image files that are read again and again.
//!
//! ```text
//!   VMs      freeze (since the last sample) ─► changed ranges of 64 KiB ─► release, forget
//!   images   read, hash each 4 KiB ─► blocks whose hash differs
//! ```
//!
//! Promise: the guest and an engine on the same host are left alone. A VM that somebody tracks already is refused, because
//! two that take turns in forgetting each other's intervals would both miss changes; our own leftovers of a run that was
//! killed are recognised by generation 0, which no engine has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use disk_image::{Access, DiskImage};
use hypervisor::{
    Changes, Consistency, DiskId, Extent, ExtentSet, Hypervisor, PowerState, TrackingId,
    VirtualMachine,
};

use crate::task::blocking;

/// Blocks in which image files are compared.
const BLOCK: u64 = 4096;
const READ: u64 = 1 << 20;

/// Names a disk of a VM, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskName {
    /// VM, or the file's folder.
    pub vm: String,
    /// File name.
    pub disk: String,
}

/// What changed on a disk since the sample before; `None` = nobody can tell.
pub type Sample = BTreeMap<DiskName, Option<ExtentSet>>;

/// Something that can be sampled.
pub enum Source {
    /// Running VMs of a host.
    Vms(Vms),
    /// Image files.
    Images(Images),
}

impl Source {
    /// Takes a sample.
    pub async fn sample(&mut self) -> anyhow::Result<Sample> {
        match self {
            Self::Vms(vms) => vms.sample().await,
            Self::Images(images) => images.sample().await,
        }
    }

    /// Leaves nothing at the host.
    pub async fn end(self) {
        if let Self::Vms(vms) = self {
            vms.end().await;
        }
    }
}

/// Running VMs of a host.
pub struct Vms {
    host: Arc<dyn Hypervisor>,
    vms: Vec<TrackedVm>,
}

struct TrackedVm {
    vm: VirtualMachine,
    number: u64,
    /// The last sample came to its end.
    known: bool,
}

fn ours(number: u64) -> TrackingId {
    TrackingId {
        generation: 0,
        number,
    }
}

impl Vms {
    /// The running VMs of `host`, or those of them that are named.
    pub async fn new(host: Arc<dyn Hypervisor>, names: &[String]) -> anyhow::Result<Self> {
        let machines = host
            .virtual_machines()
            .await
            .context("list the virtual machines")?;
        for name in names {
            if !machines.iter().any(|vm| vm.name == *name) {
                let known: Vec<&str> = machines.iter().map(|vm| vm.name.as_str()).collect();
                bail!(
                    "no virtual machine {name:?}; there are: {}",
                    known.join(", ")
                );
            }
        }
        let mut vms = Vec::new();
        for vm in machines {
            let wanted = names.is_empty() || names.contains(&vm.name);
            if !wanted || (names.is_empty() && vm.power_state == PowerState::Off) {
                continue;
            }
            let held = host
                .tracking(vm.id)
                .await
                .with_context(|| format!("look at change tracking of {:?}", vm.name))?;
            if held.iter().any(|id| id.generation != 0) {
                bail!(
                    "virtual machine {:?} is being replicated; its figures are in `siterecovery-engine status`, and profiling it too would disturb its change tracking",
                    vm.name
                );
            }
            // Of a run that was killed.
            host.clean_up(vm.id).await.ok();
            host.forget_all(vm.id)
                .await
                .with_context(|| format!("drop old change tracking of {:?}", vm.name))?;
            vms.push(TrackedVm {
                vm,
                number: 0,
                known: false,
            });
        }
        if vms.is_empty() {
            bail!("no virtual machine runs; start one, or profile image files with --images");
        }
        Ok(Self { host, vms })
    }

    async fn sample(&mut self) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        for tracked in &mut self.vms {
            let changes = tracked.sample(self.host.as_ref()).await;
            if let Err(error) = &changes {
                tracing::warn!(
                    vm = tracked.vm.name,
                    error = format!("{error:#}"),
                    "no sample"
                );
            }
            let changes = changes.unwrap_or_default();
            for disk in &tracked.vm.disks {
                let name = DiskName {
                    vm: tracked.vm.name.clone(),
                    disk: disk.name.clone(),
                };
                sample.insert(name, changes.get(&disk.id).cloned().flatten());
            }
        }
        Ok(sample)
    }

    async fn end(self) {
        for tracked in &self.vms {
            self.host.clean_up(tracked.vm.id).await.ok();
            if let Err(error) = self.host.forget_all(tracked.vm.id).await {
                tracing::warn!(vm = tracked.vm.name, %error, "change tracking stays until the vm is off");
            }
        }
    }
}

impl TrackedVm {
    async fn sample(
        &mut self,
        host: &dyn Hypervisor,
    ) -> anyhow::Result<BTreeMap<DiskId, Option<ExtentSet>>> {
        let disks: Vec<DiskId> = self.vm.disks.iter().map(|disk| disk.id).collect();
        let since = self.known.then(|| ours(self.number));
        self.known = false;
        let next = ours(self.number + 1);
        let point = host
            .freeze(self.vm.id, &disks, since, next, Consistency::Crash)
            .await
            .context("freeze")?;
        self.number += 1;
        let changes = point
            .disks
            .iter()
            .map(|disk| {
                let set = match &disk.changes {
                    Changes::Since(extents) => Some(ExtentSet::from_unsorted(extents.clone())),
                    Changes::Unknown => None,
                };
                (disk.disk, set)
            })
            .collect();
        host.release(point).await.context("release")?;
        host.forget(self.vm.id, next).await.context("forget")?;
        self.known = true;
        Ok(changes)
    }
}

/// Image files.
pub struct Images {
    files: Vec<ImageState>,
}

struct ImageState {
    name: DiskName,
    path: PathBuf,
    hashes: Option<Vec<u64>>,
}

impl Images {
    /// The images in a folder and one level below it, or one image.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        let metadata =
            std::fs::metadata(path).with_context(|| format!("find {}", path.display()))?;
        if metadata.is_file() {
            files.push(path.to_owned());
        } else {
            collect(path, 1, &mut files)?;
        }
        files.sort();
        if files.is_empty() {
            bail!("{} holds no image file", path.display());
        }
        let name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        Ok(Self {
            files: files
                .into_iter()
                .map(|file| ImageState {
                    name: DiskName {
                        vm: file.parent().map(name).unwrap_or_default(),
                        disk: name(&file),
                    },
                    path: file,
                    hashes: None,
                })
                .collect(),
        })
    }

    async fn sample(&mut self) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        for file in &mut self.files {
            let path = file.path.clone();
            let hashes = match blocking(move || hash(&path).map_err(std::io::Error::other)).await {
                Ok(hashes) => Some(hashes),
                Err(error) => {
                    // Its owner is writing to it; the next sample may find it whole.
                    tracing::warn!(file = %file.path.display(), %error, "no sample");
                    None
                }
            };
            let changed = match (&file.hashes, &hashes) {
                (Some(before), Some(now)) => Some(differences(before, now)),
                _ => None,
            };
            if hashes.is_some() {
                file.hashes = hashes;
            }
            sample.insert(file.name.clone(), changed);
        }
        Ok(sample)
    }
}

fn collect(folder: &Path, deeper: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("list {}", folder.display()))?
            .path();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() && deeper > 0 {
            collect(&path, deeper - 1, files)?;
        } else if matches!(extension.to_str(), Some("vhdx" | "vhd" | "raw" | "img")) {
            files.push(path);
        }
    }
    Ok(())
}

/// A hash for each block of the disk; 0 for a block of zeroes.
fn hash(path: &Path) -> Result<Vec<u64>, disk_image::ImageError> {
    let image = DiskImage::open(path, Access::ReadOnly)?;
    let size = image.virtual_size();
    let mut hashes = vec![0; size.div_ceil(BLOCK) as usize];
    let mut buffer = vec![0; READ as usize];
    for extent in image.allocated(0..size) {
        let mut at = extent.offset / BLOCK * BLOCK;
        while at < extent.end() {
            let length = (size - at).min(READ);
            let part = &mut buffer[..length as usize];
            image.read_at(part, at)?;
            for (number, block) in part.chunks(BLOCK as usize).enumerate() {
                hashes[(at / BLOCK) as usize + number] = of(block);
            }
            at += length;
        }
    }
    Ok(hashes)
}

fn of(block: &[u8]) -> u64 {
    if block.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let full = blake3::hash(block);
    let mut short = [0; 8];
    short.copy_from_slice(&full.as_bytes()[..8]);
    u64::from_le_bytes(short).max(1)
}

fn differences(before: &[u64], now: &[u64]) -> ExtentSet {
    let length = before.len().max(now.len());
    let differs = (0..length).filter(|at| before.get(*at) != now.get(*at));
    ExtentSet::from_unsorted(
        differs
            .map(|at| Extent {
                offset: at as u64 * BLOCK,
                length: BLOCK,
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use disk_image::{CreateOptions, Format};

    use super::*;

    #[tokio::test]
    async fn a_changed_block_of_an_image_is_one_changed_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vhdx");
        let mut options = CreateOptions::new(Format::VhdxDynamic, 8 << 20);
        options.block_size = Some(1 << 20);
        DiskImage::create(&path, &options).unwrap().close().unwrap();
        let mut images = Images::new(folder.path()).unwrap();
        let first = images.sample().await.unwrap();
        assert_eq!(first.values().next().unwrap(), &None);
        let mut image = DiskImage::open(&path, Access::ReadWrite).unwrap();
        image.write_at(&[7; 512], 5 * BLOCK + 512).unwrap();
        image.write_at(&[7; 512], 6 * BLOCK - 100).unwrap();
        image.close().unwrap();
        let second = images.sample().await.unwrap();
        let (name, changed) = second.first_key_value().unwrap();
        assert_eq!(name.disk, "disk.vhdx");
        let expected = [Extent {
            offset: 5 * BLOCK,
            length: 2 * BLOCK,
        }];
        assert_eq!(changed.as_ref().unwrap().as_slice(), expected);
        // While it can't be read nothing is known, and nothing is lost.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, b"not now").unwrap();
        assert_eq!(
            images.sample().await.unwrap().values().next().unwrap(),
            &None
        );
        std::fs::write(&path, whole).unwrap();
        let third = images.sample().await.unwrap();
        assert!(third.values().next().unwrap().as_ref().unwrap().is_empty());
        assert!(Images::new(&folder.path().join("nowhere")).is_err());
    }
}
