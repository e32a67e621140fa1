//! What an idle connection costs an edge: its resident memory before and after many of them.
//!
//! Each connection shakes hands, asks once and is left alone. After the wait each one is asked again, so that the figure is
//! one of connections that work. Each program starts anew for each round, and the rounds are interleaved. An edge takes no
//! more connections than its descriptors are enough for; where that is less than asked for, several share them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cert_store::DomainName;
use portico_edge::http::h3::adapter::{Connection, Opener};
use quinn::crypto::rustls::QuicClientConfig;
use rustix::process::{Resource, getrlimit};
use rustls::ClientConfig;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::client::{self, ConnectError, TlsChoice};
use crate::compare::{Material, Server, start_edge, start_quic_edge};
use crate::names::NamesArgs;
use crate::server_cpu::resident_bytes;

/// Our own descriptors are bounded at 20,000.
const CONNECTIONS_MAX: usize = 15_000;
const ROUNDS_MAX: usize = 20;
const WAIT_SECONDS_MAX: u64 = 300;
/// Opened and closed first, so that what a server sets up once is not counted.
const WARM_UP: usize = 200;
/// An edge's clients may take 80 % of its descriptors, two each: one is for the origin (`edge/src/limits.rs`).
const DESCRIPTORS_PER_CONNECTION: f64 = 2.5;
/// Handshakes under way at once.
const AT_ONCE: usize = 32;
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IdleArgs {
    /// Connections left open at once.
    #[arg(long, default_value_t = 5000)]
    connections: usize,
    #[arg(long, conflicts_with = "http3")]
    http2: bool,
    #[arg(long)]
    http3: bool,
    /// The edge's binary; several are measured in turn. By default `portico-edge` beside this one.
    #[arg(long = "program", conflicts_with = "connect")]
    programs: Vec<PathBuf>,
    /// I/O backend of the programs.
    #[arg(long, default_value = "uring")]
    io: String,
    /// A server that runs already.
    #[arg(long, requires_all = ["server_pid", "roots"])]
    connect: Option<SocketAddr>,
    #[arg(long)]
    server_pid: Option<u32>,
    /// PEM file with the trust anchors of that server's certificates.
    #[arg(long)]
    roots: Option<PathBuf>,
    #[command(flatten)]
    names: NamesArgs,
    /// Seconds between the last answer and the look at the memory.
    #[arg(long, default_value_t = 4)]
    wait: u64,
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    server: String,
    protocol: &'static str,
    round: usize,
    /// Over which the connections are spread.
    processes: usize,
    connections: usize,
    resident_before_bytes: u64,
    resident_idle_bytes: u64,
    bytes_per_connection: u64,
    /// Connections that answered again after the wait.
    answered_again: usize,
}

pub(crate) fn run(args: &IdleArgs) -> Result<()> {
    check(args)?;
    let mut rows = Vec::new();
    if let (Some(address), Some(pid), Some(roots)) = (args.connect, args.server_pid, &args.roots) {
        let names = args.names.read()?;
        for round in 1..=args.rounds {
            let target = Target { servers: vec![(address, pid)], names: &names, roots };
            rows.push(measure(args, &target, address.to_string(), round)?);
        }
    } else {
        let folder = tempfile::tempdir()?;
        let material = Material::make(folder.path(), 100)?;
        let beside = std::env::current_exe()?.with_file_name("portico-edge");
        let programs = if args.programs.is_empty() { vec![beside] } else { args.programs.clone() };
        for round in 1..=args.rounds {
            for program in &programs {
                let title = format!("{} ({})", program.display(), args.io);
                let started = (0..edges_for(args.connections))
                    .map(|_| match args.version() {
                        Version::Http3 => start_quic_edge(&material, program, &args.io, &title),
                        Version::Http1 | Version::Http2 => {
                            start_edge(0, &material, program, &args.io, &title, None)
                        }
                    })
                    .collect::<Result<Vec<Server>>>()?;
                let (names, roots) = (&material.names[..], &material.roots);
                let servers = started.iter().map(|server| (server.address, server.pid())).collect();
                let target = Target { servers, names, roots };
                rows.push(measure(args, &target, title, round)?);
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    if rows.iter().any(|row| row.answered_again < row.connections) {
        bail!("some connections were lost while they were idle; see the rows");
    }
    Ok(())
}

fn check(args: &IdleArgs) -> Result<()> {
    if args.connections == 0 || args.connections > CONNECTIONS_MAX {
        bail!("--connections {}: between 1 and {CONNECTIONS_MAX}", args.connections);
    }
    if args.rounds == 0 || args.rounds > ROUNDS_MAX || args.wait > WAIT_SECONDS_MAX {
        bail!("--rounds: between 1 and {ROUNDS_MAX}; --wait: at most {WAIT_SECONDS_MAX} seconds");
    }
    if args.connect.is_some_and(|address| !address.ip().is_loopback()) {
        bail!("--connect: only servers on loopback");
    }
    Ok(())
}

/// As many edges as have room for so many connections, the warm-up's too.
fn edges_for(connections: usize) -> usize {
    // No limit is room enough. The edge raises its soft limit to the hard one.
    let descriptors = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let room = descriptors as f64 / DESCRIPTORS_PER_CONNECTION - WARM_UP as f64;
    (1..connections).find(|edges| connections as f64 / *edges as f64 <= room).unwrap_or(1)
}

struct Target<'a> {
    /// Addresses and process ids.
    servers: Vec<(SocketAddr, u32)>,
    names: &'a [DomainName],
    roots: &'a std::path::Path,
}

impl Target<'_> {
    /// Where connection number `at` goes, and for which name.
    fn of(&self, at: usize) -> (SocketAddr, &DomainName) {
        // Every server gets every name.
        let (server, turn) = (at % self.servers.len(), at / self.servers.len());
        (self.servers[server].0, &self.names[turn % self.names.len()])
    }

    fn resident_bytes(&self) -> Result<u64> {
        self.servers.iter().map(|(_, pid)| resident_bytes(*pid)).sum()
    }
}

fn measure(args: &IdleArgs, target: &Target<'_>, server: String, round: usize) -> Result<Row> {
    let version = args.version();
    let choice = TlsChoice { resume: false, http2: version == Version::Http2, classical: true };
    let config = client::config(client::read_roots(target.roots)?, choice)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = async {
        let way = match version {
            Version::Http1 | Version::Http2 => Way::Tcp(config, version),
            Version::Http3 => Way::Quic(quic_endpoint(&config)?),
        };
        drop(open(target, &way, WARM_UP.min(args.connections)).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = target.resident_bytes()?;
        let mut kept = open(target, &way, args.connections).await?;
        tokio::time::sleep(Duration::from_secs(args.wait)).await;
        let idle = target.resident_bytes()?;
        let mut answered_again = 0;
        for (at, connection) in kept.iter_mut().enumerate() {
            let (address, name) = target.of(at);
            answered_again += usize::from(connection.ask(address, name).await.is_ok());
        }
        anyhow::Ok((before, idle, answered_again))
    };
    let (before, idle, answered_again) = LocalSet::new().block_on(&runtime, measured)?;
    Ok(Row {
        server,
        protocol: version.as_str(),
        round,
        processes: target.servers.len(),
        connections: args.connections,
        resident_before_bytes: before,
        resident_idle_bytes: idle,
        bytes_per_connection: idle.saturating_sub(before) / args.connections as u64,
        answered_again,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
    Http3,
}

impl IdleArgs {
    fn version(&self) -> Version {
        match (self.http2, self.http3) {
            (_, true) => Version::Http3,
            (true, false) => Version::Http2,
            (false, false) => Version::Http1,
        }
    }
}

impl Version {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
            Self::Http3 => "h3",
        }
    }
}

/// How connections are made.
#[derive(Clone)]
enum Way {
    Tcp(Arc<ClientConfig>, Version),
    /// One socket for all: the server tells connections apart by their ids.
    Quic(quinn::Endpoint),
}

fn quic_endpoint(config: &ClientConfig) -> Result<quinn::Endpoint> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = QuicClientConfig::try_from(config)?;
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    Ok(endpoint)
}

/// An open connection.
enum Kept {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
    Http3 { connection: quinn::Connection, sender: h3::client::SendRequest<Opener, Bytes> },
}

/// Opens that many connections; each has had one answer.
async fn open(target: &Target<'_>, way: &Way, count: usize) -> Result<Vec<Kept>> {
    let mut kept = Vec::with_capacity(count);
    for first in (0..count).step_by(AT_ONCE) {
        let mut opening = Vec::with_capacity(AT_ONCE);
        for at in first..count.min(first + AT_ONCE) {
            let (address, name) = target.of(at);
            let (name, way) = (name.clone(), way.clone());
            opening.push(tokio::task::spawn_local(async move {
                let mut connection = Kept::open(address, &name, &way).await?;
                connection.ask(address, &name).await?;
                anyhow::Ok(connection)
            }));
        }
        for task in opening {
            kept.push(task.await?.with_context(|| format!("one of the connections from {first} on"))?);
        }
    }
    Ok(kept)
}

impl Kept {
    async fn open(address: SocketAddr, name: &DomainName, way: &Way) -> Result<Self> {
        let (config, version) = match way {
            Way::Tcp(config, version) => (config, *version),
            Way::Quic(endpoint) => return Self::open_quic(address, name, endpoint).await,
        };
        let stream = client::connect(address, name, config).await.map_err(|error| match error {
            ConnectError::WrongCertificate(why) | ConnectError::Failed(why) => anyhow::anyhow!(why),
        })?;
        if version == Version::Http2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::task::spawn_local(driver);
            Ok(Self::Http2(sender))
        } else {
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::task::spawn_local(driver);
            Ok(Self::Http1(sender))
        }
    }

    async fn open_quic(address: SocketAddr, name: &DomainName, endpoint: &quinn::Endpoint) -> Result<Self> {
        let connection = endpoint.connect(address, name.as_str())?.await?;
        let adapter = Connection::new(connection.clone(), Rc::default());
        let (mut driver, sender) = h3::client::new(adapter).await?;
        tokio::task::spawn_local(async move {
            // Its end is seen on the streams.
            let _ended = std::future::poll_fn(|context| driver.poll_close(context)).await;
        });
        Ok(Self::Http3 { connection, sender })
    }

    async fn ask(&mut self, address: SocketAddr, name: &DomainName) -> Result<()> {
        let port = address.port();
        let exchange = async {
            let response = match self {
                Self::Http3 { sender, .. } => {
                    return ask_http3(sender, &format!("https://{name}:{port}/")).await;
                }
                Self::Http1(sender) => {
                    let host = format!("{name}:{port}");
                    sender.ready().await?;
                    sender
                        .send_request(http::Request::get("/").header("host", host).body(Empty::new())?)
                        .await?
                }
                Self::Http2(sender) => {
                    let target = format!("https://{name}:{port}/");
                    sender.ready().await?;
                    sender.send_request(http::Request::get(target).body(Empty::new())?).await?
                }
            };
            let status = response.status();
            response.into_body().collect().await?;
            if status.is_success() { Ok(()) } else { Err(anyhow::anyhow!("status {status}")) }
        };
        tokio::time::timeout(ANSWER_DEADLINE, exchange).await.context("no answer")?
    }
}

async fn ask_http3(sender: &mut h3::client::SendRequest<Opener, Bytes>, target: &str) -> Result<()> {
    let mut stream = sender.send_request(http::Request::get(target).body(())?).await?;
    stream.finish().await?;
    let status = stream.recv_response().await?.status();
    while stream.recv_data().await?.is_some() {}
    if status.is_success() { Ok(()) } else { Err(anyhow::anyhow!("status {status}")) }
}

/// Over QUIC nobody notices a client that is only gone.
impl Drop for Kept {
    fn drop(&mut self) {
        if let Self::Http3 { connection, .. } = self {
            connection.close(0x100_u32.into(), b""); // H3_NO_ERROR
        }
    }
}

fn print(rows: &[Row]) {
    println!(
        "| server | protocol | round | processes | connections | RSS before KiB | RSS idle KiB | KB each | answered again |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            row.server,
            row.protocol,
            row.round,
            row.processes,
            row.connections,
            row.resident_before_bytes / 1024,
            row.resident_idle_bytes / 1024,
            row.bytes_per_connection as f64 / 1000.0,
            row.answered_again
        );
    }
}
