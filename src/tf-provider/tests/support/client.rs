//! A small go-plugin client: starts the example provider and speaks the protocol to it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use p521::ecdsa::signature::Signer as _;
use p521::pkcs8::DecodePrivateKey;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureAlgorithm, SignatureScheme};
use tf_provider::proto::tfplugin6 as pb;
use tf_provider::proto::tfplugin6::provider_client::ProviderClient;
use tf_provider::{Object, Type, Value, msgpack};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

const COOKIE: &str = "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2";

/// A running provider; killed when dropped.
pub struct Plugin {
    pub child: Child,
    pub socket: PathBuf,
    /// Sixth field of the handshake.
    pub certificate: String,
    pub line: String,
}

impl Plugin {
    /// Starts it as Terraform does, with TLS when a client certificate is given.
    pub fn start(client_certificate: Option<&str>) -> Self {
        let mut command = Command::new(super::provider_program());
        command
            .env("TF_PLUGIN_MAGIC_COOKIE", COOKIE)
            .env("PLUGIN_PROTOCOL_VERSIONS", "5,6");
        command.env_remove("PLUGIN_CLIENT_CERT").process_group(0);
        if let Some(pem) = client_certificate {
            command.env("PLUGIN_CLIENT_CERT", pem);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the provider starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output is piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it prints its handshake");
        let fields: Vec<&str> = line.trim_end_matches('\n').split('|').collect();
        assert_eq!(fields.len(), 6, "{line}");
        let (socket, certificate) = (PathBuf::from(fields[3]), fields[5].to_owned());
        Self {
            child,
            socket,
            certificate,
            line,
        }
    }

    /// Connects in plain text.
    pub async fn channel(&self) -> Channel {
        self.try_channel(None)
            .await
            .expect("the provider accepts connections")
    }

    /// Connects, with TLS when a configuration is given.
    pub async fn try_channel(
        &self,
        tls: Option<ClientConfig>,
    ) -> Result<Channel, tonic::transport::Error> {
        let socket = self.socket.clone();
        let connector = tls.map(|config| tokio_rustls::TlsConnector::from(Arc::new(config)));
        let connect = tower::service_fn(move |_| {
            let (socket, connector) = (socket.clone(), connector.clone());
            async move {
                let stream = UnixStream::connect(socket).await?;
                let stream: Box<dyn Duplex> = match connector {
                    None => Box::new(stream),
                    Some(connector) => {
                        let name = ServerName::try_from("localhost").expect("it is a name");
                        Box::new(connector.connect(name, stream).await?)
                    }
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://unused")
            .connect_with_connector(connect)
            .await
    }

    pub async fn provider(&self) -> ProviderClient<Channel> {
        ProviderClient::new(self.channel().await).max_decoding_message_size(256 << 20)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It may have ended already, as most tests want it to.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A killed provider cannot clean up.
        let _ = self.socket.parent().map(std::fs::remove_dir_all);
    }
}

pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

/// A one-time certificate as Terraform makes it: P-521, SHA-512, a CA; made by openssl.
pub struct ClientCertificate {
    pub pem: String,
    key_pem: String,
}

impl ClientCertificate {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let (key, certificate) = (
            folder.path().join("key.pem"),
            folder.path().join("certificate.pem"),
        );
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:secp521r1",
                "-sha512",
                "-nodes",
            ])
            .args([
                "-days",
                "1",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-keyout",
            ])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("openssl can be started");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let read = |path| std::fs::read_to_string(path).expect("openssl wrote it");
        Self {
            pem: read(certificate),
            key_pem: read(key),
        }
    }

    /// TLS that presents this certificate and expects the server's.
    pub fn tls(&self, plugin: &Plugin) -> ClientConfig {
        let certificate =
            CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("openssl writes PEM");
        let key =
            PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("openssl writes PEM");
        let key = p521::SecretKey::from_pkcs8_der(key.secret_der()).expect("it is a P-521 key");
        let key = p521::ecdsa::SigningKey::from_slice(&key.to_bytes()).expect("it is a P-521 key");
        let certified = CertifiedKey::new(vec![certificate.into_owned()], Arc::new(P521(key)));
        client_config(plugin).with_client_cert_resolver(Arc::new(Always(Arc::new(certified))))
    }
}

/// TLS without a certificate of the client's own.
pub fn anonymous_tls(plugin: &Plugin) -> ClientConfig {
    client_config(plugin).with_no_client_auth()
}

fn client_config(
    plugin: &Plugin,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    use base64::Engine;
    let server = base64::engine::general_purpose::STANDARD_NO_PAD.decode(&plugin.certificate);
    let server = CertificateDer::from(server.expect("the handshake holds base64 without padding"));
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(server)))
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Clone)]
struct P521(p521::ecdsa::SigningKey);

impl std::fmt::Debug for P521 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("P521")
    }
}

impl SigningKey for P521 {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        // As in Go: without this scheme in the server's list no certificate is sent.
        offered
            .contains(&SignatureScheme::ECDSA_NISTP521_SHA512)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for P521 {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature: p521::ecdsa::Signature = self.0.sign(message);
        Ok(signature.to_der().as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// Accepts the certificate of the handshake only.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        assert_eq!(
            end_entity.as_ref(),
            self.0.as_ref(),
            "the server presents another certificate"
        );
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The type of a block, from its message, as Terraform works it out.
pub fn block_type(block: &pb::schema::Block) -> Type {
    let attributes = block
        .attributes
        .iter()
        .map(|attribute| (attribute.name.clone(), attribute_type(attribute)));
    let blocks = block.block_types.iter().map(|nested| {
        let inner = block_type(nested.block.as_ref().expect("a nested block has content"));
        (nested.type_name.clone(), Type::list(inner))
    });
    Type::object(attributes.chain(blocks))
}

fn attribute_type(attribute: &pb::schema::Attribute) -> Type {
    use pb::schema::object::NestingMode;
    let Some(nested) = &attribute.nested_type else {
        return Type::from_bytes(&attribute.r#type).expect("a type is JSON");
    };
    let object = Type::object(
        nested
            .attributes
            .iter()
            .map(|inner| (inner.name.clone(), attribute_type(inner))),
    );
    match nested.nesting() {
        NestingMode::List => Type::list(object),
        NestingMode::Set => Type::set(object),
        NestingMode::Map => Type::map(object),
        _ => object,
    }
}

/// A whole object of a type: what is not given is null, blocks are empty.
pub fn dynamic(ty: &Type, given: &Object) -> pb::DynamicValue {
    let Type::Object(types) = ty else {
        panic!("blocks are objects")
    };
    let mut whole = Object::new();
    for name in types.keys() {
        let default = if name == "part" {
            Value::List(Vec::new())
        } else {
            Value::Null
        };
        let value = if given.is_null(name) {
            default
        } else {
            given.get(name).clone()
        };
        whole.set(name, value);
    }
    let msgpack = msgpack::encode(&Value::Object(whole), ty).expect("the object has the type");
    pb::DynamicValue {
        msgpack: msgpack.into(),
        json: Default::default(),
    }
}

pub fn null() -> pb::DynamicValue {
    pb::DynamicValue {
        msgpack: vec![0xC0].into(),
        json: Default::default(),
    }
}

/// Reads an object; `None` for null.
pub fn object(ty: &Type, message: Option<&pb::DynamicValue>) -> Option<Object> {
    let value = msgpack::decode(&message.expect("the answer has a value").msgpack, ty)
        .expect("it has the type");
    value.as_object().cloned()
}
