//! `siterecovery_hyperv_host`: a Hyper-V host of a site; puts the engine onto it and takes it away again.
//!
//! ```text
//!  create: registration key ─► engine onto the host ─► started, enrolled ─► host shows as connected
//!  read:   the service's record of the host, and what really lies on it (hash, running)
//!  update: engine or configuration differ ─► replaced and restarted
//!  delete: record removed (refused while VMs are protected) ─► engine stopped and removed
//! ```
//!
//! The hash of the installed engine and whether it runs are in the state, so a damaged, old or stopped engine is a
//! difference that the next apply mends. Heartbeat and connection are not: they change by themselves.

mod checks;
mod connection;
mod elsewhere;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use arm_client::{ClientErrorKind, Method};
use arm_model::fabric::RegistrationKeyProperties;
use arm_model::services_provider::{CONNECTED, ServicesProviderProperties};
use arm_model::{FabricId, Resource as Answer, ServicesProviderId, validate};
use async_trait::async_trait;
use host_deploy::{DeployError, Deployer, Deployment, EngineSettings, Inspection, RegistrationKey};
use serde_json::json;
use tf_provider::{
    Attribute, Change, Context, Diagnostic, Diagnostics, IdentitySchema, ImportKey, Object, Plan,
    Presence, Resource, ResourceState, Schema, Type, Value,
};

use self::checks::{absolute, check, generations, generations_of, recovered_in};
use self::connection::{can_wait, channel, is_ssh, trusts_first_use};
use self::elsewhere::{Elsewhere, another_host, imported_elsewhere, still_there};
use super::association::site_id;
use crate::Session;
use crate::errors::{Fields, deploy_failed, sentence};
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, limits, timeouts};

const WHAT: &str = "Hyper-V host";
const FIELDS: Fields = &[("name", "name"), ("throttles", "throttle")];
const HOST_KEY: &str = "host_key_fingerprint";
const LOOKING: &str = "Looking at the engine on the host failed";
const READY: Duration = Duration::from_secs(60);
/// Unix sockets in these folders have short addresses.
const LONGEST_DATA_FOLDER: usize = 95;
/// The sockets of a recovered VM lie below it; a test holds it against the hypervisor's own limit.
const LONGEST_RECOVERY_FOLDER: usize = 55;

/// The resource.
pub(crate) struct HypervHost;

#[async_trait]
impl Resource<Session> for HypervHost {
    fn type_name(&self) -> &str {
        "siterecovery_hyperv_host"
    }

    fn schema(&self) -> Schema {
        let folder = |text: &str| {
            Attribute::string()
                .optional()
                .check(absolute)
                .describe(text)
        };
        let name = Attribute::string().required();
        Schema::new()
            .describe(
                "A Hyper-V host of a site. Creating it installs the replication engine on the host, starts it as a service and \
                 registers it with the site; destroying it stops the engine and removes all that was installed.",
            )
            .attribute(
                "name",
                fields::checked(name, validate::resource_name)
                    .describe("Name of the host as it shows in the vault."),
            )
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site")
                    .required()
                    .requires_replace()
                    .describe("Id of the site. Changing it makes a new host."),
            )
            .attribute("host_connection", connection::attribute())
            .attribute(
                "roles",
                Attribute::set(Type::String)
                    .optional()
                    .default(Value::set(["source", "recovery"]))
                    .describe("What the host is for: `source` (its VMs can be protected), `recovery` (recovered VMs can run on it). Default: both."),
            )
            .attribute(
                "vm_folder",
                folder("Folder on the host with one folder for each VM. Needed with the role `source`."),
            )
            .attribute(
                "data_folder",
                folder("Folder on the host for the engine's identity, state and configuration; it is removed with the host. At most 95 bytes. Default: `/var/lib/siterecovery`. Changing it makes a new host.")
                    .default("/var/lib/siterecovery")
                    .requires_replace(),
            )
            .attribute(
                "install_folder",
                folder("Folder on the host for the engine's executable. Default: `/opt/siterecovery/bin`. Changing it makes a new host.")
                    .default("/opt/siterecovery/bin")
                    .requires_replace(),
            )
            .attribute(
                "recovery_folder",
                folder("Folder on the host for recovered VMs. At most 55 bytes: the sockets of a VM in it would have no address otherwise. Default: `recovered` in `data_folder`. Changing it makes a new host.")
                    .computed()
                    .requires_replace(),
            )
            .attribute(
                "recovery_generations",
                Attribute::set(Type::Number)
                    .optional()
                    .check(generations)
                    .describe("Generations of VMs that may run on the host when it recovers them: `[1]`, `[2]` or `[1, 2]`. A Linux VM of generation 2 on a host without it is converted to generation 1 and back, see the guide on guests of generation 2; a Windows VM is refused. Default: what the host's hypervisor can run."),
            )
            .attribute("id", fields::id())
            .attribute(
                "engine_id",
                Attribute::string().computed().use_state_for_unknown().describe("GUID of the engine on the host."),
            )
            .attribute(
                "engine_version",
                Attribute::string().computed().use_state_for_unknown().describe("Version of the installed engine."),
            )
            .attribute(
                "engine_sha256",
                Attribute::string()
                    .computed()
                    .use_state_for_unknown()
                    .describe("SHA-256 of the installed engine. When it differs from the provider's, the engine is replaced."),
            )
            .attribute(
                "engine_running",
                Attribute::bool().computed().use_state_for_unknown().describe("Whether the engine runs. A stopped engine is started by the next apply."),
            )
            .attribute(
                HOST_KEY,
                Attribute::string()
                    .computed()
                    .use_state_for_unknown()
                    .describe("SHA-256 fingerprint of the key that the host has shown, where it is reached over SSH."),
            )
            .attribute("timeouts", timeouts::attribute(timeouts::QUICK))
            .block("throttle", limits::throttle_blocks("all VMs of the host together"))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        check(config, report);
    }

    async fn plan(&self, cx: &Context<Session>, plan: &mut Plan) -> Result<(), Diagnostics> {
        if plan.destroy {
            return Ok(());
        }
        if plan.config.is_null("recovery_folder") {
            match plan.planned.str("data_folder").map(recovered_in) {
                Some(folder) => plan.planned.set("recovery_folder", folder),
                None => plan.planned.set("recovery_folder", Value::unknown()),
            };
        }
        let Some(prior) = plan.prior.clone() else {
            return Ok(());
        };
        let shown_anew = plan.changed("host_connection") || prior.is_null(HOST_KEY);
        if is_ssh(&plan.planned) && shown_anew {
            plan.planned.set(HOST_KEY, Value::unknown());
        }
        imported_elsewhere(&prior, &plan.planned)?;
        if prior.is_null("engine_running") && prior.str("id").is_some() {
            plan.replace("engine_running");
        }
        if prior.bool("engine_running") != Some(true) {
            plan.planned.set("engine_running", true);
        }
        let Some(session) = cx.client_if_configured() else {
            return Ok(());
        };
        // Without an engine to install there is nothing to compare with; a change that needs it says so itself.
        let bundled = host_deploy::file_sha256(&session.engine_path)
            .ok()
            .flatten();
        if let Some(bundled) = bundled
            && prior.str("engine_sha256") != Some(bundled.as_str())
        {
            plan.planned.set("engine_sha256", bundled);
            plan.planned.set("engine_version", Value::unknown());
        }
        Ok(())
    }

    async fn create(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "create", timeouts::QUICK.create);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let until = Instant::now() + limit;
        // What was not known when it was planned.
        let mut report = Diagnostics::new();
        check(&change.planned, &mut report);
        report.into_result()?;
        let site = site_id(&change.planned)?;
        let deployment = deployment(&remote.session, &change.planned)?;
        let mut deployer = channel(&remote.session, &change.planned)?.deployer();
        let cannot = |error| deploy_failed("Putting the engine onto the host failed", &error);

        let before = deployer.inspect(&deployment).await.map_err(cannot)?;
        if let Some(shown) = &before.host_key_fingerprint {
            let first = trusts_first_use(&change.planned);
            state.value.set(HOST_KEY, shown.as_str());
            if first {
                // From here on it is this key or none.
                deployer = channel(&remote.session, &state.value)?.deployer();
                cx.warn(first_use(&state.value.string("name"), shown));
            }
        }
        if let Some(id) = &before.engine_id
            && before.owner.as_deref() == Some(deployment.owner.as_str())
            && remote
                .find::<serde_json::Value>(site.provider(id).as_str())
                .await?
                .is_none()
        {
            // Left over from a creation that was cut short or a record that is gone: its identity is worth nothing.
            tracing::info!("removing what is left of an earlier engine");
            deployer.uninstall(&deployment).await.map_err(cannot)?;
        }
        let key = registration_key(&remote, &site).await?;
        tracing::info!(
            "installing the engine into {}",
            deployment.install_folder.display()
        );
        deployer
            .install(&deployment, Some(&key))
            .await
            .map_err(cannot)?;
        deployer.restart(&deployment).await.map_err(cannot)?;
        let engine_id = deployer
            .wait_ready(&deployment, READY)
            .await
            .map_err(cannot)?;
        let id = site.provider(&engine_id);
        state.value.set("id", id.to_string());
        state.value.set("engine_id", engine_id);
        state.keep();

        wait_connected(&remote, &id, until, &deployment).await?;
        if !change.planned.objects("throttle").is_empty() {
            throttle(&remote, &id, &change.planned).await?;
        }
        observe(deployer.as_ref(), &deployment, &mut state.value).await
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics> {
        let limit = timeouts::of(&state.value, "read", timeouts::QUICK.read);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: ServicesProviderId = stored_id(&state.value)?;
        let found: Option<Answer<ServicesProviderProperties>> = remote.find(id.as_str()).await?;
        let deployment = deployment(&remote.session, &state.value)?;
        let deployer = channel(&remote.session, &state.value)?.deployer();
        let looked = deployer.inspect(&deployment).await;
        let Some(host) = found else {
            let Some(warning) = still_there(looked.as_ref(), &state.value) else {
                return Ok(Presence::Gone);
            };
            // An engine without a record: the next apply makes both anew, a destroy takes it away.
            state.value.set("engine_running", None::<bool>);
            cx.warn(warning);
            return Ok(Presence::Present);
        };
        fill(&id, &host, &mut state.value);
        match looked {
            Ok(seen) => {
                let other = another_host(&seen, &state.value);
                note(seen, &mut state.value);
                if let Some(problem) = other {
                    state.value.set("engine_running", false);
                    cx.warn(problem.warned());
                }
            }
            // What the last look has found stands. Over SSH also what is wrong on this side, as a key's file that has moved: it is
            // the connection of before, and the one that is planned is tried when something is to be done.
            Err(error) if is_ssh(&state.value) || can_wait(&error) => {
                cx.warn(not_seen(&state.value.string("name"), &error))
            }
            Err(error) => return Err(deploy_failed(LOOKING, &error)),
        }
        Ok(Presence::Present)
    }

    async fn update(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "update", timeouts::QUICK.update);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let until = Instant::now() + limit;
        let id: ServicesProviderId = stored_id(&state.value)?;
        let deployment = deployment(&remote.session, &change.planned)?;
        if change.changed("throttle") {
            throttle(&remote, &id, &change.planned).await?;
            // The engine on the host is still to be changed.
            fields::keep_done(state, change.prior.as_ref(), &["throttle"]);
        }
        if !change
            .prior
            .as_ref()
            .is_none_or(|prior| needs_deployment(prior, &change.planned))
        {
            return Ok(());
        }
        let mut reached = change.planned.clone();
        if let Some(prior) = &change.prior {
            // A change of the connection is no first use: the key that was seen once is demanded, or the one that is named now.
            reached.set(HOST_KEY, prior.str(HOST_KEY));
        }
        let deployer = channel(&remote.session, &reached)?.deployer();
        let cannot = |error| deploy_failed("Updating the engine on the host failed", &error);
        let seen = deployer.inspect(&deployment).await.map_err(cannot)?;
        if let Some(problem) = another_host(&seen, &state.value) {
            return Err(problem.refused("update"));
        }
        deployer.upgrade(&deployment).await.map_err(cannot)?;
        deployer
            .wait_ready(&deployment, READY)
            .await
            .map_err(cannot)?;
        wait_connected(&remote, &id, until, &deployment).await?;
        observe(deployer.as_ref(), &deployment, &mut state.value).await
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::QUICK.delete);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let deployment = deployment(&remote.session, &prior)?;
        let deployer = channel(&remote.session, &prior)?.deployer();
        let cannot = |error| deploy_failed("Removing the engine from the host failed", &error);
        // Before the record goes: without it nothing would remember the engine of a host that can't be reached now.
        let seen = deployer.inspect(&deployment).await.map_err(cannot)?;
        if let Some(Elsewhere::Other(problem)) = another_host(&seen, &prior) {
            return Err(Elsewhere::Other(problem).refused("destroy"));
        }
        // A creation that was cut short before the engine had an identity has no record.
        if prior.str("id").is_some() {
            let id: ServicesProviderId = stored_id(&prior)?;
            let orderly = remote
                .try_remove(Method::Post, &format!("{id}/remove"), None)
                .await?;
            if let Err(error) = orderly {
                // A record whose engine doesn't answer any more can still be dropped; a refusal is a refusal.
                if error.kind() != ClientErrorKind::OperationFailed {
                    return Err(remote.failed("Removing", &error));
                }
                remote.remove(Method::Delete, id.as_str(), None).await?;
            }
        }
        deployer.uninstall(&deployment).await.map_err(cannot)
    }

    async fn import(
        &self,
        _cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        let mut state = import_stub::<ServicesProviderId>(WHAT, key)?;
        // What the service doesn't know: an import takes the engine to lie in the usual places.
        state
            .value
            .set("host_connection", Object::new().with("type", "local"));
        state.value.set("data_folder", "/var/lib/siterecovery");
        state.value.set("install_folder", "/opt/siterecovery/bin");
        state
            .value
            .set("recovery_folder", recovered_in("/var/lib/siterecovery"));
        Ok(state)
    }
}

/// Whether a change is about the engine on the host, not about its record alone.
fn needs_deployment(prior: &Object, planned: &Object) -> bool {
    let bare = |object: &Object| {
        let mut object = object.clone();
        for name in ["throttle", "timeouts"] {
            object.remove(name);
        }
        object
    };
    bare(prior) != bare(planned)
}

async fn throttle(
    remote: &Remote<'_>,
    id: &ServicesProviderId,
    planned: &Object,
) -> Result<(), Diagnostics> {
    let body = json!({ "properties": { "throttles": limits::throttles_of(planned) } });
    let _host: serde_json::Value = remote.update(Method::Patch, id.as_str(), &body).await?;
    Ok(())
}

fn deployment(session: &Session, object: &Object) -> Result<Deployment, Diagnostics> {
    let has = |role: &str| object.strings("roles").iter().any(|own| own == role);
    let data_folder = object.require_str("data_folder")?;
    let recovery = object
        .str("recovery_folder")
        .map_or_else(|| recovered_in(data_folder), ToOwned::to_owned);
    Ok(Deployment {
        bundled_engine: session.engine_path.clone(),
        install_folder: object.require_str("install_folder")?.into(),
        settings: EngineSettings {
            vm_folder: object
                .str("vm_folder")
                .filter(|_| has("source"))
                .map(PathBuf::from),
            data_folder: data_folder.into(),
            recovery_folder: recovery.into(),
            recovery_role: has("recovery"),
            recovery_generations: generations_of(object),
            host_name: object.string("name"),
        },
        owner: object.string("hyperv_site_id").to_lowercase(),
    })
}

async fn registration_key(
    remote: &Remote<'_>,
    site: &FabricId,
) -> Result<RegistrationKey, Diagnostics> {
    let body = json!({ "properties": { "validityInHours": 1 } });
    let answer: KeyAnswer = remote
        .ask(&format!("{site}/registrationKeys"), &body)
        .await?;
    Ok(RegistrationKey::new(answer.properties.key))
}

/// Without `Debug`: it holds the key.
#[derive(serde::Deserialize)]
struct KeyAnswer {
    properties: RegistrationKeyProperties,
}

async fn wait_connected(
    remote: &Remote<'_>,
    id: &ServicesProviderId,
    until: Instant,
    deployment: &Deployment,
) -> Result<(), Diagnostics> {
    loop {
        let host: Option<Answer<ServicesProviderProperties>> = remote.find(id.as_str()).await?;
        if host.is_some_and(|host| host.properties.connection_status == CONNECTED) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Diagnostics::error(
                "The engine has not registered",
                format!(
                    "The engine runs on the host but the orchestrator has not heard of it in time.\nWhat to do: look at {}; check \
                     that the host can reach the orchestrator's gateway.",
                    deployment.settings.data_folder.join("engine.log").display()
                ),
            ));
        }
        remote.pause(Duration::from_millis(500)).await?;
    }
}

fn fill(id: &ServicesProviderId, host: &Answer<ServicesProviderProperties>, object: &mut Object) {
    let properties = &host.properties;
    object.set("name", properties.friendly_name.as_str());
    object.set(
        "hyperv_site_id",
        FabricId::of(id).map(|site| site.to_string()),
    );
    object.set("engine_id", id.name());
    limits::set_throttles(&properties.throttles, object);
    if object.is_null("roles") {
        // After an import; otherwise the state knows better than a report that may be a restart behind.
        let source = properties
            .allowed_scenarios
            .iter()
            .any(|s| s == arm_model::HYPER_V_REPLICA_AZURE);
        let roles = [("source", source), ("recovery", properties.recovery_role)];
        object.set(
            "roles",
            Value::set(
                roles
                    .into_iter()
                    .filter(|(_, has)| *has)
                    .map(|(role, _)| role),
            ),
        );
    }
}

/// What really lies on the host.
async fn observe(
    deployer: &dyn Deployer,
    deployment: &Deployment,
    object: &mut Object,
) -> Result<(), Diagnostics> {
    let seen = deployer
        .inspect(deployment)
        .await
        .map_err(|error| deploy_failed(LOOKING, &error))?;
    note(seen, object);
    Ok(())
}

fn note(seen: Inspection, object: &mut Object) {
    object.set("engine_sha256", seen.engine_sha256);
    object.set("engine_version", seen.engine_version);
    object.set("engine_running", seen.running);
    object.set(HOST_KEY, seen.host_key_fingerprint);
}

fn first_use(name: &str, shown: &str) -> Diagnostic {
    Diagnostic::warning(
        format!("The key of host {name} was trusted at first use"),
        format!(
            "The host has shown {shown}. Nobody has checked that it is the host's.\nWhat to do: compare it at the host's console \
             (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub). From now on the host must show this key."
        ),
    )
    .at("host_connection")
}

fn not_seen(name: &str, error: &DeployError) -> Diagnostic {
    Diagnostic::warning(
        format!("Host {name} could not be looked at"),
        format!(
            "{}\nWhat to do: {}\nVersion, hash and state of its engine are those of the last look.",
            sentence(&error.to_string()),
            sentence(error.next_step())
        ),
    )
}
