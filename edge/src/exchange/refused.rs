//! A message that makes no request: there is no exchange, but a counter and a line in the log, so that whoever reads it sees
//! who sends such things.
//!
//! Nothing of the client's words is in the line. Its connection ends by it, so there is no more than one for each connection.

use std::sync::Arc;

use http::{Method, StatusCode, Uri, Version};

use super::ConnectionContext;
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
    /// None: the connection ended by something else.
    pub(crate) fn by_hyper(error: &hyper::Error) -> Option<Self> {
        let (reason, status) = match (error.is_parse(), error.is_parse_too_large()) {
            (false, _) => return None,
            (true, true) => ("head_beyond_limits", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            (true, false) => ("not_http", StatusCode::BAD_REQUEST),
        };
        Some(Self { reason, status, in_body: false })
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
            version: Version::HTTP_11,
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
