//! Networks of a site, what they are mapped to, and what is chosen for a VM's adapters.

mod harness;

use harness::engine::{Behaviour, DB, Engine, WEB};
use harness::{Answer, World, ready};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn production(world: &World) -> String {
    format!(
        "{}/providers/Microsoft.Network/virtualNetworks/production",
        world.group
    )
}

async fn make_network(world: &World, name: &str, range: &str) -> String {
    let path = format!(
        "{}/providers/Microsoft.Network/virtualNetworks/{name}",
        world.group
    );
    let subnet = format!("{range}.1.0/24");
    let body = json!({ "location": "northeurope", "properties": {
        "addressSpace": { "addressPrefixes": [format!("{range}.0.0/16")] },
        "subnets": [{ "name": "web", "properties": { "addressPrefix": subnet } }],
    } });
    let answer = world.put(&path, body).await;
    assert!(answer.status.is_success(), "{answer:?}");
    path
}

/// The site's network, as clients find it.
async fn site_network(world: &World) -> String {
    let list = world
        .get(&format!("{}/replicationNetworks", world.fabric()))
        .await;
    let network = &list.body["value"][0];
    assert_eq!(
        network["properties"]["fabricType"], "HyperVSite",
        "{list:?}"
    );
    network["id"].as_str().expect("id").to_owned()
}

fn mapping_body(network: &str) -> Value {
    json!({ "properties": {
        "recoveryFabricName": "Microsoft Azure", "recoveryNetworkId": network,
        "fabricSpecificDetails": { "instanceType": "VmmToAzure" },
    } })
}

async fn world() -> (World, Engine, String) {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    make_network(&world, "production", "10.1").await;
    let nothing = json!({ "selectedRecoveryAzureNetworkId": "", "vmNics": [{ "ipConfigs": [{ "recoverySubnetName": "" }] }] });
    let cleared = patch(&world, &item, nothing).await;
    assert_eq!(cleared.status, StatusCode::OK, "{cleared:?}");
    (world, engine, item)
}

async fn patch(world: &World, item: &str, properties: Value) -> Answer {
    let body = json!({ "properties": properties });
    world.call(Method::PATCH, item, Some(body)).await
}

async fn details(world: &World, item: &str) -> Value {
    let answer = world.get(item).await;
    answer.body["properties"]["providerSpecificDetails"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_follow_the_mapping_of_their_switch_until_they_get_a_network_of_their_own() {
    let (world, _engine, item) = world().await;
    let network = site_network(&world).await;
    let mapping = format!("{network}/replicationNetworkMappings/lan");
    let refused = world
        .put(&mapping, mapping_body(&format!("{}x", production(&world))))
        .await;
    assert_eq!(
        refused.target(),
        "properties.recoveryNetworkId",
        "{refused:?}"
    );

    let made = world.put(&mapping, mapping_body(&production(&world))).await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");
    assert_eq!(made.body["properties"]["state"], "Paired");
    let shown = details(&world, &item).await;
    assert_eq!(shown["selectedRecoveryAzureNetworkId"], production(&world));
    assert_eq!(shown["recoveryNetworkSource"], "Mapping");
    assert_eq!(
        shown["vmNics"][0]["recoveryVMNetworkId"],
        production(&world)
    );

    // A mapping that changes moves the VMs that follow it.
    let other = make_network(&world, "other", "10.2").await;
    let changed = world
        .call(Method::PATCH, &mapping, Some(mapping_body(&other)))
        .await;
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
    let shown = details(&world, &item).await;
    assert_eq!(shown["selectedRecoveryAzureNetworkId"], other);

    let second = world
        .put(
            &format!("{network}/replicationNetworkMappings/again"),
            mapping_body(&other),
        )
        .await;
    assert_eq!(second.code(), "NetworkAlreadyMapped", "{second:?}");
    let in_use = world.delete(&other).await;
    assert_eq!(in_use.code(), "NetworkInUse", "{in_use:?}");

    let own = json!({ "selectedRecoveryAzureNetworkId": production(&world) });
    assert_eq!(patch(&world, &item, own).await.status, StatusCode::OK);
    let shown = details(&world, &item).await;
    assert_eq!(shown["selectedRecoveryAzureNetworkId"], production(&world));
    assert!(shown.get("recoveryNetworkSource").is_none(), "{shown}");

    let vault_list = world
        .get(&format!("{}/replicationNetworkMappings", world.vault()))
        .await;
    assert_eq!(vault_list.body["value"].as_array().map(Vec::len), Some(1));
    assert_eq!(world.delete(&mapping).await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.get(&mapping).await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.delete(&other).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_chosen_for_adapters_is_kept_and_what_can_not_be_is_refused_at_its_place() {
    let (world, _engine, item) = world().await;
    let db = world.protect(DB).await;
    let nic_of = |details: &Value| {
        details["vmNics"][0]["nicId"]
            .as_str()
            .expect("id")
            .to_owned()
    };
    let nic = nic_of(&details(&world, &item).await);
    let choice = |address: &str, subnet: &str| {
        json!({ "nicId": nic, "selectionType": "SelectedByUser",
            "ipConfigs": [{ "ipConfigName": "ip0", "recoverySubnetName": subnet, "recoveryStaticIPAddress": address }] })
    };
    // The other VM goes to the same network, without the subnet that it was protected with.
    let moved = json!({ "selectedRecoveryAzureNetworkId": production(&world), "vmNics": [{ "ipConfigs": [{ "recoverySubnetName": "" }] }] });
    assert_eq!(patch(&world, &db, moved).await.status, StatusCode::OK);
    let with_network = |nics: Value| json!({ "selectedRecoveryAzureNetworkId": production(&world), "vmNics": nics });
    let no_network = patch(&world, &item, json!({ "vmNics": [choice("10.1.1.9", "")] })).await;
    assert_eq!(
        no_network.target(),
        "properties.vmNics[0]",
        "{no_network:?}"
    );
    for (wrong, target) in [
        (choice("10.1.1.2", "web"), "properties.vmNics[0]"),
        (choice("10.9.1.9", ""), "properties.vmNics[0]"),
        (choice("", "mail"), "properties.vmNics[0]"),
        (json!({ "nicId": "bm9uZQ==" }), "properties.vmNics[0].nicId"),
        (
            json!({ "nicId": nic, "selectionType": "Perhaps" }),
            "properties.vmNics[0].selectionType",
        ),
        (
            json!({ "nicId": nic, "selectionType": "NotSelected" }),
            "properties.vmNics",
        ),
    ] {
        let refused = patch(&world, &item, with_network(json!([wrong]))).await;
        assert_eq!(
            (refused.status, refused.target()),
            (StatusCode::BAD_REQUEST, target),
            "{refused:?}"
        );
    }
    let kept = patch(
        &world,
        &item,
        with_network(json!([choice("10.1.1.9", "web")])),
    )
    .await;
    assert_eq!(kept.status, StatusCode::OK, "{kept:?}");
    let shown = details(&world, &item).await;
    let ip = &shown["vmNics"][0]["ipConfigs"][0];
    assert_eq!(
        (&ip["recoverySubnetName"], &ip["recoveryStaticIPAddress"]),
        (&json!("web"), &json!("10.1.1.9"))
    );
    assert_eq!(shown["vmNics"][0]["selectionType"], "SelectedByUser");

    let theirs = nic_of(&details(&world, &db).await);
    let mut same = choice("10.1.1.9", "");
    same["nicId"] = json!(theirs);
    let taken = patch(&world, &db, with_network(json!([same]))).await;
    assert_eq!(taken.code(), "PrivateIPAddressInUse", "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_in_the_production_network_is_warned_of_and_an_isolated_one_is_not() {
    let (world, _engine, item) = world().await;
    let own = json!({ "selectedRecoveryAzureNetworkId": production(&world) });
    assert_eq!(patch(&world, &item, own).await.status, StatusCode::OK);
    let warnings = async |network: Value| {
        let answer = world
            .post(
                &format!("{item}/testFailover"),
                json!({ "properties": network }),
            )
            .await;
        world.done(&answer).await;
        let job = world.job(&answer).await;
        let cleaned = world
            .post(
                &format!("{item}/testFailoverCleanup"),
                json!({ "properties": {} }),
            )
            .await;
        world.done(&cleaned).await;
        job["properties"]["tasks"][0]["errors"].clone()
    };
    let told =
        warnings(json!({ "networkType": "VmNetworkAsInput", "networkId": production(&world) }))
            .await;
    assert_eq!(told[0]["errorLevel"], "Warning", "{told}");
    assert_eq!(
        told[0]["serviceErrorDetails"]["code"],
        "TestFailoverInProductionNetwork"
    );
    assert_eq!(warnings(json!({})).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_mappings_of_one_switch_that_are_made_at_the_same_time_one_is_kept() {
    let (world, _engine, _item) = world().await;
    let network = site_network(&world).await;
    let path = |name: usize| format!("{network}/replicationNetworkMappings/m{name}");
    for round in 0..5 {
        let paths: Vec<String> = (0..8).map(path).collect();
        let calls = paths
            .iter()
            .map(|path| world.put(path, mapping_body(&production(&world))));
        let answers = futures::future::join_all(calls).await;
        let (made, refused): (Vec<_>, Vec<_>) = answers
            .into_iter()
            .partition(|answer| answer.status == StatusCode::OK);
        assert_eq!(made.len(), 1, "round {round}: {made:?}");
        assert!(
            refused
                .iter()
                .all(|answer| answer.code() == "NetworkAlreadyMapped"),
            "{refused:?}"
        );
        let list = world
            .get(&format!("{network}/replicationNetworkMappings"))
            .await;
        let kept = list.body["value"].as_array().expect("list");
        assert_eq!(kept.len(), 1, "{kept:?}");
        let kept = kept[0]["id"].as_str().expect("id");
        assert_eq!(world.delete(kept).await.status, StatusCode::NO_CONTENT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enable_that_says_nothing_of_adapters_leaves_what_was_chosen_for_them() {
    let (world, _engine, item) = world().await;
    let nic = details(&world, &item).await["vmNics"][0]["nicId"].clone();
    let chosen = json!({ "selectedRecoveryAzureNetworkId": production(&world), "selectedSourceNicId": nic, "vmNics": [{
        "nicId": nic, "selectionType": "SelectedByUser",
        "ipConfigs": [{ "ipConfigName": "ip0", "recoverySubnetName": "web", "recoveryStaticIPAddress": "10.1.1.9" }],
    }] });
    let kept = patch(&world, &item, chosen).await;
    assert_eq!(kept.status, StatusCode::OK, "{kept:?}");
    let before = details(&world, &item).await["vmNics"].clone();
    let mut body = world.enable_body(WEB).await;
    let asked = &mut body["properties"]["providerSpecificDetails"];
    asked["targetAzureNetworkId"] = json!(production(&world));
    asked["targetAzureSubnetId"] = json!("");
    let again = world.put(&item, body.clone()).await;
    world.done(&again).await;
    assert_eq!(details(&world, &item).await["vmNics"], before);
    // What it does say counts.
    body["properties"]["providerSpecificDetails"]["vmNics"] = json!([]);
    let again = world.put(&item, body).await;
    world.done(&again).await;
    let shown = details(&world, &item).await;
    let address = &shown["vmNics"][0]["ipConfigs"][0]["recoveryStaticIPAddress"];
    assert_ne!(*address, json!("10.1.1.9"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_its_host_lists_no_more_is_still_failed_over_into_its_network() {
    let (world, engine, item) = world().await;
    let network = site_network(&world).await;
    let mapping = format!("{network}/replicationNetworkMappings/lan");
    let made = world.put(&mapping, mapping_body(&production(&world))).await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");
    let before = details(&world, &item).await["vmNics"].clone();
    assert_eq!(before[0]["recoveryVMNetworkId"], production(&world));

    engine.behave(|behaviour| behaviour.lacks = vec![WEB]);
    let app = &world.orchestrator.app;
    let mut bell = app.listen();
    let is_listed = || {
        let live = app.fleet.get(&engine.id).unwrap_or_default();
        live.machine(WEB).is_some()
    };
    while is_listed() {
        bell.changed().await.expect("a report");
    }
    assert_eq!(details(&world, &item).await["vmNics"], before);

    // Nor is it forgotten with the orchestrator's memory.
    let (id, identity, provider) = engine.stop().await;
    let world = world.restart().await;
    assert_eq!(details(&world, &item).await["vmNics"], before);
    let lacking = Behaviour {
        lacks: vec![WEB],
        ..Behaviour::default()
    };
    let gateway = world.orchestrator.gateway.to_string();
    let engine = Engine::resume(id, identity, provider, &gateway, lacking);
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "NotRequired" } });
    let started = world.post(&format!("{item}/unplannedFailover"), body).await;
    world.done(&started).await;
    let recovered = engine.last().recovered_vms;
    assert!(!recovered[0].private_network.is_empty(), "{recovered:?}");
}
