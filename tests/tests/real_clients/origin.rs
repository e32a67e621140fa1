//! A site: a page with many parts, files of known bytes, an echo.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
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
            tokio::spawn(async move { http.serve_connection(TokioIo::new(tcp), service).await });
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

/// The request's body and trailers, with its first line.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let line = format!("{} {}", request.method(), request.uri());
    let mut fields = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::TRAILER] {
        if let Some(value) = request.headers().get(&name) {
            fields.insert(name, value.clone());
        }
    }
    fields.insert(HeaderName::from_static("x-request"), line.parse().unwrap());
    let mut response = Response::new(request.into_body().boxed());
    *response.headers_mut() = fields;
    response
}
