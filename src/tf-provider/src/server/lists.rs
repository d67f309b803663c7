//! Listings of existing objects, sent as they are found.

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument;

use crate::conform::conform_object;
use crate::diagnostics::Diagnostics;
use crate::launch::lifecycle::Running;
use crate::proto::tfplugin6 as pb;
use crate::provider::{ListItem, ListSink, Provider};
use crate::wire;

use super::core::{Call, Core, find};
use super::crashed;
use super::reading::require_known;

/// Objects that may wait for a slow client; small, so that a listing stops soon after the client does.
const ITEM_BUFFER: usize = 4;

pub(crate) fn list<P: Provider>(
    call: Call<P>,
    request: pb::list_resource::Request,
    running: Running,
) -> impl Stream<Item = Result<pb::list_resource::Event, Status>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(ITEM_BUFFER);
    let warnings = call.warnings.clone();
    let core = call.core.clone();
    let type_name = request.type_name.clone();
    let include = request.include_resource_object;
    // No limit in the request means all of them.
    let left = u64::try_from(request.limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(u64::MAX);
    let sink = ListSink { sender, left };
    let span = tracing::error_span!("rpc", tf_rpc = "ListResource", tf_resource_type = type_name);
    let task = tokio::spawn(search(call, request, sink).instrument(span));
    let items = ReceiverStream::new(receiver).map(move |mut item: ListItem| {
        item.resource = item.resource.filter(|_| include);
        event(&core, &type_name, item).unwrap_or_else(|problem| failed(&problem))
    });
    let end = async move {
        let outcome = task
            .await
            .unwrap_or_else(|failure| Err(crashed("ListResource", failure)));
        drop(running);
        let mut diagnostics = outcome.err().unwrap_or_default();
        diagnostics.extend(Call::<P>::take_warnings(&warnings));
        (!diagnostics.is_empty()).then(|| failed(&diagnostics))
    };
    items
        .chain(futures::stream::once(end).filter_map(std::future::ready))
        .map(Ok)
}

async fn search<P: Provider>(
    call: Call<P>,
    request: pb::list_resource::Request,
    mut sink: ListSink,
) -> Result<(), Diagnostics> {
    let entry = find(
        &call.core.list_resources,
        "list resource",
        &request.type_name,
    )?;
    let config = wire::config(request.config.as_ref(), &entry.schema)?;
    let cx = call.context(Default::default());
    entry
        .part
        .list(&cx, &config, request.include_resource_object, &mut sink)
        .await
}

fn failed(diagnostics: &Diagnostics) -> pb::list_resource::Event {
    pb::list_resource::Event {
        diagnostic: diagnostics.to_proto(),
        ..Default::default()
    }
}

fn event<P: Provider>(
    core: &Core<P>,
    type_name: &str,
    item: ListItem,
) -> Result<pb::list_resource::Event, Diagnostics> {
    let entry = find(&core.resources, "resource", type_name)?;
    let Some(identity_schema) = &entry.identity else {
        return Err(Diagnostics::error(
            "No identity",
            format!("{type_name} has no identity, so it cannot be listed."),
        ));
    };
    require_known(&item.identity, "a listing")?;
    let resource_object = match item.resource {
        None => None,
        Some(object) => {
            let object = conform_object(object, &entry.schema)?;
            require_known(&object, "a listing")?;
            Some(wire::dynamic_object(&object, &entry.schema.ty())?)
        }
    };
    Ok(pb::list_resource::Event {
        identity: Some(wire::identity_data(item.identity, identity_schema)?),
        display_name: item.display_name,
        resource_object,
        diagnostic: item
            .warning
            .map(|warning| vec![warning.to_proto()])
            .unwrap_or_default(),
    })
}
