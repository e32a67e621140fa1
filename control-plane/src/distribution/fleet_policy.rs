//! What edges deny to every tenant's connects: made of the configuration, and of what edges report.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use portico_api::v1::TenantLimits;
use serde::{Deserialize, Serialize};

/// What the fleet's policy takes from the configuration and the edges, as it is kept between two changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FleetPolicy {
    /// Sorted; no tenant's connect reaches them.
    pub(crate) denied: Vec<IpNet>,
    /// Sorted; Portico's own sockets whose addresses may carry origins on other ports.
    #[serde(default)]
    pub(crate) denied_sockets: Vec<SocketAddr>,
    /// What a tenant may take that has no limits of its own.
    #[serde(default, skip_serializing_if = "TenantLimits::is_empty")]
    pub(super) tenant_limits: TenantLimits,
}

impl FleetPolicy {
    /// `public`: the fleet's addresses. `listeners`: what edges listen on, their metrics included. `sockets`: the control
    /// plane's.
    ///
    /// The address of a listener is denied on all ports, for other services of the edge's machine, which a firewall keeps from
    /// the world, would be open to the edge itself. On loopback the socket alone is: there nothing is open without a grant of
    /// that port, and origins beside the edge are there too. A wildcard address names no host, and stands for its port on
    /// loopback.
    pub(super) fn new(
        public: impl IntoIterator<Item = IpAddr>,
        listeners: impl IntoIterator<Item = SocketAddr>,
        sockets: impl IntoIterator<Item = SocketAddr>,
        tenant_limits: TenantLimits,
    ) -> Self {
        let (alone, whole): (Vec<_>, Vec<_>) = listeners
            .into_iter()
            .partition(|listener: &SocketAddr| listener.ip().is_loopback() || listener.ip().is_unspecified());
        let addresses = public.into_iter().chain(whole.iter().map(SocketAddr::ip));
        let named = addresses.filter(|address| !address.is_unspecified());
        let mut denied: Vec<_> = named.map(IpNet::from).collect();
        denied.sort();
        denied.dedup();
        let sockets = sockets.into_iter().chain(alone);
        let mut denied_sockets: Vec<_> = sockets.filter(|socket| socket.port() != 0).collect();
        denied_sockets.sort();
        denied_sockets.dedup();
        Self { denied, denied_sockets, tenant_limits }
    }
}

/// A listener as an edge reports it; `None` for what is none.
pub(super) fn listener(text: &str) -> Option<SocketAddr> {
    let bound = text.parse::<SocketAddr>().ok()?;
    Some(SocketAddr::new(bound.ip().to_canonical(), bound.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_an_address_with_a_port() {
        assert_eq!(listener("[::ffff:10.0.0.9]:443"), Some("10.0.0.9:443".parse().unwrap()));
        assert_eq!(listener("nonsense"), None);
    }

    #[test]
    fn a_metrics_socket_on_loopback_takes_nothing_but_itself_from_origins() {
        let listeners =
            ["127.0.0.1:9109", "[::1]:9109", "[::ffff:127.0.0.1]:9109", "0.0.0.0:443", "192.0.2.7:443"];
        let listeners = listeners.into_iter().filter_map(listener);
        let policy = FleetPolicy::new([], listeners, [], TenantLimits::default());
        assert_eq!(policy.denied, ["192.0.2.7/32".parse::<IpNet>().unwrap()]);
        let sockets: Vec<String> = policy.denied_sockets.iter().map(ToString::to_string).collect();
        assert_eq!(sockets, ["0.0.0.0:443", "127.0.0.1:9109", "[::1]:9109"]);
    }
}
