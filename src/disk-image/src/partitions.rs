//! Partition tables, read only: MBR (with logical partitions) and GPT.

use uuid::Uuid;

use crate::{BlockRead, ImageError};

/// A disk's partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// Which kind of table.
    pub style: Style,
    /// The partitions, in the order of the table.
    pub partitions: Vec<Partition>,
}

/// Kind of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// No table: empty disk or a file system on the whole disk.
    None,
    /// Master boot record.
    Mbr {
        /// Disk signature at byte 440.
        signature: u32,
    },
    /// GUID partition table.
    Gpt {
        /// Disk GUID.
        id: Uuid,
        /// Whether the primary table was broken and the backup was used.
        from_backup: bool,
    },
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// MBR type byte.
    Mbr(u8),
    /// GPT type GUID.
    Gpt(Uuid),
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Number as operating systems count: from 1; logical MBR partitions from 5.
    pub number: u32,
    /// What it is for.
    pub kind: PartitionType,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// MBR active flag, or GPT attribute bit 2 (legacy BIOS bootable).
    pub bootable: bool,
    /// GPT name; empty for MBR.
    pub name: String,
}

/// Reads the partition table of a disk.
pub fn read(_disk: &(impl BlockRead + ?Sized)) -> Result<PartitionTable, ImageError> {
    Err(ImageError::unsupported("partition table", "not built yet"))
}
