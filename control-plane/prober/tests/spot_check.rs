//! The spot check against real TLS servers on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cert_store::DomainName;
use portico_prober::{
    Alpn, ChainVerdict, Check, CheckOptions, ClientCertificate, EgressGuard, Method, Prober, Report, Roots,
    Step,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// A certificate authority of the test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        // Authorities of one name would make a foreign chain look like a forged one of ours.
        let name = format!("authority {}", AUTHORITIES.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(
        &self,
        names: &[&str],
        not_after_year: i32,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(not_after_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        (vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// A client's certificate and its key, as PEM texts.
    fn client(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn roots(&self) -> Roots {
        Roots::from_pem(self.0.pem().as_bytes()).unwrap()
    }
}

#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    open_max: AtomicUsize,
    requests: AtomicUsize,
}

/// What a server of the test is like.
struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
}

impl Server {
    /// Serves one certificate for every name over h2 and HTTP/1.1. `/` answers with its Host, `/to` redirects,
    /// `/long` sends 1 MiB.
    async fn start(authority: &Authority, names: &[&str], not_after_year: i32, alpn: &[&str]) -> Self {
        let (chain, key) = authority.issue(names, not_after_year);
        let config = config(rustls::ALL_VERSIONS).with_no_client_auth();
        Self::with(config.with_single_cert(chain, key).unwrap(), alpn).await
    }

    /// Wants a certificate of this authority from its clients.
    async fn asking(
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
        alpn: &[&str],
    ) -> Self {
        let (chain, key) = authority.issue(&["shop.test"], 2100);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let config = config(&[version]).with_client_cert_verifier(verifier);
        Self::with(config.with_single_cert(chain, key).unwrap(), alpn).await
    }

    async fn with(mut config: ServerConfig, alpn: &[&str]) -> Self {
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        tokio::spawn(serve(listener, acceptor, Arc::clone(&seen)));
        Self { address, seen }
    }

    fn check(&self, name: &str) -> Check {
        Check { name: DomainName::parse(name).unwrap(), address: self.address }
    }
}

fn config(
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap()
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, seen: Arc<Seen>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
            seen.open_max.fetch_max(open, Ordering::SeqCst);
            if let Ok(stream) = acceptor.accept(tcp).await {
                let service = service_fn(|request: Request<Incoming>| {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    let answer = answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            }
            seen.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let builder = Response::builder().header("server", "a test");
    let host = request.uri().host().or_else(|| request.headers().get("host").and_then(|h| h.to_str().ok()));
    match request.uri().path() {
        "/to" => builder.status(308).header("location", "https://elsewhere.test/").body(Full::default()),
        "/long" => builder.body(Full::from(vec![b'x'; 1 << 20])),
        _ => builder.body(Full::from(format!("hello {}", host.unwrap().split(':').next().unwrap()))),
    }
    .unwrap()
}

fn prober(authority: &Authority, options: CheckOptions) -> Prober {
    Prober::new(&authority.roots(), options).unwrap()
}

async fn check(authority: &Authority, options: CheckOptions, check: Check) -> Report {
    prober(authority, options).check(check).await
}

#[tokio::test]
async fn a_sound_site_is_described_whole() {
    let authority = Authority::new();
    let names = ["shop.test", "*.wild.test"];
    let server = Server::start(&authority, &names, 2090, &["h2", "http/1.1"]).await;
    let report = check(&authority, CheckOptions::default(), server.check("shop.test")).await;
    assert_eq!(report.failure, None);
    assert!(report.is_sound());
    assert_eq!(report.protocol.as_deref(), Some("h2"));
    assert_eq!(report.tls_version.as_deref(), Some("TLSv1.3"));
    assert_eq!((report.status, report.redirect.as_ref()), (Some(200), None));
    assert_eq!(report.server.as_deref(), Some("a test"));
    let certificate = report.certificate.unwrap();
    assert_eq!(certificate.names, names);
    assert_eq!(certificate.not_after, "2090-01-01T00:00:00Z");
    assert_eq!((certificate.fingerprint_sha256.len(), certificate.spki_sha256.len()), (64, 64));
    let body = report.body.unwrap();
    assert_eq!((body.first.as_str(), body.bytes, body.truncated), ("hello shop.test", 15, false));
    // From sha256sum.
    assert_eq!(body.sha256, "63dd066cb658ff5f481c71e7152d3b2653af7c7929dcf34e12f7d6b2d9aeb3ca");
    let timings = report.timings;
    assert!(timings.connected_ms.unwrap() <= timings.handshake_ms.unwrap());
    assert!(timings.handshake_ms.unwrap() <= timings.answer_ms.unwrap());
    assert!(timings.answer_ms.unwrap() <= timings.total_ms);
}

#[tokio::test]
async fn a_redirect_is_reported_and_not_followed() {
    let authority = Authority::new();
    let server = Server::start(&authority, &["old.test"], 2090, &["h2", "http/1.1"]).await;
    for alpn in [Alpn::H2, Alpn::Http1] {
        let options = CheckOptions { path: "/to".to_owned(), alpn, ..CheckOptions::default() };
        let report = check(&authority, options, server.check("old.test")).await;
        let redirect = report.redirect.unwrap();
        assert_eq!((redirect.status, redirect.location.as_str()), (308, "https://elsewhere.test/"));
    }
    assert_eq!(server.seen.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_judged_and_the_page_asked_for_all_the_same() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let expired = Server::start(&ours, &["shop.test"], 2021, &["h2"]).await;
    let other_name = Server::start(&ours, &["other.test"], 2090, &["h2"]).await;
    let unknown = Server::start(&theirs, &["shop.test"], 2090, &["h2"]).await;
    let prober = prober(&ours, CheckOptions::default());
    let verdicts = [(&expired, "expired"), (&other_name, "wrong name"), (&unknown, "unknown issuer")];
    for (server, word) in verdicts {
        let report = prober.check(server.check("shop.test")).await;
        assert_eq!(report.chain.as_ref().map(ChainVerdict::word), Some(word));
        assert_eq!((report.status, report.failure.as_ref()), (Some(200), None));
        assert!(!report.is_sound());
    }
}

#[tokio::test]
async fn http_1_is_spoken_where_the_server_knows_nothing_else() {
    let authority = Authority::new();
    for alpn in [&["http/1.1"][..], &[]] {
        let server = Server::start(&authority, &["shop.test"], 2090, alpn).await;
        let report = check(&authority, CheckOptions::default(), server.check("shop.test")).await;
        assert_eq!((report.protocol.as_deref(), report.status), (Some("http/1.1"), Some(200)));
        assert_eq!(report.body.unwrap().first, "hello shop.test");
    }
}

#[tokio::test]
async fn a_long_body_is_cut_and_head_reads_none() {
    let authority = Authority::new();
    let server = Server::start(&authority, &["shop.test"], 2090, &["h2", "http/1.1"]).await;
    for alpn in [Alpn::H2, Alpn::Http1] {
        let options = CheckOptions { path: "/long".to_owned(), alpn, ..CheckOptions::default() };
        let report = check(&authority, options.clone(), server.check("shop.test")).await;
        let body = report.body.unwrap();
        assert_eq!((body.bytes, body.truncated, body.first.len()), (64 * 1024, true, 200));
        let options = CheckOptions { method: Method::Head, ..options };
        let report = check(&authority, options, server.check("shop.test")).await;
        assert_eq!((report.status, report.body), (Some(200), None));
    }
}

#[tokio::test]
async fn every_way_to_fail_names_its_step_and_ends_in_time() {
    let authority = Authority::new();
    let name = DomainName::parse("shop.test").unwrap();
    let short = Duration::from_millis(100);
    let options = CheckOptions { step_deadline: short, deadline: short * 2, ..CheckOptions::default() };
    let prober = prober(&authority, options);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let report = prober.check(Check { name: name.clone(), address: closed }).await;
    assert_eq!(report.failure.unwrap().step, Step::Connect);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let report = prober.check(Check { name: name.clone(), address: silent.local_addr().unwrap() }).await;
    let failure = report.failure.unwrap();
    assert_eq!((failure.step, failure.text.as_str()), (Step::Handshake, "not done before the deadline"));
    assert!(report.timings.connected_ms.is_some());

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let report = prober.check(Check { name, address }).await;
    assert_eq!(report.failure.unwrap().step, Step::Handshake);
}

#[tokio::test]
async fn thousands_of_names_never_open_more_connections_than_allowed() {
    const NAMES: usize = 3000;
    const CONCURRENCY: usize = 40;
    let authority = Authority::new();
    let server = Server::start(&authority, &["*.many.test"], 2090, &["h2", "http/1.1"]).await;
    let options = CheckOptions { concurrency: CONCURRENCY, ..CheckOptions::default() };
    let prober = prober(&authority, options);
    let checks = (0..NAMES).map(|n| server.check(&format!("n{n}.many.test")));
    let reports: Vec<Report> = prober.check_all(checks).collect().await;
    let names: HashSet<&DomainName> = reports.iter().map(|report| &report.name).collect();
    assert_eq!((reports.len(), names.len()), (NAMES, NAMES));
    for report in &reports {
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.body.as_ref().unwrap().first, format!("hello {}", report.name));
    }
    // The server closes a little after the client: what counts is that the bound is of the same size.
    let open_max = server.seen.open_max.load(Ordering::SeqCst);
    assert!(open_max <= CONCURRENCY * 2, "{open_max} connections at once");
}

#[tokio::test]
async fn a_guarded_check_connects_only_where_a_grant_allows_it() {
    let authority = Authority::new();
    let server = Server::start(&authority, &["shop.test"], 2090, &["h2"]).await;
    let guarded = |grants| {
        let options = CheckOptions {
            egress: Some(EgressGuard { grants, ..EgressGuard::default() }),
            ..CheckOptions::default()
        };
        check(&authority, options, server.check("shop.test"))
    };
    let report = guarded(vec![]).await;
    assert_eq!(report.failure.unwrap().step, Step::Egress);
    assert_eq!((report.timings.connected_ms, server.seen.open_max.load(Ordering::SeqCst)), (None, 0));
    let report = guarded(vec![("127.0.0.1/32".parse().unwrap(), vec![server.address.port()])]).await;
    assert!(report.is_sound(), "{report:?}");
}

#[tokio::test]
async fn a_site_that_asks_for_a_client_certificate_says_so_and_is_checked_with_one() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ((own, own_key), (foreign, foreign_key)) = (authority.client(), other.client());
    let mixed = ClientCertificate::from_pem(own.as_bytes(), foreign_key.as_bytes()).unwrap_err();
    assert!(mixed.to_string().contains("not that of the certificate"), "{mixed}");
    ClientCertificate::from_pem(own.as_bytes(), own.as_bytes()).unwrap_err();
    ClientCertificate::from_pem(own_key.as_bytes(), own_key.as_bytes()).unwrap_err();
    let with = |pair: Option<String>| CheckOptions {
        client_certificate: pair
            .map(|pem| ClientCertificate::from_pem(pem.as_bytes(), pem.as_bytes()).unwrap()),
        ..CheckOptions::default()
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in ["h2", "http/1.1"] {
            let server = Server::asking(&authority, version, &[alpn]).await;
            let ask = |pair| check(&authority, with(pair), server.check("shop.test"));
            for (pair, words) in [
                (None, "asks for a client certificate, and none was shown ("),
                (Some(foreign.clone() + &foreign_key), "may not take the one that was shown ("),
            ] {
                let report = ask(pair).await;
                let failure = report.failure.as_ref().unwrap().to_string();
                assert!(
                    report.asks_for_certificate && failure.contains(words),
                    "{version:?} {alpn}: {failure}"
                );
                assert_eq!(report.status, None);
            }
            let report = ask(Some(own.clone() + &own_key)).await;
            assert!(report.is_sound() && report.asks_for_certificate, "{version:?} {alpn}: {report:?}");
            assert_eq!(report.status, Some(200));
        }
    }
    let server = Server::start(&authority, &["shop.test"], 2100, &["h2"]).await;
    let report = check(&authority, with(Some(own + &own_key)), server.check("shop.test")).await;
    assert!(report.is_sound() && !report.asks_for_certificate, "{report:?}");
}

#[test]
fn roots_without_a_certificate_are_refused() {
    Roots::from_pem(b"").unwrap_err();
    Roots::from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap_err();
}
