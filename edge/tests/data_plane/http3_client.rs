//! One HTTP/3 request on a connection of its own.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let exchanging = exchange(address, sni, request);
        tokio::time::timeout(PATIENCE, exchanging).await.map_err(|_| "late".to_owned())?
    })
}

async fn exchange(
    address: SocketAddr,
    sni: Option<&str>,
    request: http::Request<()>,
) -> Result<Answer, String> {
    let crypto = QuicClientConfig::try_from(any_version(&["h3"])).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint =
        quinn::Endpoint::client(if address.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }.parse().unwrap())
            .unwrap();
    // An address is never sent as a server name (RFC 6066 section 3).
    let connecting = endpoint.connect_with(config, address, sni.unwrap_or("127.0.0.1")).unwrap();
    let connection = connecting.await.map_err(|error| match error {
        quinn::ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            // RFC 9001 section 4.8: 0x100 and the alert.
            if code & !0xff == 0x100 { format!("alert:{}", code & 0xff) } else { close.to_string() }
        }
        other => other.to_string(),
    })?;
    let adapter = Connection::new(connection.clone(), Rc::new(Accepting::default()));
    let (mut driver, mut sender) = h3::client::new(adapter).await.map_err(|error| error.to_string())?;
    tokio::task::spawn_local(async move {
        // Its end is seen on the stream.
        let _ended = std::future::poll_fn(|context| driver.poll_close(context)).await;
    });
    let answering = async {
        let mut stream: h3::client::RequestStream<_, Bytes> = sender.send_request(request).await?;
        stream.finish().await?;
        let head = stream.recv_response().await?;
        let mut body = Vec::new();
        while let Some(mut data) = stream.recv_data().await? {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        Ok((head, body))
    };
    let (head, body) = answering.await.map_err(|error: h3::error::StreamError| error.to_string())?;
    connection.close(0x100_u32.into(), b"");
    endpoint.wait_idle().await;
    let headers = head.headers().iter();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = headers.map(|(name, value)| (name.to_string(), text(value))).collect();
    Ok(Answer { status: head.status().as_u16(), headers, body })
}
