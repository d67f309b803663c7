//! Bytes per second of the last minute.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);
/// Amounts within one of these count as one.
const STEP: Duration = Duration::from_secs(1);

/// Gathers amounts.
#[derive(Debug, Default)]
pub(super) struct Rate {
    amounts: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// So much at this instant; instants do not go back.
    pub fn add(&mut self, now: Instant, bytes: u64) {
        match self.amounts.back_mut() {
            Some((at, amount)) if now.duration_since(*at) < STEP => *amount += bytes,
            _ if bytes > 0 => self.amounts.push_back((now, bytes)),
            _ => {}
        }
    }

    /// Over the last minute, or since the first amount when that is less.
    pub fn per_second(&mut self, now: Instant) -> u64 {
        while let Some((at, _)) = self.amounts.front()
            && now.duration_since(*at) > WINDOW
        {
            self.amounts.pop_front();
        }
        let Some((first, _)) = self.amounts.front() else {
            return 0;
        };
        let seconds = now.duration_since(*first).max(STEP).as_secs_f64();
        let total: u64 = self.amounts.iter().map(|(_, bytes)| bytes).sum();
        (total as f64 / seconds) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_of_the_last_minute_and_ends() {
        let mut rate = Rate::default();
        for _ in 0..120 {
            rate.add(Instant::now(), 500);
            rate.add(Instant::now(), 500);
            tokio::time::advance(STEP).await;
        }
        let now = rate.per_second(Instant::now());
        assert!((950..=1050).contains(&now), "{now}");
        assert!(rate.amounts.len() <= 62);
        tokio::time::advance(2 * WINDOW).await;
        assert_eq!(rate.per_second(Instant::now()), 0);
    }
}
