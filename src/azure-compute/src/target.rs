//! The target: plans a VM, makes it, starts and stops it, shows it, takes it away.

use arm_client::{CancellationToken, Client, ClientConfig, Method};
use futures::future::join_all;
use serde_json::Value;

use crate::calls::{At, Calls, Limits, Sent, is_good, state_of};
use crate::error::{TargetError, TargetErrorKind};
use crate::finding::{Finding, Severity};
use crate::gather::gather;
use crate::plan::{TargetPlan, decide};
use crate::resource::{Kind, Planned, path_of};
use crate::spec::{Place, TargetSpec};
use crate::tags::{OWNER_TAG, PLAN_TAG, value_of};
use crate::view::{InstanceView, Power};

/// Azure as a place to recover VMs in.
#[derive(Debug)]
pub struct Target {
    pub(crate) calls: Calls,
}

/// A resource that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: String,
    /// ARM id.
    pub id: String,
    /// Of a NIC its private address, of a public address that one.
    pub address: Option<String>,
}

impl Target {
    /// Sets up the client; nothing is sent yet. For Azure itself the endpoint is `https://management.azure.com` and the
    /// authority `https://login.microsoftonline.com`.
    pub fn new(config: ClientConfig, limits: Limits) -> Result<Target, TargetError> {
        let client = Client::new(config)
            .map_err(|e| TargetError::of("setting up", "the recovery target", e))?;
        Ok(Target {
            calls: Calls::new(client, limits),
        })
    }

    /// Decides everything and says all findings at once, names that somebody else has in Azure among them. Nothing is made.
    pub async fn plan(&self, spec: &TargetSpec) -> Result<TargetPlan, TargetError> {
        let facts = gather(&self.calls, spec).await?;
        let mut plan = decide(spec, &facts);
        if facts.group_exists {
            let looks = plan.resources.iter().map(|r| self.look(r));
            for finding in join_all(looks).await {
                plan.findings.extend(finding?);
            }
        }
        Ok(plan)
    }

    async fn look(&self, resource: &Planned) -> Result<Option<Finding>, TargetError> {
        let about = resource.about();
        let at = At {
            step: "looking for",
            about: &about,
        };
        let found = self.calls.find(at, &resource.path()).await?;
        let conflict = found.and_then(|found| conflict(resource, &found));
        Ok(conflict.map(|(_, text, next)| Finding {
            severity: Severity::Error,
            about: about.clone(),
            text: text.to_owned(),
            next_step: next.to_owned(),
        }))
    }

    /// Makes what the plan says and waits until the VM runs. Whoever was cut off calls it again with the same plan: what stands
    /// is left, what is missing is made. So the plan is stored before it is made.
    pub async fn make(
        &self,
        plan: &TargetPlan,
        cancel: &CancellationToken,
    ) -> Result<Vec<Made>, TargetError> {
        if !plan.is_possible() {
            let all: Vec<String> = plan
                .findings
                .iter()
                .filter(|f| f.severity == Severity::Error)
                .map(ToString::to_string)
                .collect();
            return Err(TargetError::new(
                TargetErrorKind::ImpossiblePlan,
                "making",
                &format!("VM {}", plan.vm_name),
                all.join(". "),
                "change that and make a new plan",
            ));
        }
        let mut made = Vec::new();
        for kind in Kind::ALL {
            let wave = plan.resources.iter().filter(|r| r.kind == kind);
            // All of them are waited for, so that nothing is on its way when an error is handed back.
            for result in join_all(wave.map(|r| self.ensure(r, cancel))).await {
                made.push(result?);
            }
        }
        Ok(made)
    }

    /// One resource: looks, makes it if it is missing, and looks again when it is unknown what became of that.
    pub(crate) async fn ensure(
        &self,
        resource: &Planned,
        cancel: &CancellationToken,
    ) -> Result<Made, TargetError> {
        let about = resource.about();
        let at = At {
            step: "making",
            about: &about,
        };
        let path = resource.path();
        let (mut attempt, mut body) = (0, &resource.body);
        loop {
            if let Some(found) = self.calls.settled(at, &path, cancel).await? {
                if let Some((kind, text, next)) = conflict(resource, &found) {
                    return Err(TargetError::new(kind, at.step, &about, text, next));
                }
                if is_good(&found) {
                    return Ok(made(resource, &found));
                }
                if matches!(resource.kind, Kind::Disk | Kind::Snapshot) {
                    // What an import that failed has left can't be imported into again.
                    self.delete(resource.kind, &resource.id, &resource.owner, cancel)
                        .await?;
                }
            }
            attempt += 1;
            let error = match self
                .calls
                .send(at, Method::Put, &path, Some(body), cancel)
                .await
            {
                Ok(answer) if is_good(&answer) => return Ok(made(resource, &answer)),
                Ok(answer) => TargetError::of_code(
                    at.step,
                    &about,
                    "",
                    &format!("it ended as `{}`", state_of(&answer)),
                ),
                Err(Sent::Failed(error)) => match &resource.with_any_address {
                    Some(other)
                        if error.kind() == TargetErrorKind::AddressInUse
                            && !std::ptr::eq(body, other) =>
                    {
                        body = other;
                        continue;
                    }
                    _ => return Err(error),
                },
                Err(Sent::LookAgain(error)) => error,
            };
            if attempt >= self.calls.attempts() {
                // A last look: it may have been done all the same.
                return match self.calls.settled(at, &path, cancel).await? {
                    Some(found) if is_good(&found) && conflict(resource, &found).is_none() => {
                        Ok(made(resource, &found))
                    }
                    _ => Err(error),
                };
            }
            tracing::debug!(%error, attempt, "looking and trying again");
            self.calls
                .back_off(at, attempt, error.retry_after(), cancel)
                .await?;
        }
    }

    /// How the VM stands; `None` when there is none of this recovery.
    pub async fn view(
        &self,
        vm_id: &str,
        recovery_id: &str,
    ) -> Result<Option<InstanceView>, TargetError> {
        let about = format!("VM {}", last(vm_id));
        let at = At {
            step: "looking at",
            about: &about,
        };
        let path = format!("{}&$expand=instanceView", path_of(Kind::Vm, vm_id));
        let Some(vm) = self.calls.find(at, &path).await? else {
            return Ok(None);
        };
        if value_of(&vm, OWNER_TAG) != Some(recovery_id) {
            return Err(foreign(at));
        }
        Ok(Some(InstanceView::from_vm(&vm)))
    }

    /// Starts the VM; one that runs is left alone.
    pub async fn start(
        &self,
        vm_id: &str,
        recovery_id: &str,
        cancel: &CancellationToken,
    ) -> Result<(), TargetError> {
        self.power(
            "starting",
            vm_id,
            recovery_id,
            "start",
            Power::Running,
            cancel,
        )
        .await
    }

    /// Shuts the VM down and gives its machine back (`deallocate`).
    pub async fn stop(
        &self,
        vm_id: &str,
        recovery_id: &str,
        cancel: &CancellationToken,
    ) -> Result<(), TargetError> {
        self.power(
            "stopping",
            vm_id,
            recovery_id,
            "deallocate",
            Power::Deallocated,
            cancel,
        )
        .await
    }

    async fn power(
        &self,
        step: &'static str,
        vm_id: &str,
        recovery_id: &str,
        action: &str,
        wanted: Power,
        cancel: &CancellationToken,
    ) -> Result<(), TargetError> {
        let about = format!("VM {}", last(vm_id));
        let at = At {
            step,
            about: &about,
        };
        let path = format!("{vm_id}/{action}?api-version={}", Kind::Vm.api_version());
        let mut attempt = 0;
        loop {
            self.calls
                .settled(at, &path_of(Kind::Vm, vm_id), cancel)
                .await?;
            let Some(view) = self.view(vm_id, recovery_id).await? else {
                return Err(TargetError::new(
                    TargetErrorKind::NotFound,
                    step,
                    &about,
                    "it does not exist",
                    "make it again, or end the failover",
                ));
            };
            if view.power == wanted {
                return Ok(());
            }
            attempt += 1;
            match self.calls.send(at, Method::Post, &path, None, cancel).await {
                Ok(_) => return Ok(()),
                Err(Sent::Failed(error)) => return Err(error),
                Err(Sent::LookAgain(error)) if attempt >= self.calls.attempts() => {
                    return match self.view(vm_id, recovery_id).await? {
                        Some(view) if view.power == wanted => Ok(()),
                        _ => Err(error),
                    };
                }
                Err(Sent::LookAgain(error)) => {
                    self.calls
                        .back_off(at, attempt, error.retry_after(), cancel)
                        .await?;
                }
            }
        }
    }

    /// Takes away everything in the group that carries this recovery id, the VM first, and gives back the ids. What doesn't carry it is
    /// never touched. May be repeated; when nothing is left it does nothing.
    ///
    /// An isolated network goes with the id of its owner, once no NIC is in it. Page blobs are not ARM resources: whoever wrote them
    /// ([`TargetPlan::blobs`]) removes them afterwards.
    pub async fn remove(
        &self,
        place: &Place,
        recovery_id: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>, TargetError> {
        let about = format!("resource group {}", place.resource_group);
        let at = At {
            step: "looking for what to remove in",
            about: &about,
        };
        let mut removed = Vec::new();
        for kind in Kind::ALL.into_iter().rev() {
            // Listed by the resource provider itself: the group's own list may lag behind.
            let all = self.calls.list(at, &kind.list_path(place)).await?;
            let ours: Vec<&str> = all
                .iter()
                .filter(|r| value_of(r, OWNER_TAG) == Some(recovery_id))
                .filter_map(|r| r.get("id")?.as_str())
                .collect();
            let deletions = ours
                .iter()
                .map(|id| self.delete(kind, id, recovery_id, cancel));
            for (result, id) in join_all(deletions).await.into_iter().zip(&ours) {
                if result? {
                    removed.push((*id).to_owned());
                }
            }
        }
        Ok(removed)
    }

    /// Removes one resource if it carries the id at this moment; says whether it was there.
    pub(crate) async fn delete(
        &self,
        kind: Kind,
        id: &str,
        owner: &str,
        cancel: &CancellationToken,
    ) -> Result<bool, TargetError> {
        let about = format!("{} {}", kind.word(), last(id));
        let at = At {
            step: "removing",
            about: &about,
        };
        let path = path_of(kind, id);
        let mut attempt = 0;
        loop {
            match self.calls.settled(at, &path, cancel).await? {
                None => return Ok(attempt > 0),
                Some(found) if value_of(&found, OWNER_TAG) != Some(owner) => return Ok(false),
                Some(_) => {}
            }
            attempt += 1;
            match self
                .calls
                .send(at, Method::Delete, &path, None, cancel)
                .await
            {
                Ok(_) => return Ok(true),
                Err(Sent::Failed(error) | Sent::LookAgain(error))
                    if error.kind() == TargetErrorKind::NotFound =>
                {
                    return Ok(true);
                }
                Err(Sent::Failed(error)) if error.kind() != TargetErrorKind::Busy => {
                    return Err(error);
                }
                Err(Sent::Failed(error) | Sent::LookAgain(error)) => {
                    if attempt >= self.calls.attempts() {
                        return match self.calls.settled(at, &path, cancel).await? {
                            None => Ok(true),
                            Some(_) => Err(error),
                        };
                    }
                    self.calls
                        .back_off(at, attempt, error.retry_after(), cancel)
                        .await?;
                }
            }
        }
    }
}

/// Why a resource that exists is not the one of the plan.
fn conflict(
    resource: &Planned,
    found: &Value,
) -> Option<(TargetErrorKind, &'static str, &'static str)> {
    if value_of(found, OWNER_TAG) != Some(resource.owner.as_str()) {
        return Some((
            TargetErrorKind::Foreign,
            "something of that name exists and does not belong to this recovery",
            "choose another target name, or remove what is there if it is not needed",
        ));
    }
    if value_of(found, PLAN_TAG) != value_of(&resource.body, PLAN_TAG) {
        return Some((
            TargetErrorKind::OtherPlan,
            "it was made by an earlier try with another plan",
            "remove that try, then make this one",
        ));
    }
    None
}

pub(crate) fn foreign(at: At<'_>) -> TargetError {
    TargetError::new(
        TargetErrorKind::Foreign,
        at.step,
        at.about,
        "it does not belong to this recovery",
        "nothing was done to it; check the name",
    )
}

fn made(resource: &Planned, found: &Value) -> Made {
    let address = match resource.kind {
        Kind::Nic => found.pointer("/properties/ipConfigurations/0/properties/privateIPAddress"),
        Kind::PublicAddress => found.pointer("/properties/ipAddress"),
        _ => None,
    };
    Made {
        kind: resource.kind,
        name: resource.name.clone(),
        id: resource.id.clone(),
        address: address.and_then(Value::as_str).map(ToOwned::to_owned),
    }
}

pub(crate) fn last(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}
