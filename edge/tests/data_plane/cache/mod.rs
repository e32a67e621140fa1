//! What the cache keeps, for whom, and what it never does.

mod asking;
mod keeping;
mod never;
mod poisoning;
mod purging;
mod sharing;
mod waiting;

use std::collections::BTreeMap;
use std::net::TcpStream;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use portico_api::distribution as wire;
use portico_edge::io::Backend;
use rustls::{ClientConnection, StreamOwned};

use crate::client::{Answer, Http1, collect, http2, https, runtime};
use crate::harness::{Served, Setup, TestEdge, proxy_to};
use crate::http3_client::http3;
use crate::origin::{Message, Origin, Reply};

const HOST: &str = "shop.example";

/// An edge that keeps what this origin allows.
struct Shop {
    edge: TestEdge,
    origin: Origin,
    served: Served,
}

impl Shop {
    fn new(backend: Backend, reply: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(backend, wire::CachePolicy::default(), Setup::default(), reply)
    }

    fn with(
        backend: Backend,
        policy: wire::CachePolicy,
        setup: Setup,
        reply: impl Fn(&Message) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let origin = Origin::start(reply);
        let mut edge = TestEdge::with(backend, setup);
        let served = edge.serve_with(&[HOST], &[origin.grant()], |body| {
            body.routes = vec![cached(&origin.url(), &policy)];
        });
        Self { edge, origin, served }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    /// On a connection of its own.
    fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        ask(&mut self.connect(), method, path, fields)
    }

    fn connect(&self) -> Http1<StreamOwned<ClientConnection, TcpStream>> {
        https(self.edge.https, HOST)
    }

    /// Paths that the origin was asked for, each with how often.
    fn asked(&self) -> BTreeMap<String, usize> {
        let mut asked = BTreeMap::new();
        for message in self.origin.messages() {
            *asked.entry(target(&message).to_owned()).or_default() += 1;
        }
        asked
    }
}

fn ask<S: std::io::Read + std::io::Write>(
    client: &mut Http1<S>,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
) -> Answer {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"));
    client.answer_to(method).unwrap()
}

/// One GET by any protocol.
fn get_by(edge: &TestEdge, protocol: &str, path: &str) -> Answer {
    let request = Request::get(format!("https://{HOST}{path}"));
    match protocol {
        "h1" => https(edge.https, HOST).get(HOST, path),
        "h2" => runtime().block_on(async {
            let mut sender = http2::<Full<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let request = request.body(Full::default()).unwrap();
            collect(sender.send_request(request).await.unwrap()).await.unwrap()
        }),
        _ => http3(edge.https, Some(HOST), request.body(()).unwrap()).unwrap(),
    }
}

/// A route to `url` with a cache.
fn cached(url: &str, policy: &wire::CachePolicy) -> wire::Route {
    let mut route = proxy_to(url);
    if let Some(wire::route::Action::Proxy(proxy)) = &mut route.action {
        proxy.cache = Some(policy.clone());
    }
    route
}

fn target(message: &Message) -> &str {
    message.request_line.split(' ').nth(1).unwrap_or_default()
}

fn method(message: &Message) -> &str {
    message.request_line.split(' ').next().unwrap_or_default()
}

/// An answer with these lines and a length.
fn reply(status: u16, lines: &[&str], body: &str) -> Reply {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    Reply::Keep(
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{lines}\r\n{body}", body.len()).into_bytes(),
    )
}

/// What `Cache-Status` says.
fn status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("")
}

fn is_hit(answer: &Answer) -> bool {
    status(answer).starts_with("portico; hit")
}
