//! Accepted connections: the stream below gRPC, with the session that belongs to it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::lifecycle::{Lifecycle, Running};
use super::socket::{Listener, RawStream};
use crate::server::Session;

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// One connection, encrypted or plain.
pub(crate) struct Connection<C> {
    stream: Pin<Box<dyn Duplex>>,
    session: Arc<Session<C>>,
    _open: Running,
}

impl<C: Send + Sync + 'static> Connected for Connection<C> {
    type ConnectInfo = Arc<Session<C>>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.session)
    }
}

impl<C> AsyncRead for Connection<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl<C> AsyncWrite for Connection<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

/// Accepts connections, with TLS where an acceptor is given. A refused handshake costs nobody else anything.
pub(crate) fn accept<C: Send + Sync + 'static>(
    listener: Listener,
    tls: Option<TlsAcceptor>,
    lifecycle: Lifecycle,
) -> impl Stream<Item = io::Result<Connection<C>>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely: let others close theirs.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (sender, tls, lifecycle) = (sender.clone(), tls.clone(), lifecycle.clone());
            tokio::spawn(async move {
                if let Some(stream) = secure(stream, tls).await {
                    let connection = Connection {
                        stream,
                        session: Arc::default(),
                        _open: lifecycle.connection(),
                    };
                    // The server only stops taking connections when the process ends.
                    let _ = sender.send(Ok(connection)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn secure(stream: RawStream, tls: Option<TlsAcceptor>) -> Option<Pin<Box<dyn Duplex>>> {
    let Some(tls) = tls else {
        return Some(Box::pin(stream));
    };
    match tls.accept(stream).await {
        Ok(stream) => Some(Box::pin(stream)),
        Err(error) => {
            tracing::warn!(%error, "refused a connection without the right certificate");
            None
        }
    }
}
