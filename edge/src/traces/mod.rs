//! Traces: one span for each exchange that is recorded, sent to a collector over OTLP.
//!
//! Which exchanges: those whose caller records its trace (the sampled flag of `traceparent`), of all others that bring no
//! trace a share; a caller that says that it does not record is taken at its word. Callers are strangers, so there is a
//! rate that they cannot exceed. A worker hands a record to a bounded queue and goes on; what finds no place, because the
//! collector is slow or dead, is counted and dropped. What a span may hold of a visitor is [`crate::privacy`]'s to say.
//!
//! Deliberately absent: spans of what the edge does for itself, and TLS to the collector: one beside the edge is asked.

#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod span;

use std::{fmt, sync::Arc};

use http::HeaderMap;
use tokio::sync::mpsc;

use crate::{
    access_log::AccessRecord,
    clock,
    config::TracesConfig,
    http::{
        trace_context::{SpanContext, TraceParent},
        visitor::Unique,
    },
    limits,
    metrics::Metrics,
    privacy::Privacy,
    rate::{Meter, Rate},
};

/// A worker's end.
pub struct Traces {
    recording: Option<Recording>,
}

struct Recording {
    queue: mpsc::Sender<Arc<AccessRecord>>,
    /// Of 2^32 traces that begin here so many are recorded.
    share: u64,
    rate: Rate,
    meter: Meter,
    metrics: Arc<Metrics>,
}

/// What sends; runs on the service thread.
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "without the feature no file asks for one"))]
pub struct Exporter {
    config: TracesConfig,
    privacy: Privacy,
    records: mpsc::Receiver<Arc<AccessRecord>>,
    metrics: Arc<Metrics>,
}

impl Traces {
    /// Without a configuration nothing is recorded.
    pub fn new(
        config: Option<&TracesConfig>,
        privacy: &Privacy,
        metrics: &Arc<Metrics>,
    ) -> (Self, Option<Exporter>) {
        let Some(config) = config else { return (Self { recording: None }, None) };
        let (queue, records) = mpsc::channel(limits::SPANS_QUEUE);
        let recording = Recording {
            queue,
            share: config.share,
            rate: Rate::new(config.spans_per_second, config.spans_per_second),
            meter: Meter::default(),
            metrics: Arc::clone(metrics),
        };
        let (config, privacy, metrics) = (config.clone(), privacy.clone(), Arc::clone(metrics));
        (Self { recording: Some(recording) }, Some(Exporter { config, privacy, records, metrics }))
    }

    /// The span of a request that is to be recorded.
    pub fn begin(&self, headers: &HeaderMap, unique: Unique) -> Option<SpanContext> {
        let recording = self.recording.as_ref()?;
        let parent = TraceParent::of(headers);
        let chance = mixed(unique.worker ^ unique.number);
        let wanted = parent.map_or((chance >> 32) < recording.share, |parent| parent.sampled);
        if !wanted {
            return None;
        }
        if recording.meter.take(recording.rate, clock::uptime()).is_err() {
            recording.metrics.spans_dropped.increment(1);
            return None;
        }
        let span = mixed(chance ^ unique.worker).max(1).to_be_bytes();
        Some(match parent {
            Some(parent) => SpanContext { trace: parent.trace, span, parent: Some(parent.span) },
            // As the request is named, so that who has the one finds the other.
            None => SpanContext { trace: unique.bytes(), span, parent: None },
        })
    }

    /// The end of an exchange with a span.
    pub fn write(&self, record: Arc<AccessRecord>) {
        let Some(recording) = &self.recording else { return };
        if recording.queue.try_send(record).is_err() {
            recording.metrics.spans_dropped.increment(1);
        }
    }
}

/// SplitMix64's finaliser: numbers in a row become numbers by chance.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl fmt::Debug for Traces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Traces").field("on", &self.recording.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exporter").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(not(feature = "otlp"))]
impl Exporter {
    /// Never: without the feature no configuration asks for it.
    pub async fn run(self, _ends: tokio_util::sync::CancellationToken) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(share: u64, spans_per_second: u64) -> Traces {
        let config = TracesConfig { collector: "http://127.0.0.1:1".to_owned(), share, spans_per_second };
        Traces::new(Some(&config), &Privacy::default(), &Arc::new(Metrics::register())).0
    }

    fn recorded(traces: &Traces, traceparent: Option<&str>, number: u64) -> Option<SpanContext> {
        let mut headers = HeaderMap::new();
        if let Some(value) = traceparent {
            headers.insert("traceparent", value.parse().unwrap());
        }
        traces.begin(&headers, Unique { worker: 7, number })
    }

    #[test]
    fn a_callers_decision_counts_and_others_have_a_share() {
        let (yes, no) = (
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        );
        let none = traces(0, 1_000_000);
        let all = traces(1 << 32, 1_000_000);
        for number in 0..100 {
            assert!(
                recorded(&none, Some(yes), number).is_some() && recorded(&all, Some(no), number).is_none()
            );
            assert!(recorded(&none, None, number).is_none() && recorded(&all, None, number).is_some());
        }
        let span = recorded(&none, Some(yes), 5).unwrap();
        assert_eq!(span.parent, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
        assert_ne!(recorded(&none, Some(yes), 6).unwrap().span, span.span);
        let tenth = traces((1 << 32) / 10, 1_000_000);
        let count = (0..10_000).filter(|number| recorded(&tenth, None, *number).is_some()).count();
        assert!((800..1200).contains(&count), "{count} of 10,000");
    }

    #[test]
    fn strangers_cannot_have_more_recorded_than_the_rate() {
        let traces = traces(0, 10);
        let yes = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let begun = clock::now();
        let count = (0..1000).filter(|number| recorded(&traces, yes, *number).is_some()).count();
        // As many at once as a second has, and those that this loop's own time has earned.
        let earned = usize::try_from(begun.elapsed().as_millis() / 100).unwrap() + 1;
        assert!((10..=10 + earned).contains(&count), "{count}");
    }
}
