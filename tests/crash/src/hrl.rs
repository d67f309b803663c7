//! Replica logs: a log is closed and whole, or it is refused; once `close` returned it is there.

use std::time::Instant;

use replication_log::hrl::{HrlErrorKind, HrlInfo, HrlReader, HrlWriter};
use uuid::Uuid;

use crate::cut_file::{Cursor, CutFile};
use crate::random::Random;
use crate::tally::Tally;

const DISK: u64 = 1 << 20;
const TIME: i64 = 1_767_323_045_000;

type Writes = Vec<(u64, Vec<u8>)>;

fn writes(random: &mut Random) -> Writes {
    (0..200)
        .map(|_| {
            let length = 512 * (1 + random.below(4));
            let offset = random.below((DISK - length) / 512) * 512;
            let data = if random.chance(20) {
                vec![0; length as usize]
            } else {
                random.bytes(length as usize)
            };
            (offset, data)
        })
        .collect()
}

/// True once the writer was told that the log is closed.
fn write(file: &CutFile, writes: &Writes) -> bool {
    let info = HrlInfo {
        id: Uuid::from_u128(1),
        previous_id: Uuid::nil(),
        data_write_guid: Uuid::from_u128(2),
        created_unix_ms: TIME,
    };
    let life = || {
        let mut writer = HrlWriter::create(Cursor::new(file.clone()), info, DISK)?;
        for (offset, data) in writes {
            if data.iter().all(|byte| *byte == 0) {
                writer.zero(*offset, data.len() as u64, TIME)?;
            } else {
                writer.append(*offset, data, TIME)?;
            }
        }
        writer.close()
    };
    life().is_ok()
}

fn check(bytes: Vec<u8>, writes: &Writes, closed: bool) -> Result<(), String> {
    let reader = match HrlReader::open(bytes) {
        Ok(reader) => reader,
        Err(error) if closed => return Err(format!("a closed log is refused: {error}")),
        Err(error) if error.kind() == HrlErrorKind::Io => return Err(error.to_string()),
        Err(_) => return Ok(()),
    };
    let mut seen = Writes::new();
    for entry in reader.entries() {
        match reader.read(entry) {
            Ok(data) => seen.push((entry.offset, data)),
            Err(error) => return Err(format!("it opened, but {error}")),
        }
    }
    match seen == *writes {
        true => Ok(()),
        false => Err("it opened with other writes than were made".to_owned()),
    }
}

/// Cuts a writer at every operation.
pub fn enumerate(seed: u64) -> Tally {
    let begin = Instant::now();
    let mut tally = Tally::new("replica log (.hrl)");
    let mut random = Random::new(seed);
    let writes = writes(&mut random);
    for cut in 0.. {
        let file = CutFile::default();
        file.power_until(cut);
        let closed = write(&file, &writes);
        tally.cuts += 1;
        for state in file.after_cut(&mut random) {
            let place = format!("seed {seed}, cut {cut}, {}", state.rule);
            tally.state(&place, check(state.bytes, &writes, closed));
        }
        if closed {
            break;
        }
    }
    tally.took = begin.elapsed();
    tally
}
