//! Windows Server.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::windows::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hypervisor::{FilesDriver, HypervDriver, Hypervisor};
use tokio::net::windows::named_pipe::{
    ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions,
};
use tokio::signal::windows;
use uuid::Uuid;

use super::Driver;
use crate::durable::Access;

/// Longest path of a folder of recovered VMs; there is no limit, as there are no recovered VMs here yet.
pub const MAX_RECOVERY_FOLDER: usize = usize::MAX;
/// `FILE_FLAG_BACKUP_SEMANTICS`: without it a folder can't be opened.
const OPENS_FOLDERS: u32 = 0x0200_0000;
/// `ERROR_INVALID_FUNCTION`, `ERROR_ACCESS_DENIED`, `ERROR_INVALID_HANDLE`, `ERROR_NOT_SUPPORTED`: what file systems say that
/// have nothing to flush of a folder.
const NOTHING_TO_FLUSH: [i32; 4] = [1, 5, 6, 50];
/// `ERROR_PIPE_BUSY`: the one instance that listens has just got a client.
const PIPE_BUSY: i32 = 231;
/// For at most a second.
const RENAME_TRIES: u32 = 50;
const RENAME_PAUSE: Duration = Duration::from_millis(20);
/// Name space of pipe names that are made of paths. A fixed random number.
const PIPES: Uuid = Uuid::from_u128(0x3f6d_1c0e_52b7_4f0d_9d0c_8b7a_64e1_2a95);
/// Full control for the system, for administrators and for whoever made the file, for all that lies in the folder, too.
const GRANTS: [&str; 3] = [
    "*S-1-5-18:(OI)(CI)F",
    "*S-1-5-32-544:(OI)(CI)F",
    "*S-1-3-4:(OI)(CI)F",
];

/// Reads and writes at places of a file, whole.
pub trait FileAt {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// Those of the file.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
}

impl FileAt for File {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.seek_read(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            match self.seek_write(data, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    data = &data[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Where the engine keeps its own files when the configuration doesn't say.
pub fn default_data_folder() -> PathBuf {
    let programs =
        std::env::var_os("ProgramData").unwrap_or_else(|| OsString::from("C:\\ProgramData"));
    PathBuf::from(programs).join("SiteRecovery")
}

/// What is made gets the access list of its folder: see [`make_folder_private`].
pub fn keep_files_private() {}

/// Keeps others out of a folder that exists, and out of all that is made in it.
///
/// # Errors
/// When the folder's owner is somebody else.
pub fn make_folder_private(folder: &Path) -> io::Result<()> {
    let mut command = Command::new("icacls.exe");
    command.arg(folder).args(["/inheritance:r", "/q"]);
    for grant in GRANTS {
        command.arg("/grant:r").arg(grant);
    }
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "icacls ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout).trim()
    )))
}

/// Makes a file that must not be there yet. Who may read it follows from its folder.
///
/// # Errors
/// When it is there, or can't be made.
pub fn create_new(path: &Path, _access: Access) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// Gives a file another name, in place of whatever has it. Whoever reads the old file just now, a virus scanner for one, is in
/// the way on some file systems: until it is done.
///
/// # Errors
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    for _ in 1..RENAME_TRIES {
        match std::fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                std::thread::sleep(RENAME_PAUSE);
            }
            other => return other,
        }
    }
    std::fs::rename(from, to)
}

/// Makes the names in a folder durable, as far as the file system has something to do for it.
///
/// # Errors
/// When the folder is not there, or its disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let flushed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OPENS_FOLDERS)
        .open(folder)
        .and_then(|folder| folder.sync_all());
    match flushed {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| NOTHING_TO_FLUSH.contains(&code)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Ends when somebody wants this process to stop. Wishes count from this call on, not from the first wait.
///
/// # Errors
/// When the system does not let us listen.
pub fn stop_wished() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut interrupt = windows::ctrl_c().context("listen for Ctrl-C")?;
    let mut pause = windows::ctrl_break().context("listen for Ctrl-Break")?;
    let mut close = windows::ctrl_close().context("listen for the end of the console")?;
    let mut shutdown = windows::ctrl_shutdown().context("listen for the system's shutdown")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = pause.recv() => {}
            _ = close.recv() => {}
            _ = shutdown.recv() => {}
        }
    })
}

/// The driver that was chosen: Hyper-V's virtual machines, or the image files of `folders`.
///
/// # Errors
/// When there is not exactly one folder, or it is not there; for Hyper-V when the host is no Windows Server with that role.
pub fn driver(
    chosen: Option<Driver>,
    folders: Vec<PathBuf>,
    _scratch: PathBuf,
) -> anyhow::Result<Arc<dyn Hypervisor>> {
    if chosen == Some(Driver::Hyperv) {
        return Ok(Arc::new(
            HypervDriver::new().context("set up the hyperv driver")?,
        ));
    }
    let [folder] = folders.as_slice() else {
        bail!(
            "set up the driver of image files: it wants one folder, not {}",
            folders.len()
        );
    };
    Ok(Arc::new(
        FilesDriver::new(folder).context("set up the driver of image files")?,
    ))
}

/// A scratch folder for commands of this user.
pub fn user_scratch() -> PathBuf {
    std::env::temp_dir().join("siterecovery-vm")
}

/// Listens where programs of this machine may connect, not others. Pipes have names of their own: ours is made of the path.
#[derive(Debug)]
pub struct LocalListener {
    name: OsString,
    next: NamedPipeServer,
}

impl LocalListener {
    /// For the path `path`.
    ///
    /// # Errors
    /// When somebody else has the name already.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let name = pipe_name(path);
        let next = ServerOptions::new()
            .first_pipe_instance(true)
            .reject_remote_clients(true)
            .create(&name)
            .with_context(|| format!("listen on {}", name.display()))?;
        Ok(Self { name, next })
    }

    /// The next client.
    ///
    /// # Errors
    /// When no further instance can be made.
    pub async fn accept(&mut self) -> io::Result<NamedPipeServer> {
        self.next.connect().await?;
        // There is always one that waits, or a client would be told that nobody listens.
        let next = ServerOptions::new()
            .reject_remote_clients(true)
            .create(&self.name)?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

/// Connects to the listener for `path`.
///
/// # Errors
/// When nobody listens.
pub async fn connect(path: &Path) -> io::Result<NamedPipeClient> {
    let name = pipe_name(path);
    loop {
        match ClientOptions::new().open(&name) {
            Err(error) if error.raw_os_error() == Some(PIPE_BUSY) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

fn pipe_name(path: &Path) -> OsString {
    // One name, however the path is written.
    let path = path.to_string_lossy().replace('/', "\\").to_lowercase();
    format!(
        r"\\.\pipe\siterecovery-engine-{}",
        Uuid::new_v5(&PIPES, path.as_bytes())
    )
    .into()
}
