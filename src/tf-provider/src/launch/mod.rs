//! From process start to process end.
//!
//! ```text
//! cookie? ─no─► hint on stderr, exit 1          -debug: no cookie, no TLS, prints how to attach
//!   │ yes
//! listen ─► handshake line on stdout ─► serve ─► Shutdown, SIGTERM or orphaned ─► wait for calls ─► exit 0
//! ```
//!
//! SIGINT is ignored: a Ctrl-C in a terminal reaches this process too, and Terraform tells us by `StopProvider`.

mod connection;
pub(crate) mod lifecycle;
mod services;
mod socket;
mod tls;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server as Transport;

use self::lifecycle::Lifecycle;
use self::services::{Broker, Controller, Serving, Stdio};
use self::socket::Listener;
use crate::proto::health::health_server::HealthServer;
use crate::proto::plugin::{
    grpc_broker_server::GrpcBrokerServer, grpc_controller_server::GrpcControllerServer,
    grpc_stdio_server::GrpcStdioServer,
};
use crate::proto::tfplugin6::provider_server::ProviderServer;
use crate::provider::Provider;
use crate::server::Server;

const COOKIE_NAME: &str = "TF_PLUGIN_MAGIC_COOKIE";
const COOKIE: &str = "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2";
/// What servers of this protocol accept and send.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Terraform kills a provider 2 seconds after it asked it to end.
const END_LIMIT: Duration = Duration::from_millis(1500);
/// How often to look whether the parent is still there.
const PARENT_CHECK: Duration = Duration::from_secs(1);
/// How long calls may go on without a parent.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("cannot start the async runtime")]
    Runtime(#[source] std::io::Error),
    #[error("cannot listen")]
    Listen(#[source] std::io::Error),
    #[error("cannot watch signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot write the handshake")]
    Handshake(#[source] std::io::Error),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("cannot serve")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves a provider until Terraform ends it; to be called from `main`.
///
/// `address` is the provider's source address with its host, for example `registry.terraform.io/acme/example`.
/// Started by a person it explains itself and exits with 1; started with `-debug` it prints how to attach Terraform.
pub fn run<P: Provider>(provider: P, address: &str) -> ExitCode {
    let debug = std::env::args()
        .skip(1)
        .any(|argument| argument == "-debug" || argument == "--debug");
    if !debug && std::env::var(COOKIE_NAME).as_deref() != Ok(COOKIE) {
        eprintln!(
            "This is a Terraform provider ({address}). It is started by Terraform, not by hand.\n\
             Put it where `terraform init` finds it, or start it with -debug to attach a debugger."
        );
        return ExitCode::FAILURE;
    }
    install_panic_hook();
    let mode = if debug { Mode::Attached } else { Mode::Child };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime.map_err(LaunchError::Runtime).and_then(|runtime| {
        let outcome = runtime.block_on(serve(provider, address, mode));
        // Handlers that still run must not hold the process: Terraform waits for it.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("[ERROR] {address}: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Who decides about the life of the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Terraform, our parent.
    Child,
    /// A person; any number of Terraforms attach.
    Attached,
}

/// Terraform prints stderr lines from `panic: ` on as the crash of the provider.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("panic without a text");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::force_capture();
        eprintln!("panic: {text}\nat {place}\n{backtrace}");
    }));
}

async fn serve<P: Provider>(provider: P, address: &str, mode: Mode) -> Result<(), LaunchError> {
    let parent = parent_id();
    let signals = signals::Signals::new(mode == Mode::Attached).map_err(LaunchError::Signals)?;
    let client_certificate = std::env::var("PLUGIN_CLIENT_CERT")
        .ok()
        .filter(|pem| mode == Mode::Child && !pem.is_empty());
    let (acceptor, certificate) = match client_certificate {
        None => (None, String::new()),
        Some(pem) => {
            let (config, der) = tls::server_config(&pem)?;
            (
                Some(TlsAcceptor::from(Arc::new(config))),
                STANDARD_NO_PAD.encode(der),
            )
        }
    };
    let listener = Listener::bind().map_err(LaunchError::Listen)?;
    let (network, path) = listener.address();
    let _remains = listener.remains();
    let lifecycle = Lifecycle::new();
    let connections = connection::accept::<P::Client>(listener, acceptor, lifecycle.clone());

    let line = match mode {
        Mode::Child => format!("1|6|{network}|{path}|grpc|{certificate}"),
        Mode::Attached => attach_hint(address, network, &path),
    };
    say(&line).map_err(LaunchError::Handshake)?;

    let provider = ProviderServer::new(Server::new(provider, lifecycle.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut transport = Transport::builder()
        .add_service(provider)
        .add_service(GrpcStdioServer::new(Stdio))
        .add_service(GrpcBrokerServer::new(Broker))
        .add_service(HealthServer::new(Serving));
    if mode == Mode::Child {
        transport = transport.add_service(GrpcControllerServer::new(Controller(lifecycle.clone())));
    }
    tokio::select! {
        outcome = transport.serve_with_incoming(connections) => outcome.map_err(LaunchError::from),
        () = end(&lifecycle, signals, parent, mode) => Ok(()),
    }
}

/// Resolves when the process should end, after running calls have had their time.
async fn end(
    lifecycle: &Lifecycle,
    mut signals: signals::Signals,
    parent: Option<u32>,
    mode: Mode,
) {
    let limit = tokio::select! {
        () = lifecycle.shutdown_requested() => END_LIMIT,
        () = signals.asked_to_end() => END_LIMIT,
        () = orphaned(parent), if mode == Mode::Child => ORPHAN_LIMIT,
    };
    // Whatever still runs after that is lost; Terraform would kill the process anyway.
    let _ = tokio::time::timeout(limit, lifecycle.idle()).await;
}

async fn orphaned(parent: Option<u32>) {
    loop {
        tokio::time::sleep(PARENT_CHECK).await;
        if parent_id() != parent {
            tracing::warn!("Terraform has gone, ending");
            return;
        }
    }
}

#[cfg(unix)]
fn parent_id() -> Option<u32> {
    Some(std::os::unix::process::parent_id())
}

#[cfg(not(unix))]
fn parent_id() -> Option<u32> {
    None
}

/// What to export so that Terraform uses this process.
fn attach_hint(address: &str, network: &str, path: &str) -> String {
    // `Test` must be true: without it Terraform takes the protocol version for 5 and fails.
    let attach = serde_json::json!({
        address: {
            "Protocol": "grpc",
            "ProtocolVersion": 6,
            "Pid": std::process::id(),
            "Test": true,
            "Addr": { "Network": network, "String": path },
        }
    });
    format!(
        "Provider started. To attach Terraform, set this in its environment:\n\n\tTF_REATTACH_PROVIDERS='{attach}'\n"
    )
}

/// Writes to stdout, which carries nothing else.
fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    // In one piece: a reader may close its end as soon as it has what it wants.
    stdout.write_all(format!("{line}\n").as_bytes())?;
    stdout.flush()
}

#[cfg(unix)]
mod signals {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// Watches SIGTERM, and takes SIGINT away from its deadly default.
    pub(super) struct Signals {
        interrupt: Signal,
        terminate: Signal,
        interrupt_ends: bool,
    }

    impl Signals {
        pub(super) fn new(interrupt_ends: bool) -> std::io::Result<Self> {
            let interrupt = signal(SignalKind::interrupt())?;
            let terminate = signal(SignalKind::terminate())?;
            Ok(Self {
                interrupt,
                terminate,
                interrupt_ends,
            })
        }

        pub(super) async fn asked_to_end(&mut self) {
            loop {
                tokio::select! {
                    _ = self.terminate.recv() => return,
                    _ = self.interrupt.recv() => {
                        if self.interrupt_ends {
                            return;
                        }
                        tracing::debug!("ignored an interrupt; Terraform says when to stop");
                    }
                }
            }
        }
    }
}

#[cfg(not(unix))]
mod signals {
    /// Ctrl-C reaches the whole console: ignored unless a person runs the server.
    pub(super) struct Signals {
        interrupt_ends: bool,
    }

    impl Signals {
        pub(super) fn new(interrupt_ends: bool) -> std::io::Result<Self> {
            Ok(Self { interrupt_ends })
        }

        pub(super) async fn asked_to_end(&mut self) {
            loop {
                if tokio::signal::ctrl_c().await.is_err() {
                    return std::future::pending().await;
                }
                if self.interrupt_ends {
                    return;
                }
            }
        }
    }
}
