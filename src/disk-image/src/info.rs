//! What `inspect` shows of an image: everything its metadata says, typed.

use uuid::Uuid;

use crate::{Format, ParentLocator};

/// All that an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Format and kind.
    pub format: Format,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes of allocated blocks (virtual size where the format can't tell).
    pub allocated_bytes: u64,
    /// Bytes of one block, where the format has blocks.
    pub block_size: Option<u32>,
    /// Logical sector size in bytes.
    pub logical_sector_size: u32,
    /// Physical sector size in bytes.
    pub physical_sector_size: u32,
    /// The disk's identity: VHDX virtual disk id or VHD unique id.
    pub id: Option<Uuid>,
    /// What only this format has.
    pub details: Details,
}

/// The part of [`ImageInfo`] that depends on the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Details {
    /// Nothing more to say.
    Raw,
    /// VHD footer.
    Vhd(VhdInfo),
    /// VHDX headers, regions, metadata and log.
    Vhdx(Box<VhdxInfo>),
}

/// What a VHD footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdInfo {
    /// Creator application, four characters.
    pub creator: String,
    /// Creator version, major in the upper half.
    pub creator_version: u32,
    /// Creator host system, four characters.
    pub creator_os: String,
    /// Seconds since 2000-01-01 UTC.
    pub timestamp: u32,
    /// Size at creation, bytes.
    pub original_size: u64,
    /// Current size as the footer says, bytes.
    pub current_size: u64,
    /// Cylinders, heads, sectors per track.
    pub geometry: (u16, u8, u8),
    /// Whether the machine was saved with this disk.
    pub saved_state: bool,
    /// Dynamic: whether the footer was broken and its copy at the start was used.
    pub footer_from_copy: bool,
    /// Dynamic: entries of the block allocation table.
    pub table_entries: Option<u32>,
    /// What a differencing disk says of its parent.
    pub parent: Option<VhdParentInfo>,
}

/// What a differencing VHD stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdParentInfo {
    /// Unique id of the parent.
    pub id: Uuid,
    /// Where it lies, in the order in which the places are tried.
    pub locators: Vec<ParentLocator>,
}

/// What a VHDX says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxInfo {
    /// Who created the file.
    pub creator: String,
    /// The two header slots.
    pub headers: [HeaderInfo; 2],
    /// Slot (0 or 1) in force.
    pub current_header: usize,
    /// Identifies the state of the disk's data.
    pub data_write_guid: Uuid,
    /// Regions, as the region table lists them.
    pub regions: Vec<RegionInfo>,
    /// Metadata items, as the metadata table lists them.
    pub metadata: Vec<MetadataItemInfo>,
    /// Blocks stay allocated: a fixed disk.
    pub leave_blocks_allocated: bool,
    /// A differencing disk.
    pub has_parent: bool,
    /// What a differencing disk stands on.
    pub parent: Option<VhdxParentInfo>,
    /// Entries of the block allocation table.
    pub table_entries: u64,
    /// State of the log when the file was opened.
    pub log: LogInfo,
    /// Damage that was worked around, as a broken copy of the region table.
    pub warnings: Vec<String>,
}

/// What a differencing VHDX stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxParentInfo {
    /// Data write guid of the parent.
    pub linkage: Uuid,
    /// A second one that is right as well.
    pub linkage2: Option<Uuid>,
    /// The other keys of the locator, places among them, with their values.
    pub values: Vec<(String, String)>,
}

/// One header slot of a VHDX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderInfo {
    /// Signature and checksum hold.
    Valid {
        /// The higher one is in force.
        sequence_number: u64,
        /// New at every opening for writing.
        file_write_guid: Uuid,
        /// New when the disk's data changes.
        data_write_guid: Uuid,
        /// Not nil while a log may have to be replayed.
        log_guid: Uuid,
        /// Log length in bytes.
        log_length: u32,
        /// Log offset in bytes.
        log_offset: u64,
    },
    /// Refused, with the reason.
    Invalid(String),
}

/// One region of a VHDX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// What the region is.
    pub id: Uuid,
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
    /// Whether a reader that doesn't know it must refuse the file.
    pub required: bool,
}

/// One metadata item of a VHDX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataItemInfo {
    /// What the item is.
    pub id: Uuid,
    /// Its name, where known.
    pub name: Option<&'static str>,
    /// Byte offset in the metadata region.
    pub offset: u32,
    /// Length in bytes.
    pub length: u32,
    /// Flags as stored: bit 0 user item, bit 1 describes the virtual disk, bit 2 required.
    pub flags: u32,
}

/// State of a VHDX log at opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogInfo {
    /// The log guid is nil: nothing to replay.
    Clean,
    /// The log guid is set and no entry is valid: nothing to replay.
    Empty,
    /// Entries were replayed.
    Replayed {
        /// Number of log entries.
        entries: u64,
        /// Sequence number of the newest.
        sequence_number: u64,
        /// Descriptors applied.
        descriptors: u64,
    },
}
