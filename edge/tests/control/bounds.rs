//! What a control plane that hangs, or says too much, can make of an edge.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portico_api::distribution as wire;
use portico_edge::control::limits;
use portico_edge::control::{Control, ControlOptions};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use wire::control_message::Kind;

use super::fleet::fixed;
use super::fleet::server::{STREAM_WINDOW_BYTES, TestCa, TestControl, within};
use super::{Edge, at, code, feed, joined, options, shop};

const SHORT: Duration = Duration::from_millis(100);

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Joins in the background, as an edge does at its start, again and again.
fn joining(options: ControlOptions) -> tokio::task::JoinHandle<bool> {
    tokio::spawn(async move { Control::open(options).await.is_ok() })
}

#[tokio::test]
async fn a_control_plane_that_does_not_end_its_handshake_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = options(silent.local_addr().unwrap(), folder.path(), Some(TestCa::new().token()));
    options.deadlines.control_connect = SHORT;
    let edge = joining(options);
    let mut connections = Vec::new();
    for _ in 0..2 {
        connections.push(within(silent.accept()).await.unwrap());
    }
    edge.abort();
}

#[tokio::test]
async fn a_call_without_an_answer_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let token = ca.token();
    let control = TestControl::start(ca).await;
    control.state.silent.store(true, Ordering::SeqCst);
    let mut options = options(control.address, folder.path(), Some(token));
    options.deadlines.control_call = SHORT;
    let edge = joining(options);
    until("it asks again", || control.state.joins.load(Ordering::SeqCst) >= 2).await;
    control.state.silent.store(false, Ordering::SeqCst);
    assert!(within(edge).await.unwrap(), "joined");
}

/// Between an edge and its control plane; connections that stand when it is told to freeze carry nothing more.
struct Relay {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    freeze: watch::Sender<()>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (freeze, frozen) = watch::channel(());
        let relay = Self { address: listener.local_addr().unwrap(), connections: Arc::default(), freeze };
        let connections = Arc::clone(&relay.connections);
        tokio::spawn(async move {
            loop {
                let (mut edge, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let mut frozen = frozen.clone();
                frozen.mark_unchanged();
                tokio::spawn(async move {
                    let mut control = TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut edge, &mut control) => {}
                        // Both ends stay as they are.
                        _ = frozen.changed() => std::future::pending().await,
                    }
                });
            }
        });
        relay
    }
}

#[tokio::test]
async fn a_control_plane_that_answers_no_ping_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let token = ca.token();
    let mut control = TestControl::start(ca).await;
    let relay = Relay::start(control.address).await;
    let mut options = options(relay.address, folder.path(), Some(token));
    options.deadlines.control_keepalive = Duration::from_millis(500);
    let edge = Edge::start(options).await;
    let mut first = control.conversation().await;
    first.status().await;
    let connections = relay.connections.load(Ordering::SeqCst);
    relay.freeze.send(()).unwrap();
    until("it connects anew", || relay.connections.load(Ordering::SeqCst) > connections).await;
    let again = control.conversation().await;
    assert_eq!(again.hello.edge_id, first.hello.edge_id);
    edge.stop().await;
}

#[tokio::test]
async fn a_message_is_taken_up_to_its_bound() {
    let (_folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    let shop = shop("www.shop.example");
    feed(&mut conversation, &[&shop]).await;
    let of_size = |bytes: usize| {
        let mut large = shop.domain(2, |_| ());
        large.body = vec![0; bytes].into();
        vec![large]
    };
    // A resource of that size is refused; what counts is that it was read.
    conversation.send_delta(at(1, 1), at(1, 2), of_size(limits::MESSAGE_BYTES_MAX - 1000)).await;
    assert_eq!(code(&conversation.ack().await), "ResourceTooLarge");
    conversation.send_delta(at(1, 1), at(1, 2), of_size(limits::MESSAGE_BYTES_MAX)).await;
    let again = control.conversation().await;
    assert_eq!(again.hello.applied, Some(at(1, 1).into()), "begun anew, and nothing is lost");
    assert!(edge.served("www.shop.example").is_some());
    edge.stop().await;
}

/// Our own messages wait for a control plane that takes none, and not without end.
#[tokio::test]
async fn a_control_plane_that_takes_nothing_is_left() {
    let (_folder, mut control, edge) = joined().await;
    let conversation = control.conversation().await;
    // More than fit into the stream's window, the buffers on the way and the edge's queue, and fewer than would fit into a
    // queue of ten times the size.
    let ack_bytes = 75;
    let urgents = (STREAM_WINDOW_BYTES as usize + 32 * 1024) / ack_bytes + 5 * limits::OUTGOING_QUEUE;
    let sending = async {
        for sequence in 1..=urgents as u64 {
            let urgent = wire::Urgent {
                sequence,
                expires_unix_ms: u64::MAX / 2,
                action: None, // which is refused, in some words
            };
            if !conversation.offer(Kind::Urgent(urgent)).await {
                return;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = sending => {}
        again = control.conversation() => assert_eq!(again.hello.edge_id, conversation.hello.edge_id),
    }
    edge.stop().await;
}

#[tokio::test]
async fn batches_that_wait_for_their_turn_are_bounded() {
    let (_folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    let shop = shop("www.shop.example");
    feed(&mut conversation, &[&shop]).await;
    // The first one takes its time: a handshake for each of its certificates.
    let many: Vec<_> = (0..30).map(|number| super::shop(&format!("n{number}.shop.example"))).collect();
    let resources = many.iter().flat_map(|shop| shop.resources(2)).collect();
    conversation.send_delta(at(1, 1), at(1, 2), resources).await;
    for sequence in 3..3 + 4 * limits::BATCHES_QUEUE as u64 {
        let change = shop.domain(sequence, |body| body.routes[0] = fixed("changed"));
        let delta = wire::Delta {
            base: Some(at(1, sequence - 1).into()),
            generation: Some(at(1, sequence).into()),
            resources: vec![change],
            ..wire::Delta::default()
        };
        if !conversation.offer(Kind::Delta(delta)).await {
            break;
        }
    }
    let again = control.conversation().await;
    assert!(
        again.hello.applied.is_some_and(|applied| applied.sequence < 2 + 4 * limits::BATCHES_QUEUE as u64)
    );
    edge.stop().await;
}
