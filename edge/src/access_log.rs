//! One JSON line per exchange.
//!
//! A worker hands a small record to a bounded queue and goes on; the writer thread formats it. A full queue drops the line
//! and counts it: the log never slows a request. Text from a client is cut at 4 KiB and its control bytes are escaped, so
//! that a line is always one line and a terminal cannot be steered by it.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use http::{HeaderValue, Method, StatusCode, Uri};
use serde::Serialize;

use crate::{
    cache::Outcome, clock, config::AccessLogTarget, exchange::Protocol, http::visitor::Visitor, limits,
    live::Host, metrics::Metrics,
};

/// What is known of an exchange when its last byte has gone, or when it was given up.
pub struct AccessRecord {
    /// Start, milliseconds since 1970.
    pub started_unix_ms: i64,
    pub duration_us: u64,
    pub peer: SocketAddr,
    pub visitor: Arc<Visitor>,
    pub protocol: Protocol,
    pub tls: bool,
    pub method: Method,
    /// As the request had it; empty when it was refused before it was read.
    pub authority: Option<Box<str>>,
    pub target: Uri,
    pub host: Option<Arc<Host>>,
    pub status: StatusCode,
    pub response_bytes: u64,
    pub user_agent: Option<HeaderValue>,
    pub origin: Option<SocketAddr>,
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
    queue: Option<SyncSender<AccessRecord>>,
    metrics: Arc<Metrics>,
}

/// The writer; dropping the last [`AccessLog`] ends it.
#[derive(Debug)]
pub struct AccessLogWriter {
    thread: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Opens the target and starts its writer thread.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be made.
    pub fn open(target: &AccessLogTarget, metrics: Arc<Metrics>) -> io::Result<(Self, AccessLogWriter)> {
        let output: Box<dyn Write + Send> = match target {
            AccessLogTarget::Off => {
                return Ok((Self { queue: None, metrics }, AccessLogWriter { thread: None }));
            }
            AccessLogTarget::StandardOutput => Box::new(io::stdout()),
            AccessLogTarget::File(path) => {
                // A pipe opened for writing alone would keep the start waiting for its reader (fifo(7)).
                let is_pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
                let file = match is_pipe {
                    true => OpenOptions::new().read(true).write(true).open(path),
                    false => OpenOptions::new().create(true).append(true).open(path),
                };
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("access log {}: {error}", path.display()))
                };
                Box::new(file.map_err(named)?)
            }
        };
        let (queue, records) = sync_channel(limits::ACCESS_LOG_QUEUE);
        let written = Arc::clone(&metrics);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&records, output, &written))?;
        Ok((Self { queue: Some(queue), metrics }, AccessLogWriter { thread: Some(thread) }))
    }

    /// Whether a record would be looked at; saves making one.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    pub fn write(&self, record: AccessRecord) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(record) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.access_log_dropped.increment(1);
            }
        }
    }
}

impl AccessLogWriter {
    /// Waits until every line is written, for at most [`limits::ACCESS_LOG_FINISH_DEADLINE`]. All [`AccessLog`]s must be
    /// gone.
    pub fn finish(mut self) {
        let Some(thread) = self.thread.take() else { return };
        let deadline = clock::now() + limits::ACCESS_LOG_FINISH_DEADLINE;
        while !thread.is_finished() {
            if clock::now() >= deadline {
                tracing::warn!("access log: its last lines could not be written in time");
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = thread.join();
    }
}

fn write_lines(records: &Receiver<AccessRecord>, output: Box<dyn Write + Send>, metrics: &Metrics) {
    // Given whole lines, it writes whole lines: a predecessor that drains may append to the same file.
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    let mut line = Vec::new();
    while let Ok(first) = records.recv() {
        let mut result = write_line(&mut output, &mut line, &first);
        while let Ok(next) = records.try_recv() {
            result = result.and_then(|()| write_line(&mut output, &mut line, &next));
            metrics.access_log_lines.increment(1);
        }
        metrics.access_log_lines.increment(1);
        if let Err(error) = result.and_then(|()| output.flush()) {
            metrics.access_log_dropped.increment(1);
            tracing::warn!(%error, "access log: a line could not be written");
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    peer: std::net::IpAddr,
    peer_port: u16,
    client: std::net::IpAddr,
    protocol: &'static str,
    tls: bool,
    method: Text<'a>,
    authority: Option<Text<'a>>,
    target: Text<'a>,
    tenant: Option<String>,
    domain: Option<String>,
    status: u16,
    response_bytes: u64,
    duration_us: u64,
    request_id: Text<'a>,
    user_agent: Option<Text<'a>>,
    origin: Option<SocketAddr>,
    cache: Option<&'static str>,
    reason: Option<&'static str>,
    complete: bool,
}

fn write_line(output: &mut impl Write, text: &mut Vec<u8>, record: &AccessRecord) -> io::Result<()> {
    let target =
        record.target.path_and_query().map_or_else(|| record.target.path(), |target| target.as_str());
    let line = Line {
        time: rfc3339(record.started_unix_ms),
        peer: record.peer.ip(),
        peer_port: record.peer.port(),
        client: record.visitor.client,
        protocol: record.protocol.as_str(),
        tls: record.tls,
        method: Text(record.method.as_str().as_bytes()),
        authority: record.authority.as_deref().map(|text| Text(text.as_bytes())),
        target: Text(target.as_bytes()),
        tenant: record.host.as_ref().map(|host| host.tenant.id.to_string()),
        domain: record.host.as_ref().map(|host| host.domain.to_string()),
        status: record.status.as_u16(),
        response_bytes: record.response_bytes,
        duration_us: record.duration_us,
        request_id: Text(record.visitor.request_id.as_bytes()),
        user_agent: record.user_agent.as_ref().map(|value| Text(value.as_bytes())),
        origin: record.origin,
        cache: record.cache.map(Outcome::as_str),
        reason: record.reason,
        complete: record.complete,
    };
    text.clear();
    serde_json::to_writer(&mut *text, &line)?;
    text.push(b'\n');
    output.write_all(text)
}

/// Bytes from a client: cut, made valid UTF-8, and with control characters (C0 by JSON itself; DEL and C1, which a
/// terminal obeys too, here) escaped.
struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cut = &self.0[..self.0.len().min(limits::ACCESS_LOG_FIELD_BYTES_MAX)];
        let text = String::from_utf8_lossy(cut);
        if !text.chars().any(char::is_control) {
            return serializer.serialize_str(&text);
        }
        let mut escaped = String::with_capacity(text.len() + 16);
        for character in text.chars() {
            if character.is_control() {
                escaped.extend(character.escape_default());
            } else {
                escaped.push(character);
            }
        }
        serializer.serialize_str(&escaped)
    }
}

fn rfc3339(unix_ms: i64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::visitor::Unique;

    fn record(authority: &str, user_agent: &[u8]) -> AccessRecord {
        AccessRecord {
            started_unix_ms: 1_764_000_000_123,
            duration_us: 42,
            peer: "[::1]:5000".parse().unwrap(),
            visitor: Visitor::alone("[::1]:5000".parse().unwrap(), true, Unique { worker: 1, number: 2 })
                .into(),
            protocol: Protocol::Http1,
            tls: true,
            method: Method::GET,
            authority: Some(authority.into()),
            target: Uri::from_static("/a?b"),
            host: None,
            status: StatusCode::OK,
            response_bytes: 7,
            user_agent: HeaderValue::from_bytes(user_agent).ok(),
            origin: None,
            cache: None,
            reason: None,
            complete: true,
        }
    }

    #[test]
    fn a_terminal_cannot_be_steered() {
        let mut out = Vec::new();
        write_line(&mut out, &mut Vec::new(), &record("a\x1b[2J\r\n\u{9b}31m\x7f", b"caf\xe9")).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        assert!(text.contains("2025-11-24T"), "{text}");
    }

    proptest! {
        #[test]
        fn every_exchange_is_one_parseable_line(authority in any::<String>(), agent in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let mut out = Vec::new();
            write_line(&mut out, &mut Vec::new(), &record(&authority, &agent)).unwrap();
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(text.matches('\n').count(), 1);
            prop_assert!(text.len() < 70_000);
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&line["status"], 200);
        }
    }
}
