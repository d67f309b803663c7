//! Bad images and bad stores: each is a clear error at the right attribute or item, and the next apply mends it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::lab::Guest;
use system_tests::process::wait_for;
use system_tests::refusal::{refused, says};
use system_tests::story::{
    BOOT, FILL_MIB, files_below, newest_position, nothing_is_left, show, start_guests, variables,
};
use system_tests::{Cli, Lab, Orchestrator, Terraform, Volume};

const LIMIT: Duration = Duration::from_secs(180);
/// Where a VHDX holds its two region tables.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// What Terraform shows of the configuration when it points at the attribute.
const AT_STORE: &str = "target_storage_account_id = siterecovery_storage_account.replicas.id";
const AT_VM: &str = "vm_id = local.vm_ids[each.key]";

#[test]
fn a_corrupt_image_is_named_and_the_healthy_vm_is_protected() -> Result<()> {
    let mut lab = Lab::new("bad-image")?;
    let outcome = corrupt_image(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn corrupt_image(lab: &Lab) -> Result<()> {
    let orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &[("good01", 2)], FILL_MIB)?;
    lab.build_guest(&Guest {
        name: "bad01",
        generation: 1,
        marker: None,
        fill_mib: 0,
        app_mib: 0,
    })?;
    let image = lab.vm_folder().join("bad01/bad01-data.vhdx");
    let whole = fs::read(&image)?;
    let file = fs::File::options().write(true).open(&image)?;
    for at in REGION_TABLES {
        file.write_all_at(&[0xa5; 64], at)?;
    }

    let terraform = Terraform::new(
        lab,
        "first-light",
        &orchestrator.environment()?,
        &variables(lab, &["good01", "bad01"], false),
    )?;
    terraform.run(&["init"])?;
    let error = refused(&terraform, &["apply", "-auto-approve"])?;
    says(
        &error,
        &[
            "siterecovery_protected_vm.this[\"bad01\"]",
            "on main.tf line",
            AT_VM,
            "\"bad01\"",
            "bad01-data.vhdx is damaged",
            "region table",
            "restore it",
        ],
    )?;
    ensure!(
        items(&cli)? == ["good01"],
        "protected are {:?}",
        items(&cli)?
    );
    // It has a point: the replica of the healthy VM is whole.
    newest_position(&cli, "good01")?;

    show("the image is restored");
    fs::write(&image, whole)?;
    lab.start_vm("bad01")?;
    lab.console("bad01").wait_for_sequence(1, BOOT)?;
    wait_for("the host reports that bad01 is fine", LIMIT, || {
        let vms = cli.json(&["vm", "list"])?;
        let vm = named(&vms, "bad01").context("bad01 is not reported")?;
        let errors = vm
            .pointer("/properties/protectionReadinessErrors")
            .and_then(Value::as_array);
        Ok(errors.is_none_or(Vec::is_empty).then_some(()))
    })?;
    terraform.apply()?;
    terraform.plan_is_empty()?;
    ensure!(items(&cli)?.len() == 2, "protected are {:?}", items(&cli)?);
    terraform.destroy()?;
    nothing_is_left(lab)
}

#[test]
fn a_store_that_is_read_only_or_full_is_named_and_mended_by_the_next_apply() -> Result<()> {
    let name = "bad-store";
    Volume::clear(
        &std::env::temp_dir()
            .join("site-recovery-lab")
            .join(name)
            .join("storage"),
    )?;
    let mut lab = Lab::new(name)?;
    let outcome = bad_store(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn bad_store(lab: &Lab) -> Result<()> {
    let folder = lab.folder().join("storage");
    let place = folder.display().to_string();
    let volume = Volume::mount(&folder, 8)?;
    let orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &[("full01", 2)], FILL_MIB)?;
    let terraform = Terraform::new(
        lab,
        "first-light",
        &orchestrator.environment()?,
        &variables(lab, &["full01"], false),
    )?;
    terraform.run(&["init"])?;

    show("protect into a read-only volume");
    volume.remount("ro")?;
    let error = refused(&terraform, &["apply", "-auto-approve"])?;
    says(
        &error,
        &[
            "siterecovery_protected_vm.this[\"full01\"]",
            AT_STORE,
            &place,
            "read-only",
            "Make the folder writable",
        ],
    )?;

    show("protect into a volume that is too small");
    volume.remount("rw")?;
    let error = refused(&terraform, &["apply", "-auto-approve"])?;
    says(
        &error,
        &[
            "siterecovery_protected_vm.this[\"full01\"]",
            AT_STORE,
            &place,
            "is full",
            "Free space on the volume",
        ],
    )?;

    show("the same apply again, with room");
    volume.resize(512)?;
    terraform.apply()?;
    terraform.plan_is_empty()?;
    let bases = files_below(&folder)
        .into_iter()
        .filter(|file| file.ends_with("base.vhd"))
        .count();
    ensure!(
        bases == 2,
        "one replica of two disks was expected, {bases} bases are there"
    );

    show("read-only in the middle of replication");
    volume.remount("ro")?;
    sick(&cli, "STORE_UNAVAILABLE", &[&place, "read-only"])?;
    volume.remount("rw")?;
    goes_on(&cli, 1)?;

    show("full in the middle of replication");
    // Exactly what is in use: the next byte does not fit.
    volume.resize(volume.used_mib()?.max(1))?;
    sick(&cli, "STORE_FULL", &[&place, "Free space on the volume"])?;
    volume.resize(512)?;
    // The one that waited, and one captured since.
    goes_on(&cli, 2)?;
    terraform.plan_is_empty()?;
    terraform.destroy()?;
    nothing_is_left(lab)
}

/// Waits until the item shows this problem with cause and next step.
fn sick(cli: &Cli, code: &str, texts: &[&str]) -> Result<()> {
    let error = wait_for(&format!("full01 shows {code}"), LIMIT, || {
        let item = cli.json(&["item", "show", "full01"])?;
        let errors = item
            .pointer("/properties/healthErrors")
            .and_then(Value::as_array);
        let found = errors
            .into_iter()
            .flatten()
            .find(|e| e["errorCode"] == code);
        Ok(found.cloned())
    })?;
    for name in ["possibleCauses", "recommendedAction"] {
        ensure!(
            error[name].as_str().is_some_and(|text| !text.is_empty()),
            "no {name} in {error}"
        );
    }
    let whole = error.to_string();
    for text in texts {
        ensure!(whole.contains(text), "{text:?} is not in {whole}");
    }
    show(error["errorMessage"].as_str().unwrap_or_default());
    Ok(())
}

/// A healthy item, with so many points more.
fn goes_on(cli: &Cli, points: u64) -> Result<()> {
    let before = newest_position(cli, "full01")?;
    wait_for("replication goes on by itself", LIMIT, || {
        let item = cli.json(&["item", "show", "full01"])?;
        let well = item.pointer("/properties/replicationHealth") == Some(&"Normal".into());
        Ok((well && newest_position(cli, "full01")? >= before + points).then_some(()))
    })
}

fn items(cli: &Cli) -> Result<Vec<String>> {
    let items = cli.json(&["item", "list"])?;
    let name = |item: &Value| {
        item.pointer("/properties/friendlyName")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    Ok(items
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(name)
        .collect())
}

fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    let mut all = list.as_array()?.iter();
    all.find(|entry| entry.pointer("/properties/friendlyName") == Some(&name.into()))
}
