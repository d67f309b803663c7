//! Small disks with an EFI system partition, made with sgdisk, mkfs.vfat and mtools, and a boot loader that is none.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use disk_image::boot::BootLoader;
use disk_image::{Access, DiskImage, MemoryFile};

/// Bytes of the core image of [`loader`].
pub const CORE_BYTES: usize = 20 * 512;
const MIB: usize = 1 << 20;

/// Two images with the marks of GRUB's, which start nothing.
pub fn loader() -> BootLoader {
    let (boot, core) = images();
    BootLoader::new(&boot, &core).unwrap()
}

pub fn images() -> (Vec<u8>, Vec<u8>) {
    let mut boot: Vec<u8> = (0..512).map(|i| (i % 251) as u8 | 1).collect();
    boot[0x180..0x18b].copy_from_slice(b"GRUB \0Geom\0");
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut core: Vec<u8> = (0..CORE_BYTES).map(|i| (i % 249) as u8 | 1).collect();
    core[0x11e..0x126].copy_from_slice(b"loading\0");
    core[0x12a..0x130].copy_from_slice(b"\0Geom\0");
    let rest = (CORE_BYTES / 512 - 1) as u16;
    core[0x1fc..0x1fe].copy_from_slice(&rest.to_le_bytes());
    (boot, core)
}

pub fn open(bytes: &[u8], access: Access) -> DiskImage {
    let file = Box::new(MemoryFile::from_bytes(bytes.to_vec()));
    DiskImage::open_raw(file, access, 512).unwrap()
}

/// The bytes of a disk.
#[derive(Clone)]
pub struct BootDisk {
    pub bytes: Vec<u8>,
}

impl BootDisk {
    /// An empty GPT disk of so many MiB.
    pub fn new(mib: usize) -> Self {
        Self {
            bytes: vec![0; mib * MIB],
        }
        .identity("5c1a0000-0000-4000-8000-0000000000aa")
    }

    /// Gives the disk another GUID.
    pub fn identity(self, id: &str) -> Self {
        self.sgdisk(&["-U", id])
    }

    /// A system partition with GRUB and a menu at 1 MiB, and a partition of Linux.
    pub fn linux() -> Self {
        static MADE: OnceLock<BootDisk> = OnceLock::new();
        MADE.get_or_init(|| {
            Self::new(4)
                .partition("1:2048:+2048", "ef00")
                .partition("2:4096:+2048", "8300")
                .system(&["EFI/debian/grubx64.efi", "EFI/debian/grub.cfg"])
        })
        .clone()
    }

    /// Adds a partition; `place` as sgdisk's `-n` takes it, in sectors.
    pub fn partition(self, place: &str, kind: &str) -> Self {
        let number = place.split(':').next().unwrap();
        let kind = format!("{number}:{kind}");
        self.sgdisk(&["-a", "1", "-n", place, "-t", &kind])
    }

    /// Gives partition 1 a FAT file system with these files.
    pub fn system(mut self, files: &[&str]) -> Self {
        let image = open(&self.bytes, Access::ReadOnly);
        let table = disk_image::partitions::read(&image).unwrap();
        let (start, length) = (table.partitions[0].start, table.partitions[0].length);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fat");
        std::fs::write(&path, vec![0; length as usize]).unwrap();
        let text = path.to_str().unwrap();
        tool("mkfs.vfat", &["--invariant", text]);
        let mut made = Vec::new();
        for file in files {
            let parents: Vec<_> = Path::new(file).ancestors().skip(1).collect();
            for parent in parents.iter().rev().filter(|p| !p.as_os_str().is_empty()) {
                if !made.contains(&parent.to_path_buf()) {
                    tool("mmd", &["-i", text, &format!("::/{}", parent.display())]);
                    made.push(parent.to_path_buf());
                }
            }
            let content = folder.path().join("content");
            std::fs::write(&content, file).unwrap();
            let target = format!("::/{file}");
            tool("mcopy", &["-i", text, content.to_str().unwrap(), &target]);
        }
        self.put(start as usize, &std::fs::read(&path).unwrap());
        self
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn sgdisk(self, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, &self.bytes).unwrap();
        tool("sgdisk", &[arguments, &[path.to_str().unwrap()]].concat());
        Self {
            bytes: std::fs::read(&path).unwrap(),
        }
    }
}

/// Runs a tool, which may lie in sbin.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}
