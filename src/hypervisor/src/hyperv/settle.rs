//! The end of a frozen point: given back, found after a crash, or given up. See [`super::points`] for the whole.

use super::host::{Instance, Value};
use super::jobs;
use super::names::{RECOVERY_CHECKPOINT, REFERENCE_POINT, resource_tail};
use super::points::{PATIENCE, Session, checkpoint_name};
use super::record::Interval;
use crate::{ErrorKind, HypervisorError, TrackingId};

impl Session<'_> {
    /// Gives back the frozen point, or what is left of one: see the head of this file.
    pub fn settle(&mut self) -> Result<(), HypervisorError> {
        let pending = self.record.pending.clone();
        let before = pending.as_ref().map_or(&[][..], |one| &one.checkpoints);
        let ours: Vec<Instance> = self
            .checkpoints()?
            .into_iter()
            .filter(|one| {
                one.text("ElementName").starts_with("Site Recovery point ")
                    || (pending.is_some()
                        && one.text("VirtualSystemType") == RECOVERY_CHECKPOINT
                        && !before.iter().any(|id| id == one.text("InstanceID")))
            })
            .collect();
        let mut point = None;
        for checkpoint in &ours {
            let wanted = pending.is_some() && point.is_none();
            if wanted && checkpoint.text("VirtualSystemType") == RECOVERY_CHECKPOINT {
                match self.convert(checkpoint) {
                    Ok(made) => {
                        point = Some(made);
                        continue;
                    }
                    // Better no interval than a checkpoint that grows until the volume is full.
                    Err(error) => tracing::warn!(
                        vm = %self.machine.vm.name, ?error,
                        "a checkpoint could not become a reference point: it is merged away, and the disks are compared"
                    ),
                }
            }
            self.destroy_checkpoint(&checkpoint.path)?;
        }
        let Some(pending) = pending else {
            return Ok(());
        };
        // A release of before may have got this far, without its record.
        let known = self.record.interval(pending.tracking).is_some();
        if point.is_none() && ours.is_empty() && !known {
            point = self.reference_points()?.into_iter().find(|one| {
                !pending
                    .reference_points
                    .iter()
                    .any(|id| id == one.text("InstanceID"))
            });
        }
        let legacy = !self.machine.can_track() && !ours.is_empty();
        if !known && (point.is_some() || legacy) {
            let interval = self.interval(pending.tracking, point.as_ref());
            self.record.intervals.push(interval);
        }
        self.record.pending = None;
        self.save()
    }

    fn convert(&self, checkpoint: &Instance) -> Result<Instance, HypervisorError> {
        let service = self.service("Msvm_VirtualSystemSnapshotService")?;
        let arguments = vec![
            ("AffectedSnapshot", Value::from(checkpoint.path.as_str())),
            ("ReferencePointSettings", Value::Null),
        ];
        let done = jobs::call(
            self.host,
            &service,
            "ConvertToReferencePoint",
            arguments,
            PATIENCE,
        )?;
        jobs::results(self.host, &done, "ResultingReferencePoint", REFERENCE_POINT)?
            .into_iter()
            .next()
            .ok_or_else(|| {
                HypervisorError::new(
                    ErrorKind::Protocol,
                    "ConvertToReferencePoint: it gave no reference point",
                )
            })
    }

    fn destroy_checkpoint(&self, path: &str) -> Result<(), HypervisorError> {
        let service = self.service("Msvm_VirtualSystemSnapshotService")?;
        let arguments = vec![("AffectedSnapshot", Value::from(path))];
        jobs::call(self.host, &service, "DestroySnapshot", arguments, PATIENCE)
            .map(drop)
            .map_err(|error| error.context(self.step("merge away a checkpoint of")))
    }

    /// The two arrays of a reference point stand side by side; a disk that is not tracked may be in neither.
    pub fn interval(&self, tracking: TrackingId, point: Option<&Instance>) -> Interval {
        let pairs = point.map_or_else(Vec::new, |point| {
            let ids = point.texts("ResilientChangeTrackingIdentifiers");
            let disks = point.texts("VirtualDiskIdentifiers");
            if ids.len() != disks.len() {
                tracing::warn!(vm = %self.machine.vm.name, "a reference point's disks and ids don't match: they are compared");
                return Vec::new();
            }
            disks.iter().zip(ids).collect()
        });
        let disks = pairs
            .into_iter()
            .filter(|(_, rct)| !rct.is_empty())
            .filter_map(|(settings, rct)| {
                let tail = resource_tail(settings);
                let disk = self
                    .machine
                    .disks
                    .iter()
                    .find(|disk| resource_tail(&disk.settings) == tail)?;
                Some((disk.id.0, rct.clone()))
            })
            .collect();
        Interval {
            tracking,
            reference_point: point.map(|point| point.text("InstanceID").to_owned()),
            disks,
        }
    }

    /// Nothing is left behind by a freeze that failed: no checkpoint, no note, no interval.
    pub fn give_up(&mut self, error: HypervisorError) -> HypervisorError {
        let Some(pending) = self.record.pending.clone() else {
            return error;
        };
        let undo = || -> Result<(), HypervisorError> {
            for checkpoint in self.checkpoints()? {
                let known = pending.checkpoints.iter();
                if !known
                    .into_iter()
                    .any(|id| id == checkpoint.text("InstanceID"))
                    && checkpoint.text("VirtualSystemType") == RECOVERY_CHECKPOINT
                    || checkpoint.text("ElementName") == checkpoint_name(pending.tracking)
                {
                    self.destroy_checkpoint(&checkpoint.path)?;
                }
            }
            Ok(())
        };
        let done = undo().and_then(|()| {
            self.record.pending = None;
            self.record
                .intervals
                .retain(|one| one.tracking != pending.tracking);
            self.save()
        });
        if let Err(second) = done {
            tracing::warn!(vm = %self.machine.vm.name, error = ?second, "a freeze that failed left something: clean_up finds it");
        }
        error
    }
}
