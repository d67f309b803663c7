//! The services of go-plugin beside the provider itself.

use std::pin::Pin;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::lifecycle::Lifecycle;
use crate::proto::health::{self, health_check_response::ServingStatus, health_server::Health};
use crate::proto::plugin;

type Silent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Ends the process when Terraform asks for it.
pub(crate) struct Controller(pub(crate) Lifecycle);

#[tonic::async_trait]
impl plugin::grpc_controller_server::GrpcController for Controller {
    async fn shutdown(
        &self,
        _request: Request<plugin::Empty>,
    ) -> Result<Response<plugin::Empty>, Status> {
        tracing::debug!("shutdown requested");
        self.0.shut_down();
        Ok(Response::new(plugin::Empty {}))
    }
}

/// Logs go to the real stderr, so this stream stays silent.
pub(crate) struct Stdio;

#[tonic::async_trait]
impl plugin::grpc_stdio_server::GrpcStdio for Stdio {
    type StreamStdioStream = Silent<plugin::StdioData>;

    async fn stream_stdio(
        &self,
        _request: Request<()>,
    ) -> Result<Response<Self::StreamStdioStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

/// Terraform opens the stream and never uses it.
pub(crate) struct Broker;

#[tonic::async_trait]
impl plugin::grpc_broker_server::GrpcBroker for Broker {
    type StartStreamStream = Silent<plugin::ConnInfo>;

    async fn start_stream(
        &self,
        _request: Request<Streaming<plugin::ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

/// Serving as soon as it can be asked.
pub(crate) struct Serving;

#[tonic::async_trait]
impl Health for Serving {
    async fn check(
        &self,
        request: Request<health::HealthCheckRequest>,
    ) -> Result<Response<health::HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" | "plugin" => {
                let status = ServingStatus::Serving as i32;
                Ok(Response::new(health::HealthCheckResponse { status }))
            }
            _ => Err(Status::not_found("unknown service")),
        }
    }
}
