//! A site: a page with many parts, files of known bytes, an echo.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Scripts and as many images on the page.
pub(crate) const PARTS: usize = 50;
/// Of `/style.css`, before compression.
pub(crate) const STYLE_BYTES: usize = 200_000;

/// Serves until the test ends.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Seen,
    /// Bodies of `POST /report`.
    pub(crate) reports: mpsc::UnboundedReceiver<Bytes>,
}

type Seen = Arc<Mutex<HashMap<String, usize>>>;
type Body = BoxBody<Bytes, hyper::Error>;

impl Origin {
    /// Requests for a path that came this far.
    pub(crate) fn seen(&self, path: &str) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied().unwrap_or(0)
    }
}

pub(crate) async fn start() -> Origin {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, reports) = mpsc::unbounded_channel();
    let seen = Seen::default();
    let counted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (seen, sender) = (Arc::clone(&counted), sender.clone());
            let service =
                hyper::service::service_fn(move |request| answer(request, Arc::clone(&seen), sender.clone()));
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(
                async move { http.serve_connection(TokioIo::new(tcp), service).with_upgrades().await },
            );
        }
    });
    Origin { address, seen, reports }
}

async fn answer(
    request: Request<Incoming>,
    seen: Seen,
    reports: mpsc::UnboundedSender<Bytes>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default() += 1;
    Ok(match path.as_str() {
        "/page" => full("text/html; charset=utf-8", page()),
        "/style.css" => full("text/css", style()),
        "/large" => large(&request),
        "/echo" => echo(request),
        "/kept.txt" => kept(),
        "/ws" => web_socket(request),
        "/report" => {
            if let Ok(body) = request.into_body().collect().await {
                let _ = reports.send(body.to_bytes());
            }
            full("text/plain", "taken")
        }
        _ if path.ends_with(".js") => full("text/javascript", "window.scripts = (window.scripts || 0) + 1;"),
        _ if path.ends_with(".svg") => full("image/svg+xml", PICTURE),
        _ => with(full("text/plain", "nothing"), StatusCode::NOT_FOUND),
    })
}

const PICTURE: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"7\" height=\"5\"></svg>";

fn full(kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    let response = Response::builder().header(header::CONTENT_TYPE, kind);
    response.header(header::CACHE_CONTROL, "no-store").body(body).unwrap()
}

fn with(mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    *response.status_mut() = status;
    response
}

fn page() -> String {
    let mut parts = String::new();
    for part in 0..PARTS {
        writeln!(parts, "<script src=\"/part/{part}.js\"></script><img src=\"/part/{part}.svg\">").unwrap();
    }
    include_str!("page.html").replace("<!-- parts -->", &parts)
}

fn style() -> String {
    let rule = ".part { color: #123456; margin: 0 auto; }\n";
    rule.repeat(STYLE_BYTES.div_ceil(rule.len())).split_at(STYLE_BYTES).0.to_owned()
}

/// `?bytes=N`: bytes that count to 250 again and again.
fn large(request: &Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().and_then(|query| query.strip_prefix("bytes="));
    let bytes: usize = query.and_then(|text| text.parse().ok()).unwrap_or(0);
    let pattern: Vec<u8> = (0..=250).collect();
    full("application/octet-stream", pattern.into_iter().cycle().take(bytes).collect::<Vec<u8>>())
}

/// For shared caches, and for the browser if it asks each time.
fn kept() -> Response<Body> {
    let mut response = full("text/plain", "kept by the edge");
    let fields = response.headers_mut();
    fields.insert(header::CACHE_CONTROL, "s-maxage=600, max-age=0".parse().unwrap());
    fields.insert(header::ETAG, "\"one\"".parse().unwrap());
    response
}

/// The request's body and trailers, with its first line and whether it came early.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let line = format!("{} {}", request.method(), request.uri());
    let mut fields = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::TRAILER] {
        if let Some(value) = request.headers().get(&name) {
            fields.insert(name, value.clone());
        }
    }
    fields.insert(HeaderName::from_static("x-request"), line.parse().unwrap());
    if let Some(early) = request.headers().get("early-data") {
        fields.insert(HeaderName::from_static("x-early-data"), early.clone());
    }
    let mut response = Response::new(request.into_body().boxed());
    *response.headers_mut() = fields;
    response
}

/// Sends each short message back, until the client closes (RFC 6455).
fn web_socket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return with(full("text/plain", "a WebSocket"), StatusCode::UPGRADE_REQUIRED);
    };
    // Section 1.3: the key with this text behind it.
    let text = [key.as_bytes(), b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        while frame_back(&mut stream).await.is_ok() {}
    });
    let mut response = with(full("text/plain", ""), StatusCode::SWITCHING_PROTOCOLS);
    let fields = response.headers_mut();
    fields.insert(header::CONNECTION, "upgrade".parse().unwrap());
    fields.insert(header::UPGRADE, "websocket".parse().unwrap());
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept.parse().unwrap());
    response
}

/// Section 5.2: two bytes, four of the mask, at most 125 of payload. A close is answered as any other.
async fn frame_back(stream: &mut TokioIo<hyper::upgrade::Upgraded>) -> std::io::Result<()> {
    let mut head = [0; 6];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    stream.read_exact(&mut payload).await?;
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte ^= head[2 + at % 4];
    }
    let back = [&[head[0], head[1] & 0x7f], &payload[..]].concat();
    stream.write_all(&back).await
}
