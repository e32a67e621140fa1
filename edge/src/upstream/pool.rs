//! All endpoints of a worker, and the connection that one exchange has taken from one.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use http::Request;
use hyper::{Response, body::Incoming, client::conn::http1::SendRequest};
use portico_cert_store::TenantId;

use super::{
    Gate, OriginError,
    connect::Identity,
    endpoint::{Endpoint, Kept, Turn},
    http2::Http2Stream,
    interim::Interim,
    sockets::OriginSockets,
    watch::OriginWatch,
};
use crate::{
    http::body::RequestBody,
    limits,
    live::{Origin, TenantState},
};

#[derive(Debug)]
pub(super) struct Pool {
    endpoints: RefCell<HashMap<EndpointKey, Rc<Endpoint>, RandomState>>,
    kept: Rc<Kept>,
    watch: Arc<OriginWatch>,
}

/// Whose connections may serve a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EndpointKey {
    tenant: TenantId,
    origin: Arc<Origin>,
    identity: Identity,
}

/// A connection in use by one exchange. Dropping it closes an HTTP/1.1 connection and resets an HTTP/2 stream.
pub struct Lease {
    line: Line,
    address: SocketAddr,
    reused: bool,
    turn: Turn,
}

pub(super) enum Line {
    Http1(Http1Line),
    Http2(Http2Stream),
}

/// A connection that has one exchange at a time.
pub(super) struct Http1Line {
    pub sender: SendRequest<RequestBody>,
    pub gate: Rc<Gate>,
}

/// A request that had no answer.
pub(super) struct Unanswered {
    pub error: OriginError,
    /// Nothing of the request has left; here is its body again.
    pub body: Option<RequestBody>,
}

impl Pool {
    pub(super) fn new(watch: Arc<OriginWatch>, sockets: Arc<OriginSockets>) -> Self {
        Self { endpoints: RefCell::default(), kept: Rc::new(Kept::new(sockets)), watch }
    }

    /// Where this tenant's requests to this origin go through. With another client certificate it is another endpoint, whose
    /// connections are its own; the one before is idle from then on.
    pub(super) fn endpoint(&self, tenant: &Arc<TenantState>, origin: &Arc<Origin>) -> Rc<Endpoint> {
        let identity = origin.identity(tenant);
        let key = EndpointKey { tenant: tenant.id, origin: Arc::clone(origin), identity: identity.clone() };
        let mut endpoints = self.endpoints.borrow_mut();
        if let Some(endpoint) = endpoints.get(&key) {
            return Rc::clone(endpoint);
        }
        let watched = self.watch.of(tenant, origin);
        let endpoint = Rc::new(Endpoint::new((Arc::clone(origin), identity), watched, Rc::clone(&self.kept)));
        // Beyond the bound requests are served all the same, only without kept connections.
        if endpoints.len() < limits::ENDPOINTS_PER_WORKER_MAX {
            endpoints.insert(key, Rc::clone(&endpoint));
        }
        endpoint
    }

    /// Closes what has been idle too long and gives those whose names are to be resolved again.
    pub(super) fn sweep(&self, now: Instant, allowed: Duration) -> Vec<Rc<Endpoint>> {
        let mut endpoints = self.endpoints.borrow_mut();
        let stale =
            endpoints.values().filter(|endpoint| endpoint.sweep(now, allowed)).map(Rc::clone).collect();
        endpoints.retain(|_, endpoint| !endpoint.is_forgettable(now));
        stale
    }
}

impl Lease {
    pub(super) fn new(line: Line, address: SocketAddr, reused: bool, turn: Turn) -> Self {
        Self { line, address, reused, turn }
    }

    pub(super) async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let sent = match &mut self.line {
            Line::Http1(line) => {
                let interim = Interim::of(&mut request);
                line.gate.follow(&interim);
                tokio::select! {
                    biased;
                    () = interim.too_many() => {
                        return Err(Unanswered { error: OriginError::BadAnswer, body: None });
                    }
                    sent = line.sender.try_send_request(request) => sent,
                }
            }
            Line::Http2(stream) => stream.sender().try_send_request(request).await,
        };
        sent.map_err(|mut unsent| {
            let body = unsent.take_message().map(Request::into_body);
            let error = match &self.line {
                Line::Http1(_) => OriginError::of_hyper(unsent.into_error()),
                Line::Http2(stream) => stream.connection().reason(unsent.into_error()),
            };
            Unanswered { error, body }
        })
    }

    /// It had served another exchange before, so it may have died meanwhile.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self.line, Line::Http2(_))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What holds its answer back; on HTTP/2 that is the stream's window.
    pub(crate) fn gate(&self) -> Option<&Rc<Gate>> {
        match &self.line {
            Line::Http1(line) => Some(&line.gate),
            Line::Http2(_) => None,
        }
    }

    /// No other exchange is to be begun on its connection.
    pub(super) fn retire(&self) {
        if let Line::Http2(stream) = &self.line {
            stream.connection().retire();
        }
    }

    /// The answer has been read to its end.
    pub(crate) fn give_back(self) {
        if let Line::Http1(line) = self.line
            && !line.sender.is_closed()
            && !self.turn.endpoint.is_clients_own()
        {
            self.turn.endpoint.keep_http1(line, self.address);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lease").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "pool/tests.rs"]
mod tests;
