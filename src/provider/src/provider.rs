//! The provider block and the list of what there is.

use std::path::PathBuf;

use arm_client::{Client, ClientConfig, ClientErrorKind, Secret};
use async_trait::async_trait;
use tf_provider::{
    Action, Attribute, Context, DataSource, Diagnostics, EphemeralResource, Function, Object,
    Provider, Resource, Schema,
};

use crate::actions::{CancelAction, DrillAction, FailoverAction};
use crate::data_sources::{self, Jobs, ProtectableVms, RecoveryPoints, ReplicationHealth};
use crate::errors::{detail, failed};
use crate::functions::{BuildId, ParseId};
use crate::plain::{ByName, Managed};
use crate::registration_key::RegistrationKey;
use crate::resources::{
    Association, DrillSchedule, HypervHost, NetworkMapping, Policy, ProtectedVm, RecoveryPlan,
    Site, StorageAccount, TestFailover, Vault, VirtualNetwork,
};
use crate::session::{Session, SshSecrets};

/// Arguments that an environment variable may give, with the variable and what the argument is.
pub(crate) const ARGUMENTS: [(&str, &str, &str); 11] = [
    (
        "endpoint",
        "SITERECOVERY_ENDPOINT",
        "Address of the orchestrator, such as `https://recovery.example.com:8443`.",
    ),
    (
        "ca_file",
        "SITERECOVERY_CA_FILE",
        "File with the certificates (PEM) that the orchestrator's certificate is checked against. Default: the system's.",
    ),
    (
        "ca_pem",
        "SITERECOVERY_CA_PEM",
        "The certificates themselves, in place of `ca_file`.",
    ),
    (
        "tenant_id",
        "SITERECOVERY_TENANT_ID",
        "Tenant that the token is asked for.",
    ),
    (
        "client_id",
        "SITERECOVERY_CLIENT_ID",
        "Name of the client that signs in.",
    ),
    (
        "client_secret",
        "SITERECOVERY_CLIENT_SECRET",
        "Secret of the client; better in the environment variable than in a file.",
    ),
    (
        "subscription_id",
        "SITERECOVERY_SUBSCRIPTION_ID",
        "Subscription of all that is made.",
    ),
    (
        "engine_path",
        "SITERECOVERY_ENGINE_PATH",
        "The engine that is put onto hosts. Default: `siterecovery-engine` beside the provider's executable.",
    ),
    (
        "ssh_private_key",
        "SITERECOVERY_SSH_PRIVATE_KEY",
        "Private key (OpenSSH, PEM) for hosts that are reached over SSH, in place of a `private_key_path` of each. Never stored.",
    ),
    (
        "ssh_private_key_passphrase",
        "SITERECOVERY_SSH_PRIVATE_KEY_PASSPHRASE",
        "Passphrase of that key, and of the keys of all `private_key_path`. Never stored.",
    ),
    (
        "ssh_password",
        "SITERECOVERY_SSH_PASSWORD",
        "Password for hosts that are reached over SSH, tried when keys were refused. Never stored.",
    ),
];

/// What Terraform hides.
const SENSITIVE: [&str; 4] = [
    "client_secret",
    "ssh_private_key",
    "ssh_private_key_passphrase",
    "ssh_password",
];

/// The provider.
#[derive(Debug, Clone, Copy)]
pub struct SiteRecovery;

#[async_trait]
impl Provider for SiteRecovery {
    type Client = Session;

    fn name(&self) -> &str {
        "siterecovery"
    }

    fn schema(&self) -> Schema {
        let mut schema = Schema::new().describe("Disaster recovery for Hyper-V virtual machines.");
        for (name, variable, text) in ARGUMENTS {
            let mut attribute = Attribute::string()
                .optional()
                .describe(format!("{text} Environment variable: `{variable}`."));
            if SENSITIVE.contains(&name) {
                attribute = attribute.sensitive();
            }
            schema = schema.attribute(name, attribute);
        }
        schema
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        if config.str("ca_file").is_some() && config.str("ca_pem").is_some() {
            report.push_error(
                "ca_pem",
                "Two sources of certificates",
                "Give ca_file or ca_pem, not both.",
            );
        }
        if let Some(endpoint) = config.str("endpoint")
            && !endpoint.starts_with("https://")
            && !endpoint.starts_with("http://")
        {
            report.push_error(
                "endpoint",
                "Not an address",
                "The endpoint must begin with https://, such as https://recovery.example.com:8443.",
            );
        }
    }

    async fn configure(
        &self,
        _cx: &Context<Session>,
        config: &Object,
    ) -> Result<Option<Session>, Diagnostics> {
        configure(config, &|variable| {
            std::env::var(variable).ok().filter(|text| !text.is_empty())
        })
        .await
    }

    fn resources(&self) -> Vec<Box<dyn Resource<Session>>> {
        vec![
            Box::new(Managed::<Vault>::new()),
            Box::new(Managed::<StorageAccount>::new()),
            Box::new(Managed::<VirtualNetwork>::new()),
            Box::new(Managed::<Site>::new()),
            Box::new(Managed::<Policy>::new()),
            Box::new(HypervHost),
            Box::new(Association),
            Box::new(NetworkMapping),
            Box::new(ProtectedVm),
            Box::new(RecoveryPlan),
            Box::new(Managed::<DrillSchedule>::new()),
            Box::new(TestFailover),
        ]
    }

    fn data_sources(&self) -> Vec<Box<dyn DataSource<Session>>> {
        vec![
            Box::new(ByName::<Vault>::new()),
            Box::new(ByName::<StorageAccount>::new()),
            Box::new(ByName::<VirtualNetwork>::new()),
            Box::new(ByName::<Site>::new()),
            Box::new(ByName::<Policy>::new()),
            Box::new(ProtectableVms),
            Box::new(RecoveryPoints),
            Box::new(ReplicationHealth),
            Box::new(Jobs),
            Box::new(data_sources::DrillSchedule),
        ]
    }

    fn ephemeral_resources(&self) -> Vec<Box<dyn EphemeralResource<Session>>> {
        vec![Box::new(RegistrationKey)]
    }

    fn actions(&self) -> Vec<Box<dyn Action<Session>>> {
        let boxed = |action| Box::new(action) as Box<dyn Action<Session>>;
        let mut actions: Vec<_> = FailoverAction::ALL.map(boxed).into();
        actions.push(Box::new(CancelAction));
        actions.push(Box::new(DrillAction));
        actions
    }

    fn functions(&self) -> Vec<Box<dyn Function>> {
        vec![Box::new(ParseId), Box::new(BuildId)]
    }
}

type Environment<'a> = &'a (dyn Fn(&str) -> Option<String> + Send + Sync);

async fn configure(
    config: &Object,
    environment: Environment<'_>,
) -> Result<Option<Session>, Diagnostics> {
    if !config.is_wholly_known() {
        return Ok(None);
    }
    let given = |name: &str| -> Option<String> {
        let variable = ARGUMENTS
            .iter()
            .find(|(own, ..)| *own == name)
            .map(|(_, variable, _)| *variable);
        config
            .str(name)
            .filter(|text| !text.is_empty())
            .map(ToOwned::to_owned)
            .or_else(|| environment(variable?))
    };
    let mut report = Diagnostics::new();
    let mut need = |name: &str| {
        given(name).unwrap_or_else(|| {
            let variable = ARGUMENTS
                .iter()
                .find(|(own, ..)| *own == name)
                .map_or("", |(_, variable, _)| variable);
            report.push_error(
                name,
                "Missing provider argument",
                format!("Set {name} in the provider block or {variable} in the environment."),
            );
            String::new()
        })
    };
    let (endpoint, tenant) = (need("endpoint"), need("tenant_id"));
    let (client_id, secret) = (need("client_id"), Secret::new(need("client_secret")));
    let subscription_id = need("subscription_id");
    report.into_result()?;

    let mut settings = ClientConfig::new(endpoint, tenant, client_id, secret);
    // An argument in the block goes before an environment variable of the other kind.
    let in_block = config.str("ca_pem").map(ToOwned::to_owned);
    settings.ca_pem = match (in_block, given("ca_file")) {
        (Some(pem), _) => Some(pem),
        (None, Some(file)) => Some(tokio::fs::read_to_string(&file).await.map_err(|error| {
            Diagnostics::error_at(
                "ca_file",
                "The CA file can't be read",
                format!("{file}: {error}."),
            )
        })?),
        (None, None) => given("ca_pem"),
    };
    let api = Client::new(settings).map_err(|error| {
        let at = if error.to_string().contains("endpoint") {
            "endpoint"
        } else {
            "ca_file"
        };
        Diagnostics::error_at(
            at,
            "The provider's configuration is not fit",
            detail(&error),
        )
    })?;
    api.sign_in().await.map_err(|error| {
        let at = match error.kind() {
            ClientErrorKind::Unauthorized | ClientErrorKind::Forbidden => "client_secret",
            ClientErrorKind::Untrusted => "ca_file",
            _ => "endpoint",
        };
        let mut report = Diagnostics::new();
        for diagnostic in &failed("Signing in failed", &error, &[]) {
            report.push(diagnostic.clone().at(at));
        }
        report
    })?;
    let hidden = |name: &str| given(name).map(host_deploy::Secret::new);
    let engine_path = given("engine_path").map_or_else(beside_this, PathBuf::from);
    Ok(Some(Session {
        api,
        subscription_id,
        engine_path,
        ssh: SshSecrets {
            private_key: hidden("ssh_private_key"),
            passphrase: hidden("ssh_private_key_passphrase"),
            password: hidden("ssh_password"),
        },
    }))
}

fn beside_this() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name(host_deploy::ENGINE_BINARY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_obeys_terraforms_rules() {
        use tf_provider::SchemaKind;
        let provider = SiteRecovery;
        let mut problems = provider.schema().check(SchemaKind::Provider);
        for resource in provider.resources() {
            problems.extend(resource.schema().check(SchemaKind::Resource));
            problems.extend(resource.identity().map(|i| i.check()).unwrap_or_default());
        }
        for data in provider.data_sources() {
            problems.extend(data.schema().check(SchemaKind::DataSource));
        }
        for ephemeral in provider.ephemeral_resources() {
            problems.extend(ephemeral.schema().check(SchemaKind::Ephemeral));
        }
        for action in provider.actions() {
            problems.extend(action.schema().check(SchemaKind::Config));
        }
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn every_attribute_is_described() {
        let provider = SiteRecovery;
        let mut bare = Vec::new();
        let schemas = provider
            .resources()
            .iter()
            .map(|r| (r.type_name().to_owned(), r.schema()))
            .chain(
                provider
                    .data_sources()
                    .iter()
                    .map(|d| (d.type_name().to_owned(), d.schema())),
            )
            .chain(
                provider
                    .actions()
                    .iter()
                    .map(|a| (a.type_name().to_owned(), a.schema())),
            )
            .collect::<Vec<_>>();
        for (name, schema) in schemas {
            for (attribute, found) in &schema.block.attributes {
                if found.description.is_empty() {
                    bare.push(format!("{name}.{attribute}"));
                }
            }
        }
        assert_eq!(bare, Vec::<String>::new());
    }

    #[tokio::test]
    async fn missing_arguments_are_each_named_with_their_variable() {
        let error = configure(&Object::new(), &|_| None).await.unwrap_err();
        let paths: Vec<String> = error.iter().map(|d| d.attribute.to_string()).collect();
        assert_eq!(
            paths,
            [
                "endpoint",
                "tenant_id",
                "client_id",
                "client_secret",
                "subscription_id"
            ]
        );
        assert!(error.to_string().contains("SITERECOVERY_CLIENT_SECRET"));
    }

    #[tokio::test]
    async fn a_configuration_that_is_not_known_yet_is_no_error() {
        let config = Object::new().with("endpoint", tf_provider::Value::unknown());
        assert!(configure(&config, &|_| None).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_ca_file_that_is_not_there_is_an_error_at_its_argument() {
        let all = |variable: &str| match variable {
            "SITERECOVERY_CA_FILE" => Some("/nowhere/ca.pem".to_owned()),
            "SITERECOVERY_CA_PEM" => None,
            "SITERECOVERY_ENDPOINT" => Some("https://localhost:1".to_owned()),
            _ => Some("x".to_owned()),
        };
        let error = configure(&Object::new(), &all).await.unwrap_err();
        assert_eq!(
            error.iter().next().unwrap().attribute.to_string(),
            "ca_file"
        );
    }
}
