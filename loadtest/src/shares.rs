//! What a tenant keeps of its cache beside one that asks for far more than there is room for.
//!
//! An edge of a fleet with two tenants and one cache. The small tenant's pages fit into its half; the loud one's are many
//! times the whole cache, and each as likely to be asked for as the other. The origin counts what comes through.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use portico_api::distribution as wire;
use portico_cert_store::{CertificateChain, DomainId, DomainName, LineageId, PrivateKey, TenantId};
use rand::Rng as _;
use rustls::ClientConfig;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::client::{self, ConnectError, TlsChoice};
use crate::compare::{Material, Server, start_fleet_edge};
use crate::fleet_state::FleetState;
use crate::origin::Origin;

const CACHE_BYTES_MAX: u64 = 8 << 30;
const REQUESTS_MAX: u64 = 10_000_000;
/// So that many pages fit.
const PAGE_SHARE: u64 = 64;
const CONNECTIONS: usize = 8;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SharesArgs {
    /// Of the edge, for both tenants.
    #[arg(long, default_value_t = 64 << 20)]
    cache_bytes: u64,
    #[arg(long, default_value_t = 16 << 10)]
    page_bytes: usize,
    /// The loud tenant's pages, in caches that they would fill.
    #[arg(long, default_value_t = 8)]
    loud_caches: u64,
    /// Of the small tenant, alone and once more beside the loud one.
    #[arg(long, default_value_t = 20_000)]
    requests: u64,
    /// The edge's binary; by default `portico-edge` beside this one.
    #[arg(long)]
    program: Option<PathBuf>,
    #[arg(long, default_value = "uring")]
    io: String,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    tenant: &'static str,
    phase: &'static str,
    pages: u64,
    requests: u64,
    hits: u64,
    origin_requests: u64,
    bytes_from_cache: u64,
}

/// One tenant's visitors.
struct Visitors {
    address: SocketAddr,
    name: DomainName,
    config: Arc<ClientConfig>,
    pages: u64,
    page_bytes: usize,
}

/// Answers by whether `Cache-Status` calls them hits.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    hits: u64,
    others: u64,
}

pub(crate) fn run(args: &SharesArgs) -> Result<()> {
    check(args)?;
    let folder = tempfile::tempdir()?;
    let material = Material::make(folder.path(), 2)?;
    let origin = Origin::start(args.page_bytes)?;
    let state = folder.path().join("state");
    write_state(&state, &material, origin.address)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("portico-edge"),
    };
    let server = start_fleet_edge(&state, &program, &args.io, args.cache_bytes)?;
    let page_bytes = args.page_bytes as u64;
    let (small, loud) = (args.cache_bytes / page_bytes / 4, args.loud_caches * args.cache_bytes / page_bytes);
    let rows = measure(args, &server, &material, &origin, (small, loud))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

fn check(args: &SharesArgs) -> Result<()> {
    if args.page_bytes == 0 || args.cache_bytes > CACHE_BYTES_MAX {
        bail!("--page-bytes: at least 1; --cache-bytes: at most {CACHE_BYTES_MAX}");
    }
    if (args.page_bytes as u64).saturating_mul(PAGE_SHARE) > args.cache_bytes {
        bail!("--page-bytes {}: at most a {PAGE_SHARE}th of the cache", args.page_bytes);
    }
    if !(1..=REQUESTS_MAX).contains(&args.requests) || !(1..=1000).contains(&args.loud_caches) {
        bail!("--requests: 1 to {REQUESTS_MAX}; --loud-caches: 1 to 1000");
    }
    Ok(())
}

/// Two tenants, with one name and one proxied route each.
fn write_state(folder: &Path, material: &Material, origin: SocketAddr) -> Result<()> {
    let mut state = FleetState::create(folder)?;
    for name in &material.names {
        let tenant = TenantId::generate().to_string();
        let grant = wire::EgressGrant { cidr: "127.0.0.0/8".to_owned(), ports: vec![origin.port().into()] };
        let body = wire::Tenant { egress_grants: vec![grant], ..wire::Tenant::default() };
        state.put(wire::ResourceKind::Tenant, tenant.clone(), &tenant, &body);
        let pem = std::fs::read(material.certificates.join(format!("{name}.pem")))?;
        let chain = CertificateChain::parse_pem(&pem)?.to_vec();
        let chain = chain.into_iter().map(|certificate| certificate.to_vec()).collect();
        let lineage = LineageId::generate().to_string();
        state.put_credential(lineage.clone(), &tenant, chain, &PrivateKey::from_pem(&pem)?)?;
        let proxy = wire::Proxy {
            origin: format!("http://{origin}"),
            cache: Some(wire::CachePolicy::default()),
            ..wire::Proxy::default()
        };
        let action = Some(wire::route::Action::Proxy(proxy));
        let body = wire::Domain {
            name: name.to_string(),
            lineages: vec![wire::LineageRef { cell_id: state.cell().to_string(), lineage_id: lineage }],
            routes: vec![wire::Route { path_prefix: "/".to_owned(), action, rule: None }],
            served: true,
            ..wire::Domain::default()
        };
        state.put(wire::ResourceKind::Domain, DomainId::generate().to_string(), &tenant, &body);
    }
    state.finish()
}

fn measure(
    args: &SharesArgs,
    server: &Server,
    material: &Material,
    origin: &Origin,
    (small, loud): (u64, u64),
) -> Result<Vec<Row>> {
    let choice = TlsChoice { resume: false, http2: false, classical: true };
    let config = client::config(client::read_roots(&material.roots)?, choice)?;
    let visitors = |at: usize, pages| Visitors {
        address: server.address,
        name: material.names[at].clone(),
        config: Arc::clone(&config),
        pages,
        page_bytes: args.page_bytes,
    };
    let (small, loud) = (visitors(0, small), visitors(1, loud));
    let mut rows = Vec::new();
    let row = |tenant, phase, visitors: &Visitors, answers: Answers, before: u64| Row {
        tenant,
        phase,
        pages: visitors.pages,
        requests: answers.hits + answers.others,
        hits: answers.hits,
        origin_requests: origin.asked_for(visitors.name.as_str()) - before,
        bytes_from_cache: answers.hits * args.page_bytes as u64,
    };
    let asked = |visitors: &Visitors| origin.asked_for(visitors.name.as_str());
    small.each_page()?;
    let before = asked(&small);
    let alone = small.ask(args.requests, &AtomicBool::new(false))?;
    rows.push(row("small", "alone", &small, alone, before));
    let over = AtomicBool::new(false);
    let (before_small, before_loud) = (asked(&small), asked(&loud));
    let (beside, of_loud) = std::thread::scope(|scope| {
        let loud = scope.spawn(|| loud.ask(REQUESTS_MAX, &over));
        let beside = small.ask(args.requests, &AtomicBool::new(false));
        over.store(true, Ordering::SeqCst);
        let of_loud = loud.join().map_err(|_| anyhow::anyhow!("the loud tenant's visitors panicked"));
        anyhow::Ok((beside?, of_loud??))
    })?;
    rows.push(row("small", "beside the loud one", &small, beside, before_small));
    rows.push(row("loud", "beside the small one", &loud, of_loud, before_loud));
    Ok(rows)
}

impl Visitors {
    /// Every page once, so that what fits is kept.
    fn each_page(&self) -> Result<()> {
        let mut next = 0..self.pages;
        self.asking(1, || next.next()).map(|_| ())
    }

    /// Pages at random, from several connections, until so many are answered or it is over.
    fn ask(&self, requests: u64, over: &AtomicBool) -> Result<Answers> {
        let mut left = requests;
        let mut random = rand::rng();
        self.asking(CONNECTIONS, || {
            left = left.checked_sub(1).filter(|_| !over.load(Ordering::SeqCst))?;
            Some(random.random_range(0..self.pages))
        })
    }

    fn asking(&self, connections: usize, next: impl FnMut() -> Option<u64>) -> Result<Answers> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let next = std::cell::RefCell::new(next);
        let all = (0..connections).map(|_| self.connection(|| (next.borrow_mut())()));
        let answers = async {
            let mut sum = Answers::default();
            for answers in futures_util::future::try_join_all(all).await? {
                sum.hits += answers.hits;
                sum.others += answers.others;
            }
            anyhow::Ok(sum)
        };
        LocalSet::new().block_on(&runtime, answers)
    }

    async fn connection(&self, next: impl Fn() -> Option<u64>) -> Result<Answers> {
        let mut answers = Answers::default();
        let mut sender: Option<http1::SendRequest<Empty<Bytes>>> = None;
        while let Some(page) = next() {
            // An edge ends a connection after some thousand requests.
            let is_open = match &mut sender {
                Some(open) => open.ready().await.is_ok(),
                None => false,
            };
            let open = match sender.take().filter(|_| is_open) {
                Some(open) => sender.insert(open),
                None => sender.insert(self.open().await?),
            };
            let counter = if self.get(open, page).await? { &mut answers.hits } else { &mut answers.others };
            *counter += 1;
        }
        Ok(answers)
    }

    async fn open(&self) -> Result<http1::SendRequest<Empty<Bytes>>> {
        let stream = client::connect(self.address, &self.name, &self.config).await;
        let stream = stream.map_err(|error| match error {
            ConnectError::WrongCertificate(why) | ConnectError::Failed(why) => anyhow::anyhow!(why),
        })?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(driver);
        Ok(sender)
    }

    /// Whether it was a hit.
    async fn get(&self, sender: &mut http1::SendRequest<Empty<Bytes>>, page: u64) -> Result<bool> {
        let request = http::Request::get(format!("/{page}")).header("host", self.name.as_str());
        let response = sender.send_request(request.body(Empty::new())?).await?;
        let (status, told) = (response.status(), response.headers().get("cache-status").cloned());
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() || body.len() != self.page_bytes {
            bail!("{}/{page}: status {status} with {} bytes", self.name, body.len());
        }
        let told = told.context("an answer without Cache-Status")?;
        Ok(told.to_str()?.contains("; hit"))
    }
}

fn print(rows: &[Row]) {
    println!("| tenant | phase | pages | requests | hits | of 100 | origin asked | MiB from the cache |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {:.1} | {} | {} |",
            row.tenant,
            row.phase,
            row.pages,
            row.requests,
            row.hits,
            100.0 * row.hits as f64 / row.requests.max(1) as f64,
            row.origin_requests,
            row.bytes_from_cache >> 20
        );
    }
}
