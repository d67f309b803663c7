//! Partition tables, read only: MBR (with logical partitions) and GPT.

use uuid::Uuid;

use crate::bytes::{guid, le16, le32, le64};
use crate::{BlockRead, ErrorKind, ImageError};

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

/// Most logical partitions followed: what the largest real tables have, and the end of any loop.
const MAX_LOGICAL: u32 = 128;
/// Most GPT entries read. The usual number is 128.
const MAX_GPT_ENTRIES: u32 = 1024;

/// Reads the partition table of a disk. A disk without one has [`Style::None`]; a table that
/// contradicts itself or the disk is `Corrupt`.
pub fn read(disk: &(impl BlockRead + ?Sized)) -> Result<PartitionTable, ImageError> {
    let none = PartitionTable {
        style: Style::None,
        partitions: Vec::new(),
    };
    if disk.virtual_size() < 2 * u64::from(disk.logical_sector_size()) {
        return Ok(none);
    }
    let mut mbr = [0; 512];
    disk.read_at(&mut mbr, 0)?;
    if !is_table(&mbr) {
        return Ok(none);
    }
    if (0..4).any(|i| mbr_entry(&mbr, i).kind == 0xee) {
        return gpt(disk);
    }
    read_mbr(disk, &mbr)
}

/// A raw MBR entry; start and length in sectors.
struct MbrEntry {
    active: bool,
    kind: u8,
    start: u64,
    count: u64,
}

fn mbr_entry(sector: &[u8; 512], index: usize) -> MbrEntry {
    let at = 446 + 16 * index;
    MbrEntry {
        active: sector[at] == 0x80,
        kind: sector[at + 4],
        start: u64::from(le32(sector, at + 8)),
        count: u64::from(le32(sector, at + 12)),
    }
}

/// Boot sectors of file systems have the same signature, but code where a table has its flags.
fn is_table(sector: &[u8; 512]) -> bool {
    sector[510..] == [0x55, 0xaa] && (0..4).all(|i| matches!(sector[446 + 16 * i], 0 | 0x80))
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

fn read_mbr(
    disk: &(impl BlockRead + ?Sized),
    mbr: &[u8; 512],
) -> Result<PartitionTable, ImageError> {
    let mut partitions = Vec::new();
    for i in 0..4 {
        let entry = mbr_entry(mbr, i);
        if entry.kind == 0 || entry.count == 0 {
            continue;
        }
        partitions.push(mbr_partition(disk, i as u32 + 1, &entry, 0)?);
    }
    for i in 0..4 {
        let entry = mbr_entry(mbr, i);
        if is_extended(entry.kind) && entry.count != 0 {
            read_logical(disk, &entry, &mut partitions)?;
            break;
        }
    }
    Ok(PartitionTable {
        style: Style::Mbr {
            signature: le32(mbr, 440),
        },
        partitions,
    })
}

/// Follows the chain of extended boot records; each lies inside the extended partition.
fn read_logical(
    disk: &(impl BlockRead + ?Sized),
    extended: &MbrEntry,
    partitions: &mut Vec<Partition>,
) -> Result<(), ImageError> {
    let sector_size = u64::from(disk.logical_sector_size());
    let mut next = extended.start;
    for number in 5..5 + MAX_LOGICAL {
        let mut record = [0; 512];
        disk.read_at(&mut record, next * sector_size)?;
        if !is_table(&record) {
            let at = next * sector_size;
            return Err(ImageError::corrupt(
                "extended boot record",
                at,
                "the signature 55 aa is missing",
            ));
        }
        let logical = mbr_entry(&record, 0);
        if logical.kind != 0 && logical.count != 0 {
            partitions.push(mbr_partition(disk, number, &logical, next)?);
        }
        let link = mbr_entry(&record, 1);
        if link.kind == 0 || link.start == 0 {
            return Ok(());
        }
        if link.start >= extended.count {
            let at = next * sector_size;
            return Err(ImageError::corrupt(
                "extended boot record",
                at,
                "its link leaves the extended partition",
            ));
        }
        next = extended.start + link.start;
    }
    Err(ImageError::corrupt(
        "extended boot record",
        next * sector_size,
        format!("the chain has more than {MAX_LOGICAL} links"),
    ))
}

fn mbr_partition(
    disk: &(impl BlockRead + ?Sized),
    number: u32,
    entry: &MbrEntry,
    base: u64,
) -> Result<Partition, ImageError> {
    let sector_size = u64::from(disk.logical_sector_size());
    let (start, length) = (
        (base + entry.start) * sector_size,
        entry.count * sector_size,
    );
    check_place(disk, number, start, length)?;
    Ok(Partition {
        number,
        kind: PartitionType::Mbr(entry.kind),
        start,
        length,
        bootable: entry.active,
        name: String::new(),
    })
}

fn check_place(
    disk: &(impl BlockRead + ?Sized),
    number: u32,
    start: u64,
    length: u64,
) -> Result<(), ImageError> {
    match start.checked_add(length) {
        Some(end) if end <= disk.virtual_size() => Ok(()),
        _ => Err(ImageError::corrupt(
            format!("partition {number}"),
            start,
            format!(
                "{length} bytes pass the end of the disk at {}",
                disk.virtual_size()
            ),
        )),
    }
}

/// The primary table, or the backup at the end of the disk when the primary is broken.
fn gpt(disk: &(impl BlockRead + ?Sized)) -> Result<PartitionTable, ImageError> {
    let sector_size = u64::from(disk.logical_sector_size());
    let error = match read_gpt(disk, 1, "GPT header", false) {
        Ok(table) => return Ok(table),
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => error,
    };
    let last = disk.virtual_size() / sector_size - 1;
    read_gpt(disk, last, "backup GPT header", true).map_err(|_| error)
}

fn read_gpt(
    disk: &(impl BlockRead + ?Sized),
    lba: u64,
    object: &str,
    from_backup: bool,
) -> Result<PartitionTable, ImageError> {
    let sector_size = u64::from(disk.logical_sector_size());
    let at = lba * sector_size;
    let mut header = vec![0; sector_size as usize];
    disk.read_at(&mut header, at)?;
    if !header.starts_with(b"EFI PART") {
        return Err(ImageError::corrupt(
            object,
            at,
            "the signature EFI PART is missing",
        ));
    }
    let header_length = le32(&header, 12) as usize;
    if !(92..=header.len()).contains(&header_length) {
        return Err(ImageError::corrupt(
            object,
            at,
            format!("its length {header_length} is not allowed"),
        ));
    }
    let stored = le32(&header, 16);
    header[16..20].fill(0);
    let computed = crc32(&header[..header_length]);
    if stored != computed {
        return Err(ImageError::checksum(object, at, stored, computed));
    }
    if le64(&header, 24) != lba {
        return Err(ImageError::corrupt(
            object,
            at,
            format!("it says it lies in sector {}", le64(&header, 24)),
        ));
    }
    let (count, length) = (le32(&header, 80), le32(&header, 84));
    if count > MAX_GPT_ENTRIES || !(128..=4096).contains(&length) || length % 8 != 0 {
        return Err(ImageError::corrupt(
            object,
            at,
            format!("{count} entries of {length} bytes are not allowed"),
        ));
    }
    let entries_at = le64(&header, 72).saturating_mul(sector_size);
    let mut entries = vec![0; (count * length) as usize];
    if entries_at
        .checked_add(entries.len() as u64)
        .is_none_or(|end| end > disk.virtual_size())
    {
        return Err(ImageError::corrupt(
            object,
            at,
            "its entries lie outside the disk",
        ));
    }
    disk.read_at(&mut entries, entries_at)?;
    let (stored, computed) = (le32(&header, 88), crc32(&entries));
    if stored != computed {
        return Err(ImageError::checksum(
            "GPT entries",
            entries_at,
            stored,
            computed,
        ));
    }
    let mut partitions = Vec::new();
    for (i, entry) in entries.chunks_exact(length as usize).enumerate() {
        let kind = guid(entry, 0);
        if kind.is_nil() {
            continue;
        }
        let number = i as u32 + 1;
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let start = first.checked_mul(sector_size);
        let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
        let (Some(start), Some(length)) = (start, sectors.and_then(|n| n.checked_mul(sector_size)))
        else {
            return Err(ImageError::corrupt(
                format!("partition {number}"),
                at,
                "it ends before it starts",
            ));
        };
        check_place(disk, number, start, length)?;
        let name: Vec<u16> = (0..36)
            .map(|i| le16(entry, 56 + 2 * i))
            .take_while(|unit| *unit != 0)
            .collect();
        partitions.push(Partition {
            number,
            kind: PartitionType::Gpt(kind),
            start,
            length,
            bootable: le64(entry, 48) & 4 != 0,
            name: String::from_utf16_lossy(&name),
        });
    }
    Ok(PartitionTable {
        style: Style::Gpt {
            id: guid(&header, 56),
            from_backup,
        },
        partitions,
    })
}

/// CRC-32 as GPT uses it (IEEE 802.3; VHDX uses CRC-32C).
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut value = i as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    value >> 1 ^ 0xedb8_8320
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| {
        crc >> 8 ^ TABLE[usize::from(crc as u8 ^ *byte)]
    })
}
