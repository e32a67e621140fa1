//! The DNS stub: stands for the whole of the DNS in a test. Any name has the default addresses until
//! records are set over the management listener.

mod answer;
pub(crate) mod exchange;
mod management;
mod records;
mod stats;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures_util::future::BoxFuture;
use hickory_server::Server;
use serde::Serialize;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::ca::{bind, loopback};
use crate::server;
use answer::Responder;
use records::Records;
use stats::Stats;

/// Arguments of `portico-acme-ca dns`.
#[derive(Args, Clone, Debug)]
pub struct DnsArgs {
    /// Address of the DNS server, UDP and TCP; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15353", value_parser = loopback)]
    pub listen: SocketAddr,
    /// Address of the management listener (plain HTTP, JSON); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15354", value_parser = loopback)]
    pub management: SocketAddr,
    /// Addresses of every name that has none of its own; without it such names do not exist.
    #[arg(long, value_delimiter = ',', value_name = "IPV4,IPV4")]
    pub default_a: Vec<Ipv4Addr>,
    /// TTL of the stub's own records, in seconds.
    #[arg(long, default_value_t = 0)]
    pub ttl: u32,
    /// Ends when standard input ends: a parent holds the other end of a pipe.
    #[arg(long)]
    pub exit_on_stdin_eof: bool,
}

impl DnsArgs {
    /// Arguments for a stub inside a test: free ports on 127.0.0.1.
    pub fn in_process(default_a: Vec<Ipv4Addr>) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { listen: free, management: free, default_a, ttl: 0, exit_on_stdin_eof: false }
    }
}

/// What a parent needs to know of a started stub; printed as one JSON line by the binary.
#[derive(Clone, Debug, Serialize)]
pub struct DnsAddresses {
    pub service: &'static str,
    pub dns: SocketAddr,
    pub management: SocketAddr,
}

/// A running stub. Dropping it stops it.
#[derive(Debug)]
pub struct DnsHandle {
    pub addresses: DnsAddresses,
    tasks: JoinSet<()>,
}

impl DnsHandle {
    /// Waits until a listener has ended, which only happens on a fault.
    pub async fn stopped(&mut self) {
        self.tasks.join_next().await;
    }
}

/// The state that queries and management share.
#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) records: RwLock<Records>,
    pub(crate) stats: Mutex<Stats>,
    pub(crate) ttl_seconds: u32,
}

const TCP_IDLE_DEADLINE: Duration = Duration::from_secs(30);
const RESPONSE_BUFFER_BYTES: usize = 4_096;

/// Starts a stub on the current tokio runtime. Boxed: compiled once, in this crate, and not
/// again in every program that awaits it.
///
/// # Errors
/// A taken or wrong address.
pub fn start(args: DnsArgs) -> BoxFuture<'static, anyhow::Result<DnsHandle>> {
    Box::pin(assemble(args))
}

async fn assemble(args: DnsArgs) -> anyhow::Result<DnsHandle> {
    let (udp, tcp) = bind_both(args.listen).await?;
    let management = bind(args.management, "--management").await?;
    let addresses =
        DnsAddresses { service: "dns-stub", dns: udp.local_addr()?, management: management.local_addr()? };
    let records = Records::new(args.default_a);
    let stub = Arc::new(Stub {
        records: RwLock::new(records),
        stats: Mutex::new(Stats::default()),
        ttl_seconds: args.ttl,
    });
    let mut dns = Server::new(Responder { stub: Arc::clone(&stub) });
    dns.register_socket(udp);
    dns.register_listener(tcp, TCP_IDLE_DEADLINE, RESPONSE_BUFFER_BYTES);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        if let Err(error) = dns.block_until_done().await {
            tracing::error!(%error, "the DNS server ended");
        }
    });
    tasks.spawn(server::serve_plain(management, management::router(stub)));
    Ok(DnsHandle { addresses, tasks })
}

/// UDP and TCP on one port; a free port is sought again if TCP has it taken.
async fn bind_both(address: SocketAddr) -> anyhow::Result<(UdpSocket, TcpListener)> {
    ensure!(address.ip().is_loopback(), "--listen {address}: not a loopback address");
    let advice = || format!("listen on {address}: choose another address with --listen");
    for _ in 0..20 {
        let udp = UdpSocket::bind(address).await.with_context(advice)?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() != 0 => return Err(error).with_context(advice),
            Err(_) => {}
        }
    }
    bail!("no port is free for both UDP and TCP on {}", address.ip())
}
