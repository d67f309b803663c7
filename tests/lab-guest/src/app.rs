//! The application's disk: an ext4 file system that the guest agent can bring to rest.
//!
//! ```text
//!   /app/state   running | frozen N | thawed N     written by the agent's hook (tests/lab/agent-hook)
//!   /app/beat    a number that grows               written all the time, never flushed by hand
//! ```
//!
//! So a copy of the disk says by itself how it was taken: at rest, its state is `frozen N` and its journal is empty;
//! otherwise its state is another one and its journal waits for recovery.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

const MOUNT: &str = "/app";
const BEAT_EVERY: Duration = Duration::from_millis(50);
/// Where ext4's superblock has `s_magic` and `s_feature_incompat`, in bytes from the start of the file system.
const MAGIC_AT: u64 = 1024 + 0x38;
const INCOMPAT_AT: u64 = 1024 + 0x60;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// The journal holds something that is not yet in its place.
const NEEDS_RECOVERY: u32 = 0x4;

/// Says how the file system was found, mounts it, starts the agent and lets the application beat on.
pub fn run(disk: &Path) -> anyhow::Result<()> {
    let clean = is_clean(&File::open(disk).with_context(|| format!("open {}", disk.display()))?)?;
    fs::create_dir_all(MOUNT).context("make the mount point")?;
    let mounted = Command::new("/bin/busybox")
        .args(["mount", "-t", "ext4"])
        .arg(disk)
        .arg(MOUNT)
        .status()
        .context("mount")?;
    ensure!(mounted.success(), "mount {} failed", disk.display());
    let folder = Path::new(MOUNT);
    println!("LAB {}", line(folder, clean));
    write_state(folder, "running")?;
    let beat: u64 = read_word(folder, "beat").parse().unwrap_or(0);
    // Bound to a thread that waits for it, so that its end is seen on the console.
    let mut agent = Command::new("/bin/qemu-ga")
        .args([
            "-m",
            "isa-serial",
            "-p",
            "/dev/ttyS1",
            "-t",
            "/run",
            "-F/bin/agent-hook",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the guest agent")?;
    println!("LAB agent started");
    thread::spawn(move || {
        let ended = agent.wait();
        println!("LAB agent ended {ended:?}");
    });
    thread::spawn(move || {
        for number in beat + 1.. {
            // A full or broken disk shows in the next check; a frozen one makes this wait.
            fs::write(folder.join("beat"), number.to_string()).ok();
            thread::sleep(BEAT_EVERY);
        }
    });
    Ok(())
}

fn line(folder: &Path, clean: bool) -> String {
    let state = read_word(folder, "state").replace(' ', "-");
    format!(
        "app clean={} state={} beat={}",
        if clean { "yes" } else { "no" },
        if state.is_empty() { "none" } else { &state },
        read_word(folder, "beat"),
    )
}

fn read_word(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn write_state(folder: &Path, state: &str) -> anyhow::Result<()> {
    let path = folder.join("state");
    fs::write(&path, format!("{state}\n")).context("write the application's state")?;
    File::open(&path)
        .and_then(|file| file.sync_all())
        .context("flush the application's state")
}

/// Whether the file system's journal is empty.
fn is_clean(disk: &File) -> anyhow::Result<bool> {
    let (mut magic, mut features) = ([0; 2], [0; 4]);
    disk.read_exact_at(&mut magic, MAGIC_AT)
        .and_then(|()| disk.read_exact_at(&mut features, INCOMPAT_AT))
        .context("read the superblock")?;
    ensure!(magic == MAGIC, "no ext4 file system");
    Ok(u32::from_le_bytes(features) & NEEDS_RECOVERY == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_says_whether_the_journal_is_empty() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("disk");
        let mut bytes = vec![0; 4096];
        fs::write(&path, &bytes).expect("a temporary folder is writable");
        let open = || File::open(&path).expect("it was just written");
        assert!(is_clean(&open()).is_err(), "no file system");
        bytes[MAGIC_AT as usize..][..2].copy_from_slice(&MAGIC);
        bytes[INCOMPAT_AT as usize] = 0xc2;
        fs::write(&path, &bytes).expect("a temporary folder is writable");
        assert!(is_clean(&open()).expect("a superblock"));
        bytes[INCOMPAT_AT as usize] = 0xc6;
        fs::write(&path, &bytes).expect("a temporary folder is writable");
        assert!(!is_clean(&open()).expect("a superblock"));
    }

    #[test]
    fn the_console_line_has_no_blank_in_a_value() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(
            line(folder.path(), true),
            "app clean=yes state=none beat=",
            "a new file system"
        );
        write_state(folder.path(), "frozen 3").expect("a temporary folder is writable");
        fs::write(folder.path().join("beat"), "17").expect("a temporary folder is writable");
        assert_eq!(
            line(folder.path(), false),
            "app clean=no state=frozen-3 beat=17"
        );
    }
}
