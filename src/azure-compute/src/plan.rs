//! The decision: from a spec and facts to everything that is made. Pure; says all findings at once.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::{Facts, same_location};
use crate::finding::{Finding, Findings, Severity};
use crate::nics::{ChosenNic, Question, Subnet};
use crate::resource::{Kind, Planned, is_id_of};
use crate::size::{Needs, Size};
use crate::spec::{
    DiskSpec, Licence, Network, OsType, Placement, PublicAddress, SubnetSpec, TargetSpec,
};
use crate::{bodies, disks, naming, nics, size, tags};

/// What is made. It can be stored: made again after a crash, it leads to the same VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetPlan {
    /// The recovery.
    pub recovery_id: String,
    /// ARM id of the VM.
    pub vm_id: String,
    /// Name of the VM.
    pub vm_name: String,
    /// Its size; empty when none fits.
    pub size: String,
    /// What is made, in order.
    pub resources: Vec<Planned>,
    /// Page blobs that the VM uses as they are; whoever wrote them removes them after the VM.
    pub blobs: Vec<String>,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl TargetPlan {
    /// Whether nothing stands in the way.
    pub fn is_possible(&self) -> bool {
        self.findings.iter().all(|f| f.severity < Severity::Error)
    }
}

/// Decides.
pub fn decide(spec: &TargetSpec, facts: &Facts) -> TargetPlan {
    let mut findings = Findings::default();
    let vm_name = naming::vm_name(&spec.vm_name, spec.drill);
    let about = format!("VM {vm_name}");
    check_vm(spec, &about, facts, &mut findings);
    let chosen_disks = disks::lay_out(
        &vm_name,
        spec.drill,
        &spec.disks,
        spec.generation,
        spec.managed_disks,
        &spec.placement,
        &mut findings,
    );
    for disk in &spec.disks {
        check_account(spec, disk, facts, &mut findings);
    }
    let mut chosen_nics = choose_nics(spec, &vm_name, facts, &mut findings);
    let size = choose_size(spec, facts, &chosen_disks, &about, &mut findings);
    for nic in chosen_nics.iter_mut().filter(|n| n.accelerated) {
        if size.is_some_and(|s| !s.accelerated) {
            nic.accelerated = false;
            findings.warning(
                &format!("NIC {}", nic.source_id),
                "the size has no accelerated networking; it is left off",
                "choose a size that has it",
            );
        }
    }
    let size = size.map(|s| s.name.clone()).unwrap_or_default();

    let mut resources = isolated_network(spec);
    let group = &spec.place;
    let mut add = |kind: Kind, name: &str, mut body: Value, other: Option<Value>| {
        let wished = match kind {
            Kind::Vm => &spec.tags.vm,
            Kind::Disk => &spec.tags.disks,
            _ => &spec.tags.nics,
        };
        tags::mark(&mut body, wished, &spec.recovery_id);
        let with_any_address = other.map(|mut other| {
            // The same marks as the body it stands in for: either of them is what this plan makes.
            other["tags"] = body["tags"].clone();
            other
        });
        let id = kind.id_of(group, name);
        resources.push(Planned {
            kind,
            name: name.to_owned(),
            id: id.clone(),
            owner: spec.recovery_id.clone(),
            body,
            with_any_address,
        });
        id
    };
    if spec.managed_disks {
        for chosen in &chosen_disks {
            if let Some(source) = spec.disks.iter().find(|d| d.id == chosen.source_id) {
                add(
                    Kind::Disk,
                    &chosen.name,
                    bodies::disk(spec, source, chosen),
                    None,
                );
            }
        }
    }
    let mut nic_ids = Vec::new();
    for nic in &chosen_nics {
        let public = match &nic.public_address {
            PublicAddress::None => None,
            PublicAddress::Existing(id) => Some(id.clone()),
            PublicAddress::New => {
                let name = naming::with_suffix(&nic.name, "-ip");
                Some(add(
                    Kind::PublicAddress,
                    &name,
                    bodies::public_address(spec),
                    None,
                ))
            }
        };
        let body = |fixed| bodies::nic(spec, nic, public.as_deref(), fixed);
        let other = (nic.address.is_some() && nic.another_will_do).then(|| body(false));
        nic_ids.push((add(Kind::Nic, &nic.name, body(true), other), nic.primary));
    }
    let disk_id = |name: &str| Kind::Disk.id_of(group, name);
    let body = bodies::vm(spec, &size, &chosen_disks, &disk_id, &nic_ids);
    let vm_id = add(Kind::Vm, &vm_name, body, None);
    resources.sort_by_key(|r| r.kind);

    TargetPlan {
        recovery_id: spec.recovery_id.clone(),
        vm_id,
        vm_name,
        size,
        resources,
        blobs: if spec.managed_disks {
            Vec::new()
        } else {
            spec.disks.iter().map(|d| d.blob_uri.clone()).collect()
        },
        findings: findings.0,
    }
}

fn check_vm(spec: &TargetSpec, about: &str, facts: &Facts, findings: &mut Findings) {
    if let Some(fault) = naming::vm_name_fault(&spec.vm_name) {
        findings.error(
            about,
            format!("`{}` is no name of a VM in Azure: {fault}", spec.vm_name),
            "set the target name of the protected VM",
        );
    }
    if spec.recovery_id.is_empty() || spec.recovery_id.chars().count() > 256 {
        findings.error(
            about,
            "its recovery id must have 1 to 256 characters",
            "this is a fault of the caller; report it",
        );
    }
    if !facts.group_exists {
        findings.error(
            &format!("resource group {}", spec.place.resource_group),
            "it does not exist",
            "make it or choose another one for the protected VM",
        );
    }
    tags::check(about, &spec.tags.vm, findings);
    tags::check(&format!("NICs of {about}"), &spec.tags.nics, findings);
    tags::check(&format!("disks of {about}"), &spec.tags.disks, findings);
    if spec.licence == Licence::WindowsServer && spec.os != OsType::Windows
        || matches!(spec.licence, Licence::RhelByos | Licence::SlesByos) && spec.os != OsType::Linux
    {
        findings.error(
            about,
            "the licence is for another operating system",
            "change the licence type or the type of the operating system",
        );
    }
    if let Placement::AvailabilitySet(id) = &spec.placement {
        check_set(spec, id, facts, findings);
    }
}

fn check_set(spec: &TargetSpec, id: &str, facts: &Facts, findings: &mut Findings) {
    let about = format!("availability set {}", last(id));
    let Some(set) = &facts.availability_set else {
        findings.error(
            &about,
            "it does not exist",
            "make it or choose another placement",
        );
        return;
    };
    if !same_location(&set.location, &spec.place.location) {
        findings.error(
            &about,
            format!(
                "it is in {}, the VM in {}",
                set.location, spec.place.location
            ),
            "choose one of the same region",
        );
    }
    if set.managed != spec.managed_disks {
        findings.error(
            &about,
            if set.managed {
                "it is for VMs with managed disks"
            } else {
                "it is for VMs without managed disks"
            },
            "choose a set of the other kind, or change whether managed disks are used",
        );
    }
}

fn check_account(spec: &TargetSpec, disk: &DiskSpec, facts: &Facts, findings: &mut Findings) {
    let about = format!("storage account {}", last(&disk.storage_account_id));
    if !is_id_of(
        &disk.storage_account_id,
        "Microsoft.Storage/storageAccounts",
    ) {
        findings.error(
            &about,
            format!(
                "`{}` is no id of a storage account",
                disk.storage_account_id
            ),
            "give the account's ARM id",
        );
        return;
    }
    let Some(Some(account)) = facts.accounts.get(&disk.storage_account_id.to_lowercase()) else {
        findings.error(
            &about,
            "it does not exist or may not be seen",
            "check the account's id and the role of the orchestrator's client there",
        );
        return;
    };
    if !same_location(&account.location, &spec.place.location) {
        findings.error(
            &about,
            format!(
                "it is in {}, the VM in {}",
                account.location, spec.place.location
            ),
            "VM, network and storage account must be in one region",
        );
    }
    if !account.page_blobs {
        findings.error(
            &about,
            "it holds no page blobs",
            "use a general purpose account",
        );
    }
}

/// Subnets of the network as it is or will be.
fn subnets_of(spec: &TargetSpec, facts: &Facts, findings: &mut Findings) -> Option<Vec<Subnet>> {
    match &spec.network {
        Network::Existing { id, production } => {
            let about = format!("network {}", last(id));
            let Some(network) = &facts.network else {
                findings.error(
                    &about,
                    "it does not exist",
                    "map the source's network to another one",
                );
                return None;
            };
            if !same_location(&network.location, &spec.place.location) {
                findings.error(
                    &about,
                    format!(
                        "it is in {}, the VM in {}",
                        network.location, spec.place.location
                    ),
                    "VM, network and storage account must be in one region",
                );
            }
            if spec.drill && *production {
                findings.warning(
                    &about,
                    "the drill uses the production network: two machines with one identity may meet",
                    "use an isolated network, or shut the source down first",
                );
            }
            Some(network.subnets.clone())
        }
        Network::Isolated { name, subnets, .. } => {
            check_isolated(name, subnets, findings);
            let network = Kind::Network.id_of(&spec.place, name);
            Some(
                subnets
                    .iter()
                    .map(|s| Subnet {
                        name: s.name.clone(),
                        id: format!("{network}/subnets/{}", s.name),
                        prefixes: vec![s.prefix.clone()],
                    })
                    .collect(),
            )
        }
    }
}

fn check_isolated(name: &str, subnets: &[SubnetSpec], findings: &mut Findings) {
    let about = format!("network {name}");
    if let Some(fault) = naming::resource_name_fault(name) {
        findings.error(
            &about,
            format!("that is no name: {fault}"),
            "change the name",
        );
    }
    let mut seen: Vec<(u32, u32)> = Vec::new();
    for subnet in subnets {
        match nics::prefix(&subnet.prefix) {
            // Azure takes /29 at the smallest.
            Some((first, last)) if last - first >= 7 => {
                if seen.iter().any(|(a, b)| first <= *b && *a <= last) {
                    findings.error(
                        &about,
                        format!("the subnet `{}` overlaps with another one", subnet.name),
                        "give each subnet addresses of its own",
                    );
                }
                seen.push((first, last));
            }
            _ => findings.error(
                &about,
                format!("`{}` is no prefix of a subnet", subnet.prefix),
                "use one such as 10.1.0.0/24, /29 at the smallest",
            ),
        }
    }
}

fn choose_nics(
    spec: &TargetSpec,
    vm_name: &str,
    facts: &Facts,
    findings: &mut Findings,
) -> Vec<ChosenNic> {
    let Some(subnets) = subnets_of(spec, facts, findings) else {
        return Vec::new();
    };
    let none = std::collections::BTreeMap::new();
    let availability = match (&spec.network, &facts.network) {
        (Network::Existing { .. }, Some(network)) => &network.addresses,
        _ => &none,
    };
    nics::choose(
        &Question {
            vm_name,
            drill: spec.drill,
            nics: &spec.nics,
            primary: spec.primary_nic.as_deref(),
            subnets: &subnets,
            availability,
        },
        findings,
    )
}

fn choose_size<'a>(
    spec: &TargetSpec,
    facts: &'a Facts,
    disks: &[disks::ChosenDisk],
    about: &str,
    findings: &mut Findings,
) -> Option<&'a Size> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let premium_account = |disk: &DiskSpec| {
        let account = facts.accounts.get(&disk.storage_account_id.to_lowercase());
        account.and_then(Option::as_ref).is_some_and(|a| a.premium)
    };
    let needs = Needs {
        cores: spec.cores,
        memory_mib: spec.memory_mib,
        data_disks: count(disks.iter().filter(|d| d.lun.is_some()).count()),
        nics: count(nics::selected(&spec.nics).count()),
        premium: spec.disks.iter().any(|d| {
            if spec.managed_disks {
                d.disk_type.is_premium()
            } else {
                premium_account(d)
            }
        }),
        generation: spec.generation,
        zone: Needs::zone_of(&spec.placement),
    };
    match size::choose(&facts.sizes, &needs, spec.size.as_deref(), &facts.quotas) {
        Ok(size) => {
            if size.cores < spec.cores || size.memory_mib < spec.memory_mib {
                findings.warning(
                    about,
                    format!(
                        "the wished size {} has {} cores and {} MiB, the source {} and {} MiB",
                        size.name, size.cores, size.memory_mib, spec.cores, spec.memory_mib
                    ),
                    "choose a larger size if the VM shall do the same work",
                );
            }
            Some(size)
        }
        Err(none) => {
            let text = match &spec.size {
                Some(wished) => format!(
                    "the size {wished} can't be used: {}",
                    none.reasons.join("; ")
                ),
                None => format!("no size fits: {}", none.reasons.join("; ")),
            };
            let next = match none.instead {
                Some(other) => format!("{other} would fit"),
                None => "ask for more quota, or change region, zone, disks or NICs".to_owned(),
            };
            findings.error(about, text, next);
            None
        }
    }
}

fn isolated_network(spec: &TargetSpec) -> Vec<Planned> {
    let Some((name, owner, subnets)) = bodies::isolated(&spec.network) else {
        return Vec::new();
    };
    let group_name = naming::with_suffix(name, "-nsg");
    let group = Kind::SecurityGroup.id_of(&spec.place, &group_name);
    let location = &spec.place.location;
    let made = |kind: Kind, name: &str, mut body: Value| {
        // Without the user's tags: VMs of one drill share it, and their tags differ.
        tags::mark(&mut body, &std::collections::BTreeMap::new(), owner);
        Planned {
            kind,
            name: name.to_owned(),
            id: kind.id_of(&spec.place, name),
            owner: owner.to_owned(),
            body,
            with_any_address: None,
        }
    };
    vec![
        made(
            Kind::SecurityGroup,
            &group_name,
            bodies::isolation(location),
        ),
        made(
            Kind::Network,
            name,
            bodies::network(location, subnets, &group),
        ),
    ]
}

fn last(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}
