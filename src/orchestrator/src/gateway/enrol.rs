//! Registration keys and enrolment. A key is minted for one site, expires, and belongs to the first engine
//! that uses it: that engine may repeat the call, no other may. Only a salted hash of the secret is kept.
//! An engine's id belongs to the key pair it first enrolled with, so no other host can take its name.

use arm_model::FabricId;
use engine_protocol::{RegistrationKey, v1};
use prost::Message as _;
use tonic::Status;
use tracing::{info, warn};
use uuid::Uuid;

use crate::app::App;
use crate::auth::secret;
use crate::fault::Fault;
use crate::store::records::{self, EngineRecord, EnrolmentKey, Fabric};
use crate::store::{Expect, StoreError};

/// Makes a registration key for a site.
///
/// # Errors
/// When the random source or the store fails.
pub async fn mint(
    app: &App,
    fabric: &FabricId,
    hours: u32,
) -> Result<(String, time::OffsetDateTime), Fault> {
    let key_id = Uuid::new_v4().simple().to_string();
    let (random, hash) = secret::generate().map_err(|error| {
        Fault::refuse(
            500,
            arm_model::ArmError::new("InternalError", error.to_string()),
        )
    })?;
    let expires = app.now() + time::Duration::hours(i64::from(hours));
    let record = EnrolmentKey {
        fabric_id: fabric.as_str().to_owned(),
        hash,
        expires_unix: expires.unix_timestamp(),
        engine_id: None,
    };
    let key = format!("~key/{key_id}");
    // Keys that nobody used in time shall not pile up.
    crate::housekeeping::sweep_registration_keys(app).await?;
    app.store
        .apply(vec![records::put(key, &record, Expect::Absent)?])
        .await?;
    let key = RegistrationKey {
        gateway: app.gateway.clone(),
        ca_pem: app.authority.certificate_pem().to_owned(),
        secret: format!("{key_id}.{random}"),
        expires_unix: expires.unix_timestamp(),
    };
    Ok((key.encode(), expires))
}

/// Trades a key for an identity.
///
/// # Errors
/// A status whose message says what to do.
pub async fn enrol(app: &App, request: v1::EnrolRequest) -> Result<v1::EnrolResponse, Status> {
    let refused = || {
        Status::permission_denied(
            "the registration key is not known here; make a new one for the site",
        )
    };
    let engine_id = Uuid::parse_str(&request.engine_id)
        .map_err(|_| Status::invalid_argument("the engine id is no GUID"))?
        .hyphenated()
        .to_string();
    let (key_id, random) = request.secret.split_once('.').ok_or_else(refused)?;
    let key_key = format!("~key/{key_id}");
    let store = app.store.as_ref();
    let key = records::get::<EnrolmentKey>(store, &key_key)
        .await
        .map_err(failed)?
        .ok_or_else(refused)?;
    if !secret::verify(random, &key.record.hash) {
        warn!(engine = %engine_id, "enrolment with a wrong secret");
        return Err(refused());
    }
    if key.record.expires_unix <= app.now().unix_timestamp() {
        return Err(Status::permission_denied(
            "the registration key has expired; make a new one for the site",
        ));
    }
    if key
        .record
        .engine_id
        .as_ref()
        .is_some_and(|owner| *owner != engine_id)
    {
        return Err(Status::permission_denied(
            "the registration key was used by another engine; make a new one for this host",
        ));
    }
    let fabric = records::get::<Fabric>(store, &key.record.fabric_id.to_ascii_lowercase())
        .await
        .map_err(failed)?
        .ok_or_else(|| Status::failed_precondition("the site of the registration key was removed"))?
        .record;
    let engine_key = records::engine_key(&engine_id);
    let known = records::get::<EngineRecord>(store, &engine_key)
        .await
        .map_err(failed)?;
    if known
        .as_ref()
        .is_some_and(|known| !known.record.fabric_id.eq_ignore_ascii_case(&fabric.id))
    {
        return Err(Status::failed_precondition(
            "this engine is registered in another site; unregister it there first",
        ));
    }
    let key_digest = engine_protocol::request_key_digest(&request.certificate_request_pem)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    if known
        .as_ref()
        .is_some_and(|known| known.record.key_digest != key_digest)
    {
        warn!(engine = %engine_id, "enrolment under a known engine's id with another key");
        return Err(Status::permission_denied(
            "an engine of this id is registered with another key; unregister that host first, or remove the engine's identity folder so that it gets an id of its own",
        ));
    }
    let certificate_pem = app
        .authority
        .issue_engine(&engine_id, &request.certificate_request_pem, app.now())
        .map_err(|_| Status::invalid_argument("the certificate request can't be read"))?;
    let fabric_id =
        FabricId::parse(&fabric.id).map_err(|error| Status::internal(error.to_string()))?;
    let provider_id = fabric_id.provider(&engine_id).as_str().to_owned();
    let mut changes = Vec::new();
    let used = EnrolmentKey {
        engine_id: Some(engine_id.clone()),
        ..key.record
    };
    changes.push(records::put(key_key, &used, Expect::Etag(key.etag)).map_err(failed)?);
    if known.is_none() {
        let report = v1::EngineReport {
            host: request.host.clone(),
            ..v1::EngineReport::default()
        };
        let record = EngineRecord {
            engine_id: engine_id.clone(),
            provider_id: provider_id.clone(),
            fabric_id: fabric.id.clone(),
            site_id: fabric.internal_identifier,
            key_digest,
            throttles: Vec::new(),
            report: encode_report(&report),
            last_seen_unix_ms: 0,
        };
        changes.push(records::put(engine_key, &record, Expect::Absent).map_err(failed)?);
        app.fleet
            .observe(&engine_id, std::sync::Arc::new(report), 0);
    }
    app.store.apply(changes).await.map_err(|error| {
        if error.is_conflict() {
            Status::aborted("another enrolment ran at the same time; try again")
        } else {
            failed(error)
        }
    })?;
    info!(engine = %engine_id, site = %fabric.id, "engine enrolled");
    app.ring();
    Ok(v1::EnrolResponse {
        certificate_pem,
        ca_pem: app.authority.certificate_pem().to_owned(),
        provider_arm_id: provider_id,
    })
}

/// Gives an engine that is known a new certificate for the key pair of its old one.
///
/// # Errors
/// A status whose message says what to do.
pub fn renew(
    app: &App,
    engine_id: &str,
    key_digest: &str,
    request: &v1::RenewRequest,
) -> Result<v1::EnrolResponse, Status> {
    let asked = engine_protocol::request_key_digest(&request.certificate_request_pem)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    if asked != key_digest {
        warn!(engine = %engine_id, "a renewal for another key");
        return Err(Status::permission_denied(
            "a certificate is renewed for the same key pair only; enrol with a new registration key",
        ));
    }
    let certificate_pem = app
        .authority
        .issue_engine(engine_id, &request.certificate_request_pem, app.now())
        .map_err(|_| Status::invalid_argument("the certificate request can't be read"))?;
    info!(engine = %engine_id, "engine's certificate renewed");
    Ok(v1::EnrolResponse {
        certificate_pem,
        ca_pem: app.authority.certificate_pem().to_owned(),
        provider_arm_id: String::new(),
    })
}

/// A report as it is stored.
#[must_use]
pub fn encode_report(report: &v1::EngineReport) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(report.encode_to_vec())
}

/// A stored report; one that can't be read counts as empty, the engine repeats it anyway.
#[must_use]
pub fn decode_report(text: &str) -> v1::EngineReport {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| v1::EngineReport::decode(bytes.as_slice()).ok())
        .unwrap_or_default()
}

#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
pub(super) fn failed(error: StoreError) -> Status {
    tracing::error!(
        error = &error as &dyn std::error::Error,
        "metadata store failed"
    );
    Status::unavailable("the metadata store failed; try again")
}
