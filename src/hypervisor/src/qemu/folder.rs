//! A VM's folder: where its files lie, and whether its QEMU runs.
//!
//! ```text
//!   <folder>/vm.toml  nvram.fd  *.vhdx  *.hrl
//!            run/  qmp.sock  agent.sock  nbd.sock  pid  console.log  paused-by-freeze  quiesced-by-freeze
//!                  shutdown-pauses  net0.sock
//! ```
//!
//! A process is ours only when its command line names our pid file: a pid that was reused by somebody else
//! after a crash is never signalled.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::{ErrorKind, HypervisorError};

/// Longest path of a Unix socket on Linux, without the closing zero.
const MAX_SOCKET_PATH: usize = 107;
/// Longest path of a VM's folder, in bytes: the longest socket in it still has an address then.
const MAX_VM_FOLDER: usize = MAX_SOCKET_PATH - "/run/agent.sock".len();
/// Longest path of a folder of recovered VMs, in bytes: each has a folder in it that is named by its GUID.
pub const MAX_RECOVERY_FOLDER: usize =
    MAX_VM_FOLDER - "/00000000-0000-0000-0000-000000000000".len();
/// How often a state that has no event is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A VM's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VmFolder {
    path: PathBuf,
}

impl VmFolder {
    /// `path` is absolute.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    pub(super) fn qmp_socket(&self) -> PathBuf {
        self.run().join("qmp.sock")
    }

    pub(super) fn agent_socket(&self) -> PathBuf {
        self.run().join("agent.sock")
    }

    pub(super) fn nbd_socket(&self) -> PathBuf {
        self.run().join("nbd.sock")
    }

    /// The VM's end of an adapter that is in a private segment.
    pub(super) fn adapter_socket(&self, index: usize) -> PathBuf {
        self.run().join(format!("net{index}.sock"))
    }

    /// There while a freeze holds the VM's processors.
    pub(super) fn paused_mark(&self) -> PathBuf {
        self.run().join("paused-by-freeze")
    }

    /// There while a freeze holds the guest's file systems.
    pub(super) fn quiesced_mark(&self) -> PathBuf {
        self.run().join("quiesced-by-freeze")
    }

    /// There while a shutdown of the guest may not end its QEMU.
    pub(super) fn shutdown_mark(&self) -> PathBuf {
        self.run().join("shutdown-pauses")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.run().join("pid")
    }

    /// What a look at the display is written into, for a moment.
    pub(super) fn screenshot(&self) -> PathBuf {
        self.run().join("screenshot.png")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.run().join("console.log")
    }

    pub(super) fn firmware_variables(&self) -> PathBuf {
        self.path.join("nvram.fd")
    }

    /// A path of `vm.toml`.
    pub(super) fn resolve(&self, file: &Path) -> PathBuf {
        self.path.join(file)
    }

    /// Whether the sockets' paths are short enough for the system.
    pub(super) fn check_socket_paths(&self) -> Result<(), HypervisorError> {
        let length = self.path.as_os_str().len();
        if length > MAX_VM_FOLDER {
            return Err(HypervisorError::new(
                ErrorKind::Configuration,
                format!(
                    "use the folder {}: its path has {length} bytes and is too long for sockets inside it (at most {MAX_VM_FOLDER})",
                    self.path.display(),
                ),
            ));
        }
        Ok(())
    }

    /// The VM's QEMU, if it runs.
    pub(super) fn running_pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.pid_file()).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        self.is_ours(pid).then(|| Pid::from_raw(pid))
    }

    fn is_ours(&self, pid: i32) -> bool {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            return false;
        };
        // Empty for a process that is ending, or has ended and was not yet collected.
        let pid_file = self.pid_file();
        line.split(|byte| *byte == 0)
            .any(|argument| argument == pid_file.as_os_str().as_bytes())
    }

    /// Waits for a process of before that is ending and may still hold the images; it does not count as running.
    pub(super) async fn settle(&self) {
        let text = std::fs::read_to_string(self.pid_file()).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<i32>()
            && !self.is_ours(pid)
        {
            self.wait_gone(Pid::from_raw(pid), Duration::from_secs(5))
                .await;
        }
    }

    /// Waits until the process has ended; `false` when it still runs after `patience`.
    pub(super) async fn wait_gone(&self, pid: Pid, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        // A process that is ending loses its command line before it closes its files.
        while self.is_ours(pid.as_raw()) || is_ending(pid.as_raw()) {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Ends the process without asking QEMU.
    pub(super) async fn kill(&self, pid: Pid) -> Result<(), HypervisorError> {
        for (signal, patience) in [(Signal::SIGTERM, 3), (Signal::SIGKILL, 30)] {
            if !self.is_ours(pid.as_raw()) {
                return Ok(());
            }
            // It may have ended just now, which is what is wanted.
            let _ = kill(pid, signal);
            if self.wait_gone(pid, Duration::from_secs(patience)).await {
                return Ok(());
            }
        }
        Err(HypervisorError::new(
            ErrorKind::Timeout,
            format!("kill qemu process {pid}: it does not end"),
        ))
    }

    /// Removes what a QEMU that is gone left in `run/`, except its console.
    pub(super) fn remove_stale_files(&self) -> io::Result<()> {
        for path in [
            self.qmp_socket(),
            self.agent_socket(),
            self.nbd_socket(),
            self.paused_mark(),
            self.quiesced_mark(),
            self.shutdown_mark(),
            self.pid_file(),
        ] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a process is on its way out and may still have files open; as a zombie without further threads it has closed them.
pub(super) fn is_ending(pid: i32) -> bool {
    /// `PF_EXITING` of the kernel; a kernel thread, which has no command line either, is without it.
    const EXITING: u64 = 0x4;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) state ppid pgrp session tty tpgid flags ...", and the name may hold anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut words = rest.split(' ');
    let state = words.next().unwrap_or_default();
    let flags: u64 = words.nth(5).and_then(|word| word.parse().ok()).unwrap_or(0);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    (!matches!(state, "Z" | "X") || threads > 1) && flags & EXITING != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_belongs_to_somebody_else_is_not_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = VmFolder::new(scratch.path().to_owned());
        std::fs::create_dir(folder.run()).unwrap();
        assert_eq!(folder.running_pid(), None);
        for text in [
            std::process::id().to_string(),
            "1".to_owned(),
            "-1".to_owned(),
            "nonsense".to_owned(),
        ] {
            std::fs::write(folder.pid_file(), text).unwrap();
            assert_eq!(folder.running_pid(), None);
        }
    }

    #[test]
    fn in_a_recovery_folder_of_the_longest_path_every_socket_of_a_vm_has_an_address() {
        let at = |length: usize| {
            let folder = PathBuf::from(format!("/{}", "a".repeat(length - 1)));
            let vm = folder.join("c0ffee00-1234-4abc-8def-001122334455");
            VmFolder::new(vm)
        };
        let longest = at(MAX_RECOVERY_FOLDER);
        longest.check_socket_paths().expect("it fits");
        for socket in [
            longest.qmp_socket(),
            longest.agent_socket(),
            longest.nbd_socket(),
            longest.adapter_socket(10),
        ] {
            std::os::unix::net::SocketAddr::from_pathname(&socket).expect("an address");
        }
        assert!(at(MAX_RECOVERY_FOLDER + 1).check_socket_paths().is_err());
        let beyond = at(MAX_RECOVERY_FOLDER + 1).agent_socket();
        assert!(std::os::unix::net::SocketAddr::from_pathname(beyond).is_err());
    }

    #[test]
    fn a_folder_that_is_too_deep_for_sockets_is_refused_with_the_limit() {
        let deep = VmFolder::new(PathBuf::from(format!("/{}", "a".repeat(100))));
        assert!(
            deep.check_socket_paths()
                .unwrap_err()
                .to_string()
                .contains("at most")
        );
        assert!(
            VmFolder::new(PathBuf::from("/vms/web01"))
                .check_socket_paths()
                .is_ok()
        );
    }
}
