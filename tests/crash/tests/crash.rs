//! Every component keeps its promise when the power goes off, and the enumeration does try a lot.

use crash_tests::tally::Tally;
use crash_tests::{compaction, hash_map, hrl, image, journal, store};

fn holds(tally: &Tally, cuts: u64) {
    assert!(tally.violations.is_empty(), "{:#?}", tally.violations);
    assert!(tally.cuts >= cuts, "only {} cuts", tally.cuts);
    assert!(tally.states > tally.cuts, "only {} states", tally.states);
}

#[test]
fn a_replica_log_is_closed_and_whole_or_refused() {
    holds(&hrl::enumerate(1), 150);
}

#[test]
fn a_journal_object_is_whole_or_refused() {
    holds(&journal::enumerate(1), 10);
}

#[test]
fn block_hashes_never_call_a_changed_block_known() {
    holds(&hash_map::enumerate(1), 50);
}

#[test]
fn images_keep_what_was_flushed() {
    holds(&image::enumerate(1), 60);
}

#[test]
fn merging_the_journal_changes_no_point_and_is_ended_by_the_next_engine() {
    holds(&compaction::enumerate(1), 60);
    holds(&compaction::enumerate(2), 60);
}

#[test]
fn a_replica_loses_no_acknowledged_point() {
    holds(&store::enumerate(1), 150);
}
