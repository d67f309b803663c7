//! The replication engine: tracks, ships, applies, recovers.

fn main() {}
