//! What a store must hold: every point as the disks were at its freeze.

use std::collections::BTreeSet;
use std::path::Path;

use replica_store::{PointSelector, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget};

use super::{BLOCK, FakeHost, ITEM, VAULT};

impl FakeHost {
    /// Checks every point of the replica against what the disks held at its freeze, and that no cycle sent more
    /// than the guest had written since the point before. Returns the points.
    pub async fn check_store(&self, store: &Path) -> Vec<RecoveryPoint> {
        let target = StoreTarget::Folder(store.to_owned());
        let key = ReplicaKey::new(VAULT, ITEM).unwrap();
        let reader = ReplicaReader::open(&target, &key).await.unwrap();
        let points = reader.points().await.unwrap();
        for point in &points {
            let view = reader.view(PointSelector::Id(point.id)).await.unwrap();
            let (expected, ids) = {
                let inner = self.inner.lock().unwrap();
                let expected = inner
                    .history
                    .get(&point.time_unix_ms)
                    .expect("a point at a freeze")
                    .clone();
                (
                    expected,
                    inner.disks.iter().map(|disk| disk.id).collect::<Vec<_>>(),
                )
            };
            for (id, expected) in ids.iter().zip(&expected) {
                let Some(disk) = view.disks().iter().find(|disk| disk.id == id.0) else {
                    continue;
                };
                assert_eq!(
                    disk.size_bytes,
                    expected.len() as u64,
                    "size of disk {id} at position {}",
                    point.position.0
                );
                let got = view.read(id.0, 0, expected.len()).await.unwrap();
                if got != ***expected {
                    let block = (0..expected.len() / BLOCK).find(|block| {
                        got[block * BLOCK..][..BLOCK] != expected[block * BLOCK..][..BLOCK]
                    });
                    panic!(
                        "disk {id} at position {} differs in block {block:?}",
                        point.position.0
                    );
                }
            }
        }
        for pair in points.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            if after.position.0 != before.position.0 + 1 {
                continue;
            }
            let inner = self.inner.lock().unwrap();
            let written: BTreeSet<_> = inner
                .written
                .range(before.time_unix_ms..after.time_unix_ms)
                .flat_map(|(_, blocks)| blocks.iter().copied())
                .collect();
            assert!(
                after.changed_bytes <= (written.len() * BLOCK) as u64,
                "cycle {} moved {} bytes although the guest wrote {} blocks",
                after.position.0,
                after.changed_bytes,
                written.len()
            );
        }
        points
    }
}
