//! The encryption keys of a vault: made at the first need, rotated on request, kept for as long as an object needs them.
//!
//! The engines encrypt and decrypt; we keep the keys (sealed) and send them to engines that need them, in the desired
//! state only. No answer, log or error ever holds a key.
//!
//! A key that is not active any more is dropped only when nothing can need it: every engine has gone over to the active
//! key, none says that a kept object needs the old one, no replica was left behind with it, and a day has passed since.

use arm_model::VaultId;
use engine_protocol::v1;
use uuid::Uuid;

use crate::app::App;
use crate::fault::Fault;
use crate::seal::{self, SealError};
use crate::store::records::{self, Item, Policy, VaultKey, VaultKeys};
use crate::store::{Expect, StoreError};

/// Length of a key.
const KEY_LEN: usize = 32;
/// A superseded key stays at least so long.
const GRACE_MS: i64 = 24 * 3_600_000;

/// The keys of a vault; none before the first need.
///
/// # Errors
/// Failures of the store.
pub async fn load(app: &App, vault: &VaultId) -> Result<VaultKeys, StoreError> {
    let key = records::vault_keys_key(&vault.key());
    let stored = records::get::<VaultKeys>(app.store.as_ref(), &key).await?;
    Ok(stored.map(|stored| stored.record).unwrap_or_default())
}

/// The keys of a vault; makes the first one.
///
/// # Errors
/// Failures of the store or of the random source.
pub async fn ensure(app: &App, vault: &VaultId) -> Result<VaultKeys, Fault> {
    change(app, vault, false).await
}

/// Makes a new active key.
///
/// # Errors
/// Failures of the store or of the random source.
pub async fn rotate(app: &App, vault: &VaultId) -> Result<VaultKeys, Fault> {
    change(app, vault, true).await
}

async fn change(app: &App, vault: &VaultId, rotate: bool) -> Result<VaultKeys, Fault> {
    let store = app.store.as_ref();
    let key = records::vault_keys_key(&vault.key());
    loop {
        let stored = records::get::<VaultKeys>(store, &key).await?;
        let expect = stored
            .as_ref()
            .map_or(Expect::Absent, |stored| Expect::Etag(stored.etag));
        let mut keys = stored.map(|stored| stored.record).unwrap_or_default();
        if !rotate && !keys.keys.is_empty() {
            return Ok(keys);
        }
        keys.keys.push(fresh(app, vault).map_err(internal)?);
        match store.apply(vec![records::put(&*key, &keys, expect)?]).await {
            Ok(_) => {
                app.ring();
                return Ok(keys);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn fresh(app: &App, vault: &VaultId) -> Result<VaultKey, SealError> {
    let id = Uuid::new_v4().to_string();
    let sealed = app
        .sealer
        .seal(&seal_name(vault, &id), &seal::random(KEY_LEN)?)?;
    Ok(VaultKey {
        id,
        created_unix_ms: app.now_ms(),
        sealed,
        kept: false,
    })
}

fn seal_name(vault: &VaultId, key_id: &str) -> String {
    format!("{}#{key_id}", vault.key())
}

#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
fn internal(error: SealError) -> Fault {
    Fault::refuse(
        500,
        arm_model::ArmError::new("InternalError", format!("{error}.")),
    )
}

/// What an engine is told. `writes` says whether it encrypts new objects; a reader has the old keys only to read.
///
/// # Errors
/// When a key was sealed with another key file.
pub fn for_engine(
    app: &App,
    vault: &VaultId,
    keys: &VaultKeys,
    writes: bool,
) -> Result<v1::Encryption, SealError> {
    let open = |key: &VaultKey| {
        Ok(v1::EncryptionKey {
            id: key.id.clone(),
            key: app.sealer.open(&seal_name(vault, &key.id), &key.sealed)?,
        })
    };
    Ok(v1::Encryption {
        keys: keys
            .keys
            .iter()
            .map(open)
            .collect::<Result<_, SealError>>()?,
        active_key_id: keys
            .keys
            .last()
            .filter(|_| writes)
            .map(|key| key.id.clone())
            .unwrap_or_default(),
    })
}

/// Marks the keys of an item whose replica stays in the store without us.
///
/// # Errors
/// Failures of the store.
pub async fn keep_for(app: &App, vault: &VaultId, item: &Item) -> Result<(), StoreError> {
    let needed = |key: &VaultKey| {
        item.key_ids.contains(&key.id) || key.id == item.active_key_id || item.key_ids.is_empty()
    };
    let key = records::vault_keys_key(&vault.key());
    records::update::<VaultKeys>(app.store.as_ref(), &key, |keys| {
        let mut next = keys.clone();
        for key in next.keys.iter_mut().filter(|key| needed(key)) {
            key.kept = true;
        }
        (next.keys.iter().any(|key| key.kept)).then_some(next)
    })
    .await?;
    Ok(())
}

/// Drops what nothing can need any more, in every vault.
///
/// # Errors
/// Failures of the store.
pub async fn prune_all(app: &App) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    for stored in records::list::<VaultKeys>(store, "~vault-keys/").await? {
        let vault = stored.key.trim_start_matches("~vault-keys/");
        let below = format!("{vault}/");
        let mut users = Vec::new();
        for item in records::list::<Item>(store, &below).await? {
            let policy =
                records::get::<Policy>(store, &item.record.policy_id.to_ascii_lowercase()).await?;
            users.push(User {
                encrypts: policy.is_some_and(|policy| encrypts(&policy.record)),
                active_key_id: item.record.active_key_id,
                key_ids: item.record.key_ids,
            });
        }
        let next = pruned(&stored.record, &users, app.now_ms());
        if next.keys.len() < stored.record.keys.len() {
            let change = records::put(&*stored.key, &next, Expect::Etag(stored.etag))?;
            match store.apply(vec![change]).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => app.ring(),
            }
        }
    }
    Ok(())
}

/// Whether a policy's VMs are encrypted.
#[must_use]
pub fn encrypts(policy: &Policy) -> bool {
    policy.details.encryption == arm_model::policy::ENCRYPTION_ENABLED
}

/// An item, as far as keys go.
struct User {
    encrypts: bool,
    active_key_id: String,
    key_ids: Vec<String>,
}

fn pruned(keys: &VaultKeys, users: &[User], now_ms: i64) -> VaultKeys {
    let Some(active) = keys.keys.last() else {
        return VaultKeys::default();
    };
    let all_went_over = users
        .iter()
        .all(|user| !user.encrypts || user.active_key_id == active.id);
    let settled = all_went_over && now_ms.saturating_sub(active.created_unix_ms) > GRACE_MS;
    let stays = |key: &&VaultKey| {
        key.id == active.id
            || key.kept
            || !settled
            || users
                .iter()
                .any(|user| user.key_ids.contains(&key.id) || user.active_key_id == key.id)
    };
    VaultKeys {
        keys: keys.keys.iter().filter(stays).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, kept: bool) -> VaultKey {
        VaultKey {
            id: id.to_owned(),
            created_unix_ms: 0,
            sealed: String::new(),
            kept,
        }
    }

    fn user(active: &str, ids: &[&str]) -> User {
        User {
            encrypts: true,
            active_key_id: active.to_owned(),
            key_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn left(keys: &[VaultKey], users: &[User], now: i64) -> Vec<String> {
        let keys = VaultKeys {
            keys: keys.to_vec(),
        };
        pruned(&keys, users, now)
            .keys
            .into_iter()
            .map(|key| key.id)
            .collect()
    }

    #[test]
    fn an_old_key_goes_only_when_nothing_can_need_it() {
        let keys = [key("old", false), key("new", false)];
        let later = GRACE_MS + 1;
        assert_eq!(left(&keys, &[user("new", &["new"])], later), ["new"]);
        for (users, now) in [
            (vec![user("new", &["old", "new"])], later),
            // The engine has not gone over yet: what it writes now needs the old key.
            (vec![user("old", &[])], later),
            (vec![user("", &[])], later),
            (vec![user("new", &["new"])], GRACE_MS),
        ] {
            assert_eq!(left(&keys, &users, now), ["old", "new"]);
        }
        let kept = [key("old", true), key("new", false)];
        assert_eq!(left(&kept, &[user("new", &["new"])], later), ["old", "new"]);
    }
}
