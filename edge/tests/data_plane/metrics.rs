//! What the metrics say, and that nobody outside adds a series to them.

use std::collections::BTreeSet;
use std::io::Write as _;

use crate::client::{any_version, config, http2_get, https, plain, tcp, try_https};
use crate::harness::wait_until;
use crate::process::{FILE, Running, pem, prepare};

/// Of `shop.example`, with a redirect beside its fixed answer, and of every name below `wild.example`.
fn start() -> Running {
    let folder = prepare();
    std::fs::write(folder.path().join("certificates/wild.pem"), pem(&["*.wild.example"])).unwrap();
    let routes =
        "[[route]]\nhost = \"shop.example\"\npath = \"/old\"\nredirect = \"https://shop.example/\"\n";
    let text = FILE.replacen("[[route]]", &format!("{routes}[[route]]"), 1);
    std::fs::write(folder.path().join("edge.toml"), text).unwrap();
    Running::start(folder, "auto")
}

/// Each with its labels.
fn series(edge: &Running) -> BTreeSet<String> {
    let text = edge.metrics("/metrics").1;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

#[test]
fn lookups_versions_groups_and_actions_are_counted() {
    let edge = start();
    let metric = |name: &str| edge.metric(&format!("portico_edge_{name}"));
    let count = |name: &str, wanted: f64| {
        wait_until(&format!("{name} is {wanted}, not {}", metric(name)), || metric(name) == wanted);
    };
    assert_eq!(https(edge.https(), "shop.example").get("shop.example", "/").status, 200);
    assert_eq!(https(edge.https(), "shop.example").get("shop.example", "/old").status, 308);
    assert_eq!(https(edge.https(), "a.wild.example").get("a.wild.example", "/").status, 200);
    let old = config(&["http/1.1"], &[&rustls::version::TLS12]);
    let mut old = try_https(edge.https(), Some("shop.example"), old).unwrap();
    assert_eq!(old.get("other.example", "/").status, 421);
    assert!(try_https(edge.https(), Some("other.example"), any_version(&[])).is_err());
    assert_eq!(plain(edge.addresses[1]).get("shop.example", "/").status, 301);
    count("sni_lookups_total{result=\"exact\"}", 3.0);
    count("sni_lookups_total{result=\"wildcard\"}", 1.0);
    count("sni_lookups_total{result=\"default\"}", 0.0);
    count("sni_lookups_total{result=\"miss\"}", 1.0);
    count("tls_versions_total{version=\"1.2\"}", 1.0);
    count("tls_versions_total{version=\"1.3\"}", 3.0);
    count("exchanges_by_action_total{action=\"static\"}", 2.0);
    count("exchanges_by_action_total{action=\"redirect\"}", 1.0);
    count("exchanges_by_action_total{action=\"own\"}", 2.0);
    count("exchanges_in_flight{protocol=\"h1\"}", 0.0);
    let groups = ["x25519mlkem768", "x25519", "secp256r1", "secp384r1"];
    let by_group = groups.map(|group| metric(&format!("key_exchanges_total{{group=\"{group}\"}}")));
    assert_eq!(by_group.iter().sum::<f64>(), 4.0, "{by_group:?}");
    // TLS 1.2 has no group for it.
    assert!(by_group[1..].iter().sum::<f64>() >= 1.0, "{by_group:?}");

    let held = try_https(edge.https(), Some("shop.example"), any_version(&["h2"])).unwrap();
    count("connections_served{protocol=\"h2\"}", 1.0);
    drop(held);
    count("connections_served{protocol=\"h2\"}", 0.0);
    drop(old);
    count("connections_served{protocol=\"h1\"}", 0.0);
    count("last_reload_successful", 1.0);
}

/// Whatever clients make up: names, hosts, methods, targets, fields, protocols.
#[test]
fn no_client_adds_a_series() {
    let edge = start();
    assert_eq!(https(edge.https(), "shop.example").get("shop.example", "/").status, 200);
    wait_until("an exchange is in all histograms", || {
        edge.metric("portico_edge_exchange_seconds_count") >= 1.0
    });
    let before = series(&edge);
    assert!(before.len() > 200, "{before:?}");
    for number in 0..400 {
        let name = format!("made-up-{number}.example");
        assert!(try_https(edge.https(), Some(&name), any_version(&[&format!("proto-{number}")])).is_err());
        let host = format!("made-up-{number}.wild.example");
        let mut client = https(edge.https(), &host);
        for host in [&host, &name, "shop.example"] {
            client.send(format!(
                "METHOD{number} /path-{number}?q={number} HTTP/1.1\r\nHost: {host}\r\nX-Field-{number}: {number}\r\n\
                 X-Request-Id: made-up-{number}\r\nUser-Agent: agent-{number}\r\nContent-Length: 0\r\n\r\n"
            ));
            assert!(client.answer().status >= 400, "nobody has such a method");
        }
        if number % 20 == 0 {
            let answer = http2_get(edge.https(), Some(&host), &host, &format!("/path-{number}"));
            assert_eq!(answer.unwrap().status, 200);
            let mut socket = tcp(edge.addresses[1]);
            write!(socket, "PROTO{number} / NOHTTP/{number}\r\n\r\n").unwrap();
        }
    }
    wait_until("all of it is counted", || {
        edge.metric("portico_edge_sni_lookups_total{result=\"miss\"}") >= 400.0
    });
    let after = series(&edge);
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
    assert!(!after.iter().any(|series| series.contains("made-up")), "{after:?}");
    let other = edge.metric("portico_edge_requests_refused_total{reason=\"other\"}");
    assert_eq!(other, 0.0, "a reason that the metrics do not list");
}
