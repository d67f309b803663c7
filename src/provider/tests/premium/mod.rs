//! Rules that hang on the kind of a storage account: checked while planning, as soon as the account exists.

use crate::base;
use crate::support::Lab;

#[test]
fn premium_storage_and_regions_are_checked_against_what_exists() {
    let lab = Lab::start();
    let terraform = lab.terraform("cross");
    let premium = base(&lab)
        .replacen(
            "\n  folder ",
            "\n  account_tier = \"Premium\"\n  folder ",
            1,
        )
        .replacen("North Europe", "westeurope", 1);
    terraform.write(&premium).apply();
    let policy = "\nresource \"siterecovery_replication_policy\" \"fast\" {\n  name = \"fast\"\n  recovery_vault_id = siterecovery_vault.this.id\n  replication_interval_in_seconds = 30\n  storage_account_id = siterecovery_storage_account.this.id\n}\n";
    terraform.write(&format!("{premium}{policy}"));
    let problem = terraform.one_error("plan", "replication_interval_in_seconds");
    assert!(problem.detail.contains("premium"), "{problem:?}");

    let vm = "\nresource \"siterecovery_protected_vm\" \"web\" {\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n  replication_policy_id = siterecovery_replication_policy.this.id\n  vm_name = \"web01\"\n  target_storage_account_id = siterecovery_storage_account.this.id\n  target_resource_group_id = provider::siterecovery::parse_id(siterecovery_vault.this.id).parent_id\n}\n";
    terraform.write(&format!("{premium}{vm}"));
    let problems = terraform.errors("plan");
    assert_eq!(problems.len(), 3, "{problems:#?}");
    let about = |word: &str| {
        let found = problems.iter().find(|p| p.detail.contains(word));
        found.unwrap_or_else(|| panic!("{word}: {problems:#?}"))
    };
    for word in ["region", "not possible with premium"] {
        assert!(
            about(word).line.starts_with("target_storage_account_id"),
            "{problems:#?}"
        );
    }
    // Terraform has no line for an argument that is not there.
    let missing = about("log storage account is needed");
    assert!(
        missing.detail.contains("Name a standard account"),
        "{missing:?}"
    );
    terraform.write(&premium).destroy();
}

#[test]
fn a_log_account_is_checked_at_plan_time_at_its_attribute() {
    let lab = Lab::start();
    let terraform = lab.terraform("log");
    let account = |name: &str, more: &str| {
        format!(
            "\nresource \"siterecovery_storage_account\" \"{name}\" {{\n  name = \"st{name}\"\n  resource_group_name = \"rg-dr\"\n  folder = \"/srv/{name}\"\n{more}\n}}\n"
        )
    };
    let accounts = base(&lab).replacen("= 30\n", "= 300\n", 1)
        + &account(
            "fast",
            "  location = \"northeurope\"\n  account_tier = \"Premium\"\n  account_replication_type = \"ZRS\"",
        )
        + &account(
            "south",
            "  location = \"westeurope\"\n  account_replication_type = \"GRS\"",
        );
    terraform.write(&accounts).apply();
    let vm = |target: &str, log: &str| {
        format!(
            "{accounts}\nresource \"siterecovery_protected_vm\" \"web\" {{\n  hyperv_site_id = siterecovery_hyperv_site.this.id\n  replication_policy_id = siterecovery_replication_policy.this.id\n  vm_name = \"web01\"\n  target_storage_account_id = siterecovery_storage_account.{target}.id\n  target_resource_group_id = provider::siterecovery::parse_id(siterecovery_vault.this.id).parent_id\n{log}}}\n"
        )
    };
    let log =
        |name: &str| format!("  log_storage_account_id = siterecovery_storage_account.{name}.id\n");
    for (target, log, word) in [
        ("fast", String::new(), "log storage account is needed"),
        ("fast", log("fast"), "can't be a log storage account"),
        ("this", log("fast"), "can't be a log storage account"),
        ("fast", log("south"), "region"),
        (
            "fast",
            "  log_storage_account_id = siterecovery_vault.this.id\n".to_owned(),
            "storage account",
        ),
    ] {
        terraform.write(&vm(target, &log));
        let problems = terraform.errors("plan");
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].detail.contains(word), "{problems:#?}");
        assert!(
            log.is_empty() || problems[0].line.starts_with("log_storage_account_id"),
            "{problems:#?}"
        );
    }
    // What fits is planned.
    terraform.write(&vm("fast", &log("this")));
    let plan = terraform.plan_has_changes();
    assert!(plan.contains("1 to add"), "{plan}");
    terraform.write(&accounts).destroy();
}
