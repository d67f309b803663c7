//! The program inside the lab guests.
fn main() {}
