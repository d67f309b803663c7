//! Actions: planned without effect, then done with progress lines and exactly one final event.

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument;

use crate::conform::conform_to;
use crate::diagnostics::Diagnostics;
use crate::launch::lifecycle::Running;
use crate::proto::tfplugin6 as pb;
use crate::provider::{Progress, Provider};
use crate::wire;

use super::core::{Call, find};
use super::crashed;

/// Progress lines that may wait for a slow client.
const PROGRESS_BUFFER: usize = 16;

pub(crate) async fn plan<P: Provider>(
    call: Call<P>,
    request: pb::plan_action::Request,
) -> Result<pb::plan_action::Response, Diagnostics> {
    let entry = find(&call.core.actions, "action", &request.action_type)?;
    let config = wire::config(request.config.as_ref(), &entry.schema)?;
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    entry.part.plan(&cx, &config).await?;
    Ok(pb::plan_action::Response::default())
}

pub(crate) fn invoke<P: Provider>(
    call: Call<P>,
    request: pb::invoke_action::Request,
    running: Running,
) -> impl Stream<Item = Result<pb::invoke_action::Event, Status>> + Send + 'static {
    use pb::invoke_action::event::{Completed, Progress as Line, Type};
    let (sender, receiver) = mpsc::channel(PROGRESS_BUFFER);
    let warnings = call.warnings.clone();
    let span = tracing::error_span!(
        "rpc",
        tf_rpc = "InvokeAction",
        tf_action_type = request.action_type
    );
    let task = tokio::spawn(perform(call, request, Progress { sender }).instrument(span));
    let completed = async move {
        let outcome = task
            .await
            .unwrap_or_else(|failure| Err(crashed("InvokeAction", failure)));
        drop(running);
        let mut diagnostics = outcome.err().unwrap_or_default();
        diagnostics.extend(Call::<P>::take_warnings(&warnings));
        Type::Completed(Completed {
            diagnostics: diagnostics.to_proto(),
        })
    };
    let progress = ReceiverStream::new(receiver).map(|message| Type::Progress(Line { message }));
    let events = progress.chain(futures::stream::once(completed));
    events.map(|event| {
        Ok(pb::invoke_action::Event {
            r#type: Some(event),
        })
    })
}

async fn perform<P: Provider>(
    call: Call<P>,
    request: pb::invoke_action::Request,
    progress: Progress,
) -> Result<(), Diagnostics> {
    let entry = find(&call.core.actions, "action", &request.action_type)?;
    let config = conform_to(
        wire::config(request.config.as_ref(), &entry.schema)?,
        &entry.schema.ty(),
    )?;
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    entry.part.invoke(&cx, &config, &progress).await
}
