//! A failback from the first order to protection anew, with the whole engine under orders.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine::replicator::hashes::{self, BlockMap, MapKey};
use engine::replicator::pauses::NoPauses;
use engine::replicator::state::ItemFiles;
use engine_protocol::v1;
use engine_protocol::v1::replication_status::State;
use hypervisor::DiskId;
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use replica_store::{
    CyclePlan, DiskSpec, PointKind, Position, RecoveryPoint, ReplicaKey, ReplicaState,
    ReplicaWriter, StoreTarget, WriterOptions,
};
use uuid::Uuid;

use crate::support::item::{has, points};
use crate::support::ordered::{Engine, LICENCE, message, newest_is, says};
use crate::support::{ITEM, StopAt, VAULT, World, life};

const ORIGIN: u64 = 5;
const AGAIN: u64 = 9;

fn specs(world: &World, disks: &[Vec<u8>]) -> Vec<DiskSpec> {
    let ids = world.host.disks().into_iter().zip(disks);
    ids.map(|(id, disk)| DiskSpec {
        id: id.0,
        size_bytes: disk.len() as u64,
        name: id.to_string(),
    })
    .collect()
}

/// The recovered VM writes 4 KiB of a value at an offset of its first disk, and ships that.
async fn recovered_writes(world: &World, disks: &mut [Vec<u8>], offset: usize, value: u8) {
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let options = WriterOptions {
        any_disks: true,
        ..WriterOptions::default()
    };
    let specs = specs(world, disks);
    let target = StoreTarget::Folder(world.store());
    let generation = replica_store::Generation(ORIGIN);
    let writer = ReplicaWriter::open_with(options, &target, &key, generation, &specs)
        .await
        .unwrap();
    let ReplicaState::Complete { head_position, .. } = writer.state().await.unwrap() else {
        panic!("no replica");
    };
    let position = Position(head_position.0 + 1);
    let newest = writer.points().await.unwrap().pop().unwrap();
    let time_unix_ms = newest.time_unix_ms + 1000;
    disks[0][offset..offset + 4096].fill(value);
    let plan = CyclePlan {
        position,
        time_unix_ms,
        disks: Some(specs.clone()),
        compression: replication_log::journal::CompressionLevel::default(),
    };
    let mut cycle = writer.begin_cycle_with(plan).await.unwrap();
    let data = Bytes::copy_from_slice(&disks[0][offset..offset + 4096]);
    cycle.write(specs[0].id, offset as u64, data).await.unwrap();
    cycle.commit().await.unwrap();
    let point = RecoveryPoint {
        id: Uuid::new_v4(),
        time_unix_ms,
        kind: PointKind::Crash,
        position,
        vm_config: newest.vm_config,
        ..RecoveryPoint::default()
    };
    writer.add_point(point).await.unwrap();
}

/// What the images hold.
fn images(world: &World) -> Vec<Vec<u8>> {
    let read = |path: &Path| {
        let image = DiskImage::open(path, Access::ReadOnly).unwrap();
        let mut data = vec![0; image.virtual_size() as usize];
        image.read_at(&mut data, 0).unwrap();
        data
    };
    world
        .host
        .disk_paths()
        .iter()
        .map(|path| read(path))
        .collect()
}

/// Puts what the host's disks hold into images where the host says that they are.
fn make_images(world: &World) {
    for (path, data) in world.host.disk_paths().iter().zip(world.host.contents()) {
        let options = CreateOptions::new(Format::VhdxDynamic, data.len() as u64);
        let mut image = DiskImage::create(path, &options).unwrap();
        image.write_at(&data, 0).unwrap();
        image.close().unwrap();
    }
}

fn map_keys(world: &World) -> Vec<(MapKey, u64)> {
    let folder = world.folder.path().join("state");
    let folder = ItemFiles::new(&folder, ITEM).hashes().to_owned();
    let key = |disk: &DiskId| {
        let file = hashes::open(&folder.join(format!("{disk}.map"))).unwrap();
        let map = BlockMap::open(Box::new(file.unwrap())).unwrap().unwrap();
        (*map.key(), map.header().generation)
    };
    world.host.disks().iter().map(key).collect()
}

fn receive(world: &World, epoch: u64, order: SourceOrder) -> v1::Replication {
    v1::Replication {
        origin: ORIGIN,
        ..message(world, epoch, order)
    }
}

#[test]
fn a_vm_that_failed_over_comes_back_with_everything_and_is_protected_without_asking_the_store() {
    let world = World::new(77);
    let (mut theirs, keys) = life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 1, SourceOrder::Replicate(LICENCE));
        engine.wait(&world, "protected", points(3)).await;
        engine.order(&world, 2, SourceOrder::ShipRest(LICENCE));
        let shipped = says(2, SourceSaid::Shipped);
        engine.wait(&world, "shipped", shipped).await;
        engine.order(&world, 3, SourceOrder::Hold);
        engine.wait(&world, "held", says(3, SourceSaid::Held)).await;
        engine.stop().await;
        (world.host.contents(), map_keys(&world))
    });
    make_images(&world);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        // The order may come before the recovered VM has shipped anything.
        engine.tell(receive(&world, 6, SourceOrder::Receive));
        recovered_writes(&world, &mut theirs, 8192, 0x55).await;
        let received = says(6, SourceSaid::Received);
        let status = engine.wait(&world, "received", received).await;
        assert_eq!(status.source.unwrap().received_bytes, 4096);
        assert!(images(&world) == theirs);
        engine.stop().await;
    });
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        recovered_writes(&world, &mut theirs, 65536, 0x66).await;
        engine.tell(receive(&world, 7, SourceOrder::ReceiveRest));
        let received = says(7, SourceSaid::Received);
        engine.wait(&world, "everything received", received).await;
        assert!(images(&world) == theirs, "proven equal before it is said");
        engine.stop().await;
    });
    // The host reads its images.
    for (disk, data) in images(&world).into_iter().enumerate() {
        world.host.write(disk, 0, &data);
    }
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.tell(v1::Replication {
            generation: AGAIN,
            ..message(&world, 8, SourceOrder::Replicate(Generation(AGAIN)))
        });
        let compared = |status: &v1::ReplicationStatus| {
            status.state() == State::Protected && status.recovery_points.len() > 5
        };
        engine.wait(&world, "protected anew", compared).await;
        assert!(world.host.is_running());
        let mut rest = message(&world, 9, SourceOrder::ShipRest(Generation(AGAIN)));
        rest.generation = AGAIN;
        engine.tell(rest);
        let shipped = says(9, SourceSaid::Shipped);
        let status = engine.wait(&world, "shipped again", shipped).await;
        newest_is(&world, &status).await;
        engine.stop().await;
    });
    let now = map_keys(&world);
    for ((key, _), (before, _)) in now.iter().zip(&keys) {
        assert!(key == before, "the maps of before are used");
    }
    assert!(now.iter().all(|(_, generation)| *generation == AGAIN));
}

#[test]
fn a_vm_whose_disks_are_half_of_another_point_is_not_started() {
    let world = World::new(78);
    let mut theirs = life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 1, SourceOrder::Replicate(LICENCE));
        engine.wait(&world, "protected", points(3)).await;
        engine.order(&world, 3, SourceOrder::ShipRest(LICENCE));
        let shipped = says(3, SourceSaid::Shipped);
        engine.wait(&world, "shipped", shipped).await;
        engine.stop().await;
        world.host.contents()
    });
    make_images(&world);
    life(async {
        let stop = StopAt::new(Some(engine::receive::WRITING), 0);
        let engine = Engine::start(&world, stop.clone());
        recovered_writes(&world, &mut theirs, 8192, 0x55).await;
        engine.tell(receive(&world, 6, SourceOrder::Receive));
        // Killed there.
        stop.reached.notified().await;
    });
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        // With a licence above the recovered VM's nothing else would stand in the way.
        engine.tell(v1::Replication {
            generation: AGAIN,
            ..message(&world, 7, SourceOrder::Run(Generation(AGAIN)))
        });
        let withheld = has("FAILBACK_HALF_RECEIVED");
        engine.wait(&world, "a finding", withheld).await;
        assert!(!world.host.is_running());
        // To the end of the failback it may.
        engine.tell(receive(&world, 8, SourceOrder::ReceiveRest));
        let received = says(8, SourceSaid::Received);
        engine.wait(&world, "everything received", received).await;
        assert!(images(&world) == theirs);
        engine.tell(v1::Replication {
            generation: AGAIN,
            ..message(&world, 9, SourceOrder::Run(Generation(AGAIN)))
        });
        engine
            .wait(&world, "it runs", says(9, SourceSaid::Running))
            .await;
        engine.stop().await;
    });
}
