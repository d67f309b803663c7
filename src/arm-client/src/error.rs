//! Errors of the orchestration API as a caller needs them.

use serde::Deserialize;
use serde_json::Value;

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientErrorKind {
    /// The client's own configuration is wrong: endpoint, certificate file.
    Configuration,
    /// The service can't be reached; the request was not sent.
    Unreachable,
    /// The service's certificate is not trusted.
    Untrusted,
    /// The credentials are refused (401, or no token).
    Unauthorized,
    /// The credentials are good, the right is missing (403).
    Forbidden,
    /// It doesn't exist (404).
    NotFound,
    /// It is in another state than the request needs, or another operation runs on it (409, 412).
    Conflict,
    /// The request is wrong (other 4xx).
    Invalid,
    /// Too many requests (429), also after waiting.
    Throttled,
    /// The service failed (5xx), also after trying again.
    Service,
    /// The request was sent and no answer came: it may or may not have been carried out.
    UnknownOutcome,
    /// The answer can't be understood.
    BadAnswer,
    /// A long-running operation ended as failed.
    OperationFailed,
    /// A long-running operation was cancelled by somebody.
    OperationCancelled,
    /// The time allowed is over; the operation may still be running.
    TimedOut,
    /// The caller asked to stop waiting; the operation may still be running.
    Interrupted,
}

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail in the same way.
    No,
    /// It was not carried out; later it may be.
    Yes,
    /// It may have been carried out: look first.
    UnknownOutcome,
}

/// One entry of an error's details: the service's way to pass cause and advice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorDetail {
    /// Code of this cause.
    pub code: String,
    /// What happened.
    pub message: String,
    /// Why it may have happened.
    pub possible_causes: Option<String>,
    /// What to do about it.
    pub recommended_action: Option<String>,
}

/// A failed request or operation.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {message}{}", code_suffix(&.marks.code))]
pub struct ClientError {
    pub(crate) kind: ClientErrorKind,
    pub(crate) action: String,
    pub(crate) message: String,
    /// Boxed, so that a `Result` stays small.
    pub(crate) marks: Box<Marks>,
    #[source]
    pub(crate) source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the service said beyond its message.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) status: Option<u16>,
    pub(crate) code: String,
    pub(crate) target: Option<String>,
    pub(crate) details: Vec<ErrorDetail>,
    pub(crate) request_id: Option<String>,
    pub(crate) job_id: Option<String>,
    pub(crate) retry_after: Option<std::time::Duration>,
}

fn code_suffix(code: &str) -> String {
    if code.is_empty() {
        String::new()
    } else {
        format!(" ({code})")
    }
}

impl ClientError {
    pub(crate) fn new(
        kind: ClientErrorKind,
        action: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        ClientError {
            kind,
            action: action.into(),
            message: message.into(),
            marks: Box::default(),
            source: None,
        }
    }

    pub(crate) fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Error from an answer of 400 or above.
    pub(crate) fn from_answer(
        action: &str,
        status: u16,
        body: &[u8],
        request_id: Option<String>,
    ) -> Self {
        let kind = match status {
            401 => ClientErrorKind::Unauthorized,
            403 => ClientErrorKind::Forbidden,
            404 => ClientErrorKind::NotFound,
            409 | 412 => ClientErrorKind::Conflict,
            429 => ClientErrorKind::Throttled,
            500.. => ClientErrorKind::Service,
            _ => ClientErrorKind::Invalid,
        };
        let mut error = ClientError::new(kind, action, format!("the service answered {status}"));
        error.marks.status = Some(status);
        error.marks.request_id = request_id;
        if let Ok(Value::Object(mut body)) = serde_json::from_slice(body) {
            // ARM wraps in `error`; the token service sends `error` as a text beside `error_description`.
            match body.remove("error") {
                Some(Value::String(code)) => {
                    error.marks.code = code;
                    if let Some(Value::String(text)) = body.remove("error_description") {
                        error.message = text;
                    }
                }
                Some(envelope) => error.fill(envelope),
                None => {}
            }
        }
        error
    }

    /// Takes code, message, target and details from an error object of the API.
    pub(crate) fn fill(&mut self, envelope: Value) {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Envelope {
            code: String,
            message: String,
            target: Option<String>,
            details: Option<Vec<ErrorDetail>>,
        }
        let envelope: Envelope = serde_json::from_value(envelope).unwrap_or_default();
        self.marks.code = envelope.code;
        if !envelope.message.is_empty() {
            self.message = envelope.message;
        }
        self.marks.target = envelope.target;
        self.marks.details = envelope.details.unwrap_or_default();
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> ClientErrorKind {
        self.kind
    }

    /// Whether the same request may be sent again.
    pub fn retry(&self) -> Retry {
        use ClientErrorKind as K;
        match self.kind {
            K::Unreachable | K::Throttled | K::Service => Retry::Yes,
            K::UnknownOutcome | K::TimedOut | K::Interrupted => Retry::UnknownOutcome,
            _ => Retry::No,
        }
    }

    /// It doesn't exist: the resource itself, or the group or subscription around it.
    pub fn is_not_found(&self) -> bool {
        self.kind == ClientErrorKind::NotFound
    }

    /// What was being done, such as `PUT vaults/v1`.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// HTTP status, when there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.marks.status
    }

    /// The service's error code; empty when it gave none.
    pub fn code(&self) -> &str {
        &self.marks.code
    }

    /// The service's message, or our own when it gave none.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The part of the request that the error is about, as the service names it.
    pub fn target(&self) -> Option<&str> {
        self.marks.target.as_deref()
    }

    /// Causes and advice.
    pub fn details(&self) -> &[ErrorDetail] {
        &self.marks.details
    }

    /// Id by which the request is found in the service's log.
    pub fn request_id(&self) -> Option<&str> {
        self.marks.request_id.as_deref()
    }

    /// How long the service asks to wait before the next try; two minutes at most.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        self.marks.retry_after
    }

    /// Job of the operation, when one was started.
    pub fn job_id(&self) -> Option<&str> {
        self.marks.job_id.as_deref()
    }
}
