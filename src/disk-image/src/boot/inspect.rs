//! Looks at a disk: table, partitions, whose system it is, what starts it. Reads a few blocks of each partition.

use uuid::{Uuid, uuid};

use super::esp::{self, SystemPartition};
use super::signature::{self, Content};
use super::{SECTOR, loader, space};
use crate::partitions::{self, Partition, PartitionTable, PartitionType, Style};
use crate::{BlockRead, ErrorKind, Extent, ImageError};

const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
const ESP_MBR: u8 = 0xef;
const MICROSOFT_RESERVED: Uuid = uuid!("e3c9e316-0b5c-4db8-817d-f92df00215ae");
const LDM_METADATA: Uuid = uuid!("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3");
const LDM_DATA: Uuid = uuid!("af9b60a0-1431-4f62-bc68-3311714a69ad");
const LDM_MBR: u8 = 0x42;
/// Types that only Linux uses: data, reserved, root x86-64, /boot, LVM, RAID, swap, /home, /srv, /usr x86-64, LUKS, dm-crypt.
const LINUX: [Uuid; 12] = [
    uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4"),
    uuid!("8da63339-0007-60c0-c436-083ac8230908"),
    uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172"),
    uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928"),
    uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e"),
    uuid!("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"),
    uuid!("933ac7e1-2eb4-4f13-b844-0e14e2aef915"),
    uuid!("3b8f8425-20e0-4f3b-907f-1a25a76f98e8"),
    uuid!("8484680c-9521-48c6-9c11-b0720656f69e"),
    uuid!("ca7d7ccb-63ed-4c53-861c-1742536059cc"),
    uuid!("7ffec5c9-2d00-49b7-8941-3ea10a5586b7"),
];
const LINUX_MBR: [u8; 4] = [0x82, 0x83, 0x8e, 0xfd];

/// What a disk looks like to somebody who wants to start it in another firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Logical sector size in bytes.
    pub sector_bytes: u32,
    /// The table, or why it can't be read.
    pub table: Result<PartitionTable, String>,
    /// The table's partitions with what they hold.
    pub partitions: Vec<InspectedPartition>,
    /// The EFI system partition that firmware starts from: the first one.
    pub system_partition: Option<SystemPartition>,
    /// What a BIOS would find.
    pub bios: BiosStart,
    /// Whose system lies on it.
    pub guest: Guest,
    /// Ranges of no partition and no table: sorted, disjoint.
    pub free: Vec<Extent>,
}

/// A partition and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedPartition {
    /// The table's entry.
    pub partition: Partition,
    /// What its first blocks say.
    pub content: Content,
}

impl InspectedPartition {
    pub(super) fn is_dynamic_disk(&self) -> bool {
        matches!(self.partition.kind, PartitionType::Gpt(kind) if kind == LDM_METADATA || kind == LDM_DATA)
            || self.partition.kind == PartitionType::Mbr(LDM_MBR)
    }

    pub(super) fn is_microsoft_reserved(&self) -> bool {
        self.partition.kind == PartitionType::Gpt(MICROSOFT_RESERVED)
    }

    pub(super) fn is_system_partition(&self) -> bool {
        match self.partition.kind {
            PartitionType::Gpt(kind) => kind == ESP,
            PartitionType::Mbr(kind) => kind == ESP_MBR,
        }
    }

    fn is_linux(&self) -> bool {
        self.content.is_linux()
            || match self.partition.kind {
                PartitionType::Gpt(kind) => LINUX.contains(&kind),
                PartitionType::Mbr(kind) => LINUX_MBR.contains(&kind),
            }
    }

    fn is_windows(&self) -> bool {
        self.is_microsoft_reserved()
            || self.is_dynamic_disk()
            || matches!(self.content, Content::Ntfs | Content::BitLocker)
    }
}

/// What a BIOS finds on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiosStart {
    /// No boot code.
    Nothing,
    /// GRUB's boot code, and its core where that looks for it.
    Grub,
    /// Other boot code, or GRUB's without its core.
    Other,
}

/// Whose system lies on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
    /// Linux and Windows side by side.
    Both,
    /// Neither left a trace.
    Unknown,
}

/// Looks at a disk. A table or a file system that contradicts itself is told in the answer.
///
/// # Errors
/// What reading the disk gives; nothing else.
pub fn inspect(disk: &(impl BlockRead + ?Sized)) -> Result<Inspection, ImageError> {
    let mut found = Inspection {
        size_bytes: disk.virtual_size(),
        sector_bytes: disk.logical_sector_size(),
        table: Ok(PartitionTable {
            style: Style::None,
            partitions: Vec::new(),
        }),
        partitions: Vec::new(),
        system_partition: None,
        bios: BiosStart::Nothing,
        guest: Guest::Unknown,
        free: Vec::new(),
    };
    if disk.virtual_size() < 2 * u64::from(disk.logical_sector_size()) {
        return Ok(found);
    }
    let table = match partitions::read(disk).and_then(|table| {
        let free = space::free(disk, &table)?;
        Ok((table, free))
    }) {
        Ok((table, free)) => {
            found.free = free;
            table
        }
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => {
            found.table = Err(error.to_string());
            return Ok(found);
        }
    };
    for partition in &table.partitions {
        found.partitions.push(InspectedPartition {
            content: signature::content(disk, partition)?,
            partition: partition.clone(),
        });
    }
    if let Some(system) = found.partitions.iter().find(|p| p.is_system_partition()) {
        found.system_partition = Some(esp::read(disk, &system.partition)?);
    }
    found.bios = bios_start(disk)?;
    found.guest = guest(&found);
    found.table = Ok(table);
    Ok(found)
}

fn guest(found: &Inspection) -> Guest {
    let system = found.system_partition.as_ref();
    judged(
        &found.partitions,
        system.is_some_and(SystemPartition::is_linux),
        system.is_some_and(|system| system.windows),
    )
}

/// Whose system the partitions alone tell of.
pub(super) fn guest_of(partitions: &[InspectedPartition]) -> Guest {
    judged(partitions, false, false)
}

fn judged(partitions: &[InspectedPartition], linux: bool, windows: bool) -> Guest {
    let linux = linux || partitions.iter().any(InspectedPartition::is_linux);
    let windows = windows || partitions.iter().any(InspectedPartition::is_windows);
    match (linux, windows) {
        (true, true) => Guest::Both,
        (true, false) => Guest::Linux,
        (false, true) => Guest::Windows,
        (false, false) => Guest::Unknown,
    }
}

fn bios_start(disk: &(impl BlockRead + ?Sized)) -> Result<BiosStart, ImageError> {
    let mut boot = [0; SECTOR];
    disk.read_at(&mut boot, 0)?;
    if boot.iter().take(440).all(|byte| *byte == 0) {
        return Ok(BiosStart::Nothing);
    }
    if !loader::is_boot_code(&boot) {
        return Ok(BiosStart::Other);
    }
    let at = loader::core_lba(&boot).checked_mul(SECTOR as u64);
    let inside = at.filter(|at| {
        at.checked_add(SECTOR as u64)
            .is_some_and(|end| end <= disk.virtual_size())
    });
    let Some(at) = inside else {
        return Ok(BiosStart::Other);
    };
    let mut core = [0; SECTOR];
    disk.read_at(&mut core, at)?;
    Ok(if loader::is_core_start(&core) {
        BiosStart::Grub
    } else {
        BiosStart::Other
    })
}
