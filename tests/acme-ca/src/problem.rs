//! Problem documents (RFC 7807 as RFC 8555 section 6.7 uses it) and their HTTP form.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

/// An error as an ACME client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    pub(crate) detail: String,
    /// Parts of the error that belong to one identifier each (RFC 8555 section 6.7.1).
    pub(crate) subproblems: Vec<(String, Kind, String)>,
    /// Sent as `Retry-After`, in seconds, rounded up.
    pub(crate) retry_after: Option<Duration>,
    status: Option<StatusCode>,
    location: Option<String>,
}

/// The error types that this CA uses (RFC 8555 section 6.7, RFC 9773 section 7.4, draft-aaron-acme-profiles).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AccountDoesNotExist,
    AlreadyReplaced,
    AlreadyRevoked,
    BadCsr,
    BadNonce,
    BadPublicKey,
    BadRevocationReason,
    BadSignatureAlgorithm,
    Connection,
    Dns,
    ExternalAccountRequired,
    InvalidContact,
    InvalidProfile,
    Malformed,
    OrderNotReady,
    RateLimited,
    RejectedIdentifier,
    ServerInternal,
    Tls,
    Unauthorized,
    UnsupportedContact,
    UnsupportedIdentifier,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            subproblems: vec![],
            retry_after: None,
            status: None,
            location: None,
        }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, detail)
    }

    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(Kind::Unauthorized, detail)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::malformed(format!("no such {what}")).with_status(StatusCode::NOT_FOUND)
    }

    #[must_use]
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    #[must_use]
    pub(crate) fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a `Location` header (RFC 8555 section 7.3.5, a key already in use).
    #[must_use]
    pub(crate) fn with_location(mut self, url: String) -> Self {
        self.location = Some(url);
        self
    }

    /// The HTTP status that goes with the document.
    pub(crate) fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.kind.status())
    }

    /// The document as a JSON object.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!({
            "type": self.kind.urn(),
            "detail": self.detail,
            "status": self.status().as_u16(),
        });
        if self.kind == Kind::BadSignatureAlgorithm {
            document["algorithms"] = json!(["ES256", "RS256"]);
        }
        if !self.subproblems.is_empty() {
            let list: Vec<Value> = self.subproblems.iter().map(subproblem_document).collect();
            document["subproblems"] = Value::Array(list);
        }
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.document().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds_up(after)));
        }
        if let Some(url) = self.location.and_then(|url| HeaderValue::try_from(url).ok()) {
            headers.insert(http::header::LOCATION, url);
        }
        // Read by the layer that counts problems by type.
        response.extensions_mut().insert(self.kind);
        response
    }
}

impl Kind {
    /// The `type` member.
    pub(crate) fn urn(self) -> String {
        format!("urn:ietf:params:acme:error:{}", self.name())
    }

    /// The part after the namespace.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AccountDoesNotExist => "accountDoesNotExist",
            Self::AlreadyReplaced => "alreadyReplaced",
            Self::AlreadyRevoked => "alreadyRevoked",
            Self::BadCsr => "badCSR",
            Self::BadNonce => "badNonce",
            Self::BadPublicKey => "badPublicKey",
            Self::BadRevocationReason => "badRevocationReason",
            Self::BadSignatureAlgorithm => "badSignatureAlgorithm",
            Self::Connection => "connection",
            Self::Dns => "dns",
            Self::ExternalAccountRequired => "externalAccountRequired",
            Self::InvalidContact => "invalidContact",
            Self::InvalidProfile => "invalidProfile",
            Self::Malformed => "malformed",
            Self::OrderNotReady => "orderNotReady",
            Self::RateLimited => "rateLimited",
            Self::RejectedIdentifier => "rejectedIdentifier",
            Self::ServerInternal => "serverInternal",
            Self::Tls => "tls",
            Self::Unauthorized => "unauthorized",
            Self::UnsupportedContact => "unsupportedContact",
            Self::UnsupportedIdentifier => "unsupportedIdentifier",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::AlreadyReplaced => StatusCode::CONFLICT,
            Self::OrderNotReady | Self::Unauthorized => StatusCode::FORBIDDEN,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::ServerInternal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::AccountDoesNotExist
            | Self::AlreadyRevoked
            | Self::BadCsr
            | Self::BadNonce
            | Self::BadPublicKey
            | Self::BadRevocationReason
            | Self::BadSignatureAlgorithm
            | Self::Connection
            | Self::Dns
            | Self::ExternalAccountRequired
            | Self::InvalidContact
            | Self::InvalidProfile
            | Self::Malformed
            | Self::RejectedIdentifier
            | Self::Tls
            | Self::UnsupportedContact
            | Self::UnsupportedIdentifier => StatusCode::BAD_REQUEST,
        }
    }
}

/// Seconds for a header: never less than the duration says.
pub(crate) fn whole_seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn subproblem_document((name, kind, detail): &(String, Kind, String)) -> Value {
    json!({ "type": kind.urn(), "detail": detail, "identifier": { "type": "dns", "value": name } })
}
