//! Stamping and checking on files in place of disks.

use tempfile::TempDir;

use super::*;

const GUEST: GuestId = GuestId([3; 16]);
const STAMPS_AT: u64 = 8 * MIB;

struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, mib) in [("data", 34), ("os", 12)] {
            let file =
                File::create(folder.path().join(name)).expect("a temporary folder is writable");
            file.set_len(mib * MIB).expect("a sparse file");
        }
        Self { folder }
    }

    fn places(&self) -> (Place, Place) {
        (
            Place::data(&self.folder.path().join("data"), true).expect("the data disk opens"),
            Place::os(&self.folder.path().join("os"), STAMPS_AT, true).expect("the OS disk opens"),
        )
    }

    fn check(&self) -> anyhow::Result<Checked> {
        let (data, os) = self.places();
        check(GUEST, &data, &os)
    }

    fn stamper(&self) -> Stamper {
        let (data, os) = self.places();
        let checked = check(GUEST, &data, &os).expect("the disks are consistent");
        Stamper::resume(data, os, GUEST, "MARKER", &checked)
    }

    fn overwrite(&self, disk: &str, at: u64, bytes: &[u8]) {
        OpenOptions::new()
            .write(true)
            .open(self.folder.path().join(disk))
            .and_then(|file| file.write_all_at(bytes, at))
            .expect("the disk is writable");
    }
}

fn state(checked: &Checked) -> &State {
    match &checked.verdict {
        Verdict::Consistent(state) => state,
        Verdict::Empty => panic!("the disks are not empty"),
    }
}

#[test]
fn stamps_are_found_and_continued_after_a_restart() {
    let lab = Lab::new();
    assert_eq!(
        lab.check().expect("empty disks are consistent").verdict,
        Verdict::Empty
    );
    let mut stamper = lab.stamper();
    for _ in 0..3 {
        stamper.epoch().expect("the disks take it");
    }
    let checked = lab.check().expect("consistent");
    assert_eq!(state(&checked).last_sequence, 48);
    assert_eq!(
        (state(&checked).data_epoch, state(&checked).os_epoch),
        (3, 3)
    );
    let stamped = lab.stamper().epoch().expect("the disks take it");
    assert_eq!(
        stamped,
        Stamped {
            sequence: 64,
            epoch: 4
        }
    );
}

#[test]
fn an_epoch_cut_short_is_written_again_and_the_next_check_passes() {
    let lab = Lab::new();
    let mut stamper = lab.stamper();
    stamper.epoch().expect("the disks take it");
    // The second record of epoch 2 reached the disk, the first did not.
    stamper
        .data
        .write(&stamper.record(&DATA_RING, 18))
        .expect("the disk takes it");
    let checked = lab.check().expect("a cut within an epoch is consistent");
    assert_eq!(state(&checked).last_sequence, 16);
    assert_eq!(
        (state(&checked).data_epoch, state(&checked).os_epoch),
        (2, 1)
    );
    assert_eq!(lab.stamper().epoch().expect("the disks take it").epoch, 2);
    assert_eq!(state(&lab.check().expect("consistent")).last_sequence, 32);
}

#[test]
fn a_changed_byte_in_a_flushed_record_fails() {
    let lab = Lab::new();
    let mut stamper = lab.stamper();
    stamper.epoch().expect("the disks take it");
    lab.overwrite(
        "data",
        DATA_RING_AT + DATA_RING.slot(5) * RECORD_BYTES as u64 + 3000,
        &[0xff, 0, 0xff],
    );
    let error = lab.check().err().expect("record 5 is torn");
    assert!(
        error
            .to_string()
            .contains("record 5 of epoch 1 on the data disk is torn"),
        "{error}"
    );
}

#[test]
fn the_filling_is_part_of_the_check() {
    let lab = Lab::new();
    let mut stamper = lab.stamper();
    assert_eq!(
        stamper.fill(99).expect("the disk takes it"),
        2,
        "as much as there is room for"
    );
    stamper.epoch().expect("the disks take it");
    assert_eq!(lab.check().expect("consistent").fill_mib, 2);
    lab.overwrite("data", FILL_AT + MIB, &[0; 4096]);
    let error = lab.check().err().expect("a block of the filling is gone");
    assert_eq!(
        error.to_string(),
        "block 256 of the filling on the data disk is not as written"
    );
}

#[test]
fn a_disk_too_small_for_its_ring_is_an_error() {
    let lab = Lab::new();
    File::create(lab.folder.path().join("data"))
        .and_then(|file| file.set_len(4 * MIB))
        .expect("a sparse file");
    assert!(lab.check().is_err());
}
