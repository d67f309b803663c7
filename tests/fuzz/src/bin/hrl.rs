//! A replica log gives back what was appended; one that was tampered with, its checksums put right,
//! is refused or gives only entries whose data lie in the file and verify.

#![no_main]

use std::io::Cursor;

use fuzz::Input;
use replication_log::hrl::{HrlInfo, HrlReader, HrlWriter};
use uuid::Uuid;

const DISK: u64 = 1 << 20;
const TIME: i64 = 1_767_323_045_000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let info = HrlInfo {
        id: Uuid::from_u128(1),
        previous_id: Uuid::from_u128(u128::from(input.byte())),
        data_write_guid: Uuid::from_u128(3),
        created_unix_ms: TIME,
    };
    let file = Cursor::new(Vec::new());
    let mut writer = HrlWriter::create(file, info.clone(), DISK).expect("memory has room");
    let mut model = Vec::new();
    for _ in 0..input.byte() % 140 {
        let length = 1 + input.below(600);
        let offset = input.below(DISK - length);
        let data = match input.byte() {
            0..64 => {
                writer.zero(offset, length, TIME).expect("on the disk");
                vec![0; length as usize]
            }
            byte => {
                let data = vec![byte; length as usize];
                writer.append(offset, &data, TIME).expect("on the disk");
                data
            }
        };
        model.push((offset, data));
    }
    let good = writer.close().expect("memory has room").into_inner();
    assert_eq!(read(&good), Some((info, model)), "what was written is read");

    let mut bad = good.clone();
    while !input.is_empty() {
        // The structures: header, first and last metadata block.
        let at = input.below(3 * 4096) as usize;
        let at = if at < 8192 {
            at
        } else {
            (good.len() + at).saturating_sub(12288)
        };
        bad[at] = input.byte();
    }
    read(&bad);
    let last = bad.len() - 4096;
    for entry in 0..127 {
        seal(&mut bad[last + 32 + entry * 32..][..32], 8);
    }
    for block in [4096, last] {
        seal(&mut bad[block..block + 32], 12);
    }
    seal(&mut bad[..4096], 40);
    read(&bad);
});

type Log = (HrlInfo, Vec<(u64, Vec<u8>)>);

fn read(file: &[u8]) -> Option<Log> {
    let reader = HrlReader::open(file.to_vec()).ok()?;
    let mut total = 0;
    let mut writes = Vec::new();
    for entry in reader.entries() {
        total += entry.length as usize;
        assert!(entry.offset.checked_add(u64::from(entry.length)).is_some());
        let Ok(data) = reader.read(entry) else {
            continue;
        };
        assert_eq!(data.len(), entry.length as usize);
        assert_eq!(reader.read(entry).ok().as_ref(), Some(&data), "read twice");
        assert!(!entry.is_zero() || data.iter().all(|byte| *byte == 0));
        writes.push((entry.offset, data));
    }
    assert!(total <= file.len(), "more data than the file has");
    Some((reader.info().clone(), writes))
}

fn seal(raw: &mut [u8], at: usize) {
    raw[at..at + 4].fill(0);
    let sum: u32 = raw.iter().map(|byte| u32::from(*byte)).sum();
    raw[at..at + 4].copy_from_slice(&(!sum).to_le_bytes());
}
