//! What a recovered VM has written itself: the layer above the recovery point that it was made over.
//!
//! ```text
//!   process there:   frozen point's export, allocation-depth 1 = in the layer
//!   none:            qemu-nbd (read only) over layer and point ─► the same, for `freeze_off`
//! ```
//!
//! Everything outside of the layer is as the recovery point has it, so whoever moves the VM's changes reads no more than
//! the layer. A block that the guest writes while a point is frozen may be counted in, though it was not in the layer then.
//!
//! A server of a VM that is off ends with its reader; one whose engine was killed ends when the connection does, and at the
//! latest by [`QemuDriver::end_layer_servers`], without which a start would find the images locked.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::config::DiskFormat;
use super::fleece::export_name;
use super::folder::is_ending;
use super::freeze::now_unix_ms;
use super::reader::{NbdReader, from_nbd};
use super::{FoundVm, QemuDriver, missing_or_io};
use crate::nbd::NbdClient;
use crate::{
    Changes, DiskId, ErrorKind, Extent, FrozenDisk, FrozenPoint, FrozenReader, HypervisorError,
    Quiescence, TrackingId, VmId,
};

/// Serves images without a VM.
const QEMU_NBD: &str = "qemu-nbd";
/// It opens two images and connects to the server of the point.
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);
/// From the signal to the end of a server; it writes nothing.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// A process that is not our child has no event for its end.
const POLL: Duration = Duration::from_millis(10);
/// Tells in how many steps below the top a block is found; 0 = nowhere.
const DEPTH: &str = "qemu:allocation-depth";
/// The layer itself.
const LAYER: u32 = 1;
/// How the names of a server's files begin; short, as socket paths are.
const FILES: &str = "layer";

/// A `qemu-nbd` of ours over one disk.
#[derive(Debug)]
struct Server {
    files: Files,
}

/// Its files in the VM's `run/`.
#[derive(Clone, Debug)]
struct Files {
    socket: PathBuf,
    pid: PathBuf,
    words: PathBuf,
}

/// Reads a disk for as long as its server lives, which is as long as this does.
struct LayerReader {
    reader: NbdReader,
    _server: Arc<Server>,
}

impl QemuDriver {
    /// See [`crate::Hypervisor::own_extents`].
    pub(super) async fn extents_of_layer(
        &self,
        point: &FrozenPoint,
        disk: DiskId,
    ) -> Result<Option<Vec<Extent>>, HypervisorError> {
        let found = self.find(point.vm)?;
        let index = found.disk_index(disk)?;
        if format(&found, index) != Some(DiskFormat::Overlay) {
            return Ok(None);
        }
        let step = format!(
            "look what disk {disk} of vm {} has above its recovery point",
            found.config.name
        );
        let (socket, export) = if found.folder.running_pid().is_some() {
            (
                found.folder.nbd_socket(),
                export_name(index, point.tracking),
            )
        } else {
            let files = Files::of(&found, index);
            (files.socket, layer_export(index, point.tracking))
        };
        let failed = |error| from_nbd(step.clone(), error);
        let client = NbdClient::connect(&socket, &export, &[DEPTH.to_owned()])
            .await
            .map_err(failed)?;
        let mut sets = client
            .extents(|depth| depth == LAYER)
            .await
            .map_err(failed)?;
        Ok(sets.pop().map(crate::ExtentSet::into_vec))
    }

    /// Ends what an engine that was killed may have left over a VM that is off. None is there when this returns.
    pub(super) async fn end_layer_servers(&self, vm: VmId) -> Result<(), HypervisorError> {
        match self.find(vm) {
            Ok(found) => end_servers(&found).await,
            Err(error) if error.kind() == ErrorKind::VmNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Freezes a VM without a process whose disks are layers: nobody writes, which the images' locks see to. Nothing is
    /// known of changes.
    pub(super) async fn freeze_layers(
        &self,
        found: &FoundVm,
        disks: &[DiskId],
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let step = format!("freeze vm {} while it is off", found.config.name);
        if servers(found)
            .map_err(|error| HypervisorError::with_source(ErrorKind::Io, step.clone(), error))?
            .iter()
            .any(|files| files.pid().is_some())
        {
            let text = format!("{step}: a point is frozen already");
            return Err(HypervisorError::new(ErrorKind::Busy, text));
        }
        end_servers(found).await?;
        let mut frozen = Vec::with_capacity(disks.len());
        for disk in disks {
            let index = found.disk_index(*disk)?;
            frozen.push(serve(found, index, *disk, next).await?);
        }
        Ok(FrozenPoint {
            vm: VmId(found.config.id),
            taken_unix_ms: now_unix_ms(),
            tracking: next,
            quiescence: Quiescence::NotAsked,
            pause: Duration::ZERO,
            disks: frozen,
        })
    }
}

/// Whether a VM's disks can be read by [`QemuDriver::freeze_layers`] only.
pub(super) fn has_layers(found: &FoundVm) -> bool {
    (0..found.config.disks.len()).any(|index| {
        matches!(
            format(found, index),
            Some(DiskFormat::Overlay | DiskFormat::Own)
        )
    })
}

/// See [`QemuDriver::end_layer_servers`].
async fn end_servers(found: &FoundVm) -> Result<(), HypervisorError> {
    let step = || format!("end the readers of vm {}'s disks", found.config.name);
    let failed = |error| HypervisorError::with_source(ErrorKind::Io, step(), error);
    for files in servers(found).map_err(failed)? {
        files.end();
        let deadline = Instant::now() + END_TIMEOUT;
        while files.holds_images() {
            if Instant::now() >= deadline {
                let text = format!("{}: one does not end", step());
                return Err(HypervisorError::new(ErrorKind::Timeout, text));
            }
            sleep(POLL).await;
        }
        files.remove().map_err(failed)?;
    }
    Ok(())
}

fn format(found: &FoundVm, index: usize) -> Option<DiskFormat> {
    found.config.disks.get(index).and_then(|disk| disk.format())
}

fn layer_export(index: usize, tracking: TrackingId) -> String {
    format!("layer-{index}-{tracking}")
}

/// The servers that have a pid file.
fn servers(found: &FoundVm) -> io::Result<Vec<Files>> {
    let run = found.folder.run();
    let entries = match std::fs::read_dir(&run) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut servers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".pid")) else {
            continue;
        };
        if stem.starts_with(FILES) {
            servers.push(Files::named(&run, stem));
        }
    }
    Ok(servers)
}

/// Starts a server over one disk, which reads it as it is.
async fn serve(
    found: &FoundVm,
    index: usize,
    disk: DiskId,
    next: TrackingId,
) -> Result<FrozenDisk, HypervisorError> {
    let step = format!("read disk {disk} of vm {}, which is off", found.config.name);
    let io_failed = |error| HypervisorError::with_source(ErrorKind::Io, step.clone(), error);
    let config = found.config.disks.get(index);
    let image = match (
        format(found, index),
        config.and_then(|disk| disk.nbd.as_ref()),
    ) {
        (Some(DiskFormat::Overlay), Some(nbd)) => json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": found.disk_file(index).to_string_lossy() },
            "backing": {
                "driver": "nbd", "export": nbd.export,
                "server": { "type": "unix", "path": nbd.socket.to_string_lossy() },
            },
        }),
        (Some(DiskFormat::Own), _) => json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": found.disk_file(index).to_string_lossy() },
        }),
        _ => {
            let text = format!("{step}: it is no layer above a recovery point");
            return Err(HypervisorError::new(ErrorKind::InvalidRequest, text));
        }
    };
    let run = found.folder.run();
    std::fs::create_dir_all(&run).map_err(io_failed)?;
    let files = Files::of(found, index);
    files.remove().map_err(io_failed)?;
    let words = std::fs::File::create(&files.words).map_err(io_failed)?;
    let export = layer_export(index, next);
    let server = Server {
        files: files.clone(),
    };
    // Forked off when it serves, which is what the wait is for. Its words go to a file: it keeps what it was given open.
    let status = Command::new(QEMU_NBD)
        .args(["--fork", "--read-only", "--allocation-depth", "--shared=0"])
        .arg(format!("--socket={}", files.socket.display()))
        .arg(format!("--pid-file={}", files.pid.display()))
        .arg(format!("--export-name={export}"))
        .arg(format!("json:{image}"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .kill_on_drop(true)
        .status();
    let status = timeout(SERVE_TIMEOUT, status)
        .await
        .map_err(|_| HypervisorError::new(ErrorKind::Timeout, step.clone()))?
        .map_err(|error| missing_or_io(error, &step, QEMU_NBD, "qemu-utils"))?;
    if !status.success() {
        let words = std::fs::read_to_string(&files.words).unwrap_or_default();
        return Err(HypervisorError::with_source(
            ErrorKind::Refused,
            format!("{step}: {QEMU_NBD}"),
            words.trim().to_owned(),
        ));
    }
    let client = NbdClient::connect(&files.socket, &export, &[])
        .await
        .map_err(|error| from_nbd(step.clone(), error))?;
    let size_bytes = client.size_bytes();
    let reader = NbdReader::new(step, files.socket.clone(), export);
    reader.keep(client).await;
    Ok(FrozenDisk {
        disk,
        size_bytes,
        changes: Changes::Unknown,
        allocated: vec![Extent {
            offset: 0,
            length: size_bytes,
        }],
        reader: Box::new(LayerReader {
            reader,
            _server: Arc::new(server),
        }),
    })
}

#[async_trait]
impl FrozenReader for LayerReader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        self.reader.read(offset, length).await
    }
}

impl Files {
    fn of(found: &FoundVm, index: usize) -> Self {
        Self::named(&found.folder.run(), &format!("{FILES}{index}"))
    }

    fn named(run: &Path, stem: &str) -> Self {
        Self {
            socket: run.join(format!("{stem}.nbd")),
            pid: run.join(format!("{stem}.pid")),
            words: run.join(format!("{stem}.log")),
        }
    }

    /// The process, while it is there and is ours: its command line names the pid file.
    fn pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(&self.pid).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = format!("--pid-file={}", self.pid.display());
        line.split(|byte| *byte == 0)
            .any(|argument| argument == ours.as_bytes())
            .then(|| Pid::from_raw(pid))
    }

    /// Whether the process may still have the images open.
    fn holds_images(&self) -> bool {
        // In this order: what runs at the first look and is ending at the second is seen.
        let text = std::fs::read_to_string(&self.pid).unwrap_or_default();
        self.pid().is_some() || text.trim().parse().is_ok_and(is_ending)
    }

    fn end(&self) {
        if let Some(pid) = self.pid() {
            // It may have ended just now, which is what is wanted.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    fn remove(&self) -> io::Result<()> {
        for path in [&self.socket, &self.pid, &self.words] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its files stay until it is known to have let the images go: see `end_layer_servers`.
        self.files.end();
    }
}
