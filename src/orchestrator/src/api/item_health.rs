//! What is wrong with a protected item, in words with a code, a cause and a next step: the engine's findings, and what
//! follows from its figures (tracking, cadence) or from our own side (host away, storage credential).

use arm_model::health::HealthError;
use engine_protocol::v1::source_report::Said;
use engine_protocol::v1::{self, disk_status::Tracking};

use crate::app::App;
use crate::fleet::Live;
use crate::store::StoreError;
use crate::store::records::{self, EngineRecord, Item};

/// All of it, the worst first.
#[must_use]
pub fn errors(
    app: &App,
    item: &Item,
    status: &v1::ReplicationStatus,
    live: &Live,
    entity: &str,
) -> Vec<HealthError> {
    let mut errors: Vec<HealthError> = status
        .findings
        .iter()
        .map(|finding| of_finding(finding, entity))
        .collect();
    let has = |errors: &[HealthError], code: &str| {
        errors
            .iter()
            .any(|error| error.error_code.as_deref() == Some(code))
    };
    for disk in &status.disks {
        if disk.tracking() != Tracking::Suspect || has(&errors, "TrackingSuspect") {
            continue;
        }
        errors.push(warning(
            entity,
            "TrackingSuspect",
            format!("Changes of disk {} may be unknown.", disk.disk_id),
            disk.reason.clone(),
            "A comparison with the kept block hashes heals it: by itself in the policy's comparison window, or at once with `siterecovery resync`.",
        ));
    }
    if !status.degraded_reason.is_empty() && !has(&errors, "ReplicationDegraded") {
        errors.push(warning(
            entity,
            "ReplicationDegraded",
            format!(
                "Recovery points are {} seconds apart, more than the policy asks for.",
                status.effective_interval_seconds
            ),
            status.degraded_reason.clone(),
            "Give the VM more bandwidth or a longer replication interval; it recovers by itself when there is less to send.",
        ));
    }
    for (place, _) in item.places().filter(|(place, _)| place.azure.is_some()) {
        let account = place.storage_id.rsplit('/').next().unwrap_or_default();
        let Some(why) = app.loans.why(&place.storage_id.to_ascii_lowercase()) else {
            continue;
        };
        errors.push(HealthError {
            error_source: Some("Orchestrator".to_owned()),
            ..warning(
                entity,
                "StorageCredentialNotRenewed",
                format!("The credential of the storage account `{account}` can't be renewed."),
                why,
                "Check the account's key or access client, and that the orchestrator reaches Entra ID; it is tried again by itself.",
            )
        });
    }
    if !live.connected(app.now_ms()) && needs_source(item) {
        errors.push(super::fabrics::disconnected(live.host_name()));
    }
    errors
}

/// Whether the item suffers when its source is away: once its VM runs elsewhere, it doesn't.
#[must_use]
pub fn needs_source(item: &Item) -> bool {
    item.life.item.is_active() && !item.life.is_at_recovery()
}

/// Hosts that had the VM before and have not said yet that they keep their copy of it off, each with its name.
///
/// That is no trouble of the replication, but whoever switches such a host on again should know. Who removes its
/// registration has said that it never comes back.
///
/// # Errors
/// Failures of the store.
pub async fn unconfirmed_formers(
    app: &App,
    item: &Item,
    entity: &str,
) -> Result<Vec<HealthError>, StoreError> {
    let mut errors = Vec::new();
    for former in &item.formers {
        let engine = records::engine_key(&former.engine_id);
        let record = records::get::<EngineRecord>(app.store.as_ref(), &engine).await?;
        if record.is_none() {
            continue;
        }
        let live = app.fleet.get(&former.engine_id).unwrap_or_default();
        let report = live
            .replication(entity)
            .and_then(|status| status.source.as_ref());
        let holds = report.is_some_and(|report| {
            report.said() == Said::Held && report.epoch == former.numbers.hold.0
        });
        if holds {
            continue;
        }
        let host = match live.host_name() {
            "" => former.engine_id.as_str(),
            name => name,
        };
        errors.push(HealthError {
            error_source: Some("Orchestrator".to_owned()),
            ..warning(
                entity,
                "FormerHostNotConfirmed",
                format!(
                    "The host `{host}` had the VM before and has not confirmed that its copy stays off."
                ),
                "It has not reported since the VM went back to another host.".to_owned(),
                "Let it connect once; or, when it never comes back, remove its registration. Its copy is never replicated over the one in use.",
            )
        });
    }
    Ok(errors)
}

fn warning(
    entity: &str,
    code: &str,
    summary: String,
    possible_causes: String,
    recommended_action: &str,
) -> HealthError {
    let finding = v1::Finding {
        code: code.to_owned(),
        summary,
        possible_causes,
        recommended_action: recommended_action.to_owned(),
        critical: false,
    };
    of_finding(&finding, entity)
}

pub(super) fn of_finding(finding: &v1::Finding, entity: &str) -> HealthError {
    HealthError {
        error_source: Some("Engine".to_owned()),
        error_level: Some(if finding.critical { "Error" } else { "Warning" }.to_owned()),
        error_category: Some("Replication".to_owned()),
        error_code: Some(finding.code.clone()),
        summary_message: Some(finding.summary.clone()),
        error_message: Some(finding.summary.clone()),
        possible_causes: Some(finding.possible_causes.clone()),
        recommended_action: Some(finding.recommended_action.clone()),
        creation_time_utc: None,
        entity_id: Some(entity.to_owned()),
    }
}
