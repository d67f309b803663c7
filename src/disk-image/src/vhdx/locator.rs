//! The parent locator: which state of which image a differencing disk stands on, and where it lay.
//!
//! ```text
//!   type 16 │ reserved 2 │ count 2 │ entries 12 each: key offset, value offset, key length, value length │ UTF-16 texts
//! ```
//!
//! Offsets count from the start of the item, lengths are bytes.

use uuid::{Uuid, uuid};

use crate::bytes::{guid, le16, le32, put};
use crate::parents::{LocatorKind, ParentLocator};

/// The one type that MS-VHDX knows: the parent is a VHDX.
const VHDX_PARENT: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");
const HEADER_LENGTH: usize = 20;
const ENTRY_LENGTH: usize = 12;
/// Windows writes five; more would be somebody's attempt to make us work.
const MAX_ENTRIES: usize = 64;

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
/// In the order in which they are tried.
const PLACES: [(&str, LocatorKind); 3] = [
    ("relative_path", LocatorKind::Relative),
    ("volume_path", LocatorKind::Volume),
    ("absolute_win32_path", LocatorKind::Absolute),
];

/// What a parent locator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParentLink {
    /// Data write guid of the parent.
    pub(super) linkage: Uuid,
    /// A second one that is right as well: a merge into the parent leaves it.
    pub(super) linkage2: Option<Uuid>,
    /// All other keys with their values, in the order of the file.
    pub(super) values: Vec<(String, String)>,
}

impl ParentLink {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEADER_LENGTH {
            return Err(format!("{} bytes are too few", bytes.len()));
        }
        let kind = guid(bytes, 0);
        if kind != VHDX_PARENT {
            return Err(format!("locator type {kind} is unknown"));
        }
        let count = usize::from(le16(bytes, 18));
        if count > MAX_ENTRIES {
            return Err(format!("{count} entries are too many"));
        }
        let (mut linkage, mut linkage2) = (None, None);
        let mut values: Vec<(String, String)> = Vec::new();
        for i in 0..count {
            let at = HEADER_LENGTH + i * ENTRY_LENGTH;
            let text = |offset: usize, length: usize| {
                let start = le32(bytes, at + offset) as usize;
                let length = usize::from(le16(bytes, at + length));
                let end = start.checked_add(length)?;
                let units = bytes.get(start..end).filter(|_| length % 2 == 0)?;
                let units: Vec<u16> = units.chunks(2).map(|unit| le16(unit, 0)).collect();
                // Some writers count a closing zero.
                let text = String::from_utf16_lossy(&units);
                Some(text.trim_end_matches('\0').to_owned())
            };
            let (Some(key), Some(value)) = (text(0, 8), text(4, 10)) else {
                return Err(format!("entry {i} lies outside of the item"));
            };
            let known = values.iter().any(|(other, _)| *other == key)
                || (key == LINKAGE && linkage.is_some())
                || (key == LINKAGE2 && linkage2.is_some());
            if known {
                return Err(format!("key {key:?} is there twice"));
            }
            match key.as_str() {
                LINKAGE | LINKAGE2 => {
                    let id = Uuid::try_parse(value.trim())
                        .map_err(|_| format!("{key} {value:?} is no guid"))?;
                    *(if key == LINKAGE {
                        &mut linkage
                    } else {
                        &mut linkage2
                    }) = Some(id);
                }
                _ => values.push((key, value)),
            }
        }
        Ok(Self {
            linkage: linkage.ok_or("parent_linkage is missing")?,
            linkage2: linkage2.filter(|id| !id.is_nil()),
            values,
        })
    }

    /// A link to the parent state `linkage` at these places.
    pub(super) fn new(linkage: Uuid, locators: &[ParentLocator]) -> Self {
        let value = |(key, kind): &(&str, LocatorKind)| {
            let found = locators.iter().find(|locator| locator.kind == *kind)?;
            Some(((*key).to_owned(), found.path.clone()))
        };
        Self {
            linkage,
            linkage2: None,
            values: PLACES.iter().filter_map(value).collect(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let braced = |id: &Uuid| format!("{{{}}}", id.hyphenated());
        let mut entries = vec![(LINKAGE.to_owned(), braced(&self.linkage))];
        entries.extend(
            self.linkage2
                .iter()
                .map(|id| (LINKAGE2.to_owned(), braced(id))),
        );
        entries.extend(self.values.iter().cloned());
        let mut bytes = vec![0; HEADER_LENGTH + entries.len() * ENTRY_LENGTH];
        put(&mut bytes, 0, &VHDX_PARENT.to_bytes_le());
        put(&mut bytes, 18, &(entries.len() as u16).to_le_bytes());
        for (i, (key, value)) in entries.iter().enumerate() {
            let at = HEADER_LENGTH + i * ENTRY_LENGTH;
            for (text, offset_at, length_at) in [(key, at, at + 8), (value, at + 4, at + 10)] {
                let start = bytes.len();
                bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                let length = bytes.len() - start;
                put(&mut bytes, offset_at, &(start as u32).to_le_bytes());
                put(&mut bytes, length_at, &(length as u16).to_le_bytes());
            }
        }
        bytes
    }

    /// The places in the order in which MS-VHDX wants them tried.
    pub(super) fn locators(&self) -> Vec<ParentLocator> {
        PLACES
            .iter()
            .filter_map(|(key, kind)| {
                let (_, path) = self.values.iter().find(|(other, _)| other == key)?;
                Some(ParentLocator {
                    kind: *kind,
                    path: path.clone(),
                })
            })
            .collect()
    }

    /// Whether an image with this data write guid is the parent.
    pub(super) fn accepts(&self, data_write_guid: Uuid) -> bool {
        data_write_guid == self.linkage || Some(data_write_guid) == self.linkage2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> ParentLink {
        let locator = |kind, path: &str| ParentLocator {
            kind,
            path: path.to_owned(),
        };
        let mut link = ParentLink::new(
            Uuid::from_u128(7),
            &[
                locator(LocatorKind::Absolute, "C:\\vm\\bäse.vhdx"),
                locator(LocatorKind::Relative, ".\\bäse.vhdx"),
            ],
        );
        link.linkage2 = Some(Uuid::from_u128(8));
        link.values
            .push(("of_tomorrow".to_owned(), "kept".to_owned()));
        link
    }

    #[test]
    fn a_link_reads_back_as_it_was_written_with_unknown_keys() {
        let link = link();
        assert_eq!(ParentLink::parse(&link.encode()).unwrap(), link);
        let kinds: Vec<LocatorKind> = link.locators().iter().map(|l| l.kind).collect();
        assert_eq!(kinds, [LocatorKind::Relative, LocatorKind::Absolute]);
        assert!(link.accepts(Uuid::from_u128(7)) && link.accepts(Uuid::from_u128(8)));
        assert!(!link.accepts(Uuid::from_u128(9)));
    }

    #[test]
    fn every_cut_and_every_wrong_offset_is_an_error_or_a_link() {
        let good = link().encode();
        for length in 0..good.len() {
            assert!(ParentLink::parse(&good[..length]).is_err(), "{length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = ParentLink::parse(&bad);
        }
    }
}
