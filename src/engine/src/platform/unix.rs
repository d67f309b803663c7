//! Linux, and what is like it.

use std::fs::{File, OpenOptions, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
pub use hypervisor::MAX_RECOVERY_FOLDER;
use hypervisor::{Hypervisor, QemuDriver};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::Driver;
use crate::durable::{self, Access};

/// Reads and writes at places of a file.
pub use std::os::unix::fs::FileExt as FileAt;

/// Where the engine keeps its own files when the configuration doesn't say.
pub fn default_data_folder() -> PathBuf {
    PathBuf::from("/var/lib/siterecovery")
}

/// What is made from here on is for the owner's eyes only.
pub fn keep_files_private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

/// Keeps others out of a folder that exists.
///
/// # Errors
/// When its owner is somebody else.
pub fn make_folder_private(folder: &Path) -> io::Result<()> {
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// Makes a file that must not be there yet.
///
/// # Errors
/// When it is there, or can't be made.
pub fn create_new(path: &Path, access: Access) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(match access {
            Access::Secret => 0o600,
            Access::Plain => 0o644,
        })
        .open(path)
}

/// Gives a file another name, in place of whatever has it.
///
/// # Errors
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// When the folder is not there, or its disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Ends when somebody wants this process to stop. Signals count from this call on, not from the first wait.
///
/// # Errors
/// When the system does not let us listen.
pub fn stop_wished() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The driver of this system, for the VMs of `folders`.
///
/// # Errors
/// When `scratch` can't be made.
pub fn driver(
    _chosen: Option<Driver>,
    folders: Vec<PathBuf>,
    scratch: PathBuf,
) -> anyhow::Result<Arc<dyn Hypervisor>> {
    Ok(Arc::new(
        QemuDriver::new(folders, scratch).context("set up the qemu driver")?,
    ))
}

/// A scratch folder for commands of this user.
pub fn user_scratch() -> PathBuf {
    std::env::temp_dir().join(format!("siterecovery-vm-{}", nix::unistd::geteuid()))
}

/// Listens where only the owner may connect.
#[derive(Debug)]
pub struct LocalListener(UnixListener);

impl LocalListener {
    /// At `path`. A socket that is there is a leftover: the caller has seen to it.
    ///
    /// # Errors
    /// When the leftover can't be removed or the socket not made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        durable::remove_if_there(path)
            .with_context(|| format!("remove old socket {}", path.display()))?;
        let listener =
            UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
            .with_context(|| format!("protect {}", path.display()))?;
        Ok(Self(listener))
    }

    /// The next client.
    ///
    /// # Errors
    /// When this process has too many files open, for one.
    pub async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(self.0.accept().await?.0)
    }
}

/// Connects to the listener at `path`.
///
/// # Errors
/// When nobody listens.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}
