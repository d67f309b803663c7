//! What a disk image says about itself, with the partitions of the disk in it.

use std::path::{Path, PathBuf};

use disk_image::partitions::{self, PartitionType, Style};
use disk_image::{Details, DiskImage, HeaderInfo, ImageInfo, LogInfo, VhdInfo, VhdxInfo};
use serde_json::{Value, json};

/// Shows the image at `path`; parents only out of the named folders.
pub fn inspect(path: &Path, parents: &[PathBuf]) -> anyhow::Result<Value> {
    let image = crate::convert::open(path, parents)?;
    let info = image.info()?;
    let mut value = facts(&info);
    value["partitionTable"] = table(&image);
    Ok(value)
}

/// What is known without reading the disk's content.
pub fn facts(info: &ImageInfo) -> Value {
    json!({
        "kind": "disk image",
        "format": format!("{:?}", info.format),
        "id": info.id,
        "virtualSizeBytes": info.virtual_size,
        "fileSizeBytes": info.file_size,
        "allocatedBytes": info.allocated_bytes,
        "blockSizeBytes": info.block_size,
        "logicalSectorSizeBytes": info.logical_sector_size,
        "physicalSectorSizeBytes": info.physical_sector_size,
        "details": match &info.details {
            Details::Raw => Value::Null,
            Details::Vhd(details) => vhd(details),
            Details::Vhdx(details) => vhdx(details),
        },
    })
}

/// Damage that could be worked around.
pub fn warnings(info: &ImageInfo) -> Vec<String> {
    match &info.details {
        Details::Vhdx(details) => details.warnings.clone(),
        Details::Vhd(details) if details.footer_from_copy => {
            vec!["the footer is broken; its copy at the start of the file was used".to_owned()]
        }
        _ => Vec::new(),
    }
}

fn vhd(details: &VhdInfo) -> Value {
    let (cylinders, heads, sectors) = details.geometry;
    json!({
        "creator": details.creator,
        "creatorVersion": format!("{}.{}", details.creator_version >> 16, details.creator_version & 0xffff),
        "creatorOs": details.creator_os,
        "secondsSince2000": details.timestamp,
        "originalSizeBytes": details.original_size,
        "currentSizeBytes": details.current_size,
        "geometry": format!("{cylinders}/{heads}/{sectors}"),
        "savedState": details.saved_state,
        "footerFromCopy": details.footer_from_copy,
        "tableEntries": details.table_entries,
        "parent": details.parent.as_ref().map(|parent| json!({
            "id": parent.id,
            "locators": parent.locators.iter().map(|locator| json!({
                "kind": format!("{:?}", locator.kind),
                "path": locator.path,
            })).collect::<Vec<_>>(),
        })),
    })
}

fn vhdx(details: &VhdxInfo) -> Value {
    json!({
        "creator": details.creator,
        "dataWriteGuid": details.data_write_guid,
        "currentHeader": details.current_header,
        "headers": details.headers.iter().map(header).collect::<Vec<_>>(),
        "regions": details.regions.iter().map(|region| json!({
            "id": region.id,
            "offset": region.offset,
            "lengthBytes": region.length,
            "required": region.required,
        })).collect::<Vec<_>>(),
        "metadata": details.metadata.iter().map(|item| json!({
            "id": item.id,
            "name": item.name,
            "offset": item.offset,
            "lengthBytes": item.length,
            "flags": item.flags,
        })).collect::<Vec<_>>(),
        "leaveBlocksAllocated": details.leave_blocks_allocated,
        "hasParent": details.has_parent,
        "parent": details.parent.as_ref().map(|parent| json!({
            "linkage": parent.linkage,
            "linkage2": parent.linkage2,
            "locator": parent.values.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect::<Vec<_>>(),
        })),
        "tableEntries": details.table_entries,
        "log": match &details.log {
            LogInfo::Clean => json!({ "state": "clean" }),
            LogInfo::Empty => json!({ "state": "empty" }),
            LogInfo::Replayed { entries, sequence_number, descriptors } => json!({
                "state": "replayed in memory",
                "entries": entries,
                "sequenceNumber": sequence_number,
                "descriptors": descriptors,
            }),
        },
        "warnings": details.warnings,
    })
}

fn header(header: &HeaderInfo) -> Value {
    match header {
        HeaderInfo::Valid {
            sequence_number,
            file_write_guid,
            data_write_guid,
            log_guid,
            log_length,
            log_offset,
        } => json!({
            "valid": true,
            "sequenceNumber": sequence_number,
            "fileWriteGuid": file_write_guid,
            "dataWriteGuid": data_write_guid,
            "logGuid": log_guid,
            "logLengthBytes": log_length,
            "logOffset": log_offset,
        }),
        HeaderInfo::Invalid(reason) => json!({ "valid": false, "reason": reason }),
    }
}

fn table(image: &DiskImage) -> Value {
    match partitions::read(image) {
        // The image is fine; what the guest wrote into it is the guest's.
        Err(error) => json!({ "style": "damaged", "reason": error.to_string() }),
        Ok(table) => {
            let (style, id) = match table.style {
                Style::None => ("none", Value::Null),
                Style::Mbr { signature } => ("MBR", json!(format!("{signature:08x}"))),
                Style::Gpt { id, .. } => ("GPT", json!(id)),
            };
            json!({
                "style": style,
                "id": id,
                "fromBackup": matches!(table.style, Style::Gpt { from_backup: true, .. }),
                "partitions": table.partitions.iter().map(|partition| json!({
                    "number": partition.number,
                    "type": match partition.kind {
                        PartitionType::Mbr(kind) => format!("0x{kind:02x}"),
                        PartitionType::Gpt(kind) => kind.to_string(),
                    },
                    "name": partition.name,
                    "start": partition.start,
                    "lengthBytes": partition.length,
                    "bootable": partition.bootable,
                })).collect::<Vec<_>>(),
            })
        }
    }
}
