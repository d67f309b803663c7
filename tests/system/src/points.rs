//! Recovery points as an auditor reads them: each one out of the store into raw images, and the guest's checker over those.
//!
//! The store is read by the library that recovery itself uses; what it gives is judged by a program that knows nothing of us.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use disk_image::{Access, DiskImage, partitions};
use replica_store::{PointSelector, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget};

use crate::lab::Lab;
use crate::process::run;
use crate::story::files_below;

/// Read at once.
const PIECE: u64 = 4 << 20;
/// The lab's disks have sectors of this many bytes.
const SECTOR: u32 = 512;

/// What the checker found on the disks of one point.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The point.
    pub point: RecoveryPoint,
    /// Newest stamp; every one up to it is there. `None` = the guest had stamped nothing yet.
    pub last_sequence: Option<u64>,
}

/// A replica in a folder store.
pub struct Replica {
    target: StoreTarget,
    key: ReplicaKey,
}

// === impl Replica ===

impl Replica {
    /// All replicas below a storage account's folder.
    pub fn all(storage: &Path) -> Result<Vec<Self>> {
        let mut items: Vec<PathBuf> = files_below(storage)
            .into_iter()
            .map(PathBuf::from)
            .filter(|path| path.file_name().is_some_and(|name| name == "manifest"))
            .filter_map(|path| path.parent().map(Path::to_owned))
            .collect();
        items.sort();
        items
            .iter()
            .map(|item| {
                let name = |path: Option<&Path>| {
                    path.and_then(|path| path.file_name()?.to_str())
                        .map(str::to_owned)
                        .context("a name that is no text")
                };
                Ok(Self {
                    target: StoreTarget::Folder(storage.to_owned()),
                    key: ReplicaKey::new(name(item.as_path().parent())?, name(Some(item))?)?,
                })
            })
            .map(|replica: Result<Self>| replica.context("a replica's folder"))
            .collect()
    }

    /// Reads every point's disks whole and has them checked.
    pub fn prove_all(&self, lab: &Lab) -> Result<Vec<Proof>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()?;
        let scratch = tempfile::tempdir_in(lab.folder())?;
        runtime.block_on(async {
            let reader = ReplicaReader::open(&self.target, &self.key).await?;
            let mut proofs = Vec::new();
            for point in reader.points().await? {
                let id = point.id;
                let proof = self
                    .prove(lab, &reader, point, scratch.path())
                    .await
                    .with_context(|| format!("recovery point {id} of replica {}", self.key))?;
                proofs.push(proof);
            }
            Ok(proofs)
        })
    }

    async fn prove(
        &self,
        lab: &Lab,
        reader: &ReplicaReader,
        point: RecoveryPoint,
        scratch: &Path,
    ) -> Result<Proof> {
        let view = reader.view(PointSelector::Id(point.id)).await?;
        let (mut os, mut data) = (None, None);
        for disk in view.disks() {
            let path = scratch.join(disk.id.to_string());
            let file = File::create(&path)?;
            file.set_len(disk.size_bytes)?;
            let mut at = 0;
            while at < disk.size_bytes {
                let length = PIECE.min(disk.size_bytes - at);
                let bytes = view.read(disk.id, at, usize::try_from(length)?).await?;
                if bytes.iter().any(|byte| *byte != 0) {
                    file.write_all_at(&bytes, at)?;
                }
                at += length;
            }
            let slot = if disk.name.contains("data") {
                &mut data
            } else {
                &mut os
            };
            ensure!(slot.is_none(), "two disks of one kind");
            *slot = Some(path);
        }
        let (os, data) = os.zip(data).context("not both disks are there")?;
        // The provider names a protected item by its VM's id.
        let last_sequence = check(lab, self.key.item_id(), &os, &data)?;
        Ok(Proof {
            point,
            last_sequence,
        })
    }
}

/// The guest's own checker over two raw images.
fn check(lab: &Lab, guest: &str, os: &Path, data: &Path) -> Result<Option<u64>> {
    let output = run(Command::new(lab.program("lab-guest"))
        .args(["check", "--id", guest])
        .arg("--data")
        .arg(data)
        .arg("--os")
        .arg(os)
        .args(["--os-offset", &stamps_offset(os)?.to_string()]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("LAB check empty") {
        return Ok(None);
    }
    let sequence = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("last_sequence="));
    match sequence.map(str::parse) {
        Some(Ok(sequence)) if text.contains("LAB check ok") => Ok(Some(sequence)),
        _ => bail!("the checker said `{}`", text.trim()),
    }
}

/// The stamps of the operating system disk are in its last partition, as in the guest.
fn stamps_offset(os: &Path) -> Result<u64> {
    let table = partitions::read(&DiskImage::open_raw(
        Box::new(File::open(os)?),
        Access::ReadOnly,
        SECTOR,
    )?)?;
    let last = table.partitions.iter().max_by_key(|part| part.start);
    Ok(last
        .context("no partition on the operating system disk")?
        .start)
}
