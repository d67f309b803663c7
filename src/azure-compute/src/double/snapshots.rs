//! Rules of snapshots: made of a disk, opened and closed, not removed while open.

use serde_json::{Value, json};

use super::state::{Effect, Outcome, State, refuse, text};

/// Checks a snapshot and takes it: its instant is that of the accepted request.
pub(super) fn take(state: &State, id: &str, body: &Value) -> Outcome<()> {
    if text(body, "/properties/creationData/createOption") != "Copy" {
        return refuse(
            400,
            "InvalidParameter",
            "The double makes snapshots with createOption Copy only.",
        );
    }
    if body
        .pointer("/properties/incremental")
        .and_then(Value::as_bool)
        != Some(true)
    {
        return refuse(
            400,
            "InvalidParameter",
            "The double makes incremental snapshots only.",
        );
    }
    if state.entry(id).is_some() {
        return refuse(
            409,
            "PropertyChangeNotAllowed",
            "Changing property 'creationData' is not allowed.",
        );
    }
    let disk = text(body, "/properties/creationData/sourceResourceId");
    match state.entry(disk) {
        Some(entry) if entry.state == "Succeeded" || entry.state == "Updating" => {}
        Some(_) => {
            return refuse(
                409,
                "OperationNotAllowed",
                format!("Disk {disk} is not provisioned."),
            );
        }
        None => return refuse(404, "NotFound", format!("Disk {disk} is not found.")),
    }
    if let Some(disks) = &state.contents.0 {
        disks.freeze(&disk.to_lowercase(), &id.to_lowercase());
    }
    Ok(())
}

/// Begins `beginGetAccess` or `endGetAccess`; gives the operation.
pub(super) fn access(state: &mut State, key: &str, action: &str, body: &Value) -> Outcome<String> {
    if action == "endgetaccess" {
        state.open.remove(key);
        if let Some(disks) = &state.contents.0 {
            disks.close(key);
        }
        return Ok(state.begin(key, "Updating", Effect::Settle));
    }
    let seconds = body.get("durationInSeconds").and_then(Value::as_u64);
    if text(body, "/access") != "Read" || seconds.is_none_or(|seconds| seconds == 0) {
        return refuse(
            400,
            "InvalidParameter",
            "Required parameters 'access' and 'durationInSeconds' are missing.",
        );
    }
    if !state.open.insert(key.to_owned()) {
        return refuse(
            409,
            "Conflict",
            format!("There is an active shared access signature outstanding for {key}."),
        );
    }
    let address = match &state.contents.0 {
        Some(disks) => disks.open(key),
        None => "https://md-double.blob.example/c/abcd?sig=secret".to_owned(),
    };
    let operation = state.begin(key, "Updating", Effect::Settle);
    if let Some(begun) = state.operations.get_mut(&operation) {
        begun.result = Some(json!({ "accessSAS": address }));
    }
    Ok(operation)
}

/// What stands in the way of a removal.
pub(super) fn blocked(state: &State, key: &str) -> Outcome<()> {
    if state.open.contains(key) {
        return refuse(
            409,
            "OperationNotAllowed",
            format!("There is an active shared access signature outstanding for {key}."),
        );
    }
    Ok(())
}
