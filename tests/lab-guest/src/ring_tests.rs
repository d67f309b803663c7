//! The rule on rings in memory: what a cut at any instant leaves passes, anything else fails.

use proptest::prelude::*;

use super::*;
use crate::record::Record;

const GUEST: GuestId = GuestId([7; 16]);

/// Both rings as the stamper would leave them, driven write by write.
struct Disks {
    data: Vec<SlotState>,
    os: Vec<SlotState>,
}

fn record(ring: &Ring, sequence: u64) -> Record {
    Record {
        target: ring.target,
        fill_mib: 0,
        slot: ring.slot(sequence),
        sequence,
        epoch: ring.epoch(sequence),
        unix_ms: 1000 + sequence,
        guest: GUEST,
        marker: String::new(),
    }
}

fn put(ring: &Ring, slots: &mut [SlotState], sequence: u64) {
    slots[ring.slot(sequence) as usize] = SlotState::Intact(record(ring, sequence));
}

impl Disks {
    fn empty() -> Self {
        Self {
            data: vec![SlotState::Empty; DATA_RING.slots as usize],
            os: vec![SlotState::Empty; OS_RING.slots as usize],
        }
    }

    /// All epochs up to `epochs` complete.
    fn complete(epochs: u64) -> Self {
        let mut disks = Self::empty();
        for sequence in 1..DATA_RING.first_sequence(epochs + 1) {
            put(&DATA_RING, &mut disks.data, sequence);
        }
        for epoch in 1..=epochs {
            put(&OS_RING, &mut disks.os, epoch);
        }
        disks
    }

    fn check(&self) -> Result<Verdict, Broken> {
        check(GUEST, &self.data, &self.os)
    }
}

fn state(verdict: Result<Verdict, Broken>) -> State {
    match verdict.expect("the disks are consistent") {
        Verdict::Consistent(state) => state,
        Verdict::Empty => panic!("the disks are not empty"),
    }
}

#[test]
fn every_slot_of_a_ring_is_used_once_per_round() {
    for ring in [DATA_RING, OS_RING] {
        let mut slots: Vec<u64> = (1..=ring.slots).map(|s| ring.slot(s)).collect();
        slots.sort_unstable();
        assert!(slots.iter().copied().eq(0..ring.slots));
    }
}

#[test]
fn disks_never_written_are_empty() {
    assert_eq!(Disks::empty().check(), Ok(Verdict::Empty));
}

#[test]
fn swapped_disks_fail() {
    let disks = Disks::complete(5);
    let mut swapped = Disks::empty();
    swapped.os[..].clone_from_slice(&disks.data[..OS_RING.slots as usize]);
    swapped.data[..disks.os.len()].clone_from_slice(&disks.os);
    assert!(matches!(swapped.check(), Err(Broken::Record { .. })));
}

#[test]
fn the_disks_of_another_guest_fail() {
    let disks = Disks::complete(5);
    let error = check(GuestId([8; 16]), &disks.data, &disks.os).expect_err("another guest's");
    assert!(error.to_string().contains("another guest"), "{error}");
}

#[test]
fn an_old_os_disk_beside_a_new_data_disk_fails() {
    let old = Disks::complete(100);
    let new = Disks::complete(102);
    assert_eq!(
        check(GUEST, &new.data, &old.os),
        Err(Broken::Apart {
            data_epoch: 102,
            os_epoch: 100
        })
    );
    assert_eq!(
        check(GUEST, &old.data, &new.os),
        Err(Broken::Apart {
            data_epoch: 100,
            os_epoch: 102
        })
    );
}

#[test]
fn a_data_disk_without_its_os_stamps_fails() {
    let disks = Disks::complete(50);
    let empty = Disks::empty();
    assert!(check(GUEST, &disks.data, &empty.os).is_err());
    assert!(check(GUEST, &empty.data, &disks.os).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// A cut in the flush epoch after `epochs` complete ones: any subset of its records may have
    /// reached the disk, one may be torn; the epoch is named on the OS disk only after all are there.
    #[test]
    fn any_cut_of_the_writes_passes(
        epochs in 0_u64..700,
        reached in proptest::collection::vec(0_u8..3, DATA_RECORDS_PER_EPOCH as usize),
        named in any::<bool>(),
    ) {
        let mut disks = Disks::complete(epochs);
        let first = DATA_RING.first_sequence(epochs + 1);
        for (sequence, how) in (first..).zip(&reached) {
            match if named { 2 } else { *how } {
                0 => {}
                1 => disks.data[DATA_RING.slot(sequence) as usize] = SlotState::Torn,
                _ => put(&DATA_RING, &mut disks.data, sequence),
            }
        }
        if named {
            put(&OS_RING, &mut disks.os, epochs + 1);
        }
        let run = if named { DATA_RECORDS_PER_EPOCH } else { reached.iter().take_while(|h| **h == 2).count() as u64 };
        if epochs == 0 && !named && reached.iter().all(|h| *h == 0) {
            prop_assert_eq!(disks.check(), Ok(Verdict::Empty));
            return Ok(());
        }
        let state = state(disks.check());
        prop_assert_eq!(state.last_sequence, first - 1 + run);
        prop_assert_eq!(state.os_epoch, epochs + u64::from(named));
    }

    #[test]
    fn an_earlier_record_lost_while_a_later_epoch_exists_fails(
        epochs in 2_u64..700,
        back in 0_u64..4000,
        torn in any::<bool>(),
    ) {
        let mut disks = Disks::complete(epochs);
        let newest = epochs * DATA_RECORDS_PER_EPOCH;
        // Within the window, which the next epoch in flight makes smaller by its own size.
        let lost = newest - back.min(newest - 1).min(DATA_RING.slots - DATA_RECORDS_PER_EPOCH - 1);
        let slot = DATA_RING.slot(lost) as usize;
        disks.data[slot] = if torn {
            SlotState::Torn
        } else if lost > DATA_RING.slots {
            SlotState::Intact(record(&DATA_RING, lost - DATA_RING.slots))
        } else {
            SlotState::Empty
        };
        let error = disks.check().expect_err("a record was lost");
        prop_assert!(
            matches!(error, Broken::Record { target: Target::Data, sequence, .. } if sequence == lost),
            "{error}"
        );
    }

    #[test]
    fn a_lost_os_stamp_while_a_later_one_exists_fails(epochs in 2_u64..1500, back in 1_u64..1000) {
        let mut disks = Disks::complete(epochs);
        let lost = epochs - back.min(epochs - 1);
        disks.os[OS_RING.slot(lost) as usize] = SlotState::Torn;
        prop_assert!(disks.check().is_err());
    }

    #[test]
    fn a_record_from_beyond_the_epoch_in_flight_fails(epochs in 0_u64..700, ahead in 0_u64..4000) {
        let mut disks = Disks::complete(epochs);
        let early = DATA_RING.first_sequence(epochs + 2) + ahead;
        put(&DATA_RING, &mut disks.data, early);
        prop_assert!(disks.check().is_err());
    }

    /// Blocks of an older instant of the same disk mixed in, as a lost changed range would leave them.
    #[test]
    fn a_stale_64_kib_range_fails(epochs in 300_u64..600, behind in 16_u64..250, range in 0_usize..256) {
        let old = Disks::complete(epochs - behind);
        let mut disks = Disks::complete(epochs);
        let range = range * 16..(range + 1) * 16;
        let same = old.data[range.clone()] == disks.data[range.clone()];
        disks.data[range.clone()].clone_from_slice(&old.data[range]);
        prop_assert_eq!(disks.check().is_ok(), same);
    }
}
