//! Azurite as a process: Microsoft's emulator of Azure Storage, with its blobs in memory for as long as it runs.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::Lab;
use crate::process::{run, wait_for};

/// The account that Azurite knows without being told.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key: the same on every machine of the world, and so no secret.
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running Azurite.
pub struct Azurite {
    child: Child,
    port: u16,
    python: PathBuf,
}

// === impl Azurite ===

impl Azurite {
    /// On a free port of the loopback; waits until it answers.
    pub fn start(lab: &Lab) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::File::create(lab.folder().join("azurite.log"))?;
        let child = Command::new(lab.root().join("tests/lab/azurite.sh"))
            .args(["start", "--blobPort", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start Azurite")?;
        let mut azurite = Self {
            child,
            port,
            python: lab.root().join("target/venv/bin/python"),
        };
        wait_for("Azurite answers", Duration::from_secs(120), || {
            if let Some(status) = azurite.child.try_wait()? {
                bail!("Azurite ended with {status}; its log is azurite.log in the lab's folder");
            }
            Ok(TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
        })?;
        Ok(azurite)
    }

    /// The account's blob endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// Stops answering without closing a connection, as a service behind a broken link does.
    pub fn stall(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// Answers again.
    pub fn go_on(&self) -> Result<()> {
        self.signal("-CONT")
    }

    /// Names of all blobs of a container, as Microsoft's Python SDK lists them.
    pub fn blobs(&self, container: &str) -> Result<Vec<String>> {
        let script = "import sys\n\
            from azure.storage.blob import ContainerClient\n\
            c = ContainerClient(sys.argv[1], sys.argv[2], credential={'account_name': sys.argv[3], 'account_key': sys.argv[4]})\n\
            [print(b.name) for b in c.list_blobs()]";
        let output = run(Command::new(&self.python).args([
            "-c",
            script,
            &self.endpoint(),
            container,
            ACCOUNT,
            KEY,
        ]))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn signal(&self, signal: &str) -> Result<()> {
        run(Command::new("kill").args([signal, &self.child.id().to_string()])).map(drop)
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}
