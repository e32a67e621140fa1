//! The stream: one conversation with the control plane, from Hello to its end, and the loop that begins the next one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portico_api::distribution::distribution_client::DistributionClient;
use portico_api::distribution::urgent::Action;
use portico_api::distribution::{
    Ack, ControlMessage, Delta, EdgeMessage, Hello, PROTOCOL_VERSION, RenewRequest, RenewResponse, Status,
    Urgent, UrgentAck, control_message, edge_message,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use super::applier::Applier;
use super::backoff::Backoff;
use super::cell_keys::CellKeyFiles;
use super::identity::{Identity, IdentityCertificate, IdentityError, Request};
use super::incoming::Incoming;
use super::key_requests::KeyRequests;
use super::metrics::ControlMetrics;
use super::switch::{Order, Orders};
use super::usage::UsageReporter;
use super::{ControlDeadlines, EdgeStatus, OWN_EPOCH, limits, tls, urgent};
use crate::cache::Cache;
use crate::clock;
use crate::live::{Batch, BatchKind, Live, full_text};

/// All that outlives a stream.
pub(super) struct Syncer {
    pub(super) address: String,
    pub(super) build: String,
    pub(super) deadlines: ControlDeadlines,
    pub(super) identity: Identity,
    pub(super) identity_folder: PathBuf,
    pub(super) cell_key_files: CellKeyFiles,
    pub(super) applier: Applier,
    /// What purges are done to, and the tables that say whose routes a URL meets.
    pub(super) cache: Arc<Cache>,
    pub(super) live: Arc<Live>,
    pub(super) status: Box<dyn Fn() -> EdgeStatus + Send + Sync>,
    pub(super) metrics: ControlMetrics,
    pub(super) usage: UsageReporter,
    pub(super) renew_not_before: Option<Instant>,
    /// When all was served that had been sent, on a stream that stood.
    pub(super) in_step_at: Instant,
    /// Set once the first stream has told what there was, or could not be had.
    pub(super) caught_up: watch::Sender<bool>,
}

/// One stream.
struct Stream {
    client: DistributionClient<Channel>,
    incoming: Streaming<ControlMessage>,
    outgoing: mpsc::Sender<EdgeMessage>,
    snapshot: Option<Incoming>,
    waiting: VecDeque<Batch>,
    keys: KeyRequests,
    renewal: Option<Renewal>,
}

type Renewal = Pin<Box<dyn Future<Output = Result<IdentityCertificate, RenewalError>> + Send>>;

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("the control plane does not answer within {0:?}")]
    Late(Duration),
    #[error("the control plane refuses: {}", .0.message())]
    Refused(tonic::Status),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the identity cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane does not take our messages")]
    Stuck,
    #[error("the control plane broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("a successor takes over")]
    Rest(oneshot::Sender<()>),
}

impl Syncer {
    /// Connects again and again, until `shutdown`.
    pub(super) async fn run(&mut self, orders: &mut Orders, shutdown: &CancellationToken) {
        let mut backoff = Backoff::default();
        while !shutdown.is_cancelled() {
            let began = clock::now();
            let ended = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ended = self.converse(orders) => ended,
            };
            self.metrics.connected.set(0.0);
            self.usage.connected(false);
            self.applier.settle().await;
            if let Ended::Rest(done) = ended {
                self.rest(done, orders, shutdown).await;
                continue;
            }
            if clock::now().duration_since(began) >= limits::GOOD_STREAM {
                backoff.reset();
            }
            let wait = backoff.next();
            self.report(&ended, wait);
            tokio::select! {
                () = shutdown.cancelled() => break,
                rest = self.pass_time(wait, orders) => if let Some(done) = rest {
                    self.rest(done, orders, shutdown).await;
                }
            }
        }
        self.applier.settle().await;
    }

    /// Neither stream nor writes until the order to go on.
    async fn rest(&mut self, done: oneshot::Sender<()>, orders: &mut Orders, shutdown: &CancellationToken) {
        let _ = self.applier.hold().await;
        let mut done = Some(done);
        loop {
            if let Some(done) = done.take() {
                let _ = done.send(());
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                (order, obeyed) = orders.next() => {
                    done = Some(obeyed);
                    if order == Order::GoOn {
                        self.applier.release();
                        break;
                    }
                }
            }
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    /// Follows an order that leaves the stream as it is; gives acks that are due.
    async fn obey(&mut self, order: Order, done: oneshot::Sender<()>) -> Result<Vec<Ack>, Ended> {
        let acks = match order {
            Order::Rest => return Err(Ended::Rest(done)),
            Order::Hold => self.applier.hold().await,
            Order::GoOn => {
                self.applier.release();
                Vec::new()
            }
        };
        let _ = done.send(());
        Ok(acks)
    }

    fn report(&self, ended: &Ended, wait: Duration) {
        let expired = clock::unix_time() > self.identity.certificate.not_after;
        if expired {
            tracing::error!(
                %ended,
                "this edge's identity has expired and it is no longer known to the control plane: it goes on serving; give it a new join token"
            );
        } else {
            tracing::warn!(%ended, retry_in_ms = wait.as_millis(), "no stream to the control plane; what was applied last stays");
        }
    }

    /// Challenges end, and the disk may recover, while nobody is connected too. Ends early with the order to rest.
    async fn pass_time(&mut self, wait: Duration, orders: &mut Orders) -> Option<oneshot::Sender<()>> {
        let ends = tokio::time::sleep(wait);
        let mut ends = std::pin::pin!(ends);
        let mut tick = interval(limits::SWEEP_EVERY);
        let mut retry = interval(limits::STATUS_EVERY);
        loop {
            tokio::select! {
                () = &mut ends => return None,
                _ = tick.tick() => {
                    self.applier.publisher.challenges().sweep(clock::unix_ms());
                    self.note_lag(false);
                }
                _ = retry.tick() => self.applier.retry_saving(),
                // Of what is written now the control plane has the ack already.
                _ = self.applier.step() => {}
                (order, done) = orders.next() => if let Err(Ended::Rest(done)) = self.obey(order, done).await {
                    return Some(done);
                },
            }
        }
    }

    /// One stream; it never ends well.
    async fn converse(&mut self, orders: &mut Orders) -> Ended {
        let opened = loop {
            tokio::select! {
                opened = self.open() => break opened,
                (order, done) = orders.next() => if let Err(ended) = self.obey(order, done).await {
                    return ended;
                },
            }
        };
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(ended) => {
                self.metrics.connects_failed.increment(1);
                self.caught_up.send_replace(true);
                return ended;
            }
        };
        self.metrics.connects_ok.increment(1);
        self.metrics.connected.set(1.0);
        self.usage.connected(true);
        tracing::info!(address = self.address, applied = %self.applier.publisher.applied(), "stream to the control plane is open");
        let mut status = interval(limits::STATUS_EVERY);
        let mut sweep = interval(limits::SWEEP_EVERY);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_behind = !*self.caught_up.borrow() && !self.applier.is_busy();
            let step = tokio::select! {
                () = tokio::time::sleep(limits::CAUGHT_UP_AFTER), if is_behind => {
                    self.caught_up.send_replace(true);
                    Ok(())
                }
                message = stream.incoming.message() => self.take(&mut stream, message),
                ack = self.applier.step() => self.worked(&mut stream, ack),
                ack = stream.keys.next() => self.urgent_done(&stream, ack),
                _ = status.tick() => {
                    self.applier.retry_saving();
                    stream.send(edge_message::Kind::Status(self.status()))
                }
                _ = sweep.tick() => {
                    self.applier.publisher.challenges().sweep(clock::unix_ms());
                    self.begin_renewal(&mut stream);
                    self.note_lag(stream.waiting.is_empty() && !self.applier.is_staging());
                    Ok(())
                }
                (order, done) = orders.next() => match self.obey(order, done).await {
                    Ok(acks) => acks.into_iter().try_for_each(|ack| self.worked(&mut stream, Some(ack))),
                    Err(ended) => Err(ended),
                },
                report = self.usage.next() => stream.send(edge_message::Kind::Usage(report)),
                renewed = next_renewal(&mut stream.renewal) => {
                    stream.renewal = None;
                    self.renewed(renewed);
                    Ok(())
                }
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    async fn open(&self) -> Result<Stream, Ended> {
        let config = tls::client_config(&self.identity.certificate)?;
        let mut client = tls::connect(&self.address, config, &self.deadlines)
            .await
            .map_err(|error| Ended::Connect(full_text(&error)))?;
        let (outgoing, messages) = mpsc::channel(limits::OUTGOING_QUEUE);
        let hello = Hello {
            edge_id: self.identity.edge.to_string(),
            cell_id: self.identity.cell.to_string(),
            protocol: PROTOCOL_VERSION,
            build: self.build.clone(),
            applied: Some(self.applier.publisher.applied().into()),
            hpke_public_key: self.identity.hpke_public.to_vec().into(),
            cell_key_epochs: self.cell_key_epochs(),
            purged: self.cache.last_purge(),
            cache_since_unix_ms: self.cache.since_unix_ms(),
        };
        // The queue is empty: there is room.
        let _queued = outgoing.try_send(wrap(edge_message::Kind::Hello(hello)));
        let answer = client.sync(ReceiverStream::new(messages));
        let within = self.deadlines.control_call;
        let incoming = tokio::time::timeout(within, answer)
            .await
            .map_err(|_| Ended::Connect(format!("no answer to the stream within {within:?}")))?
            .map_err(|status| Ended::Status(Box::new(status)))?
            .into_inner();
        let keys = KeyRequests::new(self.applier.keys.own.clone());
        let (snapshot, waiting, renewal) = (None, VecDeque::new(), None);
        Ok(Stream { client, incoming, outgoing, snapshot, waiting, keys, renewal })
    }

    /// Of the control plane's keys that are here.
    fn cell_key_epochs(&self) -> Vec<u32> {
        let held = self.applier.keys.of_cell.held().into_iter().map(|(_, epoch)| epoch);
        held.filter(|epoch| *epoch != OWN_EPOCH).collect()
    }

    fn take(
        &mut self,
        stream: &mut Stream,
        message: Result<Option<ControlMessage>, tonic::Status>,
    ) -> Result<(), Ended> {
        let message = message.map_err(|status| Ended::Status(Box::new(status)))?.ok_or(Ended::Closed)?;
        match message.kind {
            Some(control_message::Kind::SnapshotBegin(begin)) => {
                stream.snapshot = Some(Incoming::begin(&begin));
                Ok(())
            }
            Some(control_message::Kind::SnapshotChunk(chunk)) => {
                stream.snapshot.as_mut().ok_or(Ended::Protocol("a chunk outside a snapshot"))?.chunk(chunk);
                Ok(())
            }
            Some(control_message::Kind::SnapshotEnd(end)) => {
                let snapshot = stream.snapshot.take().ok_or(Ended::Protocol("the end of no snapshot"))?;
                match snapshot.end(&end) {
                    Ok(batch) => self.apply(stream, batch),
                    Err(rejected) => stream.send(edge_message::Kind::Ack(self.applier.reject(&rejected))),
                }
            }
            Some(control_message::Kind::Delta(delta)) => self.apply(stream, batch_of(delta)),
            Some(control_message::Kind::CellKey(sealed)) => {
                match self.cell_key_files.receive(&sealed, &self.identity, &self.applier.keys.of_cell) {
                    Ok(()) => tracing::info!(epoch = sealed.epoch, "received the cell's key"),
                    // Credentials sealed under it will be nacked, which tells the control plane.
                    Err(fault) => tracing::error!(%fault, "a cell key was not taken"),
                }
                Ok(())
            }
            Some(control_message::Kind::Urgent(urgent)) => {
                let ack = self.urgent(stream, urgent);
                ack.map_or(Ok(()), |ack| self.urgent_done(stream, ack))
            }
            Some(control_message::Kind::UsageAck(ack)) => {
                self.usage.acknowledged(ack);
                Ok(())
            }
            // Of a newer release: tolerated.
            None => Ok(()),
        }
    }

    /// None: the ack comes later.
    fn urgent(&mut self, stream: &mut Stream, urgent: Urgent) -> Option<UrgentAck> {
        if let Some(Action::KeyRequest(wanted)) = urgent.action {
            return stream.keys.take(urgent.sequence, wanted);
        }
        let caches = (&*self.cache, &*self.live);
        Some(urgent::handle(&urgent, &mut self.applier.publisher, caches, clock::unix_ms()))
    }

    fn urgent_done(&self, stream: &Stream, ack: UrgentAck) -> Result<(), Ended> {
        if ack.error_code.is_empty() {
            self.metrics.urgents_done.increment(1);
        } else {
            self.metrics.urgents_refused.increment(1);
            tracing::warn!(
                code = ack.error_code,
                text = ack.error_text,
                "an urgent message was not followed"
            );
        }
        stream.send(edge_message::Kind::UrgentAck(ack))
    }

    fn apply(&mut self, stream: &mut Stream, batch: Batch) -> Result<(), Ended> {
        if stream.waiting.len() >= limits::BATCHES_QUEUE {
            return Err(Ended::Protocol("more batches than are acknowledged"));
        }
        stream.waiting.push_back(batch);
        self.next_batch(stream)
    }

    fn worked(&mut self, stream: &mut Stream, ack: Option<Ack>) -> Result<(), Ended> {
        if let Some(ack) = ack {
            stream.send(edge_message::Kind::Ack(ack))?;
        }
        self.next_batch(stream)
    }

    fn next_batch(&mut self, stream: &mut Stream) -> Result<(), Ended> {
        while !self.applier.is_busy() {
            let Some(batch) = stream.waiting.pop_front() else { break };
            if let Some(refusal) = self.applier.start(batch) {
                stream.send(edge_message::Kind::Ack(refusal))?;
            }
        }
        Ok(())
    }

    fn note_lag(&mut self, in_step: bool) {
        let now = clock::now();
        if in_step {
            self.in_step_at = now;
        }
        self.metrics.set_sync_lag(now.duration_since(self.in_step_at));
    }

    fn status(&self) -> Status {
        let EdgeStatus { io_backend, connections, listeners } = (self.status)();
        Status {
            io_backend,
            connections,
            names: self.applier.publisher.names() as u64,
            credentials: self.applier.publisher.credentials() as u64,
            listeners,
            unix_time_ms: clock::unix_ms(),
        }
    }

    /// Asks for the next certificate when two thirds of this one's life are over, on the connection that stands.
    fn begin_renewal(&self, stream: &mut Stream) {
        let due = clock::unix_time() >= self.identity.certificate.renew_at();
        let waiting = self.renew_not_before.is_some_and(|at| clock::now() < at);
        if !due || waiting || stream.renewal.is_some() {
            return;
        }
        let (mut client, within) = (stream.client.clone(), self.deadlines.control_call);
        stream.renewal = Some(Box::pin(async move {
            let request = Request::new()?;
            let call = client.renew(RenewRequest { csr_der: request.csr_der.clone().into() });
            let answer = tokio::time::timeout(within, call)
                .await
                .map_err(|_| RenewalError::Late(within))?
                .map_err(RenewalError::Refused)?;
            Ok(certificate_of(request, &answer.into_inner())?)
        }));
    }

    fn renewed(&mut self, renewed: Result<IdentityCertificate, RenewalError>) {
        let life = {
            let certificate = &self.identity.certificate;
            Duration::from_secs(
                certificate.not_after.as_secs().saturating_sub(certificate.not_before.as_secs()),
            )
        };
        let stored = renewed.and_then(|certificate| {
            // In memory first: the stream that stands does not need it, the next one does.
            self.identity.certificate = certificate;
            Ok(self.identity.store(&self.identity_folder)?)
        });
        self.metrics.set_identity_not_after(self.identity.certificate.not_after.as_secs());
        match stored {
            Ok(()) => {
                self.renew_not_before = None;
                self.metrics.renewals_ok.increment(1);
                tracing::info!(
                    not_after = self.identity.certificate.not_after.as_secs(),
                    "renewed this edge's identity"
                );
            }
            Err(error) => {
                // Thirty tries fit into the third of the life that is left.
                self.renew_not_before = Some(clock::now() + (life / 90).max(Duration::from_secs(1)));
                self.metrics.renewals_failed.increment(1);
                tracing::error!(%error, "this edge's identity was not renewed; will try again");
            }
        }
    }
}

impl Stream {
    /// Never waits: a control plane that takes nothing must not stop us from reading.
    fn send(&self, kind: edge_message::Kind) -> Result<(), Ended> {
        self.outgoing.try_send(wrap(kind)).map_err(|_| Ended::Stuck)
    }
}

async fn next_renewal(renewal: &mut Option<Renewal>) -> Result<IdentityCertificate, RenewalError> {
    match renewal {
        Some(renewal) => renewal.await,
        None => std::future::pending().await,
    }
}

fn certificate_of(request: Request, answer: &RenewResponse) -> Result<IdentityCertificate, IdentityError> {
    IdentityCertificate::from_answer(
        request,
        answer.certificate_chain_der.iter().map(AsRef::as_ref),
        answer.ca_der.iter().map(AsRef::as_ref),
    )
}

fn batch_of(delta: Delta) -> Batch {
    Batch {
        kind: BatchKind::Delta { base: delta.base.unwrap_or_default().into() },
        generation: delta.generation.unwrap_or_default().into(),
        resources: delta.resources,
        tombstones: delta.tombstones,
        removals_signed_off: delta.removals_signed_off,
    }
}

fn wrap(kind: edge_message::Kind) -> EdgeMessage {
    EdgeMessage { kind: Some(kind) }
}
