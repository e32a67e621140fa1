//! Names of origins to addresses, by the configured name servers, with a bounded cache that keeps to the TTL.
//!
//! Only the DNS is asked: neither /etc/hosts nor search domains, which would give a tenant's name a meaning that depends on
//! the machine.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    Resolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};

use super::connect::Resolved;
use crate::limits;

/// One worker's resolver.
pub struct Names {
    resolver: Resolver<TokioRuntimeProvider>,
    deadline: Duration,
}

impl Names {
    /// `deadline` is for one name; half of it for one try.
    ///
    /// # Errors
    /// When the resolver cannot be made.
    pub fn new(servers: &[SocketAddr], deadline: Duration) -> io::Result<Self> {
        let servers = servers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.into())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.ndots = 0;
        // A name has two answers: A and AAAA.
        options.cache_size = 2 * limits::DNS_CACHE_NAMES;
        options.positive_min_ttl = Some(limits::DNS_TTL_MIN);
        options.positive_max_ttl = Some(limits::DNS_TTL_MAX);
        options.negative_min_ttl = Some(limits::DNS_TTL_MIN);
        options.negative_max_ttl = Some(limits::DNS_TTL_MAX);
        options.timeout = deadline / 2;
        options.attempts = 1;
        let resolver = builder.build().map_err(io::Error::other)?;
        Ok(Self { resolver, deadline })
    }

    /// The addresses of a name, in the order to try them, and until when they hold.
    ///
    /// # Errors
    /// A text for the log.
    pub async fn resolve(&self, name: &str) -> Result<Resolved, String> {
        // A trailing dot: the name is whole, no search list applies.
        let lookup = self.resolver.lookup_ip(format!("{name}."));
        let found = tokio::time::timeout(self.deadline, Box::pin(lookup)).await;
        let found = found.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
        Ok(Resolved {
            addresses: found.iter().take(limits::DNS_ADDRESSES_MAX).collect(),
            until: found.valid_until(),
        })
    }
}

/// The name servers of /etc/resolv.conf; other lines of it have no meaning here.
///
/// # Errors
/// When the file cannot be read or names nobody.
pub fn system_servers() -> io::Result<Vec<SocketAddr>> {
    let text = std::fs::read_to_string("/etc/resolv.conf")?;
    let servers: Vec<_> = servers_in(&text).collect();
    if servers.is_empty() {
        return Err(io::Error::other("/etc/resolv.conf names no server; set resolvers in the edge's file"));
    }
    Ok(servers)
}

fn servers_in(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .take(3) // as the C library does
}

impl std::fmt::Debug for Names {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Names").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "resolve/tests.rs"]
mod tests;
