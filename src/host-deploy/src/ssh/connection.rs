//! How a host is reached over SSH: address, credentials, and what makes its key trusted.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A text that is never shown: a private key, a passphrase, a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the user proves itself with. Tried in this order: keys, agent, password.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SshCredentials {
    /// A private key (OpenSSH, PEM, PKCS#8).
    pub private_key: Option<Secret>,
    /// File with a private key, on the machine this process runs on.
    pub private_key_path: Option<PathBuf>,
    /// Passphrase of the private keys.
    pub passphrase: Option<Secret>,
    /// Ask the agent of `SSH_AUTH_SOCK`.
    pub agent: bool,
    /// The user's password.
    pub password: Option<Secret>,
}

/// What makes a host's key the right one. There is no way to go without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKeyTrust {
    /// This fingerprint, as `ssh-keygen -l` shows it: `SHA256:…`.
    Fingerprint(String),
    /// A file as OpenSSH keeps it. A host that is not in it is refused.
    KnownHosts(PathBuf),
    /// Whatever the host shows. For the first connection only: keep the fingerprint that an inspection gives back, and
    /// demand it from then on.
    FirstUse,
}

/// A host behind SSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConnection {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User on the host. Only root can make a service of systemd; anybody else gets a detached process.
    pub user: String,
    /// How the user signs in.
    pub credentials: SshCredentials,
    /// What the host's key is checked against.
    pub trust: HostKeyTrust,
    /// For connecting, the exchange of keys and signing in together.
    pub connect_timeout: Duration,
    /// For one command or one request on the host.
    pub command_timeout: Duration,
}

impl SshConnection {
    /// Name in messages: `root@hv1:22`.
    pub(crate) fn label(&self) -> String {
        if self.host.contains(':') {
            format!("{}@[{}]:{}", self.user, self.host, self.port)
        } else {
            format!("{}@{}:{}", self.user, self.host, self.port)
        }
    }
}
