//! Packets that come and go several at a time: what the kernel has joined (UDP_GRO) is taken apart by whose it is, and what quinn
//! joins (UDP_SEGMENT) leaves with one call.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionIdGenerator as _, EndpointConfig, Runtime as _, TokioRuntime};
use rustls_pki_types::PrivateKeyDer;

use super::super::connection_id::SlotIds;
use super::*;

const STRIDE: usize = 100;

/// What was forwarded and dropped.
#[derive(Default)]
struct Counted {
    forwarded: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl Counted {
    fn of(&self) -> [u64; 2] {
        [self.forwarded.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed)]
    }
}

fn socket(predecessors: Vec<Predecessor>, counted: &Counted) -> SteeredSocket {
    let kernel = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let counts = SteeringCounts {
        forwarded: metrics::Counter::from_arc(Arc::clone(&counted.forwarded)),
        dropped: metrics::Counter::from_arc(Arc::clone(&counted.dropped)),
    };
    SteeredSocket::new(kernel, Arc::default(), Arc::new(Predecessors::new(predecessors)), counts)
}

/// A predecessor of two slots, and the ends that its slots read.
fn predecessor(taken: &[ProcessTag]) -> (Predecessor, [tokio::net::UnixDatagram; 2]) {
    let tag = ProcessTag::generate(taken).unwrap();
    let pairs = [(); 2].map(|()| Channel::pair().unwrap());
    let (mut channels, mut ends) = (Vec::new(), Vec::new());
    for (channel, end) in pairs {
        end.set_nonblocking(true).unwrap();
        channels.push(channel);
        ends.push(tokio::net::UnixDatagram::from_std(end).unwrap());
    }
    (Predecessor { tag, channels }, ends.try_into().unwrap())
}

/// A packet of a connection of a slot, with a number in it.
fn packet(tag: ProcessTag, slot: usize, number: u8, length: usize) -> Vec<u8> {
    let id = SlotIds::new(slot, 2, tag).generate_cid();
    let mut packet = [&[0x40], &id[..]].concat();
    packet.resize(length, number);
    packet
}

fn meta(length: usize) -> RecvMeta {
    RecvMeta {
        addr: SocketAddrV6::new("2001:db8::7".parse().unwrap(), 4433, 0, 3).into(),
        len: length,
        stride: STRIDE,
        ecn: Some(EcnCodepoint::Ce),
        dst_ip: Some("192.0.2.9".parse().unwrap()),
    }
}

/// Sorts a batch as the kernel joins one; gives what stays.
fn sort(socket: &SteeredSocket, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut buffer = packets.concat();
    let mut meta = meta(buffer.len());
    socket.sort_out(&mut buffer, &mut meta);
    assert_eq!(meta.stride, STRIDE);
    buffer.truncate(meta.len);
    buffer
}

/// What a slot's end has, message for message.
async fn messages(end: &tokio::net::UnixDatagram) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    // One is always sent behind them: readiness needs something to come.
    loop {
        let mut buffer = vec![0; 64 * 1024];
        end.readable().await.unwrap();
        match end.try_io(Interest::READABLE, || receive(end, &mut buffer)) {
            Ok(Some(received)) => {
                let expected = meta(received.len);
                let facts = |meta: &RecvMeta| (meta.addr, meta.stride, meta.ecn, meta.dst_ip);
                assert_eq!(facts(&received), facts(&expected), "its addresses go with it");
                buffer.truncate(received.len);
                messages.push(buffer);
            }
            Ok(None) => return messages,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

#[tokio::test]
async fn packets_that_came_together_go_to_whom_each_belongs() {
    let own = ProcessTag::generate(&[]).unwrap();
    let (young, young_ends) = predecessor(&[own]);
    let (old, old_ends) = predecessor(&[own, young.tag]);
    let (young_tag, old_tag) = (young.tag, old.tag);
    let counted = Counted::default();
    let socket = socket(vec![young, old], &counted);
    let batch = [
        packet(young_tag, 0, 1, STRIDE),
        packet(own, 0, 2, STRIDE),
        packet(old_tag, 1, 3, STRIDE),
        packet(old_tag, 1, 4, STRIDE),
        packet(young_tag, 1, 5, STRIDE),
        packet(own, 1, 6, STRIDE),
        packet(own, 1, 7, STRIDE),
        // The last of a batch may be shorter.
        packet(young_tag, 0, 8, STRIDE / 2),
    ];
    let left = sort(&socket, &batch);
    assert_eq!(left, [&batch[1][..], &batch[5], &batch[6]].concat(), "ours, in their order");
    assert_eq!(counted.of(), [5, 0]);
    // An empty message is the last that each end gets.
    assert!(socket.predecessors.iter().all(|one| one.channels.iter().all(Channel::is_open)));
    assert_eq!(messages(&young_ends[0]).await, [batch[0].clone(), batch[7].clone()]);
    assert_eq!(messages(&young_ends[1]).await, [batch[4].clone()]);
    assert_eq!(messages(&old_ends[0]).await, Vec::<Vec<u8>>::new());
    assert_eq!(messages(&old_ends[1]).await, [[&batch[2][..], &batch[3]].concat()], "together, as they came");
}

#[tokio::test]
async fn a_short_last_packet_of_ours_stays_whole_behind_those_that_went() {
    let own = ProcessTag::generate(&[]).unwrap();
    let (before, ends) = predecessor(&[own]);
    let tag = before.tag;
    let counted = Counted::default();
    let socket = socket(vec![before], &counted);
    let batch = [packet(tag, 0, 1, STRIDE), packet(tag, 0, 2, STRIDE), packet(own, 0, 3, 30)];
    assert_eq!(sort(&socket, &batch), batch[2]);
    assert!(socket.predecessors.iter().all(|one| one.channels.iter().all(Channel::is_open)));
    assert_eq!(messages(&ends[0]).await, [[&batch[0][..], &batch[1]].concat()]);
    // Nothing is left of a batch that was all of others.
    assert_eq!(sort(&socket, &batch[..2]), b"");
    assert_eq!(counted.of(), [4, 0]);
}

#[tokio::test]
async fn packets_of_a_predecessor_that_has_ended_are_ours_and_those_of_a_slow_one_are_lost() {
    let own = ProcessTag::generate(&[]).unwrap();
    let (gone, gone_ends) = predecessor(&[own]);
    let (slow, slow_ends) = predecessor(&[own, gone.tag]);
    let (gone_tag, slow_tag) = (gone.tag, slow.tag);
    drop(gone_ends);
    let counted = Counted::default();
    let socket = socket(vec![gone, slow], &counted);
    let batch = [packet(gone_tag, 0, 1, STRIDE), packet(own, 0, 2, STRIDE), packet(gone_tag, 0, 3, STRIDE)];
    assert_eq!(
        sort(&socket, &batch),
        batch.concat(),
        "quinn says to whom it concerns that it knows them not"
    );
    assert_eq!(counted.of(), [0, 0]);
    // Until its channel is full.
    let two = [packet(slow_tag, 1, 4, STRIDE), packet(slow_tag, 1, 5, STRIDE)];
    while counted.of()[1] == 0 {
        assert_eq!(sort(&socket, &two), b"");
    }
    let [forwarded, dropped] = counted.of();
    assert!(forwarded > 0 && dropped == 2, "{forwarded} forwarded, {dropped} dropped");
    drop(slow_ends);
}

/// Counts what is sent and received in one call.
struct Counting {
    inner: SteeredSocket,
    sent: Calls,
    received: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    calls: AtomicUsize,
    packets: AtomicUsize,
    /// Of one call.
    most: AtomicUsize,
}

impl Calls {
    fn add(&self, bytes: usize, packet: usize) {
        let packets = bytes.div_ceil(packet.max(1));
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.most.fetch_max(packets, Ordering::Relaxed);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Counting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Counting").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Counting {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner.kernel).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.sent.add(transmit.contents.len(), transmit.segment_size.unwrap_or(transmit.contents.len()));
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(context, buffers, metas))?;
        for meta in &metas[..count] {
            self.received.add(meta.len, meta.stride);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn counting() -> Arc<Counting> {
    let inner = socket(Vec::new(), &Counted::default());
    Arc::new(Counting { inner, sent: Calls::default(), received: Arc::default() })
}

fn endpoint(socket: &Arc<Counting>, server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    let abstract_socket = Arc::clone(socket) as Arc<dyn AsyncUdpSocket>;
    let runtime = Arc::new(TokioRuntime);
    quinn::Endpoint::new_with_abstract_socket(EndpointConfig::default(), server, abstract_socket, runtime)
        .unwrap()
}

/// Over loopback a batch that leaves with one call arrives with one, too: nothing on the way takes it apart.
#[tokio::test]
async fn a_large_answer_leaves_and_comes_several_packets_at_a_time() {
    const BYTES: usize = 4 << 20;
    let (ours, theirs) = (counting(), counting());
    if ours.max_transmit_segments() == 1 {
        portico_skipping::skipped("UDP_SEGMENT: this kernel refuses it");
        return;
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["shop.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    // The edge's own windows.
    server.transport_config(Arc::new(super::super::transport(Duration::from_secs(60))));
    let server = endpoint(&ours, Some(server));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = endpoint(&theirs, None);
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(tls).unwrap(),
    )));
    let address = ours.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut answer, mut request) = connection.accept_bi().await.unwrap();
        request.read_to_end(16).await.unwrap();
        answer.write_all(&vec![b'x'; BYTES]).await.unwrap();
        answer.finish().unwrap();
        connection.closed().await;
    });
    let connection = client.connect(address, "shop.example").unwrap().await.unwrap();
    let (mut request, mut answer) = connection.open_bi().await.unwrap();
    request.write_all(b"all of it").await.unwrap();
    request.finish().unwrap();
    assert_eq!(answer.read_to_end(BYTES).await.unwrap().len(), BYTES);
    connection.close(0_u32.into(), b"");
    answering.await.unwrap();
    let (sent, received) = (&ours.sent, &theirs.received);
    eprintln!("sent {sent:?}, received {received:?}");
    assert!(sent.most() > 1, "{sent:?}");
    assert!(
        sent.calls.load(Ordering::Relaxed) * 2 < sent.packets.load(Ordering::Relaxed),
        "at least two packets a call in the mean: {sent:?}"
    );
    if theirs.max_receive_segments() > 1 {
        assert!(received.most() > 1, "{received:?}");
    } else {
        portico_skipping::skipped("UDP_GRO: this kernel refuses it");
    }
}
