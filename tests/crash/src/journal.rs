//! Journal objects: an object is whole or refused, whatever part of it reached the disk, in the clear
//! and encrypted; once it was synced it is whole.

use std::time::Instant;

use disk_image::ImageFile;
use replication_log::KeyRing;
use replication_log::journal::{
    BuildOptions, JournalBuilder, JournalDisk, JournalError, JournalHeader, JournalReader,
};
use uuid::Uuid;

use crate::cut_file::{Cursor, CutFile};
use crate::random::Random;
use crate::tally::Tally;

const SIZE: u64 = 4 << 20;
const DISK: Uuid = Uuid::from_u128(4);

struct Workload {
    writes: Vec<(u64, Vec<u8>)>,
    keys: KeyRing,
    model: Vec<u8>,
}

impl Workload {
    fn new(random: &mut Random, encrypted: bool) -> Self {
        let mut keys = KeyRing::new();
        if encrypted {
            let id = Uuid::from_u128(7);
            keys.insert(id, &[7; 32])
                .and_then(|()| keys.activate(Some(id)))
                .unwrap_or_default();
        }
        let mut model = vec![0xee; SIZE as usize];
        let writes: Vec<(u64, Vec<u8>)> = (0..60)
            .map(|_| {
                let length = 4096 * (1 + random.below(16)) as usize;
                let offset = random.below((SIZE - length as u64) / 4096) * 4096;
                let data = match random.below(3) {
                    0 => vec![0; length],
                    1 => vec![random.number() as u8; length],
                    _ => random.bytes(length),
                };
                model[offset as usize..][..length].copy_from_slice(&data);
                (offset, data)
            })
            .collect();
        Workload {
            writes,
            keys,
            model,
        }
    }

    fn write(&self, file: &CutFile) -> Result<(), JournalError> {
        let header = JournalHeader {
            item: "vm".to_owned(),
            generation: 1,
            position: 1,
            time_unix_ms: 0,
            disks: vec![JournalDisk {
                id: DISK,
                size_bytes: SIZE,
            }],
        };
        let options = BuildOptions {
            encryption: Some(&self.keys),
            ..BuildOptions::default()
        };
        let sink = Cursor::new(file.clone());
        let mut builder = JournalBuilder::with_options(sink, header, options)?;
        for (offset, data) in &self.writes {
            builder.write(DISK, *offset, data)?;
        }
        builder.finish()?;
        Ok(ImageFile::flush(file)?)
    }

    fn check(&self, bytes: &[u8], synced: bool) -> Result<(), String> {
        let read = || {
            let reader = JournalReader::open_with_keys(bytes, &self.keys)?;
            let mut image = vec![0xee; SIZE as usize];
            for entry in reader.entries(0) {
                let data = reader.read_entry(entry)?;
                image[entry.offset as usize..][..data.len()].copy_from_slice(&data);
            }
            Ok::<_, JournalError>(image)
        };
        match read() {
            Ok(image) if image == self.model => Ok(()),
            Ok(_) => Err("it opened with other changes than were made".to_owned()),
            Err(error) if synced => Err(format!("a synced object is refused: {error}")),
            Err(_) => Ok(()),
        }
    }
}

/// Cuts a writer at every operation.
pub fn enumerate(seed: u64) -> Tally {
    let begin = Instant::now();
    let mut tally = Tally::new("journal object");
    let mut random = Random::new(seed);
    for encrypted in [false, true] {
        let workload = Workload::new(&mut random, encrypted);
        for cut in 0.. {
            let file = CutFile::default();
            file.power_until(cut);
            let synced = workload.write(&file).is_ok();
            tally.cuts += 1;
            for state in file.after_cut(&mut random) {
                let place = format!(
                    "seed {seed}, encrypted {encrypted}, cut {cut}, {}",
                    state.rule
                );
                tally.state(&place, workload.check(&state.bytes, synced));
            }
            if synced {
                break;
            }
        }
    }
    tally.took = begin.elapsed();
    tally
}
