//! Requests to origins: endpoints per worker, keyed by tenant and origin, HTTP/1.1 and HTTP/2 over plain TCP or TLS.
//!
//! A message that we forward is made anew by hyper from what was understood of the client's, so that an origin sees
//! exactly one message (promise P11). An exchange is tried at most twice, and only where that cannot do a thing twice: when
//! nothing of the request had left, or when it is idempotent, has no body and its connection died before the first byte
//! of an answer. The second try goes to another origin where there is one; retries are paid from a budget that requests
//! earn ([`crate::limits::RETRY_COST`]), so that they never multiply an outage.
//!
//! Deliberately absent: a retry for a status or for a timeout (an origin that is slow is not helped by more requests).

mod balance;
mod connect;
mod endpoint;
mod error;
mod gate;
mod health;
mod http2;
mod interim;
mod last_word;
mod origins;
mod pool;
mod resolve;
mod sockets;
mod through;
mod trust;
pub mod tunnel;
mod watch;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderValue, Method, Request, StatusCode, Uri, Version, header, request::Parts, uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{Response, body::Incoming};

pub use connect::Connector;
pub use error::{OriginError, TlsFault};
pub(crate) use gate::Gate;
pub use health::check_origins;
pub use origins::Origins;
pub use pool::Lease;
pub use resolve::{Names, system_servers};
pub use sockets::OriginSockets;
pub use trust::{ClientConfigs, OriginTls};
pub use watch::OriginWatch;

use endpoint::{Endpoint, Turn};
use origins::Freshness;
use pool::Unanswered;

use crate::{
    clock,
    exchange::{Answer, ConnectionContext, Dropped, Place, Protocol, Reached, suspended},
    http::{
        authority::Authority,
        body::{BodyFault, OriginBody, RequestBody, ResponseSource},
        forwarding::{self, ForwardedFacts},
        visitor::Visitor,
    },
    limits,
    live::{Host, Origin, OriginScheme, Upstream},
    metrics::Limited,
    proxy_protocol::Ends,
};

/// Where a request goes, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forwarding<'a> {
    pub context: &'a Rc<ConnectionContext>,
    pub host: &'a Arc<Host>,
    pub authority: &'a Authority,
    pub upstream: &'a Upstream,
    pub visitor: &'a Arc<Visitor>,
}

impl Forwarding<'_> {
    /// Of the client's connection, for an origin that is told of them.
    fn ends(&self) -> Ends {
        let peer = self.context.peer;
        let port = if self.visitor.proxies.is_empty() { peer.port() } else { 0 };
        Ends { source: SocketAddr::new(self.visitor.client, port), destination: self.context.local }
    }
}

/// Sends a request to its origin and brings the answer, or a page that says 502, 503 or 504 and no more. While memory is short no
/// origin is asked: an exchange with one costs most.
pub(crate) async fn forward(
    parts: Parts,
    mut body: RequestBody,
    forwarding: Forwarding<'_>,
) -> Result<Answer, Dropped> {
    body.set_stall(forwarding.context.worker.edge.deadlines.body_stall);
    if forwarding.context.worker.edge.memory.is_short() {
        return Ok(Answer::short_of_memory(forwarding.context));
    }
    let upload = body.upload();
    if !body.is_end_stream() {
        upload.tell(&forwarding.context.clock);
    }
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH)
        && length
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .is_none_or(|length: u64| length > body.most())
    {
        forwarding.context.worker.edge.metrics.limited(Limited::RequestBody);
        return Ok(Answer::page(StatusCode::PAYLOAD_TOO_LARGE, "request_body_too_large"));
    }
    let now_ms = clock::unix_ms();
    // A suspension that arrives while the origin thinks ends the exchange.
    let result = tokio::select! {
        biased;
        suspension = forwarding.host.cut(now_ms) => return suspended(&suspension),
        result = exchange(&parts, body, forwarding) => result,
    };
    upload.answered();
    let Unserved { error, tried } = match result {
        Ok(answer) => return Ok(answer),
        Err(unserved) => unserved,
    };
    if matches!(error, OriginError::Memory) {
        return Ok(Answer::short_of_memory(forwarding.context));
    }
    let error = match upload.fault() {
        Some(BodyFault::TooLarge) => OriginError::RequestTooLarge,
        Some(BodyFault::Stalled) => OriginError::RequestStalled,
        Some(BodyFault::Broken) => OriginError::RequestBroken,
        None => error,
    };
    let metrics = &forwarding.context.worker.edge.metrics;
    match upload.fault() {
        Some(BodyFault::TooLarge) => metrics.limited(Limited::RequestBody),
        Some(BodyFault::Stalled) => metrics.limited(Limited::RequestBodyStalled),
        Some(BodyFault::Broken) | None => {}
    }
    tracing::debug!(host = %forwarding.host.name, %error, "no answer");
    if !error.is_clients_fault() {
        metrics.origin_error(error.reason());
        if let Some(endpoint) = &tried {
            forwarding.context.worker.origins.tell(forwarding.host, endpoint, &error);
        }
    }
    let place = tried.map(|endpoint| Place::Named(Arc::clone(&endpoint.origin)));
    let mut answer = Answer::page(error.status(), error.reason());
    answer.origin = place.map(|place| Reached { place, connect: None, first_byte: None });
    Ok(answer)
}

/// No answer, and which origin was tried last.
struct Unserved {
    error: OriginError,
    /// None: there was none to try.
    tried: Option<Rc<Endpoint>>,
}

impl Unserved {
    fn by(endpoint: &Rc<Endpoint>, error: OriginError) -> Self {
        Self { error, tried: Some(Rc::clone(endpoint)) }
    }
}

async fn exchange(parts: &Parts, body: RequestBody, to: Forwarding<'_>) -> Result<Answer, Unserved> {
    let worker = &to.context.worker;
    let (origins, tenant) = (&worker.origins, &to.host.tenant);
    let alone = to.upstream.origins.len() == 1;
    let upload = body.upload();
    let mut message =
        Message { idempotent: parts.method.is_idempotent() && body.is_end_stream(), parts, body: Some(body) };
    let Some((index, endpoint)) = origins.choose(tenant, to.upstream, None) else {
        return Err(Unserved { error: OriginError::Busy, tried: None });
    };
    endpoint.earn();
    // Boxed: each would have room of its own in the exchange, and a client may have a hundred of them waiting.
    let first = match Box::pin(attempt(&mut message, &endpoint, Freshness::Any, to)).await {
        Ok(answer) => return Ok(answer),
        Err(failure) => failure,
    };
    if upload.fault().is_some() {
        return Err(Unserved::by(&endpoint, first.error));
    }
    // An origin may close a kept connection at any moment; that is no fault of its.
    if !first.stale && first.is_origins_fault() {
        origins.failed(tenant, &endpoint, first.error.reason(), alone);
    }
    let second = match first.repeat {
        Repeat::Never => None,
        Repeat::AnotherOrigin => origins.choose(tenant, to.upstream, Some(index)),
        // Where there is another origin, that one: this one may be going away.
        Repeat::NewConnection => {
            let another = origins.choose(tenant, to.upstream, Some(index));
            another.or_else(|| Some((index, Rc::clone(&endpoint))))
        }
    };
    let Some((_, other)) = second else { return Err(Unserved::by(&endpoint, first.error)) };
    if !endpoint.pay_for_retry() {
        worker.edge.metrics.origin_retries_refused.increment(1);
        return Err(Unserved::by(&endpoint, first.error));
    }
    worker.edge.metrics.origin_retries.increment(1);
    tracing::debug!(host = %to.host.name, error = %first.error, origin = %other.origin, "a request is sent again");
    let second = Box::pin(attempt(&mut message, &other, Freshness::New, to)).await;
    second.map_err(|failure| {
        if upload.fault().is_none() && failure.is_origins_fault() {
            origins.failed(tenant, &other, failure.error.reason(), alone);
        }
        Unserved::by(&other, failure.error)
    })
}

/// A client's request, until its body has left.
struct Message<'a> {
    parts: &'a Parts,
    /// And without a body: to send it twice is to send it once.
    idempotent: bool,
    body: Option<RequestBody>,
}

/// Why there is no answer, and what may be done about it.
struct Failure {
    error: OriginError,
    repeat: Repeat,
    /// It went out on a kept connection that was dead.
    stale: bool,
    /// The client had not sent all of the body: an origin that ends it then may have waited for the client, or does not want
    /// so much.
    in_body: bool,
}

impl Failure {
    /// Nothing that a client does or leaves undone is one.
    fn is_origins_fault(&self) -> bool {
        !self.in_body && self.error.is_origins_fault()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Never,
    AnotherOrigin,
    /// At the same origin: only its connection was no good.
    NewConnection,
}

async fn attempt(
    message: &mut Message<'_>,
    endpoint: &Rc<Endpoint>,
    freshness: Freshness,
    to: Forwarding<'_>,
) -> Result<Answer, Failure> {
    let worker = &to.context.worker;
    let deadlines = to.upstream.deadlines;
    let connect = deadlines.connect.unwrap_or(worker.edge.deadlines.origin_connect);
    let unsent = |error| Failure { error, repeat: Repeat::AnotherOrigin, stale: false, in_body: false };
    let mut turn = Rc::clone(endpoint).enter(connect).await.map_err(unsent)?;
    turn.exchanging = worker.edge.memory.begin_exchange(to.host.tenant.origin_exchanges());
    if turn.exchanging.is_none() {
        let error = OriginError::Memory;
        return Err(Failure { error, repeat: Repeat::Never, stale: false, in_body: false });
    }
    if tunnel::is_websocket(message.parts) {
        return tunnel::open(message.parts, turn, connect, to).await;
    }
    let begun = clock::now();
    let leasing = worker.origins.lease(&to.host.tenant, turn, freshness, to.ends(), connect);
    let mut lease = leasing.await.map_err(unsent)?;
    let connect = (!lease.is_reused()).then(|| clock::now().duration_since(begun));
    let never = |error| Failure { error, repeat: Repeat::Never, stale: false, in_body: false };
    let head = origin_request(message.parts, to, &endpoint.origin, lease.is_http2()).map_err(never)?;
    let mut request = head.map(|()| message.body.take().unwrap_or_else(RequestBody::empty));
    if !lease.is_http2() {
        frame_body(&mut request);
    }
    let taking = worker.edge.deadlines.origin_write_stall;
    let answering = deadlines.first_byte.unwrap_or(worker.edge.deadlines.origin_first_byte);
    let upload = request.body().upload();
    upload.begin(request.body().is_end_stream());
    let sent = clock::now();
    let result = tokio::select! {
        biased;
        result = lease.send(request) => result,
        overdue = upload.overdue(taking, answering) => return Err(never(overdue.into())),
    };
    let whole = upload.whole_since();
    match result {
        Ok(response) => {
            if whole.is_some() {
                judge(&response, endpoint, to);
            }
            let first_byte = clock::now().duration_since(whole.unwrap_or(sent));
            let reached = reached(lease.address(), connect, first_byte, to);
            answer_of(response, lease, reached, to).map_err(never)
        }
        Err(unanswered) => Err(unanswered_of(unanswered, whole.is_none(), &lease, message)),
    }
}

/// An answer to a whole request is a success, unless a gateway or a server behind it says that there is nobody to answer.
fn judge(response: &Response<Incoming>, endpoint: &Endpoint, to: Forwarding<'_>) {
    let status = response.status();
    if matches!(status.as_u16(), 502..=504) {
        let alone = to.upstream.origins.len() == 1;
        to.context.worker.origins.failed(&to.host.tenant, endpoint, status.as_str(), alone);
    } else {
        endpoint.succeeded();
    }
}

fn unanswered_of(unanswered: Unanswered, in_body: bool, lease: &Lease, message: &mut Message<'_>) -> Failure {
    let Unanswered { error, body } = unanswered;
    let dead = error.is_dead_connection() || error.is_not_begun();
    if dead {
        lease.retire();
    }
    // An idempotent one, or one that has not left: its body is here again.
    let repeatable = body.is_some() || (message.idempotent && dead);
    let in_body = in_body && body.is_none();
    message.body = body;
    let only_the_connection = dead && (lease.is_reused() || error.is_not_begun());
    let repeat = match (repeatable, only_the_connection) {
        (false, _) => Repeat::Never,
        (true, true) => Repeat::NewConnection,
        (true, false) => Repeat::AnotherOrigin,
    };
    Failure { error, repeat, stale: only_the_connection, in_body }
}

/// Notes how long an origin took.
fn reached(
    address: SocketAddr,
    connect: Option<Duration>,
    first_byte: Duration,
    to: Forwarding<'_>,
) -> Reached {
    to.context.worker.edge.metrics.origin_first_byte_seconds.record(first_byte.as_secs_f64());
    Reached { place: Place::Address(address), connect, first_byte: Some(first_byte) }
}

fn answer_of(
    response: Response<Incoming>,
    lease: Lease,
    reached: Reached,
    to: Forwarding<'_>,
) -> Result<Answer, OriginError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(OriginError::BadAnswer); // nobody asked for it
    }
    // hyper counts those of HTTP/1 itself.
    if response.headers().len() > limits::ORIGIN_HEADER_FIELDS_MAX {
        return Err(OriginError::BadAnswer);
    }
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    let framed = lease.is_http2()
        || incoming.is_end_stream()
        || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
            .iter()
            .any(|name| head.headers.contains_key(name));
    let spoken = if lease.is_http2() { Protocol::Http2 } else { Protocol::Http1 };
    forwarding::clean_response(&mut head, spoken)?;
    let host = Arc::clone(to.host);
    let cut = Box::pin(async move { host.cut(clock::unix_ms()).await });
    let stall = to.upstream.deadlines.idle.unwrap_or(to.context.worker.edge.deadlines.origin_body_stall);
    let body = OriginBody::new(incoming, lease, cut, stall, framed);
    let response = Response::from_parts(head, ResponseSource::Origin(Box::new(body)));
    Ok(Answer { response, reason: None, origin: Some(reached), cache: None })
}

/// The request as the origin is to see it.
fn origin_request(
    parts: &Parts,
    to: Forwarding<'_>,
    origin: &Origin,
    http2: bool,
) -> Result<Request<()>, OriginError> {
    let public = public_host(to)?;
    let facts = ForwardedFacts {
        visitor: to.visitor,
        protocol: to.context.protocol,
        host: &public,
        client: to.context.client(),
    };
    let host = origin.host_header.as_ref().unwrap_or(&public);
    let headers =
        forwarding::request_headers(&parts.headers, &facts, host).map_err(|_| OriginError::Looping)?;
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.headers_mut() = headers;
    if http2 {
        // RFC 9113 section 8.3.1: `:authority` in the place of Host.
        request.headers_mut().remove(header::HOST);
        *request.version_mut() = Version::HTTP_2;
        let path = origin_form(parts).into_parts().path_and_query;
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = endpoint_uri(origin, host, path)?;
    } else {
        *request.uri_mut() = origin_form(parts);
    }
    Ok(request)
}

/// Scheme, authority and path, as HTTP/2 has them apart.
fn endpoint_uri(origin: &Origin, host: &HeaderValue, path: PathAndQuery) -> Result<Uri, OriginError> {
    let scheme = match origin.scheme {
        OriginScheme::Http => "http",
        OriginScheme::Https => "https",
    };
    let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path);
    uri.build().map_err(|_| OriginError::BadAnswer)
}

/// hyper takes GET and HEAD for bodiless unless their length or a coding is there (RFC 9112 section 6.3), and HTTP/2 and
/// 3 carry bodies of unknown length under any method: such a body would be left out, and the origin would answer another
/// request than the client's.
fn frame_body(request: &mut Request<RequestBody>) {
    let body = request.body();
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
    }
}

/// Path and query alone (RFC 9112 section 3.2.1); `OPTIONS *` stays what it is.
fn origin_form(parts: &Parts) -> Uri {
    let target = parts.uri.path_and_query().cloned();
    let asterisk = parts.method == Method::OPTIONS && target.as_ref().is_some_and(|target| target == "*");
    match target {
        Some(target) if asterisk || target.as_str().starts_with('/') => Uri::from(target),
        _ => Uri::from(PathAndQuery::from_static("/")),
    }
}

/// Name and port as the client reaches us; the scheme's own port is left out.
fn public_host(to: Forwarding<'_>) -> Result<HeaderValue, OriginError> {
    let name = to.authority.name.as_str();
    let default = if to.visitor.tls { 443 } else { 80 };
    let value = match to.authority.port {
        Some(port) if port != default => HeaderValue::try_from(format!("{name}:{port}")),
        _ => HeaderValue::from_str(name),
    };
    value.map_err(|_| OriginError::BadAnswer)
}
