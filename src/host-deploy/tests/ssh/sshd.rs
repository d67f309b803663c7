//! A real OpenSSH server for one test: a child process in the foreground on a loopback port, with its own keys and
//! configuration in a temporary folder. Nothing of the system's own configuration is read or changed.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use host_deploy::{HostKeyTrust, SshConnection, SshCredentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub struct Sshd {
    child: Child,
    pub folder: PathBuf,
    pub port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn keygen(arguments: &[&str]) {
    let output = Command::new("ssh-keygen").args(arguments).output();
    let output = output.expect("openssh-client is missing: run tests/lab/prerequisites.sh");
    assert!(output.status.success(), "{output:?}");
}

impl Sshd {
    /// Keys of the user: `user` (with the passphrase "open sesame"), `plain`, `rsa`; `stranger` may not come in.
    pub fn start(folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        for (name, kind, passphrase) in [
            ("host", "ed25519", ""),
            ("user", "ed25519", "open sesame"),
            ("plain", "ed25519", ""),
            ("rsa", "rsa", ""),
            ("stranger", "ed25519", ""),
        ] {
            keygen(&[
                "-q",
                "-t",
                kind,
                "-N",
                passphrase,
                "-C",
                "t",
                "-f",
                &at(name),
            ]);
        }
        let public = |name: &str| fs::read_to_string(folder.join(format!("{name}.pub"))).unwrap();
        fs::write(
            folder.join("authorized_keys"),
            [public("user"), public("plain"), public("rsa")].concat(),
        )
        .unwrap();
        fs::create_dir(folder.join("home")).unwrap();
        fs::create_dir(folder.join("bin")).unwrap();
        if nix::unistd::geteuid().is_root() {
            // The server's own folder for separated privileges; packages make it when the service starts.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self::listen(folder, port)
    }

    /// A server of before, started again.
    pub fn listen(folder: &Path, port: u16) -> Self {
        let at = |name: &str| folder.join(name).display().to_string();
        fs::write(
            folder.join("sshd_config"),
            format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
                 PasswordAuthentication yes\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n\
                 SetEnv HOME={} PATH={}:/usr/bin:/bin\n",
                at("host"),
                at("authorized_keys"),
                at("home"),
                at("bin")
            ),
        )
        .unwrap();
        let log = fs::File::create(folder.join("sshd.log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &at("sshd_config")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("openssh-server is missing: run tests/lab/prerequisites.sh");
        let mut server = Sshd {
            child,
            folder: folder.to_owned(),
            port,
        };
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            let log = || fs::read_to_string(folder.join("sshd.log")).unwrap();
            assert!(ended.is_none(), "sshd ended: {}", log());
            assert!(Instant::now() < until, "sshd does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// The same host with a new key.
    pub fn with_new_host_key(self) -> Self {
        let (folder, port) = (self.folder.clone(), self.port);
        drop(self);
        fs::remove_file(folder.join("host")).unwrap();
        let at = folder.join("host").display().to_string();
        keygen(&["-q", "-t", "ed25519", "-N", "", "-C", "t", "-f", &at]);
        Self::listen(&folder, port)
    }

    pub fn fingerprint(&self) -> String {
        let output = Command::new("ssh-keygen")
            .args(["-lf", &self.folder.join("host.pub").display().to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().nth(1).unwrap().to_owned()
    }

    pub fn known_hosts(&self) -> PathBuf {
        let path = self.folder.join("known_hosts");
        let key = fs::read_to_string(self.folder.join("host.pub")).unwrap();
        fs::write(&path, format!("# mine\n[127.0.0.1]:{} {key}", self.port)).unwrap();
        path
    }

    pub fn connection(&self) -> SshConnection {
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        SshConnection {
            host: "127.0.0.1".into(),
            port: self.port,
            user: String::from_utf8(user).unwrap().trim().to_owned(),
            credentials: SshCredentials {
                private_key_path: Some(self.folder.join("plain")),
                ..SshCredentials::default()
            },
            trust: HostKeyTrust::Fingerprint(self.fingerprint()),
            connect_timeout: Duration::from_secs(60),
            command_timeout: Duration::from_secs(60),
        }
    }
}

/// Between client and server: counts what the client sends, and cuts the connection after so many bytes.
pub struct Proxy {
    pub port: u16,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn start(to: u16, cut_after: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", to))
                    .await
                    .unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let back = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
                });
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 16 * 1024];
                    while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                        let all = counter.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
                        if all > cut_after || to_server.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                    }
                    back.abort();
                });
            }
        });
        Proxy { port, sent }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}
