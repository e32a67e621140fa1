use super::*;
use crate::{
    config::{ListenerConfig, ListenerKind},
    listen::{
        Inherited, InheritedListener, bind_or_adopt_all,
        quic::{Predecessor, Predecessors},
    },
};

/// What an edge shares that has taken over from a chain of others, and their ends of the channels.
fn after(predecessors: usize) -> (Shared, Vec<UnixDatagram>) {
    let mut ends = Vec::new();
    let mut tags = Vec::new();
    let predecessors = (0..predecessors).map(|_| {
        let (channel, end) = Channel::pair().expect("a pair");
        ends.push(end);
        let tag = ProcessTag::generate(&tags).expect("random bytes");
        tags.push(tag);
        Predecessor { tag, channels: vec![channel] }
    });
    let predecessors = Predecessors::new(predecessors.collect());
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let bound = tcp.local_addr().expect("it is bound");
    let config = ListenerConfig {
        address: bound,
        kind: ListenerKind::Https,
        public_https_port: 443,
        http3: true,
        proxy_protocol: None,
        trusted_proxies: None,
    };
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let listener = InheritedListener {
        bound,
        configured: None,
        tcp: vec![tcp],
        udp: vec![udp],
        predecessors,
        of_service_manager: false,
    };
    let mut inherited = Inherited { listeners: vec![listener], ..Inherited::default() };
    let process = Arc::new(QuicProcess::generate().expect("random bytes"));
    let listeners = bind_or_adopt_all(&[config], 1, &mut inherited, &process).expect("they are bound");
    (Shared::of(&listeners, &process, None).expect("descriptors"), ends)
}

#[test]
fn so_many_predecessors_may_still_drain_when_the_next_successor_comes() {
    // Whoever hands over is one of them from then on.
    let (shared, _ends) = after(limits::PREDECESSORS_MAX - 1);
    assert_eq!(shared.generations().expect("room").len(), limits::PREDECESSORS_MAX);
    let (shared, mut ends) = after(limits::PREDECESSORS_MAX);
    let Err(Failed::Refused(text)) = shared.generations() else { panic!("one too many") };
    assert!(text.starts_with(&format!("{} predecessors still drain", limits::PREDECESSORS_MAX)), "{text}");
    ends.pop();
    assert_eq!(shared.generations().expect("one has ended").len(), limits::PREDECESSORS_MAX);
}
