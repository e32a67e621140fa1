//! HTTP-01 (RFC 8555 section 8.3): up to ten redirects to http or https, no certificate check on https.
//!
//! Ports 80 and 443 stand for the ports that the CA was started with; any other port is refused. The
//! first request names the host without a port, as a CA on port 80 does.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::{Target, Validator};
use crate::problem::{Kind, Problem};

const REDIRECTS_MAX: usize = 10;
/// A key authorization has 87 bytes; some servers add a line end or a little more.
const BODY_MAX: usize = 1_024;

impl Validator {
    pub(super) async fn http01(&self, target: &Target) -> Result<(), Problem> {
        let first = format!("http://{}/.well-known/acme-challenge/{}", target.name, target.token);
        let mut url = Url::parse(&first).map_err(|error| connection(&format!("{first}: {error}")))?;
        for _ in 0..=REDIRECTS_MAX {
            let (answer, address) = self.fetch(&url).await?;
            if !is_redirect(answer.status) {
                return judge(target, &url, address, &answer);
            }
            url = self.redirect_target(&url, &answer.headers)?;
        }
        Err(connection(&format!("{first}: more than {REDIRECTS_MAX} redirects")))
    }

    async fn fetch(&self, url: &Url) -> Result<(Answer, IpAddr), Problem> {
        let Some(Host::Domain(name)) = url.host() else {
            return Err(connection(&format!("{url}: a redirect to an IP address is not followed")));
        };
        let https = url.scheme() == "https";
        let port = if https { self.tls_port } else { self.http_port };
        let (stream, address) = self.connect(name, port).await?;
        let failed = |text: String| connection(&format!("{url} ({address}): {text}"));
        if !https {
            return Ok((exchange(stream, url).await.map_err(failed)?, address));
        }
        let server = ServerName::try_from(name.to_owned()).map_err(|error| failed(error.to_string()))?;
        let connector = TlsConnector::from(self.https.clone());
        let stream = connector
            .connect(server, stream)
            .await
            .map_err(|error| Problem::new(Kind::Tls, format!("{url} ({address}): {error}")))?;
        Ok((exchange(stream, url).await.map_err(failed)?, address))
    }

    fn redirect_target(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Problem> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| connection(&format!("{from}: a redirect without Location")))?;
        let to =
            from.join(location).map_err(|error| connection(&format!("{from}: {location:?}: {error}")))?;
        let ports = match to.scheme() {
            "http" => [80, self.http_port],
            "https" => [443, self.tls_port],
            other => return Err(connection(&format!("{from}: redirect to scheme {other:?}"))),
        };
        if !to.port_or_known_default().is_some_and(|port| ports.contains(&port)) {
            return Err(connection(&format!("{from}: redirect to {to}, a port that is not allowed")));
        }
        Ok(to)
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn judge(target: &Target, url: &Url, address: IpAddr, answer: &Answer) -> Result<(), Problem> {
    if answer.status != StatusCode::OK {
        return Err(Problem::unauthorized(format!("{url} ({address}): status {}", answer.status.as_u16())));
    }
    let body = String::from_utf8_lossy(&answer.body);
    if body.trim_end() == target.key_authorization {
        return Ok(());
    }
    let shown: String = body.chars().take(100).collect();
    Err(Problem::unauthorized(format!("{url} ({address}): not the key authorization: {shown:?}")))
}

async fn exchange<S>(stream: S, url: &Url) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let outcome = send(&mut sender, url).await;
    driver.abort();
    outcome
}

async fn send(sender: &mut http1::SendRequest<Empty<Bytes>>, url: &Url) -> Result<Answer, String> {
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, "portico-acme-ca validation")
        .header("accept", "*/*")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (parts, body) = response.into_parts();
    if is_redirect(parts.status) {
        return Ok(Answer { status: parts.status, headers: parts.headers, body: Bytes::new() });
    }
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() })
}

fn connection(detail: &str) -> Problem {
    Problem::new(Kind::Connection, detail)
}
