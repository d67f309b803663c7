//! What the first start makes and later starts find: CA, token key, tenant, admin client.
//!
//! ```text
//!  <data>/metadata.db             resources, jobs, clients (hashes only)
//!  <data>/identity/ca.pem         root certificate, for clients to trust
//!  <data>/identity/ca.key         its key (0600)
//!  <data>/identity/token.key      signing key of access tokens (0600)
//!  <data>/identity/secrets.key    seals vault keys and storage credentials in the database (0600)
//!  <data>/identity/installation   tenant and subscription
//! ```

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use engine_protocol::Authority;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::app::App;
use crate::auth::clients;
use crate::auth::jwt::SigningKey;
use crate::auth::roles::Role;
use crate::seal::Sealer;
use crate::store::records::{self, Client};

const PRIVATE: u32 = 0o600;
const PRIVATE_FOLDER: u32 = 0o700;

/// Keys and names of this installation.
pub struct Identity {
    /// CA.
    pub authority: Authority,
    /// Token key, PKCS #8.
    pub token_key: Vec<u8>,
    /// Seals secrets before they are stored.
    pub sealer: Sealer,
    /// Tenant.
    pub tenant_id: String,
    /// Subscription that the admin client is told.
    pub subscription_id: String,
}

#[derive(Serialize, Deserialize)]
struct Installation {
    tenant_id: String,
    subscription_id: String,
}

/// What to export, told once.
#[derive(Clone)]
pub struct AdminClient {
    /// Name and value, in the order to print.
    pub variables: Vec<(&'static str, String)>,
}

// === impl AdminClient ===

impl AdminClient {
    /// Lines for a shell.
    #[must_use]
    pub fn exports(&self) -> String {
        self.variables
            .iter()
            .map(|(name, value)| format!("export {name}={}\n", quote(value)))
            .collect()
    }

    /// The same without the secret, for output that others may read.
    #[must_use]
    pub fn exports_without_secret(&self) -> String {
        let all = self.exports();
        let open = all
            .lines()
            .filter(|line| !line.starts_with("export SITERECOVERY_CLIENT_SECRET="));
        open.map(|line| format!("{line}\n")).collect()
    }

    /// One value.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.variables
            .iter()
            .find(|(known, _)| *known == name)
            .map_or("", |(_, value)| value)
    }

    /// Writes the lines into a file that only the owner reads.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_private(path, self.exports().as_bytes())
    }
}

fn quote(value: &str) -> String {
    if value
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_./:".contains(c))
    {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}

/// Opens the data folder, or makes it.
///
/// # Errors
/// When it can't be made or holds something else.
pub fn open(data: &Path) -> Result<Identity> {
    let folder = data.join("identity");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_FOLDER)
        .create(&folder)
        .with_context(|| format!("making the data folder {}", data.display()))?;
    let file = |name: &str| folder.join(name);
    let installation = if file("installation").exists() {
        serde_json::from_slice(&read(&file("installation"))?)
            .context("reading the installation's names")?
    } else {
        let fresh = Installation {
            tenant_id: Uuid::new_v4().to_string(),
            subscription_id: Uuid::new_v4().to_string(),
        };
        write_private(&file("installation"), &serde_json::to_vec_pretty(&fresh)?)?;
        fresh
    };
    // The key is written first: a certificate without its key would be of no use after a crash in between.
    let authority = if file("ca.pem").exists() {
        let text = |name: &str| -> Result<String> { Ok(String::from_utf8(read(&file(name))?)?) };
        Authority::from_pem(text("ca.pem")?, text("ca.key")?)
            .context("reading the certificate authority")?
    } else {
        let name = format!(
            "Site Recovery CA {}",
            installation.tenant_id.get(..8).unwrap_or_default()
        );
        let fresh = Authority::generate(&name, OffsetDateTime::now_utc())?;
        write_private(&file("ca.key"), fresh.key_pem().as_bytes())?;
        write_private(&file("ca.pem"), fresh.certificate_pem().as_bytes())?;
        fresh
    };
    let token_key = if file("token.key").exists() {
        read(&file("token.key"))?
    } else {
        let fresh = SigningKey::generate()?;
        write_private(&file("token.key"), &fresh)?;
        fresh
    };
    let sealer = if file("secrets.key").exists() {
        Sealer::new(&read(&file("secrets.key"))?)?
    } else {
        let fresh = Sealer::generate()?;
        write_private(&file("secrets.key"), &fresh)?;
        Sealer::new(&fresh)?
    };
    Ok(Identity {
        authority,
        token_key,
        sealer,
        tenant_id: installation.tenant_id,
        subscription_id: installation.subscription_id,
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a file whole or not at all, for the owner's eyes only.
fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let Some(folder) = path.parent() else {
        bail!("{} has no folder", path.display());
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE)
        .open(&name)
        .with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    file.sync_all().with_context(context)?;
    fs::rename(&name, path).with_context(context)?;
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(context)
}

/// Makes the admin client when there is no client at all.
///
/// # Errors
/// When the store or the random source fails.
pub async fn admin(app: &App, subscription_id: &str, data: &Path) -> Result<Option<AdminClient>> {
    if records::any::<Client>(app.store.as_ref(), "~client/").await? {
        return Ok(None);
    }
    let (client, secret) = clients::create(app.store.as_ref(), "admin", Role::Owner, "/").await?;
    let ca = data.join("identity").join("ca.pem");
    let ca = ca.canonicalize().unwrap_or(ca);
    Ok(Some(AdminClient {
        variables: vec![
            ("SITERECOVERY_ENDPOINT", app.public_url.clone()),
            ("SITERECOVERY_CA_FILE", ca.display().to_string()),
            ("SITERECOVERY_TENANT_ID", app.tenant_id.clone()),
            ("SITERECOVERY_CLIENT_ID", client.client_id),
            ("SITERECOVERY_CLIENT_SECRET", secret),
            ("SITERECOVERY_SUBSCRIPTION_ID", subscription_id.to_owned()),
        ],
    }))
}

/// Names that the server certificate is valid for.
#[must_use]
pub fn server_names(public_url: &str, gateway: &str) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        host_name(),
    ];
    let url = public_url.strip_prefix("https://").unwrap_or(public_url);
    for address in [url.split('/').next().unwrap_or_default(), gateway] {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        names.push(host.trim_matches(['[', ']']).to_owned());
    }
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

/// This machine's name.
#[must_use]
pub fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_left_out_of_what_others_may_read() {
        let admin = AdminClient {
            variables: vec![
                ("SITERECOVERY_ENDPOINT", "https://a:1".to_owned()),
                ("SITERECOVERY_CLIENT_SECRET", "hidden".to_owned()),
                ("SITERECOVERY_TENANT_ID", "t".to_owned()),
            ],
        };
        assert!(admin.exports().contains("hidden"));
        let open = admin.exports_without_secret();
        assert!(
            !open.contains("hidden") && open.lines().count() == 2,
            "{open}"
        );
    }
}
