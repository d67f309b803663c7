//! A proxy that ends TLS on both sides and keeps every plain byte, so that a test can say what travelled.
//!
//! It can do so only because the test owns both ends: the orchestrator's CA key and the engine's identity lie in the lab.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use engine_protocol::Authority;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Where the proxy stands and as whom it speaks.
pub struct Sides {
    /// `host:port` of the real server.
    pub upstream: String,
    /// The CA that both ends trust.
    pub authority: Authority,
    /// Certificate and key files that the client would have shown; without the files none is shown.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Protocol offered and asked for, such as `h2`.
    pub alpn: &'static [u8],
}

/// A running proxy.
pub struct Recorder {
    address: String,
    streams: Streams,
    /// Dropped with the recorder, and every connection with it.
    _runtime: tokio::runtime::Runtime,
}

/// One buffer for each direction of each connection.
type Streams = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

// === impl Recorder ===

impl Recorder {
    /// Listens on a free port of the loopback.
    pub fn start(sides: Sides) -> Result<Self> {
        engine_protocol::tls::install_crypto();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?.to_string();
        let streams = Streams::default();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_side(&sides)?));
        let (sides, kept) = (Arc::new(sides), Arc::clone(&streams));
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, sides, kept) =
                    (acceptor.clone(), Arc::clone(&sides), Arc::clone(&kept));
                tokio::spawn(async move {
                    if let Err(error) = carry(acceptor, client, &sides, &kept).await {
                        eprintln!("recorder: {error:#}");
                    }
                });
            }
        });
        Ok(Self {
            address,
            streams,
            _runtime: runtime,
        })
    }

    /// `host:port` for the client.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Bytes recorded so far, in all.
    pub fn recorded(&self) -> usize {
        self.each(|bytes| bytes.len()).into_iter().sum()
    }

    /// True when one stream holds `needle`.
    pub fn holds(&self, needle: &[u8]) -> bool {
        self.each(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
            .contains(&true)
    }

    fn each<T>(&self, look: impl Fn(&[u8]) -> T) -> Vec<T> {
        let streams = self
            .streams
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        streams
            .iter()
            .map(|stream| {
                look(
                    &stream
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner),
                )
            })
            .collect()
    }
}

async fn carry(
    acceptor: tokio_rustls::TlsAcceptor,
    client: TcpStream,
    sides: &Sides,
    kept: &Streams,
) -> Result<()> {
    let client = acceptor
        .accept(client)
        .await
        .context("TLS with the client")?;
    let server = TcpStream::connect(&sides.upstream)
        .await
        .context("connect to the server")?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_side(sides)?));
    let server = connector
        .connect(ServerName::try_from("localhost")?, server)
        .await
        .context("TLS with the server")?;
    let (client_reads, client_writes) = tokio::io::split(client);
    let (server_reads, server_writes) = tokio::io::split(server);
    let there = copy(client_reads, server_writes, buffer(kept));
    let back = copy(server_reads, client_writes, buffer(kept));
    // Either side may end first and without a farewell; that is how processes die here.
    let _ends = tokio::join!(there, back);
    Ok(())
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    kept: Arc<Mutex<Vec<u8>>>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        let bytes = chunk.get(..length).unwrap_or_default();
        kept.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .extend_from_slice(bytes);
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}

fn buffer(kept: &Streams) -> Arc<Mutex<Vec<u8>>> {
    let buffer = Arc::default();
    kept.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .push(Arc::clone(&buffer));
    buffer
}

fn server_side(sides: &Sides) -> Result<rustls::ServerConfig> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = sides
        .authority
        .issue_server(&names, time::OffsetDateTime::now_utc())?;
    let chain = CertificateDer::pem_slice_iter(own.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![sides.alpn.to_vec()];
    Ok(config)
}

fn client_side(sides: &Sides) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        sides.authority.certificate_pem().as_bytes(),
    )?)?;
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let identity = sides
        .client_identity
        .as_ref()
        .filter(|(certificate, _)| certificate.exists());
    let mut config = match identity {
        Some((certificate, key)) => {
            let chain =
                CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![sides.alpn.to_vec()];
    Ok(config)
}
