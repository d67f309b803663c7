//! One folder with everything that a whole-system test starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::console::Console;
use crate::process::{kill_9, matching, run};

/// The folder of a test or of the demo.
pub struct Lab {
    folder: PathBuf,
    root: PathBuf,
    programs: PathBuf,
    keep: bool,
}

/// A guest to build.
pub struct Guest {
    /// Name of the VM and of its folder.
    pub name: &'static str,
    /// 1 (BIOS, MBR) or 2 (UEFI, GPT).
    pub generation: u8,
    /// Marker text that the guest stamps into its records.
    pub marker: Option<String>,
    /// Pseudo-random data written once at first boot, so that initial replication takes its time.
    pub fill_mib: u32,
    /// Size of a further disk with a file system and a guest agent that brings it to rest; 0 = without.
    pub app_mib: u32,
}

// === impl Lab ===

impl Lab {
    /// An empty lab; what an earlier run left there is killed and removed. Its folder lies in the temporary folder and not
    /// below the checkout, because a unix socket's address holds 107 bytes only.
    pub fn new(name: &str) -> Result<Self> {
        let programs = root()?.join("target/debug");
        Self::with_programs(name, programs)
    }

    /// The same with programs of another build.
    pub fn with_programs(name: &str, programs: PathBuf) -> Result<Self> {
        let lab = Self {
            folder: std::env::temp_dir().join("site-recovery-lab").join(name),
            root: root()?,
            programs,
            keep: false,
        };
        lab.clear()?;
        fs::create_dir_all(&lab.folder)
            .with_context(|| format!("create {}", lab.folder.display()))?;
        Ok(lab)
    }

    /// Leaves processes and files alone when the lab is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Tells what the programs logged, ends every process, and keeps the files for a look.
    pub fn failed(&mut self) {
        for log in ["orchestrator/stderr.log", "host/data/engine.log"] {
            let text = fs::read_to_string(self.folder.join(log)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines
                .get(lines.len().saturating_sub(25)..)
                .unwrap_or_default();
            eprintln!("── end of {log}\n{}", tail.join("\n"));
        }
        for (pid, line) in self.processes() {
            eprintln!(
                "── still running: {pid} {}",
                line.chars().take(160).collect::<String>()
            );
            let _gone_already = kill_9(pid);
        }
        eprintln!("── files are kept in {}", self.folder.display());
        self.keep = true;
    }

    /// The lab's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The checkout's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that holds one folder for each VM of the source host.
    pub fn vm_folder(&self) -> PathBuf {
        self.folder.join("hyperv")
    }

    /// One of our programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Builds a guest's disks and its `vm.toml`.
    pub fn build_guest(&self, guest: &Guest) -> Result<()> {
        let mut command = Command::new(self.root.join("tests/lab/build-guest.sh"));
        command.args([
            "--generation",
            &guest.generation.to_string(),
            "--name",
            guest.name,
        ]);
        command
            .args(["--id", &guest.id()])
            .arg("--out")
            .arg(self.vm_folder());
        command
            .arg("--work")
            .arg(self.root.join("target/guest-cache"));
        let mut append = Vec::new();
        append.extend(
            guest
                .marker
                .as_ref()
                .map(|marker| format!("lab.marker={marker}")),
        );
        append.extend((guest.fill_mib > 0).then(|| format!("lab.fill_mib={}", guest.fill_mib)));
        if guest.app_mib > 0 {
            command.args(["--app-mib", &guest.app_mib.to_string()]);
        }
        if !append.is_empty() {
            command.args(["--append", &append.join(" ")]);
        }
        run(&mut command).map(drop)
    }

    /// Starts a VM under the qemu driver.
    pub fn start_vm(&self, name: &str) -> Result<()> {
        self.vm(&["start"], name)
    }

    /// Turns a VM off.
    pub fn stop_vm(&self, name: &str) -> Result<()> {
        self.vm(&["stop"], name)
    }

    /// A VM's console.
    pub fn console(&self, name: &str) -> Console {
        Console::at(&self.vm_folder().join(name).join("run/console.log"))
    }

    fn vm(&self, word: &[&str], name: &str) -> Result<()> {
        let mut command = Command::new(self.program("siterecovery-engine"));
        command
            .arg("vm")
            .args(word)
            .arg("--vm-folder")
            .arg(self.vm_folder())
            .arg(name);
        run(&mut command).map(drop)
    }

    /// Processes that mention the lab's folder in their command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        matching(&self.folder.display().to_string())
    }

    fn clear(&self) -> Result<()> {
        for (pid, line) in self.processes() {
            // It may have ended between the look and the kill.
            if let Err(error) = kill_9(pid)
                && crate::process::is_alive(pid)
            {
                return Err(error.context(line));
            }
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() {
            eprintln!(
                "the lab's files are kept for a look: {}",
                self.folder.display()
            );
            for (pid, _) in self.processes() {
                let _gone_already = kill_9(pid);
            }
            return;
        }
        if let Err(error) = self.clear() {
            eprintln!("the lab could not be cleared: {error:#}");
        }
    }
}

// === impl Guest ===

impl Guest {
    /// The VM's id: fixed by its name, so that runs can be compared.
    pub fn id(&self) -> String {
        let seed: u64 = self.name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("c0ffee00-0000-4000-8000-{:012x}", seed & 0xffff_ffff_ffff)
    }
}

fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("this crate lies two folders below the workspace")
}
