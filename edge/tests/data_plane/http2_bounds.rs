//! What the edge announces to a client of HTTP/2 is what the table of limits says, and it is held to.

use std::collections::BTreeMap;

use portico_attacker::frame::{self, Frame, GOAWAY, RST_STREAM, SETTINGS, WINDOW_UPDATE};
use portico_edge::limits;

use crate::client::{Https, any_version, try_https};
use crate::harness::{TestEdge, on_each_backend, proxy_to, wait_until};
use crate::origin::{Origin, Reply};

const HOST: &str = "shop.example";

/// Codes of RFC 9113 section 7.
const REFUSED_STREAM: u32 = 7;
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

fn begun(edge: &TestEdge) -> Https {
    let mut client = try_https(edge.https, Some(HOST), any_version(&["h2"])).unwrap();
    client.send([frame::PREFACE, &frame::frame(SETTINGS, 0, 0, &[])].concat());
    client
}

/// The next frame; `None` at the connection's end.
fn next(client: &mut Https) -> Option<Frame> {
    client.frame().ok()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// The code that the connection ends with.
fn goaway(client: &mut Https) -> Option<u32> {
    std::iter::from_fn(|| next(client))
        .find(|frame| frame.kind == GOAWAY)
        .map(|frame| number(&frame.payload[4..8]))
}

fn edge_and_origin(backend: portico_edge::io::Backend) -> (TestEdge, Origin) {
    let origin = Origin::start(|_| Reply::Stall(Vec::new()));
    let mut edge = TestEdge::start(backend);
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    (edge, origin)
}

#[test]
fn the_settings_are_those_of_the_table() {
    on_each_backend(|backend| {
        let (edge, _origin) = edge_and_origin(backend);
        let mut client = begun(&edge);
        let settings = next(&mut client).unwrap();
        assert_eq!((settings.kind, settings.flags, settings.stream), (SETTINGS, 0, 0));
        let said: BTreeMap<u16, u32> = settings
            .payload
            .chunks(6)
            .map(|one| (u16::from_be_bytes([one[0], one[1]]), number(&one[2..])))
            .collect();
        // RFC 9113 section 6.5.2; what is not said is the protocol's own value.
        let value = |identifier, default| said.get(&identifier).copied().unwrap_or(default);
        assert_eq!(value(1, 4096), limits::H2_HEADER_TABLE_BYTES);
        assert_eq!(value(3, u32::MAX), limits::H2_STREAMS_MAX);
        assert_eq!(value(4, 65_535), limits::H2_STREAM_WINDOW_BYTES);
        assert_eq!(value(5, 16_384), limits::H2_FRAME_BYTES_MAX);
        assert_eq!(value(6, u32::MAX) as usize, limits::HEADER_BYTES_MAX);
        let widened =
            std::iter::from_fn(|| next(&mut client)).find(|frame| frame.kind == WINDOW_UPDATE).unwrap();
        assert_eq!(
            (widened.stream, number(&widened.payload)),
            (0, limits::H2_CONNECTION_WINDOW_BYTES - 65_535)
        );
    });
}

#[test]
fn one_stream_too_many_is_refused_alone() {
    on_each_backend(|backend| {
        let (edge, origin) = edge_and_origin(backend);
        let mut client = begun(&edge);
        // The number of streams is bounded for those who have seen the settings.
        client.send(frame::frame(SETTINGS, 1, 0, &[]));
        for request in 0..limits::H2_STREAMS_MAX {
            client.send(frame::get(frame::stream(request), HOST));
        }
        wait_until("all are at the origin", || origin.messages().len() == limits::H2_STREAMS_MAX as usize);
        let late = frame::stream(limits::H2_STREAMS_MAX);
        client.send(frame::get(late, HOST));
        let reset = std::iter::from_fn(|| next(&mut client)).find(|frame| frame.kind == RST_STREAM).unwrap();
        assert_eq!((reset.stream, number(&reset.payload)), (late, REFUSED_STREAM));
        assert_eq!(origin.messages().len(), limits::H2_STREAMS_MAX as usize);
    });
}

#[test]
fn a_frame_that_is_too_long_ends_the_connection() {
    on_each_backend(|backend| {
        let (edge, _origin) = edge_and_origin(backend);
        let mut client = begun(&edge);
        let long = vec![0; limits::H2_FRAME_BYTES_MAX as usize + 1];
        client.send(frame::post(1, HOST)).send(frame::frame(frame::DATA, 0, 1, &long));
        assert_eq!(goaway(&mut client), Some(FRAME_SIZE_ERROR));
    });
}

#[test]
fn resets_in_one_piece_end_the_connection_before_they_are_looked_at() {
    on_each_backend(|backend| {
        let (edge, origin) = edge_and_origin(backend);
        let mut client = begun(&edge);
        let requests = u32::try_from(limits::H2_PENDING_RESETS_MAX).unwrap() * 4;
        let piece = |number| {
            let stream = frame::stream(number);
            [frame::get(stream, HOST), frame::reset(stream)].concat()
        };
        client.send((0..requests).flat_map(piece).collect::<Vec<_>>());
        assert_eq!(goaway(&mut client), Some(ENHANCE_YOUR_CALM));
        assert!(origin.messages().len() <= limits::H2_PENDING_RESETS_MAX);
    });
}

#[test]
fn errors_of_the_client_that_make_us_reset_end_the_connection() {
    on_each_backend(|backend| {
        let (edge, _origin) = edge_and_origin(backend);
        let mut client = begun(&edge);
        let most = u32::try_from(limits::H2_LOCAL_RESETS_MAX).unwrap();
        let mut sent = 0;
        let ended = (0..4 * most).find_map(|number| {
            use std::io::Write as _;
            let stream = frame::stream(number);
            let piece = [frame::get(stream, HOST), frame::window_update(stream, 0x7fff_ffff)].concat();
            if client.stream.write_all(&piece).and_then(|()| client.stream.flush()).is_err() {
                return Some(None);
            }
            sent += 1;
            // Each is answered before the next is sent, so that all of them count.
            let answer = std::iter::from_fn(|| next(&mut client))
                .find(|frame| matches!(frame.kind, RST_STREAM | GOAWAY));
            match answer {
                Some(frame) if frame.kind == RST_STREAM => None,
                Some(frame) => Some(Some(number_of(&frame))),
                None => Some(None),
            }
        });
        let code = ended.expect("the connection ends");
        assert!(sent >= most && sent <= most + 2, "{sent} with a bound of {most}");
        assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    });
}

fn number_of(frame: &Frame) -> u32 {
    number(&frame.payload[4..8])
}

#[test]
fn heads_beyond_the_connections_room_are_refused_alone_and_counted() {
    on_each_backend(|backend| {
        const VALUE_BYTES: usize = 15_000;
        const REQUESTS: u32 = 60;
        let (edge, origin) = edge_and_origin(backend);
        let series = "portico_edge_limited_total{reason=\"connection_heads\"}";
        let before = edge.metric(series);
        let mut client = begun(&edge);
        let head = [frame::get_block(HOST), frame::literal("x", &[b'y'; VALUE_BYTES])].concat();
        let end = frame::END_STREAM | frame::END_HEADERS;
        for request in 0..REQUESTS {
            client.send(frame::frame(frame::HEADERS, end, frame::stream(request), &head));
        }
        let fit = limits::CONNECTION_HEAD_BYTES_MAX / (VALUE_BYTES + 1 + 96 + 1 + HOST.len());
        let refused = REQUESTS as usize - fit;
        let resets =
            std::iter::from_fn(|| next(&mut client)).filter(|frame| frame.kind == RST_STREAM).take(refused);
        let codes: Vec<u32> = resets.map(|frame| number(&frame.payload)).collect();
        assert_eq!(codes, vec![REFUSED_STREAM; refused]);
        wait_until("the others are at the origin", || origin.messages().len() == fit);
        assert!(edge.metric(series) >= before + f64::from(u32::try_from(refused).unwrap()));
        // One of them goes, and there is room again.
        client.send(frame::reset(frame::stream(0)));
        client.send(frame::get(frame::stream(REQUESTS), HOST));
        wait_until("one more is at the origin", || origin.messages().len() == fit + 1);
    });
}

/// More paused downloads than a connection's answers may hold: each keeps what has been read of it.
#[test]
fn answers_that_a_client_leaves_alone_hold_up_no_other() {
    on_each_backend(|backend| {
        const PAUSED: &str = "paused.example";
        const LARGE_BYTES: usize = 4 * limits::CONNECTION_ANSWER_BYTES_MAX;
        const PAUSED_STREAMS: u32 = 30;
        let body = "x".repeat(LARGE_BYTES);
        let origin = Origin::start(move |_| Reply::Keep(crate::origin::ok(&body)));
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        edge.serve_with(&[HOST, PAUSED], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        let mut client = begun(&edge);
        client.send(frame::window_update(0, 0x3fff_ffff));
        for request in 0..PAUSED_STREAMS {
            client.send(frame::get(frame::stream(request), PAUSED));
        }
        // Each is sent as much as a stream's window has at first, and then stands.
        let (mut came, window) = (0, PAUSED_STREAMS as usize * 65_535);
        while came < window {
            let frame = next(&mut client).unwrap();
            came += if frame.kind == frame::DATA { frame.payload.len() } else { 0 };
        }
        assert_eq!(came, window);
        let large = frame::stream(PAUSED_STREAMS);
        client.send(frame::get(large, HOST)).send(frame::window_update(large, 0x3fff_ffff));
        let mut taken = 0;
        loop {
            let frame = next(&mut client).unwrap();
            if frame.kind == frame::DATA && frame.stream == large {
                taken += frame.payload.len();
                if frame.flags & frame::END_STREAM != 0 {
                    break;
                }
            }
        }
        assert_eq!(taken, LARGE_BYTES);
        // They go on where they stood.
        let first = frame::stream(0);
        client.send(frame::window_update(first, 0x3fff_ffff));
        let mut taken = 65_535;
        while taken < LARGE_BYTES {
            let frame = next(&mut client).unwrap();
            taken += if frame.kind == frame::DATA { frame.payload.len() } else { 0 };
        }
    });
}
