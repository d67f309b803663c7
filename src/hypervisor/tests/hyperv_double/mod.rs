//! A Hyper-V host in memory with real VHDX files: what the driver may rely on, and no more. Its contract, as Microsoft
//! documents it or as others found it on real hosts:
//!
//! - methods give 4096 and a job; a job runs for a while before it is done, and carries its own error;
//! - a recovery checkpoint freezes the files of all disks and gives the VM differencing children; one at a time;
//! - `ConvertToReferencePoint` takes recovery checkpoints only, merges the children, and gives RCT ids of the frozen instant;
//!   `VirtualDiskIdentifiers[]` names disk settings, not paths;
//! - RCT knows ids of reference points that exist; others are 0xC03A0029, a disk that is not tracked 0xC03A002A;
//! - configuration versions below 6.2 have no recovery checkpoints;
//! - files that somebody holds open can't be merged, and a VM on them does not start;
//! - an application-consistent checkpoint fails when the guest can't; a guest may ignore a shutdown;
//! - states that don't fit are 32775, missing objects 32773 or `WBEM_E_NOT_FOUND`, missing files 32779;
//! - `DefineSystem` gives GUIDs of its own.

mod disks;
mod methods;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use disk_image::{Access, CreateOptions, DiskImage, FolderGate, Format};
use hypervisor::hyperv::host::{
    CLUSTER, Host, HostError, Instance, NO_NAMESPACE, NOT_FOUND, OpenDisk, SHARING_VIOLATION, Value,
};
use hypervisor::{DiskId, Extent, VmId};
use uuid::Uuid;

pub const REALIZED: &str = "Microsoft:Hyper-V:System:Realized";
pub const RECOVERY: &str = "Microsoft:Hyper-V:Snapshot:Recovery";
pub const USER: &str = "Microsoft:Hyper-V:Snapshot:Realized";
const MIB: u64 = 1 << 20;

/// What a test may turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The guest can't bring its applications to rest.
    pub no_application_points: bool,
    /// The guest ignores a wish to shut down.
    pub ignores_shutdown: bool,
    /// The next conversion to a reference point fails in its job.
    pub conversion_fails: bool,
    /// Call number, from now, at and after which the caller is dead: everything fails.
    pub dies_at: Option<u32>,
}

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Instance>,
    links: Vec<(String, String)>,
    /// Writes to each disk, by a count that only grows.
    log: HashMap<Uuid, Vec<(u64, Extent)>>,
    count: u64,
    /// Files that stand still since a count.
    frozen: HashMap<PathBuf, u64>,
    tracked: BTreeSet<Uuid>,
    /// Files that are attached, and how often.
    attached: HashMap<PathBuf, u32>,
    /// Machines that turn off at the next pause.
    going_off: Vec<String>,
    pub faults: Faults,
    pub changed: bool,
    pub client_edition: bool,
}

pub struct Double {
    pub state: Arc<Mutex<State>>,
    pub folder: tempfile::TempDir,
}

impl Double {
    pub fn new() -> Self {
        let double = Self {
            state: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
        };
        let folder = double.folder.path().display().to_string();
        let mut state = double.state();
        for class in [
            "Msvm_VirtualSystemSnapshotService",
            "Msvm_VirtualSystemReferencePointService",
            "Msvm_VirtualSystemManagementService",
        ] {
            let path = format!("{class}.Name=\"service\"");
            state.put(&path, Instance::new(class));
        }
        let settings = "Msvm_VirtualSystemManagementServiceSettingData";
        state.put(
            &format!("{settings}.InstanceID=\"settings\""),
            Instance::new(settings).with("DefaultVirtualHardDiskPath", Value::Text(folder)),
        );
        state.put(
            "Msvm_VirtualEthernetSwitch.Name=\"lan\"",
            Instance::new("Msvm_VirtualEthernetSwitch").with("ElementName", "lan".into()),
        );
        drop(state);
        double
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A VM of generation 2 that runs, with disks of 16 MiB on a SCSI controller and an adapter on switch "lan".
    pub fn running_vm(&self, name: &str, disks: usize, extension: &str, version: &str) -> VmId {
        let id = Uuid::new_v4();
        let vm = computer_path(&id.to_string());
        let mut state = self.state();
        let settings = state.define(&id.to_string(), name, 2, version, vec![]);
        state
            .object_mut(&vm)
            .properties
            .insert("EnabledState".to_owned(), Value::Number(2));
        let kvp = "<INSTANCE><PROPERTY NAME=\"Data\"><VALUE>Windows Server 2022</VALUE></PROPERTY>\
                   <PROPERTY NAME=\"Name\"><VALUE>OSName</VALUE></PROPERTY></INSTANCE>";
        let items = Value::Texts(vec![kvp.to_owned()]);
        state.component(
            &vm,
            "Msvm_KvpExchangeComponent",
            &[("GuestIntrinsicExchangeItems", items)],
        );
        let controller = state.resource(
            &settings,
            "Msvm_ResourceAllocationSettingData",
            "scsi",
            &[(
                "ResourceSubType",
                "Microsoft:Hyper-V:Synthetic SCSI Controller".into(),
            )],
        );
        for slot in 0..disks {
            let file = self
                .folder
                .path()
                .join(format!("{name}-{slot}.{extension}"));
            let format = if extension == "vhd" {
                Format::VhdDynamic
            } else {
                Format::VhdxDynamic
            };
            let options = CreateOptions::new(format, 16 * MIB);
            DiskImage::create(&file, &options).unwrap().close().unwrap();
            // In reverse, so that an order that is not looked at shows.
            let place = (disks - 1 - slot).to_string();
            let drive = state.resource(
                &settings,
                "Msvm_ResourceAllocationSettingData",
                &format!("drive{slot}"),
                &[
                    (
                        "ResourceSubType",
                        "Microsoft:Hyper-V:Synthetic Disk Drive".into(),
                    ),
                    ("Parent", Value::Text(controller.clone())),
                    ("AddressOnParent", Value::Text(place)),
                ],
            );
            state.resource(
                &settings,
                "Msvm_StorageAllocationSettingData",
                &format!("disk{slot}"),
                &[
                    (
                        "ResourceSubType",
                        "Microsoft:Hyper-V:Virtual Hard Disk".into(),
                    ),
                    ("Parent", Value::Text(drive)),
                    (
                        "HostResource",
                        Value::Texts(vec![file.display().to_string()]),
                    ),
                ],
            );
        }
        let port = state.resource(
            &settings,
            "Msvm_SyntheticEthernetPortSettingData",
            "nic",
            &[("Address", "00155D012AFE".into())],
        );
        state.resource(
            &settings,
            "Msvm_EthernetPortAllocationSettingData",
            "nic\\C",
            &[
                ("Parent", Value::Text(port)),
                (
                    "HostResource",
                    Value::Texts(vec!["Msvm_VirtualEthernetSwitch.Name=\"lan\"".to_owned()]),
                ),
            ],
        );
        VmId(id)
    }

    /// Gives a VM secure boot, a TPM, a disk of the host on its controller, and the second disk of another VM.
    pub fn furnish(&self, vm: VmId, other: VmId) {
        let mut state = self.state();
        let [settings, others] =
            [vm, other].map(|vm| state.settings_of(&computer_path(&vm.to_string())));
        let object = state.object_mut(&settings);
        let secure = ("SecureBootEnabled".to_owned(), Value::Bool(true));
        object.properties.extend([secure]);
        state.component(
            &settings,
            "Msvm_SecuritySettingData",
            &[("TpmEnabled", Value::Bool(true))],
        );
        let class = "Msvm_ResourceAllocationSettingData";
        let controller = state.linked(&settings, class)[0].path.clone();
        state.resource(
            &settings,
            class,
            "host disk",
            &[
                (
                    "ResourceSubType",
                    "Microsoft:Hyper-V:Physical Disk Drive".into(),
                ),
                ("ElementName", "Physical Disk Drive".into()),
                ("Parent", Value::Text(controller)),
            ],
        );
        let (_, file) = state.disk_files(&others)[1].clone();
        state.resource(
            &settings,
            "Msvm_StorageAllocationSettingData",
            "borrowed",
            &[
                (
                    "ResourceSubType",
                    "Microsoft:Hyper-V:Virtual Hard Disk".into(),
                ),
                (
                    "HostResource",
                    Value::Texts(vec![file.display().to_string()]),
                ),
            ],
        );
    }

    /// Writes as the guest would.
    pub fn write(
        &self,
        vm: VmId,
        disk: DiskId,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Result<(), HostError> {
        let mut state = self.state();
        let vm = computer_path(&vm.to_string());
        if state.object(&vm)?.number("EnabledState") != Some(2) {
            return Err(HostError::new(32775, "the guest does not run"));
        }
        let settings = state.settings_of(&vm);
        let file = state
            .disk_files(&settings)
            .into_iter()
            .map(|(_, file)| file)
            .find(|file| disks::id_of(file) == disk.0)
            .ok_or_else(|| HostError::new(NOT_FOUND, "no such disk"))?;
        let mut image = open(&file, Access::ReadWrite);
        let data = vec![byte; usize::try_from(length).unwrap()];
        image.write_at(&data, offset).unwrap();
        image.close().unwrap();
        state.count += 1;
        let count = state.count;
        state
            .log
            .entry(disk.0)
            .or_default()
            .push((count, Extent { offset, length }));
        Ok(())
    }

    /// Names of checkpoints of a kind.
    pub fn checkpoints(&self, kind: &str) -> Vec<String> {
        let state = self.state();
        let all = state.objects.values();
        all.filter(|one| one.text("VirtualSystemType") == kind)
            .map(|one| one.text("ElementName").to_owned())
            .collect()
    }

    /// How many objects there are of a class.
    pub fn count(&self, class: &str) -> usize {
        self.state()
            .objects
            .values()
            .filter(|one| one.class == class)
            .count()
    }

    /// Files of disks in the folder.
    pub fn files(&self, extension: &str) -> usize {
        let all = std::fs::read_dir(self.folder.path()).unwrap();
        all.filter(|one| {
            one.as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|end| end == extension)
        })
        .count()
    }
}

pub fn computer_path(id: &str) -> String {
    format!(
        "Msvm_ComputerSystem.CreationClassName=\"Msvm_ComputerSystem\",Name=\"{}\"",
        id.to_uppercase()
    )
}

fn open(file: &Path, access: Access) -> DiskImage {
    let gate = FolderGate::new([file.parent().unwrap()]).unwrap();
    DiskImage::open_with_parents(file, access, &gate).unwrap()
}

impl State {
    fn put(&mut self, path: &str, mut instance: Instance) -> String {
        path.clone_into(&mut instance.path);
        self.objects.insert(path.to_owned(), instance);
        path.to_owned()
    }

    pub fn object(&self, path: &str) -> Result<&Instance, HostError> {
        self.objects
            .get(path)
            .ok_or_else(|| HostError::new(NOT_FOUND, format!("no object {path}")))
    }

    fn object_mut(&mut self, path: &str) -> &mut Instance {
        self.objects.get_mut(path).unwrap()
    }

    /// Removes an object with all links.
    fn drop_object(&mut self, path: &str) {
        self.objects.remove(path);
        self.links.retain(|(from, to)| from != path && to != path);
    }

    fn link(&mut self, from: &str, to: &str) {
        self.links.push((from.to_owned(), to.to_owned()));
    }

    fn linked(&self, from: &str, class: &str) -> Vec<Instance> {
        self.links
            .iter()
            .filter(|(source, _)| source == from)
            .filter_map(|(_, to)| self.objects.get(to))
            .filter(|one| one.class == class)
            .cloned()
            .collect()
    }

    fn component(&mut self, vm: &str, class: &str, properties: &[(&str, Value)]) {
        let mut instance = Instance::new(class);
        for (name, value) in properties {
            instance = instance.with(name, value.clone());
        }
        let path = self.put(&format!("{class}.Name=\"{}\"", Uuid::new_v4()), instance);
        self.link(vm, &path);
    }

    /// A resource of settings; its id begins with that of the settings.
    fn resource(
        &mut self,
        settings: &str,
        class: &str,
        tail: &str,
        properties: &[(&str, Value)],
    ) -> String {
        let owner = self.objects[settings].text("InstanceID").to_owned();
        let id = format!("{owner}\\{tail}");
        let path = format!("{class}.InstanceID=\"{}\"", id.replace('\\', "\\\\"));
        let mut instance = Instance::new(class).with("InstanceID", Value::Text(id));
        for (name, value) in properties {
            instance = instance.with(name, value.clone());
        }
        self.put(&path, instance);
        self.link(settings, &path);
        path
    }

    /// A VM that is off, without disks; gives the path of its settings.
    fn define(
        &mut self,
        id: &str,
        name: &str,
        generation: u8,
        version: &str,
        notes: Vec<String>,
    ) -> String {
        let vm = computer_path(id);
        let computer = Instance::new("Msvm_ComputerSystem")
            .with("Caption", "Virtual Machine".into())
            .with("Name", Value::Text(id.to_uppercase()))
            .with("ElementName", name.into())
            .with("EnabledState", Value::Number(3));
        self.put(&vm, computer);
        let class = "Msvm_VirtualSystemSettingData";
        let key = format!("Microsoft:{}", id.to_uppercase());
        let settings = Instance::new(class)
            .with("InstanceID", Value::Text(key.clone()))
            .with("ElementName", name.into())
            .with("VirtualSystemType", REALIZED.into())
            .with(
                "VirtualSystemSubType",
                Value::Text(format!("Microsoft:Hyper-V:SubType:{generation}")),
            )
            .with("Version", version.into())
            .with("Notes", Value::Texts(notes));
        let settings = self.put(&format!("{class}.InstanceID=\"{key}\""), settings);
        self.link(&vm, &settings);
        for (class, quantity) in [
            ("Msvm_MemorySettingData", "1024"),
            ("Msvm_ProcessorSettingData", "2"),
        ] {
            // 64-bit numbers come as text.
            self.resource(
                &settings,
                class,
                class,
                &[("VirtualQuantity", quantity.into())],
            );
        }
        if generation == 1 {
            self.resource(
                &settings,
                "Msvm_ResourceAllocationSettingData",
                "ide0",
                &[
                    (
                        "ResourceSubType",
                        "Microsoft:Hyper-V:Emulated IDE Controller".into(),
                    ),
                    ("Address", "0".into()),
                ],
            );
        }
        let status = Value::Numbers(vec![2]);
        self.component(
            &vm,
            "Msvm_HeartbeatComponent",
            &[("OperationalStatus", status)],
        );
        self.component(&vm, "Msvm_ShutdownComponent", &[]);
        settings
    }

    fn settings_of(&self, vm: &str) -> String {
        let all = self.linked(vm, "Msvm_VirtualSystemSettingData");
        let found = all
            .into_iter()
            .find(|one| one.text("VirtualSystemType") == REALIZED);
        found.unwrap().path
    }

    /// (path of the disk's settings, file)
    fn disk_files(&self, settings: &str) -> Vec<(String, PathBuf)> {
        self.linked(settings, "Msvm_StorageAllocationSettingData")
            .into_iter()
            .map(|one| {
                (
                    one.path.clone(),
                    PathBuf::from(&one.texts("HostResource")[0]),
                )
            })
            .collect()
    }
}

impl Host for Double {
    fn instances(&self, namespace: &str, class: &str) -> Result<Vec<Instance>, HostError> {
        let state = self.alive()?;
        let found = match (namespace, class) {
            (CLUSTER, _) => return Err(HostError::new(NO_NAMESPACE, "no cluster")),
            (_, "Win32_OperatingSystem") => vec![
                Instance::new(class)
                    .with("Caption", "Microsoft Windows Server 2022 Datacenter".into())
                    .with("Version", "10.0.20348".into())
                    .with(
                        "ProductType",
                        Value::Number(if state.client_edition { 1 } else { 3 }),
                    ),
            ],
            (_, "Win32_ComputerSystem") => vec![
                Instance::new(class)
                    .with("DNSHostName", "hv1".into())
                    .with("Domain", "corp.example".into())
                    .with("PartOfDomain", Value::Bool(true)),
            ],
            _ => state
                .objects
                .values()
                .filter(|one| one.class == class)
                .cloned()
                .collect(),
        };
        Ok(found)
    }

    fn associated(&self, path: &str, result: &str) -> Result<Vec<Instance>, HostError> {
        let state = self.alive()?;
        state.object(path)?;
        Ok(state.linked(path, result))
    }

    fn object(&self, path: &str) -> Result<Instance, HostError> {
        self.alive()?.object(path).cloned()
    }

    fn call(
        &self,
        path: &str,
        method: &str,
        arguments: Vec<(&'static str, Value)>,
    ) -> Result<Instance, HostError> {
        let mut state = self.alive()?;
        state.object(path)?;
        let arguments: HashMap<&str, Value> = arguments.into_iter().collect();
        Ok(state.carry_out(path, method, &arguments, self.folder.path()))
    }

    fn open_disk(&self, file: &Path) -> Result<Box<dyn OpenDisk>, HostError> {
        drop(self.alive()?);
        disks::Handle::open(self.state.clone(), file)
            .map(|handle| Box::new(handle) as Box<dyn OpenDisk>)
    }

    fn enable_tracking(&self, file: &Path) -> Result<(), HostError> {
        let mut state = self.alive()?;
        if state.attached.contains_key(file) {
            return Err(HostError::new(SHARING_VIOLATION, "in use"));
        }
        state.tracked.insert(disks::id_of(file));
        Ok(())
    }

    fn wait_for_change(&self, _patience: Duration) -> Result<bool, HostError> {
        Ok(std::mem::take(&mut self.alive()?.changed))
    }

    fn pause(&self, _time: Duration) {
        let mut state = self.state();
        for one in state
            .objects
            .values_mut()
            .filter(|one| one.class == "Msvm_ConcreteJob")
        {
            if one.number("JobState") == Some(4) {
                let end = one.number("End").unwrap();
                one.properties
                    .insert("JobState".to_owned(), Value::Number(end));
            }
        }
        for vm in std::mem::take(&mut state.going_off) {
            state
                .object_mut(&vm)
                .properties
                .insert("EnabledState".to_owned(), Value::Number(3));
        }
    }
}

impl Double {
    /// The host, for a caller that is not dead yet.
    fn alive(&self) -> Result<MutexGuard<'_, State>, HostError> {
        let mut state = self.state();
        match &mut state.faults.dies_at {
            Some(0) => return Err(HostError::new(1, "the caller is dead")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}
