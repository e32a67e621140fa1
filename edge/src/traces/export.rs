//! Sends spans to the collector: OTLP over gRPC, many at a time, one call after the other.
//!
//! What the collector cannot take now is held and sent again; meanwhile the queue fills, and workers drop and count.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{Exporter, span};
use crate::{access_log::AccessRecord, limits};

/// The version of the conventions that names of attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

impl Exporter {
    /// Until told to end; then what is there is sent once more.
    pub async fn run(mut self, ends: CancellationToken) {
        let Ok(endpoint) = Endpoint::from_shared(self.config.collector.clone()) else { return };
        let endpoint =
            endpoint.connect_timeout(limits::SPANS_CONNECT_DEADLINE).timeout(limits::SPANS_DEADLINE);
        let mut client = TraceServiceClient::new(endpoint.connect_lazy());
        let mut batch = Vec::new();
        while self.collect(&mut batch, &ends).await {
            let request = self.request(&batch);
            tokio::select! {
                () = self.send(&mut client, request, batch.len()) => batch.clear(),
                () = ends.cancelled() => break,
            }
        }
        self.send_last(&mut client, batch).await;
    }

    /// Waits for spans, and a moment longer for more. False: told to end.
    async fn collect(&mut self, batch: &mut Vec<Arc<AccessRecord>>, ends: &CancellationToken) -> bool {
        let collecting = async {
            let most = limits::SPANS_BATCH;
            if self.records.recv_many(batch, most).await == 0 {
                return false;
            }
            let more = async {
                while batch.len() < most && self.records.recv_many(batch, most - batch.len()).await > 0 {}
            };
            let _ = tokio::time::timeout(limits::SPANS_GATHER, more).await;
            true
        };
        tokio::select! {
            collected = collecting => collected,
            () = ends.cancelled() => false,
        }
    }

    async fn send(
        &self,
        client: &mut TraceServiceClient<Channel>,
        request: ExportTraceServiceRequest,
        spans: usize,
    ) {
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

    async fn send_last(
        &mut self,
        client: &mut TraceServiceClient<Channel>,
        mut batch: Vec<Arc<AccessRecord>>,
    ) {
        self.records.close();
        while let Ok(record) = self.records.try_recv() {
            batch.push(record);
        }
        if batch.is_empty() {
            return;
        }
        let sending = async {
            for spans in batch.chunks(limits::SPANS_BATCH) {
                self.send(client, self.request(spans), spans.len()).await;
            }
        };
        if tokio::time::timeout(limits::SPANS_FINISH_DEADLINE, sending).await.is_err() {
            tracing::warn!("traces: the last spans could not be sent in time");
        }
    }

    fn request(&self, batch: &[Arc<AccessRecord>]) -> ExportTraceServiceRequest {
        let spans = batch.iter().filter_map(|record| span::of(record, &self.privacy)).collect();
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
}

/// Worth another try (OTLP specification, OTLP/gRPC response). A message that is too large for the collector is not.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            // The connection broke, or could not be made.
            | Code::Unknown
    )
}
