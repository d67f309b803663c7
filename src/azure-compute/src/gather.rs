//! Collects the facts that a plan is decided on. What is missing is a fact, too; only what can't be asked is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::Value;

use crate::calls::{At, Calls};
use crate::error::TargetError;
use crate::facts::{Account, AvailabilitySet, Facts, NetworkFacts};
use crate::nics::{Availability, Subnet, selected};
use crate::resource::{Kind, is_id_of};
use crate::size::{Quota, Size};
use crate::spec::{Address, Network, Placement, TargetSpec};
use crate::tags;

const SKUS: &str = "2021-07-01";
const COMPUTE: &str = "2024-03-01";
const NETWORK: &str = "2023-09-01";
const STORAGE: &str = "2023-05-01";
const RESOURCES: &str = "2021-04-01";

pub(crate) async fn gather(calls: &Calls, spec: &TargetSpec) -> Result<Facts, TargetError> {
    let (sizes, quotas, group, network, accounts, set) = futures::join!(
        sizes(calls, spec),
        quotas(calls, spec),
        group(calls, spec),
        network(calls, spec),
        accounts(calls, spec),
        availability_set(calls, spec),
    );
    Ok(Facts {
        sizes: sizes?,
        quotas: quotas?,
        group_exists: group?,
        network: network?,
        accounts: accounts?,
        availability_set: set?,
    })
}

async fn sizes(calls: &Calls, spec: &TargetSpec) -> Result<Vec<Size>, TargetError> {
    let location = plain_location(spec);
    let path = format!(
        "/subscriptions/{}/providers/Microsoft.Compute/skus?api-version={SKUS}&$filter=location%20eq%20'{location}'",
        spec.place.subscription_id
    );
    let at = At {
        step: "listing the sizes of",
        about: &format!("region {location}"),
    };
    let skus = calls.list(at, &path).await?;
    Ok(skus
        .iter()
        .filter_map(|sku| Size::from_sku(sku, &location))
        .collect())
}

async fn quotas(calls: &Calls, spec: &TargetSpec) -> Result<Vec<Quota>, TargetError> {
    let location = plain_location(spec);
    let path = format!(
        "/subscriptions/{}/providers/Microsoft.Compute/locations/{location}/usages?api-version={COMPUTE}",
        spec.place.subscription_id
    );
    let at = At {
        step: "reading the quotas of",
        about: &format!("region {location}"),
    };
    let usages = calls.list(at, &path).await?;
    Ok(usages.iter().filter_map(Quota::from_usage).collect())
}

async fn group(calls: &Calls, spec: &TargetSpec) -> Result<bool, TargetError> {
    let path = format!("{}?api-version={RESOURCES}", spec.place.group_path());
    let at = At {
        step: "reading",
        about: &format!("resource group {}", spec.place.resource_group),
    };
    Ok(calls.find(at, &path).await?.is_some())
}

async fn accounts(
    calls: &Calls,
    spec: &TargetSpec,
) -> Result<BTreeMap<String, Option<Account>>, TargetError> {
    let ids: BTreeSet<String> = spec
        .disks
        .iter()
        .map(|d| d.storage_account_id.clone())
        .filter(|id| is_id_of(id, "Microsoft.Storage/storageAccounts"))
        .collect();
    let mut accounts = BTreeMap::new();
    for id in ids {
        let at = At {
            step: "reading",
            about: &format!("storage account {id}"),
        };
        let found = calls
            .find(at, &format!("{id}?api-version={STORAGE}"))
            .await?;
        accounts.insert(id.to_lowercase(), found.as_ref().map(Account::from_arm));
    }
    Ok(accounts)
}

async fn availability_set(
    calls: &Calls,
    spec: &TargetSpec,
) -> Result<Option<AvailabilitySet>, TargetError> {
    let Placement::AvailabilitySet(id) = &spec.placement else {
        return Ok(None);
    };
    if !is_id_of(id, "Microsoft.Compute/availabilitySets") {
        return Ok(None);
    }
    let at = At {
        step: "reading",
        about: &format!("availability set {id}"),
    };
    let found = calls
        .find(at, &format!("{id}?api-version={COMPUTE}"))
        .await?;
    Ok(found.as_ref().map(AvailabilitySet::from_arm))
}

async fn network(calls: &Calls, spec: &TargetSpec) -> Result<Option<NetworkFacts>, TargetError> {
    let Network::Existing { id, .. } = &spec.network else {
        return Ok(None);
    };
    if !is_id_of(id, Kind::Network.arm_type()) {
        return Ok(None);
    }
    let at = At {
        step: "reading",
        about: &format!("network {id}"),
    };
    let Some(body) = calls
        .find(at, &format!("{id}?api-version={NETWORK}"))
        .await?
    else {
        return Ok(None);
    };
    let subnets = subnets_in(&body);
    let mut addresses = BTreeMap::new();
    let mut own: Option<BTreeSet<Ipv4Addr>> = None;
    for nic in selected(&spec.nics) {
        let (Address::Keep(wished) | Address::Exactly(wished)) = nic.address else {
            continue;
        };
        // Azure refuses the question for addresses that are in none of its subnets.
        if addresses.contains_key(&wished) || !subnets.iter().any(|s| s.has_room_for(wished)) {
            continue;
        }
        let mut answer = availability(calls, at, id, wished).await?;
        if !answer.free {
            // Taken by ourselves, when a plan is made again after the NIC was made.
            let ours = match own.take() {
                Some(own) => own,
                None => own_addresses(calls, spec).await?,
            };
            answer.free = ours.contains(&wished);
            own = Some(ours);
        }
        addresses.insert(wished, answer);
    }
    Ok(Some(NetworkFacts {
        location: body["location"].as_str().unwrap_or_default().to_owned(),
        subnets,
        addresses,
    }))
}

fn subnets_in(network: &Value) -> Vec<Subnet> {
    let subnets = network
        .pointer("/properties/subnets")
        .and_then(Value::as_array);
    subnets
        .into_iter()
        .flatten()
        .filter_map(|subnet| {
            let properties = &subnet["properties"];
            let several = properties["addressPrefixes"].as_array();
            let mut prefixes: Vec<String> = several
                .into_iter()
                .flatten()
                .filter_map(|p| p.as_str().map(ToOwned::to_owned))
                .collect();
            prefixes.extend(properties["addressPrefix"].as_str().map(ToOwned::to_owned));
            Some(Subnet {
                name: subnet["name"].as_str()?.to_owned(),
                id: subnet["id"].as_str()?.to_owned(),
                prefixes,
            })
        })
        .collect()
}

async fn availability(
    calls: &Calls,
    at: At<'_>,
    network: &str,
    wished: Ipv4Addr,
) -> Result<Availability, TargetError> {
    let path =
        format!("{network}/CheckIPAddressAvailability?api-version={NETWORK}&ipAddress={wished}");
    let answer = calls.find(at, &path).await?.unwrap_or_default();
    let others = answer["availableIPAddresses"].as_array();
    Ok(Availability {
        free: answer["available"].as_bool().unwrap_or(false),
        others: others
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str()?.parse().ok())
            .collect(),
    })
}

/// Addresses of NICs that this recovery has made already.
async fn own_addresses(
    calls: &Calls,
    spec: &TargetSpec,
) -> Result<BTreeSet<Ipv4Addr>, TargetError> {
    let at = At {
        step: "listing the NICs of",
        about: &format!("resource group {}", spec.place.resource_group),
    };
    let nics = calls.list(at, &Kind::Nic.list_path(&spec.place)).await?;
    Ok(nics
        .iter()
        .filter(|nic| tags::value_of(nic, tags::OWNER_TAG) == Some(spec.recovery_id.as_str()))
        .filter_map(|nic| nic.pointer("/properties/ipConfigurations")?.as_array())
        .flatten()
        .filter_map(|c| {
            c.pointer("/properties/privateIPAddress")?
                .as_str()?
                .parse()
                .ok()
        })
        .collect())
}

/// As paths and filters have it: `westeurope`.
fn plain_location(spec: &TargetSpec) -> String {
    spec.place
        .location
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_lowercase()
}
