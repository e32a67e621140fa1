//! Why an origin gave no answer. The client sees the status; the reason is for the log and the metric.

use http::StatusCode;
use portico_prober::egress::EgressRefused;

#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("the egress guard refuses the origin")]
    Egress(#[source] EgressRefused),
    #[error("the origin's name does not resolve: {0}")]
    Resolve(String),
    #[error("connect to the origin")]
    Connect(#[source] std::io::Error),
    #[error("the origin did not accept a connection in time")]
    ConnectTimeout,
    #[error("the TLS handshake with the origin failed")]
    Tls(#[source] std::io::Error),
    #[error("the origin does not speak HTTP/2")]
    NotHttp2,
    #[error("the origin has as many requests as its circuit breaker lets through")]
    Busy,
    #[error("the origin refused the request unread")]
    NotBegun(#[source] hyper::Error),
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

impl OriginError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Egress(_)
            | Self::Resolve(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::NotHttp2
            | Self::NotBegun(_)
            | Self::Closed(_)
            | Self::Protocol(_)
            | Self::BadAnswer => StatusCode::BAD_GATEWAY,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout | Self::FirstByteTimeout => StatusCode::GATEWAY_TIMEOUT,
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
            Self::Tls(_) => "tls",
            Self::NotHttp2 => "not_http2",
            Self::Busy => "breaker_open",
            Self::NotBegun(_) => "refused",
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
            | Self::Tls(_)
            | Self::NotHttp2
            | Self::FirstByteTimeout
            | Self::Closed(_)
            | Self::Protocol(_)
            | Self::NotBegun(_)
            | Self::Egress(_) => true,
            Self::Busy
            | Self::BadAnswer
            | Self::Looping
            | Self::RequestTooLarge
            | Self::RequestStalled
            | Self::RequestBroken => false,
        }
    }

    pub(super) fn of_hyper(error: hyper::Error) -> Self {
        if let Some(http2) =
            std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>())
        {
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

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}
