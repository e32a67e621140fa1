//! Why an origin gave no answer. The client sees the status; the reason is for the log and the metric.

use std::{error::Error, io};

use http::StatusCode;
use portico_prober::egress::EgressRefused;
use rustls::{AlertDescription, CertificateError};

use crate::http::{forwarding::AmbiguousLength, upload::Overdue};

#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("the egress guard refuses the origin")]
    Egress(#[source] EgressRefused),
    #[error("the origin's name does not resolve: {0}")]
    Resolve(String),
    #[error("connect to the origin")]
    Connect(#[source] io::Error),
    #[error("the origin did not accept a connection in time")]
    ConnectTimeout,
    #[error("the TLS handshake with the origin failed")]
    Tls(TlsFault, #[source] io::Error),
    #[error("the origin refuses our client certificate, or the lack of one: {0}")]
    ClientCertificate(&'static str),
    #[error("the tenant has no client certificate on this edge yet")]
    NoIdentity,
    #[error("the origin does not speak HTTP/2")]
    NotHttp2,
    #[error("the origin has as many requests as its circuit breaker lets through")]
    Busy,
    #[error("the tenant's origins have as many sockets as they may")]
    NoSockets,
    #[error("there is no memory for an exchange with an origin")]
    Memory,
    #[error("the origin refused the request unread")]
    NotBegun(#[source] hyper::Error),
    #[error("the origin did not take the request's body")]
    WriteStall,
    #[error("the origin sent no first byte in time")]
    FirstByteTimeout,
    #[error("the origin closed the connection before its answer")]
    Closed(#[source] hyper::Error),
    #[error("the origin's answer is not HTTP")]
    Protocol(#[source] hyper::Error),
    #[error("the origin's answer does not fit the request")]
    BadAnswer,
    #[error("the request has passed through here too often")]
    Looping,
    #[error("the request's body is too large")]
    RequestTooLarge,
    #[error("the request's body stopped coming")]
    RequestStalled,
    #[error("the request's body broke off")]
    RequestBroken,
}

impl From<AmbiguousLength> for OriginError {
    fn from(AmbiguousLength: AmbiguousLength) -> Self {
        Self::BadAnswer
    }
}

impl From<Overdue> for OriginError {
    fn from(overdue: Overdue) -> Self {
        match overdue {
            Overdue::Taking => Self::WriteStall,
            Overdue::Answering => Self::FirstByteTimeout,
        }
    }
}

impl OriginError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Egress(_)
            | Self::Resolve(_)
            | Self::Connect(_)
            | Self::Tls(..)
            | Self::ClientCertificate(_)
            | Self::NoIdentity
            | Self::NotHttp2
            | Self::NotBegun(_)
            | Self::Closed(_)
            | Self::Protocol(_)
            | Self::BadAnswer => StatusCode::BAD_GATEWAY,
            Self::Busy | Self::NoSockets | Self::Memory => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout | Self::WriteStall | Self::FirstByteTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Looping => StatusCode::LOOP_DETECTED,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestStalled => StatusCode::REQUEST_TIMEOUT,
            Self::RequestBroken => StatusCode::BAD_REQUEST,
        }
    }

    /// One word, the same in the log and as the metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Egress(_) => "egress",
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls(fault, _) => fault.reason(),
            Self::ClientCertificate(_) => "client_certificate",
            Self::NoIdentity => "no_client_certificate",
            Self::NotHttp2 => "not_http2",
            Self::Busy => "breaker_open",
            Self::NoSockets => "origin_sockets",
            Self::Memory => "memory",
            Self::NotBegun(_) => "refused",
            Self::WriteStall => "write_stall",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::Closed(_) => "closed",
            Self::Protocol(_) => "protocol",
            Self::BadAnswer => "bad_answer",
            Self::Looping => "loop",
            Self::RequestTooLarge => "request_body_too_large",
            Self::RequestStalled => "request_body_stalled",
            Self::RequestBroken => "request_body_broken",
        }
    }

    /// The connection ended before any byte of an answer: the origin has closed it while it was kept.
    pub(super) fn is_dead_connection(&self) -> bool {
        matches!(self, Self::Closed(_))
    }

    /// The origin has said that it did nothing with the request (RFC 9113 sections 6.8 and 8.7).
    pub(super) fn is_not_begun(&self) -> bool {
        matches!(self, Self::NotBegun(_))
    }

    /// It tells something about the origin's health, and not about the request or our own bounds.
    pub(super) fn is_origins_fault(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Resolve(_)
            | Self::Tls(..)
            | Self::ClientCertificate(_)
            | Self::NotHttp2
            | Self::WriteStall
            | Self::FirstByteTimeout
            | Self::Closed(_)
            | Self::Protocol(_)
            | Self::NotBegun(_)
            | Self::Egress(_) => true,
            Self::Busy
            | Self::NoSockets
            | Self::Memory
            | Self::NoIdentity
            | Self::BadAnswer
            | Self::Looping
            | Self::RequestTooLarge
            | Self::RequestStalled
            | Self::RequestBroken => false,
        }
    }

    /// It tells nothing of the origin.
    pub(super) fn is_clients_fault(&self) -> bool {
        self.status().is_client_error()
    }

    pub(super) fn of_handshake(error: io::Error) -> Self {
        alert_of(&error).and_then(Self::of_alert).unwrap_or_else(|| Self::Tls(TlsFault::of(&error), error))
    }

    /// None: it is about something else than our certificate.
    pub(super) fn of_alert(alert: AlertDescription) -> Option<Self> {
        let (_, word) = OF_CERTIFICATES.iter().find(|(about, _)| *about == alert)?;
        Some(Self::ClientCertificate(word))
    }

    pub(super) fn of_hyper(error: hyper::Error) -> Self {
        // With TLS 1.3 a client's handshake has ended when the server looks at the certificate.
        if let Some(refused) = alert_of(&error).and_then(Self::of_alert) {
            return refused;
        }
        if let Some(http2) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) {
            let refused = http2.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (http2.is_go_away() && http2.is_remote() && http2.reason() == Some(h2::Reason::NO_ERROR));
            return match (refused, http2.is_go_away() || http2.is_io()) {
                (true, _) => Self::NotBegun(error),
                (false, true) => Self::Closed(error),
                (false, false) => Self::Protocol(error),
            };
        }
        let dead = error.is_closed() || error.is_canceled() || error.is_incomplete_message() || is_io(&error);
        if dead { Self::Closed(error) } else { Self::Protocol(error) }
    }
}

/// What is wrong with an origin's side of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    UnknownIssuer,
    WrongName,
    Expired,
    NotYetValid,
    /// Something else about its certificate.
    Certificate,
    /// What it says is not TLS at all.
    NotTls,
    /// It has no version, suite or protocol in common with us, or says no.
    Refused,
    /// It ends the connection.
    Closed,
    /// The route's name for it is none.
    NoName,
    Other,
}

impl TlsFault {
    fn of(error: &io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) else {
            let ends =
                [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            return if ends.contains(&error.kind()) { Self::Closed } else { Self::Other };
        };
        if let rustls::Error::InvalidCertificate(fault) = tls {
            return Self::of_certificate(fault);
        }
        if matches!(tls, rustls::Error::InvalidMessage(_)) {
            return Self::NotTls;
        }
        let says_no = matches!(
            tls,
            rustls::Error::AlertReceived(_)
                | rustls::Error::PeerIncompatible(_)
                | rustls::Error::NoApplicationProtocol
        );
        if says_no { Self::Refused } else { Self::Other }
    }

    fn of_certificate(fault: &CertificateError) -> Self {
        if matches!(fault, CertificateError::UnknownIssuer) {
            Self::UnknownIssuer
        } else if matches!(
            fault,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        ) {
            Self::WrongName
        } else if matches!(fault, CertificateError::Expired | CertificateError::ExpiredContext { .. }) {
            Self::Expired
        } else if matches!(fault, CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })
        {
            Self::NotYetValid
        } else {
            Self::Certificate
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::UnknownIssuer => "tls_unknown_issuer",
            Self::WrongName => "tls_wrong_name",
            Self::Expired => "tls_expired",
            Self::NotYetValid => "tls_not_yet_valid",
            Self::Certificate => "tls_certificate",
            Self::NotTls => "tls_not_tls",
            Self::Refused => "tls_refused",
            Self::Closed => "tls_closed",
            Self::NoName => "tls_no_name",
            Self::Other => "tls",
        }
    }
}

/// Alerts that are about the certificate of who gets them (RFC 8446 section 6.2): from a server, about ours.
const OF_CERTIFICATES: [(AlertDescription, &str); 8] = [
    (AlertDescription::CertificateRequired, "certificate_required"),
    (AlertDescription::BadCertificate, "bad_certificate"),
    (AlertDescription::UnsupportedCertificate, "unsupported_certificate"),
    (AlertDescription::CertificateRevoked, "certificate_revoked"),
    (AlertDescription::CertificateExpired, "certificate_expired"),
    (AlertDescription::CertificateUnknown, "certificate_unknown"),
    (AlertDescription::UnknownCA, "unknown_ca"),
    (AlertDescription::AccessDenied, "access_denied"),
];

/// The alert within an error of a connection that ended by it.
fn alert_of(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let mut next = Some(error);
    while let Some(error) = next {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(rustls::Error::AlertReceived(alert)) = within.and_then(|within| within.downcast_ref()) {
            return Some(*alert);
        }
        next = error.source();
    }
    None
}

fn is_io(error: &hyper::Error) -> bool {
    error.source().is_some_and(|source| source.is::<io::Error>())
}
