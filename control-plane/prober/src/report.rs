//! What a check found.

use std::net::SocketAddr;

use portico_cert_store::DomainName;
use serde::Serialize;

/// Everything that one check saw. Steps that were not reached are `None`; `failure` says where it ended.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub name: DomainName,
    pub address: SocketAddr,
    /// `TLSv1.3`, `TLSv1.2`
    pub tls_version: Option<String>,
    /// `h2` or `http/1.1`, as agreed by ALPN; `http/1.1` when the server names none.
    pub protocol: Option<String>,
    pub certificate: Option<CertificateReport>,
    pub chain: Option<ChainVerdict>,
    /// The server has asked for a client certificate.
    pub asks_for_certificate: bool,
    pub status: Option<u16>,
    /// Where the answer points; never followed.
    pub redirect: Option<Redirect>,
    /// The `Server` header, at most 100 bytes.
    pub server: Option<String>,
    /// Absent for HEAD.
    pub body: Option<BodyReport>,
    pub timings: Timings,
    pub failure: Option<Failure>,
}

impl Report {
    /// An answer came, whatever it says, on a chain that holds.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.failure.is_none() && self.chain.as_ref().is_some_and(ChainVerdict::is_trusted)
    }
}

/// The leaf that the address proved to hold the key of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateReport {
    /// DNS names and addresses of the subject alternative name, in its order.
    pub names: Vec<String>,
    pub subject: String,
    pub issuer: String,
    /// RFC 3339.
    pub not_before: String,
    pub not_after: String,
    /// Lower-case hex.
    pub serial: String,
    pub fingerprint_sha256: String,
    pub spki_sha256: String,
    /// Certificates in the chain as sent, the leaf included.
    pub chain_length: usize,
}

/// Whether a client with the given roots would take the certificate for this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum ChainVerdict {
    Trusted,
    /// `reason` is for people.
    Expired {
        reason: String,
    },
    NotYetValid {
        reason: String,
    },
    WrongName {
        reason: String,
    },
    UnknownIssuer {
        reason: String,
    },
    Invalid {
        reason: String,
    },
}

impl ChainVerdict {
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        *self == Self::Trusted
    }

    /// One word for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not yet valid",
            Self::WrongName { .. } => "wrong name",
            Self::UnknownIssuer { .. } => "unknown issuer",
            Self::Invalid { .. } => "invalid",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    pub status: u16,
    /// As sent, at most 2,048 bytes.
    pub location: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BodyReport {
    /// Bytes read; the whole body unless `truncated`.
    pub bytes: usize,
    /// The body was longer than the limit of the check.
    pub truncated: bool,
    /// Of the bytes read, lower-case hex.
    pub sha256: String,
    /// The first bytes as text, whatever is no UTF-8 replaced.
    pub first: String,
}

/// Milliseconds from the start of the check to the end of each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    pub connected_ms: Option<f64>,
    pub handshake_ms: Option<f64>,
    pub answer_ms: Option<f64>,
    pub total_ms: f64,
}

/// Where a check ended early, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub step: Step,
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step.words(), self.text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The egress policy forbids the address; nothing was sent.
    Egress,
    Connect,
    Handshake,
    Request,
    Body,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::Egress => "address not allowed",
            Self::Connect => "connect",
            Self::Handshake => "TLS handshake",
            Self::Request => "request",
            Self::Body => "body",
        }
    }
}
