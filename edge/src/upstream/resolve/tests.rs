use std::{
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, RecordType, rdata},
};

use super::*;
use crate::clock;

/// What only a failure takes.
const LONG: Duration = Duration::from_secs(60);

/// A name server: every name has so many addresses, with this TTL in seconds.
struct Dns {
    address: SocketAddr,
    queries: Arc<AtomicUsize>,
}

impl Dns {
    fn start(addresses: u32, ttl: u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("it is bound");
        let queries = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&queries);
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Some(answer) = answer(&buffer[..length], addresses, ttl, &count) else { continue };
                let _ = socket.send_to(&answer, from);
            }
        });
        Self { address, queries }
    }

    fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

/// Counts questions for IPv4 addresses alone: each name is asked for either kind.
fn answer(query: &[u8], addresses: u32, ttl: u32, count: &AtomicUsize) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(query).ok()?;
    let question = message.queries.first()?.clone();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    if question.query_type() == RecordType::A {
        count.fetch_add(1, Ordering::SeqCst);
        for number in 0..addresses {
            let data = RData::A(rdata::A(Ipv4Addr::from(0x0a00_0000 + number)));
            message.answers.push(Record::from_rdata(question.name().clone(), ttl, data));
        }
    } else {
        let data = RData::AAAA(rdata::AAAA(Ipv6Addr::LOCALHOST));
        message.answers.push(Record::from_rdata(question.name().clone(), ttl, data));
    }
    message.to_vec().ok()
}

#[tokio::test]
async fn a_name_has_so_many_addresses_and_the_rest_is_cut() {
    let dns = Dns::start(70, 60);
    let names = Names::new(&[dns.address], LONG).expect("a resolver");
    let resolved = names.resolve("many.test").await.expect("an answer");
    assert_eq!(resolved.addresses.len(), limits::DNS_ADDRESSES_MAX);
}

#[tokio::test]
async fn answers_hold_within_bounds_whatever_their_ttl_says() {
    for (ttl, holds) in
        [(0, limits::DNS_TTL_MIN), (60, Duration::from_secs(60)), (86_400, limits::DNS_TTL_MAX)]
    {
        let dns = Dns::start(1, ttl);
        let names = Names::new(&[dns.address], LONG).expect("a resolver");
        let before = clock::now();
        let first = names.resolve("shop.test").await.expect("an answer");
        let after = clock::now();
        assert!(first.until >= before + holds && first.until <= after + holds, "TTL {ttl}");
        if clock::now() < first.until {
            names.resolve("shop.test").await.expect("a kept answer");
            assert_eq!(dns.queries(), 1, "TTL {ttl}");
        }
    }
}

#[tokio::test]
async fn a_name_server_that_is_silent_is_given_up() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let names = Names::new(&[silent.local_addr().expect("it is bound")], Duration::from_millis(50));
    let names = names.expect("a resolver");
    let asked = tokio::time::timeout(LONG, names.resolve("shop.test")).await;
    assert!(asked.expect("it is given up").is_err());
}

/// One tenant can ask for as many names as it likes.
#[tokio::test]
async fn so_many_names_are_remembered() {
    let dns = Dns::start(1, 86_400);
    let names = Names::new(&[dns.address], LONG).expect("a resolver");
    let more = 1000;
    let count = usize::try_from(limits::DNS_CACHE_NAMES).expect("it fits") + more;
    let ask = async |number: usize| {
        names.resolve(&format!("n{number}.test")).await.expect("an answer");
    };
    for number in 0..count {
        ask(number).await;
    }
    let first = dns.queries();
    for number in 0..count {
        ask(number).await;
    }
    let again = dns.queries() - first;
    println!("{first} queries, then {again}");
    assert!(again >= more / 2, "{again} of {count} were forgotten");
}

#[test]
fn resolv_conf_is_read_as_far_as_it_matters() {
    let text = "# a comment\nsearch example.org\nnameserver 10.0.0.53\n nameserver 2001:db8::53\nnameserver x\noptions ndots:2\n";
    let servers: Vec<_> = servers_in(text).map(|server| server.to_string()).collect();
    assert_eq!(servers, ["10.0.0.53:53", "[2001:db8::53]:53"]);
}
