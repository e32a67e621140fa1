//! WebSocket: a request that turns its connection into a tunnel (RFC 9110 section 7.8, RFC 6455), on HTTP/1.1.
//!
//! Nothing of the client's goes to the origin before the origin has answered 101; the framing reader refuses bytes that
//! come earlier. Only `websocket` is passed on: `h2c` and inventions would open a way around every check.

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
};

use super::{
    Failure, Forwarding, Gate, OriginError, Repeat, Turn,
    connect::{Opened, OriginStream},
    interim::Interim,
    origin_request,
    origins::http1_builder,
    reached,
    through::Through,
};
use crate::{
    clock,
    exchange::{Answer, Protocol, Reached, Tally},
    http::{
        body::{RequestBody, ResponseSource},
        extended_connect::ExtendedConnect,
        forwarding, goodbye,
    },
    limits,
    live::{Host, TenantShare},
    worker::Worker,
};

/// The origin's half, to be joined with the client's once 101 has been sent. Travels in the answer's extensions, which
/// have to be cloneable and sendable; the half itself is fetched on the worker through its ticket.
#[derive(Debug, Clone)]
pub struct TunnelOffer {
    ticket: u64,
}

impl TunnelOffer {
    /// Nobody is there to take it: the origin's half goes.
    pub(crate) fn decline(self, worker: &Worker) {
        drop(worker.take_half(self.ticket));
    }
}

/// What waits on the worker for its client.
pub struct OriginHalf {
    parts: oneshot::Receiver<(Box<dyn OriginStream>, Bytes)>,
    host: std::sync::Arc<Host>,
    tally: Rc<Tally>,
    /// For as long as the tunnel is open.
    _turn: Turn,
    share: TenantShare,
}

/// A request that we may pass on as an upgrade.
pub(crate) fn is_websocket(parts: &Parts) -> bool {
    let mut upgrades = parts.headers.get_all(header::UPGRADE).iter();
    let only_websocket = matches!((upgrades.next(), upgrades.next()), (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"websocket"));
    only_websocket
        && parts.method == Method::GET
        && parts.version == http::Version::HTTP_11
        && names_upgrade(&parts.headers)
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// Asks the origin; on 101 the answer carries a [`TunnelOffer`].
pub(super) async fn open(
    parts: &Parts,
    turn: Turn,
    deadline: Duration,
    to: Forwarding<'_>,
) -> Result<Answer, Failure> {
    let begun = clock::now();
    let opened = to.context.worker.origins.open_http1(&to.host.tenant, &turn, to.ends(), deadline).await;
    let opened = opened.map_err(|error| Failure {
        error,
        repeat: Repeat::AnotherOrigin,
        stale: false,
        in_body: false,
    })?;
    let connect = clock::now().duration_since(begun);
    let asked = ask(parts, (opened, connect), turn, to).await;
    asked.map_err(|error| Failure { error, repeat: Repeat::Never, stale: false, in_body: false })
}

async fn ask(
    parts: &Parts,
    (opened, connect): (Opened, Duration),
    turn: Turn,
    to: Forwarding<'_>,
) -> Result<Answer, OriginError> {
    let worker = &to.context.worker;
    let Opened { stream, address, .. } = opened;
    let gate = Rc::<Gate>::default();
    let stream: Box<dyn OriginStream> = Box::new(Through::new(stream, Rc::clone(&gate)));
    let handshake = http1_builder().handshake::<_, RequestBody>(TokioIo::new(stream)).await;
    let (mut sender, mut connection) = handshake.map_err(OriginError::of_hyper)?;
    let (give, take) = oneshot::channel();
    tokio::task::spawn_local(async move {
        let driven = std::future::poll_fn(|context| connection.poll_without_shutdown(context)).await;
        if driven.is_ok() {
            let parts = connection.into_parts();
            let _ = give.send((parts.io.into_inner(), parts.read_buf));
        }
    });
    let head = origin_request(parts, to, &turn.endpoint.origin, false)?;
    let mut request = head.map(|()| RequestBody::empty());
    request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    let sent = clock::now();
    let interim = Interim::of(&mut request);
    gate.follow(&interim);
    let sending = async {
        tokio::select! {
            biased;
            () = interim.too_many() => Err(OriginError::BadAnswer),
            sent = sender.send_request(request) => sent.map_err(OriginError::of_hyper),
        }
    };
    let first_byte = to.upstream.deadlines.first_byte.unwrap_or(worker.edge.deadlines.origin_first_byte);
    let response = tokio::time::timeout(first_byte, sending).await;
    let response = response.map_err(|_| OriginError::FirstByteTimeout)??;
    turn.endpoint.succeeded();
    let reached = reached(address, Some(connect), clock::now().duration_since(sent), to);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let stall = to.upstream.deadlines.idle.unwrap_or(worker.edge.deadlines.origin_body_stall);
        return refused(response, reached, stall).await;
    }
    let (mut head, _) = response.into_parts();
    // The key was ours, and the client cannot look.
    let extended = parts.extensions.get::<ExtendedConnect>().is_some();
    if extended && !accepts(&head.headers, &parts.headers) {
        return Err(OriginError::BadAnswer);
    }
    forwarding::clean_response(&mut head, Protocol::Http1)?;
    head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    let share = to.host.tenant.go_on(&worker.edge.live.fleet.load().tenant_limits);
    let tally = Tally::of_tunnel(to.context, to.host);
    let host = std::sync::Arc::clone(to.host);
    let half = OriginHalf { parts: take, host, tally, _turn: turn, share };
    head.extensions.insert(TunnelOffer { ticket: worker.keep_half(half) });
    Ok(Answer {
        response: Response::from_parts(head, ResponseSource::Empty),
        reason: None,
        origin: Some(reached),
        cache: None,
    })
}

/// RFC 6455 section 4.2.2: the key and a constant, hashed.
fn accepts(answer: &HeaderMap, request: &HeaderMap) -> bool {
    let Some(key) = request.get(header::SEC_WEBSOCKET_KEY) else { return false };
    let text = [key.as_bytes(), b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    answer.get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|value| *value == BASE64_STANDARD.encode(hash))
}

/// The origin does not want to: its answer is passed on, if it is short; the connection is not kept.
async fn refused(
    response: Response<hyper::body::Incoming>,
    reached: Reached,
    stall: Duration,
) -> Result<Answer, OriginError> {
    let (mut head, body) = response.into_parts();
    let limited = http_body_util::Limited::new(body, limits::TUNNEL_REFUSAL_BYTES_MAX);
    let collected = tokio::time::timeout(stall, http_body_util::BodyExt::collect(limited));
    let collected = collected.await.map_err(|_| OriginError::FirstByteTimeout)?;
    let bytes = collected.map_err(|_| OriginError::BadAnswer)?.to_bytes();
    forwarding::clean_response(&mut head, Protocol::Http1)?;
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Answer {
        response: Response::from_parts(head, ResponseSource::Full(bytes)),
        reason: None,
        origin: Some(reached),
        cache: None,
    })
}

/// Carries bytes both ways until both sides have ended their halves, nothing comes for too long or the host is suspended. A
/// drain lets it go on until the drain's own deadline.
///
/// Each way goes at its own pace: a client that writes much before it reads holds up only what is said to it. A side that has
/// ended may still be spoken to: browsers end their half of an HTTP/2 stream with their Close, and wait for the origin's
/// (RFC 9113 section 8.5).
pub async fn run<S>(client: S, early: Bytes, offer: TunnelOffer, worker: &Worker)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(half) = worker.take_half(offer.ticket) else { return };
    let deadlines = &worker.edge.deadlines;
    let parts = tokio::time::timeout(deadlines.origin_connect, half.parts).await;
    let Ok(Ok((origin, first))) = parts else { return };
    // The halves share a lock that no other thread ever knows of.
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_origin, mut to_origin) = tokio::io::split(origin);
    let (up_active, down_active) = (Cell::new(clock::now()), Cell::new(clock::now()));
    let up = Way { active: &up_active, stall: deadlines.origin_write_stall };
    let down = Way { active: &down_active, stall: deadlines.write_stall };
    let received = |bytes| {
        half.tally.received(bytes);
        Duration::ZERO
    };
    let sent = |bytes| {
        half.tally.sent(bytes);
        // As the answer to a request would: no faster than the tenant's bandwidth.
        half.share.queue(bytes)
    };
    {
        let mut up = pin!(up.carry(&mut from_client, &mut to_origin, early, received));
        let mut down = pin!(down.carry(&mut from_origin, &mut to_client, first, sent));
        let mut cut = pin!(half.host.cut(clock::unix_ms()));
        let quiet = |patience| quiet([&up_active, &down_active], patience);
        let more = tokio::select! {
            _ = &mut cut => None,
            () = quiet(deadlines.tunnel_idle) => None,
            whole = &mut up => whole.then_some(Left::Down),
            whole = &mut down => whole.then_some(Left::Up),
        };
        if let Some(left) = more {
            tokio::select! {
                _ = &mut cut => {}
                () = quiet(deadlines.tunnel_half_closed) => {}
                _ = &mut up, if left == Left::Up => {}
                _ = &mut down, if left == Left::Down => {}
            }
        }
    }
    tokio::join!(
        goodbye::say(&mut to_client, b"", deadlines.goodbye),
        goodbye::say(&mut to_origin, b"", deadlines.goodbye)
    );
}

const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;

/// Which way has not ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Up,
    Down,
}

/// One of a tunnel's two.
struct Way<'a> {
    /// When something was carried last; later than now where it is us who wait.
    active: &'a Cell<Instant>,
    /// For how long a side may take nothing.
    stall: Duration,
}

impl Way<'_> {
    /// Carries `first`, and what is read, until the side that is read has ended its half, and ends the other's. `counted` says
    /// after how long it is a piece's turn. False: the tunnel is broken.
    async fn carry(
        self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        first: Bytes,
        counted: impl Fn(usize) -> Duration,
    ) -> bool {
        if !first.is_empty() && !self.pass(&first, to, &counted).await {
            return false;
        }
        drop(first);
        let mut buffer = BytesMut::with_capacity(TUNNEL_BUFFER_BYTES);
        loop {
            match from.read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return false,
            }
            if !self.pass(&buffer, to, &counted).await {
                return false;
            }
            buffer.clear();
            // The other way, a suspension and other connections have their turn however fast this one goes.
            tokio::task::consume_budget().await;
        }
        let ended = self.within_stall(to.shutdown()).await;
        self.active.set(clock::now());
        ended
    }

    async fn pass(
        &self,
        bytes: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
        counted: &impl Fn(usize) -> Duration,
    ) -> bool {
        let wait = counted(bytes.len());
        if !wait.is_zero() {
            self.active.set(clock::now() + wait);
            tokio::time::sleep(wait).await;
        }
        let written = self.within_stall(async {
            to.write_all(bytes).await?;
            to.flush().await
        });
        let written = written.await;
        self.active.set(clock::now());
        written
    }

    async fn within_stall(&self, writing: impl Future<Output = std::io::Result<()>>) -> bool {
        self.active.set(clock::now() + self.stall);
        matches!(tokio::time::timeout(self.stall, writing).await, Ok(Ok(())))
    }
}

/// Ends when neither way has carried anything for so long.
async fn quiet(active: [&Cell<Instant>; 2], patience: Duration) {
    loop {
        let [up, down] = active.map(Cell::get);
        let ends = up.max(down) + patience;
        if clock::now() >= ends {
            return;
        }
        tokio::time::sleep_until(ends.into()).await;
    }
}

impl std::fmt::Debug for OriginHalf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OriginHalf").finish_non_exhaustive()
    }
}
