//! What the operator learns of an origin that gave no answer, and the visitor does not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use portico_edge::io::Backend;
use rustls::pki_types::CertificateDer;

use crate::client::https;
use crate::client_ca::{ClientCa, ClientPair};
use crate::harness::{Setup, TestEdge, on_each_backend};
use crate::origin::{Origin, Reply, ok, tls_config_of};
use crate::process::{Running, prepare};
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

/// A server that shows this certificate.
fn tls_origin(pair: &ClientPair) -> SocketAddr {
    let config = Arc::new(tls_config_of(pair.leaf.clone(), pair.private_key()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            std::thread::spawn(move || {
                let mut stream = rustls::StreamOwned::new(session, socket);
                if stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                    let _ = stream.write_all(&ok("over TLS"));
                }
            });
        }
    });
    address
}

fn named(ca: &ClientCa, name: &str, days: (i64, i64)) -> ClientPair {
    ca.issue_with("origin", |params| {
        params.extended_key_usages.clear();
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().unwrap())];
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now + time::Duration::days(days.0), now + time::Duration::days(days.1));
    })
}

fn edge(backend: Backend, roots: &[CertificateDer<'static>], urls: &[String], ports: &[u16]) -> TestEdge {
    let mut origin_roots = rustls::RootCertStore::empty();
    for root in roots {
        origin_roots.add(root.clone()).unwrap();
    }
    let mut edge = TestEdge::with(backend, Setup { origin_roots, ..Setup::default() });
    let grants: Vec<_> = ports.iter().map(|port| ("127.0.0.0/8", *port)).collect();
    let route = proxy(urls, |proxy| {
        if urls[0].starts_with("https") {
            proxy.tls_server_name = "in.example".into();
        }
    });
    edge.serve_with(&[HOST], &grants, |domain| domain.routes = vec![route.clone()]);
    edge
}

#[test]
fn a_failed_handshake_is_logged_with_the_origin_and_what_was_wrong() {
    on_each_backend(|backend| {
        let (ours, theirs) = (ClientCa::new("ours"), ClientCa::new("theirs"));
        let closing = TcpListener::bind("127.0.0.1:0").unwrap();
        let closes = closing.local_addr().unwrap();
        std::thread::spawn(move || closing.incoming().flatten().for_each(drop));
        let not_tls = TcpListener::bind("127.0.0.1:0").unwrap();
        let talks = not_tls.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in not_tls.incoming().flatten() {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.read(&mut [0; 4096]);
            }
        });
        let table = [
            (tls_origin(&named(&ours, "in.example", (-1, 1))), None),
            (tls_origin(&named(&theirs, "in.example", (-1, 1))), Some("tls_unknown_issuer")),
            (tls_origin(&named(&ours, "other.example", (-1, 1))), Some("tls_wrong_name")),
            (tls_origin(&named(&ours, "in.example", (-3, -2))), Some("tls_expired")),
            (tls_origin(&named(&ours, "in.example", (2, 3))), Some("tls_not_yet_valid")),
            (talks, Some("tls_not_tls")),
            (closes, Some("tls_closed")),
        ];
        for (address, reason) in table {
            let url = format!("https://{address}");
            let edge = edge(backend, std::slice::from_ref(&ours.certificate), &[url], &[address.port()]);
            let answer = https(edge.https, HOST).get(HOST, "/");
            let line = edge.log_lines(1).pop().unwrap();
            assert_eq!(answer.status, if reason.is_some() { 502 } else { 200 }, "{line}");
            assert_eq!(line["reason"].as_str(), reason, "{line}");
            assert_eq!(line["origin"], address.to_string(), "{line}");
            assert!(!answer.text().contains("127.0.0.1"), "visitors are told nothing of it");
            if let Some(reason) = reason {
                let series = format!("portico_edge_origin_errors_total{{reason=\"{reason}\"}}");
                assert!(edge.metric(&series) > 0.0);
            }
        }
    });
}

#[test]
fn whichever_origin_was_tried_last_is_named() {
    on_each_backend(|backend| {
        let dead = portico_ports::reserve();
        let closing = Origin::start(|_| Reply::Close(Vec::new()));
        let addresses = [dead, closing.address];
        let urls = addresses.map(|address| format!("http://{address}"));
        let edge = edge(backend, &[], &urls, &addresses.map(|address| address.port()));
        // Fewer than put an origin out.
        for number in 1..=4 {
            let mut client = https(edge.https, HOST);
            client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\n\r\nx"));
            assert_eq!(client.answer().status, 502);
            // Nothing is sent to the dead one, so the other is tried as well, and what it has got is not sent again.
            let line = edge.log_lines(number).pop().unwrap();
            assert_eq!(
                (&line["origin"], &line["reason"]),
                (&closing.address.to_string().into(), &"closed".into())
            );
            assert_eq!(line["origin_first_byte_us"], serde_json::Value::Null);
        }
    });
}

/// Of a fleet's thousands of sites the log tells each failing one's reason, and does not repeat it for each visitor.
#[test]
fn the_process_log_says_why_an_origin_gave_no_answer_and_why_a_certificate_was_refused() {
    let ca = ClientCa::new("ours");
    let stranger = ClientCa::new("theirs").issue("stranger");
    let folder = prepare();
    let dead = portico_ports::reserve();
    std::fs::write(folder.path().join("clients.pem"), &ca.pem).unwrap();
    std::fs::write(folder.path().join("certificates/other.pem"), crate::process::pem(&["other.example"]))
        .unwrap();
    let mut file = std::fs::read_to_string(folder.path().join("edge.toml")).unwrap();
    file = file.replace("[[route]]\nhost = \"*\"", &format!(
        "[egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [{}] }}]\n\
         [[tls]]\nhost = \"other.example\"\nclient_certificates = \"require\"\nclient_ca_file = \"clients.pem\"\n\
         [[route]]\nhost = \"shop.example\"\nproxy = \"http://{dead}\"\n[[route]]\nhost = \"*\"",
        dead.port()
    ));
    std::fs::write(folder.path().join("edge.toml"), file).unwrap();
    let edge = Running::start(folder, "epoll");
    for _ in 0..5 {
        assert_eq!(https(edge.https(), HOST).get(HOST, "/").status, 502);
    }
    let refused =
        crate::client::try_https(edge.https(), Some("other.example"), stranger.any_version(&["http/1.1"]))
            .and_then(|mut client| {
                let _ = client.stream.write_all(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n");
                client.answer_to("GET")
            });
    assert!(refused.is_err());
    edge.terminate();
    let lines: Vec<String> = edge.later.iter().collect();
    let with = |words: &str| lines.iter().filter(|line| line.contains(words)).collect::<Vec<_>>();
    let told = with("no answer from an origin");
    // Two workers, and each says it once.
    assert!((1..=2).contains(&told.len()), "{lines:#?}");
    assert!(told[0].contains(&dead.to_string()) && told[0].contains("refused"), "{told:?}");
    let told = with("a client's certificate is refused");
    assert_eq!(told.len(), 1, "{lines:#?}");
    assert!(told[0].contains("other.example") && told[0].contains("UnknownIssuer"), "{told:?}");
}
