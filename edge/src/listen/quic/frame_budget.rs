//! What the frames of a QUIC client may cost (promise P14).
//!
//! quinn bounds bytes, and frames hardly: a packet of a thousand PINGs is a thousand frames to look at, and a byte of a
//! stream with a gap before it is held in 64 bytes beside the datagram that it came in, with all datagrams that the kernel
//! gave us in one piece with it. So packets are looked at between decryption and quinn:
//!
//! - Frames other than PADDING, STREAM and CRYPTO cost one credit each. Time, requests and the packets that we send bring credits
//!   back, as on HTTP/2; whoever has none left loses the connection.
//! - Small pieces of streams and of handshakes have a bound on how many are held unread. A packet with more than that is
//!   lost: a client that does as it should sends it again.
//! - Large pieces pay for frames that go with them, and are bounded by their bytes: the same piece may come any number of times,
//!   for windows count what is new only.
//! - What has to be held is copied out of its datagram.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use quinn_proto::crypto::{
    CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
    UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError};

use super::frames::{Content, content};
use crate::{clock, limits};

/// Of one connection. Its packets are read under one lock; what is read of its streams is counted beside it.
#[derive(Debug)]
pub struct FrameBudget {
    credit: AtomicU32,
    pieces: AtomicU32,
    /// Bytes in large pieces that may still come, in units of [`UNIT_BYTES`].
    large: AtomicU32,
    refilled_ms: AtomicU64,
    /// Request streams that the client has opened.
    requests: AtomicU64,
    flooded: AtomicBool,
    watcher: AtomicWaker,
}

/// In which bytes of large pieces are counted.
const UNIT_BYTES: u32 = 64;
const LARGE_WHOLE: u32 = limits::QUIC_UNREAD_BYTES_MAX / UNIT_BYTES;

impl Default for FrameBudget {
    fn default() -> Self {
        Self {
            credit: AtomicU32::new(limits::QUIC_HANDSHAKE_FRAMES),
            pieces: AtomicU32::new(limits::QUIC_HANDSHAKE_FRAMES),
            large: AtomicU32::new(LARGE_WHOLE),
            refilled_ms: AtomicU64::new(now_ms()),
            requests: AtomicU64::new(0),
            flooded: AtomicBool::new(false),
            watcher: AtomicWaker::new(),
        }
    }
}

impl FrameBudget {
    /// The handshake is over: the client has shown its address.
    pub(super) fn begins(&self) {
        earn(&self.credit, limits::QUIC_FRAMES_BURST, limits::QUIC_FRAMES_BURST);
        earn(&self.pieces, limits::QUIC_PIECES_MAX, limits::QUIC_PIECES_MAX);
    }

    /// A piece of a stream has been read. A large one makes no room for small ones.
    pub(crate) fn piece_taken(&self, bytes: usize) {
        let bytes = bytes as u64;
        if bytes < limits::QUIC_PIECE_BYTES {
            earn(&self.pieces, 1, limits::QUIC_PIECES_MAX);
        } else {
            earn(&self.large, units(bytes + bytes / 4), LARGE_WHOLE);
        }
    }

    /// Ends when there were more frames than the client has credit for.
    pub(crate) async fn flood(&self) {
        poll_fn(|context| {
            self.watcher.register(context.waker());
            if self.flooded.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn sent_packet(&self) {
        earn(&self.credit, 1, limits::QUIC_FRAMES_BURST);
    }

    /// Whether the packet may go on to quinn.
    fn charge(&self, content: &Content, now_ms: u64) -> bool {
        let before = self.requests.fetch_max(content.requests, Relaxed);
        let new = u32::try_from(content.requests.saturating_sub(before)).unwrap_or(u32::MAX);
        let paid = new.saturating_mul(limits::QUIC_FRAMES_PER_REQUEST);
        let windows = new.saturating_mul(limits::H2_STREAM_WINDOW_BYTES / UNIT_BYTES);
        earn(&self.large, windows, LARGE_WHOLE);
        if !self.has(content) {
            self.refill(now_ms);
        }
        let has_room = spend(&self.large, units(content.large_bytes));
        let pieces = if has_room { content.large_pieces } else { 0 };
        let by_pieces = pieces.saturating_mul(limits::QUIC_FRAMES_PER_LARGE_PIECE);
        earn(&self.credit, paid.saturating_add(by_pieces), limits::QUIC_FRAMES_BURST);
        earn(&self.pieces, paid, limits::QUIC_PIECES_MAX);
        if !spend(&self.credit, content.frames) {
            self.flooded.store(true, Relaxed);
            self.watcher.wake();
            return false;
        }
        has_room && spend(&self.pieces, content.pieces)
    }

    fn has(&self, content: &Content) -> bool {
        self.credit.load(Relaxed) >= content.frames
            && self.pieces.load(Relaxed) >= content.pieces
            && self.large.load(Relaxed) >= units(content.large_bytes)
    }

    fn refill(&self, now_ms: u64) {
        const EACH_MS: u64 = 1000 / limits::QUIC_FRAMES_PER_SECOND as u64;
        let before = self.refilled_ms.load(Relaxed);
        let credits = now_ms.saturating_sub(before) / EACH_MS;
        self.refilled_ms.store(before + credits * EACH_MS, Relaxed);
        let credits = u32::try_from(credits).unwrap_or(u32::MAX);
        earn(&self.credit, credits, limits::QUIC_FRAMES_BURST);
        earn(&self.pieces, credits, limits::QUIC_PIECES_MAX);
        earn(&self.large, credits, LARGE_WHOLE);
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / u64::from(UNIT_BYTES)).unwrap_or(u32::MAX)
}

fn earn(credit: &AtomicU32, more: u32, most: u32) {
    let _before = credit.fetch_update(Relaxed, Relaxed, |credit| {
        let earned = credit.saturating_add(more).min(most.max(credit));
        (earned != credit).then_some(earned)
    });
}

fn spend(credit: &AtomicU32, cost: u32) -> bool {
    cost == 0 || credit.fetch_update(Relaxed, Relaxed, |credit| credit.checked_sub(cost)).is_ok()
}

fn now_ms() -> u64 {
    let uptime: Duration = clock::uptime();
    u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
}

/// Sessions of another configuration, each with a budget.
pub(super) struct BudgetedCrypto<C>(Arc<C>);

/// What a session says of its handshake, with the connection's budget.
pub(super) struct Budgeted {
    pub(super) data: Box<dyn Any>,
    pub(super) budget: Arc<FrameBudget>,
}

struct BudgetedSession {
    inner: Box<dyn Session>,
    budget: Arc<FrameBudget>,
}

struct BudgetedKey {
    inner: Box<dyn PacketKey>,
    budget: Arc<FrameBudget>,
}

impl<C> BudgetedCrypto<C> {
    pub(super) fn new(inner: Arc<C>) -> Self {
        Self(inner)
    }
}

impl<C: ServerConfig> ServerConfig for BudgetedCrypto<C> {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.0.initial_keys(version, id)
    }

    fn retry_tag(&self, version: u32, original_id: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, original_id, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, parameters: &TransportParameters) -> Box<dyn Session> {
        let inner = Arc::clone(&self.0).start_session(version, parameters);
        Box::new(BudgetedSession { inner, budget: Arc::default() })
    }
}

impl BudgetedSession {
    fn key(&self, inner: Box<dyn PacketKey>) -> Box<dyn PacketKey> {
        Box::new(BudgetedKey { inner, budget: Arc::clone(&self.budget) })
    }

    fn pair(&self, keys: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        KeyPair { local: self.key(keys.local), remote: self.key(keys.remote) }
    }

    fn keys(&self, keys: Keys) -> Keys {
        Keys { header: keys.header, packet: self.pair(keys.packet) }
    }
}

impl Session for BudgetedSession {
    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        self.keys(self.inner.initial_keys(id, side))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let data = self.inner.handshake_data()?;
        Some(Box::new(Budgeted { data, budget: Arc::clone(&self.budget) }))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        let (header, packet) = self.inner.early_crypto()?;
        Some((header, self.key(packet)))
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(bytes)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let keys = self.inner.write_handshake(buffer)?;
        Some(self.keys(keys))
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.inner.next_1rtt_keys()?;
        Some(self.pair(keys))
    }

    fn is_valid_retry(&self, original_id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(original_id, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

impl PacketKey for BudgetedKey {
    fn encrypt(&self, packet: u64, buffer: &mut [u8], header_len: usize) {
        self.budget.sent_packet();
        self.inner.encrypt(packet, buffer, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.inner.decrypt(packet, header, payload)?;
        let content = content(payload);
        if !self.budget.charge(&content, now_ms()) {
            return Err(CryptoError);
        }
        if content.is_held {
            // Of its own, and without the padding.
            *payload = BytesMut::from(&payload[..content.length]);
        }
        Ok(())
    }

    fn tag_len(&self) -> usize {
        self.inner.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.inner.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.inner.integrity_limit()
    }
}

impl fmt::Debug for Budgeted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgeted").field("budget", &self.budget).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> FrameBudget {
        let budget = FrameBudget { refilled_ms: AtomicU64::new(0), ..FrameBudget::default() };
        budget.begins();
        budget
    }

    fn frames(frames: u32) -> Content {
        Content { frames, ..Content::default() }
    }

    fn pieces(pieces: u32) -> Content {
        Content { pieces, ..Content::default() }
    }

    #[test]
    fn a_flood_of_frames_ends_the_connection_at_its_bound() {
        let budget = open();
        assert!(budget.charge(&frames(limits::QUIC_FRAMES_BURST), 0));
        assert!(!budget.flooded.load(Relaxed));
        assert!(!budget.charge(&frames(1), 0) && budget.flooded.load(Relaxed));
    }

    #[test]
    fn time_requests_and_our_own_packets_pay() {
        let budget = open();
        assert!(budget.charge(&frames(limits::QUIC_FRAMES_BURST), 0));
        assert!(budget.charge(&frames(limits::QUIC_FRAMES_PER_SECOND), 1000));
        let third = Content { requests: 3, ..frames(3 * limits::QUIC_FRAMES_PER_REQUEST) };
        assert!(budget.charge(&third, 1000), "two requests before it pay, too");
        budget.sent_packet();
        assert!(budget.charge(&Content { requests: 2, ..frames(1) }, 1000));
        assert!(!budget.charge(&Content { requests: 3, ..frames(1) }, 1000), "a request pays once");
        let upload = large(frames(limits::QUIC_FRAMES_PER_LARGE_PIECE));
        let uploads = |_| {
            budget.piece_taken(1200);
            budget.charge(&upload, 1000)
        };
        assert!((0..100_000).all(uploads), "whoever uploads says that windows are full");
    }

    fn large(content: Content) -> Content {
        Content { large_pieces: 1, large_bytes: 1200, ..content }
    }

    #[test]
    fn a_piece_that_comes_again_and_again_pays_for_nothing_more() {
        let budget = open();
        let again = large(frames(limits::QUIC_FRAMES_PER_LARGE_PIECE));
        let most = limits::QUIC_UNREAD_BYTES_MAX / 1024;
        assert!((0..most).any(|_| !budget.charge(&again, 0)), "the packet is lost");
        assert!(!budget.flooded.load(Relaxed));
        (0..limits::QUIC_FRAMES_BURST).for_each(|_| assert!(!budget.charge(&again, 0)));
        assert!(budget.flooded.load(Relaxed), "and its frames are paid for as others are");
    }

    #[test]
    fn a_window_that_is_not_read_and_a_fifth_that_comes_twice_are_no_flood() {
        let budget = open();
        let window = limits::QUIC_RECEIVE_WINDOW_BYTES / 1200;
        assert!((0..2 * window).all(|_| budget.charge(&large(Content::default()), 0)));
        let budget = open();
        for number in 0..1_000_000 {
            assert!(budget.charge(&large(Content::default()), 0), "{number}");
            if number % 5 != 0 {
                budget.piece_taken(1200);
            }
        }
    }

    #[test]
    fn pieces_beyond_the_bound_are_lost_and_come_again() {
        let budget = open();
        assert!(budget.charge(&pieces(limits::QUIC_PIECES_MAX), 0));
        assert!(!budget.charge(&pieces(2), 0));
        assert!(!budget.flooded.load(Relaxed), "nobody is cut for it");
        budget.piece_taken(1);
        (0..9).for_each(|_| budget.piece_taken(1000));
        assert!(!budget.charge(&pieces(2), 0));
        budget.piece_taken(1);
        assert!(budget.charge(&pieces(2), 0));
        assert!(
            budget.charge(&pieces(limits::QUIC_FRAMES_PER_SECOND), 1000),
            "what was given up is forgotten"
        );
    }

    #[test]
    fn a_handshake_has_few_frames() {
        let budget = FrameBudget { refilled_ms: AtomicU64::new(0), ..FrameBudget::default() };
        assert!(budget.charge(&pieces(limits::QUIC_HANDSHAKE_FRAMES), 0));
        assert!(!budget.charge(&pieces(1), 0));
    }
}
