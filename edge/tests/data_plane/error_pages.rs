//! A tenant's own error pages: shown where the edge has an error to tell, and nowhere else.

use portico_api::distribution as wire;
use portico_edge::io::Backend;
use portico_edge::live::{Suspension, SuspensionMode};

use crate::client::{Answer, plain};
use crate::fleet;
use crate::harness::{Served, Setup, TestEdge, on_each_backend, proxy_to, tenant_with};
use crate::origin::{Origin, Reply};
use crate::routes::{HOST, PROTOCOLS, ask};

const HTML: &str = "text/html; charset=utf-8";
const SORRY: &str = "<h1>Sorry</h1>";

struct Stage {
    edge: TestEdge,
    served: Served,
    origin: Origin,
    grants: Vec<(&'static str, u16)>,
}

impl Stage {
    /// `/gone` has no origin, `/mute` one that never answers, `/own` one with an error of its own; nothing else has a route.
    fn new(backend: Backend) -> Self {
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let origin = Origin::start(|message| match message.request_line.contains(" /own ") {
            true => Reply::Keep(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nmine".to_vec()),
            false => Reply::Stall(Vec::new()),
        });
        let gone = portico_ports::reserve();
        let grants = vec![origin.grant(), ("127.0.0.0/8", gone.port())];
        let at = |path: &str, url: &str| wire::Route { path_prefix: path.into(), ..proxy_to(url) };
        let url = origin.url();
        let mut mute = at("/mute", &url);
        if let Some(wire::route::Action::Proxy(proxy)) = &mut mute.action {
            proxy.first_byte_timeout_ms = 100;
        }
        let served = edge.serve_with(&[HOST], &grants, |domain| {
            domain.routes = vec![at("/gone", &format!("http://{gone}")), mute.clone(), at("/own", &url)];
        });
        Self { edge, served, origin, grants }
    }

    /// As the control plane tells a change of the tenant.
    fn set(&mut self, version: u64, change: impl FnOnce(&mut wire::Tenant)) {
        let mut resource = tenant_with(self.served.tenant, version, &self.grants, None);
        let mut body: wire::Tenant = prost::Message::decode(resource.body).unwrap();
        change(&mut body);
        resource.body = prost::Message::encode_to_vec(&body).into();
        self.edge.apply(vec![resource]);
    }

    fn domain(&mut self, version: u64, change: impl FnOnce(&mut wire::Domain)) {
        let (name, id) = &self.served.domains[0];
        let mut body = fleet::domain_body(name, &[self.served.lineage]);
        change(&mut body);
        let resource = fleet::domain(*id, version, self.served.tenant, &body);
        self.edge.apply(vec![resource]);
    }
}

fn page(status: u32, content_type: &str, body: &str) -> wire::ErrorPage {
    wire::ErrorPage { status, content_type: content_type.into(), body: body.into() }
}

fn shown(answer: &Answer) -> (u16, Option<&str>, String) {
    (answer.status, answer.header("content-type"), answer.text())
}

#[test]
fn visitors_see_the_tenants_page_over_each_protocol_and_operators_the_reason() {
    on_each_backend(|backend| {
        let mut stage = Stage::new(backend);
        let neutral = ask(&stage.edge, "h1", "GET", "/gone", &[]);
        assert_eq!((neutral.status, neutral.header("content-type")), (502, Some(HTML)));
        assert!(neutral.text().contains("<h1>Bad Gateway</h1>"), "{}", neutral.text());
        let json = "{\"error\": \"slow\"}";
        let large = "x".repeat(64 * 1024);
        stage.set(2, |tenant| {
            tenant.error_pages = vec![
                page(502, HTML, SORRY),
                page(504, "application/json", json),
                page(404, "text/plain", &large),
            ];
        });
        let cases = [
            ("/gone", 502, HTML, SORRY, "connect"),
            ("/mute", 504, "application/json", json, "first_byte_timeout"),
            ("/none", 404, "text/plain", &large, "no_route"),
        ];
        let mut lines = 1;
        for protocol in PROTOCOLS {
            for (path, status, content_type, body, reason) in cases {
                let answer = ask(&stage.edge, protocol, "GET", path, &[]);
                assert!(shown(&answer) == (status, Some(content_type), body.into()), "{protocol} {path}");
                assert_eq!(answer.header("cache-control"), Some("no-store"), "{protocol} {path}");
                assert!(
                    !answer.headers.iter().any(|(_, value)| value.contains(reason)),
                    "{:?}",
                    answer.headers
                );
                lines += 1;
                let line = &stage.edge.log_lines(lines)[lines - 1];
                assert_eq!(
                    (&line["status"], &line["reason"]),
                    (&status.into(), &reason.into()),
                    "{protocol}"
                );
            }
            let head = ask(&stage.edge, protocol, "HEAD", "/gone", &[]);
            assert_eq!(shown(&head), (502, Some(HTML), String::new()), "{protocol}");
            assert_eq!(head.header("content-length"), Some("14"), "{protocol}");
            // A client of gRPC looks for its own status, and would not know what to do with a page.
            let call = ask(&stage.edge, protocol, "POST", "/gone", &[("content-type", "application/grpc")]);
            assert_eq!(shown(&call), (200, Some("application/grpc"), String::new()), "{protocol}");
            assert_eq!(call.header("grpc-status"), Some("14"), "{protocol}");
            // What an origin says is the tenant's already.
            let own = ask(&stage.edge, protocol, "GET", "/own", &[]);
            assert_eq!((own.status, own.text()), (503, "mine".to_owned()), "{protocol}");
            lines += 3;
            stage.edge.log_lines(lines);
        }
        let series = "portico_edge_origin_errors_total{reason=\"connect\"}";
        assert!(stage.edge.metric(series) >= 10.0, "{}", stage.edge.metric(series));
        assert_eq!(stage.origin.faults(), Vec::<String>::new());
        stage.set(3, |_| ());
        let again = ask(&stage.edge, "h2", "GET", "/gone", &[]);
        assert_eq!(again.text(), neutral.text());
    });
}

#[test]
fn pages_with_words_of_their_own_stay_and_limits_tell_when_to_come_again() {
    on_each_backend(|backend| {
        let mut stage = Stage::new(backend);
        let busy = "<h1>Busy</h1>";
        let pages = vec![page(503, HTML, busy), page(429, HTML, SORRY), page(404, HTML, SORRY)];
        stage.set(2, |tenant| tenant.error_pages.clone_from(&pages));
        let maintenance = |text: &str| wire::Maintenance { text: text.into(), retry_after_seconds: 600 };
        stage.domain(2, |domain| domain.maintenance = Some(maintenance("back at noon")));
        let answer = ask(&stage.edge, "h1", "GET", "/", &[]);
        assert!(answer.text().contains("<p>back at noon</p>"), "{}", answer.text());
        stage.domain(3, |domain| domain.maintenance = Some(maintenance("")));
        let answer = ask(&stage.edge, "h1", "GET", "/", &[]);
        assert_eq!(shown(&answer), (503, Some(HTML), busy.into()));
        assert_eq!(answer.header("retry-after"), Some("600"));

        let page = Suspension { mode: SuspensionMode::Page, reason: "unpaid".into(), until_unix_ms: 0 };
        let tenant = stage.served.tenant;
        stage.edge.bench.publisher.suspend(tenant, None, Some(page), 2).unwrap();
        let answer = ask(&stage.edge, "h2", "GET", "/", &[]);
        assert!(answer.text().contains("<p>unpaid</p>"), "{}", answer.text());
        stage.edge.bench.publisher.suspend(tenant, None, None, 2).unwrap();

        stage.domain(4, |_| ());
        stage.set(3, |tenant| {
            tenant.error_pages.clone_from(&pages);
            tenant.limits = Some(wire::TenantLimits { requests_per_second: 1, ..Default::default() });
        });
        let refused =
            (0..100).map(|_| ask(&stage.edge, "h2", "GET", "/", &[])).find(|answer| answer.status == 429);
        let refused = refused.expect("too many");
        assert_eq!(shown(&refused), (429, Some(HTML), SORRY.into()));
        assert!(refused.header("retry-after").is_some(), "{:?}", refused.headers);

        // Nobody has proved that the name is the tenant's, so it shows nothing there.
        stage.set(4, |tenant| tenant.error_pages = pages);
        stage.domain(5, |domain| domain.served = false);
        let unproved = plain(stage.edge.http).get(HOST, "/");
        assert_eq!(unproved.status, 404);
        assert!(!unproved.text().contains(SORRY), "{}", unproved.text());
    });
}
