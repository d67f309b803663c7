//! The orchestrator as a process: start, kill, start again on the same data.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::Lab;
use crate::process::wait_for;

/// A running orchestrator.
pub struct Orchestrator {
    program: PathBuf,
    folder: PathBuf,
    listen: String,
    gateway: String,
    child: Child,
}

// === impl Orchestrator ===

impl Orchestrator {
    /// Starts with an empty data folder on free ports of the loopback.
    pub fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.folder().join("orchestrator");
        fs::create_dir_all(&folder)?;
        let (listen, gateway) = (free_address()?, free_address()?);
        let program = lab.program("siterecovery-orchestrator");
        let child = spawn(&program, &folder, &listen, &gateway)?;
        let mut started = Self {
            program,
            folder,
            listen,
            gateway,
            child,
        };
        started.wait_until_ready()?;
        Ok(started)
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it printed when it started.
    pub fn printed(&self) -> Result<String> {
        fs::read_to_string(self.folder.join("stdout.log")).context("the orchestrator's output")
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("stderr.log")
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// What the admin exports, from the first start.
    pub fn environment(&self) -> Result<BTreeMap<String, String>> {
        let file = self.folder.join("admin.env");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let pairs = text
            .lines()
            .filter_map(|line| line.trim_start_matches("export ").split_once('='));
        Ok(pairs
            .map(|(name, value)| (name.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
            .collect())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the orchestrator")?;
        self.child
            .wait()
            .map(drop)
            .context("wait for the orchestrator")
    }

    /// Starts again on the same data and ports.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.program, &self.folder, &self.listen, &self.gateway)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = self.folder.join("ready");
        wait_for("the orchestrator listens", Duration::from_secs(30), || {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.join("stderr.log")).unwrap_or_default();
                bail!("the orchestrator ended with {status}:\n{log}");
            }
            Ok(ready.exists().then_some(()))
        })
    }
}

impl Drop for Orchestrator {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

fn spawn(
    program: &PathBuf,
    folder: &std::path::Path,
    listen: &str,
    gateway: &str,
) -> Result<Child> {
    let ready = folder.join("ready");
    if ready.exists() {
        fs::remove_file(&ready)?;
    }
    let append = |name: &str| {
        fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join(name))
    };
    Command::new(program)
        .arg("serve")
        .arg("--data")
        .arg(folder.join("data"))
        .args(["--listen", listen, "--gateway", gateway])
        .arg("--ready-file")
        .arg(&ready)
        .arg("--write-admin-env")
        .arg(folder.join("admin.env"))
        .stdin(Stdio::null())
        .stdout(append("stdout.log")?)
        .stderr(append("stderr.log")?)
        .spawn()
        .with_context(|| format!("start {}; `make build` makes it", program.display()))
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.to_string())
}
