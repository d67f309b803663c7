//! Whether a host's key is the right one. Pure but for reading the file of known hosts.
//!
//! The file is OpenSSH's (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): names with wildcards and negation, hashed names,
//! `@revoked`. Lines of certificate authorities are passed over: a host with nothing else is unknown, and refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use russh::keys::ssh_key::{Algorithm, HashAlg, PublicKey};

use super::connection::{HostKeyTrust, SshConnection};
use crate::error::{DeployError, DeployErrorKind};

/// One line that is about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Counted from 1, as editors do.
    pub(crate) line: usize,
    pub(crate) revoked: bool,
    pub(crate) key: PublicKey,
}

/// What is expected of the host, read once before it is connected to.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    trust: HostKeyTrust,
    known: Vec<Known>,
    label: String,
    lookup: String,
}

impl Expected {
    pub(crate) fn of(connection: &SshConnection) -> Result<Self, DeployError> {
        // Names of hosts have no case.
        let lookup = match connection.port {
            22 => connection.host.clone(),
            port => format!("[{}]:{port}", connection.host),
        }
        .to_ascii_lowercase();
        let known = match &connection.trust {
            HostKeyTrust::KnownHosts(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| DeployError::io("reading the known hosts in", path, e))?;
                known_hosts(&text, &lookup)
            }
            _ => Vec::new(),
        };
        Ok(Expected {
            trust: connection.trust.clone(),
            known,
            label: connection.label(),
            lookup,
        })
    }

    /// Key algorithms to ask for, those that the host is known by first: else a host with several keys would show one that
    /// nothing is known of.
    pub(crate) fn order(&self, usual: &[Algorithm]) -> Vec<Algorithm> {
        let plain = |algorithm: &Algorithm| match algorithm {
            Algorithm::Rsa { .. } => Algorithm::Rsa { hash: None },
            other => other.clone(),
        };
        let known = |algorithm: &Algorithm| {
            self.known
                .iter()
                .any(|known| !known.revoked && plain(&known.key.algorithm()) == plain(algorithm))
        };
        // SHA-1 is no proof of anything.
        let usual = usual
            .iter()
            .filter(|one| !matches!(one, Algorithm::Rsa { hash: None }));
        let (mut first, rest): (Vec<_>, Vec<_>) = usual.cloned().partition(known);
        first.extend(rest);
        first
    }

    /// Accepts the key that the host shows, or says why not.
    pub(crate) fn judge(&self, key: &PublicKey) -> Result<(), DeployError> {
        let shown = fingerprint(key);
        let kind = key.algorithm();
        let refuse = |cause: String, next: String| {
            Err(DeployError::new(
                DeployErrorKind::Untrusted,
                "checking the key of",
                self.label.clone(),
                cause,
                next,
            ))
        };
        match &self.trust {
            HostKeyTrust::FirstUse => Ok(()),
            HostKeyTrust::Fingerprint(wanted) => {
                if trimmed(wanted) == trimmed(&shown) {
                    return Ok(());
                }
                refuse(
                    format!("it shows {shown} ({kind}), expected was {wanted}"),
                    "find out at the host's console which keys it has (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub); when \
                     the host was installed anew, give that fingerprint; else somebody may stand between"
                        .to_owned(),
                )
            }
            HostKeyTrust::KnownHosts(path) => {
                let file = path.display();
                let of = |known: &&Known| known.key.key_data() == key.key_data();
                if let Some(bad) = self.known.iter().filter(|k| k.revoked).find(of) {
                    return refuse(
                        format!(
                            "the key that it shows, {shown} ({kind}), is revoked by {file}, line {}",
                            bad.line
                        ),
                        "don't connect to it; find out why the key was revoked".to_owned(),
                    );
                }
                if self.known.iter().any(|k| of(&k)) {
                    return Ok(());
                }
                if let Some(other) = self.known.iter().find(|known| !known.revoked) {
                    return refuse(
                        format!(
                            "it shows {shown} ({kind}), but {file}, line {}, has {} ({}) for it",
                            other.line,
                            fingerprint(&other.key),
                            other.key.algorithm()
                        ),
                        format!(
                            "somebody may stand between; when the host was installed anew, remove that line \
                             (ssh-keygen -R '{}' -f '{file}') and add the host's new key",
                            self.lookup
                        ),
                    );
                }
                refuse(
                    format!(
                        "it shows {shown} ({kind}), and {file} has no line for {}",
                        self.lookup
                    ),
                    format!(
                        "compare the fingerprint at the host's console, then add its key: ssh-keyscan {} >> '{file}'",
                        match self
                            .lookup
                            .strip_prefix('[')
                            .and_then(|rest| rest.split_once("]:"))
                        {
                            Some((host, port)) => format!("-p {port} {host}"),
                            None => self.lookup.clone(),
                        }
                    ),
                )
            }
        }
    }
}

/// As `ssh-keygen -l` shows it.
pub(crate) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn trimmed(fingerprint: &str) -> &str {
    fingerprint.trim().trim_end_matches('=')
}

/// Lines about the host. Lines that can't be read are passed over, as OpenSSH does.
fn known_hosts(text: &str, lookup: &str) -> Vec<Known> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let Some(mut names) = words.next().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        let revoked = names == "@revoked";
        if names.starts_with('@') {
            if !revoked {
                continue;
            }
            names = words.next().unwrap_or_default();
        }
        let (Some(kind), Some(body)) = (words.next(), words.next()) else {
            continue;
        };
        if matches_names(names, lookup)
            && let Ok(key) = PublicKey::from_openssh(&format!("{kind} {body}"))
        {
            found.push(Known {
                line: index + 1,
                revoked,
                key,
            });
        }
    }
    found
}

fn matches_names(names: &str, lookup: &str) -> bool {
    let mut matched = false;
    for name in names.split(',') {
        if let Some(pattern) = name.strip_prefix('!') {
            if glob(pattern.to_ascii_lowercase().as_bytes(), lookup.as_bytes()) {
                return false;
            }
        } else if let Some(hashed) = name.strip_prefix("|1|") {
            matched |= hashed_name(hashed, lookup).unwrap_or(false);
        } else {
            matched |= glob(name.to_ascii_lowercase().as_bytes(), lookup.as_bytes());
        }
    }
    matched
}

/// `salt|hash`: HMAC-SHA1 of the name. It hides names and protects nothing.
fn hashed_name(hashed: &str, lookup: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let key = ring::hmac::Key::new(
        ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        &STANDARD.decode(salt).ok()?,
    );
    let hash = STANDARD.decode(hash).ok()?;
    Some(ring::hmac::verify(&key, lookup.as_bytes(), &hash).is_ok())
}

/// `*` and `?`, as in OpenSSH; all else stands for itself. In time proportional to both lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const OTHER: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    fn expected(text: &str, host: &str, port: u16) -> Expected {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known_hosts");
        std::fs::write(&path, text).unwrap();
        Expected::of(&SshConnection {
            host: host.into(),
            port,
            user: "root".into(),
            credentials: super::super::SshCredentials::default(),
            trust: HostKeyTrust::KnownHosts(path),
            connect_timeout: std::time::Duration::from_secs(1),
            command_timeout: std::time::Duration::from_secs(1),
        })
        .unwrap()
    }

    #[test]
    fn names_wildcards_ports_and_hashes_are_found_and_nothing_else() {
        for (names, host, port) in [
            ("hv1", "hv1", 22),
            ("HV1,10.0.0.1", "hv1", 22),
            ("hv?,!hv9", "HV1", 22),
            ("*.example.com", "a.b.example.com", 22),
            ("[hv1]:2222", "hv1", 2222),
            // From russh's own tests, made by OpenSSH.
            (
                "|1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|nuuC5vEqXlEZ/8BXQR7m619W6Ak=",
                "example.com",
                22,
            ),
        ] {
            let file = format!("# a comment\n\n{names} {ONE} me@here\n");
            let expected = expected(&file, host, port);
            expected.judge(&key(ONE)).unwrap();
            let error = expected.judge(&key(OTHER)).unwrap_err();
            assert_eq!(error.kind(), DeployErrorKind::Untrusted);
            let text = error.to_string();
            for part in ["line 3", &fingerprint(&key(ONE)), &fingerprint(&key(OTHER))] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
        for (names, host, port) in [
            ("hv10", "hv1", 22),
            ("hv1", "hv1", 2222),
            ("hv?,!HV1", "hv1", 22),
            ("|1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|AAAA", "example.com", 22),
            ("@cert-authority hv1", "hv1", 22),
        ] {
            let error = expected(&format!("{names} {ONE}\n"), host, port)
                .judge(&key(ONE))
                .unwrap_err();
            assert!(error.to_string().contains("no line for"), "{error}");
        }
    }

    #[test]
    fn a_revoked_key_is_refused_even_where_another_line_names_it() {
        let expected = expected(&format!("hv1 {ONE}\n@revoked * {ONE}\n"), "hv1", 22);
        let error = expected.judge(&key(ONE)).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_host_is_asked_for_the_kind_of_key_that_it_is_known_by() {
        let usual = [
            Algorithm::Rsa {
                hash: Some(HashAlg::Sha512),
            },
            Algorithm::Ed25519,
            Algorithm::Rsa { hash: None },
        ];
        let expected = expected(&format!("hv1 {ONE}\n"), "hv1", 22);
        assert_eq!(
            expected.order(&usual),
            [
                Algorithm::Ed25519,
                Algorithm::Rsa {
                    hash: Some(HashAlg::Sha512)
                }
            ]
        );
    }
}
