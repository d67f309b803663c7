//! Plans over the API: actions that can't be carried out are refused at their property, parts of a plan are what is named,
//! and a schedule keeps to what it has begun and goes with its vault.

mod harness;

use std::time::Duration;

use harness::engine::{DB, WEB};
use harness::{World, ready};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn property<'a>(item: &'a Value, name: &str) -> &'a Value {
    &item["properties"][name]
}

fn plan(world: &World) -> String {
    format!("{}/replicationRecoveryPlans/shop", world.vault())
}

/// A plan of two groups: the database, then the web server.
async fn two_groups() -> (World, harness::engine::Engine, String, String) {
    let (world, engine) = ready().await;
    world.associate().await;
    let (web, db) = (world.protect(WEB).await, world.protect(DB).await);
    let body = json!({ "properties": { "primaryFabricId": world.fabric(), "groups": [boot(&db), boot(&web)] } });
    world.done(&world.put(&plan(&world), body).await).await;
    (world, engine, web, db)
}

fn boot(item: &str) -> Value {
    json!({ "groupType": "Boot", "replicationProtectedItems": [{ "id": item }] })
}

fn action(name: &str, details: &Value) -> Value {
    json!({ "actionName": name, "failoverTypes": ["PlannedFailover"], "failoverDirections": ["PrimaryToRecovery"],
        "customDetails": details })
}

fn script(change: &Value) -> Value {
    let mut details = json!({ "instanceType": "ScriptActionDetails", "path": "check.sh", "fabricLocation": "Recovery" });
    let fields = details.as_object_mut().expect("object");
    fields.extend(change.as_object().expect("object").clone());
    action("a", &details)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_can_not_be_carried_out_is_refused_at_its_property_by_put_and_by_patch() {
    let (world, engine, web, db) = two_groups().await;
    let fine = action(
        "a",
        &json!({ "instanceType": "ManualActionDetails", "description": "Look." }),
    );
    let but = |name: &str, value: Value| {
        let mut one = fine.clone();
        one[name] = value;
        one
    };
    let elsewhere = format!(
        "{}/replicationRecoveryServicesProviders/none",
        world.fabric()
    );
    let cases = [
        (but("actionName", json!(" ")), "actionName"),
        (but("failoverTypes", json!(["Sometimes"])), "failoverTypes"),
        (but("failoverTypes", json!(["Commit"])), "failoverTypes"),
        (but("failoverTypes", json!([])), "failoverTypes"),
        (
            but("failoverDirections", json!(["Up"])),
            "failoverDirections",
        ),
        (but("failoverDirections", json!([])), "failoverDirections"),
        (
            action("a", &json!({ "instanceType": "Magic" })),
            "customDetails.instanceType",
        ),
        (
            action(
                "a",
                &json!({ "instanceType": "AutomationRunbookActionDetails" }),
            ),
            "customDetails.instanceType",
        ),
        (
            action("a", &json!({ "instanceType": "ManualActionDetails" })),
            "customDetails.description",
        ),
        (
            script(&json!({ "path": "../check.sh" })),
            "customDetails.path",
        ),
        (script(&json!({ "path": "/bin/sh" })), "customDetails.path"),
        (
            script(&json!({ "fabricLocation": "Moon" })),
            "customDetails.fabricLocation",
        ),
        (
            script(&json!({ "timeout": "soon" })),
            "customDetails.timeout",
        ),
        (
            script(&json!({ "timeout": "25:00:00" })),
            "customDetails.timeout",
        ),
        (script(&json!({ "hostId": "hv1" })), "customDetails.hostId"),
        (
            script(&json!({ "hostId": elsewhere })),
            "customDetails.hostId",
        ),
        (
            action(
                "a",
                &json!({ "instanceType": "WebhookActionDetails", "url": "http://hooks.example.com" }),
            ),
            "customDetails.url",
        ),
        (
            action(
                "a",
                &json!({ "instanceType": "ReadinessCheckActionDetails", "check": "Weather" }),
            ),
            "customDetails.check",
        ),
    ];
    let before = world.get(&plan(&world)).await.body;
    for (bad, field) in cases {
        // Behind a good one of another group, so that group, list and place all count.
        let mut groups = vec![boot(&db), boot(&web)];
        groups[0]["startGroupActions"] = json!([action("first", &fine["customDetails"])]);
        groups[1]["endGroupActions"] = json!([action("second", &fine["customDetails"]), bad]);
        let target = format!("properties.groups[1].endGroupActions[1].{field}");
        let patch = json!({ "properties": { "groups": groups } });
        let patched = world.call(Method::PATCH, &plan(&world), Some(patch)).await;
        let put = json!({ "properties": { "primaryFabricId": world.fabric(), "groups": groups } });
        let made = world.put(&plan(&world).replace("shop", "new"), put).await;
        for answer in [patched, made] {
            assert_eq!(
                (answer.status, answer.target()),
                (StatusCode::BAD_REQUEST, target.as_str()),
                "{bad}: {answer:?}"
            );
            let next = answer.body.pointer("/error/details/0/recommendedAction");
            let next = next.and_then(Value::as_str).unwrap_or_default();
            assert!(!next.is_empty() || field.ends_with("hostId"), "{answer:?}");
        }
    }
    // Two of one name: the second one is at fault.
    let mut group = boot(&web);
    group["startGroupActions"] = json!([fine, fine]);
    let body = json!({ "properties": { "groups": [group] } });
    let twice = world.call(Method::PATCH, &plan(&world), Some(body)).await;
    assert_eq!(
        twice.target(),
        "properties.groups[0].startGroupActions[1].actionName"
    );

    let after = world.get(&plan(&world)).await.body;
    assert_eq!(property(&after, "groups"), property(&before, "groups"));
    let new = plan(&world).replace("shop", "new");
    assert_eq!(world.get(&new).await.status, StatusCode::NOT_FOUND);
    // The same action at a host of the site is taken.
    let mut group = boot(&web);
    group["endGroupActions"] = json!([script(&json!({ "hostId": engine.provider_id }))]);
    let body = json!({ "properties": { "groups": [group] } });
    let taken = world.call(Method::PATCH, &plan(&world), Some(body)).await;
    world.done(&taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_plan_is_what_is_named_and_what_it_has_not_is_refused() {
    let (world, engine, web, db) = two_groups().await;
    let part = |part: Value| {
        let mut properties = json!({ "failoverDirection": "PrimaryToRecovery" });
        let fields = properties.as_object_mut().expect("object");
        fields.extend(part.as_object().expect("object").clone());
        json!({ "properties": properties })
    };
    let stranger = web.replace(WEB, "stranger");
    for verb in ["testFailover", "plannedFailover", "unplannedFailover"] {
        for (bad, target) in [
            (json!({ "groupIds": [1, 3] }), "properties.groupIds[1]"),
            (json!({ "groupIds": [0] }), "properties.groupIds[0]"),
            (
                json!({ "protectedItemIds": [web, stranger] }),
                "properties.protectedItemIds[1]",
            ),
            (json!({ "groupIds": [] }), "properties.groupIds"),
            (json!({ "protectedItemIds": [] }), "properties.groupIds"),
        ] {
            let answer = world
                .post(&format!("{}/{verb}", plan(&world)), part(bad.clone()))
                .await;
            assert_eq!(
                (answer.status, answer.target()),
                (StatusCode::BAD_REQUEST, target),
                "{verb} {bad}: {answer:?}"
            );
        }
    }
    assert_eq!(engine.last().recovered_vms, []);

    // A drill of the second group.
    let drill = world
        .post(
            &format!("{}/testFailover", plan(&world)),
            part(json!({ "groupIds": [2] })),
        )
        .await;
    world.done(&drill).await;
    let job = world.job(&drill).await;
    let vms = job.pointer("/properties/customDetails/protectedItemDetails");
    let vms = vms.and_then(Value::as_array).expect("VMs");
    let names: Vec<&Value> = vms.iter().map(|vm| &vm["friendlyName"]).collect();
    assert_eq!(names, ["web01"]);
    assert_eq!(engine.last().recovered_vms.len(), 1);
    assert_eq!(
        property(&world.get(&db).await.body, "testFailoverState"),
        "None"
    );
    let clean = world
        .post(&format!("{}/testFailoverCleanup", plan(&world)), json!({}))
        .await;
    world.done(&clean).await;

    // A failover of one VM, by its id in any case; then of the whole plan, which is the rest.
    let location =
        async |item: &str| property(&world.get(item).await.body, "activeLocation").clone();
    let moved = world
        .post(
            &format!("{}/plannedFailover", plan(&world)),
            part(json!({ "protectedItemIds": [db.to_uppercase()] })),
        )
        .await;
    world.done(&moved).await;
    assert_eq!(
        (location(&db).await, location(&web).await),
        (json!("Recovery"), json!("Primary"))
    );
    let rest = world
        .post(
            &format!("{}/plannedFailover", plan(&world)),
            part(json!({})),
        )
        .await;
    world.done(&rest).await;
    assert_eq!(
        (location(&db).await, location(&web).await),
        (json!("Recovery"), json!("Recovery"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_is_given_another_target_still_cleans_up_what_it_has_begun() {
    let (mut world, _engine, web, db) = two_groups().await;
    let schedule = format!("{}/drillSchedules/hourly", world.vault());
    let body = |target: &str| json!({ "properties": { "targetId": target, "everyHours": 1, "keepForMinutes": 10 } });
    let wrong = world
        .put(&schedule.replace("hourly", "a*b"), body(&web))
        .await;
    assert_eq!(
        (wrong.status, wrong.target()),
        (StatusCode::BAD_REQUEST, "name")
    );
    world.put(&schedule, body(&web)).await;
    let minutes = |count: u64| Duration::from_secs(count * 60);
    world.orchestrator.app.advance(minutes(61));
    world.sign_in_again().await;
    let run = |schedule: &Value, at: &str| {
        schedule
            .pointer(&format!("/properties/runs/0/{at}"))
            .cloned()
    };
    world
        .until(&schedule, |schedule| {
            run(schedule, "verdict").is_some_and(|verdict| verdict != "")
        })
        .await;
    let moved = world.put(&schedule, body(&db)).await;
    assert_eq!(moved.status, StatusCode::OK, "{moved:?}");
    let tested =
        async |item: &str| property(&world.get(item).await.body, "testFailoverState").clone();
    assert_ne!(tested(&web).await, "None");
    world.orchestrator.app.advance(minutes(12));
    world.sign_in_again().await;
    world
        .until(&schedule, |schedule| {
            run(schedule, "cleanup/done") == Some(json!(true))
        })
        .await;
    let tested =
        async |item: &str| property(&world.get(item).await.body, "testFailoverState").clone();
    assert_eq!(
        (tested(&web).await, tested(&db).await),
        (json!("None"), json!("None"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_takes_its_schedules_with_it() {
    let (world, engine, web, db) = two_groups().await;
    let schedule = format!("{}/drillSchedules/weekly", world.vault());
    let body =
        json!({ "properties": { "targetId": plan(&world), "days": ["Sunday"], "time": "02:30" } });
    let made = world.put(&schedule, body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!(world.delete(&world.vault()).await.code(), "VaultNotEmpty");

    world.done(&world.delete(&plan(&world)).await).await;
    for item in [&web, &db] {
        let removed = world.post(&format!("{item}/remove"), json!({})).await;
        world.finish(&removed).await;
    }
    let mapping = format!(
        "{}/replicationProtectionContainerMappings/map",
        world.container().await
    );
    for path in [&mapping, &engine.provider_id, &world.fabric()] {
        let removed = world.post(&format!("{path}/remove"), json!({})).await;
        world.done(&removed).await;
    }
    world.done(&world.delete(&world.policy()).await).await;
    // All that it could drill is gone: it holds up nobody, and does not come back with a vault of the same name.
    let removed = world.delete(&world.vault()).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{removed:?}");
    let again = json!({ "location": "northeurope", "sku": { "name": "RS0" } });
    world.put(&world.vault(), again).await;
    assert_eq!(world.get(&schedule).await.status, StatusCode::NOT_FOUND);
    let list = world
        .get(&format!("{}/drillSchedules", world.vault()))
        .await;
    assert_eq!(list.body["value"], json!([]));
}
