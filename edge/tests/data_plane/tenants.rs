//! One tenant has its share and no more, whatever its visitors do; the others have theirs (promise P5).

use std::io::{Read as _, Write as _};
use std::time::Duration;

use portico_api::distribution as wire;
use portico_attacker::frame;
use portico_edge::clock;
use portico_edge::io::Backend;
use portico_edge::limits::{
    Deadlines, ORIGIN_HEADER_BYTES_MAX, TENANT_BANDWIDTH_BURST_MIN, TENANT_REQUESTS_BURST_SECONDS,
};

use crate::client::{Answer, alert_of, any_version, http2_get, https, try_https};
use crate::fleet;
use crate::harness::{Served, Setup, TestEdge, on_each_backend, proxy_to, tenant_with, wait_until};
use crate::http3_client::http3_get;
use crate::origin::{Origin, Reply, ok};

const GREEDY: &str = "greedy.example";
const OTHER: &str = "other.example";

/// Two tenants with a site each that asks `origin`.
struct Stage {
    edge: TestEdge,
    greedy: Served,
    grant: (&'static str, u16),
}

impl Stage {
    fn new(backend: Backend, origin: &Origin, deadlines: Deadlines) -> Self {
        let mut edge = TestEdge::with(backend, Setup { http3: true, deadlines, ..Setup::default() });
        let (url, grant) = (origin.url(), origin.grant());
        let mut serve =
            |name: &str| edge.serve_with(&[name], &[grant], |domain| domain.routes = vec![proxy_to(&url)]);
        let greedy = serve(GREEDY);
        serve(OTHER);
        Self { edge, greedy, grant }
    }

    /// As the control plane tells a change of the tenant.
    fn limit(&mut self, version: u64, limits: Option<wire::TenantLimits>) {
        let mut resource = tenant_with(self.greedy.tenant, version, &[self.grant], None);
        let mut body: wire::Tenant = prost::Message::decode(resource.body).unwrap();
        body.limits = limits;
        resource.body = prost::Message::encode_to_vec(&body).into();
        self.edge.apply(vec![resource]);
    }

    fn get(&self, host: &str, path: &str) -> Answer {
        https(self.edge.https, host).get(host, path)
    }

    fn refused(&self, reason: &str) -> f64 {
        self.edge.metric(&format!("portico_edge_limited_total{{reason=\"{reason}\"}}"))
    }
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").expect("a refusal says when to come again").parse().unwrap()
}

#[test]
fn a_tenant_at_ten_times_its_rate_is_held_to_it_and_the_other_is_answered() {
    on_each_backend(|backend| {
        let mut stage = Stage::new(backend, &Origin::echoing(), Deadlines::default());
        let rate = 20;
        stage.limit(2, Some(wire::TenantLimits { requests_per_second: rate, ..Default::default() }));
        let before = stage.refused("tenant_requests");
        let (mut greedy, mut other) = (https(stage.edge.https, GREEDY), https(stage.edge.https, OTHER));
        let begun = clock::now();
        let (mut answered, mut refused) = (0_u32, 0_u32);
        for _ in 0..20 * rate {
            let answer = greedy.get(GREEDY, "/");
            match answer.status {
                200 => answered += 1,
                429 => {
                    refused += 1;
                    assert_eq!(retry_after(&answer), 1);
                }
                status => panic!("{status}"),
            }
            assert_eq!(other.get(OTHER, "/").status, 200);
        }
        let burst = rate * u32::try_from(TENANT_REQUESTS_BURST_SECONDS).unwrap();
        let earned = f64::from(rate) * begun.elapsed().as_secs_f64();
        assert!(answered >= burst && f64::from(answered) <= f64::from(burst) + earned + 1.0, "{answered}");
        assert!(stage.refused("tenant_requests") >= before + f64::from(refused));

        // The same share over every protocol, and on every connection; slow enough to stay used up.
        stage.limit(3, Some(wire::TenantLimits { requests_per_second: 1, ..Default::default() }));
        wait_until("it is used up", || greedy_status(&stage) == 429);
        let over = || [http2_status(&stage), http3_get(stage.edge.https, Some(GREEDY), GREEDY, "/").unwrap()];
        wait_until("over HTTP/2 and 3 too", || over() == [429, 429]);
        let line = stage.edge.log_lines(1).into_iter().find(|line| line["status"] == 429).unwrap();
        assert_eq!(line["reason"], "tenant_requests");

        stage.limit(4, None);
        for _ in 0..100 {
            assert_eq!(greedy.get(GREEDY, "/").status, 200, "the limit is gone at once");
        }
    });
}

fn greedy_status(stage: &Stage) -> u16 {
    stage.get(GREEDY, "/").status
}

fn http2_status(stage: &Stage) -> u16 {
    http2_get(stage.edge.https, Some(GREEDY), GREEDY, "/").unwrap().status
}

#[test]
fn a_tenant_whose_origin_stands_still_holds_no_more_exchanges_than_it_may() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| match message.request_line.contains("/stall") {
            true => Reply::Stall(Vec::new()),
            false => Reply::Keep(ok("fine")),
        });
        let mut stage = Stage::new(backend, &origin, Deadlines::default());
        stage.limit(2, Some(wire::TenantLimits { exchanges: 5, ..Default::default() }));
        let before = stage.refused("tenant_exchanges");
        let mut clients: Vec<_> = (0..50).map(|_| https(stage.edge.https, GREEDY)).collect();
        for client in &mut clients {
            client.send(format!("GET /stall HTTP/1.1\r\nHost: {GREEDY}\r\n\r\n"));
        }
        wait_until("the others are refused", || stage.refused("tenant_exchanges") >= before + 45.0);
        wait_until("five are at the origin", || origin.messages().len() == 5);
        for _ in 0..20 {
            assert_eq!(stage.get(OTHER, "/").text(), "fine");
        }
        let refusal = stage.get(GREEDY, "/");
        assert_eq!((refusal.status, retry_after(&refusal)), (503, 1));
        drop(clients);
        wait_until("what has ended makes room", || greedy_status(&stage) == 200);
    });
}

#[test]
fn a_tunnel_is_an_exchange_for_as_long_as_it_is_open() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| {
            if message.header("upgrade").is_none() {
                return Reply::Keep(ok("fine"));
            }
            Reply::Take(Box::new(|mut stream| {
                let head =
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.read(&mut [0; 64]); // until the client is gone
            }))
        });
        let mut stage = Stage::new(backend, &origin, Deadlines::default());
        stage.limit(2, Some(wire::TenantLimits { exchanges: 1, ..Default::default() }));
        let mut tunnel = https(stage.edge.https, GREEDY);
        tunnel.send(format!(
            "GET / HTTP/1.1\r\nHost: {GREEDY}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ));
        assert_eq!(tunnel.answer().status, 101);
        for _ in 0..10 {
            assert_eq!(greedy_status(&stage), 503);
        }
        drop(tunnel);
        wait_until("it has ended", || greedy_status(&stage) == 200);
    });
}

/// Slower than its origin, and slower than an origin or a client may be: a piece that waits for its turn is nobody's stall.
#[test]
fn answers_come_whole_and_no_faster_than_the_tenants_bandwidth() {
    on_each_backend(|backend| {
        const BODY: usize = 96 * 1024;
        let body = "x".repeat(BODY);
        let origin = Origin::start(move |_| Reply::Keep(ok(&body)));
        let stall = Duration::from_millis(500);
        let deadlines = Deadlines { origin_body_stall: stall, write_stall: stall, ..Deadlines::default() };
        let mut stage = Stage::new(backend, &origin, deadlines);
        let bytes_per_second = 32 * 1024;
        stage.limit(2, Some(wire::TenantLimits { bytes_per_second, ..Default::default() }));
        let begun = clock::now();
        let sent: usize = std::thread::scope(|scope| {
            let downloads = [
                scope.spawn(|| stage.get(GREEDY, "/").body.len()),
                scope.spawn(|| http2_get(stage.edge.https, Some(GREEDY), GREEDY, "/").unwrap().body.len()),
            ];
            assert_eq!(stage.get(OTHER, "/").body.len(), BODY);
            downloads.into_iter().map(|download| download.join().unwrap()).sum()
        });
        assert_eq!(sent, 2 * BODY, "nothing is cut");
        // All but the burst and the last piece has waited for its turn.
        let burst = usize::try_from(TENANT_BANDWIDTH_BURST_MIN).unwrap();
        let waited = 2 * BODY - burst - (ORIGIN_HEADER_BYTES_MAX + 8 * 1024);
        let least = Duration::from_secs_f64(waited as f64 / bytes_per_second as f64);
        assert!(begun.elapsed() >= least, "{:?}, and {least:?} is the least", begun.elapsed());
    });
}

#[test]
fn who_would_wait_long_for_a_tenants_bandwidth_is_told_so_at_once() {
    on_each_backend(|backend| {
        let body = "x".repeat(64 * 1024);
        let origin = Origin::start(move |_| Reply::Keep(ok(&body)));
        let mut stage = Stage::new(backend, &origin, Deadlines::default());
        stage.limit(2, Some(wire::TenantLimits { bytes_per_second: 16 * 1024, ..Default::default() }));
        let before = stage.refused("tenant_bandwidth");
        // The queue is as long as the answers that have come from the origin.
        let waiting = std::cell::RefCell::new(Vec::new());
        wait_until("the queue is long", || {
            let mut client = https(stage.edge.https, GREEDY);
            client.send(format!("GET / HTTP/1.1\r\nHost: {GREEDY}\r\n\r\n"));
            waiting.borrow_mut().push(client);
            stage.refused("tenant_bandwidth") > before
        });
        let refusal = stage.get(GREEDY, "/");
        assert_eq!(refusal.status, 503);
        assert!(retry_after(&refusal) > 1, "{}", retry_after(&refusal));
        assert_eq!(stage.get(OTHER, "/").body.len(), 64 * 1024);
    });
}

#[test]
fn a_tenant_may_have_a_bound_of_its_own_on_request_bodies() {
    on_each_backend(|backend| {
        let mut stage = Stage::new(backend, &Origin::echoing(), Deadlines::default());
        stage.limit(2, Some(wire::TenantLimits { request_body_bytes: 1000, ..Default::default() }));
        let before = stage.refused("request_body_too_large");
        let post = |host: &str, bytes: usize, chunked: bool| {
            let body = "y".repeat(bytes);
            let message = match chunked {
                true => format!("Transfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n{body}\r\n0\r\n\r\n"),
                false => format!("Content-Length: {bytes}\r\n\r\n{body}"),
            };
            let request = format!("POST / HTTP/1.1\r\nHost: {host}\r\n{message}");
            https(stage.edge.https, host).send(request).answer().status
        };
        for chunked in [false, true] {
            assert_eq!(post(GREEDY, 1000, chunked), 200);
            assert_eq!(post(GREEDY, 1001, chunked), 413);
            assert_eq!(post(OTHER, 1001, chunked), 200);
        }
        assert!(stage.refused("request_body_too_large") >= before + 2.0);
    });
}

#[test]
fn a_tenant_has_no_more_connections_than_it_may_and_the_others_have_theirs() {
    on_each_backend(|backend| {
        let mut stage = Stage::new(backend, &Origin::echoing(), Deadlines::default());
        stage.limit(2, Some(wire::TenantLimits { connections: 2, ..Default::default() }));
        let before = stage.refused("tenant_connections");
        let mut open: Vec<_> = (0..2).map(|_| https(stage.edge.https, GREEDY)).collect();
        for client in &mut open {
            assert_eq!(client.get(GREEDY, "/").status, 200);
        }
        let connect = || try_https(stage.edge.https, Some(GREEDY), any_version(&["http/1.1"]));
        let refused = connect().err().and_then(|error| alert_of(&error));
        assert_eq!(refused, Some(rustls::AlertDescription::InternalError));
        let refused = http3_get(stage.edge.https, Some(GREEDY), GREEDY, "/").unwrap_err();
        assert!(stage.refused("tenant_connections") >= before + 2.0, "{refused}");
        for _ in 0..5 {
            assert_eq!(stage.get(OTHER, "/").status, 200);
        }
        // Those that are open go on, and what ends makes room.
        assert_eq!(open[0].get(GREEDY, "/").status, 200);
        drop(open.pop());
        wait_until("the place of one that ended", || connect().is_ok());
        drop(open);
        let over_quic =
            || http3_get(stage.edge.https, Some(GREEDY), GREEDY, "/").is_ok_and(|status| status == 200);
        wait_until("a place over QUIC", over_quic);
    });
}

/// Where a tenant says nothing the fleet does.
#[test]
fn the_fleets_limit_holds_for_every_tenant_without_one() {
    on_each_backend(|backend| {
        let mut stage = Stage::new(backend, &Origin::echoing(), Deadlines::default());
        stage.limit(2, Some(wire::TenantLimits { request_body_bytes: 2000, ..Default::default() }));
        let limits = wire::TenantLimits { request_body_bytes: 1000, ..Default::default() };
        let body = wire::Fleet { tenant_limits: Some(limits), ..wire::Fleet::default() };
        let mut fleet = fleet::resource(wire::ResourceKind::Fleet, "fleet", 1, stage.greedy.tenant, &body);
        fleet.tenant_id = String::new();
        stage.edge.apply(vec![fleet]);
        for (host, status) in [(GREEDY, 200), (OTHER, 413)] {
            let request = format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1500\r\n\r\n{}",
                "y".repeat(1500)
            );
            assert_eq!(https(stage.edge.https, host).send(request).answer().status, status, "{host}");
        }
    });
}

/// One client's hundred requests to a slow site are a hundred sockets; those of others must not be among what they take.
#[test]
fn a_slow_site_leaves_sockets_to_the_origins_of_others() {
    const MOST: u64 = 30;
    // Of one origin alone.
    let its_most = 15;
    on_each_backend(|backend| {
        let slow = Origin::start(|_| Reply::Stall(Vec::new()));
        let good = Origin::start(|_| Reply::Keep(ok("good")));
        let mut edge = TestEdge::with(backend, Setup { origin_sockets_max: MOST, ..Setup::default() });
        for (name, origin) in [("slow.example", &slow), ("good.example", &good)] {
            edge.serve_with(&[name], &[origin.grant()], |domain| {
                domain.routes = vec![proxy_to(&origin.url())]
            });
        }
        let mut attacker = try_https(edge.https, Some("slow.example"), any_version(&["h2"])).unwrap();
        attacker.send([frame::PREFACE, &frame::frame(frame::SETTINGS, 0, 0, &[])].concat());
        for number in 0..100 {
            attacker.send(frame::get(frame::stream(number), "slow.example"));
        }
        // Refused at once, those that find none.
        let lines = edge.log_lines(100 - its_most);
        assert!(
            lines.iter().all(|line| line["status"] == 503 && line["reason"] == "origin_sockets"),
            "{lines:?}"
        );
        wait_until("the others are with the origin", || slow.messages().len() == its_most);
        for _ in 0..20 {
            assert_eq!(https(edge.https, "good.example").get("good.example", "/").text(), "good");
        }
        drop(attacker);
        wait_until("they are free again", || {
            https(edge.https, "slow.example").send("GET / HTTP/1.1\r\nHost: slow.example\r\n\r\n");
            slow.messages().len() > its_most
        });
    });
}
