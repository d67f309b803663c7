//! Finding zeroes fast: the test that decides whether bytes have to be moved at all.

/// Bytes that are skipped or written as a whole.
const GRAIN: usize = 4096;
/// Zeroes shorter than this between two parts with data are written along: one large write is
/// cheaper than two.
const SHORTEST_HOLE: usize = 64 << 10;

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Data rarely starts with many zeroes; comparing the slice with itself moved by one byte is
    // what the C library does fastest.
    match bytes {
        [] => true,
        [first, ..] if *first != 0 => false,
        [_] => true,
        _ => bytes[..bytes.len() - 1] == bytes[1..],
    }
}

/// The parts of `bytes` that hold data: ranges whose holes are at least 64 KiB.
pub(crate) fn data_runs(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, grain) in bytes.chunks(GRAIN).enumerate() {
        if is_zero(grain) {
            continue;
        }
        let start = i * GRAIN;
        let end = start + grain.len();
        match runs.last_mut() {
            Some(last) if start - last.end < SHORTEST_HOLE => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_no_zero() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 9000]) && !is_zero(&[1]));
        for at in [0, 1, 7, 4095, 4096, 8999] {
            let mut bytes = vec![0; 9000];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }

    #[test]
    fn runs_hold_all_data_and_leave_out_long_holes() {
        let mut bytes = vec![0; 1 << 20];
        for at in [5000, 9000, 200_000, (1 << 20) - 1] {
            bytes[at] = 7;
        }
        let runs = data_runs(&bytes);
        assert_eq!(
            runs,
            [4096..12288, 196_608..200_704, (1 << 20) - 4096..1 << 20]
        );
        assert!(data_runs(&[0; 100_000]).is_empty());
        assert_eq!(data_runs(&[1; 100]).first(), Some(&(0..100)));
        assert_eq!(data_runs(&[1; 100]).len(), 1);
    }
}
