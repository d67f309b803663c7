//! The service's limits of one blob: two buckets, one of requests, one of bytes, each holding a second's worth.

use std::collections::HashMap;
use std::time::Duration;

const REQUESTS: f64 = 500.0;
const BYTES: f64 = (60 << 20) as f64;

struct Bucket {
    at: Duration,
    requests: f64,
    bytes: f64,
}

/// Buckets of all blobs.
#[derive(Default)]
pub(super) struct Buckets {
    blobs: HashMap<String, Bucket>,
}

impl Buckets {
    /// Takes a request of so many bytes; false when the blob is at its limit.
    pub(super) fn take(&mut self, now: Duration, blob: &str, bytes: usize) -> bool {
        let bucket = self.blobs.entry(blob.to_owned()).or_insert(Bucket {
            at: now,
            requests: REQUESTS,
            bytes: BYTES,
        });
        let passed = now.saturating_sub(bucket.at).as_secs_f64();
        bucket.at = now;
        bucket.requests = (bucket.requests + passed * REQUESTS).min(REQUESTS);
        bucket.bytes = (bucket.bytes + passed * BYTES).min(BYTES);
        if bucket.requests < 1.0 || bucket.bytes < bytes as f64 {
            return false;
        }
        bucket.requests -= 1.0;
        bucket.bytes -= bytes as f64;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_501st_request_of_a_second_is_refused() {
        let mut buckets = Buckets::default();
        let accepted = (0..600)
            .filter(|_| buckets.take(Duration::ZERO, "a", 0))
            .count();
        assert_eq!(accepted, 500);
        assert!(buckets.take(Duration::from_secs(1), "a", 4 << 20));
        assert!(!buckets.take(Duration::from_secs(1), "a", 60 << 20));
    }
}
