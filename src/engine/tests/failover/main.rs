//! The recovery side of failovers on a host in memory, with a real store: orders, kills, and what must never be.

#[path = "../../../disk-image/tests/boot_disks/mod.rs"]
mod boot_disks;
mod generations;
mod host;
mod hydration;
mod network;
mod world;

use std::time::Duration;

use engine::recovered::places;
use engine_protocol::v1::recovered_vm_status::State;
use engine_protocol::v1::{self, RecoveredVm, RecoveredVmStatus};
use protection::life::{RecoveryOrder, RecoverySaid};
use uuid::Uuid;

use host::StopAt;
use world::{A, B, Engine, World, codes, id, leave, life, no_pauses, point, report, run};

#[test]
fn run_stop_run_keeps_what_the_guest_wrote_and_says_only_what_is_so() {
    let world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        let status = engine.status(A);
        assert!(status.started_unix_ms > 0 && status.point_id == point(0).id.to_string());
        let networks = world.host.machine(id(A)).unwrap().new.networks;
        assert!(networks.len() == 1 && networks[0].network_name.is_none());
        world.host.change(id(A), |vm| vm.written.push(42));

        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        assert_eq!(engine.status(A).state(), State::Off);
        assert_eq!(world.pins().await.len(), 1, "its point is kept");
        engine.tell(&world.listed(12, run(A), A)).await;
        engine.says(12, RecoverySaid::Running).await;
        assert_eq!(world.host.machine(id(A)).unwrap().written, [42]);
    });
    assert_eq!(world.host.events(), ["start 5", "shut down 5", "start 5"]);
}

#[test]
fn another_instance_is_started_only_when_the_first_is_removed() {
    let world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        engine.tell(&world.listed(11, run(B), B)).await;
        engine.says(11, RecoverySaid::Running).await;
        assert_eq!(engine.status(B).point_id, point(1).id.to_string());
        assert_eq!(engine.board.snapshot().recovered.len(), 1);
        assert_eq!(world.pins().await, [format!("recovered-{}", id(B))]);
    });
    let events = ["start 5", "turn off 5", "remove 5", "start 6"];
    assert_eq!(world.host.events(), events);
    assert!(!world.recovery().join(id(A).to_string()).exists());
}

#[test]
fn absent_leaves_nothing_says_so_and_a_late_order_to_run_is_dropped() {
    let world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        engine
            .tell(&world.listed(12, RecoveryOrder::Absent, A))
            .await;
        engine.says(12, RecoverySaid::Absent).await;
        assert_eq!(engine.status(A).state(), State::Off);
        assert!(world.pins().await.is_empty());
        let left = std::fs::read_dir(world.recovery()).unwrap().count();
        assert_eq!(left, 1, "nothing but what was ordered");
        engine.vms.apply(&[]).await;
        engine.until("it is shown no more", <[_]>::is_empty).await;
    });
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(11, run(A), A)).await;
        engine.says(12, RecoverySaid::Absent).await;
    });
    assert_eq!(world.host.events().last().unwrap(), "remove 5");
}

/// The order a life comes to, as the orchestrator sends them, each once the one before is confirmed.
fn story(world: &World, last: RecoveryOrder) -> Vec<(RecoveredVm, RecoverySaid)> {
    let end = match last {
        RecoveryOrder::Absent => RecoverySaid::Absent,
        _ => RecoverySaid::Left,
    };
    vec![
        (world.listed(10, run(A), A), RecoverySaid::Running),
        (
            world.listed(11, RecoveryOrder::Stop, A),
            RecoverySaid::Stopped,
        ),
        (world.listed(12, run(A), A), RecoverySaid::Running),
        (world.listed(13, run(B), B), RecoverySaid::Running),
        (world.listed(14, last, B), end),
    ]
}

#[test]
fn an_engine_that_is_killed_between_any_two_steps_ends_right() {
    let mut kills = 0;
    for last in [RecoveryOrder::Absent, leave(B)] {
        for place in places::PLACES {
            for after in 0.. {
                let world = World::new();
                let story = story(&world, last);
                let mut at = 0;
                let killed = life(async {
                    let stop = StopAt::new(place, after);
                    let mut engine = world.engine(stop.clone());
                    while let Some((vm, said)) = story.get(at) {
                        engine.tell(vm).await;
                        let epoch = vm.order.as_ref().unwrap().epoch;
                        tokio::select! {
                            biased;
                            () = stop.reached.notified() => return true,
                            () = engine.says(epoch, *said) => at += 1,
                        }
                    }
                    false
                });
                if !killed {
                    break;
                }
                kills += 1;
                let context = format!("{last:?}: kill {after} at {place}");
                life(async {
                    let mut engine = world.engine(no_pauses());
                    for (vm, said) in &story[at..] {
                        engine.tell(vm).await;
                        let epoch = vm.order.as_ref().unwrap().epoch;
                        engine.says(epoch, *said).await;
                    }
                    assert!(world.pins().await.is_empty(), "{context}");
                });
                let machines = world.host.machines.lock().unwrap().clone();
                if last == RecoveryOrder::Absent {
                    assert!(machines.is_empty(), "{context}: {machines:?}");
                } else {
                    assert_eq!(machines.len(), 1, "{context}");
                    let left = &machines[&id(B)];
                    assert!(left.running && left.layers == 0, "{context}");
                }
            }
        }
    }
    assert!(kills > 30, "only {kills}");
}

#[test]
fn a_vm_of_a_failover_that_is_not_listed_stays_served_and_one_of_a_drill_goes() {
    let world = World::new();
    let drill = Uuid::from_u128(77);
    let served = |id: u64| {
        world
            .recovery()
            .join(self::id(id).to_string())
            .join("nbd.sock")
    };
    life(async {
        let mut engine = world.engine(no_pauses());
        let both = [world.listed(10, run(A), A), world.drill(drill)];
        engine.vms.apply(&both).await;
        engine.says(10, RecoverySaid::Running).await;
        engine
            .until("the drill runs", |all| {
                all.iter()
                    .any(|vm| vm.id == drill.to_string() && vm.started_unix_ms > 0)
            })
            .await;
        engine.vms.apply(&[]).await;
        engine
            .until("only the drill's is gone", |all| {
                all.iter().all(|vm| vm.id == id(A).to_string())
            })
            .await;
        assert!(world.host.is_running(id(A)) && served(A).exists());
        assert!(world.host.machine(drill).is_none());
        engine.vms.stop().await;
        assert!(!served(A).exists());
    });
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.vms.apply(&[]).await;
        engine.says(10, RecoverySaid::Running).await;
        engine
            .until("it is served again", |_| served(A).exists())
            .await;
    });
    let events = world.host.events();
    assert!(!events.contains(&"remove 5".to_owned()), "{events:?}");
}

#[test]
fn a_failovers_vm_is_no_drills_whatever_the_list_says() {
    let world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        let mut without = world.listed(11, RecoveryOrder::Stop, A);
        without.order = None;
        engine.tell(&without).await;
        engine.vms.apply(&[]).await;
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
    });
    assert_eq!(world.host.events(), ["start 5"]);
}

#[test]
fn without_the_store_a_vm_is_not_started_and_with_it_it_is() {
    let world = World::new();
    let away = world.folder.path().join("away");
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        // For a VM that was made before, too.
        std::fs::rename(world.store(), &away).unwrap();
        engine.tell(&world.listed(12, run(A), A)).await;
        engine
            .until("it fails", |all| {
                all.iter().any(|vm| vm.state() == State::Failed)
            })
            .await;
        let status = engine.status(A);
        assert_eq!(codes(&status), ["ORDER_NOT_CARRIED_OUT"]);
        assert_eq!(report(&status), None);
        assert!(!world.host.is_running(id(A)));
        std::fs::rename(&away, world.store()).unwrap();
        engine.says(12, RecoverySaid::Running).await;
        engine
            .until("nothing is wrong any more", |all| {
                all.iter().all(|vm| vm.findings.is_empty())
            })
            .await;
    });
}

#[test]
fn a_vm_that_was_shut_down_from_inside_stays_off_until_the_host_restarts() {
    let mut world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        world.host.change(id(A), |vm| vm.running = false);
        engine
            .until("it is off", |all| {
                all.iter()
                    .any(|vm| vm.state() == State::Off && vm.recovery.is_none())
            })
            .await;
    });
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine
            .until("it is off", |all| {
                all.iter().any(|vm| vm.state() == State::Off)
            })
            .await;
    });
    assert_eq!(world.host.events(), ["start 5"]);
    world.host.lose_power();
    world.boot = "second".to_owned();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
    });
    assert_eq!(world.host.events(), ["start 5", "start 5"]);
}

#[test]
fn an_order_that_nobody_understands_or_that_contradicts_changes_nothing_and_is_shown() {
    let world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        let mut unknown = world.listed(9, RecoveryOrder::Absent, A);
        unknown.order = Some(v1::RecoveryOrder {
            epoch: 9,
            kind: 99,
            ..v1::RecoveryOrder::default()
        });
        let shown =
            |all: &[RecoveredVmStatus]| all.iter().any(|vm| codes(vm) == ["ORDER_NOT_TAKEN"]);
        engine.tell(&unknown).await;
        engine.until("it is shown", shown).await;
        assert!(!world.guard().exists());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        let before = std::fs::read(world.guard()).unwrap();
        engine
            .tell(&world.listed(10, RecoveryOrder::Absent, A))
            .await;
        engine.until("it is shown", shown).await;
        unknown.order.as_mut().unwrap().epoch = 11;
        engine.tell(&unknown).await;
        engine.until("it is shown", shown).await;
        engine.says(10, RecoverySaid::Running).await;
        assert_eq!(std::fs::read(world.guard()).unwrap(), before);
    });
    assert_eq!(world.host.events(), ["start 5"]);
}

#[test]
fn a_vm_that_somebody_removed_by_hand_is_not_made_anew_from_its_point() {
    let world = World::new();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        world.host.machines.lock().unwrap().clear();
        engine.tell(&world.listed(12, run(A), A)).await;
        engine
            .until("it fails", |all| {
                all.iter().any(|vm| codes(vm) == ["ORDER_NOT_CARRIED_OUT"])
            })
            .await;
        assert!(world.host.machine(id(A)).is_none());
        engine.tell(&world.listed(13, run(B), B)).await;
        engine.says(13, RecoverySaid::Running).await;
    });
}

#[test]
fn a_layer_that_is_gone_is_not_made_anew_beside_the_others() {
    let world = World::new();
    let layer = world.recovery().join(id(A).to_string()).join("disk0.qcow2");
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        engine.vms.stop().await;
        std::fs::remove_file(&layer).unwrap();
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(12, run(A), A)).await;
        engine
            .until("it fails", |all| {
                all.iter().any(|vm| codes(vm) == ["ORDER_NOT_CARRIED_OUT"])
            })
            .await;
        assert!(!layer.exists());
        engine.tell(&world.listed(13, run(B), B)).await;
        engine.says(13, RecoverySaid::Running).await;
    });
}

#[test]
fn a_damaged_guard_permits_nothing() {
    let world = World::new();
    std::fs::create_dir_all(world.guard().parent().unwrap()).unwrap();
    std::fs::write(world.guard(), "{").unwrap();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine
            .until("it fails", |all| {
                all.iter()
                    .any(|vm| vm.state() == State::Failed && codes(vm) == ["ORDER_NOT_CARRIED_OUT"])
            })
            .await;
    });
    assert!(world.host.events().is_empty());
    assert_eq!(std::fs::read(world.guard()).unwrap(), b"{");
}

#[test]
fn a_guest_that_does_not_shut_down_is_turned_off() {
    let world = World::new();
    *world.host.stubborn.lock().unwrap() = true;
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        let begun = tokio::time::Instant::now();
        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        assert!(begun.elapsed() >= Duration::from_secs(120));
    });
    assert_eq!(world.host.events(), ["start 5", "turn off 5"]);
}

#[test]
fn a_vm_that_is_left_runs_on_holds_nothing_and_is_nobodys_any_more() {
    let world = World::new();
    let left = async |engine: &mut Engine| {
        engine.tell(&world.listed(11, leave(A), A)).await;
        engine.says(11, RecoverySaid::Left).await;
        assert!(world.pins().await.is_empty());
        engine.vms.apply(&[]).await;
        engine.until("it is shown no more", <[_]>::is_empty).await;
    };
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        left(&mut engine).await;
    });
    life(async { left(&mut world.engine(no_pauses())).await });
    let machine = world.host.machine(id(A)).unwrap();
    assert!(machine.running && machine.layers == 0);
    assert_eq!(world.host.events(), ["start 5"]);
}
