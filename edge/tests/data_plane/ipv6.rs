//! IPv6 on both sides.

use std::net::Ipv6Addr;

use crate::client::{http2_get, https, plain};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};
use crate::http3_client::http3_get;
use crate::origin::{Origin, Reply, ok};

const HOST: &str = "shop.example";

#[test]
fn every_protocol_is_served_on_ipv6_from_an_ipv6_origin() {
    on_each_backend(|backend| {
        let origin = Origin::at("[::1]:0", |message| {
            Reply::Keep(ok(message.header("x-forwarded-for").unwrap_or("nobody")))
        });
        let setup = Setup { ip: Ipv6Addr::LOCALHOST.into(), http3: true, workers: 2, ..Setup::default() };
        let mut edge = TestEdge::with(backend, setup);
        let url = origin.url();
        assert!(url.starts_with("http://[::1]:"), "{url}");
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            domain.https_redirect_off = true;
            domain.routes = vec![proxy_to(&url)];
        });
        for _ in 0..4 {
            let answer = https(edge.https, HOST).get(HOST, "/");
            assert_eq!((answer.status, answer.text().as_str()), (200, "::1"));
            let answer = http2_get(edge.https, Some(HOST), HOST, "/").unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "::1"));
            assert_eq!(http3_get(edge.https, Some(HOST), HOST, "/"), Ok(200));
            assert_eq!(plain(edge.http).get(HOST, "/").status, 200);
        }
        let lines = edge.log_lines(16);
        assert!(lines.iter().all(|line| line["peer"] == "::1"), "{lines:?}");
        assert!(lines.iter().all(|line| line["origin"].as_str().unwrap().starts_with("[::1]:")), "{lines:?}");
    });
}

#[test]
fn no_way_of_writing_an_address_in_ipv6_passes_the_guard() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        // A grant for what an address stands for in IPv4 opens no form of it that is not the same address.
        let grants = [("10.0.0.0/8", 80), ("169.254.0.0/16", 8080)];
        let forms = [
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[0:0:0:0:0:ffff:a9fe:a9fe]",
            "[::ffff:0:169.254.169.254]",
            "[::169.254.169.254]",
            "[fe80::1]",
            "[febf::1]",
            "[fec0::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fdff:ffff::1]",
            "[64:ff9b::169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::a9fe:a9fe]",
            "[64:ff9b::10.0.0.1]",
            "[2002:a9fe:a9fe::1]",
            "[2001:0:a9fe:a9fe::1]",
            "[::]",
            "[::1]",
            "[ff02::1]",
        ];
        let before = edge.metric("portico_edge_egress_refused_total");
        for (number, form) in forms.iter().enumerate() {
            let name = format!("v{number}.example");
            let url = format!("http://{form}");
            edge.serve_with(&[&name], &grants, |domain| domain.routes = vec![proxy_to(&url)]);
            assert_eq!(https(edge.https, &name).get(&name, "/").status, 502, "{form}");
        }
        let lines = edge.log_lines(forms.len());
        for (form, line) in forms.iter().zip(&lines) {
            assert_eq!(line["reason"], "egress", "{form}");
            // The route's origin is named, and no connection was made to it.
            assert!(line["origin"].is_string() && line["origin_connect_us"].is_null(), "{form}: {line}");
        }
        assert!(edge.metric("portico_edge_egress_refused_total") - before >= 20.0);
    });
}
