//! Names of the objects of a replica, relative to it, and nothing else.

use uuid::Uuid;

use crate::model::{Generation, Position};

/// Fencing generation, or the tombstone of a removed replica.
pub(crate) const GENERATION: &str = "generation";
/// Disks and how far base is.
pub(crate) const MANIFEST: &str = "manifest";
/// Result of the background verification.
pub(crate) const VERIFIED: &str = "verified";
/// Journal objects.
pub(crate) const JOURNAL: &str = "journal/";
/// Recovery points.
pub(crate) const POINTS: &str = "points/";
/// Pins.
pub(crate) const PINS: &str = "pins/";
/// Where the objects of a replica are, besides those of the disks.
/// In the place of base, when that is elsewhere than the rest: which journal base belongs to.
pub(crate) const BASE_OWNER: &str = ".journal";
pub(crate) const PREFIXES: [&str; 3] = [JOURNAL, POINTS, PINS];

/// File name of base in a disk's folder.
pub(crate) const BASE_FILE: &str = "base.vhd";

pub(crate) fn base(disk: Uuid) -> String {
    format!("{}/{BASE_FILE}", disk.hyphenated())
}

/// Sorted by name = sorted by generation and position, which grow together.
/// Whether a name is that of a base, or of a part of one (`base.vhd.0of4`).
pub(crate) fn is_base(name: &str) -> bool {
    name.rsplit('/')
        .next()
        .and_then(|file| file.strip_prefix(BASE_FILE))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

pub(crate) fn journal_object(generation: Generation, position: Position) -> String {
    format!("{JOURNAL}{:020}-{:020}.hrl", generation.0, position.0)
}

/// Generation and position of a journal object, from its name behind [`JOURNAL`].
pub(crate) fn parse_journal_name(name: &str) -> Option<(Generation, Position)> {
    let (generation, position) = name.strip_suffix(".hrl")?.split_once('-')?;
    Some((Generation(number(generation)?), Position(number(position)?)))
}

pub(crate) fn point(time_unix_ms: i64, position: Position, id: Uuid) -> String {
    format!(
        "{POINTS}{:020}-{:020}-{}",
        time_unix_ms.max(0),
        position.0,
        id.simple()
    )
}

/// Owners are free text, so their pins are named by hash.
pub(crate) fn pin(owner: &str) -> String {
    let hash = blake3::hash(owner.as_bytes()).to_hex();
    format!("{PINS}{}", &hash.as_str()[..32])
}

fn number(text: &str) -> Option<u64> {
    let digits = text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
