//! What a series of samples means for policy, link and journal: pure.
//!
//! A block that is written twice within one policy interval is sent once, so *unique* bytes an interval are what counts,
//! and they shrink as the interval grows. Percentile 95 sizes a link, so that one nightly peak does not.

use std::time::Duration;

use hypervisor::ExtentSet;
use serde_json::{Value, json};

/// Policy intervals that are looked at, seconds.
pub const INTERVALS: [u64; 4] = [5, 30, 300, 900];
/// Recovery point objectives for which a bandwidth is given, seconds.
const OBJECTIVES: [u64; 3] = [900, 1800, 3600];

/// Changes within windows of one policy interval.
#[derive(Clone, Debug)]
struct Windows {
    interval: f64,
    elapsed: f64,
    current: ExtentSet,
    /// Unique bytes of each finished window, and how long it really was.
    finished: Vec<(u64, f64)>,
}

/// Everything known of one disk, or of the disks of one VM together.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Changed bytes and length of each sample.
    samples: Vec<(u64, f64)>,
}

/// A disk on its way.
#[derive(Clone, Debug)]
pub struct DiskChurn {
    windows: Vec<Windows>,
    /// All samples.
    pub series: Series,
    ever: ExtentSet,
}

impl DiskChurn {
    /// For samples of `sample` each: intervals shorter than that can't be told apart.
    pub fn new(sample: Duration) -> Self {
        let windows = INTERVALS
            .iter()
            .map(|interval| *interval as f64)
            .filter(|interval| *interval >= sample.as_secs_f64())
            .map(|interval| Windows {
                interval,
                elapsed: 0.0,
                current: ExtentSet::new(),
                finished: Vec::new(),
            })
            .collect();
        Self {
            windows,
            series: Series::default(),
            ever: ExtentSet::new(),
        }
    }

    /// Takes one sample in.
    pub fn add(&mut self, changed: &ExtentSet, seconds: f64) {
        self.series.add(changed.bytes(), seconds);
        self.ever = self.ever.union(changed);
        for window in &mut self.windows {
            window.current = window.current.union(changed);
            window.elapsed += seconds;
            // A sample that comes a little early belongs to the window that it nearly fills.
            if window.elapsed >= window.interval - seconds / 2.0 {
                window.finish();
            }
        }
    }

    /// Tracking can't tell what changed: windows begin anew.
    pub fn gap(&mut self) {
        for window in &mut self.windows {
            window.current = ExtentSet::new();
            window.elapsed = 0.0;
        }
    }

    /// Figures of this disk.
    pub fn summary(&self) -> Value {
        let mut value = self.series.summary();
        value["uniqueBytes"] = json!(self.ever.bytes());
        value["policies"] = self.windows.iter().filter_map(Windows::summary).collect();
        value
    }

    /// Rate of unique bytes for each interval with its name, for sums over disks.
    pub fn rates(&self) -> Vec<(u64, f64)> {
        self.windows
            .iter()
            .filter(|window| !window.finished.is_empty())
            .map(|window| {
                (
                    window.interval as u64,
                    percentile(&window.per_second(), 0.95),
                )
            })
            .collect()
    }
}

impl Windows {
    fn finish(&mut self) {
        self.finished.push((self.current.bytes(), self.elapsed));
        self.current = ExtentSet::new();
        self.elapsed = 0.0;
    }

    fn per_second(&self) -> Vec<f64> {
        self.finished
            .iter()
            .map(|(bytes, seconds)| *bytes as f64 / seconds.max(f64::MIN_POSITIVE))
            .collect()
    }

    fn summary(&self) -> Option<Value> {
        if self.finished.is_empty() {
            return None;
        }
        let bytes: Vec<f64> = self
            .finished
            .iter()
            .map(|(bytes, _)| *bytes as f64)
            .collect();
        let rates = self.per_second();
        let mean = mean(&rates);
        Some(json!({
            "intervalSeconds": self.interval as u64,
            "windows": self.finished.len(),
            "uniqueBytesMean": self::mean(&bytes).round() as u64,
            "uniqueBytesPercentile95": percentile(&bytes, 0.95).round() as u64,
            "uniqueBytesPeak": percentile(&bytes, 1.0).round() as u64,
            // What the link must carry so that all but one interval in twenty end in time.
            "bandwidthBytesPerSecond": percentile(&rates, 0.95).round() as u64,
            // Before compression.
            "journalBytesPerDay": (mean * 86_400.0).round() as u64,
        }))
    }
}

impl Series {
    /// Takes one sample in.
    pub fn add(&mut self, bytes: u64, seconds: f64) {
        self.samples.push((bytes, seconds));
    }

    /// Figures that do not depend on the policy.
    pub fn summary(&self) -> Value {
        let seconds: f64 = self.samples.iter().map(|(_, seconds)| seconds).sum();
        let bytes: u64 = self.samples.iter().map(|(bytes, _)| bytes).sum();
        let rates: Vec<f64> = self
            .samples
            .iter()
            .map(|(bytes, seconds)| *bytes as f64 / seconds.max(f64::MIN_POSITIVE))
            .collect();
        json!({
            "samples": self.samples.len(),
            "seconds": seconds,
            "changedBytes": bytes,
            "churnBytesPerSecondMean": (bytes as f64 / seconds.max(f64::MIN_POSITIVE)).round() as u64,
            "churnBytesPerSecondPercentile95": percentile(&rates, 0.95).round() as u64,
            "churnBytesPerSecondPeak": percentile(&rates, 1.0).round() as u64,
        })
    }

    /// The bandwidth that keeps each objective always, and nine times in ten, if the churn grows by `growth`.
    pub fn bandwidths(&self, growth: f64) -> Vec<Value> {
        OBJECTIVES
            .iter()
            .map(|objective| {
                let needed = |share| bandwidth(&self.samples, growth, *objective as f64, share);
                json!({
                    "objectiveSeconds": objective,
                    "bandwidthAlwaysBytesPerSecond": needed(1.0).ceil() as u64,
                    "bandwidthNineInTenBytesPerSecond": needed(0.9).ceil() as u64,
                })
            })
            .collect()
    }
}

/// The smallest rate at which a queue that the samples fill lags no more than `objective` seconds in `share` of them.
fn bandwidth(samples: &[(u64, f64)], growth: f64, objective: f64, share: f64) -> f64 {
    let grown: Vec<(f64, f64)> = samples
        .iter()
        .map(|(bytes, seconds)| (*bytes as f64 * growth, *seconds))
        .collect();
    let peak = grown
        .iter()
        .map(|(bytes, seconds)| bytes / seconds.max(f64::MIN_POSITIVE))
        .fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, peak);
    // The peak itself is always enough; 50 halvings leave no byte of doubt.
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if keeps(&grown, middle, objective, share) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

fn keeps(samples: &[(f64, f64)], rate: f64, objective: f64, share: f64) -> bool {
    let mut queue: f64 = 0.0;
    let mut late = 0;
    for (bytes, seconds) in samples {
        queue = (queue + bytes - rate * seconds).max(0.0);
        if queue > rate * objective {
            late += 1;
        }
    }
    f64::from(late) <= (1.0 - share) * samples.len() as f64 + 1e-9
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / (values.len().max(1)) as f64
}

/// Nearest rank; 0 when there is nothing.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use hypervisor::Extent;
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u64, u64)]) -> ExtentSet {
        ExtentSet::from_unsorted(
            ranges
                .iter()
                .map(|(offset, length)| Extent {
                    offset: *offset,
                    length: *length,
                })
                .collect(),
        )
    }

    #[test]
    fn a_block_that_is_written_again_counts_once_an_interval() {
        let mut churn = DiskChurn::new(Duration::from_secs(5));
        for _ in 0..12 {
            churn.add(&set(&[(0, 4096)]), 5.0);
        }
        let value = churn.summary();
        assert_eq!(value["changedBytes"], 12 * 4096);
        assert_eq!(value["uniqueBytes"], 4096);
        let policies = value["policies"].as_array().unwrap();
        assert_eq!(policies[0]["intervalSeconds"], 5);
        assert_eq!(policies[0]["windows"], 12);
        assert_eq!(policies[1]["intervalSeconds"], 30);
        assert_eq!(policies[1]["windows"], 2);
        assert_eq!(policies[1]["uniqueBytesMean"], 4096);
        // A sixth of the traffic at six times the interval.
        assert_eq!(policies[0]["journalBytesPerDay"], 4096 * 17_280);
        assert_eq!(policies[1]["journalBytesPerDay"], 4096 * 2880);
        assert_eq!(policies.len(), 2, "no whole window of 300 s has passed");
    }

    #[test]
    fn a_gap_begins_windows_anew_and_coarse_samples_answer_no_fine_question() {
        let mut churn = DiskChurn::new(Duration::from_secs(10));
        churn.add(&set(&[(0, 512)]), 10.0);
        churn.add(&set(&[(512, 512)]), 10.0);
        churn.gap();
        churn.add(&set(&[(0, 512)]), 10.0);
        assert!(churn.rates().is_empty());
        churn.add(&set(&[(0, 512)]), 10.0);
        churn.add(&set(&[(0, 512)]), 10.0);
        assert_eq!(churn.rates(), [(30, 512.0 / 30.0)]);
    }

    #[test]
    fn a_peak_may_be_late_nine_times_in_ten() {
        // 100 bytes a second, and one second in twenty 100 times as much.
        let samples: Vec<(u64, f64)> = (0..100)
            .map(|second| (if second % 20 == 7 { 10_000 } else { 100 }, 1.0))
            .collect();
        let always = bandwidth(&samples, 1.0, 1.0, 1.0);
        let mostly = bandwidth(&samples, 1.0, 1.0, 0.9);
        assert!(mostly < always, "{mostly} {always}");
        assert!((4_900.0..=5_100.0).contains(&always), "{always}");
    }

    proptest! {
        #[test]
        fn the_bandwidth_is_enough_and_hardly_more(
            samples in prop::collection::vec((0u64..1 << 30, 1u32..60), 1..40),
            objective in 1u32..3600,
            tenths in 5u32..=10,
        ) {
            let samples: Vec<(u64, f64)> =
                samples.into_iter().map(|(bytes, seconds)| (bytes, f64::from(seconds))).collect();
            let share = f64::from(tenths) / 10.0;
            let found = bandwidth(&samples, 1.0, f64::from(objective), share);
            let plain: Vec<(f64, f64)> =
                samples.iter().map(|(bytes, seconds)| (*bytes as f64, *seconds)).collect();
            prop_assert!(keeps(&plain, found * 1.000_001 + 1e-6, f64::from(objective), share));
            if found > 1.0 {
                prop_assert!(!keeps(&plain, found * 0.999, f64::from(objective), share));
            }
        }

        #[test]
        fn longer_intervals_never_send_more(
            writes in prop::collection::vec(prop::collection::vec((0u64..64, 1u64..8), 0..6), 60..61),
        ) {
            let mut churn = DiskChurn::new(Duration::from_secs(5));
            for write in &writes {
                let ranges: Vec<(u64, u64)> =
                    write.iter().map(|(at, length)| (at * 4096, length * 4096)).collect();
                churn.add(&set(&ranges), 5.0);
            }
            let sums: Vec<u64> = churn
                .windows
                .iter()
                .map(|window| window.finished.iter().map(|(bytes, _)| bytes).sum())
                .collect();
            prop_assert!(sums[0] >= sums[1] && sums[1] >= sums[2], "{sums:?}");
            prop_assert_eq!(churn.windows[2].finished.len(), 1);
            prop_assert_eq!(sums[2], churn.ever.bytes());
        }
    }
}
