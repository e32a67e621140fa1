//! ClientHellos of every kind.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use portico_attacker::TrustAll;
use rustls::{AlertDescription, SignatureScheme};

use crate::client::{alert_of, any_version, config, connection, http2_get, https, tcp, try_https};
use crate::fleet;
use crate::harness::{TestEdge, on_each_backend, wait_until};
use crate::process::{FILE, Running, prepare, uring_works};

#[test]
fn a_client_hello_in_one_byte_pieces_is_served() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let mut session = connection(any_version(&["http/1.1"]), Some("shop.example"));
        let mut socket = tcp(edge.https);
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        for byte in &hello {
            socket.write_all(std::slice::from_ref(byte)).unwrap();
        }
        while session.is_handshaking() {
            session.complete_io(&mut socket).unwrap();
        }
        let mut stream = rustls::StreamOwned::new(session, socket);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("shop.example"), "{answer}");
    });
}

#[test]
fn each_name_gets_its_own_certificate_over_h1_and_h2() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let leaves: Vec<_> = ["a.example", "b.example"]
            .map(|name| {
                edge.serve(&[name]);
                (name, edge.bench.served(name).unwrap())
            })
            .into();
        for (name, leaf) in leaves {
            let mut client = https(edge.https, name);
            assert_eq!(client.stream.conn.peer_certificates().unwrap()[0].as_ref(), leaf, "{name}");
            assert_eq!(client.get(name, "/").text(), name);
            assert_eq!(http2_get(edge.https, Some(name), name, "/").unwrap().text(), name);
        }
    });
}

#[test]
fn unknown_and_missing_names_get_their_alerts() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let refused = |sni| match try_https(edge.https, sni, any_version(&["http/1.1"])) {
            Ok(_) => panic!("{sni:?} was served"),
            Err(error) => alert_of(&error),
        };
        assert_eq!(refused(Some("other.example")), Some(AlertDescription::UnrecognisedName));
        assert_eq!(refused(Some("www.shop.example")), Some(AlertDescription::UnrecognisedName));
        assert_eq!(refused(None), Some(AlertDescription::MissingExtension));
    });
}

#[test]
fn an_oversized_hello_is_cut_at_its_bound() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let mut socket = tcp(edge.https);
        // A handshake message of 60 KiB in records of 16 KiB: ClientHello, by its type, and never complete.
        let mut message = vec![1, 0, 0xf0, 0];
        message.resize(60 * 1024, 0);
        assert!(message.len() > 3 * portico_edge::limits::CLIENT_HELLO_BYTES_MAX);
        for piece in message.chunks(16 * 1024 - 1) {
            let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
            let record = [&[22, 3, 1, length[0], length[1]], piece].concat();
            if socket.write_all(&record).is_err() {
                break; // cut already
            }
        }
        // Closed, without waiting for more; a reset counts.
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.len() < 16, "an alert at most: {rest:?}");
        assert_eq!(
            https(edge.https, "shop.example").get("shop.example", "/").status,
            200,
            "others are served"
        );
    });
}

#[test]
fn garbage_instead_of_a_hello_is_closed() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 600], &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]] {
            let mut socket = tcp(edge.https);
            socket.write_all(garbage).unwrap();
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest);
            assert!(rest.len() < 16, "{rest:?}");
        }
    });
}

/// Writes `bytes`, ends its side, and reads what comes.
fn say(edge: &Running, bytes: &[u8]) {
    let mut socket = tcp(edge.https());
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
}

/// As OpenSSL sends it: without signature algorithms, which came with TLS 1.2.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    // No session, one cipher suite, no compression, no extensions.
    hello.extend([0, 0, 2, 0xc0, 0x14, 1, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat()
}

#[test]
fn a_client_of_tls_1_1_is_told_that_it_is_too_old() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let mut socket = tcp(edge.https);
        socket.write_all(&hello_of_tls_1_1()).unwrap();
        let mut told = Vec::new();
        socket.read_to_end(&mut told).unwrap();
        // Alert, version 1.2, length 2, fatal, protocol_version.
        assert_eq!(told, [21, 3, 3, 0, 2, 2, 70]);
    });
}

/// In a process of its own, where nobody else is counted.
#[test]
fn each_way_to_fail_a_handshake_is_counted_as_what_it_is() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let folder = prepare();
        let strict = "[[tls]]\nhost = \"shop.example\"\nminimum_version = \"1.3\"\n";
        std::fs::write(folder.path().join("edge.toml"), format!("{FILE}{strict}")).unwrap();
        let edge = Running::start(folder, io);
        let ask = |sni: &'static str, config: rustls::ClientConfig| {
            assert!(try_https(edge.https(), Some(sni), config).is_err(), "{sni} was served");
        };
        let shop = "shop.example";
        let mut rsa_only = any_version(&["http/1.1"]);
        rsa_only
            .dangerous()
            .set_certificate_verifier(Arc::new(TrustAll::by(&[SignatureScheme::RSA_PSS_SHA256])));
        let trusts_nobody = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut huge = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0xf0, 0];
        huge.resize(5 + 0x3fff, 0);
        huge.extend([&[22, 3, 1, 0x3f, 0xff][..], &[0; 0x3fff]].concat());
        type Failing<'a> = (&'static str, Box<dyn FnOnce() + 'a>);
        let failing: [Failing<'_>; 10] = [
            ("not_tls", Box::new(|| say(&edge, b"GET / HTTP/1.1\r\n\r\n"))),
            ("malformed", Box::new(|| say(&edge, &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]))),
            ("hello_too_large", Box::new(|| say(&edge, &huge))),
            ("aborted", Box::new(|| say(&edge, &[22, 3, 1]))),
            ("unknown_name", Box::new(|| ask("other.example", any_version(&["http/1.1"])))),
            ("version", Box::new(|| ask(shop, config(&["http/1.1"], &[&rustls::version::TLS12])))),
            ("version", Box::new(|| say(&edge, &hello_of_tls_1_1()))),
            ("no_protocol", Box::new(|| ask(shop, any_version(&["nntp"])))),
            ("nothing_in_common", Box::new(|| ask(shop, rsa_only))),
            ("refused_by_client", Box::new(|| ask(shop, trusts_nobody))),
        ];
        let counts = || {
            let text = edge.metrics("/metrics").1;
            let series: BTreeMap<String, f64> = text
                .lines()
                .filter_map(|line| {
                    line.strip_prefix("portico_edge_handshakes_total{result=\"")?.split_once("\"} ")
                })
                .map(|(result, count)| (result.to_owned(), count.parse().unwrap()))
                .collect();
            series
        };
        for (result, fail) in failing {
            let mut wanted = counts();
            *wanted.get_mut(result).expect("a series from the start") += 1.0;
            fail();
            wait_until(result, || counts() == wanted);
        }
    }
}

#[test]
fn the_acme_challenge_is_shown_to_a_ca_and_to_nobody_else() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let served = edge.bench.served("shop.example").unwrap();
        let now_ms = portico_edge::clock::unix_ms();
        let publisher = &mut edge.bench.publisher;
        publisher.challenges().set_tls_alpn01("shop.example", &[7; 32], now_ms + 60_000, now_ms).unwrap();

        let mut ca = try_https(edge.https, Some("shop.example"), any_version(&["acme-tls/1"])).unwrap();
        let shown = ca.stream.conn.peer_certificates().unwrap()[0].to_vec();
        assert_ne!(shown, served);
        assert!(shown.windows(32).any(|window| window == [7; 32]), "the digest is in the certificate");
        assert!(ca.closes(), "no application data on a validation connection");

        for mixed in [&["acme-tls/1", "http/1.1"][..], &["h2", "acme-tls/1"], &["http/1.1"], &[]] {
            let client = try_https(edge.https, Some("shop.example"), any_version(mixed)).unwrap();
            let leaf = client.stream.conn.peer_certificates().unwrap()[0].to_vec();
            assert_eq!(leaf, served, "{mixed:?}");
        }
        let unknown = try_https(edge.https, Some("other.example"), any_version(&["acme-tls/1"])).map(|_| ());
        assert_eq!(alert_of(&unknown.unwrap_err()), Some(AlertDescription::UnrecognisedName));
    });
}

#[test]
fn a_policy_of_tls_1_3_refuses_older_clients() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&["strict.example"], &[], |domain| {
            domain.tls = Some(portico_api::distribution::TlsPolicy {
                minimum_version: portico_api::distribution::TlsVersion::TlsVersion13 as i32,
                http2_off: true,
                http3_off: true,
                ..Default::default()
            });
        });
        let old = config(&["http/1.1"], &[&rustls::version::TLS12]);
        let refused = try_https(edge.https, Some("strict.example"), old).map(|_| ());
        assert_eq!(alert_of(&refused.unwrap_err()), Some(AlertDescription::ProtocolVersion));
        let both = try_https(edge.https, Some("strict.example"), any_version(&["h2", "http/1.1"])).unwrap();
        assert_eq!(both.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]), "the policy switches h2 off");
        assert_eq!(both.stream.conn.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    });
}

#[test]
fn aes_128_comes_first_and_chacha_only_for_who_leads_with_it() {
    on_each_backend(|backend| {
        use rustls::crypto::aws_lc_rs::cipher_suite::{
            TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
        };
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let (aes128, aes256, chacha) =
            (TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256);
        for (offered, chosen) in [
            (vec![aes256, aes128, chacha], aes128),
            (vec![chacha, aes128, aes256], chacha),
            (vec![aes256], aes256),
        ] {
            let provider = rustls::crypto::CryptoProvider {
                cipher_suites: offered,
                ..rustls::crypto::aws_lc_rs::default_provider()
            };
            let base = any_version(&["http/1.1"]);
            let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            config.alpn_protocols.clone_from(&base.alpn_protocols);
            crate::client::trust_all(&mut config);
            let client = try_https(edge.https, Some("shop.example"), config).unwrap();
            assert_eq!(client.stream.conn.negotiated_cipher_suite().unwrap().suite(), chosen.suite());
        }
    });
}

#[test]
fn a_renewal_under_load_fails_no_handshake() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let served = edge.serve(&["shop.example"]);
        let address = edge.https;
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut done = 0_u32;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let answer = https(address, "shop.example").get("shop.example", "/");
                        assert_eq!((answer.status, answer.text().as_str()), (200, "shop.example"));
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        for version in 2..40 {
            let renewed = fleet::mint(served.tenant, &["shop.example"]);
            edge.apply(vec![fleet::credential(served.lineage, version, served.tenant, &renewed.body)]);
            // Seen by a real handshake before the next one.
            let leaf = https(address, "shop.example").stream.conn.peer_certificates().unwrap()[0].to_vec();
            assert_eq!(leaf, renewed.leaf, "version {version}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let total: u32 =
            clients.into_iter().map(|client| client.join().expect("no client saw a failure")).sum();
        assert!(total > 20, "only {total} handshakes under way");
    });
}

#[test]
fn a_large_request_right_behind_the_handshake_is_served() {
    on_each_backend(|backend| {
        let origin = crate::origin::Origin::echoing();
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        edge.serve_with(&["shop.example"], &[origin.grant()], |domain| {
            domain.routes = vec![crate::harness::proxy_to(&url)];
        });
        for _ in 0..20 {
            // The client's Finished and 200 KiB in one write.
            let mut session = connection(any_version(&["http/1.1"]), Some("shop.example"));
            let mut socket = tcp(edge.https);
            session.set_buffer_limit(None);
            session.write_tls(&mut socket).unwrap();
            while session.is_handshaking() {
                match session.read_tls(&mut socket) {
                    // A signal to this process, for another test.
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    read => read.unwrap(),
                };
                session.process_new_packets().unwrap();
                // The edge asks for another share of a key.
                while session.is_handshaking() && session.wants_write() {
                    session.write_tls(&mut socket).unwrap();
                }
            }
            let body = vec![b'x'; 200 * 1024];
            let head = format!(
                "POST /up HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            session.writer().write_all(head.as_bytes()).unwrap();
            session.writer().write_all(&body).unwrap();
            let mut together = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut together).unwrap();
            }
            socket.write_all(&together).unwrap();
            let mut answer = String::new();
            let mut stream = rustls::StreamOwned::new(session, socket);
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("/up"), "{answer}");
        }
        assert!(origin.messages().iter().all(|message| message.body.len() == 200 * 1024));
    });
}
