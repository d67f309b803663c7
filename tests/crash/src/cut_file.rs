//! A file in memory that forgets what was not flushed when its power goes off.
//!
//! Changes since the last flush are kept one by one; a disk may have any sectors of them. The operation
//! at which the power fails may have reached the disk, though its caller sees an error.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk_image::ImageFile;
use engine::replicator::hashes::MapFile;
use replication_log::ReadAt;
use replication_log::hrl::HrlFile;

use crate::random::Random;

const SECTOR: usize = 512;
/// All prefixes are tried of so few changes.
const ALL_PREFIXES: usize = 8;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Default)]
struct State {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    operations: u64,
    power_until: Option<u64>,
}

/// The file; clones are the same file.
#[derive(Clone, Debug, Default)]
pub struct CutFile(Arc<Mutex<State>>);

/// A state that the file may be in after the cut, and the rule that made it.
pub struct AfterCut {
    /// Such as "torn 3".
    pub rule: String,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

impl CutFile {
    /// A file whose durable content is this.
    pub fn new(bytes: Vec<u8>) -> Self {
        CutFile(Arc::new(Mutex::new(State {
            volatile: bytes.clone(),
            durable: bytes,
            ..State::default()
        })))
    }

    /// The power fails at operation `operations` from now on counted from zero.
    pub fn power_until(&self, operations: u64) {
        self.lock().power_until = Some(operations);
    }

    /// Writes, length changes and flushes so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// What a reader of the running system sees.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().volatile.clone()
    }

    /// The states that the disk may be in now.
    pub fn after_cut(&self, random: &mut Random) -> Vec<AfterCut> {
        let state = self.lock();
        let count = state.pending.len();
        let mut out = vec![state.after("none".to_owned(), |_, _| false)];
        if count == 0 {
            return out;
        }
        out.push(state.after("all".to_owned(), |_, _| true));
        let prefixes: Vec<usize> = if count <= ALL_PREFIXES {
            (1..count).collect()
        } else {
            (0..4)
                .map(|_| random.below(count as u64) as usize)
                .collect()
        };
        for k in prefixes {
            out.push(state.after(format!("prefix {k}"), |change, _| change < k));
        }
        for n in 0..2 {
            out.push(state.after(format!("reordered {n}"), |_, _| random.chance(50)));
            let k = random.below(count as u64) as usize;
            out.push(state.after(format!("torn {k}"), |change, _| {
                change < k || (change == k && random.chance(50))
            }));
        }
        out
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain bytes: usable whatever another test did.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.lock();
        let powered = state.count();
        if powered {
            apply(&mut state.volatile, &change, |_| true);
        }
        if powered || state.power_until == Some(state.operations) {
            state.pending.push(change);
        }
        if !powered {
            // Later operations do not even get as far as the one that met the cut.
            state.operations += 1;
        }
        if powered { Ok(()) } else { Err(off()) }
    }

    fn flush_all(&self) -> io::Result<()> {
        let mut state = self.lock();
        if !state.count() {
            state.operations += 1;
            return Err(off());
        }
        state.durable = state.volatile.clone();
        state.pending.clear();
        Ok(())
    }
}

impl State {
    /// Whether there is power for one more operation; counts it then.
    fn count(&mut self) -> bool {
        let powered = self.power_until.is_none_or(|until| self.operations < until);
        if powered {
            self.operations += 1;
        }
        powered
    }

    fn after(&self, rule: String, mut keep: impl FnMut(usize, usize) -> bool) -> AfterCut {
        let mut bytes = self.durable.clone();
        for (n, change) in self.pending.iter().enumerate() {
            apply(&mut bytes, change, |sector| keep(n, sector));
        }
        AfterCut { rule, bytes }
    }
}

/// Carries out a change in the sectors that are kept; sectors are those of the disk.
fn apply(bytes: &mut Vec<u8>, change: &Change, mut keep: impl FnMut(usize) -> bool) {
    match change {
        Change::Length(length) => {
            if keep(0) {
                bytes.resize(*length, 0);
            }
        }
        Change::Write { offset, data } => {
            let mut at = *offset;
            let end = offset + data.len();
            while at < end {
                let next = end.min((at / SECTOR + 1) * SECTOR);
                if keep(at / SECTOR) {
                    if bytes.len() < next {
                        bytes.resize(next, 0);
                    }
                    bytes[at..next].copy_from_slice(&data[at - offset..next - offset]);
                }
                at = next;
            }
        }
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

fn place(offset: u64) -> io::Result<usize> {
    // A made-up offset must not make the double allocate the world.
    usize::try_from(offset)
        .ok()
        .filter(|offset| *offset < 1 << 30)
        .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

impl ImageFile for CutFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_exact_at(&self.lock().volatile, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let offset = place(offset)?;
        let data = data.to_vec();
        self.change(Change::Write { offset, data })
    }

    fn flush(&self) -> io::Result<()> {
        self.flush_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().volatile.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(place(length)?))
    }
}

impl MapFile for CutFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.lock();
        let start = place(offset)?.min(state.volatile.len());
        let count = buffer.len().min(state.volatile.len() - start);
        buffer[..count].copy_from_slice(&state.volatile[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        ImageFile::write_at(self, data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.flush_all()
    }
}

/// The file with a place in it, for writers that stream.
#[derive(Debug)]
pub struct Cursor {
    file: CutFile,
    at: u64,
}

impl Cursor {
    /// At the start.
    pub fn new(file: CutFile) -> Self {
        Cursor { file, at: 0 }
    }
}

impl Write for Cursor {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        ImageFile::write_at(&self.file, data, self.at)?;
        self.at += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            SeekFrom::End(by) => ImageFile::len(&self.file)?.saturating_add_signed(by),
        };
        Ok(self.at)
    }
}

impl HrlFile for Cursor {
    fn sync(&mut self) -> io::Result<()> {
        self.file.flush_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The double itself must forget, or the enumeration proves nothing.
    #[test]
    fn what_was_not_flushed_may_be_there_or_not_and_what_was_flushed_is() {
        let file = CutFile::default();
        ImageFile::write_at(&file, &[1; 1024], 0).unwrap();
        ImageFile::flush(&file).unwrap();
        ImageFile::write_at(&file, &[2; 1024], 512).unwrap();
        ImageFile::write_at(&file, &[3; 512], 0).unwrap();
        file.power_until(4);
        ImageFile::write_at(&file, &[4; 512], 0).unwrap_err();
        ImageFile::write_at(&file, &[5; 512], 0).unwrap_err();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            for state in file.after_cut(&mut Random::new(seed)) {
                let sectors = state.bytes.chunks(SECTOR).map(|sector| sector[0]);
                seen.insert(sectors.collect::<Vec<u8>>());
            }
        }
        for expected in [
            &[1, 1][..],
            &[3, 2, 2],
            &[1, 2],
            &[1, 2, 2],
            &[3, 1],
            &[4, 2, 2],
        ] {
            assert!(seen.contains(expected), "{expected:?} is not in {seen:?}");
        }
        // The one after the cut never happened.
        assert!(seen.iter().all(|sectors| sectors[0] != 5));
    }
}
