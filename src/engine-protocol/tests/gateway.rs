//! A gateway and an engine over a real TLS connection on loopback.

use std::pin::Pin;

use engine_protocol::v1::engine_gateway_client::EngineGatewayClient;
use engine_protocol::v1::engine_gateway_server::{EngineGateway, EngineGatewayServer};
use engine_protocol::v1::{DesiredState, EngineReport, EnrolRequest, EnrolResponse, RenewRequest};
use engine_protocol::{Authority, EngineIdentity, IdentityRequest, RegistrationKey, tls};
use time::OffsetDateTime;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

const SECRET: &str = "correct horse";

struct Gateway {
    authority: Authority,
}

type States = Pin<Box<dyn Stream<Item = Result<DesiredState, Status>> + Send>>;

#[tonic::async_trait]
impl EngineGateway for Gateway {
    type SessionStream = States;

    async fn enrol(
        &self,
        request: Request<EnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let request = request.into_inner();
        if request.secret != SECRET {
            return Err(Status::permission_denied("unknown key"));
        }
        let certificate_pem = self
            .authority
            .issue_engine(
                &request.engine_id,
                &request.certificate_request_pem,
                OffsetDateTime::now_utc(),
            )
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let ca_pem = self.authority.certificate_pem().to_owned();
        Ok(Response::new(EnrolResponse {
            certificate_pem,
            ca_pem,
            provider_arm_id: String::new(),
        }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<EnrolResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn session(
        &self,
        request: Request<Streaming<EngineReport>>,
    ) -> Result<Response<States>, Status> {
        let engine = tls::engine_id(&request)?;
        let mut reports = request.into_inner();
        // Echoes who the engine is (as the interval of its name's length) for every report.
        let answer = async_stream(
            move |report: EngineReport| DesiredState {
                generation: report.observed_generation + 1,
                report_interval_ms: u32::try_from(engine.len()).unwrap_or(0),
                ..DesiredState::default()
            },
            &mut reports,
        )
        .await?;
        Ok(Response::new(answer))
    }
}

/// Answers the first report with `answer`.
async fn async_stream(
    answer: impl FnOnce(EngineReport) -> DesiredState,
    reports: &mut Streaming<EngineReport>,
) -> Result<States, Status> {
    let first = reports
        .message()
        .await?
        .ok_or_else(|| Status::invalid_argument("no report"))?;
    Ok(Box::pin(tokio_stream::once(Ok(answer(first)))))
}

/// Starts a gateway; returns its address and CA.
async fn start() -> (String, String) {
    tls::install_crypto();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::generate("test CA", now).expect("CA");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = authority
        .issue_server(&names, now)
        .expect("server certificate");
    let ca_pem = authority.certificate_pem().to_owned();
    let config = tls::server_config(&ca_pem, &server.certificate_pem, &server.key_pem);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listener");
    let gateway = listener.local_addr().expect("address").to_string();
    let service = EngineGatewayServer::new(Gateway { authority });
    let server = tonic::transport::Server::builder()
        .tls_config(config)
        .expect("TLS")
        .add_service(service);
    tokio::spawn(
        server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    (gateway, ca_pem)
}

fn key(gateway: &str, ca_pem: &str) -> RegistrationKey {
    RegistrationKey {
        gateway: gateway.to_owned(),
        ca_pem: ca_pem.to_owned(),
        secret: SECRET.to_owned(),
        expires_unix: i64::MAX,
    }
}

async fn enrol(key: &RegistrationKey, engine_id: &str) -> Result<EngineIdentity, Status> {
    let request = IdentityRequest::generate().expect("request");
    let mut client = EngineGatewayClient::new(tls::enrolment_channel(key).expect("channel"));
    let answer = client
        .enrol(EnrolRequest {
            secret: key.secret.clone(),
            engine_id: engine_id.to_owned(),
            certificate_request_pem: request.request_pem,
            host: None,
        })
        .await?
        .into_inner();
    Ok(EngineIdentity {
        certificate_pem: answer.certificate_pem,
        key_pem: request.key_pem,
        ca_pem: answer.ca_pem,
    })
}

async fn session(gateway: &str, identity: &EngineIdentity) -> Result<DesiredState, Status> {
    let mut client =
        EngineGatewayClient::new(tls::session_channel(gateway, identity).expect("channel"));
    let reports = tokio_stream::iter([EngineReport {
        observed_generation: 41,
        ..EngineReport::default()
    }]);
    let mut states = client.session(reports).await?.into_inner();
    states
        .next()
        .await
        .ok_or_else(|| Status::internal("no state"))?
}

#[tokio::test]
async fn an_enrolled_engine_is_known_by_its_certificate() {
    let (gateway, ca_pem) = start().await;
    let identity = enrol(&key(&gateway, &ca_pem), "e2a4")
        .await
        .expect("enrolment");
    let state = session(&gateway, &identity).await.expect("session");
    assert_eq!((state.generation, state.report_interval_ms), (42, 4));
}

#[tokio::test]
async fn a_session_without_certificate_is_refused() {
    let (gateway, ca_pem) = start().await;
    let mut client =
        EngineGatewayClient::new(tls::enrolment_channel(&key(&gateway, &ca_pem)).expect("channel"));
    let error = client
        .session(tokio_stream::iter([EngineReport::default()]))
        .await
        .expect_err("no certificate");
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (gateway, ca_pem) = start().await;
    let other = Authority::generate("other CA", OffsetDateTime::now_utc()).expect("CA");
    let request = IdentityRequest::generate().expect("request");
    let certificate_pem = other
        .issue_engine("e2a4", &request.request_pem, OffsetDateTime::now_utc())
        .expect("certificate");
    let forged = EngineIdentity {
        certificate_pem,
        key_pem: request.key_pem,
        ca_pem,
    };
    session(&gateway, &forged)
        .await
        .expect_err("forged certificate");
}

#[tokio::test]
async fn a_gateway_of_another_authority_is_not_trusted() {
    let (gateway, _) = start().await;
    let other = Authority::generate("other CA", OffsetDateTime::now_utc()).expect("CA");
    enrol(&key(&gateway, other.certificate_pem()), "e2a4")
        .await
        .err()
        .expect("untrusted gateway");
}

#[tokio::test]
async fn a_wrong_secret_gives_no_certificate() {
    let (gateway, ca_pem) = start().await;
    let wrong = RegistrationKey {
        secret: "battery staple".to_owned(),
        ..key(&gateway, &ca_pem)
    };
    assert_eq!(
        enrol(&wrong, "e2a4").await.err().expect("refusal").code(),
        Code::PermissionDenied
    );
}
