//! Connections of nobody that is known: they keep no edge out.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use portico_control_plane::limits::{DISTRIBUTION_STRANGERS_MAX, DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::edge::connect_raw;
use crate::plane::Plane;

/// Less than a handshake may take.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_edge_out() {
    raise_descriptor_limit();
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let _standing = plane.edge("default").await;
    let mut silent = Vec::new();
    for _ in 0..=DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX {
        silent.push(connect_from(Ipv4Addr::new(127, 0, 7, 1), address).await);
    }
    assert!(ends_within(&mut silent[0], Duration::from_secs(2)).await, "its address has one too many");
    let joining = timeout(AT_ONCE, plane.edge("default")).await;
    let _second = joining.expect("an edge finds its place at once");
    assert_eq!(plane.distribution().fleet.live_edges(None).len(), 2, "that which stood stands");
    let mut last = silent.pop().unwrap();
    assert!(ends_within(&mut last, AT_ONCE).await, "who says nothing has 3 s for it");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_many_addresses_keep_no_edge_out() {
    raise_descriptor_limit();
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let mut silent = Vec::new();
    for at in 0..DISTRIBUTION_STRANGERS_MAX {
        let source = u8::try_from(at / DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX).unwrap();
        silent.push(connect_from(Ipv4Addr::new(127, 0, 7, source), address).await);
    }
    let joining = timeout(AT_ONCE, plane.edge("default")).await;
    let _edge = joining.expect("an edge finds its place at once");
    assert!(ends_within(&mut silent[0], Duration::from_secs(2)).await, "all places are taken");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_join_counts_as_a_stranger_until_it_ends() {
    raise_descriptor_limit();
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let token = plane.token("default").await;
    let mut shaken = connect_raw(address, token.rsplit('_').next().unwrap()).await;
    let mut silent = Vec::new();
    for _ in 0..DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX {
        silent.push(connect_from(Ipv4Addr::LOCALHOST, address).await);
    }
    // The server's first frames may come before its end.
    let mut frames = Vec::new();
    let ended = timeout(AT_ONCE, shaken.read_to_end(&mut frames)).await;
    assert!(ended.is_ok(), "the oldest of its address, long before a join's time is over");
    plane.shutdown().await;
}

async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    socket.connect(address).await.unwrap()
}

async fn ends_within(stream: &mut TcpStream, time: Duration) -> bool {
    // A reset is an end, too.
    matches!(timeout(time, stream.read_u8()).await, Ok(Err(_)))
}

/// As the service does; the tests of this file need some hundreds.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
