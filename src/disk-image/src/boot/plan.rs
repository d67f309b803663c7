//! What a conversion writes, with what was there before: made once, applied and undone any number of times.

use uuid::Uuid;

use super::inspect::{Inspection, inspect};
use super::loader::BootLoader;
use super::verdict::{Obstacle, Verdict, judge};
use super::{SECTOR, space};
use crate::partitions::{self, PartitionType, Style};
use crate::{BlockRead, DiskImage, ErrorKind, ImageError};

/// The parts of LBA 0 that are boot code: not the parameter block of a file system, not disk signature and table.
const BOOT_CODE: [std::ops::Range<usize>; 2] = [0..3, 0x5a..0x1b8];

/// Anything that can be written as a disk.
pub trait BlockWrite: BlockRead {
    /// Writes `data` from byte `offset`; `OutOfRange` when that passes the end of the disk.
    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError>;
    /// Returns when everything written before survives a power cut.
    fn flush(&mut self) -> Result<(), ImageError>;
}

impl BlockWrite for DiskImage {
    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        Self::write_at(self, data, offset)
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        Self::flush(self)
    }
}

/// One range of a conversion. Both contents have the same length.
#[derive(Clone, PartialEq, Eq)]
pub struct Piece {
    /// First byte on the disk.
    pub offset: u64,
    /// What was there.
    pub original: Vec<u8>,
    /// What the conversion puts there.
    pub new: Vec<u8>,
}

impl Piece {
    /// First byte behind it.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.new.len() as u64)
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {}", self.new.len(), self.offset)
    }
}

/// How a disk remembers which disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    Gpt(Uuid),
    Mbr(u32),
}

impl Identity {
    fn of(style: Style) -> Option<Self> {
        match style {
            Style::Gpt { id, .. } => Some(Self::Gpt(id)),
            Style::Mbr { signature } => Some(Self::Mbr(signature)),
            Style::None => None,
        }
    }
}

/// A conversion of one disk: its pieces in the order in which they are written, the boot code last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversionPlan {
    pub(super) identity: Identity,
    pub(super) disk_bytes: u64,
    pub(super) pieces: Vec<Piece>,
}

/// How much of a plan is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanState {
    /// Everything is as it was.
    Original,
    /// Everything is converted.
    Converted,
    /// Some sectors are; a change was cut. Applying or undoing it again finishes it.
    Partly,
}

/// Why a plan was not made, read, applied or undone. Nothing was written, except after an error of the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The disk starts in a BIOS machine as it is.
    #[error("the disk has what a BIOS needs already; no conversion is needed")]
    NotNeeded,
    /// The disk can't be converted.
    #[error("the disk can't be converted: {}", reasons(.0))]
    Impossible(Vec<Obstacle>),
    /// The plan belongs to another disk.
    #[error(
        "the conversion plan was made for another disk (identity or size differ); make a plan from this one"
    )]
    OtherDisk,
    /// A partition lies now where the boot loader would go.
    #[error("partition {partition} lies now where the plan puts the boot loader; make a new plan")]
    Occupied {
        /// Number of the partition.
        partition: u32,
    },
    /// Somebody else wrote where the plan would write.
    #[error(
        "byte {offset} of the disk is neither as before the conversion nor as after it: somebody else wrote there; nothing was \
         changed, and what is there may be left (UEFI firmware ignores it), or make a new plan"
    )]
    Foreign {
        /// First byte of the sector.
        offset: u64,
    },
    /// The stored plan is damaged or of a newer version.
    #[error(
        "the stored conversion plan can't be used: {0}; take its other copy, or make a new plan from an unconverted disk"
    )]
    Stored(String),
    /// The disk could not be read or written.
    #[error("can't read or write the disk of the conversion; try again")]
    Disk(#[from] ImageError),
}

fn reasons(obstacles: &[Obstacle]) -> String {
    let each = obstacles.iter().map(|o| format!("{o} ({})", o.advice()));
    each.collect::<Vec<_>>().join("; ")
}

impl ConversionPlan {
    /// Plans the conversion of `disk`, which is only read.
    ///
    /// # Errors
    /// [`PlanError::NotNeeded`], [`PlanError::Impossible`], [`PlanError::Disk`].
    pub fn make(disk: &(impl BlockRead + ?Sized), loader: &BootLoader) -> Result<Self, PlanError> {
        let found = inspect(disk)?;
        match judge(&found, loader.core_bytes()) {
            Verdict::NotNeeded => Err(PlanError::NotNeeded),
            Verdict::Impossible(obstacles) => Err(PlanError::Impossible(obstacles)),
            Verdict::Convertible { .. } => Self::of(disk, &found, loader),
        }
    }

    fn of(
        disk: &(impl BlockRead + ?Sized),
        found: &Inspection,
        loader: &BootLoader,
    ) -> Result<Self, PlanError> {
        let no_room = || {
            PlanError::Impossible(vec![Obstacle::NoRoom {
                needed_bytes: loader.core_bytes(),
                largest_bytes: 0,
            }])
        };
        let table = found.table.as_ref().map_err(|_| no_room())?;
        let identity = Identity::of(table.style).ok_or_else(no_room)?;
        let (_, offset) =
            space::choose(table, &found.free, loader.core_bytes()).ok_or_else(no_room)?;
        let lba = offset / SECTOR as u64;
        let mut pieces = vec![piece(disk, offset, loader.core(lba))?];
        let boot = loader.boot_code(lba);
        for range in BOOT_CODE {
            let offset = range.start as u64;
            let new = boot.get(range).unwrap_or_default().to_vec();
            pieces.push(piece(disk, offset, new)?);
        }
        Ok(Self {
            identity,
            disk_bytes: found.size_bytes,
            pieces,
        })
    }

    /// The ranges, in the order in which they are written.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Size of the disk that it was made for, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// How much of it is on `disk`.
    ///
    /// # Errors
    /// [`PlanError::Foreign`] when a sector is neither of both; [`PlanError::Disk`].
    pub fn state(&self, disk: &(impl BlockRead + ?Sized)) -> Result<PlanState, PlanError> {
        let (mut originals, mut converted) = (false, false);
        for piece in &self.pieces {
            for (sector, now) in sectors(&self.read(disk, piece)?, piece) {
                let (original, new) = (now == sector.original, now == sector.new);
                if !original && !new {
                    return Err(PlanError::Foreign {
                        offset: sector.offset,
                    });
                }
                originals |= !new;
                converted |= !original;
            }
        }
        Ok(match (originals, converted) {
            (true, true) => PlanState::Partly,
            (true, false) => PlanState::Original,
            (false, _) => PlanState::Converted,
        })
    }

    /// Converts `disk`; the plan's stored form must be durable before, because a plan that is made of a half converted disk can
    /// only go back to half. The core first, the boot code last, each durable before the next. Doing it again is no error and
    /// finishes what a crash cut.
    ///
    /// # Errors
    /// [`PlanError::OtherDisk`], [`PlanError::Occupied`], [`PlanError::Foreign`], all before anything is written;
    /// [`PlanError::Disk`].
    pub fn apply(&self, disk: &mut (impl BlockWrite + ?Sized)) -> Result<(), PlanError> {
        self.check_disk(disk)?;
        if self.state(disk)? == PlanState::Converted {
            return Ok(());
        }
        for piece in &self.pieces {
            disk.write_at(&piece.new, piece.offset)?;
            disk.flush()?;
        }
        Ok(())
    }

    /// Puts the original bytes back: the boot code first. Doing it again is no error and finishes what a crash cut.
    ///
    /// # Errors
    /// [`PlanError::Foreign`], before anything is written; [`PlanError::Disk`].
    pub fn undo(&self, disk: &mut (impl BlockWrite + ?Sized)) -> Result<(), PlanError> {
        if self.state(disk)? == PlanState::Original {
            return Ok(());
        }
        for piece in self.pieces.iter().rev() {
            disk.write_at(&piece.original, piece.offset)?;
            disk.flush()?;
        }
        Ok(())
    }

    /// Whether any of `length` bytes from byte `offset` is one that the conversion writes.
    pub fn touches(&self, offset: u64, length: usize) -> bool {
        let mut pieces = self.pieces.iter();
        pieces.any(|piece| overlap(offset, length, piece).is_some())
    }

    /// Converts bytes on their way: `buffer` was read at byte `offset` of the disk that the plan was made of. For a layer
    /// that shows a replica converted and never writes it.
    pub fn convert(&self, offset: u64, buffer: &mut [u8]) {
        for piece in &self.pieces {
            if let Some((at, from, length)) = overlap(offset, buffer.len(), piece) {
                let new = piece.new.get(from..from + length);
                if let (Some(place), Some(new)) = (buffer.get_mut(at..at + length), new) {
                    place.copy_from_slice(new);
                }
            }
        }
    }

    /// The inverse on bytes on their way, for a failback that reads the converted disk: sectors as the conversion made them
    /// become the original ones, everything else stays. `offset` and the length are multiples of 512.
    pub fn restore(&self, offset: u64, buffer: &mut [u8]) {
        for piece in &self.pieces {
            let Some((at, from, length)) = overlap(offset, buffer.len(), piece) else {
                continue;
            };
            let cut = Piece {
                offset: piece.offset + from as u64,
                original: piece
                    .original
                    .get(from..from + length)
                    .unwrap_or_default()
                    .to_vec(),
                new: piece
                    .new
                    .get(from..from + length)
                    .unwrap_or_default()
                    .to_vec(),
            };
            let Some(place) = buffer.get_mut(at..at + length) else {
                continue;
            };
            let now = place.to_vec();
            let mut done = 0;
            for (sector, now) in sectors(&now, &cut) {
                let end = done + now.len();
                if let Some(place) = place.get_mut(done..end).filter(|_| now == sector.new) {
                    place.copy_from_slice(sector.original);
                }
                done = end;
            }
        }
    }

    /// The plan's disk, and still with room where it was.
    fn check_disk(&self, disk: &(impl BlockRead + ?Sized)) -> Result<(), PlanError> {
        let table = match partitions::read(disk) {
            Ok(table) => table,
            Err(error) if error.kind() == ErrorKind::Io => return Err(error.into()),
            Err(error) => {
                return Err(PlanError::Impossible(vec![Obstacle::Table(
                    error.to_string(),
                )]));
            }
        };
        // A disk may have grown since.
        if Identity::of(table.style) != Some(self.identity) || disk.virtual_size() < self.disk_bytes
        {
            return Err(PlanError::OtherDisk);
        }
        let occupied = table.partitions.iter().find(|partition| {
            let end = partition.start.saturating_add(partition.length);
            partition.kind != PartitionType::Gpt(space::BIOS_BOOT)
                && self
                    .pieces
                    .iter()
                    .any(|piece| piece.offset < end && partition.start < piece.end())
        });
        match occupied {
            Some(partition) => Err(PlanError::Occupied {
                partition: partition.number,
            }),
            None => Ok(()),
        }
    }

    fn read(&self, disk: &(impl BlockRead + ?Sized), piece: &Piece) -> Result<Vec<u8>, PlanError> {
        if disk.virtual_size() < piece.end() {
            return Err(PlanError::OtherDisk);
        }
        let mut now = vec![0; piece.new.len()];
        disk.read_at(&mut now, piece.offset)?;
        Ok(now)
    }
}

fn piece(disk: &(impl BlockRead + ?Sized), offset: u64, new: Vec<u8>) -> Result<Piece, ImageError> {
    let mut original = vec![0; new.len()];
    disk.read_at(&mut original, offset)?;
    Ok(Piece {
        offset,
        original,
        new,
    })
}

/// The part of a piece inside one sector.
struct SectorOf<'p> {
    offset: u64,
    original: &'p [u8],
    new: &'p [u8],
}

/// A piece and what is there now, sector by sector: a disk writes a sector whole or not at all.
fn sectors<'p>(now: &'p [u8], piece: &'p Piece) -> impl Iterator<Item = (SectorOf<'p>, &'p [u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let offset = piece.offset + at as u64;
        let to_next = SECTOR - (offset % SECTOR as u64) as usize;
        let end = (at + to_next).min(piece.new.len());
        let range = at..end;
        if range.is_empty() {
            return None;
        }
        at = end;
        let sector = SectorOf {
            offset,
            original: piece.original.get(range.clone())?,
            new: piece.new.get(range.clone())?,
        };
        Some((sector, now.get(range)?))
    })
}

/// Where a buffer at `offset` and a piece meet: place in the buffer, place in the piece, length.
fn overlap(offset: u64, length: usize, piece: &Piece) -> Option<(usize, usize, usize)> {
    let start = offset.max(piece.offset);
    let end = offset.saturating_add(length as u64).min(piece.end());
    let length = end.checked_sub(start).filter(|length| *length > 0)?;
    Some((
        (start - offset) as usize,
        (start - piece.offset) as usize,
        length as usize,
    ))
}
