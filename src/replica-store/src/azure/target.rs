//! A container of a storage account as the place of replicas.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use azure_storage::{Container, ContainerOptions, CredentialHandle};

use crate::azure::failed;
use crate::error::{ErrorKind, Result, StoreError};

/// What of a replica is kept in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// All of it.
    All,
    /// Base.
    Base,
    /// All but base.
    Log,
}

/// A container of an Azure Storage account. Two targets are equal when they are the same place reached in the same
/// way; the credential, which changes every few hours, has no part in it and is in no `Debug`.
#[derive(Clone)]
pub struct AzureTarget {
    options: ContainerOptions,
    premium: bool,
    stripes: u32,
    /// Connections and budgets are shared by all who hold this target.
    opened: Arc<Mutex<Option<Container>>>,
}

impl AzureTarget {
    /// A container at an endpoint such as `https://account.blob.core.windows.net`.
    pub fn new(
        endpoint: impl Into<String>,
        container: impl Into<String>,
        credential: CredentialHandle,
    ) -> Self {
        Self::with_options(ContainerOptions::new(endpoint, container, credential))
    }

    /// With limits, patience and clock of one's own.
    pub fn with_options(options: ContainerOptions) -> Self {
        AzureTarget {
            options,
            premium: false,
            stripes: 1,
            opened: Arc::default(),
        }
    }

    /// A premium page blob account, which takes no block blobs: it holds base, and the journal is in a log account
    /// (see [`crate::StoreTarget::with_log`]).
    pub fn premium(mut self, premium: bool) -> Self {
        self.premium = premium;
        self
    }

    /// Page blobs that the base of a disk which is new in the store is spread over; 0 and 1 = one. Each has limits of
    /// its own. Only an unstriped base is a disk as it is.
    pub fn stripes(mut self, stripes: u32) -> Self {
        self.stripes = stripes.clamp(1, 64);
        self
    }

    /// HTTP proxy for this traffic; empty = the host's own settings.
    pub fn proxy(mut self, url: &str) -> Self {
        self.options.proxy = (!url.is_empty()).then(|| url.to_owned());
        self
    }

    /// Further certificate authorities, PEM.
    pub fn certificate_authorities(mut self, pem: Vec<String>) -> Self {
        self.options.ca_pem = pem;
        self
    }

    /// The handle through which the credential is renewed.
    pub fn credential(&self) -> &CredentialHandle {
        &self.options.credential
    }

    /// Requests and bytes so far, once something was read or written.
    pub fn figures(&self) -> azure_storage::Figures {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.as_ref().map(Container::figures).unwrap_or_default()
    }

    pub(crate) fn stripe_count(&self) -> u32 {
        self.stripes
    }

    pub(crate) fn open(&self, holds: Holds) -> Result<Container> {
        let action = match holds {
            _ if !self.premium => None,
            Holds::Base => None,
            Holds::All => {
                Some("give the VM a log storage account, or protect it to a standard account")
            }
            Holds::Log => Some("the log storage account must be a standard one"),
        };
        if let Some(action) = action {
            return Err(StoreError::new(
                ErrorKind::Invalid,
                format!(
                    "container {} at {} is in a premium page blob account, which can't hold a journal: {action}",
                    self.options.container, self.options.endpoint
                ),
            ));
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(container) = &*opened {
            return Ok(container.clone());
        }
        let container = Container::open(&self.options)
            .map_err(|error| failed("open the container of", &self.options.endpoint, error))?;
        *opened = Some(container.clone());
        Ok(container)
    }

    fn place(&self) -> (&str, &str, bool, u32, Option<&str>, &[String]) {
        (
            &self.options.endpoint,
            &self.options.container,
            self.premium,
            self.stripes,
            self.options.proxy.as_deref(),
            &self.options.ca_pem,
        )
    }
}

impl PartialEq for AzureTarget {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for AzureTarget {}

impl Hash for AzureTarget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.place().hash(state);
    }
}

impl fmt::Debug for AzureTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureTarget")
            .field("endpoint", &self.options.endpoint)
            .field("container", &self.options.container)
            .field("premium", &self.premium)
            .field("stripes", &self.stripes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use azure_storage::Credential;

    use super::*;

    #[test]
    fn the_credential_takes_no_part_in_equality_and_is_not_shown() {
        let target = |secret: &str| {
            AzureTarget::new(
                "https://a.blob.core.windows.net",
                "c",
                CredentialHandle::new(Credential::sas(format!("sig={secret}"), 1)),
            )
        };
        assert_eq!(target("one"), target("two"));
        assert_ne!(target("one"), target("one").stripes(4));
        assert!(!format!("{:?}", target("TOPSECRET")).contains("TOPSECRET"));
    }
}
