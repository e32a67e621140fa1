//! Names that ask their clients for certificates.

use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use portico_edge::limits::{CLIENT_CERTIFICATE_BYTES_MAX, CLIENT_INTERMEDIATES_BYTES_MAX};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, SupportedProtocolVersion};

use crate::client::{Answer, alert_of, any_version, config, http2_with, plain, runtime, try_https};
use crate::client_ca::{ClientCa, ClientPair};
use crate::fleet;
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::http3_client::http3_with;
use crate::origin::{Message, Origin};
use crate::process::{Running, prepare};

const HOST: &str = "shop.example";
const PLAIN: &str = "plain.example";

/// HOST asks for certificates, PLAIN does not; both are proxied.
fn edge_with(backend: portico_edge::io::Backend, origin: &Origin, ca: &ClientCa, required: bool) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
    let url = origin.url();
    edge.serve_with(&[HOST, PLAIN], &[origin.grant()], |domain| {
        domain.routes = vec![proxy_to(&url)];
        if domain.name == HOST {
            domain.tls = Some(ca.policy(required));
        }
    });
    edge
}

/// One request over HTTP/1.1, with these fields beside its host. With TLS 1.3 a client hears only then that it is refused.
fn get(address: SocketAddr, name: &str, config: ClientConfig, fields: &str) -> io::Result<Answer> {
    let mut client = try_https(address, Some(name), config)?;
    client.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n{fields}\r\n"));
    client.answer_to("GET")
}

fn shown(
    pair: Option<&ClientPair>,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    pair.map_or_else(|| config(alpn, versions), |pair| pair.config(alpn, versions))
}

fn http3_get(address: SocketAddr, name: &str, config: ClientConfig) -> Result<Answer, String> {
    http3_with(config, address, Some(name), http::Request::get(format!("https://{name}/")).body(()).unwrap())
}

fn versions() -> [[&'static SupportedProtocolVersion; 1]; 2] {
    [[&TLS12], [&TLS13]]
}

/// The exception of port 80 for other ACME clients shows nothing of an origin that is for known clients only.
#[test]
fn a_token_is_no_way_around_the_certificate() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::echoing();
        let mut edge = edge_with(backend, &origin, &ca, true);
        let token = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";
        let path = format!("/.well-known/acme-challenge/{token}");
        assert_eq!(plain(edge.http).get(HOST, &path).status, 301);
        assert!(origin.messages().is_empty(), "{:?}", origin.messages());
        assert_eq!(plain(edge.http).get(PLAIN, &path).text(), path, "its own ACME client may ask there");
        let now_ms = portico_edge::clock::unix_ms();
        let challenges = edge.bench.publisher.challenges();
        challenges.set_http01(HOST, token, &format!("{token}.ours"), now_ms + 60_000, now_ms).unwrap();
        assert_eq!(plain(edge.http).get(HOST, &path).text(), format!("{token}.ours"));
    });
}

#[test]
fn maintenance_holds_for_tokens_where_clients_are_known() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::echoing();
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        edge.serve_with(&[HOST, PLAIN], &[origin.grant()], |domain| {
            domain.routes = vec![proxy_to(&url)];
            domain.maintenance = Some(portico_api::distribution::Maintenance {
                retry_after_seconds: 60,
                ..Default::default()
            });
            domain.tls = (domain.name == HOST).then(|| ca.policy(true));
        });
        let path = "/.well-known/acme-challenge/evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";
        assert_eq!(plain(edge.http).get(HOST, path).status, 301);
        assert_eq!(plain(edge.http).get(PLAIN, path).text(), path);
        assert_eq!(origin.messages().len(), 1);
    });
}

#[test]
fn who_is_not_let_in_is_told_why_by_the_alert() {
    on_each_backend(|backend| {
        let (ca, foreign) = (ClientCa::new("ours"), ClientCa::new("theirs"));
        let origin = Origin::echoing();
        let edge = edge_with(backend, &origin, &ca, true);
        let series = "portico_edge_handshakes_total{result=\"client_certificate\"}";
        let for_servers = ca.issue_with("server", |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        let padding = ca.issue_long(CLIENT_INTERMEDIATES_BYTES_MAX).leaf;
        let mut long_chain = ca.issue("till 8");
        long_chain.intermediates.push(padding);
        let refused = [
            (None, AlertDescription::CertificateRequired),
            (Some(foreign.issue("stranger")), AlertDescription::UnknownCA),
            (Some(ca.issue_expired()), AlertDescription::CertificateExpired),
            (Some(for_servers), AlertDescription::UnsupportedCertificate),
            (Some(ca.issue_long(CLIENT_CERTIFICATE_BYTES_MAX)), AlertDescription::BadCertificate),
            (Some(long_chain), AlertDescription::BadCertificate),
        ];
        for (pair, alert) in &refused {
            for versions in versions() {
                let before = edge.metric(series);
                let error =
                    get(edge.https, HOST, shown(pair.as_ref(), &["http/1.1"], &versions), "").unwrap_err();
                assert_eq!(alert_of(&error), Some(*alert), "{versions:?}: {error}");
                wait_until("it is counted", || edge.metric(series) > before);
            }
            let error = http3_get(edge.https, HOST, shown(pair.as_ref(), &["h3"], &[&TLS13])).unwrap_err();
            assert_eq!(error, format!("alert:{}", u8::from(*alert)));
        }
        assert!(origin.messages().is_empty(), "nobody came through");
        let good = ca.issue("till 7");
        for versions in versions() {
            let answer = get(edge.https, HOST, good.config(&["http/1.1"], &versions), "").unwrap();
            assert_eq!(answer.status, 200);
        }
        assert_eq!(http3_get(edge.https, HOST, good.any_version(&["h3"])).unwrap().status, 200);
        // Nobody else is asked.
        assert_eq!(get(edge.https, PLAIN, any_version(&["http/1.1"]), "").unwrap().status, 200);
    });
}

#[test]
fn an_origin_is_told_who_the_client_is_and_never_by_the_client() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::echoing();
        let edge = edge_with(backend, &origin, &ca, false);
        let pair = ca.issue("till 7");
        let forged = "Client-Cert: :AAAA:\r\nX-Client-Cert-Subject: CN=admin\r\nX-Client-Cert-Sha256: 00\r\n\
            Client-Cert-Chain: :AAAA:\r\nClient_Cert: :AAAA:\r\nX_Client_Cert_Subject: CN=admin\r\n\
            X-Forwarded-Client-Cert: Subject=\"CN=admin\"\r\nX-SSL-Client-Verify: SUCCESS\r\n";
        let told = |message: &Message| {
            let names = message.headers.iter().map(|(name, _)| name.to_ascii_lowercase().replace('_', "-"));
            let about = names.filter(|name| name.contains("client")).count();
            let one = |name| message.all(name).join("|");
            (about, one("client-cert"), one("x-client-cert-subject"), one("x-client-cert-sha256"))
        };
        for name in [HOST, PLAIN] {
            let answer = get(edge.https, name, any_version(&["http/1.1"]), forged).unwrap();
            assert_eq!(answer.status, 200);
            let nothing = (0, String::new(), String::new(), String::new());
            assert_eq!(told(&origin.messages().pop().unwrap()), nothing, "{name}");
        }
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pair.leaf);
        let sha256: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let leaf = format!(":{}:", BASE64_STANDARD.encode(&pair.leaf));
        let expected = (3, leaf, "CN=till 7,O=Tills".to_owned(), sha256);
        assert_eq!(get(edge.https, HOST, pair.any_version(&["http/1.1"]), forged).unwrap().status, 200);
        assert_eq!(told(&origin.messages().pop().unwrap()), expected);
        let request = || {
            let request = http::Request::get(format!("https://{HOST}/"));
            request.header("client-cert", ":AAAA:").header("x_client_cert_subject", "CN=admin")
        };
        let answer = runtime().block_on(async {
            let mut sender = http2_with(pair.any_version(&["h2"]), edge.https, Some(HOST)).await.unwrap();
            let empty = http_body_util::Empty::<bytes::Bytes>::new();
            sender.send_request(request().body(empty).unwrap()).await.unwrap().status()
        });
        assert_eq!(answer, 200);
        assert_eq!(told(&origin.messages().pop().unwrap()), expected);
        let over_quic =
            http3_with(pair.any_version(&["h3"]), edge.https, Some(HOST), request().body(()).unwrap())
                .unwrap();
        assert_eq!(over_quic.status, 200);
        assert_eq!(told(&origin.messages().pop().unwrap()), expected);
        // PLAIN never asks, so nothing is shown there.
        assert_eq!(get(edge.https, PLAIN, pair.any_version(&["http/1.1"]), "").unwrap().status, 200);
        assert_eq!(told(&origin.messages().pop().unwrap()).0, 0);
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

#[test]
fn an_optional_certificate_still_has_to_be_a_good_one() {
    on_each_backend(|backend| {
        let (ca, foreign) = (ClientCa::new("ours"), ClientCa::new("theirs"));
        let origin = Origin::echoing();
        let edge = edge_with(backend, &origin, &ca, false);
        for versions in versions() {
            let stranger = foreign.issue("stranger").config(&["http/1.1"], &versions);
            let error = get(edge.https, HOST, stranger, "").unwrap_err();
            assert_eq!(alert_of(&error), Some(AlertDescription::UnknownCA));
            assert_eq!(get(edge.https, HOST, config(&["http/1.1"], &versions), "").unwrap().status, 200);
        }
    });
}

/// A browser that gets 421 asks again on a connection of its own, which the new policy governs.
#[test]
fn a_connection_is_of_no_more_use_once_others_are_asked_for() {
    on_each_backend(|backend| {
        let (old, new) = (ClientCa::new("old"), ClientCa::new("new"));
        let mut edge = TestEdge::start(backend);
        let served = edge.serve(&[HOST]);
        let put = |edge: &mut TestEdge, version, policy| {
            let mut body = fleet::domain_body(HOST, &[served.lineage]);
            body.tls = policy;
            edge.apply(vec![fleet::domain(served.domains[0].1, version, served.tenant, &body)]);
        };
        let pair = old.issue("till 7");
        let changes = [
            (any_version(&["http/1.1"]), Some(old.policy(false))),
            (any_version(&["http/1.1"]), Some(old.policy(true))),
            (pair.any_version(&["http/1.1"]), Some(new.policy(true))),
        ];
        for (version, (config, policy)) in (2..).zip(changes) {
            let mut client = try_https(edge.https, Some(HOST), config).unwrap();
            assert_eq!(client.get(HOST, "/").status, 200);
            put(&mut edge, version, policy);
            let answer = client.get(HOST, "/");
            assert_eq!(
                (answer.status, answer.header("connection")),
                (421, Some("close")),
                "change {version}"
            );
            assert!(client.closes());
        }
        let error = get(edge.https, HOST, pair.any_version(&["http/1.1"]), "").unwrap_err();
        assert_eq!(alert_of(&error), Some(AlertDescription::UnknownCA));
        put(&mut edge, 9, None);
        assert_eq!(get(edge.https, HOST, any_version(&["http/1.1"]), "").unwrap().status, 200);
    });
}

#[test]
fn plain_http_is_no_way_around_a_certificate() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&[HOST], &[], |domain| {
            domain.tls = Some(ca.policy(true));
            domain.https_redirect_off = true;
        });
        let answer = plain(edge.http).get(HOST, "/secret");
        assert_eq!((answer.status, answer.header("location")), (301, Some("https://shop.example/secret")));
    });
}

/// The length of a compressed answer tells what is in it (BREACH): who has shown a certificate may be told secrets.
#[test]
fn an_answer_to_somebody_is_not_compressed() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let body = "the same words again and again ".repeat(200);
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
        let origin = Origin::start(move |_| crate::origin::Reply::Keep(format!("{head}{body}").into_bytes()));
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            let mut route = proxy_to(&url);
            let Some(portico_api::distribution::route::Action::Proxy(proxy)) = &mut route.action else {
                panic!()
            };
            proxy.compression = Some(portico_api::distribution::CompressionPolicy::default());
            domain.routes = vec![route];
            domain.tls = Some(ca.policy(false));
        });
        let clients =
            [(any_version(&["http/1.1"]), Some("gzip")), (ca.issue("one").any_version(&["http/1.1"]), None)];
        for (config, coding) in clients {
            let answer = get(edge.https, HOST, config, "Accept-Encoding: gzip\r\n").unwrap();
            assert_eq!((answer.status, answer.header("content-encoding")), (200, coding));
        }
    });
}

/// Answers to somebody are kept for everybody only where the origin says so.
#[test]
fn what_one_client_was_told_is_not_kept_for_another() {
    on_each_backend(|backend| {
        let ca = ClientCa::new("ours");
        let origin = Origin::start(|message| {
            let who = message.header("x-client-cert-subject").unwrap_or("nobody");
            let control = match message.request_line.split(' ').nth(1) {
                Some("/public") => "public, max-age=60",
                _ => "max-age=60",
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nCache-Control: {control}\r\nContent-Length: {}\r\n\r\n",
                who.len()
            );
            crate::origin::Reply::Keep(format!("{head}{who}").into_bytes())
        });
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            let mut route = proxy_to(&url);
            let Some(portico_api::distribution::route::Action::Proxy(proxy)) = &mut route.action else {
                panic!()
            };
            proxy.cache = Some(portico_api::distribution::CachePolicy::default());
            domain.routes = vec![route];
            domain.tls = Some(ca.policy(false));
        });
        let clients = [
            (any_version(&["http/1.1"]), "nobody"),
            (ca.issue("one").any_version(&["http/1.1"]), "CN=one,O=Tills"),
            (ca.issue("two").any_version(&["http/1.1"]), "CN=two,O=Tills"),
            (any_version(&["http/1.1"]), "nobody"),
        ];
        for (config, who) in &clients {
            let mut client = try_https(edge.https, Some(HOST), config.clone()).unwrap();
            assert_eq!(client.get(HOST, "/own").text(), *who);
        }
        // Said to be for all: the first one's answer is.
        for (config, _) in &clients[1..] {
            let mut client = try_https(edge.https, Some(HOST), config.clone()).unwrap();
            assert_eq!(client.get(HOST, "/public").text(), "CN=one,O=Tills");
        }
    });
}

#[test]
fn curl_and_openssl_are_let_in_by_a_standalone_edge() {
    let ca = ClientCa::new("ours");
    let folder = prepare();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("clients.pem"), &ca.pem).unwrap();
    std::fs::write(path("client.pem"), ca.issue("till 7").pem).unwrap();
    std::fs::write(path("stranger.pem"), ClientCa::new("theirs").issue("stranger").pem).unwrap();
    let mut file = std::fs::read_to_string(path("edge.toml")).unwrap();
    file += "[[tls]]\nhost = \"shop.example\"\nclient_certificates = \"require\"\nclient_ca_file = \"clients.pem\"\n";
    std::fs::write(path("edge.toml"), file).unwrap();
    let edge = Running::start(folder, "epoll");
    let (port, folder) = (edge.https().port(), edge.folder.path());
    let curl = |pair: Option<&str>| {
        let mut command = Command::new("curl");
        command.current_dir(folder).args(["-sSk", "--resolve", &format!("{HOST}:{port}:127.0.0.1")]);
        if let Some(pair) = pair {
            command.args(["--cert", pair]);
        }
        command.arg(format!("https://{HOST}:{port}/")).output()
    };
    match curl(Some("client.pem")) {
        Ok(output) => {
            assert_eq!(String::from_utf8_lossy(&output.stdout), "a body from a file", "{output:?}");
            for (pair, words) in [(None, "certificate required"), (Some("stranger.pem"), "unknown ca")] {
                let output = curl(pair).unwrap();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(!output.status.success() && said.contains(words), "{said}");
            }
        }
        Err(error) => portico_skipping::skipped(&format!("curl: {error}")),
    }
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{port}"),
            "-servername",
            HOST,
        ]);
        command.args(arguments).stdin(Stdio::null()).output()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        match openssl(&[version, "-cert", "client.pem", "-key", "client.pem"]) {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(said.contains("CN = ours"), "the authority is named: {said}");
                assert!(output.status.success(), "{output:?}");
            }
            Err(error) => portico_skipping::skipped(&format!("openssl: {error}")),
        }
    }
}
