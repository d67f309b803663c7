//! Enrolment and sessions over real TLS: who gets in, who doesn't, what a newer stream does.

mod harness;

use std::time::Duration;

use engine_protocol::v1;
use engine_protocol::v1::engine_gateway_client::EngineGatewayClient;
use engine_protocol::{Authority, EngineIdentity, IdentityRequest, RegistrationKey, tls};
use harness::engine::{BROKEN, Behaviour, DB, Engine, WEB, enrol, enrol_with};
use harness::{World, ready};
use orchestrator::store::records::{self, EnrolmentKey};
use reqwest::StatusCode;
use serde_json::json;
use tonic::Code;

async fn session(
    gateway: &str,
    identity: &EngineIdentity,
) -> Result<tonic::Streaming<v1::DesiredState>, tonic::Status> {
    let mut client =
        EngineGatewayClient::new(tls::session_channel(gateway, identity).expect("channel"));
    Ok(client.session(tokio_stream::pending()).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_enrols_one_engine_as_often_as_it_asks_and_no_other() {
    let world = World::start().await;
    world.base_resources().await;
    let key = world.registration_key().await;
    let first = uuid::Uuid::new_v4().to_string();
    let (_, response) = enrol(&key, &first).await.expect("enrolment");
    let (_, again) = enrol(&key, &first).await.expect("the same engine again");
    assert_eq!(response.provider_arm_id, again.provider_arm_id);
    assert!(
        response
            .provider_arm_id
            .ends_with(&format!("/replicationRecoveryServicesProviders/{first}"))
    );
    let other = enrol(&key, &uuid::Uuid::new_v4().to_string())
        .await
        .err()
        .expect("another engine");
    assert_eq!(other.code(), Code::PermissionDenied);
    assert!(other.message().contains("another engine"));
    assert_eq!(
        world.get(&response.provider_arm_id).await.body["properties"]["connectionStatus"],
        "Disconnected"
    );
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_the_name_of_an_engine_that_is_known() {
    let world = World::start().await;
    world.base_resources().await;
    let victim = uuid::Uuid::new_v4().to_string();
    let key = world.registration_key().await;
    enrol(&key, &victim).await.expect("enrolment");
    // A fresh and valid key of the same site, but not the victim's key pair.
    let fresh = world.registration_key().await;
    let stranger = IdentityRequest::generate().expect("key pair");
    let refused = enrol_with(&fresh, &victim, &stranger)
        .await
        .err()
        .expect("a stranger");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("another key"), "{refused:?}");
    // The engine itself may enrol again, with a new registration key too.
    enrol(&fresh, &victim).await.expect("the engine itself");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_wrong_and_expired_keys_are_refused_clearly() {
    let world = World::start().await;
    world.base_resources().await;
    let good = world.registration_key().await;
    let engine = uuid::Uuid::new_v4().to_string();
    let mut key = RegistrationKey::decode(&good).expect("key");
    let (key_id, _) = key.secret.split_once('.').expect("two parts");
    let (key_id, secret) = (key_id.to_owned(), key.secret.clone());
    for wrong in ["", "nothing", "unknown.secret", &format!("{key_id}.wrong")] {
        wrong.clone_into(&mut key.secret);
        // An empty secret is no key at all; the gateway is asked with all others.
        if wrong.is_empty() {
            continue;
        }
        let status = enrol(&key.encode(), &engine)
            .await
            .err()
            .expect("wrong secret");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(
            !status.message().contains("wrong") && status.message().contains("new one"),
            "{status:?}"
        );
    }
    key.secret = secret;
    let store = &world.orchestrator.app.store;
    records::update::<EnrolmentKey>(store.as_ref(), &format!("~key/{key_id}"), |key| {
        Some(EnrolmentKey {
            expires_unix: 1,
            ..key.clone()
        })
    })
    .await
    .expect("store");
    let status = enrol(&key.encode(), &engine).await.err().expect("expired");
    assert!(status.message().contains("expired"), "{status:?}");
    assert_eq!(
        enrol(&good, "no guid").await.err().expect("no id").code(),
        Code::InvalidArgument
    );
    let hours = world
        .post(
            &format!("{}/registrationKeys", world.fabric()),
            json!({ "properties": { "validityInHours": 0 } }),
        )
        .await;
    assert_eq!(hours.target(), "properties.validityInHours");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_needs_a_certificate_of_this_authority_and_a_registered_host() {
    let world = World::start().await;
    world.base_resources().await;
    let gateway = world.orchestrator.gateway.to_string();
    let key = world.registration_key().await;
    let id = uuid::Uuid::new_v4().to_string();
    let (identity, response) = enrol(&key, &id).await.expect("enrolment");
    assert!(session(&gateway, &identity).await.is_ok());

    let used = key.clone();
    let key = RegistrationKey::decode(&key).expect("key");
    let mut nobody = EngineGatewayClient::new(tls::enrolment_channel(&key).expect("channel"));
    let status = nobody
        .session(tokio_stream::pending())
        .await
        .expect_err("no certificate");
    assert_eq!(status.code(), Code::Unauthenticated);

    let now = time::OffsetDateTime::now_utc();
    let foreign = Authority::generate("foreign", now).expect("CA");
    let request = IdentityRequest::generate().expect("request");
    let forged = EngineIdentity {
        certificate_pem: foreign
            .issue_engine(&id, &request.request_pem, now)
            .expect("certificate"),
        key_pem: request.key_pem,
        ca_pem: identity.ca_pem.clone(),
    };
    assert!(
        session(&gateway, &forged).await.is_err(),
        "a certificate of another authority"
    );

    world
        .done(
            &world
                .post(&format!("{}/remove", response.provider_arm_id), json!({}))
                .await,
        )
        .await;
    assert_eq!(
        session(&gateway, &identity)
            .await
            .expect_err("unregistered")
            .code(),
        Code::PermissionDenied
    );
    let again = enrol(&used, &id)
        .await
        .err()
        .expect("the key went with the host");
    assert_eq!(again.code(), Code::PermissionDenied, "{again:?}");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_its_own_key_and_a_registered_host_only() {
    let world = World::start().await;
    world.base_resources().await;
    let gateway = world.orchestrator.gateway.to_string();
    let key = world.registration_key().await;
    let id = uuid::Uuid::new_v4().to_string();
    let (identity, response) = enrol(&key, &id).await.expect("enrolment");
    let renew = async |identity: &EngineIdentity, key_pem: &str| {
        let channel = tls::session_channel(&gateway, identity).expect("channel");
        let request = IdentityRequest::from_key_pem(key_pem).expect("request");
        let request = v1::RenewRequest {
            certificate_request_pem: request.request_pem,
        };
        EngineGatewayClient::new(channel).renew(request).await
    };
    let renewed = renew(&identity, &identity.key_pem).await.expect("renewal");
    let renewed = EngineIdentity {
        certificate_pem: renewed.into_inner().certificate_pem,
        ..identity.clone()
    };
    assert_ne!(renewed.certificate_pem, identity.certificate_pem);
    // Both are good until the old one ends: nothing depends on the answer having arrived.
    for one in [&identity, &renewed] {
        assert!(session(&gateway, one).await.is_ok());
    }

    let other = IdentityRequest::generate().expect("request");
    let refused = renew(&identity, &other.key_pem).await.expect_err("a key");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let key = RegistrationKey::decode(&key).expect("key");
    let mut nobody = EngineGatewayClient::new(tls::enrolment_channel(&key).expect("channel"));
    let request = v1::RenewRequest {
        certificate_request_pem: other.request_pem,
    };
    let refused = nobody.renew(request).await.expect_err("no certificate");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    let removal = format!("{}/remove", response.provider_arm_id);
    world.done(&world.post(&removal, json!({})).await).await;
    let refused = renew(&renewed, &renewed.key_pem).await.expect_err("a host");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_stream_of_an_engine_replaces_the_older_one() {
    let world = World::start().await;
    world.base_resources().await;
    let (identity, _) = enrol(
        &world.registration_key().await,
        &uuid::Uuid::new_v4().to_string(),
    )
    .await
    .expect("enrolment");
    let gateway = world.orchestrator.gateway.to_string();
    let mut old = session(&gateway, &identity).await.expect("first stream");
    let first = old.message().await.expect("state").expect("state");
    let mut new = session(&gateway, &identity).await.expect("second stream");
    let again = new.message().await.expect("state").expect("state");
    assert_eq!(
        first.generation, again.generation,
        "nothing changed, so the generation didn't"
    );
    world.orchestrator.app.ring();
    let end = tokio::time::timeout(Duration::from_secs(20), old.message())
        .await
        .expect("the old stream ends");
    assert_eq!(end.expect_err("ended by the gateway").code(), Code::Aborted);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_back_goes_on_where_it_was() {
    let world = World::start().await;
    world.base_resources().await;
    let gateway = world.orchestrator.gateway.to_string();
    let engine = Engine::start(&world.registration_key().await, &gateway).await;
    let list = format!("{}/replicationProtectionContainers", world.fabric());
    world
        .until(&list, |list| {
            list["value"].as_array().is_some_and(|list| list.len() == 1)
        })
        .await;
    world
        .until(&engine.provider_id, |host| {
            host["properties"]["connectionStatus"] == "Connected"
        })
        .await;
    world.associate().await;
    let items = format!("{}/replicationProtectableItems", world.container().await);
    world
        .until(&items, |list| {
            list["value"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        })
        .await;
    let item = world.protect(WEB).await;
    let before = engine.last();
    let (id, identity, provider) = engine.stop().await;
    let engine = Engine::resume(id, identity, provider, &gateway, Behaviour::default());
    world.until(&item, |_| engine.last().generation > 0).await;
    assert_eq!(
        engine.last(),
        before,
        "the whole desired state again, unchanged"
    );
    assert_eq!(world.get(&item).await.status, StatusCode::OK);
    engine.stop().await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_of_one_group_are_on_one_host_whether_enabled_or_changed() {
    let (world, first) = ready().await;
    world.associate().await;
    let key = world.registration_key().await;
    let second = Engine::start(&key, &world.orchestrator.gateway.to_string()).await;
    first.behave(|engine| engine.lacks = vec![DB]);
    second.behave(|engine| engine.lacks = vec![WEB, BROKEN]);
    let items = format!("{}/replicationProtectableItems", world.container().await);
    let has = |engine: &Engine, vm: &str| {
        let live = world.orchestrator.app.fleet.get(&engine.id);
        live.is_some_and(|live| live.machine(vm).is_some())
    };
    world
        .until(&items, |_| {
            has(&first, WEB) && !has(&first, DB) && has(&second, DB) && !has(&second, WEB)
        })
        .await;
    let grouped = |mut body: serde_json::Value, group: &str| {
        body["properties"]["providerSpecificDetails"]["multiVmGroupName"] = json!(group);
        body
    };
    let web = world.item(WEB).await;
    let body = grouped(world.enable_body(WEB).await, "shop");
    world.done(&world.put(&web, body).await).await;
    let target = "properties.providerSpecificDetails.multiVmGroupName";
    let expect = |refused: harness::Answer| {
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
        assert_eq!(
            (refused.code(), refused.target()),
            ("MultiVmGroupAcrossHosts", target)
        );
        assert!(refused.body.to_string().contains("web01"), "{refused:?}");
    };
    // Names of groups don't differ by case.
    let db = world.item(DB).await;
    let body = world.enable_body(DB).await;
    expect(world.put(&db, grouped(body.clone(), "SHOP")).await);
    assert_eq!(world.get(&db).await.status, StatusCode::NOT_FOUND);
    world
        .done(&world.put(&db, grouped(body, "other")).await)
        .await;
    let patch = json!({ "properties": { "providerSpecificDetails": {
        "instanceType": "HyperVReplicaAzure", "multiVmGroupName": "shop" } } });
    expect(
        world
            .call(reqwest::Method::PATCH, &db, Some(patch.clone()))
            .await,
    );
    let kept = world.get(&db).await.body;
    assert_eq!(
        kept["properties"]["providerSpecificDetails"]["multiVmGroupName"],
        "other"
    );
    // The group is free for the other host once its VM has left it.
    let mut alone = patch.clone();
    alone["properties"]["providerSpecificDetails"]["multiVmGroupName"] = json!("");
    world.call(reqwest::Method::PATCH, &web, Some(alone)).await;
    let joined = world.call(reqwest::Method::PATCH, &db, Some(patch)).await;
    assert_eq!(joined.status, StatusCode::OK, "{joined:?}");
    world.orchestrator.stop().await;
}
