//! Strict clients: one thread each, one request after the other.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use hdrhistogram::Histogram;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cert_store::DomainName;
use portico_edge::http::h3::adapter::{Connection, Opener};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::LocalSet;

use crate::client::{self, ConnectError, TlsChoice};

/// Without an answer for this long a request is lost.
const DEADLINE: Duration = Duration::from_secs(20);
/// One minute.
const LATENCY_US_MAX: u64 = 60_000_000;
/// The body of every right answer, bytes.
const BODY_BYTES: usize = crate::compare::BODY_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1Kept,
    Http1Fresh,
    Http2Kept,
    Http3Kept,
    Http3Fresh,
}

#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
    pub(crate) roots: Arc<RootCertStore>,
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) failures: Vec<String>,
    /// Requests that crossed a GOAWAY: the server said that it had done nothing for them (RFC 9113 section 6.8, RFC 9114 section
    /// 4.1.1), and they were sent again, as browsers do.
    pub(crate) sent_again: u64,
    /// Microseconds, connecting included where that was needed.
    pub(crate) latency: Histogram<u64>,
}

/// An open connection.
enum Open {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
    Http3 { connection: quinn::Connection, sender: h3::client::SendRequest<Opener, Bytes> },
}

/// What came of one request.
enum Asked {
    /// And the connection goes on.
    Answered,
    AnsweredLast,
    /// The server had said before that it takes no more here; nothing has left the client.
    NotSent,
    /// It has left, and the server says that it was not looked at.
    NotProcessed,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Http1Kept, Self::Http1Fresh, Self::Http2Kept, Self::Http3Kept, Self::Http3Fresh];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http1Kept => "HTTP/1.1, kept connections",
            Self::Http1Fresh => "HTTP/1.1, a connection each",
            Self::Http2Kept => "HTTP/2, kept connections",
            Self::Http3Kept => "HTTP/3, kept connections",
            Self::Http3Fresh => "HTTP/3, a connection each",
        }
    }

    fn is_kept(self) -> bool {
        !matches!(self, Self::Http1Fresh | Self::Http3Fresh)
    }
}

impl Outcome {
    fn new() -> Result<Self> {
        Ok(Self {
            requests: 0,
            connections: 0,
            failures: Vec::new(),
            sent_again: 0,
            latency: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
        })
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.connections += other.connections;
        self.failures.extend(other.failures);
        self.sent_again += other.sent_again;
        // Both have the same precision.
        let _added = self.latency.add(other.latency);
    }
}

/// Asks until `stop`.
pub(crate) fn run(kind: Kind, target: &Target, stop: &AtomicBool) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcome = Outcome::new()?;
    let tls = client::config(
        RootCertStore::clone(&target.roots),
        TlsChoice { resume: false, http2: kind == Kind::Http2Kept, classical: false },
    )?;
    LocalSet::new().block_on(&runtime, async {
        let mut open = None;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            match tokio::time::timeout(DEADLINE, ask(kind, target, &tls, &mut open, &mut outcome)).await {
                Ok(Ok(())) => {
                    outcome.requests += 1;
                    let microseconds = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    outcome.latency.saturating_record(microseconds.max(1));
                }
                Ok(Err(error)) => {
                    open = None;
                    outcome.failures.push(format!("{error:#}"));
                }
                Err(_) => {
                    open = None;
                    outcome.failures.push(format!("no answer within {} s", DEADLINE.as_secs()));
                }
            }
        }
    });
    Ok(outcome)
}

/// One request, on a new connection where there is none or the one there was takes no more.
async fn ask(
    kind: Kind,
    target: &Target,
    tls: &Arc<ClientConfig>,
    open: &mut Option<Open>,
    outcome: &mut Outcome,
) -> Result<()> {
    loop {
        let mut connection = match open.take() {
            Some(connection) => connection,
            None => {
                outcome.connections += 1;
                connect(kind, target, tls).await.context("connect")?
            }
        };
        match connection.ask(&target.name, kind.is_kept()).await? {
            Asked::NotSent => connection.close(),
            Asked::NotProcessed => {
                outcome.sent_again += 1;
                connection.close();
            }
            Asked::Answered if kind.is_kept() => {
                *open = Some(connection);
                return Ok(());
            }
            Asked::Answered | Asked::AnsweredLast => {
                connection.close();
                return Ok(());
            }
        }
    }
}

async fn connect(kind: Kind, target: &Target, tls: &Arc<ClientConfig>) -> Result<Open> {
    if matches!(kind, Kind::Http3Kept | Kind::Http3Fresh) {
        return connect_http3(target).await;
    }
    let name = DomainName::parse(&target.name)?;
    let stream = client::connect(target.address, &name, tls).await.map_err(|error| match error {
        ConnectError::WrongCertificate(why) | ConnectError::Failed(why) => anyhow!(why),
    })?;
    if kind == Kind::Http2Kept {
        let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::task::spawn_local(driver);
        Ok(Open::Http2(sender))
    } else {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(driver);
        Ok(Open::Http1(sender))
    }
}

async fn connect_http3(target: &Target) -> Result<Open> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(&target.roots))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let connection = endpoint.connect_with(config, target.address, &target.name)?.await?;
    let adapter = Connection::new(connection.clone(), Rc::default());
    let (mut driver, sender) = h3::client::new(adapter).await?;
    tokio::task::spawn_local(async move {
        // Its end is seen on the streams.
        let _ended = std::future::poll_fn(|context| driver.poll_close(context)).await;
    });
    Ok(Open::Http3 { connection, sender })
}

impl Open {
    async fn ask(&mut self, name: &str, is_kept: bool) -> Result<Asked> {
        match self {
            Self::Http1(sender) => {
                if sender.ready().await.is_err() {
                    // Closed while nothing was under way: that is not lost, but it was not announced either.
                    return Ok(Asked::NotSent);
                }
                let mut request = Request::get("/").header("host", name);
                if !is_kept {
                    request = request.header("connection", "close");
                }
                let response = sender.send_request(request.body(Empty::new())?).await?;
                let is_last = response.headers().get("connection").is_some_and(|value| value == "close");
                check(response).await?;
                Ok(if is_last { Asked::AnsweredLast } else { Asked::Answered })
            }
            Self::Http2(sender) => {
                if sender.ready().await.is_err() {
                    return Ok(Asked::NotSent);
                }
                let request = Request::get(format!("https://{name}/")).body(Empty::new())?;
                match sender.try_send_request(request).await {
                    Ok(response) => check(response).await.map(|()| Asked::Answered),
                    Err(mut error) => match error.take_message() {
                        Some(_) => Ok(Asked::NotSent),
                        None => not_processed(error.into_error()),
                    },
                }
            }
            Self::Http3 { sender, .. } => {
                let request = Request::get(format!("https://{name}/")).body(())?;
                match exchange(sender, request).await {
                    Ok((status, bytes)) => check_parts(status, bytes).map(|()| Asked::Answered),
                    Err(StreamError::RemoteClosing) => Ok(Asked::NotSent),
                    // RFC 9114 section 4.1.1.
                    Err(StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. }) => {
                        Ok(Asked::NotProcessed)
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    fn close(self) {
        if let Self::Http3 { connection, .. } = self {
            connection.close(0x100_u32.into(), b""); // H3_NO_ERROR
        }
    }
}

/// The status, and how many bytes the body had.
async fn exchange(
    sender: &mut h3::client::SendRequest<Opener, Bytes>,
    request: Request<()>,
) -> Result<(StatusCode, usize), StreamError> {
    let mut stream = sender.send_request(request).await?;
    stream.finish().await?;
    let status = stream.recv_response().await?.status();
    let mut bytes = 0;
    while let Some(mut data) = stream.recv_data().await? {
        let length = data.remaining();
        data.advance(length);
        bytes += length;
    }
    Ok((status, bytes))
}

fn not_processed(error: hyper::Error) -> Result<Asked> {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
    let is_told = source.is_some_and(|source| {
        source.is_go_away() && source.is_remote() && source.reason() == Some(h2::Reason::NO_ERROR)
    });
    if is_told { Ok(Asked::NotProcessed) } else { Err(error.into()) }
}

async fn check(response: Response<Incoming>) -> Result<()> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    check_parts(status, body.len())
}

fn check_parts(status: StatusCode, bytes: usize) -> Result<()> {
    if status != StatusCode::OK || bytes != BODY_BYTES {
        bail!("status {status}, {bytes} bytes of {BODY_BYTES}");
    }
    Ok(())
}
