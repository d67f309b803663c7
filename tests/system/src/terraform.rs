//! Terraform as a process, with the provider installed from a file-system mirror as a user would have it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lab::Lab;

const ADDRESS: &str = "registry.terraform.io/siterecovery/siterecovery";
const VERSION: &str = "0.1.0";

/// A configuration's folder and the environment Terraform runs in.
pub struct Terraform {
    program: PathBuf,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    /// Show what Terraform prints, line by line.
    pub show: bool,
}

/// How a command ended.
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Everything it printed.
    pub text: String,
}

// === impl Terraform ===

impl Terraform {
    /// Copies the configuration in `example` (a folder below `examples/`) and writes `variables` beside it.
    pub fn new(
        lab: &Lab,
        example: &str,
        environment: &BTreeMap<String, String>,
        variables: &Value,
    ) -> Result<Self> {
        let folder = lab.folder().join("terraform");
        copy_configuration(&lab.root().join("examples").join(example), &folder)?;
        Self::in_folder(lab, &folder, environment, variables)
    }

    /// A configuration that already lies in `folder`.
    pub fn in_folder(
        lab: &Lab,
        folder: &Path,
        environment: &BTreeMap<String, String>,
        variables: &Value,
    ) -> Result<Self> {
        let mirror = lab.folder().join("mirror");
        fill_mirror(lab, &mirror)?;
        let settings = lab.folder().join("terraform.rc");
        fs::write(
            &settings,
            format!(
                "provider_installation {{\n  filesystem_mirror {{\n    path = \"{}\"\n  }}\n}}\n",
                mirror.display()
            ),
        )?;
        let mut environment = environment.clone();
        environment.insert(
            "TF_CLI_CONFIG_FILE".to_owned(),
            settings.display().to_string(),
        );
        environment.insert("CHECKPOINT_DISABLE".to_owned(), "1".to_owned());
        environment.insert("TF_IN_AUTOMATION".to_owned(), "1".to_owned());
        let program =
            std::env::var_os("TERRAFORM").map_or_else(|| PathBuf::from("terraform"), PathBuf::from);
        let terraform = Self {
            program,
            folder: folder.to_owned(),
            environment,
            show: false,
        };
        terraform.variables(variables)?;
        Ok(terraform)
    }

    /// Sets an environment variable for the commands that follow.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// The configuration's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the variables anew.
    pub fn variables(&self, variables: &Value) -> Result<()> {
        fs::write(
            self.folder.join("terraform.tfvars.json"),
            serde_json::to_vec_pretty(variables)?,
        )
        .context("write the variables")
    }

    /// Runs a command that has to succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let ended = self.attempt(arguments)?;
        if ended.code != 0 {
            bail!(
                "`terraform {}` ended with {}:\n{}",
                arguments.join(" "),
                ended.code,
                ended.text
            );
        }
        Ok(ended.text)
    }

    /// Runs a command whatever its outcome.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Ended> {
        let mut child = self.spawn(arguments)?;
        let errors = child.stderr.take().context("stderr is piped")?;
        let errors = std::thread::spawn(move || read(errors, false));
        let output = child.stdout.take().context("stdout is piped")?;
        let mut text = read(output, self.show);
        text.push_str(&errors.join().unwrap_or_default());
        let status = child.wait()?;
        Ok(Ended {
            code: status.code().unwrap_or(-1),
            text,
        })
    }

    /// Starts a command and leaves it running; both outputs are piped.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .envs(&self.environment);
        if arguments
            .first()
            .is_some_and(|word| matches!(*word, "apply" | "destroy" | "plan" | "import" | "init"))
        {
            command.args(["-no-color", "-input=false"]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
            .spawn()
            .context("start terraform; set TERRAFORM to its path if it is not on PATH")
    }

    /// `apply`, without asking.
    pub fn apply(&self) -> Result<String> {
        self.run(&["apply", "-auto-approve"])
    }

    /// `destroy`, without asking.
    pub fn destroy(&self) -> Result<String> {
        self.run(&["destroy", "-auto-approve"])
    }

    /// A plan that must be empty.
    pub fn plan_is_empty(&self) -> Result<()> {
        let ended = self.attempt(&["plan", "-detailed-exitcode"])?;
        match ended.code {
            0 => Ok(()),
            code => bail!(
                "a plan right after apply is not empty (exit code {code}):\n{}",
                ended.text
            ),
        }
    }

    /// All outputs, by name.
    pub fn outputs(&self) -> Result<Value> {
        let text = self.run(&["output", "-json"])?;
        serde_json::from_str(&text).context("terraform output")
    }
}

/// Reads to the end; with `show` each line goes to the terminal as it comes.
fn read(from: impl Read, show: bool) -> String {
    let mut text = String::new();
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if let Some(line) = show.then(|| for_a_person(&line)).flatten() {
            eprintln!("    {line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What a person follows: what happens to which object, without the listing of every attribute and without ids of 200 characters.
fn for_a_person(line: &str) -> Option<String> {
    let begins = [
        "siterecovery_",
        "data.",
        "- Install",
        "Plan:",
        "No changes",
        "Apply complete",
        "Destroy complete",
    ];
    let told = begins.iter().any(|begin| line.starts_with(begin))
        || line.contains("Error")
        || line.starts_with('│');
    let routine = line.contains("Refreshing state")
        || line.contains("Reading...")
        || line.contains("Read complete");
    (told && !routine).then(|| line.split(" [id=").next().unwrap_or_default().to_owned())
}

fn copy_configuration(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tf")
            && let Some(name) = path.file_name()
        {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Puts provider and engine where Terraform's unpacked mirror layout wants them.
fn fill_mirror(lab: &Lab, mirror: &Path) -> Result<()> {
    let folder = mirror.join(ADDRESS).join(VERSION).join("linux_amd64");
    fs::create_dir_all(&folder)?;
    let files = [
        (
            "terraform-provider-siterecovery",
            format!("terraform-provider-siterecovery_v{VERSION}"),
        ),
        ("siterecovery-engine", "siterecovery-engine".to_owned()),
    ];
    for (program, name) in files {
        let (from, to) = (lab.program(program), folder.join(name));
        if to.exists() {
            continue;
        }
        // A link is enough on one file system and saves copying a large development build.
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}
