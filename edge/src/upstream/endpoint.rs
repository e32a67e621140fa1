//! One origin of one tenant as one worker knows it: kept connections, what is under way, how it has answered of late.
//!
//! Connections are found only through their endpoint, and endpoints are keyed by tenant and by all that tells one
//! connection from another ([`Origin`]): whatever an origin does to a connection stays with the tenant that brought it.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit};

use super::{
    OriginError, OriginSockets,
    connect::{Identity, Resolved, Target},
    http2::{Http2Connection, Http2Stream},
    pool::Http1Line,
    watch::Watched,
};
use crate::{clock, limits, live::Origin, memory::Exchanging, proxy_protocol::Ends};

pub(super) struct Endpoint {
    pub origin: Arc<Origin>,
    /// Of all its connections.
    identity: Identity,
    http1: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Http2Connection>>>,
    /// Held while an HTTP/2 connection is made, so that a burst makes one and not one each.
    pub connecting: Mutex<()>,
    /// Told when a stream of one of its HTTP/2 connections has ended.
    pub stream_ended: Rc<Notify>,
    /// What the origin has last chosen by ALPN.
    pub chose_http2: Cell<Option<bool>>,
    resolved: RefCell<Option<Resolved>>,
    in_flight: Cell<u32>,
    used: Cell<Instant>,
    /// In a row.
    failures: Cell<u32>,
    ejections: Cell<u32>,
    ejected_until: Cell<Option<Instant>>,
    /// It was out when it was last looked at.
    out: Cell<bool>,
    back_since: Cell<Option<Instant>>,
    /// When the log last had a word of it.
    told: Cell<Option<Instant>>,
    /// Retries that its requests have earned, in [`limits::RETRY_COST`]ths.
    retry_balance: Cell<u32>,
    /// Where a health check or a circuit breaker is wanted.
    pub watched: Option<Arc<Watched>>,
    /// Its open connections.
    sockets: Rc<Cell<u64>>,
    /// Connections that all endpoints of the worker keep.
    kept: Rc<Kept>,
}

/// How many connections the endpoints of a worker keep that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Kept {
    count: Cell<usize>,
    sockets: Arc<OriginSockets>,
}

struct Idle {
    line: Http1Line,
    address: SocketAddr,
    since: Instant,
}

/// One exchange's place at an endpoint, from the choice of the origin to the end of its answer.
pub(super) struct Turn {
    pub endpoint: Rc<Endpoint>,
    /// Once it has begun.
    pub exchanging: Option<Exchanging>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Endpoint {
    pub(super) fn new(
        (origin, identity): (Arc<Origin>, Identity),
        watched: Option<Arc<Watched>>,
        kept: Rc<Kept>,
    ) -> Self {
        Self {
            origin,
            identity,
            http1: RefCell::default(),
            http2: RefCell::default(),
            connecting: Mutex::default(),
            stream_ended: Rc::default(),
            chose_http2: Cell::new(None),
            resolved: RefCell::default(),
            in_flight: Cell::new(0),
            used: Cell::new(clock::now()),
            failures: Cell::new(0),
            ejections: Cell::new(0),
            ejected_until: Cell::new(None),
            out: Cell::new(false),
            back_since: Cell::new(None),
            told: Cell::new(None),
            retry_balance: Cell::new(limits::RETRY_RESERVE * limits::RETRY_COST),
            watched,
            sockets: Rc::default(),
            kept,
        }
    }

    /// A new connection for this client.
    pub(super) fn target(&self, client: Ends) -> Target<'_> {
        let (origin, identity) = (&self.origin, &self.identity);
        Target { origin, identity, client: Some(client), sockets: &self.sockets }
    }

    /// Its connections are each for one client, whom it is told of, and serve no other exchange.
    pub(super) fn is_clients_own(&self) -> bool {
        self.origin.proxy_protocol.is_some()
    }

    /// Takes a place; where the circuit breaker is open, waits for one, if there is room to wait, at most `patience`.
    ///
    /// # Errors
    /// [`OriginError::Busy`].
    pub(super) async fn enter(self: Rc<Self>, patience: Duration) -> Result<Turn, OriginError> {
        if self.in_flight.get() >= limits::ORIGIN_IN_FLIGHT_PER_WORKER_MAX {
            return Err(OriginError::Busy);
        }
        let permit = match &self.watched {
            Some(watched) => watched.enter(patience).await?,
            None => None,
        };
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(Turn { endpoint: self, exchanging: None, _permit: permit })
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// A further request would have to wait or be refused.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight.get() >= limits::ORIGIN_IN_FLIGHT_PER_WORKER_MAX
            || self.watched.as_ref().is_some_and(|watched| watched.is_full())
    }

    /// A request earns its part of a retry.
    pub(super) fn earn(&self) {
        let balance = self.retry_balance.get() + 1;
        self.retry_balance.set(balance.min(limits::RETRY_RESERVE * limits::RETRY_COST));
    }

    /// Pays for one retry; false where the retries of late were too many beside the requests.
    pub(super) fn pay_for_retry(&self) -> bool {
        let paid = self.retry_balance.get().checked_sub(limits::RETRY_COST);
        self.retry_balance.set(paid.unwrap_or(self.retry_balance.get()));
        paid.is_some()
    }

    /// How many sixteenths of its weight it may have now: none while it is ejected or fails its health check, then more and
    /// more for as long as `slow_start`.
    pub(super) fn share(&self, now: Instant, slow_start: Duration) -> u32 {
        let ejected = self.ejected_until.get().is_some_and(|until| now < until);
        if ejected || self.watched.as_ref().is_some_and(|watched| watched.is_unwell()) {
            self.out.set(true);
            return 0;
        }
        if self.out.replace(false) {
            self.back_since.set(Some(now));
        }
        let Some(since) = self.back_since.get() else { return WHOLE_SHARE };
        let passed = now.duration_since(since);
        if passed >= slow_start {
            self.back_since.set(None);
            return WHOLE_SHARE;
        }
        let grown = passed.as_micros() * u128::from(WHOLE_SHARE) / slow_start.as_micros().max(1);
        u32::try_from(grown).unwrap_or(WHOLE_SHARE).max(1)
    }

    pub(super) fn succeeded(&self) {
        self.failures.set(0);
    }

    /// Counts a failure; tells for how long the origin is ejected now, if it is.
    pub(super) fn failed(&self, now: Instant, ejection: Duration) -> Option<Duration> {
        let failures = self.failures.get() + 1;
        let ended = self.ejected_until.get();
        if ended.is_some_and(|until| now < until) {
            return None;
        }
        if failures < limits::EJECT_AFTER_FAILURES {
            self.failures.set(failures);
            return None;
        }
        let calm = ended.is_none_or(|end| now.duration_since(end) > limits::EJECTION_MAX);
        let times = if calm { 0 } else { self.ejections.get() };
        let length = (ejection * (1 << times.min(10))).min(limits::EJECTION_MAX);
        self.ejections.set(times + 1);
        self.ejected_until.set(Some(now + length));
        self.out.set(true);
        // On its return one more failure is enough.
        self.failures.set(limits::EJECT_AFTER_FAILURES - 1);
        Some(length)
    }

    /// The kept HTTP/1.1 connection that was used last and still stands.
    pub(super) fn take_http1(&self, now: Instant) -> Option<(Http1Line, SocketAddr)> {
        loop {
            let mut idle = self.http1.borrow_mut().pop()?;
            self.kept.count.set(self.kept.count.get() - 1);
            let old = now.duration_since(idle.since) >= limits::ORIGIN_IDLE_DEADLINE;
            if old || idle.line.sender.is_closed() {
                continue;
            }
            // Ready at once or not at all: a connection that still sends the last request's body is of no use.
            if let Poll::Ready(Ok(())) = idle.line.sender.poll_ready(&mut Context::from_waker(Waker::noop()))
            {
                return Some((idle.line, idle.address));
            }
        }
    }

    pub(super) fn keep_http1(&self, line: Http1Line, address: SocketAddr) {
        let full = self.kept.is_full();
        let mut idle = self.http1.borrow_mut();
        if full || idle.len() >= limits::ORIGIN_IDLE_PER_KEY_MAX || !self.is_current(address.ip()) {
            return;
        }
        idle.push(Idle { line, address, since: clock::now() });
        self.kept.count.set(self.kept.count.get() + 1);
    }

    /// A place on a connection that has room.
    pub(super) fn join_http2(&self) -> Option<Http2Stream> {
        self.http2.borrow().iter().find(|connection| connection.has_room()).map(Http2Stream::begin)
    }

    /// The same; where as many connections as may be are full, when one has room again. `None`: another may be made.
    pub(super) async fn queue_for_http2(&self) -> Option<Http2Stream> {
        loop {
            if let Some(stream) = self.join_http2() {
                return Some(stream);
            }
            if !self.http2_is_full() {
                return None;
            }
            self.stream_ended.notified().await;
        }
    }

    /// There are as many connections as may be, and none has room.
    pub(super) fn http2_is_full(&self) -> bool {
        let connections = self.http2.borrow();
        let open = connections.iter().filter(|connection| connection.is_open()).count();
        open >= limits::ORIGIN_H2_CONNECTIONS_PER_KEY_MAX
            && !connections.iter().any(|connection| connection.has_room())
    }

    /// Begins an exchange on a new connection and keeps it for others.
    pub(super) fn keep_http2(&self, connection: Rc<Http2Connection>) -> Http2Stream {
        let stream = Http2Stream::begin(&connection);
        let mut connections = self.http2.borrow_mut();
        let before = connections.len();
        connections.retain(|connection| connection.is_open());
        self.kept.count.set(self.kept.count.get() - (before - connections.len()));
        let full = self.kept.is_full();
        if !full && connections.len() < limits::ORIGIN_H2_CONNECTIONS_PER_KEY_MAX {
            connections.push(connection);
            self.kept.count.set(self.kept.count.get() + 1);
        }
        stream
    }

    /// Connections to addresses that the name no longer has are not used again.
    pub(super) fn set_resolved(&self, resolved: Resolved) {
        let gone = |address: SocketAddr| !resolved.addresses.contains(&address.ip());
        let mut idle = self.http1.borrow_mut();
        let before = idle.len();
        idle.retain(|idle| !gone(idle.address));
        self.kept.count.set(self.kept.count.get() - (before - idle.len()));
        for connection in self.http2.borrow().iter().filter(|connection| gone(connection.address)) {
            connection.retire();
        }
        *self.resolved.borrow_mut() = Some(resolved);
    }

    fn is_current(&self, address: IpAddr) -> bool {
        self.resolved.borrow().as_ref().is_none_or(|resolved| resolved.addresses.contains(&address))
    }

    /// Closes what has been idle too long. Whether the name is to be resolved again, because connections are kept longer
    /// than its addresses hold.
    pub(super) fn sweep(&self, now: Instant, allowed: Duration) -> bool {
        let fresh = |since: Instant| now.duration_since(since) < allowed;
        let mut idle = self.http1.borrow_mut();
        let mut http2 = self.http2.borrow_mut();
        let before = idle.len() + http2.len();
        idle.retain(|idle| fresh(idle.since) && !idle.line.sender.is_closed());
        http2.retain(|connection| connection.is_open() && connection.idle_since().is_none_or(fresh));
        let after = idle.len() + http2.len();
        self.kept.count.set(self.kept.count.get() - (before - after));
        after > 0 && self.resolved.borrow().as_ref().is_some_and(|resolved| resolved.until <= now)
    }

    pub(super) fn touch(&self, now: Instant) {
        self.used.set(now);
        if let Some(watched) = &self.watched {
            watched.touch();
        }
    }

    /// Whether the log is to have a word of its failure; then not again for [`limits::ORIGIN_TOLD_PAUSE`].
    pub(super) fn is_to_be_told(&self, now: Instant) -> bool {
        let pauses = self.told.get().is_some_and(|told| now.duration_since(told) < limits::ORIGIN_TOLD_PAUSE);
        if !pauses {
            self.told.set(Some(now));
        }
        !pauses
    }

    /// Nothing would be lost with it.
    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        self.in_flight.get() == 0
            && self.http1.borrow().is_empty()
            && self.http2.borrow().is_empty()
            && now.duration_since(self.used.get()) > limits::ENDPOINT_FORGOTTEN_AFTER
    }
}

impl Kept {
    pub(super) fn new(sockets: Arc<OriginSockets>) -> Self {
        Self { count: Cell::default(), sockets }
    }

    fn is_full(&self) -> bool {
        self.count.get() >= limits::ORIGIN_IDLE_PER_WORKER_MAX || self.sockets.are_scarce()
    }
}

/// See [`Endpoint::share`].
pub(super) const WHOLE_SHARE: u32 = 16;

impl Drop for Turn {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let held = self.http1.get_mut().len() + self.http2.get_mut().len();
        self.kept.count.set(self.kept.count.get() - held);
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Endpoint").field("in_flight", &self.in_flight.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "endpoint/tests.rs"]
mod tests;
