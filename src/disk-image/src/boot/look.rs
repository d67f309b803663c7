//! A short look at a disk: what its partition table and the first blocks of its partitions tell of it, for checks that
//! are made again and again while a guest writes the disk.
//!
//! Promise: never more than the table, and [`MOST_PARTITIONS`] heads of at most 65,608 bytes each, is read, whatever the disk
//! claims; no file system is followed. What contradicts itself is told in the answer. Nothing is ever written.

use super::inspect::{Guest, InspectedPartition, guest_of};
use super::signature::{self, Content};
use crate::partitions::{self, Partition, PartitionType, Style};
use crate::{BlockRead, ErrorKind, ImageError};

/// Partitions whose first blocks are read; further ones are told by their type only.
pub const MOST_PARTITIONS: usize = 32;

/// Kind of a disk's partition table, as far as a look goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// None: empty, or a file system on the whole disk.
    None,
    /// Master boot record.
    Mbr,
    /// GUID partition table.
    Gpt,
    /// It contradicts itself or the disk.
    Damaged,
}

/// What a look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Look {
    /// The partition table.
    pub table: Table,
    /// How many partitions it lists.
    pub partitions: u32,
    /// Dynamic disk of Windows' Logical Disk Manager: MBR type 0x42, or one of its two GPT types.
    pub dynamic_disk: bool,
    /// One of the partitions, or the whole disk, is a BitLocker volume (`-FVE-FS-` at its byte 3).
    pub bitlocker: bool,
    /// One of them is a LUKS container.
    pub luks: bool,
    /// One of them is a physical volume of LVM.
    pub lvm: bool,
    /// There is an EFI system partition.
    pub efi_system_partition: bool,
    /// Whose traces lie on it.
    pub guest: Guest,
}

/// Looks at a disk.
///
/// # Errors
/// What reading the disk gives; nothing else.
pub fn look(disk: &(impl BlockRead + ?Sized)) -> Result<Look, ImageError> {
    let (table, partitions) = match partitions::read(disk) {
        Ok(found) => {
            let table = match found.style {
                Style::None => Table::None,
                Style::Mbr { .. } => Table::Mbr,
                Style::Gpt { .. } => Table::Gpt,
            };
            (table, found.partitions)
        }
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(_) => (Table::Damaged, Vec::new()),
    };
    let listed = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
    let whole = || Partition {
        number: 0,
        kind: PartitionType::Mbr(0),
        start: 0,
        length: disk.virtual_size(),
        bootable: false,
        name: String::new(),
    };
    let looked_at = match table {
        Table::None => vec![whole()],
        _ => partitions,
    };
    let mut found = Vec::with_capacity(looked_at.len());
    for (index, partition) in looked_at.into_iter().enumerate() {
        let content = if index < MOST_PARTITIONS {
            signature::content(disk, &partition)?
        } else {
            Content::Unknown
        };
        found.push(InspectedPartition { partition, content });
    }
    let any = |content| found.iter().any(|one| one.content == content);
    Ok(Look {
        table,
        partitions: listed,
        dynamic_disk: found.iter().any(InspectedPartition::is_dynamic_disk),
        bitlocker: any(Content::BitLocker),
        luks: any(Content::Luks),
        lvm: any(Content::Lvm),
        efi_system_partition: found.iter().any(InspectedPartition::is_system_partition),
        guest: guest_of(&found),
    })
}
