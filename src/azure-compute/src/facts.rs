//! What is known of Azure when a plan is decided.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::Value;

use crate::nics::{Availability, Subnet};
use crate::size::{Quota, Size};

/// A storage account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Region.
    pub location: String,
    /// Premium storage.
    pub premium: bool,
    /// Whether it holds page blobs.
    pub page_blobs: bool,
}

impl Account {
    /// Reads an account as ARM shows it.
    pub fn from_arm(body: &Value) -> Account {
        let text = |path: &str| {
            body.pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        Account {
            location: text("/location").to_owned(),
            premium: text("/sku/name").starts_with("Premium"),
            page_blobs: !matches!(text("/kind"), "BlockBlobStorage" | "FileStorage"),
        }
    }
}

/// An availability set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvailabilitySet {
    /// Region.
    pub location: String,
    /// Whether it is for managed disks (`Aligned`).
    pub managed: bool,
}

impl AvailabilitySet {
    /// Reads a set as ARM shows it.
    pub fn from_arm(body: &Value) -> AvailabilitySet {
        let text = |path: &str| {
            body.pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        AvailabilitySet {
            location: text("/location").to_owned(),
            managed: text("/sku/name").eq_ignore_ascii_case("Aligned"),
        }
    }
}

/// The network that NICs are connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Region.
    pub location: String,
    /// Its subnets, in its order.
    pub subnets: Vec<Subnet>,
    /// What it says of wished addresses.
    pub addresses: BTreeMap<Ipv4Addr, Availability>,
}

/// What is known. What does not exist is `None`.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Sizes of the region.
    pub sizes: Vec<Size>,
    /// Quotas of the region.
    pub quotas: Vec<Quota>,
    /// Whether the resource group exists.
    pub group_exists: bool,
    /// The network, when an existing one is used.
    pub network: Option<NetworkFacts>,
    /// Storage accounts of the disks, by lower-cased id.
    pub accounts: BTreeMap<String, Option<Account>>,
    /// The availability set, when one is wished.
    pub availability_set: Option<AvailabilitySet>,
}

/// Regions are written `westeurope` and `West Europe`.
pub(crate) fn same_location(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.replace(' ', "").to_lowercase();
    plain(a) == plain(b)
}
