//! A message that makes no request: there is no exchange, but a counter and a line in the log, so that whoever reads it sees
//! who sends such things.
//!
//! Nothing of the client's words is in the line. Over HTTP/1 its connection ends by it, so there is no more than one for each
//! connection. Over HTTP/2 and 3 it is one message of many, or the connection itself that breaks the protocol.

use std::sync::Arc;

use ::h3::error::{Code, ConnectionError, LocalError, StreamError};
use http::{Method, StatusCode, Uri, Version};

use super::{ConnectionContext, Protocol};
use crate::{
    access_log::AccessRecord,
    clock,
    http::{framing::Refusal, visitor::Visitor},
};

/// Why, and what the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    reason: &'static str,
    status: StatusCode,
    /// It belongs to an exchange, which has its own line.
    in_body: bool,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let Refusal { fault, in_head, .. } = refusal;
        Self { reason: fault.reason(), status: StatusCode::BAD_REQUEST, in_body: !in_head }
    }
}

impl Refused {
    /// A request whose head is beyond the limits.
    pub(crate) const TOO_LARGE: Self = Self {
        reason: "head_beyond_limits",
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        in_body: false,
    };

    /// A head over HTTP/1.1 that has begun and did not end in time.
    pub(crate) const SLOW_HEAD: Self =
        Self { reason: "slow_head", status: StatusCode::REQUEST_TIMEOUT, in_body: false };

    /// A connection over HTTP/3 that breaks the protocol.
    pub(crate) const H3_PROTOCOL: Self = Self::over_http3("h3_protocol");

    /// The same, by a request that ends inside a frame.
    pub(crate) const H3_TRUNCATED: Self = Self::over_http3("h3_truncated");

    const fn over_http3(reason: &'static str) -> Self {
        Self { reason, status: StatusCode::BAD_REQUEST, in_body: false }
    }

    /// A message over HTTP/2 or 3 that is malformed.
    pub(crate) const fn malformed(protocol: Protocol) -> Self {
        let reason = match protocol {
            Protocol::Http1 => "not_http",
            Protocol::Http2 => "h2_malformed",
            Protocol::Http3 => "h3_malformed",
        };
        Self { reason, status: StatusCode::BAD_REQUEST, in_body: false }
    }

    /// A connection over HTTP/2 that we have ended, because what came on it is not that protocol. None: it ended by something
    /// else; floods of frames have a counter of their own.
    pub(crate) fn by_http2(error: &hyper::Error) -> Option<Self> {
        let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
        if !(error.is_go_away() && error.is_library()) {
            return None;
        }
        let reason = match error.reason()? {
            h2::Reason::NO_ERROR | h2::Reason::INTERNAL_ERROR => return None,
            h2::Reason::FLOW_CONTROL_ERROR => "h2_flow_control",
            h2::Reason::FRAME_SIZE_ERROR => "h2_frame_size",
            h2::Reason::COMPRESSION_ERROR => "h2_compression",
            h2::Reason::ENHANCE_YOUR_CALM => "h2_too_much",
            _ => "h2_protocol",
        };
        Some(Self { reason, status: StatusCode::BAD_REQUEST, in_body: false })
    }

    /// The same over HTTP/3.
    pub(crate) fn by_http3(error: &ConnectionError) -> Option<Self> {
        let ConnectionError::Local { error: LocalError::Application { code, .. } } = error else {
            return None;
        };
        if [Code::H3_NO_ERROR, Code::H3_INTERNAL_ERROR].contains(code) {
            return None;
        }
        Some(Self::H3_PROTOCOL)
    }

    /// A request over HTTP/3 of which no head came to be; `end` is what its stream was found to deserve.
    pub(crate) fn by_http3_stream(error: &StreamError, end: Option<Code>) -> Option<Self> {
        if end == Some(Code::H3_EXCESSIVE_LOAD) {
            return Some(Self::over_http3("h3_too_much"));
        }
        if matches!(error, StreamError::HeaderTooBig { .. }) {
            return Some(Self::TOO_LARGE);
        }
        let StreamError::StreamError { code, .. } = error else { return None };
        if *code == Code::H3_REQUEST_INCOMPLETE {
            return Some(Self::over_http3("h3_incomplete"));
        }
        (*code == Code::H3_MESSAGE_ERROR).then(|| Self::malformed(Protocol::Http3))
    }

    /// None: the connection ended by something else.
    pub(crate) fn by_hyper(error: &hyper::Error) -> Option<Self> {
        match (error.is_parse(), error.is_parse_too_large()) {
            (false, _) => None,
            (true, true) => Some(Self::TOO_LARGE),
            (true, false) => Some(Self::malformed(Protocol::Http1)),
        }
    }

    /// Counts and logs it.
    pub(crate) fn note(self, context: &ConnectionContext) {
        let edge = &context.worker.edge;
        edge.metrics.request_refused(self.reason);
        if self.in_body || !edge.access_log.is_on() {
            return;
        }
        let unique = context.worker.next_unique();
        edge.access_log.write(Arc::new(AccessRecord {
            started_unix_ms: clock::unix_ms(),
            ended_unix_ns: u64::try_from(clock::unix_elapsed().as_nanos()).unwrap_or(u64::MAX),
            duration_us: 0,
            first_byte: None,
            peer: context.peer,
            local_port: context.local.port(),
            visitor: Arc::new(Visitor::alone(context.peer, context.shown.is_some(), unique)),
            protocol: context.protocol,
            version: match context.protocol {
                Protocol::Http1 => Version::HTTP_11,
                Protocol::Http2 => Version::HTTP_2,
                Protocol::Http3 => Version::HTTP_3,
            },
            handshake: context.handshake.clone(),
            method: Method::from_bytes(b"-").expect("a token"),
            authority: None,
            target: Uri::from_static("*"),
            host: None,
            route: None,
            status: self.status,
            request_bytes: 0,
            response_bytes: 0,
            referer: None,
            user_agent: None,
            origin: None,
            cache: None,
            reason: Some(self.reason),
            complete: true,
        }));
    }
}
