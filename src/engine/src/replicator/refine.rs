//! Which blocks of a piece of a disk are sent: pure.
//!
//! Trackers speak of 64 KiB; what is sent is what truly changed, at 4 KiB. Zero blocks are sent as ranges.

use bytes::Bytes;

use super::hashes::{BLOCK, BlockHash, MapKey};

/// What to do with one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The store has it.
    Same,
    /// It goes to the store.
    Send {
        /// As zeroes.
        zero: bool,
    },
    /// Nothing is known of it: whoever wants to know asks the store.
    Ask {
        /// Of what it holds now.
        hash: BlockHash,
    },
}

/// A run of neighbouring blocks that are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// With their data.
    Data(u64, Bytes),
    /// As so many zeroes.
    Zeroes(u64, u64),
}

impl Run {
    /// Bytes of disk.
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(_, data) => data.len() as u64,
            Self::Zeroes(_, length) => *length,
        }
    }
}

/// The blocks of `data`, which begins at a block of the disk.
pub fn blocks(data: &Bytes) -> impl Iterator<Item = &[u8]> {
    data.chunks(BLOCK as usize)
}

/// Verdicts by what the map knows: `known[n]` of the n-th block of `data`.
pub fn by_hash(key: &MapKey, data: &Bytes, known: &[BlockHash]) -> Vec<Verdict> {
    let known = known
        .iter()
        .copied()
        .chain(std::iter::repeat(BlockHash::UNKNOWN));
    blocks(data)
        .zip(known)
        .map(|(block, known)| {
            let hash = BlockHash::of(key, block);
            if known.surely_is(hash) {
                Verdict::Same
            } else if known == BlockHash::UNKNOWN {
                Verdict::Ask { hash }
            } else {
                Verdict::Send {
                    zero: hash == BlockHash::ZERO,
                }
            }
        })
        .collect()
}

/// [`by_hash`] of blocks that are all zero.
pub fn zeroes_by_hash(known: &[BlockHash]) -> Vec<Verdict> {
    known
        .iter()
        .map(|known| match *known {
            BlockHash::ZERO => Verdict::Same,
            BlockHash::UNKNOWN => Verdict::Ask {
                hash: BlockHash::ZERO,
            },
            _ => Verdict::Send { zero: true },
        })
        .collect()
}

/// Unknown blocks are sent, for whoever does not ask.
pub fn send_unknown(verdicts: &mut [Verdict]) {
    for verdict in verdicts {
        if let Verdict::Ask { hash } = *verdict {
            *verdict = Verdict::Send {
                zero: hash == BlockHash::ZERO,
            };
        }
    }
}

/// Neighbouring blocks that are sent, as one.
pub fn runs(offset: u64, data: &Bytes, verdicts: &[Verdict]) -> Vec<Run> {
    grouped(data, verdicts)
        .filter_map(|(verdict, start, end)| match verdict {
            Verdict::Send { zero: true } => {
                Some(Run::Zeroes(offset + start as u64, (end - start) as u64))
            }
            Verdict::Send { zero: false } => {
                Some(Run::Data(offset + start as u64, data.slice(start..end)))
            }
            Verdict::Same | Verdict::Ask { .. } => None,
        })
        .collect()
}

/// In place of several runs of a piece the whole of it.
pub fn coarse(runs: Vec<Run>, offset: u64, data: Bytes) -> Vec<Run> {
    if runs.len() < 2 {
        return runs;
    }
    vec![Run::Data(offset, data)]
}

/// Ranges of `data` whose blocks nothing is known of.
pub fn asked(data: &Bytes, verdicts: &[Verdict]) -> Vec<(usize, usize)> {
    let classes: Vec<Verdict> = verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Ask { .. } => Verdict::Ask {
                hash: BlockHash::UNKNOWN,
            },
            _ => Verdict::Same,
        })
        .collect();
    grouped(data, &classes)
        .filter(|(verdict, ..)| matches!(verdict, Verdict::Ask { .. }))
        .map(|(_, start, end)| (start, end))
        .collect()
}

fn grouped<'a>(
    data: &'a Bytes,
    verdicts: &'a [Verdict],
) -> impl Iterator<Item = (Verdict, usize, usize)> + 'a {
    let mut block = 0;
    std::iter::from_fn(move || {
        let verdict = *verdicts.get(block)?;
        let first = block;
        while verdicts.get(block) == Some(&verdict) {
            block += 1;
        }
        let start = first * BLOCK as usize;
        let end = data.len().min(block * BLOCK as usize);
        Some((verdict, start.min(end), end))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Kind {
        Same,
        Changed,
        Zeroed,
        StillZero,
        Unknown,
    }

    fn kinds() -> impl Strategy<Value = Vec<Kind>> {
        let kind = prop_oneof![
            Just(Kind::Same),
            Just(Kind::Changed),
            Just(Kind::Zeroed),
            Just(Kind::StillZero),
            Just(Kind::Unknown)
        ];
        proptest::collection::vec(kind, 1..40)
    }

    proptest! {
        #[test]
        fn what_is_sent_makes_the_copy_equal_and_is_no_more_than_what_changed(
            kinds in kinds(), short in 0usize..4095, offset in 0u64..9
        ) {
            let offset = offset * BLOCK;
            let key = MapKey::random();
            let block = BLOCK as usize;
            let (mut now, mut copy) = (Vec::new(), Vec::new());
            for kind in &kinds {
                let (new, old) = match kind {
                    Kind::Same => (3, 3),
                    Kind::Changed => (4, 3),
                    Kind::Zeroed => (0, 3),
                    Kind::StillZero => (0, 0),
                    Kind::Unknown => (5, 3),
                };
                now.extend(vec![new; block]);
                copy.extend(vec![old; block]);
            }
            now.truncate(now.len() - short);
            copy.truncate(now.len());
            let known: Vec<BlockHash> = copy.chunks(block).zip(&kinds).map(|(block, kind)| match kind {
                Kind::Unknown => BlockHash::UNKNOWN,
                _ => BlockHash::of(&key, block),
            }).collect();
            let data = Bytes::from(now.clone());
            let mut verdicts = by_hash(&key, &data, &known);
            let unknown: usize = asked(&data, &verdicts).iter().map(|(start, end)| end - start).sum();
            send_unknown(&mut verdicts);
            let runs = runs(offset, &data, &verdicts);
            let mut sent = 0;
            let mut last_end = None;
            for run in &runs {
                sent += run.length() as usize;
                let (at, bytes) = match run {
                    Run::Data(at, bytes) => (*at, bytes.to_vec()),
                    Run::Zeroes(at, length) => (*at, vec![0; *length as usize]),
                };
                if let Run::Data(..) = run {
                    prop_assert!(bytes.chunks(block).all(|block| block.iter().any(|byte| *byte != 0)));
                    prop_assert!(last_end != Some((false, at)), "neighbours are one run");
                }
                last_end = Some((matches!(run, Run::Zeroes(..)), at + run.length()));
                let start = (at - offset) as usize;
                copy[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            prop_assert_eq!(&copy, &now);
            let whole = coarse(runs.clone(), offset, data.clone());
            prop_assert_eq!(whole.len(), runs.len().min(1));
            if runs.len() > 1 {
                prop_assert!(matches!(&whole[0], Run::Data(at, all) if *at == offset && *all == data));
            }
            let differing: usize = now.chunks(block).zip(&kinds)
                .filter(|(_, kind)| matches!(kind, Kind::Changed | Kind::Zeroed | Kind::Unknown))
                .map(|(block, _)| block.len()).sum();
            prop_assert_eq!(sent, differing);
            let really_unknown: usize = now.chunks(block).zip(&kinds)
                .filter(|(_, kind)| matches!(kind, Kind::Unknown)).map(|(block, _)| block.len()).sum();
            prop_assert_eq!(unknown, really_unknown);
        }
    }
}
