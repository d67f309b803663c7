//! Real Terraform, the provider, and a real orchestrator: what needs no virtual machine.

mod premium;
mod support;

use std::fs;

use support::{Lab, binary, wait_for};

const BASE: &str = r#"
resource "siterecovery_vault" "this" {
  name                = "vault-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"
}

resource "siterecovery_storage_account" "this" {
  name                = "stdrreplica"
  resource_group_name = "rg-dr"
  location            = "North Europe"
  folder              = "FOLDER/replicas"
}

resource "siterecovery_virtual_network" "this" {
  name                = "vnet-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"
  address_space       = ["10.80.0.0/16"]

  subnet {
    name           = "servers"
    address_prefix = "10.80.1.0/24"
  }
}

resource "siterecovery_hyperv_site" "this" {
  name              = "site-oslo"
  recovery_vault_id = siterecovery_vault.this.id
}

resource "siterecovery_replication_policy" "this" {
  name                            = "every-30-seconds"
  recovery_vault_id               = siterecovery_vault.this.id
  replication_interval_in_seconds = 30
}
"#;

fn base(lab: &Lab) -> String {
    BASE.replace("FOLDER", &lab.folder.path().display().to_string())
}

#[test]
fn a_resource_lives_its_whole_life_and_leaves_nothing() {
    let lab = Lab::start();
    let terraform = lab.terraform("life");
    let by_name = r#"
data "siterecovery_vault" "same" {
  name                = siterecovery_vault.this.name
  resource_group_name = "rg-dr"
}

data "siterecovery_replication_policy" "same" {
  name              = siterecovery_replication_policy.this.name
  recovery_vault_id = siterecovery_vault.this.id
}

data "siterecovery_virtual_network" "same" {
  name                = siterecovery_virtual_network.this.name
  resource_group_name = "rg-dr"
}

data "siterecovery_storage_account" "same" {
  name                = siterecovery_storage_account.this.name
  resource_group_name = "rg-dr"
}

data "siterecovery_hyperv_site" "same" {
  name              = siterecovery_hyperv_site.this.name
  recovery_vault_id = siterecovery_vault.this.id
}

output "all_the_same" {
  value = alltrue([
    data.siterecovery_vault.same.id == siterecovery_vault.this.id,
    data.siterecovery_replication_policy.same.replication_interval_in_seconds == 30,
    data.siterecovery_virtual_network.same.subnet[0].name == "servers",
    data.siterecovery_storage_account.same.account_tier == "Standard",
    data.siterecovery_hyperv_site.same.internal_identifier == siterecovery_hyperv_site.this.internal_identifier,
    provider::siterecovery::parse_id(siterecovery_hyperv_site.this.id).parent_id == siterecovery_vault.this.id,
  ])
}
"#;
    let whole = base(&lab) + by_name;
    terraform.write(&whole).apply();
    terraform.plan_is_empty();
    assert_eq!(
        terraform.run(&["output", "-json", "all_the_same"]).1.trim(),
        "true"
    );
    let secret = &lab.environment["SITERECOVERY_CLIENT_SECRET"];
    assert!(
        !terraform.state_text().contains(secret.as_str()),
        "the secret is in the state"
    );

    // In place: what ARM can change keeps its id.
    let before = terraform.state();
    let changed = whole
        .replace(
            "replication_interval_in_seconds = 30\n",
            "replication_interval_in_seconds = 300\n  recovery_point_retention_in_hours = 8\n",
        )
        .replace(
            "\n  folder ",
            "\n  account_replication_type = \"ZRS\"\n  folder ",
        )
        .replace("== 30,", "== 300,")
        .replacen(
            "location            = \"northeurope\"",
            "location            = \"northeurope\"\n  tags = { team = \"ops\" }",
            1,
        );
    let text = terraform.write(&changed).apply();
    assert!(text.contains("0 added, 3 changed, 0 destroyed"), "{text}");
    terraform.plan_is_empty();
    let after = terraform.state();
    for (address, attributes) in &before {
        assert_eq!(attributes["id"], after[address]["id"], "{address}");
    }

    // Import of each gives the same state.
    let other = lab.terraform("import");
    other.write(&changed);
    for (address, attributes) in &after {
        other.import(address, attributes["id"].as_str().unwrap());
    }
    other.plan_is_empty();
    for (address, attributes) in other.state() {
        let mut imported = attributes;
        let expected = &after[&address];
        // The user's spelling of a region is in the configuration, which an import doesn't see.
        if let Some(location) = expected.get("location") {
            imported["location"] = location.clone();
        }
        assert_eq!(&imported, expected, "{address}");
    }

    terraform.destroy();
    terraform.write(
        by_name
            .replace("siterecovery_vault.this.name", "\"vault-dr\"")
            .split("data \"siterecovery_replication")
            .next()
            .unwrap(),
    );
    let gone = terraform.one_error("plan", "name");
    assert_eq!(gone.summary, "There is no such vault");
}

#[test]
fn what_exists_already_is_not_taken_over() {
    let lab = Lab::start();
    let first = lab.terraform("first");
    let vault = BASE
        .split("resource \"siterecovery_storage")
        .next()
        .unwrap();
    first.write(vault).apply();
    let second = lab.terraform("second");
    second.write(vault);
    let problem = second.one_error("apply", "name");
    assert_eq!(problem.summary, "The vault exists already");
    assert!(problem.detail.contains("import {"), "{}", problem.detail);
    first.destroy();
}

#[test]
fn what_was_removed_by_somebody_else_is_made_again() {
    let lab = Lab::start();
    let (one, two) = (lab.terraform("one"), lab.terraform("two"));
    let from = BASE
        .find("resource \"siterecovery_virtual_network\"")
        .unwrap();
    let to = BASE.find("resource \"siterecovery_hyperv_site\"").unwrap();
    let network = &BASE[from..to];
    one.write(network).apply();
    let id = one.state()["siterecovery_virtual_network.this"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    two.write(network);
    two.import("siterecovery_virtual_network.this", &id);
    two.destroy();
    assert!(one.plan_has_changes().contains("1 to add"));
    one.apply();
    one.plan_is_empty();
    one.destroy();
}

#[test]
fn wrong_credentials_and_addresses_show_at_the_providers_argument() {
    let lab = Lab::start();
    let mut terraform = lab.terraform("provider");
    let vault = BASE
        .split("resource \"siterecovery_storage")
        .next()
        .unwrap();
    let with = |argument: &str| format!("provider \"siterecovery\" {{\n  {argument}\n}}\n{vault}");

    terraform.write(&with("client_secret = \"wrong\""));
    let problem = terraform.one_error("plan", "client_secret");
    assert!(
        !problem.detail.contains("wrong\""),
        "the secret is in the error: {problem:?}"
    );

    terraform.write(&with("endpoint = \"https://127.0.0.1:1\""));
    terraform.one_error("plan", "endpoint");

    terraform.write(&with("ca_file = \"/nowhere/ca.pem\""));
    terraform.one_error("plan", "ca_file");

    let other_ca = lab.folder.path().join("other.pem");
    fs::write(&other_ca, OTHER_CA).unwrap();
    terraform.write(&with(&format!(
        "ca_file = {:?}",
        other_ca.display().to_string()
    )));
    let problem = terraform.one_error("plan", "ca_file");
    assert!(problem.detail.contains("certificate"), "{problem:?}");

    terraform.environment.remove("SITERECOVERY_TENANT_ID");
    terraform.write(vault);
    let problems = terraform.errors("plan");
    assert!(
        problems[0].detail.contains("SITERECOVERY_TENANT_ID"),
        "{problems:?}"
    );
}

#[test]
fn bad_input_is_refused_at_plan_time_at_the_attribute() {
    let lab = Lab::start();
    let terraform = lab.terraform("input");
    let check = |from: &str, to: &str, line: &str| {
        let text = base(&lab);
        assert!(text.contains(from), "{from}");
        terraform.write(&text.replacen(from, to, 1));
        terraform.one_error("plan", line)
    };
    check("\"vault-dr\"", "\"1-vault\"", "name");
    check("\"stdrreplica\"", "\"St-Replica\"", "name");
    check(
        "\"FOLDER/replicas\""
            .replace("FOLDER", &lab.folder.path().display().to_string())
            .as_str(),
        "\"relative\"",
        "folder",
    );
    check("\"10.80.1.0/24\"", "\"10.99.1.0/24\"", "address_prefix");
    check(
        "[\"10.80.0.0/16\"]",
        "[\"10.80.0.0/16\", \"10.90.0.1/16\"]",
        "address_space",
    );
    check("= 30\n", "= 3\n", "replication_interval_in_seconds");
    check(
        "= 30\n",
        "= 30\n  recovery_point_retention_in_hours = 25\n",
        "recovery_point_retention_in_hours",
    );
    check(
        "= 30\n",
        "= 30\n  application_consistent_snapshot_frequency_in_hours = 4\n",
        "application_consistent_snapshot_frequency_in_hours",
    );
    check(
        "siterecovery_vault.this.id",
        "\"/subscriptions/s/resourceGroups/g\"",
        "recovery_vault_id",
    );
    let host = |body: &str| {
        format!(
            "{}\nresource \"siterecovery_hyperv_host\" \"this\" {{\n  name = \"hv1\"\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n{body}\n}}\n",
            base(&lab)
        )
    };
    for (kind, said) in [
        ("winrm", "local"),
        ("ssh", "needs host"),
        ("ssh", "host's key"),
    ] {
        terraform.write(&host(&format!(
            "  vm_folder = \"/srv/vms\"\n  host_connection = {{\n    type = \"{kind}\"\n  }}",
        )));
        let problem = terraform.one_error("plan", "host_connection");
        assert!(problem.detail.contains(said), "{problem:?}");
    }
    terraform.write(&host("  host_connection = {\n    type = \"local\"\n  }"));
    terraform.one_error("plan", "resource \"siterecovery_hyperv_host\"");
    let plan = |action: &str| {
        format!(
            "{}\nresource \"siterecovery_recovery_plan\" \"this\" {{\n  name = \"shop\"\n  recovery_vault_id = siterecovery_vault.this.id\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n  boot_group {{\n    protected_vm_ids = [siterecovery_hyperv_site.this.id]\n    post_action {{\n      name = \"check\"\n      fail_over_types = [\"PlannedFailover\"]\n      fail_over_directions = [\"PrimaryToRecovery\"]\n{action}\n    }}\n  }}\n}}\n",
            base(&lab)
        )
    };
    terraform.write(&plan(
        "      type = \"ScriptActionDetails\"\n      fabric_location = \"Primary\"\n      script_path = \"../x\"",
    ));
    terraform.one_error("plan", "script_path");
    terraform.write(&plan(
        "      type = \"WebhookActionDetails\"\n      webhook_url = \"http://example.com\"",
    ));
    terraform.one_error("plan", "webhook_url");
}

#[test]
fn a_host_is_installed_mended_and_removed_without_a_trace() {
    let lab = Lab::start();
    let terraform = lab.terraform("host");
    binary("siterecovery-engine", "engine");
    let root = lab.folder.path();
    fs::create_dir(root.join("vms")).unwrap();
    let host = format!(
        "{}\nresource \"siterecovery_hyperv_host\" \"this\" {{\n  name = \"hv1\"\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n  host_connection = {{\n    type = \"local\"\n  }}\n  vm_folder = \"{root}/vms\"\n  data_folder = \"{root}/e\"\n  install_folder = \"{root}/bin\"\n}}\n\nresource \"siterecovery_replication_policy_association\" \"this\" {{\n  name = \"a\"\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n  policy_id = siterecovery_replication_policy.this.id\n  depends_on = [siterecovery_hyperv_host.this]\n}}\n",
        base(&lab),
        root = root.display()
    );
    terraform.write(&host).apply();
    terraform.plan_is_empty();
    let engine = root.join("bin/siterecovery-engine");
    assert!(engine.exists() && !root.join("e/registration.key").exists());
    let attributes = &terraform.state()["siterecovery_hyperv_host.this"];
    assert_eq!(attributes["engine_running"], true);
    assert!(
        !terraform.state_text().contains("srk1."),
        "the registration key is in the state"
    );

    // A dead and damaged engine is a difference that the next apply mends, without a new registration.
    let pid = fs::read_to_string(root.join("e/engine.pid")).unwrap();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", pid.trim()])
            .status()
            .unwrap()
            .success()
    );
    fs::remove_file(&engine).unwrap();
    fs::write(&engine, "torn").unwrap();
    terraform.plan_has_changes();
    let text = terraform.apply();
    assert!(text.contains("0 added, 1 changed, 0 destroyed"), "{text}");
    assert_eq!(
        terraform.state()["siterecovery_hyperv_host.this"]["id"],
        attributes["id"]
    );
    terraform.plan_is_empty();

    // A VM that no host knows.
    let with_vm = format!(
        "{host}\ndata \"siterecovery_protectable_vms\" \"this\" {{\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n  names = [\"web01\"]\n}}\n"
    );
    terraform.write(&with_vm);
    let problem = terraform.one_error("plan", "names");
    assert_eq!(problem.summary, "There is no such VM");

    terraform.write(&host).destroy();
    assert!(!engine.exists() && !root.join("e").exists() && !root.join("bin").exists());
    let mine = root.display().to_string();
    wait_for("the engine has ended", || {
        !commands()
            .iter()
            .any(|line| line.contains("siterecovery-engine") && line.contains(&mine))
    });
}

/// Command lines of all processes.
fn commands() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let read = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).ok();
    entries
        .filter_map(read)
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

/// A self-signed certificate that nothing uses.
const OTHER_CA: &str = include_str!("other-ca.pem");

const AZURE: &str = r#"
variable "key" {
  type      = string
  ephemeral = true
}

resource "siterecovery_storage_account" "azure" {
  name                     = "stdrazure"
  resource_group_name      = "rg-dr"
  location                 = "northeurope"
  account_tier             = "Premium"
  account_replication_type = "ZRS"
  blob_endpoint            = "https://stdrazure.blob.core.windows.net/"
  container_name           = "replicas"
  account_key_wo           = var.key
  account_key_wo_version   = 1
  stripes                  = 2
  proxy_url                = "http://proxy.example.com:3128"
}

resource "siterecovery_replication_policy" "long" {
  name                                                 = "kept-for-a-year"
  recovery_vault_id                                    = siterecovery_vault.this.id
  replication_interval_in_seconds                      = 300
  recovery_point_retention_in_hours                    = 24
  application_consistent_snapshot_frequency_in_minutes = 30
  storage_account_id                                   = siterecovery_storage_account.azure.id
  immutability_in_hours                                = 72
  log_quota_in_percent                                 = 25
  verification_interval_in_hours                       = 24
  encryption_enabled                                   = true

  retention_tier {
    interval_in_minutes = 60
    duration_in_hours   = 168
  }

  comparison_window {
    days       = ["Saturday"]
    start_time = "18:30"
    end_time   = "06:00"
    utc_offset = "+01:00"
  }
}

data "siterecovery_replication_health" "this" {
  recovery_vault_id = siterecovery_vault.this.id
}

data "siterecovery_jobs" "this" {
  recovery_vault_id = siterecovery_vault.this.id
  depends_on        = [siterecovery_replication_policy.long]
}

output "seen" {
  value = [
    data.siterecovery_replication_health.this.health,
    contains(data.siterecovery_jobs.this.jobs[*].scenario_name, "AddProtectionProfile"),
  ]
}
"#;

#[test]
fn azure_accounts_graded_policies_and_keys_live_in_terraform_and_secrets_do_not() {
    let lab = Lab::start();
    let mut terraform = lab.terraform("azure");
    let key = format!("{}==", "A".repeat(86));
    terraform
        .environment
        .insert("TF_VAR_key".into(), key.clone());
    let whole = base(&lab) + AZURE;
    terraform.write(&whole).apply();
    terraform.plan_is_empty();
    let (_, seen) = terraform.run(&["output", "-json", "seen"]);
    assert_eq!(seen.trim().replace(' ', ""), "[\"Normal\",true]");
    assert!(
        !terraform.state_text().contains(&key),
        "the key is in the state"
    );
    let data = fs::read(lab.folder.path().join("data/metadata.db")).unwrap();
    assert!(
        !data
            .windows(key.len())
            .any(|window| window == key.as_bytes()),
        "the key lies open in the orchestrator's database"
    );

    // Another key, a rotation, other numbers: all in place.
    let other = format!("{}==", "B".repeat(86));
    terraform.environment.insert("TF_VAR_key".into(), other);
    let changed = whole
        .replace("wo_version   = 1", "wo_version   = 2")
        .replace(
            "immutability_in_hours                                = 72",
            "immutability_in_hours = 0",
        )
        .replace(
            "encryption_enabled                                   = true",
            "encryption_enabled = false",
        )
        .replace("interval_in_minutes = 60", "interval_in_minutes = 120")
        .replacen(
            "location            = \"northeurope\"",
            "location            = \"northeurope\"\n  encryption_key_rotation = \"1\"",
            1,
        );
    terraform.write(&changed);
    let plan = terraform.plan_has_changes();
    assert!(plan.contains("3 to change, 0 to destroy"), "{plan}");
    terraform.apply();
    terraform.plan_is_empty();
    let state = terraform.state_text();
    let keys = state.matches("\"encryption_key_id\": \"").count();
    assert_eq!(keys, 1, "the vault's key is told by its id");
    assert!(!state.contains(&"B".repeat(86)));
    terraform.destroy();
}

#[test]
fn what_an_account_in_azure_or_a_graded_policy_can_not_be_is_refused_at_the_attribute() {
    let lab = Lab::start();
    let mut terraform = lab.terraform("azure-bad");
    terraform
        .environment
        .insert("TF_VAR_key".into(), format!("{}==", "A".repeat(86)));
    let whole = base(&lab) + AZURE;
    for (from, to, line) in [
        (
            "https://stdrazure.blob",
            "http://stdrazure.blob",
            "blob_endpoint",
        ),
        ("= \"replicas\"", "= \"Replicas\"", "container_name"),
        ("= var.key", "= \"short\"", "account_key_wo"),
        (
            "stripes                  = 2",
            "folder = \"/srv\"",
            "blob_endpoint",
        ),
        (
            "proxy_url                = \"http://",
            "proxy_url = \"http://me:pw@",
            "proxy_url",
        ),
        ("\"ZRS\"", "\"GRS\"", "account_replication_type"),
        (
            "duration_in_hours   = 168",
            "duration_in_hours = 20",
            "siterecovery_replication_policy",
        ),
        ("= \"18:30\"", "= \"24:30\"", "start_time"),
        ("[\"Saturday\"]", "[\"Sat\"]", "days"),
        (
            "log_quota_in_percent                                 = 25",
            "log_quota_in_percent = 0",
            "log_quota_in_percent",
        ),
    ] {
        assert!(whole.contains(from), "{from}");
        terraform.write(&whole.replacen(from, to, 1));
        let problems = terraform.errors("plan");
        assert!(
            problems.iter().any(|problem| problem.line.contains(line)),
            "{to}: {problems:?}"
        );
    }
    // Premium storage and half a minute: known once both exist.
    terraform.write(&whole.replace(
        "replication_interval_in_seconds                      = 300",
        "replication_interval_in_seconds = 30",
    ));
    let problems = terraform.errors("apply");
    assert!(
        problems
            .iter()
            .any(|problem| problem.line.contains("replication_interval")),
        "{problems:?}"
    );
}
