//! How engines reach a store: the folder, or a container in Azure with a signature that we make.
//!
//! ```text
//!  account key ──────────────────────────────┐
//!  Entra client ─► token ─► key lent by Azure ┴─► signature: one container, needed rights, at most 3 hours ahead
//!                   (loans: kept sealed, renewed hours before the end)
//! ```
//!
//! A signature follows from the key and the hour, so it is the same for everybody who asks within that hour, also after
//! a restart: the desired state of an engine changes once an hour, when at least two hours of the old signature are
//! left. Engines never see an account key or a client secret.

mod account;
mod azure;
pub mod loans;

use azure_storage::sas::{self, AccountKey, Permissions, Protocols, SasRequest, UserDelegationKey};
use engine_protocol::v1;

use crate::app::App;
use crate::fault::Fault;
use crate::store::StoreError;
use crate::store::records::{self, AccountSecret, AzurePlace, LogStore, Place, Storage};

pub use account::Account;
pub use loans::Loans;

const HOUR_MS: i64 = 3_600_000;
/// How long a signature is good for, from the start of its hour.
const LIFETIME_MS: i64 = 3 * HOUR_MS;

/// What signatures are made with.
pub(crate) enum Signer {
    /// The account's own key.
    Key(AccountKey),
    /// A key that Azure lent to the access client.
    Lent(Box<UserDelegationKey>, i64),
}

/// The store of an item or of a recovered VM, for an engine; with a credential for each of its accounts.
///
/// # Errors
/// Failures of the store. An account without a usable credential is no error: the engine says so as soon as it needs one.
pub async fn target(
    app: &App,
    place: Place<'_>,
    log: Option<&LogStore>,
) -> Result<v1::StoreTarget, StoreError> {
    let mut target = single(app, place).await?;
    if let Some(log) = log {
        target.log = Some(Box::new(single(app, log.place()).await?));
    }
    Ok(target)
}

async fn single(app: &App, place: Place<'_>) -> Result<v1::StoreTarget, StoreError> {
    let key = place.storage_id.to_ascii_lowercase();
    let Some(place) = place.azure else {
        return Ok(v1::StoreTarget {
            kind: Some(v1::store_target::Kind::Folder(place.folder.to_owned())),
            log: None,
        });
    };
    let account = records::get::<Storage>(app.store.as_ref(), &key)
        .await?
        .and_then(|stored| Account::of(&stored.record));
    let mut azure = v1::AzureStorage {
        blob_endpoint: place.endpoint.clone(),
        container: place.container.clone(),
        ..v1::AzureStorage::default()
    };
    // The account can't go while it is used; without it the engine keeps what it has until it expires.
    if let Some(account) = account {
        azure.premium = account.premium;
        azure.proxy_url = account.proxy_url.clone().unwrap_or_default();
        azure.stripes = account.stripes;
        azure.ca_pem = account.ca_pem.iter().cloned().collect();
        azure.credential = signer(app, &account).await?.and_then(|signer| {
            credential(
                &signer,
                &account.name,
                place,
                // Who only recovers writes too: the point in use is held by a small object in the store.
                Permissions::REPLICATE,
                app.now_ms(),
            )
        });
    }
    Ok(v1::StoreTarget {
        kind: Some(v1::store_target::Kind::Azure(azure)),
        log: None,
    })
}

/// What signatures of an account are made with; `None` while there is nothing that would be taken.
async fn signer(app: &App, account: &Account) -> Result<Option<Signer>, StoreError> {
    if account.client.is_some() {
        return Ok(loans::current(app, account)
            .await?
            .map(|(key, expires)| Signer::Lent(Box::new(key), expires)));
    }
    let Some(key) = secret(app, account, |secret| secret.account_key.as_deref()).await? else {
        return Ok(None);
    };
    Ok(match AccountKey::new(account.name.clone(), &key) {
        Ok(key) => {
            app.loans.clear(&account.key);
            Some(Signer::Key(key))
        }
        Err(error) => {
            app.loans.trouble(&account.key, &error.to_string());
            None
        }
    })
}

/// Opens a secret of an account.
async fn secret(
    app: &App,
    account: &Account,
    which: impl Fn(&AccountSecret) -> Option<&str>,
) -> Result<Option<String>, StoreError> {
    let name = records::account_secret_key(&account.key);
    let stored = records::get::<AccountSecret>(app.store.as_ref(), &name).await?;
    let Some(sealed) = stored.as_ref().and_then(|stored| which(&stored.record)) else {
        app.loans
            .trouble(&account.key, "the storage account has no credential");
        return Ok(None);
    };
    let opened = app.sealer.open(&name, sealed).ok();
    let opened = opened.and_then(|bytes| String::from_utf8(bytes).ok());
    if opened.is_none() {
        app.loans.trouble(
            &account.key,
            "the stored credential can't be opened with this installation's secrets.key; give it again",
        );
    }
    Ok(opened)
}

/// A signature for this hour; `None` when what it would be made with ends too soon.
fn credential(
    signer: &Signer,
    account: &str,
    place: &AzurePlace,
    permissions: Permissions,
    now_ms: i64,
) -> Option<v1::AzureCredential> {
    let hour = now_ms.div_euclid(HOUR_MS) * HOUR_MS;
    let mut request = SasRequest {
        container: place.container.clone(),
        permissions,
        protocols: Protocols::of_endpoint(&place.endpoint),
        now_unix_ms: hour,
        lifetime_ms: LIFETIME_MS,
    };
    let sas = match signer {
        Signer::Key(key) => sas::mint(key, &request),
        Signer::Lent(key, expires) => {
            request.lifetime_ms = LIFETIME_MS.min(expires - hour);
            if hour + request.lifetime_ms <= now_ms {
                return None;
            }
            sas::mint_user_delegation(account, key, &request).ok()?
        }
    };
    Some(v1::AzureCredential {
        kind: Some(v1::azure_credential::Kind::Sas(sas.query)),
        expires_unix_ms: sas.expires_unix_ms,
    })
}

/// Makes sure that the container is there and that the credential is taken.
///
/// # Errors
/// 409 at the storage account, which the request names in `property`, with the cause.
pub async fn prepare(
    app: &App,
    storage: &Storage,
    place: &AzurePlace,
    property: &str,
) -> Result<(), Fault> {
    let Some(account) = Account::of(storage) else {
        return Ok(());
    };
    let refuse = |error: String| azure::refusal(&account.name, property, &error);
    let http = azure::http(&account).map_err(|error| refuse(error.to_string()))?;
    let access = if account.client.is_some() {
        loans::ensure(app, &account).await?.map_err(refuse)?;
        azure::Access::Bearer(
            loans::token(app, &account, &http)
                .await?
                .map_err(|error| refuse(error.to_string()))?,
        )
    } else {
        match signer(app, &account).await? {
            Some(Signer::Key(key)) => {
                let protocols = Protocols::of_endpoint(&place.endpoint);
                azure::Access::Sas(
                    sas::mint_account(&key, protocols, app.now_ms(), 10 * 60 * 1000).query,
                )
            }
            _ => {
                let why = app.loans.why(&account.key);
                return Err(refuse(why.unwrap_or_else(|| {
                    "the storage account has no credential".to_owned()
                })));
            }
        }
    };
    azure::create_container(&http, place, &access)
        .await
        .map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> AzurePlace {
        AzurePlace {
            endpoint: "https://acct.blob.core.windows.net".to_owned(),
            container: "replicas".to_owned(),
        }
    }

    fn sas(credential: &v1::AzureCredential) -> &str {
        match &credential.kind {
            Some(v1::azure_credential::Kind::Sas(query)) => query,
            _ => "",
        }
    }

    proptest! {
        #[test]
        fn a_signature_lasts_from_two_to_four_hours_and_is_the_same_all_hour(now in 0..4_000_000_000_000_i64) {
            let signer = Signer::Key(AccountKey::new("acct", "a2V5").expect("key"));
            let made = credential(&signer, "acct", &place(), Permissions::REPLICATE, now).expect("made");
            let left = made.expires_unix_ms - now;
            prop_assert!((2 * HOUR_MS..=4 * HOUR_MS).contains(&left), "{left}");
            let hour = now / HOUR_MS * HOUR_MS;
            let first = credential(&signer, "acct", &place(), Permissions::REPLICATE, hour).expect("made");
            prop_assert_eq!(&first, &made);
            let next = credential(&signer, "acct", &place(), Permissions::REPLICATE, hour + HOUR_MS).expect("made");
            prop_assert_ne!(sas(&next), sas(&made));
        }

        #[test]
        fn a_signature_never_outlives_the_key_that_was_lent(now in 0..4_000_000_000_000_i64, left in 1..8 * HOUR_MS) {
            let key = UserDelegationKey {
                signed_oid: "o".to_owned(),
                signed_tid: "t".to_owned(),
                signed_start: "s".to_owned(),
                signed_expiry: "e".to_owned(),
                signed_service: "b".to_owned(),
                signed_version: "2022-11-02".to_owned(),
                value: "a2V5".to_owned(),
            };
            let signer = Signer::Lent(Box::new(key), now + left);
            if let Some(made) = credential(&signer, "acct", &place(), Permissions::REPLICATE, now) {
                prop_assert!(made.expires_unix_ms <= now + left);
            }
        }
    }
}
