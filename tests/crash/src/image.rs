//! Disk images: what was flushed survives, every other byte is the flushed one or one written since, the
//! image opens and can be written on.

use std::time::Instant;

use disk_image::{Access, CreateOptions, DiskImage, Format, ImageError};

use crate::cut_file::CutFile;
use crate::random::Random;
use crate::tally::Tally;

const SIZE: u64 = 3 << 20;
const STEPS: u8 = 12;

struct Step {
    offset: usize,
    length: usize,
    value: u8,
    flush: bool,
}

/// The flushed disk, and the disk after each write since.
struct Expectation {
    flushed: Vec<u8>,
    since: Vec<Vec<u8>>,
}

fn steps(random: &mut Random) -> Vec<Step> {
    (1..=STEPS)
        .map(|value| {
            let length = 512 * (1 + random.below(120) as usize);
            Step {
                offset: random.below((SIZE - length as u64) / 512) as usize * 512,
                length,
                value,
                flush: random.chance(35),
            }
        })
        .collect()
}

fn open(bytes: &CutFile, access: Access) -> Result<DiskImage, ImageError> {
    DiskImage::open_file(Box::new(bytes.clone()), access)
}

fn life(file: &CutFile, steps: &[Step]) -> (Expectation, bool) {
    let mut model = vec![0; SIZE as usize];
    let mut expected = Expectation {
        flushed: model.clone(),
        since: Vec::new(),
    };
    let Ok(mut image) = open(file, Access::ReadWrite) else {
        return (expected, false);
    };
    for step in steps {
        model[step.offset..step.offset + step.length].fill(step.value);
        expected.since.push(model.clone());
        let data = vec![step.value; step.length];
        if image.write_at(&data, step.offset as u64).is_err() {
            return (expected, false);
        }
        if step.flush {
            if image.flush().is_err() {
                return (expected, false);
            }
            expected.flushed = model.clone();
            expected.since.clear();
        }
    }
    let closed = image.close().is_ok();
    if closed {
        expected.flushed = model;
        expected.since.clear();
    }
    (expected, closed)
}

fn check(bytes: Vec<u8>, expected: &Expectation) -> Result<(), String> {
    let text = |error: ImageError| error.to_string();
    let file = CutFile::new(bytes.clone());
    let image = open(&file, Access::ReadOnly).map_err(text)?;
    let mut seen = vec![0; SIZE as usize];
    image.read_at(&mut seen, 0).map_err(text)?;
    if file.operations() != 0 {
        return Err("a read-only opener wrote".to_owned());
    }
    for at in (0..seen.len()).step_by(512) {
        let range = at..at + 512;
        if seen[range.clone()] == expected.flushed[range.clone()] {
            continue;
        }
        for byte in range {
            let known = seen[byte] == expected.flushed[byte]
                || expected.since.iter().any(|disk| disk[byte] == seen[byte]);
            if !known {
                return Err(format!(
                    "byte {byte} is {}, flushed was {}",
                    seen[byte], expected.flushed[byte]
                ));
            }
        }
    }
    let file = CutFile::new(bytes);
    let mut image = open(&file, Access::ReadWrite).map_err(text)?;
    let mut again = vec![0; SIZE as usize];
    image.read_at(&mut again, 0).map_err(text)?;
    if again != seen {
        return Err("replay in memory and in the file differ".to_owned());
    }
    image.write_at(&[0xee; 5120], 1 << 20).map_err(text)?;
    image.close().map_err(text)?;
    again[1 << 20..(1 << 20) + 5120].fill(0xee);
    open(&CutFile::new(file.bytes()), Access::ReadOnly)
        .and_then(|image| image.read_at(&mut seen, 0))
        .map_err(text)?;
    match seen == again {
        true => Ok(()),
        false => Err("it can't be written on".to_owned()),
    }
}

/// Cuts a writer of each format at every operation.
pub fn enumerate(seed: u64) -> Tally {
    let begin = Instant::now();
    let mut tally = Tally::new("VHDX and VHD writers");
    let mut random = Random::new(seed);
    for format in [Format::VhdxDynamic, Format::VhdxFixed, Format::VhdDynamic] {
        let empty = match create(format) {
            Ok(empty) => empty,
            Err(error) => {
                tally.state(&"create", Err(error.to_string()));
                continue;
            }
        };
        let steps = steps(&mut random);
        for cut in 0.. {
            let file = CutFile::new(empty.clone());
            file.power_until(cut);
            let (expected, closed) = life(&file, &steps);
            tally.cuts += 1;
            let mut before = None;
            for state in file.after_cut(&mut random) {
                if before.as_ref() == Some(&state.bytes) {
                    continue;
                }
                let place = format!("seed {seed}, {format:?}, cut {cut}, {}", state.rule);
                before = Some(state.bytes.clone());
                tally.state(&place, check(state.bytes, &expected));
            }
            if closed {
                break;
            }
        }
    }
    tally.took = begin.elapsed();
    tally
}

fn create(format: Format) -> Result<Vec<u8>, ImageError> {
    let mut options = CreateOptions::new(format, SIZE);
    options.block_size = Some(1 << 20);
    let file = CutFile::default();
    DiskImage::create_file(Box::new(file.clone()), &options)?.close()?;
    Ok(file.bytes())
}
