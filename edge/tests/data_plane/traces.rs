//! Spans reach a collector that speaks OTLP, and one that does not take them costs nobody anything.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use portico_edge::limits::{SPAN_TEXT_BYTES_MAX, SPANS_BATCH, SPANS_BATCH_BYTES, SPANS_QUEUE};
use prost::Message as _;
use tonic::{Code, Request, Response, Status};

use crate::client::{https, plain};
use crate::harness::wait_until;
use crate::http3_client::http3_get;
use crate::origin::{Origin, Reply, ok};
use crate::process::{FILE, Running, prepare};

const HOST: &str = "shop.example";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// What it says of all that it gets.
    refusal: Option<Code>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.requests.lock().unwrap().push(request.into_inner());
        match self.refusal {
            Some(code) => Err(Status::new(code, "not today")),
            None => Ok(Response::new(ExportTraceServiceResponse::default())),
        }
    }
}

impl Collector {
    /// Serves on a listener until the test binary ends.
    fn serve(listener: TcpListener) -> Self {
        Self::default().start(listener)
    }

    fn start(self, listener: TcpListener) -> Self {
        let collector = self;
        let service = TraceServiceServer::new(collector.clone());
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder().add_service(service);
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    fn wait_for(&self, count: usize) -> Vec<Span> {
        wait_until("the spans come", || self.spans().len() >= count);
        self.spans()
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn edge(collector: &TcpListener, more: &str) -> Running {
    let folder = prepare();
    let address = collector.local_addr().unwrap();
    let text = format!(
        "{}[traces]\notlp = \"http://{address}\"\n{more}",
        FILE.replacen("kind = \"https\"", "kind = \"https\"\nhttp3 = true", 1)
    );
    std::fs::write(folder.path().join("edge.toml"), text).unwrap();
    Running::start(folder, "auto")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::DoubleValue(number) => format!("{number:.9}"),
        other => panic!("{other:?}"),
    };
    list.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

/// Answers `/api/bad` with 503 and all else with its target.
fn origin() -> Origin {
    Origin::start(|message| {
        let target = message.request_line.split(' ').nth(1).unwrap().to_owned();
        if target.starts_with("/api/bad") {
            return Reply::Keep(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec());
        }
        Reply::Keep(ok(&target))
    })
}

fn edge_before(origin: &Origin, collector: &TcpListener) -> Running {
    let (address, port) = (origin.address, origin.address.port());
    let more = format!(
        "[[route]]\nhost = \"{HOST}\"\npath = \"/api\"\nproxy = \"http://{address}\"\n\
         [egress]\nallow = [{{ cidr = \"127.0.0.1/32\", ports = [{port}] }}]\n"
    );
    edge(collector, &more)
}

fn traced(method: &str, target: &str, flags: &str, agent: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nTraceparent: 00-{TRACE}-{CALLER}-{flags}\r\n\
         Tracestate: a=b\r\nUser-Agent: {agent}\r\nAuthorization: SECRET\r\n\r\n"
    )
}

#[test]
fn an_exchange_is_a_span_of_its_callers_trace_and_the_origin_goes_on_from_it() {
    let (origin, listener) = (origin(), listener());
    let edge = edge_before(&origin, &listener);
    let collector = Collector::serve(listener);
    let mut client = https(edge.https(), HOST);
    assert_eq!(client.send(traced("GET", "/api/x", "01", "u")).answer().status, 200);
    assert_eq!(client.send(traced("GET", "/api/quiet", "00", "u")).answer().status, 200);
    assert_eq!(client.send(traced("BREW", "/api/bad", "01", "u")).answer().status, 503);
    // No trace of its own, and no share of those is recorded.
    assert_eq!(https(edge.https(), HOST).get(HOST, "/api/none").status, 200);

    let spans = collector.wait_for(2);
    let [first, second] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((hex(&first.trace_id).as_str(), hex(&first.parent_span_id).as_str()), (TRACE, CALLER));
    assert_eq!((first.kind(), first.name.as_str()), (SpanKind::Server, "GET /api"));
    assert!(first.status.is_none() && first.flags == 0x301);
    assert!(first.start_time_unix_nano > 0 && first.end_time_unix_nano > first.start_time_unix_nano);
    assert_eq!(second.status.as_ref().map(|status| status.code()), Some(StatusCode::Error));
    let found = attributes(&second.attributes);
    assert_eq!((second.name.as_str(), found["error.type"].as_str()), ("_OTHER /api", "503"));
    assert_eq!(found["http.request.method_original"], "BREW");
    assert_eq!(found["portico.origin.connection.reused"], "true");
    // The origin's caller is our span; where there is none, the client's own word goes on.
    let messages = origin.messages();
    let seen: Vec<_> = messages.iter().map(|message| message.header("traceparent").unwrap()).collect();
    assert_eq!(seen[0], format!("00-{TRACE}-{}-01", hex(&first.span_id)));
    assert_eq!(seen[1], format!("00-{TRACE}-{CALLER}-00"));
    assert!(messages[0].header("tracestate") == Some("a=b") && seen[3].ends_with("-00"));
}

#[test]
fn a_span_says_who_asked_for_what_and_what_the_origin_did_and_no_secret() {
    let (origin, listener) = (origin(), listener());
    let edge = edge_before(&origin, &listener);
    let collector = Collector::serve(listener);
    let agent = "u".repeat(2 * SPAN_TEXT_BYTES_MAX);
    let mut client = https(edge.https(), HOST);
    let answer = client.send(traced("GET", "/api/x?token=SECRET", "01", &agent)).answer();
    let found = attributes(&collector.wait_for(1)[0].attributes);
    for (name, wanted) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.response.body.size", "19"),
        ("http.route", "/api"),
        ("url.scheme", "https"),
        ("url.path", "/api/x"),
        ("url.query", "token=REDACTED"),
        ("server.address", HOST),
        ("server.port", &edge.https().port().to_string()),
        ("client.address", "127.0.0.1"),
        ("network.peer.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("tls.client.server_name", HOST),
        ("tls.protocol.version", "1.3"),
        ("tls.resumed", "false"),
        ("http.request.body.size", "0"),
        ("portico.request_id", answer.header("x-request-id").unwrap()),
        ("portico.complete", "true"),
        ("portico.origin.address", &origin.address.to_string()),
        ("portico.origin.connection.reused", "false"),
    ] {
        assert_eq!(found.get(name).map(String::as_str), Some(wanted), "{name}: {found:?}");
    }
    for name in ["first_byte", "origin.connect", "origin.first_byte"] {
        assert!(found[&format!("portico.{name}.duration")].parse::<f64>().unwrap() > 0.0, "{name}");
    }
    assert_eq!(found["user_agent.original"].len(), SPAN_TEXT_BYTES_MAX);
    assert!(found.contains_key("portico.tenant.id") && found.contains_key("portico.domain.id"));
    let requests = collector.requests.lock().unwrap();
    assert!(!format!("{requests:?}").contains("SECRET"));
    let process = attributes(&requests[0].resource_spans[0].resource.as_ref().unwrap().attributes);
    assert_eq!(process["service.name"], "portico-edge");
}

#[test]
fn a_share_of_requests_without_a_trace_is_recorded_under_their_own_name() {
    let listener = listener();
    let mut edge = edge(&listener, "ratio = 1.0\n[privacy]\nclient_address = \"network\"\n");
    let collector = Collector::serve(listener);
    let answer = https(edge.https(), HOST).get(HOST, "/");
    assert_eq!(http3_get(edge.https(), Some(HOST), HOST, "/"), Ok(200));
    // What is there when the edge ends is sent.
    edge.terminate();
    assert!(edge.child.wait().unwrap().success());
    let spans = collector.spans();
    assert_eq!(spans.len(), 2);
    let span =
        spans.iter().find(|span| attributes(&span.attributes)["network.protocol.version"] == "1.1").unwrap();
    assert_eq!(Some(hex(&span.trace_id).as_str()), answer.header("x-request-id"));
    assert!(span.parent_span_id.is_empty() && span.flags == 0x101);
    let found = attributes(&span.attributes);
    assert_eq!(found["client.address"], "127.0.0.0");
    assert!(!found.contains_key("network.peer.port"));
    assert!(spans.iter().any(|span| attributes(&span.attributes)["network.protocol.version"] == "3"));
}

#[test]
fn a_collector_that_hangs_holds_up_no_request_and_each_span_is_sent_or_counted() {
    let listener = listener();
    let edge = edge(&listener, "spans_per_second = 1000000\n");
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nTraceparent: 00-{TRACE}-{CALLER}-01\r\n\r\n");
    let mut asked = 0;
    let mut client = plain(edge.addresses[1]);
    while asked < SPANS_QUEUE + 2 * SPANS_BATCH {
        client.send(request.repeat(20));
        for _ in 0..20 {
            assert_eq!(client.answer().status, 301);
        }
        asked += 20;
    }
    let of = |result: &str| edge.metric(&format!("portico_edge_spans_total{{result=\"{result}\"}}"));
    wait_until("the queue is full", || of("dropped") > 0.0);
    assert_eq!(of("sent"), 0.0);
    let collector = Collector::serve(listener);
    let all = asked as f64;
    wait_until("each is sent or counted", || of("sent") + of("dropped") == all);
    let received = collector.spans().len() as f64;
    // A call that ran into its deadline may have arrived all the same.
    assert!(received >= of("sent"), "{received} of {}", of("sent"));
    for request in collector.requests.lock().unwrap().iter() {
        let spans = request.resource_spans[0].scope_spans[0].spans.len();
        assert!((1..=SPANS_BATCH).contains(&spans), "{spans}");
    }
}

#[test]
fn what_a_collector_refuses_for_good_is_not_sent_again() {
    let listener = listener();
    let edge = edge(&listener, "ratio = 1\n");
    let collector = Collector { refusal: Some(Code::Unknown), ..Collector::default() }.start(listener);
    let of = |result: &str| edge.metric(&format!("portico_edge_spans_total{{result=\"{result}\"}}"));
    for asked in 1..=2 {
        assert_eq!(https(edge.https(), HOST).get(HOST, "/").status, 200);
        wait_until("it is counted", || of("dropped") == f64::from(asked));
    }
    assert_eq!((collector.requests.lock().unwrap().len(), of("sent")), (2, 0.0));
}

/// Each request has texts of 24 KiB, most of them no UTF-8.
#[test]
fn spans_full_of_a_clients_text_are_sent_in_calls_that_a_collector_takes() {
    let listener = listener();
    let edge = edge(&listener, "ratio = 1\n");
    let collector = Collector::serve(listener);
    let (agent, path) = (vec![0xff; 8 * SPAN_TEXT_BYTES_MAX], "/p".repeat(2 * SPAN_TEXT_BYTES_MAX));
    let head = format!("GET {path}?{} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: ", "q=&".repeat(2000));
    let request = [head.as_bytes(), &agent, b"\r\n\r\n"].concat();
    let mut client = plain(edge.addresses[1]);
    for _ in 0..SPANS_BATCH {
        client.send(&request);
        assert_eq!(client.answer().status, 301);
    }
    let spans = collector.wait_for(SPANS_BATCH);
    assert_eq!(edge.metric("portico_edge_spans_total{result=\"dropped\"}"), 0.0);
    for span in &spans {
        let found = attributes(&span.attributes);
        assert!(found.values().all(|text| text.len() <= SPAN_TEXT_BYTES_MAX), "{found:?}");
        assert_eq!(found["user_agent.original"].len(), SPAN_TEXT_BYTES_MAX / 3 * 3);
    }
    for request in collector.requests.lock().unwrap().iter() {
        assert!(request.encoded_len() <= SPANS_BATCH_BYTES + 4096, "{}", request.encoded_len());
    }
}

#[test]
fn a_dead_collector_keeps_no_edge_from_ending() {
    let listener = listener();
    let mut edge = edge(&listener, "ratio = 1\n");
    drop(listener);
    assert_eq!(https(edge.https(), HOST).get(HOST, "/").status, 200);
    // It is tried for that long, which is far below the patience of this test.
    let begun = portico_edge::clock::now();
    edge.terminate();
    let child = std::cell::RefCell::new(&mut edge.child);
    wait_until("it has ended", || child.borrow_mut().try_wait().is_ok_and(|status| status.is_some()));
    assert!(begun.elapsed() >= portico_edge::limits::SPANS_FINISH_DEADLINE);
    assert!(edge.child.wait().unwrap().success());
}

#[test]
fn strangers_have_no_more_recorded_than_the_rate() {
    let listener = listener();
    let edge = edge(&listener, "spans_per_second = 1\n");
    let collector = Collector::serve(listener);
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nTraceparent: 00-{TRACE}-{CALLER}-01\r\n\r\n");
    let mut client = plain(edge.addresses[1]);
    client.send(request.repeat(200));
    for _ in 0..200 {
        assert_eq!(client.answer().status, 301);
    }
    let of = |result: &str| edge.metric(&format!("portico_edge_spans_total{{result=\"{result}\"}}"));
    wait_until("each is sent or counted", || of("sent") + of("dropped") == 200.0);
    assert!(of("sent") >= 1.0 && of("dropped") > 0.0, "{} sent", of("sent"));
    assert!(!collector.spans().is_empty());
}
