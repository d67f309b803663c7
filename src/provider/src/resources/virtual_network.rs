//! `siterecovery_virtual_network`: the network that recovered VMs are connected to.

use arm_client::Method;
use arm_model::neighbours::VirtualNetworkProperties;
use arm_model::{Resource as Answer, VirtualNetworkId, validate};
use serde_json::{Value as Json, json};
use tf_provider::schema::Block;
use tf_provider::{
    Attribute, AttributePath, Change, Diagnostics, NestedBlock, Object, Schema, Type, Value,
};

use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};

pub(crate) struct VirtualNetwork;

impl Plain for VirtualNetwork {
    const TYPE: &'static str = "siterecovery_virtual_network";
    const WHAT: &'static str = "virtual network";
    const FIELDS: Fields = &[
        ("name", "name"),
        ("location", "location"),
        ("addressSpace", "address_space"),
        ("addressPrefixes", "address_space"),
        ("subnets", "subnet"),
        ("tags", "tags"),
    ];
    const KEYS: &'static [&'static str] = &["name", "resource_group_name"];
    const REMOVAL: Removal = Removal::Delete;
    type Properties = VirtualNetworkProperties;
    type Id = VirtualNetworkId;

    fn schema() -> Schema {
        let name = Attribute::string()
            .required()
            .describe("Name of the subnet.");
        let subnet = Block::new()
            .describe("A subnet.")
            .attribute("name", fields::checked(name, validate::resource_name))
            .attribute(
                "address_prefix",
                Attribute::string()
                    .required()
                    .check(cidr)
                    .describe("Address range in CIDR form, inside `address_space`."),
            );
        Schema::new()
            .describe("A virtual network that recovered VMs are connected to.")
            .attribute(
                "name",
                fields::name("virtual network", validate::resource_name),
            )
            .attribute("resource_group_name", fields::resource_group_name())
            .attribute("location", fields::location())
            .attribute(
                "address_space",
                Attribute::list(Type::String)
                    .required()
                    .describe("Address ranges in CIDR form, such as `[\"10.80.0.0/16\"]`."),
            )
            .attribute("tags", fields::tags())
            .block("subnet", NestedBlock::list(subnet))
    }

    fn id(session: &Session, object: &Object) -> Result<VirtualNetworkId, Diagnostics> {
        let group = session.group(object.require_str("resource_group_name")?);
        Ok(group.virtual_network(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        let subnet = |subnet: &&Object| {
            json!({
                "name": subnet.string("name"),
                "properties": { "addressPrefix": subnet.string("address_prefix") },
            })
        };
        json!({
            "location": object.string("location"),
            "tags": object.string_map("tags"),
            "properties": {
                "addressSpace": { "addressPrefixes": object.strings("address_space") },
                "subnets": object.objects("subnet").iter().map(subnet).collect::<Vec<_>>(),
            },
        })
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        let changed = ["address_space", "subnet", "tags"]
            .iter()
            .any(|name| change.changed(name));
        changed.then(|| (Method::Put, Self::body(&change.planned)))
    }

    fn fill(id: &VirtualNetworkId, answer: &Answer<VirtualNetworkProperties>, object: &mut Object) {
        object.set("name", id.name());
        object.set("resource_group_name", id.resource_group());
        object.set("location", answer.location.as_deref());
        object.set(
            "address_space",
            answer.properties.address_space.address_prefixes.clone(),
        );
        let subnets = answer.properties.subnets.iter().map(|subnet| {
            Object::new()
                .with("name", subnet.name.as_str())
                .with("address_prefix", subnet.properties.address_prefix.as_str())
        });
        object.set("subnet", Value::list(subnets));
        super::vault::set_tags(answer, object);
    }

    fn validate(config: &Object, report: &mut Diagnostics) {
        let spaces = config.elements("address_space");
        for (index, space) in spaces.iter().enumerate() {
            if let Err(text) = cidr(space) {
                let path = AttributePath::new("address_space").index(index);
                report.push_error(path, "Not an address range", format!("Each entry {text}."));
            }
        }
        if config
            .get("address_space")
            .as_elements()
            .is_some_and(<[_]>::is_empty)
        {
            report.push_error(
                "address_space",
                "No address range",
                "Give at least one range, such as 10.80.0.0/16.",
            );
        }
        let known = spaces.iter().all(|space| space.as_str().is_some());
        let ranges: Vec<Range> = spaces
            .iter()
            .filter_map(|s| s.as_str().and_then(range))
            .collect();
        let mut names = Vec::new();
        for (index, subnet) in config.elements("subnet").iter().enumerate() {
            let Some(subnet) = subnet.as_object() else {
                continue;
            };
            let path = AttributePath::new("subnet").index(index);
            if let Some(inner) = subnet.str("address_prefix").and_then(range)
                && known
                && !ranges.iter().any(|outer| outer.holds(&inner))
            {
                report.push_error(
                    path.clone().attribute("address_prefix"),
                    "Subnet outside of the network",
                    "The subnet's range must lie in one of the ranges of address_space.",
                );
            }
            if let Some(name) = subnet.str("name") {
                let folded = name.to_lowercase();
                if names.contains(&folded) {
                    report.push_error(
                        path.attribute("name"),
                        "Two subnets of one name",
                        format!("The name {name:?} is used twice; case doesn't count."),
                    );
                }
                names.push(folded);
            }
        }
    }
}

fn cidr(value: &Value) -> Result<(), String> {
    match value.as_str() {
        Some(text) if range(text).is_none() => {
            Err("must be an address range in CIDR form, such as 10.80.0.0/16, beginning at the range's first address".to_owned())
        }
        _ => Ok(()),
    }
}

/// An address range: first address and length of the prefix; `v6` keeps the families apart.
#[derive(Debug, PartialEq)]
struct Range {
    v6: bool,
    first: u128,
    prefix: u32,
}

impl Range {
    fn holds(&self, inner: &Range) -> bool {
        let bits = if self.v6 { 128 } else { 32 };
        let shift = bits - self.prefix;
        let top = |address: u128| if shift == 128 { 0 } else { address >> shift };
        self.v6 == inner.v6 && inner.prefix >= self.prefix && top(self.first) == top(inner.first)
    }
}

fn range(text: &str) -> Option<Range> {
    let (address, prefix) = text.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let prefix: u32 = prefix.parse().ok()?;
    let (v6, first, bits) = match address {
        std::net::IpAddr::V4(address) => (false, u128::from(u32::from(address)), 32),
        std::net::IpAddr::V6(address) => (true, u128::from(address), 128),
    };
    let host_bits = bits - (prefix <= bits).then_some(prefix)?;
    let mask = if host_bits == 128 {
        u128::MAX
    } else {
        (1_u128 << host_bits) - 1
    };
    (first & mask == 0).then_some(Range { v6, first, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_begins_at_its_first_address() {
        assert!(
            range("10.80.0.0/16").is_some()
                && range("0.0.0.0/0").is_some()
                && range("fd00::/8").is_some()
        );
        for wrong in [
            "10.80.0.1/16",
            "10.80.0.0/33",
            "10.80.0.0",
            "x/8",
            "::1/0",
            "",
        ] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_subnet_outside_of_the_network_or_named_twice_is_pointed_at() {
        let subnet = |name: &str, prefix: &str| {
            Value::from(
                Object::new()
                    .with("name", name)
                    .with("address_prefix", prefix),
            )
        };
        let config = Object::new()
            .with("address_space", vec!["10.80.0.0/16"])
            .with(
                "subnet",
                Value::List(vec![
                    subnet("a", "10.80.1.0/24"),
                    subnet("A", "10.81.0.0/24"),
                ]),
            );
        let mut report = Diagnostics::new();
        VirtualNetwork::validate(&config, &mut report);
        let paths: Vec<String> = report.iter().map(|d| d.attribute.to_string()).collect();
        assert_eq!(paths, ["subnet[1].address_prefix", "subnet[1].name"]);
    }

    proptest! {
        #[test]
        fn a_range_holds_its_parts(first in any::<u32>(), prefix in 0_u32..=32, more in 0_u32..=32) {
            let cut = |prefix: u32| if prefix == 0 { 0 } else { first & (u32::MAX << (32 - prefix)) };
            let text = |prefix: u32| format!("{}/{prefix}", std::net::Ipv4Addr::from(cut(prefix)));
            let outer = range(&text(prefix)).unwrap();
            let inner = range(&text((prefix + more).min(32))).unwrap();
            prop_assert!(outer.holds(&inner));
        }
    }
}
