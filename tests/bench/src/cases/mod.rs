//! The comparisons, by name.

mod convert;
mod delta;
mod failback;
mod guest_impact;
mod heal;
mod initial_azurite;
mod initial_folder;
mod memory;
mod points;
mod provider_start;
mod read;
mod rto;

use anyhow::Result;

use crate::outcome::Outcome;
use crate::setting::Setting;

/// Runs one comparison.
pub type Case = fn(&Setting) -> Result<Outcome>;

/// All of them, in the order of the documentation.
pub const CASES: &[(&str, Case)] = &[
    ("provider-start", provider_start::run),
    ("vhdx-to-vhd", convert::run),
    ("vhdx-read", read::run),
    ("initial-folder", initial_folder::run),
    ("initial-azurite", initial_azurite::run),
    ("delta-amplification", delta::amplification),
    ("delta-scaling", delta::scaling),
    ("heal", heal::run),
    ("points", points::run),
    ("memory", memory::run),
    ("guest-impact", guest_impact::run),
    ("rto", rto::run),
    ("failback", failback::run),
];
