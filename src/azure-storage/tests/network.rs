//! The ways to the service: TLS with an authority of one's own, tokens, an HTTP proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use azure_storage::double::{Double, DoubleOptions};
use azure_storage::emulator::{Azurite, AzuriteOptions};
use azure_storage::{
    Condition, Container, ContainerOptions, Credential, CredentialHandle, ErrorKind,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// An HTTP proxy of this machine that counts what goes through it.
struct Proxy {
    url: String,
    through: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let through = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&through);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(forward(stream));
            }
        });
        Proxy { url, through }
    }
}

/// CONNECT, or one connection of requests to the host of the first one's absolute URL.
async fn forward(mut client: TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 4096];
        let count = client
            .read(&mut part)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        head.extend_from_slice(&part[..count]);
    }
    let line = String::from_utf8_lossy(&head).lines().next()?.to_owned();
    let mut words = line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let host = target.trim_start_matches("http://").split('/').next()?;
    let mut server = TcpStream::connect(host).await.ok()?;
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    } else {
        // Servers take the absolute form; the double wants a path.
        let text = String::from_utf8_lossy(&head).replacen(&format!("http://{host}"), "", 1);
        server.write_all(text.as_bytes()).await.ok()?;
    }
    copy_bidirectional(&mut client, &mut server).await.ok()?;
    Some(())
}

#[tokio::test]
async fn traffic_goes_through_the_proxy_when_there_is_one() {
    let double = Double::start(DoubleOptions::default())
        .await
        .expect("the double starts");
    double.make_container("c");
    let proxy = Proxy::start().await;
    let mut options = ContainerOptions::new(double.endpoint(), "c", double.credential("c"));
    options.proxy = Some(proxy.url.clone());
    let container = Container::open(&options).expect("right");
    assert!(container.get("b").await.expect("asked").is_none());
    assert_eq!(proxy.through.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_as_such() {
    let double = Double::start(DoubleOptions::default())
        .await
        .expect("the double starts");
    let mut options = ContainerOptions::new(double.endpoint(), "c", double.credential("c"));
    options.proxy = Some("http://127.0.0.1:1".to_owned());
    options.retry.give_up_after = std::time::Duration::ZERO;
    let error = Container::open(&options)
        .expect("right")
        .get("b")
        .await
        .expect_err("no way");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("proxy"), "{error}");
}

/// An authority, and a certificate of it for this machine with its key.
fn certificates() -> (String, (String, String)) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_pem = ca.self_signed(&ca_key).expect("signed").pem();
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).expect("an issuer");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("names")
        .signed_by(&key, &issuer)
        .expect("signed");
    (ca_pem, (leaf.pem(), key.serialize_pem()))
}

/// A token as the emulator takes it: it looks at issuer, audience and times, not at the signature.
fn token(lifetime_s: i64) -> Credential {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64);
    let claims = format!(
        r#"{{"iss":"https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/","aud":"https://storage.azure.com","iat":{0},"nbf":{0},"exp":{1}}}"#,
        now - 600,
        now + lifetime_s
    );
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let token = format!(
        "{}.{}.{}",
        part(r#"{"alg":"RS256","typ":"JWT"}"#),
        part(&claims),
        part("unsigned")
    );
    Credential::bearer(token, (now + lifetime_s) * 1000)
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own_tokens_and_a_tunnel_work_on_azurite() {
    let (ca_pem, tls) = certificates();
    let options = AzuriteOptions {
        tls: Some(tls),
        folder: None,
    };
    let Some(azurite) = Azurite::start(options).await.expect("azurite starts") else {
        eprintln!("skipped: azurite is not installed (tests/lab/azurite.sh install)");
        return;
    };
    assert!(azurite.endpoint().starts_with("https://"));
    let ca = vec![ca_pem];
    let sas = azurite
        .make_container("replicas", &ca)
        .await
        .expect("made over TLS");
    let proxy = Proxy::start().await;
    let expired = CredentialHandle::new(token(-60));
    for handle in [sas, CredentialHandle::new(token(3600)), expired.clone()] {
        let mut options = ContainerOptions::new(azurite.endpoint(), "replicas", handle);
        options.ca_pem = ca.clone();
        options.proxy = Some(proxy.url.clone());
        let container = Container::open(&options).expect("right");
        let put = tokio::spawn(async move {
            container
                .put_block_blob("b", Bytes::from_static(b"x"), &[], Condition::None)
                .await
        });
        // The last one waits for this; for the others it changes nothing.
        expired.renew(token(3600));
        put.await.expect("no panic").expect("put");
    }
    assert!(proxy.through.load(Ordering::SeqCst) >= 3);
    let mut unknown = ContainerOptions::new(
        azurite.endpoint(),
        "replicas",
        CredentialHandle::new(token(60)),
    );
    unknown.retry.give_up_after = std::time::Duration::ZERO;
    let error = Container::open(&unknown)
        .expect("right")
        .get("b")
        .await
        .expect_err("not trusted");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
