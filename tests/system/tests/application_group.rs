//! An application of two running VMs in Azure Storage (Azurite): shared points 5 s apart, some of them at rest through the guest
//! agents, encrypted, with a key that is rotated, a store that stalls and a comparison on demand. Drills prove the points.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::azurite::{ACCOUNT, Azurite, KEY};
use system_tests::console::Console;
use system_tests::lab::Guest;
use system_tests::process::wait_for;
use system_tests::story::{BOOT, check_drill, drill_vms, files_below, newest_position, show};
use system_tests::{Cli, Lab, Orchestrator, Terraform};

const GUESTS: [(&str, u8); 2] = [("shop-db", 2), ("shop-web", 1)];
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn an_application_shares_its_points_at_rest_encrypted_and_in_azure_storage() -> Result<()> {
    let mut lab = Lab::new("app-group")?;
    let outcome = protect(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn protect(lab: &Lab) -> Result<()> {
    let azurite = Azurite::start(lab)?;
    let orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    for (name, generation) in GUESTS {
        lab.build_guest(&Guest {
            name,
            generation,
            marker: None,
            fill_mib: 16,
            app_mib: 32,
        })?;
        lab.start_vm(name)?;
    }
    for (name, _) in GUESTS {
        lab.console(name).wait_for_sequence(1, BOOT)?;
    }
    let mut wanted = variables(lab, &azurite);
    let mut terraform = Terraform::new(
        lab,
        "application-group",
        &orchestrator.environment()?,
        &wanted,
    )?;
    terraform.env("TF_VAR_account_key", KEY);
    terraform.run(&["init"])?;
    terraform.apply()?;
    terraform.plan_is_empty()?;

    show("points are shared, and some of them are at rest");
    let at_rest = wait_for(
        "an application-consistent point of the whole group",
        LIMIT,
        || {
            shared_points(&cli)?
                .into_iter()
                .rev()
                .find(|points| points.iter().all(is_at_rest))
                .map_or(Ok(None), |points| Ok(Some(points)))
        },
    )?;
    for (point, (name, _)) in at_rest.iter().zip(GUESTS) {
        show(&format!("{name}: {}", point["name"]));
    }

    show("a drill of that point finds a file system at rest");
    let name = at_rest[0]["name"]
        .as_str()
        .context("a point without a name")?;
    cli.text(&[
        "test-failover",
        "start",
        "--item",
        GUESTS[0].0,
        "--point",
        name,
    ])?;
    let console = drill_console(lab)?;
    console.wait_for_check(BOOT)?;
    let line = wait_for("the guest tells of its file system", BOOT, || {
        Ok(console
            .lines()
            .into_iter()
            .find(|line| line.starts_with("app ")))
    })?;
    ensure!(
        line.contains("clean=yes") && line.contains("state=frozen"),
        "the point was not taken at rest: {line}"
    );
    cli.text(&["test-failover", "cleanup", "--item", GUESTS[0].0])?;

    show("the store stalls; points come again when it answers");
    let before = positions(&cli)?;
    azurite.stall()?;
    std::thread::park_timeout(Duration::from_secs(20));
    azurite.go_on()?;
    points_go_on(&cli, &before)?;

    show("a new key, and a comparison on demand");
    let old_key = key_in_use(&cli)?;
    wanted["key_rotation"] = json!("second");
    wanted["resynchronize"] = json!("once");
    terraform.variables(&wanted)?;
    terraform.apply()?;
    wait_for("new cycles are encrypted with the new key", LIMIT, || {
        Ok(key_in_use(&cli)
            .is_ok_and(|key| key != old_key)
            .then_some(()))
    })?;
    points_go_on(&cli, &positions(&cli)?)?;

    show("a drill of the whole application");
    wanted["run_drill"] = json!(true);
    terraform.variables(&wanted)?;
    terraform.apply()?;
    check_drill(&drill_vms(&terraform)?)?;

    no_secret_is_written(lab)?;
    terraform.destroy()?;
    let left: Vec<String> = azurite
        .blobs("replicas")?
        .into_iter()
        // What keeps a stale engine from making the replica anew.
        .filter(|name| !name.ends_with("tombstone") && !name.ends_with("generation"))
        .collect();
    ensure!(left.is_empty(), "blobs are left: {left:?}");
    for (name, _) in GUESTS {
        lab.stop_vm(name)?;
    }
    Ok(())
}

fn variables(lab: &Lab, azurite: &Azurite) -> Value {
    json!({
        "vm_folder": lab.vm_folder(),
        "data_folder": lab.folder().join("host/data"),
        "install_folder": lab.folder().join("host/bin"),
        "vm_names": GUESTS.map(|(name, _)| name),
        "storage_account_name": ACCOUNT,
        "blob_endpoint": azurite.endpoint(),
        "interval_in_seconds": 5,
        "run_drill": false,
    })
}

/// Points that every VM of the group has under one group point id, oldest first, in the order of [`GUESTS`].
fn shared_points(cli: &Cli) -> Result<Vec<Vec<Value>>> {
    let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut order = Vec::new();
    for (name, _) in GUESTS {
        let points = cli.json(&["point", "list", name])?;
        for point in points.as_array().into_iter().flatten() {
            let id = point
                .pointer("/properties/providerSpecificDetails/groupPointId")
                .and_then(Value::as_str);
            if let Some(id) = id {
                order.push(id.to_owned());
                groups.entry(id.to_owned()).or_default().push(point.clone());
            }
        }
    }
    let mut shared = Vec::new();
    for id in order {
        if groups
            .get(&id)
            .is_some_and(|points| points.len() == GUESTS.len())
            && let Some(points) = groups.remove(&id)
        {
            shared.push(points);
        }
    }
    Ok(shared)
}

fn is_at_rest(point: &Value) -> bool {
    let kind = point.pointer("/properties/recoveryPointType");
    kind.and_then(Value::as_str)
        .is_some_and(|kind| kind.eq_ignore_ascii_case("ApplicationConsistent"))
}

fn positions(cli: &Cli) -> Result<Vec<(&'static str, u64)>> {
    GUESTS
        .iter()
        .map(|(name, _)| Ok((*name, newest_position(cli, name)?)))
        .collect()
}

fn points_go_on(cli: &Cli, before: &[(&'static str, u64)]) -> Result<()> {
    for (name, position) in before {
        wait_for(&format!("{name} gets two more points"), LIMIT, || {
            Ok((newest_position(cli, name)? >= position + 2).then_some(()))
        })?;
    }
    Ok(())
}

/// Key that the newest objects of the first VM are encrypted with.
fn key_in_use(cli: &Cli) -> Result<String> {
    let item = cli.json(&["item", "show", GUESTS[0].0])?;
    item.pointer("/properties/providerSpecificDetails/encryptionKeyId")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .context("the item names no key")
}

/// The console of the only recovered VM.
fn drill_console(lab: &Lab) -> Result<Console> {
    let recovered = lab.folder().join("host/data/recovered");
    let found = files_below(&recovered)
        .into_iter()
        .find(|file| file.ends_with("console.log"));
    Ok(Console::at(Path::new(&found.context("no recovered VM")?)))
}

/// The account key is in the orchestrator's own store only, and no signature or token in any log or state.
fn no_secret_is_written(lab: &Lab) -> Result<()> {
    for file in files_below(lab.folder()) {
        let path = Path::new(&file);
        let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() < 64 << 20);
        let own = file.contains("/orchestrator/data/") || file.ends_with("/desired.bin");
        if own || !small || file.contains("/mirror/") || file.contains("/hyperv/") {
            continue;
        }
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        ensure!(!text.contains(KEY), "the account key is in {file}");
        // Azurite logs the requests that it gets; that log is not ours.
        if !file.ends_with("azurite.log") {
            ensure!(!text.contains("sig="), "a signature is in {file}");
        }
    }
    Ok(())
}
