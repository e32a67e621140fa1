//! The edge's one file. `RawConfig` is the text's shape, [`Config`] is what the edge runs on.
//!
//! Each error names the file, line and column, and the next step. Deliberately absent: includes, templates, and anything
//! that belongs to a tenant of a fleet (that lives in the control plane's API).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use portico_api::strict::by_name;
use portico_cert_store::NamePattern;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{
    http::visitor::{TrustedField, TrustedProxies},
    io::IoChoice,
    limits, memory,
    privacy::Privacy,
    sources::SourceLimits,
};

mod loops;
mod origin_tls;
mod origins;
mod privacy;
#[cfg(test)]
mod reference;
mod sources;
mod standalone;
mod tls;
mod traces;

pub use standalone::{CertificateFiles, EgressAllow, RouteConfig, StandaloneConfig, UnknownSniChoice};
pub use tls::TlsSection;
pub use traces::TracesConfig;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub workers: usize,
    pub io: IoChoice,
    /// Fleet mode's identity and last-good files; the admin socket's default place.
    pub state: PathBuf,
    pub metrics: Option<SocketAddr>,
    pub admin_socket: PathBuf,
    pub access_log: AccessLogConfig,
    /// Of access log and traces.
    pub privacy: Privacy,
    /// None: no spans are exported.
    pub traces: Option<TracesConfig>,
    /// Not ready, and serving on, before the drain begins.
    pub withdraw: Duration,
    pub drain: Duration,
    /// Name servers for origins; empty: those of /etc/resolv.conf.
    pub resolvers: Vec<SocketAddr>,
    /// Resident memory of the process; none: as its control group has it.
    pub memory_bytes: Option<u64>,
    /// Memory for kept answers; 0: none are kept; none: [`limits::CACHE_BYTES`], or less where memory is bounded.
    pub cache_bytes: Option<u64>,
    pub sources: SourceLimits,
    pub listeners: Vec<ListenerConfig>,
    pub mode: Mode,
}

/// Fleet and standalone exclude each other.
#[derive(Debug, Clone)]
pub enum Mode {
    Fleet(ControlConfig),
    Standalone(Box<StandaloneConfig>),
}

#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// host:port of the control plane's distribution endpoint.
    pub address: String,
    pub join_token_file: Option<NamedPath>,
}

#[derive(Debug, Clone)]
pub struct ListenerConfig {
    pub address: SocketAddr,
    pub kind: ListenerKind,
    /// The port that clients use for https, in redirects and in the authority of requests.
    pub public_https_port: u16,
    pub http3: bool,
    /// Every connection begins with a PROXY header, and comes from one of these networks.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// Whose word counts on who asks; none: nobody's.
    pub trusted_proxies: Option<Arc<TrustedProxies>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerKind {
    Http,
    Https,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessLogConfig {
    pub target: AccessLogTarget,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    #[default]
    Off,
    StandardOutput,
    File(PathBuf),
}

/// What a line of the access log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Json,
    /// As Apache and nginx have it.
    Combined,
    /// The same behind the site's name and port.
    VhostCombined,
}

/// A path that the file names, with its place there: what is wrong with it shows only when it is read.
#[derive(Debug, Clone)]
pub struct NamedPath {
    path: PathBuf,
    file: PathBuf,
    position: (usize, usize),
}

/// What is wrong with the file, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    path: PathBuf,
    /// From 1; absent when the file as a whole is meant.
    position: Option<(usize, usize)>,
    problem: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    workers: Option<Spanned<usize>>,
    io: Option<Spanned<String>>,
    state: Option<PathBuf>,
    metrics: Option<Spanned<String>>,
    admin_socket: Option<PathBuf>,
    access_log: Option<String>,
    access_log_format: Option<Spanned<LogFormat>>,
    privacy: Option<privacy::RawPrivacy>,
    traces: Option<traces::RawTraces>,
    withdraw_seconds: Option<Spanned<u64>>,
    drain_seconds: Option<Spanned<u64>>,
    memory_bytes: Option<Spanned<u64>>,
    cache_bytes: Option<Spanned<u64>>,
    client_limits: Option<sources::RawClientLimits>,
    #[serde(default)]
    resolvers: Vec<Spanned<String>>,
    #[serde(default)]
    listen: Vec<RawListener>,
    control: Option<Spanned<RawControl>>,
    standalone: Option<Spanned<standalone::RawStandalone>>,
    certificates: Option<Spanned<standalone::RawCertificates>>,
    #[serde(default)]
    tls: Vec<Spanned<tls::RawTls>>,
    #[serde(default)]
    route: Vec<Spanned<standalone::RawRoute>>,
    egress: Option<Spanned<standalone::RawEgress>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListener {
    address: Spanned<String>,
    kind: ListenerKind,
    public_https_port: Option<NonZeroU16>,
    http3: Option<Spanned<bool>>,
    proxy_protocol: Option<Spanned<Vec<Spanned<String>>>>,
    trusted_proxies: Option<Spanned<Vec<Spanned<String>>>>,
    trusted_field: Option<Spanned<TrustedField>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    address: Spanned<String>,
    join_token_file: Option<Spanned<PathBuf>>,
}

impl Config {
    /// Reads and checks a file. Relative paths in it are relative to the file's folder.
    ///
    /// # Errors
    /// [`ConfigError`], with the place in the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            path: path.to_owned(),
            position: None,
            problem: format!("cannot be read ({error}); give the edge's TOML file with --config"),
        })?;
        Self::parse(path, &text)
    }

    /// Checks a text that came from `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { path, text };
        let raw = toml::Deserializer::parse(text)
            .and_then(|document| RawConfig::deserialize(by_name(document)))
            .map_err(|error| source.error(error.span(), error.message().trim().to_owned()))?;
        source.check(raw)
    }
}

impl NamedPath {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A fault of what stands at the path, told at the place that names it.
    pub fn fault(&self, problem: &dyn fmt::Display) -> ConfigError {
        let problem = format!("{}: {problem}", self.path.display());
        ConfigError { path: self.file.clone(), position: Some(self.position), problem }
    }
}

/// The text under check; turns byte ranges into places.
#[derive(Clone, Copy)]
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn check(self, raw: RawConfig) -> Result<Config, ConfigError> {
        let state = self.resolve(raw.state.as_deref().unwrap_or(Path::new("/var/lib/portico-edge")));
        let listeners = self.listeners(&raw.listen)?;
        if listeners.is_empty() {
            return Err(self.error(None, "has no listener; add a [[listen]] with address and kind".into()));
        }
        let metrics = raw.metrics.as_ref().map(|text| self.loopback(text)).transpose()?;
        let admin_socket =
            raw.admin_socket.as_deref().map_or_else(|| state.join("admin.sock"), |path| self.resolve(path));
        Ok(Config {
            workers: self.workers(raw.workers.as_ref())?,
            io: self.io(raw.io.as_ref())?,
            metrics,
            admin_socket,
            access_log: self.access_log(&raw)?,
            privacy: privacy::check(self, raw.privacy.as_ref())?,
            traces: traces::check(self, raw.traces.as_ref())?,
            withdraw: self.drain_seconds(raw.withdraw_seconds.as_ref(), 0)?,
            drain: self.drain_seconds(raw.drain_seconds.as_ref(), 30)?,
            resolvers: raw.resolvers.iter().map(|text| self.resolver(text)).collect::<Result<_, _>>()?,
            memory_bytes: self.memory_bytes(&raw)?,
            cache_bytes: raw.cache_bytes.as_ref().map(|bytes| *bytes.get_ref()),
            sources: sources::check(self, raw.client_limits.as_ref())?,
            mode: self.mode(&raw, &listeners)?,
            listeners,
            state,
        })
    }

    /// Of either part of a drain.
    fn drain_seconds(self, raw: Option<&Spanned<u64>>, absent: u64) -> Result<Duration, ConfigError> {
        let (seconds, most) = (raw.map_or(absent, |seconds| *seconds.get_ref()), limits::DRAIN_SECONDS_MAX);
        if seconds > most {
            let problem = format!(
                "{seconds} seconds would keep the process long after it was told to stop; choose 0 to {most} (a day)"
            );
            return Err(self.error(raw.map(Spanned::span), problem));
        }
        Ok(Duration::from_secs(seconds))
    }

    /// A bound that the edge can live within, its cache too.
    fn memory_bytes(self, raw: &RawConfig) -> Result<Option<u64>, ConfigError> {
        let Some(memory) = &raw.memory_bytes else { return Ok(None) };
        let (bytes, least) = (*memory.get_ref(), limits::MEMORY_BYTES_MIN);
        if bytes < least {
            let problem = format!("{bytes} bytes are too few for an edge; give it {least} or more");
            return Err(self.error(Some(memory.span()), problem));
        }
        let most = memory::lower_mark(bytes);
        match &raw.cache_bytes {
            Some(cache) if *cache.get_ref() > most => {
                let problem = format!(
                    "a cache of {} bytes alone would keep the edge short of memory; with memory_bytes = {bytes} it may \
                     have {most}",
                    cache.get_ref()
                );
                Err(self.error(Some(cache.span()), problem))
            }
            _ => Ok(Some(bytes)),
        }
    }

    fn access_log(self, raw: &RawConfig) -> Result<AccessLogConfig, ConfigError> {
        let target = match raw.access_log.as_deref() {
            None | Some("off") => AccessLogTarget::Off,
            Some("-") => AccessLogTarget::StandardOutput,
            Some(path) => AccessLogTarget::File(self.resolve(Path::new(path))),
        };
        let format = raw.access_log_format.as_ref();
        if let Some(format) = format.filter(|_| target == AccessLogTarget::Off) {
            let problem = "says how lines look, but there are none: set access_log to a file, or to \"-\"";
            return Err(self.error(Some(format.span()), problem.into()));
        }
        Ok(AccessLogConfig { target, format: format.map(|format| *format.get_ref()).unwrap_or_default() })
    }

    fn mode(self, raw: &RawConfig, listeners: &[ListenerConfig]) -> Result<Mode, ConfigError> {
        let standalone_section = [
            raw.standalone.as_ref().map(Spanned::span),
            raw.certificates.as_ref().map(Spanned::span),
            raw.tls.first().map(Spanned::span),
            raw.route.first().map(Spanned::span),
            raw.egress.as_ref().map(Spanned::span),
        ];
        let first_standalone = standalone_section.into_iter().flatten().min_by_key(|span| span.start);
        match (&raw.control, first_standalone) {
            (Some(_), Some(span)) => Err(self.error(
                Some(span),
                "a standalone section beside [control]: an edge is either part of a fleet or standalone; remove one"
                    .into(),
            )),
            (Some(control), None) => self.control(control.get_ref()).map(Mode::Fleet),
            (None, Some(_)) => {
                standalone::check(self, raw, listeners).map(|config| Mode::Standalone(Box::new(config)))
            }
            (None, None) => Err(self.error(
                None,
                "has neither [control] (fleet mode) nor [certificates] (standalone); add one of them".into(),
            )),
        }
    }

    fn control(self, raw: &RawControl) -> Result<ControlConfig, ConfigError> {
        let address = raw.address.get_ref();
        let port = address
            .rsplit_once(':')
            .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
        if port.is_none() {
            return Err(self.error(
                Some(raw.address.span()),
                format!("{address:?} is not host:port, for example \"control.example.net:7443\""),
            ));
        }
        Ok(ControlConfig {
            address: address.clone(),
            join_token_file: raw.join_token_file.as_ref().map(|path| self.named_path(path)),
        })
    }

    /// The workers share a port among them, so the kernel would not refuse an address that stands here twice.
    fn listeners(self, raw: &[RawListener]) -> Result<Vec<ListenerConfig>, ConfigError> {
        let mut listeners: Vec<ListenerConfig> = Vec::with_capacity(raw.len());
        for raw in raw {
            let listener = self.listener(raw)?;
            let address = listener.address;
            if address.port() != 0 && listeners.iter().any(|other| other.address == address) {
                let problem = format!("{address} has a [[listen]] already; remove one");
                return Err(self.error(Some(raw.address.span()), problem));
            }
            listeners.push(listener);
        }
        lead_to_https(&mut listeners, raw);
        Ok(listeners)
    }

    fn listener(self, raw: &RawListener) -> Result<ListenerConfig, ConfigError> {
        let address = self.address(&raw.address)?;
        let http3 = raw.http3.as_ref().is_some_and(|http3| *http3.get_ref());
        if http3 && raw.kind == ListenerKind::Http {
            let span = raw.http3.as_ref().map(Spanned::span);
            return Err(self.error(span, "http3 needs kind = \"https\"; move it there or remove it".into()));
        }
        let proxy_protocol = raw.proxy_protocol.as_ref().map(|list| self.networks(list)).transpose()?;
        if http3 && proxy_protocol.is_some() {
            let span = raw.http3.as_ref().map(Spanned::span);
            let problem =
                "http3 beside proxy_protocol: there is no PROXY header over QUIC; remove one of them";
            return Err(self.error(span, problem.into()));
        }
        let trusted_proxies = self.trusted_proxies(raw)?;
        // Of one for http, `lead_to_https` knows better.
        let default_port = match raw.kind {
            ListenerKind::Https => address.port(),
            ListenerKind::Http => HTTPS_PORT,
        };
        Ok(ListenerConfig {
            address,
            kind: raw.kind,
            public_https_port: raw.public_https_port.map_or(default_port, NonZeroU16::get),
            http3,
            proxy_protocol,
            trusted_proxies,
        })
    }

    fn trusted_proxies(self, raw: &RawListener) -> Result<Option<Arc<TrustedProxies>>, ConfigError> {
        let field = raw.trusted_field.as_ref();
        let Some(list) = &raw.trusted_proxies else {
            let problem =
                "says where trusted proxies name the client, but there are none: add trusted_proxies";
            return field.map_or(Ok(None), |field| Err(self.error(Some(field.span()), problem.into())));
        };
        let networks = self.networks(list)?.into();
        let field = field.map(|field| *field.get_ref()).unwrap_or_default();
        Ok(Some(Arc::new(TrustedProxies { networks, field })))
    }

    /// At least one: a list of none would refuse everybody.
    fn networks(self, list: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<IpNet>, ConfigError> {
        let networks = list.get_ref().iter().map(|text| self.network(text)).collect::<Result<Vec<_>, _>>()?;
        if networks.is_empty() {
            let problem = "names no network; list those of your load balancers, such as [\"10.0.0.0/8\"]";
            return Err(self.error(Some(list.span()), problem.into()));
        }
        Ok(networks)
    }

    fn network(self, text: &Spanned<String>) -> Result<IpNet, ConfigError> {
        let parsed = text.get_ref().parse().or_else(|_| text.get_ref().parse::<IpAddr>().map(IpNet::from));
        let network: IpNet = parsed.map_err(|_| {
            let problem = format!("{:?} is not an address range such as \"10.0.0.0/8\"", text.get_ref());
            self.error(Some(text.span()), problem)
        })?;
        let whole = network.trunc();
        if whole != network {
            let alone = IpNet::from(network.addr());
            let problem =
                format!("{network} is an address within {whole}; write {whole}, or {alone} for it alone");
            return Err(self.error(Some(text.span()), problem));
        }
        Ok(network)
    }

    fn workers(self, raw: Option<&Spanned<usize>>) -> Result<usize, ConfigError> {
        let Some(workers) = raw else {
            return Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256));
        };
        match *workers.get_ref() {
            count @ 1..=256 => Ok(count),
            count => Err(self.error(
                Some(workers.span()),
                format!(
                    "{count} workers; choose 1 to 256, usually one per core (leave the line out for that)"
                ),
            )),
        }
    }

    fn io(self, raw: Option<&Spanned<String>>) -> Result<IoChoice, ConfigError> {
        raw.map_or(Ok(IoChoice::Auto), |text| {
            text.get_ref().parse().map_err(|problem| self.error(Some(text.span()), problem))
        })
    }

    fn address(self, text: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        text.get_ref().parse().map_err(|_| {
            self.error(
                Some(text.span()),
                format!(
                    "{:?} is not an address with port, such as \"0.0.0.0:443\" or \"[::]:443\"",
                    text.get_ref()
                ),
            )
        })
    }

    fn loopback(self, text: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        let address = self.address(text)?;
        if address.ip().is_loopback() {
            return Ok(address);
        }
        Err(self.error(
            Some(text.span()),
            format!("{address} is not a loopback address: metrics have no login; use 127.0.0.1 or [::1] and scrape locally"),
        ))
    }

    fn resolver(self, text: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        if let Ok(ip) = text.get_ref().parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, 53));
        }
        text.get_ref().parse().map_err(|_| {
            let problem = format!(
                "{:?} is not the address of a name server; write it without a port (then 53), such as \"192.0.2.53\" or \
                 \"2001:db8::53\", or with one, such as \"192.0.2.53:5353\" or \"[2001:db8::53]:5353\"",
                text.get_ref()
            );
            self.error(Some(text.span()), problem)
        })
    }

    /// A name, or `*` for all others.
    fn host(self, text: &Spanned<String>) -> Result<Option<NamePattern>, ConfigError> {
        match text.get_ref().as_str() {
            "*" => Ok(None),
            name => NamePattern::parse(name)
                .map(Some)
                .map_err(|error| self.error(Some(text.span()), error.to_string())),
        }
    }

    /// A path of the file, seen from the file's folder.
    fn resolve(self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).join(path)
    }

    fn named_path(self, raw: &Spanned<PathBuf>) -> NamedPath {
        NamedPath {
            path: self.resolve(raw.get_ref()),
            file: self.path.to_owned(),
            position: self.place(raw.span()),
        }
    }

    fn error(self, span: Option<Range<usize>>, problem: String) -> ConfigError {
        let position = span.map(|span| self.place(span));
        ConfigError { path: self.path.to_owned(), position, problem }
    }

    /// Line and column where a range begins.
    fn place(self, span: Range<usize>) -> (usize, usize) {
        let before = &self.text[..span.start.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        (line, column)
    }
}

const HTTPS_PORT: u16 = 443;

/// Clients of an http listener that says nothing else are led to where this edge answers https: by the listener of the same
/// address, else by the first. So redirects, Alt-Svc and the check for circles mean one port.
fn lead_to_https(listeners: &mut [ListenerConfig], raw: &[RawListener]) {
    let https: Vec<(IpAddr, u16)> = listeners
        .iter()
        // A port that the kernel chooses is not known yet.
        .filter(|listener| listener.kind == ListenerKind::Https && listener.public_https_port != 0)
        .map(|listener| (listener.address.ip(), listener.public_https_port))
        .collect();
    for (listener, raw) in listeners.iter_mut().zip(raw) {
        if listener.kind == ListenerKind::Http && raw.public_https_port.is_none() {
            let own = https.iter().find(|(ip, _)| *ip == listener.address.ip());
            listener.public_https_port = own.or(https.first()).map_or(HTTPS_PORT, |(_, port)| *port);
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => {
                write!(formatter, "{}:{line}:{column}: {}", self.path.display(), self.problem)
            }
            None => write!(formatter, "{}: {}", self.path.display(), self.problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTEN: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n";

    fn error_of(text: &str) -> String {
        Config::parse(Path::new("/etc/edge.toml"), text).expect_err("the text is wrong").to_string()
    }

    #[test]
    fn each_fault_names_file_line_and_column() {
        let table = [
            ("io = \"kqueue\"\n".to_owned() + LISTEN, "/etc/edge.toml:1:6: ", "kqueue"),
            ("\nworkers = 0\n".to_owned() + LISTEN, "/etc/edge.toml:2:11: ", "1 to 256"),
            ("metrics = \"0.0.0.0:9\"\n".to_owned() + LISTEN, "/etc/edge.toml:1:11: ", "loopback"),
            ("wrokers = 2\n".to_owned() + LISTEN, "/etc/edge.toml:1:1: ", "unknown field"),
            (
                "[[listen]]\naddress = \"nowhere\"\nkind = \"https\"\n".to_owned(),
                "/etc/edge.toml:2:11: ",
                "[::]:443",
            ),
            (
                "[[listen]]\naddress = \"127.0.0.1:1\"\nkind = \"ftp\"\n".to_owned(),
                "/etc/edge.toml:3:8: ",
                "ftp",
            ),
            (
                LISTEN.replace(":0", ":443").repeat(2) + "[standalone]\n",
                "/etc/edge.toml:5:11: ",
                "already; remove one",
            ),
            (LISTEN.to_owned() + "proxy_protocol = []\n", "/etc/edge.toml:4:18: ", "names no network"),
            (
                LISTEN.to_owned() + "proxy_protocol = [\"::1\", \"ten\"]\n",
                "/etc/edge.toml:4:26: ",
                "10.0.0.0/8",
            ),
            (
                LISTEN.to_owned() + "http3 = true\nproxy_protocol = [\"::1\"]\n",
                "/etc/edge.toml:4:9: ",
                "over QUIC",
            ),
            (
                LISTEN.to_owned() + "trusted_field = \"forwarded\"\n",
                "/etc/edge.toml:4:17: ",
                "add trusted_proxies",
            ),
            (
                LISTEN.to_owned() + "trusted_proxies = [\"::1\"]\ntrusted_field = \"via\"\n",
                "/etc/edge.toml:5:17: ",
                "x-forwarded-for",
            ),
            ("x = = 1".to_owned(), "/etc/edge.toml:1:", ""),
            (
                "resolvers = [\"::1\", \"foo\"]\n".to_owned() + LISTEN,
                "/etc/edge.toml:1:21: ",
                "without a port",
            ),
            (
                LISTEN.to_owned() + "[standalone]\nlimits = [1, 2]\n",
                "/etc/edge.toml:5:10: ",
                "by their names",
            ),
            (LISTEN.to_owned() + "[[egress]]\nallow = []\n", "/etc/edge.toml:4:1: ", "such as `allow`"),
            (
                "listen = [[\"127.0.0.1:0\", \"https\"]]\n".to_owned(),
                "/etc/edge.toml:1:11: ",
                "such as `address`",
            ),
        ];
        assert_faults(&table);
    }

    /// Text, place, and a word of what to do.
    fn assert_faults(table: &[(String, &str, &str)]) {
        for (text, place, hint) in table {
            let error = error_of(text);
            assert!(error.starts_with(place), "{text:?} gave {error:?}, wanted {place:?}");
            assert!(error.contains(hint), "{text:?} gave {error:?}, wanted {hint:?}");
        }
    }

    #[test]
    fn faults_of_what_is_written_down_name_their_place_too() {
        let table = [
            (
                "access_log_format = \"combined\"\n".to_owned() + LISTEN,
                "/etc/edge.toml:1:21: ",
                "set access_log",
            ),
            (
                "access_log = \"-\"\naccess_log_format = \"clf\"\n".to_owned() + LISTEN,
                "/etc/edge.toml:2:21: ",
                "vhost_combined",
            ),
            (
                format!("memory_bytes = {}\n{LISTEN}", limits::MEMORY_BYTES_MIN - 1),
                "/etc/edge.toml:1:16: ",
                "give it 67108864 or more",
            ),
            (
                format!("memory_bytes = 100000000\ncache_bytes = 80000001\n{LISTEN}"),
                "/etc/edge.toml:2:15: ",
                "it may have 80000000",
            ),
            (
                LISTEN.to_owned() + "[privacy]\nquery_values = \"some\"\n",
                "/etc/edge.toml:5:16: ",
                "[\"page\", \"utm_*\"]",
            ),
            (
                LISTEN.to_owned() + "[privacy]\nquery_values = [\"page=\"]\n",
                "/etc/edge.toml:5:16: ",
                "is no name",
            ),
            (
                LISTEN.to_owned() + "[privacy]\nclient_address = \"half\"\n",
                "/etc/edge.toml:5:18: ",
                "network",
            ),
            (
                LISTEN.to_owned() + "[traces]\notlp = \"https://otel.example:4317\"\n",
                "/etc/edge.toml:5:8: ",
                "collector on this machine",
            ),
            (
                LISTEN.to_owned() + "[traces]\notlp = \"127.0.0.1:4317\"\n",
                "/etc/edge.toml:5:8: ",
                "http://127.0.0.1:4317",
            ),
            (
                LISTEN.to_owned() + "[traces]\notlp = \"http://[::1]:4317\"\nratio = 1.5\n",
                "/etc/edge.toml:6:9: ",
                "0 (none) to 1 (all)",
            ),
            (
                LISTEN.to_owned() + "[traces]\notlp = \"http://[::1]:4317\"\nspans_per_second = 0\n",
                "/etc/edge.toml:6:20: ",
                "remove [traces]",
            ),
        ];
        assert_faults(&table);
    }

    #[test]
    fn a_drain_may_take_a_day_and_no_more() {
        let hint = "choose 0 to 86400 (a day)";
        let beyond = limits::DRAIN_SECONDS_MAX + 1;
        assert_faults(&[
            (format!("drain_seconds = {}\n{LISTEN}", i64::MAX), "/etc/edge.toml:1:17: ", hint),
            (format!("drain_seconds = {beyond}\n{LISTEN}"), "/etc/edge.toml:1:17: ", hint),
            (format!("withdraw_seconds = {beyond}\n{LISTEN}"), "/etc/edge.toml:1:20: ", hint),
        ]);
        let text = format!("withdraw_seconds = 86400\ndrain_seconds = 86400\n{LISTEN}[standalone]\n");
        let config = Config::parse(Path::new("/etc/edge.toml"), &text).expect("the text is right");
        assert_eq!(
            (config.withdraw, config.drain),
            (Duration::from_secs(86_400), Duration::from_secs(86_400))
        );
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn traces_have_a_rate_and_no_share_unless_it_is_said() {
        let text = format!("{LISTEN}[traces]\notlp = \"http://127.0.0.1:4317\"\n[standalone]\n");
        let config = Config::parse(Path::new("/etc/edge.toml"), &text).expect("the text is right");
        let traces = config.traces.expect("there are traces");
        assert_eq!((traces.share, traces.spans_per_second), (0, limits::SPANS_PER_SECOND));
        let half = text.replace("[standalone]", "ratio = 0.5\n[standalone]");
        let config = Config::parse(Path::new("/etc/edge.toml"), &half).expect("the text is right");
        assert_eq!(config.traces.expect("there are traces").share, 1 << 31);
    }

    #[test]
    fn http_leads_to_the_port_where_https_is_answered() {
        let listen = |address: &str, kind: &str, more: &str| {
            format!("[[listen]]\naddress = \"{address}\"\nkind = \"{kind}\"\n{more}\n")
        };
        let ports = |listeners: &[String]| -> Vec<u16> {
            let text = format!("{}[standalone]\n", listeners.concat());
            let config = Config::parse(Path::new("/etc/edge.toml"), &text).expect("the text is right");
            config.listeners.iter().map(|listener| listener.public_https_port).collect()
        };
        let http = |address: &str| listen(address, "http", "");
        let https = |address: &str| listen(address, "https", "");
        assert_eq!(ports(&[http("0.0.0.0:80"), https("0.0.0.0:443")]), [443, 443]);
        assert_eq!(ports(&[http("0.0.0.0:8080"), https("0.0.0.0:8443")]), [8443, 8443]);
        let mapped = listen("0.0.0.0:8443", "https", "public_https_port = 443");
        assert_eq!(ports(&[http("0.0.0.0:8080"), mapped]), [443, 443], "a port that is forwarded");
        let two = [https("[::]:1443"), https("0.0.0.0:2443"), http("0.0.0.0:80"), http("[::]:80")];
        assert_eq!(ports(&two), [1443, 2443, 2443, 1443]);
        let told = listen("0.0.0.0:80", "http", "public_https_port = 9443");
        assert_eq!(ports(&[told, https("0.0.0.0:443")]), [9443, 443]);
        assert_eq!(ports(&[http("0.0.0.0:80")]), [443], "another server has https");
        let nowhere = listen("0.0.0.0:80", "http", "public_https_port = 0") + "[standalone]\n";
        assert!(error_of(&nowhere).starts_with("/etc/edge.toml:4:21: "), "{}", error_of(&nowhere));
    }

    #[test]
    fn fleet_and_standalone_exclude_each_other() {
        let text =
            format!("{LISTEN}[control]\naddress = \"127.0.0.1:7443\"\n[certificates]\nfolder = \"certs\"\n");
        assert!(error_of(&text).contains("either part of a fleet or standalone"));
        assert!(error_of(LISTEN).contains("neither [control]"));
    }
}
