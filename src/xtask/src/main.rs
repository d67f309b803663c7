//! Developer commands: rings, lints, docs, fuzz, bench.

fn main() {}
