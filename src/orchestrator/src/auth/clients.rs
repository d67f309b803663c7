//! API clients: made by the first start and by `admin client`, kept with a hash of their secret.

use uuid::Uuid;

use super::roles::Role;
use super::secret::{self, NoRandom};
use crate::store::records::{self, Client};
use crate::store::{Expect, ResourceStore, StoreError};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Random source.
    #[error("secret can't be made")]
    Random(#[from] NoRandom),
    /// Store.
    #[error("client can't be stored")]
    Store(#[from] StoreError),
}

/// Makes a client; its secret is told once.
///
/// # Errors
/// When the random source or the store fails.
pub async fn create(
    store: &dyn ResourceStore,
    name: &str,
    role: Role,
    scope: &str,
) -> Result<(Client, String), ClientError> {
    let (secret, hash) = secret::generate()?;
    let scope = scope.trim_end_matches('/').to_ascii_lowercase();
    let client = Client {
        client_id: Uuid::new_v4().to_string(),
        name: name.to_owned(),
        hash,
        role,
        scope: if scope.is_empty() {
            "/".to_owned()
        } else {
            scope
        },
    };
    store
        .apply(vec![records::put(
            key(&client.client_id),
            &client,
            Expect::Absent,
        )?])
        .await?;
    Ok((client, secret))
}

/// Finds a client.
///
/// # Errors
/// When the store fails.
pub async fn find(
    store: &dyn ResourceStore,
    client_id: &str,
) -> Result<Option<Client>, StoreError> {
    let found = records::get::<Client>(store, &key(client_id)).await?;
    Ok(found.map(|stored| stored.record))
}

/// Key of a client.
#[must_use]
pub fn key(client_id: &str) -> String {
    format!("~client/{}", client_id.to_ascii_lowercase())
}

/// Whether a client's scope covers a path.
#[must_use]
pub fn covers(scope: &str, path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    scope == "/"
        || path == scope
        || path
            .strip_prefix(scope)
            .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_itself_and_what_is_below_and_no_namesake() {
        assert!(covers("/", "/subscriptions/s"));
        assert!(covers(
            "/subscriptions/s/resourcegroups/g",
            "/Subscriptions/s/resourceGroups/G/providers/x"
        ));
        assert!(!covers(
            "/subscriptions/s/resourcegroups/g",
            "/subscriptions/s/resourcegroups/g2"
        ));
        assert!(!covers(
            "/subscriptions/s/resourcegroups/g",
            "/subscriptions/s"
        ));
    }
}
