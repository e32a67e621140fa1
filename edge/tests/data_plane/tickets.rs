//! Whose sessions go on: those of the same name, with the same client certificates asked for.

use std::sync::{Arc, Mutex};

use portico_api::distribution as wire;
use portico_attacker::TrustAll;
use portico_cert_store::{DomainId, LineageId, TenantId};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, NamedGroup};
use tokio::task::LocalSet;

use crate::client::{alert_of, config, runtime, try_https};
use crate::client_ca::{ClientCa, ClientPair};
use crate::fleet;
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, tenant_with};
use crate::http3_client::Http3;

/// What carries a session.
#[derive(Clone, Copy, Debug)]
enum Over {
    Tls12,
    Tls13,
    Quic,
    /// Where the names take early data, and the client offers it.
    QuicEarly,
}

const EVERYTHING: [Over; 4] = [Over::Tls12, Over::Tls13, Over::Quic, Over::QuicEarly];

#[test]
fn a_session_goes_on_for_its_own_name_only() {
    on_each_backend(|backend| {
        let clients = ClientCa::new("clients");
        let pair = clients.issue("client");
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let mut early = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        publish(&mut edge, &clients, false);
        publish(&mut early, &clients, true);
        let names = NAMES.map(|name| name.replace('*', "x")).into_iter().chain(["y.w.example".to_owned()]);
        let names: Vec<String> = names.collect();
        assert_eq!(names.len(), 8);
        for over in EVERYTHING {
            let edge = if matches!(over, Over::QuicEarly) { &early } else { &edge };
            for first in &names {
                for second in &names {
                    let client = Client::new(over, Some(&pair));
                    assert_eq!(client.visit(edge, first), Ok(Kind::Full), "{over:?} {first}");
                    let kind = if first == second { Kind::Resumed } else { Kind::Full };
                    assert_eq!(client.visit(edge, second), Ok(kind), "{over:?} {first} -> {second}");
                }
            }
        }
    });
}

#[test]
fn no_session_goes_on_under_other_client_certificates() {
    on_each_backend(|backend| {
        let (old, new) = (ClientCa::new("old"), ClientCa::new("new"));
        let pair = old.issue("client");
        let both = || {
            let mut policy = old.policy(true);
            let asked = policy.client_certificates.as_mut().unwrap();
            asked.ca_der.push(new.certificate.to_vec().into());
            Some(policy)
        };
        let unknown_ca = Err("alert:48".to_owned());
        let changes = [
            // Tickets of clients that were asked for nothing.
            (None, Some(old.policy(true)), Ok(Kind::Full)),
            (None, Some(old.policy(false)), Ok(Kind::Full)),
            // The authority was replaced.
            (Some(old.policy(true)), Some(new.policy(true)), unknown_ca.clone()),
            (Some(old.policy(false)), Some(new.policy(false)), unknown_ca),
            // One was added, one taken away.
            (Some(old.policy(true)), both(), Ok(Kind::Full)),
            (both(), Some(old.policy(true)), Ok(Kind::Full)),
            // A session without a certificate must not get in where one is required.
            (Some(old.policy(false)), Some(old.policy(true)), Ok(Kind::Full)),
            (Some(old.policy(true)), None, Ok(Kind::Full)),
            (Some(old.policy(true)), Some(old.policy(true)), Ok(Kind::Resumed)),
        ];
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let served = edge.serve(&["shop.example"]);
        let mut version = 1;
        let mut put = |edge: &mut TestEdge, policy: &Option<wire::TlsPolicy>| {
            version += 1;
            let mut body = fleet::domain_body("shop.example", &[served.lineage]);
            body.tls.clone_from(policy);
            edge.apply(vec![fleet::domain(served.domains[0].1, version, served.tenant, &body)]);
        };
        for over in EVERYTHING {
            for (before, after, expected) in &changes {
                put(&mut edge, before);
                let client = Client::new(over, Some(&pair));
                assert_eq!(client.visit(&edge, "shop.example"), Ok(Kind::Full));
                put(&mut edge, after);
                let kind = client.visit(&edge, "shop.example");
                assert_eq!(kind, *expected, "{over:?}: {before:?} -> {after:?}");
            }
            // Without a certificate at all: let in while it is optional, and no longer.
            put(&mut edge, &Some(old.policy(false)));
            let client = Client::new(over, None);
            assert_eq!(client.visit(&edge, "shop.example"), Ok(Kind::Full));
            assert_eq!(client.visit(&edge, "shop.example"), Ok(Kind::Resumed));
            put(&mut edge, &Some(old.policy(true)));
            assert_eq!(client.visit(&edge, "shop.example"), Err("alert:116".to_owned()), "{over:?}");
        }
    });
}

/// Names of one certificate, of two, of a wildcard; of one tenant and of three; with and without client certificates.
const NAMES: [&str; 7] =
    ["a.example", "b.example", "c.example", "m.example", "n.example", "o.example", "*.w.example"];

fn publish(edge: &mut TestEdge, clients: &ClientCa, early_data: bool) {
    let [one, two, three] = [(); 3].map(|()| TenantId::generate());
    let [shared, own, wildcard] = [(); 3].map(|()| LineageId::generate());
    let mut resources: Vec<_> = [one, two, three].iter().map(|id| tenant_with(*id, 1, &[], None)).collect();
    let names = ["a.example", "b.example", "c.example", "m.example", "n.example"];
    resources.push(fleet::credential(shared, 1, one, &fleet::mint_operators(&names).body));
    resources.push(fleet::credential(own, 1, two, &fleet::mint(two, &["o.example"]).body));
    resources.push(fleet::credential(wildcard, 1, three, &fleet::mint(three, &["*.w.example"]).body));
    let lineages = [shared, shared, shared, shared, shared, own, wildcard];
    let tenants = [one, one, two, one, one, two, three];
    for ((name, lineage), tenant) in NAMES.iter().zip(lineages).zip(tenants) {
        let mut body = fleet::domain_body(name, &[lineage]);
        body.tls = match *name {
            "m.example" => Some(clients.policy(true)),
            "n.example" => Some(clients.policy(false)),
            _ => None,
        };
        body.tls.get_or_insert_default().early_data = early_data;
        resources.push(fleet::domain(DomainId::generate(), 1, tenant, &body));
    }
    edge.apply(resources);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full,
    Resumed,
}

/// Offers the last ticket that it got, whatever name that was for.
struct Client {
    over: Over,
    config: ClientConfig,
    tickets: Arc<LastTicket>,
    certificates_seen: Arc<TrustAll>,
}

impl Client {
    fn new(over: Over, pair: Option<&ClientPair>) -> Self {
        let (alpn, version) = match over {
            Over::Tls12 => ("http/1.1", &TLS12),
            Over::Tls13 => ("http/1.1", &TLS13),
            Over::Quic | Over::QuicEarly => ("h3", &TLS13),
        };
        let mut config = match pair {
            Some(pair) => pair.config(&[alpn], &[version]),
            None => config(&[alpn], &[version]),
        };
        let (tickets, certificates_seen) = (Arc::new(LastTicket::default()), Arc::new(TrustAll::default()));
        config.enable_early_data = matches!(over, Over::QuicEarly);
        config.resumption = Resumption::store(Arc::clone(&tickets) as Arc<_>);
        config.dangerous().set_certificate_verifier(Arc::clone(&certificates_seen) as Arc<_>);
        Self { over, config, tickets, certificates_seen }
    }

    /// One request, and the wait for the next ticket. A resumed handshake shows no certificate.
    fn visit(&self, edge: &TestEdge, name: &str) -> Result<Kind, String> {
        let before = self.certificates_seen.shown();
        match self.over {
            Over::Tls12 | Over::Tls13 => self.visit_over_tcp(edge, name)?,
            Over::Quic | Over::QuicEarly => self.visit_over_quic(edge, name)?,
        }
        Ok(if self.certificates_seen.shown() > before { Kind::Full } else { Kind::Resumed })
    }

    fn visit_over_tcp(&self, edge: &TestEdge, name: &str) -> Result<(), String> {
        let told = |error: std::io::Error| match alert_of(&error) {
            Some(alert) => format!("alert:{}", u8::from(alert)),
            None => error.to_string(),
        };
        let mut client = try_https(edge.https, Some(name), self.config.clone()).map_err(told)?;
        client.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        // A ticket comes before the answer.
        let answer = client.answer_to("GET").map_err(told)?;
        assert_eq!(answer.status, 200, "{name}");
        Ok(())
    }

    fn visit_over_quic(&self, edge: &TestEdge, name: &str) -> Result<(), String> {
        LocalSet::new().block_on(&runtime(), async {
            let mut client = Http3::connect_with(self.config.clone(), edge.https, Some(name)).await?;
            let request = http::Request::get(format!("https://{name}/")).body(()).unwrap();
            let answer = client.ask(request).await?.ok_or("GOAWAY")?;
            assert_eq!(answer.status, 200, "{name}");
            let ticket = async {
                while !self.tickets.is_there() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(PATIENCE, ticket).await.map_err(|_| "no ticket".to_owned())?;
            client.close();
            client.endpoint.wait_idle().await;
            Ok(())
        })
    }
}

#[derive(Debug, Default)]
struct LastTicket {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tls13: Mutex<Option<Tls13ClientSessionValue>>,
}

impl LastTicket {
    fn is_there(&self) -> bool {
        self.tls13.lock().unwrap().is_some()
    }
}

impl ClientSessionStore for LastTicket {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.tls12.lock().unwrap() = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().unwrap().clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        *self.tls12.lock().unwrap() = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        *self.tls13.lock().unwrap() = Some(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tls13.lock().unwrap().take()
    }
}
