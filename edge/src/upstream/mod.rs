//! Requests to origins: one pool per worker, keyed by tenant and origin, HTTP/1.1 over plain TCP or TLS.
//!
//! A message that we forward is made anew by hyper from what was understood of the client's, so that an origin sees
//! exactly one message (promise P11). A request is sent a second time only when it went out on a kept connection that
//! turned out to be dead before the first byte of an answer, has no body, and is idempotent.
//!
//! Deliberately absent (yet): HTTP/2 to origins, health checks, balancing over several addresses by load.

mod connect;
mod error;
mod pool;
mod resolve;
pub mod tunnel;

use std::{rc::Rc, sync::Arc};

use http::{
    HeaderValue, Method, Request, StatusCode, Uri, Version, header, request::Parts, uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{Response, body::Incoming};

pub use connect::{OriginTls, Origins};
pub use error::OriginError;
pub use pool::Lease;
pub use resolve::{Names, system_servers};

use crate::{
    access_log::RequestId,
    exchange::{Answer, ConnectionContext, Dropped, suspended},
    http::{
        authority::Authority,
        body::{BodyFault, OriginBody, RequestBody, ResponseSource},
        forwarding::{self, ForwardedFacts},
    },
    limits,
    live::{Host, Origin},
};

/// Where a request goes, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forwarding<'a> {
    pub context: &'a Rc<ConnectionContext>,
    pub host: &'a Arc<Host>,
    pub authority: &'a Authority,
    pub origin: &'a Arc<Origin>,
    pub id: RequestId,
}

/// Sends a request to its origin and brings the answer, or a page that says 502, 503 or 504 and no more.
pub(crate) async fn forward(
    parts: Parts,
    mut body: RequestBody,
    forwarding: Forwarding<'_>,
) -> Result<Answer, Dropped> {
    body.set_stall(forwarding.context.worker.edge.deadlines.body_stall);
    let body_fault = body.fault();
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH)
        && length
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .is_none_or(|length: u64| length > limits::REQUEST_BODY_BYTES_MAX)
    {
        return Ok(Answer::page(StatusCode::PAYLOAD_TOO_LARGE, "request_body_too_large"));
    }
    let now_ms = crate::clock::unix_ms();
    // A suspension that arrives while the origin thinks ends the exchange.
    let result = tokio::select! {
        biased;
        suspension = forwarding.host.cut(now_ms) => return suspended(&suspension),
        result = exchange(&parts, body, forwarding) => result,
    };
    let error = match result {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let error = match body_fault.get() {
        Some(BodyFault::TooLarge) => OriginError::RequestTooLarge,
        Some(BodyFault::Stalled) => OriginError::RequestStalled,
        Some(BodyFault::Broken) => OriginError::RequestBroken,
        None => error,
    };
    let metrics = &forwarding.context.worker.edge.metrics;
    metrics.origin_error(error.reason());
    tracing::debug!(host = %forwarding.host.name, %error, "no answer from an origin");
    Ok(Answer::page(error.status(), error.reason()))
}

async fn exchange(parts: &Parts, body: RequestBody, to: Forwarding<'_>) -> Result<Answer, OriginError> {
    if tunnel::is_websocket(parts) {
        return tunnel::open(parts, to).await;
    }
    let origins = &to.context.worker.origins;
    let replayable = parts.method.is_idempotent() && body.is_end_stream();
    let mut body = Some(body);
    loop {
        let mut lease = match origins.kept(to.host, to.origin).await {
            Some(lease) => lease,
            None => origins.connect(to.host, to.origin).await?,
        };
        let body = body.take().unwrap_or_else(RequestBody::empty);
        let mut request = origin_request(parts, to)?.map(|()| body);
        frame_body(&mut request);
        let sending = lease.send(request);
        let error =
            match tokio::time::timeout(to.context.worker.edge.deadlines.origin_first_byte, sending).await {
                Ok(Ok(response)) => return answer_of(response, lease, to),
                Ok(Err(error)) => error,
                Err(_) => return Err(OriginError::FirstByteTimeout),
            };
        if !(replayable && lease.is_reused() && error.is_dead_connection()) {
            return Err(error);
        }
        to.context.worker.edge.metrics.origin_retries.increment(1);
    }
}

fn answer_of(response: Response<Incoming>, lease: Lease, to: Forwarding<'_>) -> Result<Answer, OriginError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(OriginError::BadAnswer); // nobody asked for it
    }
    let origin = lease.address();
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    forwarding::clean_response(&mut head.headers);
    let host = Arc::clone(to.host);
    let cut = Box::pin(async move { host.cut(crate::clock::unix_ms()).await });
    let body = OriginBody::new(incoming, lease, cut, to.context.worker.edge.deadlines.origin_body_stall);
    let response = Response::from_parts(head, ResponseSource::Origin(Box::new(body)));
    Ok(Answer { response, reason: None, origin: Some(origin) })
}

/// The request as the origin is to see it.
fn origin_request(parts: &Parts, to: Forwarding<'_>) -> Result<Request<()>, OriginError> {
    let public = public_host(to)?;
    let facts = ForwardedFacts {
        peer: to.context.peer,
        tls: to.context.shown.is_some(),
        protocol: to.context.protocol,
        host: &public,
        id: to.id,
    };
    let host = to.origin.host_header.as_ref().unwrap_or(&public);
    let headers =
        forwarding::request_headers(&parts.headers, &facts, host).map_err(|_| OriginError::Looping)?;
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = origin_form(parts);
    *request.headers_mut() = headers;
    Ok(request)
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
    let default = if to.context.shown.is_some() { 443 } else { 80 };
    let value = match to.authority.port {
        Some(port) if port != default => HeaderValue::try_from(format!("{name}:{port}")),
        _ => HeaderValue::from_str(name),
    };
    value.map_err(|_| OriginError::BadAnswer)
}
