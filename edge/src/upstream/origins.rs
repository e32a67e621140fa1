//! One worker's way to origins: which one, and a connection to it.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{
    Gate, OriginError, OriginSockets, OriginWatch,
    balance::{self, Candidate},
    connect::{Connector, Opened},
    endpoint::{Endpoint, Turn},
    http2,
    pool::{Http1Line, Lease, Line, Pool},
    through::Through,
    trust::Offer,
};
use crate::{
    clock,
    limits::{self, Deadlines},
    live::{Host, OriginHost, OriginProtocol, OriginScheme, TenantState, Upstream, full_text},
    metrics::Metrics,
    proxy_protocol::Ends,
    rate::{Meter, Rate},
};

#[derive(Debug)]
pub struct Origins {
    pool: Rc<Pool>,
    connector: Rc<Connector>,
    metrics: Arc<Metrics>,
    deadlines: Deadlines,
    random: Cell<u64>,
    /// Lines about failures.
    told: Meter,
}

/// Whether a kept connection is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Any,
    /// A kept one has just turned out to be dead; others may be as well.
    New,
}

impl Origins {
    pub fn new(
        connector: Connector,
        (watch, sockets): (Arc<OriginWatch>, Arc<OriginSockets>),
        metrics: Arc<Metrics>,
        deadlines: Deadlines,
        seed: u64,
    ) -> Self {
        let pool = Rc::new(Pool::new(watch, sockets));
        Self {
            pool,
            connector: Rc::new(connector),
            metrics,
            deadlines,
            random: Cell::new(seed | 1),
            told: Meter::default(),
        }
    }

    /// The origin for a request; after a failure another than the one of index `not`, if there is one that is well.
    pub(super) fn choose(
        &self,
        tenant: &Arc<TenantState>,
        upstream: &Upstream,
        not: Option<usize>,
    ) -> Option<(usize, Rc<Endpoint>)> {
        if let [only] = &*upstream.origins {
            let endpoint = not.is_none().then(|| self.pool.endpoint(tenant, &only.origin))?;
            endpoint.touch(clock::now());
            return Some((0, endpoint));
        }
        let now = clock::now();
        let endpoints: Vec<_> =
            upstream.origins.iter().map(|one| self.pool.endpoint(tenant, &one.origin)).collect();
        let candidates = |weight: &dyn Fn(&Endpoint) -> u32| -> Vec<Candidate> {
            let rows = upstream.origins.iter().zip(&endpoints).enumerate();
            rows.map(|(index, (one, endpoint))| Candidate {
                weight: if not == Some(index) { 0 } else { one.weight * weight(endpoint) },
                in_flight: endpoint.in_flight(),
            })
            .collect()
        };
        let slow_start = self.deadlines.origin_slow_start;
        let well = candidates(&|endpoint| endpoint.share(now, slow_start));
        let roomy = |mut of: Vec<Candidate>| {
            for (candidate, endpoint) in of.iter_mut().zip(&endpoints) {
                candidate.weight *= u32::from(!endpoint.is_full());
            }
            of
        };
        let random = |below| self.random_below(below);
        let chosen = balance::choose(&roomy(well.clone()), random).or_else(|| balance::choose(&well, random));
        // Never are all out: if none is well, each may be tried.
        let chosen = chosen.or_else(|| {
            if not.is_some() {
                return None;
            }
            self.metrics.origins_all_out.increment(1);
            let all = candidates(&|_| 1);
            balance::choose(&roomy(all.clone()), random).or_else(|| balance::choose(&all, random))
        })?;
        let endpoint = Rc::clone(endpoints.get(chosen)?);
        for endpoint in &endpoints {
            endpoint.touch(now);
        }
        Some((chosen, endpoint))
    }

    /// A connection for one exchange: kept, or new.
    pub(super) async fn lease(
        &self,
        tenant: &TenantState,
        turn: Turn,
        freshness: Freshness,
        client: Ends,
        deadline: Duration,
    ) -> Result<Lease, OriginError> {
        let endpoint = Rc::clone(&turn.endpoint);
        let target = endpoint.target(client);
        let is_clients_own = endpoint.is_clients_own();
        if freshness == Freshness::Any
            && !is_clients_own
            && let Some((line, address)) = self.kept(tenant, &endpoint)
        {
            self.metrics.origin_reuses.increment(1);
            return Ok(Lease::new(line, address, true, turn));
        }
        let offer = Offer::of(&endpoint);
        if offer == Offer::Http1 || endpoint.chose_http2.get() == Some(false) || is_clients_own {
            let opened = self.connector.open(tenant, target, offer, deadline).await?;
            return self.line(opened, turn).await;
        }
        // One connection for all who come meanwhile; whoever waits for a place keeps those behind it waiting.
        let making = Box::pin(async {
            let _alone = endpoint.connecting.lock().await;
            if freshness == Freshness::Any
                && let Some(stream) = endpoint.queue_for_http2().await
            {
                let address = stream.connection().address;
                return Ok(Lease::new(Line::Http2(stream), address, true, turn));
            }
            let opened = self.connector.open(tenant, target, offer, deadline).await?;
            self.line(opened, turn).await
        });
        tokio::time::timeout(deadline, making).await.unwrap_or_else(|_| {
            let busy = endpoint.http2_is_full();
            Err(if busy { OriginError::Busy } else { OriginError::ConnectTimeout })
        })
    }

    /// A connection that is there already. The guard is asked again, since a grant may have been taken back meanwhile: then
    /// the connection takes no further exchange.
    fn kept(&self, tenant: &TenantState, endpoint: &Endpoint) -> Option<(Line, SocketAddr)> {
        let (line, address) = match endpoint.take_http1(clock::now()) {
            Some((line, address)) => (Line::Http1(line), address),
            None => {
                let stream = endpoint.join_http2()?;
                let address = stream.connection().address;
                (Line::Http2(stream), address)
            }
        };
        if self.connector.may_reach(tenant, address) {
            return Some((line, address));
        }
        if let Line::Http2(stream) = &line {
            stream.connection().retire();
        }
        None
    }

    async fn line(&self, opened: Opened, turn: Turn) -> Result<Lease, OriginError> {
        let Opened { stream, address, said, http2, resolved } = opened;
        let endpoint = Rc::clone(&turn.endpoint);
        endpoint.chose_http2.set(Some(http2));
        if let Some(resolved) = resolved {
            endpoint.set_resolved(resolved);
        }
        if http2 {
            let ended = &endpoint.stream_ended;
            let connection = http2::handshake(stream, address, said, ended, &self.deadlines).await?;
            let stream = match endpoint.is_clients_own() {
                true => http2::Http2Stream::begin(&connection),
                false => endpoint.keep_http2(connection),
            };
            return Ok(Lease::new(Line::Http2(stream), address, false, turn));
        }
        let gate = Rc::<Gate>::default();
        let stream = TokioIo::new(Through::new(stream, Rc::clone(&gate)));
        let (sender, connection) = http1_builder().handshake(stream).await.map_err(OriginError::of_hyper)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "a connection to an origin ended");
            }
        });
        Ok(Lease::new(Line::Http1(Http1Line { sender, gate }), address, false, turn))
    }

    /// A connection for one tunnel, never shared.
    pub(super) async fn open_http1(
        &self,
        tenant: &TenantState,
        turn: &Turn,
        client: Ends,
        deadline: Duration,
    ) -> Result<Opened, OriginError> {
        self.connector.open(tenant, turn.endpoint.target(client), Offer::Http1, deadline).await
    }

    /// Counts a failure of an origin; with `alone` it has no other beside it that could take its requests.
    pub(super) fn failed(&self, tenant: &TenantState, endpoint: &Endpoint, reason: &str, alone: bool) {
        let ejected = endpoint.failed(clock::now(), self.deadlines.origin_ejection);
        if let Some(length) = ejected.filter(|_| !alone) {
            self.metrics.origin_ejections.increment(1);
            let origin = &endpoint.origin;
            tracing::warn!(
                tenant = %tenant.id, %origin, reason, seconds = length.as_secs(),
                "an origin fails again and again and gets no requests for a while"
            );
        }
    }

    /// Says why an origin gave no answer, now and then: a visitor is told nothing, and the log of exchanges has one word.
    pub(super) fn tell(&self, host: &Host, endpoint: &Endpoint, error: &OriginError) {
        let rate = Rate::every(limits::TOLD_EVERY, limits::TOLD_AT_ONCE);
        if !endpoint.is_to_be_told(clock::now()) || self.told.take(rate, clock::uptime()).is_err() {
            return;
        }
        tracing::warn!(
            tenant = %host.tenant.id, host = %host.name, origin = %endpoint.origin, reason = error.reason(),
            "no answer from an origin: {}", full_text(error)
        );
    }

    /// Housekeeping, every few seconds: what is idle is closed, and names whose addresses no longer hold are asked for
    /// again, so that a kept connection does not outlive the address that it was made to.
    pub fn sweep(&self) {
        let stale = self.pool.sweep(clock::now(), limits::ORIGIN_IDLE_DEADLINE);
        for endpoint in stale.into_iter().take(limits::RESOLVED_AGAIN_PER_SWEEP) {
            let connector = Rc::clone(&self.connector);
            tokio::task::spawn_local(async move {
                let OriginHost::Name(name) = &endpoint.origin.host else { return };
                // Without an answer the old addresses hold on: connections that work are not cut for a dead name server.
                if let Ok(resolved) = connector.resolve(name).await {
                    endpoint.set_resolved(resolved);
                }
            });
        }
    }

    /// Closes all connections that no exchange has.
    pub(crate) fn close_idle(&self) {
        self.pool.sweep(clock::now(), Duration::ZERO);
    }

    /// xorshift64: even enough for a draw, and a few instructions.
    fn random_below(&self, below: u64) -> u64 {
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        state % below.max(1)
    }
}

impl Offer {
    fn of(endpoint: &Endpoint) -> Self {
        match (endpoint.origin.protocol, endpoint.origin.scheme) {
            (OriginProtocol::Http1, _) | (OriginProtocol::Auto, OriginScheme::Http) => Self::Http1,
            (OriginProtocol::Auto, OriginScheme::Https) => Self::Either,
            (OriginProtocol::Http2, _) => Self::Http2,
        }
    }

    /// What a health check speaks: the same, but HTTP/1.1 where there is a choice.
    pub(super) fn for_check(protocol: OriginProtocol) -> Self {
        match protocol {
            OriginProtocol::Http2 => Self::Http2,
            OriginProtocol::Auto | OriginProtocol::Http1 => Self::Http1,
        }
    }
}

pub(super) fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits::ORIGIN_HEADER_FIELDS_MAX)
        .max_header_size(limits::ORIGIN_HEADER_BYTES_MAX)
        .max_buf_size(limits::ORIGIN_HEADER_BYTES_MAX + 8 * 1024);
    builder
}
