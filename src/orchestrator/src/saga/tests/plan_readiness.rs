//! Readiness that guests tell: the plan waits for it, tells it, and leaves no question behind.

use std::time::Duration;

use arm_model::job::JobState;
use serde_json::{Value, json};

use super::bench::Bench;
use super::plan_actions::{action, begin, group, world};
use super::{job, run};
use crate::saga::runner::{Step, Trial, step_with};
use crate::saga::steps::Scenario;
use crate::store::records::{self, Question};

const SCENARIOS: [Scenario; 3] = [Scenario::Test, Scenario::Planned, Scenario::Unplanned];

fn check(name: &str, mut details: Value) -> Value {
    details["instanceType"] = "ReadinessCheckActionDetails".into();
    let mut action = action(name, details);
    action["failoverDirections"] = json!(["PrimaryToRecovery"]);
    action
}

async fn no_question_is_left(bench: &Bench) -> bool {
    let left = records::any::<Question>(&bench.store, "").await;
    !left.expect("questions")
}

#[tokio::test]
async fn a_plan_goes_on_when_agent_and_port_answer_and_its_job_keeps_both() {
    for scenario in SCENARIOS {
        for (repeat, killed) in [(false, false), (true, false), (false, true)] {
            let mut bench = world(scenario).await;
            let after = vec![
                check("agent", json!({ "check": "GuestAgent" })),
                check("web", json!({ "check": "Port", "port": 443 })),
            ];
            // Another group follows, whose start tells the VMs anew.
            let groups = [
                group(&bench, "vm-a", vec![], after),
                group(&bench, "vm-b", vec![], vec![]),
            ];
            let key = begin(&mut bench, scenario, &groups).await;
            let trial = Trial {
                repeat,
                fail_after: None,
            };
            let state = run(&mut bench, &key, trial, killed).await;
            let job = job(&bench, &key).await;
            assert_eq!(state, JobState::Succeeded, "{scenario:?} {:?}", job.failure);
            assert!(no_question_is_left(&bench).await, "{scenario:?}");
            let vms = job.properties.custom_details.protected_item_details;
            let vms = vms.expect("VMs");
            let vm = vms.iter().find(|vm| vm.friendly_name == "vm-a");
            let vm = vm.expect("vm-a");
            assert!(vm.guest_agent_time.is_some() && !vm.guest_agent_silent);
            assert_eq!(vm.ports.len(), 1, "{scenario:?}");
            assert!(vm.ports[0].port == 443 && vm.ports[0].answered_time.is_some());
        }
    }
}

#[tokio::test]
async fn a_port_that_does_not_answer_in_time_fails_the_action_with_the_reason() {
    for scenario in SCENARIOS {
        let mut bench = world(scenario).await;
        bench.deaf_guests = true;
        let port = json!({ "check": "Port", "port": 80, "timeout": "60" });
        let groups = [group(&bench, "vm-a", vec![], vec![check("web", port)])];
        let key = begin(&mut bench, scenario, &groups).await;
        let app = bench.app().await;
        loop {
            match step_with(&app, &key, Trial::default()).await.expect("step") {
                Step::Ended => break,
                Step::Waiting => app.advance(Duration::from_secs(3)),
                Step::Advanced => {}
            }
            bench.report(&app).await;
        }
        let job = job(&bench, &key).await;
        assert_eq!(job.properties.state, JobState::Failed, "{scenario:?}");
        assert!(no_question_is_left(&bench).await, "{scenario:?}");
        let said = serde_json::to_string(&job.properties).expect("json");
        assert!(said.contains("VirtualMachineNotReady"), "{said}");
        assert!(
            said.contains("TCP port 80 did not answer in 60 s: vm-a (no answer came)"),
            "{said}"
        );
    }
}
