//! ACME Renewal Information (RFC 9773): suggested windows, and orders that replace a certificate.
//!
//! Windows are Boulder's: around two thirds of the lifetime (half of one below ten days), 2 % of it wide, and in the
//! past for what was revoked. The management listener sets others: in the past, as before a mass revocation, or absurd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use http::header::RETRY_AFTER;
use serde::Deserialize;
use serde_json::json;
use x509_parser::extensions::ParsedExtension;

use crate::book::{Book, Certificate, OrderStatus};
use crate::ca::Ca;
use crate::clock::Moment;
use crate::problem::{Kind, Problem};

/// A window that somebody set. Texts as they are sent: they may be no window at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: String,
    pub(crate) end: String,
    pub(crate) explanation_url: Option<String>,
}

/// Which windows to set, and how; over the management listener.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetWindows {
    /// Certificates with one of these names; absent: all there are.
    names: Option<BTreeSet<String>>,
    /// RFC 3339, or any text; absent: an hour ago and half an hour ago, as Boulder says after an incident.
    start: Option<String>,
    end: Option<String>,
    explanation_url: Option<String>,
    /// From now on these certificates have been replaced by an order of somebody else's.
    #[serde(default)]
    already_replaced: bool,
}

/// `GET /acme/renewal-info/{id}`: unauthenticated.
pub(crate) async fn renewal_info(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let now = ca.clock.now();
    let book = ca.book();
    let certificate = find(&book, &id)?;
    let window = window_of(certificate, now);
    let mut document = json!({ "suggestedWindow": { "start": window.start, "end": window.end } });
    if let Some(url) = window.explanation_url {
        document["explanationURL"] = json!(url);
    }
    let mut response = Json(document).into_response();
    let seconds = ca.config.ari_retry_after.as_secs();
    if seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    Ok(response)
}

/// Sets windows; answers of how many certificates.
pub(crate) fn set_windows(book: &mut Book, wanted: SetWindows, now: Moment) -> usize {
    let fallback = past(now);
    let window = Window {
        start: wanted.start.unwrap_or(fallback.start),
        end: wanted.end.unwrap_or(fallback.end),
        explanation_url: wanted.explanation_url,
    };
    let hit = |certificate: &&mut Certificate| {
        wanted.names.as_ref().is_none_or(|names| !names.is_disjoint(&certificate.names))
    };
    let set = |certificate: &mut Certificate| {
        certificate.window = Some(window.clone());
        certificate.replaced |= wanted.already_replaced;
    };
    book.certificates.values_mut().filter(hit).map(set).count()
}

/// The predecessor that an order names (RFC 9773 section 5): of the same account, with at least one name in common, not
/// yet replaced by an order that is open or issued.
///
/// # Errors
/// `malformed`, `unauthorized` or `alreadyReplaced`, as Boulder has them.
pub(crate) fn predecessor<'a>(
    book: &'a Book,
    account: &str,
    names: &BTreeSet<String>,
    id: &str,
    now: Moment,
) -> Result<&'a Certificate, Problem> {
    let certificate = find(book, id)?;
    if certificate.account != account {
        return Err(Problem::unauthorized(
            "the account did not request the certificate that the order replaces",
        ));
    }
    if certificate.names.is_disjoint(names) {
        return Err(Problem::malformed("no name of this order is on the certificate that it replaces"));
    }
    let by = book.replaced_by.get(id).and_then(|order| book.orders.get(order));
    if certificate.replaced || by.is_some_and(|order| book.order_status(order, now) != OrderStatus::Invalid) {
        let detail = format!("another order replaces the certificate {id}");
        return Err(Problem::new(Kind::AlreadyReplaced, detail));
    }
    Ok(certificate)
}

/// Whether the suggested window has begun and has not ended.
pub(crate) fn is_open(certificate: &Certificate, now: Moment) -> bool {
    let window = window_of(certificate, now);
    // All in UTC and of one form, so their order is that of the texts.
    let now = now.rfc3339();
    window.start <= now && now < window.end
}

fn window_of(certificate: &Certificate, now: Moment) -> Window {
    match &certificate.window {
        Some(window) => window.clone(),
        None if certificate.revoked.is_some() => past(now),
        None => suggested(certificate.not_before, certificate.not_after),
    }
}

/// What a certificate is called (RFC 9773 section 4.1); `None` without an authority key identifier.
pub(crate) fn certificate_id(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let authority = certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(authority) = extension.parsed_extension() else {
            return None;
        };
        authority.key_identifier.clone()
    })?;
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Some(format!("{}.{}", encode(authority.0), encode(certificate.raw_serial())))
}

fn find<'a>(book: &'a Book, id: &str) -> Result<&'a Certificate, Problem> {
    let well_formed = id.split_once('.').is_some_and(|(authority, serial)| {
        [authority, serial].iter().all(|part| !part.is_empty() && BASE64_URL_SAFE_NO_PAD.decode(part).is_ok())
    });
    if !well_formed {
        return Err(Problem::malformed("a certificate is named by base64url of key identifier, '.', serial"));
    }
    let found = book.certificate_of_id.get(id).and_then(|certificate| book.certificates.get(certificate));
    found.ok_or_else(|| Problem::not_found("certificate"))
}

fn suggested(not_before: Moment, not_after: Moment) -> Window {
    let lifetime = not_after.since(not_before);
    let left = if lifetime < Duration::from_secs(10 * 86_400) { lifetime / 2 } else { lifetime / 3 };
    let (ideal, margin) = (not_after.minus(left), lifetime / 100);
    Window { start: ideal.minus(margin).rfc3339(), end: ideal.plus(margin).rfc3339(), explanation_url: None }
}

fn past(now: Moment) -> Window {
    let minutes = |n: u64| now.minus(Duration::from_secs(n * 60)).rfc3339();
    Window { start: minutes(60), end: minutes(30), explanation_url: None }
}
