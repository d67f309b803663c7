//! VMs that the hosts of a site report. Paged by `$take` and `$skipToken`, as the service does.

use arm_model::protectable_item::{
    DiskDetails, OsDetails, ProtectableItemProperties, VirtualMachineDetails,
};
use arm_model::{HYPER_V_REPLICA_AZURE, Page, ProtectableItemId, Resource};
use engine_protocol::v1;
use protection::checks::Target;

use super::entry::Call;
use super::fabrics;
use super::filter::Filter;
use super::load::{self, Located};
use super::reply::Reply;
use crate::checks::{self, Asked};
use crate::fault::Fault;
use crate::store::records::{self, EngineRecord, Item};

const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// GET.
///
/// # Errors
/// 404.
pub async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    let name = load::name(call, "replicationProtectableItems")?;
    let found = all(call, &located)
        .await?
        .into_iter()
        .find(|item| item.name.eq_ignore_ascii_case(&name));
    match found {
        Some(item) => Reply::ok(&item),
        None => Err(Fault::not_found(
            located.container.protectable_item(&name).as_str(),
        )),
    }
}

/// `C/replicationProtectableItems`.
///
/// # Errors
/// 404 without a container; 400 for a filter that can't be read.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    let filter = Filter::parse(call.query.get("$filter").map_or("", String::as_str))?;
    let take = match call.query.get("$take") {
        None => PAGE,
        Some(text) => text
            .parse::<usize>()
            .ok()
            .filter(|take| (1..=MAX_PAGE).contains(take))
            .ok_or_else(|| {
                Fault::invalid("$take", format!("A page has 1 to {MAX_PAGE} entries."))
            })?,
    };
    let after = call.query.get("$skipToken").cloned().unwrap_or_default();
    let mut items: Vec<_> = all(call, &located)
        .await?
        .into_iter()
        .filter(|item| filter.allows("state", &item.properties.protection_status))
        .filter(|item| filter.allows("friendlyName", &item.properties.friendly_name))
        .filter(|item| item.name > after)
        .collect();
    let more = items.len() > take;
    items.truncate(take);
    let next_link = items.last().filter(|_| more).map(|last| {
        let filter = call.query.get("$filter").map(|text| format!("&%24filter={}", escape(text))).unwrap_or_default();
        format!(
            "{}{}/replicationProtectableItems?api-version={}&%24take={take}{filter}&%24skipToken={}",
            call.app.public_url, located.container, call.api_version, last.name
        )
    });
    Reply::ok(&Page {
        value: items,
        next_link,
    })
}

/// Percent encoding of everything that isn't plain.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// All VMs of the container, by name.
async fn all(
    call: &Call<'_>,
    located: &Located,
) -> Result<Vec<Resource<ProtectableItemProperties>>, Fault> {
    let items = records::list::<Item>(
        call.app.store.as_ref(),
        &format!("{}/", located.container.key()),
    )
    .await?;
    let asked = asked(call);
    let left = crate::alternate_host::left_at(call.app).await?;
    let mut answers = Vec::new();
    for engine in &located.engines {
        let live = call.app.fleet.get(&engine.engine_id).unwrap_or_default();
        for vm in &live.report.virtual_machines {
            let is_former = |item: &Item| {
                item.vm_id.eq_ignore_ascii_case(&vm.id) && item.former(&engine.engine_id).is_some()
            };
            let is_left = |(at, of): &(String, String)| {
                *at == engine.engine_id && of.eq_ignore_ascii_case(&vm.id)
            };
            if left.iter().any(is_left) || items.iter().any(|item| is_former(&item.record)) {
                // What a former source has of a VM is no VM of its own.
                continue;
            }
            let protected = items
                .iter()
                .find(|item| item.record.vm_id.eq_ignore_ascii_case(&vm.id))
                .map(|item| item.record.id.clone());
            answers.push(answer(
                &located.container.protectable_item(&vm.id),
                engine,
                live.host_name(),
                vm,
                protected,
                &asked,
            ));
        }
    }
    answers.sort_by(|left, right| left.name.cmp(&right.name));
    answers.dedup_by(|left, right| left.name == right.name);
    Ok(answers)
}

/// Extension: what the findings shall be told for, by query. Without it they are for all disks and either recovery target.
fn asked(call: &Call<'_>) -> Asked {
    let text = |name: &str| {
        let text = call.query.get(name).map(String::as_str);
        text.filter(|text| !text.is_empty())
    };
    Asked {
        target: text("recoveryTarget").map(checks::target_of),
        disks: text("disksToInclude").map(|ids| ids.split(',').map(str::to_owned).collect()),
        os_disk: text("vhdId").map(str::to_owned),
        os_type: text("osType").map(str::to_owned),
        log_quota_percent: text("logQuotaInPercent")
            .and_then(|percent| percent.parse().ok())
            .unwrap_or_default(),
    }
}

/// ASR's `osDetails` beside the type.
fn os_details(vm: &v1::VirtualMachine) -> arm_model::Extra {
    let mut extra = arm_model::Extra::new();
    let facts = vm.facts.iter();
    for (name, text) in facts.flat_map(|facts| {
        [
            ("osEdition", &facts.os_name),
            ("oSVersion", &facts.os_version),
            ("architecture", &facts.architecture),
        ]
    }) {
        if !text.is_empty() {
            extra.insert(name.to_owned(), text.as_str().into());
        }
    }
    extra
}

fn answer(
    id: &ProtectableItemId,
    engine: &EngineRecord,
    host: &str,
    vm: &v1::VirtualMachine,
    protected: Option<String>,
    asked: &Asked,
) -> Resource<ProtectableItemProperties> {
    let findings = checks::findings(vm, asked);
    let targets = asked.target.map_or(Target::ALL.len(), |_| 1);
    let [physical, fibre_channel, shared] = checks::presences(vm).map(str::to_owned);
    Resource::answer(
        id,
        ProtectableItemProperties {
            friendly_name: vm.name.clone(),
            protection_status: if protected.is_some() {
                "Protected"
            } else {
                "Unprotected"
            }
            .to_owned(),
            replication_protected_item_id: protected,
            recovery_services_provider_id: engine.provider_id.clone(),
            protection_readiness_errors: checks::errors(&findings, targets),
            readiness_findings: findings,
            supported_replication_providers: vec![HYPER_V_REPLICA_AZURE.to_owned()],
            custom_details: VirtualMachineDetails {
                instance_type: "HyperVVirtualMachine".to_owned(),
                source_item_id: vm.id.clone(),
                generation: vm.generation.to_string(),
                os_details: Some(OsDetails {
                    os_type: vm.os_type.clone(),
                    extra: os_details(vm),
                }),
                disk_details: vm.disks.iter().map(disk).collect(),
                has_physical_disk: physical,
                has_fibre_channel_adapter: fibre_channel,
                has_shared_vhd: shared,
                hyper_v_host_id: fabrics::host_id(host),
                memory_in_mb: vm.memory_bytes >> 20,
                processor_count: vm.processor_count,
                power_state: match vm.power_state() {
                    v1::PowerState::Running => "Running",
                    v1::PowerState::Off => "Off",
                    v1::PowerState::Unspecified => "",
                }
                .to_owned(),
                extra: arm_model::Extra::new(),
            },
        },
    )
}

fn disk(disk: &v1::Disk) -> DiskDetails {
    DiskDetails {
        max_size_mb: disk.size_bytes.div_ceil(1 << 20),
        vhd_type: if disk.operating_system {
            "OperatingSystem"
        } else {
            "Data"
        }
        .to_owned(),
        vhd_id: disk.id.clone(),
        vhd_name: disk.name.clone(),
    }
}
