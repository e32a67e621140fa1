//! What is sent as it is.

use portico_api::distribution as wire;

use super::{Press, page, reply};
use crate::harness::{Setup, on_each_backend};
use crate::origin::Message;

const HTML: &str = "Content-Type: text/html";

/// The answer's own lines, by the path: `/a` stands for the first.
fn press(
    backend: portico_edge::io::Backend,
    answers: &'static [(u16, &'static [&'static str], usize)],
) -> Press {
    let index = |message: &Message| {
        let path = message.request_line.split(' ').nth(1).unwrap_or_default();
        path.trim_start_matches('/').parse::<usize>().unwrap()
    };
    Press::new(backend, move |message| {
        let (status, lines, bytes) = answers[index(message)];
        reply(status, lines, &page(bytes))
    })
}

#[test]
fn what_is_short_or_compressed_or_a_part_is_sent_as_it_is() {
    on_each_backend(|backend| {
        const ANSWERS: &[(u16, &[&str], usize)] = &[
            (200, &[HTML], 1023),
            (200, &["Content-Type: image/png"], 9000),
            (200, &[], 9000),
            (200, &[HTML, "Content-Encoding: x-own"], 9000),
            (206, &[HTML, "Content-Range: bytes 0-8999/10000"], 9000),
            (200, &[HTML, "Cache-Control: max-age=9, no-transform"], 9000),
            (200, &[HTML, "Repr-Digest: sha-256=:AAAA:"], 9000),
            (200, &["Content-Type: text/event-stream"], 9000),
            (200, &["Content-Type: application/grpc"], 9000),
        ];
        let press = press(backend, ANSWERS);
        for (index, (status, lines, bytes)) in ANSWERS.iter().enumerate() {
            let answer = press.get(&format!("/{index}"), "zstd, br, gzip");
            assert_eq!(answer.status, *status);
            assert_eq!(answer.text(), page(*bytes), "{lines:?}");
            assert_ne!(answer.header("content-encoding"), Some("zstd"), "{lines:?}");
        }
        const PLAIN: &[(u16, &[&str], usize)] = &[(200, &[HTML], 9000), (404, &[HTML], 9000)];
        let press = self::press(backend, PLAIN);
        for path in ["/0", "/1"] {
            assert_eq!(press.get(path, "gzip").header("content-encoding"), Some("gzip"), "{path}");
        }
        let forbidden = [("accept-encoding", "gzip"), ("cache-control", "no-transform")];
        assert_eq!(press.ask("GET", "/0", &forbidden).header("content-encoding"), None);
    });
}

/// BREACH: a page that answers one visitor may hold a secret, beside words that somebody else has put into the request.
#[test]
fn what_may_hold_a_secret_is_sent_as_it_is() {
    on_each_backend(|backend| {
        const ANSWERS: &[(u16, &[&str], usize)] = &[
            (200, &[HTML], 9000),
            (200, &[HTML, "Cache-Control: public, max-age=60"], 9000),
            (200, &[HTML, "Cache-Control: public", "Set-Cookie: session=1"], 9000),
            (200, &[HTML, "Cache-Control: max-age=60"], 9000),
            (200, &[HTML, "Cache-Control: public", "Cache-Control: private"], 9000),
        ];
        let press = press(backend, ANSWERS);
        let nobody: &[(&str, &str)] = &[];
        let table = [
            ("/0", nobody, true),
            ("/0", &[("cookie", "session=1")], false),
            ("/0", &[("authorization", "Basic eDp5")], false),
            ("/1", &[("cookie", "session=1")], true),
            ("/1", &[("authorization", "Basic eDp5")], true),
            ("/2", nobody, false),
            ("/3", &[("cookie", "session=1")], false),
            ("/4", &[("cookie", "session=1")], false),
        ];
        for (path, fields, compressed) in table {
            let answer = press.ask("GET", path, &[fields, &[("accept-encoding", "br")]].concat());
            assert_eq!(answer.header("content-encoding").is_some(), compressed, "{path} {fields:?}");
        }
    });
}

#[test]
fn a_route_without_a_policy_passes_what_its_origin_sends() {
    on_each_backend(|backend| {
        let change = |proxy: &mut wire::Proxy| proxy.compression = None;
        let press = Press::with(backend, Setup::default(), change, |_| {
            reply(200, &[HTML, "ETag: \"a\""], &page(9000))
        });
        let answer = press.get("/", "gzip");
        assert_eq!(answer.text(), page(9000));
        assert_eq!((answer.header("vary"), answer.header("etag")), (None, Some("\"a\"")));
    });
}
