//! Another implementation, written from the specification alone, takes what we write.

use std::io::Write;
use std::process::Command;

use replication_log::hrl::{HrlInfo, HrlWriter};
use uuid::Uuid;

const DISK: u64 = 1 << 30;
/// 2026-01-02T03:04:05Z
const TIME: i64 = 1_767_323_045_000;

/// What `read_hrl.py` says of a log; `Err`: its complaint.
fn python(log: &[u8]) -> Result<String, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(log).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_hrl.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(file.path())
        .output()
        .expect("python3 runs");
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn log(groups: u64) -> Vec<u8> {
    let info = HrlInfo {
        id: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        previous_id: Uuid::from_u128(0x99),
        data_write_guid: Uuid::from_u128(0x77),
        created_unix_ms: TIME,
    };
    let mut writer = HrlWriter::create(std::io::Cursor::new(Vec::new()), info, DISK).unwrap();
    for n in 0..groups * 127 {
        let data = vec![(n % 251) as u8 + 1; 512 * (1 + n as usize % 9)];
        writer.append(n * 8192, &data, TIME + 2000).unwrap();
        if n % 50 == 0 {
            writer.zero(n * 8192 + 6144, 2048, TIME + 2000).unwrap();
        }
    }
    writer.close().unwrap().into_inner()
}

#[test]
fn what_we_write_is_valid_to_another_reader() {
    for groups in [0, 1, 3] {
        let said = python(&log(groups)).unwrap();
        for text in [
            "\"id\": \"00112233-4455-6677-8899-aabbccddeeff\"",
            "\"previousId\": \"00000000-0000-0000-0000-000000000099\"",
            "\"dataWriteGuid\": \"00000000-0000-0000-0000-000000000077\"",
            "\"created\": 820638245",
        ] {
            assert!(said.contains(text), "{text} is not in {said}");
        }
        let entries = said.matches("\"offset\"").count() as u64;
        assert_eq!(entries, groups * 127 + (groups * 127).div_ceil(50));
        if groups > 0 {
            // 512 bytes of 0x01 at offset 0, and 2,048 zeroes behind them.
            let ones = "6caf38d537984e261527b8caef5f990fb91415a1db917198821a79ed28997973";
            assert!(said.contains(ones), "{said}");
            let zeroes = "e5a00aa9991ac8a5ee3109844d84a55583bd20572ad3ffcd42792f3c36b183ad";
            assert!(said.contains(zeroes), "{said}");
        }
    }
}

#[test]
fn the_other_reader_does_see_damage() {
    let good = log(2);
    for at in [8, 60, 4096 + 12, 8192, good.len() - 4096 + 33] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(python(&bad).is_err(), "byte {at}");
    }
}
