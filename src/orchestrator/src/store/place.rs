//! Where replicas are: the storage accounts of an item, a recovered VM or a log.

use serde::{Deserialize, Serialize};

use super::records::{Item, Recovered};

/// A container of an Azure storage account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AzurePlace {
    /// Blob endpoint without a slash at the end.
    pub endpoint: String,
    /// Container.
    pub container: String,
}

/// A log storage account when protection began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStore {
    /// Storage account's ARM id.
    pub storage_id: String,
    /// Its folder; empty for an account in Azure.
    pub folder: String,
    /// Its container in Azure.
    #[serde(default)]
    pub azure: Option<AzurePlace>,
}

/// The place of an item, a recovered VM or a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Storage account's ARM id.
    pub storage_id: &'a str,
    /// Its folder; empty for an account in Azure.
    pub folder: &'a str,
    /// Its container in Azure.
    pub azure: Option<&'a AzurePlace>,
}

macro_rules! placed {
    ($name:ident) => {
        impl $name {
            /// Where it is.
            #[must_use]
            pub fn place(&self) -> Place<'_> {
                Place {
                    storage_id: &self.storage_id,
                    folder: &self.folder,
                    azure: self.azure.as_ref(),
                }
            }
        }
    };
}

placed!(Item);
placed!(Recovered);
placed!(LogStore);

impl Item {
    /// The storage accounts that it uses, with the property of the request that names each.
    pub fn places(&self) -> impl Iterator<Item = (Place<'_>, &'static str)> {
        let log = self.log.as_ref().map(LogStore::place);
        [(self.place(), "targetStorageAccountId")]
            .into_iter()
            .chain(log.map(|log| (log, "logStorageAccountId")))
    }

    /// Whether it uses a storage account.
    #[must_use]
    pub fn uses(&self, storage_id: &str) -> bool {
        self.places()
            .any(|(place, _)| place.storage_id.eq_ignore_ascii_case(storage_id))
    }
}
