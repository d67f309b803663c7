//! Finds the guest's disks by their place, never by their letter.
//!
//! Disks are probed in parallel, so `sda` and `sdb` may swap between two boots of one VM; the SCSI
//! address (which IDE disks have too) does not. Disk 0 is the OS disk, disk 1 the data disk, disk 2
//! the application's, which a guest without an agent does not have.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where the two rings are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks {
    /// The stamp partition: the last one of the OS disk.
    pub os_stamps: PathBuf,
    /// The whole data disk.
    pub data: PathBuf,
    /// The third disk, with the application's file system, if there is one.
    pub app: Option<PathBuf>,
}

/// Looks once. An error says what isn't there (yet).
pub fn find(sys: &Path, dev: &Path) -> anyhow::Result<Disks> {
    let disks = by_place(sys)?;
    let [os, data, rest @ ..] = &disks[..] else {
        bail!("{} of 2 disks found", disks.len());
    };
    Ok(Disks {
        os_stamps: dev.join(last_partition(sys, os)?),
        data: dev.join(data),
        app: rest.first().map(|app| dev.join(app)),
    })
}

fn by_place(sys: &Path) -> anyhow::Result<Vec<String>> {
    let folder = sys.join("class/scsi_device");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        let entry = entry?;
        let Some(place) = place(&entry.file_name().to_string_lossy()) else {
            continue;
        };
        // A CD-ROM drive is a SCSI device too; only `sd` disks count.
        let Ok(mut blocks) = fs::read_dir(entry.path().join("device/block")) else {
            continue;
        };
        if let Some(Ok(block)) = blocks.next() {
            let name = block.file_name().to_string_lossy().into_owned();
            if name.starts_with("sd") {
                found.push((place, name));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// `H:C:T:L` as numbers, so that 10 comes after 9.
fn place(name: &str) -> Option<Vec<u64>> {
    let place: Vec<u64> = name
        .split(':')
        .map(|n| n.parse().ok())
        .collect::<Option<_>>()?;
    (place.len() == 4).then_some(place)
}

fn last_partition(sys: &Path, disk: &str) -> anyhow::Result<String> {
    let folder = sys.join("block").join(disk);
    let mut last = None;
    for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        let entry = entry?;
        if let Ok(start) = fs::read_to_string(entry.path().join("start")) {
            let start: u64 = start.trim().parse().context("start of a partition")?;
            last = last.max(Some((
                start,
                entry.file_name().to_string_lossy().into_owned(),
            )));
        }
    }
    last.map(|(_, name)| name)
        .with_context(|| format!("no partition on the OS disk {disk}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(sys: &Path, place: &str, block: &str, partitions: &[(&str, u64)]) {
        let path = sys
            .join("class/scsi_device")
            .join(place)
            .join("device/block")
            .join(block);
        fs::create_dir_all(path).expect("a temporary folder is writable");
        let folder = sys.join("block").join(block);
        fs::create_dir_all(folder.join("queue")).expect("a temporary folder is writable");
        for (name, start) in partitions {
            fs::create_dir(folder.join(name)).expect("a temporary folder is writable");
            fs::write(folder.join(name).join("start"), format!("{start}\n"))
                .expect("a temporary folder is writable");
        }
    }

    #[test]
    fn disks_are_found_by_place_and_stamps_in_the_last_partition() {
        let sys = tempfile::tempdir().expect("a temporary folder");
        device(sys.path(), "10:0:0:0", "sda", &[]);
        device(
            sys.path(),
            "9:0:0:0",
            "sdb",
            &[("sdb1", 251_904), ("sdb2", 2048)],
        );
        device(sys.path(), "1:0:0:0", "sr0", &[]);
        let disks = find(sys.path(), Path::new("/dev")).expect("both disks are there");
        assert_eq!(disks.os_stamps, Path::new("/dev/sdb1"));
        assert_eq!(disks.data, Path::new("/dev/sda"));
        assert_eq!(disks.app, None);
        device(sys.path(), "10:0:0:1", "sdc", &[]);
        let disks = find(sys.path(), Path::new("/dev")).expect("all disks are there");
        assert_eq!(disks.app.as_deref(), Some(Path::new("/dev/sdc")));
    }

    #[test]
    fn a_missing_disk_or_partition_is_said() {
        let sys = tempfile::tempdir().expect("a temporary folder");
        device(sys.path(), "0:0:0:0", "sda", &[]);
        let one = find(sys.path(), Path::new("/dev")).expect_err("one disk only");
        assert_eq!(one.to_string(), "1 of 2 disks found");
        device(sys.path(), "0:0:1:0", "sdb", &[]);
        let none = find(sys.path(), Path::new("/dev")).expect_err("no partition");
        assert_eq!(none.to_string(), "no partition on the OS disk sda");
    }
}
