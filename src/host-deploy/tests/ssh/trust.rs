//! Who the host is, and who we are: nothing is trusted silently, and every refusal says what to do.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use host_deploy::ssh::SshDeployer;
use host_deploy::{
    DeployError, DeployErrorKind, Deployer, HostKeyTrust, Secret, SshConnection, SshCredentials,
};

use super::Lab;
use super::sshd::keygen;

async fn refused(lab: &Lab, connection: SshConnection) -> DeployError {
    SshDeployer::new(connection)
        .inspect(&lab.deployment)
        .await
        .unwrap_err()
}

async fn accepted(lab: &Lab, connection: SshConnection) {
    let seen = SshDeployer::new(connection).inspect(&lab.deployment).await;
    assert_eq!(
        seen.unwrap().host_key_fingerprint,
        Some(lab.server.fingerprint())
    );
}

#[tokio::test]
async fn a_host_with_an_unknown_or_another_key_is_refused_with_file_line_and_fingerprint() {
    let mut lab = Lab::new();
    let connection = lab.server.connection();
    accepted(&lab, connection.clone()).await;

    let wrong = SshConnection {
        trust: HostKeyTrust::Fingerprint("SHA256:AAAA".into()),
        ..connection.clone()
    };
    let error = refused(&lab, wrong).await;
    assert_eq!(error.kind(), DeployErrorKind::Untrusted);
    assert!(
        error.to_string().contains(&lab.server.fingerprint()),
        "{error}"
    );

    let known = lab.server.known_hosts();
    let by_file = |path: PathBuf| SshConnection {
        trust: HostKeyTrust::KnownHosts(path),
        ..connection.clone()
    };
    accepted(&lab, by_file(known.clone())).await;
    keygen(&["-q", "-H", "-f", known.to_str().unwrap()]);
    assert!(
        !fs::read_to_string(&known).unwrap().contains("127.0.0.1"),
        "names are hashed"
    );
    accepted(&lab, by_file(known.clone())).await;

    let empty = lab.folder.path().join("nobody");
    fs::write(&empty, "").unwrap();
    let error = refused(&lab, by_file(empty)).await;
    assert_eq!(error.kind(), DeployErrorKind::Untrusted);
    let text = format!("{error}; {}", error.next_step());
    let port = lab.server.port.to_string();
    for part in [
        "nobody has no line for [127.0.0.1]:",
        &lab.server.fingerprint(),
        "ssh-keyscan -p",
        &port,
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let error = refused(&lab, by_file("/nowhere/known_hosts".into())).await;
    assert_eq!(error.kind(), DeployErrorKind::Missing);

    let before = lab.server.fingerprint();
    lab.server = lab.server.with_new_host_key();
    let error = refused(&lab, by_file(known.clone())).await;
    assert_eq!(error.kind(), DeployErrorKind::Untrusted);
    let text = format!("{error}; {}", error.next_step());
    for part in [
        "known_hosts, line 2",
        &before,
        &lab.server.fingerprint(),
        "ssh-keygen -R",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let error = refused(&lab, connection.clone()).await;
    assert!(error.to_string().contains(&before), "{error}");
    assert!(
        !lab.deployment.settings.data_folder.exists(),
        "nothing was done there"
    );
    let first = SshConnection {
        trust: HostKeyTrust::FirstUse,
        ..connection
    };
    accepted(&lab, first).await;
}

#[tokio::test]
async fn keys_of_all_kinds_sign_in_and_wrong_ones_are_refused_without_showing_a_secret() {
    let lab = Lab::new();
    let connection = lab.server.connection();
    let with = |credentials: SshCredentials| SshConnection {
        credentials,
        ..connection.clone()
    };
    let file = |name: &str| Some(lab.server.folder.join(name));
    let text = |name: &str| {
        Some(Secret::new(
            fs::read_to_string(file(name).unwrap()).unwrap(),
        ))
    };
    let none = SshCredentials::default;
    let passphrase = || Some(Secret::new("open sesame"));

    accepted(
        &lab,
        with(SshCredentials {
            private_key_path: file("rsa"),
            ..none()
        }),
    )
    .await;
    accepted(
        &lab,
        with(SshCredentials {
            private_key_path: file("user"),
            passphrase: passphrase(),
            ..none()
        }),
    )
    .await;
    accepted(
        &lab,
        with(SshCredentials {
            private_key: text("user"),
            passphrase: passphrase(),
            ..none()
        }),
    )
    .await;

    for (credentials, said) in [
        (none(), "nothing to sign in with"),
        (
            SshCredentials {
                private_key_path: file("stranger"),
                ..none()
            },
            "the private key SHA256:",
        ),
        (
            SshCredentials {
                password: Some(Secret::new("hunter2")),
                ..none()
            },
            "the password",
        ),
        (
            SshCredentials {
                private_key_path: file("user"),
                ..none()
            },
            "encrypted",
        ),
        (
            SshCredentials {
                private_key_path: file("user"),
                passphrase: Some(Secret::new("hunter2")),
                ..none()
            },
            "reading the private key",
        ),
        (
            SshCredentials {
                private_key: Some(Secret::new("hunter2")),
                ..none()
            },
            "reading the private key",
        ),
    ] {
        let connection = with(credentials);
        assert!(!format!("{connection:?}").contains("hunter2"));
        let error = refused(&lab, connection).await;
        assert_eq!(
            error.kind(),
            DeployErrorKind::AuthenticationFailed,
            "{error}"
        );
        let shown = format!("{error} {error:?} {}", error.next_step());
        assert!(shown.contains(said), "{said} in {shown}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("OPENSSH"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_host_that_is_down_or_silent_is_named_and_nothing_hangs() {
    let lab = Lab::new();
    let mut connection = lab.server.connection();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    connection.port = silent.local_addr().unwrap().port();
    connection.connect_timeout = Duration::from_millis(300);
    let error = refused(&lab, connection.clone()).await;
    assert_eq!(error.kind(), DeployErrorKind::Unreachable);
    assert!(
        error.to_string().contains("no connection within"),
        "{error}"
    );

    drop(silent);
    connection.connect_timeout = Duration::from_secs(20);
    let deployer = SshDeployer::new(connection.clone());
    let error = deployer.uninstall(&lab.deployment).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::Unreachable);
    let text = format!("{error}; {}", error.next_step());
    for part in [
        "127.0.0.1",
        &connection.port.to_string(),
        "check that the host is on",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
