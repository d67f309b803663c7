//! What opens a container for a while: a shared access signature or a token, renewed while requests are under way.
//!
//! A [`CredentialHandle`] is shared by all clients of one target. Whoever holds it may [`renew`] it at any time; a
//! request that was refused because its credential had expired waits for a newer one and goes on. The secret has no
//! way into equality, hashes, `Debug` or logs.
//!
//! [`renew`]: CredentialHandle::renew

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// A short-lived right to use a container.
#[derive(Clone)]
pub struct Credential {
    secret: Secret,
    expires_unix_ms: i64,
}

#[derive(Clone)]
pub(crate) enum Secret {
    /// Query string without `?`.
    Sas(String),
    /// OAuth token.
    Bearer(String),
}

impl Credential {
    /// A shared access signature: a query string, with or without its `?`.
    pub fn sas(query: impl Into<String>, expires_unix_ms: i64) -> Self {
        let query = query.into();
        let query = query.strip_prefix('?').map(str::to_owned).unwrap_or(query);
        Credential {
            secret: Secret::Sas(query),
            expires_unix_ms,
        }
    }

    /// An OAuth token for `https://storage.azure.com`.
    pub fn bearer(token: impl Into<String>, expires_unix_ms: i64) -> Self {
        Credential {
            secret: Secret::Bearer(token.into()),
            expires_unix_ms,
        }
    }

    /// When it ends; 0 = not known.
    pub fn expires_unix_ms(&self) -> i64 {
        self.expires_unix_ms
    }

    /// The token itself, for the control plane's own calls; `None` for a signature.
    pub fn bearer_token(&self) -> Option<&str> {
        match &self.secret {
            Secret::Bearer(token) => Some(token),
            Secret::Sas(_) => None,
        }
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.secret {
            Secret::Sas(_) => "sas",
            Secret::Bearer(_) => "bearer token",
        };
        f.debug_struct("Credential")
            .field("kind", &kind)
            .field("expires_unix_ms", &self.expires_unix_ms)
            .finish_non_exhaustive()
    }
}

/// A credential and how often it was renewed.
#[derive(Clone)]
pub(crate) struct Revision {
    pub(crate) number: u64,
    pub(crate) credential: Credential,
}

/// The newest credential of one target, shared by everyone who uses it.
#[derive(Clone)]
pub struct CredentialHandle {
    sender: Arc<watch::Sender<Revision>>,
}

impl CredentialHandle {
    /// A handle whose first credential is this one.
    pub fn new(credential: Credential) -> Self {
        let (sender, _) = watch::channel(Revision {
            number: 0,
            credential,
        });
        CredentialHandle {
            sender: Arc::new(sender),
        }
    }

    /// From now on everyone uses this credential; requests that wait for one go on. The same secret again changes nothing.
    pub fn renew(&self, credential: Credential) {
        self.sender.send_if_modified(|revision| {
            let same = match (&revision.credential.secret, &credential.secret) {
                (Secret::Sas(a), Secret::Sas(b)) | (Secret::Bearer(a), Secret::Bearer(b)) => a == b,
                _ => false,
            };
            if same {
                return false;
            }
            *revision = Revision {
                number: revision.number + 1,
                credential,
            };
            true
        });
    }

    /// When the present one ends.
    pub fn expires_unix_ms(&self) -> i64 {
        self.sender.borrow().credential.expires_unix_ms
    }

    pub(crate) fn present(&self) -> Revision {
        self.sender.borrow().clone()
    }

    /// Returns when there is a credential newer than `number`.
    pub(crate) async fn newer_than(&self, number: u64) -> Revision {
        let mut receiver = self.sender.subscribe();
        match receiver.wait_for(|revision| revision.number > number).await {
            Ok(revision) => revision.clone(),
            // The sender lives in this handle, so the channel can't close while we are here.
            Err(_) => self.present(),
        }
    }
}

impl fmt::Debug for CredentialHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialHandle")
            .field("expires_unix_ms", &self.expires_unix_ms())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let handle = CredentialHandle::new(Credential::sas("?sv=1&sig=TOPSECRET", 5));
        handle.renew(Credential::bearer("TOPSECRET", 6));
        assert!(!format!("{handle:?} {:?}", handle.present().credential).contains("TOPSECRET"));
        assert_eq!(handle.expires_unix_ms(), 6);
    }

    #[tokio::test]
    async fn who_waits_gets_the_newer_one() {
        let handle = CredentialHandle::new(Credential::sas("a", 1));
        let waiting = tokio::spawn({
            let handle = handle.clone();
            async move { handle.newer_than(0).await.credential.expires_unix_ms() }
        });
        handle.renew(Credential::sas("b", 2));
        assert_eq!(waiting.await.ok(), Some(2));
    }
}
