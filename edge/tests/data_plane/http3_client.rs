//! One HTTP/3 request on a connection of its own.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use h3::error::Code;
use portico_edge::http::h3::adapter::{Accepting, Connection};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::LocalSet;

use crate::client::{Answer, any_version};
use crate::harness::PATIENCE;

/// The status of a GET, or how the handshake ended (`alert:N`).
pub fn http3_get(address: SocketAddr, sni: Option<&str>, authority: &str, path: &str) -> Result<u16, String> {
    let request = http::Request::get(format!("https://{authority}{path}")).body(()).unwrap();
    http3(address, sni, request).map(|answer| answer.status)
}

/// The answer to a request without a body.
pub fn http3(address: SocketAddr, sni: Option<&str>, request: http::Request<()>) -> Result<Answer, String> {
    http3_with(any_version(&["h3"]), address, sni, request)
}

/// The same with another TLS configuration.
pub fn http3_with(
    config: rustls::ClientConfig,
    address: SocketAddr,
    sni: Option<&str>,
    request: http::Request<()>,
) -> Result<Answer, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let exchanging = exchange(config, address, sni, request);
        tokio::time::timeout(PATIENCE, exchanging).await.map_err(|_| "late".to_owned())?
    })
}

async fn exchange(
    config: rustls::ClientConfig,
    address: SocketAddr,
    sni: Option<&str>,
    request: http::Request<()>,
) -> Result<Answer, String> {
    let mut client = Http3::connect_with(config, address, sni).await?;
    let answer = client.ask(request).await?.ok_or("GOAWAY")?;
    client.close();
    client.endpoint.wait_idle().await;
    Ok(answer)
}

/// Such a request may be sent again, elsewhere (RFC 9114 section 4.1.1).
pub const REJECTED: &str = "H3_REQUEST_REJECTED";

/// A connection; its driver runs on the current thread.
pub struct Http3 {
    pub endpoint: quinn::Endpoint,
    pub connection: quinn::Connection,
    pub sender: h3::client::SendRequest<portico_edge::http::h3::adapter::Opener, Bytes>,
}

impl Http3 {
    /// An alert is told as `alert:N`.
    pub async fn connect(address: SocketAddr, sni: Option<&str>) -> Result<Self, String> {
        Self::connect_with(any_version(&["h3"]), address, sni).await
    }

    pub async fn connect_with(
        config: rustls::ClientConfig,
        address: SocketAddr,
        sni: Option<&str>,
    ) -> Result<Self, String> {
        let crypto = QuicClientConfig::try_from(config).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let own = if address.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let endpoint = quinn::Endpoint::client(own.parse().unwrap()).unwrap();
        // An address is never sent as a server name (RFC 6066 section 3).
        let connecting = endpoint.connect_with(config, address, sni.unwrap_or("127.0.0.1")).unwrap();
        let connection = connecting.await.map_err(|error| told(Some(error)).unwrap_or_default())?;
        let adapter = Connection::new(connection.clone(), Rc::new(Accepting::default()));
        // A client's certificate is refused when its own handshake is over already.
        let refused = |error: String| told(connection.close_reason()).unwrap_or(error);
        let (mut driver, sender) =
            h3::client::new(adapter).await.map_err(|error| refused(error.to_string()))?;
        tokio::task::spawn_local(async move {
            // Its end is seen on the stream.
            let _ended = std::future::poll_fn(|context| driver.poll_close(context)).await;
        });
        Ok(Self { endpoint, connection, sender })
    }

    /// `None`: the server has said GOAWAY before, and the request was not sent. [`REJECTED`]: the server has not looked at it.
    pub async fn ask(&mut self, request: http::Request<()>) -> Result<Option<Answer>, String> {
        let mut stream: h3::client::RequestStream<_, Bytes> = match self.sender.send_request(request).await {
            Ok(stream) => stream,
            Err(h3::error::StreamError::RemoteClosing) => return Ok(None),
            Err(error) => return Err(told(self.connection.close_reason()).unwrap_or(error.to_string())),
        };
        let answering = async {
            stream.finish().await?;
            let head = stream.recv_response().await?;
            let mut body = Vec::new();
            while let Some(mut data) = stream.recv_data().await? {
                body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
            Ok((head, body))
        };
        let (head, body) = answering.await.map_err(|error: h3::error::StreamError| match error {
            h3::error::StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. } => {
                REJECTED.to_owned()
            }
            error => told(self.connection.close_reason()).unwrap_or(error.to_string()),
        })?;
        let headers = head.headers().iter();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = headers.map(|(name, value)| (name.to_string(), text(value))).collect();
        Ok(Some(Answer { status: head.status().as_u16(), headers, body }))
    }

    pub fn close(&self) {
        self.connection.close(0x100_u32.into(), b"");
    }
}

/// How a connection ended.
fn told(error: Option<quinn::ConnectionError>) -> Option<String> {
    Some(match error? {
        quinn::ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            // RFC 9001 section 4.8: 0x100 and the alert.
            if code & !0xff == 0x100 { format!("alert:{}", code & 0xff) } else { close.to_string() }
        }
        other => other.to_string(),
    })
}
