//! `host_connection`: how a host is reached, checked while planning, and made into a channel once all of it is known.
//!
//! What is secret (private key, passphrase, password) is in the provider block or its environment variables: Terraform gives
//! write-only arguments to neither a refresh nor a destroy, and both must reach the host.

use std::time::Duration;

use host_deploy::{
    DeployError, DeployErrorKind, HostConnection, HostKeyTrust, SshConnection, SshCredentials,
};
use tf_provider::{Attribute, Diagnostics, Nesting, Object, Value};

use crate::Session;

const NAME: &str = "host_connection";
const FINGERPRINT: &str = "host_key_fingerprint";
const KNOWN_HOSTS: &str = "known_hosts_path";
const FIRST_USE: &str = "trust_on_first_use";
/// Every member but `type`.
const SSH_ONLY: [&str; 10] = [
    "host",
    "port",
    "user",
    "private_key_path",
    "agent",
    FINGERPRINT,
    KNOWN_HOSTS,
    FIRST_USE,
    "connect_timeout_in_seconds",
    "command_timeout_in_seconds",
];
const CONNECT_TIMEOUT: u64 = 30;
const COMMAND_TIMEOUT: u64 = 300;

pub(super) fn attribute() -> Attribute {
    let text = |words: &str| Attribute::string().optional().describe(words);
    let number = |range, words: String| {
        Attribute::number()
            .optional()
            .whole_in(range)
            .describe(words)
    };
    let members = [
        (
            "type",
            Attribute::string().required().requires_replace().describe(
                "Channel to the host. `local`: the machine that runs Terraform. `ssh`: a Linux host over SSH; everything else here is for it. Changing it makes a new host.",
            ),
        ),
        (
            "host",
            text("Name or address of the host. Changing it makes a new host.").requires_replace(),
        ),
        ("port", number(1..=65535, "TCP port. Default: 22.".to_owned())),
        (
            "user",
            text("User on the host. Default: `root`. Only root can make the engine a service of systemd; with anybody else it is a process that looks after itself."),
        ),
        (
            "private_key_path",
            text("File with the user's private key, on the machine that runs Terraform. A key itself, its passphrase and a password are given in the provider block."),
        ),
        (
            "agent",
            Attribute::bool().optional().describe("Whether to ask the agent of `SSH_AUTH_SOCK` for keys. Default: false."),
        ),
        (
            FINGERPRINT,
            text("SHA-256 fingerprint of the host's key, `SHA256:…`, as `ssh-keygen -lf` shows it at the host. Give exactly one of this, `known_hosts_path` and `trust_on_first_use`."),
        ),
        (
            KNOWN_HOSTS,
            text("File of known hosts, as OpenSSH keeps it. A host that is not in it is refused."),
        ),
        (
            FIRST_USE,
            Attribute::bool().optional().describe("Whether to trust the key that the host shows when it is created. It is kept as `host_key_fingerprint` of the resource and demanded from then on."),
        ),
        (
            "connect_timeout_in_seconds",
            number(1..=600, format!("For connecting and signing in. Default: {CONNECT_TIMEOUT}.")),
        ),
        (
            "command_timeout_in_seconds",
            number(10..=3600, format!("For each command on the host. Default: {COMMAND_TIMEOUT}.")),
        ),
    ];
    Attribute::nested(Nesting::Single, members)
        .required()
        .check(reachable)
        .describe("How the host is reached.")
}

/// Checked at the whole argument: Terraform shows the line of an argument, but not that of a member.
fn reachable(value: &Value) -> Result<(), String> {
    let Some(connection) = value.as_object() else {
        return Ok(());
    };
    let problems = problems(connection);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; it "))
    }
}

fn problems(connection: &Object) -> Vec<String> {
    let mut found = Vec::new();
    let given = |name: &str| !connection.is_null(name);
    match connection.str("type") {
        Some("local") => {
            let extra: Vec<&str> = SSH_ONLY.into_iter().filter(|name| given(name)).collect();
            if !extra.is_empty() {
                found.push(format!(
                    "has {} beside type = \"local\": these are for type = \"ssh\"",
                    extra.join(", ")
                ));
            }
        }
        Some("ssh") => {
            if !given("host") || connection.str("host") == Some("") {
                found.push("needs host, the name or address to connect to".to_owned());
            }
            let mut trust: Vec<&str> = [FINGERPRINT, KNOWN_HOSTS]
                .into_iter()
                .filter(|name| given(name))
                .collect();
            // What is not known yet may turn out to be false.
            let first_use = connection.bool(FIRST_USE) == Some(true);
            if first_use {
                trust.push(FIRST_USE);
            }
            let waits = connection.is_unknown(FIRST_USE);
            if trust.len() > 1 {
                found.push(format!(
                    "has {}: give exactly one of them",
                    trust.join(" and ")
                ));
            } else if trust.is_empty() && !waits {
                found.push(format!(
                    "says nothing of the host's key: give exactly one of {FINGERPRINT}, {KNOWN_HOSTS} and {FIRST_USE} = true"
                ));
            }
            if let Some(text) = connection.str(FINGERPRINT)
                && !is_fingerprint(text)
            {
                found.push(format!(
                    "has the {FINGERPRINT} {text:?}, which is none: it is \"SHA256:\" and 43 characters, as ssh-keygen -lf shows it"
                ));
            }
        }
        Some(other) => found.push(format!(
            "can't have the type {other:?}: use \"local\" or \"ssh\". Hosts with Windows are installed by hand, see the guide on them"
        )),
        None => {}
    }
    found
}

fn is_fingerprint(text: &str) -> bool {
    let Some(body) = text.strip_prefix("SHA256:") else {
        return false;
    };
    let body = body.trim_end_matches('=');
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    body.len() == 43 && body.bytes().all(is_base64)
}

/// Whether the host is another machine than the one that Terraform runs on.
pub(super) fn is_ssh(object: &Object) -> bool {
    let connection = object.object(NAME);
    connection.and_then(|connection| connection.str("type")) == Some("ssh")
}

/// Whether the host's key is taken for the right one without proof.
pub(super) fn trusts_first_use(object: &Object) -> bool {
    let connection = object.object(NAME);
    is_ssh(object)
        && object.str(FINGERPRINT).is_none()
        && connection.and_then(|connection| connection.bool(FIRST_USE)) == Some(true)
}

/// The channel to the host of this resource. With `trust_on_first_use`, the key that the resource remembers is demanded.
pub(super) fn channel(session: &Session, object: &Object) -> Result<HostConnection, Diagnostics> {
    let Some(connection) = object.object(NAME).filter(|_| is_ssh(object)) else {
        return Ok(HostConnection::Local);
    };
    // What was not known when it was planned.
    let problems = problems(connection);
    if !connection.is_wholly_known() || !problems.is_empty() {
        return Err(Diagnostics::error_at(
            NAME,
            "The host can't be reached like this",
            format!("The argument {NAME} {}.", problems.join("; it ")),
        ));
    }
    let seconds = |name: &str, usual| Duration::from_secs(connection.u64(name).unwrap_or(usual));
    let trust = if let Some(text) = connection.str(FINGERPRINT) {
        HostKeyTrust::Fingerprint(text.to_owned())
    } else if let Some(path) = connection.str(KNOWN_HOSTS) {
        HostKeyTrust::KnownHosts(path.into())
    } else if let Some(remembered) = object.str(FINGERPRINT) {
        HostKeyTrust::Fingerprint(remembered.to_owned())
    } else {
        HostKeyTrust::FirstUse
    };
    Ok(HostConnection::Ssh(Box::new(SshConnection {
        host: connection.string("host"),
        port: connection
            .u64("port")
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(22),
        user: connection.str("user").unwrap_or("root").to_owned(),
        credentials: SshCredentials {
            private_key: session.ssh.private_key.clone(),
            private_key_path: connection.str("private_key_path").map(Into::into),
            passphrase: session.ssh.passphrase.clone(),
            agent: connection.bool("agent") == Some(true),
            password: session.ssh.password.clone(),
        },
        trust,
        connect_timeout: seconds("connect_timeout_in_seconds", CONNECT_TIMEOUT),
        command_timeout: seconds("command_timeout_in_seconds", COMMAND_TIMEOUT),
    })))
}

/// A host that is down, or that isn't let in, is no reason to refuse a plan of everything else; what needs the host says so itself.
pub(super) fn can_wait(error: &DeployError) -> bool {
    matches!(
        error.kind(),
        DeployErrorKind::Unreachable
            | DeployErrorKind::Interrupted
            | DeployErrorKind::Untrusted
            | DeployErrorKind::AuthenticationFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh() -> Object {
        Object::new().with("type", "ssh").with("host", "hv1")
    }

    fn said(connection: &Object) -> String {
        reachable(&Value::Object(connection.clone()))
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn exactly_one_thing_makes_the_hosts_key_trusted() {
        let pin = format!("SHA256:{}", "a".repeat(43));
        let one = [
            ssh().with(FINGERPRINT, pin.as_str()),
            ssh().with(KNOWN_HOSTS, "/k"),
            ssh().with(FIRST_USE, true),
            ssh().with(KNOWN_HOSTS, "/k").with(FIRST_USE, false),
        ];
        for connection in one {
            assert_eq!(said(&connection), "");
        }
        assert!(said(&ssh()).contains("says nothing of the host's key"));
        assert!(said(&ssh().with(FIRST_USE, false)).contains("says nothing"));
        let both = ssh()
            .with(FINGERPRINT, pin.as_str())
            .with(KNOWN_HOSTS, "/k");
        assert!(said(&both).contains("host_key_fingerprint and known_hosts_path"));
        for wrong in ["", "MD5:aa:bb", "SHA256:short"] {
            assert!(said(&ssh().with(FINGERPRINT, wrong)).contains("which is none"));
        }
    }

    #[test]
    fn members_of_the_wrong_channel_a_missing_host_and_other_channels_are_refused() {
        assert_eq!(said(&Object::new().with("type", "local")), "");
        let local = Object::new().with("type", "local").with("user", "root");
        assert!(said(&local).contains("has user beside"));
        let bare = Object::new().with("type", "ssh").with(KNOWN_HOSTS, "/k");
        assert!(said(&bare).contains("needs host"));
        assert!(said(&Object::new().with("type", "winrm")).contains("\"winrm\""));
    }

    #[test]
    fn what_is_not_known_yet_is_not_judged() {
        let later = Object::new()
            .with("type", "ssh")
            .with("host", Value::unknown())
            .with(FINGERPRINT, Value::unknown());
        assert_eq!(said(&later), "");
        assert_eq!(said(&ssh().with(FIRST_USE, Value::unknown())), "");
        assert_eq!(said(&Object::new().with("type", Value::unknown())), "");
    }
}
