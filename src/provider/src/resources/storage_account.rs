//! `siterecovery_storage_account`: where replicas are kept: a folder that the hosts can write, or a container in Azure.

use arm_client::Method;
use arm_model::neighbours::StorageAccountProperties;
use arm_model::{Resource as Answer, StorageAccountId, validate};
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, Change, Diagnostics, Object, Schema};

use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};

pub(crate) struct StorageAccount;

const ENDPOINT: &str = "blob_endpoint";
const CONTAINER: &str = "container_name";
const KEY: &str = "account_key_wo";
const KEY_VERSION: &str = "account_key_wo_version";
const SECRET: &str = "client_secret_wo";
const SECRET_VERSION: &str = "client_secret_wo_version";
/// What only an account in Azure has.
const AZURE_ONLY: [&str; 11] = [
    CONTAINER,
    KEY,
    KEY_VERSION,
    "tenant_id",
    "client_id",
    SECRET,
    SECRET_VERSION,
    "authority",
    "stripes",
    "proxy_url",
    "ca_pem",
];
/// What makes a request when it changes.
const CHANGEABLE: [&str; 10] = [
    "account_replication_type",
    "tags",
    KEY_VERSION,
    SECRET_VERSION,
    "tenant_id",
    "client_id",
    "authority",
    "stripes",
    "proxy_url",
    "ca_pem",
];

impl Plain for StorageAccount {
    const TYPE: &'static str = "siterecovery_storage_account";
    const WHAT: &'static str = "storage account";
    const FIELDS: Fields = &[
        ("name", "name"),
        ("location", "location"),
        ("folder", "folder"),
        ("sku", "account_replication_type"),
        ("tags", "tags"),
        ("blobEndpoint", ENDPOINT),
        ("containerName", CONTAINER),
        ("accountKey", KEY),
        ("accessClient", "client_id"),
        ("clientSecret", SECRET),
        ("authority", "authority"),
        ("stripes", "stripes"),
        ("proxyUrl", "proxy_url"),
        ("caPem", "ca_pem"),
    ];
    const KEYS: &'static [&'static str] = &["name", "resource_group_name"];
    const REMOVAL: Removal = Removal::Delete;
    type Properties = StorageAccountProperties;
    type Id = StorageAccountId;

    fn schema() -> Schema {
        let text = || Attribute::string().optional();
        let version = |of: &str| {
            Attribute::number().optional().describe(format!(
                "Any number; change it together with `{of}`, whose changes Terraform can't see."
            ))
        };
        Schema::new()
            .describe(
                "A storage account for replicas: journal, base images and recovery points of the protected VMs. \
                 The account is a folder that the hosts can write (`folder`), or a container in Azure Storage \
                 (`blob_endpoint` with an account key or a client of Entra ID). Engines get signatures of a few hours for \
                 that one container, never the credential. Write-only arguments need Terraform 1.11.",
            )
            .attribute("name", fields::name("storage account", validate::storage_account_name))
            .attribute("resource_group_name", fields::resource_group_name())
            .attribute("location", fields::location())
            .attribute(
                "account_tier",
                Attribute::string()
                    .optional()
                    .default("Standard")
                    .one_of(&["Standard", "Premium"])
                    .requires_replace()
                    .describe(
                        "`Standard` (the default) or `Premium`. With premium storage a VM needs a log storage account, and the shortest replication interval is \
                         300 seconds. Changing it makes a new one.",
                    ),
            )
            .attribute(
                "account_replication_type",
                Attribute::string()
                    .optional()
                    .default("LRS")
                    .one_of(&["LRS", "ZRS", "GRS", "RAGRS", "GZRS", "RAGZRS"])
                    .describe("How the account's data is kept safe: `LRS` (the default), `ZRS`, `GRS`, `RAGRS`, `GZRS` or `RAGZRS`."),
            )
            .attribute(
                "folder",
                fields::checked(text().requires_replace(), validate::storage_folder).describe(
                    "Folder of the account, an absolute path as the hosts see it; it must exist or be creatable there. \
                     Give this or `blob_endpoint`. Changing it makes a new one.",
                ),
            )
            .attribute(
                ENDPOINT,
                fields::checked(text().requires_replace(), validate::blob_endpoint)
                    .same_when(|left, right| match (left.as_str(), right.as_str()) {
                        (Some(left), Some(right)) => {
                            left.trim_end_matches('/') == right.trim_end_matches('/')
                        }
                        _ => false,
                    })
                    .describe(
                        "Blob endpoint of an account in Azure, such as `https://account.blob.core.windows.net`. Changing it makes a new one.",
                    ),
            )
            .attribute(
                CONTAINER,
                fields::checked(text().requires_replace(), validate::container_name)
                    .describe("Container of the replicas; it is made when it isn't there. Default: one for each vault. Changing it makes a new one."),
            )
            .attribute(
                KEY,
                text()
                    .sensitive()
                    .write_only()
                    .check(|value| match value.as_str().map(validate::account_key) {
                        Some(Err(broken)) => Err(fields::refused(&broken)),
                        _ => Ok(()),
                    })
                    .describe("Key of the account in Azure. Write-only: neither plan nor state holds it. Give this or a client."),
            )
            .attribute(KEY_VERSION, version(KEY))
            .attribute("tenant_id", text().describe("Tenant of a client of Entra ID that has access to the account, in place of a key."))
            .attribute("client_id", text().describe("That client; it needs the role \"Storage Blob Data Contributor\" on the account."))
            .attribute(
                SECRET,
                text()
                    .sensitive()
                    .write_only()
                    .describe("Secret of that client. Write-only: neither plan nor state holds it."),
            )
            .attribute(SECRET_VERSION, version(SECRET))
            .attribute(
                "authority",
                fields::checked(text(), validate::authority)
                    .describe("Where that client signs in. Default: `https://login.microsoftonline.com`."),
            )
            .attribute(
                "stripes",
                fields::checked_number(Attribute::number().optional(), validate::stripes)
                    .describe("Page blobs that the base of a disk is spread over, for more than 500 requests or 60 MiB a second. Default: 1."),
            )
            .attribute(
                "proxy_url",
                fields::checked(text(), validate::proxy_url)
                    .describe("HTTP proxy for storage traffic, such as `http://proxy.example.com:3128`. Default: the hosts' own settings."),
            )
            .attribute(
                "ca_pem",
                fields::checked(text(), validate::ca_pem)
                    .describe("Further certificate authorities that the endpoint may use, PEM."),
            )
            .attribute(
                "primary_blob_endpoint",
                Attribute::string()
                    .computed()
                    .use_state_for_unknown()
                    .describe("Blob endpoint with a slash at the end, as azurerm has it; null for a folder."),
            )
            .attribute("tags", fields::tags())
    }

    fn id(session: &Session, object: &Object) -> Result<StorageAccountId, Diagnostics> {
        let group = session.group(object.require_str("resource_group_name")?);
        Ok(group.storage_account(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        let mut properties = json!({});
        for (property, attribute) in [
            ("folder", "folder"),
            ("blobEndpoint", ENDPOINT),
            ("containerName", CONTAINER),
            ("proxyUrl", "proxy_url"),
            ("caPem", "ca_pem"),
        ] {
            if let Some(text) = object.str(attribute) {
                properties[property] = json!(text);
            }
        }
        if let Some(stripes) = object.u64("stripes") {
            properties["stripes"] = json!(stripes);
        }
        if let Some(client) = object.str("client_id") {
            properties["accessClient"] = json!({
                "clientId": client,
                "tenantId": object.str("tenant_id"),
                "authority": object.str("authority"),
            });
        }
        json!({
            "location": object.string("location"),
            "kind": "StorageV2",
            "sku": { "name": sku(object), "tier": object.string("account_tier") },
            "tags": object.string_map("tags"),
            "properties": properties,
        })
    }

    fn add_secrets(config: &Object, body: &mut Json) {
        if let Some(key) = config.str(KEY) {
            body["properties"]["accountKey"] = json!(key);
        }
        if let Some(secret) = config.str(SECRET)
            && body["properties"]["accessClient"].is_object()
        {
            body["properties"]["accessClient"]["clientSecret"] = json!(secret);
        }
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        if !CHANGEABLE.iter().any(|name| change.changed(name)) {
            return None;
        }
        let mut body = Self::body(&change.planned);
        // The service keeps what it has when nothing is given: a changed client needs its secret, a new version asks for it.
        Self::add_secrets(&change.config, &mut body);
        Some((Method::Put, body))
    }

    fn fill(id: &StorageAccountId, answer: &Answer<StorageAccountProperties>, object: &mut Object) {
        let properties = &answer.properties;
        object.set("name", id.name());
        object.set("resource_group_name", id.resource_group());
        object.set("location", answer.location.as_deref());
        object.set("folder", properties.folder.as_deref());
        object.set(ENDPOINT, properties.blob_endpoint.as_deref());
        object.set(CONTAINER, properties.container_name.as_deref());
        object.set("proxy_url", properties.proxy_url.as_deref());
        object.set("ca_pem", properties.ca_pem.as_deref());
        object.set("stripes", properties.stripes);
        let client = properties.access_client.as_ref();
        object.set("tenant_id", client.map(|client| client.tenant_id.as_str()));
        object.set("client_id", client.map(|client| client.client_id.as_str()));
        object.set(
            "authority",
            client.and_then(|client| client.authority.as_deref()),
        );
        let blob = properties.extra.get("primaryEndpoints");
        object.set(
            "primary_blob_endpoint",
            blob.and_then(|endpoints| endpoints["blob"].as_str()),
        );
        let sku = answer
            .extra
            .get("sku")
            .and_then(|sku| sku["name"].as_str())
            .unwrap_or_default();
        if let Some((tier, replication)) = sku.split_once('_') {
            object.set("account_tier", tier);
            object.set("account_replication_type", replication);
        }
        super::vault::set_tags(answer, object);
    }

    fn validate(config: &Object, report: &mut Diagnostics) {
        let premium = config.str("account_tier") == Some("Premium");
        let replication = config.str("account_replication_type");
        if premium && replication.is_some_and(|r| !matches!(r, "LRS" | "ZRS")) {
            report.push_error(
                "account_replication_type",
                "Premium storage has no such replication",
                "With account_tier = \"Premium\" it must be LRS or ZRS.",
            );
        }
        check_place(config, report);
    }
}

/// A folder, or an account in Azure with a credential.
fn check_place(config: &Object, report: &mut Diagnostics) {
    match (config.is_null("folder"), config.is_null(ENDPOINT)) {
        (true, true) => report.push_error(
            "folder",
            "Where are the replicas?",
            "Give folder, a folder of the hosts, or blob_endpoint, an account in Azure.",
        ),
        (false, false) => report.push_error(
            ENDPOINT,
            "Two places for replicas",
            "Give folder or blob_endpoint, not both.",
        ),
        (false, true) => {
            for name in AZURE_ONLY {
                if !config.is_null(name) {
                    report.push_error(
                        name,
                        "Not for a folder",
                        format!("{name} belongs to an account in Azure (blob_endpoint)."),
                    );
                }
            }
        }
        (true, false) => check_credential(config, report),
    }
}

fn check_credential(config: &Object, report: &mut Diagnostics) {
    let client = ["tenant_id", "client_id", SECRET];
    let given: Vec<&str> = client
        .into_iter()
        .filter(|name| !config.is_null(name))
        .collect();
    if given.is_empty() && config.is_null(KEY) {
        report.push_error(
            KEY,
            "The account needs a credential",
            "Give account_key_wo, or tenant_id, client_id and client_secret_wo.",
        );
    }
    if !given.is_empty() && !config.is_null(KEY) {
        report.push_error(
            KEY,
            "Two credentials",
            "Give account_key_wo or a client, not both.",
        );
    }
    if !given.is_empty() && given.len() < client.len() {
        for name in client.into_iter().filter(|name| config.is_null(name)) {
            report.push_error(
                name,
                "The client is not complete",
                "A client has tenant_id, client_id and client_secret_wo.",
            );
        }
    }
    if given.is_empty() && !config.is_null("authority") {
        report.push_error(
            "authority",
            "An authority without a client",
            "authority belongs to tenant_id, client_id and client_secret_wo.",
        );
    }
}

fn sku(object: &Object) -> String {
    format!(
        "{}_{}",
        object.string("account_tier"),
        object.string("account_replication_type")
    )
}

#[cfg(test)]
mod tests {
    use tf_provider::Value;

    use super::*;

    fn problems(config: &Object) -> Vec<String> {
        let mut report = Diagnostics::new();
        check_place(config, &mut report);
        report.iter().map(|d| d.attribute.to_string()).collect()
    }

    #[test]
    fn an_account_is_a_folder_or_lies_in_azure_with_one_whole_credential() {
        let azure = Object::new().with(ENDPOINT, "https://a.blob.core.windows.net");
        assert_eq!(problems(&Object::new()), ["folder"]);
        assert!(problems(&Object::new().with("folder", "/srv")).is_empty());
        assert_eq!(
            problems(&Object::new().with("folder", "/srv").with("stripes", 2)),
            ["stripes"]
        );
        assert_eq!(problems(&azure), [KEY]);
        assert!(problems(&azure.clone().with(KEY, "k")).is_empty());
        assert_eq!(
            problems(&azure.clone().with("client_id", "c")),
            ["tenant_id", SECRET]
        );
        assert_eq!(problems(&azure.clone().with("folder", "/srv")), [ENDPOINT]);
        // What is not known yet is not judged.
        assert!(problems(&azure.with(KEY, Value::unknown())).is_empty());
    }

    #[test]
    fn secrets_go_into_the_request_and_never_into_the_state() {
        let planned = Object::new()
            .with("name", "st")
            .with(ENDPOINT, "https://a")
            .with("client_id", "c")
            .with("tenant_id", "t");
        let mut body = StorageAccount::body(&planned);
        assert!(!body.to_string().contains("TOP"));
        StorageAccount::add_secrets(&Object::new().with(SECRET, "TOP"), &mut body);
        assert_eq!(body["properties"]["accessClient"]["clientSecret"], "TOP");
    }
}
