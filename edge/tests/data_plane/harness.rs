//! An edge in this process: real workers on real sockets, its tables written by the test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use portico_api::distribution as wire;
use portico_cert_store::{DomainId, LineageId, TenantId, UnixTime};
use portico_edge::access_log::AccessLog;
use portico_edge::cache::Cache;
use portico_edge::config::{AccessLogConfig, AccessLogTarget, ListenerConfig, ListenerKind, LogFormat};
use portico_edge::drain::DrainSwitch;
use portico_edge::http::visitor::TrustedProxies;
use portico_edge::io::{Backend, IoChoice, choose, probe};
use portico_edge::limits::Deadlines;
use portico_edge::listen;
use portico_edge::memory::Memory;
use portico_edge::metrics::Metrics;
use portico_edge::privacy::Privacy;
use portico_edge::server::{Edge, Readiness, start_workers};
use portico_edge::sources::{SourceLimits, Sources};
use portico_edge::tls::TlsConfigs;
use portico_edge::traces::Traces;
use portico_edge::upstream::{OriginSockets, OriginTls};

use crate::fleet::{self, Bench};

/// Longest time that anything in these tests may take; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Setup {
    pub workers: usize,
    pub connections_max: usize,
    pub origin_sockets_max: u64,
    pub cache_bytes: u64,
    pub sources: SourceLimits,
    pub deadlines: Deadlines,
    pub resolvers: Vec<SocketAddr>,
    pub origin_roots: rustls::RootCertStore,
    pub public_https_port: u16,
    pub http3: bool,
    /// On both listeners.
    pub proxy_protocol: Option<Vec<IpNet>>,
    pub trusted_proxies: Option<Arc<TrustedProxies>>,
    /// As the service thread does; for as long as the test binary runs.
    pub health_checks: bool,
    /// Where it listens.
    pub ip: IpAddr,
    /// Another log than the file of its own.
    pub log: Option<PathBuf>,
    pub log_format: LogFormat,
    pub privacy: Privacy,
    /// Called when the sockets are bound and no worker runs yet.
    pub before_workers: fn(),
    /// Called with the sockets.
    pub spoil: fn(&mut [Vec<listen::BoundListener>]),
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 1,
            connections_max: 1000,
            origin_sockets_max: 1000,
            cache_bytes: 16 << 20,
            sources: SourceLimits::default(),
            deadlines: Deadlines::default(),
            resolvers: Vec::new(),
            origin_roots: rustls::RootCertStore::empty(),
            public_https_port: 443,
            http3: false,
            proxy_protocol: None,
            trusted_proxies: None,
            health_checks: false,
            ip: Ipv4Addr::LOCALHOST.into(),
            log: None,
            log_format: LogFormat::Json,
            privacy: Privacy::default(),
            before_workers: || (),
            spoil: |_| (),
        }
    }
}

pub struct TestEdge {
    pub bench: Bench,
    pub edge: Arc<Edge>,
    pub https: SocketAddr,
    pub http: SocketAddr,
    pub log: PathBuf,
    pub switch: DrainSwitch,
    pub workers: Vec<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

/// Runs a test on epoll, and on io_uring where this kernel has it (the fallback has a test of its own).
pub fn on_each_backend(test: impl Fn(Backend)) {
    test(choose(IoChoice::Epoll).unwrap().0);
    match probe() {
        Ok(_) => test(choose(IoChoice::Uring).unwrap().0),
        Err(refused) => portico_skipping::skipped(&format!("io_uring: {refused}")),
    }
}

impl TestEdge {
    pub fn start(backend: Backend) -> Self {
        Self::with(backend, Setup::default())
    }

    pub fn with(backend: Backend, setup: Setup) -> Self {
        let mut bench = Bench::new();
        bench.context.now = UnixTime::now();
        let folder = tempfile::tempdir().unwrap();
        let log = setup.log.unwrap_or_else(|| folder.path().join("access.log"));
        let metrics = Arc::new(Metrics::register());
        let logging =
            AccessLogConfig { target: AccessLogTarget::File(log.clone()), format: setup.log_format };
        let (access_log, _writer) = AccessLog::open(&logging, &setup.privacy, Arc::clone(&metrics)).unwrap();
        let listener = |kind| ListenerConfig {
            address: SocketAddr::new(setup.ip, 0),
            kind,
            public_https_port: setup.public_https_port,
            http3: setup.http3 && kind == ListenerKind::Https,
            proxy_protocol: setup.proxy_protocol.clone(),
            trusted_proxies: setup.trusted_proxies.clone(),
        };
        let configs = [listener(ListenerKind::Https), listener(ListenerKind::Http)];
        let mut bound = listen::bind_all(&configs, setup.workers).unwrap();
        (setup.spoil)(&mut bound);
        let [https, http] = [0, 1].map(|index| bound[0][index].config.address);
        let (switch, drain) = DrainSwitch::new();
        let edge = Arc::new(Edge {
            backend,
            live: Arc::clone(&bench.live),
            tls: TlsConfigs::new().unwrap(),
            sources: Sources::new(setup.sources, Arc::clone(&metrics)),
            traces: Traces::new(None, &setup.privacy, &metrics).0,
            metrics,
            access_log,
            drain,
            successor: std::sync::OnceLock::new(),
            origin_tls: OriginTls::with_roots(setup.origin_roots),
            origin_watch: Arc::default(),
            cache: Cache::new(setup.cache_bytes, [https.port(), http.port(), setup.public_https_port]),
            resolvers: setup.resolvers,
            own_sockets: vec![https, http],
            connections_per_worker_max: setup.connections_max,
            origin_sockets: Arc::new(OriginSockets::new(setup.origin_sockets_max, setup.workers)),
            memory: Memory::bounded(None),
            deadlines: setup.deadlines,
            readiness: Readiness::default(),
        });
        if setup.health_checks {
            let edge = Arc::clone(&edge);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let checking = portico_edge::upstream::check_origins(edge);
                tokio::task::LocalSet::new().block_on(&runtime, checking).unwrap();
            });
        }
        (setup.before_workers)();
        let workers = start_workers(&edge, bound).unwrap();
        Self { bench, edge, https, http, log, switch, workers, _folder: folder }
    }

    /// One tenant, one certificate for all names, every name answering with a fixed body: its own name.
    pub fn serve(&mut self, names: &[&str]) -> Served {
        self.serve_with(names, &[], |_| ())
    }

    /// The same with grants (range, port) and changes to each domain.
    pub fn serve_with(
        &mut self,
        names: &[&str],
        grants: &[(&str, u16)],
        change: impl Fn(&mut wire::Domain),
    ) -> Served {
        let served = Served {
            tenant: TenantId::generate(),
            lineage: LineageId::generate(),
            domains: names.iter().map(|name| ((*name).to_owned(), DomainId::generate())).collect(),
        };
        let minted = fleet::mint(served.tenant, names);
        let mut resources = vec![
            tenant_with(served.tenant, 1, grants, None),
            fleet::credential(served.lineage, 1, served.tenant, &minted.body),
        ];
        resources.extend(served.domains.iter().map(|(name, id)| {
            let mut body = fleet::domain_body(name, &[served.lineage]);
            change(&mut body);
            fleet::domain(*id, 1, served.tenant, &body)
        }));
        self.apply(resources);
        served
    }

    /// Publishes; a nack is a mistake of the test.
    pub fn apply(&mut self, resources: Vec<wire::Resource>) {
        let first = self.bench.publisher.applied() == portico_cert_store::Generation::default();
        let published = if first { self.bench.snapshot(resources) } else { self.bench.delta(resources) };
        assert!(published.nacks.is_empty(), "{:?}", published.nacks);
    }

    /// One series of the process's metrics, which all edges of this test binary share.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.edge.metrics.render();
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    /// The access log's lines so far, once there are at least `count`.
    pub fn log_lines(&self, count: usize) -> Vec<serde_json::Value> {
        let deadline = portico_edge::clock::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            // Who reads a file that is written to may see a part of the last line.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let lines: Vec<_> =
                whole.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(portico_edge::clock::now() < deadline, "{} of {count} lines: {text}", lines.len());
            std::thread::yield_now();
        }
    }
}

pub struct Served {
    pub tenant: TenantId,
    pub lineage: LineageId,
    pub domains: Vec<(String, DomainId)>,
}

pub fn tenant_with(
    id: TenantId,
    version: u64,
    grants: &[(&str, u16)],
    suspension: Option<wire::Suspension>,
) -> wire::Resource {
    let egress_grants = grants
        .iter()
        .map(|(cidr, port)| wire::EgressGrant { cidr: (*cidr).to_owned(), ports: vec![u32::from(*port)] })
        .collect();
    let body = wire::Tenant { egress_grants, suspension, ..wire::Tenant::default() };
    fleet::resource(wire::ResourceKind::Tenant, &id.to_string(), version, id, &body)
}

pub fn proxy_to(origin: &str) -> wire::Route {
    wire::Route {
        path_prefix: "/".into(),
        action: Some(wire::route::Action::Proxy(wire::Proxy {
            origin: origin.to_owned(),
            ..wire::Proxy::default()
        })),
        rule: None,
    }
}

/// Waits for a condition, with a deadline.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = portico_edge::clock::now() + PATIENCE;
    while !condition() {
        assert!(portico_edge::clock::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.switch.begin();
        let deadline = portico_edge::clock::now() + Duration::from_secs(5);
        for worker in self.workers.drain(..) {
            while !worker.is_finished() && portico_edge::clock::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
