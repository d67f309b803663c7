//! The surface: tokens, roles, errors, etags, paging, collections.

mod harness;

use harness::engine::{DB, Engine, WEB};
use harness::{World, policy_body};
use orchestrator::auth::{clients, roles::Role};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_token_gets_in_and_a_bad_one_is_told_where_to_get_one() {
    let world = World::start().await;
    let vaults = format!(
        "{}/subscriptions/s/providers/Microsoft.RecoveryServices/vaults?{}",
        world.base,
        harness::VERSION
    );
    let wrong = format!("{}x", world.token);
    for request in [
        world.http.get(&vaults),
        world.http.get(&vaults).bearer_auth("nonsense"),
        world.http.get(&vaults).bearer_auth(wrong),
    ] {
        let answer = World::read(request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(
            answer.headers["www-authenticate"]
                .to_str()
                .expect("text")
                .starts_with("Bearer authorization=\"https://")
        );
        assert!(!answer.code().is_empty());
    }
    assert_eq!(
        world
            .token(world.admin.value("SITERECOVERY_CLIENT_ID"), "wrong")
            .await
            .body["error"],
        "invalid_client"
    );
    assert_eq!(
        world.token("nobody", "wrong").await.status,
        StatusCode::UNAUTHORIZED
    );
    let tenant = format!(
        "{}/{}",
        world.base,
        world.admin.value("SITERECOVERY_TENANT_ID")
    );
    let discovery = World::read(
        world
            .http
            .get(format!("{tenant}/v2.0/.well-known/openid-configuration")),
    )
    .await
    .body;
    let keys = World::read(world.http.get(discovery["jwks_uri"].as_str().expect("url")))
        .await
        .body;
    assert_eq!(keys["keys"][0]["crv"], "P-256");
    let metadata = World::read(world.http.get(format!(
        "{}/metadata/endpoints?api-version=2022-09-01",
        world.base
    )))
    .await
    .body;
    assert_eq!(metadata["resourceManager"], json!(world.base));
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_scopes_are_kept_and_a_removed_client_is_out_at_once() {
    let mut world = World::start().await;
    world.base_resources().await;
    let store = world.orchestrator.app.store.clone();
    let (reader, reader_secret) = clients::create(store.as_ref(), "r", Role::Reader, "/")
        .await
        .expect("client");
    let (narrow, narrow_secret) =
        clients::create(store.as_ref(), "n", Role::Owner, "/subscriptions/other")
            .await
            .expect("client");
    let admin = world.token.clone();
    world.token = world.token(&reader.client_id, &reader_secret).await.body["access_token"]
        .as_str()
        .expect("token")
        .to_owned();
    assert_eq!(world.get(&world.vault()).await.status, StatusCode::OK);
    assert_eq!(
        world.put(&world.policy(), policy_body(30)).await.code(),
        "AuthorizationFailed"
    );
    assert_eq!(
        world.delete(&world.vault()).await.status,
        StatusCode::FORBIDDEN
    );
    store
        .apply(vec![orchestrator::store::records::delete(clients::key(
            &reader.client_id,
        ))])
        .await
        .expect("removed");
    assert_eq!(
        world.get(&world.vault()).await.status,
        StatusCode::UNAUTHORIZED
    );
    world.token = world.token(&narrow.client_id, &narrow_secret).await.body["access_token"]
        .as_str()
        .expect("token")
        .to_owned();
    assert_eq!(
        world.get(&world.vault()).await.status,
        StatusCode::FORBIDDEN
    );
    world.token = admin;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_malformed_is_an_arm_error() {
    let world = World::start().await;
    let vault = world.vault();
    for (method, path, status, code) in [
        (Method::GET, vault.clone(), 404, "ResourceNotFound"),
        (
            Method::GET,
            format!("{vault}/replicationFabrics"),
            404,
            "ResourceNotFound",
        ),
        (
            Method::GET,
            format!("{vault}/nonsense"),
            404,
            "InvalidResourceType",
        ),
        (
            Method::GET,
            "/subscriptions/s/providers/Microsoft.Unknown/things".to_owned(),
            404,
            "InvalidResourceType",
        ),
        (
            Method::GET,
            "/nonsense".to_owned(),
            404,
            "InvalidResourceType",
        ),
        (
            Method::PATCH,
            "/subscriptions/s".to_owned(),
            403,
            "AuthorizationFailed",
        ),
    ] {
        let answer = world.call(method.clone(), &path, None).await;
        if status == 403 {
            assert_eq!(
                answer.status.as_u16(),
                404,
                "an owner may, but there is nothing to do"
            );
            continue;
        }
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (status, code),
            "{method} {path}"
        );
        assert!(
            answer.headers["content-type"]
                .to_str()
                .expect("text")
                .starts_with("application/json")
        );
    }
    let url = format!("{}{vault}", world.base);
    let bare = World::read(world.http.get(&url).bearer_auth(&world.token)).await;
    assert_eq!(bare.code(), "MissingApiVersionParameter");
    let odd = World::read(
        world
            .http
            .get(format!("{url}?api-version=new"))
            .bearer_auth(&world.token),
    )
    .await;
    assert_eq!(odd.code(), "InvalidApiVersionParameter");
    let broken = World::read(world.request(Method::PUT, &vault).body("{")).await;
    assert_eq!(broken.code(), "InvalidRequestContent");
    let large = World::read(
        world
            .request(Method::PUT, &vault)
            .body(vec![b' '; (4 << 20) + 1]),
    )
    .await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_storage_and_networks_keep_what_was_sent_and_guard_their_version() {
    let world = World::start().await;
    world.base_resources().await;
    for (path, change) in [
        (
            world.vault(),
            json!({ "location": "North Europe", "tags": { "KIND": "a" }, "properties": { "monitoringSettings": { "x": 1 } } }),
        ),
        (
            world.network(),
            json!({ "location": "northeurope", "tags": { "KIND": "a" }, "properties": { "addressSpace": { "addressPrefixes": ["10.9.0.0/16"] } } }),
        ),
    ] {
        let stale = world.get(&path).await.body["etag"]
            .as_str()
            .expect("etag")
            .to_owned();
        let changed = world.put(&path, change.clone()).await;
        assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
        assert_eq!(changed.body["tags"]["KIND"], "a");
        assert_eq!(changed.body["properties"]["provisioningState"], "Succeeded");
        assert_eq!(changed.body["location"], "northeurope");
        let with = |etag: &str, method: Method| {
            world
                .request(method, &path)
                .header("if-match", etag)
                .body(change.to_string())
        };
        assert_eq!(
            World::read(with(&stale, Method::PUT)).await.status,
            StatusCode::PRECONDITION_FAILED
        );
        assert_eq!(
            World::read(with(&stale, Method::DELETE)).await.status,
            StatusCode::PRECONDITION_FAILED
        );
        let fresh = changed.headers["etag"].to_str().expect("text");
        assert_eq!(
            World::read(with(fresh, Method::PUT)).await.status,
            StatusCode::OK
        );
        assert_eq!(
            World::read(with("*", Method::PUT)).await.status,
            StatusCode::OK
        );
        let fresh_only = world
            .request(Method::PUT, &path)
            .header("if-none-match", "*")
            .body(change.to_string());
        assert_eq!(
            World::read(fresh_only).await.status,
            StatusCode::PRECONDITION_FAILED
        );
    }
    let moved = world
        .put(&world.vault(), json!({ "location": "southeurope" }))
        .await;
    assert_eq!(moved.code(), "InvalidResourceLocation");
    for (folder, sku, target) in [
        (
            json!("relative"),
            json!("Standard_LRS"),
            "properties.folder",
        ),
        (json!("/srv/x"), json!(""), "sku.name"),
    ] {
        let body = json!({ "location": "northeurope", "sku": { "name": sku }, "properties": { "folder": folder } });
        assert_eq!(
            world
                .put(
                    &format!(
                        "{}/providers/Microsoft.Storage/storageAccounts/other",
                        world.group
                    ),
                    body
                )
                .await
                .target(),
            target
        );
    }
    let network = json!({ "location": "northeurope", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] }, "subnets": [{ "name": "a", "properties": { "addressPrefix": "x" } }] } });
    assert_eq!(
        world.put(&world.network(), network).await.target(),
        "properties.subnets[0].properties.addressPrefix"
    );
    assert_eq!(
        world
            .get(&format!(
                "{}/providers/Microsoft.Storage/storageAccounts",
                world.group
            ))
            .await
            .body["value"]
            .as_array()
            .expect("list")
            .len(),
        1
    );
    assert_eq!(
        world.get(&world.storage().to_uppercase()).await.body["name"],
        "stdr",
        "paths count without case, names keep theirs"
    );
    assert_eq!(
        world.get(&world.group).await.status,
        StatusCode::OK,
        "a group is there when something is in it"
    );
    assert_eq!(
        world.delete(&world.group).await.code(),
        "ResourceGroupNotEmpty"
    );
    assert_eq!(
        world
            .put(
                &format!("{}x", world.group),
                json!({ "location": "northeurope" })
            )
            .await
            .status,
        StatusCode::CREATED
    );
    assert_eq!(
        world
            .call(Method::HEAD, &format!("{}x", world.group), None)
            .await
            .status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        world
            .call(Method::HEAD, &format!("{}y", world.group), None)
            .await
            .status,
        StatusCode::NOT_FOUND
    );
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_filtered_and_collections_answer() {
    let world = World::start().await;
    world.base_resources().await;
    let engine = Engine::start(
        &world.registration_key().await,
        &world.orchestrator.gateway.to_string(),
    )
    .await;
    let container = world.container().await;
    let list = format!("{container}/replicationProtectableItems");
    world
        .until(&list, |list| {
            list["value"].as_array().is_some_and(|list| list.len() == 3)
        })
        .await;
    let mut next = format!("{list}?%24take=2&%24filter=state%20eq%20'Unprotected'");
    let mut names = Vec::new();
    let mut pages = 0;
    loop {
        let page = world.get(&next).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        pages += 1;
        names.extend(
            page.body["value"]
                .as_array()
                .expect("list")
                .iter()
                .map(|item| item["name"].as_str().expect("name").to_owned()),
        );
        match page.body["nextLink"].as_str() {
            Some(link) => next = link.to_owned(),
            None => break,
        }
    }
    assert_eq!((pages, names.len()), (2, 3), "{names:?}");
    assert!(names.contains(&WEB.to_owned()) && names.contains(&DB.to_owned()));
    let one = world.get(&format!("{list}/{WEB}")).await.body;
    assert_eq!(one["properties"]["customDetails"]["generation"], "2");
    assert_eq!(one["properties"]["protectionReadinessErrors"], json!([]));
    assert_eq!(
        world
            .get(&format!("{list}?%24filter=nonsense"))
            .await
            .target(),
        "$filter"
    );
    assert_eq!(
        world.get(&format!("{list}?%24take=0")).await.target(),
        "$take"
    );
    for collection in [
        "replicationFabrics",
        "replicationRecoveryServicesProviders",
        "replicationProtectionContainers",
        "replicationProtectionContainerMappings",
        "replicationPolicies",
        "replicationProtectedItems",
        "replicationRecoveryPlans",
        "replicationJobs",
        "replicationEvents",
        "replicationNetworks",
        "replicationVaultSettings",
    ] {
        let answer = world.get(&format!("{}/{collection}", world.vault())).await;
        assert!(answer.body["value"].is_array(), "{collection}: {answer:?}");
    }
    let health = world
        .get(&format!("{}/replicationVaultHealth", world.vault()))
        .await
        .body;
    assert_eq!(
        health["properties"]["fabricsHealth"]["categorizedResourceCounts"]["Normal"],
        1
    );
    let site = world.get(&world.fabric()).await.body;
    assert_eq!(
        site["properties"]["customDetails"]["hyperVHosts"][0]["id"],
        "hv1_lab_example"
    );
    let refreshed = world
        .post(
            &format!("{}/refreshProvider", engine.provider_id),
            Value::Null,
        )
        .await;
    assert_eq!(
        world.done(&refreshed).await["properties"]["connectionStatus"],
        "Connected"
    );
    let failed = world
        .get(&format!(
            "{}/replicationJobs?%24filter=jobStatus%20eq%20'Failed'",
            world.vault()
        ))
        .await;
    assert_eq!(failed.body["value"], json!([]));
    engine.stop().await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_outlive_a_restart_and_property_names_count_without_case() {
    let world = World::start().await;
    world.base_resources().await;
    let path = format!("{}/replicationPolicies/odd", world.vault());
    let body = json!({ "Properties": { "ProviderSpecificInput": { "InstanceType": "HyperVReplicaAzure", "ReplicationInterval": 900, "RecoveryPointHistoryDuration": 1 } } });
    let started = world.put(&path, body).await;
    let made = world.done(&started).await;
    assert_eq!(
        made["properties"]["providerSpecificDetails"]["replicationInterval"],
        900
    );
    let world = world.restart().await;
    assert_eq!(world.done(&started).await, made);
    let removed = world.delete(&path).await;
    world.done(&removed).await;
    assert_eq!(world.delete(&path).await.status, StatusCode::NO_CONTENT);
    world.orchestrator.stop().await;
}
