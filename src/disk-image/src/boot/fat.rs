//! Lists folders of a FAT file system, read only: enough to see which boot loaders an EFI system partition holds.
//!
//! Everything is bounded: a folder has at most [`MAX_FOLDER`] bytes, so a looping chain ends. Whatever contradicts
//! itself is `Corrupt`.

use crate::bytes::{array, le16, le32};
use crate::partitions::Partition;
use crate::{BlockRead, ImageError};

/// Longest folder that is read. Real ones on a system partition have some KiB.
const MAX_FOLDER: usize = 1 << 20;
const ENTRY: usize = 32;
/// Attributes of an entry that carries a piece of a long name, of a volume label, of a folder.
const LONG_NAME: u8 = 0x0f;
const LABEL: u8 = 0x08;
const FOLDER: u8 = 0x10;
/// A long name has at most so many pieces of 13 characters.
const MAX_PIECES: u8 = 20;

/// A FAT file system inside a partition.
pub(super) struct Fat<'d, D: ?Sized> {
    disk: &'d D,
    /// First byte on the disk.
    start: u64,
    length: u64,
    /// Bytes of a cluster.
    cluster: u64,
    /// Byte of the first file allocation table in the partition.
    table: u64,
    /// Byte of cluster 2 in the partition.
    data: u64,
    clusters: u64,
    width: Width,
    root: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// Where a folder lies.
#[derive(Clone, Copy)]
enum Place {
    /// The root folder of FAT12 and FAT16: one piece in front of the clusters.
    Fixed { at: u64, length: usize },
    /// A chain of clusters.
    Chain(u32),
}

/// One file or folder.
pub(super) struct Entry {
    /// The long name where there is one.
    pub(super) name: String,
    pub(super) is_folder: bool,
    first_cluster: u32,
}

impl Entry {
    /// Compares as FAT does: without regard to case.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

impl<'d, D: BlockRead + ?Sized> Fat<'d, D> {
    pub(super) fn open(disk: &'d D, partition: &Partition) -> Result<Self, ImageError> {
        let mut boot = [0; 512];
        let corrupt =
            |cause: String| ImageError::corrupt("FAT boot sector", partition.start, cause);
        if partition.length < 512 {
            return Err(corrupt("the partition is shorter than a sector".to_owned()));
        }
        disk.read_at(&mut boot, partition.start)?;
        let sector = u64::from(le16(&boot, 11));
        let per_cluster = u64::from(array::<1>(&boot, 13)[0]);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || !per_cluster.is_power_of_two() {
            return Err(corrupt(format!(
                "sectors of {sector} bytes and clusters of {per_cluster} sectors are not allowed"
            )));
        }
        let either = |short: u16, long: u32| match short {
            0 => u64::from(long),
            _ => u64::from(short),
        };
        let total = either(le16(&boot, 19), le32(&boot, 32));
        let table_sectors = either(le16(&boot, 22), le32(&boot, 36));
        let reserved = u64::from(le16(&boot, 14));
        let tables = u64::from(array::<1>(&boot, 16)[0]);
        let root_entries = u64::from(le16(&boot, 17));
        let root_sectors = (root_entries * ENTRY as u64).div_ceil(sector);
        let data = reserved + tables * table_sectors + root_sectors;
        if data > total || total * sector > partition.length {
            return Err(corrupt(format!(
                "{total} sectors of {sector} bytes, of which {data} are tables, do not fit the partition of {} bytes",
                partition.length
            )));
        }
        let clusters = (total - data) / per_cluster;
        let width = match clusters {
            0..4085 => Width::Twelve,
            4085..65525 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        let root = if width == Width::ThirtyTwo {
            Place::Chain(le32(&boot, 44))
        } else {
            Place::Fixed {
                at: (reserved + tables * table_sectors) * sector,
                length: (root_entries as usize * ENTRY).min(MAX_FOLDER),
            }
        };
        Ok(Self {
            disk,
            start: partition.start,
            length: partition.length,
            cluster: per_cluster * sector,
            table: reserved * sector,
            data: data * sector,
            clusters,
            width,
            root,
        })
    }

    /// The entries of the folder at `path`; none when there is no such folder.
    pub(super) fn list(&self, path: &[&str]) -> Result<Vec<Entry>, ImageError> {
        let mut entries = self.folder(self.root)?;
        for name in path {
            let Some(next) = entries.iter().find(|e| e.is_folder && e.is_named(name)) else {
                return Ok(Vec::new());
            };
            entries = self.folder(Place::Chain(next.first_cluster))?;
        }
        Ok(entries)
    }

    fn folder(&self, place: Place) -> Result<Vec<Entry>, ImageError> {
        let bytes = match place {
            Place::Fixed { at, length } => self.read(at, length)?,
            Place::Chain(first) => self.chain(first)?,
        };
        Ok(entries(&bytes))
    }

    fn chain(&self, first: u32) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        while bytes.len() < MAX_FOLDER {
            let index = u64::from(cluster).wrapping_sub(2);
            if index >= self.clusters {
                return Ok(bytes);
            }
            bytes.extend(self.read(self.data + index * self.cluster, self.cluster as usize)?);
            cluster = self.next(cluster)?;
        }
        Err(ImageError::corrupt(
            "FAT folder",
            self.start + self.data,
            format!("its chain from cluster {first} has more than {MAX_FOLDER} bytes"),
        ))
    }

    /// The cluster behind `cluster`; anything outside the disk's clusters is the end.
    fn next(&self, cluster: u32) -> Result<u32, ImageError> {
        let number = u64::from(cluster);
        let (at, length) = match self.width {
            Width::Twelve => (number * 3 / 2, 2),
            Width::Sixteen => (number * 2, 2),
            Width::ThirtyTwo => (number * 4, 4),
        };
        let bytes = self.read(self.table + at, length)?;
        Ok(match self.width {
            Width::Twelve if cluster % 2 == 1 => u32::from(le16(&bytes, 0) >> 4),
            Width::Twelve => u32::from(le16(&bytes, 0) & 0xfff),
            Width::Sixteen => u32::from(le16(&bytes, 0)),
            Width::ThirtyTwo => le32(&bytes, 0) & 0x0fff_ffff,
        })
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>, ImageError> {
        if at + length as u64 > self.length {
            return Err(ImageError::corrupt(
                "FAT folder",
                self.start,
                format!("byte {at} of it lies outside the partition"),
            ));
        }
        let mut bytes = vec![0; length];
        self.disk.read_at(&mut bytes, self.start + at)?;
        Ok(bytes)
    }
}

fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long = LongName::default();
    for entry in bytes.chunks_exact(ENTRY) {
        let (first, attributes) = (array::<1>(entry, 0)[0], array::<1>(entry, 11)[0]);
        match first {
            0 => break,
            0xe5 => {
                long = LongName::default();
                continue;
            }
            _ => {}
        }
        if attributes & 0x3f == LONG_NAME {
            long.add(entry);
            continue;
        }
        let name = std::mem::take(&mut long)
            .text()
            .unwrap_or_else(|| short_name(entry));
        if attributes & LABEL != 0 || name == "." || name == ".." {
            continue;
        }
        found.push(Entry {
            name,
            is_folder: attributes & FOLDER != 0,
            first_cluster: u32::from(le16(entry, 20)) << 16 | u32::from(le16(entry, 26)),
        });
    }
    found
}

/// Collects a long name, which lies in pieces from its end to its beginning.
#[derive(Default)]
struct LongName {
    pieces: Vec<Vec<u16>>,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let order = array::<1>(entry, 0)[0];
        if order & 0x40 != 0 {
            self.pieces.clear();
        }
        if self.pieces.len() >= usize::from(MAX_PIECES) {
            return;
        }
        let units = [(1, 5), (14, 6), (28, 2)]
            .into_iter()
            .flat_map(|(at, count)| (0..count).map(move |i| at + 2 * i))
            .map(|at| le16(entry, at))
            .take_while(|unit| *unit != 0)
            .collect();
        self.pieces.push(units);
    }

    fn text(self) -> Option<String> {
        let units: Vec<u16> = self.pieces.into_iter().rev().flatten().collect();
        (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
    }
}

fn short_name(entry: &[u8]) -> String {
    let part = |range: std::ops::Range<usize>| {
        let text = String::from_utf8_lossy(entry.get(range).unwrap_or_default());
        text.trim_end().to_owned()
    };
    let (name, extension) = (part(0..8), part(8..11));
    if extension.is_empty() {
        name
    } else {
        format!("{name}.{extension}")
    }
}
