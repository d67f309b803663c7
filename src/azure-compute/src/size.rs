//! Choice of the VM's size: the smallest that fits cores, memory, disks and NICs, out of what the region offers to the subscription.
//!
//! Site Recovery's rule: the smallest size with enough cores, memory, data disks and NICs. What else rules a size out comes from
//! Azure's list of SKUs (`Microsoft.Compute/skus`): restrictions of the subscription, zones, generation, premium storage, processor
//! architecture, and disks by NVMe only, for which a guest that ran on Hyper-V need not have a driver. Family quotas as well.

use serde_json::Value;

use crate::spec::{Generation, Placement};

/// A size as the region offers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// Name, such as `Standard_D2s_v3`.
    pub name: String,
    /// Family, which quotas count by.
    pub family: String,
    /// Processors.
    pub cores: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Data disks it takes.
    pub data_disks: u32,
    /// NICs it takes.
    pub nics: u32,
    /// Whether it takes premium disks.
    pub premium: bool,
    /// Whether it has accelerated networking.
    pub accelerated: bool,
    /// Generations it runs.
    pub generations: Vec<Generation>,
    /// Whether a x64 guest runs on it.
    pub x64: bool,
    /// Whether disks come by SCSI.
    pub scsi: bool,
    /// Whether it has graphics processors, which make it dear.
    pub gpu: bool,
    /// Zones that have it.
    pub zones: Vec<String>,
    /// Zones in which the subscription may not use it.
    pub barred_zones: Vec<String>,
    /// Why the subscription may not use it in the region at all, as Azure's code.
    pub barred: Option<String>,
}

impl Size {
    /// Reads an entry of the list of SKUs; `None` for entries that are no VM sizes of this region.
    pub fn from_sku(sku: &Value, location: &str) -> Option<Size> {
        if sku.get("resourceType")?.as_str()? != "virtualMachines" {
            return None;
        }
        let here = sku
            .get("locationInfo")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|info| text(info, "location").eq_ignore_ascii_case(location));
        let offered = texts(sku.get("locations"))
            .iter()
            .any(|l| l.eq_ignore_ascii_case(location));
        if here.is_none() && !offered {
            return None;
        }
        let capability = |name: &str| {
            sku.get("capabilities")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .find(|c| text(c, "name").eq_ignore_ascii_case(name))
                .map(|c| text(c, "value"))
        };
        let number = |name: &str| capability(name).and_then(|v| v.parse::<u32>().ok());
        let is = |name: &str| capability(name).is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let (mut barred, mut barred_zones) = (None, Vec::new());
        for restriction in sku
            .get("restrictions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let info = restriction.get("restrictionInfo");
            match text(restriction, "type").to_ascii_lowercase().as_str() {
                "location" => {
                    let mut places = texts(info.and_then(|i| i.get("locations")));
                    places.extend(texts(restriction.get("values")));
                    if places.iter().any(|l| l.eq_ignore_ascii_case(location)) {
                        barred = Some(text(restriction, "reasonCode").to_owned());
                    }
                }
                "zone" => barred_zones.extend(texts(info.and_then(|i| i.get("zones")))),
                _ => {}
            }
        }
        let generations = capability("HyperVGenerations").unwrap_or("V1");
        let controllers = capability("DiskControllerTypes").unwrap_or("SCSI");
        // Memory is given in GiB with a fraction, such as `0.75`.
        let memory_gib: f64 = capability("MemoryGB")?.parse().ok()?;
        Some(Size {
            name: text(sku, "name").to_owned(),
            family: text(sku, "family").to_owned(),
            cores: number("vCPUsAvailable").or_else(|| number("vCPUs"))?,
            memory_mib: mebibytes(memory_gib),
            data_disks: number("MaxDataDiskCount").unwrap_or(0),
            nics: number("MaxNetworkInterfaces").unwrap_or(1).max(1),
            premium: is("PremiumIO"),
            accelerated: is("AcceleratedNetworkingEnabled"),
            generations: [Generation::V1, Generation::V2]
                .into_iter()
                .filter(|g| generations.split(',').any(|w| w.trim() == g.word()))
                .collect(),
            x64: capability("CpuArchitectureType").is_none_or(|a| a.eq_ignore_ascii_case("x64")),
            scsi: controllers
                .split(',')
                .any(|w| w.trim().eq_ignore_ascii_case("SCSI")),
            gpu: number("GPUs").unwrap_or(0) > 0,
            zones: texts(here.and_then(|h| h.get("zones"))),
            barred_zones,
            barred,
        })
    }

    /// Order of preference: fewer cores, less memory, no graphics, no burstable processor, fewer disks, name.
    fn cost(&self) -> impl Ord + '_ {
        let burstable = self.name.starts_with("Standard_B") || self.name.starts_with("Basic_");
        (
            self.gpu,
            self.cores,
            self.memory_mib,
            burstable,
            self.data_disks,
            self.name.as_str(),
        )
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "memory of a size: positive and far below 2^53"
)]
fn mebibytes(gib: f64) -> u64 {
    (gib.max(0.0) * 1024.0) as u64
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: Option<&Value>) -> Vec<String> {
    value
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(ToOwned::to_owned))
        .collect()
}

/// Cores that a quota leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Family, or `cores` for the region's sum.
    pub name: String,
    /// Cores in use.
    pub used: u64,
    /// Cores allowed.
    pub limit: u64,
}

impl Quota {
    /// Reads an entry of the region's usages.
    pub fn from_usage(usage: &Value) -> Option<Quota> {
        Some(Quota {
            name: usage.pointer("/name/value")?.as_str()?.to_owned(),
            used: usage.get("currentValue")?.as_u64()?,
            limit: usage.get("limit")?.as_u64()?,
        })
    }
}

/// What the VM needs of its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Processors, at least.
    pub cores: u32,
    /// Memory in MiB, at least.
    pub memory_mib: u64,
    /// Data disks.
    pub data_disks: u32,
    /// NICs.
    pub nics: u32,
    /// Premium disks among them.
    pub premium: bool,
    /// Generation.
    pub generation: Generation,
    /// Zone, if any.
    pub zone: Option<String>,
}

impl Needs {
    /// The zone of a placement.
    pub fn zone_of(placement: &Placement) -> Option<String> {
        match placement {
            Placement::Zone(zone) => Some(zone.clone()),
            _ => None,
        }
    }
}

/// Why a size is out of the question whatever is asked for it; empty when it can be used.
fn obstacles(size: &Size, needs: &Needs, quotas: &[Quota]) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut out = |wrong: bool, reason: String| {
        if wrong {
            reasons.push(reason);
        }
    };
    out(
        size.data_disks < needs.data_disks,
        format!(
            "it takes {} data disks, {} are needed",
            size.data_disks, needs.data_disks
        ),
    );
    out(
        size.nics < needs.nics,
        format!("it takes {} NICs, {} are needed", size.nics, needs.nics),
    );
    out(
        needs.premium && !size.premium,
        "it takes no premium disks".to_owned(),
    );
    out(
        !size.generations.contains(&needs.generation),
        format!("it runs no generation {} VMs", needs.generation.word()),
    );
    out(!size.x64, "its processors are not x64".to_owned());
    out(!size.scsi, "it has disks by NVMe only".to_owned());
    if let Some(code) = &size.barred {
        out(
            true,
            format!("the subscription may not use it in this region ({code})"),
        );
    }
    if let Some(zone) = &needs.zone {
        out(
            !size.zones.contains(zone),
            format!("zone {zone} has none of it"),
        );
        out(
            size.barred_zones.contains(zone),
            format!("the subscription may not use it in zone {zone}"),
        );
    }
    for quota in quotas {
        let counts = quota.name.eq_ignore_ascii_case("cores")
            || quota.name.eq_ignore_ascii_case(&size.family);
        let left = quota.limit.saturating_sub(quota.used);
        out(
            counts && left < u64::from(size.cores),
            format!(
                "the quota `{}` leaves {left} of {} cores, it needs {}",
                quota.name, quota.limit, size.cores
            ),
        );
    }
    reasons
}

/// The size, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSize {
    /// What is wrong.
    pub reasons: Vec<String>,
    /// A size that would do in place of the wished one.
    pub instead: Option<String>,
}

/// Chooses: the wished size when it can be used (fewer cores or less memory than the source is the user's right), else nothing; without a
/// wish the smallest that fits.
pub fn choose<'a>(
    sizes: &'a [Size],
    needs: &Needs,
    wished: Option<&str>,
    quotas: &[Quota],
) -> Result<&'a Size, NoSize> {
    let fits = |size: &&Size| size.cores >= needs.cores && size.memory_mib >= needs.memory_mib;
    let smallest = sizes
        .iter()
        .filter(fits)
        .filter(|size| obstacles(size, needs, quotas).is_empty())
        .min_by(|a, b| a.cost().cmp(&b.cost()));
    let Some(wished) = wished else {
        return smallest.ok_or_else(|| NoSize {
            reasons: nearest(sizes, needs, quotas),
            instead: None,
        });
    };
    let instead = smallest.map(|s| s.name.clone());
    let Some(size) = sizes.iter().find(|s| s.name.eq_ignore_ascii_case(wished)) else {
        return Err(NoSize {
            reasons: vec!["the region does not offer it".to_owned()],
            instead,
        });
    };
    let reasons = obstacles(size, needs, quotas);
    if reasons.is_empty() {
        Ok(size)
    } else {
        Err(NoSize { reasons, instead })
    }
}

/// Why not even the best candidates do: large enough, with the fewest obstacles.
fn nearest(sizes: &[Size], needs: &Needs, quotas: &[Quota]) -> Vec<String> {
    let mut candidates: Vec<(&Size, Vec<String>)> = sizes
        .iter()
        .filter(|s| s.cores >= needs.cores && s.memory_mib >= needs.memory_mib && s.x64 && s.scsi)
        .map(|s| (s, obstacles(s, needs, quotas)))
        .collect();
    candidates.sort_by(|a, b| (a.1.len(), a.0.cost()).cmp(&(b.1.len(), b.0.cost())));
    if candidates.is_empty() {
        return vec![format!(
            "no size of the region has {} cores and {} MiB of memory",
            needs.cores, needs.memory_mib
        )];
    }
    candidates
        .into_iter()
        .take(3)
        .map(|(size, reasons)| format!("{}: {}", size.name, reasons.join(", ")))
        .collect()
}

#[cfg(test)]
#[path = "size_tests.rs"]
mod tests;
