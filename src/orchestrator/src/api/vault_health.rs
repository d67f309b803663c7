//! `V/replicationVaultHealth`: how many sites, containers and items are well.

use std::collections::BTreeMap;

use arm_model::Resource;
use arm_model::health::{HealthError, HealthIssue, ResourceHealth, VaultHealth};

use super::entry::Call;
use super::reply::Reply;
use super::{item_answer, load};
use crate::fault::Fault;
use crate::store::records::{self, EngineRecord, Fabric, Item};

/// GET, and POST refresh (the figures are always fresh).
///
/// # Errors
/// 404 without a vault.
pub async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let store = call.app.store.as_ref();
    let below = format!("{}/", vault.key());
    let items = records::list::<Item>(store, &below).await?;
    let mut items_health = ResourceHealth::default();
    for answer in item_answer::answers(call, items.iter().map(|item| &item.record)).await? {
        let properties = answer.properties;
        let correlation = properties.event_correlation_id.unwrap_or_default();
        count(&mut items_health, &properties.replication_health);
        for error in &properties.health_errors {
            note(
                &mut items_health,
                error,
                "replicationProtectedItems",
                &correlation,
            );
        }
    }
    let mut fabrics_health = ResourceHealth::default();
    let now = call.app.now_ms();
    let engines = records::list::<EngineRecord>(store, "~engine/").await?;
    let fabrics = records::list::<Fabric>(store, &below).await?;
    let mut containers = 0;
    for fabric in &fabrics {
        let hosts: Vec<_> = engines
            .iter()
            .filter(|engine| {
                engine
                    .record
                    .fabric_id
                    .eq_ignore_ascii_case(&fabric.record.id)
            })
            .collect();
        containers += u64::from(!hosts.is_empty());
        let away = hosts
            .iter()
            .filter(|engine| !call.app.fleet.connected(&engine.record.engine_id, now));
        let mut well = true;
        for engine in away {
            well = false;
            let name = call
                .app
                .fleet
                .get(&engine.record.engine_id)
                .map(|live| live.host_name().to_owned())
                .unwrap_or_default();
            note(
                &mut fabrics_health,
                &super::fabrics::disconnected(&name),
                "replicationFabrics",
                &fabric.record.internal_identifier,
            );
        }
        count(&mut fabrics_health, if well { "Normal" } else { "Warning" });
    }
    let containers_health = ResourceHealth {
        resource_count: containers,
        issues: Vec::new(),
        categorized_resource_counts: BTreeMap::from([("Normal".to_owned(), containers)]),
    };
    let health = VaultHealth {
        vault_errors: Vec::new(),
        protected_items_health: items_health,
        fabrics_health,
        containers_health,
    };
    Reply::ok(&Resource::answer(
        &vault.child("replicationVaultHealth", "Default"),
        health,
    ))
}

fn count(health: &mut ResourceHealth, category: &str) {
    health.resource_count += 1;
    *health
        .categorized_resource_counts
        .entry(category.to_owned())
        .or_default() += 1;
}

fn note(health: &mut ResourceHealth, error: &HealthError, kind: &str, correlation: &str) {
    let code = error.error_code.clone().unwrap_or_default();
    if let Some(issue) = health
        .issues
        .iter_mut()
        .find(|issue| issue.summary_code == code)
    {
        issue
            .affected_resource_correlation_ids
            .push(correlation.to_owned());
        return;
    }
    health.issues.push(HealthIssue {
        summary_code: code,
        category: error.error_category.clone().unwrap_or_default(),
        severity: error.error_level.clone().unwrap_or_default(),
        summary_message: error.summary_message.clone().unwrap_or_default(),
        affected_resource_type: kind.to_owned(),
        affected_resource_correlation_ids: vec![correlation.to_owned()],
    });
}
