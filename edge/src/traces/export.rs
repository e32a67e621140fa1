//! Sends spans to the collector: OTLP over gRPC, many at a time, one call after the other.
//!
//! What the collector cannot take now is tried again for a while; meanwhile the queue fills, and workers drop and count.

use std::error::Error as _;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{Exporter, Waiting, span};
use crate::limits;

/// The version of the conventions that names of attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";
/// What a message has beside one span's bytes: a tag and a length.
const SPAN_FRAME_BYTES: usize = 6;

type Client = TraceServiceClient<Channel>;

impl Exporter {
    /// Until told to end; then what is there is sent once more.
    pub async fn run(mut self, ends: CancellationToken) {
        let Ok(endpoint) = Endpoint::from_shared(self.config.collector.clone()) else { return };
        let endpoint =
            endpoint.connect_timeout(limits::SPANS_CONNECT_DEADLINE).timeout(limits::SPANS_DEADLINE);
        let mut client = TraceServiceClient::new(endpoint.connect_lazy());
        let mut spans = Vec::new();
        while self.collect(&mut spans, &ends).await {
            tokio::select! {
                () = self.send_all(&mut client, &mut spans) => {}
                () = ends.cancelled() => break,
            }
        }
        self.send_last(&mut client, spans).await;
    }

    /// Waits for spans, and a moment longer for more. False: told to end.
    async fn collect(&mut self, spans: &mut Vec<Waiting>, ends: &CancellationToken) -> bool {
        let collecting = async {
            let most = limits::SPANS_BATCH;
            if self.spans.recv_many(spans, most).await == 0 {
                return false;
            }
            let more = async {
                while spans.len() < most && self.spans.recv_many(spans, most - spans.len()).await > 0 {}
            };
            let _ = tokio::time::timeout(limits::SPANS_GATHER, more).await;
            true
        };
        tokio::select! {
            collected = collecting => collected,
            () = ends.cancelled() => false,
        }
    }

    /// In as many calls as it takes; what is done with is taken out.
    async fn send_all(&self, client: &mut Client, spans: &mut Vec<Waiting>) {
        while !spans.is_empty() {
            let count = one_batch(spans);
            let batch = &spans[..count];
            let sending = self.send(client, batch);
            if tokio::time::timeout(self.tried_for, sending).await.is_err() {
                tracing::warn!("traces: the collector does not take {count} spans; they are dropped");
                self.metrics.spans_dropped.increment(count as u64);
            }
            spans.drain(..count);
        }
    }

    async fn send(&self, client: &mut Client, batch: &[Waiting]) {
        let (request, spans) = (request(batch), batch.len());
        let mut pause = limits::SPANS_PAUSE_MIN;
        loop {
            match client.export(request.clone()).await {
                Ok(answer) => {
                    if pause > limits::SPANS_PAUSE_MIN {
                        tracing::info!("traces: the collector takes them again");
                    }
                    let refused = answer.into_inner().partial_success.map_or(0, |part| part.rejected_spans);
                    let refused = u64::try_from(refused).unwrap_or(0).min(spans as u64);
                    self.metrics.spans_dropped.increment(refused);
                    self.metrics.spans_sent.increment(spans as u64 - refused);
                    return;
                }
                Err(status) if !is_passing(&status) => {
                    tracing::warn!(%status, "traces: the collector refuses {spans} spans");
                    self.metrics.spans_dropped.increment(spans as u64);
                    return;
                }
                Err(status) => {
                    if pause == limits::SPANS_PAUSE_MIN {
                        tracing::warn!(%status, collector = self.config.collector, "traces: the collector does not take them; some are held, others dropped and counted");
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(limits::SPANS_PAUSE_MAX);
        }
    }

    async fn send_last(&mut self, client: &mut Client, mut spans: Vec<Waiting>) {
        self.spans.close();
        while let Ok(span) = self.spans.try_recv() {
            spans.push(span);
        }
        let sending = self.send_all(client, &mut spans);
        if tokio::time::timeout(limits::SPANS_FINISH_DEADLINE, sending).await.is_err() {
            tracing::warn!("traces: the last spans could not be sent in time");
        }
    }
}

/// How many of the first go with one call.
fn one_batch(spans: &[Waiting]) -> usize {
    let mut bytes = 0;
    let fits = |span: &&Waiting| {
        bytes += span.encoded.len() + SPAN_FRAME_BYTES;
        bytes <= limits::SPANS_BATCH_BYTES
    };
    spans.iter().take(limits::SPANS_BATCH).take_while(fits).count().max(1)
}

fn request(batch: &[Waiting]) -> ExportTraceServiceRequest {
    let spans = batch.iter().filter_map(|waiting| Span::decode(&*waiting.encoded).ok()).collect();
    let scope = InstrumentationScope {
        name: "portico-edge".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let resource = Resource { attributes: span::of_the_process(), ..Resource::default() };
    let of_scope = ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.to_owned() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![of_scope],
            schema_url: SCHEMA.to_owned(),
        }],
    }
}

/// Worth another try (OTLP specification, "Failures" of OTLP/gRPC): a collector says so by its code, one without room by
/// telling in the details when to come again. A connection that breaks has an error behind it, a collector's answer none.
fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => names_a_time(status) || status.source().is_some(),
        Code::Unknown | Code::Internal => status.source().is_some(),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}

/// `google.rpc.RetryInfo` is among the details. Our own pauses are kept all the same.
fn names_a_time(status: &Status) -> bool {
    const RETRY_INFO: &[u8] = b"google.rpc.RetryInfo";
    status.details().windows(RETRY_INFO.len()).any(|window| window == RETRY_INFO)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicUsize},
        time::Duration,
    };

    use super::*;
    use crate::{clock, config::TracesConfig, metrics::Metrics, privacy::Privacy, traces::Traces};

    fn waiting(bytes: usize) -> Waiting {
        let span = Span { name: "x".repeat(bytes), ..Span::default() };
        let encoded: Box<[u8]> = span.encode_to_vec().into();
        let bytes = Arc::new(AtomicUsize::new(encoded.len()));
        Waiting { encoded, bytes }
    }

    #[test]
    fn only_what_the_specification_lets_be_tried_again_is() {
        let of = |code| Status::new(code, "no");
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::DataLoss, Code::Aborted] {
            assert!(is_passing(&of(code)), "{code:?}");
        }
        for code in [Code::Unknown, Code::Internal, Code::ResourceExhausted, Code::Unimplemented] {
            assert!(!is_passing(&of(code)), "{code:?}");
        }
        let details = b"\x1a\x2a\x0a\x28type.googleapis.com/google.rpc.RetryInfo".to_vec();
        assert!(is_passing(&Status::with_details(Code::ResourceExhausted, "later", details.into())));
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let mut status = of(Code::Unknown);
        status.set_source(Arc::new(broken));
        assert!(is_passing(&status), "the connection broke");
    }

    #[test]
    fn a_batch_is_within_what_collectors_take() {
        let spans: Vec<_> = (0..limits::SPANS_BATCH).map(|_| waiting(16 * 1024)).collect();
        let count = one_batch(&spans);
        let bytes = request(&spans[..count]).encoded_len();
        assert!((limits::SPANS_BATCH_BYTES - 20 * 1024..4 << 20).contains(&bytes), "{count}: {bytes}");
        let small: Vec<_> = (0..2 * limits::SPANS_BATCH).map(|_| waiting(1)).collect();
        assert_eq!(one_batch(&small), limits::SPANS_BATCH);
    }

    /// Nobody listens at the address.
    #[tokio::test]
    async fn a_batch_that_nobody_takes_is_given_up_after_a_while() {
        let collector = "http://127.0.0.1:1".to_owned();
        let config = TracesConfig { collector: collector.clone(), share: 0, spans_per_second: 1 };
        let metrics = Arc::new(Metrics::register());
        let (traces, exporter) = Traces::new(Some(&config), &Privacy::default(), &metrics);
        let mut exporter = exporter.unwrap();
        assert_eq!(exporter.tried_for, limits::SPANS_TRIED_FOR);
        exporter.tried_for = Duration::from_millis(20);
        let mut client = TraceServiceClient::new(Endpoint::from_shared(collector).unwrap().connect_lazy());
        let (mut held, begun) = (vec![waiting(1)], clock::now());
        exporter.send_all(&mut client, &mut held).await;
        assert!(held.is_empty() && begun.elapsed() >= exporter.tried_for);
        drop(traces);
    }
}
