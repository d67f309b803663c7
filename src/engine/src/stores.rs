//! Stores as messages name them, with credentials that are renewed in place.
//!
//! A credential of Azure Storage lives for hours and the tasks that use it for years, so tasks hold a handle, and each
//! message that brings a newer credential renews what is behind it. All of this process that use one container share one
//! handle, its connections and its budget of requests. Credentials take no part in whether a task fits its wish.
//!
//! A store whose journal is in another account is called by both places: `<store> (log: <log store>)`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use azure_storage::{Credential, CredentialHandle};
use engine_protocol::v1;
use replica_store::{AzureTarget, StoreTarget};
use v1::azure_credential::Kind as CredentialKind;
use v1::store_target::Kind;

/// Container URL → how it is reached.
type Known = HashMap<String, AzureTarget>;

/// The containers that this process knows. Their credentials belong to the account, not to a task, so there is one
/// place for them.
fn known() -> &'static Mutex<Known> {
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default)
}

/// Between the two places of a store that has a log.
const LOG: (&str, char) = (" (log: ", ')');

/// Reads the store of a message; also what people call it: the folder, or the container's URL. Renews the credential.
pub fn target(message: Option<&v1::StoreTarget>) -> Result<(StoreTarget, PathBuf), String> {
    let (target, place) = single(message)?;
    let Some(log) = message.and_then(|message| message.log.as_deref()) else {
        return Ok((target, place));
    };
    if log.log.is_some() {
        return Err("a log storage account has a log storage account of its own".to_owned());
    }
    let (log, log_place) = single(Some(log))?;
    let both = format!(
        "{}{}{}{}",
        place.display(),
        LOG.0,
        log_place.display(),
        LOG.1
    );
    Ok((target.with_log(log), PathBuf::from(both)))
}

fn single(message: Option<&v1::StoreTarget>) -> Result<(StoreTarget, PathBuf), String> {
    match message.and_then(|message| message.kind.as_ref()) {
        Some(Kind::Folder(folder)) => {
            let path = PathBuf::from(folder);
            if !path.is_absolute() {
                return Err(format!(
                    "storage account folder {folder:?} is not an absolute path"
                ));
            }
            Ok((StoreTarget::Folder(path.clone()), path))
        }
        Some(Kind::Azure(azure)) => {
            let (target, url) = container(azure)?;
            Ok((StoreTarget::Azure(target), PathBuf::from(url)))
        }
        None => {
            Err("no storage account, or one of a kind that this engine does not know".to_owned())
        }
    }
}

/// The store that was called `place` before. `None` = a container that no message of this run has named.
pub fn named(place: &Path) -> Option<StoreTarget> {
    let both = place
        .to_str()
        .and_then(|text| text.strip_suffix(LOG.1)?.split_once(LOG.0));
    match both {
        None => named_single(place),
        Some((base, log)) => {
            let log = named_single(Path::new(log))?;
            Some(named_single(Path::new(base))?.with_log(log))
        }
    }
}

fn named_single(place: &Path) -> Option<StoreTarget> {
    match place.to_str().filter(|text| is_url(text)) {
        None => Some(StoreTarget::Folder(place.to_owned())),
        Some(url) => lock().get(url).cloned().map(StoreTarget::Azure),
    }
}

/// Whether a store that is called so is a container rather than a folder.
pub fn is_container(place: &Path) -> bool {
    place.to_str().is_some_and(is_url)
}

fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

fn lock() -> std::sync::MutexGuard<'static, Known> {
    known().lock().unwrap_or_else(PoisonError::into_inner)
}

fn container(message: &v1::AzureStorage) -> Result<(AzureTarget, String), String> {
    let endpoint = message.blob_endpoint.trim_end_matches('/');
    if !is_url(endpoint) || message.container.is_empty() {
        return Err(format!(
            "container {:?} at {:?} is no place in Azure Storage",
            message.container, message.blob_endpoint
        ));
    }
    let url = format!("{endpoint}/{}", message.container);
    let mut known = lock();
    let credential = message.credential.as_ref().and_then(credential);
    let handle = match (known.get(&url), credential) {
        (Some(before), Some(credential)) => {
            let handle = before.credential().clone();
            // A late message must not bring an older one back. Signatures of one hour end together: after a change of the
            // account's key the one that came last is right.
            if credential.expires_unix_ms() == 0
                || credential.expires_unix_ms() >= handle.expires_unix_ms()
            {
                handle.renew(credential);
            }
            handle
        }
        (Some(before), None) => before.credential().clone(),
        // Without any, the service refuses with a reason, and the next message may bring one.
        (None, credential) => {
            CredentialHandle::new(credential.unwrap_or_else(|| Credential::sas(String::new(), 0)))
        }
    };
    let target = AzureTarget::new(endpoint, &message.container, handle)
        .premium(message.premium)
        .stripes(message.stripes)
        .proxy(&message.proxy_url)
        .certificate_authorities(message.ca_pem.clone());
    let shared = match known.get(&url) {
        Some(before) if *before == target => before.clone(),
        _ => {
            known.insert(url.clone(), target.clone());
            target
        }
    };
    Ok((shared, url))
}

fn credential(message: &v1::AzureCredential) -> Option<Credential> {
    match message.kind.as_ref()? {
        CredentialKind::Sas(query) => Some(Credential::sas(query, message.expires_unix_ms)),
        CredentialKind::BearerToken(token) => {
            Some(Credential::bearer(token, message.expires_unix_ms))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(container: &str, sas: &str, expires_unix_ms: i64) -> v1::StoreTarget {
        v1::StoreTarget {
            kind: Some(Kind::Azure(v1::AzureStorage {
                blob_endpoint: "https://account.blob.core.windows.net/".to_owned(),
                container: container.to_owned(),
                credential: Some(v1::AzureCredential {
                    kind: Some(CredentialKind::Sas(sas.to_owned())),
                    expires_unix_ms,
                }),
                ..v1::AzureStorage::default()
            })),
            log: None,
        }
    }

    #[test]
    fn a_store_with_a_log_is_known_by_both_places_and_each_credential_is_renewed() {
        let both = |expires: i64| v1::StoreTarget {
            log: Some(Box::new(message(
                "the-log",
                &format!("sig=l{expires}"),
                expires,
            ))),
            ..message("the-base", &format!("sig=b{expires}"), expires)
        };
        let (first, place) = target(Some(&both(1))).unwrap();
        let place = place.to_str().unwrap();
        assert!(place.ends_with("/the-base (log: https://account.blob.core.windows.net/the-log)"));
        target(Some(&both(2))).unwrap();
        assert_eq!(named(Path::new(place)), Some(first.clone()));
        let StoreTarget::Apart { base, log } = first else {
            panic!("{first:?}")
        };
        for target in [*base, *log] {
            let StoreTarget::Azure(target) = target else {
                panic!("{target:?}")
            };
            assert_eq!(target.credential().expires_unix_ms(), 2);
        }
        assert_eq!(
            named(Path::new("/srv/a (log: https://never.example/c)")),
            None
        );
        let nested = v1::StoreTarget {
            log: Some(Box::new(both(3))),
            ..message("the-base", "sig=b", 3)
        };
        assert!(target(Some(&nested)).is_err());
    }

    #[test]
    fn a_newer_credential_reaches_who_holds_the_target_and_an_older_one_does_not() {
        let (StoreTarget::Azure(first), place) =
            target(Some(&message("renewed", "sig=1", 1_000))).unwrap()
        else {
            panic!("no container")
        };
        assert_eq!(first.credential().expires_unix_ms(), 1_000);
        let (again, _) = target(Some(&message("renewed", "sig=2", 2_000))).unwrap();
        assert_eq!(again, StoreTarget::Azure(first.clone()));
        assert_eq!(first.credential().expires_unix_ms(), 2_000);
        target(Some(&message("renewed", "sig=1", 1_000))).unwrap();
        assert_eq!(first.credential().expires_unix_ms(), 2_000);
        assert_eq!(named(&place), Some(StoreTarget::Azure(first)));
    }

    #[test]
    fn a_container_that_nobody_named_is_not_known_and_a_folder_always_is() {
        assert_eq!(
            named(Path::new("https://account.blob.core.windows.net/never")),
            None
        );
        assert_eq!(
            named(Path::new("/srv/store")),
            Some(StoreTarget::Folder(PathBuf::from("/srv/store")))
        );
    }

    #[test]
    fn a_place_that_is_none_is_refused_by_name() {
        for (endpoint, container) in [("ftp://x", "c"), ("https://x", "")] {
            let bad = v1::StoreTarget {
                kind: Some(Kind::Azure(v1::AzureStorage {
                    blob_endpoint: endpoint.to_owned(),
                    container: container.to_owned(),
                    ..v1::AzureStorage::default()
                })),
                log: None,
            };
            assert!(
                target(Some(&bad))
                    .unwrap_err()
                    .contains("no place in Azure Storage")
            );
        }
        assert!(target(None).is_err());
    }
}
