//! One instant over all disks of one VM, or of several.
//!
//! ```text
//!   prepare all ─► [guests at rest] ─► pause all ─► change over all ─► resume all ─► [thaw] ─► open all
//!                                      └──────── nothing is written ─────────┘
//! ```
//!
//! All or none: what goes wrong at any step is undone for every member, and all of them go on. The pause costs some
//! milliseconds for a VM: images are flushed before it, filters and scratch images are there already.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{join_all, try_join_all};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::fleece::{Target, change_over, take_back};
use super::hold::{self, Asked, HOLD_LIMIT};
use super::inventory::free_bytes;
use super::shutdown::{self, Power};
use super::sweep::ours;
use super::tracking::disk_nodes;
use super::{FoundVm, QemuDriver, connect, from_qmp};
use crate::qmp::Qmp;
use crate::{
    Consistency, ErrorKind, FreezeRequest, FrozenPoint, GroupFreezeError, HypervisorError,
    Quiescence, TrackingId, VmId,
};

/// Least free room in the scratch folder.
const MIN_SCRATCH: u64 = 256 << 20;

/// A VM that takes part in a freeze.
struct Member {
    found: FoundVm,
    qmp: Qmp,
    targets: Vec<Target>,
    next: TrackingId,
    quiescence: Quiescence,
    pause: Duration,
    changed_over: bool,
}

type MemberError = (VmId, HypervisorError);

impl Member {
    fn id(&self) -> VmId {
        self.found.id()
    }

    fn failed(&self, error: HypervisorError) -> MemberError {
        (self.id(), error)
    }

    fn name(&self) -> &str {
        &self.found.config.name
    }
}

impl QemuDriver {
    /// Freezes the requests' VMs, whose locks the caller holds.
    pub(super) async fn freeze_all(
        &self,
        requests: &[FreezeRequest],
        consistency: Consistency,
        power: Power,
    ) -> Result<Vec<FrozenPoint>, GroupFreezeError> {
        let at = |(vm, source)| GroupFreezeError {
            vm: Some(vm),
            source,
        };
        if requests
            .iter()
            .map(|request| request.vm)
            .collect::<BTreeSet<_>>()
            .len()
            != requests.len()
            || requests.is_empty()
        {
            let text = "freeze a group of vms: it is empty or names one twice";
            return Err(GroupFreezeError {
                vm: None,
                source: HypervisorError::new(ErrorKind::InvalidRequest, text),
            });
        }
        let mut members = try_join_all(requests.iter().map(|request| async {
            let member = self.member(request, power).await;
            member.map_err(|error| at((request.vm, error)))
        }))
        .await?;
        let result = self.freeze_members(&mut members, consistency).await;
        let error = match result {
            Ok(points) => return Ok(points),
            Err(error) => error,
        };
        debug!(error = ?error.1, "freeze is undone");
        join_all(members.iter_mut().map(|member| self.undo(member))).await;
        Err(at(error))
    }

    /// Checks a request, without any effect.
    async fn member(
        &self,
        request: &FreezeRequest,
        power: Power,
    ) -> Result<Member, HypervisorError> {
        let found = self.find(request.vm)?;
        let name = found.config.name.clone();
        let refused =
            |kind, text: String| HypervisorError::new(kind, format!("freeze vm {name}: {text}"));
        let mut qmp = connect(&found).await?;
        match (shutdown::power(&found, &mut qmp).await?, power) {
            (Power::Off, Power::On) => {
                return Err(refused(ErrorKind::VmNotRunning, "it is off".to_owned()));
            }
            (Power::On, Power::Off) => {
                return Err(refused(ErrorKind::VmRunning, "its guest runs".to_owned()));
            }
            _ => {}
        }
        let left = ours(&mut qmp)
            .await
            .map_err(|error| from_qmp(format!("freeze vm {name}"), error))?;
        if !left.is_empty() || hold::is_paused(&found) {
            let mut there = left.names();
            if hold::is_paused(&found) {
                there.push("the mark of a pause".to_owned());
            }
            let text = format!("a point is frozen already: {}", there.join(", "));
            return Err(refused(ErrorKind::Busy, text));
        }
        let free = free_bytes(&self.scratch)?;
        if free < MIN_SCRATCH {
            let text = format!("only {} MiB free in {}", free >> 20, self.scratch.display());
            return Err(refused(ErrorKind::NoSpace, text));
        }
        let nodes = disk_nodes(&mut qmp, &found).await?;
        if let Some(newest) = nodes
            .iter()
            .flat_map(|node| &node.bitmaps)
            .map(|bitmap| bitmap.id)
            .max()
            && newest >= request.next
        {
            return Err(refused(
                ErrorKind::InvalidRequest,
                format!("tracking {newest} is not older than {}", request.next),
            ));
        }
        let targets = self.targets(&found, &request.disks, request.since, &nodes)?;
        Ok(Member {
            found,
            qmp,
            targets,
            next: request.next,
            quiescence: Quiescence::NotAsked,
            pause: Duration::ZERO,
            changed_over: false,
        })
    }

    async fn freeze_members(
        &self,
        members: &mut [Member],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, MemberError> {
        try_join_all(members.iter_mut().map(|member| async {
            let prepared = self
                .prepare(&member.found, &mut member.qmp, &member.targets)
                .await;
            prepared.map_err(|error| member.failed(error))
        }))
        .await?;
        let taken_unix_ms = match consistency {
            Consistency::Crash => instant(members, Instant::now() + HOLD_LIMIT).await?,
            Consistency::Application => instant_at_rest(members).await?,
        };
        try_join_all(members.iter_mut().map(|member| async {
            let opened = self
                .open(&member.found, &mut member.qmp, &member.targets, member.next)
                .await;
            let disks = opened.map_err(|error| member.failed(error))?;
            Ok(FrozenPoint {
                vm: member.id(),
                taken_unix_ms,
                tracking: member.next,
                quiescence: member.quiescence.clone(),
                pause: member.pause,
                disks,
            })
        }))
        .await
    }

    /// Undoes what is there; a failure is logged, as the first error is the one to report.
    async fn undo(&self, member: &mut Member) {
        if let Err(error) = hold::wake_by(&member.found, &mut member.qmp).await {
            warn!(vm = member.name(), ?error, "a guest may still be held");
        }
        if let Err(error) = self.sweep(&member.found, &mut member.qmp).await {
            warn!(
                vm = member.name(),
                ?error,
                "a failed freeze could not be undone; clean up is needed"
            );
        }
        if member.changed_over
            && let Err(error) = take_back(&mut member.qmp, &member.targets, member.next).await
        {
            // Harmless for the data: `next` goes on recording, and older intervals are still there.
            warn!(vm = member.name(), %error, "tracking of a failed freeze stays");
        }
    }
}

/// The instant, with all guests at rest that can be brought to it.
async fn instant_at_rest(members: &mut [Member]) -> Result<i64, MemberError> {
    let deadline = Instant::now() + HOLD_LIMIT;
    let begin = Instant::now();
    let asked = try_join_all(members.iter().map(|member| async {
        let asked = hold::quiesce(&member.found).await;
        asked.map_err(|error| member.failed(error))
    }))
    .await?;
    let taken = instant(members, deadline).await;
    // In every case, and all at once: a guest waits behind each of them.
    join_all(
        members
            .iter_mut()
            .zip(asked)
            .map(|(member, asked)| async move {
                match asked {
                    Asked::Resting(quiet) => {
                        member.quiescence = quiet.thaw(&member.found).await;
                        member.pause = begin.elapsed();
                    }
                    Asked::Not(why) => member.quiescence = why,
                }
            }),
    )
    .await;
    taken
}

/// The instant: all members stand still while they are changed over. They go on in every case.
async fn instant(members: &mut [Member], deadline: Instant) -> Result<i64, MemberError> {
    let paused = join_all(
        members
            .iter_mut()
            .map(|member| hold::pause(&member.found, &mut member.qmp, deadline)),
    )
    .await;
    let taken_unix_ms = now_unix_ms();
    let standing = paused.iter().all(Result::is_ok);
    let changed = join_all(members.iter_mut().map(|member| async move {
        if standing {
            change_one(member, deadline).await
        } else {
            Ok(())
        }
    }))
    .await;
    // Nobody goes on before the last one is changed over: what it wrote then would be missing in a point that others,
    // who had seen it, are in.
    let resumed = join_all(
        members
            .iter_mut()
            .zip(paused)
            .map(|(member, paused)| async move {
                let paused = paused.map_err(|error| member.failed(error))?;
                let resumed = paused.resume(&member.found, &mut member.qmp).await;
                member.pause = resumed.map_err(|error| member.failed(error))?;
                Ok(())
            }),
    )
    .await;
    changed
        .into_iter()
        .chain(resumed)
        .collect::<Result<(), MemberError>>()
        .map(|()| taken_unix_ms)
}

async fn change_one(member: &mut Member, deadline: Instant) -> Result<(), MemberError> {
    let step = format!("freeze vm {}: change its disks over", member.name());
    let work = change_over(&mut member.qmp, &member.targets, member.next);
    match timeout_at(deadline, work).await {
        Ok(Ok(())) => {
            member.changed_over = true;
            Ok(())
        }
        Ok(Err(error)) => Err(member.failed(from_qmp(step, error))),
        Err(_) => Err(member.failed(HypervisorError::new(ErrorKind::Timeout, step))),
    }
}

pub(super) fn now_unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
