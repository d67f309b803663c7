//! Finds out what a call is about and carries it out.

use serde_json::{Value, json};

use super::state::{Effect, Outcome, Reply, State, refuse, text};
use super::{catalog, compute, network, snapshots};

/// A request without what only sockets know.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) body: Value,
    /// Address of the double, for links.
    pub(super) base: &'a str,
}

impl Request<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let key = key.replace("%24", "$");
            key.eq_ignore_ascii_case(name).then(|| {
                value
                    .replace("%20", " ")
                    .replace('+', " ")
                    .replace("%27", "'")
            })
        })
    }
}

/// Types and the versions of the API that they have (those since 2022; disks and SKUs are versioned apart).
const TYPES: &[(&str, &[&str])] = &[
    ("microsoft.compute/virtualmachines", COMPUTE),
    ("microsoft.compute/availabilitysets", COMPUTE),
    ("microsoft.compute/locations", COMPUTE),
    ("microsoft.compute/disks", DISKS),
    ("microsoft.compute/snapshots", DISKS),
    (
        "microsoft.compute/skus",
        &["2017-09-01", "2019-04-01", "2021-07-01"],
    ),
    ("microsoft.network/networkinterfaces", NETWORK),
    ("microsoft.network/publicipaddresses", NETWORK),
    ("microsoft.network/virtualnetworks", NETWORK),
    ("microsoft.network/networksecuritygroups", NETWORK),
    ("microsoft.network/locations", NETWORK),
    (
        "microsoft.storage/storageaccounts",
        &["2022-09-01", "2023-01-01", "2023-05-01", "2024-01-01"],
    ),
];
const DISKS: &[&str] = &[
    "2022-03-02",
    "2022-07-02",
    "2023-01-02",
    "2023-04-02",
    "2023-10-02",
    "2024-03-02",
    "2025-01-02",
    "2026-03-02",
];
const COMPUTE: &[&str] = &[
    "2022-03-01",
    "2022-08-01",
    "2022-11-01",
    "2023-03-01",
    "2023-07-01",
    "2023-09-01",
    "2024-03-01",
    "2024-07-01",
    "2024-11-01",
    "2025-04-01",
    "2025-11-01",
    "2026-04-01",
];
const NETWORK: &[&str] = &[
    "2022-07-01",
    "2022-09-01",
    "2022-11-01",
    "2023-02-01",
    "2023-04-01",
    "2023-05-01",
    "2023-06-01",
    "2023-09-01",
    "2023-11-01",
    "2024-01-01",
    "2024-03-01",
    "2024-05-01",
    "2024-07-01",
    "2024-10-01",
    "2025-01-01",
    "2025-03-01",
    "2025-05-01",
    "2025-07-01",
    "2026-03-01",
];

pub(super) fn answer(state: &mut State, request: &Request<'_>) -> Reply {
    route(state, request).unwrap_or_else(Reply::from)
}

fn route(state: &mut State, request: &Request<'_>) -> Outcome {
    let lower = request.path.to_lowercase();
    let parts: Vec<&str> = lower.split('/').skip(1).collect();
    let Some(version) = request.parameter("api-version") else {
        return refuse(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        );
    };
    match (request.method, parts.as_slice()) {
        ("GET", ["subscriptions", _, "resourcegroups", group]) => {
            if state.groups.contains(*group) {
                Ok(Reply::ok(
                    json!({ "id": request.path, "name": group, "location": "westeurope",
                    "properties": { "provisioningState": "Succeeded" } }),
                ))
            } else {
                no_group(group)
            }
        }
        ("GET", ["subscriptions", _, "providers", space, kind]) => {
            versioned(space, kind, &version)?;
            if *kind != "skus" {
                return refuse(404, "InvalidResourceType", "The double lists SKUs only.");
            }
            let filter = request.parameter("$filter").unwrap_or_default();
            let location = filter.split('\'').nth(1).unwrap_or("westeurope").to_owned();
            page(state, request, catalog::skus(&location))
        }
        (
            "GET",
            [
                "subscriptions",
                _,
                "providers",
                space,
                "locations",
                _,
                "usages",
            ],
        ) => {
            versioned(space, "locations", &version)?;
            let usages = catalog::usages(state);
            page(state, request, usages)
        }
        (
            "GET",
            [
                "subscriptions",
                _,
                "providers",
                _,
                "locations",
                _,
                "operations",
                id,
            ],
        ) => operation(state, request, id),
        (
            _,
            [
                "subscriptions",
                _,
                "resourcegroups",
                group,
                "providers",
                space,
                kind,
                rest @ ..,
            ],
        ) => {
            versioned(space, kind, &version)?;
            if !state.groups.contains(*group) {
                return no_group(group);
            }
            resource(state, request, space, kind, rest)
        }
        _ => refuse(
            404,
            "InvalidResourceType",
            format!("The double has no {}.", request.path),
        ),
    }
}

fn no_group<T>(group: &str) -> Outcome<T> {
    refuse(
        404,
        "ResourceGroupNotFound",
        format!("Resource group '{group}' could not be found."),
    )
}

fn versioned(space: &str, kind: &str, version: &str) -> Outcome<()> {
    let known = TYPES
        .iter()
        .find(|(name, _)| *name == format!("{space}/{kind}"));
    match known {
        None => refuse(
            404,
            "InvalidResourceType",
            format!("The resource type {space}/{kind} could not be found."),
        ),
        Some((_, versions)) if !versions.contains(&version) => refuse(
            400,
            "NoRegisteredProviderFound",
            format!(
                "No registered resource provider found for API version '{version}' for type '{kind}'. The supported api-versions are '{}'.",
                versions.join(", ")
            ),
        ),
        Some(_) => Ok(()),
    }
}

fn resource(
    state: &mut State,
    request: &Request<'_>,
    space: &str,
    kind: &str,
    rest: &[&str],
) -> Outcome {
    // The id as the caller spells it, without what comes behind the name.
    let id: String = request
        .path
        .split('/')
        .take(9)
        .collect::<Vec<_>>()
        .join("/");
    let key = id.to_lowercase();
    match (request.method, rest) {
        ("GET", []) => {
            let prefix = format!("{key}/");
            let keys: Vec<String> = state
                .resources
                .keys()
                .filter(|k| k.starts_with(&prefix))
                .cloned()
                .collect();
            let all = keys
                .iter()
                .map(|k| show(state, k, false))
                .collect::<Outcome<_>>()?;
            page(state, request, all)
        }
        ("GET", [_]) => {
            advance(state, &key);
            let expand = request
                .parameter("$expand")
                .is_some_and(|e| e.eq_ignore_ascii_case("instanceView"));
            show(state, &key, expand).map(Reply::ok)
        }
        ("GET", [_, "instanceview"]) => match state.entry(&key) {
            Some(entry) => Ok(Reply::ok(compute::instance_view(entry))),
            None => missing(&id),
        },
        ("GET", [_, "checkipaddressavailability"]) => {
            let wished = request.parameter("ipAddress").unwrap_or_default();
            network::availability(state, &id, &wished).map(Reply::ok)
        }
        ("PUT", [_]) => put(state, request, space, kind, &id),
        ("DELETE", [_]) => {
            if state.entry(&key).is_none() {
                return Ok(Reply::of(204, Value::Null));
            }
            idle(state, space, &key)?;
            compute::blocked(state, &id, kind)?;
            snapshots::blocked(state, &key)?;
            network::blocked(state, &id, kind)?;
            let operation = state.begin(&key, "Deleting", Effect::Delete);
            Ok(accepted(request, space, &operation, 202, Value::Null, true))
        }
        ("POST", [_, action @ ("begingetaccess" | "endgetaccess")]) if kind == "snapshots" => {
            if state.entry(&key).is_none() {
                return missing(&id);
            }
            idle(state, space, &key)?;
            let operation = snapshots::access(state, &key, action, &request.body)?;
            Ok(accepted(request, space, &operation, 202, Value::Null, true))
        }
        ("POST", [_, action]) if kind == "virtualmachines" => {
            let power = match *action {
                "start" => "running",
                "deallocate" => "deallocated",
                "poweroff" => "stopped",
                _ => {
                    return refuse(
                        404,
                        "InvalidResourceType",
                        format!("The double has no {action}."),
                    );
                }
            };
            if state.entry(&key).is_none() {
                return missing(&id);
            }
            idle(state, space, &key)?;
            let operation = state.begin(&key, "Updating", Effect::Power(power));
            Ok(accepted(request, space, &operation, 202, Value::Null, true))
        }
        _ => refuse(
            405,
            "MethodNotAllowed",
            format!("{} {}", request.method, request.path),
        ),
    }
}

fn missing<T>(id: &str) -> Outcome<T> {
    refuse(
        404,
        "ResourceNotFound",
        format!("The Resource '{id}' was not found."),
    )
}

fn advance(state: &mut State, key: &str) {
    if let Some(operation) = state.entry(key).and_then(|e| e.operation.clone()) {
        state.poll(&operation);
    }
}

/// A second write beside a running one is refused.
fn idle(state: &mut State, space: &str, key: &str) -> Outcome<()> {
    if state.entry(key).is_none_or(|e| e.operation.is_none()) {
        return Ok(());
    }
    state.collisions += 1;
    if space == "microsoft.network" {
        refuse(
            429,
            "AnotherOperationInProgress",
            "Another operation on this or dependent resource is in progress.",
        )
    } else {
        refuse(
            409,
            "Conflict",
            "The request failed due to conflict with a concurrent request.",
        )
    }
}

fn put(state: &mut State, request: &Request<'_>, space: &str, kind: &str, id: &str) -> Outcome {
    let key = id.to_lowercase();
    let mut body = request.body.clone();
    if !body.is_object() {
        return refuse(
            400,
            "InvalidRequestContent",
            "The request content was invalid and could not be deserialized.",
        );
    }
    if text(&body, "/location").is_empty() {
        return refuse(
            400,
            "LocationRequired",
            "The location property is required for this definition.",
        );
    }
    idle(state, space, &key)?;
    let before = state.entry(&key);
    if before.is_some_and(|e| text(&e.body, "/location") != text(&body, "/location")) {
        return refuse(
            409,
            "InvalidResourceLocation",
            format!("The resource {id} already exists in another location."),
        );
    }
    let existed = before.is_some();
    match kind {
        "disks" => compute::disk(state, id, &mut body)?,
        "virtualmachines" => compute::vm(state, id, &mut body)?,
        "networkinterfaces" => network::nic(state, id, &mut body)?,
        "virtualnetworks" => network::network(state, id, &mut body)?,
        "publicipaddresses" => network::public_address(state, id, &mut body)?,
        "networksecuritygroups" => {}
        "snapshots" => snapshots::take(state, id, &body)?,
        other => {
            return refuse(
                405,
                "MethodNotAllowed",
                format!("The double makes no {other}."),
            );
        }
    }
    state.put(id, body);
    let effect = if kind == "virtualmachines" {
        Effect::Power("running")
    } else {
        Effect::Settle
    };
    let word = if existed { "Updating" } else { "Creating" };
    let operation = state.begin(&key, word, effect);
    let shown = show(state, &key, false)?;
    let status = match (kind, existed) {
        ("disks", _) => 202,
        (_, true) => 200,
        (_, false) => 201,
    };
    Ok(accepted(
        request,
        space,
        &operation,
        status,
        shown,
        kind == "disks",
    ))
}

fn accepted(
    request: &Request<'_>,
    space: &str,
    operation: &str,
    status: u16,
    body: Value,
    location: bool,
) -> Reply {
    let subscription = request.path.split('/').nth(2).unwrap_or_default();
    let version = request.parameter("api-version").unwrap_or_default();
    let at = format!(
        "{}/subscriptions/{subscription}/providers/{space}/locations/westeurope/operations/{operation}?api-version={version}",
        request.base
    );
    let mut reply = Reply::of(status, body);
    reply.headers.push(("Azure-AsyncOperation", at.clone()));
    if location {
        reply
            .headers
            .push(("Location", format!("{at}&monitor=true")));
    }
    reply.headers.push(("Retry-After", "0".to_owned()));
    reply
}

fn operation(state: &mut State, request: &Request<'_>, id: &str) -> Outcome {
    state.poll(id);
    let Some(operation) = state.operations.get(id) else {
        return refuse(
            404,
            "NotFound",
            format!("The operation {id} was not found."),
        );
    };
    let monitor = request.parameter("monitor").is_some();
    if monitor && operation.ended {
        let target = operation.target.clone();
        if let Some(result) = operation.result.clone() {
            return Ok(Reply::ok(result));
        }
        return Ok(match show(state, &target, false) {
            Ok(body) if target.contains("/disks/") => Reply::ok(body),
            _ => Reply::of(200, Value::Null),
        });
    }
    let mut body = json!({ "name": id, "startTime": "2026-01-01T00:00:00+00:00" });
    body["status"] = match (operation.ended, operation.failure) {
        (false, _) => "InProgress",
        (true, None) => "Succeeded",
        (true, Some(_)) => "Failed",
    }
    .into();
    if let (true, Some(code)) = (operation.ended, operation.failure) {
        body["error"] =
            json!({ "code": code, "message": format!("The double was told to fail with {code}.") });
    }
    let mut reply = Reply::of(if monitor { 202 } else { 200 }, body);
    reply.headers.push(("Retry-After", "0".to_owned()));
    Ok(reply)
}

/// A resource as ARM shows it.
fn show(state: &State, key: &str, expand: bool) -> Outcome<Value> {
    let Some(entry) = state.entry(key) else {
        return missing(key);
    };
    let mut body = entry.body.clone();
    let parts: Vec<&str> = entry.id.split('/').collect();
    let part = |n: usize| parts.get(n).copied().unwrap_or_default();
    body["id"] = entry.id.clone().into();
    body["name"] = part(8).into();
    body["type"] = format!("{}/{}", part(6), part(7)).into();
    if !key.contains("/availabilitysets/") {
        body["properties"]["provisioningState"] = entry.state.clone().into();
    }
    if key.contains("/disks/") {
        compute::show_disk(state, key, &mut body);
    }
    if key.contains("/networkinterfaces/")
        && let Some(vm) = compute::user_of_nic(state, key)
    {
        body["properties"]["virtualMachine"] = json!({ "id": vm });
    }
    if expand && key.contains("/virtualmachines/") {
        body["properties"]["instanceView"] = compute::instance_view(entry);
    }
    Ok(body)
}

fn page(state: &State, request: &Request<'_>, all: Vec<Value>) -> Outcome {
    let from: usize = request
        .parameter("$skiptoken")
        .and_then(|t| t.parse().ok())
        .unwrap_or(0);
    let size = state.page_size.max(1);
    let more = all.len() > from + size;
    let entries: Vec<Value> = all.into_iter().skip(from).take(size).collect();
    let mut body = json!({ "value": entries });
    if more {
        let kept: Vec<&str> = request
            .query
            .split('&')
            .filter(|p| !p.to_lowercase().contains("skiptoken"))
            .collect();
        body["nextLink"] = format!(
            "{}{}?{}&$skiptoken={}",
            request.base,
            request.path,
            kept.join("&"),
            from + size
        )
        .into();
    }
    Ok(Reply::ok(body))
}
