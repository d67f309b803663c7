//! Storage accounts in Azure: credentials come in and never go out, engines get short-lived signatures of one container.

mod harness;

use std::time::Duration;

use engine_protocol::v1::{self, azure_credential, store_target};
use harness::azure::{Azure, SECRET, TENANT};
use harness::engine::{DB, Engine, WEB};
use harness::{World, ready};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// 64 bytes, as a real key is.
fn account_key() -> String {
    format!("{}==", "A".repeat(86))
}

fn account(azure: &Azure, more: Value) -> Value {
    let mut properties = json!({ "blobEndpoint": azure.endpoint() });
    let Value::Object(fields) = more else {
        panic!("{more} has no fields");
    };
    for (name, value) in fields {
        properties[name] = value;
    }
    json!({ "location": "northeurope", "sku": { "name": "Standard_GRS" }, "kind": "StorageV2", "properties": properties })
}

fn client(azure: &Azure, secret: Option<&str>) -> Value {
    json!({ "accessClient": { "tenantId": TENANT, "clientId": "c", "authority": azure.authority(), "clientSecret": secret } })
}

/// Turns the storage account of the base into one in Azure.
async fn in_azure(world: &World, body: Value) {
    let answer = world.put(&world.storage(), body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

fn target(engine: &Engine, vm: &str) -> v1::AzureStorage {
    let mut wanted = engine.last().replications.into_iter();
    let wanted = wanted.rfind(|one| one.vm_id == vm).expect("item");
    match wanted.store.and_then(|store| store.kind) {
        Some(store_target::Kind::Azure(azure)) => azure,
        other => panic!("no Azure store: {other:?}"),
    }
}

fn sas(azure: &v1::AzureStorage) -> String {
    match azure.credential.as_ref().and_then(|one| one.kind.as_ref()) {
        Some(azure_credential::Kind::Sas(query)) => query.clone(),
        other => panic!("no signature: {}", other.is_some()),
    }
}

fn expiry(azure: &v1::AzureStorage) -> i64 {
    azure
        .credential
        .as_ref()
        .expect("credential")
        .expires_unix_ms
}

/// Every byte that the orchestrator has stored.
fn stored(world: &World) -> String {
    let data = world.folder.path().join("data");
    let files = std::fs::read_dir(&data).expect("folder");
    files
        .filter_map(|file| std::fs::read(file.expect("entry").path()).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_key_gives_engines_signatures_of_one_container_that_are_renewed_in_time() {
    let (world, engine) = ready().await;
    let azure = Azure::start().await;
    in_azure(
        &world,
        account(
            &azure,
            json!({ "accountKey": account_key(), "stripes": 4, "proxyUrl": null }),
        ),
    )
    .await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let store = target(&engine, WEB);
    assert_eq!(store.blob_endpoint, azure.endpoint());
    assert!(
        store.container.starts_with("vault-dr-"),
        "{}",
        store.container
    );
    assert_eq!((store.stripes, store.premium), (4, false));
    assert!(sas(&store).contains("sr=c&sp=rcwdl"), "{}", sas(&store));
    let left = expiry(&store) - world.orchestrator.app.now_ms();
    assert!((2 * 3_600_000..=4 * 3_600_000).contains(&left), "{left}");
    let made = azure.requests();
    assert!(
        made.iter().any(|one| one.starts_with(&format!("PUT /acct/{}?restype=container", store.container))),
        "{made:?}"
    );
    let shown = world.get(&item).await.body;
    let folder = shown["properties"]["providerSpecificDetails"]["replicaFolder"].as_str();
    assert!(folder.expect("folder").starts_with(&azure.endpoint()));

    // An hour later there is another signature, while the old one is still good; nothing else changes.
    let before = engine.last();
    world.orchestrator.app.advance(Duration::from_secs(3_600));
    world
        .until(&item, |_| sas(&target(&engine, WEB)) != sas(&store))
        .await;
    assert!(engine.last().generation > before.generation);
    assert!(expiry(&target(&engine, WEB)) > expiry(&store));

    // A restart goes on with the same signature.
    let now = sas(&target(&engine, WEB));
    let ahead = Duration::from_secs(3_600);
    let world = world.restart().await;
    world.orchestrator.app.advance(ahead);
    world
        .until(&item, |item| {
            item["properties"]["protectionState"] == "Protected"
        })
        .await;
    let again = orchestrator::gateway::desired::refresh(&world.orchestrator.app, &engine.id)
        .await
        .expect("desired state");
    let again = again
        .replications
        .into_iter()
        .next()
        .and_then(|one| one.store);
    let Some(store_target::Kind::Azure(again)) = again.and_then(|store| store.kind) else {
        panic!("no Azure store");
    };
    assert_eq!(sas(&again), now);

    // The place can't change under the replica, and nothing that was stored tells the key.
    let moved = account(&azure, json!({ "containerName": "elsewhere" }));
    let refused = world.put(&world.storage(), moved).await;
    assert_eq!(refused.code(), "StorageAccountInUse");
    assert!(!stored(&world).contains(&account_key()));
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_entra_borrows_a_key_that_is_renewed_and_outlives_a_restart() {
    let (world, engine) = ready().await;
    let azure = Azure::start().await;
    in_azure(&world, account(&azure, client(&azure, Some(SECRET)))).await;
    world.associate().await;
    let item = world.protect(DB).await;
    let store = target(&engine, DB);
    assert!(
        sas(&store).contains("skoid=oid"),
        "a user delegation signature"
    );
    let lent = azure.lent();
    assert!(lent > 0);

    // Entra ID is away: replication goes on, also over a restart.
    azure.refuse(true);
    let mut world = world.restart().await;
    world
        .until(&item, |item| {
            item["properties"]["protectionState"] == "Protected"
        })
        .await;
    assert_eq!(sas(&target(&engine, DB)), sas(&store));
    // When the key comes to its end without a new one, the item says so before the signature ends.
    world
        .orchestrator
        .app
        .advance(Duration::from_secs(4 * 3_600));
    world.sign_in_again().await;
    orchestrator::access::loans::renew(&world.orchestrator.app)
        .await
        .expect("renewal");
    let codes = |item: &Value| {
        let errors = item["properties"]["healthErrors"].as_array().cloned();
        errors
            .unwrap_or_default()
            .iter()
            .any(|error| error["errorCode"] == "StorageCredentialNotRenewed")
    };
    let troubled = world.until(&item, codes).await;
    assert!(!troubled.to_string().contains(SECRET));
    azure.refuse(false);
    orchestrator::access::loans::renew(&world.orchestrator.app)
        .await
        .expect("renewal");
    assert!(azure.lent() > lent);
    world.until(&item, |item| !codes(item)).await;
    for secret in [SECRET, "bGVudC1rZXktb2YtdGhlLXRlc3Q=", "token-of-the-test"] {
        assert!(!stored(&world).contains(secret), "{secret}");
    }
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_shows_a_credential_and_one_that_is_there_is_not_used_elsewhere() {
    let world = World::start().await;
    let azure = Azure::start().await;
    let path = world.storage();
    let without = world.put(&path, account(&azure, json!({}))).await;
    assert_eq!(without.code(), "StorageCredentialRequired");
    let made = world
        .put(
            &path,
            account(&azure, json!({ "accountKey": account_key() })),
        )
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.body["properties"]["accessKind"], "AccountKey");
    assert_eq!(
        made.body["properties"]["primaryEndpoints"]["blob"],
        json!(format!("{}/", azure.endpoint()))
    );
    let list = format!(
        "{}/providers/Microsoft.Storage/storageAccounts",
        world.group
    );
    for shown in [
        made.body,
        world.get(&path).await.body,
        world.get(&list).await.body,
    ] {
        assert!(!shown.to_string().contains(&account_key()));
        assert!(!shown.to_string().contains("accountKey"));
    }
    // What was read can be written again without the key, and tags alone by PATCH.
    let read = world.get(&path).await.body;
    assert_eq!(world.put(&path, read).await.status, StatusCode::OK);
    let patch = json!({ "tags": { "team": "dr" } });
    let patched = world.call(Method::PATCH, &path, Some(patch)).await;
    assert_eq!(patched.body["tags"]["team"], "dr", "{patched:?}");
    assert_eq!(
        patched.body["properties"]["blobEndpoint"],
        json!(azure.endpoint())
    );
    // Another endpoint needs the credential again: who changes it must know it.
    let mut elsewhere = account(&azure, json!({}));
    elsewhere["properties"]["blobEndpoint"] = json!("https://attacker.example");
    let refused = world.put(&path, elsewhere).await;
    assert_eq!(refused.code(), "StorageCredentialRequired");
    // A client whose authority changes, too.
    world
        .put(&path, account(&azure, client(&azure, Some(SECRET))))
        .await;
    let mut client = client(&azure, None);
    client["accessClient"]["authority"] = json!("https://attacker.example");
    let refused = world.put(&path, account(&azure, client)).await;
    assert_eq!(refused.code(), "StorageCredentialRequired");
    assert_eq!(refused.target(), "properties.accessClient.clientSecret");
    for (name, value) in [
        ("blobEndpoint", json!("http://plain.example")),
        ("containerName", json!("Capital")),
        ("stripes", json!(1000)),
        ("proxyUrl", json!("http://me:secret@proxy:1")),
        ("caPem", json!("nothing")),
        ("accountKey", json!("short")),
    ] {
        let mut body = account(&azure, json!({ "accountKey": account_key() }));
        body["properties"][name] = value;
        let refused = world.put(&path, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{name}");
        assert_eq!(refused.target(), format!("properties.{name}"));
        assert!(!refused.body.to_string().contains("secret"), "{name}");
    }
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_lets_nobody_in_fails_the_job_at_the_account() {
    let (world, _engine) = ready().await;
    let azure = Azure::start().await;
    in_azure(
        &world,
        account(&azure, json!({ "accountKey": account_key() })),
    )
    .await;
    world.associate().await;
    azure.refuse(true);
    let item = world.item(WEB).await;
    let status = world
        .finish(&world.put(&item, world.enable_body(WEB).await).await)
        .await;
    assert_eq!(
        status["error"]["code"], "StorageAccountNotReachable",
        "{status}"
    );
    let target = status["error"]["target"].as_str().unwrap_or_default();
    assert!(target.ends_with("targetStorageAccountId"), "{target}");
    assert!(!status.to_string().contains("sig="), "{status}");
    assert_eq!(world.get(&item).await.status, StatusCode::NOT_FOUND);
    azure.refuse(false);
    world.protect(WEB).await;
    world.orchestrator.stop().await;
}

/// Makes the storage account of the base a premium one in Azure, and a standard one beside it for the log; gives the
/// path of the latter. Premium storage takes no 30 seconds.
async fn premium_with_log(world: &World, base: &Azure, log: &Azure) -> String {
    let mut premium = account(base, json!({ "accountKey": account_key() }));
    premium["sku"]["name"] = json!("Premium_LRS");
    in_azure(world, premium).await;
    let path = world.storage().replace("/stdr", "/stlog");
    let standard = account(log, json!({ "accountKey": account_key() }));
    assert_eq!(world.put(&path, standard).await.status, StatusCode::CREATED);
    let policy = world.put(&world.policy(), harness::policy_body(300)).await;
    world.done(&policy).await;
    world.associate().await;
    path
}

fn with_log(mut body: Value, log: &str) -> Value {
    body["properties"]["providerSpecificDetails"]["logStorageAccountId"] = json!(log);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_premium_account_replicates_with_a_log_account_and_engines_get_a_credential_for_each() {
    let (world, engine) = ready().await;
    let (base, log) = (Azure::start().await, Azure::start().await);
    let log_id = premium_with_log(&world, &base, &log).await;
    let item = world.item(WEB).await;
    let body = with_log(world.enable_body(WEB).await, &log_id);
    world.done(&world.put(&item, body.clone()).await).await;
    let shown = world
        .until(&item, |item| {
            item["properties"]["protectionState"] == "Protected"
        })
        .await;
    let details = &shown["properties"]["providerSpecificDetails"];
    assert_eq!(
        details["recoveryAzureStorageAccount"],
        json!(world.storage())
    );
    assert_eq!(details["recoveryAzureLogStorageAccountId"], json!(log_id));
    for (folder, azure) in [("replicaFolder", &base), ("logFolder", &log)] {
        let place = details[folder].as_str().expect("a place");
        assert!(place.starts_with(&azure.endpoint()), "{folder}: {place}");
        assert!(
            azure
                .requests()
                .iter()
                .any(|one| one.starts_with("PUT /acct/") && one.contains("restype=container")),
            "the container of {folder} is made"
        );
    }

    let both = || {
        let wanted = engine.last().replications.into_iter().next().expect("item");
        let mut store = wanted.store.expect("store");
        let log = *store.log.take().expect("a log");
        [store, log].map(|store| match store.kind {
            Some(store_target::Kind::Azure(azure)) => azure,
            other => panic!("no Azure store: {other:?}"),
        })
    };
    let before = both();
    assert_eq!(before[0].blob_endpoint, base.endpoint());
    assert_eq!(before[1].blob_endpoint, log.endpoint());
    assert_eq!((before[0].premium, before[1].premium), (true, false));
    // A store of its own is told, too, for points of VMs that are no longer listed.
    assert!(engine.last().stores.iter().all(|store| store.log.is_some()));
    // An hour later both have a new signature.
    world.orchestrator.app.advance(Duration::from_secs(3_600));
    world
        .until(&item, |_| {
            let now = both();
            (0..2).all(|n| sas(&now[n]) != sas(&before[n]) && expiry(&now[n]) > expiry(&before[n]))
        })
        .await;

    // Both accounts are in use, and stay what they are.
    for path in [world.storage(), log_id.clone()] {
        assert_eq!(
            world.delete(&path).await.code(),
            "StorageAccountInUse",
            "{path}"
        );
    }
    let mut premium = account(&log, json!({}));
    premium["sku"]["name"] = json!("Premium_LRS");
    let refused = world.put(&log_id, premium).await;
    assert_eq!(
        (refused.code(), refused.target()),
        ("StorageAccountInUse", "sku.name")
    );
    // A policy that premium storage can't keep up with is refused also afterwards.
    let faster = world.put(&world.policy(), harness::policy_body(30)).await;
    assert_eq!(faster.status, StatusCode::BAD_REQUEST, "{faster:?}");
    assert!(
        faster.target().ends_with("replicationInterval"),
        "{faster:?}"
    );
    // Another log account would mean another journal.
    let other = log_id.replace("/stlog", "/stother");
    let standard = account(
        &log,
        json!({ "accountKey": account_key(), "containerName": "other" }),
    );
    world.put(&other, standard).await;
    let moved = world.put(&item, with_log(body, &other)).await;
    assert_eq!(moved.code(), "AlreadyProtected", "{moved:?}");

    world
        .done(&world.post(&format!("{item}/remove"), json!({})).await)
        .await;
    assert!(world.delete(&log_id).await.status.is_success());
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_a_log_account_is_told_at_its_property() {
    let (world, _engine) = ready().await;
    let (base, log) = (Azure::start().await, Azure::start().await);
    let log_id = premium_with_log(&world, &base, &log).await;
    let item = world.item(WEB).await;
    let body = world.enable_body(WEB).await;
    let mut south = account(&log, json!({ "accountKey": account_key() }));
    south["location"] = json!("southeurope");
    let south_id = log_id.replace("/stlog", "/stsouth");
    world.put(&south_id, south).await;
    let at = "properties.providerSpecificDetails.logStorageAccountId";
    for (body, word) in [
        (body.clone(), "a log storage account is needed"),
        (
            with_log(body.clone(), &world.storage()),
            "can't be a log storage account",
        ),
        (with_log(body.clone(), &south_id), "region"),
        (
            with_log(body.clone(), &format!("{log_id}x")),
            "no storage account",
        ),
        (with_log(body.clone(), &world.vault()), ""),
    ] {
        let refused = world.put(&item, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
        assert_eq!(refused.target(), at, "{refused:?}");
        assert!(
            refused.body.to_string().contains(word),
            "{word}: {refused:?}"
        );
    }
    // A log account that lets nobody in fails the job at its property.
    log.refuse(true);
    let status = world
        .finish(&world.put(&item, with_log(body, &log_id)).await)
        .await;
    assert_eq!(
        status["error"]["code"], "StorageAccountNotReachable",
        "{status}"
    );
    assert_eq!(status["error"]["target"], at);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_or_folder_account_takes_a_log_account_too_and_its_own_is_the_same_as_none() {
    let (world, engine) = ready().await;
    let log = Azure::start().await;
    let log_id = world.storage().replace("/stdr", "/stlog");
    world
        .put(
            &log_id,
            account(&log, json!({ "accountKey": account_key() })),
        )
        .await;
    world.associate().await;
    for (vm, account, apart) in [(WEB, log_id.clone(), true), (DB, world.storage(), false)] {
        let item = world.item(vm).await;
        let body = with_log(world.enable_body(vm).await, &account);
        world.done(&world.put(&item, body).await).await;
        let wanted = engine.last().replications.into_iter();
        let wanted = wanted.clone().find(|one| one.vm_id == vm).expect("item");
        assert_eq!(wanted.store.expect("store").log.is_some(), apart, "{vm}");
        let details = world.get(&item).await.body["properties"]["providerSpecificDetails"].clone();
        assert_eq!(details["recoveryAzureLogStorageAccountId"], json!(account));
        assert_eq!(details["logFolder"].is_string(), apart, "{vm}");
    }
    world.orchestrator.stop().await;
}
