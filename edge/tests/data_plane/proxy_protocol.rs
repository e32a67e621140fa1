//! Who the client is, told by a balancer before us and to an origin behind us.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use portico_api::distribution as wire;
use portico_edge::io::Backend;
use portico_edge::limits::{Deadlines, PROXY_HEADER_BYTES_MAX};
use rustls::StreamOwned;

use crate::client::{Http1, any_version, connection, https, plain, tcp};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::origin::{Origin, ok};

const HOST: &str = "shop.example";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn edge_behind(backend: Backend, network: &str, deadlines: Deadlines, origin: &Origin) -> TestEdge {
    let networks: Vec<IpNet> = vec![network.parse().unwrap()];
    let setup = Setup { proxy_protocol: Some(networks), deadlines, ..Setup::default() };
    let mut edge = TestEdge::with(backend, setup);
    let route = proxy_to(&origin.url());
    edge.serve_with(&[HOST], &[origin.grant()], |domain| {
        domain.routes = vec![route.clone()];
        domain.https_redirect_off = true;
    });
    edge
}

/// TLS behind a header.
fn https_behind(address: SocketAddr, header: &[u8]) -> crate::client::Https {
    let mut socket = tcp(address);
    socket.write_all(header).unwrap();
    let mut stream = StreamOwned::new(connection(any_version(&["http/1.1"]), Some(HOST)), socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    Http1::over(stream)
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

#[test]
fn the_client_is_who_the_header_says() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_behind(backend, "127.0.0.0/8", Deadlines::default(), &origin);
        let ipv4 = [192, 0, 2, 7, 198, 51, 100, 2, 0x12, 0x67, 1, 187];
        let with_values = [&ipv4[..], &[0x20; 300]].concat();
        let mut ipv6 = vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        ipv6.extend([0; 16]);
        ipv6.extend([0x12, 0x67, 1, 187]);
        let table: &[(Vec<u8>, &str)] = &[
            (b"PROXY TCP4 192.0.2.7 198.51.100.2 4711 443\r\n".to_vec(), "192.0.2.7"),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(), "2001:db8::7"),
            (v2(0x21, 0x11, &ipv4), "192.0.2.7"),
            (v2(0x21, 0x11, &with_values), "192.0.2.7"),
            (v2(0x21, 0x21, &ipv6), "2001:db8::7"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
            (v2(0x20, 0x00, &[]), "127.0.0.1"),
        ];
        for (index, (header, client)) in table.iter().enumerate() {
            assert_eq!(https_behind(edge.https, header).get(HOST, "/tls").text(), "/tls");
            let mut unencrypted = plain(edge.http);
            // With the first request in one piece: nothing of it is to be lost.
            unencrypted
                .send([header, format!("GET /plain HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()].concat());
            assert_eq!(unencrypted.answer().text(), "/plain");
            for message in &origin.messages()[2 * index..] {
                assert_eq!(message.all("x-forwarded-for"), [*client]);
            }
            let lines = edge.log_lines(2 * index + 2);
            assert!(lines[2 * index..].iter().all(|line| line["peer"] == *client), "{lines:?}");
        }
        assert_eq!(edge.log_lines(14)[0]["peer_port"], 4711);
    });
}

#[test]
fn without_a_header_that_can_be_believed_nothing_is_served() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let header = b"PROXY TCP4 192.0.2.7 198.51.100.2 4711 443\r\n";
        let stranger = edge_behind(backend, "192.0.2.0/24", Deadlines::default(), &origin);
        let refused = |edge: &TestEdge, reason: &str| {
            edge.metric(&format!("portico_edge_proxy_headers_total{{result=\"{reason}\"}}"))
        };
        let before = refused(&stranger, "untrusted");
        let mut client = plain(stranger.http);
        let _ = client.stream.write_all(header);
        assert!(client.closes());
        assert!(refused(&stranger, "untrusted") > before);

        let deadlines = Deadlines { handshake: Duration::from_millis(300), ..Deadlines::default() };
        let edge = edge_behind(backend, "127.0.0.1/32", deadlines, &origin);
        let too_long = v2(0x21, 0x11, &vec![0; PROXY_HEADER_BYTES_MAX + 1]);
        let malformed: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.2 4711 443\nGET / HTTP/1.1\r\n\r\n",
            &too_long,
        ];
        for bytes in malformed {
            let before = refused(&edge, "malformed");
            let mut client = plain(edge.http);
            let _ = client.stream.write_all(bytes);
            assert!(client.closes(), "{}", bytes.escape_ascii());
            assert!(refused(&edge, "malformed") > before);
        }
        for half in [&b""[..], b"PROXY TCP4 192.0.2.7", &SIGNATURE[..5]] {
            let before = refused(&edge, "timed_out");
            let mut client = plain(edge.http);
            client.send(half);
            assert!(client.closes(), "{}", half.escape_ascii());
            assert!(refused(&edge, "timed_out") > before);
        }
        assert_eq!(origin.messages().len(), 0);
    });
}

/// Takes connections, notes what each begins with up to the first line of its request, and answers one request on each.
struct Told {
    address: SocketAddr,
    beginnings: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Told {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let told = Self { address: listener.local_addr().unwrap(), beginnings: Arc::default() };
        let beginnings = Arc::clone(&told.beginnings);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let beginnings = Arc::clone(&beginnings);
                std::thread::spawn(move || {
                    let mut unread = Vec::new();
                    let mut buffer = [0; 4096];
                    loop {
                        let Some(at) = unread.windows(4).position(|window| window == b"GET ") else {
                            match stream.read(&mut buffer) {
                                Ok(count @ 1..) => unread.extend_from_slice(&buffer[..count]),
                                _ => return,
                            }
                            continue;
                        };
                        if unread[at..].windows(4).any(|window| window == b"\r\n\r\n") {
                            beginnings.lock().unwrap().push(unread[..at].to_vec());
                            let _ = stream.write_all(&ok("told"));
                            unread.clear();
                        } else if let Ok(count @ 1..) = stream.read(&mut buffer) {
                            unread.extend_from_slice(&buffer[..count]);
                        }
                    }
                });
            }
        });
        told
    }

    fn beginnings(&self) -> Vec<Vec<u8>> {
        self.beginnings.lock().unwrap().clone()
    }
}

#[test]
fn an_origin_is_told_of_each_client_on_a_connection_of_its_own() {
    on_each_backend(|backend| {
        for version in [wire::ProxyProtocol::V1, wire::ProxyProtocol::V2] {
            let told = Told::start();
            let mut edge = TestEdge::with(backend, Setup { health_checks: true, ..Setup::default() });
            let mut route = proxy_to(&format!("http://{}", told.address));
            if let Some(wire::route::Action::Proxy(proxy)) = &mut route.action {
                proxy.proxy_protocol = version.into();
                proxy.health_check = Some(wire::HealthCheck {
                    path: "/health".into(),
                    interval_seconds: 1,
                    healthy_after: 1,
                    unhealthy_after: 3,
                });
            }
            edge.serve_with(&[HOST], &[("127.0.0.0/8", told.address.port())], |domain| {
                domain.routes = vec![route.clone()];
            });
            let mut one = https(edge.https, HOST);
            let mut other = https(edge.https, HOST);
            let header_of = |client: &crate::client::Https| {
                let (source, destination) = (client.stream.sock.local_addr().unwrap(), edge.https);
                match version {
                    wire::ProxyProtocol::V2 => {
                        let mut rest = vec![127, 0, 0, 1, 127, 0, 0, 1];
                        rest.extend(source.port().to_be_bytes());
                        rest.extend(destination.port().to_be_bytes());
                        v2(0x21, 0x11, &rest)
                    }
                    _ => {
                        let ports = format!("{} {}", source.port(), destination.port());
                        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {ports}\r\n").into_bytes()
                    }
                }
            };
            let mut expected = Vec::new();
            for _ in 0..2 {
                for client in [&mut one, &mut other] {
                    assert_eq!(client.get(HOST, "/").text(), "told");
                    expected.push(header_of(client));
                }
            }
            let own = match version {
                wire::ProxyProtocol::V2 => v2(0x20, 0, &[]),
                _ => b"PROXY UNKNOWN\r\n".to_vec(),
            };
            wait_until("a health check comes", || told.beginnings().contains(&own));
            let of_clients: Vec<_> = told.beginnings().into_iter().filter(|header| *header != own).collect();
            assert_eq!(of_clients, expected, "one connection for each request");
        }
    });
}
