//! VMs that are made, made again, and removed: `DefineSystem` and `AddResourceSettings`.
//!
//! Hyper-V gives a new VM a GUID of its own. The one that the VM is known by everywhere else stands in its notes, and the
//! survey reads it there. The notes also say that the VM is ours to delete, where its folder is, and until the last step
//! that it is unfinished: one that a dead process left so is made anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use disk_image::{CreateOptions, DiskImage, Format};

use super::host::{Host, Instance, VIRTUALIZATION, Value};
use super::jobs::{self, failed};
use super::names::{
    DISK_DRIVE, ETHERNET_CONNECTION, ETHERNET_PORT, HARD_DISK, IDE_CONTROLLER, MADE_AS, MADE_IN,
    RESOURCE, SCSI_CONTROLLER, SETTINGS, STORAGE, SWITCH, UNFINISHED, note,
};
use super::points::service;
use super::survey::{self, Machine};
use crate::{
    DiskSource, ErrorKind, Generation, HypervisorError, LostVirtualMachine, NewNetwork,
    NewVirtualMachine, PowerState, Stop, VmId,
};

const PATIENCE: Duration = Duration::from_secs(300);
const MANAGEMENT: &str = "Msvm_VirtualSystemManagementService";
/// `ResourceType`.
const SCSI: i64 = 6;
const PORT_TYPE: i64 = 10;
const DRIVE: i64 = 17;
const FILE: i64 = 31;
const LINK: i64 = 33;

/// What a VM shall be.
struct Plan<'a> {
    id: VmId,
    name: &'a str,
    generation: Generation,
    memory_bytes: u64,
    processors: u32,
    folder: &'a Path,
    /// Image files, the operating system disk first.
    disks: Vec<PathBuf>,
    networks: &'a [NewNetwork],
}

/// See [`crate::Hypervisor::create`].
pub(super) fn create(host: &dyn Host, vm: &NewVirtualMachine) -> Result<(), HypervisorError> {
    let disks = vm.disks.iter().map(|disk| match &disk.source {
        DiskSource::Image(file) => Ok(file.clone()),
        DiskSource::Nbd { .. } => Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("create vm {}: a Hyper-V host can't start a vm above a served recovery point; use a host with the qemu driver or Azure", vm.name),
        )),
    });
    let plan = Plan {
        id: vm.id,
        name: &vm.name,
        generation: vm.generation,
        memory_bytes: vm.memory_bytes,
        processors: vm.processors,
        folder: &vm.folder,
        disks: disks.collect::<Result<_, _>>()?,
        networks: &vm.networks,
    };
    let there = survey::machines(host)?;
    if let Some(known) = there.iter().find(|one| one.vm.id == vm.id) {
        if !is_unfinished(known) {
            return Ok(());
        }
        destroy(host, known)?;
    }
    make(host, &plan)
}

/// See [`crate::Hypervisor::restore`].
pub(super) fn restore(host: &dyn Host, vm: &LostVirtualMachine) -> Result<(), HypervisorError> {
    let there = survey::machines(host)?;
    let known = there.iter().find(|one| one.vm.id == vm.id);
    if let Some(known) = known.filter(|known| !is_unfinished(known)) {
        return refill(host, known, vm);
    }
    if let Some(unfinished) = known {
        destroy(host, unfinished)?;
    }
    let folder = survey::host(host)?.disk_folder.ok_or_else(|| {
        HypervisorError::new(
            ErrorKind::Configuration,
            format!("make vm {} again: the host has no default folder for virtual hard disks; set one in Hyper-V settings", vm.name),
        )
    })?;
    let folder = folder.join(vm.id.to_string());
    fs::create_dir_all(&folder).map_err(|error| io_error("make folder", &folder, error))?;
    let mut disks = Vec::new();
    for disk in &vm.disks {
        let file = folder.join(format!("{}.vhdx", disk.id));
        empty_disk(&file, disk.id.0, disk.size_bytes)?;
        disks.push(file);
    }
    make(
        host,
        &Plan {
            id: vm.id,
            name: &vm.name,
            generation: vm.generation,
            memory_bytes: vm.memory_bytes,
            processors: vm.processors,
            folder: &folder,
            disks,
            networks: &vm.networks,
        },
    )
}

/// Disks of a VM that is there whose files are gone: empty ones in their places, with their ids.
fn refill(
    host: &dyn Host,
    known: &Machine,
    vm: &LostVirtualMachine,
) -> Result<(), HypervisorError> {
    let step = format!("make the disks of vm {} again", vm.name);
    let missing: Vec<_> = vm
        .disks
        .iter()
        .filter(|disk| known.disks.iter().all(|one| one.id != disk.id))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if known.vm.power_state == PowerState::Running {
        return Err(HypervisorError::new(ErrorKind::VmRunning, step));
    }
    let storage = host
        .associated(&known.settings.path, STORAGE)
        .map_err(|error| failed(&step, error))?;
    for disk in missing {
        // Windows and, in tests, Linux paths.
        let wanted = |file: &str| file.rsplit(['\\', '/']).next() == Some(disk.name.as_str());
        let place = storage
            .iter()
            .filter_map(|one| one.texts("HostResource").first())
            .find(|file| wanted(file))
            .map(PathBuf::from)
            .ok_or_else(|| {
                HypervisorError::new(
                    ErrorKind::InvalidRequest,
                    format!("{step}: the vm has no place for {}; attach a disk of that name, or delete the vm", disk.name),
                )
            })?;
        if place.exists() {
            return Err(HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{step}: {} is there, but is not disk {}; move it away",
                    place.display(),
                    disk.id
                ),
            ));
        }
        empty_disk(&place, disk.id.0, disk.size_bytes)?;
    }
    Ok(())
}

/// See [`crate::Hypervisor::remove`]. Only what this driver made is ever deleted.
pub(super) fn remove(host: &dyn Host, vm: VmId) -> Result<(), HypervisorError> {
    let there = survey::machines(host)?;
    let Some(known) = there.iter().find(|one| one.vm.id == vm) else {
        return Ok(());
    };
    let notes = known.settings.texts("Notes");
    let Some(folder) = note(notes, MADE_IN).map(PathBuf::from) else {
        return Err(HypervisorError::new(
            ErrorKind::Refused,
            format!(
                "remove vm {}: it was not made by this engine; delete it in Hyper-V Manager if that is meant",
                known.vm.name
            ),
        ));
    };
    destroy(host, known)?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("delete folder", &folder, error))
        }
        _ => Ok(()),
    }
}

fn is_unfinished(machine: &Machine) -> bool {
    note(machine.settings.texts("Notes"), UNFINISHED).is_some()
}

fn destroy(host: &dyn Host, machine: &Machine) -> Result<(), HypervisorError> {
    if machine.enabled_state != survey::OFF {
        super::power::stop(host, machine.vm.id, Stop::TurnOff)?;
    }
    let arguments = vec![("AffectedSystem", Value::from(machine.path.as_str()))];
    jobs::call(
        host,
        &service(host, MANAGEMENT)?,
        "DestroySystem",
        arguments,
        PATIENCE,
    )
    .map(drop)
    .map_err(|error| error.context(format!("remove vm {}", machine.vm.name)))
}

/// An image that is there already with this id and size is one that an earlier try made.
fn empty_disk(file: &Path, id: uuid::Uuid, size_bytes: u64) -> Result<(), HypervisorError> {
    let fail = |error: disk_image::ImageError| {
        HypervisorError::with_source(
            ErrorKind::Io,
            format!("make disk {}", file.display()),
            error,
        )
    };
    if file.exists() {
        let found = DiskImage::open(file, disk_image::Access::ReadOnly).map_err(fail)?;
        if found.id() == Some(id) && found.virtual_size() == size_bytes {
            return Ok(());
        }
        return Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!(
                "make disk {}: another disk lies there; move it away",
                file.display()
            ),
        ));
    }
    let mut options = CreateOptions::new(Format::VhdxDynamic, size_bytes);
    options.id = Some(id);
    DiskImage::create(file, &options)
        .and_then(DiskImage::close)
        .map_err(fail)
}

fn make(host: &dyn Host, plan: &Plan<'_>) -> Result<(), HypervisorError> {
    make_steps(host, plan).map_err(|error| error.context(format!("make vm {}", plan.name)))
}

fn make_steps(host: &dyn Host, plan: &Plan<'_>) -> Result<(), HypervisorError> {
    let maker = Maker {
        host,
        service: service(host, MANAGEMENT)?,
    };
    // Before anything is made.
    let switches = plan
        .networks
        .iter()
        .map(|network| switch(host, network))
        .collect::<Result<Vec<_>, _>>()?;
    let own = [
        format!("{MADE_AS}{}", plan.id),
        format!("{MADE_IN}{}", plan.folder.display()),
    ];
    // One element of several lines.
    let notes = vec![format!("{}\n{UNFINISHED}", own.join("\n"))];
    let own = vec![own.join("\n")];
    let settings = Instance::new(SETTINGS)
        .with("ElementName", Value::from(plan.name))
        .with("Notes", Value::Texts(notes))
        .with(
            "ConfigurationDataRoot",
            Value::Text(plan.folder.display().to_string()),
        )
        .with(
            "VirtualSystemSubType",
            Value::Text(format!(
                "Microsoft:Hyper-V:SubType:{}",
                plan.generation.number()
            )),
        );
    let arguments = vec![("SystemSettings", Value::Embedded(settings))];
    let done = jobs::call(host, &maker.service, "DefineSystem", arguments, PATIENCE)?;
    let system = done.out.text("ResultingSystem").to_owned();
    let settings = maker
        .associated(&system, SETTINGS)?
        .into_iter()
        .next()
        .ok_or_else(|| HypervisorError::new(ErrorKind::Protocol, "DefineSystem: no settings"))?;
    let megabytes = i64::try_from(plan.memory_bytes.div_ceil(1 << 20)).unwrap_or(i64::MAX);
    maker.set_quantity(&settings, "Msvm_MemorySettingData", megabytes)?;
    maker.set_quantity(
        &settings,
        "Msvm_ProcessorSettingData",
        plan.processors.into(),
    )?;
    maker.attach(&settings, plan)?;
    for (network, switch) in plan.networks.iter().zip(switches) {
        maker.connect(&settings, network, switch)?;
    }
    let finished = settings.with("Notes", Value::Texts(own));
    maker
        .call(
            "ModifySystemSettings",
            vec![("SystemSettings", Value::Embedded(finished))],
        )
        .map(drop)
}

/// The path of the switch to connect to.
fn switch(host: &dyn Host, network: &NewNetwork) -> Result<Option<String>, HypervisorError> {
    if network.segment.is_some() {
        return Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            "private segments between recovered vms are not made on Hyper-V hosts",
        ));
    }
    let Some(name) = &network.network_name else {
        return Ok(None);
    };
    let all = host
        .instances(VIRTUALIZATION, SWITCH)
        .map_err(|error| failed("list virtual switches", error))?;
    let found = all.into_iter().find(|one| one.text("ElementName") == name);
    found.map(|one| Some(one.path)).ok_or_else(|| {
        HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!(
                "the host has no virtual switch {name}; make it, or map the network to another one"
            ),
        )
    })
}

struct Maker<'a> {
    host: &'a dyn Host,
    service: String,
}

impl Maker<'_> {
    fn associated(&self, path: &str, class: &str) -> Result<Vec<Instance>, HypervisorError> {
        self.host
            .associated(path, class)
            .map_err(|error| failed(&format!("look for {class}"), error))
    }

    fn call(
        &self,
        method: &str,
        arguments: Vec<(&'static str, Value)>,
    ) -> Result<jobs::Done, HypervisorError> {
        jobs::call(self.host, &self.service, method, arguments, PATIENCE)
    }

    fn set_quantity(
        &self,
        settings: &Instance,
        class: &str,
        quantity: i64,
    ) -> Result<(), HypervisorError> {
        let found = self.associated(&settings.path, class)?.into_iter().next();
        let changed = found
            .ok_or_else(|| HypervisorError::new(ErrorKind::Protocol, format!("no {class}")))?
            .with("VirtualQuantity", Value::Number(quantity));
        let changed = vec![("ResourceSettings", Value::EmbeddedAll(vec![changed]))];
        self.call("ModifyResourceSettings", changed).map(drop)
    }

    /// Adds a resource; gives its path.
    fn add(&self, settings: &Instance, resource: Instance) -> Result<String, HypervisorError> {
        let class = resource.class.clone();
        let done = self.call(
            "AddResourceSettings",
            vec![
                ("AffectedConfiguration", Value::from(settings.path.as_str())),
                ("ResourceSettings", Value::EmbeddedAll(vec![resource])),
            ],
        )?;
        let made = jobs::results(self.host, &done, "ResultingResourceSettings", &class)?;
        made.into_iter().next().map(|one| one.path).ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::Protocol,
                format!("AddResourceSettings: no {class} came of it"),
            )
        })
    }

    /// Generation 1 starts from its first IDE controller; all other disks are on SCSI.
    fn attach(&self, settings: &Instance, plan: &Plan<'_>) -> Result<(), HypervisorError> {
        let ide = match plan.generation {
            Generation::One => self
                .associated(&settings.path, RESOURCE)?
                .into_iter()
                .find(|one| {
                    one.text("ResourceSubType") == IDE_CONTROLLER && one.text("Address") == "0"
                })
                .map(|one| one.path),
            Generation::Two => None,
        };
        let mut scsi = None;
        let mut slot = 0;
        for (index, file) in plan.disks.iter().enumerate() {
            let (controller, place) = match (&ide, index) {
                (Some(ide), 0) => (ide.clone(), 0),
                _ => {
                    let controller = match &scsi {
                        Some(controller) => String::clone(controller),
                        None => {
                            let wanted = resource(RESOURCE, SCSI, SCSI_CONTROLLER);
                            scsi.insert(self.add(settings, wanted)?).clone()
                        }
                    };
                    slot += 1;
                    (controller, slot - 1)
                }
            };
            let drive = resource(RESOURCE, DRIVE, DISK_DRIVE)
                .with("Parent", Value::Text(controller))
                .with("AddressOnParent", Value::Text(place.to_string()));
            let drive = self.add(settings, drive)?;
            let disk = resource(STORAGE, FILE, HARD_DISK)
                .with("Parent", Value::Text(drive))
                .with(
                    "HostResource",
                    Value::Texts(vec![file.display().to_string()]),
                );
            self.add(settings, disk)?;
        }
        Ok(())
    }

    fn connect(
        &self,
        settings: &Instance,
        network: &NewNetwork,
        switch: Option<String>,
    ) -> Result<(), HypervisorError> {
        let mut port = resource(super::names::PORT, PORT_TYPE, ETHERNET_PORT);
        if let Some(mac) = &network.mac_address {
            port = port.with("StaticMacAddress", Value::Bool(true)).with(
                "Address",
                Value::Text(mac.replace([':', '-'], "").to_uppercase()),
            );
        }
        let port = self.add(settings, port)?;
        let Some(switch) = switch else {
            return Ok(());
        };
        let link = resource(super::names::CONNECTION, LINK, ETHERNET_CONNECTION)
            .with("Parent", Value::Text(port))
            .with("HostResource", Value::Texts(vec![switch]));
        self.add(settings, link).map(drop)
    }
}

fn resource(class: &str, kind: i64, subtype: &str) -> Instance {
    Instance::new(class)
        .with("ResourceType", Value::Number(kind))
        .with("ResourceSubType", Value::from(subtype))
}

fn io_error(doing: &str, path: &Path, error: io::Error) -> HypervisorError {
    HypervisorError::with_source(ErrorKind::Io, format!("{doing} {}", path.display()), error)
}
