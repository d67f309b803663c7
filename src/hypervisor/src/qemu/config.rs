//! `vm.toml`: what a VM of a folder is made of.
//!
//! ```toml
//! id = "6f1b…"                # GUID
//! name = "web01"
//! generation = 2              # 1 = BIOS and IDE, 2 = UEFI and SCSI
//! memory_mib = 512
//! processors = 1
//! os_type = "Linux"
//!
//! [[disk]]                    # the first one boots
//! file = "os.vhdx"            # relative to the folder; VHDX or VHD by its extension
//!
//! [[disk]]                    # of a recovered VM: copy-on-write above a served recovery point
//! file = "data.qcow2"
//! id = "…"                    # such a file has no id of its own
//! nbd = { socket = "/…/nbd.sock", export = "disk1", size_bytes = 1073741824 }
//!
//! [[disk]]                    # of one that was made independent of its point
//! file = "more.qcow2"
//! id = "…"
//! size_bytes = 1073741824
//!
//! [[network]]
//! name = "production"         # left out = the cable is out
//! segment = "4c0e…"           # in place of a name: GUID of a private segment of this host
//! mac = "52:54:00:12:34:56"   # left out = made from the VM's id
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ErrorKind, Generation, HypervisorError};

/// Name of the file in a VM's folder.
pub(super) const FILE_NAME: &str = "vm.toml";
/// More than a generation 1 or 2 machine is given here.
const MAX_DISKS: usize = 64;
const MAX_NETWORKS: usize = 8;

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(super) struct VmConfig {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) generation: u32,
    pub(super) memory_mib: u64,
    pub(super) processors: u32,
    #[serde(default)]
    pub(super) os_type: String,
    #[serde(default, rename = "disk")]
    pub(super) disks: Vec<DiskConfig>,
    #[serde(default, rename = "network")]
    pub(super) networks: Vec<NetworkConfig>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(super) struct DiskConfig {
    pub(super) file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nbd: Option<NbdConfig>,
    /// Of a layer that has all its data itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size_bytes: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(super) struct NbdConfig {
    pub(super) socket: PathBuf,
    pub(super) export: String,
    pub(super) size_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub(super) struct NetworkConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) segment: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<String>,
}

/// How QEMU opens a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskFormat {
    Vhdx,
    Vhd,
    /// qcow2 above an NBD export.
    Overlay,
    /// qcow2 that was such a layer and has all its data now.
    Own,
}

impl DiskConfig {
    /// `None` when the extension says nothing that QEMU can open here.
    pub(super) fn format(&self) -> Option<DiskFormat> {
        if self.nbd.is_some() {
            return Some(DiskFormat::Overlay);
        }
        if self.size_bytes.is_some() {
            return Some(DiskFormat::Own);
        }
        match self
            .file
            .extension()?
            .to_str()?
            .to_ascii_lowercase()
            .as_str()
        {
            "vhdx" => Some(DiskFormat::Vhdx),
            "vhd" => Some(DiskFormat::Vhd),
            _ => None,
        }
    }
}

impl VmConfig {
    /// Reads and checks the `vm.toml` of a folder.
    pub(super) fn load(folder: &Path) -> Result<Self, HypervisorError> {
        let path = folder.join(FILE_NAME);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            HypervisorError::with_source(ErrorKind::Io, format!("read {}", path.display()), error)
        })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            HypervisorError::with_source(
                ErrorKind::Configuration,
                format!("parse {}", path.display()),
                error,
            )
        })?;
        config.check().map_err(|problem| {
            HypervisorError::new(
                ErrorKind::Configuration,
                format!("{}: {problem}", path.display()),
            )
        })?;
        Ok(config)
    }

    /// The rules that types can't hold.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > 100 || self.name.chars().any(char::is_control)
        {
            return Err("name must have 1 to 100 printable characters".to_owned());
        }
        if Generation::from_number(self.generation).is_none() {
            return Err(format!(
                "generation must be 1 or 2, not {}",
                self.generation
            ));
        }
        if !(16..=16 << 20).contains(&self.memory_mib) {
            return Err(format!(
                "memory_mib must be 16 to 16777216, not {}",
                self.memory_mib
            ));
        }
        if !(1..=255).contains(&self.processors) {
            return Err(format!(
                "processors must be 1 to 255, not {}",
                self.processors
            ));
        }
        if self.disks.len() > MAX_DISKS || self.networks.len() > MAX_NETWORKS {
            return Err(format!(
                "at most {MAX_DISKS} disks and {MAX_NETWORKS} networks"
            ));
        }
        for disk in &self.disks {
            if disk.file.as_os_str().is_empty() || disk.file.to_str().is_none() {
                return Err("file of a disk must be a UTF-8 path".to_owned());
            }
            if (disk.nbd.is_some() || disk.size_bytes.is_some()) && disk.id.is_none() {
                return Err(format!(
                    "disk {} is a qcow2 image and needs an id",
                    disk.file.display()
                ));
            }
        }
        if self
            .networks
            .iter()
            .any(|network| network.name.is_some() && network.segment.is_some())
        {
            return Err("a network has a name or a segment, not both".to_owned());
        }
        for mac in self
            .networks
            .iter()
            .filter_map(|network| network.mac.as_deref())
        {
            let octets = mac
                .split(':')
                .filter(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok());
            if mac.len() != 17 || octets.count() != 6 {
                return Err(format!(
                    "mac {mac:?} must be six hexadecimal octets with colons"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn machine_generation(&self) -> Generation {
        Generation::from_number(self.generation).unwrap_or(Generation::Two)
    }

    /// The card's address: as configured, else one of QEMU's range that follows from the VM's id.
    pub(super) fn mac(&self, index: usize) -> String {
        if let Some(mac) = self
            .networks
            .get(index)
            .and_then(|network| network.mac.clone())
        {
            return mac;
        }
        let id = self.id.as_bytes();
        format!(
            "52:54:00:{:02x}:{:02x}:{:02x}",
            id[13],
            id[14],
            id[15].wrapping_add(index as u8)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VmConfig, String> {
        let config: VmConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    const HEAD: &str = "id = \"11111111-2222-3333-4444-555555555555\"\nname = \"a\"\nmemory_mib = 64\nprocessors = 1\n";

    #[test]
    fn a_written_file_reads_back_the_same() {
        let text = format!(
            "{HEAD}generation = 2\n[[disk]]\nfile = \"os.vhdx\"\n[[disk]]\nfile = \"d.qcow2\"\n\
             id = \"11111111-2222-3333-4444-555555555556\"\nnbd = {{ socket = \"/s\", export = \"e\", size_bytes = 5 }}\n\
             [[network]]\nname = \"n\"\n[[network]]\nmac = \"52:54:00:00:00:01\"\n\
             segment = \"11111111-2222-3333-4444-555555555557\"\n"
        );
        let config = parse(&text).unwrap();
        assert_eq!(config.disks[0].format(), Some(DiskFormat::Vhdx));
        assert_eq!(config.disks[1].format(), Some(DiskFormat::Overlay));
        assert_eq!(config.mac(0), "52:54:00:55:55:55");
        assert_eq!(config.mac(1), "52:54:00:00:00:01");
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_rule() {
        assert!(
            parse(&format!("{HEAD}generation = 3\n"))
                .unwrap_err()
                .contains("generation must be 1 or 2")
        );
        let text = format!("{HEAD}generation = 1\n[[network]]\nmac = \"52:54:00:0:00:001\"\n");
        assert!(parse(&text).unwrap_err().contains("six hexadecimal octets"));
        let text = format!(
            "{HEAD}generation = 1\n[[network]]\nname = \"n\"\nsegment = \"11111111-2222-3333-4444-555555555557\"\n"
        );
        assert!(parse(&text).unwrap_err().contains("not both"));
        let text = format!(
            "{HEAD}generation = 1\n[[disk]]\nfile = \"a\"\nnbd = {{ socket = \"/s\", export = \"e\", size_bytes = 5 }}\n"
        );
        assert!(parse(&text).unwrap_err().contains("needs an id"));
    }
}
