//! The engine's link to the orchestrator: enrols once, then keeps one session open, whatever happens.
//!
//! ```text
//!            key file there                    stream ends, error
//!  ┌─► enrol ───────────────► connected ──────────────────────────┐
//!  └──────────────── back-off with jitter ◄───────────────────────┘
//! ```
//!
//! Promise: a report follows every change of the board within [`GAP`] and at least every report interval;
//! desired states are passed on whole, newest wins. Nothing here stops replication: without an
//! orchestrator the engine goes on with the desired state it knows.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use engine_protocol::v1::engine_gateway_client::EngineGatewayClient;
use engine_protocol::v1::{DesiredState, EngineReport};
use engine_protocol::{MAX_MESSAGE_BYTES, tls};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::backoff;
use crate::control::About;
use crate::identity::{Enrolment, IdentityFolder};
use crate::report::Reporter;

/// Changes that come in a burst share a report.
pub const GAP: Duration = Duration::from_millis(150);
/// Until the orchestrator says otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(200);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// A gateway that accepts the connection and then says nothing.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether the certificate is to be renewed; a year is left for it then.
const RENEWAL_LOOK: Duration = Duration::from_secs(6 * 3600);
/// How often a missing registration key is looked for.
const KEY_POLL: Duration = Duration::from_secs(1);

/// The link.
pub struct Session {
    /// Who we are.
    pub identity: IdentityFolder,
    /// Where a registration key may lie.
    pub key_file: PathBuf,
    /// Makes the reports.
    pub reporter: Arc<Reporter>,
    /// Gets each desired state.
    pub desired: watch::Sender<Option<DesiredState>>,
    /// Tells `status` how the link is.
    pub about: watch::Sender<About>,
}

impl Session {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let begin = Instant::now();
            let result = tokio::select! {
                () = stop.cancelled() => break,
                result = self.once() => result,
            };
            let connected = self.about.borrow().connected;
            if connected && begin.elapsed() > LONGEST_INTERVAL {
                failures = 0;
            }
            failures += 1;
            let problem = match &result {
                Ok(()) => "the orchestrator closed the session".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            let wait = if connected && failures == 1 {
                Duration::from_millis(250)
            } else {
                backoff::reconnect_delay(failures, backoff::random_unit())
            };
            tracing::warn!(
                problem,
                wait_ms = wait.as_millis() as u64,
                "no session to the orchestrator"
            );
            self.about.send_modify(|about| {
                about.connected = false;
                about.problem = problem;
            });
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn once(&self) -> anyhow::Result<()> {
        let enrolment = self.enrolment().await?;
        self.about
            .send_modify(|about| about.gateway.clone_from(&enrolment.gateway));
        let identity = self.identity.identity(&enrolment)?;
        let channel = tls::session_channel(&enrolment.gateway, &identity)?;
        let mut client = EngineGatewayClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (sender, receiver) = mpsc::channel::<EngineReport>(1);
        let mut changes = self.reporter.board().watch();
        changes.mark_unchanged();
        sender
            .send(self.reporter.report().await.context("look at this host")?)
            .await
            .context("send")?;
        let opening = client.session(ReceiverStream::new(receiver));
        let mut inbound = tokio::time::timeout(OPEN_LIMIT, opening)
            .await
            .with_context(|| format!("gateway {} does not answer", enrolment.gateway))?
            .with_context(|| format!("open a session at gateway {}", enrolment.gateway))?
            .into_inner();
        tracing::info!(
            gateway = enrolment.gateway,
            "session to the orchestrator is up"
        );
        self.about.send_modify(|about| {
            about.connected = true;
            about.problem.clear();
        });
        let mut interval = DEFAULT_INTERVAL;
        let mut last = Instant::now();
        let mut renewal = std::pin::pin!(self.keep_certificate(enrolment.clone(), client));
        loop {
            let due = tokio::select! {
                never = &mut renewal => match never {},
                message = inbound.message() => {
                    match message.with_context(|| format!("session at gateway {}", enrolment.gateway))? {
                        None => return Ok(()),
                        Some(state) => {
                            if state.report_interval_ms > 0 {
                                interval = Duration::from_millis(u64::from(state.report_interval_ms))
                                    .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
                            }
                            tracing::debug!(generation = state.generation, "desired state arrived");
                            self.desired.send_replace(Some(state));
                            continue;
                        }
                    }
                }
                changed = changes.changed() => {
                    changed.context("board is gone")?;
                    last + GAP
                }
                () = tokio::time::sleep_until(last + interval) => Instant::now(),
            };
            tokio::time::sleep_until(due).await;
            changes.mark_unchanged();
            last = Instant::now();
            match self.reporter.report().await {
                Ok(report) => match sender.try_send(report) {
                    Ok(()) => {}
                    // The one before is still on its way; the next round carries everything.
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        tokio::select! {
                            () = tokio::time::sleep(GAP) => changes.mark_changed(),
                            permit = sender.reserve() => { drop(permit); changes.mark_changed(); }
                        }
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => {
                        // The transport has gone; its error arrives on the other half.
                        return match inbound.message().await {
                            Ok(_) => Ok(()),
                            Err(status) => Err(status).with_context(|| {
                                format!("session at gateway {}", enrolment.gateway)
                            }),
                        };
                    }
                },
                Err(error) => {
                    tracing::warn!(error = ?error, "can't look at this host; the report is skipped")
                }
            }
        }
    }

    /// Renews the certificate in time, for as long as the session lasts. It counts from the next session on.
    async fn keep_certificate(
        &self,
        mut enrolment: Enrolment,
        mut client: EngineGatewayClient<Channel>,
    ) -> Infallible {
        loop {
            let now = time::OffsetDateTime::now_utc();
            let renewal = self.identity.renew(&enrolment, &mut client, now);
            match tokio::time::timeout(OPEN_LIMIT, renewal).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(renewed))) => {
                    tracing::info!("the engine's certificate was renewed");
                    enrolment = renewed;
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the engine's certificate was not renewed; it is tried again"
                    );
                }
                Err(_) => tracing::warn!(
                    "the gateway does not answer the renewal of the certificate; it is tried again"
                ),
            }
            tokio::time::sleep(RENEWAL_LOOK).await;
        }
    }

    /// A new registration key wins over an old enrolment: somebody has put it there on purpose.
    async fn enrolment(&self) -> anyhow::Result<Enrolment> {
        if self.key_file.exists() {
            let host = self.reporter.host().await.context("look at this host")?;
            match self.identity.enrol(&self.key_file, host).await {
                Ok(enrolment) => {
                    tracing::info!(
                        gateway = enrolment.gateway,
                        resource = enrolment.provider_arm_id,
                        "enrolled"
                    );
                    return Ok(enrolment);
                }
                Err(error) => match self.identity.enrolment()? {
                    Some(enrolment) => {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "the new registration key was not accepted; the old enrolment stays"
                        );
                        return Ok(enrolment);
                    }
                    None => return Err(error),
                },
            }
        }
        if let Some(enrolment) = self.identity.enrolment()? {
            return Ok(enrolment);
        }
        let until = Instant::now() + LONGEST_INTERVAL;
        self.about.send_modify(|about| {
            about.problem = format!(
                "waiting for a registration key in {}",
                self.key_file.display()
            )
        });
        while !self.key_file.exists() {
            if Instant::now() > until {
                bail!(
                    "not enrolled, and there is no registration key in {}",
                    self.key_file.display()
                );
            }
            tokio::time::sleep(KEY_POLL).await;
        }
        bail!(
            "a registration key has arrived in {}",
            self.key_file.display()
        )
    }
}
