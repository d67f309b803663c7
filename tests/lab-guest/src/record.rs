//! One stamp: a 4 KiB record that proves by itself what it is and that it is whole.
//!
//! ```text
//!    0  magic "LABSTMP1"        40  time, milliseconds since 1970 (u64)
//!    8  target (u32)            48  guest id (16 bytes)
//!   12  fill, MiB (u32)         64  marker length (u32), 4 zero bytes
//!   16  slot (u64)              72  marker text, then pseudo-random bytes that
//!   24  sequence (u64)              follow from guest, target and sequence
//!   32  epoch (u64)           4092  CRC-32C of all bytes before
//! ```
//!
//! Integers are little-endian. Promise: [`decode`] accepts exactly what [`encode`] wrote; a record
//! of which any part is missing, old or from elsewhere is [`SlotState::Torn`].

/// Bytes of one record, and of one slot of a ring.
pub const RECORD_BYTES: usize = 4096;

/// Longest marker text, in bytes.
pub const MARKER_MAX_BYTES: usize = 1024;

/// Sequences and epochs stay below this, so that sums of them can't overflow.
const COUNT_LIMIT: u64 = 1 << 48;

const MAGIC: &[u8; 8] = b"LABSTMP1";
const BODY_AT: usize = 72;
const CHECKSUM_AT: usize = RECORD_BYTES - 4;

/// Which guest wrote a record: the VM's GUID, so that replicas mixed up between VMs are noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestId(pub [u8; 16]);

impl GuestId {
    /// Reads a GUID's 32 hexadecimal digits; hyphens and braces don't matter.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u32> = text
            .chars()
            .filter(|c| !matches!(c, '-' | '{' | '}'))
            .map(|c| c.to_digit(16))
            .collect::<Option<_>>()?;
        if digits.len() != 32 {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::try_from(pair[0] * 16 + pair[1]).ok()?;
        }
        Some(Self(id))
    }

    fn seed(self) -> u64 {
        u64_at(&self.0, 0) ^ u64_at(&self.0, 8).rotate_left(29)
    }
}

/// A place that is stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The ring on the data disk.
    Data,
    /// The ring in the stamp partition of the OS disk.
    Os,
}

impl Target {
    fn number(self) -> u32 {
        match self {
            Self::Data => 0,
            Self::Os => 1,
        }
    }

    /// The name on the console.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Os => "os",
        }
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it was meant to be written.
    pub target: Target,
    /// MiB of filling that were written, and flushed, before the first record.
    pub fill_mib: u32,
    /// Slot within the ring.
    pub slot: u64,
    /// Counts the records of a target from 1.
    pub sequence: u64,
    /// Counts the flushes from 1.
    pub epoch: u64,
    /// The guest's clock at the write.
    pub unix_ms: u64,
    /// The guest that wrote it.
    pub guest: GuestId,
    /// Text that a test looks for in a store; at most [`MARKER_MAX_BYTES`].
    pub marker: String,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Zeroes only: never written.
    Empty,
    /// A whole record (not necessarily the one that belongs here).
    Intact(Record),
    /// Anything else.
    Torn,
}

/// Makes the bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_BYTES];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&record.target.number().to_le_bytes());
    bytes[12..16].copy_from_slice(&record.fill_mib.to_le_bytes());
    bytes[16..24].copy_from_slice(&record.slot.to_le_bytes());
    bytes[24..32].copy_from_slice(&record.sequence.to_le_bytes());
    bytes[32..40].copy_from_slice(&record.epoch.to_le_bytes());
    bytes[40..48].copy_from_slice(&record.unix_ms.to_le_bytes());
    bytes[48..64].copy_from_slice(&record.guest.0);
    let marker = &record.marker.as_bytes()[..record.marker.len().min(MARKER_MAX_BYTES)];
    bytes[64..68].copy_from_slice(&u32::try_from(marker.len()).unwrap_or(0).to_le_bytes());
    let body = BODY_AT + marker.len();
    bytes[BODY_AT..body].copy_from_slice(marker);
    let seed = body_seed(record.guest, record.target.number(), record.sequence);
    pseudo_random(seed, &mut bytes[body..CHECKSUM_AT]);
    let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Tells what the bytes of a slot are. Never panics, whatever they are.
pub fn decode(bytes: &[u8]) -> SlotState {
    if bytes.len() != RECORD_BYTES {
        return SlotState::Torn;
    }
    if bytes.iter().all(|b| *b == 0) {
        return SlotState::Empty;
    }
    read(bytes).map_or(SlotState::Torn, SlotState::Intact)
}

fn read(bytes: &[u8]) -> Option<Record> {
    if &bytes[..8] != MAGIC || u32_at(bytes, CHECKSUM_AT) != crc32c::crc32c(&bytes[..CHECKSUM_AT]) {
        return None;
    }
    let marker_bytes = usize::try_from(u32_at(bytes, 64)).ok()?;
    if marker_bytes > MARKER_MAX_BYTES {
        return None;
    }
    let body = BODY_AT + marker_bytes;
    let mut guest = [0; 16];
    guest.copy_from_slice(&bytes[48..64]);
    let record = Record {
        target: match u32_at(bytes, 8) {
            0 => Target::Data,
            1 => Target::Os,
            _ => return None,
        },
        fill_mib: u32_at(bytes, 12),
        slot: u64_at(bytes, 16),
        sequence: u64_at(bytes, 24),
        epoch: u64_at(bytes, 32),
        unix_ms: u64_at(bytes, 40),
        guest: GuestId(guest),
        marker: std::str::from_utf8(&bytes[BODY_AT..body]).ok()?.to_owned(),
    };
    if record.sequence >= COUNT_LIMIT || record.epoch >= COUNT_LIMIT {
        return None;
    }
    // The checksum could be right over a wrong body only if the writer was wrong; say so too.
    let mut expected = vec![0; CHECKSUM_AT - body];
    pseudo_random(
        body_seed(record.guest, record.target.number(), record.sequence),
        &mut expected,
    );
    (bytes[body..CHECKSUM_AT] == expected[..]).then_some(record)
}

/// The content of a 4 KiB block of the filling beyond the ring.
pub fn fill_block(guest: GuestId, block: u64, bytes: &mut [u8]) {
    pseudo_random(body_seed(guest, u32::MAX, block), bytes);
}

fn body_seed(guest: GuestId, target: u32, sequence: u64) -> u64 {
    guest.seed() ^ (u64::from(target) << 56) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// SplitMix64: fast enough under emulation, and incompressible.
fn pseudo_random(seed: u64, bytes: &mut [u8]) {
    let mut state = seed;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let length = chunk.len();
        chunk.copy_from_slice(&z.to_le_bytes()[..length]);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record {
            target: Target::Data,
            fill_mib: 3,
            slot: 5,
            sequence: 77,
            epoch: 5,
            unix_ms: 1_700_000_000_000,
            guest: GuestId::parse("6f1d7a8e-0000-4000-8000-0123456789ab").expect("a GUID"),
            marker: "MARK".to_owned(),
        }
    }

    #[test]
    fn a_record_reads_back_as_written_and_shows_its_marker() {
        let bytes = encode(&record());
        assert_eq!(decode(&bytes), SlotState::Intact(record()));
        assert!(bytes.windows(4).any(|w| w == b"MARK"));
    }

    #[test]
    fn zeroes_are_an_empty_slot() {
        assert_eq!(decode(&[0; RECORD_BYTES]), SlotState::Empty);
    }

    #[test]
    fn guids_with_and_without_braces_are_one_guest() {
        assert_eq!(
            GuestId::parse("{6F1D7A8E-0000-4000-8000-0123456789AB}"),
            GuestId::parse("6f1d7a8e0000400080000123456789ab")
        );
        assert_eq!(GuestId::parse("6f1d"), None);
        assert_eq!(GuestId::parse("zf1d7a8e0000400080000123456789ab"), None);
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_torn(at in 0..RECORD_BYTES, change in 1_u8..) {
            let mut bytes = encode(&record());
            bytes[at] ^= change;
            prop_assert_eq!(decode(&bytes), SlotState::Torn);
        }

        #[test]
        fn a_record_cut_at_a_sector_is_torn(sectors in 1_usize..8) {
            let mut bytes = encode(&record());
            let mut older = record();
            older.sequence -= 1;
            bytes[sectors * 512..].copy_from_slice(&encode(&older)[sectors * 512..]);
            prop_assert_eq!(decode(&bytes), SlotState::Torn);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = decode(&bytes);
        }
    }
}
