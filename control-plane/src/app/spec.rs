//! What a tenant or a domain may be told to be: every rule beyond the JSON types, each with the pointer of its field.

use std::collections::HashSet;

use axum::http::Uri;
use axum::http::uri::Authority;
use portico_api::rule::{HstsWish, ROUTES_MAX};
use portico_api::v1::{
    ClientCertificateMode, DomainSpec, EgressGrant, FieldError, Maintenance, Suspension, TenantSpec,
};
use portico_cert_store::{CellId, ClientAuthorities, NamePattern};
use portico_prober::egress::EgressPolicy;
use url::Url;

use crate::clock::parse_rfc3339;
use crate::config::IssuerConfig;
use crate::http::fault::field;
use crate::limits::CELLS_OF_NAME_MAX;
use crate::plan;
use crate::plan::cells::ANY_NAME;
use crate::store::cell::DEFAULT_CELL;

mod grants;
pub(crate) mod proxy;
mod purge;
mod route;

pub(crate) use grants::OwnAddresses;
pub(crate) use purge::{hosts_of, purge};
pub(crate) use route::circular;

const URL_BYTES_MAX: usize = 2048;
const HEADER_BYTES_MAX: usize = 255;
/// All routes of one domain, so that its resource stays below the wire's 512 KiB.
const ROUTES_BYTES_MAX: usize = 256 * 1024;
/// Cells that a refusal lists.
const CELLS_SHOWN_MAX: usize = 20;
const GRANTS_MAX: usize = 64;
const DOMAINS_MAX: u32 = 1_000_000;
const REASON_BYTES_MAX: usize = 500;
const RETRY_AFTER_SECONDS_MAX: u32 = 7 * 24 * 3600;

/// Reads a domain's name and rewrites it in `spec` as it is stored.
///
/// # Errors
/// The faulty field.
pub(crate) fn hostname(spec: &mut DomainSpec) -> Result<NamePattern, FieldError> {
    let name = NamePattern::parse(&spec.hostname)
        .map_err(|error| field("/hostname", "domain_name_invalid", error.to_string()))?;
    spec.hostname = name.to_string();
    Ok(name)
}

/// Everything of a domain but its name.
pub(crate) fn domain(spec: &DomainSpec, policy: &EgressPolicy, grants: &[EgressGrant]) -> Vec<FieldError> {
    let mut errors = cells("/cells", &spec.cells);
    if spec.routes.len() > ROUTES_MAX {
        errors.push(field("/routes", "too_many", format!("at most {ROUTES_MAX} routes")));
    }
    errors.extend(hsts(spec));
    errors.extend(client_certificates(spec));
    errors.extend(early_data(spec));
    errors.extend(spec.maintenance.iter().flat_map(maintenance));
    errors.extend(route::check_all(&spec.routes, policy, grants));
    let size = serde_json::to_vec(&spec.routes).map_or(usize::MAX, |text| text.len());
    if size > ROUTES_BYTES_MAX && errors.is_empty() {
        let message = format!(
            "the routes have {size} bytes of JSON, at most {ROUTES_BYTES_MAX}; put large bodies on an origin"
        );
        errors.push(field("/routes", "too_large", message));
    }
    errors
}

/// The issuers that a tenant prefers: each is configured, and named once.
pub(crate) fn issuers(named: &[String], configured: &[IssuerConfig]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, name) in named.iter().enumerate() {
        let at = format!("/issuers/{index}");
        if !configured.iter().any(|issuer| issuer.name == *name) {
            let known: Vec<&str> = configured.iter().map(|issuer| issuer.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            errors.push(field(
                at,
                "unknown_issuer",
                format!("is no issuer of the configuration; there are: {known}"),
            ));
        } else if named[..index].contains(name) {
            errors.push(field(at, "twice", "is named before"));
        }
    }
    errors
}

/// Whether a wish for backup certificates can be met: it takes a second issuer.
pub(crate) fn backups(
    at: &str,
    wish: Option<bool>,
    of_tenant: &[String],
    configured: &[IssuerConfig],
) -> Option<FieldError> {
    let named = configured.iter().filter(|issuer| of_tenant.contains(&issuer.name));
    let named: Vec<&str> = named.map(|issuer| issuer.name.as_str()).collect();
    let default = configured.iter().filter(|issuer| issuer.by_default).map(|issuer| issuer.name.as_str());
    let issuers = if named.is_empty() { default.collect() } else { named };
    let text = match issuers.as_slice() {
        _ if wish != Some(true) => return None,
        [_, _, ..] => return None,
        [] => "a backup certificate is issued, and no issuer is configured".to_owned(),
        [only] => format!(
            "a backup certificate is of another issuer than what serves, and this tenant has {only} alone; name another one \
             in its issuers first"
        ),
    };
    Some(field(at, "no_other_issuer", text))
}

fn hsts(spec: &DomainSpec) -> Vec<FieldError> {
    let wish = HstsWish {
        max_age_seconds: spec.hsts_max_age_seconds,
        include_subdomains: spec.hsts_include_subdomains,
        preload: spec.hsts_preload,
        https_redirect: spec.https_redirect,
    };
    let code = |name| if name == "hsts_max_age_seconds" { "out_of_range" } else { "incomplete" };
    wish.faults().into_iter().map(|(name, text)| field(format!("/{name}"), code(name), text)).collect()
}

fn client_certificates(spec: &DomainSpec) -> Vec<FieldError> {
    let Some(asked) = &spec.client_certificates else { return Vec::new() };
    let wrong = ClientAuthorities::from_pem(asked.ca_pem.as_bytes()).err();
    let wrong =
        wrong.map(|error| field("/client_certificates/ca_pem", "invalid_certificate", error.to_string()));
    let mut errors: Vec<_> = wrong.into_iter().collect();
    if asked.mode == ClientCertificateMode::Require && !spec.https_redirect {
        let message =
            "must be true where client certificates are required: over plain HTTP nobody can show one";
        errors.push(field("/https_redirect", "conflict", message));
    }
    errors
}

fn early_data(spec: &DomainSpec) -> Option<FieldError> {
    let why = match (spec.early_data, spec.http3, &spec.client_certificates) {
        (false, _, _) | (true, true, None) => return None,
        (true, false, _) => "early data comes over HTTP/3 only: switch HTTP/3 on, or leave early data out",
        (true, true, Some(_)) => {
            "what comes before the end of the handshake comes before the client's certificate; leave early data out"
        }
    };
    Some(field("/early_data", "conflict", why))
}

fn maintenance(asked: &Maintenance) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if asked.text.len() > REASON_BYTES_MAX {
        let message = format!("has {} bytes, at most {REASON_BYTES_MAX}", asked.text.len());
        errors.push(field("/maintenance/text", "too_large", message));
    }
    if !(1..=RETRY_AFTER_SECONDS_MAX).contains(&asked.retry_after_seconds) {
        let message = format!("must be from 1 to {RETRY_AFTER_SECONDS_MAX} (a week)");
        errors.push(field("/maintenance/retry_after_seconds", "out_of_range", message));
    }
    errors
}

/// An absolute URL without anything that hides what it is.
pub(crate) fn absolute(text: &str) -> Result<Url, String> {
    if text.len() > URL_BYTES_MAX {
        return Err(format!("has {} bytes, at most {URL_BYTES_MAX}", text.len()));
    }
    if let Some(odd) = text.chars().find(|&c| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(format!("holds {odd:?}, which no URL may hold"));
    }
    let url = Url::parse(text).map_err(|error| format!("is not an absolute URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password".to_owned());
    }
    Ok(url)
}

fn is_authority(text: &str) -> bool {
    let parsed = text.parse::<Authority>();
    text.len() <= HEADER_BYTES_MAX
        && parsed.is_ok_and(|authority| !authority.as_str().contains('@'))
        && format!("http://{text}/").parse::<Uri>().is_ok_and(|uri| uri.path() == "/")
}

fn cells(at: &str, cells: &[CellId]) -> Vec<FieldError> {
    let unique: HashSet<&CellId> = cells.iter().collect();
    let mut errors = Vec::new();
    if cells.len() > CELLS_OF_NAME_MAX {
        errors.push(field(at, "too_many", format!("at most {CELLS_OF_NAME_MAX} cells")));
    }
    if unique.len() != cells.len() {
        errors.push(field(at, "duplicate", "names a cell twice"));
    }
    errors
}

/// What the limits of the CAs that a tenant's names may go to bear, said in numbers. `hostname`: where it is for one name.
pub(crate) fn borne_cells(
    cells: &[CellId],
    named: &[String],
    configured: &[IssuerConfig],
    hostname: Option<&str>,
) -> Option<FieldError> {
    let is_asked = |issuer: &&IssuerConfig| {
        if named.is_empty() { issuer.by_default } else { named.contains(&issuer.name) }
    };
    let names = [hostname.unwrap_or(ANY_NAME).to_owned()];
    let (issuer, borne) = plan::cells::least(configured.iter().filter(is_asked), &names)?;
    let wanted = cells.iter().collect::<HashSet<_>>().len();
    // More than that is refused whatever CAs let through.
    if wanted <= borne.cells || wanted > CELLS_OF_NAME_MAX {
        return None;
    }
    let message = format!(
        "names {wanted} cells, and issuer {} bears at most {}: each cell is a key of its own and a certificate of exactly the \
         same names, and {}; have more edges in one cell",
        issuer.name,
        borne.cells,
        borne.why()
    );
    Some(field("/cells", "too_many_for_ca", message))
}

/// A tenant chooses among the cells that an operator gave it: each cell is an order more at the CA for the same names, and
/// another tenant's cell is another tenant's edges.
pub(crate) fn cells_of_tenant(wanted: &[CellId], given: &[CellId]) -> Option<FieldError> {
    let foreign = wanted.iter().find(|cell| {
        let is_default = given.is_empty() && cell.as_str() == DEFAULT_CELL;
        !is_default && !given.contains(cell)
    })?;
    let message =
        format!("{foreign} is no cell of this tenant; an operator can add it to the tenant's cells");
    Some(field("/cells", "foreign_cell", message))
}

/// What an operator is told of a cell that does not exist: for a misspelt one a certificate would be ordered that no edge
/// ever serves. Whoever means it makes a join token for it first.
pub(crate) fn unknown_cell(unknown: &CellId, known: &[CellId]) -> FieldError {
    let shown: Vec<&str> = known.iter().take(CELLS_SHOWN_MAX).map(CellId::as_str).collect();
    let more = known.len().saturating_sub(CELLS_SHOWN_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!(
        "no edge has joined {unknown} and no join token was made for it; there is {}{more}; a join token makes a new \
         cell (`portico edge join --cell {unknown}`)",
        shown.join(", ")
    );
    field("/cells", "unknown_cell", message)
}

/// Everything of a tenant. Grants that are `known` already are not judged anew: a later rule would forbid every other change.
pub(crate) fn tenant(spec: &TenantSpec, own: &OwnAddresses, known: &[EgressGrant]) -> Vec<FieldError> {
    let mut errors = cells("/cells", &spec.cells);
    let plain = spec.name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !plain || !(1..=63).contains(&spec.name.len()) {
        errors.push(field("/name", "invalid_name", "must be 1 to 63 of a-z, 0-9 and `-`"));
    }
    if !(1..=DOMAINS_MAX).contains(&spec.domains_max) {
        errors.push(field("/domains_max", "out_of_range", format!("must be from 1 to {DOMAINS_MAX}")));
    }
    let limits = spec.limits.faults().into_iter();
    errors.extend(limits.map(|(name, message)| field(format!("/limits/{name}"), "out_of_range", message)));
    let pages = spec.error_pages.faults().into_iter();
    errors.extend(pages.map(|(below, code, message)| field(format!("/error_pages{below}"), code, message)));
    if spec.egress_grants.len() > GRANTS_MAX {
        errors.push(field("/egress_grants", "too_many", format!("at most {GRANTS_MAX} grants")));
    }
    for (index, grant) in spec.egress_grants.iter().enumerate().filter(|(_, grant)| !known.contains(grant)) {
        errors.extend(grants::check(&format!("/egress_grants/{index}"), grant, own));
    }
    errors
}

/// A suspension that is asked for at `now_ms`.
pub(crate) fn suspension(asked: &Suspension, now_ms: i64) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if asked.reason.len() > REASON_BYTES_MAX {
        let message = format!("has {} bytes, at most {REASON_BYTES_MAX}", asked.reason.len());
        errors.push(field("/reason", "too_large", message));
    }
    if let Some(until) = &asked.until {
        match parse_rfc3339(until) {
            None => {
                errors.push(field("/until", "invalid_time", "must be RFC 3339, such as 2027-01-31T12:00:00Z"))
            }
            Some(until) if until <= now_ms => {
                errors.push(field(
                    "/until",
                    "out_of_range",
                    "lies in the past; leave it out to suspend until resumed",
                ));
            }
            Some(_) => {}
        }
    }
    errors
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
