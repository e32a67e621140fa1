//! Routes: what each matches, changes and does, and whether a request can reach it.

use axum::http::HeaderValue;
use portico_api::rule::{self, ActionKind, OwnTarget, ROUTES_MAX, Rule, RuleFault, RuleText};
use portico_api::v1::{Action, EgressGrant, FieldError, Redirect, Route, StaticAnswer};
use portico_cert_store::NamePattern;
use portico_prober::egress::EgressPolicy;
use url::Url;

use super::{HEADER_BYTES_MAX, absolute, proxy};
use crate::config::FleetConfig;
use crate::http::fault::field;

/// One static answer; the same bound as at the edges.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// All routes of a domain, up to the bound on their number.
pub(super) fn check_all(routes: &[Route], policy: &EgressPolicy, grants: &[EgressGrant]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut rules = Vec::with_capacity(routes.len().min(ROUTES_MAX));
    for (index, route) in routes.iter().enumerate().take(ROUTES_MAX) {
        let at = format!("/routes/{index}");
        let text = RuleText::from(route);
        let wrong = |fault: RuleFault| {
            field(format!("{at}/{}{}", fault.part.name(), fault.below), fault.code, fault.message)
        };
        match Rule::parse(&text, kind(&route.action)) {
            Ok(rule) => rules.push((index, rule)),
            Err(faults) => errors.extend(faults.into_iter().map(wrong)),
        }
        errors.extend(text.settled_by_edges().into_iter().map(wrong));
        errors.extend(action(&format!("{at}/action"), &route.action, policy, grants));
    }
    for (late, early) in rule::unreachable(rules.iter().map(|(_, rule)| rule)) {
        let (late, early) = (rules[late].0, rules[early].0);
        let message = format!(
            "is never reached: the first rule that matches is taken, and /routes/{early} takes all its requests"
        );
        errors.push(field(format!("/routes/{late}/path_prefix"), "unreachable", message));
    }
    errors
}

/// Redirects of `name` that lead back to themselves on the edges' ports. Where a wildcard's lead is another domain's matter.
pub(crate) fn circular(name: &NamePattern, routes: &[Route], fleet: &FleetConfig) -> Vec<FieldError> {
    let NamePattern::Exact(name) = name else { return Vec::new() };
    let own = |url: &Url| {
        let port = if url.scheme() == "https" { fleet.https_port } else { fleet.http_port };
        url.host_str() == Some(name.as_str()) && url.port_or_known_default() == Some(port)
    };
    let mut rules = Vec::with_capacity(routes.len().min(ROUTES_MAX));
    for route in routes.iter().take(ROUTES_MAX) {
        // What is wrong with a rule is told by `check_all`, and its circles then.
        let Ok(rule) = Rule::parse(&RuleText::from(route), kind(&route.action)) else { return Vec::new() };
        let target = match &route.action {
            Action::Redirect(redirect) => {
                absolute(&redirect.to).ok().filter(own).map(|url| (url, redirect.keep_path))
            }
            Action::Proxy(_) | Action::Static(_) => None,
        };
        rules.push((rule, target));
    }
    let judged = rules.iter().map(|(rule, target)| {
        let target =
            target.as_ref().map(|(url, keep_path)| OwnTarget { path: url.path(), keep_path: *keep_path });
        (rule, target)
    });
    let found = rule::circular(judged).into_iter();
    let message = "leads back to this route itself: its visitors would never get anywhere";
    found.map(|index| field(format!("/routes/{index}/action/to"), "circular", message)).collect()
}

fn kind(action: &Action) -> ActionKind {
    match action {
        Action::Proxy(_) => ActionKind::Proxy,
        Action::Redirect(redirect) => ActionKind::Redirect { keep_path: redirect.keep_path },
        Action::Static(_) => ActionKind::Static,
    }
}

fn action(at: &str, action: &Action, policy: &EgressPolicy, grants: &[EgressGrant]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match action {
        Action::Proxy(proxy) => errors.extend(proxy::check(at, proxy, policy, grants)),
        Action::Redirect(Redirect { to, status, keep_path, keep_query }) => {
            let keeps = *keep_path || keep_query.unwrap_or(*keep_path);
            errors.extend(redirect(&format!("{at}/to"), to, keeps).err());
            if let Some(message) = rule::redirect_status_fault(*status) {
                errors.push(field(format!("{at}/status"), "invalid_status", message));
            }
        }
        Action::Static(StaticAnswer { status, content_type, body }) => {
            if let Some(message) = rule::static_status_fault(*status) {
                errors.push(field(format!("{at}/status"), "invalid_status", message));
            }
            if content_type.len() > HEADER_BYTES_MAX || HeaderValue::from_str(content_type).is_err() {
                let message = "must be a media type of at most 255 visible characters";
                errors.push(field(format!("{at}/content_type"), "invalid_header", message));
            }
            if *status == 204 && !body.is_empty() {
                let message = "must be empty: an answer with status 204 has no body";
                errors.push(field(format!("{at}/body"), "not_for_this_status", message));
            }
            if body.len() > BODY_BYTES_MAX {
                let message =
                    format!("has {} bytes, at most {BODY_BYTES_MAX}; put it on an origin", body.len());
                errors.push(field(format!("{at}/body"), "too_large", message));
            }
        }
    }
    errors
}

/// `keeps`: something of the request is put behind the URL.
fn redirect(at: &str, text: &str, keeps: bool) -> Result<(), FieldError> {
    let url = absolute(text).map_err(|message| field(at, "invalid_url", message))?;
    if keeps && (url.query().is_some() || url.fragment().is_some()) {
        let message =
            "must have neither query nor fragment: with keep_path or keep_query the request's own follow";
        return Err(field(at, "invalid_url", message));
    }
    Ok(())
}
