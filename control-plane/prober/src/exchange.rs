//! The HTTP half of a check: one request, its head, and the beginning of its body.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cert_store::DomainName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::check::{CheckOptions, Method};
use crate::report::{BodyReport, Redirect};
use crate::tls::sha256_hex;

const LOCATION_BYTES_MAX: usize = 2048;
const SERVER_BYTES_MAX: usize = 100;
/// The answer's head; more is a failure of the request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const USER_AGENT: &str = concat!("portico-check/", env!("CARGO_PKG_VERSION"));

/// The connection's driver ends with this: nothing of a check outlives it.
pub(crate) struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends the request and waits for the answer's head.
pub(crate) async fn request(
    stream: TlsStream<TcpStream>,
    h2: bool,
    name: &DomainName,
    port: u16,
    options: &CheckOptions,
) -> Result<(Response<Incoming>, Driver), String> {
    let io = TokioIo::new(stream);
    if h2 {
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .handshake(io)
            .await
            .map_err(|e| chain_text(&e))?;
        let driver = Driver(tokio::spawn(async move { drop(connection.await) }));
        let request = head(name, port, options, Version::HTTP_2)?;
        let answer = sender.send_request(request).await.map_err(|e| chain_text(&e))?;
        Ok((answer, driver))
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(io)
            .await
            .map_err(|e| chain_text(&e))?;
        let driver = Driver(tokio::spawn(async move { drop(connection.await) }));
        let request = head(name, port, options, Version::HTTP_11)?;
        let answer = sender.send_request(request).await.map_err(|e| chain_text(&e))?;
        Ok((answer, driver))
    }
}

fn head(
    name: &DomainName,
    port: u16,
    options: &CheckOptions,
    version: Version,
) -> Result<Request<Empty<Bytes>>, String> {
    let authority = if port == 443 { name.to_string() } else { format!("{name}:{port}") };
    let method = match options.method {
        Method::Get => http::Method::GET,
        Method::Head => http::Method::HEAD,
    };
    let request = Request::builder().method(method).version(version).header(header::USER_AGENT, USER_AGENT);
    let request = if version == Version::HTTP_2 {
        request.uri(format!("https://{authority}{}", options.path))
    } else {
        request.uri(&options.path).header(header::HOST, authority).header(header::CONNECTION, "close")
    };
    request.body(Empty::new()).map_err(|e| e.to_string())
}

/// The redirect that the answer asks for, if its status is one.
pub(crate) fn redirect_of(status: u16, headers: &HeaderMap) -> Option<Redirect> {
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = text(headers, &header::LOCATION, LOCATION_BYTES_MAX)?;
    Some(Redirect { status, location })
}

pub(crate) fn server_of(headers: &HeaderMap) -> Option<String> {
    text(headers, &header::SERVER, SERVER_BYTES_MAX)
}

fn text(headers: &HeaderMap, name: &header::HeaderName, bytes_max: usize) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    Some(String::from_utf8_lossy(&value[..value.len().min(bytes_max)]).into_owned())
}

/// Reads up to the limit of the check; on an error what came before it is reported with it.
pub(crate) async fn read_body(mut body: Incoming, options: &CheckOptions) -> (BodyReport, Option<String>) {
    let mut read = Vec::new();
    let mut truncated = false;
    let mut failure = None;
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => {
                failure = Some(chain_text(&error));
                break;
            }
        };
        let room = options.body_bytes_max - read.len();
        read.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            truncated = true;
            break;
        }
    }
    let first = String::from_utf8_lossy(&read[..read.len().min(options.body_first_bytes)]).into_owned();
    (BodyReport { bytes: read.len(), truncated, sha256: sha256_hex(&read), first }, failure)
}

/// An error with its causes on one line; a cause that the text before it repeats is left out.
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
