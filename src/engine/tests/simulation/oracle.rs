//! What must hold whatever happened: every recovery point equals the disks of its VM at one freeze, points of one group
//! are of one freeze of all of them, and no point that was reported is gone unless retention may have retired it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use engine_protocol::v1::ReplicationStatus;
use hypervisor::{DiskId, VmId};
use replica_store::{
    ErrorKind, PointKind, PointSelector, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget,
};
use replication_log::KeyRing;
use uuid::Uuid;

use super::host::SimHost;
use super::orchestrator::{VAULT, Wanted};

/// Points that an engine has told of.
#[derive(Default)]
pub struct Acknowledged(BTreeMap<String, BTreeMap<String, i64>>);

impl Acknowledged {
    pub fn note(&mut self, status: &ReplicationStatus) {
        let item = self.0.entry(status.item_id.clone()).or_default();
        for point in &status.recovery_points {
            item.insert(point.id.clone(), point.time_unix_ms);
        }
    }

    pub fn count(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

/// Checks all replicas; gives the number of points.
pub async fn check(
    host: &SimHost,
    store: &Path,
    items: &[Wanted],
    keys: &KeyRing,
    acknowledged: &Acknowledged,
    points_may_go: bool,
) -> usize {
    let machines = host.machines();
    let mut groups: BTreeMap<Uuid, BTreeSet<u64>> = BTreeMap::new();
    let mut count = 0;
    for item in items {
        let target = StoreTarget::Folder(store.to_owned());
        let key = ReplicaKey::new(VAULT, &item.item_id).unwrap();
        let reader = match ReplicaReader::open_with_keys(&target, &key, keys.clone()).await {
            Ok(reader) => reader,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let known = acknowledged.0.get(&item.item_id).map_or(0, BTreeMap::len);
                assert_eq!(known, 0, "a replica with {known} points is gone");
                continue;
            }
            Err(error) => panic!("the replica of {} does not open: {error}", item.item_id),
        };
        let vm = machines[item.machine].0;
        let points = reader.points().await.unwrap();
        for point in &points {
            let instant = check_point(host, &reader, vm, point).await;
            if let Some(group) = point.group_point_id {
                groups.entry(group).or_default().insert(instant);
            }
        }
        count += points.len();
        check_kept(item, &points, acknowledged, points_may_go);
    }
    for (group, instants) in groups {
        assert_eq!(
            instants.len(),
            1,
            "group point {group} is of several instants"
        );
    }
    count
}

async fn check_point(
    host: &SimHost,
    reader: &ReplicaReader,
    vm: VmId,
    point: &RecoveryPoint,
) -> u64 {
    let position = point.position.0;
    let snapshot = host
        .snapshot(vm, point.time_unix_ms)
        .unwrap_or_else(|| panic!("point {position} is of no freeze"));
    if point.kind == PointKind::Application {
        assert!(
            snapshot.confirmed,
            "point {position}: the guest did not confirm"
        );
    }
    let view = reader.view(PointSelector::Id(point.id)).await.unwrap();
    assert!(!view.disks().is_empty(), "point {position} has no disks");
    for disk in view.disks().to_vec() {
        let expected = snapshot
            .disks
            .get(&DiskId(disk.id))
            .unwrap_or_else(|| panic!("point {position} has disk {} too much", disk.id));
        assert_eq!(
            disk.size_bytes,
            expected.len() as u64,
            "size of {} at position {position}",
            disk.id
        );
        let got = view.read(disk.id, 0, expected.len()).await.unwrap();
        if got != ***expected {
            let at = (0..expected.len()).find(|at| got[*at] != expected[*at]);
            panic!(
                "disk {} at position {position} differs at byte {at:?}",
                disk.id
            );
        }
    }
    snapshot.instant
}

fn check_kept(
    item: &Wanted,
    points: &[RecoveryPoint],
    acknowledged: &Acknowledged,
    points_may_go: bool,
) {
    let Some(known) = acknowledged.0.get(&item.item_id) else {
        return;
    };
    let kept: BTreeSet<String> = points.iter().map(|point| point.id.to_string()).collect();
    if points_may_go {
        assert!(!points.is_empty(), "retention left no point at all");
        return;
    }
    for (id, time) in known {
        assert!(
            kept.contains(id),
            "point {id} of {time} was reported and is gone; {} are left",
            kept.len()
        );
    }
}
