//! Layout of a map of block hashes: pure.
//!
//! ```text
//! page 0, 1   header, two slots; the valid one with the higher sequence counts
//! page 2 ...  255 hashes of 16 bytes each | 16 bytes check of page number and hashes
//! ```
//!
//! All numbers little endian. A hash is keyed BLAKE3 of a block of 4 KiB (the last block of a disk may be
//! shorter), cut to 16 bytes; the key is drawn for each map, so that nobody inside a guest can make two blocks
//! that look alike. Two values are words, not hashes: all zero bits = the block is zero, all one bits = unknown.
//! A page of zeroes was never written: the header says what that means. A page that does not verify is unknown.

use uuid::Uuid;

/// What a hash stands for, bytes.
pub const BLOCK: u64 = 4096;
/// Hashes in a page.
pub const PAGE_HASHES: u64 = 255;
/// Bytes of a page, of a header slot too.
pub const PAGE: usize = 4096;
/// Pages in front of the first page of hashes.
pub const HEADER_PAGES: u64 = 2;

const HASH: usize = 16;
const MAGIC: &[u8; 8] = b"SRBHASH\n";
const VERSION: u32 = 1;
const FLAG_UNWRITTEN_IS_UNKNOWN: u32 = 1;
const FLAG_BUILDING: u32 = 2;
const DIGEST_AT: usize = PAGE - 32;

/// What is known of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; HASH]);

/// Makes the hashes of one map comparable with each other only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MapKey(pub(super) [u8; 32]);

/// What a map says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Virtual disk id.
    pub disk: Uuid,
    /// The replica whose content is described.
    pub replica: Uuid,
    /// Fencing generation of the writer.
    pub generation: u64,
    /// Journal position that the hashes describe.
    pub position: u64,
    /// Virtual size of the disk, bytes.
    pub size_bytes: u64,
    /// A page that was never written: unknown blocks, rather than zero ones.
    pub unwritten_is_unknown: bool,
    /// Base is being filled: hashes count below this byte only. `None` = everywhere.
    pub filled_to: Option<u64>,
}

// === impl BlockHash ===

impl BlockHash {
    /// The block is all zeroes.
    pub const ZERO: Self = Self([0; HASH]);
    /// Nothing is known of the block: it equals nothing.
    pub const UNKNOWN: Self = Self([0xff; HASH]);

    /// Of a block's bytes.
    pub fn of(key: &MapKey, block: &[u8]) -> Self {
        if is_zero(block) {
            return Self::ZERO;
        }
        let full = blake3::keyed_hash(&key.0, block);
        let mut hash = [0; HASH];
        hash.copy_from_slice(&full.as_bytes()[..HASH]);
        if hash == Self::ZERO.0 || hash == Self::UNKNOWN.0 {
            // The two words are never a hash.
            hash[0] ^= 1;
        }
        Self(hash)
    }

    /// Whether a block with hash `now` surely has the content that this hash was made of.
    pub fn surely_is(self, now: Self) -> bool {
        self == now && self != Self::UNKNOWN
    }
}

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::ZERO => f.write_str("zero"),
            Self::UNKNOWN => f.write_str("unknown"),
            Self(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl std::fmt::Debug for MapKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MapKey(..)")
    }
}

impl MapKey {
    /// A new one.
    pub fn random() -> Self {
        let mut key = [0; 32];
        key[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Self(key)
    }
}

/// Page and place in it of a block.
pub fn place(block: u64) -> (u64, usize) {
    (block / PAGE_HASHES, (block % PAGE_HASHES) as usize)
}

/// Where page `page` of hashes lies in the file.
pub fn page_offset(page: u64) -> u64 {
    (HEADER_PAGES + page) * PAGE as u64
}

/// A page's bytes.
pub fn encode_page(key: &MapKey, page: u64, hashes: &[BlockHash]) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    for (place, hash) in bytes.chunks_exact_mut(HASH).zip(hashes) {
        place.copy_from_slice(&hash.0);
    }
    let check = check(key, page, &bytes[..PAGE - HASH]);
    bytes[PAGE - HASH..].copy_from_slice(&check);
    bytes
}

/// A page's hashes; `None` = it does not verify. `unwritten` is what a page of zeroes means.
pub fn decode_page(
    key: &MapKey,
    page: u64,
    bytes: &[u8],
    unwritten: BlockHash,
) -> Option<Vec<BlockHash>> {
    if bytes.len() != PAGE {
        return None;
    }
    if is_zero(bytes) {
        return Some(vec![unwritten; PAGE_HASHES as usize]);
    }
    let (hashes, stored) = bytes.split_at(PAGE - HASH);
    if check(key, page, hashes) != stored {
        return None;
    }
    let hashes = hashes.chunks_exact(HASH).map(|chunk| {
        let mut hash = [0; HASH];
        hash.copy_from_slice(chunk);
        BlockHash(hash)
    });
    Some(hashes.collect())
}

fn check(key: &MapKey, page: u64, hashes: &[u8]) -> [u8; HASH] {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(&page.to_le_bytes());
    hasher.update(hashes);
    let mut check = [0; HASH];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..HASH]);
    check
}

/// A header slot's bytes.
pub fn encode_header(header: &Header, key: &MapKey, sequence: u64) -> Vec<u8> {
    let mut flags = 0;
    if header.unwritten_is_unknown {
        flags |= FLAG_UNWRITTEN_IS_UNKNOWN;
    }
    if header.filled_to.is_some() {
        flags |= FLAG_BUILDING;
    }
    let mut bytes = Vec::with_capacity(PAGE);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(header.disk.as_bytes());
    bytes.extend_from_slice(header.replica.as_bytes());
    for number in [
        header.generation,
        header.position,
        header.size_bytes,
        header.filled_to.unwrap_or(0),
    ] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&key.0);
    bytes.resize(DIGEST_AT, 0);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

/// A header slot: header, key, sequence. `None` = it does not verify, or is of another version.
pub fn decode_header(bytes: &[u8]) -> Option<(Header, MapKey, u64)> {
    let body = bytes.get(..DIGEST_AT)?;
    let digest = bytes.get(DIGEST_AT..PAGE)?;
    if blake3::hash(body).as_bytes() != digest || body.get(..8)? != MAGIC {
        return None;
    }
    if number::<4>(body, 8)? != u64::from(VERSION) {
        return None;
    }
    let flags = number::<4>(body, 12)? as u32;
    let mut key = [0; 32];
    key.copy_from_slice(body.get(88..120)?);
    let header = Header {
        disk: Uuid::from_slice(body.get(24..40)?).ok()?,
        replica: Uuid::from_slice(body.get(40..56)?).ok()?,
        generation: number::<8>(body, 56)?,
        position: number::<8>(body, 64)?,
        size_bytes: number::<8>(body, 72)?,
        unwritten_is_unknown: flags & FLAG_UNWRITTEN_IS_UNKNOWN != 0,
        filled_to: (flags & FLAG_BUILDING != 0)
            .then(|| number::<8>(body, 80))
            .flatten(),
    };
    Some((header, MapKey(key), number::<8>(body, 16)?))
}

fn number<const LENGTH: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut full = [0; 8];
    full[..LENGTH].copy_from_slice(bytes.get(at..at + LENGTH)?);
    Some(u64::from_le_bytes(full))
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut wide = bytes.chunks_exact(64);
    wide.by_ref()
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && wide.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            disk: Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff),
            replica: Uuid::from_u128(2),
            generation: 3,
            position: 4,
            size_bytes: 5 << 30,
            unwritten_is_unknown: true,
            filled_to: None,
        }
    }

    #[test]
    fn version_1_keeps_its_layout_for_ever() {
        let bytes = encode_header(&header(), &MapKey([7; 32]), 9);
        assert_eq!(bytes.len(), PAGE);
        assert_eq!(&bytes[..8], b"SRBHASH\n");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[16..24], 9u64.to_le_bytes());
        assert_eq!(bytes[24..28], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(bytes[72..80], (5u64 << 30).to_le_bytes());
        assert_eq!(bytes[88..120], [7; 32]);
        let page = encode_page(&MapKey([7; 32]), 1, &[BlockHash([5; 16])]);
        assert_eq!(page[..16], [5; 16]);
        assert_eq!(page[16..PAGE - 16], [0; PAGE - 32]);
        let mut hasher = blake3::Hasher::new_keyed(&[7; 32]);
        hasher.update(&[1, 0, 0, 0, 0, 0, 0, 0]);
        hasher.update(&page[..PAGE - 16]);
        assert_eq!(page[PAGE - 16..], hasher.finalize().as_bytes()[..16]);
    }

    #[test]
    fn any_flipped_bit_of_a_header_or_page_is_noticed() {
        let key = MapKey::random();
        let bytes = encode_header(&header(), &key, 9);
        assert_eq!(decode_header(&bytes), Some((header(), key, 9)));
        let hashes = [
            BlockHash::of(&key, b"x"),
            BlockHash::ZERO,
            BlockHash::UNKNOWN,
        ];
        let page = encode_page(&key, 3, &hashes);
        assert_eq!(
            decode_page(&key, 3, &page, BlockHash::ZERO).unwrap()[..3],
            hashes
        );
        assert_eq!(decode_page(&key, 4, &page, BlockHash::ZERO), None);
        for at in 0..PAGE {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode_header(&bad), None, "byte {at}");
            let mut bad = page.clone();
            bad[at] ^= 1;
            assert_eq!(
                decode_page(&key, 3, &bad, BlockHash::ZERO),
                None,
                "byte {at}"
            );
        }
        assert_eq!(decode_header(&bytes[..PAGE - 1]), None);
    }

    #[test]
    fn nothing_equals_an_unknown_block() {
        assert!(!BlockHash::UNKNOWN.surely_is(BlockHash::UNKNOWN));
        assert!(BlockHash::ZERO.surely_is(BlockHash::ZERO));
        let key = MapKey::random();
        assert_ne!(BlockHash::of(&key, &[0, 1]), BlockHash::ZERO);
        assert_eq!(BlockHash::of(&key, &[0; 4096]), BlockHash::ZERO);
        assert_ne!(
            BlockHash::of(&key, b"x"),
            BlockHash::of(&MapKey::random(), b"x")
        );
    }

    proptest! {
        #[test]
        fn zeroes_are_recognised_at_every_length(length in 0usize..300, one in proptest::option::of(0usize..300)) {
            let mut bytes = vec![0u8; length];
            if let Some(byte) = one.and_then(|at| bytes.get_mut(at)) {
                *byte = 1;
            }
            prop_assert_eq!(is_zero(&bytes), bytes.iter().all(|byte| *byte == 0));
        }
    }
}
