//! What each server of a name's zone says, beside what the resolvers have heard.
//!
//! A resolver asks any one of a zone's servers, and a CA's resolvers ask from several places. A server that is behind, because
//! a transfer failed or because the provider before is still delegated to, makes validations fail now and then, and whether
//! our own resolvers have met it is chance. So the pre-flight asks each.
//!
//! Only an answer that differs counts. A server that is down, refuses, or hands on to others is one that resolvers leave
//! for the next, so it is nothing against a name. Deliberately absent: the servers of a target that a CNAME leads to, which are
//! somebody else's to mend (what they say goes by the resolvers), glue, and DNSSEC.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};
use portico_cert_store::DomainName;

use super::lookup::{Found, Lookup, caa_record, ip_address, target};
use crate::plan::caa::CaaRecord;

/// Servers of one zone that are asked; the largest zones have 13 names, usual ones 2 to 8.
const SERVERS_MAX: usize = 16;
/// What one question to all servers of a zone may take, a climb for CAA included.
const DEADLINE: Duration = Duration::from_secs(10);
/// Addresses of one server: one of each family.
const ADDRESSES_MAX: usize = 2;

/// The servers of one zone.
#[derive(Debug)]
pub struct Zone {
    lookup: Lookup,
    /// Without a dot at its end; of no meaning without servers.
    apex: String,
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    /// `ns1.example.net (192.0.2.53)`
    text: String,
    resolver: TokioResolver,
}

/// What one server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<T> {
    /// Its name and address.
    pub server: String,
    pub found: Found<T>,
}

impl Zone {
    /// The servers of the zone that `name` is in, as the resolvers have them: those of the first name, from itself upwards, that
    /// has any. None where nothing is known, none of a top-level domain, none at port 0. Only those that `may_ask` permits.
    pub async fn of(lookup: &Lookup, name: &str, port: u16, may_ask: impl Fn(IpAddr) -> bool) -> Self {
        let lookup = lookup.beside();
        let mut zone = Self { lookup: lookup.clone(), apex: String::new(), servers: Vec::new() };
        if port == 0 {
            return zone;
        }
        let Some((apex, names)) = lookup.name_servers(name).await else { return zone };
        zone.apex = apex;
        let names: Vec<DomainName> =
            names.iter().filter_map(|name| DomainName::parse(name).ok()).take(SERVERS_MAX).collect();
        let mut asked = Vec::new();
        for name in &names {
            asked.push(lookup.addresses(name));
        }
        let addresses = join_all(asked).await;
        for (name, found) in names.iter().zip(addresses) {
            let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = found.records().iter().partition(|ip| ip.is_ipv4());
            let one_of_each = v4.first().into_iter().chain(v6.first());
            let permitted = one_of_each.filter(|ip| may_ask(**ip)).take(ADDRESSES_MAX);
            for address in permitted {
                // Whoever is not asked has said nothing.
                if zone.servers.len() < SERVERS_MAX
                    && let Ok(resolver) = Lookup::authoritative(SocketAddr::new(*address, port))
                {
                    let text = format!("{name} ({address})");
                    zone.servers.push(Server { text, resolver });
                }
            }
        }
        zone
    }

    /// Addresses of `name`; where a server has a CNAME, those of its target as the resolvers have them.
    pub async fn addresses(&self, name: &DomainName) -> Vec<View<IpAddr>> {
        let mut asked = Vec::new();
        for server in &self.servers {
            asked.push(self.addresses_at(server, name));
        }
        self.views(in_time(asked).await)
    }

    /// The target of the CNAME at exactly `name`.
    pub async fn cname(&self, name: &str) -> Vec<View<String>> {
        let mut asked = Vec::new();
        for server in &self.servers {
            asked.push(self.cname_at(server, name));
        }
        self.views(in_time(asked).await)
    }

    /// The CAA records that hold for `name` as far as they stand in this zone, and at which name; nothing where the zone has none
    /// from `name` up to its apex, whatever stands above it.
    pub async fn caa(&self, name: &DomainName) -> Vec<View<(String, CaaRecord)>> {
        let mut asked = Vec::new();
        for server in &self.servers {
            asked.push(self.caa_at(server, name));
        }
        self.views(in_time(asked).await)
    }

    fn views<T>(&self, found: Vec<Found<T>>) -> Vec<View<T>> {
        let view = |(server, found): (&Server, Found<T>)| View { server: server.text.clone(), found };
        self.servers.iter().zip(found).map(view).collect()
    }

    async fn addresses_at(&self, server: &Server, name: &DomainName) -> Found<IpAddr> {
        match self.cname_at(server, name.as_str()).await {
            Found::Records(targets) => match targets.first().map(|target| DomainName::parse(target)) {
                Some(Ok(target)) => self.lookup.addresses(&target).await,
                _ => Found::Unknown("the target of its CNAME is no host".to_owned()),
            },
            Found::Unknown(why) => Found::Unknown(why),
            Found::Nothing => {
                let (v4, v6) = tokio::join!(
                    self.ask(server, name.as_str(), RecordType::A),
                    self.ask(server, name.as_str(), RecordType::AAAA)
                );
                v4.map(ip_address).and(v6.map(ip_address))
            }
        }
    }

    async fn caa_at(&self, server: &Server, name: &DomainName) -> Found<(String, CaaRecord)> {
        for owner in super::upwards(name.as_str()) {
            if !is_within(owner, &self.apex) {
                break;
            }
            let found = self.ask(server, owner, RecordType::CAA).await;
            let found = found.map(|data| Some((owner.to_owned(), caa_record(data)?)));
            if found != Found::Nothing {
                return found;
            }
        }
        Found::Nothing
    }

    async fn cname_at(&self, server: &Server, name: &str) -> Found<String> {
        self.ask(server, name, RecordType::CNAME).await.map(target)
    }

    async fn ask(&self, server: &Server, name: &str, kind: RecordType) -> Found<RData> {
        self.lookup.ask_server(&server.resolver, name, kind).await
    }
}

/// Answers of all, or of none: whoever has a zone decides how long each of its servers takes, and for how many names above.
async fn in_time<T>(asked: Vec<impl Future<Output = Found<T>>>) -> Vec<Found<T>> {
    let count = asked.len();
    let unknown = || Found::Unknown(format!("no answer of all servers within {} s", DEADLINE.as_secs()));
    let answers = tokio::time::timeout(DEADLINE, join_all(asked)).await;
    answers.unwrap_or_else(|_| std::iter::repeat_with(unknown).take(count).collect())
}

fn is_within(name: &str, apex: &str) -> bool {
    name.strip_suffix(apex).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Addresses of a name by its resolvers and by each server of its zone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    /// Whatever somebody may meet.
    pub(crate) all: Found<IpAddr>,
    /// Servers that have other addresses than the resolvers, in words.
    pub(crate) differing: Vec<String>,
    /// Servers that have no address of a name that the resolvers find, in words.
    pub(crate) without: Vec<String>,
}

/// Joins what was found about the addresses of `name`. What the resolvers do not find stays as it is.
pub(crate) fn joined(name: &DomainName, resolvers: Found<IpAddr>, views: &[View<IpAddr>]) -> Joined {
    let mut joined = Joined { all: resolvers, differing: Vec::new(), without: Vec::new() };
    let Found::Records(all) = &mut joined.all else { return joined };
    let heard: Vec<IpAddr> = all.clone();
    for View { server, found } in views {
        match found {
            Found::Unknown(_) => {}
            Found::Nothing => joined.without.push(format!(
                "{server}, a server of its zone, has no address of {name}: all of them must answer alike, or leave the zone's NS records"
            )),
            Found::Records(own) => {
                let is_other = |address: &&IpAddr| !heard.contains(address);
                let others: Vec<IpAddr> = own.iter().filter(is_other).copied().collect();
                if others.is_empty() {
                    continue;
                }
                joined.differing.push(format!(
                    "{server}, a server of its zone, has {} for {name}, where others have {}",
                    super::pointing::list(own.clone()),
                    super::pointing::list(heard.clone())
                ));
                all.extend(others.iter().filter(|other| !all.contains(other)).copied().collect::<Vec<_>>());
            }
        }
    }
    joined
}
