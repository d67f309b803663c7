//! Power cuts at every write and every flush: what was flushed survives, the image always opens.

mod support;

use std::fs;
use std::sync::Arc;

use disk_image::{Access, CreateOptions, Details, DiskImage, Format, LogInfo, MemoryFile};
use support::{
    Random, create_in_memory, open_bytes, open_shared, options, qemu_img, read_all, text,
    try_qemu_img,
};

const SIZE: u64 = 4 << 20;

/// The workload: allocating and overwriting writes, a flush now and then, a close at the end.
/// Each byte of the disk only ever gets the values of the write numbers that touched it.
struct Step {
    offset: u64,
    length: usize,
    value: u8,
    flush: bool,
}

fn workload(seed: u64, steps: u8, size: u64) -> Vec<Step> {
    let mut random = Random(seed);
    // The last block is kept for the last step, so that closing has a table to write.
    let last = size - (512 << 10);
    let below = size - (1 << 20);
    let mut all: Vec<Step> = (1..steps)
        .map(|value| {
            let length = 1 + random.below(70_000) as usize;
            Step {
                offset: random.below(below - length as u64),
                length,
                value,
                flush: random.below(3) == 0,
            }
        })
        .collect();
    all.push(Step {
        offset: last,
        length: 5000,
        value: steps,
        flush: false,
    });
    all
}

/// What a byte may be after a cut: the last flushed value, or any value written since.
struct Expectation {
    flushed: Vec<u8>,
    written: Vec<Vec<u8>>,
}

/// Runs the workload until the power goes off; says what must and what may be there.
fn run(image: DiskImage, steps: &[Step]) -> Expectation {
    let mut image = image;
    let mut model = vec![0; image.virtual_size() as usize];
    let mut expectation = Expectation {
        flushed: model.clone(),
        written: Vec::new(),
    };
    for step in steps {
        let range = step.offset as usize..step.offset as usize + step.length;
        model[range].fill(step.value);
        expectation.written.push(model.clone());
        if image
            .write_at(&vec![step.value; step.length], step.offset)
            .is_err()
        {
            return expectation;
        }
        if step.flush {
            if image.flush().is_err() {
                return expectation;
            }
            expectation = Expectation {
                flushed: model.clone(),
                written: Vec::new(),
            };
        }
    }
    if image.close().is_ok() {
        expectation = Expectation {
            flushed: model,
            written: Vec::new(),
        };
    }
    expectation
}

fn check(seen: &[u8], expectation: &Expectation, what: &str) {
    let mut skip = 0;
    for (i, byte) in seen.iter().enumerate() {
        if i % 4096 == 0 && seen[i..i + 4096] == expectation.flushed[i..i + 4096] {
            skip = i + 4096;
        }
        if i < skip {
            continue;
        }
        let allowed = *byte == expectation.flushed[i]
            || expectation.written.iter().any(|model| model[i] == *byte);
        assert!(
            allowed,
            "{what}: byte {i} is {byte}, flushed was {}",
            expectation.flushed[i]
        );
    }
}

/// The ways in which unflushed writes may have reached the disk.
fn cuts(file: &MemoryFile, random: &mut Random) -> Vec<Vec<u8>> {
    let mut lucky = Random(random.next());
    let mut ways = vec![
        file.durable_bytes(),
        file.bytes(),
        file.after_power_cut(|_, length| if lucky.below(2) == 0 { 0 } else { length }),
        file.after_power_cut(|_, length| {
            // Torn in whole disk sectors, as disks do.
            (lucky.below(length as u64 / 512 + 1) * 512) as usize
        }),
    ];
    // Few changes: each set of them may be all that arrived.
    let pending = file.unflushed();
    if (2..=3).contains(&pending) {
        let subsets = 0..1_usize << pending;
        ways.extend(subsets.map(|set| {
            file.after_power_cut(|i, length| if set >> i & 1 == 1 { length } else { 0 })
        }));
    }
    // Often nothing was pending, and all ways are the same.
    ways.dedup();
    ways
}

fn cut_everywhere(options: &CreateOptions, seed: u64) {
    let steps = workload(seed, 14, options.virtual_size);
    let (image, file) = create_in_memory(options);
    drop(image);
    let empty = file.durable_bytes();
    let total = {
        let (image, file) = open_bytes(&empty, Access::ReadWrite).unwrap();
        run(image, &steps);
        file.operations()
    };
    assert!(total > 20, "the workload must write enough to be cut");
    let mut random = Random(seed);
    for operations in 0..=total {
        let (image, file) = open_bytes(&empty, Access::ReadWrite).unwrap();
        file.fail_after(operations);
        let expectation = run(image, &steps);
        for (way, bytes) in cuts(&file, &mut random).into_iter().enumerate() {
            let what = format!(
                "{:?} seed {seed}, cut after {operations} operations, way {way}",
                options.format
            );
            check_cut(&Arc::new(bytes), &expectation, &what);
        }
    }
}

/// The image opens, holds what it must, and can be gone on with.
fn check_cut(bytes: &Arc<Vec<u8>>, expectation: &Expectation, what: &str) {
    let (image, _) = open_shared(bytes, Access::ReadOnly).unwrap_or_else(|e| panic!("{what}: {e}"));
    let read_only = read_all(&image);
    check(&read_only, expectation, what);
    let (mut image, file) =
        open_shared(bytes, Access::ReadWrite).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(
        read_all(&image) == read_only,
        "{what}: replay in memory and in the file differ"
    );
    image.write_at(&[0xee; 5000], 1 << 20).unwrap();
    image.close().unwrap();
    let after = file.durable_bytes();
    drop(file);
    let (image, _) = open_shared(&Arc::new(after), Access::ReadOnly).unwrap();
    let mut part = vec![0; 5000];
    image.read_at(&mut part, 1 << 20).unwrap();
    assert!(part == [0xee; 5000], "{what}");
    if let Details::Vhdx(vhdx) = image.info().unwrap().details {
        assert_eq!(vhdx.log, LogInfo::Clean, "{what}");
    }
}

#[test]
fn dynamic_vhdx_survives_a_cut_at_every_operation() {
    cut_everywhere(&options(Format::VhdxDynamic, 3 << 20, Some(1 << 20)), 1);
}

#[test]
fn fixed_vhdx_survives_a_cut_at_every_operation() {
    cut_everywhere(&options(Format::VhdxFixed, 2 << 20, Some(1 << 20)), 3);
}

#[test]
fn dynamic_vhd_survives_a_cut_at_every_operation() {
    cut_everywhere(&options(Format::VhdDynamic, 2 << 20, Some(512 << 10)), 4);
}

#[test]
fn a_cut_during_replay_loses_nothing() {
    let bytes = dirty_log(&[(0, 1), (2 << 20, 2), (3 << 20, 3)]);
    let (image, _) = open_bytes(&bytes, Access::ReadOnly).unwrap();
    let expected = read_all(&image);
    let mut random = Random(9);
    let (_, file) = open_bytes(&bytes, Access::ReadWrite).unwrap();
    for operations in 0..=file.operations() {
        let file = Arc::new(MemoryFile::from_bytes(bytes.clone()));
        file.fail_after(operations);
        let _ = DiskImage::open_file(Box::new(file.clone()), Access::ReadWrite);
        for cut in cuts(&file, &mut random) {
            let (image, _) = open_bytes(&cut, Access::ReadOnly).unwrap();
            assert!(read_all(&image) == expected, "cut after {operations}");
        }
    }
}

/// A VHDX whose owner was cut off when the last log entry was durable and nothing of it applied.
fn dirty_log(blocks: &[(u64, u8)]) -> Vec<u8> {
    let (mut image, file) = create_in_memory(&options(Format::VhdxDynamic, SIZE, Some(1 << 20)));
    for (i, (offset, value)) in blocks.iter().enumerate() {
        image.write_at(&[*value; 100_000], *offset).unwrap();
        if i + 1 < blocks.len() {
            image.flush().unwrap();
        }
    }
    image.flush().unwrap();
    // The last table write is the only thing that isn't durable.
    let bytes = file.after_power_cut(|_, _| 0);
    assert!(
        bytes != file.bytes(),
        "the log entry must not have been applied"
    );
    bytes
}

#[test]
fn dirty_logs_replay_as_qemu_replays_them() {
    for blocks in [
        &[(0, 1)][..],
        &[(0, 1), (2 << 20, 2)],
        &[(3 << 20, 1), (0, 2), (1 << 20, 3), (2 << 20, 4)],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.vhdx");
        let bytes = dirty_log(blocks);
        fs::write(&disk, &bytes).unwrap();

        let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
        let Details::Vhdx(vhdx) = image.info().unwrap().details else {
            panic!("a VHDX")
        };
        assert!(
            matches!(vhdx.log, LogInfo::Replayed { .. }),
            "{:?}",
            vhdx.log
        );
        let ours = read_all(&image);
        for (offset, value) in blocks {
            assert!(
                ours[*offset as usize..][..100_000]
                    .iter()
                    .all(|b| b == value)
            );
        }
        assert!(
            fs::read(&disk).unwrap() == bytes,
            "read-only opening must not change the file"
        );

        // qemu sees the log as dirty too, so this test compares two replays.
        assert!(
            !try_qemu_img(&[
                "convert",
                "-f",
                "vhdx",
                "-O",
                "raw",
                text(&disk),
                "/dev/null"
            ])
            .status
            .success()
        );
        qemu_img(&["check", "-r", "all", "-f", "vhdx", text(&disk)]);
        let raw = folder.path().join("disk.raw");
        qemu_img(&[
            "convert",
            "-f",
            "vhdx",
            "-O",
            "raw",
            text(&disk),
            text(&raw),
        ]);
        assert!(fs::read(&raw).unwrap() == ours);
    }
}

#[test]
fn qemu_repairs_what_a_cut_leaves_behind() {
    let steps = workload(5, 10, SIZE);
    let (image, file) = create_in_memory(&options(Format::VhdxDynamic, SIZE, Some(1 << 20)));
    drop(image);
    let empty = file.durable_bytes();
    let folder = tempfile::tempdir().unwrap();
    let (disk, raw) = (
        folder.path().join("disk.vhdx"),
        folder.path().join("disk.raw"),
    );
    let mut random = Random(6);
    let total = {
        let (image, file) = open_bytes(&empty, Access::ReadWrite).unwrap();
        run(image, &steps);
        file.operations()
    };
    for operations in (0..total).step_by(11) {
        let (image, file) = open_bytes(&empty, Access::ReadWrite).unwrap();
        file.fail_after(operations);
        run(image, &steps);
        for bytes in cuts(&file, &mut random) {
            let (image, _) = open_bytes(&bytes, Access::ReadOnly).unwrap();
            fs::write(&disk, &bytes).unwrap();
            qemu_img(&["check", "-r", "all", "-f", "vhdx", text(&disk)]);
            let report = qemu_img(&["check", "-f", "vhdx", text(&disk)]);
            assert!(report.contains("No errors were found"), "{report}");
            qemu_img(&[
                "convert",
                "-f",
                "vhdx",
                "-O",
                "raw",
                text(&disk),
                text(&raw),
            ]);
            assert!(
                fs::read(&raw).unwrap() == read_all(&image),
                "cut after {operations}"
            );
        }
    }
}

#[test]
fn a_failed_flush_stops_further_writes() {
    let (mut image, file) = create_in_memory(&options(Format::VhdxDynamic, SIZE, Some(1 << 20)));
    image.write_at(&[1; 512], 0).unwrap();
    file.fail_after(file.operations());
    assert_eq!(image.flush().unwrap_err().kind(), disk_image::ErrorKind::Io);
    assert_eq!(
        image.write_at(&[1; 512], 0).unwrap_err().kind(),
        disk_image::ErrorKind::Poisoned
    );
    assert_eq!(
        image.close().unwrap_err().kind(),
        disk_image::ErrorKind::Poisoned
    );
}
