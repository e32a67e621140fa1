//! What an edge serves: tables that workers only read, and the one writer that publishes into them.
//!
//! A worker holds `Arc<Live>` and looks up by SNI ([`Live::sni`]) and by request authority ([`Live::hosts`]); it never
//! waits for a writer. [`LivePublisher`] lives on the service thread. It takes batches of distribution resources in three
//! steps: `admit` looks at the envelope, [`mod@stage`] parses and checks each resource without touching any state (and may
//! run on another thread), `publish` makes the result visible. A fault of one resource never stops the rest.
//!
//! Deliberately absent: the network, the disk and the clock. `control` brings all three.

mod admit;
mod books;
mod client_auth;
mod drill;
mod error_pages;
mod host;
pub mod limits;
mod origin;
mod origin_identity;
mod publisher;
mod route;
mod sites;
mod stage;
mod tenant_limits;
mod usage;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use portico_cert_store::{
    CellKeys, DomainId, DomainName, Generation, KeyCache, LineageId, NameTable, SniIndex,
};

use crate::challenge::Challenges;

pub use admit::{Admitted, Batch, BatchKind, Rejected};
pub use client_auth::ClientAuth;
pub use error_pages::ErrorPages;
pub use host::{EgressGrant, Host, Hsts, Maintenance, Suspension, SuspensionMode, TenantState};
pub use origin::{
    Breaker, HealthCheck, NoIdentity, Origin, OriginHost, OriginProtocol, OriginRoots, OriginScheme,
    Upstream, UpstreamDeadlines, WeightedOrigin,
};
pub use origin_identity::{OriginIdentity, Presents};
pub use publisher::{LivePublisher, Published};
pub use route::{Action, Redirect, Route};
pub use sites::{SealedCertificate, Sealing, Site, Sites};
pub use stage::{Checks, Staged, StagingContext, stage};
pub use tenant_limits::{OverShare, TenantConnection, TenantLimits, TenantShare};
pub use usage::{Counts, UsedHosts};

/// The published tables.
pub struct Live {
    pub sni: SniIndex,
    pub keys: KeyCache,
    /// By the authority of a request; ask through [`Live::host`].
    pub hosts: NameTable<Host>,
    pub challenges: Challenges,
    pub fleet: ArcSwap<FleetPolicy>,
    /// The generation in force; (0, 0) before the first one and in standalone mode.
    pub applied: ArcSwap<Generation>,
    pub used: UsedHosts,
}

/// What holds for all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetPolicy {
    pub unknown_sni: UnknownSni,
    /// Networks that no tenant's connect may reach, whatever is granted.
    pub denied_networks: Box<[IpNet]>,
    /// The control plane's sockets, and those of edges on loopback: other ports of their addresses may carry origins.
    pub denied_sockets: Box<[SocketAddr]>,
    /// Where a tenant's own limits say nothing.
    pub tenant_limits: TenantLimits,
}

/// What a client gets that names a host nobody brought, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownSni {
    /// The alert `unrecognized_name` (RFC 6066 section 3).
    #[default]
    Refuse,
    /// The default certificate; every request is answered 421.
    Default,
}

/// Which certificate answers for names that nobody brought, and where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultCertificate {
    /// A certificate of its own (standalone mode).
    Lineage(LineageId),
    /// Whichever serves this domain, now and later (a fleet).
    Domain(DomainId),
}

/// Why one resource, or one batch, is not taken. The code is stable, the text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Fault {
    /// CamelCase.
    pub code: &'static str,
    pub text: String,
}

impl Live {
    /// Empty tables, sized for `expected_names`, and their writer. Parsed keys take at most `key_cache_bytes`.
    pub fn new(
        expected_names: usize,
        key_cache_bytes: u64,
        cell_keys: CellKeys,
    ) -> (Arc<Self>, LivePublisher) {
        LivePublisher::new(expected_names, key_cache_bytes, cell_keys)
    }

    /// Who answers requests for `name`. A claim without a proof never hides a wildcard that is served (P6).
    pub fn host(&self, name: &DomainName) -> Option<Arc<Host>> {
        let exact = self.hosts.get_exact(name.as_str());
        if exact.as_ref().is_some_and(|host| host.served) {
            return exact;
        }
        let wildcard = self.hosts.find_wildcard(name);
        match (exact, wildcard) {
            (Some(claim), Some(wildcard)) => Some(if wildcard.served { wildcard } else { claim }),
            (exact, wildcard) => exact.or(wildcard),
        }
    }
}

impl Fault {
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// An error with its causes on one line, for the operator.
pub(crate) fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("names", &self.hosts.len()).finish_non_exhaustive()
    }
}
