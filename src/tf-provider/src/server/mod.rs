//! The `Provider` service: every call of protocol 6.11.
//!
//! Each call runs in its own task: a panic in a handler becomes a diagnostic and a client that goes away does not cut
//! a change in half. Problems are always diagnostics in a normal answer, never gRPC errors, since Terraform shows
//! those without the resource's address.

mod actions;
mod answer;
mod change;
mod core;
mod ephemeral;
mod importing;
mod lists;
mod metadata;
mod reading;
mod state_stores;
mod validation;

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::diagnostics::Diagnostics;
use crate::launch::lifecycle::Lifecycle;
use crate::proto::tfplugin6 as pb;
use crate::provider::Provider;

use self::answer::Answer;
pub(crate) use self::core::{Call, Core, Session};

type Reply<T> = Result<Response<T>, Status>;
type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves a provider on any number of connections.
pub(crate) struct Server<P: Provider> {
    core: Arc<Core<P>>,
    lifecycle: Lifecycle,
}

impl<P: Provider> Server<P> {
    pub(crate) fn new(provider: P, lifecycle: Lifecycle) -> Self {
        Self {
            core: Arc::new(Core::new(provider)),
            lifecycle,
        }
    }

    fn call(&self, extensions: &tonic::Extensions) -> Call<P> {
        // The accept loop puts the session there; without it (never in practice) the call starts unconfigured.
        let session = extensions
            .get::<Arc<Session<P::Client>>>()
            .cloned()
            .unwrap_or_default();
        Call {
            core: Arc::clone(&self.core),
            session,
            warnings: Arc::default(),
        }
    }

    /// Runs a handler in a task of its own and puts its problems into the answer.
    async fn run<Q, R, F, Fut>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        handler: F,
    ) -> Reply<R>
    where
        R: Answer,
        F: FnOnce(Call<P>, Q) -> Fut,
        Fut: Future<Output = Result<R, Diagnostics>> + Send + 'static,
    {
        let call = self.call(request.extensions());
        let warnings: Arc<Mutex<Diagnostics>> = Arc::clone(&call.warnings);
        let running = self.lifecycle.running();
        let work = handler(call, request.into_inner());
        let task = async move {
            let outcome = work.await;
            drop(running);
            outcome
        };
        // Of the highest level, so that its fields are in the lines of every level.
        let span = tracing::error_span!("rpc", tf_rpc = rpc);
        let mut answer = match tokio::spawn(task.instrument(span)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(problems)) => R::failed(&problems),
            Err(failure) => R::failed(&crashed(rpc, failure)),
        };
        answer.add(&Call::<P>::take_warnings(&warnings));
        Ok(Response::new(answer))
    }
}

/// What the user sees when a handler panicked.
fn crashed(rpc: &str, failure: tokio::task::JoinError) -> Diagnostics {
    let text = match failure.try_into_panic() {
        Ok(payload) => panic_text(payload.as_ref()),
        Err(_) => "the task was cancelled".to_owned(),
    };
    Diagnostics::error(
        "The provider failed in an unexpected way",
        format!(
            "{rpc}: {text}. This is a bug of the provider, please report it with the log of TF_LOG=debug."
        ),
    )
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a text".to_owned())
}

/// Answers one call by a handler of the same shape.
macro_rules! answer {
    ($server:ident, $request:ident, $rpc:literal, $handler:path) => {
        $server.run($rpc, $request, $handler).await
    };
}

#[tonic::async_trait]
impl<P: Provider> pb::provider_server::Provider for Server<P> {
    async fn get_metadata(
        &self,
        request: Request<pb::get_metadata::Request>,
    ) -> Reply<pb::get_metadata::Response> {
        answer!(self, request, "GetMetadata", metadata::metadata)
    }

    async fn get_provider_schema(
        &self,
        request: Request<pb::get_provider_schema::Request>,
    ) -> Reply<pb::get_provider_schema::Response> {
        answer!(self, request, "GetProviderSchema", metadata::schemas)
    }

    async fn get_resource_identity_schemas(
        &self,
        request: Request<pb::get_resource_identity_schemas::Request>,
    ) -> Reply<pb::get_resource_identity_schemas::Response> {
        answer!(
            self,
            request,
            "GetResourceIdentitySchemas",
            metadata::identity_schemas
        )
    }

    async fn get_functions(
        &self,
        request: Request<pb::get_functions::Request>,
    ) -> Reply<pb::get_functions::Response> {
        answer!(self, request, "GetFunctions", metadata::functions)
    }

    async fn call_function(
        &self,
        request: Request<pb::call_function::Request>,
    ) -> Reply<pb::call_function::Response> {
        answer!(self, request, "CallFunction", metadata::call_function)
    }

    async fn validate_provider_config(
        &self,
        request: Request<pb::validate_provider_config::Request>,
    ) -> Reply<pb::validate_provider_config::Response> {
        answer!(
            self,
            request,
            "ValidateProviderConfig",
            validation::provider
        )
    }

    async fn validate_resource_config(
        &self,
        request: Request<pb::validate_resource_config::Request>,
    ) -> Reply<pb::validate_resource_config::Response> {
        answer!(
            self,
            request,
            "ValidateResourceConfig",
            validation::resource
        )
    }

    async fn validate_data_resource_config(
        &self,
        request: Request<pb::validate_data_resource_config::Request>,
    ) -> Reply<pb::validate_data_resource_config::Response> {
        answer!(
            self,
            request,
            "ValidateDataResourceConfig",
            validation::data_source
        )
    }

    async fn validate_ephemeral_resource_config(
        &self,
        request: Request<pb::validate_ephemeral_resource_config::Request>,
    ) -> Reply<pb::validate_ephemeral_resource_config::Response> {
        answer!(
            self,
            request,
            "ValidateEphemeralResourceConfig",
            validation::ephemeral_resource
        )
    }

    async fn validate_list_resource_config(
        &self,
        request: Request<pb::validate_list_resource_config::Request>,
    ) -> Reply<pb::validate_list_resource_config::Response> {
        answer!(
            self,
            request,
            "ValidateListResourceConfig",
            validation::list_resource
        )
    }

    async fn validate_action_config(
        &self,
        request: Request<pb::validate_action_config::Request>,
    ) -> Reply<pb::validate_action_config::Response> {
        answer!(self, request, "ValidateActionConfig", validation::action)
    }

    async fn configure_provider(
        &self,
        request: Request<pb::configure_provider::Request>,
    ) -> Reply<pb::configure_provider::Response> {
        answer!(self, request, "ConfigureProvider", validation::configure)
    }

    async fn upgrade_resource_state(
        &self,
        request: Request<pb::upgrade_resource_state::Request>,
    ) -> Reply<pb::upgrade_resource_state::Response> {
        answer!(
            self,
            request,
            "UpgradeResourceState",
            reading::upgrade_state
        )
    }

    async fn upgrade_resource_identity(
        &self,
        request: Request<pb::upgrade_resource_identity::Request>,
    ) -> Reply<pb::upgrade_resource_identity::Response> {
        answer!(
            self,
            request,
            "UpgradeResourceIdentity",
            reading::upgrade_identity
        )
    }

    async fn read_resource(
        &self,
        request: Request<pb::read_resource::Request>,
    ) -> Reply<pb::read_resource::Response> {
        answer!(self, request, "ReadResource", reading::resource)
    }

    async fn read_data_source(
        &self,
        request: Request<pb::read_data_source::Request>,
    ) -> Reply<pb::read_data_source::Response> {
        answer!(self, request, "ReadDataSource", reading::data_source)
    }

    async fn plan_resource_change(
        &self,
        request: Request<pb::plan_resource_change::Request>,
    ) -> Reply<pb::plan_resource_change::Response> {
        answer!(self, request, "PlanResourceChange", change::plan)
    }

    async fn apply_resource_change(
        &self,
        request: Request<pb::apply_resource_change::Request>,
    ) -> Reply<pb::apply_resource_change::Response> {
        answer!(self, request, "ApplyResourceChange", change::apply)
    }

    async fn import_resource_state(
        &self,
        request: Request<pb::import_resource_state::Request>,
    ) -> Reply<pb::import_resource_state::Response> {
        answer!(self, request, "ImportResourceState", importing::import)
    }

    async fn move_resource_state(
        &self,
        request: Request<pb::move_resource_state::Request>,
    ) -> Reply<pb::move_resource_state::Response> {
        answer!(self, request, "MoveResourceState", importing::move_state)
    }

    async fn generate_resource_config(
        &self,
        request: Request<pb::generate_resource_config::Request>,
    ) -> Reply<pb::generate_resource_config::Response> {
        answer!(
            self,
            request,
            "GenerateResourceConfig",
            importing::generate_config
        )
    }

    async fn open_ephemeral_resource(
        &self,
        request: Request<pb::open_ephemeral_resource::Request>,
    ) -> Reply<pb::open_ephemeral_resource::Response> {
        answer!(self, request, "OpenEphemeralResource", ephemeral::open)
    }

    async fn renew_ephemeral_resource(
        &self,
        request: Request<pb::renew_ephemeral_resource::Request>,
    ) -> Reply<pb::renew_ephemeral_resource::Response> {
        answer!(self, request, "RenewEphemeralResource", ephemeral::renew)
    }

    async fn close_ephemeral_resource(
        &self,
        request: Request<pb::close_ephemeral_resource::Request>,
    ) -> Reply<pb::close_ephemeral_resource::Response> {
        answer!(self, request, "CloseEphemeralResource", ephemeral::close)
    }

    type ListResourceStream = EventStream<pb::list_resource::Event>;

    async fn list_resource(
        &self,
        request: Request<pb::list_resource::Request>,
    ) -> Reply<Self::ListResourceStream> {
        let call = self.call(request.extensions());
        let events = lists::list(call, request.into_inner(), self.lifecycle.running());
        Ok(Response::new(Box::pin(events)))
    }

    async fn plan_action(
        &self,
        request: Request<pb::plan_action::Request>,
    ) -> Reply<pb::plan_action::Response> {
        answer!(self, request, "PlanAction", actions::plan)
    }

    type InvokeActionStream = EventStream<pb::invoke_action::Event>;

    async fn invoke_action(
        &self,
        request: Request<pb::invoke_action::Request>,
    ) -> Reply<Self::InvokeActionStream> {
        let call = self.call(request.extensions());
        let events = actions::invoke(call, request.into_inner(), self.lifecycle.running());
        Ok(Response::new(Box::pin(events)))
    }

    async fn validate_state_store_config(
        &self,
        request: Request<pb::validate_state_store::Request>,
    ) -> Reply<pb::validate_state_store::Response> {
        state_stores::refuse(&request.into_inner().type_name)
    }

    async fn configure_state_store(
        &self,
        request: Request<pb::configure_state_store::Request>,
    ) -> Reply<pb::configure_state_store::Response> {
        state_stores::refuse(&request.into_inner().type_name)
    }

    type ReadStateBytesStream = EventStream<pb::read_state_bytes::Response>;

    async fn read_state_bytes(
        &self,
        request: Request<pb::read_state_bytes::Request>,
    ) -> Reply<Self::ReadStateBytesStream> {
        let answer = state_stores::refusal(&request.into_inner().type_name);
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(answer)]))))
    }

    async fn write_state_bytes(
        &self,
        request: Request<Streaming<pb::write_state_bytes::RequestChunk>>,
    ) -> Reply<pb::write_state_bytes::Response> {
        let first = request.into_inner().message().await?;
        let meta = first.and_then(|chunk| chunk.meta);
        state_stores::refuse(&meta.map(|meta| meta.type_name).unwrap_or_default())
    }

    async fn lock_state(
        &self,
        request: Request<pb::lock_state::Request>,
    ) -> Reply<pb::lock_state::Response> {
        state_stores::refuse(&request.into_inner().type_name)
    }

    async fn unlock_state(
        &self,
        request: Request<pb::unlock_state::Request>,
    ) -> Reply<pb::unlock_state::Response> {
        state_stores::refuse(&request.into_inner().type_name)
    }

    async fn get_states(
        &self,
        request: Request<pb::get_states::Request>,
    ) -> Reply<pb::get_states::Response> {
        state_stores::refuse(&request.into_inner().type_name)
    }

    async fn delete_state(
        &self,
        request: Request<pb::delete_state::Request>,
    ) -> Reply<pb::delete_state::Response> {
        state_stores::refuse(&request.into_inner().type_name)
    }

    async fn stop_provider(
        &self,
        request: Request<pb::stop_provider::Request>,
    ) -> Reply<pb::stop_provider::Response> {
        tracing::info!("stop requested");
        self.call(request.extensions()).session.stop();
        Ok(Response::new(pb::stop_provider::Response::default()))
    }
}
