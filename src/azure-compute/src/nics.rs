//! Choice of NICs: which are made, where, with which address, and which is the primary one.
//!
//! Rules (Site Recovery, networking of a failover to Azure):
//! - exactly one NIC is primary: the chosen one, else the first that is made;
//! - subnet: the wished one; else the one with the source's name; else the first of the network, in a drill the first by alphabet;
//! - address: none wished, the next free one; wished and free, that one; wished and taken, a failover fails and a drill takes another.
//!
//! Azure keeps the first four addresses and the last one of a subnet for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::finding::Findings;
use crate::naming;
use crate::spec::{Address, NicSpec, PublicAddress, Selection};

/// A subnet as the network has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// Name.
    pub name: String,
    /// ARM id.
    pub id: String,
    /// Addresses, in CIDR.
    pub prefixes: Vec<String>,
}

impl Subnet {
    /// Whether a NIC can have this address.
    pub fn has_room_for(&self, address: Ipv4Addr) -> bool {
        self.prefixes
            .iter()
            .filter_map(|p| prefix(p))
            .any(|(first, last)| {
                let address = u32::from(address);
                // The first four and the last belong to Azure.
                address >= first.saturating_add(4) && address < last
            })
    }
}

/// First and last address of a prefix.
pub fn prefix(text: &str) -> Option<(u32, u32)> {
    let (address, bits) = text.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|b| *b <= 32)?;
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    let first = u32::from(address) & mask;
    Some((first, first | !mask))
}

/// Whether the network has an address to give, as it says (`CheckIPAddressAvailability`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Availability {
    /// It is free.
    pub free: bool,
    /// Free ones nearby.
    pub others: Vec<Ipv4Addr>,
}

/// A NIC that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenNic {
    /// The source's NIC.
    pub source_id: String,
    /// Name.
    pub name: String,
    /// Subnet, as ARM id.
    pub subnet_id: String,
    /// Whether it is the primary one.
    pub primary: bool,
    /// Fixed address; without one Azure gives the next free one.
    pub address: Option<Ipv4Addr>,
    /// Whether another address will do when that one was taken in the meantime.
    pub another_will_do: bool,
    /// Public address.
    pub public_address: PublicAddress,
    /// Security group.
    pub security_group_id: Option<String>,
    /// Accelerated networking.
    pub accelerated: bool,
}

/// The wished NICs of a VM and what is known of their network.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) vm_name: &'a str,
    pub(crate) drill: bool,
    pub(crate) nics: &'a [NicSpec],
    pub(crate) primary: Option<&'a str>,
    pub(crate) subnets: &'a [Subnet],
    pub(crate) availability: &'a BTreeMap<Ipv4Addr, Availability>,
}

/// NICs that are made, in the source's order.
pub fn selected(nics: &[NicSpec]) -> impl Iterator<Item = &NicSpec> {
    nics.iter()
        .filter(|n| n.selection != Selection::NotSelected)
}

/// The subnet of a NIC and whether that is the one that was asked for.
pub fn subnet_of<'a>(
    nic: &NicSpec,
    subnets: &'a [Subnet],
    drill: bool,
) -> Option<(&'a Subnet, bool)> {
    let named = |name: &Option<String>| {
        let name = name.as_deref()?;
        subnets.iter().find(|s| s.name.eq_ignore_ascii_case(name))
    };
    let wished = nic.subnet.is_some() || nic.source_subnet.is_some();
    if let Some(subnet) = named(&nic.subnet) {
        return Some((subnet, true));
    }
    // A wish that can't be met is not quietly met by another rule, except in a drill.
    if nic.subnet.is_some() && !drill {
        return None;
    }
    if let Some(subnet) = named(&nic.source_subnet) {
        return Some((subnet, nic.subnet.is_none()));
    }
    let first = if drill {
        subnets.iter().min_by_key(|s| s.name.to_lowercase())
    } else {
        subnets.first()
    };
    first.map(|s| (s, !wished))
}

pub(crate) fn choose(question: &Question<'_>, findings: &mut Findings) -> Vec<ChosenNic> {
    let chosen: Vec<&NicSpec> = selected(question.nics).collect();
    if chosen.is_empty() {
        findings.error(
            &format!("VM {}", question.vm_name),
            "no NIC is selected, and a VM in Azure has at least one",
            "select a NIC of the protected VM",
        );
        return Vec::new();
    }
    let primary = question
        .primary
        .and_then(|id| chosen.iter().position(|n| n.id.eq_ignore_ascii_case(id)));
    if let (Some(id), None) = (question.primary, primary) {
        findings.error(
            &format!("NIC {id}"),
            "it shall be the primary one and is not selected",
            "select it or choose another primary NIC",
        );
    }
    let mut made = Vec::new();
    let (mut names, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for (index, nic) in chosen.iter().enumerate() {
        let about = format!("NIC {}", nic.id);
        let name = name_of(nic, question, index, &about, findings);
        if !names.insert(name.to_lowercase()) {
            findings.error(
                &about,
                format!("the name `{name}` is given to two NICs"),
                "give each NIC another name",
            );
        }
        let Some((subnet, as_asked)) = subnet_of(nic, question.subnets, question.drill) else {
            findings.error(
                &about,
                match &nic.subnet {
                    Some(wished) => format!("the network has no subnet `{wished}`"),
                    None => "the network has no subnet".to_owned(),
                },
                "make the subnet or choose one of the network's",
            );
            continue;
        };
        if !as_asked {
            findings.note(
                &about,
                format!(
                    "the network has no subnet of the wished or source's name; `{}` is taken",
                    subnet.name
                ),
                "choose a subnet to have another one",
            );
        }
        if nic.public_address == PublicAddress::New && nic.security_group_id.is_none() {
            // Standard addresses are closed until a security group opens them.
            findings.note(
                &about,
                "its public address lets nothing in unless the subnet's security group does",
                "give the NIC a security group that allows what shall come in",
            );
        }
        let address = address_of(nic, subnet, question, &mut taken, &about, findings);
        made.push(ChosenNic {
            source_id: nic.id.clone(),
            name,
            subnet_id: subnet.id.clone(),
            primary: index == primary.unwrap_or(0),
            address,
            another_will_do: question.drill || matches!(nic.address, Address::Keep(_)),
            public_address: nic.public_address.clone(),
            security_group_id: nic.security_group_id.clone(),
            accelerated: nic.accelerated,
        });
    }
    made
}

fn name_of(
    nic: &NicSpec,
    question: &Question<'_>,
    index: usize,
    about: &str,
    findings: &mut Findings,
) -> String {
    let Some(wished) = &nic.target_name else {
        return naming::join(&[question.vm_name, &format!("nic{index}")]);
    };
    if let Some(fault) = naming::resource_name_fault(wished) {
        findings.error(
            about,
            format!("`{wished}` is no name of a NIC: {fault}"),
            "change the name",
        );
    }
    if question.drill {
        // The real one may exist: a drill beside a failed-over VM, or names made ready for the real thing.
        naming::with_suffix(wished, naming::DRILL_SUFFIX)
    } else {
        wished.clone()
    }
}

fn address_of(
    nic: &NicSpec,
    subnet: &Subnet,
    question: &Question<'_>,
    taken: &mut BTreeSet<Ipv4Addr>,
    about: &str,
    findings: &mut Findings,
) -> Option<Ipv4Addr> {
    let (wished, must) = match nic.address {
        Address::Dynamic => return None,
        Address::Keep(address) => (address, false),
        Address::Exactly(address) => (address, !question.drill),
    };
    let answer = question.availability.get(&wished);
    let problem = if !subnet.has_room_for(wished) {
        Some(format!(
            "{wished} is none that a NIC can have in the subnet `{}` ({})",
            subnet.name,
            subnet.prefixes.join(", ")
        ))
    } else if taken.contains(&wished) {
        Some(format!("{wished} is wished by two NICs"))
    } else if answer.is_some_and(|a| !a.free) {
        Some(format!("{wished} is taken in the network"))
    } else {
        None
    };
    let Some(problem) = problem else {
        taken.insert(wished);
        return Some(wished);
    };
    if must {
        findings.error(
            about,
            problem,
            "choose a free address, free this one, or leave it empty for the next free one",
        );
        return None;
    }
    let other = answer
        .into_iter()
        .flat_map(|a| &a.others)
        .find(|a| subnet.has_room_for(**a) && !taken.contains(*a))
        .copied();
    findings.warning(
        about,
        match other {
            Some(other) => format!("{problem}; it gets {other}"),
            None => format!("{problem}; it gets the next free address"),
        },
        "change DNS and peers accordingly, or choose an address",
    );
    taken.extend(other);
    other
}

#[cfg(test)]
#[path = "nics_tests.rs"]
mod tests;
