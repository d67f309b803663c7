//! What the checks before protection go by, as the protocol describes it.

use std::collections::HashMap;

use disk_image::boot::{Guest, Look, Table};
use engine_protocol::v1;
use hypervisor::{DiskParticulars, Particulars, Presence, VmId};

/// Of VMs by id.
pub type ByVm = HashMap<VmId, v1::VmFacts>;

/// Of all that a driver could tell.
pub fn by_vm(particulars: &[Particulars]) -> ByVm {
    let of = |particulars: &Particulars| (particulars.vm, facts(particulars));
    particulars.iter().map(of).collect()
}

fn facts(found: &Particulars) -> v1::VmFacts {
    v1::VmFacts {
        os_name: found.os_name.clone(),
        os_version: found.os_version.clone(),
        architecture: found.architecture.clone(),
        secure_boot: presence(found.secure_boot).into(),
        virtual_tpm: presence(found.virtual_tpm).into(),
        fibre_channel: presence(found.fibre_channel).into(),
        checkpoints: presence(found.checkpoints).into(),
        disks: found.disks.iter().map(disk).collect(),
    }
}

fn disk(found: &DiskParticulars) -> v1::DiskFacts {
    // Without an answer of the volume its name says nothing.
    let free = found.volume_free_bytes;
    v1::DiskFacts {
        id: found.id.map(|id| id.to_string()).unwrap_or_default(),
        name: found.name.clone(),
        format: found.format.clone(),
        controller: found.controller.clone(),
        logical_sector_bytes: found.logical_sector_bytes,
        shared: presence(found.shared).into(),
        pass_through: presence(found.pass_through).into(),
        volume: free.map(|_| found.volume.clone()).unwrap_or_default(),
        volume_free_bytes: free.unwrap_or_default(),
        look: found.look.as_ref().map(look),
    }
}

fn look(found: &Look) -> v1::DiskLook {
    use v1::disk_look::Table as Told;
    v1::DiskLook {
        table: match found.table {
            Table::None => Told::None,
            Table::Mbr => Told::Mbr,
            Table::Gpt => Told::Gpt,
            Table::Damaged => Told::Damaged,
        }
        .into(),
        partitions: found.partitions,
        dynamic_disk: found.dynamic_disk,
        bitlocker: found.bitlocker,
        luks: found.luks,
        lvm: found.lvm,
        efi_system_partition: found.efi_system_partition,
        guest: match found.guest {
            Guest::Linux => "Linux",
            Guest::Windows => "Windows",
            Guest::Both | Guest::Unknown => "",
        }
        .to_owned(),
    }
}

fn presence(found: Presence) -> v1::Presence {
    match found {
        Presence::Unknown => v1::Presence::Unknown,
        Presence::NotPresent => v1::Presence::NotPresent,
        Presence::Present => v1::Presence::Present,
    }
}
