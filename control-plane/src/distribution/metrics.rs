//! Names of the distribution's metrics, each counted in one function.

use std::time::Duration;

use portico_cert_store::Generation;

const PUBLISHED_SEQUENCE: &str = "portico_distribution_published_sequence";
const PUBLISHED_EPOCH: &str = "portico_distribution_published_epoch";
const PUBLISHED_RESOURCES: &str = "portico_distribution_published_resources_total";
const PUBLISH_SECONDS: &str = "portico_distribution_publish_seconds";
const PUBLISH_FAILURES: &str = "portico_distribution_publish_failures_total";
const REMOVALS_HELD: &str = "portico_distribution_removals_held_total";
const EDGES_CONNECTED: &str = "portico_distribution_edges_connected";
const BATCHES: &str = "portico_distribution_batches_total";
const EDGES_BEHIND: &str = "portico_distribution_edges_behind";
const SEQUENCES_BEHIND: &str = "portico_distribution_sequences_behind";
const NACKS: &str = "portico_distribution_nacks_total";
const REJECTIONS: &str = "portico_distribution_rejections_total";
const JOINS: &str = "portico_distribution_joins_total";
const USAGE_ROWS: &str = "portico_distribution_usage_rows_total";
const URGENT_NOT_ACKED: &str = "portico_distribution_urgent_not_acked_total";

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; sequences stay far below 2^53")]
pub(super) fn published(resources: usize, generation: Generation, took: Duration) {
    metrics::counter!(PUBLISHED_RESOURCES).increment(resources as u64);
    metrics::gauge!(PUBLISHED_SEQUENCE).set(generation.sequence as f64);
    metrics::gauge!(PUBLISHED_EPOCH).set(generation.epoch as f64);
    metrics::histogram!(PUBLISH_SECONDS).record(took.as_secs_f64());
}

pub(super) fn publish_failed() {
    metrics::counter!(PUBLISH_FAILURES).increment(1);
}

pub(super) fn removals_held(count: usize) {
    metrics::counter!(REMOVALS_HELD).increment(count as u64);
}

pub(super) fn edge_connected() {
    metrics::gauge!(EDGES_CONNECTED).increment(1.0);
}

pub(super) fn edge_disconnected() {
    metrics::gauge!(EDGES_CONNECTED).decrement(1.0);
}

/// Live edges that have not applied what is published, and by how much the last of them is behind.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; sequences stay far below 2^53")]
pub(super) fn edges_behind(edges: usize, sequences: u64) {
    metrics::gauge!(EDGES_BEHIND).set(edges as f64);
    metrics::gauge!(SEQUENCES_BEHIND).set(sequences as f64);
}

/// `kind`: "snapshot" or "delta".
pub(super) fn batch_sent(kind: &'static str) {
    metrics::counter!(BATCHES, "kind" => kind).increment(1);
}

pub(super) fn nacked(count: usize) {
    metrics::counter!(NACKS).increment(count as u64);
}

pub(super) fn rejected() {
    metrics::counter!(REJECTIONS).increment(1);
}

/// `outcome`: "joined" or "refused".
pub(super) fn join(outcome: &'static str) {
    metrics::counter!(JOINS, "outcome" => outcome).increment(1);
}

pub(super) fn urgent_not_acked(edges: usize) {
    metrics::counter!(URGENT_NOT_ACKED).increment(edges as u64);
}

pub(super) fn usage_added(rows: usize) {
    metrics::counter!(USAGE_ROWS, "result" => "added").increment(rows as u64);
}

pub(super) fn usage_unread(rows: usize) {
    metrics::counter!(USAGE_ROWS, "result" => "unread").increment(rows as u64);
}
