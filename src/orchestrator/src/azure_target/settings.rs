//! The way into Azure: a JSON file that is read once, at the start.
//!
//! ```json
//! { "tenantId": "…", "clientId": "…", "clientSecretFile": "/etc/siterecovery/azure-secret" }
//! ```
//!
//! The secret is in a file of its own, so that the settings can be kept and shown; here it is only ever a [`Secret`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use azure_compute::{ClientConfig, Limits, Secret};
use serde::Deserialize;

/// See the module.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Endpoint, authority and client.
    pub client: ClientConfig,
    /// How long and how often resources are waited for.
    pub limits: Limits,
}

/// The file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    /// Azure Resource Manager.
    #[serde(default = "endpoint")]
    endpoint: String,
    /// Token issuer.
    #[serde(default = "authority")]
    authority: String,
    tenant_id: String,
    client_id: String,
    client_secret_file: PathBuf,
    /// Certificate authorities in place of the system's.
    ca_file: Option<PathBuf>,
}

fn endpoint() -> String {
    "https://management.azure.com".to_owned()
}

fn authority() -> String {
    "https://login.microsoftonline.com".to_owned()
}

/// Reads the file and the ones that it names; paths are taken from its own folder.
///
/// # Errors
/// When a file can't be read, is of another shape, or the secret is empty.
pub fn read(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "reading the settings of the Azure target in {}",
            path.display()
        )
    })?;
    let file: File = serde_json::from_str(&text)
        .with_context(|| format!("the settings of the Azure target in {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let secret_path = folder.join(&file.client_secret_file);
    let secret = std::fs::read_to_string(&secret_path).with_context(|| {
        format!(
            "reading the client secret of the Azure target in {}",
            secret_path.display()
        )
    })?;
    if secret.trim().is_empty() {
        bail!(
            "{} holds no client secret for the Azure target",
            secret_path.display()
        );
    }
    let mut client = ClientConfig::new(
        file.endpoint,
        file.tenant_id,
        file.client_id,
        Secret::new(secret.trim()),
    );
    client.authority = Some(file.authority.trim_end_matches('/').to_owned());
    if let Some(ca) = file.ca_file {
        let ca = folder.join(ca);
        let pem = std::fs::read_to_string(&ca).with_context(|| {
            format!(
                "reading the authorities of the Azure target in {}",
                ca.display()
            )
        })?;
        client.ca_pem = Some(pem);
    }
    Ok(Settings {
        client,
        limits: Limits::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_the_secrets_file_and_never_show_the_secret() {
        let folder = tempfile::tempdir().expect("folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written")
        };
        write("secret", "s3cret\n");
        write(
            "azure.json",
            r#"{ "tenantId": "t", "clientId": "c", "clientSecretFile": "secret" }"#,
        );
        let settings = read(&folder.path().join("azure.json")).expect("read");
        assert_eq!(settings.client.endpoint, "https://management.azure.com");
        assert_eq!(settings.client.client_secret, Secret::new("s3cret"));
        assert!(!format!("{settings:?}").contains("s3cret"));
        write(
            "azure.json",
            r#"{ "tenantId": "t", "clientId": "c", "clientSecret": "s3cret" }"#,
        );
        let error = format!(
            "{:#}",
            read(&folder.path().join("azure.json")).expect_err("a secret in the settings")
        );
        assert!(
            error.contains("clientSecret") && !error.contains("s3cret"),
            "{error}"
        );
        write("secret", "\n");
        write(
            "azure.json",
            r#"{ "tenantId": "t", "clientId": "c", "clientSecretFile": "secret" }"#,
        );
        assert!(
            read(&folder.path().join("azure.json")).is_err(),
            "an empty secret"
        );
    }
}
