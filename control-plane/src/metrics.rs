//! The control plane's metrics: every name in one place, but for those of [`crate::distribution`]. No label comes from a
//! client: no host, no tenant, no path.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::StatusCode;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::store::figures::DOMAIN_STANDINGS;
use crate::store::order::OrderState;
use crate::store::presence::Counts;
use crate::store::renewals::Standing;

/// Requests to the API, by `method` and `class` of the answer.
const REQUESTS: &str = "portico_control_plane_api_requests_total";
/// How long they took, seconds, by `method`.
const REQUEST_SECONDS: &str = "portico_control_plane_api_request_seconds";
/// Checks of ownership by `result`.
const CHECKS: &str = "portico_control_plane_ownership_checks_total";
/// Pre-flights by `result`.
const PREFLIGHTS: &str = "portico_preflights_total";
/// Jumps of this control plane's wall clock.
const CLOCK_JUMPS: &str = "portico_control_plane_clock_jumps_total";
/// Orders that run at this moment.
const ORDERS_RUNNING: &str = "portico_orders_running";
/// Orders put off, by `reason`.
const ORDERS_POSTPONED: &str = "portico_orders_postponed_total";
/// Orders that are over without a certificate, by `reason`.
const ORDERS_FAILED: &str = "portico_orders_failed_total";
/// Certificates by `issuer`, as the configuration names it.
const CERTIFICATES_ISSUED: &str = "portico_certificates_issued_total";
/// From when an order was planned until its certificate was there, seconds, by `issuer`; waits for limits included.
const ORDER_SECONDS: &str = "portico_order_seconds";
/// Orders that are not over, by `state`.
const ORDERS: &str = "portico_orders";
/// What a limit of a CA still lets through for a whole `issuer`, by `limit`; those that are not limited are not there.
const RATE_LIMIT_REMAINING: &str = "portico_rate_limit_remaining";
/// Domains by `standing`: `suspended`, `unproved`, `uncertified`, `certified`.
const DOMAINS: &str = "portico_domains";
/// From the CA's answer to the ack of the last live edge, seconds.
const CERTIFICATE_DEPLOY_SECONDS: &str = "portico_certificate_deploy_seconds";
/// 1 while an `issuer` is away: its orders failed for a while and none was issued.
const ISSUER_AWAY: &str = "portico_issuer_away";
/// Requests to CAs by `kind` and class of `status`.
const ACME_REQUESTS: &str = "portico_acme_requests_total";

/// Certificates in use, by `state`; one may count in several: `live`, `by_ari`, `due`, `overdue` (beyond the CA's window),
/// `late` (a quarter of the time from renewal to end has passed), `expired`, `edge_identity_late`.
const CERTIFICATES: &str = "portico_certificates";
/// Watched names by `state`: `here`, `away` (seen elsewhere), `left` (in their time of grace), `retired`.
const PRESENCES: &str = "portico_watched_names";
/// Events sent to webhooks by `result`.
const WEBHOOKS_SENT: &str = "portico_webhooks_sent_total";
/// Backup certificates, one for each group and cell, by `state`: `staged`, `shown`, and `wanted` of such as are not there.
const BACKUP_CERTIFICATES: &str = "portico_backup_certificates";
/// Questions to CAs when to renew, by `result`.
const RENEWAL_INFO: &str = "portico_renewal_info_total";
/// Windows that a CA has moved since they were first told.
const WINDOWS_MOVED: &str = "portico_renewal_windows_moved_total";
/// Orders that the CA would not have as the replacement of a certificate; they went on without.
const REPLACEMENTS_REFUSED: &str = "portico_replacements_refused_total";

/// 1 while this control plane does the `work` that one of those on a database does at a time.
const WORKS: &str = "portico_control_plane_works";

/// Connections of strangers that had to go because others came, by `listener`: `dns`, `distribution`.
const STRANGERS_PUSHED_OUT: &str = "portico_control_plane_strangers_pushed_out_total";

/// The process's recorder; installed by the first control plane in the process, unless the process has another.
pub(crate) fn handle() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).as_ref()
}

/// Gives the names their texts.
pub(crate) fn describe() {
    handle();
    metrics::describe_counter!(REQUESTS, "Requests to the API");
    metrics::describe_histogram!(REQUEST_SECONDS, metrics::Unit::Seconds, "Duration of requests to the API");
    metrics::describe_counter!(CHECKS, "Checks of ownership");
}

pub(crate) fn method(method: &str) -> &'static str {
    ["GET", "POST", "PATCH", "DELETE"].into_iter().find(|&known| known == method).unwrap_or("other")
}

pub(crate) fn request(method: &'static str, status: StatusCode, took: Duration) {
    let class = match status.as_u16() {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    metrics::counter!(REQUESTS, "method" => method, "class" => class).increment(1);
    metrics::histogram!(REQUEST_SECONDS, "method" => method).record(took.as_secs_f64());
}

pub(crate) fn ownership_check(result: &'static str) {
    metrics::counter!(CHECKS, "result" => result).increment(1);
}

pub(crate) fn preflight(passed: bool) {
    let result = if passed { "passed" } else { "failed" };
    metrics::counter!(PREFLIGHTS, "result" => result).increment(1);
}

pub(crate) fn clock_jumped() {
    metrics::counter!(CLOCK_JUMPS).increment(1);
}

pub(crate) fn orders_running(count: usize) {
    metrics::gauge!(ORDERS_RUNNING).set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

pub(crate) fn order_postponed(reason: &'static str) {
    metrics::counter!(ORDERS_POSTPONED, "reason" => reason).increment(1);
}

pub(crate) fn order_failed(reason: &'static str) {
    metrics::counter!(ORDERS_FAILED, "reason" => reason).increment(1);
}

pub(crate) fn certificate_issued(issuer: &str, took: Duration) {
    metrics::counter!(CERTIFICATES_ISSUED, "issuer" => issuer.to_owned()).increment(1);
    metrics::histogram!(ORDER_SECONDS, "issuer" => issuer.to_owned()).record(took.as_secs_f64());
}

/// What is not among `counts` is none.
pub(crate) fn orders(counts: &[(String, u64)]) {
    for state in OrderState::OPEN {
        metrics::gauge!(ORDERS, "state" => state).set(count_of(counts, state));
    }
}

/// The same.
pub(crate) fn domains(counts: &[(String, u64)]) {
    for standing in DOMAIN_STANDINGS {
        metrics::gauge!(DOMAINS, "standing" => standing).set(count_of(counts, standing));
    }
}

pub(crate) fn rate_limit_remaining(issuer: &str, limit: &'static str, remaining: u32) {
    metrics::gauge!(RATE_LIMIT_REMAINING, "issuer" => issuer.to_owned(), "limit" => limit)
        .set(f64::from(remaining));
}

fn count_of(counts: &[(String, u64)], word: &str) -> f64 {
    let found = counts.iter().find(|(of, _)| of == word).map_or(0, |(_, count)| *count);
    f64::from(u32::try_from(found).unwrap_or(u32::MAX))
}

pub(crate) fn issuer_away(issuer: &str, away: bool) {
    metrics::gauge!(ISSUER_AWAY, "issuer" => issuer.to_owned()).set(f64::from(u8::from(away)));
}

pub(crate) fn backup_certificates(state: &'static str, count: usize) {
    metrics::gauge!(BACKUP_CERTIFICATES, "state" => state)
        .set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

pub(crate) fn certificate_deployed(took: Duration) {
    metrics::histogram!(CERTIFICATE_DEPLOY_SECONDS).record(took.as_secs_f64());
}

pub(crate) fn acme_request(kind: &'static str, status: &'static str) {
    metrics::counter!(ACME_REQUESTS, "kind" => kind, "status" => status).increment(1);
}

pub(crate) fn certificates(standing: &Standing, identities_late: usize) {
    let states = [
        ("live", standing.live),
        ("by_ari", standing.by_ari),
        ("due", standing.due),
        ("overdue", standing.overdue),
        ("late", standing.late),
        ("expired", standing.expired),
        ("edge_identity_late", u64::try_from(identities_late).unwrap_or(u64::MAX)),
    ];
    for (state, count) in states {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        metrics::gauge!(CERTIFICATES, "state" => state).set(count);
    }
}

pub(crate) fn webhook_sent(taken: bool) {
    let result = if taken { "taken" } else { "failed" };
    metrics::counter!(WEBHOOKS_SENT, "result" => result).increment(1);
}

pub(crate) fn presences(counts: &Counts) {
    let states =
        [("here", counts.here), ("away", counts.away), ("left", counts.left), ("retired", counts.retired)];
    for (state, count) in states {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        metrics::gauge!(PRESENCES, "state" => state).set(count);
    }
}

pub(crate) fn renewal_info(result: &'static str) {
    metrics::counter!(RENEWAL_INFO, "result" => result).increment(1);
}

pub(crate) fn works(work: &'static str, does: bool) {
    metrics::gauge!(WORKS, "work" => work).set(if does { 1.0 } else { 0.0 });
}

pub(crate) fn window_moved() {
    metrics::counter!(WINDOWS_MOVED).increment(1);
}

pub(crate) fn replacement_refused() {
    metrics::counter!(REPLACEMENTS_REFUSED).increment(1);
}

pub(crate) fn stranger_pushed_out(listener: &'static str) {
    metrics::counter!(STRANGERS_PUSHED_OUT, "listener" => listener).increment(1);
}
