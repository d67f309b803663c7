//! What WMI and the volumes tell for the checks before protection.
//!
//! The images are not looked into: a handle on one that is open at the wrong instant would keep its VM from starting. So
//! what their first sectors say is unknown.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::host::{Host, HostError, Instance};
use super::jobs::failed;
use super::names::{
    HARD_DISK, IDE_CONTROLLER, PASS_THROUGH, RESOURCE, SCSI_CONTROLLER, STORAGE, USER_CHECKPOINT,
    instance_id, pair,
};
use super::survey::{self, Machine};
use crate::{DiskParticulars, Generation, HypervisorError, Particulars, Presence};

/// Of all VMs.
pub(super) fn all(host: &dyn Host) -> Result<Vec<Particulars>, HypervisorError> {
    let mut users: HashMap<PathBuf, usize> = HashMap::new();
    let machines = survey::machines(host)?;
    let mut listed = Vec::new();
    for machine in machines {
        let list = |class: &str| {
            host.associated(&machine.settings.path, class)
                .map_err(|error| failed(&format!("list disks of vm {}", machine.vm.name), error))
        };
        let (storage, resources) = (list(STORAGE)?, list(RESOURCE)?);
        for file in storage.iter().filter_map(file) {
            *users.entry(file).or_default() += 1;
        }
        listed.push((machine, storage, resources));
    }
    let all = listed.iter().map(|(machine, storage, resources)| {
        let files = storage
            .iter()
            .filter_map(|one| Some(image(machine, one, &file(one)?, resources, &users)));
        let host_disks = resources
            .iter()
            .filter(|one| one.text("ResourceSubType") == PASS_THROUGH)
            .map(|one| DiskParticulars {
                name: one.text("ElementName").to_owned(),
                controller: controller(resources, one),
                pass_through: Presence::Present,
                ..DiskParticulars::default()
            });
        Particulars {
            disks: files.chain(host_disks).collect(),
            ..machine_alone(host, machine)
        }
    });
    Ok(all.collect())
}

fn machine_alone(host: &dyn Host, machine: &Machine) -> Particulars {
    let (settings, generation) = (&machine.settings, machine.vm.generation);
    let guest = host.associated(&machine.path, "Msvm_KvpExchangeComponent");
    let said = |name: &str| {
        let found = guest.as_ref().ok().and_then(|found| found.first());
        found
            .and_then(|one| pair(one.texts("GuestIntrinsicExchangeItems"), name))
            .unwrap_or_default()
    };
    let security = host.associated(&settings.path, "Msvm_SecuritySettingData");
    Particulars {
        os_name: said("OSName"),
        os_version: said("OSVersion"),
        architecture: architecture(&said("ProcessorArchitecture")).to_owned(),
        secure_boot: match generation {
            // A BIOS has none.
            Generation::One => Presence::NotPresent,
            Generation::Two if settings.properties.contains_key("SecureBootEnabled") => {
                settings.is("SecureBootEnabled").into()
            }
            Generation::Two => Presence::Unknown,
        },
        virtual_tpm: match security.as_ref().map(|found| found.first()) {
            Ok(Some(security)) => security.is("TpmEnabled").into(),
            _ => Presence::Unknown,
        },
        fibre_channel: there(&host.associated(&settings.path, "Msvm_SyntheticFcPortSettingData")),
        checkpoints: machine
            .checkpoints(host, USER_CHECKPOINT)
            .map_or(Presence::Unknown, |found| (!found.is_empty()).into()),
        ..Particulars::unknown(machine.vm.id)
    }
}

fn there(found: &Result<Vec<Instance>, HostError>) -> Presence {
    found
        .as_ref()
        .map_or(Presence::Unknown, |found| (!found.is_empty()).into())
}

/// As guests say it: Windows by the number of its own, Linux as `uname -m` does.
fn architecture(said: &str) -> &str {
    match said {
        "0" => "x86",
        "9" => "x86_64",
        "12" => "aarch64",
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => "",
        "i386" | "i486" | "i586" | "i686" => "x86",
        name => name,
    }
}

/// The image of a disk; none of a drive for CDs, and of one without a disk.
fn file(storage: &Instance) -> Option<PathBuf> {
    let disk = storage.text("ResourceSubType") == HARD_DISK;
    let first = storage.texts("HostResource").first().filter(|_| disk);
    first.map(PathBuf::from)
}

fn image(
    machine: &Machine,
    storage: &Instance,
    file: &Path,
    resources: &[Instance],
    users: &HashMap<PathBuf, usize>,
) -> DiskParticulars {
    let known = machine
        .disks
        .iter()
        .find(|one| one.settings == storage.text("InstanceID"));
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    let format = match extension.to_lowercase().as_str() {
        "vhdx" | "avhdx" => "VHDX",
        "vhd" | "avhd" => "VHD",
        _ => "",
    };
    let shared = storage.is("PersistentReservationsSupported")
        || users.get(file).is_some_and(|users| *users > 1);
    let mut disk = DiskParticulars {
        id: known.map(|one| one.id),
        name: survey::file_name(file),
        format: format.to_owned(),
        controller: controller(resources, storage),
        shared: shared.into(),
        pass_through: Presence::NotPresent,
        ..DiskParticulars::default()
    };
    disk.place(file);
    disk
}

/// Of what a disk hangs on: it, a drive, or nothing that is known.
fn controller(resources: &[Instance], disk: &Instance) -> String {
    let mut at = disk;
    for _ in 0..3 {
        match at.text("ResourceSubType") {
            IDE_CONTROLLER => return "IDE".to_owned(),
            SCSI_CONTROLLER => return "SCSI".to_owned(),
            _ => {}
        }
        let above = instance_id(at.text("Parent"));
        let above = above.and_then(|id| resources.iter().find(|one| one.text("InstanceID") == id));
        let Some(above) = above else {
            break;
        };
        at = above;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::architecture;

    #[test]
    fn guests_say_their_architecture_in_words_or_as_a_number_of_windows() {
        for (said, expected) in [
            ("0", "x86"),
            ("9", "x86_64"),
            ("12", "aarch64"),
            ("6", ""),
            ("", ""),
            ("x86_64", "x86_64"),
            ("i686", "x86"),
        ] {
            assert_eq!(architecture(said), expected, "{said:?}");
        }
    }
}
