//! The plan of one item: predictor and ladder together, and the schedule of application-consistent points.

use std::time::Duration;

use super::ladder::{Ladder, Load, Reason};
use super::meter::Shipped;
use super::predict::Predictor;

/// After an application-consistent point that the guest did not confirm, the next try is no earlier.
const RETRY_APPLICATION: Duration = Duration::from_secs(5 * 60);

/// How consistent a point shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As after a power cut.
    Crash,
    /// With the guest at rest.
    Application,
}

/// What the plan says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Between cycles.
    pub effective_interval: Duration,
    /// Why it is longer than the policy's; `None` = it is not.
    pub degraded: Option<Reason>,
}

/// The plan. Instants are monotonic time since any fixed instant.
#[derive(Clone, Debug)]
pub struct Plan {
    ladder: Ladder,
    predictor: Predictor,
    /// `None` = a freeze is due at once.
    last_freeze: Option<Duration>,
    /// The freeze before it, while the last one's cycle is not captured yet.
    before_last: Option<Duration>,
    application: Option<Duration>,
    next_application: Duration,
    throttled: bool,
}

impl Plan {
    /// The first freeze is due at once. `since_application` is the age of the newest application-consistent point, if
    /// there is one.
    pub fn new(
        interval: Duration,
        application: Option<Duration>,
        since_application: Option<Duration>,
        now: Duration,
    ) -> Self {
        let left = match (application, since_application) {
            (Some(every), Some(age)) => every.saturating_sub(age),
            _ => Duration::ZERO,
        };
        Self {
            ladder: Ladder::new(interval),
            predictor: Predictor::default(),
            last_freeze: None,
            before_last: None,
            application,
            next_application: now.saturating_add(left),
            throttled: false,
        }
    }

    /// The policy, maybe changed; counts at once.
    pub fn set_policy(&mut self, interval: Duration, application: Option<Duration>, now: Duration) {
        self.ladder.set_interval(interval);
        if application != self.application {
            self.application = application;
            let soonest = application.map_or(now, |every| now.saturating_add(every));
            self.next_application = self.next_application.min(soonest);
        }
    }

    /// There is an application-consistent point of this age that was not known of: the next one is no earlier for it.
    pub fn application_was(&mut self, age: Duration, now: Duration) {
        if let Some(every) = self.application {
            let due = now.saturating_add(every.saturating_sub(age));
            self.next_application = self.next_application.max(due);
        }
    }

    /// When the next freeze is due; one that has passed means now, and never more than one freeze.
    pub fn due(&self) -> Duration {
        match self.last_freeze {
            None => Duration::ZERO,
            Some(last) => {
                let gap = self.predictor.gap_within(self.ladder.effective());
                last.saturating_add(gap)
            }
        }
    }

    /// A freeze begins, whose predecessors wait like this. Gives what it shall be.
    pub fn begin(&mut self, now: Duration, waiting: usize) -> Kind {
        if self.last_freeze.is_some() {
            let load = self.load(waiting);
            self.ladder.freeze(load);
        }
        if self.application.is_some() && now >= self.next_application {
            Kind::Application
        } else {
            Kind::Crash
        }
    }

    /// It is frozen. `confirmed`: the guest was at rest, whether it had been planned here or not.
    pub fn froze(&mut self, now: Duration, kind: Kind, confirmed: bool) {
        self.before_last = self.last_freeze;
        self.last_freeze = Some(now);
        if let Some(every) = self.application {
            let wait = match kind {
                _ if confirmed => every,
                Kind::Application => every.min(RETRY_APPLICATION),
                Kind::Crash => return,
            };
            self.next_application = now.saturating_add(wait);
        }
    }

    /// What was frozen last is captured.
    pub fn captured(&mut self, bytes: u64, took: Duration) {
        let since = self
            .last_freeze
            .zip(self.before_last.take())
            .map(|(last, before)| last.saturating_sub(before));
        self.predictor.captured(since, bytes, took);
    }

    /// A cycle was shipped.
    pub fn shipped(&mut self, shipped: &Shipped) {
        self.throttled = shipped.throttled > shipped.took / 2;
        self.predictor.shipped(shipped.bytes, shipped.took);
        if let Some(shorter) = self.ladder.shorter() {
            let seconds = self.slower_half(shorter);
            self.ladder.shipped(shipped.waiting, seconds);
        }
    }

    /// Sending waits for a rate limit right now.
    pub fn throttled(&mut self, throttled: bool) {
        self.throttled = throttled;
    }

    /// What was frozen last came to nothing, and there is no reason to wait for the next.
    pub fn at_once(&mut self) {
        self.last_freeze = None;
    }

    /// For the report.
    pub fn report(&self) -> Report {
        Report {
            effective_interval: self.ladder.effective(),
            degraded: self.ladder.reason(),
        }
    }

    fn load(&self, waiting: usize) -> Load {
        let gap = self.ladder.effective();
        let (capture, ship) = (
            self.predictor.capture_seconds(gap),
            self.predictor.ship_seconds(gap),
        );
        let reason = if self.throttled {
            Reason::Throttled
        } else if capture > ship && capture > gap.as_secs_f64() {
            Reason::GuestBusy
        } else if self.predictor.churn_is_high() {
            Reason::ChurnHigh
        } else {
            Reason::StoreSlow
        };
        Load {
            waiting,
            seconds: capture.max(ship),
            reason,
        }
    }

    /// The halves run side by side, so the slower one is what an interval must have room for.
    fn slower_half(&self, gap: Duration) -> f64 {
        self.predictor
            .capture_seconds(gap)
            .max(self.predictor.ship_seconds(gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn application_points_come_on_their_own_schedule_in_place_of_crash_points() {
        let mut plan = Plan::new(SECOND * 300, Some(HOUR), None, Duration::ZERO);
        let (mut now, mut kinds) = (Duration::ZERO, Vec::new());
        while now < HOUR * 3 {
            now = now.max(plan.due());
            let kind = plan.begin(now, 0);
            plan.froze(now, kind, kind == Kind::Application);
            kinds.push((now.as_secs(), kind));
        }
        let application: Vec<u64> = kinds
            .iter()
            .filter(|(_, kind)| *kind == Kind::Application)
            .map(|(at, _)| *at)
            .collect();
        assert_eq!(application, [0, 3600, 7200, 10800]);
        assert_eq!(kinds.len(), 37, "and none is made beside them");
    }

    #[test]
    fn a_guest_that_does_not_confirm_is_asked_again_soon_but_not_always() {
        let mut plan = Plan::new(SECOND * 5, Some(HOUR), None, Duration::ZERO);
        let (mut now, mut asked) = (Duration::ZERO, 0);
        while now < HOUR {
            now = now.max(plan.due());
            let kind = plan.begin(now, 0);
            asked += u32::from(kind == Kind::Application);
            plan.froze(now, kind, false);
        }
        assert_eq!(asked, 13, "every five minutes");
    }

    #[test]
    fn a_restart_does_not_make_an_application_point_earlier() {
        let plan = |age| Plan::new(SECOND * 30, Some(HOUR), age, HOUR).begin(HOUR, 0);
        assert_eq!(plan(None), Kind::Application);
        assert_eq!(plan(Some(SECOND * 600)), Kind::Crash);
        assert_eq!(plan(Some(HOUR)), Kind::Application);
    }

    #[test]
    fn a_point_that_is_found_later_counts_and_makes_nothing_earlier() {
        let mut plan = Plan::new(SECOND * 30, Some(HOUR), None, Duration::ZERO);
        plan.application_was(SECOND * 600, SECOND);
        assert_eq!(plan.begin(SECOND * 3000, 0), Kind::Crash);
        assert_eq!(plan.begin(SECOND * 3001, 0), Kind::Application);
        plan.froze(SECOND * 3001, Kind::Application, true);
        plan.application_was(HOUR * 5, SECOND * 3002);
        assert_eq!(plan.begin(SECOND * 3002, 0), Kind::Crash);
    }

    #[test]
    fn after_a_long_pause_there_is_one_freeze() {
        let mut plan = Plan::new(SECOND * 30, None, None, Duration::ZERO);
        plan.froze(Duration::ZERO, Kind::Crash, false);
        assert_eq!(plan.due(), SECOND * 30);
        let late = HOUR * 5;
        assert!(plan.due() < late, "it is due");
        plan.begin(late, 0);
        plan.froze(late, Kind::Crash, false);
        assert_eq!(plan.due(), late + SECOND * 30);
    }

    #[test]
    fn a_changed_policy_counts_at_once() {
        let mut plan = Plan::new(SECOND * 900, None, None, Duration::ZERO);
        plan.froze(SECOND, Kind::Crash, false);
        plan.set_policy(SECOND * 5, Some(HOUR), SECOND * 10);
        assert_eq!(plan.due(), SECOND * 6);
        assert_eq!(plan.begin(SECOND * 10, 0), Kind::Application);
    }
}
