//! The guard in front of every connect that is made on a tenant's behalf (promise P12).
//!
//! It is asked about the address that is about to be connected to, after resolution, and about the address that the
//! kernel reports afterwards; between the two there is no name any more that could change its mind.

use std::{cell::RefCell, net::SocketAddr, sync::Arc};

use portico_prober::egress::{EgressPolicy, EgressRefused, Grant};

use crate::live::{FleetPolicy, Live, TenantState};

/// One worker's guard.
#[derive(Debug)]
pub struct EgressGuard {
    live: Arc<Live>,
    /// The edge's own sockets: listeners, metrics.
    own: Box<[SocketAddr]>,
    /// The policy made of the fleet's list, until that changes.
    policy: RefCell<Option<(Arc<FleetPolicy>, EgressPolicy)>>,
}

impl EgressGuard {
    pub fn new(live: Arc<Live>, own: Vec<SocketAddr>) -> Self {
        Self { live, own: own.into(), policy: RefCell::new(None) }
    }

    /// Asks about one address for one tenant.
    ///
    /// # Errors
    /// [`EgressRefused`]: no packet may go there.
    pub fn check(&self, tenant: &TenantState, address: SocketAddr) -> Result<(), EgressRefused> {
        let fleet = self.live.fleet.load_full();
        let mut cached = self.policy.borrow_mut();
        let current = cached.take().filter(|(of, _)| Arc::ptr_eq(of, &fleet));
        let (_, policy) = cached.insert(current.unwrap_or_else(|| {
            let sockets = [&*self.own, &*fleet.denied_sockets].concat();
            let policy = EgressPolicy::new(fleet.denied_networks.to_vec(), sockets);
            (fleet, policy)
        }));
        let grants = tenant.egress();
        policy.check(address, grants.iter().map(|grant| Grant { net: grant.net, ports: &grant.ports }))
    }
}
