//! The HTTPS server: own accept loop, HTTP/1.1 and HTTP/2, graceful stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::entry;
use crate::app::App;

/// A peer that doesn't finish its handshake in time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// HTTP/1 headers must be complete after so long (more than clients keep idle connections), an idle HTTP/2 peer is asked whether it lives.
const IDLE: Duration = Duration::from_secs(120);
/// Requests that are running when we stop get so long.
const GRACE: Duration = Duration::from_secs(5);

/// TLS with our certificate, no client certificates.
///
/// # Errors
/// When the certificate or key can't be used.
pub fn tls(certificate: &engine_protocol::authority::KeyedCertificate) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(certificate.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("reading the server certificate")?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes())
        .context("reading the server key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("taking up the server certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `stop`.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    tls: TlsAcceptor,
    stop: CancellationToken,
) {
    let router: Router = Router::new().fallback(entry::handle).with_state(app);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed soon.
                debug!(error = &error as &dyn std::error::Error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, watcher) = (tls.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    return debug!(
                        error = &error as &dyn std::error::Error,
                        "TLS handshake failed"
                    );
                }
                Err(_) => return debug!("TLS handshake took too long"),
            };
            let mut builder = Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE);
            builder
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(IDLE)
                .keep_alive_timeout(HANDSHAKE);
            let connection = builder
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
                .into_owned();
            if let Err(error) = watcher.watch(connection).await {
                debug!(error = %error, "connection broke");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown())
        .await
        .is_err()
    {
        debug!("requests were still running when the server stopped");
    }
}
