//! What a partition holds, told from the magic numbers of its first blocks.

use crate::bytes::{array, le16, le32};
use crate::partitions::Partition;
use crate::{BlockRead, ImageError};

/// What the first blocks of a partition say that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Content {
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// A physical volume of LVM 2.
    Lvm,
    /// A member of a Linux software RAID.
    Raid,
    /// A LUKS container.
    Luks,
    /// Linux swap.
    Swap,
    /// NTFS.
    Ntfs,
    /// A BitLocker volume.
    BitLocker,
    /// Nothing that is known here.
    Unknown,
}

impl Content {
    /// Whether GRUB of the conversion reads menus and kernels from it.
    pub fn is_readable_by_grub(self) -> bool {
        matches!(
            self,
            Self::Fat | Self::Ext | Self::Xfs | Self::Btrfs | Self::Lvm | Self::Raid
        )
    }

    /// Whether it is something that Linux alone makes.
    pub(super) fn is_linux(self) -> bool {
        matches!(
            self,
            Self::Ext | Self::Xfs | Self::Btrfs | Self::Lvm | Self::Raid | Self::Luks | Self::Swap
        )
    }
}

/// The head that is read: up to the end of Btrfs's magic, which is the furthest.
const BTRFS_MAGIC: usize = 0x10040;
const HEAD: usize = 0x10048;
/// LVM's label lies in one of the first four sectors.
const LVM_SECTORS: usize = 4;
const RAID_MAGIC: u32 = 0xa92b_4efc;

/// Looks at the head of `partition`. One that is too short for a magic does not have it.
pub(super) fn content(
    disk: &(impl BlockRead + ?Sized),
    partition: &Partition,
) -> Result<Content, ImageError> {
    let length = partition.length.min(HEAD as u64) as usize;
    let mut head = vec![0; length];
    disk.read_at(&mut head, partition.start)?;
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|tail| tail.starts_with(magic));
    Ok(if has(0, b"LUKS\xba\xbe") {
        Content::Luks
    } else if has(3, b"-FVE-FS-") {
        Content::BitLocker
    } else if has(3, b"NTFS    ") {
        Content::Ntfs
    } else if has(0, b"XFSB") {
        Content::Xfs
    } else if (0..LVM_SECTORS).any(|sector| has(sector * 512, b"LABELONE")) {
        Content::Lvm
    } else if has(BTRFS_MAGIC, b"_BHRfS_M") {
        Content::Btrfs
    } else if le16(&head, 0x438) == 0xef53 {
        Content::Ext
    } else if le32(&head, 0) == RAID_MAGIC || le32(&head, 4096) == RAID_MAGIC {
        Content::Raid
    } else if has(4086, b"SWAPSPACE2") {
        Content::Swap
    } else if is_fat(&head) {
        Content::Fat
    } else {
        Content::Unknown
    })
}

fn is_fat(head: &[u8]) -> bool {
    let named = |at| array::<3>(head, at) == *b"FAT";
    array::<2>(head, 510) == [0x55, 0xaa] && (named(0x52) || named(0x36))
}
