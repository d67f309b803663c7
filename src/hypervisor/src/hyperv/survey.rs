//! What a host has: VMs with disks and adapters, as WMI and virtdisk tell it.
//!
//! A disk is known by its virtual disk id, which virtdisk reads out of the file; never by its path, which every checkpoint
//! changes. What can't be read becomes a finding of its VM.

use std::path::PathBuf;

use uuid::Uuid;

use super::host::{CIMV2, CLUSTER, Host, Instance, NO_NAMESPACE, VIRTUALIZATION};
use super::jobs::failed;
use super::names::{
    COMPUTER, CONNECTION, HARD_DISK, IDE_CONTROLLER, PASS_THROUGH, PORT, REALIZED, RESOURCE,
    SCSI_CONTROLLER, SETTINGS, STORAGE, instance_id, made_as, pair, version, with_colons,
};
use crate::{
    DiskId, ErrorKind, Finding, Generation, HypervisorError, NetworkAdapter, PowerState,
    VirtualDisk, VirtualMachine, VmId,
};

/// `EnabledState`.
pub(super) const OFF: i64 = 3;
pub(super) const SAVED: i64 = 6;
/// RCT needs this configuration version.
const TRACKED_SINCE: (u32, u32) = (6, 2);

/// Where a disk hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// IDE before SCSI: a VM of generation 1 starts from IDE.
    pub scsi: bool,
    pub controller: u32,
    pub slot: u32,
}

/// A file of a disk.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub id: DiskId,
    pub file: PathBuf,
    pub size_bytes: u64,
    pub place: Place,
    /// `InstanceID` of its settings.
    pub settings: String,
}

impl Attached {
    /// RCT works on VHDX only.
    pub fn is_vhd(&self) -> bool {
        let extension = self.file.extension().unwrap_or_default();
        extension.eq_ignore_ascii_case("vhd") || extension.eq_ignore_ascii_case("avhd")
    }
}

/// A VM with what the driver needs to work on it.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub vm: VirtualMachine,
    /// Of its `Msvm_ComputerSystem`.
    pub path: String,
    pub enabled_state: i64,
    /// Realized settings.
    pub settings: Instance,
    pub disks: Vec<Attached>,
}

impl Machine {
    /// Whether checkpoints can become reference points: else it is checkpoint and compare.
    pub fn can_track(&self) -> bool {
        version(self.settings.text("Version")) >= TRACKED_SINCE
            && !self.disks.iter().any(Attached::is_vhd)
    }

    /// All settings of the VM of one kind: checkpoints of users, or of backups.
    pub fn checkpoints(
        &self,
        host: &dyn Host,
        kind: &str,
    ) -> Result<Vec<Instance>, HypervisorError> {
        let all = host
            .associated(&self.path, SETTINGS)
            .map_err(|error| failed(&format!("list checkpoints of vm {}", self.vm.name), error))?;
        Ok(all
            .into_iter()
            .filter(|one| one.text("VirtualSystemType") == kind)
            .collect())
    }
}

/// The host's own facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostSurvey {
    pub name: String,
    pub operating_system: String,
    pub version: String,
    /// Name of the failover cluster that it is a node of.
    pub cluster: Option<String>,
    pub disk_folder: Option<PathBuf>,
}

/// Refuses what is no Windows Server with Hyper-V.
pub(super) fn host(host: &dyn Host) -> Result<HostSurvey, HypervisorError> {
    let step = "look at the host";
    let first = |namespace, class| {
        let all = host
            .instances(namespace, class)
            .map_err(|error| failed(step, error))?;
        all.into_iter()
            .next()
            .ok_or_else(|| HypervisorError::new(ErrorKind::Protocol, format!("{step}: no {class}")))
    };
    let system = first(CIMV2, "Win32_OperatingSystem")?;
    let caption = system.text("Caption").trim().to_owned();
    if system.number("ProductType") == Some(1) {
        return Err(HypervisorError::new(
            ErrorKind::Configuration,
            format!(
                "{step}: {caption} is a client edition, whose Hyper-V is not supported; use Windows Server 2016 or later"
            ),
        ));
    }
    let computer = first(CIMV2, "Win32_ComputerSystem")?;
    let service = first(
        VIRTUALIZATION,
        "Msvm_VirtualSystemManagementServiceSettingData",
    )?;
    let cluster = match host.instances(CLUSTER, "MSCluster_Cluster") {
        Ok(clusters) => clusters.first().map(|one| one.text("Name").to_owned()),
        Err(error) if error.code == NO_NAMESPACE => None,
        Err(error) => return Err(failed(step, error)),
    };
    let short = computer.text("DNSHostName");
    let domain = computer.text("Domain");
    let folder = service.text("DefaultVirtualHardDiskPath");
    Ok(HostSurvey {
        name: if computer.is("PartOfDomain") && !domain.is_empty() {
            format!("{short}.{domain}")
        } else {
            short.to_owned()
        },
        operating_system: caption,
        version: system.text("Version").to_owned(),
        cluster,
        disk_folder: (!folder.is_empty()).then(|| PathBuf::from(folder)),
    })
}

/// All VMs, by name.
pub(super) fn machines(host: &dyn Host) -> Result<Vec<Machine>, HypervisorError> {
    let mut machines = Vec::new();
    for computer in computers(host)? {
        machines.extend(machine(host, &computer)?);
    }
    // A GUID of Hyper-V's own wins over one that stands in somebody's notes.
    let own: Vec<String> = machines.iter().map(|one| own_id(&one.path)).collect();
    machines.retain(|one| {
        let id = one.vm.id.to_string();
        own_id(&one.path) == id || !own.contains(&id)
    });
    machines.sort_by(|a, b| a.vm.name.cmp(&b.vm.name).then(a.vm.id.cmp(&b.vm.id)));
    Ok(machines)
}

/// One VM.
pub(super) fn find(host: &dyn Host, vm: VmId, doing: &str) -> Result<Machine, HypervisorError> {
    machines(host)?
        .into_iter()
        .find(|machine| machine.vm.id == vm)
        .ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::VmNotFound,
                format!("{doing} vm {vm}: this host has no such vm"),
            )
        })
}

/// The VMs' own objects; the host has one of the same class.
pub(super) fn computers(host: &dyn Host) -> Result<Vec<Instance>, HypervisorError> {
    let all = host
        .instances(VIRTUALIZATION, COMPUTER)
        .map_err(|error| failed("list the virtual machines", error))?;
    Ok(all
        .into_iter()
        .filter(|one| one.text("Caption") == "Virtual Machine")
        .collect())
}

/// The key `Name` in a computer's path, in small letters.
fn own_id(path: &str) -> String {
    path.rsplit_once(",Name=\"")
        .map(|(_, name)| name.trim_end_matches('"').to_lowercase())
        .unwrap_or_default()
}

/// `None` when it went meanwhile.
fn machine(host: &dyn Host, computer: &Instance) -> Result<Option<Machine>, HypervisorError> {
    let name = computer.text("ElementName").to_owned();
    let step = format!("read the settings of vm {name}");
    let all = match host.associated(&computer.path, SETTINGS) {
        Ok(all) => all,
        Err(error) if error.code == super::host::NOT_FOUND => return Ok(None),
        Err(error) => return Err(failed(&step, error)),
    };
    let Some(settings) = all
        .into_iter()
        .find(|one| one.text("VirtualSystemType") == REALIZED)
    else {
        return Ok(None);
    };
    let own: Option<Uuid> = computer.text("Name").parse().ok();
    let Some(id) = made_as(settings.texts("Notes")).or(own) else {
        return Ok(None);
    };
    let mut findings = Vec::new();
    let mut disks = disks(host, &settings, &mut findings)?;
    disks.sort_by_key(|disk| disk.place);
    let quantity = |class: &str| -> Result<u64, HypervisorError> {
        let found = host
            .associated(&settings.path, class)
            .map_err(|error| failed(&step, error))?;
        let number = found.first().and_then(|one| one.number("VirtualQuantity"));
        Ok(number.and_then(|one| u64::try_from(one).ok()).unwrap_or(0))
    };
    let generation = match settings.text("VirtualSystemSubType").rsplit(':').next() {
        Some("2") => Generation::Two,
        _ => Generation::One,
    };
    let enabled_state = computer.number("EnabledState").unwrap_or_default();
    let vm = VirtualMachine {
        id: VmId(id),
        generation,
        processors: u32::try_from(quantity("Msvm_ProcessorSettingData")?).unwrap_or(0),
        memory_bytes: quantity("Msvm_MemorySettingData")? << 20,
        os_type: os_type(host, computer),
        power_state: power_state(enabled_state),
        disks: disks
            .iter()
            .enumerate()
            .map(|(index, disk)| VirtualDisk {
                id: disk.id,
                name: file_name(&disk.file),
                size_bytes: disk.size_bytes,
                operating_system: index == 0,
            })
            .collect(),
        network_adapters: adapters(host, &settings)?,
        findings,
        name,
    };
    Ok(Some(Machine {
        vm,
        path: computer.path.clone(),
        enabled_state,
        settings,
        disks,
    }))
}

/// A saved VM runs no code either.
pub(super) fn power_state(enabled_state: i64) -> PowerState {
    match enabled_state {
        OFF | SAVED => PowerState::Off,
        _ => PowerState::Running,
    }
}

/// File name of a path as Windows or, in tests, Linux writes it.
pub(super) fn file_name(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    text.rsplit(['\\', '/'])
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// From the guest's integration services; empty when they don't run.
fn os_type(host: &dyn Host, computer: &Instance) -> String {
    let found = host.associated(&computer.path, "Msvm_KvpExchangeComponent");
    let name = found.ok().and_then(|found| {
        let items = found.first()?.texts("GuestIntrinsicExchangeItems");
        pair(items, "OSName")
    });
    match name {
        Some(name) if name.contains("Windows") => "Windows".to_owned(),
        Some(name) if !name.trim().is_empty() => "Linux".to_owned(),
        _ => String::new(),
    }
}

/// Disks of a VM's or a checkpoint's settings.
pub(super) fn disks(
    host: &dyn Host,
    settings: &Instance,
    findings: &mut Vec<Finding>,
) -> Result<Vec<Attached>, HypervisorError> {
    let step = format!("list the disks of {}", settings.text("ElementName"));
    let list = |class: &str| {
        host.associated(&settings.path, class)
            .map_err(|error| failed(&step, error))
    };
    let resources = list(RESOURCE)?;
    for resource in &resources {
        if resource.text("ResourceSubType") == PASS_THROUGH {
            findings.push(finding(
                "PassThroughDisk",
                "the vm has a disk that is a disk of the host".to_owned(),
                "a physical disk was attached to it",
                "convert it to a VHDX, or detach it",
                true,
            ));
        }
    }
    let mut disks = Vec::new();
    for storage in list(STORAGE)? {
        if storage.text("ResourceSubType") != HARD_DISK {
            continue;
        }
        let Some(file) = storage.texts("HostResource").first().map(PathBuf::from) else {
            continue;
        };
        if storage.is("PersistentReservationsSupported") {
            findings.push(finding(
                "SharedDisk",
                format!("{} is shared between vms", file.display()),
                "the disk has persistent reservations, for a cluster of guests",
                "protect vms with disks of their own only",
                true,
            ));
        }
        match host.open_disk(&file).and_then(|disk| disk.facts()) {
            Ok(facts) => disks.push(Attached {
                id: DiskId(facts.id),
                size_bytes: facts.size_bytes,
                place: place(&resources, &storage),
                settings: storage.text("InstanceID").to_owned(),
                file,
            }),
            Err(error) => findings.push(finding(
                "DiskUnreadable",
                format!("{} can't be opened: {error}", file.display()),
                "the file is gone, damaged, encrypted, or out of reach of the engine's account",
                "look at the file on the host",
                true,
            )),
        }
    }
    Ok(disks)
}

/// Disk settings ─► drive (slot) ─► controller.
fn place(resources: &[Instance], storage: &Instance) -> Place {
    let parent = |of: &Instance| {
        let id = instance_id(of.text("Parent"))?;
        resources.iter().find(|one| one.text("InstanceID") == id)
    };
    let drive = parent(storage);
    let controller = drive.and_then(parent);
    let kind = controller.map_or("", |one| one.text("ResourceSubType"));
    // IDE controllers have numbers; those of SCSI count as they are listed.
    let number = match (kind, controller) {
        (IDE_CONTROLLER, Some(one)) => one.text("Address").parse().unwrap_or(0),
        (_, Some(one)) => resources
            .iter()
            .filter(|other| other.text("ResourceSubType") == SCSI_CONTROLLER)
            .position(|other| other.text("InstanceID") == one.text("InstanceID"))
            .and_then(|at| u32::try_from(at).ok())
            .unwrap_or(0),
        _ => 0,
    };
    Place {
        scsi: kind != IDE_CONTROLLER,
        controller: number,
        slot: drive
            .and_then(|one| one.text("AddressOnParent").parse().ok())
            .unwrap_or(0),
    }
}

fn adapters(host: &dyn Host, settings: &Instance) -> Result<Vec<NetworkAdapter>, HypervisorError> {
    let step = format!("list the adapters of {}", settings.text("ElementName"));
    let list = |class: &str| {
        host.associated(&settings.path, class)
            .map_err(|error| failed(&step, error))
    };
    let connections = list(CONNECTION)?;
    let mut adapters = Vec::new();
    for port in list(PORT)? {
        let id = port.text("InstanceID");
        let link = connections
            .iter()
            .find(|one| instance_id(one.text("Parent")).as_deref() == Some(id));
        let switch = link.and_then(|link| link.texts("HostResource").first());
        adapters.push(NetworkAdapter {
            id: resource_name(id),
            network_name: match switch {
                Some(path) => host
                    .object(path)
                    .map(|switch| switch.text("ElementName").to_owned())
                    // A switch that is gone is a cable that is out.
                    .unwrap_or_default(),
                None => String::new(),
            },
            mac_address: with_colons(port.text("Address")),
        });
    }
    Ok(adapters)
}

/// The adapter's own GUID, which outlives checkpoints and restarts.
fn resource_name(id: &str) -> String {
    super::names::resource_tail(id).to_owned()
}

fn finding(
    code: &'static str,
    summary: String,
    causes: &str,
    action: &str,
    critical: bool,
) -> Finding {
    Finding {
        code,
        summary,
        possible_causes: causes.to_owned(),
        recommended_action: action.to_owned(),
        critical,
    }
}
