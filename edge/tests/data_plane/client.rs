//! Clients that say exactly what a test wants said.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_attacker::TrustAll;
use portico_attacker::frame::Frame;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::harness::PATIENCE;

pub fn config(alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll::default()))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

pub fn trust_all(config: &mut ClientConfig) {
    config.dangerous().set_certificate_verifier(Arc::new(TrustAll::default()));
}

pub fn any_version(alpn: &[&str]) -> ClientConfig {
    config(alpn, rustls::ALL_VERSIONS)
}

/// Without a server name when `sni` is None.
pub fn connection(mut config: ClientConfig, sni: Option<&str>) -> ClientConnection {
    config.enable_sni = sni.is_some();
    let name = ServerName::try_from(sni.unwrap_or("nobody.invalid").to_owned()).unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

pub fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// From an address of the test's choice: all of 127.0.0.0/8 is this machine.
pub fn tcp_from(own: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((own, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// HTTP/1.1 over TLS or plain TCP, byte by byte as told.
pub struct Http1<S> {
    pub stream: S,
    unread: Vec<u8>,
}

pub type Https = Http1<StreamOwned<ClientConnection, TcpStream>>;

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn https(address: SocketAddr, sni: &str) -> Https {
    try_https(address, Some(sni), any_version(&["http/1.1"])).unwrap()
}

pub fn try_https(address: SocketAddr, sni: Option<&str>, config: ClientConfig) -> io::Result<Https> {
    https_over(tcp(address), sni, config)
}

pub fn https_over(tcp: TcpStream, sni: Option<&str>, config: ClientConfig) -> io::Result<Https> {
    let mut stream = StreamOwned::new(connection(config, sni), tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Http1 { stream, unread: Vec::new() })
}

pub fn plain(address: SocketAddr) -> Http1<TcpStream> {
    plain_over(tcp(address))
}

pub fn plain_over(stream: TcpStream) -> Http1<TcpStream> {
    Http1::over(stream)
}

impl<S: Read + Write> Http1<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self.stream.flush().unwrap();
        self
    }

    pub fn get(&mut self, host: &str, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).answer()
    }

    /// The next final answer; a broken one panics with what came.
    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET").unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// The next answer, without a body if the request was HEAD.
    pub fn answer_to(&mut self, method: &str) -> io::Result<Answer> {
        loop {
            let head = self.head()?;
            let answer = parse_head(&head);
            if (100..200).contains(&answer.status) && answer.status != 101 {
                continue;
            }
            return self.with_body(answer, method);
        }
    }

    fn with_body(&mut self, mut answer: Answer, method: &str) -> io::Result<Answer> {
        let bodiless = method == "HEAD" || matches!(answer.status, 101 | 204 | 304);
        if bodiless {
            return Ok(answer);
        }
        answer.body = if answer.header("transfer-encoding").is_some() {
            self.chunked()?
        } else if let Some(length) = answer.header("content-length") {
            self.exactly(length.parse().unwrap())?
        } else {
            self.rest()?
        };
        Ok(answer)
    }

    pub fn head(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return Ok(String::from_utf8_lossy(&head).into_owned());
            }
            self.more()?;
        }
    }

    /// The next frame, of a client that speaks HTTP/2 by hand.
    pub fn frame(&mut self) -> io::Result<Frame> {
        loop {
            if let Some((frame, length)) = Frame::parse(&self.unread) {
                self.unread.drain(..length);
                return Ok(frame);
            }
            self.more()?;
        }
    }

    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            self.more()?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size)?);
            self.exactly(2)?;
        }
    }

    pub fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more()?;
        }
    }

    /// Everything until the other side closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(error) if is_end(&error) => return Ok(std::mem::take(&mut self.unread)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the other side closes, and sends nothing more before.
    pub fn closes(&mut self) -> bool {
        self.rest().is_ok_and(|rest| rest.is_empty())
    }

    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = loop {
            match self.stream.read(&mut buffer) {
                // A ring that this thread probed and dropped is taken apart by a signal to the thread, and the kernel
                // does not restart a read that has a deadline (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.unread.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}

fn parse_head(head: &str) -> Answer {
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Answer { status, headers, body: Vec::new() }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub type Http2Sender<B> = hyper::client::conn::http2::SendRequest<B>;

/// An HTTP/2 connection; its driver runs on the current runtime.
pub async fn http2<B>(address: SocketAddr, sni: Option<&str>) -> io::Result<Http2Sender<B>>
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    http2_with(any_version(&["h2"]), address, sni).await
}

/// The same with another TLS configuration.
pub async fn http2_with<B>(
    mut config: ClientConfig,
    address: SocketAddr,
    sni: Option<&str>,
) -> io::Result<Http2Sender<B>>
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    config.enable_sni = sni.is_some();
    let name = ServerName::try_from(sni.unwrap_or("nobody.invalid").to_owned()).unwrap();
    let tcp = tokio::net::TcpStream::connect(address).await?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
    let (sender, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// One GET over HTTP/2.
pub fn http2_get(address: SocketAddr, sni: Option<&str>, authority: &str, path: &str) -> io::Result<Answer> {
    http2_get_with(any_version(&["h2"]), address, sni, authority, path)
}

pub fn http2_get_with(
    config: ClientConfig,
    address: SocketAddr,
    sni: Option<&str>,
    authority: &str,
    path: &str,
) -> io::Result<Answer> {
    runtime().block_on(async {
        let mut sender = http2_with::<Empty<Bytes>>(config, address, sni).await?;
        let request = http::Request::get(format!("https://{authority}{path}")).body(Empty::new()).unwrap();
        let answering = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            collect(response).await
        };
        tokio::time::timeout(PATIENCE, answering).await.map_err(io::Error::other)?
    })
}

pub async fn collect(response: http::Response<hyper::body::Incoming>) -> io::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    Ok(Answer { status: parts.status.as_u16(), headers, body })
}

/// The fatal alert that a handshake ended with.
pub fn alert_of(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
