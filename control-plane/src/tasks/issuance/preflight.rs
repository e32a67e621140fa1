//! Before an order for a name: would the CA find what we put up?
//!
//! A name passes when a challenge can be met through the name's own addresses, by HTTP-01 or TLS-ALPN-01 ([`super::reach`]), or
//! its `_acme-challenge` is delegated to our zone (DNS-01; the only way for a wildcard). The results are conditions with the very
//! record to set. One name that fails holds up no other.
//!
//! Then its CAA records are looked at ([`crate::plan::caa`]), for what each issuer that its tenant prefers calls itself: one
//! that may not issue is not asked to, so no order is spent.
//!
//! Before a renewal of several names they are looked at once more: one that is dead by now leaves the others, as if the CA had
//! failed it. It is only taken out, never stopped, and only where another name of the same order was found alive, so that a
//! control plane that cannot reach its own edges harms nobody. The last word on a name alone is the CA's.
//!
//! What DNS says is asked of the resolvers and of each server of the zone ([`crate::dns::views`]): a CA may meet any.
//!
//! Deliberately absent: a look at CAA before a renewal at the same issuer. RFC 8659 section 3 obliges the CA to look, at every
//! issuance, and not whoever asks it: ours saves an order that must fail, and one look for a name's first order at an issuer
//! does that. When records change later the CA refuses, names them in its words, and the old certificate serves on meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{DomainId, DomainName, NamePattern, TenantId};
use portico_prober::egress::{EgressPolicy, Grant, special_range};

use super::challenge::challenge_name;
use super::issuer::Issuer;
use super::{Issuance, reach};
use crate::acme::ChallengeMethod;
use crate::clock::MINUTE_MS;
use crate::dns::lookup::Found;
use crate::dns::pointing;
use crate::dns::views::{self, Joined, View, Zone};
use crate::plan::caa::{CaaRecord, Wanted, permitted};
use crate::plan::issuers::{CAA_FRESH_MS, Restriction, RestrictionKind, Restrictions};
use crate::plan::reconcile::usable;
use crate::store::condition::{self, Observation};
use crate::store::group::{self, OrderableDomain};
use crate::store::order::OrderRow;
use crate::store::{StoreError, domain, event};

/// Names of one renewal that are looked at at once.
const LOOKS_OF_RENEWAL_MAX: usize = 4;
/// For all of them; an order does not wait for longer.
const RENEWAL_LOOK_DEADLINE: Duration = Duration::from_secs(60);
/// RFC 1035 section 4.2.
const DNS_PORT: u16 = 53;

/// What was found out about one name.
struct Findings {
    methods: Vec<ChallengeMethod>,
    /// What is known against issuers that the tenant prefers.
    restrictions: Restrictions,
    observations: Vec<Observation>,
}

/// Looks at one name and writes down what was found.
pub(super) async fn run(issuance: &Issuance, domain: &OrderableDomain) -> Result<(), StoreError> {
    let issuers = {
        let mut read = issuance.parts.store.read().await?;
        issuance.preferred(&mut read, Some(domain.tenant)).await?
    };
    let findings = if issuance.parts.config.preflight.enabled {
        look(issuance, &issuers, &Looked::of(domain)).await
    } else {
        let every = [ChallengeMethod::Http01, ChallengeMethod::TlsAlpn01, ChallengeMethod::Dns01];
        let methods: Vec<_> =
            every.into_iter().filter(|method| is_wanted(&issuers, &domain.name, *method)).collect();
        let restrictions = of_methods(issuance, &issuers, &methods);
        Findings { methods, restrictions, observations: Vec::new() }
    };
    let methods = findings.methods;
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    if !group::is_orderable(&mut tx, domain.id).await? {
        return Ok(());
    }
    let mut state = group::name_state(&mut tx, domain.id).await?.unwrap_or_default();
    if methods.is_empty() {
        state.next_at = now + next_look(now - domain.created_at);
    } else {
        state.ready_at = state.ready_at.or(Some(now));
        state.next_at = state.next_at.min(now);
    }
    state.methods = methods;
    // What the CA itself has said of the name stands.
    let said = |known: &Restriction| matches!(known.kind, RestrictionKind::Policy | RestrictionKind::Limit);
    state.issuers.retain(|_, known| said(known) && known.forbids(now));
    for (issuer, restriction) in findings.restrictions {
        state.issuers.entry(issuer).or_insert(restriction);
    }
    group::put_name_state(&mut tx, domain.id, &state, now).await?;
    let points = findings.observations.iter().find(|o| o.kind == ConditionKind::DnsPointsHere).cloned();
    for mut observed in findings.observations {
        observed.next_check_at = state.methods.is_empty().then_some(state.next_at);
        let changed = condition::set(&mut tx, domain.id, &observed, now).await?;
        let event = match observed.kind {
            _ if observed.status != ConditionStatus::False || !changed => continue,
            ConditionKind::ChallengeReachable => "domain.unreachable",
            ConditionKind::CaaPermits => "domain.caa_forbids",
            ConditionKind::OwnershipProved
            | ConditionKind::DnsPointsHere
            | ConditionKind::CertificateReady
            | ConditionKind::UploadedCertificate
            | ConditionKind::Deployed
            | ConditionKind::Present => continue,
        };
        let points = points.as_ref().filter(|_| observed.kind == ConditionKind::ChallengeReachable);
        let set = pointing::record_to_set(&domain.name, &issuance.parts.config.fleet.public_addresses);
        let text = next_step(&observed.message, points, &set, state.next_at);
        event::append(&mut tx, event, Some(domain.tenant), &domain.id.to_string(), &text, now).await?;
    }
    tx.commit().await?;
    crate::metrics::preflight(!state.methods.is_empty());
    Ok(())
}

/// Whether some issuer validates by this method, and for this name.
pub(super) fn is_wanted(issuers: &[&Issuer], name: &str, method: ChallengeMethod) -> bool {
    usable(name, method) && issuers.iter().any(|issuer| issuer.config.challenges.contains(&method))
}

/// Issuers that validate by none of the methods that a name can show.
fn of_methods(issuance: &Issuance, issuers: &[&Issuer], methods: &[ChallengeMethod]) -> Restrictions {
    let until = issuance.parts.clock.now_ms() + CAA_FRESH_MS;
    let can = |issuer: &&&Issuer| issuer.config.challenges.iter().any(|method| methods.contains(method));
    let cannot = issuers.iter().filter(|issuer| !methods.is_empty() && !can(issuer));
    let restriction = |issuer: &&Issuer| {
        let own: Vec<&str> = issuer.config.challenges.iter().map(|method| method.as_str()).collect();
        let why = format!("{} validates by {} only", issuer.config.name, own.join(", "));
        let kind = RestrictionKind::Methods;
        (issuer.config.name.clone(), Restriction { kind, methods: Vec::new(), why, until })
    };
    cannot.map(restriction).collect()
}

/// What is wrong and the record that mends it, for the owner.
fn next_step(unreachable: &str, points: Option<&Observation>, set: &str, next_at: i64) -> String {
    let wrong = points.filter(|points| points.status == ConditionStatus::False);
    let record = wrong.map(|points| format!("{}; {set}; or: ", points.message)).unwrap_or_default();
    format!("not orderable yet: {record}{unreachable}; looked at again at {}", crate::clock::rfc3339(next_at))
}

/// A tenant who has just added a name is looked after closely; a name that never pointed here is not.
fn next_look(age_ms: i64) -> i64 {
    match age_ms / MINUTE_MS {
        ..10 => 15_000,
        10..60 => MINUTE_MS,
        60..1440 => 10 * MINUTE_MS,
        _ => 60 * MINUTE_MS,
    }
}

/// A name that is looked at.
pub(super) struct Looked {
    pub(super) id: DomainId,
    pub(super) tenant: TenantId,
    pub(super) name: String,
}

impl Looked {
    fn of(domain: &OrderableDomain) -> Self {
        Self { id: domain.id, tenant: domain.tenant, name: domain.name.clone() }
    }
}

/// Names of a renewal that would fail as they are now, with the reason in words; none where nothing is certain.
pub(super) async fn dead_names(
    issuance: &Issuance,
    issuer: &Issuer,
    row: &OrderRow,
) -> Result<Vec<(String, String)>, StoreError> {
    let is_looked_at = issuance.parts.config.preflight.enabled && row.renewal && row.names.len() > 1;
    // When many are renewed at once, as before a mass revocation, most go without.
    let Some(_permit) = issuance.renewal_looks.try_acquire().ok().filter(|_| is_looked_at) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for domain in &row.domains {
        let mut read = issuance.parts.store.read().await?;
        if let Some(found) = domain::find(&mut read, *domain).await? {
            names.push(Looked { id: found.id, tenant: found.tenant_id, name: found.name.to_string() });
        }
    }
    let issuers = [issuer];
    let mut looks = Vec::new();
    for name in &names {
        looks.push(async { (name.name.clone(), look(issuance, &issuers, name).await) });
    }
    let looks = futures_util::stream::iter(looks).buffer_unordered(LOOKS_OF_RENEWAL_MAX).collect::<Vec<_>>();
    let Ok(found) = tokio::time::timeout(RENEWAL_LOOK_DEADLINE, looks).await else { return Ok(Vec::new()) };
    if found.iter().all(|(_, findings)| findings.methods.is_empty()) {
        return Ok(Vec::new());
    }
    let is_against = |observed: &&Observation| {
        let kinds = [ConditionKind::ChallengeReachable, ConditionKind::CaaPermits];
        observed.status == ConditionStatus::False && kinds.contains(&observed.kind)
    };
    let dead = |(name, findings): (String, Findings)| {
        let why = findings.observations.iter().find(is_against)?;
        findings.methods.is_empty().then(|| (name, why.message.clone()))
    };
    Ok(found.into_iter().filter_map(dead).collect())
}

async fn look(issuance: &Issuance, issuers: &[&Issuer], domain: &Looked) -> Findings {
    let Ok(pattern) = NamePattern::parse(&domain.name) else {
        return Findings { methods: Vec::new(), restrictions: Restrictions::new(), observations: Vec::new() };
    };
    let mut methods = Vec::new();
    let mut observations = Vec::new();
    let mut texts = Vec::new();
    let mut unknown = false;
    if let NamePattern::Exact(name) = &pattern {
        let (found, views) = tokio::join!(issuance.lookup.addresses(name), async {
            zone_of(issuance, name.as_str()).await.addresses(name).await
        });
        let Joined { all: found, differing, without } = views::joined(name, found, &views);
        let public = &issuance.parts.config.fleet.public_addresses;
        let mut ours = pointing::points_here(name.as_str(), public, &found);
        if !without.is_empty() {
            ours.status = ConditionStatus::False;
            "ServersDiffer".clone_into(&mut ours.reason);
            ours.message = without.join("; ");
        } else if ours.status == ConditionStatus::False && !differing.is_empty() {
            ours.message = format!("{}; {}", ours.message, differing.join("; "));
        }
        let status = ours.status;
        unknown |= status == ConditionStatus::Unknown;
        observations.push(ours);
        match found.records() {
            // Whatever the others answer: a CA that asks these finds nowhere to go.
            _ if !without.is_empty() => texts.extend(without),
            [] => texts.push(format!("{name} has no address to fetch a challenge from")),
            addresses => {
                let at = (name, addresses);
                let reached = reach::by_address(issuance, issuers, domain, at, status).await;
                methods.extend(reached.methods);
                if !reached.texts.is_empty() {
                    texts.extend(reached.texts);
                    texts.extend(differing);
                }
            }
        }
    }
    let (delegated, text) = delegation(issuance, domain.id, pattern.base(), true).await;
    match delegated {
        Some(true) => methods.push(ChallengeMethod::Dns01),
        Some(false) => texts.extend(text),
        None => {
            unknown = true;
            texts.extend(text);
        }
    }
    methods.retain(|method| is_wanted(issuers, &domain.name, *method));
    observations.push(reachable(&methods, &texts, unknown));
    let mut restrictions = of_methods(issuance, issuers, &methods);
    if !methods.is_empty()
        && let Some(caa) = caa(issuance, issuers, &pattern, &methods).await
    {
        methods = caa.methods;
        restrictions.extend(caa.restrictions);
        observations.push(caa.observed);
    }
    Findings { methods, restrictions, observations }
}

/// What a name's CAA records say of one issuer.
pub(super) enum Permission {
    /// By which it may validate.
    Methods(Vec<ChallengeMethod>),
    Forbidden(String),
    /// The CA must not issue either while the records cannot be had (RFC 8659 section 3).
    Unknown(String),
}

/// By which of these methods the issuer may validate, as the name's CAA records have it. Where it does not say what it calls
/// itself in them, only it can tell.
pub(super) async fn permission(
    issuance: &Issuance,
    issuer: &Issuer,
    pattern: &NamePattern,
    methods: &[ChallengeMethod],
) -> Permission {
    if issuer.caa_identities(&issuance.parts).await.is_empty() {
        return Permission::Methods(methods.to_vec());
    }
    let found = caa_everywhere(issuance, pattern.base()).await;
    judge(issuance, issuer, pattern, methods, &found).await
}

/// The CAA records of a name as the resolvers have them, and as servers of its zone do where those differ.
struct CaaFound {
    resolvers: Found<(String, CaaRecord)>,
    differing: Vec<View<(String, CaaRecord)>>,
}

async fn caa_everywhere(issuance: &Issuance, name: &DomainName) -> CaaFound {
    let (resolvers, views) = tokio::join!(issuance.lookup.caa(name), async {
        zone_of(issuance, name.as_str()).await.caa(name).await
    });
    // A server that has none leaves it to the names above its zone.
    let differs = |view: &View<(String, CaaRecord)>| match (&view.found, &resolvers) {
        (Found::Records(own), Found::Records(heard)) => {
            own.len() != heard.len() || own.iter().any(|record| !heard.contains(record))
        }
        (Found::Records(_), _) => true,
        (Found::Nothing | Found::Unknown(_), _) => false,
    };
    let differing = views.into_iter().filter(differs).collect();
    CaaFound { resolvers, differing }
}

/// The servers of the zone that `name` is in. One in a special range is asked only where the operator opens that to all: no CA
/// could ask it.
async fn zone_of(issuance: &Issuance, name: &str) -> Zone {
    let config = &issuance.parts.config;
    let port = config.dns.authoritative_port.unwrap_or(DNS_PORT);
    let policy = EgressPolicy::default();
    let may_ask = |address: IpAddr| {
        let grants = config.egress.allow.iter().map(|allow| Grant { net: allow.cidr, ports: &allow.ports });
        special_range(address.to_canonical()).is_none()
            || policy.check(SocketAddr::new(address, port), grants).is_ok()
    };
    Zone::of(&issuance.lookup, name, port, may_ask).await
}

async fn judge(
    issuance: &Issuance,
    issuer: &Issuer,
    pattern: &NamePattern,
    methods: &[ChallengeMethod],
    found: &CaaFound,
) -> Permission {
    let identities = issuer.caa_identities(&issuance.parts).await;
    if let Found::Unknown(why) = &found.resolvers {
        return Permission::Unknown(format!("the CA refuses as long as CAA cannot be looked up: {why}"));
    }
    if identities.is_empty() {
        return Permission::Methods(methods.to_vec());
    }
    let account = issuer.account_url();
    let views = found.differing.iter().map(|view| (Some(&view.server), view.found.records()));
    let mut left = methods.to_vec();
    for (server, found) in std::iter::once((None, found.resolvers.records())).chain(views) {
        let Some((owner, _)) = found.first() else { continue };
        let wanted = Wanted {
            wildcard: pattern.is_wildcard(),
            identities: &identities,
            account: account.as_deref(),
            methods: &left,
        };
        let records: Vec<CaaRecord> = found.iter().map(|(_, record)| record.clone()).collect();
        match permitted(owner, &records, &wanted) {
            Ok(methods) => left = methods,
            Err(why) => {
                let so_says = server.map(|server| format!(", as {server} has it, a server of its zone"));
                return Permission::Forbidden(format!("{why}{}", so_says.unwrap_or_default()));
            }
        }
    }
    Permission::Methods(left)
}

/// What the name's CAA records say of the issuers that its tenant prefers.
struct Caa {
    /// By which some issuer may validate.
    methods: Vec<ChallengeMethod>,
    restrictions: Restrictions,
    observed: Observation,
}

/// `None`: no issuer says what it calls itself in CAA records.
async fn caa(
    issuance: &Issuance,
    issuers: &[&Issuer],
    pattern: &NamePattern,
    methods: &[ChallengeMethod],
) -> Option<Caa> {
    let mut known = None;
    for issuer in issuers {
        known = known.or(issuer.caa_identities(&issuance.parts).await.first().cloned());
    }
    let first = known?;
    let found = caa_everywhere(issuance, pattern.base()).await;
    let until = issuance.parts.clock.now_ms() + CAA_FRESH_MS;
    let mut restrictions = Restrictions::new();
    let mut by: Vec<ChallengeMethod> = Vec::new();
    let mut permitted: Vec<String> = Vec::new();
    let mut refusals: Vec<String> = Vec::new();
    for issuer in issuers {
        let name = &issuer.config.name;
        let left = match judge(issuance, issuer, pattern, methods, &found).await {
            Permission::Unknown(message) => {
                let observed = caa_observed(ConditionStatus::Unknown, "LookupFailed", message);
                return Some(Caa { methods: Vec::new(), restrictions, observed });
            }
            Permission::Methods(left) => {
                let identities = issuer.caa_identities(&issuance.parts).await;
                permitted.push(identities.first().unwrap_or(name).clone());
                by.extend(left.iter().filter(|method| !by.contains(method)).copied().collect::<Vec<_>>());
                left
            }
            Permission::Forbidden(why) => {
                refusals.push(if issuers.len() > 1 { format!("{name}: {why}") } else { why });
                Vec::new()
            }
        };
        if left.len() < methods.len() {
            let why = refusals.last().filter(|_| left.is_empty()).cloned().unwrap_or_default();
            let kind = RestrictionKind::Caa;
            restrictions.insert(name.clone(), Restriction { kind, methods: left, why, until });
        }
    }
    let (status, reason, message) = match (&found.resolvers, permitted.as_slice(), refusals.as_slice()) {
        (Found::Records(_), [], _) => (ConditionStatus::False, "Forbidden", refusals.join("; ")),
        (Found::Records(found), some, []) => {
            let some = some.first().unwrap_or(&first);
            (
                ConditionStatus::True,
                "Permitted",
                format!("the CAA records at {} let {some} issue", found[0].0),
            )
        }
        (Found::Records(found), some, not) => {
            let (some, not) = (some.join(", "), not.join("; "));
            let message = format!("the CAA records at {} let {some} issue; not {not}", found[0].0);
            (ConditionStatus::True, "Permitted", message)
        }
        (Found::Nothing | Found::Unknown(_), [], not) if !not.is_empty() => {
            (ConditionStatus::False, "Forbidden", not.join("; "))
        }
        (Found::Nothing | Found::Unknown(_), ..) => {
            (ConditionStatus::True, "NoCaa", "no CAA record restricts issuance".to_owned())
        }
    };
    if permitted.is_empty() {
        // Nobody gets the name: there is nothing to choose.
        restrictions.clear();
    }
    Some(Caa { methods: by, restrictions, observed: caa_observed(status, reason, message) })
}

fn caa_observed(status: ConditionStatus, reason: &str, message: String) -> Observation {
    let kind = ConditionKind::CaaPermits;
    Observation { kind, status, reason: reason.to_owned(), message, next_check_at: None }
}

fn reachable(methods: &[ChallengeMethod], texts: &[String], unknown: bool) -> Observation {
    let (status, reason, message) = if !methods.is_empty() {
        let names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
        (ConditionStatus::True, "Reachable", format!("validation can go by {}", names.join(", ")))
    } else if unknown {
        (ConditionStatus::Unknown, "LookupFailed", texts.join("; "))
    } else {
        (ConditionStatus::False, "NotReachable", texts.join("; "))
    };
    Observation {
        kind: ConditionKind::ChallengeReachable,
        status,
        reason: reason.to_owned(),
        message,
        next_check_at: None,
    }
}

/// Whether `_acme-challenge.<base>` is a CNAME to one of the domain's labels, or is none and written for us; `None`: nobody
/// knows. With it what to say. `everywhere`: at each server of its zone, as an order needs it; one that is behind is no sign that
/// a name has left.
pub(super) async fn delegation(
    issuance: &Issuance,
    domain: DomainId,
    base: &DomainName,
    everywhere: bool,
) -> (Option<bool>, Option<String>) {
    let name = challenge_name(base.as_str());
    let is_written = issuance.writers.of(&name).is_some();
    // Our own zone's records: by our responder, or by whoever writes that zone for us.
    let zone = issuance.parts.config.dns.challenge_zone.as_ref();
    let zone = zone.filter(|zone| issuance.zone.is_some() || issuance.writers.of(zone).is_some());
    if zone.is_none() && !is_written {
        return (Some(false), None);
    }
    let labels = async { group::challenge_labels(&mut *issuance.parts.store.read().await?, domain).await };
    let labels: Vec<String> = match labels.await {
        Ok(labels) => labels,
        Err(error) => return (None, Some(error.to_string())),
    };
    let target = |label: &String| zone.map(|zone| format!("{label}.{zone}").to_ascii_lowercase());
    let first = labels.first().and_then(target);
    let set =
        first.map_or_else(|| "remove that CNAME".to_owned(), |target| format!("set {name} CNAME {target}"));
    let is_ours = |found: &[String]| {
        found.iter().any(|found| labels.iter().any(|label| target(label).as_ref() == Some(found)))
    };
    match issuance.lookup.cname(&name).await {
        Found::Records(found) if is_ours(&found) => {
            let views =
                if everywhere { zone_of(issuance, &name).await.cname(&name).await } else { Vec::new() };
            for View { server, found } in views {
                let wrong = match &found {
                    Found::Records(found) if is_ours(found) => continue,
                    Found::Records(found) => format!("has it as a CNAME to {}", found.join(", ")),
                    Found::Nothing => "does not have it".to_owned(),
                    Found::Unknown(_) => continue,
                };
                return (
                    Some(false),
                    Some(format!("{server}, a server of the zone of {name}, {wrong}; {set}")),
                );
            }
            (Some(true), None)
        }
        Found::Records(found) => {
            (Some(false), Some(format!("{name} is a CNAME to {}, not to us; {set}", found.join(", "))))
        }
        Found::Nothing if is_written => (Some(true), None),
        Found::Nothing => (Some(false), Some(set)),
        Found::Unknown(why) => (None, Some(why)),
    }
}
