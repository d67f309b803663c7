//! `verify`: reads everything of an image, log, journal object or replica again and says what is damaged.
//!
//! ```text
//!   image     structure, checksums, log, block table; then every byte that is there
//!   replica   every file by itself (folder stores), then every recovery point of every disk, read whole
//! ```
//!
//! Promise: exit code 0 means that every byte which a recovery would use was read and, where a checksum covers it,
//! verified. Damage is listed object by object, and reading goes on to find the rest.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use disk_image::DiskImage;
use indicatif::ProgressBar;
use replica_store::{DiskSpec, PointSelector, RecoveryPoint, ReplicaReader, ReplicaView};
use serde_json::{Value, json};

use crate::inspect::{self, Kind};
use crate::{location, progress};

/// Read at once.
const CHUNK: u64 = 4 << 20;

const EXAMPLES: &str = "\
Examples:
  siterecovery-engine verify disk.vhdx
  siterecovery-engine verify /mnt/replicas/vault/item
  siterecovery-engine verify --points newest --json /mnt/replicas/vault/item
  AZURE_STORAGE_SAS_TOKEN='sv=...' siterecovery-engine verify https://account.blob.core.windows.net/replicas/vault/item

Exit code 0: everything was read and verified. 4: damage; each damaged object is named. 1: it could not be looked at.";

/// Exit code when damage was found.
pub const DAMAGED: u8 = 4;

/// Which recovery points are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Points {
    /// Each of them.
    All,
    /// The newest one, which needs every object of the replica that recovery to now needs.
    Newest,
    /// None: the files of the replica only.
    None,
}

/// Options of `verify`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Options {
    /// Image, log, journal object, folder <store>/<vault>/<item>, or its URL.
    path: String,
    /// Folder in which parents of a differencing disk may be opened; may be repeated.
    #[arg(long, value_name = "FOLDER")]
    parents: Vec<PathBuf>,
    /// File with keys of encrypted journal objects: a line each, GUID and 64 hexadecimal digits.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Recovery points to read whole.
    #[arg(long, value_enum, default_value = "all")]
    points: Points,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    damaged: Vec<Value>,
    warnings: Vec<Value>,
}

impl Findings {
    fn damage(&mut self, object: impl Into<String>, problem: &anyhow::Error) {
        self.damaged
            .push(json!({ "object": object.into(), "problem": format!("{problem:#}") }));
    }
}

/// Verifies; `true` = no damage.
pub async fn run(options: &Options) -> anyhow::Result<(Value, bool)> {
    let mut findings = Findings::default();
    let mut value = if location::is_url(&options.path) {
        replica(options, None, &mut findings).await?
    } else {
        let path = Path::new(&options.path);
        let metadata =
            std::fs::metadata(path).with_context(|| format!("find {}", path.display()))?;
        if metadata.is_dir() {
            replica(options, Some(path), &mut findings).await?
        } else {
            file(options, path, &mut findings)?
        }
    };
    let sound = findings.damaged.is_empty();
    value["sound"] = json!(sound);
    value["damaged"] = json!(findings.damaged);
    value["warnings"] = json!(findings.warnings);
    Ok((value, sound))
}

fn file(options: &Options, path: &Path, findings: &mut Findings) -> anyhow::Result<Value> {
    let kind = Kind::of(path)?;
    let checked = match kind {
        Kind::Image => image(path, &options.parents, findings),
        _ => small(path, options.keys.as_deref()),
    };
    Ok(checked.unwrap_or_else(|error| {
        findings.damage(path.display().to_string(), &error);
        json!({ "kind": format!("{kind:?}").to_lowercase() })
    }))
}

/// Anything but an image is verified as a whole by showing it.
fn small(path: &Path, keys: Option<&Path>) -> anyhow::Result<Value> {
    let keys = inspect::keys_of(keys)?;
    let value = inspect::file(path, &[], &keys)?;
    if value["verified"] == json!(false) {
        bail!(
            "{}",
            value["note"].as_str().unwrap_or("it could not be verified")
        );
    }
    Ok(json!({ "kind": value["kind"] }))
}

fn image(path: &Path, parents: &[PathBuf], findings: &mut Findings) -> anyhow::Result<Value> {
    let image = crate::convert::open(path, parents)?;
    let info = image.info()?;
    for warning in inspect::image_warnings(&info) {
        findings
            .warnings
            .push(json!({ "object": path.display().to_string(), "problem": warning }));
    }
    let (hash, read) = read_image(&image)?;
    Ok(json!({
        "kind": "disk image",
        "format": format!("{:?}", info.format),
        "virtualSizeBytes": info.virtual_size,
        "readBytes": read,
        "blake3": hash,
    }))
}

/// Hash over every byte of the disk, holes as zeroes; and how many bytes were read.
fn read_image(image: &DiskImage) -> anyhow::Result<(String, u64)> {
    let size = image.virtual_size();
    let allocated = image.allocated(0..size);
    let bar = progress::bytes("read", allocated.iter().map(|extent| extent.length).sum());
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    let mut read = 0;
    for extent in &allocated {
        zeroes(&mut hasher, extent.offset - at);
        at = extent.offset;
        while at < extent.end() {
            let length = (extent.end() - at).min(CHUNK);
            let part = &mut buffer[..length as usize];
            image
                .read_at(part, at)
                .with_context(|| format!("read {length} bytes at {at} of the disk"))?;
            hasher.update(part);
            at += length;
            read += length;
            bar.inc(length);
        }
    }
    zeroes(&mut hasher, size - at);
    bar.finish_and_clear();
    Ok((hasher.finalize().to_hex().to_string(), read))
}

fn zeroes(hasher: &mut blake3::Hasher, mut length: u64) {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    while length > 0 {
        let part = length.min(ZEROES.len() as u64);
        hasher.update(&ZEROES[..part as usize]);
        length -= part;
    }
}

async fn replica(
    options: &Options,
    folder: Option<&Path>,
    findings: &mut Findings,
) -> anyhow::Result<Value> {
    let (store, key) = location::replica(&options.path)?;
    let mut files = 0;
    if let Some(folder) = folder {
        files = each_file(folder, options.keys.as_deref(), findings)?;
    }
    let keys = inspect::keys_of(options.keys.as_deref())?;
    let reader = match ReplicaReader::open_with_keys(&store, &key, keys).await {
        Ok(reader) => reader,
        Err(error) if folder.is_some() && files > 0 => {
            findings.damage("manifest", &error.into());
            return Ok(json!({ "kind": "replica", "files": files }));
        }
        Err(error) => return Err(error).with_context(|| format!("open replica {key}")),
    };
    let mut points = reader.points().await.context("list the recovery points")?;
    match options.points {
        Points::All => {}
        Points::Newest => points = points.pop().into_iter().collect(),
        Points::None => points.clear(),
    }
    let disks = reader.disks().await.context("list the disks")?;
    let total = disks.iter().map(|disk| disk.size_bytes).sum::<u64>() * points.len() as u64;
    let bar = progress::bytes("recovery points", total);
    let mut read = Vec::new();
    for point in &points {
        match whole_point(&reader, point, &bar).await {
            Ok(hashes) => read.push(json!({
                "id": point.id,
                "position": point.position.0,
                "timeUnixMs": point.time_unix_ms,
                "disks": hashes,
            })),
            Err(error) => {
                findings.damage(
                    format!(
                        "recovery point {} (position {})",
                        point.id, point.position.0
                    ),
                    &error,
                );
            }
        }
    }
    bar.finish_and_clear();
    Ok(json!({
        "kind": "replica",
        "vaultKey": key.vault_key(),
        "item": key.item_id(),
        "files": files,
        "points": read,
    }))
}

async fn whole_point(
    reader: &ReplicaReader,
    point: &RecoveryPoint,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Value>> {
    let view = reader.view(PointSelector::Id(point.id)).await?;
    let mut hashes = Vec::new();
    for disk in view.disks() {
        let hash = whole_disk(&view, disk, bar)
            .await
            .with_context(|| format!("disk {} ({})", disk.id, disk.name))?;
        hashes.push(json!({ "id": disk.id, "sizeBytes": disk.size_bytes, "blake3": hash }));
    }
    Ok(hashes)
}

async fn whole_disk(
    view: &ReplicaView,
    disk: &DiskSpec,
    bar: &ProgressBar,
) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < disk.size_bytes {
        let length = (disk.size_bytes - at).min(CHUNK);
        let data = view
            .read(disk.id, at, length as usize)
            .await
            .with_context(|| format!("read {length} bytes at {at}"))?;
        hasher.update(&data);
        at += length;
        bar.inc(length);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Each file of a replica by itself, so that damage has a name.
fn each_file(folder: &Path, keys: Option<&Path>, findings: &mut Findings) -> anyhow::Result<usize> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    let bar = progress::bytes("files", files.iter().map(|(_, length)| length).sum());
    let mut seen = 0;
    for (path, length) in &files {
        let name = path
            .strip_prefix(folder)
            .unwrap_or(path)
            .display()
            .to_string();
        let result = match Kind::of(path) {
            Ok(Kind::Journal | Kind::Stored | Kind::Log) => Some(small(path, keys)),
            // The base's content is read through the points.
            Ok(Kind::Image) if name.ends_with(".vhd") => {
                Some(crate::convert::open(path, &[]).and_then(|image| {
                    image.info()?;
                    Ok(Value::Null)
                }))
            }
            // Locks and files that are being written have no format of their own.
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        match result {
            Some(Ok(_)) => seen += 1,
            Some(Err(error)) => {
                seen += 1;
                findings.damage(name, &error);
            }
            None => {}
        }
        bar.inc(*length);
    }
    bar.finish_and_clear();
    Ok(seen)
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, u64)>) -> anyhow::Result<()> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("list {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("list {}", folder.display()))?;
    paths.sort();
    for path in paths {
        // Links lead out of the replica.
        let metadata = std::fs::symlink_metadata(&path)
            .with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_dir() {
            collect(&path, files)?;
        } else if metadata.is_file() {
            files.push((path, metadata.len()));
        }
    }
    Ok(())
}
