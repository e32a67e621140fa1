//! Every address of the quickstart, and the flag that moves it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};

use crate::clock;
use crate::failure::{Failure, Outcome};

/// How long a port may stay taken: the children of a quickstart that was just ended may still be ending.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct AddressArgs {
    /// Loopback addresses of the edges
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.11,127.0.0.12", value_name = "IP,IP", value_parser = loopback)]
    edges: Vec<Ipv4Addr>,
    /// The edges' port for http; the CA validates there in place of 80
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// The edges' port for https
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// The edges' port for metrics and health
    #[arg(long, default_value_t = 9109)]
    metrics_port: u16,
    /// The control plane's API
    #[arg(long, default_value_t = 7070)]
    api_port: u16,
    /// Where edges connect to the control plane
    #[arg(long, default_value_t = 7443)]
    distribution_port: u16,
    /// The control plane's own DNS, which answers delegated challenges
    #[arg(long, default_value_t = 5354)]
    responder_port: u16,
    /// The DNS stub, which stands for the whole of the DNS
    #[arg(long, default_value_t = 15353)]
    dns_port: u16,
    /// The DNS stub's management
    #[arg(long, default_value_t = 15354)]
    dns_management_port: u16,
    /// The test CA
    #[arg(long, default_value_t = 14000)]
    ca_port: u16,
    /// The test CA's management
    #[arg(long, default_value_t = 15000)]
    ca_management_port: u16,
    /// Loopback addresses of the two tenants' origins; each tenant may reach its own only
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.21,127.0.0.22", value_name = "IP,IP", value_parser = loopback)]
    origins: Vec<Ipv4Addr>,
    /// The origins' port
    #[arg(long, default_value_t = 9000)]
    origin_port: u16,
}

/// Where everything listens.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) edges: Vec<Ipv4Addr>,
    pub(super) http_port: u16,
    pub(super) https_port: u16,
    metrics_port: u16,
    pub(super) api: SocketAddr,
    pub(super) distribution: SocketAddr,
    pub(super) responder: SocketAddr,
    pub(super) dns: SocketAddr,
    pub(super) dns_management: SocketAddr,
    pub(super) ca: SocketAddr,
    pub(super) ca_management: SocketAddr,
    /// One a tenant.
    pub(super) origins: [SocketAddr; 2],
}

impl Addresses {
    /// # Errors
    /// When there is no edge, or not one origin for each tenant.
    pub(super) fn new(args: &AddressArgs) -> Outcome<Self> {
        let (&[first, second], false) = (args.origins.as_slice(), args.edges.is_empty()) else {
            return Err(Failure::usage("--origins takes two addresses, --edges at least one"));
        };
        let origin = |ip| SocketAddr::from((ip, args.origin_port));
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self {
            edges: args.edges.clone(),
            http_port: args.http_port,
            https_port: args.https_port,
            metrics_port: args.metrics_port,
            api: local(args.api_port),
            distribution: local(args.distribution_port),
            responder: local(args.responder_port),
            dns: local(args.dns_port),
            dns_management: local(args.dns_management_port),
            ca: local(args.ca_port),
            ca_management: local(args.ca_management_port),
            origins: [origin(first), origin(second)],
        })
    }

    pub(super) fn edge_http(&self, edge: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.edges[edge]), self.http_port)
    }

    pub(super) fn edge_https(&self, edge: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.edges[edge]), self.https_port)
    }

    pub(super) fn edge_metrics(&self, edge: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.edges[edge]), self.metrics_port)
    }

    /// # Errors
    /// When ports are taken: all of them, and the flags that move them to free ones.
    pub(super) async fn assert_free(&self) -> Outcome {
        let end = clock::now() + PATIENCE;
        let mut taken = Vec::new();
        for (address, flag, udp) in self.all() {
            while let Err(error) = bind(address, udp).await {
                if error.kind() != std::io::ErrorKind::AddrInUse {
                    return Err(Failure::failed(format!("{address} cannot be used: {error}"))
                        .next(super::again(&[(flag, "ANOTHER".to_owned())])));
                }
                if clock::now() >= end {
                    taken.push((address, flag));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if taken.is_empty() { Ok(()) } else { Err(self.moved(&taken).await) }
    }

    async fn moved(&self, taken: &[(SocketAddr, &'static str)]) -> Failure {
        let mut flags: Vec<&str> = taken.iter().map(|&(_, flag)| flag).collect();
        flags.sort_unstable();
        flags.dedup();
        let mut changed = Vec::new();
        for flag in flags {
            let port =
                self.free_port(flag).await.map_or_else(|| "ANOTHER".to_owned(), |port| port.to_string());
            changed.push((flag, port));
        }
        let next = super::again(&changed);
        let addresses: Vec<String> = taken.iter().map(|(address, _)| address.to_string()).collect();
        let text = format!("in use by another process, perhaps another quickstart: {}", addresses.join(", "));
        Failure::failed(text).next(next)
    }

    /// A port that is free at every address that `flag` moves.
    async fn free_port(&self, flag: &str) -> Option<u16> {
        const STEP: u16 = 100;
        const TRIES: u16 = 20;
        let all = self.all();
        let moved: Vec<_> = all.iter().filter(|(_, other, _)| *other == flag).collect();
        let first = moved.first()?.0.port();
        'ports: for port in (1..=TRIES).filter_map(|times| first.checked_add(times * STEP)) {
            for (address, _, udp) in &moved {
                if bind(SocketAddr::new(address.ip(), port), *udp).await.is_err() {
                    continue 'ports;
                }
            }
            return Some(port);
        }
        None
    }

    fn all(&self) -> Vec<(SocketAddr, &'static str, bool)> {
        let mut all = vec![
            (self.api, "--api-port", false),
            (self.distribution, "--distribution-port", false),
            (self.responder, "--responder-port", true),
            (self.dns, "--dns-port", true),
            (self.dns_management, "--dns-management-port", false),
            (self.ca, "--ca-port", false),
            (self.ca_management, "--ca-management-port", false),
            (self.origins[0], "--origin-port", false),
            (self.origins[1], "--origin-port", false),
        ];
        for edge in 0..self.edges.len() {
            all.push((self.edge_http(edge), "--http-port", false));
            all.push((self.edge_https(edge), "--https-port", true));
            all.push((self.edge_metrics(edge), "--metrics-port", false));
        }
        all
    }
}

async fn bind(address: SocketAddr, udp: bool) -> std::io::Result<()> {
    TcpListener::bind(address).await?;
    if udp {
        UdpSocket::bind(address).await?;
    }
    Ok(())
}

fn loopback(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| format!("{text:?} is no IPv4 address"))?;
    if address.is_loopback() { Ok(address) } else { Err(format!("{address} is no loopback address")) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        addresses: AddressArgs,
    }

    #[tokio::test]
    async fn all_taken_ports_are_named_with_flags_that_move_them() {
        let api = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = api.local_addr().unwrap().port();
        let line = Line::parse_from(["quickstart", "--api-port", &port.to_string()]);
        let addresses = Addresses::new(&line.addresses).unwrap();
        let taken = [(addresses.api, "--api-port"), (addresses.ca, "--ca-port")];
        let failure = format!("{:?}", addresses.moved(&taken).await);
        assert!(failure.contains(&format!("127.0.0.1:{port}, {}", addresses.ca)), "{failure}");
        let moved = addresses.free_port("--api-port").await;
        assert!(moved.is_none_or(|moved| moved > port), "{moved:?}");
    }
}
