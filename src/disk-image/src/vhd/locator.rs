//! Parent locators of a differencing VHD: eight places in the dynamic header that name the parent,
//! each with a code for the kind of path.
//!
//! ```text
//!   code 4 │ data space 4 │ data length 4 │ reserved 4 │ data offset 8      W2ru relative, W2ku absolute, UTF-16
//! ```
//!
//! The specification counts the data space in sectors, Windows writes bytes; nobody needs it for
//! reading, and it is written in bytes as Windows does.

use uuid::Uuid;

use crate::bytes::{array, be16, be32, be64, put};
use crate::parents::{LocatorKind, ParentLocator};
use crate::vhd::footer::SECTOR;
use crate::{ImageError, ImageFile};

/// Place of the locator entries in the dynamic header.
const ENTRIES_AT: usize = 576;
const ENTRY_LENGTH: usize = 24;
const ENTRIES: usize = 8;
const NAME_AT: usize = 64;
const NAME_UNITS: usize = 256;
/// The longest path that Windows knows.
const MAX_LENGTH: u32 = 65_536;

/// What a dynamic header says of the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VhdParent {
    /// Unique id of the parent.
    pub(super) id: Uuid,
    /// Relative ones first.
    pub(super) locators: Vec<ParentLocator>,
    /// First byte behind the locators' data; blocks must not be put over it.
    pub(super) end: u64,
}

impl VhdParent {
    /// Reads the parent's id, name and locators.
    pub(super) fn read(file: &dyn ImageFile, header: &[u8; 1024]) -> Result<Self, ImageError> {
        let mut locators = Vec::new();
        let mut end = 0;
        for i in 0..ENTRIES {
            let at = ENTRIES_AT + i * ENTRY_LENGTH;
            let code: [u8; 4] = array(header, at);
            let (length, offset) = (be32(header, at + 8), be64(header, at + 16));
            let kind = match &code {
                b"W2ru" | b"Wi2r" => LocatorKind::Relative,
                b"W2ku" | b"Wi2k" => LocatorKind::Absolute,
                _ => continue,
            };
            if length == 0 || length > MAX_LENGTH {
                continue;
            }
            let mut bytes = vec![0; length as usize];
            match file.read_at(&mut bytes, offset) {
                Ok(()) => {}
                // A locator that lies nowhere names nothing; others may.
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => continue,
                Err(e) => return Err(ImageError::io("VHD parent locator", offset, "read", e)),
            }
            end = end.max((offset + u64::from(length)).next_multiple_of(SECTOR));
            let path = if code[3] == b'u' {
                utf16(&bytes)
            } else {
                String::from_utf8_lossy(&bytes)
                    .trim_end_matches('\0')
                    .to_owned()
            };
            if !path.is_empty() {
                locators.push(ParentLocator { kind, path });
            }
        }
        locators.sort_by_key(|locator| locator.kind == LocatorKind::Absolute);
        let units: Vec<u16> = (0..NAME_UNITS)
            .map(|i| be16(header, NAME_AT + 2 * i))
            .take_while(|unit| *unit != 0)
            .collect();
        let name = String::from_utf16_lossy(&units);
        if !name.is_empty() {
            locators.push(ParentLocator {
                kind: LocatorKind::Name,
                path: name
                    .rsplit(['\\', '/'])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
        Ok(Self {
            id: Uuid::from_bytes(array(header, 40)),
            locators,
            end,
        })
    }

    /// Puts the parent into a new header. Returns the locators' data with their places from
    /// `data_at` on, each in whole sectors, and the first byte behind them.
    pub(super) fn write(
        &self,
        header: &mut [u8; 1024],
        timestamp: u32,
        data_at: u64,
    ) -> (Vec<(u64, Vec<u8>)>, u64) {
        put(header, 40, self.id.as_bytes());
        put(header, 56, &timestamp.to_be_bytes());
        let name = self.locators.iter().map(ParentLocator::file_name).next();
        let units = name.unwrap_or_default().encode_utf16().take(NAME_UNITS - 1);
        for (i, unit) in units.enumerate() {
            put(header, NAME_AT + 2 * i, &unit.to_be_bytes());
        }
        let (mut data, mut end) = (Vec::new(), data_at);
        let mut slot = 0;
        for locator in &self.locators {
            let code = match locator.kind {
                LocatorKind::Relative => b"W2ru",
                LocatorKind::Absolute => b"W2ku",
                LocatorKind::Volume | LocatorKind::Name => continue,
            };
            if slot == ENTRIES {
                break;
            }
            let mut bytes: Vec<u8> = locator
                .path
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect();
            let length = bytes.len();
            bytes.resize(length.next_multiple_of(SECTOR as usize), 0);
            let at = ENTRIES_AT + slot * ENTRY_LENGTH;
            put(header, at, code);
            put(header, at + 4, &(bytes.len() as u32).to_be_bytes());
            put(header, at + 8, &(length as u32).to_be_bytes());
            put(header, at + 16, &end.to_be_bytes());
            let length = bytes.len() as u64;
            data.push((end, bytes));
            end += length;
            slot += 1;
        }
        (data, end)
    }
}

/// UTF-16 of either byte order: the specification names none, Windows writes little endian.
fn utf16(bytes: &[u8]) -> String {
    let is_big = bytes.len() >= 2 && bytes[0] == 0 && bytes[1] != 0;
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|unit| {
            if is_big {
                be16(unit, 0)
            } else {
                u16::from_le_bytes([unit[0], unit[1]])
            }
        })
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}
