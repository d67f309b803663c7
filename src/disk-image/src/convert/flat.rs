//! Into a flat target, where byte n of the disk is byte n of the file: threads take pieces of the
//! source one after the other and copy them to their place.

use std::fs::File;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::{ConvertOptions, Converted, kernel};
use crate::zero::{data_runs, is_zero};
use crate::{DiskImage, Format, ImageError, ImageFile, Segment, Source};

/// What a thread takes at once.
const PIECE: u64 = 16 << 20;
/// What is copied inside the kernel, or read into a buffer, at once.
const CHUNK: u64 = 1 << 20;
/// Bytes of a chunk that are looked at before it is copied unseen, at several places.
const SAMPLE: usize = 512;

struct Job<'a> {
    source: &'a DiskImage,
    target: &'a File,
    pieces: Mutex<std::vec::IntoIter<Segment<'a>>>,
    room: bool,
    total: u64,
    seen: AtomicU64,
    copied: AtomicU64,
    failed: AtomicBool,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Writes the whole target: its length, the data, and the footer of a VHD last.
pub(super) fn write(
    source: &DiskImage,
    segments: Vec<Segment<'_>>,
    target: &File,
    options: &ConvertOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Converted, ImageError> {
    let size = source.virtual_size();
    let footer = if options.format == Format::VhdFixed {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let id = options.id.unwrap_or_else(Uuid::new_v4);
        Some(crate::vhd::fixed::footer(size, id, now)?)
    } else {
        None
    };
    target
        .set_len(size)
        .map_err(|e| ImageError::io("target", size, "set the length", e))?;
    let total = segments.iter().map(|segment| segment.length).sum();
    let job = Job {
        source,
        target,
        pieces: Mutex::new(cut(segments).into_iter()),
        room: kernel::wants_room(target),
        total,
        seen: AtomicU64::new(0),
        copied: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        progress,
    };
    progress(0, total);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.max(1))
            .map(|_| scope.spawn(|| job.work()))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<Result<Vec<()>, ImageError>>()
    })?;
    if let Some(footer) = footer {
        target
            .write_at(&footer, size)
            .map_err(|e| ImageError::io("VHD footer", size, "write", e))?;
    }
    Ok(Converted {
        virtual_size: size,
        allocated_bytes: total,
        copied_bytes: job.copied.into_inner(),
    })
}

/// Pieces of at most 16 MiB.
fn cut(segments: Vec<Segment<'_>>) -> Vec<Segment<'_>> {
    let mut pieces = Vec::with_capacity(segments.len());
    for segment in segments {
        let mut done = 0;
        while done < segment.length {
            pieces.push(Segment {
                offset: segment.offset + done,
                length: PIECE.min(segment.length - done),
                source: match segment.source {
                    Source::File { file, offset } => Source::File {
                        file,
                        offset: offset + done,
                    },
                    Source::Read => Source::Read,
                    Source::Zeroes => Source::Zeroes,
                },
            });
            done += PIECE.min(segment.length - done);
        }
    }
    pieces
}

impl Job<'_> {
    fn work(&self) -> Result<(), ImageError> {
        let mut buffer = vec![0; CHUNK as usize];
        let mut in_kernel = true;
        while !self.failed.load(Ordering::Relaxed) {
            let next = self
                .pieces
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next();
            let Some(piece) = next else { break };
            if let Err(error) = self.piece(&piece, &mut buffer, &mut in_kernel) {
                // The others stop at their next piece: nobody will use the target.
                self.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            let seen = self.seen.fetch_add(piece.length, Ordering::Relaxed) + piece.length;
            (self.progress)(seen, self.total);
        }
        Ok(())
    }

    fn piece(
        &self,
        piece: &Segment<'_>,
        buffer: &mut [u8],
        in_kernel: &mut bool,
    ) -> Result<(), ImageError> {
        let mut run: Option<(u64, u64)> = None;
        let file = match piece.source {
            Source::File { file, offset } => file.as_file().map(|file| (file, offset)),
            _ => None,
        };
        let Some((file, base)) = file.filter(|_| *in_kernel) else {
            return self.through_buffer(piece.offset, piece.length, buffer);
        };
        // Chunks whose samples all hold data are copied unseen, neighbours at once; the others
        // are looked at byte by byte.
        let mut done = 0;
        while done < piece.length {
            let length = CHUNK.min(piece.length - done);
            if sampled_data(file, base + done, length)? {
                match &mut run {
                    Some((_, run_length)) => *run_length += length,
                    None => run = Some((done, length)),
                }
            } else {
                if let Some((start, length)) = run.take() {
                    self.copy(piece, (file, base), start, length, buffer, in_kernel)?;
                }
                self.through_buffer(piece.offset + done, length, buffer)?;
            }
            done += length;
        }
        match run {
            Some((start, length)) => {
                self.copy(piece, (file, base), start, length, buffer, in_kernel)
            }
            None => Ok(()),
        }
    }

    fn copy(
        &self,
        piece: &Segment<'_>,
        (file, base): (&File, u64),
        start: u64,
        length: u64,
        buffer: &mut [u8],
        in_kernel: &mut bool,
    ) -> Result<(), ImageError> {
        let at = piece.offset + start;
        if self.room {
            kernel::make_room(self.target, at, length)
                .map_err(|e| ImageError::io("target", at, "make room", e))?;
        }
        let copied = kernel::copy(file, base + start, self.target, at, length)
            .map_err(|e| ImageError::io("target", at, "copy", e))?;
        if copied {
            self.copied.fetch_add(length, Ordering::Relaxed);
            return Ok(());
        }
        *in_kernel = false;
        self.through_buffer(at, length, buffer)
    }

    /// Reads, leaves zeroes out, writes the rest.
    fn through_buffer(
        &self,
        offset: u64,
        length: u64,
        buffer: &mut [u8],
    ) -> Result<(), ImageError> {
        let mut done = 0;
        while done < length {
            let part = &mut buffer[..CHUNK.min(length - done) as usize];
            self.source.read_at(part, offset + done)?;
            for run in data_runs(part) {
                let at = offset + done + run.start as u64;
                self.target
                    .write_at(&part[run.clone()], at)
                    .map_err(|e| ImageError::io("target", at, "write", e))?;
                self.copied.fetch_add(run.len() as u64, Ordering::Relaxed);
            }
            done += part.len() as u64;
        }
        Ok(())
    }
}

/// Whether several places of a chunk all hold data: then hardly any of it is zeroes.
fn sampled_data(file: &File, at: u64, length: u64) -> Result<bool, ImageError> {
    let mut sample = [0; SAMPLE];
    let last = length.saturating_sub(SAMPLE as u64);
    for place in [0, last / 3, last / 3 * 2, last] {
        let part = &mut sample[..SAMPLE.min(length as usize)];
        file.read_at(part, at + place)
            .map_err(|e| ImageError::io("source", at + place, "read", e))?;
        if is_zero(part) {
            return Ok(false);
        }
    }
    Ok(true)
}
