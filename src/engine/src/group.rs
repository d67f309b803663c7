//! VMs of one group on this host take their points at one instant.
//!
//! ```text
//!   member is due ─► gathering opens ─► the others are called ─► all have come ─► ONE freeze ─► each gets its point
//!                                                            └─► one can't ─► each freezes alone, and says why
//! ```
//!
//! A member takes part only when its last freeze went well and its disks are known: a VM that is off, or is being
//! compared, can't be in a shared point, and a shared point without it would promise what it doesn't hold. So then
//! there is none, and each VM has its own points, as without a group, until all can take part again.
//!
//! Promise: nobody waits longer than it says it will; a member that ends while others wait for it is waited for no more; a
//! point whose owner has gone is given back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::{Consistency, FreezeRequest, FrozenPoint, Hypervisor, HypervisorError};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

/// All groups of this host.
#[derive(Debug, Default)]
pub struct Groups {
    groups: Mutex<BTreeMap<String, Group>>,
}

#[derive(Debug)]
struct Group {
    members: BTreeMap<String, Member>,
    gathering: Option<Gathering>,
    /// Grows with every change that a waiting member may care for.
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Member {
    vm_name: String,
    ready: bool,
}

#[derive(Debug)]
struct Gathering {
    id: u64,
    come: BTreeMap<String, Guest>,
}

#[derive(Debug)]
struct Guest {
    request: FreezeRequest,
    consistency: Consistency,
    answer: oneshot::Sender<Answer>,
}

/// What a gathering came to, for one member.
#[derive(Debug)]
enum Answer {
    Point(Box<FrozenPoint>, Uuid),
    Alone(String),
}

/// A frozen point, and what it shares.
#[derive(Debug)]
pub struct GroupPoint {
    /// The point; to be released by its owner.
    pub point: FrozenPoint,
    /// The id that it shares with the points of the other members; `None` = it was frozen alone.
    pub shared: Option<Uuid>,
    /// Why it was frozen alone although it belongs to a group.
    pub alone_because: Option<String>,
}

impl Groups {
    /// Takes a seat in a group; leaving is dropping it.
    pub fn join(self: &Arc<Self>, group: &str, item_id: &str, vm_name: &str) -> Seat {
        let mut groups = self.lock();
        let found = groups.entry(group.to_owned()).or_insert_with(|| Group {
            members: BTreeMap::new(),
            gathering: None,
            version: watch::Sender::new(0),
        });
        let member = Member {
            vm_name: vm_name.to_owned(),
            ready: false,
        };
        found.members.insert(item_id.to_owned(), member);
        found.changed();
        Seat {
            version: found.version.subscribe(),
            groups: self.clone(),
            group: group.to_owned(),
            item_id: item_id.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Group>> {
        // Each change is whole by itself.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Names of the members that can't take part now, or have not come.
    fn missing(&self) -> Option<String> {
        let absent: Vec<&str> = self
            .members
            .values()
            .filter(|member| !member.ready)
            .map(|member| member.vm_name.as_str())
            .collect();
        (!absent.is_empty()).then(|| absent.join(", "))
    }

    fn all_have_come(&self) -> bool {
        self.gathering.as_ref().is_some_and(|gathering| {
            self.members
                .keys()
                .all(|item| gathering.come.contains_key(item))
        })
    }
}

/// A member's seat.
#[derive(Debug)]
pub struct Seat {
    groups: Arc<Groups>,
    group: String,
    item_id: String,
    version: watch::Receiver<u64>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get_mut(&self.group) {
            group.members.remove(&self.item_id);
            if let Some(gathering) = &mut group.gathering {
                gathering.come.remove(&self.item_id);
            }
            group.changed();
            if group.members.is_empty() {
                groups.remove(&self.group);
            }
        }
    }
}

impl Seat {
    /// The group's name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Returns when others gather for a shared point and this one is ready to come.
    pub async fn called(&mut self) {
        let mut version = self.version.clone();
        loop {
            version.borrow_and_update();
            if self.is_called() {
                return;
            }
            if version.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn is_called(&self) -> bool {
        let groups = self.groups.lock();
        groups.get(&self.group).is_some_and(|group| {
            let ready = group
                .members
                .get(&self.item_id)
                .is_some_and(|member| member.ready);
            let waited_for = group
                .gathering
                .as_ref()
                .is_some_and(|gathering| !gathering.come.contains_key(&self.item_id));
            ready && waited_for
        })
    }

    /// Freezes together with the group when all can take part within `patience`, else alone. `whole` says whether a
    /// recovery point can be made of it.
    ///
    /// # Errors
    /// Those of [`Hypervisor::freeze`]: nothing is frozen then.
    pub async fn freeze(
        &mut self,
        host: &dyn Hypervisor,
        request: FreezeRequest,
        consistency: Consistency,
        whole: bool,
        patience: Duration,
    ) -> Result<GroupPoint, HypervisorError> {
        let why = if whole {
            match self.gather(host, &request, consistency, patience).await {
                Answer::Point(point, id) => {
                    return Ok(GroupPoint {
                        point: *point,
                        shared: Some(id),
                        alone_because: None,
                    });
                }
                Answer::Alone(why) => why,
            }
        } else {
            "its own disks are being compared".to_owned()
        };
        let point = host
            .freeze(
                request.vm,
                &request.disks,
                request.since,
                request.next,
                consistency,
            )
            .await;
        self.set_ready(whole && point.is_ok());
        Ok(GroupPoint {
            point: point?,
            shared: None,
            alone_because: Some(why).filter(|why| !why.is_empty()),
        })
    }

    fn set_ready(&self, ready: bool) {
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get_mut(&self.group)
            && let Some(member) = group.members.get_mut(&self.item_id)
            && member.ready != ready
        {
            member.ready = ready;
            group.changed();
        }
    }

    /// Comes to the gathering, or opens one and leads it.
    async fn gather(
        &mut self,
        host: &dyn Hypervisor,
        request: &FreezeRequest,
        consistency: Consistency,
        patience: Duration,
    ) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let guest = Guest {
            request: request.clone(),
            consistency,
            answer: sender,
        };
        let led = {
            let mut groups = self.groups.lock();
            let Some(group) = groups.get_mut(&self.group) else {
                return Answer::Alone(String::new());
            };
            if group.members.len() < 2 {
                // A group of one: its points are shared with nobody, and nothing is wrong with it.
                return Answer::Alone(String::new());
            }
            if let Some(missing) = group.missing() {
                return Answer::Alone(format!("{missing} can't take part now"));
            }
            let led = group.gathering.is_none().then(|| *group.version.borrow());
            let gathering = group.gathering.get_or_insert_with(|| Gathering {
                id: led.unwrap_or_default(),
                come: BTreeMap::new(),
            });
            gathering.come.insert(self.item_id.clone(), guest);
            group.changed();
            led
        };
        match led {
            Some(id) => {
                let lead = Lead {
                    groups: self.groups.clone(),
                    group: self.group.clone(),
                    id,
                };
                self.lead(host, lead, receiver, patience).await
            }
            // The leader's patience is a part of its own interval; when it ends, so does the wait.
            None => receiver.await.unwrap_or_else(|_| {
                Answer::Alone("the member that led the group ended".to_owned())
            }),
        }
    }

    async fn lead(
        &mut self,
        host: &dyn Hypervisor,
        lead: Lead,
        mut own: oneshot::Receiver<Answer>,
        patience: Duration,
    ) -> Answer {
        let mut version = self.version.clone();
        let all_come = async {
            loop {
                version.borrow_and_update();
                match lead.state() {
                    State::Gathering => {}
                    State::Complete => return true,
                    State::Broken => return false,
                }
                if version.changed().await.is_err() {
                    return false;
                }
            }
        };
        let complete = tokio::time::timeout(patience, all_come).await;
        let (guests, missing) = lead.close();
        if complete != Ok(true) || guests.len() < 2 {
            let why = if missing.is_empty() {
                "the group changed meanwhile".to_owned()
            } else {
                format!("{} did not come in time", missing.join(", "))
            };
            answer_all(guests, &why);
        } else {
            freeze_together(host, guests).await;
        }
        own.try_recv()
            .unwrap_or_else(|_| Answer::Alone("the group changed meanwhile".to_owned()))
    }
}

enum State {
    Gathering,
    Complete,
    Broken,
}

/// The leader's hold on its gathering: whatever ends the leader ends it, and answers those who came.
struct Lead {
    groups: Arc<Groups>,
    group: String,
    id: u64,
}

impl Lead {
    fn state(&self) -> State {
        let groups = self.groups.lock();
        match groups.get(&self.group) {
            Some(group) if group.all_have_come() => State::Complete,
            Some(group) if group.missing().is_none() => State::Gathering,
            _ => State::Broken,
        }
    }

    /// Ends the gathering; gives who came, and the names of those who did not. Who did not is no longer waited for, until it
    /// has shown that it can freeze.
    fn close(&self) -> (Vec<Guest>, Vec<String>) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(&self.group) else {
            return (Vec::new(), Vec::new());
        };
        let gathering = match group.gathering.take() {
            Some(gathering) if gathering.id == self.id => gathering,
            other => {
                group.gathering = other;
                return (Vec::new(), Vec::new());
            }
        };
        let mut missing = Vec::new();
        for (item, member) in &mut group.members {
            if !gathering.come.contains_key(item) {
                member.ready = false;
                missing.push(member.vm_name.clone());
            }
        }
        group.changed();
        (gathering.come.into_values().collect(), missing)
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Dropping the answers tells the others; after an orderly end there is nothing left to close.
        self.close();
    }
}

fn answer_all(guests: Vec<Guest>, why: &str) {
    for guest in guests {
        // One that is gone needs no answer.
        guest.answer.send(Answer::Alone(why.to_owned())).ok();
    }
}

async fn freeze_together(host: &dyn Hypervisor, guests: Vec<Guest>) {
    let application = guests
        .iter()
        .any(|guest| guest.consistency == Consistency::Application);
    let consistency = if application {
        Consistency::Application
    } else {
        Consistency::Crash
    };
    let requests: Vec<FreezeRequest> = guests.iter().map(|guest| guest.request.clone()).collect();
    let points = match host.freeze_group(&requests, consistency).await {
        Ok(points) => points,
        Err(error) => {
            let why = format!(
                "the common freeze failed: {}",
                crate::replicator::trouble::chain(&error)
            );
            return answer_all(guests, &why);
        }
    };
    let id = Uuid::new_v4();
    for (guest, point) in guests.into_iter().zip(points) {
        if let Err(Answer::Point(point, _)) = guest.answer.send(Answer::Point(Box::new(point), id))
            && let Err(error) = host.release(*point).await
        {
            tracing::warn!(
                ?error,
                "a point that nobody waits for could not be given back"
            );
        }
    }
}

#[cfg(test)]
mod tests;
