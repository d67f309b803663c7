//! Real QEMU machines without a guest, for the driver's tests. Nothing of them is left when a test ends, however it ends.

#![allow(dead_code, reason = "each test program uses its part of it")]

pub mod boot_sector;

use std::path::{Path, PathBuf};
use std::process::Command;

use async_trait::async_trait;
use hypervisor::conformance::Fixture;
use hypervisor::{
    Changes, DiskId, FrozenDisk, Hypervisor, HypervisorError, QemuDriver, TrackingId, VmId,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

pub const BLOCK: u64 = 64 << 10;
pub const MIB: u64 = 1 << 20;

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub driver: QemuDriver,
}

/// A VM of the lab with its disks in the order of `vm.toml`.
#[derive(Clone)]
pub struct LabVm {
    pub id: VmId,
    pub folder: PathBuf,
    pub disks: Vec<DiskId>,
}

impl Lab {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vms")).unwrap();
        let driver = Self::driver_of(folder.path());
        Self { folder, driver }
    }

    /// A second engine on the same host.
    pub fn another_driver(&self) -> QemuDriver {
        Self::driver_of(self.folder.path())
    }

    fn driver_of(folder: &Path) -> QemuDriver {
        QemuDriver::new(vec![folder.join("vms")], folder.join("scratch")).unwrap()
    }

    pub fn vms(&self) -> PathBuf {
        self.folder.path().join("vms")
    }

    /// A VM with empty VHDX disks of these sizes in MiB; off.
    pub async fn vm(&self, name: &str, generation: u32, sizes_mib: &[u64]) -> LabVm {
        let id = Uuid::new_v4();
        let folder = self.vms().join(name);
        std::fs::create_dir(&folder).unwrap();
        let memory = if generation == 1 { 32 } else { 128 };
        let mut text = format!(
            "id = \"{id}\"\nname = \"{name}\"\ngeneration = {generation}\nmemory_mib = {memory}\nprocessors = 1\n\
             os_type = \"Linux\"\n"
        );
        for (index, size) in sizes_mib.iter().enumerate() {
            let file = format!("d{index}.vhdx");
            image(&folder.join(&file), *size);
            text.push_str(&format!("[[disk]]\nfile = \"{file}\"\n"));
        }
        text.push_str("[[network]]\nname = \"production\"\n");
        std::fs::write(folder.join("vm.toml"), text).unwrap();
        let machines = self.driver.virtual_machines().await.unwrap();
        let machine = machines
            .into_iter()
            .find(|machine| machine.id == VmId(id))
            .unwrap();
        assert_eq!(machine.findings, []);
        LabVm {
            id: VmId(id),
            folder,
            disks: machine.disks.iter().map(|disk| disk.id).collect(),
        }
    }

    pub async fn running_vm(&self, name: &str, generation: u32, sizes_mib: &[u64]) -> LabVm {
        let vm = self.vm(name, generation, sizes_mib).await;
        self.driver.start(vm.id).await.unwrap();
        vm
    }

    pub async fn write(&self, vm: &LabVm, disk: usize, offset: u64, length: u64, byte: u8) {
        self.driver
            .write_as_guest(vm.id, vm.disks[disk], offset, length, byte)
            .await
            .unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir(self.vms()) else {
            return;
        };
        for entry in entries.flatten() {
            if let Some(pid) = qemu_pid(&entry.path()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The QEMU of a VM's folder, found independently of the driver.
pub fn qemu_pid(folder: &Path) -> Option<i32> {
    let file = folder.join("run/pid");
    let pid: i32 = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    line.split('\0')
        .any(|argument| Path::new(argument) == file)
        .then_some(pid)
}

/// Kills a QEMU as a power cut would, and waits until it is gone.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !matches!(state, None | Some(None | Some('Z' | 'X'))) || threads > 1
}

pub async fn kill_qemu(folder: &Path) {
    let pid = qemu_pid(folder).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // A process that is ending loses its command line before it closes its files; as a zombie without further threads it
    // has closed them.
    while runs(pid) {
        tokio::task::yield_now().await;
    }
}

pub fn image(path: &Path, size_mib: u64) {
    let format = if path.extension().is_some_and(|extension| extension == "vhd") {
        "vpc"
    } else {
        "vhdx"
    };
    tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            format,
            path.to_str().unwrap(),
            &format!("{size_mib}M"),
        ],
    );
}

pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The whole content of an image that nobody has open, read by QEMU's own tool.
pub fn content(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("check.raw");
    tool(
        "qemu-img",
        &[
            "convert",
            "-O",
            "raw",
            path.to_str().unwrap(),
            raw.to_str().unwrap(),
        ],
    );
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

pub fn tracking(number: u64) -> TrackingId {
    TrackingId {
        generation: 1,
        number,
    }
}

/// Numbers of the changed 64 KiB blocks.
pub fn changed_blocks(disk: &FrozenDisk) -> Vec<u64> {
    match &disk.changes {
        Changes::Unknown => panic!("changes are unknown"),
        Changes::Since(ranges) => ranges
            .iter()
            .inspect(|range| assert!(range.offset % BLOCK == 0))
            .flat_map(|range| range.offset / BLOCK..range.end().div_ceil(BLOCK))
            .collect(),
    }
}

/// The whole frozen content.
pub async fn frozen_content(disk: &FrozenDisk) -> Vec<u8> {
    disk.reader
        .read(0, usize::try_from(disk.size_bytes).unwrap())
        .await
        .unwrap()
        .to_vec()
}

/// Takes over what changed, as the engine would.
pub async fn apply(replica: &mut [u8], disk: &FrozenDisk) {
    let Changes::Since(ranges) = &disk.changes else {
        panic!("changes are unknown");
    };
    for range in ranges {
        let data = disk
            .reader
            .read(range.offset, usize::try_from(range.length).unwrap())
            .await
            .unwrap();
        let at = usize::try_from(range.offset).unwrap();
        replica[at..at + data.len()].copy_from_slice(&data);
    }
}

pub struct LabFixture<'a> {
    pub lab: &'a Lab,
    pub vm: LabVm,
    pub companion: LabVm,
}

#[async_trait]
impl Fixture for LabFixture<'_> {
    fn vm(&self) -> VmId {
        self.vm.id
    }

    fn companion(&self) -> Option<VmId> {
        Some(self.companion.id)
    }

    async fn write(
        &self,
        disk: DiskId,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Result<(), HypervisorError> {
        self.lab
            .driver
            .write_as_guest(self.vm.id, disk, offset, length, byte)
            .await
    }
}

/// Builds the lab's guest of generation 2, named `guest`, among the lab's VMs.
pub fn build_guest(lab: &Lab, id: Uuid, more: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(root.join("tests/lab/build-guest.sh"))
        .args(["--generation", "2", "--name", "guest"])
        .args(["--id", &id.to_string()])
        .args(more)
        .arg("--out")
        .arg(lab.vms())
        .arg("--work")
        .arg(root.join("target/lab-guest-cache"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "build-guest.sh: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
