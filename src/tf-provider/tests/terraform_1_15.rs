//! What needs Terraform 1.14 or later: actions, queries, import by identity.

mod support;

use support::{Lab, Tool};

const NOTES: &str = r#"
resource "example_note" "a" {
  name = "alpha"
}
resource "example_note" "b" {
  name = "beta"
}
"#;

#[test]
fn all_schemas_load_with_everything_that_is_new() {
    let lab = Lab::with(Tool::Library, NOTES);
    let outcome = lab.run(&["providers", "schema", "-json"]);
    let schemas: serde_json::Value =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{}", outcome.text));
    let example = &schemas["provider_schemas"]["registry.terraform.io/acme/example"];
    for (kind, name) in [
        ("resource_schemas", "example_note"),
        ("resource_identity_schemas", "example_note"),
        ("data_source_schemas", "example_note"),
        ("ephemeral_resource_schemas", "example_token"),
        ("list_resource_schemas", "example_note"),
        ("action_schemas", "example_touch"),
        ("functions", "join_words"),
    ] {
        assert!(
            example[kind][name].is_object(),
            "{kind} lacks {name}: {example}"
        );
    }
}

#[test]
fn an_action_runs_by_trigger_and_by_hand_and_may_fail() {
    let configuration = r#"
resource "example_note" "a" {
  name = "alpha"
  lifecycle {
    action_trigger {
      events  = [after_create]
      actions = [action.example_touch.a]
    }
  }
}
ephemeral "example_token" "key" {
  name = "key"
}
action "example_touch" "a" {
  config {
    name     = "alpha"
    password = ephemeral.example_token.key.token
  }
}
action "example_touch" "none" {
  config {
    name = "none"
  }
}
"#;
    let lab = Lab::with(Tool::Library, configuration);
    let text = lab.apply();
    assert!(text.contains("touching alpha"), "{text}");
    let line = "touch alpha with 13 letters";
    assert_eq!(lab.events().matches(line).count(), 1, "{}", lab.events());
    lab.good(&[
        "apply",
        "-auto-approve",
        "-no-color",
        "-invoke=action.example_touch.a",
    ]);
    assert_eq!(lab.events().matches(line).count(), 2, "{}", lab.events());
    let text = lab.bad(&[
        "apply",
        "-auto-approve",
        "-no-color",
        "-invoke=action.example_touch.none",
    ]);
    assert!(
        text.contains("Note not found: There is no note \"none\""),
        "{text}"
    );
    assert!(
        !lab.read("terraform.tfstate").contains("hush"),
        "a secret is in the state"
    );
}

#[test]
fn a_query_lists_objects_up_to_its_limit() {
    let lab = Lab::with(Tool::Library, NOTES);
    lab.apply();
    let query = "list \"example_note\" \"all\" {\n  provider = example\n  include_resource = true\n}\nlist \"example_note\" \"some\" {\n  provider = example\n  config {\n    name_prefix = \"be\"\n  }\n}\nlist \"example_note\" \"one\" {\n  provider = example\n  limit    = 1\n}\n";
    lab.write("notes.tfquery.hcl", query);
    lab.good(&["validate", "-no-color", "-query"]);
    let text = lab.good(&["query", "-no-color", "-generate-config-out=found.tf"]);
    let count = |list: &str| {
        text.lines()
            .filter(|line| line.starts_with(&format!("list.example_note.{list} ")))
            .count()
    };
    assert_eq!(
        (count("all"), count("some"), count("one")),
        (2, 1, 1),
        "{text}"
    );
    assert!(text.contains("Note beta"), "{text}");
    assert!(
        lab.read("found.tf").contains("beta"),
        "{}",
        lab.read("found.tf")
    );
}

#[test]
fn an_import_by_identity_gives_the_same_state() {
    let lab = Lab::with(Tool::Library, NOTES);
    lab.apply();
    let created = lab.state_of("example_note");
    assert_eq!(created["identity"]["name"], "alpha");
    lab.good(&["state", "rm", "example_note.a"]);
    lab.configure(&format!(
        "import {{\n  to = example_note.a\n  identity = {{\n    name = \"alpha\"\n  }}\n}}\n{NOTES}"
    ));
    let text = lab.apply();
    assert!(text.contains("1 imported, 0 added"), "{text}");
    assert_eq!(
        lab.state_of("example_note")["attributes"],
        created["attributes"]
    );
    assert_eq!(
        lab.state_of("example_note")["identity"],
        created["identity"]
    );
    lab.assert_settled();
}
