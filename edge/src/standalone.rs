//! Standalone mode: certificates and routes from files, for an edge without a control plane.
//!
//! Files are read and parsed by all cores; a file that cannot be used is a warning with its path, and the others serve
//! (one bad certificate never stops an edge). Keys are sealed in memory at once, as in fleet mode.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use portico_cert_store::{CertificateChain, NamePattern, PrivateKey, TlsPolicy};

use crate::{
    clock,
    config::{
        CertificateFiles, ConfigError, NamedPath, RouteConfig, StandaloneConfig, TlsSection, UnknownSniChoice,
    },
    limits,
    live::{
        EgressGrant, FleetPolicy, Hsts, LivePublisher, Maintenance, Route, SealedCertificate, Sealing, Site,
        Sites, UnknownSni,
    },
};

/// Publishes what the file names.
///
/// # Errors
/// When the folder or list cannot be read, or the default certificate cannot be used.
pub fn load(config: &StandaloneConfig, publisher: LivePublisher) -> anyhow::Result<Sites> {
    let grants = config.egress.iter();
    let grants =
        grants.map(|allow| EgressGrant { net: allow.net, ports: allow.ports.clone().into() }).collect();
    let mut sites = Sites::new(publisher, grants);
    sites.set_limits(config.limits);
    sites.set_error_pages(config.error_pages.clone());
    // A default that cannot be used ends the start, so it is read before the many.
    let default = config.certificates.default.as_ref().map(read_default).transpose()?;
    let mut sealed = Vec::new();
    for (path, result) in seal_all(&paths(&config.certificates)?, &sites.sealing()) {
        match result {
            Ok(certificate) => sealed.push(certificate),
            Err(problem) => tracing::warn!(file = %path.display(), problem, "a certificate is left out"),
        }
    }
    let unknown_sni = match config.unknown_sni {
        UnknownSniChoice::Refuse => UnknownSni::Refuse,
        UnknownSniChoice::Default => UnknownSni::Default,
    };
    let certificates = sealed.len();
    warn_of_bare_hosts(&config.routes, &sealed);
    let of_default = default.iter().flat_map(|(chain, _)| &chain.facts().names);
    for host in
        policies_for_nobody(config, sealed.iter().flat_map(SealedCertificate::names).chain(of_default))
    {
        tracing::warn!(%host, "a [[tls]] is for a host that has neither certificate nor route: what it asks of clients holds \
             nowhere; is the name misspelt?");
    }
    let by_host = sites_of(config, sealed.iter().flat_map(SealedCertificate::names));
    sites.load(sealed, by_host, clock::unix_time())?;
    let default = default.map(|(chain, key)| sites.add_certificate(chain, &key, clock::unix_time()));
    let named = config.certificates.default.as_ref();
    let default = default.transpose().map_err(|fault| match named {
        Some(named) => anyhow::Error::new(named.fault(&fault)),
        None => anyhow::Error::new(fault),
    })?;
    sites.set_fleet(FleetPolicy { unknown_sni, ..FleetPolicy::default() }, default);
    tracing::info!(certificates, routes = config.routes.len(), "standalone files read");
    Ok(sites)
}

/// How many certificate files there are, to size tables; 0 when nothing can be read (an error then follows elsewhere).
pub fn count_files(config: &StandaloneConfig) -> usize {
    paths(&config.certificates).map_or(0, |paths| paths.len())
}

/// Reads a chain and its key from one text with both (PEM), as the admin socket gets it.
///
/// # Errors
/// A text that says which half is wrong.
pub fn parse_pair(pem: &[u8]) -> Result<(CertificateChain, PrivateKey), String> {
    let chain = CertificateChain::parse_pem(pem).map_err(|error| format!("certificate: {error}"))?;
    let key = PrivateKey::from_pem(pem).map_err(|error| format!("private key: {error}"))?;
    Ok((chain, key))
}

fn read_default(named: &NamedPath) -> Result<(CertificateChain, PrivateKey), ConfigError> {
    read_pair(&CertificatePath::of(named.path()))
        .map_err(|problem| named.fault(&format!("the default certificate: {problem}")))
}

/// A certificate may still come by the admin socket, so this ends no start.
fn warn_of_bare_hosts(routes: &[RouteConfig], sealed: &[SealedCertificate]) {
    let names: HashSet<&NamePattern> = sealed.iter().flat_map(SealedCertificate::names).collect();
    let wildcards: Vec<&NamePattern> = names.iter().copied().filter(|name| name.is_wildcard()).collect();
    let is_bare = |host: &&NamePattern| {
        !names.contains(host) && !wildcards.iter().any(|wildcard| wildcard.covers(host))
    };
    let hosts: BTreeSet<&NamePattern> = routes.iter().filter_map(|route| route.host.as_ref()).collect();
    for host in hosts.into_iter().filter(is_bare) {
        tracing::warn!(%host, "a route's host has no certificate; its https clients are refused until one is added");
    }
}

/// Hosts of `[[tls]]` sections that no certificate and no route has to do with. A certificate may still come by the admin socket.
fn policies_for_nobody<'a>(
    config: &'a StandaloneConfig,
    certificate_names: impl Iterator<Item = &'a NamePattern>,
) -> Vec<&'a NamePattern> {
    let of_routes = config.routes.iter().filter_map(|route| route.host.as_ref());
    let known: HashSet<&NamePattern> = certificate_names.chain(of_routes).collect();
    let wildcards: Vec<&NamePattern> = known.iter().copied().filter(|name| name.is_wildcard()).collect();
    let meets = |host: &NamePattern| {
        known.contains(host)
            || wildcards.iter().any(|wildcard| wildcard.covers(host))
            || (host.is_wildcard() && known.iter().any(|name| host.covers(name)))
    };
    config.tls.iter().filter_map(|section| section.host.as_ref()).filter(|host| !meets(host)).collect()
}

#[derive(Debug, Clone)]
struct CertificatePath {
    chain: PathBuf,
    /// `None`: in the same file.
    key: Option<PathBuf>,
}

impl CertificatePath {
    fn of(chain: &Path) -> Self {
        let beside = chain.with_extension("key");
        Self { chain: chain.to_owned(), key: beside.exists().then_some(beside) }
    }
}

fn paths(files: &CertificateFiles) -> anyhow::Result<Vec<CertificatePath>> {
    let mut found = Vec::new();
    if let Some(named) = &files.folder {
        let entries =
            fs::read_dir(named.path()).map_err(|error| named.fault(&format!("the folder: {error}")))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "pem" || extension == "crt") {
                found.push(path);
            }
        }
        found.sort(); // the same order at each start
    }
    let mut found: Vec<_> = found.iter().map(|path| CertificatePath::of(path)).collect();
    if let Some(named) = &files.list_file {
        let list = named.path();
        let text = fs::read_to_string(list).map_err(|error| named.fault(&format!("the list: {error}")))?;
        let folder = list.parent().unwrap_or(Path::new("."));
        for (number, line) in text.lines().enumerate() {
            found.extend(
                list_line(folder, line)
                    .map_err(|problem| anyhow::anyhow!("{}:{}: {problem}", list.display(), number + 1))?,
            );
        }
    }
    Ok(found)
}

fn list_line(folder: &Path, line: &str) -> Result<Option<CertificatePath>, &'static str> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (None, ..) => Ok(None),
        (Some(chain), None, _) => Ok(Some(CertificatePath::of(&folder.join(chain)))),
        (Some(chain), Some(key), None) => {
            Ok(Some(CertificatePath { chain: folder.join(chain), key: Some(folder.join(key)) }))
        }
        (Some(_), Some(_), Some(_)) => Err("more than two paths; a line is a chain, or a chain and its key"),
    }
}

type Outcome = (PathBuf, Result<SealedCertificate, String>);

/// Reads, parses and seals on all cores, keeping the order.
fn seal_all(paths: &[CertificatePath], sealing: &Arc<Sealing>) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = paths.len().div_ceil(threads).max(1);
    let progress = Progress::new(paths.len());
    let seal = |path: &CertificatePath| {
        progress.count();
        let (chain, key) = read_pair(path)?;
        sealing.seal(chain, &key).map_err(|fault| fault.to_string())
    };
    std::thread::scope(|scope| {
        let start = |paths: &'_ [CertificatePath]| {
            let paths = paths.to_vec();
            scope.spawn(move || -> Vec<Outcome> {
                paths.into_iter().map(|path| (path.chain.clone(), seal(&path))).collect()
            })
        };
        let running: Vec<_> = paths.chunks(share).map(start).collect();
        // A thread of ours that panics is a bug; its files are missing, the others serve.
        running.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// Says every two seconds how far a long start has come.
struct Progress {
    files: usize,
    done: AtomicUsize,
    started: Instant,
    reports: AtomicUsize,
}

impl Progress {
    fn new(files: usize) -> Self {
        Self { files, done: AtomicUsize::new(0), started: clock::now(), reports: AtomicUsize::new(0) }
    }

    fn count(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let reports = self.reports.load(Ordering::Relaxed);
        let due = self.started + REPORT_EVERY * u32::try_from(reports + 1).unwrap_or(u32::MAX);
        // One of the threads says it.
        let is_mine = clock::now() >= due
            && self
                .reports
                .compare_exchange(reports, reports + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            tracing::info!(done, files = self.files, "reading certificates; not listening yet");
        }
    }
}

const REPORT_EVERY: Duration = Duration::from_secs(2);

fn read_pair(path: &CertificatePath) -> Result<(CertificateChain, PrivateKey), String> {
    let chain = read(&path.chain)?;
    match &path.key {
        None => parse_pair(&chain),
        Some(key) => {
            let chain =
                CertificateChain::parse_pem(&chain).map_err(|error| format!("certificate: {error}"))?;
            let key = read(key).map_err(|error| format!("private key {}: {error}", key.display()))?;
            let key = PrivateKey::from_pem(&key).map_err(|error| format!("private key: {error}"))?;
            Ok((chain, key))
        }
    }
}

/// The bytes are wiped when dropped: a file may hold a key. An error does not name the file; whoever asked for it does.
pub(crate) fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > limits::CERTIFICATE_FILE_BYTES_MAX {
        return Err(format!("{size} bytes; at most {}", limits::CERTIFICATE_FILE_BYTES_MAX));
    }
    fs::read(path).map(zeroize::Zeroizing::new).map_err(|error| error.to_string())
}

/// Groups the routes by host, in the file's order; those of `*` go behind the host's own, for every name there is. A name
/// that has a policy and no route is a site too.
fn sites_of<'a>(
    config: &'a StandaloneConfig,
    certificate_names: impl Iterator<Item = &'a NamePattern>,
) -> BTreeMap<NamePattern, Site> {
    let mut by_host: BTreeMap<NamePattern, Draft> = BTreeMap::new();
    let mut everywhere = Draft::default();
    for route in &config.routes {
        match &route.host {
            Some(host) => by_host.entry(host.clone()).or_default().add(route),
            None => everywhere.add(route),
        }
    }
    let mut sites = BTreeMap::new();
    // One list for all the names that have no route of their own.
    let shared = everywhere.clone().site(None);
    let others = config.tls.iter().filter_map(|section| section.host.as_ref()).chain(certificate_names);
    for name in others.filter(|name| !by_host.contains_key(*name)) {
        let tls = TlsSection::of(&config.tls, name);
        if tls.is_some() || !shared.routes.is_empty() {
            sites.insert(name.clone(), shared.clone().under(tls));
        }
    }
    for (name, mut own) in by_host {
        own.routes.extend(everywhere.routes.iter().cloned());
        own.widen(everywhere.hsts, everywhere.plain_http, everywhere.maintenance.as_ref());
        let tls = TlsSection::of(&config.tls, &name);
        sites.insert(name, own.site(tls));
    }
    sites
}

/// A site while its routes are gathered.
#[derive(Clone, Default)]
struct Draft {
    routes: Vec<Route>,
    hsts: Option<Hsts>,
    plain_http: bool,
    maintenance: Option<Maintenance>,
}

impl Draft {
    fn add(&mut self, config: &RouteConfig) {
        self.routes.push(config.route.clone());
        self.widen(config.hsts, config.plain_http, config.maintenance.as_ref());
    }

    /// What any of the routes wants of the host holds for the host; its own go before those of `*`.
    fn widen(&mut self, hsts: Option<Hsts>, plain_http: bool, maintenance: Option<&Maintenance>) {
        self.hsts = self.hsts.or(hsts);
        self.plain_http |= plain_http;
        self.maintenance = self.maintenance.take().or_else(|| maintenance.cloned());
    }

    fn site(self, tls: Option<&TlsSection>) -> Site {
        let site = Site {
            routes: self.routes.into(),
            policy: TlsPolicy::default(),
            client_auth: None,
            early_data: false,
            hsts: self.hsts,
            https_redirect: !self.plain_http,
            maintenance: self.maintenance,
        };
        site.under(tls)
    }
}

impl Site {
    fn under(self, tls: Option<&TlsSection>) -> Self {
        match tls {
            Some(tls) => {
                let TlsSection { host: _, policy, client_auth, early_data } = tls.clone();
                Self { policy, client_auth, early_data, ..self }
            }
            None => self,
        }
    }
}
