//! Nothing connects on a tenant's behalf to where it must not (promise P12): canaries listen there and must stay silent.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata};

use crate::client::https;
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, tenant_with, wait_until};
use crate::origin::{Origin, Reply, ok};

/// Counts connections; nobody should come.
struct Canary {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
}

impl Canary {
    fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        std::thread::spawn(move || {
            for _ in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

fn status_of(edge: &mut TestEdge, name: &str, origin: &str, grants: &[(&str, u16)]) -> u16 {
    edge.serve_with(&[name], grants, |domain| domain.routes = vec![proxy_to(origin)]);
    https(edge.https, name).get(name, "/").status
}

#[test]
fn loopback_private_and_metadata_addresses_see_no_connect() {
    on_each_backend(|backend| {
        let canary = Canary::at("127.0.0.1:0");
        let six = Canary::at("[::1]:0");
        let mut edge = TestEdge::start(backend);
        let port = canary.address.port();
        let mut origins: Vec<String> = [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0177.0.0.1",
            "0x7f000001",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "0.0.0.0",
            "localhost",
        ]
        .map(|host| format!("http://{host}:{port}"))
        .into();
        origins.push(format!("http://[::1]:{}", six.address.port()));
        origins.extend(
            [
                "http://169.254.169.254",
                "http://[fd00:ec2::254]",
                "http://10.0.0.1",
                "http://192.168.0.1:8080",
                "http://100.64.0.1",
            ]
            .map(str::to_owned),
        );
        for (number, origin) in origins.iter().enumerate() {
            let name = format!("n{number}.example");
            assert_eq!(status_of(&mut edge, &name, origin, &[]), 502, "{origin}");
        }
        // A grant opens its own range and port and nothing beside them.
        let elsewhere = [("127.0.0.0/8", port.wrapping_add(1)), ("10.0.0.0/8", port)];
        assert_eq!(
            status_of(&mut edge, "granted.example", &format!("http://127.0.0.1:{port}"), &elsewhere),
            502
        );
        assert_eq!((canary.seen(), six.seen()), (0, 0));
        let lines = edge.log_lines(origins.len() + 1);
        let refused = lines.iter().filter(|line| line["reason"] == "egress").count();
        // "localhost" has no name server to ask here.
        assert!(refused >= origins.len(), "{refused} of {} by the guard", lines.len());
        assert_eq!(
            status_of(
                &mut edge,
                "right.example",
                &format!("http://127.0.0.1:{port}"),
                &[("127.0.0.0/8", port)]
            ),
            502
        );
        assert_eq!(canary.seen(), 1, "the canary does see who is let through");
    });
}

#[test]
fn a_grant_that_is_taken_back_holds_for_kept_connections_too() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| Reply::Keep(ok("granted")));
        let mut edge = TestEdge::start(backend);
        let name = "granted.example";
        let served = edge
            .serve_with(&[name], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&origin.url())]);
        let mut client = https(edge.https, name);
        assert_eq!(client.get(name, "/").status, 200);
        assert_eq!(client.get(name, "/").status, 200);
        assert_eq!(origin.connections(), 1, "the second came over the kept connection");
        edge.apply(vec![tenant_with(served.tenant, 2, &[], None)]);
        assert_eq!(client.get(name, "/").status, 502);
        assert_eq!(origin.messages().len(), 2, "nothing reached the origin any more");
    });
}

#[test]
fn the_edges_own_surfaces_see_no_connect_whatever_is_granted() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let (https_port, http_port) = (edge.https.port(), edge.http.port());
        for (number, port) in [https_port, http_port].into_iter().enumerate() {
            let before = edge.edge.open_connections();
            let name = format!("own{number}.example");
            let status =
                status_of(&mut edge, &name, &format!("http://127.0.0.1:{port}"), &[("127.0.0.0/8", port)]);
            assert_eq!(status, 502);
            assert!(edge.edge.open_connections() <= before + 1, "only the client's own connection");
        }
        let lines = edge.log_lines(2);
        assert!(lines.iter().all(|line| line["reason"] == "egress" && line["status"] == 502), "{lines:?}");
    });
}

/// A DNS server whose answers a test changes.
struct Dns {
    address: SocketAddr,
    answers: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>>,
    queries: Arc<AtomicUsize>,
}

impl Dns {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let answers: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>> = Arc::default();
        let queries = Arc::new(AtomicUsize::new(0));
        let (table, count) = (Arc::clone(&answers), Arc::clone(&queries));
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&buffer[..length], &table.lock().unwrap()) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, answers, queries }
    }

    fn set(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect();
        self.answers.lock().unwrap().insert(format!("{name}."), addresses);
    }
}

fn answer(query: &[u8], table: &HashMap<String, Vec<Ipv4Addr>>) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(query).ok()?;
    let question = message.queries.first()?.clone();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.additionals.clear();
    message.edns = None;
    let name = question.name().to_string().to_ascii_lowercase();
    match table.get(&name) {
        None => message.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) if question.query_type() == RecordType::A => {
            for address in addresses {
                let data = RData::A(rdata::A(*address));
                message.answers.push(Record::from_rdata(question.name().clone(), 0, data));
            }
        }
        Some(_) => {}
    }
    message.to_vec().ok()
}

#[test]
fn a_name_that_turns_to_a_forbidden_address_sees_no_connect() {
    on_each_backend(|backend| {
        // 127.0.0.2 stands for the public address: granted; 127.0.0.1 on the same port is not.
        let port = portico_ports::reserve().port();
        let _origin = Origin::at(&format!("127.0.0.2:{port}"), |_| {
            Reply::Close(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".to_vec())
        });
        let canary = Canary::at(&format!("127.0.0.1:{port}"));
        let dns = Dns::start();
        let mut edge = TestEdge::with(backend, Setup { resolvers: vec![dns.address], ..Setup::default() });
        let grants = [("127.0.0.2/32", port)];

        dns.set("rebind.test", &[[127, 0, 0, 2]]);
        let url = format!("http://rebind.test:{port}");
        assert_eq!(status_of(&mut edge, "flips.example", &url, &grants), 200);
        dns.set("rebind.test", &[[127, 0, 0, 1]]);
        // Until its short life in the cache is over, the old answer is used; then every request is refused.
        let ask = || https(edge.https, "flips.example").get("flips.example", "/").status;
        let deadline = portico_edge::clock::now() + crate::harness::PATIENCE;
        while ask() == 200 {
            assert!(portico_edge::clock::now() < deadline, "the cache kept to no bound");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // It says another thing each time: this machine, and where clouds tell their secrets.
        let mut client = https(edge.https, "flips.example");
        for number in 0..10_000 {
            let turn = [[127, 0, 0, 1], [169, 254, 169, 254], [10, 0, 0, 1], [0, 0, 0, 0]][number % 4];
            if number % 100 == 0 {
                dns.set("rebind.test", &[turn]);
            }
            let answer = client.get("flips.example", "/");
            assert_eq!(answer.status, 502, "{turn:?}");
            if answer.header("connection").is_some() {
                client = https(edge.https, "flips.example");
            }
        }
        assert_eq!(canary.seen(), 0, "by the flip");

        // One answer with both: the good address refuses connections, the bad one must not be next.
        let dead = portico_ports::reserve().port();
        let bad = Canary::at(&format!("127.0.0.1:{dead}"));
        dns.set("both.test", &[[127, 0, 0, 2], [127, 0, 0, 1]]);
        let grants = [("127.0.0.2/32", dead)];
        assert_eq!(status_of(&mut edge, "both.example", &format!("http://both.test:{dead}"), &grants), 502);
        assert_eq!(bad.seen(), 0, "by the second address");

        // Many names that say loopback at once.
        for number in 0..50 {
            let name = format!("n{number}.test");
            dns.set(&name, &[[127, 0, 0, 1]]);
            let host = format!("h{number}.example");
            assert_eq!(status_of(&mut edge, &host, &format!("http://{name}:{port}"), &[]), 502);
        }
        assert_eq!(canary.seen(), 0);
        assert!(dns.queries.load(Ordering::SeqCst) >= 50);
    });
}

/// Set in the process that the next test starts of itself, in a network of its own.
const IN_OWN_NETWORK: &str = "PORTICO_TEST_IN_OWN_NETWORK";

/// The address that clouds give their secrets away at is no address of this machine; in a network of its own it can be.
#[test]
fn the_metadata_service_of_a_cloud_sees_no_connect() {
    if std::env::var_os(IN_OWN_NETWORK).is_some() {
        return no_connect_to_the_metadata_service();
    }
    let name = "egress::the_metadata_service_of_a_cloud_sees_no_connect";
    let set_up = "ip link set lo up && ip address add 169.254.169.254/32 dev lo && exec \"$0\" \"$@\"";
    let own_network = || {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", set_up]);
        command
    };
    if !own_network().arg("true").output().is_ok_and(|output| output.status.success()) {
        return portico_skipping::skipped("a network namespace: unshare and ip, and a kernel that allows it");
    }
    let mut child = own_network();
    child.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let output = child.env(IN_OWN_NETWORK, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn no_connect_to_the_metadata_service() {
    let canary = Canary::at("169.254.169.254:80");
    assert!(TcpStream::connect("169.254.169.254:80").is_ok());
    wait_until("the canary sees who comes", || canary.seen() == 1);
    let dns = Dns::start();
    dns.set("metadata.test", &[[169, 254, 169, 254]]);
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, Setup { resolvers: vec![dns.address], ..Setup::default() });
        for (number, origin) in [
            "http://169.254.169.254",
            "http://metadata.test",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://0251.0376.0251.0376",
            "http://[::ffff:a9fe:a9fe]",
            "http://[64:ff9b::a9fe:a9fe]",
        ]
        .into_iter()
        .enumerate()
        {
            let host = format!("h{number}.example");
            assert_eq!(status_of(&mut edge, &host, origin, &[]), 502, "{origin}");
        }
    });
    assert_eq!(canary.seen(), 1, "nobody else");
}

/// A steady stream of requests never lets a kept connection become idle: the name has to be asked again all the same.
#[test]
fn a_kept_connection_does_not_outlive_the_address_of_its_name() {
    on_each_backend(|backend| {
        let port = portico_ports::reserve().port();
        let old = Origin::at(&format!("127.0.0.2:{port}"), |_| Reply::Keep(ok("old")));
        let new = Origin::at(&format!("127.0.0.3:{port}"), |_| Reply::Keep(ok("new")));
        let canary = Canary::at(&format!("127.0.0.4:{port}"));
        let dns = Dns::start();
        let mut edge = TestEdge::with(backend, Setup { resolvers: vec![dns.address], ..Setup::default() });
        dns.set("moving.test", &[[127, 0, 0, 2]]);
        let grants = [("127.0.0.2/32", port), ("127.0.0.3/32", port)];
        assert_eq!(
            status_of(&mut edge, "moving.example", &format!("http://moving.test:{port}"), &grants),
            200
        );
        let mut client = https(edge.https, "moving.example");
        // Each takes up to a sweep of the worker (5 s) and the DNS's answer.
        let mut ask_until = |wanted: &dyn Fn(&crate::client::Answer) -> bool| {
            let deadline = portico_edge::clock::now() + crate::harness::PATIENCE;
            while !wanted(&client.get("moving.example", "/")) {
                assert!(portico_edge::clock::now() < deadline, "the old connection is used for ever");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        };
        dns.set("moving.test", &[[127, 0, 0, 3]]);
        ask_until(&|answer| answer.text() == "new");
        assert_eq!((old.connections(), new.connections()), (1, 1));
        dns.set("moving.test", &[[127, 0, 0, 4]]);
        ask_until(&|answer| answer.status == 502);
        assert_eq!(canary.seen(), 0, "and the guard is asked about each new address");
    });
}

/// A tenant's name may have as many addresses as its owner likes, and each costs a connect.
#[test]
fn so_many_addresses_of_a_name_are_tried() {
    on_each_backend(|backend| {
        let port = portico_ports::reserve().port();
        let _origin = Origin::at(&format!("127.0.0.20:{port}"), |_| Reply::Keep(ok("here")));
        let dns = Dns::start();
        let mut edge = TestEdge::with(backend, Setup { resolvers: vec![dns.address], ..Setup::default() });
        let last = u8::try_from(portico_edge::limits::ORIGIN_ADDRESSES_MAX).unwrap();
        for (name, dead, status) in [("within", last - 1, 200), ("beyond", last, 502)] {
            // Nobody listens on those before it.
            let addresses: Vec<_> =
                (0..dead).map(|number| [127, 0, 0, 10 + number]).chain([[127, 0, 0, 20]]).collect();
            dns.set(&format!("{name}.test"), &addresses);
            let url = format!("http://{name}.test:{port}");
            let grants = [("127.0.0.0/8", port)];
            assert_eq!(status_of(&mut edge, &format!("{name}.example"), &url, &grants), status, "{name}");
        }
    });
}

#[test]
fn names_resolve_and_unknown_ones_are_502() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| Reply::Keep(ok(message.header("host").unwrap_or(""))));
        let dns = Dns::start();
        dns.set("origin.test", &[[127, 0, 0, 1]]);
        let mut edge = TestEdge::with(backend, Setup { resolvers: vec![dns.address], ..Setup::default() });
        let grants = [origin.grant()];
        let port = origin.address.port();
        assert_eq!(
            status_of(&mut edge, "named.example", &format!("http://origin.test:{port}"), &grants),
            200
        );
        assert_eq!(
            status_of(&mut edge, "lost.example", &format!("http://nowhere.test:{port}"), &grants),
            502
        );
        let lines = edge.log_lines(2);
        assert_eq!(lines[1]["reason"], "resolve");
    });
}
