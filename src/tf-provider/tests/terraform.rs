//! Real Terraform drives the example provider: the promises that hold in every supported version.

mod support;

use std::process::Stdio;

use support::{Lab, Tool, wait_until};

const NOTE: &str = r#"
ephemeral "example_token" "key" {
  name = "key"
}
resource "example_note" "a" {
  name     = "alpha"
  ratio    = 123456789012345678901234567890.125
  tags     = ["b", "a"]
  secret   = ephemeral.example_token.key.token
  settings = {
    mode = "fancy"
  }
  members  = [{ name = "ann" }, { name = "bob", role = "writer" }]
  anything = { x = [1, "two"], y = null }
  part {
    path = "p1"
  }
}
data "example_note" "d" {
  name       = example_note.a.name
  depends_on = [example_note.a]
}
output "joined" {
  value = provider::example::join_words("-", "a", "b")
}
output "exact" {
  value = provider::example::echo(1e70 + 0.1) == 1e70 + 0.1
}
output "revision" {
  value = data.example_note.d.labels.revision
}
"#;

fn whole_life(tool: Tool) {
    let lab = Lab::with(tool, NOTE);
    let text = lab.apply();
    assert!(text.contains("joined = \"a-b\""), "{text}");
    assert!(text.contains("exact = true"), "{text}");
    assert!(text.contains("revision = \"1\""), "{text}");
    lab.assert_settled();
    let state = lab.state_of("example_note");
    assert_eq!(state["attributes"]["secret_length"], "hush-key-hush".len());
    assert!(
        !lab.read("terraform.tfstate").contains("hush"),
        "a secret is in the state"
    );
    assert!(
        lab.read("terraform.tfstate")
            .contains("123456789012345678901234567890.125")
    );

    lab.configure(
        &NOTE
            .replace("[\"b\", \"a\"]", "[\"c\"]")
            .replace("\"fancy\"", "\"FANCY\""),
    );
    let text = lab.apply();
    assert!(text.contains("0 added, 1 changed, 0 destroyed"), "{text}");
    lab.assert_settled();
    let attributes = &lab.state_of("example_note")["attributes"];
    assert_eq!(
        (&attributes["revision"], &attributes["settings"]["mode"]),
        (&2.into(), &"fancy".into())
    );

    lab.configure(&NOTE.replace("\"alpha\"", "\"beta\""));
    let text = lab.apply();
    assert!(text.contains("1 added, 0 changed, 1 destroyed"), "{text}");
    assert_eq!(lab.notes(), ["note-beta"]);
    lab.assert_settled();
    let text = lab.good(&["destroy", "-auto-approve", "-no-color"]);
    assert!(text.contains("Note will be deleted"), "{text}");
    assert!(lab.notes().is_empty());
    assert!(lab.provider_processes().is_empty());
}

#[test]
fn a_resource_lives_from_create_to_destroy() {
    whole_life(Tool::Program);
}

#[test]
fn a_resource_lives_from_create_to_destroy_in_terraform_1_15() {
    whole_life(Tool::Library);
}

const PLAIN: &str = r#"
resource "example_note" "a" {
  name = "alpha"
  text = "hello"
}
"#;

#[test]
fn an_import_gives_the_same_state_as_the_create() {
    let lab = Lab::with(Tool::Program, PLAIN);
    lab.apply();
    let created = lab.state_of("example_note");
    lab.good(&["state", "rm", "example_note.a"]);
    lab.good(&["import", "example_note.a", "note-alpha"]);
    assert_eq!(
        lab.state_of("example_note")["attributes"],
        created["attributes"]
    );
    lab.assert_settled();
    lab.good(&["state", "rm", "example_note.a"]);
    let text = lab.bad(&["import", "-no-color", "example_note.a", "../etc"]);
    assert!(text.contains("Malformed id"), "{text}");
    let text = lab.bad(&["import", "-no-color", "example_note.a", "note-none"]);
    assert!(text.contains("non-existent remote object"), "{text}");
}

#[test]
fn generated_configuration_plans_without_changes() {
    for tool in [Tool::Program, Tool::Library] {
        let lab = Lab::with(tool, PLAIN);
        lab.apply();
        lab.good(&["state", "rm", "example_note.a"]);
        lab.configure("import {\n  to = example_note.a\n  id = \"note-alpha\"\n}\n");
        lab.good(&["plan", "-no-color", "-generate-config-out=made.tf"]);
        let made = lab.read("made.tf");
        assert!(
            made.contains("hello") && !made.contains("revision"),
            "{made}"
        );
        let text = lab.apply();
        assert!(
            text.contains("1 imported, 0 added, 0 changed, 0 destroyed"),
            "{text}"
        );
        lab.assert_settled();
    }
}

#[test]
fn values_that_are_not_known_yet_are_planned() {
    let configuration = r#"
resource "terraform_data" "source" {
  input = { name = "later", tags = ["x"] }
}
resource "example_note" "a" {
  name     = terraform_data.source.output.name
  tags     = terraform_data.source.output.tags
  anything = terraform_data.source.output
  settings = {
    mode = terraform_data.source.output.name == "later" ? "plain" : "fancy"
  }
  dynamic "part" {
    for_each = terraform_data.source.output.tags
    content {
      path = part.value
    }
  }
}
data "example_note" "d" {
  name = example_note.a.name
}
"#;
    let lab = Lab::with(Tool::Program, configuration);
    lab.apply();
    lab.assert_settled();
    assert_eq!(lab.notes(), ["note-later"]);
}

#[test]
fn a_provider_that_cannot_be_configured_yet_plans_creates() {
    let lab = Lab::new(Tool::Program);
    let root = lab.path("notes");
    let head = "terraform {\n  required_providers {\n    example = {\n      source = \"acme/example\"\n    }\n  }\n}\n";
    let configuration = format!(
        "{head}resource \"terraform_data\" \"root\" {{\n  input = {root:?}\n}}\nprovider \"example\" {{\n  root = \
         terraform_data.root.output\n}}\n{PLAIN}"
    );
    lab.write("main.tf", &configuration);
    lab.apply();
    assert_eq!(lab.notes(), ["note-alpha"]);
}

#[test]
fn a_broken_rule_points_at_its_argument() {
    let configuration = "resource \"example_note\" \"a\" {\n  name = \"two words\"\n  settings = {\n    mode  = \"loud\"\n    level = 10\n  }\n  part {\n    path = 7\n  }\n}\n";
    for tool in [Tool::Program, Tool::Library] {
        let lab = Lab::with(tool, configuration);
        let outcome = lab.run(&["validate", "-json"]);
        let report: serde_json::Value =
            serde_json::from_str(&outcome.stdout).expect("validate -json prints JSON");
        let diagnostics = report["diagnostics"]
            .as_array()
            .expect("there are diagnostics");
        let code_of = |text: &str| {
            let found = diagnostics
                .iter()
                .find(|found| found["detail"].as_str().unwrap_or_default().contains(text));
            let found =
                found.unwrap_or_else(|| panic!("no diagnostic says {text:?}: {}", outcome.stdout));
            found["snippet"]["code"]
                .as_str()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        assert_eq!(code_of("A name has no spaces"), "name = \"two words\"");
        let (mode, level) = (
            code_of("must be one of plain, fancy"),
            code_of("must be a whole number from 1 to 9"),
        );
        match tool {
            // Terraform 1.11 does not look into the values of arguments.
            Tool::Program => assert_eq!(mode, "resource \"example_note\" \"a\" {"),
            Tool::Library => assert_eq!((&*mode, &*level), ("mode  = \"loud\"", "level = 10")),
        }
    }
}

#[test]
fn a_create_that_fails_half_way_keeps_the_object_as_tainted() {
    let lab = Lab::with(
        Tool::Program,
        "resource \"example_note\" \"a\" {\n  name = \"alpha\"\n  fault = \"fail\"\n}\n",
    );
    let text = lab.bad(&["apply", "-auto-approve", "-no-color"]);
    assert!(
        text.contains("Asked to fail") && text.contains("fault = \"fail\""),
        "{text}"
    );
    let state = lab.state_of("example_note");
    assert_eq!(
        (&state["status"], &state["attributes"]["id"]),
        (&"tainted".into(), &"note-alpha".into())
    );
    lab.configure(PLAIN);
    let text = lab.apply();
    assert!(text.contains("1 added, 0 changed, 1 destroyed"), "{text}");
    lab.assert_settled();
    // An update that changed nothing leaves the stored state as it was.
    lab.configure(&PLAIN.replace("\"hello\"", "\"new\"\n  fault = \"early\""));
    lab.bad(&["apply", "-auto-approve", "-no-color"]);
    assert_eq!(lab.state_of("example_note")["attributes"]["text"], "hello");
}

#[test]
fn a_panic_is_shown_and_loses_nothing() {
    let lab = Lab::with(
        Tool::Program,
        "resource \"example_note\" \"a\" {\n  name = \"alpha\"\n  fault = \"panic\"\n}\n",
    );
    let text = lab.bad(&["apply", "-auto-approve", "-no-color"]);
    assert!(
        text.contains("ApplyResourceChange: asked to panic"),
        "{text}"
    );
    assert!(
        text.contains("panic: asked to panic"),
        "the stack trace is missing: {text}"
    );
    assert!(lab.provider_processes().is_empty());
}

#[test]
fn an_interrupt_stops_the_work_and_keeps_the_state() {
    let lab = Lab::with(
        Tool::Program,
        "resource \"example_note\" \"a\" {\n  name     = \"alpha\"\n  delay_ms = 600000\n}\n",
    );
    let mut command = lab.command(&["apply", "-auto-approve", "-no-color"]);
    let terraform = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Terraform starts");
    wait_until("the create runs", || lab.notes() == ["note-alpha"]);
    let killed = std::process::Command::new("kill")
        .args(["-INT", &terraform.id().to_string()])
        .status();
    assert!(killed.expect("kill can be started").success());
    let output = terraform.wait_with_output().expect("Terraform ends");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("Interrupted") && text.contains("stopped because Terraform was interrupted"),
        "{text}"
    );
    assert_eq!(
        lab.state_of("example_note")["attributes"]["id"],
        "note-alpha"
    );
    assert!(lab.provider_processes().is_empty());
}

#[test]
fn no_provider_outlives_a_killed_terraform() {
    let lab = Lab::with(
        Tool::Program,
        "resource \"example_note\" \"a\" {\n  name     = \"alpha\"\n  delay_ms = 3000\n}\n",
    );
    let mut terraform = lab
        .command(&["apply", "-auto-approve"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until("the create runs", || lab.notes() == ["note-alpha"]);
    terraform.kill().expect("it runs");
    terraform.wait().expect("it was killed");
    wait_until("the provider ends", || lab.provider_processes().is_empty());
}

#[test]
fn logs_reach_the_log_of_terraform_by_level() {
    let lab = Lab::with(Tool::Program, PLAIN);
    let log = lab.path("log.txt");
    let path = log.to_string_lossy();
    let variables = [("TF_LOG_PROVIDER", "info"), ("TF_LOG_PATH", &*path)];
    assert_eq!(
        lab.run_with(&["apply", "-auto-approve"], &variables).code,
        0
    );
    let text = std::fs::read_to_string(&log).expect("Terraform wrote its log");
    let line = text
        .lines()
        .find(|line| line.contains("created a note"))
        .expect("the event is in the log");
    assert!(
        line.contains("[INFO]")
            && line.contains("note=alpha")
            && line.contains("tf_rpc=ApplyResourceChange"),
        "{line}"
    );
    assert!(
        !text.contains("shutdown requested"),
        "debug events are in a log of level info"
    );
}

#[test]
fn plain_text_works_where_the_user_turns_tls_off() {
    let lab = Lab::with(Tool::Program, PLAIN);
    let outcome = lab.run_with(
        &["apply", "-auto-approve"],
        &[("TF_DISABLE_PLUGIN_TLS", "1")],
    );
    assert_eq!(outcome.code, 0, "{}", outcome.text);
}

#[test]
fn one_attached_provider_serves_many_commands() {
    use std::io::{BufRead, BufReader};
    let lab = Lab::with(Tool::Program, PLAIN);
    let program = lab.path("bin/terraform-provider-example");
    let mut provider = std::process::Command::new(program)
        .arg("-debug")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the provider starts");
    let lines = BufReader::new(provider.stdout.take().expect("its output is piped")).lines();
    let hint = lines
        .map_while(Result::ok)
        .find(|line| line.contains("TF_REATTACH_PROVIDERS"))
        .expect("it says how");
    let (_, attach) = hint.split_once('=').expect("a variable and its value");
    let variables = [("TF_REATTACH_PROVIDERS", attach.trim_matches('\''))];
    for arguments in [
        &["apply", "-auto-approve"][..],
        &["plan", "-detailed-exitcode"],
        &["destroy", "-auto-approve"],
    ] {
        let outcome = lab.run_with(arguments, &variables);
        assert_eq!(
            outcome.code,
            0,
            "{arguments:?} {:?}: {}",
            provider.try_wait(),
            outcome.text
        );
        assert!(
            provider
                .try_wait()
                .expect("its state can be asked")
                .is_none(),
            "it ended"
        );
    }
    assert!(lab.notes().is_empty());
    let id = provider.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .expect("kill starts")
            .success()
    );
    assert!(provider.wait().expect("it ends").success());
}

#[test]
fn ephemeral_values_are_renewed_and_closed_with_the_bytes_of_open() {
    let configuration = r#"
ephemeral "example_token" "key" {
  name     = "key"
  renew_ms = 200
}
resource "example_note" "a" {
  name     = "alpha"
  delay_ms = 1000
  secret   = ephemeral.example_token.key.token
}
"#;
    let lab = Lab::with(Tool::Program, configuration);
    lab.apply();
    let events = lab.events();
    assert!(events.contains("renew key"), "{events}");
    assert!(events.trim_end().ends_with("close key"), "{events}");
}

#[test]
fn state_of_an_older_schema_is_upgraded() {
    let lab = Lab::with(Tool::Program, PLAIN);
    lab.apply();
    let state = lab.read("terraform.tfstate");
    let old = state
        .replace("\"schema_version\": 1", "\"schema_version\": 0")
        .replace("\"text\": \"hello\"", "\"body\": \"hello\"");
    assert_ne!(state, old);
    lab.write("terraform.tfstate", &old);
    lab.assert_settled();
    lab.write(
        "terraform.tfstate",
        &state.replace("\"schema_version\": 1", "\"schema_version\": 7"),
    );
    let text = lab.bad(&["plan", "-no-color"]);
    assert!(text.contains("newer"), "{text}");
}

#[test]
fn an_object_of_another_type_can_be_moved_in() {
    let lab = Lab::with(
        Tool::Program,
        "resource \"terraform_data\" \"old\" {\n  input = \"alpha\"\n}\n",
    );
    lab.apply();
    let note =
        serde_json::json!({"id": "note-alpha", "name": "alpha", "text": "hello", "revision": 1});
    std::fs::write(lab.path("notes/note-alpha.json"), note.to_string())
        .expect("the folder is writable");
    lab.configure(&format!(
        "moved {{\n  from = terraform_data.old\n  to   = example_note.a\n}}\n{PLAIN}"
    ));
    let text = lab.apply();
    assert!(text.contains("0 added, 0 changed, 0 destroyed"), "{text}");
    lab.configure("moved {\n  from = example_note.a\n  to   = example_note.b\n}\nresource \"example_note\" \"b\" {\n  name = \"alpha\"\n  text = \"hello\"\n}\n");
    lab.apply();
    lab.assert_settled();
}

#[test]
fn an_installed_provider_passes_init_and_its_lock_file() {
    let lab = Lab::with(Tool::Program, PLAIN);
    let folder = lab.path("mirror/registry.terraform.io/acme/example/0.1.0/linux_amd64");
    std::fs::create_dir_all(&folder).expect("the folder is new");
    std::fs::copy(
        support::provider_program(),
        folder.join("terraform-provider-example_v0.1.0"),
    )
    .expect("a copy fits");
    let mirror = format!(
        "provider_installation {{\n  filesystem_mirror {{\n    path    = {:?}\n    include = [\"registry.terraform.io/acme/*\"]\n  }}\n}}\n",
        lab.path("mirror")
    );
    std::fs::write(lab.path("cli.tfrc"), mirror).expect("the folder is writable");
    lab.good(&["init", "-no-color"]);
    lab.apply();
    lab.assert_settled();
}
