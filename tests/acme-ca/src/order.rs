//! Orders: newOrder with limits and reuse, reading, finalizing (RFC 8555 section 7.4).
//!
//! As Boulder does: an identical order that is still pending or ready is given again; a set that was
//! issued before is a renewal and free of the limits on orders and per domain; an order that failed
//! because of an authorization carries no `error` of its own; one that replaces a certificate (RFC 9773) is free of all
//! limits. Absent: notBefore, notAfter.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use crate::book::{
    AUTHORIZATIONS_MAX, AuthorizationState, Book, Certificate, ORDERS_MAX, Order, OrderStatus, Progress,
    Refused, UnnamedRefusal,
};
use crate::ca::{AriExemption, Ca};
use crate::clock::Moment;
use crate::faults::{Endpoint, FaultKind};
use crate::identifier::{RawIdentifier, parse_names, registered_domain};
use crate::issue::{Csr, LeafKey, LeafPlan};
use crate::limits::{LimitName, Refusal};
use crate::problem::{Kind, Problem, whole_seconds_up};
use crate::profile::{Profile, backdate};
use crate::renewal_info;
use crate::request::Signed;
use crate::stats::NewOrderEntry;
use crate::token::random_token;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewOrder {
    identifiers: Vec<RawIdentifier>,
    not_before: Option<String>,
    not_after: Option<String>,
    profile: Option<String>,
    replaces: Option<String>,
}

/// `POST /acme/new-order`.
pub(crate) async fn new_order(State(ca): State<Arc<Ca>>, signed: Signed) -> Result<Response, Problem> {
    let (account, _) = signed.account()?;
    let wanted: NewOrder = signed.json()?;
    if wanted.not_before.is_some() || wanted.not_after.is_some() {
        return Err(Problem::malformed("notBefore and notAfter are not supported"));
    }
    let now = ca.clock.now();
    let mut book = ca.book();
    let outcome = book.profiles.of_order(wanted.profile.as_deref()).and_then(|(name, profile)| {
        let names = parse_names(&wanted.identifiers, profile.names_max)?;
        let replaces = wanted.replaces.as_deref().filter(|_| ca.config.ari);
        place_order(
            &ca,
            &mut book,
            &Wanted { account, names: &names, profile: (name, profile), replaces },
            now,
        )
    });
    let mut names: Vec<String> = wanted.identifiers.into_iter().map(|i| i.value).collect();
    names.truncate(LOGGED_NAMES_MAX);
    let (result, order) = match &outcome {
        Ok(Placed { id, reused: true }) => ("reused".to_owned(), Some(id.clone())),
        Ok(Placed { id, reused: false }) => ("created".to_owned(), Some(id.clone())),
        Err(problem) => (problem.kind.name().to_owned(), None),
    };
    let entry = NewOrderEntry {
        at: now.rfc3339(),
        account: account.to_owned(),
        names,
        replaces: wanted.replaces,
        profile: wanted.profile,
        result,
        order,
    };
    book.stats.record_new_order(entry);
    let placed = outcome?;
    let order = &book.orders[&placed.id];
    let document = book.order_document(&signed.base, &placed.id, order, now);
    let location = format!("{}/acme/order/{}", signed.base, placed.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(document)).into_response())
}

/// `POST /acme/order/{id}`.
pub(crate) async fn order(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    signed.post_as_get()?;
    let mut book = ca.book();
    let order = own_order(&mut book, signed.account()?.0, &id)?;
    if let Progress::Processing { certificate, polls_left } = &mut order.progress {
        if *polls_left == 0 {
            order.progress = Progress::Valid { certificate: std::mem::take(certificate) };
        } else {
            *polls_left -= 1;
        }
    }
    Ok(answer(&ca, &book, &signed.base, &id))
}

#[derive(Deserialize)]
struct Finalize {
    csr: String,
}

/// `POST /acme/finalize/{id}`.
pub(crate) async fn finalize(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    let (account, account_key) = signed.account()?;
    let request: Finalize = signed.json()?;
    let der = BASE64_URL_SAFE_NO_PAD
        .decode(&request.csr)
        .map_err(|_| Problem::new(Kind::BadCsr, "csr is not unpadded base64url"))?;
    let Order { names, charged, profile, .. } = ready_order(&ca, account, &id)?;
    let refused = ca.book().refused.clone();
    if let Some(problem) = refused_by_policy(&refused, &names).filter(|_| refused.at_finalize) {
        return Err(problem);
    }
    let csr = Csr::parse(&der)?;
    if csr.names != names {
        return Err(Problem::new(Kind::BadCsr, "the names of the request are not those of the order"));
    }
    if csr.key.is_account_key(account_key) {
        return Err(Problem::new(Kind::BadCsr, "the certificate's key must not be the account's"));
    }
    begin_signing(&ca, account, &id)?;
    let validity = ca.book().profiles.of_order(Some(profile))?.1.validity;
    let signed_leaf = sign(&ca, &names, &csr.key, validity);
    let now = ca.clock.now();
    let mut book = ca.book();
    let progress = match signed_leaf {
        Ok(mut certificate) => {
            certificate.account = account.to_owned();
            record_certificate(&ca, &mut book, certificate, &charged, now)
        }
        Err(error) => {
            tracing::error!(%error, "signing failed");
            Progress::Failed(Box::new(Problem::new(Kind::ServerInternal, "signing failed")))
        }
    };
    own_order(&mut book, account, &id)?.progress = progress;
    Ok(answer(&ca, &book, &signed.base, &id))
}

/// `POST /acme/certificate/{id}`.
pub(crate) async fn certificate(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    signed.post_as_get()?;
    let mut book = ca.book();
    let certificate = book.certificates.get(&id).ok_or_else(|| Problem::not_found("certificate"))?;
    if certificate.account != signed.account()?.0 {
        return Err(Problem::unauthorized("the certificate belongs to another account"));
    }
    let chain = certificate.chain_pem.clone();
    book.stats.certificates.downloaded += 1;
    let content_type = [(http::header::CONTENT_TYPE, "application/pem-certificate-chain")];
    Ok((content_type, chain).into_response())
}

struct Placed {
    id: String,
    reused: bool,
}

/// An order as it is asked for.
struct Wanted<'a> {
    account: &'a str,
    names: &'a BTreeSet<String>,
    profile: (&'static str, Profile),
    replaces: Option<&'a str>,
}

/// Names of one order that the log keeps.
const LOGGED_NAMES_MAX: usize = 100;

fn place_order(ca: &Ca, book: &mut Book, wanted: &Wanted<'_>, now: Moment) -> Result<Placed, Problem> {
    let &Wanted { account, names, profile: (profile_name, profile), replaces } = wanted;
    if let Some(problem) = refused_by_policy(&book.refused, names).filter(|_| !book.refused.at_finalize) {
        return Err(problem);
    }
    let charged = charged_names(ca, book, wanted, now)?;
    let renewal = charged.is_empty() || book.issued_sets.contains(names);
    if let Some(refusal) = worst_refusal(book, wanted, &charged, renewal, now) {
        *book.stats.rate_limited.entry(refusal.name.as_str()).or_default() += 1;
        return Err(refusal.into_problem(now));
    }
    if book.orders.len() >= ORDERS_MAX || book.authorizations.len() + names.len() > AUTHORIZATIONS_MAX {
        return Err(Problem::new(Kind::ServerInternal, "this CA holds no more orders"));
    }
    if !renewal {
        book.limits.spend(LimitName::NewOrders, account, now);
    }
    let key = (account.to_owned(), names.clone());
    if let Some(id) = book.newest_order.get(&key)
        && let Some(order) = book.orders.get(id)
        && matches!(book.order_status(order, now), OrderStatus::Pending | OrderStatus::Ready)
    {
        let id = id.clone();
        book.stats.orders.reused += 1;
        return Ok(Placed { id, reused: true });
    }
    let mut expires = now.plus(profile.order_lifetime);
    let mut authorizations = vec![];
    for name in names {
        let id = find_or_add_authorization(book, account, name, &profile, now);
        expires = expires.min(book.authorizations[&id].expires);
        authorizations.push(id);
    }
    let id = random_token(12);
    let order = Order {
        account: account.to_owned(),
        names: names.clone(),
        authorizations,
        expires,
        profile: profile_name,
        replaces: replaces.map(str::to_owned),
        charged,
        progress: Progress::Open,
    };
    book.orders.insert(id.clone(), order);
    if let Some(replaces) = replaces {
        book.replaced_by.insert(replaces.to_owned(), id.clone());
        book.stats.orders.replacing += 1;
    }
    book.newest_order.insert(key, id.clone());
    book.stats.orders.created += 1;
    Ok(Placed { id, reused: false })
}

/// The names that limits count: all, or those for which an order that replaces a certificate is not exempt.
fn charged_names(
    ca: &Ca,
    book: &Book,
    wanted: &Wanted<'_>,
    now: Moment,
) -> Result<BTreeSet<String>, Problem> {
    let Some(replaces) = wanted.replaces else { return Ok(wanted.names.clone()) };
    let predecessor = renewal_info::predecessor(book, wanted.account, wanted.names, replaces, now)?;
    Ok(match ca.config.ari_exemption {
        AriExemption::CoveredNames => wanted.names.difference(&predecessor.names).cloned().collect(),
        AriExemption::InWindow if !renewal_info::is_open(predecessor, now) => wanted.names.clone(),
        AriExemption::InWindow | AriExemption::Full => BTreeSet::new(),
    })
}

/// The policy's refusal, as Boulder words it: one name is named in the text alone, several in subproblems.
fn refused_by_policy(refused: &Refused, names: &BTreeSet<String>) -> Option<Problem> {
    let words = |name: &str| format!("Cannot issue for \"{name}\": forbidden by this CA's policy");
    let mut hit: Vec<&String> = names.intersection(&refused.names).collect();
    let first = words(hit.first()?);
    match refused.unnamed {
        None => {}
        Some(UnnamedRefusal::RejectedIdentifier) => {
            return Some(Problem::new(Kind::RejectedIdentifier, "Cannot issue for these identifiers"));
        }
        Some(UnnamedRefusal::Malformed) => return Some(Problem::malformed("the request cannot be served")),
    }
    if hit.len() == 1 {
        return Some(Problem::new(Kind::RejectedIdentifier, first));
    }
    let more = hit.len() - 1;
    let mut problem = Problem::new(Kind::RejectedIdentifier, format!("{first} (and {more} more problems)"));
    let sub = |name: &String| (name.clone(), Kind::RejectedIdentifier, words(name));
    problem.subproblems = hit.drain(..).map(sub).collect();
    Some(problem)
}

/// Of all limits that refuse this order, the one that resets last.
fn worst_refusal(
    book: &Book,
    wanted: &Wanted<'_>,
    charged: &BTreeSet<String>,
    renewal: bool,
    now: Moment,
) -> Option<Refusal> {
    if charged.is_empty() {
        return None;
    }
    let account = wanted.account;
    let mut checks = vec![(LimitName::CertificatesPerExactSet, exact_set(wanted.names))];
    if !renewal {
        checks.push((LimitName::NewOrders, account.to_owned()));
        let domains: BTreeSet<&str> = charged.iter().map(|name| registered_domain(name)).collect();
        checks.extend(domains.into_iter().map(|d| (LimitName::CertificatesPerDomain, d.to_owned())));
    }
    for limit in [LimitName::FailedAuthorizations, LimitName::ConsecutiveFailures] {
        checks.extend(charged.iter().map(|name| (limit, failure_subject(account, name))));
    }
    checks
        .into_iter()
        .filter_map(|(limit, subject)| book.limits.check(limit, &subject, now).err())
        .max_by_key(|refusal| refusal.wait)
}

fn exact_set(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// What failed authorizations are counted by.
pub(crate) fn failure_subject(account: &str, name: &str) -> String {
    format!("{account} and {name}")
}

fn find_or_add_authorization(
    book: &mut Book,
    account: &str,
    name: &str,
    profile: &Profile,
    now: Moment,
) -> String {
    let key = (account.to_owned(), name.to_owned());
    let usable = book
        .newest_authorization
        .get(&key)
        .cloned()
        .filter(|id| book.authorizations.get(id).is_some_and(|a| a.is_usable(now, profile.reuse)));
    let Some(id) = usable else {
        return book.add_authorization(account, name, now.plus(profile.pending_authorization_lifetime));
    };
    match book.authorizations[&id].state {
        AuthorizationState::Valid => book.stats.authorizations.reused_valid += 1,
        AuthorizationState::Pending => book.stats.authorizations.reused_pending += 1,
        AuthorizationState::Invalid | AuthorizationState::Deactivated => {}
    }
    id
}

fn own_order<'a>(book: &'a mut Book, account: &str, id: &str) -> Result<&'a mut Order, Problem> {
    let order = book.orders.get_mut(id).ok_or_else(|| Problem::not_found("order"))?;
    if order.account == account {
        Ok(order)
    } else {
        Err(Problem::unauthorized("the order belongs to another account"))
    }
}

fn ready_order(ca: &Ca, account: &str, id: &str) -> Result<Order, Problem> {
    let now = ca.clock.now();
    let mut book = ca.book();
    let order = own_order(&mut book, account, id)?.clone();
    let status = book.order_status(&order, now);
    if status == OrderStatus::Ready {
        return Ok(order);
    }
    Err(Problem::new(Kind::OrderNotReady, format!("the order is {status:?}, not ready").to_lowercase()))
}

/// Of two finalize requests at once, one signs and the other is told that the order is not ready.
fn begin_signing(ca: &Ca, account: &str, id: &str) -> Result<(), Problem> {
    let mut book = ca.book();
    let order = own_order(&mut book, account, id)?;
    if !matches!(order.progress, Progress::Open) {
        return Err(Problem::new(Kind::OrderNotReady, "the order is being finalized already"));
    }
    order.progress = Progress::Signing;
    Ok(())
}

/// Signs the leaf, with the faults asked for.
fn sign(
    ca: &Ca,
    names: &BTreeSet<String>,
    key: &LeafKey,
    validity: Duration,
) -> Result<Certificate, rcgen::Error> {
    let take = |kind| ca.take_fault(Endpoint::Finalize, &[kind]).is_some();
    let not_before = ca.clock.now().minus(backdate(validity));
    let mut plan = LeafPlan { names, key, not_before, not_after: not_before.plus(validity) };
    let other_key;
    if take(FaultKind::WrongKey) {
        other_key = LeafKey::of_nobody()?;
        plan.key = &other_key;
    }
    let other_names = BTreeSet::from(["somebody-else.invalid".to_owned()]);
    if take(FaultKind::WrongNames) {
        plan.names = &other_names;
    }
    let fewer: BTreeSet<String> = names.iter().skip(1).cloned().collect();
    if !fewer.is_empty() && take(FaultKind::MissingName) {
        plan.names = &fewer;
    }
    if take(FaultKind::NotYetValid) {
        plan.not_before = ca.clock.now().plus(Duration::from_secs(86_400));
        plan.not_after = plan.not_before.plus(validity);
    }
    if take(FaultKind::Expired) {
        plan.not_before = not_before.minus(validity);
        plan.not_after = not_before;
    }
    let leaf = ca.hierarchy.sign(plan)?;
    let intermediate = if take(FaultKind::WrongChain) {
        ca.hierarchy.stranger_pem()
    } else if take(FaultKind::ExpiredIntermediate) {
        ca.hierarchy.expired_intermediate_pem()
    } else if take(FaultKind::NoIntermediate) {
        String::new()
    } else {
        ca.hierarchy.intermediate_pem()
    };
    Ok(Certificate {
        account: String::new(),
        names: names.clone(),
        der: leaf.der,
        chain_pem: format!("{}{}", leaf.pem, intermediate),
        not_before: plan.not_before,
        not_after: plan.not_after,
        revoked: None,
        window: None,
        replaced: false,
    })
}

fn record_certificate(
    ca: &Ca,
    book: &mut Book,
    certificate: Certificate,
    charged: &BTreeSet<String>,
    now: Moment,
) -> Progress {
    let names = certificate.names.clone();
    if !charged.is_empty() {
        book.limits.spend(LimitName::CertificatesPerExactSet, &exact_set(&names), now);
    }
    if !book.issued_sets.contains(&names) {
        for domain in charged.iter().map(|name| registered_domain(name)).collect::<BTreeSet<_>>() {
            book.limits.spend(LimitName::CertificatesPerDomain, domain, now);
        }
    }
    book.issued_sets.insert(names);
    book.stats.certificates.issued += 1;
    book.stats.orders.finalized += 1;
    let id = random_token(12);
    if let Some(name) = renewal_info::certificate_id(&certificate.der) {
        book.certificate_of_id.insert(name, id.clone());
    }
    book.certificates.insert(id.clone(), certificate);
    let fault = ca.take_fault_of(book, Endpoint::Finalize, FaultKind::Processing);
    let polls_left = fault.map_or(ca.config.processing_polls, |fault| fault.polls);
    if polls_left == 0 {
        Progress::Valid { certificate: id }
    } else {
        Progress::Processing { certificate: id, polls_left: polls_left - 1 }
    }
}

fn answer(ca: &Ca, book: &Book, base: &str, id: &str) -> Response {
    let order = &book.orders[id];
    let now = ca.clock.now();
    let document = book.order_document(base, id, order, now);
    let location = format!("{base}/acme/order/{id}");
    let mut response = ([(LOCATION, location)], Json(document)).into_response();
    if book.order_status(order, now) == OrderStatus::Processing {
        let seconds = whole_seconds_up(ca.config.retry_after);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
