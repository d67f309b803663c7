//! Maps of block hashes: a block that the map calls known has the content that the replica has at the
//! position in its header, but for the blocks of the log that is being applied; applying that log again makes
//! the map right. A commit that returned is never lost.

use std::collections::BTreeMap;
use std::time::Instant;

use engine::replicator::hashes::{BlockHash, BlockMap, Header, is_zero};
use uuid::Uuid;

use crate::cut_file::CutFile;
use crate::random::Random;
use crate::tally::Tally;

/// Some pages.
const BLOCKS: usize = 900;
const POSITIONS: u64 = 5;

/// Content of a block, as one byte that it is full of.
type Disk = Vec<u8>;

/// What each position changes, by block.
fn history(random: &mut Random) -> Vec<BTreeMap<usize, u8>> {
    (0..POSITIONS)
        .map(|_| {
            (0..40)
                .map(|_| {
                    let block = random.below(BLOCKS as u64) as usize;
                    (block, random.below(4) as u8)
                })
                .collect()
        })
        .collect()
}

fn hash(map: &BlockMap, value: u8) -> BlockHash {
    BlockHash::of(map.key(), &[value; 4096])
}

fn header() -> Header {
    Header {
        disk: Uuid::from_u128(1),
        replica: Uuid::from_u128(2),
        generation: 1,
        position: 0,
        size_bytes: BLOCKS as u64 * 4096,
        unwritten_is_unknown: false,
        filled_to: None,
    }
}

fn apply(map: &BlockMap, changes: &BTreeMap<usize, u8>, position: u64) -> std::io::Result<()> {
    for (block, value) in changes {
        map.set(*block as u64, &[hash(map, *value)])?;
    }
    map.commit(|header| header.position = position)
}

/// Lives until the power goes off: whether the map was made, and the last position that was acknowledged.
fn life(file: &CutFile, history: &[BTreeMap<usize, u8>]) -> (Option<u64>, bool) {
    let mut acknowledged = None;
    let mut live = || {
        let map = BlockMap::create(Box::new(file.clone()), header())?;
        acknowledged = Some(0);
        for (changes, position) in history.iter().zip(1..) {
            apply(&map, changes, position)?;
            acknowledged = Some(position);
        }
        Ok::<_, std::io::Error>(())
    };
    let lived = live().is_ok();
    (acknowledged, lived)
}

fn model(history: &[BTreeMap<usize, u8>], position: u64) -> Disk {
    let mut disk = vec![0; BLOCKS];
    for changes in &history[..position as usize] {
        for (block, value) in changes {
            disk[*block] = *value;
        }
    }
    disk
}

fn check(
    bytes: Vec<u8>,
    history: &[BTreeMap<usize, u8>],
    acknowledged: Option<u64>,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let file = CutFile::new(bytes);
    let Some(map) = BlockMap::open(Box::new(file)).map_err(text)? else {
        return match acknowledged {
            Some(_) => Err("a map that was made is gone".to_owned()),
            None => Ok(()),
        };
    };
    let position = map.header().position;
    if position < acknowledged.unwrap_or(0) {
        return Err(format!(
            "commit {acknowledged:?} is lost: it says {position}"
        ));
    }
    let none = BTreeMap::new();
    let applying = history.get(position as usize).unwrap_or(&none);
    let now = model(history, position);
    let seen = map.get(0, BLOCKS).map_err(text)?;
    for (block, found) in seen.iter().enumerate() {
        let as_it_is = *found == hash(&map, now[block]) || *found == BlockHash::UNKNOWN;
        let as_it_will_be = applying
            .get(&block)
            .is_some_and(|value| *found == hash(&map, *value));
        if !as_it_is && !as_it_will_be {
            return Err(format!("block {block} is wrong at position {position}"));
        }
    }
    // What a restarted engine does: the log is still there.
    for (changes, next) in history[position as usize..].iter().zip(position + 1..) {
        apply(&map, changes, next).map_err(text)?;
    }
    let last = model(history, POSITIONS);
    for (block, found) in map.get(0, BLOCKS).map_err(text)?.iter().enumerate() {
        let right = *found == hash(&map, last[block]);
        let in_log = history[position as usize..]
            .iter()
            .any(|c| c.contains_key(&block));
        if !right && (*found != BlockHash::UNKNOWN || in_log) {
            return Err(format!(
                "block {block} is wrong after the logs were applied again"
            ));
        }
    }
    Ok(())
}

/// Cuts a map at every operation.
pub fn enumerate(seed: u64) -> Tally {
    let begin = Instant::now();
    let mut tally = Tally::new("block hashes");
    let mut random = Random::new(seed);
    debug_assert!(is_zero(&[0; 4096]));
    let history = history(&mut random);
    for cut in 0.. {
        let file = CutFile::default();
        file.power_until(cut);
        let (acknowledged, lived) = life(&file, &history);
        tally.cuts += 1;
        for state in file.after_cut(&mut random) {
            let place = format!("seed {seed}, cut {cut}, {}", state.rule);
            tally.state(&place, check(state.bytes, &history, acknowledged));
        }
        if lived {
            break;
        }
    }
    tally.took = begin.elapsed();
    tally
}
