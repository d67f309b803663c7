//! Keys that Azure lends to an account's access client (user delegation keys): fetched when first needed, kept sealed,
//! renewed hours before they end, so that neither a restart nor a short outage of Entra ID stops replication.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use azure_storage::oauth::ClientCredentials;
use azure_storage::sas::UserDelegationKey;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::azure::{self, CallError};
use super::{Account, HOUR_MS};
use crate::app::App;
use crate::store::records::{self, Item, Loan, Storage};
use crate::store::{Expect, StoreError};

/// How long a key is borrowed for.
const TERM_MS: i64 = 8 * HOUR_MS;
/// A new one is borrowed when less is left.
const RENEW_MS: i64 = 5 * HOUR_MS;
/// Clocks differ.
const SKEW_MS: i64 = 15 * 60 * 1000;

/// What is wrong with the credentials of accounts, by the key of the account's record.
#[derive(Default)]
pub struct Loans {
    troubles: Mutex<BTreeMap<String, String>>,
}

// === impl Loans ===

impl Loans {
    /// Remembers what is wrong.
    pub(super) fn trouble(&self, account: &str, why: &str) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles
            .insert(account.to_owned(), why.to_owned())
            .as_deref()
            != Some(why)
        {
            warn!(%account, %why, "no credential for a storage account");
        }
    }

    /// All is well.
    pub(super) fn clear(&self, account: &str) {
        self.troubles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(account);
    }

    /// What is wrong with an account, by the key of its record.
    #[must_use]
    pub fn why(&self, account: &str) -> Option<String> {
        self.troubles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(account)
            .cloned()
    }
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Lent {
    oid: String,
    tid: String,
    start: String,
    expiry: String,
    service: String,
    version: String,
    value: String,
}

/// The key that is lent now, with its end.
pub(super) async fn current(
    app: &App,
    account: &Account,
) -> Result<Option<(UserDelegationKey, i64)>, StoreError> {
    let name = records::loan_key(&account.key);
    let stored = records::get::<Loan>(app.store.as_ref(), &name).await?;
    let lent = stored
        .filter(|stored| stored.record.borrower == borrower(account))
        .filter(|stored| stored.record.expires_unix_ms > app.now_ms())
        .and_then(|stored| {
            let bytes = app.sealer.open(&name, &stored.record.sealed).ok()?;
            let lent: Lent = serde_json::from_slice(&bytes).ok()?;
            let key = UserDelegationKey {
                signed_oid: lent.oid,
                signed_tid: lent.tid,
                signed_start: lent.start,
                signed_expiry: lent.expiry,
                signed_service: lent.service,
                signed_version: lent.version,
                value: lent.value,
            };
            Some((key, stored.record.expires_unix_ms))
        });
    Ok(lent)
}

/// Renews what ends soon, of accounts that items use.
///
/// # Errors
/// Failures of the store; failures of Entra ID and Azure are remembered and tried again.
pub async fn renew(app: &App) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    let mut used: Vec<String> = records::list::<Item>(store, "")
        .await?
        .iter()
        .flat_map(|item| item.record.places())
        .map(|(place, _)| place.storage_id.to_ascii_lowercase())
        .collect();
    used.sort();
    used.dedup();
    for key in used {
        let account = records::get::<Storage>(store, &key)
            .await?
            .and_then(|stored| Account::of(&stored.record));
        if let Some(account) = account.filter(|account| account.client.is_some())
            && left(app, &account).await? < RENEW_MS
            && let Err(why) = borrow(app, &account).await?
        {
            app.loans.trouble(&account.key, &why);
        }
    }
    Ok(())
}

/// Borrows a key if none is lent; otherwise says why none is.
pub(super) async fn ensure(app: &App, account: &Account) -> Result<Result<(), String>, StoreError> {
    if left(app, account).await? >= HOUR_MS {
        return Ok(Ok(()));
    }
    let borrowed = borrow(app, account).await?;
    if let Err(why) = &borrowed {
        app.loans.trouble(&account.key, why);
    }
    Ok(borrowed)
}

/// Tries the credential of an account that was just given.
///
/// # Errors
/// 400 when Entra ID or Azure refuse it. Not being able to ask is no refusal.
pub async fn try_out(app: &App, account: &Account) -> Result<(), StoreError> {
    if account.client.is_some()
        && let Err(why) = borrow(app, account).await?
    {
        app.loans.trouble(&account.key, &why);
    }
    Ok(())
}

/// Milliseconds for which the present loan lasts.
async fn left(app: &App, account: &Account) -> Result<i64, StoreError> {
    let lent = current(app, account).await?;
    Ok(lent.map_or(0, |(_, expires)| expires - app.now_ms()))
}

/// A token of the access client.
pub(super) async fn token(
    app: &App,
    account: &Account,
    http: &reqwest::Client,
) -> Result<Result<String, String>, StoreError> {
    let Some(client) = &account.client else {
        return Ok(Err("the storage account has no access client".to_owned()));
    };
    let Some(secret) =
        super::secret(app, account, |secret| secret.client_secret.as_deref()).await?
    else {
        let why = app.loans.why(&account.key).unwrap_or_default();
        return Ok(Err(why));
    };
    let credentials = ClientCredentials::new(
        http.clone(),
        &client.authority,
        &client.tenant_id,
        &client.client_id,
        &secret,
    );
    let token = credentials
        .token(azure_storage::clock::SystemClock::shared().as_ref())
        .await;
    Ok(token
        .map(|token| token.bearer_token().unwrap_or_default().to_owned())
        .map_err(|error| error.to_string()))
}

async fn borrow(app: &App, account: &Account) -> Result<Result<(), String>, StoreError> {
    let http = match azure::http(account) {
        Ok(http) => http,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let token = match token(app, account, &http).await? {
        Ok(token) => token,
        Err(why) => return Ok(Err(why)),
    };
    let (start, expires) = (app.now_ms() - SKEW_MS, app.now_ms() + TERM_MS);
    let lent = azure::borrow_key(
        &http,
        &account.endpoint,
        &token,
        &seconds(start),
        &seconds(expires),
    )
    .await;
    let key = match lent {
        Ok(key) => key,
        Err(error @ CallError::Refused { status: 403, .. }) => {
            return Ok(Err(format!(
                "{error}; the client needs the role \"Storage Blob Data Contributor\" on the account"
            )));
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    let name = records::loan_key(&account.key);
    let lent = Lent {
        oid: key.signed_oid,
        tid: key.signed_tid,
        start: key.signed_start,
        expiry: key.signed_expiry,
        service: key.signed_service,
        version: key.signed_version,
        value: key.value,
    };
    let bytes = serde_json::to_vec(&lent).unwrap_or_default();
    let sealed = match app.sealer.seal(&name, &bytes) {
        Ok(sealed) => sealed,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let record = Loan {
        borrower: borrower(account),
        expires_unix_ms: expires / 1000 * 1000,
        sealed,
    };
    app.store
        .apply(vec![records::put(name, &record, Expect::Any)?])
        .await?;
    app.loans.clear(&account.key);
    info!(account = %account.name, "storage account lent a key");
    app.ring();
    Ok(Ok(()))
}

/// Whom a key was lent to; another client needs another loan.
fn borrower(account: &Account) -> String {
    account.client.as_ref().map_or_else(String::new, |client| {
        format!(
            "{} {} {} {}",
            account.endpoint, client.authority, client.tenant_id, client.client_id
        )
    })
}

fn seconds(unix_ms: i64) -> String {
    let instant = time::OffsetDateTime::from_unix_timestamp(unix_ms / 1000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        instant.year(),
        u8::from(instant.month()),
        instant.day(),
        instant.hour(),
        instant.minute(),
        instant.second()
    )
}
