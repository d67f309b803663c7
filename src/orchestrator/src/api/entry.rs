//! The way of a request: token, body limit, api-version, rights, route, handler, answer. A body is read only for a known
//! client, and of the token service's requests no more than such a request can need.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arm_model::ArmError;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use super::reply::{self, Reply};
use super::route::{self, Route};
use crate::app::App;
use crate::auth::{clients, oauth, roles, token::Principal};
use crate::fault::Fault;
use crate::store::Expect;

/// Largest body of a request.
pub const MAX_BODY: usize = 4 << 20;

/// Largest body of a request for a token, which comes from anybody.
pub const MAX_TOKEN_BODY: usize = 16 << 10;

/// A body must be complete after so long.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// A request as handlers see it.
pub struct Call<'a> {
    /// Shared parts.
    pub app: &'a App,
    /// Method, upper case.
    pub method: &'a str,
    /// What the path names.
    pub route: Route,
    /// Query by name.
    pub query: HashMap<String, String>,
    /// Headers.
    pub headers: HeaderMap,
    /// Body with current property names; null without one.
    pub body: Value,
    /// `x-ms-client-request-id`, or one of ours.
    pub request_id: String,
    /// `api-version`.
    pub api_version: String,
    /// Path as sent.
    pub path: String,
    /// ARM scope of the client, lower case; `/` = everything.
    pub scope: String,
    /// Id of the client.
    pub client_id: String,
    /// Name of the job that this makes, for one of our own requests that may be sent twice; else a new one.
    pub job_name: Option<String>,
}

// === impl Call ===

impl Call<'_> {
    /// The body as a type; a missing one counts as `{}`.
    ///
    /// # Errors
    /// 400 that says which property has which wrong type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        let body = if self.body.is_null() {
            json!({})
        } else {
            self.body.clone()
        };
        serde_json::from_value(body).map_err(|error| {
            Fault::refuse(
                400,
                ArmError::new(
                    "InvalidRequestContent",
                    format!("The request body can't be read: {error}."),
                )
                .at("body"),
            )
        })
    }

    /// `properties` of the body as a type; missing ones count as `{}`.
    ///
    /// # Errors
    /// 400 that says which property has which wrong type.
    pub fn properties<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        let properties = self
            .body
            .get("properties")
            .filter(|value| !value.is_null())
            .cloned()
            .unwrap_or_else(|| json!({}));
        serde_json::from_value(properties).map_err(|error| {
            Fault::refuse(
                400,
                ArmError::new(
                    "InvalidRequestContent",
                    format!("The request body can't be read: {error}."),
                )
                .at("properties"),
            )
        })
    }

    /// Checks `If-Match` and `If-None-Match` against what is there.
    ///
    /// # Errors
    /// 412.
    pub fn precondition(&self, present: Option<u64>) -> Result<(), Fault> {
        let header = |name: header::HeaderName| {
            self.headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::trim)
        };
        let refuse = |message: &str| {
            Err(Fault::refuse(
                412,
                ArmError::new("PreconditionFailed", message)
                    .at(self.path.clone())
                    .advise("", "Read the resource again and repeat the request."),
            ))
        };
        if let Some(wanted) = header(header::IF_MATCH) {
            let holds = match present {
                None => false,
                Some(etag) => {
                    wanted == "*"
                        || wanted.split(',').any(|one| {
                            one.trim().trim_start_matches("W/").trim_matches('"')
                                == etag.to_string()
                        })
                }
            };
            if !holds {
                return refuse("The resource is not in the version that `If-Match` asks for.");
            }
        }
        if header(header::IF_NONE_MATCH) == Some("*") && present.is_some() {
            return refuse("The resource is there already.");
        }
        Ok(())
    }

    /// Checks that the client may use a resource that its body names: a scope holds for bodies as it does for paths.
    ///
    /// # Errors
    /// 403 at the property.
    pub fn may_use(&self, id: &arm_model::ArmId, target: &str) -> Result<(), Fault> {
        if clients::covers(&self.scope, id.as_str()) {
            return Ok(());
        }
        Err(Fault::refuse(
            403,
            ArmError::new(
                "LinkedAuthorizationFailed",
                format!(
                    "The client may not use `{id}`: its scope is `{}`.",
                    self.scope
                ),
            )
            .at(target)
            .advise(
                "",
                "Use a resource within the scope, or a client with a wider one.",
            ),
        ))
    }

    /// The condition under which a change of what was read may be stored.
    #[must_use]
    pub fn expect(present: Option<u64>) -> Expect {
        present.map_or(Expect::Absent, Expect::Etag)
    }
}

/// The one handler of the server. A request is carried out to its end even when the client is gone: a change that is being
/// stored can't be stopped, and what follows it (a job to be run) must not be left out.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    let request_id = request
        .headers()
        .get("x-ms-client-request-id")
        .and_then(|value| value.to_str().ok())
        .filter(|text| text.len() <= 200)
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    let method = request.method().as_str().to_owned();
    let path = request.uri().path().to_owned();
    let work = {
        let request_id = request_id.clone();
        tokio::spawn(async move { answer(&app, request, &request_id).await })
    };
    let mut response = work.await.unwrap_or_else(|error| {
        tracing::error!(%method, %path, error = &error as &dyn std::error::Error, "request broke off");
        let error = ArmError::new("InternalServerError", "The request broke off. Repeat it.");
        reply::fault(Fault::refuse(500, error))
    });
    tracing::debug!(%method, %path, status = response.status().as_u16(), "request");
    if method == "HEAD" {
        *response.body_mut() = Body::empty();
    }
    let service_id = Uuid::new_v4().to_string();
    for (name, value) in [
        ("x-ms-client-request-id", request_id),
        ("x-ms-request-id", service_id),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn answer(app: &App, request: Request, request_id: &str) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let method = parts.method.as_str().to_owned();
    let query = oauth::form(parts.uri.query().unwrap_or_default().as_bytes());
    if method == "GET" && path == "/healthz" {
        return reply::json(StatusCode::OK, &json!({ "status": "ok" }));
    }
    if method == "GET" && path.eq_ignore_ascii_case("/metadata/endpoints") {
        return reply::json(
            StatusCode::OK,
            &metadata(app, query.get("api-version").map_or("", String::as_str)),
        );
    }
    if oauth::owns(&path) {
        let bytes = match whole(body, MAX_TOKEN_BODY).await {
            Ok(bytes) => bytes,
            Err(fault) => return reply::fault(fault),
        };
        let answer = oauth::answer(app, &method, &path, &parts.headers, &bytes).await;
        if let Some((status, body)) = answer {
            return reply::json(status, &body);
        }
        return reply::fault(unknown_path(&path));
    }
    let principal = match authenticate(app, &parts.headers).await {
        Ok(principal) => principal,
        Err(response) => return *response,
    };
    let bytes = match whole(body, MAX_BODY).await {
        Ok(bytes) => bytes,
        Err(fault) => return reply::fault(fault),
    };
    let api_version = query.get("api-version").cloned().unwrap_or_default();
    let call = read(
        app,
        &method,
        &path,
        query,
        parts.headers,
        &bytes,
        request_id,
    );
    let result = match call {
        Ok(mut call) => {
            call.scope.clone_from(&principal.scope);
            call.client_id.clone_from(&principal.client_id);
            match authorise(&principal, &call) {
                Ok(()) => super::operations::dispatch(&call).await,
                Err(fault) => Err(fault),
            }
        }
        Err(fault) => Err(fault),
    };
    match result {
        Ok(answer) => answer.into_response(&app.public_url, &api_version),
        Err(fault) => reply::fault(fault),
    }
}

/// The whole body, in time and not too large.
async fn whole(body: Body, limit: usize) -> Result<axum::body::Bytes, Fault> {
    let body = tokio::time::timeout(BODY_PATIENCE, axum::body::to_bytes(body, limit));
    let Ok(body) = body.await else {
        return Err(Fault::refuse(
            408,
            ArmError::new("RequestTimeout", "The body of the request took too long."),
        ));
    };
    body.map_err(|_| {
        Fault::refuse(
            413,
            ArmError::new(
                "RequestEntityTooLarge",
                format!("The body is larger than {limit} bytes, or broke off."),
            ),
        )
    })
}

fn read<'a>(
    app: &'a App,
    method: &'a str,
    path: &str,
    query: HashMap<String, String>,
    headers: HeaderMap,
    bytes: &[u8],
    request_id: &str,
) -> Result<Call<'a>, Fault> {
    let api_version = query.get("api-version").cloned().unwrap_or_default();
    if api_version.is_empty() {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "MissingApiVersionParameter",
                "The query parameter `api-version` is missing.",
            )
            .at("api-version"),
        ));
    }
    if !is_api_version(&api_version) {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "InvalidApiVersionParameter",
                "The query parameter `api-version` is no date.",
            )
            .at("api-version"),
        ));
    }
    let route = route::parse(path).ok_or_else(|| unknown_path(path))?;
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        let value = serde_json::from_slice(bytes).map_err(|error| {
            Fault::refuse(
                400,
                ArmError::new(
                    "InvalidRequestContent",
                    format!("The request body is no JSON: {error}."),
                )
                .at("body"),
            )
        })?;
        arm_model::case::normalise(value)
    };
    Ok(Call {
        app,
        method,
        route,
        query,
        headers,
        body,
        request_id: request_id.to_owned(),
        api_version,
        path: path.to_owned(),
        scope: String::new(),
        client_id: String::new(),
        job_name: None,
    })
}

/// 404 for what this API doesn't have.
#[must_use]
pub fn unknown_path(path: &str) -> Fault {
    Fault::refuse(
        404,
        ArmError::new(
            "InvalidResourceType",
            format!(
                "There is no resource or operation at `{}`.",
                path.chars().take(300).collect::<String>()
            ),
        )
        .advise(
            "",
            "Check the path; the API follows Azure Site Recovery for Hyper-V.",
        ),
    )
}

fn is_api_version(text: &str) -> bool {
    let date = text.strip_suffix("-preview").unwrap_or(text);
    date.len() == 10
        && date.bytes().enumerate().all(|(at, byte)| {
            if at == 4 || at == 7 {
                byte == b'-'
            } else {
                byte.is_ascii_digit()
            }
        })
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Principal, Box<Response<Body>>> {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let Some(token) = token else {
        return Err(unauthorised(
            app,
            "AuthenticationFailed",
            "The request has no access token.",
        ));
    };
    let client_id = app
        .tokens
        .check(token, app.now().unix_timestamp())
        .map_err(|error| unauthorised(app, "InvalidAuthenticationToken", &format!("{error}.")))?;
    let client = clients::find(app.store.as_ref(), &client_id)
        .await
        .map_err(|error| Box::new(reply::fault(error.into())))?
        .ok_or_else(|| {
            unauthorised(
                app,
                "InvalidAuthenticationToken",
                "The client of the access token was removed.",
            )
        })?;
    Ok(Principal {
        client_id: client.client_id,
        role: client.role,
        scope: client.scope,
    })
}

fn unauthorised(app: &App, code: &str, message: &str) -> Box<Response<Body>> {
    let error = ArmError::new(code, message).advise(
        "",
        "Get a new access token from the token endpoint and repeat the request.",
    );
    let mut response = reply::fault(Fault::refuse(401, error));
    let challenge = format!(
        "Bearer authorization=\"{}/{}\", resource=\"{}\"",
        app.public_url,
        app.tenant_id,
        crate::auth::token::AUDIENCE
    );
    if let Ok(value) = HeaderValue::from_str(&challenge) {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, value);
    }
    Box::new(response)
}

fn authorise(principal: &Principal, call: &Call<'_>) -> Result<(), Fault> {
    let right = roles::needed(call.method, &call.route.kinds, call.route.tail.as_deref());
    if principal.role.may(right) && clients::covers(&principal.scope, &call.path) {
        return Ok(());
    }
    Err(Fault::refuse(
        403,
        ArmError::new(
            "AuthorizationFailed",
            format!(
                "The client `{}` with role `{}` may not do `{} {}`.",
                principal.client_id,
                principal.role.as_str(),
                call.method,
                call.path
            ),
        )
        .advise("", "Use a client with a stronger role or a wider scope."),
    ))
}

/// What azurerm and the command line tools ask before anything else.
fn metadata(app: &App, api_version: &str) -> Value {
    let url = &app.public_url;
    let document = json!({
        "name": "siterecovery",
        "portal": url,
        "resourceManager": url,
        "microsoftGraphResourceId": url,
        "graph": url,
        "graphAudience": url,
        "gallery": url,
        "authentication": {
            "loginEndpoint": url,
            "audiences": [crate::auth::token::AUDIENCE, url],
            "tenant": app.tenant_id,
            "identityProvider": "AAD",
        },
        "suffixes": { "storage": "storage.invalid", "keyVaultDns": "vault.invalid" },
    });
    if api_version == "2019-05-01" {
        json!([document])
    } else {
        document
    }
}

/// 200 with a page.
///
/// # Errors
/// When the entries can't be written as JSON.
pub fn page<T: serde::Serialize>(value: Vec<T>) -> Result<Reply, Fault> {
    Reply::ok(&arm_model::Page {
        value,
        next_link: None,
    })
}

#[cfg(test)]
mod tests;
