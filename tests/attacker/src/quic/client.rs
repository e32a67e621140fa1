//! A QUIC client that shakes hands, if it wants to, and then sends whatever frames it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, KeyChange, Keys, Secrets, Version};
use rustls::{Side, SupportedCipherSuite, crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256};

use super::packet::{self, Addressing, DATAGRAM_BYTES, Kind, Seen, read_varint, varint};
use crate::client::{Target, quic_config};

/// For what a server says on loopback.
const WAIT: Duration = Duration::from_millis(50);
/// Rounds of waiting until a handshake has failed.
const ROUNDS: usize = 100;
const ID_BYTES: usize = 8;
/// Bidirectional streams that servers allow at first.
const STREAMS: u64 = 100;

/// Transport parameters of a client that does as it should (RFC 9000 section 18.2), after its own connection id.
pub(crate) fn sound_parameters(own_id: &[u8]) -> Vec<u8> {
    parameters(own_id, 1 << 18)
}

/// The same of one that takes nothing on any stream that it opens.
pub(crate) fn windowless_parameters(own_id: &[u8]) -> Vec<u8> {
    parameters(own_id, 0)
}

fn parameters(own_id: &[u8], window: u64) -> Vec<u8> {
    let mut parameters = parameter(0x0f, own_id);
    for (id, value) in
        [(0x04, 1 << 20), (0x05, window), (0x06, window), (0x07, 1 << 18), (0x08, 100), (0x09, 100)]
    {
        parameters.extend(parameter(id, &varint(value)));
    }
    parameters
}

pub(crate) fn parameter(id: u64, value: &[u8]) -> Vec<u8> {
    [varint(id), varint(value.len() as u64), value.to_vec()].concat()
}

pub(crate) struct QuicClient {
    socket: UdpSocket,
    hello: Vec<u8>,
    server: SocketAddr,
    tls: ClientConnection,
    addressing: Addressing,
    initial: Keys,
    handshake: Option<Keys>,
    data: Option<Keys>,
    /// Of the keys after those: servers change them early, to see who cannot follow (RFC 9001 section 6).
    next: Option<Secrets>,
    /// What ends the handshake, until the server says that it has it.
    finished: Vec<u8>,
    confirmed: bool,
    numbers: [u32; 3],
    /// Behind the largest number that has come in each space, and where the run of numbers begins that ends there; of the
    /// last space, for acknowledgements.
    expected: [u64; 3],
    run_begins: u64,
    owes_acknowledgement: bool,
    /// CRYPTO bytes of the server that are not with TLS yet, and how many are, for both spaces.
    came: [(BTreeMap<u64, Vec<u8>>, u64); 2],
    pub(crate) bytes_sent: usize,
    pub(crate) bytes_received: usize,
    pub(crate) retries: usize,
    /// Bidirectional streams that the server allows in all.
    pub(crate) streams_allowed: u64,
    /// Streams of which the server has said anything.
    pub(crate) answered: BTreeSet<u64>,
    /// Whether what the server says is answered; who forges an address does not hear of it.
    pub(crate) answers: bool,
    /// The server has closed the connection, and with which code.
    pub(crate) closed: bool,
    pub(crate) code: Option<u64>,
}

impl QuicClient {
    /// With the transport parameters that `parameters` makes for the client's own connection id; nothing is sent yet.
    pub(crate) fn new(target: &Target, parameters: impl FnOnce(&[u8]) -> Vec<u8>) -> io::Result<Self> {
        let own = if target.address.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(WAIT))?;
        let (from, to) = (new_id(), new_id());
        let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
        let config = Arc::new(quic_config()?);
        let mut tls =
            ClientConnection::new(config, Version::V1, name, parameters(&from)).map_err(io::Error::other)?;
        let mut hello = Vec::new();
        let _no_keys_yet = tls.write_hs(&mut hello);
        Ok(Self {
            socket,
            hello,
            server: target.address,
            tls,
            initial: initial_keys(&to)?,
            addressing: Addressing { to, from, token: Vec::new(), phase: false },
            handshake: None,
            data: None,
            next: None,
            finished: Vec::new(),
            confirmed: false,
            numbers: [0; 3],
            expected: [0; 3],
            run_begins: 0,
            owes_acknowledgement: false,
            came: Default::default(),
            bytes_sent: 0,
            bytes_received: 0,
            retries: 0,
            streams_allowed: STREAMS,
            answered: BTreeSet::new(),
            answers: true,
            closed: false,
            code: None,
        })
    }

    /// With everything in order, to the end of the handshake.
    pub(crate) fn connect(target: &Target) -> io::Result<Self> {
        Self::connect_with(target, sound_parameters)
    }

    /// The same with other transport parameters.
    pub(crate) fn connect_with(
        target: &Target,
        parameters: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> io::Result<Self> {
        let mut client = Self::new(target, parameters)?;
        client.begin();
        client.finish_handshake();
        if !client.confirmed {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no QUIC handshake"));
        }
        Ok(client)
    }

    /// Sends the ClientHello.
    pub(crate) fn begin(&mut self) {
        let frames = crypto(0, &self.hello);
        let datagram = self.seal_initial(&frames);
        self.send(&datagram);
    }

    /// The connection id that the server has chosen.
    pub(crate) fn server_id(&self) -> &[u8] {
        &self.addressing.to
    }

    /// What TLS says first; fits one packet.
    pub(crate) fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Takes what comes until both sides are done, or the server has closed, or time is over. Datagrams are lost where many
    /// attack at once: what has had no answer is sent again.
    fn finish_handshake(&mut self) {
        for _ in 0..ROUNDS {
            self.receive();
            if self.confirmed || self.closed {
                return;
            }
            if self.handshake.is_none() {
                self.begin();
            } else {
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        let (false, true, Some(keys)) = (self.finished.is_empty(), self.answers, &self.handshake) else {
            return;
        };
        let number = self.numbers[1];
        self.numbers[1] += 1;
        let frames = crypto(0, &self.finished);
        let least = (&keys.local, DATAGRAM_BYTES);
        let datagram = packet::seal(Kind::Handshake, &self.addressing, number, &frames, least);
        self.send(&datagram);
    }

    /// An Initial with these frames, filled up.
    pub(crate) fn seal_initial(&mut self, frames: &[u8]) -> Vec<u8> {
        let number = self.next_number(0);
        packet::seal(Kind::Initial, &self.addressing, number, frames, (&self.initial.local, DATAGRAM_BYTES))
    }

    /// An Initial as short as it is.
    pub(crate) fn seal_short_initial(&mut self, frames: &[u8]) -> Vec<u8> {
        let number = self.next_number(0);
        packet::seal(Kind::Initial, &self.addressing, number, frames, (&self.initial.local, 0))
    }

    pub(crate) fn set_token(&mut self, token: Vec<u8>) {
        self.addressing.token = token;
    }

    /// What the server's Retry has given, if there was one.
    pub(crate) fn token(&self) -> &[u8] {
        &self.addressing.token
    }

    /// From 127.0.0.2 where it is 127.0.0.1 that others come from.
    pub(crate) fn move_elsewhere(&mut self) -> io::Result<()> {
        let elsewhere = if self.server.is_ipv6() { "[::1]:0" } else { "127.0.0.2:0" };
        self.socket = UdpSocket::bind(elsewhere)?;
        self.socket.set_read_timeout(Some(WAIT))
    }

    /// A datagram as it is.
    pub(crate) fn send(&mut self, datagram: &[u8]) {
        self.bytes_sent += datagram.len();
        // A full queue of the kernel is loss like any other.
        let _lost = self.socket.send_to(datagram, self.server);
    }

    /// Frames in a packet of the established connection.
    pub(crate) fn send_frames(&mut self, frames: &[u8]) {
        let number = self.next_number(2);
        let Some(keys) = &self.data else { return };
        let datagram = packet::seal(Kind::Short, &self.addressing, number, frames, (&keys.local, 0));
        self.send(&datagram);
    }

    /// Goes on from another address.
    pub(crate) fn migrate(&mut self) -> io::Result<()> {
        let socket = UdpSocket::bind(self.socket.local_addr().map(|own| SocketAddr::new(own.ip(), 0))?)?;
        socket.set_read_timeout(Some(WAIT))?;
        self.socket = socket;
        Ok(())
    }

    /// Takes all that has come, and waits a moment for it.
    pub(crate) fn receive(&mut self) {
        let was_open = self.confirmed;
        let mut buffer = [0; 2048];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let mut datagram = &buffer[..length];
            self.closed |= self.is_reset(datagram);
            // A port may have been another's a moment ago.
            if !packet::is_for(datagram, &self.addressing.from) {
                continue;
            }
            self.bytes_received += length;
            while !datagram.is_empty() {
                match packet::next(&mut datagram, ID_BYTES) {
                    Seen::Packet(received) => self.take(received),
                    Seen::Retry { from, token } => self.retry(from, token),
                    Seen::Nothing => {}
                }
            }
            self.acknowledge();
            if self.confirmed && !was_open {
                break;
            }
        }
    }

    /// What a server says that has forgotten the connection (RFC 9000 section 10.3): its last word may have been lost.
    fn is_reset(&self, datagram: &[u8]) -> bool {
        let Some(token) = self.reset_token() else { return false };
        datagram.first().is_some_and(|first| first & 0x80 == 0) && datagram.ends_with(token)
    }

    fn reset_token(&self) -> Option<&[u8]> {
        let parameters = self.tls.quic_transport_parameters()?;
        let mut at = 0;
        while at < parameters.len() {
            let (id, length) = (read_varint(parameters, &mut at)?, read_varint(parameters, &mut at)?);
            let value = pass(parameters, &mut at, length)?;
            if id == RESET_TOKEN {
                return Some(value);
            }
        }
        None
    }

    /// Only what came without a gap: servers leave numbers out and look who says that they came.
    fn acknowledge(&mut self) {
        if !std::mem::take(&mut self.owes_acknowledgement) || self.closed || !self.answers {
            return;
        }
        let largest = self.expected[2] - 1;
        let run = [varint(largest), varint(0), varint(0), varint(largest - self.run_begins)];
        self.send_frames(&[vec![2], run.concat()].concat());
    }

    fn take(&mut self, received: packet::Received) {
        let kind = received.kind;
        let (space, keys) = match kind {
            Kind::Initial => (0, Some(&self.initial.remote)),
            Kind::Handshake => (1, self.handshake.as_ref().map(|keys| &keys.remote)),
            Kind::Short => (2, self.data.as_ref().map(|keys| &keys.remote)),
        };
        let from = received.from.clone();
        let expected = self.expected[space];
        let Some((keys, packet)) =
            keys.and_then(|keys| Some((keys, received.unprotect(&*keys.header, expected)?)))
        else {
            return;
        };
        let number = packet.number;
        let changes = kind == Kind::Short && number >= expected && packet.phase != self.addressing.phase;
        let opened = if changes { self.open_with_next(packet) } else { packet.open(&*keys.packet) };
        let Some(frames) = opened else { return };
        if kind == Kind::Initial {
            self.addressing.to = from;
        }
        if kind == Kind::Short && number >= expected {
            self.run_begins = if number == expected { self.run_begins } else { number };
            self.owes_acknowledgement = true;
        }
        self.expected[space] = expected.max(number + 1);
        self.read_frames(kind, &frames);
    }

    /// What was sealed with the next keys; they hold from then on, for both sides.
    fn open_with_next(&mut self, packet: packet::Unprotected) -> Option<Vec<u8>> {
        let (new, data) = (self.next.as_mut()?.next_packet_keys(), self.data.as_mut()?);
        let frames = packet.open(&*new.remote)?;
        (data.local.packet, data.remote.packet) = (new.local, new.remote);
        self.addressing.phase = !self.addressing.phase;
        Some(frames)
    }

    fn retry(&mut self, from: Vec<u8>, token: Vec<u8>) {
        self.retries += 1;
        if self.retries > 1 {
            return;
        }
        let Ok(keys) = initial_keys(&from) else { return };
        self.initial = keys;
        self.addressing.to = from;
        self.addressing.token = token;
        if self.answers {
            self.begin();
        }
    }

    /// Looks for what matters here: CRYPTO, room for streams, and the end (RFC 9000 section 19).
    fn read_frames(&mut self, kind: Kind, frames: &[u8]) {
        let mut at = 0;
        while at < frames.len() && !self.closed {
            if self.read_frame(kind, frames, &mut at).is_none() {
                return;
            }
        }
    }

    fn read_frame(&mut self, kind: Kind, frames: &[u8], at: &mut usize) -> Option<()> {
        let frame = read_varint(frames, at)?;
        let mut field = || read_varint(frames, at);
        match frame {
            0 | 1 => {}
            2 | 3 => {
                let (_largest, _delay, ranges, _first) = (field()?, field()?, field()?, field()?);
                let more = 2 * ranges + if frame == 3 { 3 } else { 0 };
                (0..more).try_for_each(|_| field().map(|_| ()))?;
            }
            // RESET_STREAM; STOP_SENDING and MAX_STREAM_DATA; the others that say one number.
            4 => {
                let (stream, _code, _size) = (field()?, field()?, field()?);
                self.answered.insert(stream);
            }
            5 | 0x11 | 0x15 => {
                let _of_stream = (field()?, field()?);
            }
            0x10 | 0x13 | 0x14 | 0x16 | 0x17 | 0x19 => {
                field()?;
            }
            0x12 => self.streams_allowed = self.streams_allowed.max(field()?),
            6 => {
                let (offset, length) = (field()?, field()?);
                let bytes = pass(frames, at, length)?;
                self.shake(kind, offset, bytes);
            }
            7 => {
                let length = field()?;
                pass(frames, at, length)?;
            }
            8..=0x0f => {
                let stream = field()?;
                let _offset = if frame & 4 == 0 { 0 } else { field()? };
                let left = (frames.len() - *at) as u64;
                let length = if frame & 2 == 0 { left } else { read_varint(frames, at)? };
                pass(frames, at, length)?;
                self.answered.insert(stream);
            }
            0x18 => {
                let (_number, _retired) = (field()?, field()?);
                let id = u64::from(*pass(frames, at, 1)?.first()?);
                pass(frames, at, id + RESET_TOKEN_BYTES)?;
            }
            0x1a | 0x1b => {
                pass(frames, at, 8)?;
            }
            0x1c | 0x1d => {
                self.code = field();
                self.closed = true;
            }
            0x1e => self.confirmed = true,
            _ => return None,
        }
        Some(())
    }

    fn shake(&mut self, kind: Kind, offset: u64, bytes: &[u8]) {
        let space = match kind {
            Kind::Initial => 0,
            Kind::Handshake => 1,
            Kind::Short => return,
        };
        self.came[space].0.insert(offset, bytes.to_vec());
        let (waiting, taken) = &mut self.came[space];
        while let Some(next) = waiting.first_entry().filter(|next| next.key() <= taken) {
            // What is sent again may be cut elsewhere.
            let known = usize::try_from(*taken - next.key()).unwrap_or(usize::MAX);
            let next = next.remove();
            let Some(new) = next.get(known..) else { continue };
            *taken += new.len() as u64;
            if self.tls.read_hs(new).is_err() {
                self.closed = true;
                return;
            }
        }
        let mut ours = Vec::new();
        while let Some(change) = self.tls.write_hs(&mut ours) {
            match change {
                KeyChange::Handshake { keys } => self.handshake = Some(keys),
                KeyChange::OneRtt { keys, next } => (self.data, self.next) = (Some(keys), Some(next)),
            }
        }
        if !ours.is_empty() {
            self.finished = ours;
            self.finish();
        }
    }

    fn next_number(&mut self, space: usize) -> u32 {
        let number = self.numbers[space];
        self.numbers[space] += 1;
        number
    }
}

/// RFC 9000 section 10.3, and where a server says it first (section 18.2).
const RESET_TOKEN_BYTES: u64 = 16;
const RESET_TOKEN: u64 = 0x02;

/// The next bytes.
fn pass<'a>(frames: &'a [u8], at: &mut usize, length: u64) -> Option<&'a [u8]> {
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    let bytes = frames.get(*at..end)?;
    *at = end;
    Some(bytes)
}

/// A CRYPTO frame.
pub(crate) fn crypto(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [vec![6], varint(offset), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn initial_keys(to: &[u8]) -> io::Result<Keys> {
    let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256 else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let quic = suite.quic.ok_or(io::ErrorKind::Unsupported)?;
    Ok(Keys::initial(Version::V1, suite, quic, to, Side::Client))
}

/// No two connections of this process have the same.
fn new_id() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) ^ u64::from(std::process::id()) << 40;
    // Spread over all bytes: servers look at the first ones.
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec()
}
