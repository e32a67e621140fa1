//! The control plane's metrics: every name in one place. No label comes from a client: no host, no tenant, no path.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::StatusCode;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Requests to the API, by `method` and `class` of the answer.
const REQUESTS: &str = "portico_control_plane_api_requests_total";
/// How long they took, seconds, by `method`.
const REQUEST_SECONDS: &str = "portico_control_plane_api_request_seconds";
/// Checks of ownership by `result`.
const CHECKS: &str = "portico_control_plane_ownership_checks_total";

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
