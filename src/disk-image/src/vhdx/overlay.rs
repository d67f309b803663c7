//! The file as it is after the log was replayed, without writing to it.

use std::collections::BTreeMap;
use std::io;

use super::layout::LOG_SECTOR;
use crate::ImageFile;

/// End of a patched range, and its data, which is always one sector; `None` is zeroes.
type Patch = (u64, Option<Box<[u8]>>);

/// What replay changes: ranges of zeroes and whole 4 KiB sectors, later ones over earlier ones.
#[derive(Debug, Default)]
pub(super) struct Patches {
    /// By first byte; disjoint.
    ranges: BTreeMap<u64, Patch>,
    /// The file is at least this long afterwards.
    pub(super) file_length: u64,
}

impl Patches {
    /// Zeroes a range. Offset and length are multiples of 4 KiB; the end doesn't overflow.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        self.put(offset, offset + length, None);
    }

    /// Replaces one 4 KiB sector. The offset is a multiple of 4 KiB.
    pub(super) fn sector(&mut self, offset: u64, data: Box<[u8]>) {
        self.put(offset, offset + LOG_SECTOR as u64, Some(data));
    }

    fn put(&mut self, start: u64, end: u64, data: Option<Box<[u8]>>) {
        if start == end {
            return;
        }
        // Only zero ranges can reach into the new one from the left, or past it: sectors are aligned.
        if let Some((_, (old_end, _))) = self.ranges.range_mut(..start).next_back()
            && *old_end > start
        {
            let tail_end = std::mem::replace(old_end, start);
            if tail_end > end {
                self.ranges.insert(end, (tail_end, None));
            }
        }
        while let Some((&key, &(old_end, _))) = self.ranges.range(start..end).next() {
            self.ranges.remove(&key);
            if old_end > end {
                self.ranges.insert(end, (old_end, None));
            }
        }
        self.ranges.insert(start, (end, data));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Writes everything into the file. `length` is its length now.
    pub(super) fn write_to(&self, file: &dyn ImageFile, length: u64) -> io::Result<()> {
        if length < self.file_length {
            file.set_len(self.file_length)?;
        }
        let zeroes = vec![0; 256 << 10];
        for (&start, (end, data)) in &self.ranges {
            match data {
                Some(data) => file.write_at(data, start)?,
                None => {
                    // Behind the old end the file is zero already.
                    let end = (*end).min(length);
                    let mut at = start;
                    while at < end {
                        let part = zeroes.len().min((end - at) as usize);
                        file.write_at(&zeroes[..part], at)?;
                        at += part as u64;
                    }
                }
            }
        }
        Ok(())
    }

    fn apply(&self, buffer: &mut [u8], offset: u64) {
        let end = offset + buffer.len() as u64;
        let first = self
            .ranges
            .range(..=offset)
            .next_back()
            .map_or(offset, |(key, _)| *key);
        for (&start, (stop, data)) in self.ranges.range(first..end) {
            let (from, to) = (start.max(offset), (*stop).min(end));
            if from >= to {
                continue;
            }
            let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            match data {
                Some(data) => {
                    target.copy_from_slice(&data[(from - start) as usize..(to - start) as usize])
                }
                None => target.fill(0),
            }
        }
    }
}

/// Reads a file as if the patches had been written to it. Never writes.
pub(super) struct Overlay<'a> {
    pub(super) file: &'a dyn ImageFile,
    pub(super) patches: &'a Patches,
}

impl Overlay<'_> {
    /// Length of the patched file.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.len()?.max(self.patches.file_length))
    }
}

impl ImageFile for Overlay<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.patches.is_empty() && self.patches.file_length == 0 {
            return self.file.read_at(buffer, offset);
        }
        let real = self.file.len()?;
        let end = offset
            .checked_add(buffer.len() as u64)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > real.max(self.patches.file_length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = real.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (old, new) = buffer.split_at_mut(there);
        if !old.is_empty() {
            self.file.read_at(old, offset)?;
        }
        new.fill(0);
        self.patches.apply(buffer, offset);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.length()
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFile;

    /// Compares with plain writes in the same order, for many orders.
    #[test]
    fn later_patches_win_as_if_they_were_written() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..500 {
            let old: Vec<u8> = (0..16 * 4096).map(|i| (i % 251) as u8 + 1).collect();
            let file = MemoryFile::from_bytes(old.clone());
            let mut model = old;
            model.resize(20 * 4096, 0);
            let mut patches = Patches {
                file_length: 20 * 4096,
                ..Patches::default()
            };
            for _ in 0..12 {
                let start = random(20);
                if random(2) == 0 {
                    let count = random(21 - start);
                    patches.zero(start * 4096, count * 4096);
                    model[(start * 4096) as usize..((start + count) * 4096) as usize].fill(0);
                } else {
                    let byte = random(256) as u8;
                    patches.sector(start * 4096, vec![byte; 4096].into());
                    model[(start * 4096) as usize..][..4096].fill(byte);
                }
            }
            let mut seen = vec![0; model.len()];
            Overlay {
                file: &file,
                patches: &patches,
            }
            .read_at(&mut seen, 0)
            .unwrap();
            assert!(seen == model);
            let mut part = vec![0; 9000];
            Overlay {
                file: &file,
                patches: &patches,
            }
            .read_at(&mut part, 3000)
            .unwrap();
            assert!(part == model[3000..12000]);
            patches.write_to(&file, file.len().unwrap()).unwrap();
            assert!(file.bytes() == model);
        }
    }
}
