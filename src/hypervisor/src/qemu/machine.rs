//! The command line of a VM: firmware, controllers, disks with stable node names, serial ports.
//!
//! | | generation 1 | generation 2 |
//! |---|---|---|
//! | machine | `pc`, SeaBIOS | `q35`, OVMF, variables in `nvram.fd` of the folder |
//! | disks | 4 on IDE, further ones on virtio-scsi | virtio-scsi, LUN = place in `vm.toml` |
//! | network card | e1000 | virtio-net |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::{DiskFormat, VmConfig};
use super::folder::VmFolder;
use super::segment;
use crate::{ErrorKind, Generation, HypervisorError};

/// Firmware for generation 2, code and variables, by distribution (Debian, Fedora, Arch).
const FIRMWARE: [(&str, &str); 3] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];
/// IDE of a generation 1 machine has two channels of two.
const IDE_DISKS: usize = 4;
/// How long a VM waits for the server of its recovery point to come back before its guest sees an error.
const NBD_RECONNECT_SECONDS: u32 = 600;
/// How long a start waits for it; a server that refuses is asked again until then, too.
const NBD_OPEN_SECONDS: u32 = 5;

/// The block node of a disk, by its place in `vm.toml`.
pub(super) fn node_name(index: usize) -> String {
    format!("disk{index}")
}

/// The guest's device in front of it. What the guest writes goes through the device, not straight to the node: while a
/// point is frozen a filter lies between them.
pub(super) fn device_name(index: usize) -> String {
    format!("device{index}")
}

/// Where the firmware of generation 2 lies.
pub(super) fn firmware() -> Result<(PathBuf, PathBuf), HypervisorError> {
    FIRMWARE
        .iter()
        .find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists())
        .map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)))
        .ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::Missing,
                "find OVMF firmware for generation 2: install the package ovmf",
            )
        })
}

/// All arguments for a daemonised start.
pub(super) fn arguments(
    folder: &VmFolder,
    config: &VmConfig,
    kvm: bool,
) -> Result<Vec<OsString>, HypervisorError> {
    let generation = config.machine_generation();
    let mut line = Line::default();
    line.add("-name", format!("guest={}", escape(&config.name)));
    line.add("-uuid", config.id.to_string());
    line.flag("-nodefaults").flag("-no-user-config");
    line.add("-display", "none");
    line.flag("-daemonize");
    line.path("-pidfile", &folder.pid_file());
    line.add(
        "-machine",
        if generation == Generation::One {
            "pc"
        } else {
            "q35"
        },
    );
    if kvm {
        line.add("-accel", "kvm");
    }
    line.add("-accel", "tcg");
    line.add("-cpu", "max");
    line.add("-m", format!("{}M", config.memory_mib));
    line.add("-smp", config.processors.to_string());
    line.add("-rtc", "base=utc");

    let socket = |path: PathBuf| {
        format!(
            "path={},server=on,wait=off",
            escape(&path.to_string_lossy())
        )
    };
    line.add(
        "-chardev",
        format!("socket,id=qmp,{}", socket(folder.qmp_socket())),
    );
    line.add("-mon", "chardev=qmp,mode=control");
    line.add(
        "-chardev",
        format!(
            "file,id=console,path={}",
            escape(&folder.console().to_string_lossy())
        ),
    );
    line.add("-serial", "chardev:console");
    line.add(
        "-chardev",
        format!("socket,id=agent,{}", socket(folder.agent_socket())),
    );
    line.add("-serial", "chardev:agent");

    if generation == Generation::Two {
        let (code, _) = firmware()?;
        for (name, path, read_only) in [
            ("code", code, true),
            ("vars", folder.firmware_variables(), false),
        ] {
            line.json(
                "-blockdev",
                &json!({
                    "driver": "raw", "node-name": format!("pflash-{name}"), "read-only": read_only,
                    "file": { "driver": "file", "filename": path.to_string_lossy() },
                }),
            );
        }
        line.add("-machine", "pflash0=pflash-code,pflash1=pflash-vars");
    }
    disks(&mut line, folder, config, generation)?;
    networks(&mut line, folder, config, generation);
    // A display nobody looks at but `screenshot`. Last, so that no other device changes its slot.
    line.add("-device", "VGA,id=display,vgamem_mb=8");
    Ok(line.0)
}

fn disks(
    line: &mut Line,
    folder: &VmFolder,
    config: &VmConfig,
    generation: Generation,
) -> Result<(), HypervisorError> {
    let on_ide = if generation == Generation::One {
        IDE_DISKS
    } else {
        0
    };
    if config.disks.len() > on_ide {
        line.add("-device", "virtio-scsi-pci,id=scsi0");
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let format = disk.format().ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::Configuration,
                format!(
                    "open disk {} of vm {}: not a .vhdx or .vhd",
                    disk.file.display(),
                    config.name
                ),
            )
        })?;
        let node = node_name(index);
        let file =
            json!({ "driver": "file", "filename": folder.resolve(&disk.file).to_string_lossy() });
        let blockdev = match (format, &disk.nbd) {
            (DiskFormat::Overlay, Some(nbd)) => json!({
                "driver": "qcow2", "node-name": node, "file": file,
                "backing": {
                    "driver": "nbd", "read-only": true, "export": nbd.export,
                    "server": { "type": "unix", "path": nbd.socket.to_string_lossy() },
                    "reconnect-delay": NBD_RECONNECT_SECONDS, "open-timeout": NBD_OPEN_SECONDS,
                },
            }),
            (DiskFormat::Overlay | DiskFormat::Own, _) => {
                json!({ "driver": "qcow2", "node-name": node, "file": file })
            }
            (DiskFormat::Vhd, _) => json!({ "driver": "vpc", "node-name": node, "file": file }),
            _ => json!({ "driver": "vhdx", "node-name": node, "file": file }),
        };
        line.json("-blockdev", &blockdev);
        let device_id = device_name(index);
        let boot = if index == 0 { ",bootindex=0" } else { "" };
        let device = if index < on_ide {
            format!(
                "ide-hd,id={device_id},drive={node},bus=ide.{},unit={}{boot}",
                index / 2,
                index % 2
            )
        } else {
            let lun = index - on_ide;
            format!(
                "scsi-hd,id={device_id},drive={node},bus=scsi0.0,channel=0,scsi-id=0,lun={lun}{boot}"
            )
        };
        line.add("-device", device);
    }
    Ok(())
}

fn networks(line: &mut Line, folder: &VmFolder, config: &VmConfig, generation: Generation) {
    let model = if generation == Generation::One {
        "e1000"
    } else {
        "virtio-net-pci"
    };
    for (index, network) in config.networks.iter().enumerate() {
        // No option ROM: nobody boots from the network here, and it would cost seconds under emulation.
        let mut device = format!("{model},mac={},romfile=", config.mac(index));
        if network.name.as_deref().is_some_and(|name| !name.is_empty()) {
            // The guest sees a network with an address, and reaches nobody: neither the host nor the world.
            line.add("-netdev", format!("user,id=net{index},restrict=on"));
            device.push_str(&format!(",netdev=net{index}"));
        }
        if let Some(id) = network.segment {
            let address = |side: &str, path: &Path| {
                let path = escape(&path.to_string_lossy());
                format!("{side}.type=unix,{side}.path={path}")
            };
            // Without a connection, so that who repeats the frames may come and go.
            let (own, hub) = (folder.adapter_socket(index), segment::socket(folder, id));
            let (own, hub) = (address("local", &own), address("remote", &hub));
            line.add("-netdev", format!("dgram,id=net{index},{own},{hub}"));
            device.push_str(&format!(",netdev=net{index}"));
        }
        line.add("-device", device);
    }
}

/// In QEMU's comma lists a comma in a value is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn path(&mut self, name: &str, value: &Path) {
        self.add(name, value.as_os_str());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.add(name, value.to_string());
    }
}
