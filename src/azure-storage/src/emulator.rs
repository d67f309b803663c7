//! Runs Azurite, Microsoft's emulator, for tests and comparisons. It is a program of its own; `tests/lab/azurite.sh`
//! installs it.
//!
//! Where it is: the variable `AZURITE`, else `target/azurite` of the workspace. `AZURITE` that names nothing is an error
//! that says how to install it; without the variable and without the program, [`Azurite::find`] gives nothing and the
//! caller may say that it skips.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::clock::SystemClock;
use crate::sas::{self, AccountKey, Permissions, Protocols, SasRequest};
use crate::{Container, ContainerOptions, Credential, CredentialHandle, Error};

/// The emulator's well-known account.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// How it is started.
#[derive(Clone, Debug, Default)]
pub struct AzuriteOptions {
    /// Certificate chain and key, PEM: serves TLS and accepts tokens.
    pub tls: Option<(String, String)>,
    /// Blobs are kept here; nothing = in a folder that goes with it.
    pub folder: Option<PathBuf>,
}

/// A running Azurite. It ends when this is dropped.
#[derive(Debug)]
pub struct Azurite {
    endpoint: String,
    child: Child,
    _folder: TempDir,
}

impl Azurite {
    /// The program's path.
    pub fn find() -> io::Result<Option<PathBuf>> {
        let missing = |path: &Path| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "AZURITE names {}, which is not there: install it with `tests/lab/azurite.sh install`",
                    path.display()
                ),
            )
        };
        let here = std::env::current_dir()?;
        if let Some(named) = std::env::var_os("AZURITE").filter(|named| !named.is_empty()) {
            let named = PathBuf::from(named);
            // A relative name is meant from the workspace, wherever a test happens to run.
            return here
                .ancestors()
                .map(|folder| folder.join(&named))
                .find(|path| path.is_file())
                .map(|path| Some(path.with_file_name("azurite-blob")))
                .ok_or_else(|| missing(&named));
        }
        Ok(here
            .ancestors()
            .map(|folder| folder.join("target/azurite/node_modules/.bin/azurite-blob"))
            .find(|path| path.is_file()))
    }

    /// Starts it on a free port of this machine; `None` when it isn't installed and nobody insists.
    pub async fn start(options: AzuriteOptions) -> io::Result<Option<Azurite>> {
        let Some(program) = Azurite::find()? else {
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("azurite-").tempdir()?;
        let data = options
            .folder
            .clone()
            .unwrap_or_else(|| folder.path().to_owned());
        let mut command = Command::new(program);
        command
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0"])
            .args(["--disableTelemetry", "--skipApiVersionCheck", "--silent"])
            .arg("--location")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        if let Some((certificate, key)) = &options.tls {
            let certificate_file = folder.path().join("certificate.pem");
            let key_file = folder.path().join("key.pem");
            std::fs::write(&certificate_file, certificate)?;
            std::fs::write(&key_file, key)?;
            command
                .arg("--cert")
                .arg(certificate_file)
                .arg("--key")
                .arg(key_file)
                .args(["--oauth", "basic"]);
        }
        let mut child = command.spawn()?;
        let output = child
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("azurite has no output"))?;
        let mut lines = BufReader::new(output).lines();
        let address = loop {
            let Some(line) = lines.next_line().await? else {
                return Err(io::Error::other(
                    "azurite ended at its start: run it by hand to see why",
                ));
            };
            // "... successfully listens on http://127.0.0.1:PORT"
            if let Some(at) = line.find("http").filter(|_| line.contains("listen")) {
                break line[at..].trim().to_owned();
            }
        };
        // Its pipe must not fill up.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Some(Azurite {
            endpoint: format!("{}/{ACCOUNT}", address.trim_end_matches('/')),
            child,
            _folder: folder,
        }))
    }

    /// Blob endpoint, account in the path.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its process, for measurements.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The account's key.
    pub fn key(&self) -> Result<AccountKey, Error> {
        AccountKey::new(ACCOUNT, KEY)
    }

    /// A signature for a container.
    pub fn sas(&self, container: &str, permissions: Permissions) -> Result<Credential, Error> {
        let request = SasRequest {
            container: container.to_owned(),
            permissions,
            protocols: Protocols::of_endpoint(&self.endpoint),
            now_unix_ms: SystemClock::shared().unix_ms(),
            lifetime_ms: 3_600_000,
        };
        Ok(sas::mint(&self.key()?, &request).credential())
    }

    /// Makes a container as the orchestrator would, and gives what the engine gets.
    pub async fn make_container(
        &self,
        container: &str,
        ca_pem: &[String],
    ) -> Result<CredentialHandle, Error> {
        let account = sas::mint_account(
            &self.key()?,
            Protocols::of_endpoint(&self.endpoint),
            SystemClock::shared().unix_ms(),
            600_000,
        );
        let mut options = ContainerOptions::new(
            &self.endpoint,
            container,
            CredentialHandle::new(account.credential()),
        );
        options.ca_pem = ca_pem.to_vec();
        Container::open(&options)?.create().await?;
        Ok(CredentialHandle::new(
            self.sas(container, Permissions::REPLICATE)?,
        ))
    }
}
