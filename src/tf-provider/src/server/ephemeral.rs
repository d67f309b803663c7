//! Ephemeral resources: values that live during one command.

use crate::conform::conform_object;
use crate::diagnostics::Diagnostics;
use crate::proto::tfplugin6 as pb;
use crate::provider::{Opened, Provider};
use crate::wire;

use super::core::{Call, find};
use super::reading::require_known;

pub(crate) async fn open<P: Provider>(
    call: Call<P>,
    request: pb::open_ephemeral_resource::Request,
) -> Result<pb::open_ephemeral_resource::Response, Diagnostics> {
    let entry = find(
        &call.core.ephemeral_resources,
        "ephemeral resource",
        &request.type_name,
    )?;
    let config = wire::config(request.config.as_ref(), &entry.schema)?;
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    let mut opened = Opened {
        result: config.clone(),
        ..Opened::default()
    };
    entry.part.open(&cx, &config, &mut opened).await?;
    let result = conform_object(opened.result, &entry.schema)?;
    require_known(&result, "an open")?;
    Ok(pb::open_ephemeral_resource::Response {
        result: Some(wire::dynamic_object(&result, &entry.schema.ty())?),
        renew_at: opened.renew_at.map(wire::timestamp),
        private: Some(opened.private.into()),
        ..Default::default()
    })
}

pub(crate) async fn renew<P: Provider>(
    call: Call<P>,
    request: pb::renew_ephemeral_resource::Request,
) -> Result<pb::renew_ephemeral_resource::Response, Diagnostics> {
    let entry = find(
        &call.core.ephemeral_resources,
        "ephemeral resource",
        &request.type_name,
    )?;
    let cx = call.context(Default::default());
    let renewed = entry
        .part
        .renew(&cx, &request.private.unwrap_or_default())
        .await?;
    Ok(pb::renew_ephemeral_resource::Response {
        renew_at: renewed.renew_at.map(wire::timestamp),
        private: Some(renewed.private.into()),
        diagnostics: Vec::new(),
    })
}

pub(crate) async fn close<P: Provider>(
    call: Call<P>,
    request: pb::close_ephemeral_resource::Request,
) -> Result<pb::close_ephemeral_resource::Response, Diagnostics> {
    let entry = find(
        &call.core.ephemeral_resources,
        "ephemeral resource",
        &request.type_name,
    )?;
    let cx = call.context(Default::default());
    entry
        .part
        .close(&cx, &request.private.unwrap_or_default())
        .await?;
    Ok(pb::close_ephemeral_resource::Response::default())
}
