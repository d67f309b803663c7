//! How far the interval is stretched while cycles can't keep up: by doubling, up to a limit.
//!
//! Up at the second freeze in a row that finds more than one cycle waiting, or that work takes longer than the interval.
//! Down after two cycles in a row that found the store empty-handed and would have filled no more than half of the next
//! shorter interval. Between the two lies a wide range in which nothing changes, so that it doesn't go up and down.

use std::fmt;
use std::time::Duration;

/// No stretched interval is longer, unless the policy's own is.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Freezes in a row that must find cycles behind.
const BEHIND: u32 = 2;
/// Cycles in a row that must find it easy.
const EASY: u32 = 2;
/// Of the shorter interval.
const EASY_SHARE: f64 = 0.5;

/// Why cycles can't keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The store takes less than the VM changes.
    StoreSlow,
    /// The VM changes far more than it usually does.
    ChurnHigh,
    /// Reading the changes on the host takes too long.
    GuestBusy,
    /// A rate limit allows no more.
    Throttled,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::StoreSlow => "the storage account takes changes slower than they come",
            Reason::ChurnHigh => "the virtual machine changes far more than it usually does",
            Reason::GuestBusy => {
                "reading changes on the host takes too long: the virtual machine or its disks are busy"
            }
            Reason::Throttled => "a bandwidth limit is in force",
        })
    }
}

/// What a freeze finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Cycles that wait for the store.
    pub waiting: usize,
    /// Seconds that the slower half of a cycle is predicted to take at the present interval.
    pub seconds: f64,
    /// Why, if it is too long.
    pub reason: Reason,
}

/// The stretched interval.
#[derive(Clone, Debug)]
pub struct Ladder {
    interval: Duration,
    level: u32,
    behind: u32,
    easy: u32,
    reason: Option<Reason>,
}

impl Ladder {
    /// Not stretched.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            level: 0,
            behind: 0,
            easy: 0,
            reason: None,
        }
    }

    /// Begins anew when the policy's interval is another one.
    pub fn set_interval(&mut self, interval: Duration) {
        if interval != self.interval {
            *self = Self::new(interval);
        }
    }

    /// The interval in force.
    pub fn effective(&self) -> Duration {
        self.at(self.level)
    }

    /// The next shorter one, when it is stretched.
    pub fn shorter(&self) -> Option<Duration> {
        self.level.checked_sub(1).map(|level| self.at(level))
    }

    /// Why it is stretched; `None` = it is not.
    pub fn reason(&self) -> Option<Reason> {
        self.reason.filter(|_| self.level > 0)
    }

    /// A freeze is due, and finds this.
    pub fn freeze(&mut self, load: Load) {
        let full = self.effective().as_secs_f64();
        if load.waiting > 1 || load.seconds > full {
            self.easy = 0;
            self.behind += 1;
            if self.level > 0 {
                self.reason = Some(load.reason);
            }
            if self.behind >= BEHIND && self.at(self.level + 1) > self.effective() {
                self.behind = 0;
                self.level += 1;
                self.reason = Some(load.reason);
            }
        } else {
            self.behind = 0;
        }
    }

    /// A cycle was shipped; `seconds` is what one would take at the next shorter interval.
    pub fn shipped(&mut self, waiting: usize, seconds: f64) {
        let Some(shorter) = self.shorter() else {
            return;
        };
        if waiting > 0 || seconds > shorter.as_secs_f64() * EASY_SHARE {
            self.easy = 0;
            return;
        }
        self.easy += 1;
        if self.easy >= EASY {
            self.easy = 0;
            self.level -= 1;
        }
    }

    fn at(&self, level: u32) -> Duration {
        let stretched = self
            .interval
            .saturating_mul(1u32.checked_shl(level).unwrap_or(u32::MAX));
        stretched.min(LONGEST.max(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn behind() -> Load {
        Load {
            waiting: 3,
            seconds: 1.0,
            reason: Reason::StoreSlow,
        }
    }

    #[test]
    fn one_late_cycle_changes_nothing_two_in_a_row_double_the_interval() {
        let mut ladder = Ladder::new(INTERVAL);
        let fine = Load {
            waiting: 1,
            ..behind()
        };
        for _ in 0..10 {
            ladder.freeze(behind());
            ladder.freeze(fine);
        }
        assert_eq!((ladder.effective(), ladder.reason()), (INTERVAL, None));
        ladder.freeze(behind());
        ladder.freeze(behind());
        assert_eq!(ladder.effective(), INTERVAL * 2);
        assert_eq!(ladder.reason(), Some(Reason::StoreSlow));
    }

    #[test]
    fn it_ends_at_its_limit_and_comes_back_step_by_step() {
        let mut ladder = Ladder::new(INTERVAL);
        for _ in 0..100 {
            ladder.freeze(behind());
        }
        assert_eq!(ladder.effective(), LONGEST);
        let mut steps = 0;
        while ladder.reason().is_some() {
            ladder.shipped(0, 0.1);
            steps += 1;
            assert!(steps < 100);
        }
        assert_eq!(ladder.effective(), INTERVAL);
        assert_eq!(steps, 2 * 5, "two easy cycles for each step");
    }

    #[test]
    fn a_policy_longer_than_the_limit_is_not_stretched() {
        let mut ladder = Ladder::new(LONGEST * 2);
        for _ in 0..10 {
            ladder.freeze(behind());
        }
        assert_eq!(ladder.effective(), LONGEST * 2);
        assert_eq!(ladder.reason(), None);
    }

    #[test]
    fn work_that_just_fits_neither_raises_nor_lowers() {
        let mut ladder = Ladder::new(INTERVAL);
        ladder.freeze(behind());
        ladder.freeze(behind());
        for _ in 0..100 {
            ladder.freeze(Load {
                waiting: 1,
                seconds: 40.0,
                reason: Reason::StoreSlow,
            });
            ladder.shipped(0, 20.0);
        }
        assert_eq!(ladder.effective(), INTERVAL * 2);
    }
}
