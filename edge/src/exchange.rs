//! One exchange: a request and its answer, the same for HTTP/1.1, HTTP/2 and HTTP/3.
//!
//! [`serve_exchange`] reads top to bottom what a request goes through: its authority, the rule of misdirected requests,
//! ACME challenges, suspension, the redirect to https, maintenance, the route. It always has an answer; a panic inside costs one
//! exchange (500) and is counted. The end, whole or broken off, is logged and counted by [`ExchangeEnd`].

use std::{
    fmt,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
};
use http_body::Body as _;

mod challenge;
mod early;
mod end;
mod grpc;
mod page;
mod path;
mod proof;
mod refused;
mod rewrite;
mod tally;

pub(crate) use early::EARLY_DATA;
pub use early::Handshaking;
pub use end::ExchangeEnd;
pub(crate) use refused::Refused;
pub(crate) use tally::Tally;

use crate::{
    cache, clock, coding,
    http::{
        authority::{Authority, Entrance, is_misdirected},
        body::{RequestBody, ResponseBody, ResponseSource},
        budget::{ConnectionBudget, HeadShare},
        clock::ConnectionClock,
        extended_connect::ExtendedConnect,
        forwarding, framing,
        visitor::{TrustedProxies, Visitor},
    },
    limits,
    listen::AltSvc,
    live::{Action, Host, Maintenance, Origin, OriginHost, OverShare, Suspension, SuspensionMode},
    metrics::{ActionTaken, Limited},
    sources::Source,
    tls::{ClientIdentity, Handshake, Shown},
    upstream::tunnel,
    worker::Worker,
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a client speaks to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    Http3,
}

/// What all exchanges of one connection have in common.
#[derive(Debug)]
pub struct ConnectionContext {
    pub worker: Rc<Worker>,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub protocol: Protocol,
    /// `None` on a plain listener.
    pub shown: Option<Shown>,
    /// `None` on a plain listener.
    pub handshake: Option<Handshake>,
    /// Where https is, as clients see it.
    pub public_https_port: u16,
    /// For clients of HTTP/1.1 and 2, where the listener has HTTP/3.
    pub alt_svc: Option<Arc<AltSvc>>,
    pub clock: Rc<ConnectionClock>,
    pub budget: ConnectionBudget,
    /// The client's address, and what it has taken.
    pub source: Source,
    /// Whose word counts on who asks.
    pub trusted: Option<Arc<TrustedProxies>>,
    /// Set: requests may come before the end of the handshake.
    pub early: Option<Rc<Handshaking>>,
}

impl ConnectionContext {
    fn visitor(&self, parts: &Parts) -> Visitor {
        let unique = self.worker.next_unique();
        let neighbour = (self.peer, self.shown.is_some());
        let mut visitor = Visitor::of(&parts.headers, neighbour, self.trusted.as_deref(), unique);
        visitor.span = self.worker.edge.traces.begin(&parts.headers, unique);
        visitor
    }

    /// Room for a request with this head beside those that are open. Where there is none, that is counted, and a client that
    /// goes on all the same loses its connection.
    pub(crate) fn admit(&self, head: &Parts) -> Option<HeadShare> {
        let share = self.budget.head(head);
        if share.is_none() {
            self.worker.edge.metrics.limited(Limited::ConnectionHeads);
            self.clock.request_given_up();
        }
        share
    }

    /// How long input that nobody wants is read on, so that the client reads its answer.
    pub(crate) fn linger(&self) -> Duration {
        let deadlines = &self.worker.edge.deadlines;
        if self.worker.drain.is_begun() { deadlines.linger_draining } else { deadlines.linger }
    }

    /// The same for the rest of one request's body.
    pub(crate) fn leftover(&self) -> Duration {
        let deadlines = &self.worker.edge.deadlines;
        if self.worker.drain.is_begun() { deadlines.linger_draining } else { deadlines.leftover }
    }

    /// Who the client is by its certificate.
    pub(crate) fn client(&self) -> Option<&ClientIdentity> {
        self.shown.as_ref()?.client.as_deref()
    }
}

/// There is to be no answer: the connection (HTTP/1.1) or the stream (HTTP/2, 3) is closed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("suspended: the connection is dropped")]
pub struct Dropped;

/// An answer before it is a response: what to send, and what to note.
#[derive(Debug)]
pub(crate) struct Answer {
    pub response: Response<ResponseSource>,
    /// Why we answered ourselves, in one word; absent for a tenant's own answer.
    pub reason: Option<&'static str>,
    pub origin: Option<Reached>,
    /// None: no cache was asked.
    pub cache: Option<cache::Outcome>,
}

/// The origin that was asked last, and how long that took.
#[derive(Debug, Clone)]
pub struct Reached {
    pub place: Place,
    /// None: the connection was there, or none was made.
    pub connect: Option<Duration>,
    /// From the end of the request on to the head of the answer; none: there was none.
    pub first_byte: Option<Duration>,
}

/// Where an origin is.
#[derive(Debug, Clone)]
pub enum Place {
    Address(SocketAddr),
    /// It gave no answer; as the route names it.
    Named(Arc<Origin>),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self {
            Self::Address(address) => return write!(formatter, "{address}"),
            Self::Named(origin) => origin,
        };
        match &origin.host {
            OriginHost::Name(name) => write!(formatter, "{name}:{}", origin.port),
            OriginHost::Address(ip) => write!(formatter, "{}", SocketAddr::new(*ip, origin.port)),
        }
    }
}

/// Answers one request.
///
/// # Errors
/// [`Dropped`], when the host is suspended in that way.
pub async fn serve_exchange(
    request: Request<RequestBody>,
    context: &Rc<ConnectionContext>,
) -> Result<Response<ResponseBody>, Dropped> {
    let (mut parts, mut body) = request.into_parts();
    path::complete(&mut parts.uri);
    let mut end = Box::new(ExchangeEnd::begin(context, &parts));
    body.measure(end.tally());
    let is_head = parts.method == Method::HEAD;
    let is_grpc = grpc::is_call(&parts.headers);
    let answering = AssertUnwindSafe(answer(parts, body, context, &mut end));
    let answer = match answering.catch_unwind().await {
        Ok(answer) => answer?,
        Err(_) => {
            context.worker.edge.metrics.exchange_panics.increment(1);
            Answer::page(StatusCode::INTERNAL_SERVER_ERROR, "panic")
        }
    };
    let Answer { mut response, reason, origin, cache } = answer;
    end.answered(response.status(), reason, origin, cache);
    if let Some(reason) = reason {
        if is_grpc {
            grpc::translate(&mut response); // the log and the metrics have the status
        } else if let Some(host) = end.host().filter(|host| host.served) {
            // On a name that nobody has proved to hold, nothing of the tenant's is shown.
            page::put_own(&mut response, reason, host);
        }
    }
    finish_headers(&mut response, context, &end);
    if is_head {
        without_body(&mut response);
    }
    Ok(response.map(|source| ResponseBody::new(source, end)))
}

async fn answer(
    mut parts: Parts,
    mut body: RequestBody,
    context: &Rc<ConnectionContext>,
    end: &mut ExchangeEnd,
) -> Result<Answer, Dropped> {
    if let Err(wait) = context.source.take_request() {
        let reason = Limited::SourceRequests.as_str();
        return Ok(Answer::page(StatusCode::TOO_MANY_REQUESTS, reason).after(wait));
    }
    let authority = match check_request(&parts, context, end.visitor()) {
        Ok(authority) => authority,
        Err((status, reason)) => return Ok(Answer::refused(status, reason, context)),
    };
    // No origin sees them, so nothing is to be decided by them; and what is added from here on is not the client's to name.
    forwarding::remove_named(&mut parts.headers);
    let live = &context.worker.edge.live;
    let host = live.host(&authority.name);
    if let Some(shown) = &context.shown
        && is_misdirected(shown, &authority.name, host.as_deref())
    {
        context.worker.edge.metrics.misdirected.increment(1);
        // HTTP/1.1 has no other way to say that the connection is of no more use for this name.
        let of_no_use = shown.sni.as_ref() == Some(&authority.name);
        let answer = Answer::page(StatusCode::MISDIRECTED_REQUEST, "misdirected");
        return Ok(if of_no_use { answer.closing(context) } else { answer });
    }
    let challenge = challenge::token_of(&parts, context);
    if let Some(token) = challenge
        && let Some(answer) = challenge::answer(live, &authority, host.as_deref(), token)
    {
        context.worker.edge.metrics.challenges_http01.increment(1);
        return Ok(answer);
    }
    let Some(host) = host else {
        return Ok(Answer::page(StatusCode::NOT_FOUND, "unknown_host"));
    };
    end.of_host(&host);
    let visitor = Arc::clone(end.visitor());
    if let Some(suspension) = host.suspended(end.started_unix_ms()) {
        return suspended(&suspension);
    }
    if !host.served {
        return Ok(Answer::page(StatusCode::NOT_FOUND, "not_served"));
    }
    let early = early::may_go_on(&parts, &body, context, &host).await?;
    match host.tenant.begin_exchange(&live.fleet.load().tenant_limits) {
        Ok(share) => {
            body.set_most(share.request_body_bytes_max);
            end.takes(share);
        }
        Err(over) => return Ok(over_share(over, context)),
    }
    // Nobody has looked at a client's certificate on a plain connection, whatever a proxy before us says of it.
    let knows_clients = host.requires_client_certificate();
    let is_plain = if knows_clients { context.shown.is_none() } else { !visitor.tls };
    // A token that is not ours belongs to the tenant's own ACME client, which may have nothing but port 80; where clients are to
    // be known, nothing of the origin is shown there all the same.
    let is_its_own = challenge.is_some() && !knows_clients;
    if is_plain && host.redirects_to_https() && !is_its_own {
        return Ok(to_https(&parts, &authority, context.public_https_port));
    }
    // The same for the origin's own certificate while the tenant works on the site.
    if let Some(maintenance) = host.maintenance.as_deref().filter(|_| !is_its_own) {
        let mut answer = in_maintenance(maintenance);
        add_policy_headers(&mut answer, context, &visitor, &host);
        return Ok(answer);
    }
    if proof::comes_through_us(&parts) {
        return Ok(Answer::page(StatusCode::LOOP_DETECTED, "proof_through_us"));
    }
    if let Err(reason) = check_body(&parts, &mut body, context).await {
        return Ok(Answer::refused(StatusCode::BAD_REQUEST, reason, context));
    }
    let mut answer = match early {
        false => follow_route(parts, body, context, (&host, &authority), &visitor, end).await?,
        true => follow_early(parts, context, (&host, &authority), &visitor, end).await?,
    };
    add_policy_headers(&mut answer, context, &visitor, &host);
    Ok(answer)
}

/// A request without a body, before the end of its connection's handshake.
async fn follow_early(
    mut parts: Parts,
    context: &Rc<ConnectionContext>,
    asking: (&Arc<Host>, &Authority),
    visitor: &Arc<Visitor>,
    end: &mut ExchangeEnd,
) -> Result<Answer, Dropped> {
    // One that was early for a proxy before us is not made good by our handshake.
    let again = (!parts.headers.contains_key(EARLY_DATA)).then(|| parts.clone());
    early::mark(&mut parts);
    let answer = follow_route(parts, RequestBody::empty(), context, asking, visitor, end).await?;
    let (Some(parts), StatusCode::TOO_EARLY) = (again, answer.response.status()) else { return Ok(answer) };
    // To be asked again when the handshake has ended (RFC 8470 section 5.2): better by us than by the client.
    drop(answer);
    early::wait(context).await?;
    follow_route(parts, RequestBody::empty(), context, asking, visitor, end).await
}

/// Refuses a body that not all readers of the head would look for.
async fn check_body(
    parts: &Parts,
    body: &mut RequestBody,
    context: &ConnectionContext,
) -> Result<(), &'static str> {
    // What follows it would go to the origin unread, or be taken for a request, once this has become a tunnel.
    if tunnel::is_websocket(parts) && !body.is_end_stream() {
        return Err("upgrade_with_body");
    }
    if context.protocol != Protocol::Http1 && says_empty(parts) && !body.turns_out_empty().await {
        return Err("body_beyond_length");
    }
    Ok(())
}

/// Such a body is taken for none by those who read the length; frames that are there all the same would be dropped.
fn says_empty(parts: &Parts) -> bool {
    let zeros = |length: &HeaderValue| length.as_bytes().iter().all(|&digit| digit == b'0');
    parts.headers.get(header::CONTENT_LENGTH).is_some_and(zeros)
}

/// RFC 9113 section 8.2.1, RFC 9114 section 10.3.
fn is_padded(value: &HeaderValue) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    blank(value.as_bytes().first()) || blank(value.as_bytes().last())
}

/// What a 405 owes to who asks by a method that is nobody's here (RFC 9110 section 15.5.6). Others that a site's origin may know
/// are passed on to it; which those are is not known.
const SERVED_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// What can be refused without knowing the host.
fn check_request(
    parts: &Parts,
    context: &ConnectionContext,
    visitor: &Visitor,
) -> Result<Authority, (StatusCode, &'static str)> {
    let entrance = Entrance {
        tls: context.shown.is_some(),
        client_tls: visitor.tls,
        local_port: context.local.port(),
        public_https_port: context.public_https_port,
    };
    let bad = |reason| (StatusCode::BAD_REQUEST, reason);
    let is_tunnel = parts.extensions.get::<ExtendedConnect>().is_some();
    if is_tunnel && context.clock.tunnels() > limits::H2_TUNNELS_MAX {
        return Err((StatusCode::TOO_MANY_REQUESTS, "too_many_tunnels"));
    }
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "method"));
    }
    // Over HTTP/1 it is none of the value (RFC 9112 section 5), and those who trim there and not here see two requests.
    if context.protocol != Protocol::Http1 && parts.headers.values().any(is_padded) {
        return Err(bad("field_white_space"));
    }
    // Over HTTP/1 the reader of messages has looked.
    if context.protocol != Protocol::Http1 {
        framing::length_of(&parts.headers).map_err(|fault| bad(fault.reason()))?;
    }
    // hyper counts the fields of HTTP/1 alone. A cookie may come in any number of pieces (RFC 9113 section 8.2.3).
    let crumbs = parts.headers.get_all(header::COOKIE).iter().count();
    if parts.headers.len() - crumbs > limits::HEADER_FIELDS_MAX {
        return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_fields"));
    }
    if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() > limits::TARGET_BYTES_MAX) {
        return Err((StatusCode::URI_TOO_LONG, "target_too_long"));
    }
    let authority = Authority::of(parts, entrance).map_err(|fault| bad(fault.reason()))?;
    if !path::is_target(&parts.method, &parts.uri) {
        return Err(bad("target"));
    }
    path::check(&parts.uri).map_err(bad)?;
    // Answered by hyper in its one exact form; anything else is another server's idea of framing (RFC 9110 10.1.1).
    let mut expectations = parts.headers.get_all(header::EXPECT).iter();
    match (expectations.next(), expectations.next()) {
        (None, _) => {}
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"100-continue") => {}
        _ => return Err((StatusCode::EXPECTATION_FAILED, "expectation")),
    }
    Ok(authority)
}

async fn follow_route(
    mut parts: Parts,
    mut body: RequestBody,
    context: &Rc<ConnectionContext>,
    (host, authority): (&Arc<Host>, &Authority),
    visitor: &Arc<Visitor>,
    end: &mut ExchangeEnd,
) -> Result<Answer, Dropped> {
    let Some((route, rest)) = host.route(&parts.method, parts.uri.path(), &parts.headers) else {
        return Ok(Answer::page(StatusCode::NOT_FOUND, "no_route"));
    };
    end.of_route(&route.rule, ActionTaken::of(&route.action));
    let target = match rewrite::target(&route.rule, &parts.uri, rest) {
        Ok(target) => target,
        Err((status, reason)) => return Ok(Answer::page(status, reason)),
    };
    let is_known = context.client().is_some();
    let client = route.compression().map(|rule| (coding::Client::of(&mut parts, rule, is_known), rule));
    let mut answer = match &route.action {
        Action::Proxy(upstream) => {
            let asked = parts.uri.clone();
            if upstream.cache.is_some() {
                cache::take_unkeyed(&mut parts);
            }
            rewrite::request(&mut parts, &route.rule, target);
            if let Some(changes) = route.rule.request_headers() {
                body.changed_by(changes);
            }
            let path = asked.path();
            let asking = cache::Asking { context, host, authority, route, upstream, visitor, path };
            Box::pin(cache::serve(parts, body, asking)).await?
        }
        Action::Redirect(redirect) => {
            let path = target.as_ref().map_or_else(|| parts.uri.path(), |target| target.path());
            match redirect.location_for(path, parts.uri.query()) {
                Some(location) => Answer::redirect(redirect.status, location, None),
                None => Answer::page(StatusCode::BAD_REQUEST, "target"),
            }
        }
        Action::Static { status, content_type, body } => {
            // A route that names methods was asked for them.
            let takes =
                !route.rule.methods().is_empty() || matches!(parts.method, Method::GET | Method::HEAD);
            if takes || !status.is_success() {
                Answer::of_route(*status, content_type, body)
            } else {
                let mut answer = Answer::page(StatusCode::METHOD_NOT_ALLOWED, "method");
                answer.response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                answer
            }
        }
    };
    // A page of our own is not the tenant's to change.
    if let Some(changes) = route.rule.response_headers().filter(|_| answer.reason.is_none()) {
        changes.apply(answer.response.headers_mut());
    }
    if let Some((client, rule)) = client {
        client.encode(&mut answer, rule, (host.tenant.id, &context.worker));
    }
    Ok(answer)
}

/// Answers for a suspended host.
pub(crate) fn suspended(suspension: &Suspension) -> Result<Answer, Dropped> {
    let (status, reason) = match suspension.mode {
        SuspensionMode::Page => (StatusCode::SERVICE_UNAVAILABLE, page::SUSPENDED),
        SuspensionMode::Gone => (StatusCode::GONE, "suspended_gone"),
        SuspensionMode::Legal => (StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, "suspended_legal"),
        SuspensionMode::Drop => return Err(Dropped),
    };
    let body = page::of(status, &suspension.reason);
    Ok(Answer::fixed(status, page::CONTENT_TYPE, body, Some(reason)).uncached())
}

/// 429 is for a rate (RFC 6585 section 4), 503 for what is full at the moment.
fn over_share(over: OverShare, context: &ConnectionContext) -> Answer {
    context.worker.edge.metrics.limited(over.limit);
    let is_a_rate = over.limit == Limited::TenantRequests;
    let status = if is_a_rate { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer::page(status, over.limit.as_str()).after(over.wait)
}

fn in_maintenance(maintenance: &Maintenance) -> Answer {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let body = page::of(status, &maintenance.text);
    let mut answer = Answer::fixed(status, page::CONTENT_TYPE, body, Some(page::MAINTENANCE)).uncached();
    let retry_after = HeaderValue::from(maintenance.retry_after_seconds);
    answer.response.headers_mut().insert(header::RETRY_AFTER, retry_after);
    answer
}

/// 301 where the method survives it anyway, 308 so that a POST stays a POST (RFC 9110 section 15.4).
fn to_https(parts: &Parts, authority: &Authority, public_https_port: u16) -> Answer {
    let status = match parts.method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if target == "*" {
        // Of the server as a whole (RFC 9110 section 9.3.7): there is nothing to lead anywhere.
        return Answer::fixed(StatusCode::OK, page::CONTENT_TYPE, Bytes::new(), Some("asterisk"));
    }
    let location = match public_https_port {
        443 => format!("https://{}{target}", authority.name),
        port => format!("https://{}:{port}{target}", authority.name),
    };
    match HeaderValue::try_from(location) {
        Ok(location) => Answer::redirect(status, location, Some("https_redirect")),
        Err(_) => Answer::page(StatusCode::BAD_REQUEST, "target"),
    }
}

fn add_policy_headers(answer: &mut Answer, context: &ConnectionContext, visitor: &Visitor, host: &Host) {
    let headers = answer.response.headers_mut();
    if let Some(hsts) = host.hsts.as_ref().filter(|_| visitor.tls) {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::clone(hsts));
    }
    if let (Some(shown), Some(alt_svc)) = (&context.shown, &context.alt_svc) {
        headers.insert(header::ALT_SVC, alt_svc.value(shown.policy.http3 && host.policy.http3));
    }
}

fn finish_headers(response: &mut Response<ResponseSource>, context: &ConnectionContext, end: &ExchangeEnd) {
    // The origin's own may be that of another request, whose answer was kept.
    response.headers_mut().insert(X_REQUEST_ID, end.visitor().request_id.clone());
    if context.protocol == Protocol::Http1 && (end.is_last() || context.worker.drain.is_begun()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// HEAD: the headers of GET, its length among them, and nothing after them.
fn without_body(response: &mut Response<ResponseSource>) {
    if let ResponseSource::Full(bytes) = response.body() {
        let length = HeaderValue::from(bytes.len());
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length);
        *response.body_mut() = ResponseSource::Empty;
    }
}

impl Answer {
    /// A neutral page of our own; never to be cached.
    pub(crate) fn page(status: StatusCode, reason: &'static str) -> Self {
        Self::fixed(status, page::CONTENT_TYPE, page::of(status, ""), Some(reason)).uncached()
    }

    /// To come again soon.
    pub(crate) fn short_of_memory(context: &ConnectionContext) -> Self {
        context.worker.edge.metrics.limited(Limited::Memory);
        Self::page(StatusCode::SERVICE_UNAVAILABLE, Limited::Memory.as_str())
            .after(limits::MEMORY_RETRY_AFTER)
    }

    fn fixed(
        status: StatusCode,
        content_type: HeaderValue,
        body: Bytes,
        reason: Option<&'static str>,
    ) -> Self {
        let mut response = Response::new(ResponseSource::Full(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        Self { response, reason, origin: None, cache: None }
    }

    fn of_route(status: StatusCode, content_type: &HeaderValue, body: &Bytes) -> Self {
        let mut answer = Self::fixed(status, content_type.clone(), body.clone(), None);
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED) {
            answer.response.headers_mut().remove(header::CONTENT_TYPE);
            *answer.response.body_mut() = ResponseSource::Empty;
        }
        answer
    }

    fn redirect(status: StatusCode, location: HeaderValue, reason: Option<&'static str>) -> Self {
        let mut answer = Self::fixed(status, page::CONTENT_TYPE, page::of(status, ""), reason);
        answer.response.headers_mut().insert(header::LOCATION, location);
        answer
    }

    fn uncached(mut self) -> Self {
        self.response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self
    }

    /// Says when to come again, in whole seconds.
    fn after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        self
    }

    /// For a request that nobody is to see, whoever it is for.
    fn refused(status: StatusCode, reason: &'static str, context: &ConnectionContext) -> Self {
        context.worker.edge.metrics.request_refused(reason);
        let mut answer = Self::page(status, reason).closing(context);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            answer.response.headers_mut().insert(header::ALLOW, SERVED_METHODS);
        }
        answer
    }

    /// After a request that we could not make sense of, nothing behind it on the connection is believed either.
    fn closing(mut self, context: &ConnectionContext) -> Self {
        if context.protocol == Protocol::Http1 {
            self.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self
    }
}

impl Protocol {
    /// As the access log and the metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Http3 => "h3",
        }
    }
}

/// The moment and the words of a request that its end will be logged with.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub started: Instant,
    pub started_unix_ms: i64,
    pub method: Method,
    pub target: Uri,
    pub version: Version,
}

impl Noted {
    fn of(parts: &Parts) -> Self {
        Self {
            started: clock::now(),
            started_unix_ms: clock::unix_ms(),
            method: parts.method.clone(),
            target: parts.uri.clone(),
            version: parts.version,
        }
    }
}
