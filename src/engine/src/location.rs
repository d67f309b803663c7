//! Where a store is, as a person names it on a command line: a folder, or the URL of a container.
//!
//! ```text
//!   /srv/replicas                                              a folder
//!   https://account.blob.core.windows.net/replicas             a container of Azure Storage
//!   http://127.0.0.1:10000/devstoreaccount1/replicas           the same of Azurite
//! ```
//!
//! A replica whose journal is in a log storage account needs that as well: it is named by [`LOG_VARIABLE`].
//!
//! The shared access signature never stands on the command line, where other users of the machine would see it: it comes
//! out of the environment variable [`SAS_VARIABLE`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use engine_protocol::v1;
use replica_store::{ReplicaKey, StoreTarget};

use crate::stores;

/// Environment variable with the shared access signature, named as the Azure CLI does.
pub const SAS_VARIABLE: &str = "AZURE_STORAGE_SAS_TOKEN";
/// Environment variable with the log store of what is named: a folder, or the URL of a container.
pub const LOG_VARIABLE: &str = "SITERECOVERY_LOG_STORE";
/// Environment variable with the shared access signature of the log store.
pub const LOG_SAS_VARIABLE: &str = "SITERECOVERY_LOG_STORE_SAS_TOKEN";
/// Environment variable with a PEM file of further certificate authorities.
pub const CA_VARIABLE: &str = "SITERECOVERY_STORAGE_CA_FILE";

/// Whether `text` is a URL rather than a path.
pub fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

/// The store named by a folder or URL, as the protocol has it.
pub fn message(text: &str) -> anyhow::Result<v1::StoreTarget> {
    Ok(v1::StoreTarget {
        log: log()?.map(Box::new),
        ..single(text, SAS_VARIABLE)?
    })
}

/// The log store that [`LOG_VARIABLE`] names.
fn log() -> anyhow::Result<Option<v1::StoreTarget>> {
    match std::env::var(LOG_VARIABLE) {
        Ok(log) if !log.is_empty() => single(&log, LOG_SAS_VARIABLE).map(Some),
        _ => Ok(None),
    }
}

fn single(text: &str, sas_variable: &str) -> anyhow::Result<v1::StoreTarget> {
    let kind = if is_url(text) {
        let sas = std::env::var(sas_variable).with_context(|| {
            format!("set {sas_variable} to a shared access signature for {text}")
        })?;
        v1::store_target::Kind::Azure(azure(text, &sas)?)
    } else {
        let path = std::path::absolute(text).with_context(|| format!("store folder {text:?}"))?;
        if !path.is_dir() {
            bail!("store folder {} does not exist", path.display());
        }
        v1::store_target::Kind::Folder(
            path.into_os_string().into_string().map_err(|path| {
                anyhow!("store folder {} is not UTF-8", Path::new(&path).display())
            })?,
        )
    };
    Ok(v1::StoreTarget {
        kind: Some(kind),
        log: None,
    })
}

/// The store named by a folder or URL.
pub fn target(text: &str) -> anyhow::Result<StoreTarget> {
    let (target, _) = stores::target(Some(&message(text)?)).map_err(|problem| anyhow!(problem))?;
    Ok(target)
}

/// Store and key of a replica that is named as a whole: `<store>/<vault>/<item>`, folder or URL.
pub fn replica(text: &str) -> anyhow::Result<(StoreTarget, ReplicaKey)> {
    let shape = || format!("{text} is not the place of a replica (<store>/<vault>/<item>)");
    if is_url(text) {
        let mut parts = text.trim_end_matches('/').rsplitn(3, '/');
        let (item, vault, store) = (parts.next(), parts.next(), parts.next());
        let (Some(item), Some(vault), Some(store)) = (item, vault, store) else {
            bail!(shape());
        };
        return Ok((
            target(store).with_context(shape)?,
            ReplicaKey::new(vault, item).with_context(shape)?,
        ));
    }
    let path = std::fs::canonicalize(text).with_context(|| format!("find {text}"))?;
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let vault = path.parent().map(PathBuf::from);
    let store = vault.as_deref().and_then(Path::parent);
    match (name(&path), vault.as_deref().and_then(name), store) {
        (Some(item), Some(vault), Some(store)) => {
            let store = store.to_str().with_context(shape)?;
            Ok((
                target(store)?,
                ReplicaKey::new(vault, item).with_context(shape)?,
            ))
        }
        _ => bail!(shape()),
    }
}

fn azure(url: &str, sas: &str) -> anyhow::Result<v1::AzureStorage> {
    if url.contains('?') {
        bail!("leave the query out of the URL; the signature belongs into {SAS_VARIABLE}");
    }
    let (endpoint, container) = url
        .trim_end_matches('/')
        .rsplit_once('/')
        .filter(|(endpoint, container)| !endpoint.ends_with('/') && !container.is_empty())
        .with_context(|| {
            format!(
                "{url} does not name a container (https://account.blob.core.windows.net/container)"
            )
        })?;
    let sas = sas.trim().trim_start_matches('?');
    let ca_pem = match std::env::var_os(CA_VARIABLE) {
        None => Vec::new(),
        Some(path) => vec![
            std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", Path::new(&path).display()))?,
        ],
    };
    Ok(v1::AzureStorage {
        blob_endpoint: endpoint.to_owned(),
        container: container.to_owned(),
        credential: Some(v1::AzureCredential {
            expires_unix_ms: expiry(sas).unwrap_or(i64::MAX),
            kind: Some(v1::azure_credential::Kind::Sas(sas.to_owned())),
        }),
        ca_pem,
        ..v1::AzureStorage::default()
    })
}

/// When a shared access signature ends; it says so itself.
fn expiry(sas: &str) -> Option<i64> {
    let text = sas
        .split('&')
        .find_map(|pair| pair.strip_prefix("se="))?
        .replace("%3A", ":")
        .replace("%3a", ":");
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(&text, format).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_the_last_part_of_its_url() {
        let plain = azure("https://a.blob.core.windows.net/replicas/", "?sig=x").unwrap();
        assert_eq!(plain.blob_endpoint, "https://a.blob.core.windows.net");
        assert_eq!(plain.container, "replicas");
        let azurite = azure("http://127.0.0.1:10000/devstoreaccount1/c-1", "sig=x").unwrap();
        assert_eq!(
            azurite.blob_endpoint,
            "http://127.0.0.1:10000/devstoreaccount1"
        );
        assert!(azure("https://a.blob.core.windows.net", "sig=x").is_err());
        assert!(azure("https://a.blob.core.windows.net/c?sig=x", "sig=x").is_err());
    }

    #[test]
    fn a_signature_tells_when_it_ends() {
        assert_eq!(
            expiry("sv=2025-11-05&se=1970-01-02T00%3A00%3A00Z&sig=x"),
            Some(86_400_000)
        );
        assert_eq!(expiry("sig=x"), None);
    }

    #[test]
    fn a_replica_in_a_folder_is_named_by_three_parts() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("vault/item");
        std::fs::create_dir_all(&place).unwrap();
        let (target, key) = replica(place.to_str().unwrap()).unwrap();
        let store = std::fs::canonicalize(folder.path()).unwrap();
        assert_eq!(target, StoreTarget::Folder(store));
        assert_eq!((key.vault_key(), key.item_id()), ("vault", "item"));
        assert!(replica("/").is_err());
        assert!(message("/nowhere/at/all").is_err());
    }
}
