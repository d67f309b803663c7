//! How the boot loader that a converted disk gets is put together: modules, scripts and the memory disk.
//!
//! GRUB is licensed under the GPL, version 3, so nothing of it is part of this program: whoever converts a disk runs the host's own
//! `grub-mkimage` over the host's own modules with what this file gives, and passes the result to
//! [`BootLoader`](super::BootLoader). The scripts are ours. Promise: the same inputs give the same bytes.
//!
//! ```text
//!   core.img = modules + early.cfg ─► (memdisk)/grub.cfg ─► the guest's own menu, wherever it lies
//!                          memdisk = tar of the scripts and of linux.mod
//! ```

/// The format that `grub-mkimage --format` is asked for, and the folder of modules below the prefix.
pub const FORMAT: &str = "i386-pc";
/// What `grub-mkimage --prefix` is given; after `--memdisk`, which sets a prefix of its own.
pub const PREFIX: &str = "(memdisk)";
/// The script that is embedded with `grub-mkimage --config`. It is read before GRUB knows `if` or `for`.
pub const EARLY_SCRIPT: &str = include_str!("early.cfg");
/// The module that is loaded late, out of the memory disk: it brings commands whose names are keys of entry files.
pub const LATE_MODULE: &str = "linux.mod";
/// Modules of the core: disks, tables, file systems, what menus use, and what [`LATE_MODULE`] needs.
pub const MODULES: &[&str] = &[
    "biosdisk",
    "part_gpt",
    "part_msdos",
    "fat",
    "ext2",
    "xfs",
    "btrfs",
    "lvm",
    "diskfilter",
    "mdraid09",
    "mdraid1x",
    "memdisk",
    "tar",
    "search",
    "search_fs_uuid",
    "search_fs_file",
    "search_label",
    "configfile",
    "normal",
    "regexp",
    "eval",
    "test",
    "true",
    "echo",
    "sleep",
    "loadenv",
    "minicmd",
    "ls",
    "cat",
    "probe",
    "keystatus",
    "cpuid",
    "reboot",
    "halt",
    "gzio",
    "lzopio",
    "xzio",
    "zstd",
    "terminal",
    "serial",
    "gettext",
    "font",
    "gfxterm",
    "all_video",
    "video_bochs",
    "video_cirrus",
    "relocator",
    "verifiers",
    "boot",
    "video",
    "mmap",
    "vbe",
    "vga",
];

/// Scripts of the memory disk by name.
const SCRIPTS: [(&str, &str); 5] = [
    ("grub.cfg", include_str!("grub.cfg")),
    ("commands.cfg", include_str!("commands.cfg")),
    ("entries.cfg", include_str!("entries.cfg")),
    ("entry-keys.cfg", include_str!("entry-keys.cfg")),
    ("loader-keys.cfg", include_str!("loader-keys.cfg")),
];
const TAR_BLOCK: usize = 512;

/// The memory disk for `grub-mkimage --memdisk`: a tar archive of the scripts and of the host's own [`LATE_MODULE`].
pub fn memory_disk(late_module: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, text) in SCRIPTS {
        add(&mut archive, name, text.as_bytes());
    }
    add(
        &mut archive,
        &format!("{FORMAT}/{LATE_MODULE}"),
        late_module,
    );
    // Two empty blocks are the end of an archive.
    archive.resize(archive.len() + 2 * TAR_BLOCK, 0);
    archive
}

/// One file of a ustar archive. The names are ours and short.
fn add(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0_u8; TAR_BLOCK];
    let mut put = |at: usize, text: &str| {
        for (place, byte) in header.iter_mut().skip(at).zip(text.bytes()) {
            *place = byte;
        }
    };
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    // The checksum counts itself as blanks.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    for (place, byte) in header
        .iter_mut()
        .skip(148)
        .zip(format!("{sum:06o}\0 ").bytes())
    {
        *place = byte;
    }
    archive.extend_from_slice(&header);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(TAR_BLOCK), 0);
}
