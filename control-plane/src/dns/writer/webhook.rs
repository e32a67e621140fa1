//! A request to a service of the operator's: `POST URL`, `{"action": "add", "name": .., "value": ..}`; 2xx is done.

use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::Action;
use crate::config::DnsWebhookConfig;
use crate::limits;
use crate::roots::roots;

pub(super) struct Webhook {
    url: Uri,
    /// The URL without its query, which may hold a secret.
    place: String,
    host: String,
    tls: Option<TlsConnector>,
    bearer: Option<HeaderValue>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("url", &self.place).finish_non_exhaustive()
    }
}

impl Webhook {
    pub(super) fn new(config: &DnsWebhookConfig) -> anyhow::Result<Self> {
        let url: Uri = config.url.parse().with_context(|| format!("url = \"{}\"", config.url))?;
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let bearer = match &config.bearer_file {
            None => None,
            Some(file) => {
                let bearer = Zeroizing::new(format!("Bearer {}", *super::secret(file)?));
                let mut bearer = HeaderValue::from_str(&bearer)
                    .map_err(|_| anyhow!("{} must hold one line", file.display()))?;
                bearer.set_sensitive(true);
                Some(bearer)
            }
        };
        let tls = match url.scheme_str() {
            Some("https") => {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let tls = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots(config.root_pem.as_deref(), true)?)
                    .with_no_client_auth();
                Some(TlsConnector::from(Arc::new(tls)))
            }
            _ => None,
        };
        let place = config.url.split(['?', '#']).next().unwrap_or_default().to_owned();
        Ok(Self { url, place, host, tls, bearer })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) async fn write(&self, action: Action, name: &str, value: &str) -> Result<(), String> {
        let asked = self.ask(action, name, value).await;
        asked.map_err(|error| format!("{}: {}", self.place, self.without_secrets(&format!("{error:#}"))))
    }

    /// What was asked for, the service may repeat in its answer.
    fn without_secrets(&self, text: &str) -> String {
        let bearer = self.bearer.as_ref().and_then(|bearer| bearer.to_str().ok()?.strip_prefix("Bearer "));
        let secrets = bearer.into_iter().chain(self.url.query());
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "[..]"))
    }

    async fn ask(&self, action: Action, name: &str, value: &str) -> anyhow::Result<()> {
        let port = self.url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((self.host.as_str(), port)).await.context("connect")?;
        let body = serde_json::json!({ "action": action.as_str(), "name": name, "value": value }).to_string();
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.url.authority().context("a URL without a host")?.as_str();
        let mut request =
            Request::post(path).header(HOST, authority).header(CONTENT_TYPE, "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        match &self.tls {
            None => send(tcp, request).await,
            Some(tls) => {
                send(tls.connect(ServerName::try_from(self.host.clone())?, tcp).await?, request).await
            }
        }
    }
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status.is_success() {
            return anyhow::Ok((status, Vec::new()));
        }
        Ok((status, start_of(answer.into_body()).await))
    };
    tokio::pin!(connection, asked);
    let (status, said): (StatusCode, Vec<u8>) = tokio::select! {
        answer = &mut asked => answer?,
        ended = &mut connection => {
            ended?;
            asked.await?
        }
    };
    if status.is_redirection() {
        bail!("answered {status}, and redirects are not followed; name the right place in url");
    }
    if !status.is_success() {
        bail!("answered {status}: {}", super::said(&said));
    }
    Ok(())
}

/// What fits into a line of a log; what breaks off has said so far.
async fn start_of(mut body: Incoming) -> Vec<u8> {
    let mut start = Vec::new();
    while start.len() < limits::DNS_WRITER_TEXT_MAX {
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            start.extend_from_slice(&data[..data.len().min(limits::DNS_WRITER_TEXT_MAX - start.len())]);
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What is said of a service that answers one request with this.
    async fn told(answer: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bearer = folder.path().join("bearer");
        fs::write(&bearer, "sesame\n").unwrap();
        fs::set_permissions(&bearer, fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("http://{}/dns?account=hidden", listener.local_addr().unwrap());
        let config = DnsWebhookConfig { url, bearer_file: Some(bearer), root_pem: None };
        let webhook = Webhook::new(&config).unwrap();
        assert!(!format!("{webhook:?}").contains("sesame") && !format!("{webhook:?}").contains("hidden"));
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
            // Whoever has heard enough hangs up.
            let _ = stream.write_all(answer.as_bytes()).await;
            stream
        };
        let (written, _stream) = tokio::join!(webhook.write(Action::Add, "a.test", "x"), answering);
        written.unwrap_err()
    }

    #[tokio::test]
    async fn a_refusal_is_told_without_the_secrets_that_it_repeats() {
        let body = "the token sesame may not (account=hidden)";
        let answer = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let error = told(&answer).await;
        assert!(error.starts_with("http://127.0.0.1:") && !error.contains("hidden"), "{error}");
        assert!(error.ends_with("/dns: answered 403 Forbidden: the token [..] may not ([..])"), "{error}");
    }

    #[tokio::test]
    async fn of_a_long_answer_the_start_is_told() {
        let answer =
            format!("HTTP/1.1 500 Oops\r\ncontent-length: 9000000000\r\n\r\n{}", "x".repeat(1 << 20));
        let error = told(&answer).await;
        assert!(
            error.ends_with(&format!(": {}", "x".repeat(limits::DNS_WRITER_TEXT_MAX))),
            "{}",
            error.len()
        );
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let error =
            told("HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
                .await;
        assert!(error.contains("answered 307") && error.contains("redirects are not followed"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_no_http_is_told() {
        let error = told("220 mail.test ESMTP\r\n\r\n").await;
        assert!(error.contains("/dns: ") && error.contains("HTTP"), "{error}");
    }
}
