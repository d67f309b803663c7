//! The region table: where block allocation table and metadata lie. It is kept twice.

use uuid::Uuid;

use super::layout::{
    BAT_REGION, HEADER_SECTION_END, METADATA_REGION, MIB, REGION_TABLE_LENGTH, REGION_TABLE_OFFSETS,
};
use crate::bytes::{array, crc32c_without, guid, le32, le64, put};
use crate::{ImageError, ImageFile, RegionInfo};

const SIGNATURE: &[u8; 4] = b"regi";
const CHECKSUM_AT: usize = 4;
const MAX_ENTRIES: u32 = 2047;
const NAMES: [&str; 2] = ["region table 1", "region table 2"];

/// A byte range of the file that something owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Region {
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// The verified region table.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
    pub(super) all: Vec<RegionInfo>,
    /// Why one of the two copies was passed over.
    pub(super) warning: Option<String>,
}

impl Regions {
    /// Reads both copies; one of them must hold. `log` is the log's place, which regions must not touch.
    pub(super) fn read(
        file: &dyn ImageFile,
        file_length: u64,
        log: Option<Region>,
    ) -> Result<Self, ImageError> {
        let (table, which, warning) = match (read_copy(file, 0), read_copy(file, 1)) {
            // Where both hold, the first one counts for everybody; a writer that moves a region
            // changes it first, and both places are right until the second one follows.
            (Ok(first), Ok(second)) if first != second => (
                first,
                0,
                Some("region table 2 differs from region table 1, which counts".to_owned()),
            ),
            (Ok(first), Ok(_)) => (first, 0, None),
            (Ok(first), Err(error)) => (first, 0, Some(error.to_string())),
            (Err(error), Ok(second)) => (second, 1, Some(error.to_string())),
            (Err(error), Err(_)) => return Err(error),
        };
        check(&table, which, file_length, log)?;
        let find = |id: Uuid, name: &str| {
            let entry = table.iter().find(|entry| entry.id == id);
            entry
                .map(|entry| Region {
                    offset: entry.offset,
                    length: entry.length,
                })
                .ok_or_else(|| {
                    ImageError::corrupt(
                        NAMES[which],
                        REGION_TABLE_OFFSETS[which],
                        format!("it lists no {name} region"),
                    )
                })
        };
        Ok(Self {
            bat: find(BAT_REGION, "BAT")?,
            metadata: find(METADATA_REGION, "metadata")?,
            all: table,
            warning,
        })
    }
}

fn read_copy(file: &dyn ImageFile, which: usize) -> Result<Vec<RegionInfo>, ImageError> {
    let (name, at) = (NAMES[which], REGION_TABLE_OFFSETS[which]);
    let mut bytes = vec![0; REGION_TABLE_LENGTH];
    file.read_at(&mut bytes, at)
        .map_err(|e| ImageError::io(name, at, "read", e))?;
    if array::<4>(&bytes, 0) != *SIGNATURE {
        return Err(ImageError::corrupt(
            name,
            at,
            "the signature regi is missing",
        ));
    }
    let (stored, computed) = (
        le32(&bytes, CHECKSUM_AT),
        crc32c_without(&bytes, CHECKSUM_AT),
    );
    if stored != computed {
        return Err(ImageError::checksum(name, at, stored, computed));
    }
    let count = le32(&bytes, 8);
    if count > MAX_ENTRIES {
        return Err(ImageError::corrupt(
            name,
            at,
            format!("{count} entries don't fit"),
        ));
    }
    let entry = |i: usize| RegionInfo {
        id: guid(&bytes, i),
        offset: le64(&bytes, i + 16),
        length: le32(&bytes, i + 24),
        required: le32(&bytes, i + 28) & 1 != 0,
    };
    Ok((0..count as usize).map(|i| entry(16 + 32 * i)).collect())
}

fn check(
    table: &[RegionInfo],
    which: usize,
    file_length: u64,
    log: Option<Region>,
) -> Result<(), ImageError> {
    let (name, at) = (NAMES[which], REGION_TABLE_OFFSETS[which]);
    let refuse = |cause: String| Err(ImageError::corrupt(name, at, cause));
    let mut places: Vec<(u64, u64, String)> = log
        .iter()
        .map(|log| (log.offset, log.end(), "the log".to_owned()))
        .collect();
    let mut ids: Vec<Uuid> = Vec::new();
    for entry in table {
        if entry.required && entry.id != BAT_REGION && entry.id != METADATA_REGION {
            return Err(ImageError::unsupported(
                name,
                format!("region {} is unknown and required", entry.id),
            )
            .at(at));
        }
        if !entry.offset.is_multiple_of(MIB) || entry.offset < HEADER_SECTION_END {
            return refuse(format!(
                "region {}: offset {} is not allowed",
                entry.id, entry.offset
            ));
        }
        if entry.length == 0 || !u64::from(entry.length).is_multiple_of(MIB) {
            return refuse(format!(
                "region {}: length {} is no multiple of 1 MiB",
                entry.id, entry.length
            ));
        }
        let end = entry.offset.checked_add(u64::from(entry.length));
        let Some(end) = end.filter(|end| *end <= file_length) else {
            return refuse(format!(
                "region {} ends behind the end of the file at {file_length}",
                entry.id
            ));
        };
        ids.push(entry.id);
        places.push((entry.offset, end, format!("region {}", entry.id)));
    }
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!("region {} is listed twice", twice[0]));
    }
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => refuse(format!("{} and {} overlap", pair[0].2, pair[1].2)),
        None => Ok(()),
    }
}

/// The region table of a new file, as stored in both places.
pub(super) fn encode(bat: Region, metadata: Region) -> Vec<u8> {
    let required = |id, region: Region| RegionInfo {
        id,
        offset: region.offset,
        length: region.length,
        required: true,
    };
    encode_all(&[
        required(BAT_REGION, bat),
        required(METADATA_REGION, metadata),
    ])
}

/// A region table with these entries.
pub(super) fn encode_all(regions: &[RegionInfo]) -> Vec<u8> {
    let mut bytes = vec![0; REGION_TABLE_LENGTH];
    put(&mut bytes, 0, SIGNATURE);
    put(&mut bytes, 8, &(regions.len() as u32).to_le_bytes());
    for (i, region) in regions.iter().enumerate() {
        let at = 16 + 32 * i;
        put(&mut bytes, at, &region.id.to_bytes_le());
        put(&mut bytes, at + 16, &region.offset.to_le_bytes());
        put(&mut bytes, at + 24, &region.length.to_le_bytes());
        put(
            &mut bytes,
            at + 28,
            &u32::from(region.required).to_le_bytes(),
        );
    }
    let checksum = crc32c_without(&bytes, CHECKSUM_AT);
    put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
    bytes
}
