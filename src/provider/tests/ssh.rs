//! Real Terraform puts the real engine onto a host behind a real OpenSSH server, and takes it away again.

#[path = "../../host-deploy/tests/ssh/sshd.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod sshd;
mod support;

use std::fs;

use sshd::Sshd;
use support::{Lab, binary};

const CONFIGURATION: &str = r#"
resource "siterecovery_vault" "this" {
  name                = "vault-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"
}

resource "siterecovery_hyperv_site" "this" {
  name              = "site-oslo"
  recovery_vault_id = siterecovery_vault.this.id
}

resource "siterecovery_hyperv_host" "this" {
  name           = "hv1"
  hyperv_site_id = siterecovery_hyperv_site.this.id
  roles          = ["recovery"]

  host_connection = {
    type             = "ssh"
    host             = "127.0.0.1"
    port             = PORT
    user             = "USER"
    private_key_path = "ROOT/sshd/user"
    TRUST
  }

  data_folder    = "ROOT/e"
  install_folder = "ROOT/bin"
}
"#;

#[test]
fn a_host_over_ssh_lives_its_whole_life_and_no_secret_is_stored() {
    let lab = Lab::start();
    let mut terraform = lab.terraform("ssh");
    binary("siterecovery-engine", "engine");
    let root = lab.folder.path();
    let server = Sshd::start(&root.join("sshd"));
    let (port, fingerprint) = (server.port, server.fingerprint());
    terraform.environment.insert(
        "SITERECOVERY_SSH_PRIVATE_KEY_PASSPHRASE".into(),
        "open sesame".into(),
    );
    let user = server.connection().user;
    let with = |trust: &str| {
        CONFIGURATION
            .replace("PORT", &port.to_string())
            .replace("USER", &user)
            .replace("ROOT", &root.display().to_string())
            .replace("TRUST", trust)
    };

    let stranger = format!("host_key_fingerprint = \"SHA256:{}\"", "a".repeat(43));
    terraform.write(&with(&stranger));
    let problem = &terraform.errors("apply")[0];
    assert!(problem.detail.contains(&fingerprint), "{problem:?}");
    assert!(
        !root.join("e").exists(),
        "nothing is done on a host that is not trusted"
    );

    terraform.write(&with("trust_on_first_use = true"));
    let told = terraform.apply();
    assert!(told.contains("trusted at first use"), "{told}");
    terraform.plan_is_empty();
    let state = &terraform.state()["siterecovery_hyperv_host.this"];
    assert_eq!(state["host_key_fingerprint"], fingerprint.as_str());
    assert_eq!(state["engine_running"], true);
    let stored = terraform.state_text();
    for secret in ["open sesame", "srk1.", "PRIVATE KEY"] {
        assert!(!stored.contains(secret), "{secret} is in the state");
    }

    // Another key is refused from then on, also where the connection was changed.
    let server = server.with_new_host_key();
    terraform.write(&with(
        "trust_on_first_use = true\n    connect_timeout_in_seconds = 20",
    ));
    let problem = &terraform.errors("apply")[0];
    for part in [&fingerprint, &server.fingerprint()] {
        assert!(problem.detail.contains(part.as_str()), "{problem:?}");
    }

    // A change of the connection alone makes no other host and changes nothing on it.
    let known = server.known_hosts();
    terraform.write(&with(&format!(
        "known_hosts_path = \"{}\"",
        known.display()
    )));
    terraform.apply();
    terraform.plan_is_empty();
    assert_eq!(
        terraform.state()["siterecovery_hyperv_host.this"]["id"],
        state["id"]
    );

    // A key's file that has moved since is no reason to refuse a plan.
    fs::rename(root.join("sshd/user"), root.join("sshd/moved")).unwrap();
    let (code, text) = terraform.run(&["plan", "-detailed-exitcode", "-no-color"]);
    assert!(
        code == 0 && text.contains("could not be looked at"),
        "{code}: {text}"
    );
    fs::rename(root.join("sshd/moved"), root.join("sshd/user")).unwrap();

    // Another engine behind the address is neither upgraded nor removed.
    let identity = root.join("e/identity/engine_id");
    let own = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, "99999999-0000-4000-8000-000000000009").unwrap();
    let problem = &terraform.errors("apply")[0];
    assert!(problem.detail.contains("is engine 99999999"), "{problem:?}");
    let (code, text) = terraform.run(&["destroy", "-auto-approve", "-no-color"]);
    assert!(code != 0 && text.contains("99999999-0000"), "{text}");
    fs::write(&identity, own).unwrap();
    terraform.apply();
    terraform.plan_is_empty();

    // With the host down a plan is possible and says so; a destroy is not, and says why.
    let folder = server.folder.clone();
    drop(server);
    let (code, text) = terraform.run(&["plan", "-detailed-exitcode", "-no-color"]);
    assert!(
        code == 0 && text.contains("could not be looked at"),
        "{code}: {text}"
    );
    let (code, text) = terraform.run(&["destroy", "-auto-approve", "-no-color"]);
    assert!(
        code != 0 && text.contains("Check that the host is on"),
        "{text}"
    );
    assert!(root.join("bin/siterecovery-engine").exists());

    let _again = Sshd::listen(&folder, port);
    // A destroy that fails behind the removal of the record, here for the sake of a failed-over VM, remembers the engine.
    let vm = "22222222-0000-4000-8000-000000000002";
    let recovered = root.join("e/recovered");
    let record = recovered.join(format!("failovers/vault/item/{vm}.json"));
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::create_dir_all(recovered.join(vm)).unwrap();
    fs::write(recovered.join(vm).join("vm.toml"), "").unwrap();
    fs::write(
        &record,
        format!(r#"{{"version":1,"id":"{vm}","name":"web01"}}"#),
    )
    .unwrap();
    let (code, text) = terraform.run(&["destroy", "-auto-approve", "-no-color"]);
    assert!(code != 0 && text.contains("web01"), "{text}");
    fs::remove_dir_all(&recovered).unwrap();
    let text = terraform.plan_has_changes();
    assert!(text.contains("has no record any more"), "{text}");
    assert!(text.contains("must be replaced"), "{text}");
    terraform.destroy();
    assert!(!root.join("e").exists() && !root.join("bin").exists());
    let left = fs::read_dir(folder.join("home")).unwrap().count();
    assert_eq!(left, 0);
}
