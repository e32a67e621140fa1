//! An exchange as a span, named by the semantic conventions for HTTP servers (1.37.0, stable ones first); what they have no
//! name for begins with `portico.`.

use http::{Method, Version};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, Status, span::SpanKind, status::StatusCode},
};

use crate::{
    access_log::AccessRecord,
    cache::Outcome,
    exchange::Protocol,
    limits,
    privacy::{Privacy, host_of},
};

/// Of flags: that the parent is in another process is known, and that it is (trace.proto, `SpanFlags`).
const PARENT_IS_REMOTE: u32 = 0x100 | 0x200;
/// Of flags, as of `traceparent`.
const SAMPLED: u32 = 1;

/// `None`: it has no span.
pub(super) fn of(record: &AccessRecord, privacy: &Privacy) -> Option<Span> {
    let context = record.visitor.span?;
    let method = known_method(&record.method);
    let name = match &record.route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    };
    let failed = record.status.is_server_error();
    let status = failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() });
    Some(Span {
        trace_id: context.trace.to_vec(),
        span_id: context.span.to_vec(),
        parent_span_id: context.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        flags: SAMPLED | if context.parent.is_some() { PARENT_IS_REMOTE } else { 0x100 },
        name,
        kind: SpanKind::Server.into(),
        start_time_unix_nano: record.ended_unix_ns.saturating_sub(record.duration_us.saturating_mul(1000)),
        end_time_unix_nano: record.ended_unix_ns,
        attributes: attributes(record, privacy),
        status,
        ..Span::default()
    })
}

fn attributes(record: &AccessRecord, privacy: &Privacy) -> Vec<KeyValue> {
    let (path, query) = match record.path_and_query().split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (record.path_and_query(), None),
    };
    let mut list = List(Vec::with_capacity(32));
    let method = known_method(&record.method);
    list.text("http.request.method", method.as_bytes());
    if method == "_OTHER" {
        list.text("http.request.method_original", record.method.as_str().as_bytes());
    }
    list.text("url.scheme", if record.handshake.is_some() { b"https" } else { b"http" });
    list.text("url.path", path.as_bytes());
    list.maybe("url.query", query.map(|query| privacy.query(query.as_bytes())).as_deref());
    if let Some(authority) = &record.authority {
        list.text("server.address", host_of(authority).as_bytes());
    }
    list.number("server.port", record.local_port.into());
    list.text("client.address", privacy.address(record.visitor.client).to_string().as_bytes());
    list.text("network.peer.address", privacy.address(record.peer.ip()).to_string().as_bytes());
    if let Some(port) = privacy.port(record.peer.port()) {
        list.number("network.peer.port", port.into());
    }
    list.text("network.protocol.version", version(record).as_bytes());
    if let Some(handshake) = &record.handshake {
        list.maybe("tls.client.server_name", handshake.sni.as_ref().map(|sni| sni.as_str().as_bytes()));
        list.text("tls.protocol.version", handshake.version.as_bytes());
        list.flag("tls.resumed", handshake.resumed);
    }
    list.maybe("http.route", record.route.as_deref().map(str::as_bytes));
    list.maybe("user_agent.original", record.user_agent.as_ref().map(http::HeaderValue::as_bytes));
    // 499: there was no answer.
    if record.status.as_u16() != 499 {
        list.number("http.response.status_code", record.status.as_u16().into());
    }
    list.number("http.request.body.size", i64::try_from(record.request_bytes).unwrap_or(i64::MAX));
    list.number("http.response.body.size", i64::try_from(record.response_bytes).unwrap_or(i64::MAX));
    if record.status.is_server_error() {
        list.text("error.type", record.reason.unwrap_or(record.status.as_str()).as_bytes());
    }
    add_own(&mut list, record);
    list.0
}

fn add_own(list: &mut List, record: &AccessRecord) {
    list.text("portico.request_id", record.visitor.request_id.as_bytes());
    if let Some(host) = &record.host {
        list.text("portico.tenant.id", host.tenant.id.to_string().as_bytes());
        list.text("portico.domain.id", host.domain.to_string().as_bytes());
    }
    list.maybe("portico.cache", record.cache.map(|outcome| Outcome::as_str(outcome).as_bytes()));
    list.maybe("portico.reason", record.reason.map(str::as_bytes));
    list.flag("portico.complete", record.complete);
    if let Some(first_byte) = record.first_byte {
        list.seconds("portico.first_byte.duration", first_byte);
    }
    let Some(origin) = &record.origin else { return };
    list.text("portico.origin.address", origin.place.to_string().as_bytes());
    let Some(first_byte) = origin.first_byte else { return };
    list.flag("portico.origin.connection.reused", origin.connect.is_none());
    if let Some(connect) = origin.connect {
        list.seconds("portico.origin.connect.duration", connect);
    }
    list.seconds("portico.origin.first_byte.duration", first_byte);
}

/// What all spans of this process have in common.
pub(super) fn of_the_process() -> Vec<KeyValue> {
    let mut list = List(Vec::with_capacity(4));
    list.text("service.name", b"portico-edge");
    list.text("service.version", env!("CARGO_PKG_VERSION").as_bytes());
    list.text("host.name", rustix::system::uname().nodename().to_bytes());
    list.number("process.pid", std::process::id().into());
    list.0
}

/// Methods of RFC 9110 and PATCH; others are a client's invention, and would make names without end.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}

fn version(record: &AccessRecord) -> &'static str {
    match (record.protocol, record.version) {
        (Protocol::Http1, Version::HTTP_10) => "1.0",
        (Protocol::Http1, _) => "1.1",
        (Protocol::Http2, _) => "2",
        (Protocol::Http3, _) => "3",
    }
}

struct List(Vec<KeyValue>);

impl List {
    fn add(&mut self, key: &str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
    }

    /// Cut behind the conversion too: it makes three bytes of one that is no UTF-8.
    fn text(&mut self, key: &str, text: &[u8]) {
        let cut = &text[..text.len().min(limits::SPAN_TEXT_BYTES_MAX)];
        let mut text = String::from_utf8_lossy(cut).into_owned();
        text.truncate(text.floor_char_boundary(limits::SPAN_TEXT_BYTES_MAX));
        self.add(key, Value::StringValue(text));
    }

    fn maybe(&mut self, key: &str, text: Option<&[u8]>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn number(&mut self, key: &str, number: i64) {
        self.add(key, Value::IntValue(number));
    }

    fn flag(&mut self, key: &str, flag: bool) {
        self.add(key, Value::BoolValue(flag));
    }

    fn seconds(&mut self, key: &str, duration: std::time::Duration) {
        self.add(key, Value::DoubleValue(duration.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_utf8_is_no_longer_than_one_that_is() {
        let most = limits::SPAN_TEXT_BYTES_MAX;
        let mut list = List(Vec::new());
        for (text, length) in
            [(vec![0xff; 2 * most], most - most % 3), (vec![b'x'; 2 * most], most), (vec![b'x'; 5], 5)]
        {
            list.text("a", &text);
            let value = list.0.pop().and_then(|pair| pair.value?.value);
            let Some(Value::StringValue(text)) = value else { panic!("{value:?}") };
            assert_eq!(text.len(), length);
        }
    }
}
