//! What is compressed, for whom, and what never is.

mod asking;
mod kept;
mod never;

use std::io;

use portico_api::distribution as wire;
use portico_edge::io::Backend;

use crate::client::{Answer, https};
use crate::harness::{Setup, TestEdge, proxy_to};
use crate::origin::{Message, Origin, Reply};

const HOST: &str = "shop.example";
const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

fn compressed(origin: &Origin, change: impl Fn(&mut wire::Proxy)) -> wire::Route {
    let mut route = proxy_to(&origin.url());
    if let Some(wire::route::Action::Proxy(proxy)) = &mut route.action {
        proxy.compression = Some(wire::CompressionPolicy::default());
        change(proxy);
    }
    route
}

/// An edge that compresses what this origin sends.
struct Press {
    edge: TestEdge,
    origin: Origin,
    served: crate::harness::Served,
}

impl Press {
    fn new(backend: Backend, reply: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(backend, Setup::default(), |_| (), reply)
    }

    fn with(
        backend: Backend,
        setup: Setup,
        change: impl Fn(&mut wire::Proxy),
        reply: impl Fn(&Message) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let origin = Origin::start(reply);
        let mut edge = TestEdge::with(backend, setup);
        let served = edge.serve_with(&[HOST], &[origin.grant()], |body| {
            body.routes = vec![compressed(&origin, &change)];
        });
        Self { edge, origin, served }
    }

    /// On a connection of its own.
    fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut client = https(self.edge.https, HOST);
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"));
        client.answer_to(method).unwrap()
    }

    fn get(&self, path: &str, coding: &str) -> Answer {
        self.ask("GET", path, &[("accept-encoding", coding)])
    }
}

/// A page of `bytes`, as pages are: much of it comes again.
fn page(bytes: usize) -> String {
    let mut text = String::from("<!doctype html><title>a page</title>\n");
    let mut number = 7_u64;
    while text.len() < bytes {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("<p class=\"item\">item {} of the list</p>\n", number >> 48));
    }
    text.truncate(bytes);
    text
}

fn reply(status: u16, lines: &[&str], body: &str) -> Reply {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    Reply::Keep(format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{lines}\r\n{body}").into_bytes())
}

/// The body as the client's own decoder has it.
fn decoded(answer: &Answer) -> String {
    let body = decode(answer.header("content-encoding").unwrap_or("identity"), &answer.body);
    String::from_utf8(body.unwrap()).unwrap()
}

/// The error, where the body has no end.
fn decode(coding: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let (text, end) = decode_as_far(coding, body);
    end.map(|()| text)
}

/// What a decoder has made of a body so far, and what it says then.
fn decode_as_far(coding: &str, body: &[u8]) -> (Vec<u8>, io::Result<()>) {
    let mut reader: Box<dyn io::Read + '_> = match coding {
        "br" => Box::new(brotli::Decompressor::new(body, 4096)),
        "gzip" => Box::new(flate2::read::GzDecoder::new(body)),
        "zstd" => Box::new(zstd::stream::read::Decoder::new(body).unwrap()),
        _ => Box::new(body),
    };
    let mut text = Vec::new();
    let end = reader.read_to_end(&mut text);
    (text, end.map(drop))
}
