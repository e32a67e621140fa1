//! Lines for whatever a client may have said.

use proptest::prelude::*;

use super::*;
use crate::config::{AccessLogTarget, LogFormat};
use crate::http::unique::Unique;

fn record(authority: &str, user_agent: &[u8]) -> AccessRecord {
    AccessRecord {
        started_unix_ms: 1_764_000_000_123,
        ended_unix_ns: 0,
        duration_us: 42,
        first_byte: None,
        peer: "[::1]:5000".parse().unwrap(),
        local_port: 443,
        visitor: Visitor::alone("[::1]:5000".parse().unwrap(), true, Unique { high: 1, low: 2 }).into(),
        protocol: Protocol::Http1,
        version: Version::HTTP_11,
        handshake: None,
        method: Method::GET,
        authority: Some(authority.into()),
        target: Uri::from_static("/a?b=c"),
        host: None,
        route: None,
        status: StatusCode::OK,
        request_bytes: 0,
        response_bytes: 7,
        referer: HeaderValue::from_bytes(user_agent).ok(),
        user_agent: HeaderValue::from_bytes(user_agent).ok(),
        origin: None,
        cache: None,
        reason: None,
        complete: true,
    }
}

fn json_line(record: &AccessRecord) -> String {
    let mut out = Vec::new();
    json::write_line(&mut out, record, &Privacy::default());
    String::from_utf8(out).unwrap()
}

fn combined_line(record: &AccessRecord) -> String {
    let mut out = Vec::new();
    combined::write_line(&mut out, record, &Privacy::default(), true);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_terminal_cannot_be_steered() {
    let text = json_line(&record("a\x1b[2J\r\n\u{9b}31m\x7f", b"caf\xe9"));
    assert_eq!(text.matches('\n').count(), 1);
    assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    assert!(text.contains("2025-11-24T"), "{text}");
}

#[test]
fn the_time_has_milliseconds_whatever_they_are() {
    for (millis, wanted) in [(0, "000"), (120, "120"), (123, "123")] {
        let record = AccessRecord { started_unix_ms: 1_764_000_000_000 + millis, ..record("a", b"") };
        let text = json_line(&record);
        assert!(text.starts_with(&format!("{{\"time\":\"2025-11-24T16:00:00.{wanted}Z\",")), "{text}");
    }
}

#[test]
fn combined_is_what_apache_and_nginx_write() {
    let mut record = record("shop.example", b"a \"quoted\" \\ caf\xe9\t");
    assert_eq!(
        combined_line(&record),
        "-:443 ::1 - - [24/Nov/2025:16:00:00 +0000] \"GET /a?b=REDACTED HTTP/1.1\" 200 7 \
         \"a \\x22quoted\\x22 \\x5C caf\\xE9\\x09\" \"a \\x22quoted\\x22 \\x5C caf\\xE9\\x09\"\n"
    );
    (record.referer, record.user_agent) = (None, Some(HeaderValue::from_static("")));
    record.protocol = Protocol::Http3;
    assert!(combined_line(&record).ends_with("HTTP/3.0\" 200 7 \"-\" \"\"\n"));
}

#[test]
fn a_field_has_an_end() {
    let long = vec![b'x'; 2 * limits::ACCESS_LOG_FIELD_BYTES_MAX];
    for line in [json_line(&record("a", &long)), combined_line(&record("a", &long))] {
        let longest = line.split(|letter| letter != 'x').map(str::len).max();
        assert_eq!(longest, Some(limits::ACCESS_LOG_FIELD_BYTES_MAX));
    }
}

/// With a pipe that nobody reads: it is full after 64 KiB, and its writer waits for ever.
fn log_into_a_full_pipe(folder: &std::path::Path) -> (AccessLog, AccessLogWriter) {
    let path = folder.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let config = AccessLogConfig { target: AccessLogTarget::File(path), format: LogFormat::Json };
    let (log, writer) = AccessLog::open(&config, &Privacy::default(), Arc::new(Metrics::register())).unwrap();
    for _ in 0..1000 {
        log.write(record(&"a".repeat(limits::ACCESS_LOG_FIELD_BYTES_MAX), b"").into());
    }
    (log, writer)
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_the_edge_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let (log, writer) = log_into_a_full_pipe(folder.path());
    drop(log);
    let deadlines =
        limits::Deadlines { access_log_finish: Duration::from_millis(20), ..limits::Deadlines::default() };
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        writer.finish(deadlines.access_log_finish);
        ended.send(()).unwrap();
    });
    assert!(end.recv_timeout(Duration::from_secs(60)).is_ok(), "it waits for a reader");
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_whoever_orders_it_to_be_opened_again_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _writer) = log_into_a_full_pipe(folder.path());
    // An order that the writer sees before its first write is followed; behind that it writes, and waits.
    let mut begun = clock::now();
    let mut reopened = log.reopen().await;
    if reopened.is_ok() {
        begun = clock::now();
        reopened = log.reopen().await;
    }
    assert!(matches!(reopened, Err(ReopenError::Busy)), "{reopened:?}");
    assert!(begun.elapsed() >= limits::ACCESS_LOG_REOPEN_DEADLINE);
}

proptest! {
    #[test]
    fn every_exchange_is_one_parseable_line(authority in any::<String>(), agent in proptest::collection::vec(any::<u8>(), 0..9000)) {
        let record = record(&authority, &agent);
        let text = json_line(&record);
        prop_assert_eq!(text.matches('\n').count(), 1);
        prop_assert!(text.len() < 100_000);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&line["status"], 200);
        let text = combined_line(&record);
        prop_assert!(text.strip_suffix('\n').unwrap().bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        prop_assert_eq!(text.matches('"').count(), 6);
    }
}
