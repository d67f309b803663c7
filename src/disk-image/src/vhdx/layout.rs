//! Places, sizes and identities that MS-VHDX fixes.

use uuid::{Uuid, uuid};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

pub(super) const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";
/// The two header slots.
pub(super) const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
pub(super) const HEADER_LENGTH: usize = 4096;
/// The two copies of the region table.
pub(super) const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
pub(super) const REGION_TABLE_LENGTH: usize = 64 << 10;
pub(super) const METADATA_TABLE_LENGTH: usize = 64 << 10;
/// Identifier, headers and region tables live below; nothing else may.
pub(super) const HEADER_SECTION_END: u64 = MIB;
/// Log entries are whole sectors of this size.
pub(super) const LOG_SECTOR: usize = 4096;

/// Largest virtual disk: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;
/// No file of a disk of 64 TiB is longer: blocks, bitmaps, tables and slack.
pub(super) const MAX_FILE_LENGTH: u64 = 66 << 40;
/// Longest log accepted. Windows and QEMU make logs of 1 MiB.
pub(super) const MAX_LOG_LENGTH: u32 = 64 << 20;

pub(super) const BAT_REGION: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
pub(super) const METADATA_REGION: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

pub(super) const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
pub(super) const VIRTUAL_DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
pub(super) const VIRTUAL_DISK_ID: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
pub(super) const LOGICAL_SECTOR_SIZE: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
pub(super) const PHYSICAL_SECTOR_SIZE: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
pub(super) const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");

/// Payload blocks per sector bitmap block.
pub(super) fn chunk_ratio(logical_sector_size: u32, block_size: u32) -> u64 {
    (u64::from(logical_sector_size) << 23) / u64::from(block_size)
}
