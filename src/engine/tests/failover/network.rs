//! Adapters of recovered VMs: who meets whom, and guests that are asked whether they are up.

use super::*;

/// As the engine makes it at its start.
fn world() -> World {
    let world = World::new();
    std::fs::create_dir_all(world.recovery()).unwrap();
    world
}

fn wish(world: &World, number: u128, drill: &str) -> RecoveredVm {
    RecoveredVm {
        private_network: drill.to_owned(),
        switches_apart: true,
        ask_agent: true,
        ports: vec![80, 443],
        ..world.drill(Uuid::from_u128(number))
    }
}

fn segment(world: &World, number: u128) -> Option<Uuid> {
    let networks = world
        .host
        .machine(Uuid::from_u128(number))
        .unwrap()
        .new
        .networks;
    assert!(
        networks
            .iter()
            .all(|network| network.network_name.is_none())
    );
    networks[0].segment
}

fn is_up(status: &RecoveredVmStatus) -> bool {
    let ports: Vec<_> = status
        .ports
        .iter()
        .map(|port| port.answered_unix_ms > 0)
        .collect();
    status.agent_answered_unix_ms > 0 && ports == [true, false]
}

#[test]
fn vms_of_one_drill_meet_those_of_another_do_not_and_their_guests_are_asked() {
    let world = world();
    life(async {
        let mut engine = world.engine(no_pauses());
        let mut all = [
            wish(&world, 21, "one"),
            wish(&world, 22, "one"),
            wish(&world, 23, "two"),
        ];
        engine.vms.apply(&all).await;
        engine
            .until("all have been asked", |vms| {
                vms.len() == 3 && vms.iter().all(is_up)
            })
            .await;
        for status in engine.board.snapshot().recovered {
            assert_eq!(status.connected_adapters, 1);
            let refused = &status.ports[1];
            assert!(
                refused.port == 443 && refused.problem.contains("refuses"),
                "{refused:?}"
            );
        }
        // Nobody asks any more, and no VM is started anew for that.
        for vm in &mut all {
            (vm.ask_agent, vm.ports) = (false, Vec::new());
        }
        engine.vms.apply(&all).await;
        engine
            .until("ports are not told any more", |vms| {
                vms.iter().all(|vm| vm.ports.is_empty())
            })
            .await;
        engine.vms.stop().await;
    });
    let [a, b, c] = [21, 22, 23].map(|number| segment(&world, number));
    assert!(a.is_some() && a == b && c.is_some() && a != c);
    let events = world.host.events();
    assert_eq!(
        events
            .iter()
            .filter(|event| event.starts_with("start"))
            .count(),
        3,
        "{events:?}"
    );
}

#[test]
fn an_adapter_that_is_left_out_is_not_made_and_a_vm_without_a_network_has_its_cable_out() {
    let world = world();
    life(async {
        let mut engine = world.engine(no_pauses());
        let [bare, loose] = [31_u128, 32].map(|number| {
            let drill = Uuid::from_u128(number);
            (drill, world.drill(drill))
        });
        let left_out = RecoveredVm {
            left_out_adapters: vec!["nic0".to_owned()],
            private_network: "one".to_owned(),
            ..bare.1
        };
        engine.vms.apply(&[left_out, loose.1]).await;
        engine
            .until("both run", |vms| {
                vms.len() == 2 && vms.iter().all(|vm| vm.started_unix_ms > 0)
            })
            .await;
        assert!(world.host.machine(bare.0).unwrap().new.networks.is_empty());
        assert_eq!(segment(&world, 32), None);
        let snapshot = engine.board.snapshot();
        assert!(
            snapshot
                .recovered
                .iter()
                .all(|vm| vm.connected_adapters == 0)
        );
        engine.vms.stop().await;
    });
}

#[test]
fn a_failed_over_vm_is_asked_and_asked_again_when_it_was_stopped_meanwhile() {
    let world = world();
    life(async {
        let mut engine = world.engine(no_pauses());
        let asked = |epoch, order| RecoveredVm {
            private_network: "/virtualNetworks/dr".to_owned(),
            ask_agent: true,
            ports: vec![80],
            ..world.listed(epoch, order, A)
        };
        engine.tell(&asked(10, run(A))).await;
        let is_up = |vms: &[RecoveredVmStatus]| {
            vms.iter()
                .any(|vm| vm.agent_answered_unix_ms > 0 && vm.ports.len() == 1)
        };
        engine.until("it is up", is_up).await;
        engine.tell(&asked(11, RecoveryOrder::Stop)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        world
            .host
            .deaf
            .store(true, std::sync::atomic::Ordering::SeqCst);
        engine.tell(&asked(12, run(A))).await;
        engine.says(12, RecoverySaid::Running).await;
        engine
            .until("what was answered before is not told any more", |vms| {
                vms.iter().all(|vm| vm.agent_answered_unix_ms == 0)
            })
            .await;
        world
            .host
            .deaf
            .store(false, std::sync::atomic::Ordering::SeqCst);
        engine.until("it is up again", is_up).await;
        engine.vms.stop().await;
    });
    let networks = world.host.machine(id(A)).unwrap().new.networks;
    assert!(networks[0].segment.is_some() && networks[0].network_name.is_none());
}
