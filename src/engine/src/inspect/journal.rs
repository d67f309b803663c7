//! Replication logs and journal objects: whose they are, what they carry, whether every byte of them verifies.

use std::fs::File;
use std::path::Path;

use replication_log::KeyRing;
use replication_log::hrl::HrlReader;
use replication_log::journal::{EntryData, JournalReader, Outline, read_outline};
use serde_json::{Value, json};

use super::rfc3339;

/// A log beside a disk.
pub fn log(path: &Path) -> anyhow::Result<Value> {
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

/// A journal object. Without its key the header is shown, which is in the clear, and no more.
pub fn object(path: &Path, keys: &KeyRing) -> anyhow::Result<Value> {
    let stored = std::fs::metadata(path)?.len();
    let front = read_outline(&File::open(path)?)?;
    let (header, key) = (&front.header, front.key_id);
    let missing = key.filter(|key| !keys.ids().any(|known| known == *key));
    let mut value = facts(&front);
    value["storedBytes"] = json!(stored);
    value["encrypted"] = json!(key.is_some());
    value["keyId"] = json!(key);
    if let Some(key) = missing {
        value["disks"] = header
            .disks
            .iter()
            .map(|disk| json!({ "id": disk.id, "sizeBytes": disk.size_bytes }))
            .collect();
        value["verified"] = json!(false);
        value["note"] = json!(format!(
            "only the header was read: give the key {key} with --keys to see and verify the rest"
        ));
        return Ok(value);
    }
    let reader = JournalReader::open_with_keys(File::open(path)?, keys)?;
    reader.verify()?;
    value["frames"] = json!(reader.frames().len());
    value["rawBytes"] = json!(
        reader
            .frames()
            .iter()
            .map(|frame| u64::from(frame.raw_length()))
            .sum::<u64>()
    );
    value["disks"] = header
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| {
            let entries = reader.entries(index);
            let sum = |zero: bool| -> u64 {
                entries
                    .iter()
                    .filter(|entry| !zero || entry.data == EntryData::Zeroes)
                    .map(|entry| entry.length)
                    .sum()
            };
            json!({
                "id": disk.id,
                "sizeBytes": disk.size_bytes,
                "entries": entries.len(),
                "changedBytes": sum(false),
                "zeroBytes": sum(true),
            })
        })
        .collect();
    value["verified"] = json!(true);
    Ok(value)
}

fn facts(front: &Outline) -> Value {
    let header = &front.header;
    let mut value = json!({
        "kind": "journal object",
        "item": header.item,
        "generation": header.generation,
        "position": header.position,
        "time": rfc3339(header.time_unix_ms),
    });
    if let Some(merged) = front.merged {
        value["kind"] = json!("journal object, merged of several cycles");
        value["firstPosition"] = json!(merged.first_position);
        value["excludedDisks"] = header
            .disks
            .iter()
            .skip(front.present_disks().len())
            .map(|disk| json!(disk.id))
            .collect();
    }
    value
}
