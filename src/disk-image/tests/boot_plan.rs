//! Plans over arbitrary bytes, cuts and ranges: what they write, what they give back, what they refuse.

mod boot_disks;
mod support;

use std::sync::Arc;

use boot_disks::{BootDisk, CORE_BYTES, images, loader, open, tool};
use disk_image::boot::{
    BootLoader, ConversionPlan, LoaderError, PlanError, PlanState, inspect, judge,
};
use disk_image::{Access, DiskImage, MemoryFile};
use proptest::prelude::*;
use support::{Random, read_all};

/// The gap between the table and the first partition of [`BootDisk::linux`].
const GAP: std::ops::Range<usize> = 34 * 512..2048 * 512;

fn plan_of(disk: &[u8]) -> ConversionPlan {
    ConversionPlan::make(&open(disk, Access::ReadOnly), &loader()).unwrap()
}

/// The Linux disk with arbitrary bytes where the conversion writes: what older boot loaders leave there.
fn used_disk(seed: u64) -> Vec<u8> {
    let mut disk = BootDisk::linux();
    let mut random = Random(seed);
    let gap = random.bytes(GAP.len());
    disk.put(GAP.start, &gap);
    let code = random.bytes(440);
    disk.put(0, &code);
    disk.bytes
}

fn converted(disk: &[u8]) -> Vec<u8> {
    let mut image = open(disk, Access::ReadWrite);
    plan_of(disk).apply(&mut image).unwrap();
    read_all(&image)
}

fn shared(bytes: &[u8]) -> (Arc<MemoryFile>, DiskImage) {
    let file = Arc::new(MemoryFile::from_bytes(bytes.to_vec()));
    let image = DiskImage::open_raw(Box::new(file.clone()), Access::ReadWrite, 512).unwrap();
    (file, image)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_but_boot_code_and_gap_is_written_and_undo_gives_every_byte_back(seed: u64) {
        let disk = used_disk(seed);
        let plan = plan_of(&disk);
        let mut image = open(&disk, Access::ReadWrite);
        plan.apply(&mut image).unwrap();
        let once = read_all(&image);
        prop_assert!(once != disk);
        // Parameter block, disk signature and table stay; so does all behind the gap, and the table in front of it.
        for kept in [3..0x5a, 0x1b8..GAP.start, GAP.end..disk.len()] {
            prop_assert!(once[kept.clone()] == disk[kept]);
        }
        plan.apply(&mut image).unwrap();
        prop_assert!(read_all(&image) == once);
        for _ in 0..2 {
            plan.undo(&mut image).unwrap();
            prop_assert!(read_all(&image) == disk);
            prop_assert_eq!(plan.state(&image).unwrap(), PlanState::Original);
        }
    }

    #[test]
    fn a_power_cut_anywhere_is_healed_by_the_same_again_or_by_the_other_way(
        seed: u64,
        cut in 0_u64..8,
        undoing: bool,
        forward: bool,
    ) {
        let disk = used_disk(seed);
        let plan = plan_of(&disk);
        let done = converted(&disk);
        let (file, mut image) = shared(if undoing { &done } else { &disk });
        file.fail_after(cut);
        let result = if undoing { plan.undo(&mut image) } else { plan.apply(&mut image) };
        // Three writes, three flushes.
        prop_assert_eq!(result.is_ok(), cut >= 6);
        // Each write of the last flush reached the disk up to some sector.
        let mut random = Random(seed);
        let cut_disk = file.after_power_cut(|_, length| {
            (random.below(length as u64 + 1) as usize / 512) * 512
        });
        let mut image = open(&cut_disk, Access::ReadWrite);
        plan.state(&image).unwrap();
        if forward {
            plan.apply(&mut image).unwrap();
            prop_assert!(read_all(&image) == done);
        } else {
            plan.undo(&mut image).unwrap();
            prop_assert!(read_all(&image) == disk);
        }
    }

    #[test]
    fn bytes_on_their_way_are_those_of_the_converted_disk_and_come_back_as_the_original(
        seed: u64,
        from in 0_usize..60,
        count in 1_usize..60,
        odd in 0_usize..512,
    ) {
        let disk = used_disk(seed);
        let (plan, done) = (plan_of(&disk), converted(&disk));
        // Any range for the one way, whole sectors for the other.
        let range = from * 512 + odd..from * 512 + odd + count * 97;
        let mut buffer = disk[range.clone()].to_vec();
        plan.convert(range.start as u64, &mut buffer);
        prop_assert!(buffer == done[range]);
        let range = from * 512..(from + count) * 512;
        let mut buffer = done[range.clone()].to_vec();
        plan.restore(range.start as u64, &mut buffer);
        prop_assert!(buffer == disk[range]);
    }

    #[test]
    fn a_sector_of_somebody_else_stops_apply_and_undo_before_anything_is_written(
        seed: u64,
        sector in 0_usize..CORE_BYTES / 512,
        at in 0_usize..512,
        from_converted: bool,
    ) {
        let disk = used_disk(seed);
        let plan = plan_of(&disk);
        let mut now = if from_converted { converted(&disk) } else { disk.clone() };
        let place = GAP.start + sector * 512 + at;
        now[place] = (1..=255).find(|byte| {
            *byte != disk[place] && *byte != now[place] && *byte != converted(&disk)[place]
        }).unwrap();
        let mut image = open(&now, Access::ReadWrite);
        for error in [plan.apply(&mut image).unwrap_err(), plan.undo(&mut image).unwrap_err()] {
            let offset = (place / 512 * 512) as u64;
            prop_assert!(matches!(error, PlanError::Foreign { offset: found } if found == offset), "{}", error);
        }
        prop_assert!(read_all(&image) == now);
        // On its way to the source, that sector is the guest's; all others come back.
        let mut restored = now.clone();
        plan.restore(0, &mut restored);
        let differing = restored.iter().zip(&disk).filter(|(a, b)| a != b).count();
        prop_assert!(restored[place] == now[place] && differing <= 512);
    }

    #[test]
    fn the_stored_form_comes_back_whole_and_no_flip_or_cut_is_taken(seed: u64, at: usize, bit in 0_u8..8) {
        let plan = plan_of(&used_disk(seed));
        let stored = plan.to_bytes();
        prop_assert!(ConversionPlan::from_bytes(&stored).unwrap() == plan);
        let mut flipped = stored.clone();
        flipped[at % stored.len()] ^= 1 << bit;
        let error = ConversionPlan::from_bytes(&flipped).unwrap_err();
        prop_assert!(matches!(error, PlanError::Stored(_)), "{}", error);
        prop_assert!(ConversionPlan::from_bytes(&stored[..at % stored.len()]).is_err());
    }

    #[test]
    fn forged_pieces_are_read_or_refused(pieces: Vec<(u64, u32)>, count: u32, tail: Vec<u8>) {
        let mut stored = plan_of(&BootDisk::linux().bytes).to_bytes();
        stored.truncate(44);
        stored.extend(count.to_le_bytes());
        for (offset, length) in pieces {
            stored.extend(offset.to_le_bytes());
            stored.extend((length % 600).to_le_bytes());
            stored.extend(vec![1; (length % 600) as usize * 2]);
        }
        stored.extend(tail);
        stored[12..16].fill(0);
        let sum = crc32c::crc32c(&stored);
        stored[12..16].copy_from_slice(&sum.to_le_bytes());
        if let Ok(plan) = ConversionPlan::from_bytes(&stored) {
            for piece in plan.pieces() {
                prop_assert!(piece.offset + piece.new.len() as u64 <= plan.disk_bytes());
            }
            prop_assert!(plan.to_bytes() == stored);
        }
    }

    #[test]
    fn hostile_tables_and_file_systems_never_panic(seed: u64, hits in 1_u64..40) {
        let mut disk = BootDisk::linux().bytes;
        let mut random = Random(seed);
        let places = [446, 512, 1024, 2048 * 512, 2049 * 512, 2080 * 512, disk.len() - 512];
        for _ in 0..hits {
            let place = places[random.below(places.len() as u64) as usize];
            let at = (place + random.below(700) as usize).min(disk.len() - 1);
            disk[at] = random.next() as u8;
        }
        if random.below(2) == 0 {
            put_header_right(&mut disk);
        }
        let image = open(&disk, Access::ReadOnly);
        let found = inspect(&image).unwrap();
        judge(&found, CORE_BYTES as u64);
        for free in &found.free {
            prop_assert!(free.length > 0 && free.end() <= disk.len() as u64);
            let apart = found.partitions.iter().all(|held| {
                let (start, length) = (held.partition.start, held.partition.length);
                start >= free.end() || start + length <= free.offset
            });
            prop_assert!(apart);
        }
        if let Ok(plan) = ConversionPlan::make(&image, &loader()) {
            let mut image = open(&disk, Access::ReadWrite);
            plan.apply(&mut image).unwrap();
            plan.undo(&mut image).unwrap();
            prop_assert!(read_all(&image) == disk);
        }
    }
}

/// The checksums of a forger.
fn put_header_right(disk: &mut [u8]) {
    let sum = crc32(&disk[1024..1024 + 128 * 128]);
    disk[512 + 88..512 + 92].copy_from_slice(&sum.to_le_bytes());
    disk[512 + 16..512 + 20].fill(0);
    let sum = crc32(&disk[512..512 + 92]);
    disk[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn a_plan_of_version_1_is_read_by_every_later_version() {
    let golden = include_bytes!("golden/boot-plan-v1");
    let plan = ConversionPlan::from_bytes(golden).unwrap();
    assert_eq!(plan.to_bytes(), golden);
    let places: Vec<_> = plan
        .pieces()
        .iter()
        .map(|piece| (piece.offset, piece.new.len()))
        .collect();
    assert_eq!(places, [(34 * 512, CORE_BYTES), (0, 3), (0x5a, 0x15e)]);
    assert_eq!(plan, plan_of(&BootDisk::linux().bytes));
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let mut stored = plan_of(&BootDisk::linux().bytes).to_bytes();
    stored[8] = 2;
    let error = ConversionPlan::from_bytes(&stored).unwrap_err();
    assert!(error.to_string().contains("version is 2"), "{error}");
}

#[test]
fn images_that_are_not_grubs_are_refused() {
    let (boot, core) = images();
    let refused = |boot: &[u8], core: &[u8]| BootLoader::new(boot, core).unwrap_err();
    assert!(matches!(refused(&boot[1..], &core), LoaderError::Boot(_)));
    assert!(matches!(refused(&[0; 512], &core), LoaderError::Boot(_)));
    assert!(matches!(refused(&boot, &[0; 5000]), LoaderError::Core(_)));
    assert!(matches!(refused(&boot, &core[..100]), LoaderError::Core(_)));
    let longer = [&core[..], &[0; 513]].concat();
    assert!(matches!(refused(&boot, &longer), LoaderError::Core(_)));
}

#[test]
fn sgdisk_finds_the_converted_disk_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, converted(&used_disk(1))).unwrap();
    let said = tool("sgdisk", &["--verify", path.to_str().unwrap()]);
    assert!(said.contains("No problems found"), "{said}");
}
