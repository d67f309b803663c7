//! Frozen points: recovery checkpoints that become reference points.
//!
//! ```text
//!   freeze   note ─► CreateSnapshot (application, else crash) ─► name it ─► QueryChanges, attach: the checkpoint's files
//!   release  close the files ─► ConvertToReferencePoint (Hyper-V merges) ─► record: interval = reference point, note away
//!   forget   DestroyReferencePoint ─► record
//! ```
//!
//! The note is durable before anything is made, and lists what was there before. So whatever a process that died left is
//! found: a checkpoint that is named as ours or was not there before is turned into a reference point as the release would
//! have done, a reference point that was not there before is the one of a release whose record is missing.
//!
//! Where RCT does not work (VHD, configuration version below 6.2), a standard checkpoint is made and merged away again, and
//! changes are unknown. A VM that is off needs no checkpoint: its files stand still, held open by virtdisk against any writer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::host::{Host, Instance, NOT_FOUND, VIRTUALIZATION, Value};
use super::jobs::{self, failed};
use super::names::{RECOVERY_CHECKPOINT, REFERENCE_POINT, SETTINGS, USER_CHECKPOINT};
use super::reader::{Reader, allocated, changes};
use super::record::{Pending, Record};
use super::survey::{self, Attached, Machine};
use crate::{
    Changes, Consistency, DiskId, ErrorKind, FrozenDisk, FrozenPoint, HypervisorError, PowerState,
    QuiesceReason, Quiescence, TrackingId, VmId,
};

/// `SnapshotType`.
const FULL: i64 = 2;
const RECOVERY: i64 = 32768;
/// `ConsistencyLevel`.
const APPLICATION: i64 = 1;
const CRASH: i64 = 2;
/// `GuestBackupType`: a copy, so that the guest's own chain of backups is left alone.
const COPY: i64 = 2;
/// `ReferencePointType` as a parameter; as a property RCT is 2.
const RCT: i64 = 1;
/// A guest may take a minute for its applications; merging goes on behind the job.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// What the caller of a freeze wants.
pub(super) struct Wish {
    pub vm: VmId,
    pub disks: Vec<DiskId>,
    pub since: Option<TrackingId>,
    pub next: TrackingId,
    pub consistency: Consistency,
    /// Of a VM that is off.
    pub off: bool,
}

/// A VM with its record.
pub(super) struct Session<'a> {
    pub host: &'a dyn Host,
    pub machine: Machine,
    pub record: Record,
    place: std::path::PathBuf,
}

/// How checkpoints of ours are named: nobody else's is ever touched.
pub(super) fn checkpoint_name(tracking: TrackingId) -> String {
    format!("Site Recovery point {tracking}")
}

impl<'a> Session<'a> {
    pub fn open(host: &'a dyn Host, vm: VmId, doing: &str) -> Result<Self, HypervisorError> {
        let machine = survey::find(host, vm, doing)?;
        let place = super::record::place(&machine).ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::DiskNotFound,
                format!(
                    "{doing} vm {}: it has no disk that can be read",
                    machine.vm.name
                ),
            )
        })?;
        let record = Record::load(&place)?;
        Ok(Self {
            host,
            machine,
            record,
            place,
        })
    }

    pub fn step(&self, doing: &str) -> String {
        format!("{doing} vm {}", self.machine.vm.name)
    }

    pub fn save(&mut self) -> Result<(), HypervisorError> {
        self.record.save(&self.place)
    }

    pub fn service(&self, class: &str) -> Result<String, HypervisorError> {
        service(self.host, class)
    }

    pub fn reference_points(&self) -> Result<Vec<Instance>, HypervisorError> {
        self.host
            .associated(&self.machine.path, REFERENCE_POINT)
            .map_err(|error| failed(&self.step("list reference points of"), error))
    }

    /// All checkpoints of the kinds that this driver makes.
    pub fn checkpoints(&self) -> Result<Vec<Instance>, HypervisorError> {
        let mut all = self.machine.checkpoints(self.host, RECOVERY_CHECKPOINT)?;
        all.extend(self.machine.checkpoints(self.host, USER_CHECKPOINT)?);
        Ok(all)
    }

    /// Those that are left: intervals whose reference point is there still.
    pub fn tracking(&self) -> Result<Vec<TrackingId>, HypervisorError> {
        let points = ids(&self.reference_points()?);
        Ok(self
            .record
            .intervals
            .iter()
            .filter(|one| {
                one.reference_point
                    .as_ref()
                    .is_none_or(|id| points.contains(id))
            })
            .map(|one| one.tracking)
            .collect())
    }

    pub fn forget(&mut self, goes: impl Fn(TrackingId) -> bool) -> Result<(), HypervisorError> {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.record.intervals)
            .into_iter()
            .partition(|one| goes(one.tracking));
        let points = self.reference_points()?;
        // First there, then in the record: a name in it that is no more means a comparison, one that is missing would stay
        // for ever.
        for interval in &gone {
            let point = points.iter().find(|point| {
                interval.reference_point.as_deref() == Some(point.text("InstanceID"))
            });
            if let Some(point) = point {
                self.destroy_reference_point(&point.path)?;
            }
        }
        self.record.intervals = kept;
        if self.record.intervals.is_empty() && self.record.pending.is_none() {
            return Record::delete(&self.place);
        }
        self.save()
    }

    fn destroy_reference_point(&self, path: &str) -> Result<(), HypervisorError> {
        let service = self.service("Msvm_VirtualSystemReferencePointService")?;
        let arguments = vec![("AffectedReferencePoint", Value::from(path))];
        jobs::call(
            self.host,
            &service,
            "DestroyReferencePoint",
            arguments,
            PATIENCE,
        )
        .map(drop)
        .map_err(|error| error.context(self.step("forget a reference point of")))
    }
}

impl Session<'_> {
    /// Freezes; the point is pending until [`Self::settle`].
    pub fn freeze(&mut self, wish: &Wish) -> Result<FrozenPoint, HypervisorError> {
        let step = self.step("freeze");
        self.judge(wish, &step)?;
        self.record.pending = Some(Pending {
            tracking: wish.next,
            checkpoints: ids(&self.checkpoints()?),
            reference_points: ids(&self.reference_points()?),
        });
        self.save()?;
        let taken = SystemTime::now();
        let made = if wish.off {
            self.hold_still(wish, &step)
        } else {
            self.checkpoint(wish, &step)
        };
        let (files, quiescence) = match made {
            Ok(made) => made,
            Err(error) => return Err(self.give_up(error)),
        };
        let disks: Result<Vec<FrozenDisk>, HypervisorError> = wish
            .disks
            .iter()
            .map(|disk| self.frozen_disk(*disk, &files, wish.since, &step))
            .collect();
        let disks = match disks {
            Ok(disks) => disks,
            Err(error) => return Err(self.give_up(error)),
        };
        if wish.off {
            // Here, not at the release: whoever starts the VM does not wait for that.
            if let Err(error) = self.mark_off(wish.next) {
                drop(disks);
                return Err(self.give_up(error));
            }
        }
        Ok(FrozenPoint {
            vm: wish.vm,
            // When it was asked for: the point is of then or later.
            taken_unix_ms: taken
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| i64::try_from(since.as_millis()).ok())
                .unwrap_or_default(),
            tracking: wish.next,
            quiescence,
            // Hyper-V does not tell; it holds the guest for the change-over of its files only.
            pause: Duration::ZERO,
            disks,
        })
    }

    fn judge(&self, wish: &Wish, step: &str) -> Result<(), HypervisorError> {
        let refuse = |kind, why: &str| Err(HypervisorError::new(kind, format!("{step}: {why}")));
        let twice = wish.disks.iter().enumerate();
        if wish.disks.is_empty() {
            return refuse(ErrorKind::InvalidRequest, "no disk is named");
        }
        for (at, disk) in twice {
            if wish.disks.iter().take(at).any(|other| other == disk) {
                let why = format!("disk {disk} is named twice");
                return refuse(ErrorKind::InvalidRequest, &why);
            }
            if !self.machine.disks.iter().any(|one| one.id == *disk) {
                return refuse(ErrorKind::DiskNotFound, &format!("it has no disk {disk}"));
            }
        }
        match (wish.off, self.machine.vm.power_state) {
            (false, PowerState::Off) => return refuse(ErrorKind::VmNotRunning, "it is off"),
            (true, PowerState::Running) => return refuse(ErrorKind::VmRunning, "it runs"),
            _ => {}
        }
        if self.record.pending.is_some() {
            return refuse(
                ErrorKind::Busy,
                "a point is frozen already, or was left behind",
            );
        }
        let greatest = self.record.intervals.iter().map(|one| one.tracking).max();
        if greatest.is_some_and(|greatest| wish.next <= greatest) {
            let why = format!("tracking {} is not newer than what there is", wish.next);
            return refuse(ErrorKind::InvalidRequest, &why);
        }
        Ok(())
    }

    /// The files of a new checkpoint, by disk.
    fn checkpoint(
        &self,
        wish: &Wish,
        step: &str,
    ) -> Result<(HashMap<DiskId, Attached>, Quiescence), HypervisorError> {
        let kind = if self.machine.can_track() {
            RECOVERY
        } else {
            FULL
        };
        let take = |level| self.create_checkpoint(wish.next, kind, level);
        let (checkpoint, quiescence) = match wish.consistency {
            Consistency::Crash => (take(CRASH), Quiescence::NotAsked),
            Consistency::Application => match take(APPLICATION) {
                // How many there were WMI does not say: at least one.
                Ok(made) => (Ok(made), Quiescence::Confirmed { file_systems: 1 }),
                Err(error) => {
                    let reason = match error.kind() {
                        // It may be there yet: a second one beside it would be one too many.
                        ErrorKind::Timeout => return Err(error.context(step)),
                        _ => QuiesceReason::Refused,
                    };
                    let text = format!("{error:?}");
                    (take(CRASH), Quiescence::NotConfirmed { reason, text })
                }
            },
        };
        let checkpoint = checkpoint.map_err(|error| error.context(step))?;
        let mut findings = Vec::new();
        let disks = survey::disks(self.host, &checkpoint, &mut findings)?;
        let files = disks.into_iter().map(|disk| (disk.id, disk)).collect();
        Ok((files, quiescence))
    }

    fn create_checkpoint(
        &self,
        tracking: TrackingId,
        kind: i64,
        level: i64,
    ) -> Result<Instance, HypervisorError> {
        let service = self.service("Msvm_VirtualSystemSnapshotService")?;
        let settings = Instance::new("Msvm_VirtualSystemSnapshotSettingData")
            .with("ConsistencyLevel", Value::Number(level))
            .with("GuestBackupType", Value::Number(COPY))
            .with("IgnoreNonSnapshottableDisks", Value::Bool(true));
        let arguments = vec![
            ("AffectedSystem", Value::from(self.machine.path.as_str())),
            ("SnapshotSettings", Value::Embedded(settings)),
            ("SnapshotType", Value::Number(kind)),
        ];
        let done = jobs::call(self.host, &service, "CreateSnapshot", arguments, PATIENCE)?;
        let made = jobs::results(self.host, &done, "ResultingSnapshot", SETTINGS)?
            .into_iter()
            .next()
            .ok_or_else(|| {
                HypervisorError::new(ErrorKind::Protocol, "CreateSnapshot: it gave no checkpoint")
            })?;
        let named = made
            .clone()
            .with("ElementName", Value::Text(checkpoint_name(tracking)));
        let service = self.service("Msvm_VirtualSystemManagementService")?;
        let arguments = vec![("SystemSettings", Value::Embedded(named))];
        jobs::call(
            self.host,
            &service,
            "ModifySystemSettings",
            arguments,
            PATIENCE,
        )?;
        Ok(made)
    }

    /// The files of a VM that is off are its own; opened, they stand still.
    fn hold_still(
        &self,
        wish: &Wish,
        step: &str,
    ) -> Result<(HashMap<DiskId, Attached>, Quiescence), HypervisorError> {
        for disk in self
            .machine
            .disks
            .iter()
            .filter(|one| wish.disks.contains(&one.id))
        {
            let facts = self
                .host
                .open_disk(&disk.file)
                .and_then(|open| open.facts())
                .map_err(|error| failed(step, error))?;
            if self.machine.can_track() && !facts.tracking {
                self.host
                    .enable_tracking(&disk.file)
                    .map_err(|error| failed(&format!("{step}: turn on change tracking"), error))?;
            }
        }
        let files = self
            .machine
            .disks
            .iter()
            .map(|disk| (disk.id, disk.clone()));
        Ok((files.collect(), Quiescence::NotAsked))
    }

    fn mark_off(&mut self, tracking: TrackingId) -> Result<(), HypervisorError> {
        let point = if self.machine.can_track() {
            let service = self.service("Msvm_VirtualSystemReferencePointService")?;
            let arguments = vec![
                ("AffectedSystem", Value::from(self.machine.path.as_str())),
                ("ReferencePointSettings", Value::Null),
                ("ReferencePointType", Value::Number(RCT)),
            ];
            let done = jobs::call(
                self.host,
                &service,
                "CreateReferencePoint",
                arguments,
                PATIENCE,
            )
            .map_err(|error| error.context(self.step("begin to track")))?;
            jobs::results(self.host, &done, "ResultingReferencePoint", REFERENCE_POINT)?
                .into_iter()
                .next()
        } else {
            None
        };
        let interval = self.interval(tracking, point.as_ref());
        self.record.intervals.push(interval);
        self.save()
    }

    fn frozen_disk(
        &self,
        disk: DiskId,
        files: &HashMap<DiskId, Attached>,
        since: Option<TrackingId>,
        step: &str,
    ) -> Result<FrozenDisk, HypervisorError> {
        let file = files
            .get(&disk)
            .map(|one| one.file.as_path())
            .ok_or_else(|| {
                HypervisorError::new(
                    ErrorKind::DiskNotFound,
                    format!("{step}: the checkpoint has no disk {disk}"),
                )
            })?;
        let step = format!("{step}: disk {disk}");
        let open: Arc<dyn super::host::OpenDisk> = self
            .host
            .open_disk(file)
            .map_err(|error| failed(&step, error))?
            .into();
        let facts = open.facts().map_err(|error| failed(&step, error))?;
        let changes = match self.rct_id(disk, since)? {
            Some(id) => {
                changes(open.as_ref(), &facts, &id).map_err(|error| failed(&step, error))?
            }
            None => Changes::Unknown,
        };
        open.attach().map_err(|error| failed(&step, error))?;
        Ok(FrozenDisk {
            disk,
            size_bytes: facts.size_bytes,
            changes,
            allocated: allocated(Path::new(file), &facts),
            reader: Box::new(Reader { disk: open, facts }),
        })
    }

    /// The RCT id of a disk at an instant; `None` when its reference point is gone.
    fn rct_id(
        &self,
        disk: DiskId,
        since: Option<TrackingId>,
    ) -> Result<Option<String>, HypervisorError> {
        let Some(interval) = since.and_then(|since| self.record.interval(since)) else {
            return Ok(None);
        };
        let points = ids(&self.reference_points()?);
        let there = interval
            .reference_point
            .as_ref()
            .is_some_and(|id| points.contains(id));
        Ok(interval.disks.get(&disk.0).filter(|_| there).cloned())
    }
}

pub(super) fn ids(instances: &[Instance]) -> Vec<String> {
    let all = instances.iter();
    all.map(|one| one.text("InstanceID").to_owned()).collect()
}

/// The path of a service, of which there is one.
pub(super) fn service(host: &dyn Host, class: &str) -> Result<String, HypervisorError> {
    let step = format!("find {class}");
    let found = host
        .instances(VIRTUALIZATION, class)
        .map_err(|error| failed(&step, error))?;
    found.into_iter().next().map(|one| one.path).ok_or_else(|| {
        let gone = super::host::HostError::new(NOT_FOUND, "no instance");
        failed(&step, gone)
    })
}
