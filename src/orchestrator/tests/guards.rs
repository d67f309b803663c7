//! What the service refuses or forgets, so that nobody takes another's replica, key, scope or place.

mod harness;

use std::time::Duration;

use harness::azure::Azure;
use harness::engine::{self, DB, WEB};
use harness::{World, policy_body, ready};
use orchestrator::auth::clients;
use orchestrator::auth::roles::Role;
use orchestrator::housekeeping::{KEEP_JOBS_MS, sweep_ended_jobs};
use orchestrator::store::Expect;
use orchestrator::store::records::{self, EngineRecord, Fabric, Item, JobRecord, Lock};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_site_can_not_protect_into_the_replica_of_the_first() {
    let (world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    // The same item, as if the vault's other site had it.
    let store = world.orchestrator.app.store.clone();
    let stored = records::get::<Item>(store.as_ref(), &item.to_ascii_lowercase()).await;
    let mut other = stored.expect("store").expect("item").record;
    other.id = other.id.replace("/site-oslo/", "/site-bergen/");
    other.vm_id = "another".to_owned();
    let put = records::put(other.id.to_ascii_lowercase(), &other, Expect::Absent).expect("record");
    let own = records::delete(item.to_ascii_lowercase());
    store.apply(vec![put, own]).await.expect("stored");
    let refused = world.put(&item, world.enable_body(WEB).await).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::CONFLICT, "ReplicaNameInUse")
    );
    let message = refused.body["error"]["message"].as_str().expect("message");
    assert!(message.contains("site-bergen"), "{message}");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_whose_name_can_not_name_a_replica_is_refused_at_the_request() {
    let (world, _engine) = ready().await;
    world.associate().await;
    for name in ["web%20(1)", "b%C3%BCro"] {
        let refused = world
            .put(&world.item(name).await, world.enable_body(WEB).await)
            .await;
        assert_eq!(
            (refused.status, refused.target()),
            (StatusCode::BAD_REQUEST, "name")
        );
    }
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn network_and_subnet_of_a_vm_can_be_taken_out_again() {
    let (world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let properties = json!({ "properties": {
        "selectedRecoveryAzureNetworkId": "",
        "vmNics": [{ "ipConfigs": [{ "isPrimary": true, "recoverySubnetName": "" }] }],
    } });
    let patched = world.call(Method::PATCH, &item, Some(properties)).await;
    assert_eq!(patched.status, StatusCode::OK, "{patched:?}");
    let stored = records::get::<Item>(
        world.orchestrator.app.store.as_ref(),
        &item.to_ascii_lowercase(),
    )
    .await;
    let request = stored.expect("store").expect("item").record.request;
    assert_eq!(
        (
            request.target_azure_network_id,
            request.target_azure_subnet_id
        ),
        (None, None)
    );
    let mut body = world.enable_body(DB).await;
    body["properties"]["providerSpecificDetails"]["targetAzureNetworkId"] = json!("");
    let made = world.put(&world.item(DB).await, body).await;
    world.done(&made).await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_below_a_vault_holds_for_policies_sites_and_members_in_bodies() {
    let (mut world, _engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let container = world.container().await;
    let item = world.item(DB).await;
    let enable = world.enable_body(DB).await;
    let store = world.orchestrator.app.store.clone();
    let (client, secret) = clients::create(store.as_ref(), "n", Role::Owner, &world.fabric())
        .await
        .expect("client");
    let plan = format!("{}/replicationRecoveryPlans/plan-a", world.vault());
    let (planner, planners_secret) = clients::create(store.as_ref(), "p", Role::Owner, &plan)
        .await
        .expect("client");
    world.sign_in(&client.client_id, &secret).await;
    let mapping = format!("{container}/replicationProtectionContainerMappings/mine");
    let body = json!({ "properties": { "policyId": world.policy() } });
    for refused in [
        world.put(&mapping, body).await,
        world.put(&item, enable).await,
    ] {
        assert_eq!(refused.code(), "LinkedAuthorizationFailed", "{refused:?}");
        assert_eq!(refused.target(), "properties.policyId");
    }
    world.sign_in(&planner.client_id, &planners_secret).await;
    let group = json!({ "groupType": "Boot", "replicationProtectedItems": [{ "id": web }] });
    let body = json!({ "properties": { "primaryFabricId": world.fabric(), "groups": [group] } });
    let refused = world.put(&plan, body).await;
    assert_eq!(refused.code(), "LinkedAuthorizationFailed", "{refused:?}");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_comparison_windows_are_refused_at_their_property() {
    let world = World::start().await;
    world.base_resources().await;
    let mut body = policy_body(30);
    body["properties"]["providerSpecificInput"]["comparisonWindows"] =
        Value::Array(vec![json!({ "startTime": "01:00" }); 33]);
    let refused = world.put(&world.policy(), body).await;
    assert_eq!(
        refused.target(),
        "properties.providerSpecificInput.comparisonWindows"
    );
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_thirty_days_after_their_end_but_for_those_of_drills_that_go_on() {
    let (world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let drill = world.post(&format!("{item}/testFailover"), json!({})).await;
    world.done(&drill).await;
    let app = world.orchestrator.app.clone();
    assert_eq!(sweep_ended_jobs(&app).await.expect("swept"), 0);
    let month = u64::try_from(KEEP_JOBS_MS).expect("positive");
    app.advance(Duration::from_millis(month) + Duration::from_secs(3_600));
    assert!(sweep_ended_jobs(&app).await.expect("swept") > 2);
    let left = records::list::<JobRecord>(app.store.as_ref(), "").await;
    let left: Vec<String> = left
        .expect("jobs")
        .into_iter()
        .map(|job| job.record.properties.scenario_name)
        .collect();
    assert_eq!(left, ["TestFailover"]);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_with_a_running_job_stays() {
    let world = World::start().await;
    let body = json!({ "location": "northeurope" });
    world.put(&world.vault(), body).await;
    let vault = arm_model::VaultId::parse(&world.vault()).expect("id");
    let store = world.orchestrator.app.store.clone();
    let policy = world.put(&world.policy(), policy_body(30)).await;
    world.done(&policy).await;
    let removal = world.delete(&world.policy()).await;
    world.finish(&removal).await;
    let jobs = records::list::<JobRecord>(store.as_ref(), &vault.key()).await;
    let job = jobs.expect("jobs").remove(0);
    let running = JobRecord {
        phase: orchestrator::saga::state::Phase::Forward,
        workflow: "of a newer release".to_owned(),
        ..job.record.clone()
    };
    let put = |record: &JobRecord| records::put(job.key.as_str(), record, Expect::Any);
    let change = put(&running).expect("record");
    store.apply(vec![change]).await.expect("stored");
    let refused = world.delete(&world.vault()).await;
    assert_eq!(refused.code(), "VaultNotEmpty", "{refused:?}");
    let change = put(&job.record).expect("record");
    store.apply(vec![change]).await.expect("stored");
    assert_eq!(
        world.delete(&world.vault()).await.status,
        StatusCode::NO_CONTENT
    );
    assert!(
        !records::any::<Lock>(store.as_ref(), "")
            .await
            .expect("locks")
    );
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_jobs_keep_their_filter_and_a_site_is_no_beginning_of_another() {
    let world = World::start().await;
    world.base_resources().await;
    let store = world.orchestrator.app.store.clone();
    let vault = arm_model::VaultId::parse(&world.vault()).expect("id");
    let jobs = records::list::<JobRecord>(store.as_ref(), &vault.key()).await;
    let model = jobs.expect("jobs").remove(0).record;
    let site = Fabric {
        id: format!("{}-north", world.fabric()),
        internal_identifier: String::new(),
    };
    let mut changes = Vec::new();
    for number in 0..150 {
        let mut job = model.clone();
        job.id = vault.job(&format!("job-{number}")).to_string();
        let own = number % 2 == 0;
        job.resource = if own { world.fabric() } else { site.id.clone() };
        "Trial".clone_into(&mut job.properties.scenario_name);
        changes.push(records::put(
            vault.job(&format!("job-{number}")).key(),
            &job,
            Expect::Any,
        ));
    }
    let changes = changes.into_iter().collect::<Result<_, _>>();
    store
        .apply(changes.expect("records"))
        .await
        .expect("stored");
    let list = |filter: String| {
        let filter = orchestrator::auth::oauth::escaped(&filter);
        format!("{}/replicationJobs?$filter={filter}", world.vault())
    };
    let first = world.get(&list("jobName eq 'Trial'".to_owned())).await.body;
    assert_eq!(first["value"].as_array().expect("page").len(), 100);
    let next = first["nextLink"].as_str().expect("more");
    let second = world.get(next).await.body;
    let names: Vec<&Value> = second["value"]
        .as_array()
        .expect("page")
        .iter()
        .map(|job| &job["properties"]["scenarioName"])
        .collect();
    assert_eq!(names.len(), 50);
    assert!(names.iter().all(|name| **name == "Trial"), "{names:?}");
    let filter = format!("jobName eq 'Trial' and fabricId eq '{}'", world.fabric());
    let own = world.get(&list(filter)).await.body;
    assert_eq!(own["value"].as_array().expect("page").len(), 75);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_is_there_does_not_go_by_another_way() {
    let world = World::start().await;
    let azure = Azure::start().await;
    let account = |more: Value| {
        let mut properties = json!({ "blobEndpoint": azure.endpoint() });
        for (name, value) in more.as_object().expect("fields") {
            properties[name] = value.clone();
        }
        json!({ "location": "northeurope", "sku": { "name": "Standard_LRS" }, "properties": properties })
    };
    let key = format!("{}==", "A".repeat(86));
    let made = world
        .put(&world.storage(), account(json!({ "accountKey": key })))
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let ca = world.orchestrator.app.authority.certificate_pem();
    for more in [
        json!({ "proxyUrl": "http://attacker.example:3128" }),
        json!({ "caPem": ca }),
    ] {
        let refused = world.put(&world.storage(), account(more)).await;
        assert_eq!(refused.code(), "StorageCredentialRequired", "{refused:?}");
    }
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_certificate_of_an_engines_name_opens_no_session() {
    let (world, engine) = ready().await;
    let store = world.orchestrator.app.store.clone();
    let key = records::engine_key(&engine.id);
    let (_, identity, _) = engine.stop().await;
    // The host was unregistered, and has enrolled again with a new key pair since.
    records::update::<EngineRecord>(store.as_ref(), &key, |record| {
        Some(EngineRecord {
            key_digest: "of another key".to_owned(),
            ..record.clone()
        })
    })
    .await
    .expect("stored");
    let gateway = world.orchestrator.gateway.to_string();
    let channel = engine_protocol::tls::session_channel(&gateway, &identity).expect("channel");
    let mut client = engine_protocol::v1::engine_gateway_client::EngineGatewayClient::new(channel);
    let (_sender, receiver) = tokio::sync::mpsc::channel(1);
    let refused = client
        .session(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await
        .expect_err("another key");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_takes_no_more_than_an_enrolment_needs() {
    let world = World::start().await;
    world.base_resources().await;
    let key = world.registration_key().await;
    let mut request = engine_protocol::IdentityRequest::generate().expect("request");
    request.request_pem.push_str(&" ".repeat(1 << 20));
    let id = uuid::Uuid::new_v4().to_string();
    let refused = engine::enrol_with(&key, &id, &request).await;
    let status = refused.map(|_| ()).expect_err("a megabyte");
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    engine::enrol(&key, &id).await.expect("an ordinary one");
    world.orchestrator.stop().await;
}
