//! A fault at each call, in each outcome; then the same call again: the same end, nothing twice, nothing left.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use azure_compute::double::{Call, Double, Fault, Rule};
use azure_compute::{Power, Target, TargetPlan};
use support::{RECOVERY, go, impatient, planned, spec, target};

/// Not done (before it, or refused), done without an answer, done with an answer that lies.
const OUTCOMES: [Fault; 5] = [
    Fault::DropBefore,
    Fault::DropAfter,
    Fault::DoneBut {
        status: 500,
        code: "InternalServerError",
    },
    Fault::Refuse {
        status: 503,
        code: "ServerBusy",
        retry_after: None,
    },
    Fault::Refuse {
        status: 429,
        code: "TooManyRequests",
        retry_after: Some(0),
    },
];

/// The `n`th call from now on, whatever it is.
fn nth(n: usize, fault: Fault) -> Rule {
    let seen = Arc::new(AtomicUsize::new(0));
    Rule::once(fault, move |_: &Call| {
        seen.fetch_add(1, Ordering::SeqCst) == n
    })
}

/// Everything that exists beyond the start, as it is.
fn world(double: &Double) -> Vec<(String, serde_json::Value)> {
    let ids = double.ids();
    ids.into_iter()
        .map(|id| (id.clone(), double.body(&id).unwrap_or_default()))
        .collect()
}

async fn make_until_done(target: &Target, plan: &TargetPlan) -> usize {
    for tries in 1..20 {
        if target.make(plan, &go()).await.is_ok() {
            return tries;
        }
    }
    panic!("it is never made");
}

async fn remove_until_done(target: &Target, plan: &TargetPlan, double: &Double) -> usize {
    for tries in 1..20 {
        if target
            .remove(&double.world().place, &plan.recovery_id, &go())
            .await
            .is_ok()
        {
            return tries;
        }
    }
    panic!("it is never removed");
}

/// Calls of a life without faults: making, stopping and starting, removing.
async fn calls_of_a_life() -> (usize, usize, usize) {
    let double = Double::start(1).await.unwrap();
    let target = impatient(&double);
    let plan = planned(&target, &spec(&double)).await;
    let count = || double.faults().calls().len();
    let start = count();
    target.make(&plan, &go()).await.unwrap();
    let made = count();
    target.stop(&plan.vm_id, RECOVERY, &go()).await.unwrap();
    target.start(&plan.vm_id, RECOVERY, &go()).await.unwrap();
    let moved = count();
    target
        .remove(&double.world().place, RECOVERY, &go())
        .await
        .unwrap();
    (made - start, moved - made, count() - moved)
}

#[tokio::test]
async fn whichever_call_of_making_fails_a_repeat_ends_the_same() {
    let (calls, ..) = calls_of_a_life().await;
    assert!(calls > 20, "{calls}");
    for fault in OUTCOMES {
        for n in 0..calls {
            let double = Double::start(1).await.unwrap();
            let target = impatient(&double);
            let before = world(&double);
            let plan = planned(&target, &spec(&double)).await;
            double.faults().add(nth(n, fault));
            make_until_done(&target, &plan).await;
            let at = format!("{fault:?} at call {n}");
            assert!(double.faults().used_up(), "{at} never happened");
            for resource in &plan.resources {
                assert_eq!(
                    double.times_created(&resource.id),
                    1,
                    "{at}: {}",
                    resource.id
                );
            }
            assert_eq!(
                double.ids().len(),
                before.len() + plan.resources.len(),
                "{at}"
            );
            assert_eq!(double.collisions(), 0, "{at}: a write met a running one");
            assert_eq!(
                target
                    .view(&plan.vm_id, RECOVERY)
                    .await
                    .unwrap()
                    .unwrap()
                    .power,
                Power::Running
            );
            target
                .remove(&double.world().place, RECOVERY, &go())
                .await
                .unwrap();
            assert_eq!(world(&double), before, "{at}");
        }
    }
}

#[tokio::test]
async fn whichever_call_of_removing_fails_a_repeat_leaves_nothing() {
    let (.., calls) = calls_of_a_life().await;
    for fault in OUTCOMES {
        for n in 0..calls {
            let double = Double::start(1).await.unwrap();
            let target = impatient(&double);
            let before = world(&double);
            let plan = planned(&target, &spec(&double)).await;
            target.make(&plan, &go()).await.unwrap();
            double.faults().add(nth(n, fault));
            remove_until_done(&target, &plan, &double).await;
            assert!(
                double.faults().used_up(),
                "{fault:?} at call {n} never happened"
            );
            assert_eq!(world(&double), before, "{fault:?} at call {n}");
            assert_eq!(double.collisions(), 0);
        }
    }
}

#[tokio::test]
async fn whichever_call_of_stopping_and_starting_fails_a_repeat_gets_there() {
    let (_, calls, _) = calls_of_a_life().await;
    for fault in OUTCOMES {
        for n in 0..calls {
            let double = Double::start(1).await.unwrap();
            let target = impatient(&double);
            let plan = planned(&target, &spec(&double)).await;
            target.make(&plan, &go()).await.unwrap();
            double.faults().add(nth(n, fault));
            let power = async || {
                target
                    .view(&plan.vm_id, RECOVERY)
                    .await
                    .unwrap()
                    .unwrap()
                    .power
            };
            if target.stop(&plan.vm_id, RECOVERY, &go()).await.is_err() {
                target.stop(&plan.vm_id, RECOVERY, &go()).await.unwrap();
            }
            if target.start(&plan.vm_id, RECOVERY, &go()).await.is_err() {
                target.start(&plan.vm_id, RECOVERY, &go()).await.unwrap();
            }
            assert!(
                double.faults().used_up(),
                "{fault:?} at call {n} never happened"
            );
            assert_eq!(power().await, Power::Running, "{fault:?} at call {n}");
        }
    }
}

#[tokio::test]
async fn one_fault_of_any_kind_at_any_call_is_not_even_noticed_by_a_patient_client() {
    let (calls, ..) = calls_of_a_life().await;
    for fault in OUTCOMES {
        for n in 0..calls {
            let double = Double::start(1).await.unwrap();
            let target = target(&double, 4);
            let plan = planned(&target, &spec(&double)).await;
            double.faults().add(nth(n, fault));
            let result = target.make(&plan, &go()).await;
            assert!(result.is_ok(), "{fault:?} at call {n}: {result:?}");
        }
    }
}

#[tokio::test]
async fn a_service_that_throttles_for_long_is_told_as_such() {
    let double = Double::start(0).await.unwrap();
    let target = target(&double, 3);
    let plan = planned(&target, &spec(&double)).await;
    let throttled = Fault::Refuse {
        status: 429,
        code: "TooManyRequests",
        retry_after: Some(0),
    };
    double
        .faults()
        .add(Rule::once(throttled, |c| c.method == "PUT").times(100));
    let error = target.make(&plan, &go()).await.unwrap_err();
    assert_eq!(error.kind(), azure_compute::TargetErrorKind::Throttled);
    assert_eq!(error.retry(), azure_compute::Retry::Yes);
}

#[tokio::test]
async fn in_chaos_everything_is_made_once_and_removed_without_a_rest() {
    for seed in 1..=30 {
        let double = Double::start(2).await.unwrap();
        let target = target(&double, 2);
        let before = world(&double);
        let plan = planned(&target, &spec(&double)).await;
        double.faults().chaos(seed, 250);
        make_until_done(&target, &plan).await;
        for resource in &plan.resources {
            assert_eq!(
                double.times_created(&resource.id),
                1,
                "seed {seed}: {}",
                resource.id
            );
        }
        remove_until_done(&target, &plan, &double).await;
        assert_eq!(world(&double), before, "seed {seed}");
        assert_eq!(double.collisions(), 0, "seed {seed}");
    }
}

#[tokio::test]
async fn a_write_that_meets_another_operation_looks_and_tries_again() {
    for method in ["PUT", "POST", "DELETE"] {
        let double = Double::start(1).await.unwrap();
        let target = target(&double, 3);
        let plan = planned(&target, &spec(&double)).await;
        let busy = Fault::Refuse {
            status: 409,
            code: "Conflict",
            retry_after: None,
        };
        double.faults().add(Rule::once(busy, move |c| {
            c.method == method && c.path.contains("/virtualMachines/")
        }));
        target.make(&plan, &go()).await.unwrap();
        target.stop(&plan.vm_id, RECOVERY, &go()).await.unwrap();
        let removed = target
            .remove(&double.world().place, RECOVERY, &go())
            .await
            .unwrap();
        assert_eq!(removed.len(), plan.resources.len());
        assert!(double.faults().used_up());
    }
}
