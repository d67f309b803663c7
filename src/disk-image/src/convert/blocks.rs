//! Into a target that allocates blocks: one thread reads and leaves zeroes out, one writes.

use std::fs::File;
use std::sync::mpsc::sync_channel;

use super::{ConvertOptions, Converted, create_options};
use crate::zero::data_runs;
use crate::{DiskImage, ImageError, Segment};

/// What is read and written at once.
const CHUNK: u64 = 1 << 20;
/// Chunks in flight; they bound the memory.
const IN_FLIGHT: usize = 4;

/// Creates the image in `file` and fills it.
pub(super) fn write(
    source: &DiskImage,
    segments: &[Segment<'_>],
    file: File,
    options: &ConvertOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Converted, ImageError> {
    let mut target = DiskImage::create_file(Box::new(file), &create_options(source, options)?)?;
    let total = segments.iter().map(|segment| segment.length).sum();
    progress(0, total);
    let mut done = Converted {
        virtual_size: source.virtual_size(),
        allocated_bytes: total,
        copied_bytes: 0,
    };
    let places: Vec<(u64, u64)> = segments.iter().map(|s| (s.offset, s.length)).collect();
    let (full, chunks) = sync_channel::<Result<(u64, Vec<u8>), ImageError>>(IN_FLIGHT);
    let (give_back, empty) = sync_channel::<Vec<u8>>(IN_FLIGHT + 2);
    std::thread::scope(|scope| {
        scope.spawn(move || read(source, &places, &full, &empty));
        let mut seen = 0;
        for chunk in chunks {
            let (offset, bytes) = chunk?;
            for run in data_runs(&bytes) {
                target.write_at(&bytes[run.clone()], offset + run.start as u64)?;
                done.copied_bytes += run.len() as u64;
            }
            seen += bytes.len() as u64;
            progress(seen, total);
            // The reader may have ended already.
            let _ = give_back.try_send(bytes);
        }
        target.close()
    })?;
    Ok(done)
}

fn read(
    source: &DiskImage,
    places: &[(u64, u64)],
    full: &std::sync::mpsc::SyncSender<Result<(u64, Vec<u8>), ImageError>>,
    empty: &std::sync::mpsc::Receiver<Vec<u8>>,
) {
    for (offset, length) in places {
        let mut done = 0;
        while done < *length {
            let part = CHUNK.min(length - done);
            let mut bytes = empty.try_recv().unwrap_or_default();
            bytes.resize(part as usize, 0);
            let read = source
                .read_at(&mut bytes, offset + done)
                .map(|()| (offset + done, bytes));
            let failed = read.is_err();
            // Nobody listens any more when the writer failed; it tells why.
            if full.send(read).is_err() || failed {
                return;
            }
            done += part;
        }
    }
}
