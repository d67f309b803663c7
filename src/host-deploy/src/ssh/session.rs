//! One connection to a host: trusted, signed in, with commands and SFTP over it. Everything has a limit of time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::agent::client::AgentClient;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, decode_secret_key};
use russh::{Channel, ChannelMsg, Disconnect, MethodKind, Preferred};
use russh_sftp::client::SftpSession;

use super::connection::SshConnection;
use super::shell;
use super::trust::{Expected, fingerprint};
use crate::error::{DeployError, DeployErrorKind};

/// The line that the user's login shell gets, whichever shell that is. Everything else goes over standard input: login
/// shells quote differently, and some servers cut long lines without a word.
const SHELL: &str = "/bin/sh -s";
/// How much of a command's output is kept.
const MOST_OUTPUT: usize = 4 << 20;
/// After a command's end, for output that is still on its way. Some servers never say that there is no more.
const DRAIN: Duration = Duration::from_secs(5);
/// A dead connection is noticed after three of these.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How a command on the host has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: u32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

pub(crate) struct SshSession {
    handle: Handle<Client>,
    label: String,
    limit: Duration,
    fingerprint: String,
}

/// What the library asks while it connects.
pub(crate) struct Client {
    expected: Expected,
    shown: Arc<Mutex<String>>,
}

/// Either the library's trouble or our own refusal.
#[derive(Debug)]
pub(crate) enum ClientError {
    Library(russh::Error),
    Refused(DeployError),
}

impl From<russh::Error> for ClientError {
    fn from(error: russh::Error) -> Self {
        ClientError::Library(error)
    }
}

impl client::Handler for Client {
    type Error = ClientError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            // None was asked for: see `Preferred::host_key_certificates`.
            return Ok(false);
        };
        self.expected.judge(key).map_err(ClientError::Refused)?;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint(key);
        Ok(true)
    }
}

impl SshSession {
    /// Connects, checks the host's key, signs in.
    pub(crate) async fn open(connection: &SshConnection) -> Result<Self, DeployError> {
        let label = connection.label();
        let limit = connection.connect_timeout;
        match tokio::time::timeout(limit, Self::connect(connection)).await {
            Ok(result) => result,
            Err(_) => Err(DeployError::new(
                DeployErrorKind::Unreachable,
                "connecting to",
                label,
                format!("no connection within {} seconds", limit.as_secs()),
                "check that the host is on, that its SSH server runs, and that firewalls let the port through",
            )),
        }
    }

    async fn connect(connection: &SshConnection) -> Result<Self, DeployError> {
        let label = connection.label();
        let expected = Expected::of(connection)?;
        // Before anything is sent: a key that can't be read is no matter of the host.
        let keys = private_keys(connection)?;
        let order = expected.order(&Preferred::DEFAULT.key);
        let config = client::Config {
            preferred: Preferred {
                key: order.into(),
                ..Preferred::DEFAULT
            },
            keepalive_interval: Some(KEEPALIVE),
            nodelay: true,
            ..client::Config::default()
        };
        let shown = Arc::new(Mutex::new(String::new()));
        let client = Client {
            expected,
            shown: Arc::clone(&shown),
        };
        let address = (connection.host.as_str(), connection.port);
        let handle = client::connect(Arc::new(config), address, client).await;
        let mut handle = match handle {
            Ok(handle) => handle,
            Err(ClientError::Refused(error)) => return Err(error),
            Err(ClientError::Library(error)) => {
                return Err(DeployError::new(
                    DeployErrorKind::Unreachable,
                    "connecting to",
                    label,
                    error.to_string(),
                    "check that the host is on, that its SSH server runs, and that host and port are right",
                ));
            }
        };
        sign_in(&mut handle, connection, keys).await?;
        let fingerprint = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tracing::debug!(host = label, fingerprint, "signed in over SSH");
        Ok(SshSession {
            handle,
            label,
            limit: connection.command_timeout,
            fingerprint,
        })
    }

    /// Host and user, for messages.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// For one command.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Fingerprint of the key that the host has shown.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Says good-bye. What is still open on the host ends with the connection anyway.
    pub(crate) async fn close(&self) {
        let _ = self
            .handle
            .disconnect(Disconnect::ByApplication, "done", "en")
            .await;
    }

    /// The connection is gone or does not obey.
    pub(crate) fn lost(&self, step: &str, cause: impl std::fmt::Display) -> DeployError {
        DeployError::new(
            DeployErrorKind::Interrupted,
            step,
            self.label.clone(),
            format!("the connection was lost ({cause})"),
            "check the network, then run it again: it goes on where it stopped",
        )
    }

    async fn within<T>(
        &self,
        step: &str,
        work: impl Future<Output = Result<T, DeployError>>,
    ) -> Result<T, DeployError> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(result) => result,
            Err(_) => Err(DeployError::new(
                DeployErrorKind::TimedOut,
                step,
                self.label.clone(),
                format!("it did not end within {} seconds", self.limit.as_secs()),
                "look at the load of the host, or raise command_timeout, then run it again",
            )),
        }
    }

    /// Runs a script of ours with these arguments to its end.
    pub(crate) async fn run(
        &self,
        step: &str,
        script: &str,
        arguments: &[&str],
    ) -> Result<Ended, DeployError> {
        let input = shell::program(script, arguments)?;
        self.within(step, async {
            let mut channel = self.exec(step).await?;
            let lost = |error: russh::Error| self.lost(step, error);
            channel.data(input.as_bytes()).await.map_err(lost)?;
            channel.eof().await.map_err(lost)?;
            self.collect(step, &mut channel).await
        })
        .await
    }

    async fn exec(&self, step: &str) -> Result<Channel<client::Msg>, DeployError> {
        let lost = |error: russh::Error| self.lost(step, error);
        let channel = self.handle.channel_open_session().await.map_err(lost)?;
        channel.exec(true, SHELL).await.map_err(lost)?;
        Ok(channel)
    }

    async fn collect(
        &self,
        step: &str,
        channel: &mut Channel<client::Msg>,
    ) -> Result<Ended, DeployError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut code = None;
        loop {
            let next = channel.wait();
            let message = match code {
                None => next.await,
                Some(_) => tokio::time::timeout(DRAIN, next).await.unwrap_or(None),
            };
            match message {
                Some(ChannelMsg::Data { data }) => keep(&mut out, &data),
                Some(ChannelMsg::ExtendedData { data, .. }) => keep(&mut err, &data),
                Some(ChannelMsg::ExitStatus { exit_status }) => code = Some(exit_status),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    keep(
                        &mut err,
                        format!("ended by signal {signal_name:?}").as_bytes(),
                    );
                    code = Some(128);
                }
                Some(ChannelMsg::Failure) => {
                    return Err(DeployError::new(
                        DeployErrorKind::Unsupported,
                        step,
                        self.label.clone(),
                        "its SSH server does not run commands",
                        "let the user run commands (no ForceCommand, no internal-sftp only)",
                    ));
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        let Some(code) = code else {
            return Err(self.lost(step, "the command's end was not heard of"));
        };
        if out.len() >= MOST_OUTPUT {
            // What is missing must not look as if it were not there.
            return Err(DeployError::new(
                DeployErrorKind::Other,
                step,
                self.label.clone(),
                format!("the host answers with more than {} MiB", MOST_OUTPUT >> 20),
                "look what fills the engine's folders on the host, then run it again",
            ));
        }
        let out = shell::of_script(&out).unwrap_or_default().to_vec();
        Ok(Ended {
            code,
            out,
            err: String::from_utf8_lossy(&err).trim().to_owned(),
        })
    }

    /// Begins a script that goes on until the returned channel is closed, and waits for its first line.
    pub(crate) async fn hold(
        &self,
        step: &str,
        script: &str,
        arguments: &[&str],
    ) -> Result<Result<Channel<client::Msg>, Ended>, DeployError> {
        let input = shell::holding_program(script, arguments)?;
        self.within(step, async {
            let mut channel = self.exec(step).await?;
            let lost = |error: russh::Error| self.lost(step, error);
            channel.data(input.as_bytes()).await.map_err(lost)?;
            let (mut out, mut err) = (Vec::new(), Vec::new());
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Data { data }) => {
                        keep(&mut out, &data);
                        if shell::of_script(&out).is_some_and(|said| said.contains(&b'\n')) {
                            return Ok(Ok(channel));
                        }
                    }
                    Some(ChannelMsg::ExtendedData { data, .. }) => keep(&mut err, &data),
                    Some(ChannelMsg::ExitStatus { exit_status }) => {
                        return Ok(Err(Ended {
                            code: exit_status,
                            out: Vec::new(),
                            err: String::from_utf8_lossy(&err).trim().to_owned(),
                        }));
                    }
                    Some(ChannelMsg::Close) | None => {
                        return Err(self.lost(step, "it was closed"));
                    }
                    Some(_) => {}
                }
            }
        })
        .await
    }

    /// Files of the host.
    pub(crate) async fn sftp(&self) -> Result<SftpSession, DeployError> {
        let step = "opening SFTP to";
        self.within(step, async {
            let channel = self
                .handle
                .channel_open_session()
                .await
                .map_err(|error| self.lost(step, error))?;
            let refused = |cause: String| {
                DeployError::new(
                    DeployErrorKind::Unsupported,
                    step,
                    self.label.clone(),
                    cause,
                    "switch on the subsystem sftp in the host's sshd_config (package openssh-sftp-server)",
                )
            };
            channel
                .request_subsystem(true, "sftp")
                .await
                .map_err(|error| refused(error.to_string()))?;
            let config = russh_sftp::client::Config {
                request_timeout_secs: self.limit.as_secs().max(10),
                ..russh_sftp::client::Config::default()
            };
            SftpSession::new_with_config(channel.into_stream(), config)
                .await
                .map_err(|error| refused(error.to_string()))
        })
        .await
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }
}

fn keep(kept: &mut Vec<u8>, more: &[u8]) {
    let room = MOST_OUTPUT.saturating_sub(kept.len());
    kept.extend_from_slice(&more[..more.len().min(room)]);
}

fn private_keys(connection: &SshConnection) -> Result<Vec<PrivateKey>, DeployError> {
    let credentials = &connection.credentials;
    let passphrase = credentials.passphrase.as_ref().map(super::Secret::expose);
    // Neither the key nor the passphrase is part of the library's texts.
    let unfit = |object: String| {
        move |error: russh::keys::Error| {
            let next = match error {
                russh::keys::Error::KeyIsEncrypted => "give its passphrase",
                _ => "give an unencrypted key of OpenSSH, PEM or PKCS#8, or the right passphrase",
            };
            DeployError::new(
                DeployErrorKind::AuthenticationFailed,
                "reading the private key",
                object,
                error.to_string(),
                next,
            )
        }
    };
    let mut keys = Vec::new();
    if let Some(text) = &credentials.private_key {
        let key = decode_secret_key(text.expose(), passphrase);
        keys.push(key.map_err(unfit("in private_key".to_owned()))?);
    }
    if let Some(path) = &credentials.private_key_path {
        let text = std::fs::read_to_string(path)
            .map_err(|e| DeployError::io("reading the private key", path, e))?;
        let key = decode_secret_key(&text, passphrase);
        keys.push(key.map_err(unfit(path.display().to_string()))?);
    }
    Ok(keys)
}

async fn sign_in(
    handle: &mut Handle<Client>,
    connection: &SshConnection,
    keys: Vec<PrivateKey>,
) -> Result<(), DeployError> {
    let label = connection.label();
    let user = connection.user.as_str();
    let broken = |error: &dyn std::fmt::Display| {
        DeployError::new(
            DeployErrorKind::Unreachable,
            "signing in to",
            label.clone(),
            error.to_string(),
            "check the host's SSH server and its log",
        )
    };
    let mut tried = Vec::new();
    let mut accepted: Vec<MethodKind> = Vec::new();
    let hash = match handle.best_supported_rsa_hash().await {
        Ok(hash) => hash.flatten(),
        Err(error) => return Err(broken(&error)),
    };
    for key in keys {
        tried.push(format!("the private key {}", fingerprint(key.public_key())));
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let answer = handle.authenticate_publickey(user, key).await;
        if is_in(answer.map_err(|e| broken(&e))?, &mut accepted) {
            return Ok(());
        }
    }
    if connection.credentials.agent {
        let no_agent = |error: russh::keys::Error| {
            DeployError::new(
                DeployErrorKind::AuthenticationFailed,
                "asking the SSH agent for",
                label.clone(),
                error.to_string(),
                "start an agent, set SSH_AUTH_SOCK and add the key with ssh-add",
            )
        };
        let mut agent = AgentClient::connect_env().await.map_err(no_agent)?;
        let identities = agent.request_identities().await.map_err(no_agent)?;
        tried.push(format!("{} keys of the agent", identities.len()));
        for identity in identities {
            let key = identity.public_key().into_owned();
            let hash = hash.filter(|_| key.algorithm().is_rsa());
            let answer = handle
                .authenticate_publickey_with(user, key, hash, &mut agent)
                .await;
            if is_in(answer.map_err(|e| broken(&e))?, &mut accepted) {
                return Ok(());
            }
        }
    }
    if let Some(password) = &connection.credentials.password {
        tried.push("the password".to_owned());
        let answer = handle
            .authenticate_password(user, password.expose())
            .await
            .map_err(|e| broken(&e))?;
        if is_in(answer, &mut accepted) {
            return Ok(());
        }
        if accepted.contains(&MethodKind::KeyboardInteractive)
            && answers(handle, user, password.expose())
                .await
                .map_err(|e| broken(&e))?
        {
            return Ok(());
        }
    }
    let tried = match tried.is_empty() {
        true => "nothing to sign in with was given".to_owned(),
        false => format!("tried {}", tried.join(", ")),
    };
    let accepted: Vec<&str> = accepted.iter().map(Into::into).collect();
    let accepted = match accepted.is_empty() {
        true => String::new(),
        false => format!("; the host takes {}", accepted.join(", ")),
    };
    Err(DeployError::new(
        DeployErrorKind::AuthenticationFailed,
        "signing in to",
        label,
        format!("the user was refused: {tried}{accepted}"),
        "check user and key or password; the key's public half must be in the user's authorized_keys on the host",
    ))
}

/// Whether that was it; else what the host would still take.
fn is_in(answer: AuthResult, accepted: &mut Vec<MethodKind>) -> bool {
    match answer {
        AuthResult::Success => true,
        AuthResult::Failure {
            remaining_methods, ..
        } => {
            *accepted = remaining_methods.to_vec();
            false
        }
    }
}

/// Hosts with PAM may ask for the password this way only.
async fn answers(
    handle: &mut Handle<Client>,
    user: &str,
    password: &str,
) -> Result<bool, russh::Error> {
    let mut answer = handle
        .authenticate_keyboard_interactive_start(user, None)
        .await?;
    // A server that goes on asking gets no more than this.
    for _ in 0..5 {
        match answer {
            KeyboardInteractiveAuthResponse::Success => return Ok(true),
            KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                // Only to what is not shown: anything else is not a question for the password.
                let replies = prompts
                    .iter()
                    .map(|prompt| match prompt.echo {
                        false => password.to_owned(),
                        true => String::new(),
                    })
                    .collect();
                answer = handle
                    .authenticate_keyboard_interactive_respond(replies)
                    .await?;
            }
        }
    }
    Ok(false)
}
