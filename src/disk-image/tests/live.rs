//! Images that another process has open: qemu writes, we look.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use disk_image::{Access, DiskImage, Format, live_allocation};
use support::{qemu_img, read_all, text};

const MIB: u64 = 1 << 20;

/// A qemu-io with the image open for writing; ended with the test.
struct Owner {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Owner {
    fn open(path: &Path, format: &str) -> Self {
        let mut process = Command::new("qemu-io")
            .args(["-f", format, text(path)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io (package qemu-utils) must be installed");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Self {
            process,
            input,
            output,
        }
    }

    /// Writes 64 KiB and returns when it is done.
    fn write(&mut self, value: u8, offset: u64) {
        writeln!(self.input, "write -P {value} {offset} 64k").unwrap();
        let mut line = String::new();
        while !line.contains("wrote 65536/65536") {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "qemu-io ended"
            );
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn allocation_of_an_image_that_qemu_is_writing_is_seen_block_by_block() {
    for (format, name, create) in [
        ("vhdx", "disk.vhdx", "subformat=dynamic,block_size=1M"),
        ("vpc", "disk.vhd", "subformat=dynamic,force_size=on"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join(name);
        qemu_img(&["create", "-f", format, "-o", create, text(&disk), "64M"]);
        assert!(live_allocation(&disk).unwrap().allocated.is_empty());
        let mut owner = Owner::open(&disk, format);
        for (i, block) in [3_u64, 40, 12, 41, 0, 63].into_iter().enumerate() {
            owner.write(i as u8 + 1, block * MIB);
            let live = live_allocation(&disk).unwrap();
            assert_eq!(live.virtual_size, 64 * MIB);
            let inside = live
                .allocated
                .iter()
                .any(|e| e.offset <= block * MIB && e.end() >= block * MIB + 65_536);
            assert!(inside, "{format}: block {block} of {:?}", live.allocated);
        }
        let total: u64 = live_allocation(&disk)
            .unwrap()
            .allocated
            .iter()
            .map(|e| e.length)
            .sum();
        // The VHD's blocks of 2 MiB hold 40 and 41 together.
        assert_eq!(total / MIB, if format == "vhdx" { 6 } else { 10 });
        owner.kill();
    }
}

#[test]
fn what_a_killed_qemu_leaves_is_read_as_qemu_repairs_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.vhdx");
    qemu_img(&[
        "create",
        "-f",
        "vhdx",
        "-o",
        "block_size=1M",
        text(&disk),
        "16M",
    ]);
    let mut owner = Owner::open(&disk, "vhdx");
    for block in 0..8_u8 {
        owner.write(block + 1, u64::from(block) * 2 * MIB);
    }
    owner.kill();
    let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
    assert_eq!(image.format(), Format::VhdxDynamic);
    let ours = read_all(&image);
    for block in 0..8_u8 {
        let at = usize::from(block) << 21;
        assert!(
            ours[at..at + 65_536].iter().all(|byte| *byte == block + 1),
            "block {block}"
        );
    }
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
    assert!(std::fs::read(&raw).unwrap() == ours);
}
