//! Origins that let nobody in without a client certificate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_api::distribution as wire;
use portico_cert_store::{LineageId, TenantId};
use portico_edge::io::Backend;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::sync::watch;

use crate::client::{https, runtime};
use crate::client_ca::{ClientCa, ClientPair};
use crate::fleet;
use crate::harness::{Served, Setup, TestEdge, on_each_backend, tenant_with, wait_until};
use crate::process::{Running, prepare};
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

/// Answers with the common name of who asks ("-": nobody) and the number of its connection. `/slow` waits for a word.
struct Origin {
    address: SocketAddr,
    ca_der: Bytes,
    ca_pem: String,
    seen: Arc<Mutex<Vec<String>>>,
    go_on: watch::Sender<bool>,
}

struct Wants<'a> {
    ca: &'a ClientCa,
    required: bool,
    versions: &'a [&'static SupportedProtocolVersion],
    /// Each answer ends its connection, so that the next request makes another.
    closing: bool,
}

impl<'a> Wants<'a> {
    fn from(ca: &'a ClientCa) -> Self {
        Self { ca, required: true, versions: rustls::ALL_VERSIONS, closing: false }
    }
}

impl Origin {
    fn start(wants: &Wants<'_>) -> Self {
        let own = ClientCa::new("origin's own");
        let pair = own.issue_with("origin", |params| {
            params.extended_key_usages.clear();
            params.subject_alt_names = vec![rcgen::SanType::DnsName("in.example".try_into().unwrap())];
        });
        let config = server_config(wants, &pair);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (go_on, may_go_on) = watch::channel(false);
        let origin = Self {
            address: listener.local_addr().unwrap(),
            ca_der: own.certificate.to_vec().into(),
            ca_pem: own.pem,
            seen: Arc::default(),
            go_on,
        };
        let (seen, closing) = (Arc::clone(&origin.seen), wants.closing);
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
                let mut number = 0;
                while let Ok((stream, _)) = listener.accept().await {
                    number += 1;
                    let (acceptor, seen, may_go_on) =
                        (acceptor.clone(), Arc::clone(&seen), may_go_on.clone());
                    tokio::spawn(async move {
                        // The refused are no failure of the origin's.
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        serve(stream, number, (seen, may_go_on), closing).await;
                    });
                }
            });
        });
        origin
    }

    fn route(&self, change: impl FnOnce(&mut wire::Proxy)) -> wire::Route {
        let route = proxy(&[format!("https://{}", self.address)], |proxy| {
            proxy.tls_ca_der = vec![self.ca_der.clone()];
            proxy.tls_server_name = "in.example".into();
            proxy.tls_client_certificate = true;
            change(proxy);
        });
        level_2(route)
    }

    fn grant(&self) -> (&'static str, u16) {
        ("127.0.0.0/8", self.address.port())
    }

    fn edge(&self, backend: Backend, change: impl FnOnce(&mut wire::Proxy)) -> (TestEdge, Served) {
        let mut edge = TestEdge::start(backend);
        let route = self.route(change);
        let served = edge.serve_with(&[HOST], &[self.grant()], |domain| domain.routes = vec![route.clone()]);
        (edge, served)
    }

    /// Who has asked so far.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// A route that no edge may follow by half.
fn level_2(mut route: wire::Route) -> wire::Route {
    let path = Some(wire::rule::Path::Prefix(std::mem::take(&mut route.path_prefix)));
    route.rule = Some(wire::Rule { level: 2, path, ..wire::Rule::default() });
    route
}

fn server_config(wants: &Wants<'_>, pair: &ClientPair) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(wants.ca.certificate.clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = if wants.required { verifier } else { verifier.allow_unauthenticated() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(wants.versions)
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![pair.leaf.clone()], pair.private_key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

type Shared = (Arc<Mutex<Vec<String>>>, watch::Receiver<bool>);

async fn serve(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    number: usize,
    (seen, may_go_on): Shared,
    closing: bool,
) {
    let session = stream.get_ref().1;
    let who = session.peer_certificates().map_or("-".to_owned(), |chain| common_name(&chain[0]));
    let http2 = session.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request: Request<Incoming>| {
        let (who, mut may_go_on) = (who.clone(), may_go_on.clone());
        seen.lock().unwrap().push(format!("{who} {}", request.uri().path()));
        async move {
            if request.uri().path() == "/slow" {
                may_go_on.wait_for(|may| *may).await.unwrap();
            }
            let mut response = Response::new(Full::new(Bytes::from(format!("{who} {number}"))));
            if closing {
                response.headers_mut().insert("connection", "close".parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream);
    // How a connection ends is seen by who asked.
    if http2 {
        let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ended = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

/// A tenant's identity as it is distributed.
fn identity(id: LineageId, version: u64, tenant: TenantId, pair: &ClientPair) -> wire::Resource {
    let body = fleet::sealed(&tenant.to_string(), vec![pair.leaf.to_vec()], &pair.key());
    fleet::resource(wire::ResourceKind::OriginIdentity, &id.to_string(), version, tenant, &body)
}

const PROTOCOLS: [wire::OriginProtocol; 2] = [wire::OriginProtocol::Http1, wire::OriginProtocol::Http2];

#[test]
fn the_right_certificate_is_accepted_and_any_other_is_a_502_with_its_reason() {
    on_each_backend(|backend| {
        let (ca, foreign) = (ClientCa::new("ours"), ClientCa::new("theirs"));
        for (protocol, versions) in PROTOCOLS.into_iter().flat_map(|of| [(of, [&TLS12]), (of, [&TLS13])]) {
            let origin = Origin::start(&Wants { versions: &versions, ..Wants::from(&ca) });
            let (mut edge, served) = origin.edge(backend, |proxy| proxy.protocol = protocol.into());
            let id = LineageId::generate();
            let mut line = 0;
            let mut refused = |edge: &TestEdge, reason: &str| {
                let series = format!("portico_edge_origin_errors_total{{reason=\"{reason}\"}}");
                let before = edge.metric(&series);
                let answer = https(edge.https, HOST).get(HOST, "/");
                assert_eq!(answer.status, 502, "{protocol:?} {versions:?} {reason}");
                assert!(!answer.text().contains("certificate"), "visitors are told nothing of it");
                line += 1;
                assert_eq!(edge.log_lines(line)[line - 1]["reason"], reason, "{protocol:?} {versions:?}");
                assert!(edge.metric(&series) > before);
            };
            refused(&edge, "no_client_certificate");
            edge.apply(vec![identity(id, 1, served.tenant, &foreign.issue("stranger"))]);
            refused(&edge, "client_certificate");
            edge.apply(vec![identity(id, 2, served.tenant, &ca.issue_expired())]);
            refused(&edge, "client_certificate");
            assert_eq!(origin.seen(), Vec::<String>::new());
            edge.apply(vec![identity(id, 3, served.tenant, &ca.issue("edge"))]);
            let mut client = https(edge.https, HOST);
            // One connection for both: the one that was let in.
            let first = client.get(HOST, "/");
            assert_eq!((first.status, &first.text()[..5]), (200, "edge "), "{protocol:?} {versions:?}");
            assert_eq!(client.get(HOST, "/").text(), first.text());
        }
    });
}

#[test]
fn an_origin_that_wants_a_certificate_of_a_route_that_has_none_is_told_from_others() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::start(&Wants::from(&ca));
        for protocol in PROTOCOLS {
            let (edge, _) = origin.edge(backend, |proxy| {
                (proxy.tls_client_certificate, proxy.protocol) = (false, protocol.into());
            });
            assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 502);
            assert_eq!(edge.log_lines(1)[0]["reason"], "client_certificate");
        }
    });
}

#[test]
fn a_rotation_takes_effect_at_once_and_cuts_nobody() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        for protocol in PROTOCOLS {
            let origin = Origin::start(&Wants::from(&ca));
            let (mut edge, served) = origin.edge(backend, |proxy| proxy.protocol = protocol.into());
            let id = LineageId::generate();
            edge.apply(vec![identity(id, 1, served.tenant, &ca.issue("first"))]);
            let address = edge.https;
            let slow = std::thread::spawn(move || https(address, HOST).get(HOST, "/slow"));
            wait_until("the slow request is under way", || origin.seen().contains(&"first /slow".to_owned()));
            // A second one is kept, and idle.
            assert_eq!(&https(edge.https, HOST).get(HOST, "/").text()[..5], "first");
            edge.apply(vec![identity(id, 2, served.tenant, &ca.issue("second"))]);
            for _ in 0..5 {
                let answer = https(edge.https, HOST).get(HOST, "/");
                assert_eq!((answer.status, &answer.text()[..6]), (200, "second"));
            }
            origin.go_on.send_replace(true);
            let answer = slow.join().unwrap();
            assert_eq!((answer.status, &answer.text()[..5]), (200, "first"));
            assert_eq!(
                &https(edge.https, HOST).get(HOST, "/").text()[..6],
                "second",
                "nor is it kept for others"
            );
        }
    });
}

#[test]
fn a_removed_identity_is_shown_no_more_and_the_one_before_is_in_force_again() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::start(&Wants::from(&ca));
        let (mut edge, served) = origin.edge(backend, |_| ());
        let (older, newer) = (LineageId::generate(), LineageId::generate());
        let shown = |edge: &TestEdge| {
            let answer = https(edge.https, HOST).get(HOST, "/");
            (answer.status, answer.text().split(' ').next().unwrap().to_owned())
        };
        let remove = |edge: &mut TestEdge, id: LineageId| {
            let tombstone = fleet::tombstone(wire::ResourceKind::OriginIdentity, &id.to_string());
            assert!(edge.bench.remove(vec![tombstone]).nacks.is_empty());
        };
        // The order within a batch says nothing.
        edge.apply(vec![
            identity(newer, 8, served.tenant, &ca.issue("newer")),
            identity(older, 7, served.tenant, &ca.issue("older")),
        ]);
        assert_eq!(shown(&edge), (200, "newer".to_owned()));
        remove(&mut edge, newer);
        assert_eq!(shown(&edge), (200, "older".to_owned()));
        edge.apply(vec![identity(newer, 9, served.tenant, &ca.issue("newest"))]);
        remove(&mut edge, older);
        assert_eq!(shown(&edge), (200, "newest".to_owned()));
        remove(&mut edge, newer);
        assert_eq!(shown(&edge).0, 502);
        assert_eq!(edge.log_lines(4)[3]["reason"], "no_client_certificate");
    });
}

/// Neither a kept connection nor a TLS session goes from one to another.
#[test]
fn no_connection_of_one_identity_serves_another() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        for (protocol, closing) in [(PROTOCOLS[0], false), (PROTOCOLS[1], false), (PROTOCOLS[0], true)] {
            let origin = Origin::start(&Wants { required: false, closing, ..Wants::from(&ca) });
            let mut edge = TestEdge::start(backend);
            let (shown, hidden) = (
                origin.route(|proxy| proxy.protocol = protocol.into()),
                origin.route(|proxy| {
                    (proxy.protocol, proxy.tls_client_certificate) = (protocol.into(), false);
                }),
            );
            let mut tenants = Vec::new();
            for (name, route) in [("a.example", &shown), ("b.example", &shown), ("c.example", &hidden)] {
                let served =
                    edge.serve_with(&[name], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
                let pair = ca.issue(&name[..1]);
                edge.apply(vec![identity(LineageId::generate(), 1, served.tenant, &pair)]);
                tenants.push(served.tenant);
            }
            for _ in 0..4 {
                for (name, who) in [("a.example", "a "), ("b.example", "b "), ("c.example", "- ")] {
                    let text = https(edge.https, name).get(name, "/").text();
                    assert!(text.starts_with(who), "{name}: {text} ({protocol:?}, closing: {closing})");
                }
            }
        }
    });
}

#[test]
fn health_checks_show_the_certificate_that_is_in_force() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::start(&Wants::from(&ca));
        let mut edge = TestEdge::with(backend, Setup { health_checks: true, ..Setup::default() });
        let route = origin.route(|proxy| {
            proxy.health_check = Some(wire::HealthCheck {
                path: "/up".into(),
                interval_seconds: 1,
                healthy_after: 1,
                unhealthy_after: 1,
            });
        });
        let served =
            edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        let id = LineageId::generate();
        for (version, name) in [(1, "first"), (2, "second")] {
            edge.apply(vec![identity(id, version, served.tenant, &ca.issue(name))]);
            wait_until("it is asked as whoever we are", || {
                assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 200);
                origin.seen().contains(&format!("{name} /up"))
            });
        }
    });
}

#[test]
fn an_identity_that_is_not_the_tenants_or_not_whole_is_refused_alone() {
    let (ca, pair) = (ClientCa::new("ours"), ClientCa::new("ours").issue("edge"));
    let mut edge = TestEdge::start(portico_edge::io::choose(portico_edge::io::IoChoice::Epoll).unwrap().0);
    let served = edge.serve(&[HOST]);
    let key_tenant = served.tenant.to_string();
    let good = fleet::sealed(&key_tenant, vec![pair.leaf.to_vec()], &pair.key());
    let id = LineageId::generate().to_string();
    let nack_of = |edge: &mut TestEdge, tenant: TenantId, body: &wire::Credential| {
        let resource = fleet::resource(wire::ResourceKind::OriginIdentity, &id, 1, tenant, body);
        let published = edge.bench.delta(vec![resource]);
        assert!(published.accepted.is_empty());
        published.nacks.into_iter().next().unwrap().code
    };
    let other = ca.issue("other");
    let spoilt = |change: fn(&mut wire::Credential)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    let foreign_leaf = wire::Credential { chain_der: vec![other.leaf.to_vec().into()], ..good.clone() };
    let long = vec![Bytes::from(pair.leaf.to_vec()); portico_edge::live::limits::CHAIN_CERTIFICATES_MAX + 1];
    for (body, code) in [
        (spoilt(|body| body.cell_id = "cell-b".into()), "OtherCell"),
        (spoilt(|body| body.key_tenant = TenantId::generate().to_string()), "ForeignKey"),
        (spoilt(|body| body.cell_key_epoch = 9), "KeyDoesNotOpen"),
        (spoilt(|body| body.spki_sha256 = vec![0; 32].into()), "KeyDoesNotOpen"),
        (spoilt(|body| body.spki_sha256 = Bytes::new()), "BadOriginIdentity"),
        (spoilt(|body| body.chain_der.clear()), "BadOriginIdentity"),
        (spoilt(|body| body.chain_der = vec![Bytes::from_static(b"no certificate")]), "BadOriginIdentity"),
        (foreign_leaf, "BadOriginIdentity"),
        (wire::Credential { chain_der: long, ..good.clone() }, "BadOriginIdentity"),
    ] {
        assert_eq!(nack_of(&mut edge, served.tenant, &body), code);
    }
    // Another tenant's name on the resource does not open this tenant's seal, and nobody's is nobody's.
    let stranger = TenantId::generate();
    let stolen = wire::Credential { key_tenant: stranger.to_string(), ..good.clone() };
    assert_eq!(nack_of(&mut edge, stranger, &stolen), "KeyDoesNotOpen");
    let theirs = fleet::sealed(&stranger.to_string(), vec![pair.leaf.to_vec()], &pair.key());
    assert_eq!(nack_of(&mut edge, stranger, &theirs), "UnknownTenant");
    edge.apply(vec![fleet::resource(wire::ResourceKind::OriginIdentity, &id, 1, served.tenant, &good)]);
}

#[test]
fn an_identity_that_is_taken_back_is_shown_no_more() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::start(&Wants::from(&ca));
        let (mut edge, served) = origin.edge(backend, |_| ());
        let (old, new) = (LineageId::generate(), LineageId::generate());
        edge.apply(vec![identity(old, 1, served.tenant, &ca.issue("old"))]);
        edge.apply(vec![identity(new, 2, served.tenant, &ca.issue("new"))]);
        let kind = wire::ResourceKind::OriginIdentity;
        edge.bench.remove(vec![fleet::tombstone(kind, &old.to_string())]);
        assert_eq!(&https(edge.https, HOST).get(HOST, "/").text()[..4], "new ");
        edge.bench.remove(vec![fleet::tombstone(kind, &new.to_string())]);
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 502);
        // Told again from the beginning, it is there again; what a snapshot does not have is gone.
        edge.apply(vec![identity(new, 3, served.tenant, &ca.issue("new"))]);
        assert_eq!(&https(edge.https, HOST).get(HOST, "/").text()[..4], "new ");
        edge.bench.snapshot(vec![
            tenant_with(served.tenant, 9, &[origin.grant()], None),
            fleet::domain(served.domains[0].1, 9, served.tenant, &{
                let mut body = fleet::domain_body(HOST, &[served.lineage]);
                body.routes = vec![origin.route(|_| ())];
                body
            }),
            fleet::credential(served.lineage, 9, served.tenant, &fleet::mint(served.tenant, &[HOST]).body),
        ]);
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 502);
    });
}

#[test]
fn a_standalone_edge_shows_the_certificate_of_its_file() {
    let ca = ClientCa::new("ours");
    let origin = Origin::start(&Wants::from(&ca));
    for io in ["epoll", "uring"] {
        if io == "uring" && !crate::process::uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let folder = prepare();
        let path = |name: &str| folder.path().join(name);
        let pair = ca.issue("alone");
        std::fs::write(path("both.pem"), &pair.pem).unwrap();
        std::fs::write(path("edge.crt"), pair.certificate_pem()).unwrap();
        std::fs::write(path("edge.key"), pair.key_pem()).unwrap();
        std::fs::write(path("origin.pem"), &origin.ca_pem).unwrap();
        let mut file = std::fs::read_to_string(path("edge.toml")).unwrap();
        let (head, _) = file.split_once("[[route]]").unwrap();
        let port = origin.address.port();
        let route = |at: &str, more: &str| {
            format!(
                "[[route]]\nhost = \"{HOST}\"\npath = \"{at}\"\nproxy = \"https://127.0.0.1:{port}\"\n\
                 server_name = \"in.example\"\nca_file = \"origin.pem\"\n{more}"
            )
        };
        file = format!(
            "{head}{}{}{}[egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [{port}] }}]\n",
            route("/both", "client_certificate = \"both.pem\"\n"),
            route("/apart", "client_certificate = \"edge.crt\"\nclient_key = \"edge.key\"\n"),
            route("/none", "")
        );
        std::fs::write(path("edge.toml"), file).unwrap();
        let edge = Running::start(folder, io);
        let get = |path: &str| https(edge.https(), HOST).get(HOST, path);
        for path in ["/both", "/apart"] {
            assert_eq!(&get(path).text()[..6], "alone ");
        }
        assert_eq!(get("/none").status, 502);
    }
}
