//! Answers.

use arm_model::error::ErrorEnvelope;
use arm_model::{ArmError, ArmId, JobId, VaultId};
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::Value;

use crate::fault::Fault;

/// Seconds between polls.
const RETRY_AFTER: &str = "1";
const JSON: &str = "application/json; charset=utf-8";

/// What a handler answers.
#[derive(Debug)]
pub enum Reply {
    /// A body, perhaps with a version.
    Json {
        /// Status.
        status: StatusCode,
        /// Body.
        body: Value,
        /// Version of the resource.
        etag: Option<u64>,
    },
    /// A page for people.
    Html(String),
    /// No body.
    Empty(StatusCode),
    /// A job was started, or is still running.
    Accepted {
        /// Job.
        job: JobId,
        /// Resource that it acts on.
        resource: ArmId,
    },
}

/// Version as a header.
#[must_use]
pub fn etag_text(etag: u64) -> String {
    format!("W/\"{etag}\"")
}

impl Reply {
    /// 200 with a body.
    ///
    /// # Errors
    /// When the body can't be written as JSON.
    pub fn ok(body: &impl Serialize) -> Result<Self, Fault> {
        Self::json(StatusCode::OK, body, None)
    }

    /// 200 with a body and a version.
    ///
    /// # Errors
    /// When the body can't be written as JSON.
    pub fn versioned(body: &impl Serialize, etag: u64) -> Result<Self, Fault> {
        Self::json(StatusCode::OK, body, Some(etag))
    }

    /// Any status with a body.
    ///
    /// # Errors
    /// When the body can't be written as JSON.
    pub fn json(
        status: StatusCode,
        body: &impl Serialize,
        etag: Option<u64>,
    ) -> Result<Self, Fault> {
        let body = serde_json::to_value(body).map_err(|error| {
            Fault::refuse(
                500,
                ArmError::new(
                    "InternalError",
                    format!("The answer can't be written: {error}."),
                ),
            )
        })?;
        Ok(Self::Json { status, body, etag })
    }

    /// 202 with both operation headers.
    #[must_use]
    pub fn accepted(job: JobId, resource: &ArmId) -> Self {
        Self::Accepted {
            job,
            resource: resource.clone(),
        }
    }

    /// As HTTP.
    #[must_use]
    pub fn into_response(self, public_url: &str, api_version: &str) -> Response<Body> {
        match self {
            Self::Json { status, body, etag } => {
                let mut response = json(status, &body);
                if let Some(value) =
                    etag.and_then(|etag| HeaderValue::from_str(&etag_text(etag)).ok())
                {
                    response.headers_mut().insert(header::ETAG, value);
                }
                response
            }
            Self::Html(page) => html(page),
            Self::Empty(status) => empty(status),
            Self::Accepted { job, resource } => {
                let mut response = empty(StatusCode::ACCEPTED);
                let name = job.name();
                let result = format!(
                    "{public_url}{resource}/operationresults/{name}?api-version={api_version}"
                );
                let vault = VaultId::of(&job)
                    .map(|vault| vault.to_string())
                    .unwrap_or_default();
                let status = format!(
                    "{public_url}{vault}/replicationOperationStatus/{name}?api-version={api_version}"
                );
                for (name, value) in [("location", result), ("azure-asyncoperation", status)] {
                    if let Ok(value) = HeaderValue::from_str(&value.replace(' ', "%20")) {
                        response.headers_mut().insert(name, value);
                    }
                }
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
                response
            }
        }
    }
}

/// A body.
#[must_use]
pub fn json(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    // Values made of maps and strings always serialise.
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A page that a browser shows, and nothing more: it runs no script, loads nothing, and no other page holds it in a frame.
fn html(page: String) -> Response<Body> {
    let policy = format!("{}; frame-ancestors 'none'", crate::report::html::POLICY);
    let mut response = Response::new(Body::from(page));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A fault as HTTP. Failures of the store are logged here and told without their inside.
#[must_use]
pub fn fault(fault: Fault) -> Response<Body> {
    let (status, error) = match fault {
        Fault::Refused { status, error } => (status, error),
        Fault::Store(error) if error.is_conflict() => (
            412,
            ArmError::new(
                "PreconditionFailed",
                "The resource was changed by somebody else in the meantime.",
            )
            .advise("", "Read the resource again and repeat the request."),
        ),
        Fault::Store(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "request fails: metadata store"
            );
            (
                500,
                ArmError::new(
                    "InternalServerError",
                    "The metadata store failed. Repeat the request.",
                ),
            )
        }
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &ErrorEnvelope { error })
}
