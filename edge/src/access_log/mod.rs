//! One line per exchange, as JSON or as Apache and nginx write it.
//!
//! A worker hands a small record to a bounded queue and goes on; the writer thread formats it. A full queue drops the line
//! and counts it: the log never slows a request. Text from a client is cut at 4 KiB and escaped, so that a line is always
//! one line and a terminal cannot be steered by it. What is left out of it is [`crate::privacy`]'s to say.

mod combined;
mod json;
mod output;
mod writer;

pub(crate) use self::output::check;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{JoinHandle, Thread},
    time::Duration,
};

use http::{HeaderValue, Method, StatusCode, Uri, Version};
use tokio::sync::watch;

use self::{
    output::Output,
    writer::{Batch, Done, Message, Orders, Writer},
};
use crate::{
    cache::Outcome,
    clock,
    config::AccessLogConfig,
    exchange::{Protocol, Reached},
    http::visitor::Visitor,
    limits,
    live::Host,
    metrics::Metrics,
    privacy::Privacy,
    tls::Handshake,
};

/// What is known of an exchange when its last byte has gone, or when it was given up.
pub struct AccessRecord {
    /// Start, milliseconds since 1970.
    pub started_unix_ms: i64,
    pub ended_unix_ns: u64,
    pub duration_us: u64,
    /// Until the head of the answer was ready; absent when there was none.
    pub first_byte: Option<Duration>,
    pub peer: SocketAddr,
    pub local_port: u16,
    pub visitor: Arc<Visitor>,
    pub protocol: Protocol,
    /// Tells HTTP/1.0 from 1.1.
    pub version: Version,
    /// None: a plain connection.
    pub handshake: Option<Handshake>,
    pub method: Method,
    /// As the request had it; empty when it was refused before it was read.
    pub authority: Option<Box<str>>,
    pub target: Uri,
    pub host: Option<Arc<Host>>,
    /// The path of the rule that was followed; known for exchanges with a span.
    pub route: Option<Box<str>>,
    pub status: StatusCode,
    /// Of the body, as far as it was read.
    pub request_bytes: u64,
    /// Of the body, as far as it was sent.
    pub response_bytes: u64,
    pub referer: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    pub origin: Option<Reached>,
    /// What the cache did; absent where it was not asked.
    pub cache: Option<Outcome>,
    /// Why the edge itself answered or gave up, in one word.
    pub reason: Option<&'static str>,
    /// All bytes of the answer were taken.
    pub complete: bool,
}

/// A worker's end of the log.
#[derive(Clone)]
pub struct AccessLog {
    sink: Option<Sink>,
    metrics: Arc<Metrics>,
}

#[derive(Clone)]
struct Sink {
    queue: SyncSender<Message>,
    orders: Arc<Orders>,
    thread: Thread,
}

/// The writer; dropping the last [`AccessLog`] ends it.
#[derive(Debug)]
pub struct AccessLogWriter {
    thread: Option<JoinHandle<()>>,
}

/// Why the file was not opened again.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    #[error("there is no access log: set access_log in the edge's file")]
    Off,
    #[error("{0}; lines still go to the file that was open")]
    Failed(String),
    #[error(
        "the writer is held up by what it writes to (a pipe that nobody reads, a disk); it will open it again afterwards"
    )]
    Busy,
}

impl AccessLog {
    /// Opens the target and starts its writer thread.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be made.
    pub fn open(
        config: &AccessLogConfig,
        privacy: &Privacy,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, AccessLogWriter)> {
        let Some(output) = Output::open(&config.target)? else {
            return Ok((Self { sink: None, metrics }, AccessLogWriter { thread: None }));
        };
        let (queue, messages) = sync_channel(limits::ACCESS_LOG_QUEUE);
        let done = watch::Sender::new(Done::default());
        let orders = Arc::new(Orders { given: AtomicU64::new(0), done });
        let writer = Writer {
            messages,
            output,
            format: config.format,
            privacy: privacy.clone(),
            metrics: Arc::clone(&metrics),
            orders: Arc::clone(&orders),
            batch: Batch::default(),
        };
        let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        let sink = Sink { queue, orders, thread: thread.thread().clone() };
        Ok((Self { sink: Some(sink), metrics }, AccessLogWriter { thread: Some(thread) }))
    }

    /// Whether a record would be looked at; saves making one.
    pub fn is_on(&self) -> bool {
        self.sink.is_some()
    }

    pub fn write(&self, record: Arc<AccessRecord>) {
        let Some(sink) = &self.sink else { return };
        match sink.queue.try_send(Message::Record(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.access_log_dropped.increment(1);
            }
        }
    }

    /// Opens the file at the log's path again, and comes back when lines go there: what was moved away before is whole
    /// then. Standard output stays what it is.
    ///
    /// # Errors
    /// When there is no log, the file cannot be opened, or the writer does not get to it within
    /// [`limits::ACCESS_LOG_REOPEN_DEADLINE`].
    pub async fn reopen(&self) -> Result<(), ReopenError> {
        let sink = self.sink.as_ref().ok_or(ReopenError::Off)?;
        let mut done = sink.orders.done.subscribe();
        let number = sink.orders.given.fetch_add(1, Ordering::AcqRel) + 1;
        // A full queue: it is awake, or waits for its disk.
        let _ = sink.queue.try_send(Message::Wake);
        sink.thread.unpark();
        let following = done.wait_for(|done| done.number >= number);
        match tokio::time::timeout(limits::ACCESS_LOG_REOPEN_DEADLINE, following).await {
            Ok(Ok(done)) => done.failure.clone().map_or(Ok(()), |failure| Err(ReopenError::Failed(failure))),
            Ok(Err(_)) | Err(_) => Err(ReopenError::Busy),
        }
    }
}

impl AccessLogWriter {
    /// Waits until every line is written, for at most `within`. All [`AccessLog`]s must be gone.
    pub fn finish(mut self, within: Duration) {
        let Some(thread) = self.thread.take() else { return };
        let deadline = clock::now() + within;
        while !thread.is_finished() {
            if clock::now() >= deadline {
                tracing::warn!("access log: its last lines could not be written in time");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = thread.join();
    }
}

impl AccessRecord {
    pub(crate) fn path_and_query(&self) -> &str {
        self.target.path_and_query().map_or_else(|| self.target.path(), |target| target.as_str())
    }
}

fn cut(text: &[u8]) -> &[u8] {
    &text[..text.len().min(limits::ACCESS_LOG_FIELD_BYTES_MAX)]
}

/// None: no time that a calendar has.
fn time_of(record: &AccessRecord) -> Option<time::OffsetDateTime> {
    let nanos = i128::from(record.started_unix_ms) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessLog").field("on", &self.is_on()).finish_non_exhaustive()
    }
}

impl fmt::Debug for AccessRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AccessRecord")
            .field("request_id", &self.visitor.request_id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
