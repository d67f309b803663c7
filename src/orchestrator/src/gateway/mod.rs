//! The engine gateway: enrolment, and one stream per engine.
//!
//! ```text
//!  engine ── EngineReport ──► reports  : fleet (memory), state machine of items (store), bell
//!         ◄── DesiredState ── watcher  : whenever the bell rings, the store has changed and the desired state with it,
//!                                        and from time to time anyway
//! ```
//!
//! Nothing relies on a message arriving once: reports are whole, desired states are whole.

mod carry;
pub mod desired;
pub mod enrol;
mod limits;
pub mod reports;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use engine_protocol::v1::engine_gateway_server::{EngineGateway, EngineGatewayServer};
use engine_protocol::{MAX_MESSAGE_BYTES, tls, v1};
use futures::Stream;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::app::App;
use crate::store::records::{self, EngineRecord};

/// The whole desired state is repeated after so long.
const REPEAT: Duration = Duration::from_secs(15);

/// Serves the gateway until `stop`.
///
/// # Errors
/// When TLS can't be set up or the listener fails.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    certificate: engine_protocol::authority::KeyedCertificate,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tls = tls::server_config(
        app.authority.certificate_pem(),
        &certificate.certificate_pem,
        &certificate.key_pem,
    );
    let gateway = Arc::new(Gateway {
        app,
        stop: stop.clone(),
        enrolments: Semaphore::new(limits::ENROLMENTS_AT_ONCE),
    });
    let accepts = |bytes| {
        EngineGatewayServer::from_arc(Arc::clone(&gateway))
            .max_decoding_message_size(bytes)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    };
    let service = limits::ByCall {
        enrolment: accepts(limits::MAX_ENROLMENT_BYTES),
        session: accepts(MAX_MESSAGE_BYTES),
    };
    tonic::transport::Server::builder()
        .tls_config(tls)?
        .concurrency_limit_per_connection(limits::CALLS_OF_A_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await
}

struct Gateway {
    app: Arc<App>,
    stop: CancellationToken,
    enrolments: Semaphore,
}

#[tonic::async_trait]
impl EngineGateway for Gateway {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::DesiredState, Status>> + Send>>;

    async fn enrol(
        &self,
        request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        let _turn = self.turn().await?;
        enrol::enrol(&self.app, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        let _turn = self.turn().await?;
        let engine_id = self.peer(&request).await?;
        let key = tls::peer_key_digest(&request)?;
        enrol::renew(&self.app, &engine_id, &key, &request.into_inner()).map(Response::new)
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::EngineReport>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let engine_id = self.peer(&request).await?;
        let session = self.app.fleet.begin_session(&engine_id);
        info!(engine = %engine_id, session, "engine connected");
        let (sender, receiver) = mpsc::channel(4);
        let stream = EngineStream {
            app: Arc::clone(&self.app),
            engine_id,
            session,
            stop: self.stop.clone(),
        };
        tokio::spawn(stream.run(request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Gateway {
    /// Waits until one more certificate may be made.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Status> {
        let turn = self.enrolments.acquire().await;
        turn.map_err(|_| Status::unavailable("the gateway stops; try again"))
    }

    /// The registered engine that a request comes from.
    async fn peer<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let engine_id = tls::engine_id(request)?;
        let key = records::engine_key(&engine_id);
        let known = records::get::<EngineRecord>(self.app.store.as_ref(), &key)
            .await
            .map_err(enrol::failed)?
            .ok_or_else(|| {
                Status::permission_denied(
                    "this host was unregistered; enrol with a new registration key",
                )
            })?;
        // Records of before the key was noted have none.
        let key_digest = &known.record.key_digest;
        if !key_digest.is_empty() && *key_digest != tls::peer_key_digest(request)? {
            warn!(engine = %engine_id, "a session under an engine's id with another key");
            return Err(Status::permission_denied(
                "an engine of this id is registered with another key; enrol with a new registration key",
            ));
        }
        Ok(engine_id)
    }
}

/// One stream of an engine.
struct EngineStream {
    app: Arc<App>,
    engine_id: String,
    session: u64,
    stop: CancellationToken,
}

impl EngineStream {
    async fn run(
        self,
        mut reports: Streaming<v1::EngineReport>,
        sender: mpsc::Sender<Result<v1::DesiredState, Status>>,
    ) {
        let mut intake = reports::Intake::new(&self.engine_id);
        let mut bell = self.app.listen();
        bell.mark_changed();
        let mut told = None;
        let mut computed = None;
        let mut repeat = tokio::time::interval_at(tokio::time::Instant::now() + REPEAT, REPEAT);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                report = reports.message() => match report {
                    Ok(Some(report)) => {
                        if !self.app.fleet.is_current(&self.engine_id, self.session) {
                            break;
                        }
                        if let Err(error) = intake.take(&self.app, report).await {
                            warn!(engine = %self.engine_id, error = &error as &dyn std::error::Error, "report can't be stored; the next one will be");
                        }
                    }
                    Ok(None) => break,
                    Err(status) => {
                        info!(engine = %self.engine_id, code = ?status.code(), "stream broke");
                        break;
                    }
                },
                _ = repeat.tick() => {
                    told = None;
                    computed = None;
                }
                _ = bell.changed() => {}
            }
            if !self.app.fleet.is_current(&self.engine_id, self.session) {
                let superseded = Status::aborted(
                    "a newer stream of this engine took over, or the host was unregistered",
                );
                let _gone_already = sender.try_send(Err(superseded));
                break;
            }
            // Reports ring several times a second; what an engine shall do follows from the store and the clock alone.
            let revision = self.app.revision();
            if computed == Some(revision) {
                continue;
            }
            match desired::refresh(&self.app, &self.engine_id).await {
                Ok(state) if told != Some(state.generation) => {
                    let generation = state.generation;
                    // A full channel means that the engine doesn't read; the next round tries again.
                    match sender.try_send(Ok(state)) {
                        Ok(()) => {
                            told = Some(generation);
                            computed = Some(revision);
                        }
                        Err(mpsc::error::TrySendError::Full(_)) => {}
                        Err(mpsc::error::TrySendError::Closed(_)) => break,
                    }
                }
                Ok(_) => computed = Some(revision),
                Err(error) => {
                    warn!(engine = %self.engine_id, error = &error as &dyn std::error::Error, "desired state can't be computed")
                }
            }
        }
        info!(engine = %self.engine_id, session = self.session, "engine's stream ended");
    }
}
