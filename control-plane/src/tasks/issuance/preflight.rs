//! Before the first order for a name: would the CA find what we put up?
//!
//! A name passes when its HTTP-01 challenge can be fetched through the name's own addresses, or all of them are ours
//! (TLS-ALPN-01), or its `_acme-challenge` is delegated to our zone (DNS-01; the only way for a wildcard). The results
//! are conditions with the very record to set. One name that fails holds up no other.
//!
//! The fetch connects to our own public addresses and to what the operator's egress rules allow, nothing else; at most
//! three redirects are followed, http only. Deliberately absent: CAA, which the CA checks and names in its refusal.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::header::{HOST, LOCATION};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{DomainId, DomainName, NamePattern};
use portico_prober::connect_guarded;
use portico_prober::egress::{EgressPolicy, Grant};

use super::Issuance;
use crate::acme::ChallengeMethod;
use crate::dns::lookup::Found;
use crate::plan::reconcile::usable;
use crate::store::StoreError;
use crate::store::condition::{self, Observation};
use crate::store::group::{self, OrderableDomain};

/// Addresses of a name that are tried; a CA picks any of them.
const ADDRESSES_MAX: usize = 4;
const REDIRECTS_MAX: usize = 3;
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const FETCH_DEADLINE: Duration = Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 1024;
/// How long the probe's token stands on the edges.
const TOKEN_LIFETIME_MS: i64 = 60_000;

/// What was found out about one name.
struct Findings {
    methods: Vec<ChallengeMethod>,
    observations: Vec<Observation>,
}

/// Looks at one name and writes down what was found.
pub(super) async fn run(issuance: &Issuance, domain: &OrderableDomain) -> Result<(), StoreError> {
    let findings = if issuance.parts.config.preflight.enabled {
        look(issuance, domain).await
    } else {
        let every = [ChallengeMethod::Http01, ChallengeMethod::TlsAlpn01, ChallengeMethod::Dns01];
        Findings { methods: every.to_vec(), observations: Vec::new() }
    };
    let wanted = |method: &ChallengeMethod| {
        usable(&domain.name, *method) && issuance.issuers.iter().any(|issuer| issuer.methods.contains(method))
    };
    let methods: Vec<_> = findings.methods.into_iter().filter(wanted).collect();
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
    group::put_name_state(&mut tx, domain.id, &state, now).await?;
    for mut observed in findings.observations {
        observed.next_check_at = state.methods.is_empty().then_some(state.next_at);
        condition::set(&mut tx, domain.id, &observed, now).await?;
    }
    tx.commit().await?;
    let result = if state.methods.is_empty() { "failed" } else { "passed" };
    metrics::counter!("portico_preflights_total", "result" => result).increment(1);
    Ok(())
}

/// A tenant who has just added a name is looked after closely; a name that never pointed here is not.
fn next_look(age_ms: i64) -> i64 {
    const MINUTE: i64 = 60_000;
    match age_ms / MINUTE {
        ..10 => 15_000,
        10..60 => MINUTE,
        60..1440 => 10 * MINUTE,
        _ => 60 * MINUTE,
    }
}

async fn look(issuance: &Issuance, domain: &OrderableDomain) -> Findings {
    let Ok(pattern) = NamePattern::parse(&domain.name) else {
        return Findings { methods: Vec::new(), observations: Vec::new() };
    };
    let mut methods = Vec::new();
    let mut observations = Vec::new();
    let mut texts = Vec::new();
    let mut unknown = false;
    if let NamePattern::Exact(name) = &pattern {
        let found = issuance.lookup.addresses(name).await;
        let ours = points_here(issuance, name, &found);
        if ours.status == ConditionStatus::True {
            methods.push(ChallengeMethod::TlsAlpn01);
        }
        unknown |= ours.status == ConditionStatus::Unknown;
        observations.push(ours);
        match found.records() {
            [] => texts.push(format!("{name} has no address to fetch a challenge from")),
            addresses => match fetch_through(issuance, name, addresses).await {
                Ok(()) => methods.push(ChallengeMethod::Http01),
                Err(text) => texts.push(text),
            },
        }
    }
    let (delegated, text) = delegation(issuance, domain.id, pattern.base()).await;
    match delegated {
        Some(true) => methods.push(ChallengeMethod::Dns01),
        Some(false) => texts.extend(text),
        None => {
            unknown = true;
            texts.extend(text);
        }
    }
    observations.push(reachable(&methods, &texts, unknown));
    Findings { methods, observations }
}

fn points_here(issuance: &Issuance, name: &DomainName, found: &Found<IpAddr>) -> Observation {
    let ours = &issuance.parts.config.fleet.public_addresses;
    let list =
        |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let set = format!("set the A or AAAA records of {name} to {}", list(ours));
    let (status, reason, message) = match found {
        Found::Unknown(why) => (ConditionStatus::Unknown, "LookupFailed", why.clone()),
        Found::Nothing => (ConditionStatus::False, "NoAddress", format!("{name} has no address; {set}")),
        Found::Records(_) if ours.is_empty() => {
            let message = "fleet.public_addresses is not configured".to_owned();
            (ConditionStatus::Unknown, "NoPublicAddresses", message)
        }
        Found::Records(addresses) => {
            let foreign: Vec<IpAddr> = addresses.iter().filter(|a| !ours.contains(a)).copied().collect();
            match foreign.len() {
                0 => (ConditionStatus::True, "PointsHere", format!("{name} resolves to {}", list(addresses))),
                n if n < addresses.len() => {
                    let message =
                        format!("{name} also resolves to {}; remove what is not ours", list(&foreign));
                    (ConditionStatus::False, "PointsPartlyHere", message)
                }
                _ => {
                    let message = format!("{name} resolves to {}; {set}", list(&foreign));
                    (ConditionStatus::False, "PointsElsewhere", message)
                }
            }
        }
    };
    Observation {
        kind: ConditionKind::DnsPointsHere,
        status,
        reason: reason.to_owned(),
        message,
        next_check_at: None,
    }
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

/// Whether `_acme-challenge.<base>` is a CNAME to one of the domain's labels; `None`: nobody knows. With it what to say.
async fn delegation(
    issuance: &Issuance,
    domain: DomainId,
    base: &DomainName,
) -> (Option<bool>, Option<String>) {
    let config = &issuance.parts.config.dns;
    let (Some(zone), Some(_)) = (&config.challenge_zone, &issuance.zone) else { return (Some(false), None) };
    let labels = async { group::challenge_labels(&mut *issuance.parts.store.read().await?, domain).await };
    let labels: Vec<String> = match labels.await {
        Ok(labels) => labels,
        Err(error) => return (None, Some(error.to_string())),
    };
    let name = format!("_acme-challenge.{base}");
    let target = |label: &String| format!("{label}.{zone}").to_ascii_lowercase();
    let set = labels.first().map(|label| format!("set {name} CNAME {}", target(label))).unwrap_or_default();
    match issuance.lookup.cname(&name).await {
        Found::Records(found) if found.iter().any(|found| labels.iter().any(|l| target(l) == *found)) => {
            (Some(true), None)
        }
        Found::Records(found) => {
            (Some(false), Some(format!("{name} is a CNAME to {}, not to us; {set}", found.join(", "))))
        }
        Found::Nothing => (Some(false), Some(set)),
        Found::Unknown(why) => (None, Some(why)),
    }
}

/// Puts a random token on the edges and fetches it as a CA would.
async fn fetch_through(issuance: &Issuance, name: &DomainName, addresses: &[IpAddr]) -> Result<(), String> {
    let token = random_token();
    let answer = format!("{token}.{}", random_token());
    let expires = issuance.parts.clock.now_ms() + TOKEN_LIFETIME_MS;
    let outcome = issuance.fleet.set_http01(name.as_str(), &token, &answer, expires, None).await;
    let result = if outcome.acked.is_empty() {
        Err("no edge is connected to answer a challenge".to_owned())
    } else {
        let mut result = Ok(());
        for address in addresses.iter().take(ADDRESSES_MAX) {
            result = result.and(fetch_follow(issuance, name, *address, &token, &answer).await);
        }
        result
    };
    let (fleet, name) = (issuance.fleet.clone(), name.clone());
    tokio::spawn(async move { fleet.clear_challenge(name.as_str(), Some(&token), None).await });
    result
}

async fn fetch_follow(
    issuance: &Issuance,
    name: &DomainName,
    address: IpAddr,
    token: &str,
    answer: &str,
) -> Result<(), String> {
    let port = issuance.parts.config.fleet.http_port;
    let path = format!("/.well-known/acme-challenge/{token}");
    let url = format!("http://{name}{path}");
    let mut target = Target { socket: SocketAddr::new(address, port), authority: name.to_string(), path };
    for _ in 0..=REDIRECTS_MAX {
        let fetched = tokio::time::timeout(FETCH_DEADLINE, fetch(issuance, &target)).await;
        let fetched = fetched.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        match fetched.map_err(|error| format!("{url} at {}: {error}", target.socket))? {
            Fetched::Body(body) if body.as_ref() == answer.as_bytes() => return Ok(()),
            Fetched::Body(_) => {
                return Err(format!(
                    "{url} at {} is answered by somebody else, not by our edges",
                    target.socket
                ));
            }
            Fetched::Status(status) => {
                return Err(format!("{url} at {} is answered with {status}", target.socket));
            }
            Fetched::Redirect(location) => {
                let next = follow(issuance, &target, &location).await;
                target = next
                    .ok_or_else(|| format!("{url} is redirected to {location}, which does not reach us"))?;
            }
        }
    }
    Err(format!("{url} is redirected more than {REDIRECTS_MAX} times"))
}

struct Target {
    socket: SocketAddr,
    authority: String,
    /// With its query.
    path: String,
}

enum Fetched {
    Body(Bytes),
    Status(StatusCode),
    Redirect(String),
}

/// Where a redirect leads; `None` for anything but plain http to a name or address that resolves.
async fn follow(issuance: &Issuance, from: &Target, location: &str) -> Option<Target> {
    let base = url::Url::parse(&format!("http://{}", from.authority)).ok()?;
    let url = base.join(location).ok().filter(|url| url.scheme() == "http")?;
    let port = url.port().unwrap_or(issuance.parts.config.fleet.http_port);
    let address = match url.host()? {
        url::Host::Ipv4(address) => IpAddr::V4(address),
        url::Host::Ipv6(address) => IpAddr::V6(address),
        url::Host::Domain(name) => {
            let name = DomainName::parse(name).ok()?;
            *issuance.lookup.addresses(&name).await.records().first()?
        }
    };
    let path = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
    Some(Target { socket: SocketAddr::new(address, port), authority: url.host_str()?.to_owned(), path })
}

async fn fetch(issuance: &Issuance, target: &Target) -> Result<Fetched, String> {
    let config = &issuance.parts.config;
    let own =
        [Some(config.api), Some(config.distribution), config.dns.responder].into_iter().flatten().collect();
    let policy = EgressPolicy::new(Vec::new(), own);
    let http_port = [config.fleet.http_port];
    let edges = config.fleet.public_addresses.iter().map(|ip| Grant { net: (*ip).into(), ports: &http_port });
    let allowed = config.egress.allow.iter().map(|allow| Grant { net: allow.cidr, ports: &allow.ports });
    let grants: Vec<Grant<'_>> = edges.chain(allowed).collect();
    let stream = connect_guarded(&[target.socket], &policy, &grants, CONNECT_DEADLINE)
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(&target.path).header(HOST, &target.authority).body(Empty::<Bytes>::new());
    let answered = async {
        let response =
            sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
            return Ok(Fetched::Redirect(location.to_owned()));
        }
        if status != StatusCode::OK {
            return Ok(Fetched::Status(status));
        }
        let body =
            Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
        Ok(Fetched::Body(body.to_bytes()))
    };
    let answered = answered.await;
    connection.abort();
    answered
}

/// 256 random bits: nobody answers it by chance.
fn random_token() -> String {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the operating system's random source works");
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
