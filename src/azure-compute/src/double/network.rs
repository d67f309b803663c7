//! Rules of Network.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::state::{Outcome, State, list, refuse, text};
use crate::nics::prefix;

/// Checks a NIC and fills in what Azure computes.
pub(super) fn nic(state: &State, id: &str, body: &mut Value) -> Outcome<()> {
    let count = list(body, "/properties/ipConfigurations").count();
    if count == 0 {
        return refuse(
            400,
            "InvalidRequestFormat",
            "A network interface needs at least one IP configuration.",
        );
    }
    reference(state, body, "/properties/networkSecurityGroup/id")?;
    let mut mine = BTreeSet::new();
    for index in 0..count {
        let at = format!("/properties/ipConfigurations/{index}");
        let name = text(body, &format!("{at}/name")).to_owned();
        if name.is_empty() {
            return refuse(
                400,
                "InvalidRequestFormat",
                "An IP configuration needs a name.",
            );
        }
        let subnet = text(body, &format!("{at}/properties/subnet/id")).to_owned();
        let Some(prefixes) = subnet_prefixes(state, &subnet) else {
            return refuse(
                400,
                "InvalidResourceReference",
                format!("Resource {subnet} referenced by resource {id} was not found."),
            );
        };
        let public = text(body, &format!("{at}/properties/publicIPAddress/id")).to_lowercase();
        reference(state, body, &format!("{at}/properties/publicIPAddress/id"))?;
        if !public.is_empty()
            && user_of_public(state, &public).is_some_and(|nic| nic != id.to_lowercase())
        {
            return refuse(
                400,
                "PublicIPAddressInUse",
                format!("Resource {public} is already allocated to another resource."),
            );
        }
        let taken = |wished: Ipv4Addr| taken(state, &subnet, wished, id) || mine.contains(&wished);
        let address = match text(body, &format!("{at}/properties/privateIPAllocationMethod")) {
            "Static" => wished(
                text(body, &format!("{at}/properties/privateIPAddress")),
                &prefixes,
                &taken,
            )?,
            "Dynamic" | "" => next_free(state, id, index, &prefixes, &taken)?,
            other => {
                return refuse(
                    400,
                    "InvalidRequestFormat",
                    format!("{other} is no allocation method."),
                );
            }
        };
        mine.insert(address);
        if let Some(configuration) = body.pointer_mut(&at) {
            configuration["id"] = format!("{id}/ipConfigurations/{name}").into();
            configuration["properties"]["privateIPAddress"] = address.to_string().into();
            configuration["properties"]["provisioningState"] = "Succeeded".into();
        }
    }
    Ok(())
}

fn wished(
    text: &str,
    prefixes: &[(u32, u32)],
    taken: &dyn Fn(Ipv4Addr) -> bool,
) -> Outcome<Ipv4Addr> {
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        return refuse(
            400,
            "InvalidRequestFormat",
            "A static address must be given.",
        );
    };
    let number = u32::from(address);
    let Some((first, last)) = prefixes.iter().find(|(a, b)| (*a..=*b).contains(&number)) else {
        return refuse(
            400,
            "PrivateIPAddressNotInSubnet",
            format!(
                "Private static IP address {address} does not belong to the range of subnet prefix."
            ),
        );
    };
    if number < first + 4 || number == *last {
        return refuse(
            400,
            "PrivateIPAddressInReservedRange",
            format!("Private static IP address {address} falls within reserved IP range."),
        );
    }
    if taken(address) {
        return refuse(
            400,
            "PrivateIPAddressInUse",
            format!("Private IP address {address} is already in use."),
        );
    }
    Ok(address)
}

/// A dynamic address stays as long as its NIC.
fn next_free(
    state: &State,
    id: &str,
    index: usize,
    prefixes: &[(u32, u32)],
    taken: &dyn Fn(Ipv4Addr) -> bool,
) -> Outcome<Ipv4Addr> {
    let kept = state.entry(id).and_then(|nic| {
        text(
            &nic.body,
            &format!("/properties/ipConfigurations/{index}/properties/privateIPAddress"),
        )
        .parse()
        .ok()
    });
    let free = kept.or_else(|| free(prefixes).find(|a| !taken(*a)));
    free.map_or_else(
        || refuse(400, "SubnetIsFull", "Subnet does not have enough capacity."),
        Ok,
    )
}

fn free(prefixes: &[(u32, u32)]) -> impl Iterator<Item = Ipv4Addr> {
    prefixes
        .iter()
        .flat_map(|(first, last)| first + 4..*last)
        .map(Ipv4Addr::from)
}

/// Whether another NIC has the address in the same network.
fn taken(state: &State, subnet: &str, address: Ipv4Addr, but: &str) -> bool {
    let network = network_of(subnet);
    let address = address.to_string();
    state
        .of_type("Microsoft.Network/networkInterfaces")
        .filter(|nic| !nic.id.eq_ignore_ascii_case(but))
        .flat_map(|nic| list(&nic.body, "/properties/ipConfigurations"))
        .any(|c| {
            text(c, "/properties/privateIPAddress") == address
                && network_of(text(c, "/properties/subnet/id")) == network
        })
}

fn network_of(subnet: &str) -> String {
    let lower = subnet.to_lowercase();
    lower
        .split("/subnets/")
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn subnet_prefixes(state: &State, id: &str) -> Option<Vec<(u32, u32)>> {
    let network = state.entry(&network_of(id))?;
    let lower = id.to_lowercase();
    let name = lower.split("/subnets/").nth(1)?;
    let subnet = list(&network.body, "/properties/subnets")
        .find(|s| text(s, "/name").eq_ignore_ascii_case(name))?;
    Some(
        prefix(text(subnet, "/properties/addressPrefix"))
            .into_iter()
            .collect(),
    )
}

/// The NIC that a public address belongs to.
fn user_of_public(state: &State, public: &str) -> Option<String> {
    state
        .of_type("Microsoft.Network/networkInterfaces")
        .find(|nic| {
            list(&nic.body, "/properties/ipConfigurations")
                .any(|c| text(c, "/properties/publicIPAddress/id").eq_ignore_ascii_case(public))
        })
        .map(|nic| nic.id.to_lowercase())
}

/// What a body refers to must be there.
fn reference(state: &State, body: &Value, pointer: &str) -> Outcome<()> {
    let id = text(body, pointer);
    if id.is_empty() || state.entry(id).is_some() {
        return Ok(());
    }
    refuse(
        400,
        "InvalidResourceReference",
        format!("Resource {id} was not found."),
    )
}

/// Checks a network and gives its subnets their ids.
pub(super) fn network(state: &State, id: &str, body: &mut Value) -> Outcome<()> {
    if list(body, "/properties/addressSpace/addressPrefixes").count() == 0 {
        return refuse(
            400,
            "InvalidRequestFormat",
            "A virtual network needs an address space.",
        );
    }
    let spaces: Vec<_> = list(body, "/properties/addressSpace/addressPrefixes")
        .filter_map(|p| prefix(p.as_str()?))
        .collect();
    let subnets: Vec<Value> = list(body, "/properties/subnets").cloned().collect();
    let mut seen: Vec<(u32, u32)> = Vec::new();
    for (index, subnet) in subnets.iter().enumerate() {
        reference(state, subnet, "/properties/networkSecurityGroup/id")?;
        let Some((first, last)) = prefix(text(subnet, "/properties/addressPrefix")) else {
            return refuse(
                400,
                "InvalidCIDRNotation",
                "The address prefix is not valid.",
            );
        };
        if !spaces.iter().any(|(a, b)| *a <= first && last <= *b) {
            return refuse(
                400,
                "NetcfgInvalidSubnet",
                "The subnet is not in the address space.",
            );
        }
        if seen.iter().any(|(a, b)| first <= *b && *a <= last) {
            return refuse(400, "NetcfgSubnetRangesOverlap", "Subnets overlap.");
        }
        seen.push((first, last));
        body["properties"]["subnets"][index]["id"] =
            format!("{id}/subnets/{}", text(subnet, "/name")).into();
    }
    Ok(())
}

/// Checks a public address and gives it one.
pub(super) fn public_address(state: &State, id: &str, body: &mut Value) -> Outcome<()> {
    let standard = text(body, "/sku/name") == "Standard";
    if standard && text(body, "/properties/publicIPAllocationMethod") != "Static" {
        return refuse(
            400,
            "IPv4StandardSkuPublicIpCannotBeDynamic",
            "Standard sku publicIp must have AllocationMethod set to Static.",
        );
    }
    if list(body, "/zones").next().is_some() && !standard {
        return refuse(400, "InvalidRequestFormat", "Zones need the sku Standard.");
    }
    let before = state
        .entry(id)
        .map(|e| text(&e.body, "/properties/ipAddress").to_owned());
    let number = state.created.len() % 250 + 1;
    let address = before.unwrap_or_else(|| format!("203.0.113.{number}"));
    body["properties"]["ipAddress"] = address.into();
    Ok(())
}

/// What stands in the way of a removal.
pub(super) fn blocked(state: &State, id: &str, kind: &str) -> Outcome<()> {
    let lower = id.to_lowercase();
    match kind {
        "networkinterfaces" => {
            if let Some(vm) = super::compute::user_of_nic(state, &lower) {
                return refuse(
                    400,
                    "NicInUse",
                    format!("Network Interface {id} is used by existing resource {vm}."),
                );
            }
        }
        "publicipaddresses" => {
            if let Some(nic) = user_of_public(state, &lower) {
                return refuse(
                    400,
                    "PublicIPAddressCannotBeDeleted",
                    format!(
                        "Public IP address {id} can not be deleted since it is still allocated to resource {nic}."
                    ),
                );
            }
        }
        "virtualnetworks" => {
            let used = state
                .of_type("Microsoft.Network/networkInterfaces")
                .flat_map(|nic| list(&nic.body, "/properties/ipConfigurations"))
                .any(|c| network_of(text(c, "/properties/subnet/id")) == lower);
            if used {
                return refuse(
                    400,
                    "InUseSubnetCannotBeDeleted",
                    format!("A subnet of {id} is in use and cannot be deleted."),
                );
            }
        }
        "networksecuritygroups" => {
            let of = |value: &Value| {
                text(value, "/properties/networkSecurityGroup/id").eq_ignore_ascii_case(&lower)
            };
            let nics = state
                .of_type("Microsoft.Network/networkInterfaces")
                .any(|n| of(&n.body));
            let subnets = state
                .of_type("Microsoft.Network/virtualNetworks")
                .any(|n| list(&n.body, "/properties/subnets").any(of));
            if nics || subnets {
                return refuse(
                    400,
                    "InUseNetworkSecurityGroupCannotBeDeleted",
                    format!("Network security group {id} is in use and cannot be deleted."),
                );
            }
        }
        _ => {}
    }
    Ok(())
}

/// `CheckIPAddressAvailability`.
pub(super) fn availability(state: &State, network: &str, wished: &str) -> Outcome<Value> {
    let Some(entry) = state.entry(network) else {
        return refuse(
            404,
            "ResourceNotFound",
            format!("The Resource '{network}' was not found."),
        );
    };
    let Ok(address) = wished.parse::<Ipv4Addr>() else {
        return refuse(
            400,
            "InvalidIPAddress",
            format!("{wished} is not an IP address."),
        );
    };
    let subnet = list(&entry.body, "/properties/subnets").find_map(|s| {
        let range = prefix(text(s, "/properties/addressPrefix"))?;
        (range.0..=range.1)
            .contains(&u32::from(address))
            .then(|| (range, text(s, "/id").to_owned()))
    });
    let Some((range, id)) = subnet else {
        return refuse(
            400,
            "PrivateIPAddressNotInAnySubnet",
            format!(
                "Private static IP address {address} does not belong to the range of any subnet."
            ),
        );
    };
    let prefixes = [range];
    if wished_is_free(&prefixes, address) && !taken(state, &id, address, "") {
        return Ok(json!({ "available": true, "isPlatformReserved": false }));
    }
    let others: Vec<String> = free(&prefixes)
        .filter(|a| !taken(state, &id, *a, ""))
        .take(5)
        .map(|a| a.to_string())
        .collect();
    Ok(json!({ "available": false, "availableIPAddresses": others,
        "isPlatformReserved": !wished_is_free(&prefixes, address) }))
}

fn wished_is_free(prefixes: &[(u32, u32)], address: Ipv4Addr) -> bool {
    free(prefixes).any(|a| a == address)
}
