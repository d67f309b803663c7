//! Where real files stray from the specifications, and what is done about it.
#![doc = include_str!("deviations.md")]
