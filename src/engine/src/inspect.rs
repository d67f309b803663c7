//! `inspect` and `points`: what a file or a replica says about itself, for people and for scripts.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use disk_image::{Access, DiskImage};
use replica_store::{PointKind, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget};
use replication_log::hrl::HrlReader;
use replication_log::journal::{EntryData, JournalReader};
use serde_json::{Value, json};

/// Looks at `path`: a disk image, a replication log, a journal object, or the folder of a replica.
pub async fn inspect(path: &Path) -> anyhow::Result<Value> {
    let metadata = std::fs::metadata(path).with_context(|| format!("find {}", path.display()))?;
    if metadata.is_dir() {
        return replica_folder(path).await;
    }
    let mut magic = [0u8; 8];
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file
        .read(&mut magic)
        .with_context(|| format!("read {}", path.display()))?;
    let result = match &magic[..length] {
        magic if magic.starts_with(b"msctlog") => log(path),
        magic if magic.starts_with(b"SRJRNL") => journal(path),
        _ => image(path),
    };
    result.with_context(|| format!("inspect {}", path.display()))
}

/// The points of a replica, as `inspect` of its folder shows them.
pub async fn points(store: &Path, vault_key: &str, item: &str) -> anyhow::Result<Value> {
    let store = std::path::absolute(store).context("store folder")?;
    let key = ReplicaKey::new(vault_key, item)?;
    let reader = ReplicaReader::open(&StoreTarget::Folder(store), &key)
        .await
        .with_context(|| format!("open replica {key}"))?;
    let points = reader.points().await.context("list the recovery points")?;
    let pins = reader.pins().await.context("list the pins")?;
    Ok(json!({
        "kind": "replica",
        "vaultKey": key.vault_key(),
        "item": key.item_id(),
        "pins": pins.iter().map(|pin| json!({ "owner": pin.owner, "point": pin.point_id, "position": pin.position.0 })).collect::<Vec<_>>(),
        "points": points.iter().map(point).collect::<Vec<_>>(),
    }))
}

/// The same for people: `key: value` lines, lists indented.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    render(&mut out, value, 0);
    out
}

async fn replica_folder(path: &Path) -> anyhow::Result<Value> {
    let path = std::fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
    let mut parts = path.ancestors();
    let names: Vec<_> = parts
        .by_ref()
        .take(2)
        .filter_map(|part| part.file_name()?.to_str())
        .collect();
    let (Some(store), [item, vault_key]) = (parts.next(), names.as_slice()) else {
        bail!(
            "{} is not the folder of a replica (<storage account>/<vault>/<item>)",
            path.display()
        );
    };
    points(store, vault_key, item).await.with_context(|| {
        format!(
            "{} is not the folder of a replica (<storage account>/<vault>/<item>)",
            path.display()
        )
    })
}

fn point(point: &RecoveryPoint) -> Value {
    json!({
        "id": point.id,
        "time": rfc3339(point.time_unix_ms),
        "timeUnixMs": point.time_unix_ms,
        "kind": match point.kind { PointKind::Crash => "CrashConsistent", PointKind::Application => "ApplicationConsistent" },
        "position": point.position.0,
        "changedBytes": point.changed_bytes,
        "sentBytes": point.sent_bytes,
    })
}

fn log(path: &Path) -> anyhow::Result<Value> {
    let reader = HrlReader::open(File::open(path)?)?;
    let info = reader.info();
    let bytes: u64 = reader
        .entries()
        .iter()
        .map(|entry| u64::from(entry.length))
        .sum();
    for entry in reader.entries() {
        reader.read(entry)?;
    }
    Ok(json!({
        "kind": "replication log (MS-HRL)",
        "id": info.id,
        "previousId": info.previous_id,
        "dataWriteGuid": info.data_write_guid,
        "created": rfc3339(info.created_unix_ms),
        "entries": reader.entries().len(),
        "changedBytes": bytes,
        "verified": true,
    }))
}

fn journal(path: &Path) -> anyhow::Result<Value> {
    let reader = JournalReader::open(File::open(path)?)?;
    reader.verify()?;
    let header = reader.header();
    let disks: Vec<Value> = header
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| {
            let entries = reader.entries(index);
            let zero: u64 = entries.iter().filter(|entry| entry.data == EntryData::Zeroes).map(|entry| entry.length).sum();
            let all: u64 = entries.iter().map(|entry| entry.length).sum();
            json!({ "id": disk.id, "sizeBytes": disk.size_bytes, "entries": entries.len(), "changedBytes": all, "zeroBytes": zero })
        })
        .collect();
    Ok(json!({
        "kind": "journal object",
        "item": header.item,
        "generation": header.generation,
        "position": header.position,
        "time": rfc3339(header.time_unix_ms),
        "storedBytes": std::fs::metadata(path)?.len(),
        "disks": disks,
        "verified": true,
    }))
}

fn image(path: &Path) -> anyhow::Result<Value> {
    let image = DiskImage::open(path, Access::ReadOnly)?;
    let info = image.info()?;
    Ok(json!({
        "kind": "disk image",
        "format": format!("{:?}", info.format),
        "id": info.id,
        "virtualSizeBytes": info.virtual_size,
        "fileSizeBytes": info.file_size,
        "allocatedBytes": info.allocated_bytes,
        "blockSizeBytes": info.block_size,
        "logicalSectorSizeBytes": info.logical_sector_size,
        "physicalSectorSizeBytes": info.physical_sector_size,
    }))
}

fn rfc3339(unix_ms: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| format!("{unix_ms} ms"))
}

fn render(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Array(list) => {
                        writeln!(out, "{indent}{key}: {}", list.len()).ok();
                        for item in list {
                            render(out, item, depth + 1);
                        }
                    }
                    Value::Object(_) => {
                        writeln!(out, "{indent}{key}:").ok();
                        render(out, value, depth + 1);
                    }
                    other => {
                        writeln!(out, "{indent}{key}: {}", plain(other)).ok();
                    }
                }
            }
            if depth > 0 {
                writeln!(out).ok();
            }
        }
        other => {
            writeln!(out, "{indent}{}", plain(other)).ok();
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
