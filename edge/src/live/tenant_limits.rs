//! What one tenant may take of this edge, and what it has taken: so that no tenant is another's outage (promise P5).
//!
//! Counted over all workers, in a few atomics of the tenant's own; nothing is taken from others, and nothing is kept by
//! what a client says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use portico_api::{distribution as wire, v1};

use super::{Fault, TenantState};
use crate::{
    clock, limits,
    metrics::Limited,
    rate::{Meter, Rate},
};

/// `None`: not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantLimits {
    requests: Option<Rate>,
    exchanges: Option<u32>,
    /// Bytes of answers' bodies.
    bandwidth: Option<Rate>,
    request_body_bytes: Option<u64>,
    connections: Option<u32>,
    cache_bytes: Option<u64>,
}

/// Of one tenant.
#[derive(Debug, Default)]
pub(super) struct TenantUsage {
    requests: Meter,
    exchanges: AtomicU32,
    bandwidth: Meter,
    spans: Meter,
    connections: AtomicU32,
    origin_sockets: Arc<AtomicU64>,
    origin_exchanges: Arc<AtomicU64>,
}

/// One connection of a tenant, counted until it is dropped.
#[derive(Debug)]
pub struct TenantConnection(Arc<TenantState>);

/// One exchange of a tenant, counted until it is dropped.
#[derive(Debug)]
pub struct TenantShare {
    tenant: Arc<TenantState>,
    bandwidth: Option<Rate>,
    pub request_body_bytes_max: u64,
}

/// The tenant has taken all that it may.
#[derive(Debug, Clone, Copy)]
pub struct OverShare {
    pub limit: Limited,
    /// For how long, as it looks now.
    pub wait: Duration,
}

impl TenantLimits {
    pub(super) fn parse(from: Option<wire::TenantLimits>) -> Result<Self, Fault> {
        Self::new(from.map(v1::TenantLimits::from).unwrap_or_default())
    }

    /// # Errors
    /// A [`Fault`] that names the limit that is out of its bounds.
    pub fn new(from: v1::TenantLimits) -> Result<Self, Fault> {
        if let Some((name, message)) = from.faults().into_iter().next() {
            return Err(Fault::new("BadTenantLimits", format!("{name} {message}")));
        }
        let requests = from.requests_per_second.map(u64::from);
        let least = limits::TENANT_BANDWIDTH_BURST_MIN;
        Ok(Self {
            requests: requests.map(|rate| Rate::new(rate, rate * limits::TENANT_REQUESTS_BURST_SECONDS)),
            exchanges: from.exchanges,
            bandwidth: from.bytes_per_second.map(|rate| Rate::new(rate, (rate / 4).max(least))),
            request_body_bytes: from.request_body_bytes,
            connections: from.connections,
            cache_bytes: from.cache_bytes,
        })
    }

    fn or(self, fleet: &Self) -> Self {
        Self {
            requests: self.requests.or(fleet.requests),
            exchanges: self.exchanges.or(fleet.exchanges),
            bandwidth: self.bandwidth.or(fleet.bandwidth),
            request_body_bytes: self.request_body_bytes.or(fleet.request_body_bytes),
            connections: self.connections.or(fleet.connections),
            cache_bytes: self.cache_bytes.or(fleet.cache_bytes),
        }
    }
}

impl TenantState {
    /// Begins an exchange. `fleet` holds where the tenant's own limits say nothing.
    ///
    /// # Errors
    /// [`OverShare`]: it is not to be served.
    pub fn begin_exchange(self: &Arc<Self>, fleet: &TenantLimits) -> Result<TenantShare, OverShare> {
        let allowed = self.limits.load().or(fleet);
        let now = clock::uptime();
        if let Some(rate) = allowed.bandwidth {
            let wait = self.usage.bandwidth.wait(rate, now);
            if wait > limits::TENANT_BANDWIDTH_WAIT_MAX {
                return Err(OverShare { limit: Limited::TenantBandwidth, wait });
            }
        }
        let most = allowed.exchanges.unwrap_or(u32::MAX);
        let more = |open: u32| (open < most).then_some(open + 1);
        let open = &self.usage.exchanges;
        if open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return Err(OverShare { limit: Limited::TenantExchanges, wait: Duration::from_secs(1) });
        }
        let share = self.counted(&allowed);
        match allowed.requests.map(|rate| self.usage.requests.take(rate, now)) {
            Some(Err(wait)) => Err(OverShare { limit: Limited::TenantRequests, wait }),
            Some(Ok(())) | None => Ok(share),
        }
    }

    /// What goes on after the answer of an exchange that was begun: a tunnel.
    pub fn go_on(self: &Arc<Self>, fleet: &TenantLimits) -> TenantShare {
        self.usage.exchanges.fetch_add(1, Ordering::Relaxed);
        self.counted(&self.limits.load().or(fleet))
    }

    /// Exchanges that are recorded; the rate is that of the edge's file.
    pub(crate) fn spans(&self) -> &Meter {
        &self.usage.spans
    }

    /// Counts one more connection, if there may be. `fleet` holds where the tenant's own limits say nothing.
    pub fn connect(self: &Arc<Self>, fleet: &TenantLimits) -> Option<TenantConnection> {
        let most = self.limits.load().or(fleet).connections.unwrap_or(u32::MAX);
        let more = |open: u32| (open < most).then_some(open + 1);
        let counted = self.usage.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| TenantConnection(Arc::clone(self)))
    }

    /// How many connections are open to the tenant's origins.
    pub fn origin_sockets(&self) -> &Arc<AtomicU64> {
        &self.usage.origin_sockets
    }

    /// How many exchanges with the tenant's origins are under way.
    pub fn origin_exchanges(&self) -> &Arc<AtomicU64> {
        &self.usage.origin_exchanges
    }

    /// The most that the cache may hold for the tenant, bytes.
    pub fn cache_bytes_max(&self, fleet: &TenantLimits) -> u64 {
        self.limits.load().or(fleet).cache_bytes.unwrap_or(u64::MAX)
    }

    fn counted(self: &Arc<Self>, allowed: &TenantLimits) -> TenantShare {
        TenantShare {
            tenant: Arc::clone(self),
            bandwidth: allowed.bandwidth,
            request_body_bytes_max: allowed.request_body_bytes.unwrap_or(limits::REQUEST_BODY_BYTES_MAX),
        }
    }
}

impl TenantShare {
    /// A piece of so many bytes is to go to a client: after how long is it its turn?
    pub fn queue(&self, bytes: usize) -> Duration {
        let Some(rate) = self.bandwidth else { return Duration::ZERO };
        self.tenant.usage.bandwidth.queue(rate, bytes as u64, clock::uptime())
    }
}

impl Drop for TenantConnection {
    fn drop(&mut self) {
        self.0.usage.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for TenantShare {
    fn drop(&mut self) {
        self.tenant.usage.exchanges.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use portico_cert_store::TenantId;

    use super::*;

    fn tenant(limits: v1::TenantLimits) -> Arc<TenantState> {
        let state = TenantState::new(TenantId::generate(), Vec::new());
        state.set_limits(TenantLimits::new(limits).expect("within the bounds"));
        Arc::new(state)
    }

    #[test]
    fn a_tenants_own_limit_goes_before_the_fleets() {
        let fleet = v1::TenantLimits { exchanges: Some(1), ..v1::TenantLimits::default() };
        let fleet = TenantLimits::new(fleet).expect("within the bounds");
        let begun = |own: v1::TenantLimits, fleet: &TenantLimits| {
            let tenant = tenant(own);
            let shares: Vec<_> = (0..10).map_while(|_| tenant.begin_exchange(fleet).ok()).collect();
            shares.len()
        };
        let own = v1::TenantLimits { exchanges: Some(3), ..v1::TenantLimits::default() };
        assert_eq!(begun(own, &fleet), 3);
        assert_eq!(begun(v1::TenantLimits::default(), &fleet), 1);
        assert_eq!(begun(v1::TenantLimits::default(), &TenantLimits::default()), 10);
    }

    #[test]
    fn what_ends_makes_room_and_what_was_refused_took_none() {
        let tenant = tenant(v1::TenantLimits {
            exchanges: Some(2),
            requests_per_second: Some(2),
            ..v1::TenantLimits::default()
        });
        let none = TenantLimits::default();
        let first = tenant.begin_exchange(&none).expect("the first");
        let second = tenant.go_on(&none);
        let refused = tenant.begin_exchange(&none).expect_err("a third");
        assert_eq!(refused.limit, Limited::TenantExchanges);
        drop((first, second));
        let burst = u32::try_from(2 * limits::TENANT_REQUESTS_BURST_SECONDS).expect("small");
        for _ in 1..burst {
            drop(tenant.begin_exchange(&none).expect("within the burst"));
        }
        // Half a second pays for one more: a slow machine may see some of those.
        let refused = (0..100).find_map(|_| tenant.begin_exchange(&none).err()).expect("too many");
        assert_eq!(refused.limit, Limited::TenantRequests);
        assert_eq!(tenant.usage.exchanges.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_connection_counts_until_it_ends() {
        let tenant = tenant(v1::TenantLimits { connections: Some(2), ..v1::TenantLimits::default() });
        let fleet =
            v1::TenantLimits { connections: Some(1), cache_bytes: Some(7), ..v1::TenantLimits::default() };
        let fleet = TenantLimits::new(fleet).expect("within the bounds");
        let first = tenant.connect(&fleet).expect("the first");
        let _second = tenant.connect(&fleet).expect("the second");
        assert!(tenant.connect(&fleet).is_none());
        drop(first);
        assert!(tenant.connect(&fleet).is_some());
        assert_eq!(tenant.cache_bytes_max(&fleet), 7);
        assert_eq!(tenant.cache_bytes_max(&TenantLimits::default()), u64::MAX);
    }

    #[test]
    fn who_would_wait_too_long_for_bandwidth_is_refused() {
        let least = v1::TENANT_BYTES_PER_SECOND_MIN;
        let limits = v1::TenantLimits { bytes_per_second: Some(least), ..v1::TenantLimits::default() };
        let tenant = tenant(limits);
        let none = TenantLimits::default();
        let share = tenant.begin_exchange(&none).expect("the first");
        let bytes = usize::try_from(least).expect("small");
        let seconds = usize::try_from(limits::TENANT_BANDWIDTH_WAIT_MAX.as_secs()).expect("small");
        assert_eq!(share.queue(bytes), Duration::ZERO);
        assert!(share.queue(2 * seconds * bytes) < Duration::from_secs(1), "its own turn comes first");
        assert!(share.queue(bytes) > limits::TENANT_BANDWIDTH_WAIT_MAX);
        let refused = tenant.begin_exchange(&none).expect_err("the queue is long");
        assert_eq!(refused.limit, Limited::TenantBandwidth);
        assert!(refused.wait > limits::TENANT_BANDWIDTH_WAIT_MAX);
    }

    #[test]
    fn a_limit_out_of_bounds_is_a_fault_that_names_it() {
        let fault =
            TenantLimits::parse(Some(wire::TenantLimits { bytes_per_second: 1, ..Default::default() }));
        let fault = fault.expect_err("too little");
        assert_eq!(fault.code, "BadTenantLimits");
        assert!(fault.text.starts_with("bytes_per_second must be from"), "{}", fault.text);
    }
}
