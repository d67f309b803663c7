//! What can be changed while a VM stays protected, what nobody may change, and what is seen of it.

mod harness;

use std::time::Duration;

use engine_protocol::v1;
use harness::engine::{DB, Engine, WEB};
use harness::{World, policy_body, ready};
use orchestrator::auth::{clients, roles::Role};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn wanted(engine: &Engine, vm: &str) -> v1::Replication {
    let mut all = engine.last().replications.into_iter();
    all.rfind(|one| one.vm_id == vm).unwrap_or_default()
}

async fn patch(world: &World, path: &str, properties: Value) -> harness::Answer {
    let body = json!({ "properties": properties });
    world.call(Method::PATCH, path, Some(body)).await
}

fn specific(mut details: Value) -> Value {
    details["instanceType"] = json!("HyperVReplicaAzure");
    json!({ "providerSpecificDetails": details })
}

fn policy(more: Value) -> Value {
    let mut body = policy_body(30);
    let input = &mut body["properties"]["providerSpecificInput"];
    let Value::Object(fields) = more else {
        panic!("{more} has no fields");
    };
    for (name, value) in fields {
        input[name] = value;
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_groups_and_policies_reach_the_engine_as_they_were_said() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let throttle = json!({ "bytesPerSecond": 1_000, "days": ["monday"], "startTime": "08:00", "endTime": "18:00", "utcOffset": "+01:00" });
    let answer = patch(
        &world,
        &item,
        specific(json!({ "throttles": [throttle], "multiVmGroupName": "shop" })),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    world
        .until(&item, |_| wanted(&engine, WEB).group_name == "shop")
        .await;
    let told = wanted(&engine, WEB).throttles;
    assert_eq!(told[0].bytes_per_second, 1_000);
    let window = &told[0].windows[0];
    assert_eq!(
        (
            window.days.as_slice(),
            window.start_minute,
            window.end_minute,
            window.utc_offset_minutes
        ),
        (&[0][..], 480, 1080, 60)
    );
    let host = patch(
        &world,
        &engine.provider_id,
        json!({ "throttles": [{ "bytesPerSecond": 0 }] }),
    )
    .await;
    assert_eq!(
        host.body["properties"]["throttles"][0]["bytesPerSecond"], 0,
        "{host:?}"
    );
    world
        .until(&item, |_| {
            engine
                .last()
                .throttles
                .first()
                .is_some_and(|one| one.windows.is_empty())
        })
        .await;
    for wrong in [
        json!({ "bytesPerSecond": 1, "startTime": "25:00" }),
        json!({ "startTime": "08:00" }),
    ] {
        let refused = patch(&world, &item, specific(json!({ "throttles": [wrong] }))).await;
        assert_eq!(
            refused.target(),
            "properties.providerSpecificDetails.throttles[0]",
            "{refused:?}"
        );
    }

    let change = json!({
        "replicationInterval": 5, "applicationConsistentSnapshotFrequencyInHours": 0,
        "applicationConsistentSnapshotFrequencyInMinutes": 10, "logQuotaInPercent": 25, "verificationIntervalInHours": 24,
        "retentionTiers": [{ "intervalInMinutes": 60, "durationInHours": 168 }, { "intervalInMinutes": 1440, "durationInHours": 8760 }],
        "comparisonWindows": [{ "startTime": "18:30", "endTime": "06:00" }],
    });
    world
        .done(&world.put(&world.policy(), policy(change)).await)
        .await;
    world
        .until(&item, |_| {
            wanted(&engine, WEB)
                .policy
                .is_some_and(|one| one.replication_interval_seconds == 5)
        })
        .await;
    let told = wanted(&engine, WEB).policy.expect("policy");
    assert_eq!(
        (
            told.app_consistent_frequency_hours,
            told.app_consistent_frequency_minutes
        ),
        (0, 10)
    );
    assert_eq!((told.log_quota_percent, told.verification_hours), (25, 24));
    let tiers: Vec<_> = told
        .retention_tiers
        .iter()
        .map(|tier| (tier.every_seconds, tier.for_seconds))
        .collect();
    assert_eq!(tiers, [(3_600, 604_800), (86_400, 31_536_000)]);
    assert_eq!(
        (
            told.comparison_windows[0].start_minute,
            told.comparison_windows[0].end_minute
        ),
        (1110, 360)
    );
    let shown = world.get(&world.policy()).await.body;
    assert_eq!(
        shown["properties"]["providerSpecificDetails"]["retentionTiers"][1]["durationInHours"],
        8760
    );
    for (name, value) in [
        (
            "retentionTiers",
            json!([{ "intervalInMinutes": 60, "durationInHours": 1 }]),
        ),
        ("immutabilityInHours", json!(u32::MAX)),
        ("logQuotaInPercent", json!(101)),
        ("encryption", json!("Perhaps")),
    ] {
        let refused = world
            .put(&world.policy(), policy(json!({ name: value })))
            .await;
        assert_eq!(
            refused.target(),
            format!("properties.providerSpecificInput.{name}"),
            "{refused:?}"
        );
    }

    // A group is on one host.
    let other = Engine::start(
        &world.registration_key().await,
        &world.orchestrator.gateway.to_string(),
    )
    .await;
    let refused = patch(
        &world,
        &item,
        specific(json!({ "multiVmGroupName": "a/b" })),
    )
    .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    let alone = patch(&world, &item, specific(json!({ "multiVmGroupName": "" }))).await;
    assert!(alone.body["properties"]["providerSpecificDetails"]["multiVmGroupName"].is_null());
    drop(other);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_and_go_without_a_new_activation_and_a_comparison_ends_with_the_engines_word() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.item(WEB).await;
    let (first, second) = (format!("{WEB}-disk-0"), format!("{WEB}-disk-1"));
    let mut body = world.enable_body(WEB).await;
    let details = &mut body["properties"]["providerSpecificDetails"];
    details["disksToInclude"] = json!([first]);
    details["seeds"] = json!([{ "diskId": first, "path": "/srv/seeds/os.vhdx" }]);
    world.done(&world.put(&item, body).await).await;
    world
        .until(&item, |item| {
            item["properties"]["protectionState"] == "Protected"
        })
        .await;
    assert_eq!(wanted(&engine, WEB).seeds[0].path, "/srv/seeds/os.vhdx");
    world
        .until(&item, |_| wanted(&engine, WEB).replica_exists)
        .await;
    let generation = wanted(&engine, WEB).generation;

    let added = world
        .post(
            &format!("{item}/addDisks"),
            json!({ "properties": specific(json!({ "diskIds": [second] })) }),
        )
        .await;
    let after = world.done(&added).await;
    let disks = after["properties"]["providerSpecificDetails"]["azureVmDiskDetails"]
        .as_array()
        .expect("disks")
        .clone();
    assert_eq!(disks.len(), 2);
    assert_eq!(disks[1]["trackingState"], "Tracked");
    assert_eq!(
        wanted(&engine, WEB).disk_ids,
        [first.clone(), second.clone()]
    );
    assert_eq!(
        world.job(&added).await["properties"]["scenarioName"],
        "AddDisks"
    );

    // PUT with other disks is the same change; the system disk stays.
    let mut body = world.enable_body(WEB).await;
    body["properties"]["providerSpecificDetails"]["disksToInclude"] = json!([first]);
    world.done(&world.put(&item, body).await).await;
    assert_eq!(wanted(&engine, WEB).disk_ids, std::slice::from_ref(&first));
    assert_eq!(
        wanted(&engine, WEB).generation,
        generation,
        "no new activation"
    );
    for (action, disk) in [("removeDisks", first.as_str()), ("addDisks", "nothing")] {
        let refused = world
            .post(
                &format!("{item}/{action}"),
                json!({ "properties": specific(json!({ "diskIds": [disk] })) }),
            )
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    }

    engine.behave(|engine| engine.compares_never = true);
    let repair = world
        .post(&format!("{item}/repairReplication"), json!({}))
        .await;
    assert_eq!(repair.status, StatusCode::ACCEPTED);
    world
        .until(&item, |_| wanted(&engine, WEB).resynchronize == 1)
        .await;
    assert_eq!(
        world.job(&repair).await["properties"]["state"],
        "InProgress"
    );
    engine.behave(|engine| engine.compares_never = false);
    world.done(&repair).await;
    let shown = world.get(&item).await.body;
    assert_eq!(
        shown["properties"]["providerSpecificDetails"]["resynchronizationsCompleted"],
        1
    );
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_deletes_points_before_their_time_and_a_change_of_policy_keeps_the_promise() {
    let (mut world, engine) = ready().await;
    world.associate().await;
    world
        .done(
            &world
                .put(
                    &world.policy(),
                    policy(json!({ "immutabilityInHours": 10 })),
                )
                .await,
        )
        .await;
    let item = world.protect(WEB).await;
    let until = world
        .until(&item, |item| {
            item["properties"]["providerSpecificDetails"]["immutableUntil"].is_string()
        })
        .await;
    let until = until["properties"]["providerSpecificDetails"]["immutableUntil"]
        .as_str()
        .expect("time")
        .to_owned();
    let remove = format!("{item}/remove");
    for refused in [
        world.post(&remove, json!({})).await,
        world.delete(&item).await,
    ] {
        assert_eq!(refused.code(), "RecoveryPointsImmutable", "{refused:?}");
        let message = refused.body["error"]["message"].as_str().expect("message");
        assert!(
            message.contains(until.get(..13).expect("hour")),
            "{message} names {until}"
        );
    }
    // A shorter promise holds for later points only.
    world
        .done(
            &world
                .put(&world.policy(), policy(json!({ "immutabilityInHours": 0 })))
                .await,
        )
        .await;
    world
        .until(&item, |_| {
            wanted(&engine, WEB)
                .policy
                .is_some_and(|one| one.immutability_hours == 10)
        })
        .await;
    assert_eq!(
        world.post(&remove, json!({})).await.code(),
        "RecoveryPointsImmutable"
    );
    world
        .orchestrator
        .app
        .advance(Duration::from_secs(11 * 3_600));
    world.sign_in_again().await;
    // The host counts as away until its next report.
    world
        .until(&engine.provider_id, |host| {
            host["properties"]["connectionStatus"] == "Connected"
        })
        .await;
    world
        .until(&item, |_| {
            wanted(&engine, WEB)
                .policy
                .is_some_and(|one| one.immutability_hours == 0)
        })
        .await;
    world.done(&world.post(&remove, json!({})).await).await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn points_that_stay_may_be_left_behind() {
    let (world, engine) = ready().await;
    world.associate().await;
    world
        .done(
            &world
                .put(
                    &world.policy(),
                    policy(json!({ "immutabilityInHours": 10 })),
                )
                .await,
        )
        .await;
    let item = world.protect(WEB).await;
    let kept = json!({ "properties": { "deleteReplica": false } });
    world
        .done(&world.post(&format!("{item}/remove"), kept).await)
        .await;
    let deletes = {
        let seen = engine.seen.lock().expect("lock");
        seen.states
            .iter()
            .flat_map(|state| &state.replications)
            .any(|one| one.phase == 2 && one.delete_replica)
    };
    assert!(!deletes);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vaults_key_reaches_engines_that_encrypt_and_rotates_without_ever_being_shown() {
    let (world, engine) = ready().await;
    world.associate().await;
    let vault = world.vault();
    assert!(world.get(&vault).await.body["properties"]["replicationEncryptionKey"].is_null());
    let plain = world.protect(DB).await;
    assert!(
        wanted(&engine, DB).encryption.is_none(),
        "no key without need"
    );
    world
        .done(
            &world
                .put(&world.policy(), policy(json!({ "encryption": "Enable" })))
                .await,
        )
        .await;
    world
        .until(&plain, |_| wanted(&engine, DB).encryption.is_some())
        .await;
    let first = wanted(&engine, DB).encryption.expect("keys");
    assert_eq!((first.keys.len(), first.keys[0].key.len()), (1, 32));
    let shown = world.get(&vault).await.body;
    assert_eq!(
        shown["properties"]["replicationEncryptionKey"]["keyId"],
        json!(first.active_key_id)
    );
    let rotated = world
        .post(&format!("{vault}/rotateEncryptionKey"), json!({}))
        .await;
    assert_eq!(rotated.status, StatusCode::OK, "{rotated:?}");
    world
        .until(&plain, |_| {
            wanted(&engine, DB)
                .encryption
                .is_some_and(|keys| keys.active_key_id != first.active_key_id)
        })
        .await;
    let second = wanted(&engine, DB).encryption.expect("keys");
    assert_eq!(second.keys.len(), 2, "the old key stays for old objects");
    assert_eq!(second.keys[0], first.keys[0]);
    // Switched off, the keys stay with those who need them to read.
    engine.behave(|engine| engine.older_keys = vec![first.active_key_id.clone()]);
    world
        .until(&plain, |item| {
            item["properties"]["providerSpecificDetails"]["encryptionKeyId"]
                == json!(second.active_key_id)
        })
        .await;
    world
        .done(
            &world
                .put(&world.policy(), policy(json!({ "encryption": "Disable" })))
                .await,
        )
        .await;
    world
        .until(&plain, |_| {
            wanted(&engine, DB)
                .encryption
                .is_some_and(|keys| keys.active_key_id.is_empty())
        })
        .await;
    assert_eq!(wanted(&engine, DB).encryption.expect("keys").keys.len(), 2);
    let hex = |bytes: &[u8]| orchestrator::gateway::desired::hex(bytes);
    let database = std::fs::read(world.folder.path().join("data/metadata.db")).expect("database");
    for key in &second.keys {
        for body in [&world.get(&vault).await.body, &rotated.body] {
            assert!(!body.to_string().contains(&hex(&key.key)));
        }
        assert!(
            !database.windows(32).any(|window| window == key.key),
            "the key lies open in the database"
        );
    }
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_cadence_and_backlog_are_seen_and_told_as_problems() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    patch(
        &world,
        &item,
        specific(json!({ "multiVmGroupName": "shop" })),
    )
    .await;
    engine.behave(|engine| {
        engine.suspect = Some("the host lost power".to_owned());
        engine.degraded = Some("the store takes 1 MiB/s".to_owned());
    });
    let shown = world
        .until(&item, |item| {
            item["properties"]["healthErrors"]
                .as_array()
                .is_some_and(|errors| errors.len() == 2)
        })
        .await;
    let details = &shown["properties"]["providerSpecificDetails"];
    assert_eq!(details["backlogBytes"], 12_345);
    assert_eq!(
        (&details["etaInSeconds"], &details["bytesPerSecond"]),
        (&json!(7), &json!(1_000))
    );
    assert_eq!(details["effectiveReplicationIntervalInSeconds"], 90);
    assert_eq!(details["degradedReason"], "the store takes 1 MiB/s");
    assert_eq!(
        details["azureVmDiskDetails"][0]["trackingReason"],
        "the host lost power"
    );
    assert!(
        details["lastVerifiedTime"].is_string() && details["lastAppConsistentTime"].is_string()
    );
    let codes: Vec<&Value> = shown["properties"]["healthErrors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| &error["errorCode"])
        .collect();
    assert_eq!(
        codes,
        [&json!("TrackingSuspect"), &json!("ReplicationDegraded")]
    );
    assert_eq!(shown["properties"]["replicationHealth"], "Warning");
    let points = world
        .until(&format!("{item}/recoveryPoints"), |list| {
            list["value"][0]["properties"]["providerSpecificDetails"]["groupPointId"].is_string()
        })
        .await;
    assert_eq!(
        points["value"][0]["properties"]["providerSpecificDetails"]["groupPointId"],
        "shop-point"
    );
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_holds_for_what_a_body_names_and_a_body_is_read_for_known_clients_only() {
    let (mut world, _engine) = ready().await;
    world.associate().await;
    let other = world.group.replace("rg-dr", "rg-other");
    let storage = format!("{other}/providers/Microsoft.Storage/storageAccounts/stother");
    let body = json!({ "location": "northeurope", "sku": { "name": "Standard_LRS" }, "properties": { "folder": "/srv/other" } });
    assert_eq!(world.put(&storage, body).await.status, StatusCode::CREATED);
    let store = world.orchestrator.app.store.clone();
    let (client, secret) = clients::create(store.as_ref(), "n", Role::Owner, &world.group)
        .await
        .expect("client");
    world.sign_in(&client.client_id, &secret).await;
    let mut body = world.enable_body(WEB).await;
    body["properties"]["providerSpecificDetails"]["targetStorageAccountId"] = json!(storage);
    let refused = world.put(&world.item(WEB).await, body).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::FORBIDDEN, "LinkedAuthorizationFailed")
    );
    let refused = world
        .put(
            &world.policy(),
            policy(json!({ "storageAccounts": [storage] })),
        )
        .await;
    assert_eq!(refused.code(), "LinkedAuthorizationFailed");
    let mut body = world.enable_body(WEB).await;
    body["properties"]["providerSpecificDetails"]["targetAzureV2ResourceGroupId"] = json!(other);
    assert_eq!(
        world.put(&world.item(WEB).await, body).await.code(),
        "LinkedAuthorizationFailed"
    );

    // Nobody's body is refused for its missing token, not for its size: it was never read.
    world.token = "nobody".to_owned();
    let large = json!({ "x": "y".repeat(5 << 20) });
    let answer = world
        .request(Method::PUT, &world.vault())
        .body(large.to_string())
        .send()
        .await;
    if let Ok(answer) = answer {
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_keys_that_nobody_used_go_when_they_have_expired() {
    let mut world = World::start().await;
    world.base_resources().await;
    world.registration_key().await;
    let app = world.orchestrator.app.clone();
    assert_eq!(
        orchestrator::housekeeping::sweep_registration_keys(&app)
            .await
            .expect("swept"),
        0
    );
    app.advance(Duration::from_secs(2 * 3_600));
    world.sign_in_again().await;
    world.registration_key().await;
    let left = orchestrator::store::records::list::<orchestrator::store::records::EnrolmentKey>(
        app.store.as_ref(),
        "~key/",
    )
    .await
    .expect("keys");
    assert_eq!(left.len(), 1, "making a new key sweeps the expired one");
    world.orchestrator.stop().await;
}
