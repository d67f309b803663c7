//! How much a peer may ask of the gateway: whoever reaches the port may call `Enrol`, so it takes small messages only and few
//! at a time. Sessions, whose reports are large, belong to engines that are known.

use std::task::{Context, Poll, ready};

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// Largest message of an enrolment: a secret, a certificate request and the description of a host.
pub const MAX_ENROLMENT_BYTES: usize = 64 << 10;
/// Enrolments at a time; others wait.
pub const ENROLMENTS_AT_ONCE: usize = 4;
/// Calls of one connection at a time. An engine needs one.
pub const CALLS_OF_A_CONNECTION: usize = 16;

/// Calls with small messages.
const SMALL: [&str; 2] = ["/Enrol", "/Renew"];

/// One service under two limits.
#[derive(Clone)]
pub struct ByCall<S> {
    /// For `Enrol` and `Renew`.
    pub enrolment: S,
    /// For everything else.
    pub session: S,
}

impl<S: NamedService> NamedService for ByCall<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for ByCall<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(self.enrolment.poll_ready(cx))?;
        self.session.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if SMALL
            .iter()
            .any(|call| request.uri().path().ends_with(call))
        {
            self.enrolment.call(request)
        } else {
            self.session.call(request)
        }
    }
}
