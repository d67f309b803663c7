//! Journal objects of an encrypted replica need their keys, and rotate them without being written again.

mod support;

use replica_store::{
    ErrorKind, Generation, PointSelector, Position, ReplicaReader, ReplicaWriter, RetentionPolicy,
    WriterOptions,
};
use replication_log::KeyRing;
use support::*;
use uuid::Uuid;

const SEED: u64 = 51;

fn ring(keys: &[u128], active: u128) -> KeyRing {
    let mut ring = KeyRing::new();
    for id in keys {
        ring.insert(Uuid::from_u128(*id), &[*id as u8; 32]).unwrap();
    }
    ring.activate(Some(Uuid::from_u128(active))).unwrap();
    ring
}

#[tokio::test]
async fn points_are_read_with_old_and_new_keys_and_by_nobody_without() {
    let store = Store::new();
    let options = WriterOptions {
        keys: ring(&[1], 1),
        ..WriterOptions::default()
    };
    let (target, key) = (store.target(), store.key());
    let writer = ReplicaWriter::open_with(options, &target, &key, Generation(1), &specs())
        .await
        .unwrap();
    replicate_base(&writer, SEED).await.unwrap();
    send(&writer, SEED, 1).await.unwrap();
    writer.set_keys(ring(&[1, 2], 2));
    send(&writer, SEED, 2).await.unwrap();
    let model = history(SEED, 2);
    let open = async |keys| {
        ReplicaReader::open_with_keys(&target, &key, keys)
            .await
            .unwrap()
    };
    let both = open(ring(&[1, 2], 1)).await;
    assert_eq!(check_points(&both, &model, "keys").await, [0, 1, 2]);
    for (keys, readable) in [(KeyRing::new(), 0), (ring(&[1], 1), 1)] {
        let reader = open(keys).await;
        for position in 0..=2 {
            let view = reader.view(PointSelector::Id(point(position).id)).await;
            if position <= readable {
                assert!(image_of(&view.unwrap()).await.unwrap() == model[position as usize]);
            } else {
                assert_eq!(view.unwrap_err().kind(), ErrorKind::MissingKey);
            }
        }
    }
    // Nothing in the clear is left in the journal.
    for path in store.files() {
        if path.extension().is_some_and(|e| e == "hrl") {
            let stored = std::fs::read(&path).unwrap();
            for change in changes(SEED, 1).into_iter().chain(changes(SEED, 2)) {
                if let Change::Write(_, _, data) = change {
                    let part = &data[..data.len().min(64)];
                    assert!(!stored.windows(part.len()).any(|window| window == part));
                }
            }
        }
    }
    // A writer without the key can't move base, and says why; it harms nothing.
    let plain = store.writer(2).await.unwrap();
    let none = RetentionPolicy::hours(0);
    let now = point(2).time_unix_ms;
    let error = plain.maintain(now, none).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingKey, "{error}");
    plain.set_keys(ring(&[1, 2], 2));
    let report = plain.maintain(now, none).await.unwrap();
    assert_eq!(report.base_position_after, Position(2));
}
