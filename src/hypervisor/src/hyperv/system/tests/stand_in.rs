//! virtdisk, with the stand-in of `tests/windows/virtdisk.c`: layouts, lengths, codes and texts, and what is refused.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::windows::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;
use uuid::{Uuid, uuid};

use super::super::super::host::{HostError, OpenDisk as _, SHARING_VIOLATION};
use super::super::super::reader;
use super::super::virtdisk::{Disk, enable_tracking};
use crate::{Changes, Extent, ExtentSet};

/// Each byte another one: an order of bytes that is wrong shows.
const ID: Uuid = uuid!("00112233-4455-6677-8899-aabbccddeeff");
const SINCE: &str = "rctX:5bfde23b:ce75:4303:b54f:6c18394f105c:00000001";
/// `ERROR_ACCESS_DENIED`
const DENIED: u32 = 5;
const MIB: u64 = 1 << 20;

/// A file of a disk, and what the stand-in shall say of it.
struct Made {
    _folder: TempDir,
    path: PathBuf,
}

impl Made {
    fn new(name: &str, facts: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(name);
        File::create(&path).unwrap();
        let made = Self {
            _folder: folder,
            path,
        };
        made.says(facts);
        made
    }

    /// A VHDX of 5 TiB with tracking.
    fn vhdx(facts: &str) -> Self {
        let usual = "kind=vhdx\nsize=5497558138880\nsector=4096\ntracking=1\n";
        Self::new(
            "disk.vhdx",
            &format!("{usual}id={ID}\nsince={SINCE}\n{facts}"),
        )
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(end);
        name.into()
    }

    /// From now on.
    fn says(&self, facts: &str) {
        fs::write(self.beside(".stand-in"), facts).unwrap();
    }

    /// The calls until now, those that begin with `of`.
    fn calls(&self, of: &str) -> Vec<String> {
        let all = fs::read_to_string(self.beside(".calls")).unwrap();
        let calls = all.lines().filter(|call| call.starts_with(of));
        calls.map(str::to_owned).collect()
    }

    fn open(&self) -> Disk {
        Disk::open(&self.path).unwrap()
    }

    fn changes(&self) -> Result<Changes, HostError> {
        let disk = self.open();
        reader::changes(&disk, &disk.facts().unwrap(), SINCE)
    }
}

/// The value of `name=` in a call.
fn value<'a>(call: &'a str, name: &str) -> &'a str {
    let (_, rest) = call.split_once(&format!("{name}=")).unwrap();
    rest.split(' ').next().unwrap()
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn a_file_is_opened_for_reading_under_a_name_in_any_script_and_shared_with_nobody() {
    let made = Made::new("Größe 漢字 𝄞.vhdx", "kind=vhdx\n");
    let both = (made.open(), made.open());
    let calls = made.calls("open");
    assert_eq!(calls.len(), 2, "{calls:?}");
    let own: Vec<&str> = calls.iter().map(|call| value(call, "own")).collect();
    assert_ne!(own[0], own[1]);
    for (call, own) in calls.iter().zip(own) {
        let expected = format!(
            "open device=0 vendor={} mask=0 flags=0 version=2 info_only=0 read_only=1 own={own} file={} -> 0x0",
            Uuid::nil(),
            made.path.display()
        );
        assert_eq!(*call, expected);
    }
    drop(both);
    // With the handles the disk is free again.
    OpenOptions::new()
        .write(true)
        .share_mode(0)
        .open(&made.path)
        .unwrap();
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn a_file_that_is_not_there_is_told_by_its_name_and_the_systems_code() {
    let made = Made::vhdx("");
    let path = made.path.with_file_name("gone.vhdx");
    let refused = Disk::open(&path).err().unwrap();
    assert_eq!(refused.code, 2);
    assert!(refused.text.contains("gone.vhdx"), "{refused}");
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn facts_of_a_vhdx_are_its_own_however_long_its_newest_rct_id() {
    for recent in [String::new(), SINCE.to_owned(), "r".repeat(1500)] {
        let made = Made::vhdx(&format!("newer=1\nrecent={recent}\n"));
        let facts = made.open().facts().unwrap();
        assert_eq!(facts.id, ID);
        assert_eq!(facts.size_bytes, 5 << 40);
        assert_eq!(facts.physical_sector, 4096);
        assert!(facts.tracking);
        let calls = made.calls("get");
        assert!(
            calls.iter().all(|call| call.ends_with("-> 0x0")),
            "{calls:?}"
        );
        let asked: Vec<&str> = calls.iter().map(|call| value(call, "version")).collect();
        assert_eq!(asked, ["14", "1", "10", "15"]);
    }
    let made = Made::vhdx("tracking=0\nsector=512\n");
    let facts = made.open().facts().unwrap();
    assert!(!facts.tracking);
    assert_eq!(facts.physical_sector, 512);
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn a_vhd_is_known_by_its_footers_id_and_never_tracked() {
    let said = format!("kind=vhd\nid={ID}\nsize=1073741824\nsector=512\ntracking=1\n");
    let made = Made::new("old.vhd", &said);
    let facts = made.open().facts().unwrap();
    assert_eq!((facts.id, facts.tracking), (ID, false));
    assert_eq!((facts.size_bytes, facts.physical_sector), (1 << 30, 512));
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn changes_are_whole_over_as_many_answers_as_it_takes() {
    // More than one answer has room for; some lie over the end of what one is about; the last one ends the disk.
    let mut said = String::new();
    let mut expected = Vec::new();
    let mut change = |offset: u64, length: u64| {
        writeln!(said, "change={offset},{length}").unwrap();
        expected.push(Extent { offset, length });
    };
    for at in 0..900 {
        change(at * MIB, 64 << 10);
    }
    change(1200 * MIB, 128 << 10);
    change((5 << 40) - (64 << 10), 64 << 10);
    let size = 5_u64 << 40;
    let paged = Made::vhdx(&format!("page={}\n{said}", 100 * MIB + 4096));
    let disk = paged.open();
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < 2000 * MIB {
        let (ranges, processed) = disk.changes(SINCE, offset, size - offset).unwrap();
        assert_eq!(processed, 100 * MIB + 4096);
        found.extend(ranges);
        offset += processed;
    }
    assert!(found.len() > 901, "some are in two parts");
    assert_eq!(ExtentSet::from_unsorted(found).into_vec(), expected[..901]);
    let made = Made::vhdx(&said);
    let Changes::Since(all) = made.changes().unwrap() else {
        panic!("the changes are known");
    };
    assert_eq!(all, expected);
    let calls = made.calls("changes");
    for call in &calls {
        assert_eq!(value(call, "since"), SINCE);
        assert_eq!(value(call, "room"), "256");
        let [offset, length] =
            ["offset", "length"].map(|name| value(call, name).parse::<u64>().unwrap());
        assert_eq!(offset + length, size, "{call}");
    }
    // 902 ranges in answers of at most 256.
    let offsets: Vec<&str> = calls.iter().map(|call| value(call, "offset")).collect();
    let expected = [0, 256 * MIB, 512 * MIB, 768 * MIB].map(|at| at.to_string());
    assert_eq!(offsets, expected);
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn what_rct_says_it_can_not_tell_leads_to_a_comparison_and_nothing_else_does() {
    for lost in ["since=rctX:another", "tracking=0", "missing=1"] {
        let made = Made::vhdx(&format!("change=0,65536\n{lost}\n"));
        assert_eq!(made.changes().unwrap(), Changes::Unknown, "{lost}");
    }
    // ERROR_FILE_SYSTEM_LIMITATION, ERROR_UNSUPPORTED_COMPRESSION, ERROR_FILE_ENCRYPTED
    for code in [665, 618, 6002] {
        let made = Made::vhdx(&format!("changes_error={code}\n"));
        let refused = made.changes().unwrap_err();
        assert_eq!(refused.code, code);
        assert!(refused.text.contains(SINCE), "{refused}");
    }
}

/// Pattern of the block of 4 KiB at an offset.
fn pattern(offset: u64) -> Vec<u8> {
    offset.to_le_bytes().repeat(512)
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn many_read_at_once_on_one_handle_at_places_beyond_four_gib() {
    let size = (6 << 30) + 4096;
    let made = Made::vhdx(&format!("size={size}\n"));
    let places: Vec<u64> = (0..24)
        .map(|at| at * (256 << 20) + 4096 * at)
        .chain([size - 4096])
        .collect();
    let mut file = OpenOptions::new().write(true).open(&made.path).unwrap();
    for &place in &places {
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(&pattern(place)).unwrap();
    }
    drop(file);
    let disk = made.open();
    disk.attach().unwrap();
    disk.attach().unwrap();
    // Read-only, no local host, nothing that outlives the handle; and only once.
    assert_eq!(made.calls("attach"), ["attach flags=9 provider=0 -> 0x0"]);
    std::thread::scope(|scope| {
        for first in 0..6 {
            let (disk, places) = (&disk, &places);
            scope.spawn(move || {
                for at in 0..places.len() {
                    let place = places[(at + first * 4) % places.len()];
                    let mut buffer = vec![0; 4096];
                    disk.read(place, &mut buffer).unwrap();
                    assert!(buffer == pattern(place), "at {place}");
                }
            });
        }
    });
    let mut buffer = vec![0; 8192];
    let over = disk.read(size - 4096, &mut buffer).unwrap_err();
    assert!(over.text.contains("only 4096 bytes came"), "{over}");
    let behind = disk.read(size, &mut buffer).unwrap_err();
    // ERROR_HANDLE_EOF, as an HRESULT.
    assert_eq!(behind.code, 0x8007_0026, "{behind}");
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn a_disk_that_a_vm_writes_is_looked_at_and_neither_attached_nor_read() {
    let made = Made::vhdx("");
    let writer = OpenOptions::new()
        .read(true)
        .write(true)
        .share_mode(0)
        .open(&made.path)
        .unwrap();
    let disk = made.open();
    assert_eq!(disk.facts().unwrap().id, ID);
    let opened: Vec<(String, bool)> = made
        .calls("open")
        .iter()
        .map(|call| {
            (
                value(call, "info_only").to_owned(),
                call.ends_with("-> 0x20"),
            )
        })
        .collect();
    assert_eq!(opened, [("0".to_owned(), true), ("1".to_owned(), false)]);
    assert_eq!(disk.attach().unwrap_err().code, DENIED);
    assert!(disk.read(0, &mut [0; 4096]).is_err());
    drop(writer);
    // What did not work is tried again.
    assert_eq!(disk.attach().unwrap_err().code, DENIED);
    assert_eq!(made.calls("attach").len(), 2);
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn an_attach_that_is_refused_gives_the_systems_code() {
    let made = Made::vhdx("attach_error=1314\n");
    let refused = made.open().attach().unwrap_err();
    assert_eq!(refused.code, 1314, "{refused}");
}

#[test]
#[ignore = "make windows runs it, with the stand-in for virtdisk.dll"]
fn tracking_is_turned_on_for_a_disk_that_nobody_uses_and_for_no_other() {
    let made = Made::vhdx("tracking=0\n");
    let user = made.open();
    let refused = enable_tracking(&made.path).unwrap_err();
    assert_eq!(refused.code, SHARING_VIOLATION, "{refused}");
    assert!(!user.facts().unwrap().tracking);
    drop(user);
    enable_tracking(&made.path).unwrap();
    assert_eq!(made.calls("set"), ["set version=6 enabled=1 -> 0x0"]);
    assert_eq!(value(made.calls("open").last().unwrap(), "read_only"), "0");
    assert!(made.open().facts().unwrap().tracking);

    let vhd = Made::new("old.vhd", "kind=vhd\nsize=1048576\nsector=512\n");
    let refused = enable_tracking(&vhd.path).unwrap_err();
    // ERROR_NOT_SUPPORTED
    assert_eq!(refused.code, 50, "{refused}");
}
