//! Keeps every blob below the service's limits, so that it is we who wait and not the service who refuses.
//!
//! One page blob takes 500 requests and 60 MiB a second. Each blob has two clocks, "the request budget is used up until"
//! and "the byte budget is used up until"; a request moves both on and waits until both are no more than a small burst
//! ahead of now. Pure: time goes in, a wait comes out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What one blob may take, and one client may have under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second and blob; 0 = no limit.
    pub requests_per_second: u32,
    /// Bytes a second and blob; 0 = no limit.
    pub bytes_per_second: u64,
    /// Requests of one container that may be under way at once.
    pub in_flight: usize,
}

impl Limits {
    /// Azure's targets for one page blob.
    pub const AZURE: Limits = Limits {
        requests_per_second: 500,
        bytes_per_second: 60 << 20,
        in_flight: 32,
    };
    /// For emulators, which slow down by themselves.
    pub const EMULATOR: Limits = Limits {
        requests_per_second: 0,
        bytes_per_second: 0,
        in_flight: 8,
    };
}

/// How far ahead of its budget a blob may run.
const BURST: Duration = Duration::from_millis(150);

/// More blobs than this, and those at rest are forgotten.
const REMEMBERED: usize = 1024;

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    requests_until: Duration,
    bytes_until: Duration,
}

/// The budgets of all blobs of one container.
#[derive(Debug)]
pub(crate) struct Pacer {
    limits: Limits,
    blobs: Mutex<HashMap<String, Used>>,
}

impl Pacer {
    pub(crate) fn new(limits: Limits) -> Self {
        Pacer {
            limits,
            blobs: Mutex::new(HashMap::new()),
        }
    }

    /// Takes one request of so many bytes out of the blob's budget; the caller waits so long before it sends.
    pub(crate) fn reserve(&self, now: Duration, blob: &str, bytes: u64) -> Duration {
        let Limits {
            requests_per_second,
            bytes_per_second,
            ..
        } = self.limits;
        if requests_per_second == 0 && bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if blobs.len() >= REMEMBERED && !blobs.contains_key(blob) {
            blobs.retain(|_, used| used.requests_until > now || used.bytes_until > now);
        }
        let used = blobs.entry(blob.to_owned()).or_default();
        let mut start = now;
        for until in [used.requests_until, used.bytes_until] {
            start = start.max(until.saturating_sub(BURST));
        }
        if requests_per_second > 0 {
            used.requests_until =
                used.requests_until.max(start) + Duration::from_secs(1) / requests_per_second;
        }
        if bytes_per_second > 0 {
            used.bytes_until = used.bytes_until.max(start)
                + Duration::from_nanos(
                    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second))
                        .unwrap_or(u64::MAX),
                );
        }
        start - now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_blob_waits_another_does_not() {
        let pacer = Pacer::new(Limits::AZURE);
        let mut waited = Duration::ZERO;
        for _ in 0..60 {
            waited = waited.max(pacer.reserve(Duration::ZERO, "a", 4 << 20));
        }
        // 240 MiB at 60 MiB a second.
        assert!(waited > Duration::from_millis(3500), "{waited:?}");
        assert_eq!(pacer.reserve(Duration::ZERO, "b", 4 << 20), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_second_takes_more_than_the_limit_and_the_burst(
            steps in prop::collection::vec((0u64..20, 0u64..(4 << 20)), 1..2000)
        ) {
            let pacer = Pacer::new(Limits::AZURE);
            let mut now = Duration::ZERO;
            let mut sent: Vec<(Duration, u64)> = Vec::new();
            for (pause_ms, bytes) in steps {
                now += Duration::from_millis(pause_ms);
                sent.push((now + pacer.reserve(now, "a", bytes), bytes));
            }
            sent.sort();
            for (index, (from, _)) in sent.iter().enumerate() {
                let window = sent[index..].iter().take_while(|(at, _)| *at < *from + Duration::from_secs(1));
                let (count, bytes) = window.fold((0u64, 0u64), |(n, b), (_, bytes)| (n + 1, b + bytes));
                prop_assert!(count <= 577, "{count} requests in a second");
                prop_assert!(bytes <= (60 << 20) * 115 / 100 + (4 << 20), "{bytes} bytes in a second");
            }
        }
    }
}
