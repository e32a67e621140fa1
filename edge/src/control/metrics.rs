//! Metrics of the control stream; names are part of the contract with dashboards.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, describe_gauge, describe_histogram, gauge, histogram};
use portico_cert_store::Generation;

/// Metric names.
pub mod names {
    pub const CONNECTED: &str = "portico_edge_control_connected";
    pub const CONNECTS: &str = "portico_edge_control_connects_total";
    pub const BATCHES: &str = "portico_edge_control_batches_total";
    pub const NACKS: &str = "portico_edge_control_nacks_total";
    pub const URGENTS: &str = "portico_edge_control_urgents_total";
    pub const EPOCH: &str = "portico_edge_applied_epoch";
    pub const SEQUENCE: &str = "portico_edge_applied_sequence";
    pub const APPLIED_AT: &str = "portico_edge_applied_timestamp_seconds";
    pub const APPLY_SECONDS: &str = "portico_edge_apply_seconds";
    pub const SYNC_LAG: &str = "portico_edge_sync_lag_seconds";
    pub const LAST_GOOD_ERRORS: &str = "portico_edge_last_good_errors_total";
    pub const IDENTITY_NOT_AFTER: &str = "portico_edge_identity_not_after_timestamp_seconds";
    pub const IDENTITY_RENEWALS: &str = "portico_edge_identity_renewals_total";
    pub const USAGE_REPORTS: &str = "portico_edge_usage_reports_total";
    pub const USAGE_ERRORS: &str = "portico_edge_usage_errors_total";
}

/// Handles, made once.
#[derive(Clone)]
pub(super) struct ControlMetrics {
    pub(super) connected: Gauge,
    pub(super) connects_ok: Counter,
    pub(super) connects_failed: Counter,
    pub(super) applied: Counter,
    pub(super) rejected: Counter,
    pub(super) nacks: Counter,
    pub(super) urgents_done: Counter,
    pub(super) urgents_refused: Counter,
    pub(super) last_good_errors: Counter,
    pub(super) renewals_ok: Counter,
    pub(super) renewals_failed: Counter,
    pub(super) usage_reports: Counter,
    pub(super) usage_errors: Counter,
    epoch: Gauge,
    sequence: Gauge,
    applied_at: Gauge,
    apply_seconds: Histogram,
    sync_lag: Gauge,
    identity_not_after: Gauge,
}

impl ControlMetrics {
    pub(super) fn new() -> Self {
        describe_histogram!(names::APPLY_SECONDS, "from a batch of the control plane to its being served");
        describe_gauge!(
            names::SYNC_LAG,
            "since when this edge has not had all that it was sent, or has had no stream; 0 while it has"
        );
        Self {
            connected: gauge!(names::CONNECTED),
            connects_ok: counter!(names::CONNECTS, "result" => "ok"),
            connects_failed: counter!(names::CONNECTS, "result" => "failed"),
            applied: counter!(names::BATCHES, "result" => "applied"),
            rejected: counter!(names::BATCHES, "result" => "rejected"),
            nacks: counter!(names::NACKS),
            urgents_done: counter!(names::URGENTS, "result" => "done"),
            urgents_refused: counter!(names::URGENTS, "result" => "refused"),
            last_good_errors: counter!(names::LAST_GOOD_ERRORS),
            renewals_ok: counter!(names::IDENTITY_RENEWALS, "result" => "ok"),
            renewals_failed: counter!(names::IDENTITY_RENEWALS, "result" => "failed"),
            usage_reports: counter!(names::USAGE_REPORTS),
            usage_errors: counter!(names::USAGE_ERRORS),
            epoch: gauge!(names::EPOCH),
            sequence: gauge!(names::SEQUENCE),
            applied_at: gauge!(names::APPLIED_AT),
            apply_seconds: histogram!(names::APPLY_SECONDS),
            sync_lag: gauge!(names::SYNC_LAG),
            identity_not_after: gauge!(names::IDENTITY_NOT_AFTER),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; generations stay far below 2^53")]
    pub(super) fn set_applied(&self, generation: Generation, now_unix_seconds: u64) {
        self.epoch.set(generation.epoch as f64);
        self.sequence.set(generation.sequence as f64);
        self.applied_at.set(now_unix_seconds as f64);
    }

    pub(super) fn applied_within(&self, took: Duration) {
        self.apply_seconds.record(took.as_secs_f64());
    }

    pub(super) fn set_sync_lag(&self, lag: Duration) {
        self.sync_lag.set(lag.as_secs_f64());
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 stay far below 2^53")]
    pub(super) fn set_identity_not_after(&self, unix_seconds: u64) {
        self.identity_not_after.set(unix_seconds as f64);
    }
}
