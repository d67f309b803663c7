//! Verification finds what rotted, names it, goes on where it stopped; sending it again heals.

mod support;

use std::fs;
use std::ops::Range;
use std::sync::Arc;

use replica_store::{
    BlockCheck, ErrorKind, PointSelector, Position, ReplicaWriter, RetentionPolicy, VerifyRequest,
    VerifyRound,
};
use support::*;
use uuid::Uuid;

const SEED: u64 = 31;

/// Compares with the model, as an engine does with its hashes.
#[derive(Debug)]
struct Model {
    position: Position,
    image: Image,
}

impl Model {
    fn at(position: u64) -> Arc<dyn BlockCheck> {
        let image = history(SEED, position).pop().unwrap();
        Arc::new(Model {
            position: Position(position),
            image,
        })
    }
}

impl BlockCheck for Model {
    fn position(&self) -> Position {
        self.position
    }

    fn differing(&self, id: Uuid, offset: u64, data: &[u8]) -> Vec<Range<u64>> {
        let n = (0..SIZES.len()).find(|n| disk(*n) == id).unwrap();
        let wanted = &self.image[n][offset as usize..][..data.len()];
        let blocks = data.chunks(4096).zip(wanted.chunks(4096)).enumerate();
        blocks
            .filter(|(_, (seen, wanted))| seen != wanted)
            .map(|(k, (seen, _))| {
                let at = offset + k as u64 * 4096;
                at..at + seen.len() as u64
            })
            .collect()
    }
}

/// Calls with a small budget until the round ends; says how many calls it took.
async fn round(writer: &ReplicaWriter, check: Option<Arc<dyn BlockCheck>>) -> (VerifyRound, u32) {
    for calls in 1.. {
        let request = VerifyRequest {
            budget_bytes: 400_000,
            now_unix_ms: START_MS + i64::from(calls),
            check: check.clone(),
        };
        let done = writer.verify(request).await.unwrap();
        if done.round.is_none() {
            return (done.last.unwrap(), calls);
        }
    }
    unreachable!("a round ends");
}

#[tokio::test]
async fn a_sound_replica_has_no_findings_and_the_round_goes_on_where_it_stopped() {
    let store = Store::new();
    let writer = store.filled(SEED, 6).await;
    let reader = store.reader().await.unwrap();
    assert_eq!(reader.verification().await.unwrap(), None);
    let (last, calls) = round(&writer, Some(Model::at(6))).await;
    assert!(calls > 2, "{calls} calls");
    assert_eq!(last.findings, []);
    assert!(last.compared);
    assert_eq!(last.through, Position(6));
    assert_eq!(
        (last.started_unix_ms, last.finished_unix_ms),
        (START_MS + 1, START_MS + i64::from(calls))
    );
    assert!(last.read_bytes >= SIZES.iter().sum::<u64>());
    // Another engine goes on with the same result; without hashes base is only read.
    let writer = store.writer(2).await.unwrap();
    let (again, _) = round(&writer, None).await;
    assert!(!again.compared);
    assert_eq!(
        reader.verification().await.unwrap().unwrap().last,
        Some(again)
    );
}

#[tokio::test]
async fn rot_in_base_is_named_with_the_points_that_show_it_and_healed_by_a_cycle() {
    let store = Store::new();
    let writer = store.filled(SEED, 4).await;
    let policy = RetentionPolicy::hours(2);
    writer
        .maintain(point(4).time_unix_ms, policy)
        .await
        .unwrap();
    let base = store.item().join(disk(0).to_string()).join("base.vhd");
    let mut content = fs::read(&base).unwrap();
    for at in [9000usize, 700_000] {
        content[at] ^= 1;
    }
    fs::write(&base, &content).unwrap();
    let (last, _) = round(&writer, Some(Model::at(4))).await;
    let model = history(SEED, 4);
    let reader = store.reader().await.unwrap();
    // The oracle: which points really read wrong, and where.
    let mut wrong = Vec::new();
    for kept in reader.points().await.unwrap() {
        let view = reader.view(PointSelector::Id(kept.id)).await.unwrap();
        let seen = image_of(&view).await.unwrap();
        for at in [9000usize, 700_000] {
            if seen[0][at] != model[kept.position.0 as usize][0][at] {
                wrong.push((at as u64, kept.id));
            }
        }
    }
    let head = point(4).id;
    for at in [9000u64, 700_000] {
        let found = last.findings.iter().find(|finding| {
            let damage = &finding.damage;
            damage.disk == disk(0) && (damage.offset..damage.offset + damage.length).contains(&at)
        });
        match found {
            Some(found) => {
                assert!(found.damage.place.ends_with("base.vhd"));
                for (_, id) in wrong.iter().filter(|(wrong, _)| *wrong == at) {
                    assert!(found.points.contains(id), "{found:?}");
                }
            }
            // A cycle has written over it: the head does not show it.
            None => assert!(!wrong.contains(&(at, head))),
        }
    }
    assert!(!last.findings.is_empty());
    // The engine sends the ranges again.
    let mut cycle = writer
        .begin_cycle(Position(5), point(5).time_unix_ms)
        .await
        .unwrap();
    for finding in &last.findings {
        let damage = &finding.damage;
        let data = model[4][0][damage.offset as usize..][..damage.length as usize].to_vec();
        cycle
            .write(damage.disk, damage.offset, data.into())
            .await
            .unwrap();
    }
    cycle.commit().await.unwrap();
    let healed: Arc<dyn BlockCheck> = Arc::new(Model {
        position: Position(5),
        image: model[4].clone(),
    });
    let (last, _) = round(&writer, Some(healed)).await;
    assert_eq!(last.findings, []);
}

#[tokio::test]
async fn rot_in_the_journal_is_named_with_exactly_the_points_that_show_it() {
    for seed in 0..6u64 {
        let store = Store::new();
        let writer = store.filled(SEED, 5).await;
        let object = store
            .item()
            .join("journal")
            .join(format!("{:020}-{:020}.hrl", 1, 2));
        let mut content = fs::read(&object).unwrap();
        let mut random = Random::new(seed);
        let at = random.below(content.len() as u64) as usize;
        content[at] ^= 0x10;
        fs::write(&object, &content).unwrap();
        let (last, _) = round(&writer, Some(Model::at(5))).await;
        assert!(!last.findings.is_empty(), "byte {at}");
        let named: Vec<Uuid> = last
            .findings
            .iter()
            .flat_map(|f| f.points.clone())
            .collect();
        let reader = store.reader().await.unwrap();
        for kept in reader.points().await.unwrap() {
            let id = PointSelector::Id(kept.id);
            let damaged = reader.verify_point(id, |_| {}).await.unwrap();
            assert_eq!(
                named.contains(&kept.id),
                !damaged.is_empty(),
                "byte {at}, point at {:?}",
                kept.position
            );
        }
        for finding in &last.findings {
            assert_eq!(finding.damage.position, Position(2));
            assert!(finding.damage.place.ends_with(".hrl"));
        }
    }
}

#[tokio::test]
async fn a_stale_writer_verifies_nothing() {
    let store = Store::new();
    let stale = store.filled(SEED, 1).await;
    drop(store.writer(2).await.unwrap());
    let request = VerifyRequest {
        budget_bytes: 1 << 20,
        now_unix_ms: 1,
        check: None,
    };
    let error = stale.verify(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn forged_findings_are_no_reason_to_overflow_or_to_send_anything() {
    let store = Store::new();
    let writer = store.filled(SEED, 3).await;
    round(&writer, None).await;
    let file = store.item().join("verified");
    let text = fs::read_to_string(&file).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    let mut value: serde_json::Value = serde_json::from_str(body).unwrap();
    let mut forged = value["last"].clone();
    let finding = |offset: u64, length: u64| {
        serde_json::json!({
            "disk": disk(0), "offset": offset, "length": length, "place": "", "position": 1, "points": []
        })
    };
    forged["finishedUnixMs"] = 0.into();
    forged["findings"] = [
        finding(u64::MAX, 2),
        finding(4096, u64::MAX),
        finding(1 << 60, 1),
        finding(0, 4096),
    ]
    .into();
    value["round"] = forged;
    let body = serde_json::to_string(&value).unwrap();
    let digest = blake3::hash(body.as_bytes()).to_hex();
    fs::write(&file, format!("siterecovery verified 1 {digest}\n{body}")).unwrap();
    let known = store.reader().await.unwrap().verification().await.unwrap();
    let findings = known.unwrap().round.unwrap().findings;
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].damage.length, 4096);
}
