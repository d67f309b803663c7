//! A guest, a host and a store of given speeds under the plan, for hours of simulated time.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::ladder::Reason;
use super::meter::Shipped;
use super::plan::{Kind, Plan};

/// Speeds at an instant, in bytes per second.
#[derive(Clone, Copy, Debug)]
struct Speeds {
    churn: f64,
    capture: f64,
    ship: f64,
    throttled: bool,
}

/// One cycle of a run.
#[derive(Clone, Copy, Debug)]
struct Cycle {
    frozen: f64,
    recoverable: f64,
    effective: f64,
    degraded: Option<Reason>,
}

/// Runs the plan until `end`; captures and shipments go side by side, shipments in order.
fn run(interval: u64, end: f64, speeds: impl Fn(f64) -> Speeds) -> Vec<Cycle> {
    let seconds = |time: f64| Duration::from_secs_f64(time);
    let mut plan = Plan::new(Duration::from_secs(interval), None, None, Duration::ZERO);
    let (mut now, mut last_freeze, mut shipper_free) = (0.0f64, 0.0f64, 0.0f64);
    // Shipments that are under way: end, what the plan is told then.
    let mut shipping: VecDeque<(f64, Shipped)> = VecDeque::new();
    let mut cycles: Vec<Cycle> = Vec::new();
    while now < end {
        // Sleeps until the plan says so, and hears of shipments meanwhile.
        loop {
            let due = plan.due().as_secs_f64();
            match shipping.front() {
                Some((at, _)) if *at <= due.max(now) => {
                    now = now.max(*at);
                    if let Some((_, mut shipped)) = shipping.pop_front() {
                        shipped.waiting = shipping.len();
                        plan.shipped(&shipped);
                    }
                }
                _ => {
                    now = now.max(due);
                    break;
                }
            }
        }
        plan.begin(seconds(now), shipping.len());
        plan.froze(seconds(now), Kind::Crash, false);
        let speed = speeds(now);
        let bytes = speed.churn * (now - last_freeze);
        last_freeze = now;
        let capture = 0.05 + bytes / speed.capture;
        let frozen = now;
        now += capture;
        plan.captured(bytes as u64, seconds(capture));
        let ship = 0.1 + bytes / speed.ship;
        shipper_free = shipper_free.max(now) + ship;
        let took = seconds(ship);
        let throttled = if speed.throttled {
            took
        } else {
            Duration::ZERO
        };
        let shipped = Shipped {
            bytes: bytes as u64,
            took,
            throttled,
            waiting: 0,
        };
        shipping.push_back((shipper_free, shipped));
        let report = plan.report();
        cycles.push(Cycle {
            frozen,
            recoverable: shipper_free,
            effective: report.effective_interval.as_secs_f64(),
            degraded: report.degraded,
        });
    }
    cycles
}

/// The largest age that the newest recoverable instant reaches.
fn worst_rpo(cycles: &[Cycle]) -> f64 {
    cycles
        .windows(2)
        .map(|pair| pair[1].recoverable - pair[0].frozen)
        .fold(0.0, f64::max)
}

const MIB: f64 = (1 << 20) as f64;

fn steady(churn: f64, capture: f64, ship: f64) -> Speeds {
    Speeds {
        churn: churn * MIB,
        capture: capture * MIB,
        ship: ship * MIB,
        throttled: false,
    }
}

#[test]
fn points_are_recoverable_within_the_interval_at_every_policy() {
    for interval in [5, 30, 300, 900] {
        let cycles = run(interval, 40.0 * interval as f64, |_| {
            steady(2.0, 200.0, 20.0)
        });
        let settled = &cycles[10..];
        let worst = worst_rpo(settled);
        assert!(worst <= interval as f64 * 1.01, "{interval} s: {worst} s");
        assert!(settled.iter().all(|cycle| cycle.degraded.is_none()));
        let mean =
            (settled[settled.len() - 1].frozen - settled[0].frozen) / (settled.len() - 1) as f64;
        assert!(
            mean >= interval as f64 * 0.8,
            "no more points than it takes: {mean}"
        );
    }
}

#[test]
fn a_store_that_is_slow_for_an_hour_degrades_with_a_reason_and_recovers() {
    let slow = |now: f64| (3600.0..7200.0).contains(&now);
    let cycles = run(5, 4.0 * 3600.0, |now| {
        if slow(now) {
            // At half its needs while it lasts.
            steady(2.0, 200.0, 1.5)
        } else {
            steady(2.0, 200.0, 50.0)
        }
    });
    assert!(
        cycles
            .iter()
            .all(|cycle| cycle.degraded.is_none() || cycle.frozen > 3600.0)
    );
    let during: Vec<_> = cycles
        .iter()
        .filter(|cycle| (3700.0..7200.0).contains(&cycle.frozen))
        .collect();
    assert!(!during.is_empty());
    assert!(
        during
            .iter()
            .all(|cycle| cycle.degraded == Some(Reason::StoreSlow)),
        "{during:?}"
    );
    let waiting = during.len();
    assert!(waiting < 60, "cycles do not pile up: {waiting}");
    let last = cycles[cycles.len() - 1];
    assert_eq!((last.effective, last.degraded), (5.0, None));
}

#[test]
fn a_rate_limit_is_named_as_the_reason() {
    let cycles = run(30, 3600.0, |_| Speeds {
        throttled: true,
        ..steady(2.0, 200.0, 1.0)
    });
    assert_eq!(cycles[cycles.len() - 1].degraded, Some(Reason::Throttled));
}

#[test]
fn a_burst_and_a_busy_host_are_told_apart() {
    let burst = run(30, 7200.0, |now| {
        steady(if now > 3600.0 { 20.0 } else { 1.0 }, 200.0, 10.0)
    });
    let first = burst.iter().find_map(|cycle| cycle.degraded);
    assert_eq!(first, Some(Reason::ChurnHigh));
    let busy = run(30, 7200.0, |_| steady(2.0, 1.5, 50.0));
    assert_eq!(busy[busy.len() - 1].degraded, Some(Reason::GuestBusy));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the speeds: freezes never come closer than half the interval, the interval settles, and it is not
    /// stretched when everything fits easily.
    #[test]
    fn steady_speeds_lead_to_a_steady_interval(
        interval in prop::sample::select(vec![5u64, 30, 300, 900]),
        churn in 0.0f64..50.0,
        capture in 1.0f64..500.0,
        ship in 0.5f64..200.0,
    ) {
        let end = 400.0 * interval as f64 + 40.0 * 900.0;
        let cycles = run(interval, end, |_| steady(churn, capture, ship));
        for pair in cycles.windows(2) {
            prop_assert!(pair[1].frozen - pair[0].frozen >= interval as f64 / 2.0 - 1e-6);
        }
        let steps: Vec<bool> = cycles
            .windows(2)
            .filter(|pair| pair[0].effective != pair[1].effective)
            .map(|pair| pair[1].effective > pair[0].effective)
            .collect();
        let turns = steps.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert!(turns <= 1, "the interval goes up and down at steady speeds: {:?}", steps);
        let late = &cycles[cycles.len() / 2..];
        if churn < 0.4 * ship && churn < 0.4 * capture && interval > 5 {
            prop_assert_eq!(late[late.len() - 1].degraded, None);
        }
    }
}
