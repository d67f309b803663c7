//! Names of the objects of a replica, relative to it, and nothing else.

use uuid::Uuid;

use crate::manifest::Span;
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
/// In the place of base, when that is elsewhere than the rest: which journal base belongs to.
pub(crate) const BASE_OWNER: &str = ".journal";
/// Where the objects of a replica are, besides those of the disks.
pub(crate) const PREFIXES: [&str; 3] = [JOURNAL, POINTS, PINS];

/// File name of base in a disk's folder.
pub(crate) const BASE_FILE: &str = "base.vhd";

pub(crate) fn base(disk: Uuid) -> String {
    format!("{}/{BASE_FILE}", disk.hyphenated())
}

/// Whether a name is that of a base, or of a part of one (`base.vhd.0of4`).
pub(crate) fn is_base(name: &str) -> bool {
    name.rsplit('/')
        .next()
        .and_then(|file| file.strip_prefix(BASE_FILE))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Sorted by name = sorted by generation and position, which grow together.
pub(crate) fn journal_object(generation: Generation, position: Position) -> String {
    format!("{JOURNAL}{:020}-{:020}.hrl", generation.0, position.0)
}

/// A merged object: as if it were one of its last position, then from where on, and an id that is drawn
/// for each attempt, so that what a cut attempt left is never taken for another's.
pub(crate) fn merged_object(span: &Span) -> String {
    format!(
        "{JOURNAL}{:020}-{:020}-{:020}-{}.hrl",
        span.generation.0,
        span.last.0,
        span.first.0,
        span.id.simple()
    )
}

/// What the name of a journal object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectName {
    /// One cycle.
    Cycle(Generation, Position),
    /// Several.
    Merged(Span),
}

impl ObjectName {
    /// Parses a name behind [`JOURNAL`].
    pub(crate) fn parse(name: &str) -> Option<ObjectName> {
        let mut parts = name.strip_suffix(".hrl")?.split('-');
        let generation = Generation(number(parts.next()?)?);
        let last = Position(number(parts.next()?)?);
        let named = match (parts.next(), parts.next()) {
            (None, None) => ObjectName::Cycle(generation, last),
            (Some(first), Some(id)) => ObjectName::Merged(Span {
                first: Position(number(first)?),
                last,
                generation,
                id: Uuid::try_parse(id).ok()?,
            }),
            _ => return None,
        };
        parts.next().is_none().then_some(named)
    }

    /// The only, or the last, position.
    pub(crate) fn position(&self) -> Position {
        match self {
            ObjectName::Cycle(_, position) => *position,
            ObjectName::Merged(span) => span.last,
        }
    }
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
