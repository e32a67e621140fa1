//! DNS questions on a tenant's behalf: what does the world see for this name.
//!
//! Three answers are kept apart: there are records, there are certainly none, and *not known* (no answer, a refusal, a
//! server's failure). Unknown is never taken for none: a proof is not lost because a resolver is down.
//!
//! Each question has one deadline and nothing is cached, because a tenant who asks for a check has just changed the
//! record. DNSSEC is the resolvers' to check. The servers of a zone, each for itself, are asked in [`super::views`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use portico_cert_store::DomainName;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::DnsConfig;
use crate::plan::caa::CaaRecord;

/// One question with all its tries.
const DEADLINE: Duration = Duration::from_secs(6);
/// The climb to a name's CAA records: a name has up to 127 labels, and whoever has the zone decides how long each of its
/// answers takes.
const CLIMB_DEADLINE: Duration = Duration::from_secs(8);
/// One try at one server.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions in flight; more wait, and their deadline runs. As many as all pre-flights ask at the same time, two each: the
/// names of one tenant, whose servers do not answer, must not make those of others unknown.
const CONCURRENCY: usize = 128;
/// The same for single servers of zones: those that never answer keep nobody from the resolvers.
const SERVER_CONCURRENCY: usize = 256;
/// Of them, for the servers of one zone: so that the 48 names that one tenant has looked at, each in a zone that does not answer,
/// leave places to others'.
const SHARE_OF_ZONE: usize = 4;
/// Characters of a CAA value that are read. It may have 64 KiB, and is told to the tenant and kept with each change.
const CAA_VALUE_MAX: usize = 256;
/// Records that are looked at in one answer.
const RECORDS_MAX: usize = 64;

/// Asks the configured resolvers. Clones share the sockets and the bound on concurrency.
#[derive(Clone, Debug)]
pub struct Lookup {
    resolver: Arc<TokioResolver>,
    /// The same servers, each by itself.
    each: Arc<[TokioResolver]>,
    permits: Permits,
    server_permits: Arc<Semaphore>,
    climb_deadline: Duration,
}

/// What is known about a name and a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<T> {
    Records(Vec<T>),
    /// The name or the type does not exist: NXDOMAIN or NODATA.
    Nothing,
    /// Nobody gave an answer; the text says why.
    Unknown(String),
}

impl<T> Found<T> {
    /// The records; none when there are none or nothing is known.
    pub fn records(&self) -> &[T] {
        match self {
            Self::Records(records) => records,
            Self::Nothing | Self::Unknown(_) => &[],
        }
    }

    pub(super) fn map<U>(self, read: impl FnMut(T) -> Option<U>) -> Found<U> {
        match self {
            Self::Records(records) => {
                let read: Vec<U> = records.into_iter().filter_map(read).take(RECORDS_MAX).collect();
                if read.is_empty() { Found::Nothing } else { Found::Records(read) }
            }
            Self::Nothing => Found::Nothing,
            Self::Unknown(why) => Found::Unknown(why),
        }
    }

    /// Both; unknown when either is.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown(why), _) | (_, Self::Unknown(why)) => Self::Unknown(why),
            (Self::Nothing, found) | (found, Self::Nothing) => found,
            (Self::Records(mut records), Self::Records(more)) => {
                records.extend(more);
                Self::Records(records)
            }
        }
    }
}

impl Lookup {
    /// Resolvers as configured, or the system's.
    ///
    /// # Errors
    /// The system's configuration cannot be read.
    pub fn new(config: &DnsConfig) -> anyhow::Result<Self> {
        let servers =
            if config.resolvers.is_empty() { system_resolvers()? } else { config.resolvers.clone() };
        let servers: Vec<NameServerConfig> = servers.into_iter().map(name_server).collect();
        let each =
            servers.iter().map(|server| resolver(vec![server.clone()], true)).collect::<Result<_, _>>()?;
        let resolver = Arc::new(resolver(servers, true)?);
        let permits = Permits { own: None, all: Arc::new(Semaphore::new(CONCURRENCY)) };
        let server_permits = Arc::new(Semaphore::new(SERVER_CONCURRENCY));
        Ok(Self { resolver, each, permits, server_permits, climb_deadline: CLIMB_DEADLINE })
    }

    /// TXT values of `name` (which may begin with an underscore label), each joined from its parts.
    pub async fn txt(&self, name: &str) -> Found<String> {
        self.ask(name, RecordType::TXT).await.map(|data| {
            if let RData::TXT(txt) = data {
                Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned())
            } else {
                None
            }
        })
    }

    /// The target of the CNAME at exactly `name`, lower case, no trailing dot.
    pub async fn cname(&self, name: &str) -> Found<String> {
        self.ask(name, RecordType::CNAME).await.map(target)
    }

    /// The CAA records that hold for `name`, and at which name they stand: its own, else those of the first name above it
    /// that has any (RFC 8659 section 3). Unknown when the climb takes too long.
    pub async fn caa(&self, name: &DomainName) -> Found<(String, CaaRecord)> {
        let climbed = tokio::time::timeout(self.climb_deadline, self.climb_to_caa(name)).await;
        climbed.unwrap_or_else(|_| {
            Found::Unknown(format!(
                "no answer for CAA {name} and the names above it within {} s",
                self.climb_deadline.as_secs()
            ))
        })
    }

    async fn climb_to_caa(&self, name: &DomainName) -> Found<(String, CaaRecord)> {
        for owner in super::upwards(name.as_str()) {
            let found = self.ask(owner, RecordType::CAA).await;
            let found = found.map(|data| Some((owner.to_owned(), caa_record(data)?)));
            if found != Found::Nothing {
                return found;
            }
        }
        Found::Nothing
    }

    /// IPv4 and IPv6 addresses, CNAMEs followed. Unknown when either type is unknown: a name that looks as if it had
    /// only our addresses may have others.
    pub async fn addresses(&self, name: &DomainName) -> Found<IpAddr> {
        self.addresses_from(&self.resolver, name).await
    }

    /// [`Self::addresses`] as each of the configured resolvers has them: they may stand in different places, and one that is
    /// behind, or lies, is not the others.
    pub async fn addresses_everywhere(&self, name: &DomainName) -> Vec<Found<IpAddr>> {
        let views = self.each.iter().map(|resolver| self.addresses_from(resolver, name));
        futures_util::future::join_all(views).await
    }

    async fn addresses_from(&self, resolver: &TokioResolver, name: &DomainName) -> Found<IpAddr> {
        let (v4, v6) = tokio::join!(
            self.ask_of(resolver, name.as_str(), RecordType::A),
            self.ask_of(resolver, name.as_str(), RecordType::AAAA)
        );
        v4.map(ip_address).and(v6.map(ip_address))
    }

    /// The zone that `name` is in, with the names of its servers: of the first name, from itself upwards, that has NS records.
    /// None of a top-level domain; none where the climb takes too long.
    pub(super) async fn name_servers(&self, name: &str) -> Option<(String, Vec<String>)> {
        let climb = async {
            for owner in super::upwards(name).filter(|owner| owner.contains('.')) {
                let found = self.records(&self.resolver, &self.permits, owner, RecordType::NS).await;
                // Those of a CNAME's target are another zone's.
                let at_owner = found.map(|record| {
                    let RData::NS(server) = &record.data else { return None };
                    (plain(&record.name) == owner).then(|| plain(&server.0))
                });
                if let Found::Records(servers) = at_owner {
                    return Some((owner.to_owned(), servers));
                }
            }
            None
        };
        tokio::time::timeout(self.climb_deadline, climb).await.ok().flatten()
    }

    /// The same for one zone, with permits beside: what whoever has it can make wait is never what others' names are asked by.
    pub(super) fn beside(&self) -> Self {
        Self { permits: Permits::of_zone(&self.server_permits), ..self.clone() }
    }

    /// Somebody who asks one server for what it has itself.
    ///
    /// # Errors
    /// The resolver cannot be set up.
    pub(super) fn authoritative(server: SocketAddr) -> anyhow::Result<TokioResolver> {
        resolver(vec![name_server(server)], false)
    }

    /// What one server of a zone has; to be asked [`Self::beside`]. It has nothing only where it says so as the zone's (SOA, RFC 2308 section 2): one that hands
    /// on to others knows nothing.
    pub(super) async fn ask_server(
        &self,
        server: &TokioResolver,
        name: &str,
        kind: RecordType,
    ) -> Found<RData> {
        self.ask_of(server, name, kind).await
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Found<RData> {
        self.ask_of(&self.resolver, name, kind).await
    }

    async fn ask_of(&self, resolver: &TokioResolver, name: &str, kind: RecordType) -> Found<RData> {
        self.records(resolver, &self.permits, name, kind).await.map(|record| Some(record.data))
    }

    async fn records(
        &self,
        resolver: &TokioResolver,
        permits: &Permits,
        name: &str,
        kind: RecordType,
    ) -> Found<Record> {
        let mut fqdn = match Name::from_ascii(name) {
            Ok(fqdn) => fqdn,
            Err(error) => return Found::Unknown(format!("{name} is not a DNS name: {error}")),
        };
        fqdn.set_fqdn(true);
        let asked = async {
            let _permit = permits.acquire().await;
            resolver.lookup(fqdn, kind).await
        };
        let is_authoritative = !resolver.options().recursion_desired;
        match tokio::time::timeout(DEADLINE, asked).await {
            Err(_) => Found::Unknown(format!("no answer for {kind} {name} within {} s", DEADLINE.as_secs())),
            Ok(Err(error)) if has_none(&error, is_authoritative) => Found::Nothing,
            Ok(Err(error)) => Found::Unknown(format!("{kind} {name}: {error}")),
            Ok(Ok(answer)) => {
                let of_kind = answer.answers().iter().filter(|record| record.record_type() == kind);
                let records: Vec<Record> = of_kind.take(RECORDS_MAX).cloned().collect();
                if records.is_empty() { Found::Nothing } else { Found::Records(records) }
            }
        }
    }
}

/// Places for questions in flight.
#[derive(Clone, Debug)]
struct Permits {
    /// Those of one zone.
    own: Option<Arc<Semaphore>>,
    all: Arc<Semaphore>,
}

impl Permits {
    /// Its share of all.
    fn of_zone(all: &Arc<Semaphore>) -> Self {
        Self { own: Some(Arc::new(Semaphore::new(SHARE_OF_ZONE))), all: Arc::clone(all) }
    }

    /// Waits for a place among its own before it takes one of all.
    async fn acquire(&self) -> [Option<SemaphorePermit<'_>>; 2] {
        let own = match &self.own {
            Some(own) => own.acquire().await.ok(),
            None => None,
        };
        [own, self.all.acquire().await.ok()]
    }
}

fn resolver(servers: Vec<NameServerConfig>, recursion_desired: bool) -> anyhow::Result<TokioResolver> {
    let mut builder = TokioResolver::builder_with_config(
        ResolverConfig::from_parts(None, Vec::new(), servers),
        TokioRuntimeProvider::default(),
    );
    let options = builder.options_mut();
    options.timeout = TRY_TIMEOUT;
    options.attempts = 2;
    options.recursion_desired = recursion_desired;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = CONCURRENCY;
    builder.build().context("set up the DNS resolver")
}

/// What is cut off are parameters: whom the value names stays, and the CA reads the rest.
fn start_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().take(CAA_VALUE_MAX).collect()
}

/// NXDOMAIN, or NOERROR without records of the type. A "no records" with another code (SERVFAIL, REFUSED) is a failure; without
/// the zone's SOA it may be a server of another zone that hands on.
fn has_none(error: &NetError, needs_soa: bool) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else { return error.is_nx_domain() };
    matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
        && (none.soa.is_some() || !needs_soa)
}

pub(super) fn ip_address(data: RData) -> Option<IpAddr> {
    if let RData::A(address) = data {
        return Some(IpAddr::V4(address.0));
    }
    if let RData::AAAA(address) = data { Some(IpAddr::V6(address.0)) } else { None }
}

/// Of a CNAME; lower case, no trailing dot.
pub(super) fn target(data: RData) -> Option<String> {
    if let RData::CNAME(cname) = data { Some(plain(&cname.0)) } else { None }
}

pub(super) fn caa_record(data: RData) -> Option<CaaRecord> {
    let RData::CAA(caa) = data else { return None };
    Some(CaaRecord {
        critical: caa.issuer_critical,
        tag: caa.tag.to_ascii_lowercase(),
        value: start_of(&caa.value),
    })
}

/// The `nameserver` lines of resolv.conf(5); its other settings are about names without dots, which never come here.
fn system_resolvers() -> anyhow::Result<Vec<SocketAddr>> {
    let path = "/etc/resolv.conf";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}; or set dns.resolvers"))?;
    let servers: Vec<SocketAddr> = text.lines().filter_map(nameserver_line).collect();
    anyhow::ensure!(!servers.is_empty(), "{path} names no server; set dns.resolvers");
    Ok(servers)
}

fn nameserver_line(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace();
    let address = words.next().filter(|&word| word == "nameserver").and_then(|_| words.next())?;
    Some(SocketAddr::new(address.parse().ok()?, 53))
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{Message, MessageType, OpCode};
    use tokio::net::UdpSocket;

    use super::*;
    use crate::clock;

    #[test]
    fn zones_whose_servers_do_not_answer_leave_places_to_others() {
        use futures_util::FutureExt as _;
        let all = Arc::new(Semaphore::new(SERVER_CONCURRENCY));
        let zones: Vec<Permits> = (0..48).map(|_| Permits::of_zone(&all)).collect();
        let mut held = Vec::new();
        for zone in &zones {
            for _ in 0..SHARE_OF_ZONE {
                held.push(zone.acquire().now_or_never().unwrap());
            }
            assert!(zone.acquire().now_or_never().is_none(), "it has its share");
        }
        assert!(Permits::of_zone(&all).acquire().now_or_never().is_some(), "another tenant's zone");
        held.clear();
        assert_eq!(all.available_permits(), SERVER_CONCURRENCY);
        assert!(zones[0].acquire().now_or_never().is_some());
    }

    /// Says that there is nothing, as slowly as a server may that is asked a hundred times.
    async fn slow_server(pause: Duration) -> SocketAddr {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
                answer.queries.clone_from(&asked.queries);
                let socket = Arc::clone(&socket);
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                });
            }
        });
        address
    }

    #[test]
    fn a_value_of_any_size_is_kept_as_a_short_one() {
        assert_eq!(
            start_of(b"ca.test; accounturi=https://ca.test/1"),
            "ca.test; accounturi=https://ca.test/1"
        );
        let long = [&b"ca.test; x="[..], &[0xff; 60_000]].concat();
        assert!(start_of(&long).starts_with("ca.test; x=") && start_of(&long).len() < 1024);
    }

    #[tokio::test]
    async fn a_name_of_many_labels_with_a_slow_server_holds_nobody_up() {
        let resolvers = vec![slow_server(Duration::from_millis(100)).await];
        let mut lookup = Lookup::new(&DnsConfig { resolvers, ..DnsConfig::default() }).unwrap();
        let name = DomainName::parse("a.b.shop.test").unwrap();
        assert_eq!(lookup.caa(&name).await, Found::Nothing, "a usual name is looked up to its end");
        lookup.climb_deadline = Duration::from_secs(1);
        let begun = clock::instant();
        let deep = DomainName::parse(&format!("{}test", "a.".repeat(100))).unwrap();
        let found = lookup.caa(&deep).await;
        assert!(matches!(&found, Found::Unknown(why) if why.contains("the names above it")), "{found:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
