//! One TLS stream over the loopback device: what encrypting a link costs on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine_protocol::Authority;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Figure, Unit, noise};
use crate::task::spawn_named;

const PIECE: usize = 256 << 10;

/// Sends for `time`, and counts what arrived.
pub(super) async fn tls(time: Duration) -> anyhow::Result<Vec<Figure>> {
    let now = time::OffsetDateTime::now_utc();
    let authority = Authority::generate("bench", now).context("make a certificate authority")?;
    let name = "localhost";
    let pair = authority
        .issue_server(&[name.to_owned()], now)
        .context("make a certificate")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(
                pair.certificate_pem.as_bytes(),
            )?],
            PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())?,
        )?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        authority.certificate_pem().as_bytes(),
    )?)?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();

    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("listen on the loopback device")?;
    let address = listener.local_addr()?;
    let begin = Instant::now();
    let receiver = spawn_named("receive", async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
        let mut buffer = vec![0; PIECE];
        let mut received = 0u64;
        loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok::<u64, std::io::Error>(received),
                count => received += count as u64,
            }
        }
    });
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(client))
        .connect(ServerName::try_from(name)?, stream)
        .await
        .context("shake hands")?;
    let data = noise(9, PIECE);
    while begin.elapsed() < time {
        stream.write_all(&data).await.context("send")?;
    }
    stream.shutdown().await.context("end the stream")?;
    let received = receiver
        .await
        .context("receive")?
        .context("the receiver panicked")?
        .context("receive")?;
    Ok(vec![Figure {
        name: "TLS over loopback (both ends)".to_owned(),
        per_second: received as f64 / begin.elapsed().as_secs_f64(),
        unit: Unit::Bytes,
    }])
}
