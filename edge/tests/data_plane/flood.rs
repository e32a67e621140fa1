//! What one HTTP/2 client can make the edge do for nothing is bounded and counted (promise P14).

use std::io::{Read as _, Write as _};

use portico_edge::io::Backend;
use portico_edge::limits;

use crate::client::{Https, any_version, http2_get, try_https};
use crate::harness::{TestEdge, on_each_backend, proxy_to, wait_until};
use crate::origin::{Origin, Reply};

const HOST: &str = "shop.example";
const SERIES: &str = "portico_edge_connections_abusive_total";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// GET https://shop.example/ by the static table of RFC 7541.
pub fn headers(stream: u32) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84, 0x41, u8::try_from(HOST.len()).unwrap()];
    block.extend(HOST.as_bytes());
    frame(1, 5, stream, &block)
}

pub fn begun(edge: &TestEdge) -> Https {
    let mut client = try_https(edge.https, Some(HOST), any_version(&["h2"])).unwrap();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").send(frame(4, 0, 0, &[]));
    client
}

/// The bytes to send next, by their number.
type Piece = fn(u32) -> Vec<u8>;

/// Sends until the edge ends the connection; says how many pieces it took.
fn flood(mut client: Https, pieces: usize, piece: impl Fn(u32) -> Vec<u8>) -> Option<usize> {
    client.stream.sock.set_nonblocking(true).unwrap();
    let mut buffer = [0; 16 * 1024];
    for number in 0..pieces {
        let bytes = piece(u32::try_from(number).unwrap());
        let mut left = &bytes[..];
        while !left.is_empty() {
            match client.stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return Some(number),
            }
            let _ = client.stream.flush();
            match client.stream.read(&mut buffer) {
                Ok(0) => return Some(number),
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Some(number),
                Ok(_) | Err(_) => {}
            }
        }
    }
    None
}

fn edge_and_origin(backend: Backend) -> (TestEdge, Origin) {
    let origin = Origin::start(|_| Reply::Stall(Vec::new()));
    let mut edge = TestEdge::start(backend);
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| {
        domain.routes = vec![proxy_to(&url)];
    });
    edge.serve(&["other.example"]);
    (edge, origin)
}

#[test]
fn floods_of_frames_for_nothing_end_the_connection() {
    on_each_backend(|backend| {
        let (edge, _origin) = edge_and_origin(backend);
        let floods: [(&str, Piece); 5] = [
            ("SETTINGS", |_| frame(4, 0, 0, &[])),
            ("PING", |_| frame(6, 0, 0, &[0; 8])),
            ("PRIORITY", |_| frame(2, 0, 1, &[0, 0, 0, 0, 9])),
            ("WINDOW_UPDATE", |_| frame(8, 0, 0, &[0, 0, 0, 1])),
            ("an unknown kind", |_| frame(0xfa, 0, 0, b"x")),
        ];
        for (name, piece) in floods {
            let before = edge.metric(SERIES);
            // Many at a time: the bound is on frames, not on packets. It is tested where frames are counted; here the
            // kernel takes some megabytes more before the client sees the end.
            let many = |number| piece(number).repeat(50);
            assert!(flood(begun(&edge), 40_000, many).is_some(), "{name}: never ended");
            wait_until("it is counted", || edge.metric(SERIES) > before);
        }
        let answer = http2_get(edge.https, Some("other.example"), "other.example", "/").unwrap();
        assert_eq!(answer.status, 200, "others are served");
        wait_until("nothing of them is left", || edge.edge.open_connections() <= 1);
    });
}

#[test]
fn requests_begun_and_reset_again_and_again_end_the_connection() {
    on_each_backend(|backend| {
        let (edge, origin) = edge_and_origin(backend);
        let before = edge.metric(SERIES);
        let reset = |number: u32| {
            let stream = 2 * number + 1;
            [headers(stream), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
        };
        let taken = flood(begun(&edge), 20_000, reset);
        assert!(taken.is_some(), "20,000 requests were begun and reset");
        assert!(
            origin.connections() < 2 * limits::GIVEN_UP_MAX as usize,
            "{} at the origin",
            origin.connections()
        );

        // Slow enough that each request is under way when it is reset.
        let mut client = begun(&edge);
        let mut ended = false;
        for number in 0..4 * limits::GIVEN_UP_MAX {
            let stream = 2 * number + 1;
            let seen = origin.messages().len();
            let sent = client.stream.write_all(&headers(stream)).and_then(|()| client.stream.flush());
            let deadline = portico_edge::clock::now() + std::time::Duration::from_millis(200);
            while origin.messages().len() == seen && portico_edge::clock::now() < deadline {
                std::thread::yield_now();
            }
            let reset = frame(3, 0, stream, &8_u32.to_be_bytes());
            let reset = client.stream.write_all(&reset).and_then(|()| client.stream.flush());
            if sent.is_err() || reset.is_err() {
                ended = true;
                break;
            }
        }
        assert!(ended || client.rest().is_ok(), "the connection ends");
        wait_until("it is counted", || edge.metric(SERIES) > before);
        let answer = http2_get(edge.https, Some("other.example"), "other.example", "/").unwrap();
        assert_eq!(answer.status, 200, "others are served");
    });
}

#[test]
fn an_http2_connection_ends_politely_after_its_share_of_exchanges() {
    on_each_backend(|backend| {
        use bytes::Bytes;
        use http_body_util::Empty;
        let mut edge = TestEdge::start(backend);
        edge.serve(&[HOST]);
        let served = crate::client::runtime().block_on(async {
            let mut sender = crate::client::http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let mut served = 0_u64;
            loop {
                if sender.ready().await.is_err() {
                    return served;
                }
                let request = http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
                match sender.send_request(request).await {
                    Ok(answer) => assert_eq!(crate::client::collect(answer).await.unwrap().status, 200),
                    Err(error) => {
                        assert!(error.is_canceled() || error.is_closed() || served > 0, "{error:?}");
                        return served;
                    }
                }
                served += 1;
                assert!(served <= limits::EXCHANGES_PER_CONNECTION_MAX + 100, "never told to go");
            }
        });
        assert!(served >= limits::EXCHANGES_PER_CONNECTION_MAX, "{served}");
    });
}
