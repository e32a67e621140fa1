//! Traces: one span for each exchange that is recorded, sent to a collector over OTLP.
//!
//! Which exchanges: those whose caller records its trace (the sampled flag of `traceparent`), of all others that bring no
//! trace a share; a caller that says that it does not record is taken at its word. Callers are strangers, so there is a
//! rate that they cannot exceed; of it a part is for each tenant, whatever others' callers ask for. A worker makes the span
//! and hands it to a queue that is bounded in spans and in bytes; what finds no place, because the collector is slow or
//! dead, is counted and dropped. So nothing of a request is held for a collector but its span. What that may hold of a
//! visitor is [`crate::privacy`]'s to say.
//!
//! Deliberately absent: spans of what the edge does for itself, and TLS to the collector: one beside the edge is asked.

#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod span;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::HeaderMap;
use tokio::sync::mpsc;

#[cfg(feature = "otlp")]
use crate::access_log::AccessRecord;
use crate::{
    clock,
    config::TracesConfig,
    http::{
        trace_context::{SpanContext, TraceParent},
        unique::Unique,
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
    #[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "without the feature there are no spans"))]
    queue: Queue,
    /// Of 2^32 traces that begin here so many are recorded.
    share: u64,
    /// Of all tenants together, and as far as it goes for those beyond their own part: the other half of what may come at
    /// once is for whoever is within it.
    rate: Rate,
    beyond: Rate,
    meter: Meter,
    /// What each tenant has for itself.
    of_tenant: Rate,
    metrics: Arc<Metrics>,
}

struct Queue {
    spans: mpsc::Sender<Waiting>,
    bytes: Arc<AtomicUsize>,
    privacy: Privacy,
}

/// A span that waits for the collector, encoded.
struct Waiting {
    encoded: Box<[u8]>,
    /// Of all that wait.
    bytes: Arc<AtomicUsize>,
}

/// What sends; runs on the service thread.
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "without the feature no file asks for one"))]
pub struct Exporter {
    config: TracesConfig,
    spans: mpsc::Receiver<Waiting>,
    metrics: Arc<Metrics>,
    /// [`limits::SPANS_TRIED_FOR`], unless a test wants to see it run out.
    tried_for: Duration,
}

impl Traces {
    /// Without a configuration nothing is recorded.
    pub fn new(
        config: Option<&TracesConfig>,
        privacy: &Privacy,
        metrics: &Arc<Metrics>,
    ) -> (Self, Option<Exporter>) {
        let Some(config) = config else { return (Self { recording: None }, None) };
        let (sender, spans) = mpsc::channel(limits::SPANS_QUEUE);
        let most = config.spans_per_second;
        let of_tenant = most / limits::SPANS_TENANT_PART;
        let recording = Recording {
            queue: Queue { spans: sender, bytes: Arc::default(), privacy: privacy.clone() },
            share: config.share,
            rate: Rate::new(most, most),
            beyond: Rate::new(most, most / 2),
            meter: Meter::default(),
            of_tenant: Rate::new(of_tenant, of_tenant),
            metrics: Arc::clone(metrics),
        };
        let (config, metrics, tried_for) = (config.clone(), Arc::clone(metrics), limits::SPANS_TRIED_FOR);
        (Self { recording: Some(recording) }, Some(Exporter { config, spans, metrics, tried_for }))
    }

    /// The span of a request that is to be recorded, if [`Self::admits`] lets it.
    pub fn begin(&self, headers: &HeaderMap, unique: Unique) -> Option<SpanContext> {
        let recording = self.recording.as_ref()?;
        let parent = TraceParent::of(headers);
        let chance = mixed(unique.low);
        let wanted = parent.map_or((chance >> 32) < recording.share, |parent| parent.sampled);
        if !wanted {
            return None;
        }
        let span = mixed(chance ^ unique.high).max(1).to_be_bytes();
        Some(match parent {
            Some(parent) => SpanContext { trace: parent.trace, span, parent: Some(parent.span) },
            // As the request is named, so that who has the one finds the other.
            None => SpanContext { trace: unique.bytes(), span, parent: None },
        })
    }

    /// Whether there is room for one more span of the tenant whose meter this is; absent: of nobody's. What is refused is
    /// counted.
    pub(crate) fn admits(&self, tenant: Option<&Meter>) -> bool {
        let Some(recording) = &self.recording else { return false };
        let now = clock::uptime();
        let is_within_part = tenant.is_some_and(|meter| meter.take(recording.of_tenant, now).is_ok());
        let rate = if is_within_part { recording.rate } else { recording.beyond };
        let admitted = recording.meter.take(rate, now).is_ok();
        if !admitted {
            recording.metrics.spans_dropped.increment(1);
        }
        admitted
    }

    /// The end of an exchange with a span.
    #[cfg(feature = "otlp")]
    pub(crate) fn write(&self, record: &AccessRecord) {
        let Some(recording) = &self.recording else { return };
        let Some(span) = span::of(record, &recording.queue.privacy) else { return };
        if !recording.queue.push(&span) {
            recording.metrics.spans_dropped.increment(1);
        }
    }
}

#[cfg(feature = "otlp")]
impl Queue {
    /// False: there is no place.
    fn push(&self, span: &impl prost::Message) -> bool {
        let encoded: Box<[u8]> = span.encode_to_vec().into();
        let before = self.bytes.fetch_add(encoded.len(), Ordering::Relaxed);
        let fits = before + encoded.len() <= limits::SPANS_QUEUE_BYTES;
        // Dropped, it gives its bytes back.
        let waiting = Waiting { encoded, bytes: Arc::clone(&self.bytes) };
        fits && self.spans.try_send(waiting).is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.encoded.len(), Ordering::Relaxed);
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
        traces.begin(&headers, Unique { high: 7, low: number })
    }

    fn admitted(traces: &Traces, tenant: Option<&Meter>, asked: usize) -> usize {
        (0..asked).filter(|_| traces.admits(tenant)).count()
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

    /// What a loop's own time has earned at so many a second, and one more.
    fn earned(begun: std::time::Instant, per_second: u128) -> usize {
        usize::try_from(begun.elapsed().as_micros() * per_second / 1_000_000).unwrap() + 1
    }

    #[test]
    fn strangers_cannot_have_more_recorded_than_the_rate() {
        let (traces, tenants) = (traces(0, 320), std::array::from_fn::<_, 64, _>(|_| Meter::default()));
        let begun = clock::now();
        let count: usize = tenants.iter().map(|tenant| admitted(&traces, Some(tenant), 100)).sum();
        // As many at once as a second has.
        assert!((320..=320 + earned(begun, 320)).contains(&count), "{count}");
    }

    #[test]
    fn a_loud_tenant_leaves_each_other_its_part_of_the_spans() {
        let part = usize::try_from(limits::SPANS_TENANT_PART).unwrap();
        let traces = traces(0, limits::SPANS_TENANT_PART * 10);
        let (loud, begun) = (Meter::default(), clock::now());
        let taken = admitted(&traces, Some(&loud), 10_000);
        let nobodys = admitted(&traces, None, 10_000);
        let most = 10 * part / 2 + earned(begun, 10 * part as u128);
        assert!((10 * part / 2..=most).contains(&(taken + nobodys)), "{taken} and {nobodys}");
        // Half of them all at once, each within its part.
        for tenant in std::iter::repeat_with(Meter::default).take(part / 2) {
            assert_eq!(admitted(&traces, Some(&tenant), 10), 10);
        }
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn spans_that_wait_are_bounded_in_number_and_in_bytes() {
        use opentelemetry_proto::tonic::trace::v1::Span;

        let config =
            TracesConfig { collector: "http://127.0.0.1:1".to_owned(), share: 0, spans_per_second: 1 };
        let new = || Traces::new(Some(&config), &Privacy::default(), &Arc::new(Metrics::register()));
        let pushed = |traces: &Traces, span: &Span| {
            let queue = &traces.recording.as_ref().unwrap().queue;
            (0..2 * limits::SPANS_QUEUE).filter(|_| queue.push(span)).count()
        };
        let (traces, exporter) = new();
        assert_eq!(pushed(&traces, &Span::default()), limits::SPANS_QUEUE);
        drop((traces, exporter));
        let (traces, exporter) = new();
        let span = Span { name: "x".repeat(16 * 1024), ..Span::default() };
        let bytes = pushed(&traces, &span) * prost::Message::encoded_len(&span);
        let room = limits::SPANS_QUEUE_BYTES - bytes;
        assert!(room < prost::Message::encoded_len(&span), "{bytes}");
        let mut exporter = exporter.unwrap();
        while exporter.spans.try_recv().is_ok() {}
        assert_eq!(traces.recording.as_ref().unwrap().queue.bytes.load(Ordering::Relaxed), 0);
    }
}
