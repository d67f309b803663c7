//! Encrypted journal objects: only whoever has the key reads them, and only in the place they were made for.

use proptest::prelude::*;
use replication_log::KeyRing;
use replication_log::journal::{
    BuildOptions, Finished, JournalBuilder, JournalDisk, JournalErrorKind, JournalHeader,
    JournalReader, read_header,
};
use uuid::Uuid;

const SIZE: u64 = 2 << 20;
const DISK: Uuid = Uuid::from_u128(0xd15c);
const MARK: &[u8] = b"the guest's own secret";

fn key_id(n: u128) -> Uuid {
    Uuid::from_u128(0x1ce0 + n)
}

/// Keys 1 to `count`, the last one active.
fn keys(count: u128) -> KeyRing {
    let mut ring = KeyRing::new();
    for n in 1..=count {
        ring.insert(key_id(n), &[n as u8; 32]).unwrap();
    }
    ring.activate(Some(key_id(count))).unwrap();
    ring
}

fn header(position: u64) -> JournalHeader {
    JournalHeader {
        item: "web-server-01".to_owned(),
        generation: 3,
        position,
        time_unix_ms: 1_767_323_045_678,
        disks: vec![JournalDisk {
            id: DISK,
            size_bytes: SIZE,
        }],
    }
}

/// Several frames, some that shrink and some that don't, and zeroes.
fn fill(builder: &mut JournalBuilder<Vec<u8>>) {
    let mut noise = vec![0; 300_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    builder.write(DISK, 0, &MARK.repeat(20_000)).unwrap();
    builder.write(DISK, 1 << 20, &noise).unwrap();
    builder.zero(DISK, SIZE - 65536, 65536).unwrap();
}

fn build(header: JournalHeader, keys: Option<&KeyRing>) -> (Vec<u8>, Finished) {
    let options = BuildOptions {
        encryption: keys,
        ..BuildOptions::default()
    };
    let mut builder = JournalBuilder::with_options(Vec::new(), header, options).unwrap();
    fill(&mut builder);
    builder.finish().unwrap()
}

fn replay(object: &[u8], keys: &KeyRing) -> Result<Vec<u8>, JournalErrorKind> {
    let reader = JournalReader::open_with_keys(object, keys).map_err(|error| error.kind())?;
    let mut image = vec![0xee; SIZE as usize];
    for entry in reader.entries(0) {
        let data = reader.read_entry(entry).map_err(|error| error.kind())?;
        image[entry.offset as usize..][..data.len()].copy_from_slice(&data);
    }
    Ok(image)
}

fn plain() -> Vec<u8> {
    replay(&build(header(7), None).0, &KeyRing::new()).unwrap()
}

fn contains(object: &[u8], what: &[u8]) -> bool {
    object.windows(what.len()).any(|window| window == what)
}

#[test]
fn an_encrypted_object_says_the_same_and_shows_none_of_it() {
    let (clear, in_clear) = build(header(7), None);
    let (sealed, encrypted) = build(header(7), Some(&keys(1)));
    assert_eq!(replay(&sealed, &keys(1)), Ok(plain()));
    assert_eq!(in_clear.content, encrypted.content, "one cycle, twice sent");
    assert_eq!(encrypted.object_bytes, sealed.len() as u64);
    assert_eq!(in_clear.changed_bytes, encrypted.changed_bytes);
    // A piece of the data that does not shrink, and its place on the disk, are visible in the clear only.
    let mut noise = vec![0; 64];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    assert!(contains(&clear, &noise));
    assert!(!contains(&sealed, &noise));
    let reader = JournalReader::open_with_keys(sealed.as_slice(), &keys(1)).unwrap();
    assert_eq!(reader.key_id(), Some(key_id(1)));
    reader.verify().unwrap();
}

#[test]
fn which_blocks_changed_is_not_to_be_seen() {
    // Entries of one frame: the index is too irregular to shrink, so it would lie there as it is.
    let place = |offset: u64| offset.to_le_bytes();
    let object = |keys: Option<&KeyRing>| {
        let options = BuildOptions {
            encryption: keys,
            ..BuildOptions::default()
        };
        let mut builder = JournalBuilder::with_options(Vec::new(), header(7), options).unwrap();
        builder.write(DISK, 0x0010_3000, b"x").unwrap();
        builder.finish().unwrap().0
    };
    assert!(contains(&object(None), &place(0x0010_3000)[..4]));
    assert!(!contains(&object(Some(&keys(1))), &place(0x0010_3000)[..4]));
}

#[test]
fn a_missing_key_is_named_and_told_from_damage() {
    let (object, _) = build(header(7), Some(&keys(1)));
    for ring in [KeyRing::new(), {
        let mut ring = KeyRing::new();
        ring.insert(key_id(2), &[2; 32]).unwrap();
        ring
    }] {
        let error = JournalReader::open_with_keys(object.as_slice(), &ring)
            .err()
            .unwrap();
        assert_eq!(error.kind(), JournalErrorKind::MissingKey);
        assert!(
            error.to_string().contains(&key_id(1).to_string()),
            "{error}"
        );
        assert!(error.to_string().contains("put that key back"), "{error}");
    }
    // Without any key the header tells which one is needed.
    assert_eq!(
        read_header(object.as_slice()).unwrap(),
        (header(7), Some(key_id(1)))
    );
}

#[test]
fn other_bytes_under_the_id_of_a_key_are_not_taken_for_it() {
    let (object, _) = build(header(7), Some(&keys(1)));
    let mut other = KeyRing::new();
    other.insert(key_id(1), &[9; 32]).unwrap();
    assert_eq!(replay(&object, &other), Err(JournalErrorKind::Corrupt));
}

#[test]
fn after_a_rotation_old_and_new_objects_are_read_and_the_new_key_writes() {
    let (old, _) = build(header(7), Some(&keys(1)));
    let (new, _) = build(header(8), Some(&keys(2)));
    let (clear, _) = build(header(9), None);
    for object in [&old, &new, &clear] {
        assert_eq!(replay(object, &keys(2)), Ok(plain()));
    }
    assert_eq!(replay(&new, &keys(1)), Err(JournalErrorKind::MissingKey));
    // Encryption is off again: no key is active, old objects are read.
    let mut off = keys(2);
    off.activate(None).unwrap();
    let (object, _) = build(header(10), Some(&off));
    assert_eq!(replay(&object, &KeyRing::new()), Ok(plain()));
    assert_eq!(replay(&old, &off), Ok(plain()));
}

#[test]
fn the_same_cycle_is_never_encrypted_alike_twice() {
    let (first, _) = build(header(7), Some(&keys(1)));
    let (second, _) = build(header(7), Some(&keys(1)));
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(
        same < first.len() / 50,
        "{same} of {} bytes agree",
        first.len()
    );
}

/// Where the frames of an object begin, and how long they are.
fn frames(object: &[u8], keys: &KeyRing) -> Vec<std::ops::Range<usize>> {
    let header_length = u32::from_le_bytes(object[12..16].try_into().unwrap()) as usize;
    let mut at = 48 + header_length;
    let reader = JournalReader::open_with_keys(object, keys).unwrap();
    let lengths = reader.frames().iter().map(|f| f.stored_length() as usize);
    lengths
        .map(|length| {
            at += length;
            at - length..at
        })
        .collect()
}

#[test]
fn frames_can_not_change_places_nor_come_from_another_object() {
    let keys = keys(1);
    let data: Vec<u8> = (0..4u8).flat_map(|n| vec![n + 1; 256 << 10]).collect();
    let object = |position| {
        let options = BuildOptions {
            encryption: Some(&keys),
            compression: replication_log::journal::CompressionLevel::STORE,
            merged: None,
        };
        let mut builder =
            JournalBuilder::with_options(Vec::new(), header(position), options).unwrap();
        builder.write(DISK, 0, &data).unwrap();
        builder.finish().unwrap().0
    };
    let (good, other) = (object(7), object(8));
    let places = frames(&good, &keys);
    assert_eq!(places.len(), 4);
    let mut swapped = good.clone();
    swapped[places[0].clone()].copy_from_slice(&good[places[2].clone()]);
    assert_eq!(replay(&swapped, &keys), Err(JournalErrorKind::Corrupt));
    let mut foreign = good.clone();
    foreign[places[1].clone()].copy_from_slice(&other[places[1].clone()]);
    assert_eq!(replay(&foreign, &keys), Err(JournalErrorKind::Corrupt));
}

/// Computes the digests that need no key over a changed object, as a forger would.
fn reseal(object: &mut [u8]) {
    let end = 16 + u32::from_le_bytes(object[12..16].try_into().unwrap()) as usize;
    let prelude = *blake3::hash(&object[..end]).as_bytes();
    object[end..end + 32].copy_from_slice(&prelude);
    let trailer = object.len() - 72;
    let index = u64::from_le_bytes(object[trailer..trailer + 8].try_into().unwrap()) as usize;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prelude);
    hasher.update(&object[trailer..trailer + 32]);
    hasher.update(&object[index..trailer]);
    let digest = *hasher.finalize().as_bytes();
    object[trailer + 32..trailer + 64].copy_from_slice(&digest);
}

#[test]
fn an_object_can_not_be_passed_off_as_that_of_another_position_time_or_item() {
    let keys = keys(1);
    let (good, _) = build(header(7), Some(&keys));
    // generation, position, time, the item's first letter, the disk's size
    for at in [16, 24, 32, 42, 42 + 13 + 4 + 16 + 2] {
        let mut forged = good.clone();
        forged[at] ^= 1;
        assert_eq!(replay(&forged, &keys), Err(JournalErrorKind::Corrupt));
        reseal(&mut forged);
        let (seen, _) = read_header(forged.as_slice()).unwrap();
        assert_ne!(seen, header(7), "byte {at} is in the header");
        assert_eq!(
            replay(&forged, &keys),
            Err(JournalErrorKind::Corrupt),
            "byte {at}"
        );
    }
    // An index of the same object's own making, at another place.
    let mut forged = good.clone();
    reseal(&mut forged);
    assert_eq!(replay(&forged, &keys), Ok(plain()), "the forger works");
}

#[test]
fn encryption_can_not_be_stripped_or_downgraded() {
    let keys = keys(1);
    let (good, _) = build(header(7), Some(&keys));
    let end = 16 + u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
    let mut stripped = good.clone();
    stripped[end - 48..end].fill(0);
    reseal(&mut stripped);
    assert_eq!(replay(&stripped, &keys), Err(JournalErrorKind::Corrupt));
    let mut downgraded = good.clone();
    downgraded[8] = 1;
    reseal(&mut downgraded);
    assert_eq!(replay(&downgraded, &keys), Err(JournalErrorKind::Corrupt));
}

#[test]
fn every_cut_and_every_flipped_byte_is_detected() {
    let keys = keys(1);
    let (good, _) = build(header(7), Some(&keys));
    for at in (0..good.len())
        .step_by(997)
        .chain(good.len() - 200..good.len())
    {
        assert!(replay(&good[..at], &keys).is_err(), "cut to {at}");
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        assert!(replay(&bad, &keys).is_err(), "byte {at}");
    }
}

#[test]
fn the_golden_encrypted_object_is_still_read() {
    let golden = include_bytes!("golden/journal-v2-encrypted.hrl");
    assert_eq!(replay(golden, &keys(2)), Ok(plain()));
    let reader = JournalReader::open_with_keys(golden.to_vec(), &keys(1)).unwrap();
    assert_eq!(reader.header(), &header(7));
    assert_eq!(reader.content(), build(header(7), None).1.content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Nothing that a forger without the key can do, keyless digests made right, shows other bytes.
    #[test]
    fn a_forged_object_is_refused_or_says_the_same(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        near_the_ends in any::<bool>(),
    ) {
        let keys = keys(1);
        let (good, _) = build(header(7), Some(&keys));
        let mut forged = good.clone();
        for (at, value) in edits {
            let at = at.index(good.len());
            let at = if near_the_ends { (at % 400 + good.len() - 200) % good.len() } else { at };
            // The lengths that the forger needs himself stay.
            if !(8..16).contains(&at) && at < good.len() - 72 || at >= good.len() - 40 {
                forged[at] = value;
            }
        }
        reseal(&mut forged);
        if let Ok(seen) = replay(&forged, &keys) {
            prop_assert!(seen == plain());
        }
    }
}
