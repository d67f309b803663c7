//! Maps against a model, on a file that forgets what was not synced.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const BLOCKS: u64 = 3 * PAGE_HASHES + 7;

/// A file in memory whose unsynced writes are known one by one, and that fails from the n-th change on.
#[derive(Clone, Default)]
struct ForgetfulFile(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
    steps_left: Option<u64>,
    steps: u64,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

impl MapFile for ForgetfulFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.0.lock().unwrap();
        let mut bytes = state.durable.clone();
        for (offset, data) in &state.pending {
            put(&mut bytes, *offset, data);
        }
        let start = bytes.len().min(offset as usize);
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        // A write that fails may be there by half.
        let result = state.step();
        let kept = if result.is_ok() {
            data.len()
        } else {
            data.len() / 2
        };
        state.pending.push((offset, data[..kept].to_vec()));
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        for (offset, data) in std::mem::take(&mut state.pending) {
            put(&mut state.durable, offset, &data);
        }
        Ok(())
    }
}

impl ForgetfulFile {
    /// The file after a power cut: of the writes that were not synced, `survives` says which are there.
    fn after_cut(&self, survives: impl Fn(usize) -> bool) -> Self {
        let state = self.0.lock().unwrap();
        let mut durable = state.durable.clone();
        for (number, (offset, data)) in state.pending.iter().enumerate() {
            if survives(number) {
                put(&mut durable, *offset, data);
            }
        }
        Self(Arc::new(Mutex::new(State {
            durable,
            ..State::default()
        })))
    }
}

fn header() -> Header {
    Header {
        disk: Uuid::from_u128(1),
        replica: Uuid::from_u128(2),
        generation: 1,
        position: 0,
        size_bytes: BLOCKS * BLOCK,
        unwritten_is_unknown: false,
        filled_to: None,
    }
}

/// What cycle `position` writes: some blocks, one of them in every cycle.
fn cycle(position: u64) -> Vec<(u64, Vec<u8>)> {
    (0..20u64)
        .map(|number| (number * 41 * position) % BLOCKS)
        .chain([PAGE_HASHES])
        .map(|block| {
            let zero = (block + position).is_multiple_of(5);
            (block, vec![if zero { 0 } else { position as u8 }; 64])
        })
        .collect()
}

fn apply(map: &BlockMap, position: u64) -> io::Result<()> {
    for (block, data) in cycle(position) {
        map.set(block, &[BlockHash::of(map.key(), &data)])?;
    }
    map.commit(|header| header.position = position)
}

fn model(position: u64) -> BTreeMap<u64, Vec<u8>> {
    (1..=position).flat_map(cycle).collect()
}

fn check(map: &BlockMap, context: &str) {
    let position = map.header().position;
    let (now, next) = (model(position), model(position + 1));
    let touched: BTreeMap<_, _> = cycle(position + 1).into_iter().collect();
    for (block, hash) in (0..).zip(map.get(0, BLOCKS as usize).unwrap()) {
        let of = |model: &BTreeMap<u64, Vec<u8>>| match model.get(&block) {
            Some(data) => BlockHash::of(map.key(), data),
            None => BlockHash::ZERO,
        };
        let redone = touched.contains_key(&block) && hash == of(&next);
        assert!(
            hash == of(&now) || hash == BlockHash::UNKNOWN || redone,
            "{context}: block {block} at position {position} is {hash:?}"
        );
    }
}

#[test]
fn a_power_cut_at_any_write_or_sync_leaves_a_map_that_tells_the_truth_and_can_be_redone() {
    const CYCLES: u64 = 4;
    let counting = ForgetfulFile::default();
    let map = BlockMap::create(Box::new(counting.clone()), header()).unwrap();
    (1..=CYCLES).for_each(|position| apply(&map, position).unwrap());
    let steps = counting.0.lock().unwrap().steps;
    assert!(steps > 50);
    for cut in 0..steps {
        let file = ForgetfulFile::default();
        file.0.lock().unwrap().steps_left = Some(cut);
        let done = BlockMap::create(Box::new(file.clone()), header())
            .and_then(|map| (1..=CYCLES).try_for_each(|position| apply(&map, position)));
        assert!(done.is_err());
        let survivors: [&dyn Fn(usize) -> bool; 5] = [
            &|_| false,
            &|_| true,
            &|number| number % 2 == 0,
            &|number| number % 3 == 1,
            &|number| number > 5,
        ];
        for (which, survives) in survivors.iter().enumerate() {
            let context = format!("cut {cut}, survivors {which}");
            let after = file.after_cut(survives);
            let Some(map) = BlockMap::open(Box::new(after)).unwrap() else {
                assert!(cut <= 2, "{context}: the map is lost");
                continue;
            };
            check(&map, &context);
            for position in map.header().position + 1..=CYCLES {
                apply(&map, position).unwrap();
            }
            assert_eq!(map.header().position, CYCLES);
            check(&map, &context);
            let all = map.get(0, BLOCKS as usize).unwrap();
            for (block, data) in cycle(CYCLES).into_iter().collect::<BTreeMap<_, _>>() {
                assert_eq!(
                    all[block as usize],
                    BlockHash::of(map.key(), &data),
                    "{context}: block {block} was redone"
                );
            }
        }
    }
}

#[test]
fn a_page_that_was_never_written_means_what_the_header_says() {
    for (unknown, expected) in [(false, BlockHash::ZERO), (true, BlockHash::UNKNOWN)] {
        let file = ForgetfulFile::default();
        let map = BlockMap::create(
            Box::new(file.clone()),
            Header {
                unwritten_is_unknown: unknown,
                ..header()
            },
        )
        .unwrap();
        assert_eq!(map.get(700, 3).unwrap(), [expected; 3]);
        map.set(700, &[BlockHash::ZERO]).unwrap();
        assert_eq!(
            map.get(699, 3).unwrap(),
            [expected, BlockHash::ZERO, expected]
        );
    }
}

#[test]
fn zeroes_cost_no_room_in_a_map_of_an_empty_disk() {
    let file = ForgetfulFile::default();
    let map = BlockMap::create(Box::new(file.clone()), header()).unwrap();
    map.set(0, &vec![BlockHash::ZERO; BLOCKS as usize]).unwrap();
    assert!(file.0.lock().unwrap().pending.is_empty());
}

#[test]
fn more_pages_than_are_written_at_once_are_read_as_they_were_set() {
    let file = ForgetfulFile::default();
    let map = BlockMap::create(Box::new(file.clone()), header()).unwrap();
    let hash = |number: usize| BlockHash::of(map.key(), &number.to_le_bytes());
    let count = (2 * AT_ONCE * PAGE_HASHES) as usize + 77;
    let mut wanted: Vec<BlockHash> = (0..count).map(hash).collect();
    map.set(100, &wanted).unwrap();
    let written = file.0.lock().unwrap().pending.len();
    assert!(written <= 4, "{written} writes");
    // Two neighbours, a gap, and one that is alone.
    for page in [3, 4, 7] {
        let at = page * PAGE_HASHES as usize;
        wanted[at] = hash(at + count);
    }
    map.set(100, &wanted).unwrap();
    assert!(file.0.lock().unwrap().pending.len() - written <= 2);
    assert_eq!(map.get(100, count).unwrap(), wanted);
    assert_eq!(map.get(99, 1).unwrap(), [BlockHash::ZERO]);
    let after = 100 + count as u64;
    assert_eq!(map.get(after, 1).unwrap(), [BlockHash::ZERO]);
}

#[test]
fn a_damaged_page_is_unknown_and_heals_block_by_block() {
    let file = ForgetfulFile::default();
    let map = BlockMap::create(Box::new(file.clone()), header()).unwrap();
    let hash = BlockHash::of(map.key(), b"data");
    map.set(0, &[hash; 600]).unwrap();
    map.commit(|_| {}).unwrap();
    file.0.lock().unwrap().durable[3 * PAGE + 100] ^= 1;
    let known = map.get(0, 600).unwrap();
    let damaged = PAGE_HASHES as usize..2 * PAGE_HASHES as usize;
    for (block, known) in known.into_iter().enumerate() {
        let expected = if damaged.contains(&block) {
            BlockHash::UNKNOWN
        } else {
            hash
        };
        assert_eq!(known, expected, "{block}");
    }
    map.set(PAGE_HASHES + 9, &[hash]).unwrap();
    assert_eq!(
        map.get(PAGE_HASHES + 8, 3).unwrap(),
        [BlockHash::UNKNOWN, hash, BlockHash::UNKNOWN]
    );
}

#[test]
fn what_is_no_map_is_not_taken_for_one() {
    let file = ForgetfulFile::default();
    assert!(BlockMap::open(Box::new(file.clone())).unwrap().is_none());
    file.write_at(&[0x55; 3 * PAGE], 0).unwrap();
    assert!(BlockMap::open(Box::new(file)).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_map_holds_what_was_set_last(
        sets in proptest::collection::vec((0..BLOCKS, 1usize..300, 0u8..4), 1..20), from in 0..BLOCKS, count in 0usize..900
    ) {
        let map = BlockMap::create(Box::new(ForgetfulFile::default()), header()).unwrap();
        let mut model = vec![BlockHash::ZERO; 2 * BLOCKS as usize];
        for (first, count, value) in sets {
            let hash = match value {
                0 => BlockHash::ZERO,
                1 => BlockHash::UNKNOWN,
                value => BlockHash::of(map.key(), &[value]),
            };
            map.set(first, &vec![hash; count]).unwrap();
            model[first as usize..first as usize + count].fill(hash);
        }
        let count = count.min((2 * BLOCKS - from) as usize);
        prop_assert_eq!(map.get(from, count).unwrap(), &model[from as usize..from as usize + count]);
    }
}
