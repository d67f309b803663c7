//! Methods of the double's WMI.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use disk_image::{Access, CreateOptions, DiskImage, Format};
use hypervisor::hyperv::host::{Instance, Value};
use uuid::Uuid;

use super::{RECOVERY, State, USER, computer_path, disks, open};

const FAILED: i64 = 32768;
const NOT_SUPPORTED: i64 = 32770;
const INVALID_PARAMETER: i64 = 32773;
const INVALID_STATE: i64 = 32775;
const FILE_NOT_FOUND: i64 = 32779;
const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
const STORAGE: &str = "Msvm_StorageAllocationSettingData";

/// Refused at once with a code, or by the job.
enum Refusal {
    Now(i64),
    Later(i64, &'static str),
}

/// Out parameters, and paths of what the job made.
type Outcome = Result<(Vec<(&'static str, Value)>, Vec<String>), Refusal>;

impl State {
    pub(super) fn carry_out(
        &mut self,
        path: &str,
        method: &str,
        arguments: &HashMap<&str, Value>,
        folder: &Path,
    ) -> Instance {
        let outcome = match method {
            "CreateSnapshot" => self.create_snapshot(arguments, folder),
            "DestroySnapshot" => self.destroy_snapshot(arguments),
            "ConvertToReferencePoint" => self.convert(arguments),
            "CreateReferencePoint" => self.create_reference_point(arguments),
            "DestroyReferencePoint" => self.destroy_reference_point(arguments),
            "ModifySystemSettings" => self.modify(&embedded(arguments, "SystemSettings")),
            "ModifyResourceSettings" => self.modify(&embedded(arguments, "ResourceSettings")),
            "AddResourceSettings" => self.add(arguments),
            "DefineSystem" => self.define_system(arguments),
            "DestroySystem" => self.destroy_system(arguments),
            "RequestStateChange" => self.change_state(path, arguments),
            "InitiateShutdown" => self.shut_down(path),
            _ => Err(Refusal::Now(NOT_SUPPORTED)),
        };
        let out = Instance::new("__PARAMETERS");
        let (values, results, end, code, text) = match outcome {
            Err(Refusal::Now(code)) => return out.with("ReturnValue", Value::Number(code)),
            Err(Refusal::Later(code, text)) => (vec![], vec![], 10, code, text),
            Ok((values, results)) => (values, results, 7, 0, ""),
        };
        if method == "InitiateShutdown" {
            return out.with("ReturnValue", Value::Number(0));
        }
        let job = format!("Msvm_ConcreteJob.InstanceID=\"{}\"", Uuid::new_v4());
        let instance = Instance::new("Msvm_ConcreteJob")
            .with("JobState", Value::Number(4))
            .with("End", Value::Number(end))
            .with("ErrorCode", Value::Number(code))
            .with("ErrorDescription", text.into());
        let job = self.put(&job, instance);
        for result in results {
            self.link(&job, &result);
        }
        let out = values
            .into_iter()
            .fold(out, |out, (name, value)| out.with(name, value));
        out.with("ReturnValue", Value::Number(4096))
            .with("Job", Value::Text(job))
    }

    fn create_snapshot(&mut self, arguments: &HashMap<&str, Value>, folder: &Path) -> Outcome {
        let vm = text(arguments, "AffectedSystem");
        let wish = embedded(arguments, "SnapshotSettings")
            .pop()
            .ok_or(Refusal::Now(INVALID_PARAMETER))?;
        let kind = match arguments.get("SnapshotType") {
            Some(Value::Number(32768)) => RECOVERY,
            Some(Value::Number(2)) => USER,
            _ => return Err(Refusal::Now(INVALID_PARAMETER)),
        };
        if !self.objects.contains_key(&vm) {
            return Err(Refusal::Now(INVALID_PARAMETER));
        }
        let settings = self.settings_of(&vm);
        let owner = self.objects[&settings].clone();
        let old: f32 = owner.text("Version").parse().unwrap();
        let taken = self.linked(&vm, SETTINGS);
        if kind == RECOVERY && old < 6.2 {
            return Err(Refusal::Now(NOT_SUPPORTED));
        }
        if kind == RECOVERY
            && taken
                .iter()
                .any(|one| one.text("VirtualSystemType") == RECOVERY)
        {
            return Err(Refusal::Now(INVALID_STATE));
        }
        if wish.number("ConsistencyLevel") == Some(1) && self.faults.no_application_points {
            return Err(Refusal::Later(
                FAILED,
                "the guest's writers did not come to rest",
            ));
        }
        let key = format!("Microsoft:{}", Uuid::new_v4());
        let checkpoint = owner
            .with("InstanceID", Value::Text(key.clone()))
            .with("ElementName", "automatic".into())
            .with("VirtualSystemType", kind.into());
        let checkpoint = self.put(&format!("{SETTINGS}.InstanceID=\"{key}\""), checkpoint);
        self.link(&vm, &checkpoint);
        for (disk, file) in self.disk_files(&settings) {
            // Beside its parent, as Hyper-V does.
            let beside = file.parent().unwrap_or(folder);
            let child = beside.join(format!(
                "{}.{}",
                Uuid::new_v4(),
                if is_vhd(&file) { "avhd" } else { "avhdx" }
            ));
            let format = if is_vhd(&file) {
                Format::VhdDifferencing
            } else {
                Format::VhdxDifferencing
            };
            let id = disks::id_of(&file);
            let mut options = CreateOptions::new(format, 0);
            options.id = Some(id);
            let gate = disk_image::FolderGate::new([beside]).unwrap();
            DiskImage::create_differencing(&child, &file, &options, &gate)
                .unwrap()
                .close()
                .unwrap();
            let tail = self.objects[&disk]
                .text("InstanceID")
                .split_once('\\')
                .unwrap()
                .1
                .to_owned();
            let frozen: Vec<(&str, Value)> = ["ResourceSubType", "Parent", "HostResource"]
                .into_iter()
                .map(|name| (name, self.objects[&disk].properties[name].clone()))
                .collect();
            self.resource(&checkpoint, STORAGE, &tail, &frozen);
            self.frozen.insert(file, self.count);
            self.set_file(&disk, &child);
        }
        Ok((vec![], vec![checkpoint]))
    }

    fn set_file(&mut self, disk: &str, file: &Path) {
        let value = Value::Texts(vec![file.display().to_string()]);
        self.object_mut(disk)
            .properties
            .insert("HostResource".to_owned(), value);
    }

    fn destroy_snapshot(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        self.merge(&text(arguments, "AffectedSnapshot"))?;
        Ok((vec![], vec![]))
    }

    /// Merges the VM's files into the frozen ones and removes the checkpoint.
    fn merge(&mut self, checkpoint: &str) -> Result<(), Refusal> {
        let settings = self.owner_settings(checkpoint)?;
        let frozen = self.disk_files(checkpoint);
        if frozen
            .iter()
            .any(|(_, file)| self.attached.contains_key(file))
        {
            return Err(Refusal::Later(FAILED, "a file is in use (0x80070020)"));
        }
        for (_, below) in frozen {
            let id = disks::id_of(&below);
            let live = self.disk_files(&settings);
            let (disk, above) = live
                .into_iter()
                .find(|(_, file)| disks::id_of(file) == id)
                .unwrap();
            let since = self.frozen.remove(&below).unwrap();
            let source = open(&above, Access::ReadOnly);
            let mut target = open(&below, Access::ReadWrite);
            for (count, range) in self.log.get(&id).into_iter().flatten() {
                if *count > since {
                    let mut data = vec![0; usize::try_from(range.length).unwrap()];
                    source.read_at(&mut data, range.offset).unwrap();
                    target.write_at(&data, range.offset).unwrap();
                }
            }
            target.close().unwrap();
            drop(source);
            std::fs::remove_file(&above).unwrap();
            self.set_file(&disk, &below);
        }
        for resource in self.linked(checkpoint, STORAGE) {
            self.drop_object(&resource.path);
        }
        self.drop_object(checkpoint);
        Ok(())
    }

    fn owner(&self, checkpoint: &str) -> Result<String, Refusal> {
        self.links
            .iter()
            .find(|(from, to)| to == checkpoint && from.starts_with("Msvm_ComputerSystem"))
            .map(|(from, _)| from.clone())
            .ok_or(Refusal::Now(INVALID_PARAMETER))
    }

    fn owner_settings(&self, checkpoint: &str) -> Result<String, Refusal> {
        self.owner(checkpoint).map(|vm| self.settings_of(&vm))
    }

    fn convert(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        let checkpoint = text(arguments, "AffectedSnapshot");
        let vm = self.owner(&checkpoint)?;
        if self.objects[&checkpoint].text("VirtualSystemType") != RECOVERY {
            return Err(Refusal::Now(INVALID_PARAMETER));
        }
        if std::mem::take(&mut self.faults.conversion_fails) {
            return Err(Refusal::Later(FAILED, "no"));
        }
        let files = self.disk_files(&checkpoint);
        let counts: Vec<(String, Uuid, u64)> = files
            .iter()
            .map(|(disk, file)| (disk.clone(), disks::id_of(file), self.frozen[file]))
            .collect();
        let named = counts
            .into_iter()
            .map(|(disk, id, count)| (self.objects[&disk].text("InstanceID").to_owned(), id, count))
            .collect();
        self.merge(&checkpoint)?;
        let point = self.reference_point(&vm, named);
        Ok((vec![], vec![point]))
    }

    fn reference_point(&mut self, vm: &str, mut disks: Vec<(String, Uuid, u64)>) -> String {
        // Their order is nobody's promise.
        disks.reverse();
        let class = "Msvm_VirtualSystemReferencePoint";
        let key = format!("Microsoft:RP:{}", Uuid::new_v4());
        let ids = disks
            .iter()
            .map(|(_, id, count)| disks::rct_id(*id, *count))
            .collect();
        for (_, id, _) in &disks {
            self.tracked.insert(*id);
        }
        let point = Instance::new(class)
            .with("InstanceID", Value::Text(key.clone()))
            .with("ReferencePointType", Value::Number(2))
            .with(
                "VirtualDiskIdentifiers",
                Value::Texts(disks.into_iter().map(|(name, ..)| name).collect()),
            )
            .with("ResilientChangeTrackingIdentifiers", Value::Texts(ids));
        let point = self.put(&format!("{class}.InstanceID=\"{key}\""), point);
        self.link(vm, &point);
        point
    }

    fn create_reference_point(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        let vm = text(arguments, "AffectedSystem");
        if arguments.get("ReferencePointType") != Some(&Value::Number(1))
            || !self.objects.contains_key(&vm)
        {
            return Err(Refusal::Now(INVALID_PARAMETER));
        }
        let settings = self.settings_of(&vm);
        let count = self.count;
        let files = self.disk_files(&settings);
        let disks: Vec<(String, Uuid, u64)> = files
            .iter()
            .map(|(disk, file)| {
                (
                    self.objects[disk].text("InstanceID").to_owned(),
                    disks::id_of(file),
                    count,
                )
            })
            .collect();
        if disks.iter().any(|(_, id, _)| !self.tracked.contains(id)) {
            return Err(Refusal::Later(FAILED, "change tracking is off"));
        }
        let point = self.reference_point(&vm, disks);
        Ok((vec![], vec![point]))
    }

    fn destroy_reference_point(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        let point = text(arguments, "AffectedReferencePoint");
        if self
            .objects
            .get(&point)
            .is_none_or(|one| one.class != "Msvm_VirtualSystemReferencePoint")
        {
            return Err(Refusal::Now(INVALID_PARAMETER));
        }
        self.drop_object(&point);
        Ok((vec![], vec![]))
    }

    fn modify(&mut self, wishes: &[Instance]) -> Outcome {
        for wish in wishes {
            let Some(object) = self.objects.get_mut(&wish.path) else {
                return Err(Refusal::Now(INVALID_PARAMETER));
            };
            object.properties.extend(wish.properties.clone());
        }
        Ok((vec![], vec![]))
    }

    fn add(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        let settings = text(arguments, "AffectedConfiguration");
        if !self.objects.contains_key(&settings) {
            return Err(Refusal::Now(INVALID_PARAMETER));
        }
        let mut made = Vec::new();
        for wish in embedded(arguments, "ResourceSettings") {
            let parent = wish.text("Parent");
            if !parent.is_empty() && !self.objects.contains_key(parent) {
                return Err(Refusal::Now(INVALID_PARAMETER));
            }
            let file = wish.texts("HostResource").first().map(PathBuf::from);
            if wish.class == STORAGE && !file.is_some_and(|file| file.is_file()) {
                return Err(Refusal::Now(FILE_NOT_FOUND));
            }
            let properties: Vec<(&str, Value)> = wish
                .properties
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone()))
                .collect();
            made.push(self.resource(
                &settings,
                &wish.class,
                &Uuid::new_v4().to_string(),
                &properties,
            ));
        }
        Ok((
            vec![("ResultingResourceSettings", Value::Texts(made))],
            vec![],
        ))
    }

    fn define_system(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        let wish = embedded(arguments, "SystemSettings")
            .pop()
            .ok_or(Refusal::Now(INVALID_PARAMETER))?;
        let generation = if wish.text("VirtualSystemSubType").ends_with('2') {
            2
        } else {
            1
        };
        let id = Uuid::new_v4().to_string();
        let notes = wish.texts("Notes").to_vec();
        self.define(&id, wish.text("ElementName"), generation, "10.0", notes);
        let system = Value::Text(computer_path(&id));
        Ok((vec![("ResultingSystem", system)], vec![]))
    }

    fn destroy_system(&mut self, arguments: &HashMap<&str, Value>) -> Outcome {
        let vm = text(arguments, "AffectedSystem");
        match self
            .objects
            .get(&vm)
            .and_then(|one| one.number("EnabledState"))
        {
            Some(3) => {}
            Some(_) => return Err(Refusal::Now(INVALID_STATE)),
            None => return Err(Refusal::Now(INVALID_PARAMETER)),
        }
        let settings = self.settings_of(&vm);
        self.drop_object(&settings);
        self.drop_object(&vm);
        Ok((vec![], vec![]))
    }

    fn change_state(&mut self, vm: &str, arguments: &HashMap<&str, Value>) -> Outcome {
        let state = self.objects[vm].number("EnabledState").unwrap();
        let files = self.disk_files(&self.settings_of(vm));
        let wished = match (arguments.get("RequestedState"), state) {
            (Some(Value::Number(2)), 3 | 6 | 9) => 2,
            (Some(Value::Number(3)), 2 | 6 | 9) => 3,
            _ => return Err(Refusal::Now(INVALID_STATE)),
        };
        if wished == 2
            && files
                .iter()
                .any(|(_, file)| self.attached.contains_key(file))
        {
            return Err(Refusal::Later(FAILED, "a file is in use (0x80070020)"));
        }
        self.object_mut(vm)
            .properties
            .insert("EnabledState".to_owned(), Value::Number(wished));
        Ok((vec![], vec![]))
    }

    fn shut_down(&mut self, component: &str) -> Outcome {
        let vm = self
            .links
            .iter()
            .find(|(_, to)| to == component)
            .unwrap()
            .0
            .clone();
        if self.objects[&vm].number("EnabledState") != Some(2) {
            return Err(Refusal::Now(INVALID_STATE));
        }
        if !self.faults.ignores_shutdown {
            self.going_off.push(vm);
        }
        Ok((vec![], vec![]))
    }
}

fn is_vhd(file: &Path) -> bool {
    file.extension()
        .is_some_and(|end| end == "vhd" || end == "avhd")
}

fn text(arguments: &HashMap<&str, Value>, name: &str) -> String {
    match arguments.get(name) {
        Some(Value::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

fn embedded(arguments: &HashMap<&str, Value>, name: &str) -> Vec<Instance> {
    match arguments.get(name) {
        Some(Value::Embedded(one)) => vec![one.clone()],
        Some(Value::EmbeddedAll(all)) => all.clone(),
        _ => Vec::new(),
    }
}
