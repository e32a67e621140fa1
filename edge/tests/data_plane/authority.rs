//! The rule of misdirected requests, row by row: `tests/authority.golden` is the whole of it.

use portico_api::distribution as wire;
use portico_cert_store::{DomainId, LineageId, TenantId};

use crate::client::{alert_of, http2_get_with, try_https};
use crate::client_ca::{ClientCa, ClientPair};
use crate::fleet;
use crate::harness::{Setup, TestEdge, on_each_backend, tenant_with};
use crate::http3_client::http3_with;

pub const GOLDEN: &str = include_str!("../authority.golden");

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    line: usize,
    pub default: bool,
    pub sni: Option<&'static str>,
    pub authority: &'static str,
    pub expected: &'static str,
}

pub fn rows() -> Vec<Row> {
    let lines =
        GOLDEN.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, text)| {
            let mut words: Vec<_> = text.split_whitespace().collect();
            let default = words[0] == "default";
            if default {
                words.remove(0);
            }
            let [sni, authority, expected] = words[..] else { panic!("line {}: {text:?}", number + 1) };
            Row { line: number + 1, default, sni: (sni != "-").then_some(sni), authority, expected }
        })
        .collect()
}

/// Publishes what the head of the table says.
pub fn publish(edge: &mut TestEdge, clients: &ClientCa, default: bool) {
    let [a, b, c, d, e] = [(); 5].map(|()| TenantId::generate());
    let [one, two, three, four, five, six] = [(); 6].map(|()| LineageId::generate());
    let mut resources: Vec<_> = [a, b, c, d, e].iter().map(|id| tenant_with(*id, 1, &[], None)).collect();
    let names = ["a.example", "www.a.example", "strict.a.example", "claim.a.example", "gone.a.example"];
    resources.push(fleet::credential(one, 1, a, &fleet::mint(a, &names).body));
    resources.push(fleet::credential(two, 1, b, &fleet::mint_operators(&["b.example", "c.example"]).body));
    resources.push(fleet::credential(three, 1, d, &fleet::mint(d, &["*.d.example"]).body));
    resources.push(fleet::credential(four, 1, d, &fleet::mint(d, &["own.d.example"]).body));
    resources.push(fleet::credential(five, 1, a, &fleet::mint_operators(&["default.invalid"]).body));
    let names = ["*.e.example", "m.e.example", "n.e.example", "o.example"];
    resources.push(fleet::credential(six, 1, e, &fleet::mint(e, &names).body));
    let mut domain = |tenant, name: &str, lineage, change: &dyn Fn(&mut wire::Domain)| {
        let mut body = fleet::domain_body(name, &[lineage]);
        change(&mut body);
        resources.push(fleet::domain(DomainId::generate(), 1, tenant, &body));
    };
    domain(a, "a.example", one, &|_| ());
    domain(a, "www.a.example", one, &|_| ());
    domain(a, "strict.a.example", one, &|domain| {
        let minimum_version = wire::TlsVersion::TlsVersion13 as i32;
        domain.tls = Some(wire::TlsPolicy { minimum_version, ..Default::default() });
    });
    domain(a, "claim.a.example", one, &|domain| domain.served = false);
    domain(b, "b.example", two, &|_| ());
    domain(c, "c.example", two, &|_| ());
    domain(d, "*.d.example", three, &|_| ());
    domain(d, "own.d.example", four, &|_| ());
    for name in &names[..3] {
        domain(e, name, six, &|domain| domain.tls = Some(clients.policy(true)));
    }
    domain(e, "o.example", six, &|_| ());
    if default {
        let fallback = DomainId::generate();
        resources.push(fleet::domain(fallback, 1, a, &fleet::domain_body("default.invalid", &[five])));
        let fleet = wire::Fleet {
            unknown_sni: wire::UnknownSni::Default as i32,
            default_domain_id: fallback.to_string(),
            ..wire::Fleet::default()
        };
        let mut resource = fleet::resource(wire::ResourceKind::Fleet, "fleet", 1, a, &fleet);
        resource.tenant_id = String::new();
        resources.push(resource);
    }
    edge.apply(resources);
}

#[test]
fn the_golden_table_holds_for_http1() {
    check_all(|edge, client, row| {
        let mut client = match try_https(edge.https, row.sni, client.any_version(&["http/1.1"])) {
            Ok(client) => client,
            Err(error) => return alert_text(&error),
        };
        client.get(row.authority, "/").status.to_string()
    });
}

#[test]
fn the_golden_table_holds_for_http2() {
    check_all(|edge, client, row| {
        match http2_get_with(client.any_version(&["h2"]), edge.https, row.sni, row.authority, "/") {
            Ok(answer) => answer.status.to_string(),
            Err(error) => alert_text(&error),
        }
    });
}

#[test]
fn the_golden_table_holds_for_http3() {
    check_all(|edge, client, row| {
        let request = http::Request::get(format!("https://{}/", row.authority)).body(()).unwrap();
        match http3_with(client.any_version(&["h3"]), edge.https, row.sni, request) {
            Ok(answer) => answer.status.to_string(),
            Err(error) => error,
        }
    });
}

fn alert_text(error: &std::io::Error) -> String {
    match alert_of(error) {
        Some(alert) => format!("alert:{}", u8::from(alert)),
        None => format!("{error}"),
    }
}

fn check_all(ask: impl Fn(&TestEdge, &ClientPair, &Row) -> String) {
    let clients = ClientCa::new("clients");
    let client = clients.issue("client");
    on_each_backend(|backend| {
        let start = || TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let mut plain = start();
        publish(&mut plain, &clients, false);
        let mut with_default = start();
        publish(&mut with_default, &clients, true);
        let rows = rows();
        assert!(rows.len() > 30, "the table is there");
        for row in &rows {
            let edge = if row.default { &with_default } else { &plain };
            assert_eq!(
                ask(edge, &client, row),
                row.expected,
                "authority.golden:{} on {backend:?}: {row:?}",
                row.line
            );
        }
    });
}
