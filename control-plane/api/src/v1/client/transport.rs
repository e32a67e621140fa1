//! Connections of the client: HTTP/1.1, kept alive, plain on loopback or TLS.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use portico_cert_store::pem_certificates;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ANSWER_BYTES_MAX, ClientError};

/// A request in origin form, with its host header.
pub(super) type ApiRequest = Request<Bytes>;

/// Idle connections that are kept; more are closed after their answer.
const IDLE_MAX: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    authority: String,
    host: String,
    port: u16,
    tls: Option<(TlsConnector2, ServerName<'static>)>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// `TlsConnector` has no `Debug`.
struct TlsConnector2(TlsConnector);

impl std::fmt::Debug for TlsConnector2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl Transport {
    pub(super) fn new(url: &str, roots_pem: Option<&[u8]>) -> Result<Self, ClientError> {
        let fault = |reason: &str| ClientError::Address { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| fault("no URL; write http://127.0.0.1:7070"))?;
        let authority = uri.authority().ok_or_else(|| fault("no host; write http://127.0.0.1:7070"))?.clone();
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(fault("it has a path; leave it out"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (tls, port) = match uri.scheme_str() {
            Some("http") if is_loopback(&host) => (None, 80),
            Some("http") => return Err(fault("plain http would show the token on the network; use https")),
            Some("https") => (Some(tls(&host, roots_pem).map_err(|e| e.at(url))?), 443),
            _ => return Err(fault("the scheme is neither http nor https")),
        };
        let port = authority.port_u16().unwrap_or(port);
        let idle = Mutex::new(Vec::new());
        Ok(Self(Arc::new(Inner { authority: authority.to_string(), host, port, tls, idle })))
    }

    pub(super) fn authority(&self) -> &str {
        &self.0.authority
    }

    /// Sends the request and reads the whole answer. A reused connection that broke before an answer is replaced once.
    pub(super) async fn exchange(&self, request: ApiRequest) -> Result<(StatusCode, Bytes), ClientError> {
        if let Some(sender) = self.take_idle()
            && let Ok(answer) = self.exchange_on(sender, request.clone()).await
        {
            return Ok(answer);
        }
        let sender = self.connect().await?;
        self.exchange_on(sender, request).await
    }

    async fn exchange_on(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        request: ApiRequest,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broke = |source| ClientError::Exchange { address: self.0.authority.clone(), source };
        let answer = sender.send_request(request.map(Full::new)).await.map_err(broke)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(source) => broke(*source),
            Err(_) => ClientError::AnswerTooLong,
        })?;
        self.keep(sender);
        Ok((status, body.to_bytes()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let refused = |source| ClientError::Connect { address: self.0.authority.clone(), source };
        let broke = |source| ClientError::Exchange { address: self.0.authority.clone(), source };
        let tcp = TcpStream::connect((self.0.host.as_str(), self.0.port)).await.map_err(refused)?;
        tcp.set_nodelay(true).map_err(refused)?;
        match &self.0.tls {
            None => {
                let (sender, connection) = handshake(TokioIo::new(tcp)).await.map_err(broke)?;
                tokio::spawn(async move { drop(connection.await) });
                Ok(sender)
            }
            Some((connector, name)) => {
                let stream = connector.0.connect(name.clone(), tcp).await.map_err(refused)?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broke)?;
                tokio::spawn(async move { drop(connection.await) });
                Ok(sender)
            }
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.0.idle.lock().expect("no panic under this lock");
        loop {
            let sender = idle.pop()?;
            if sender.is_ready() {
                return Some(sender);
            }
        }
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.0.idle.lock().expect("no panic under this lock");
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A fault that does not know the URL yet.
struct TlsFault(String);

impl TlsFault {
    fn at(self, url: &str) -> ClientError {
        ClientError::Address { url: url.to_owned(), reason: self.0 }
    }
}

fn tls(host: &str, roots_pem: Option<&[u8]>) -> Result<(TlsConnector2, ServerName<'static>), TlsFault> {
    let pem = roots_pem.ok_or_else(|| TlsFault("https needs trust anchors (roots PEM)".to_owned()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in pem_certificates(pem) {
        let certificate = certificate.map_err(|e| TlsFault(format!("trust anchors: {e}")))?;
        roots.add(certificate).map_err(|e| TlsFault(format!("trust anchors: {e}")))?;
    }
    if roots.is_empty() {
        return Err(TlsFault("the trust anchors hold no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsFault(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|e| TlsFault(e.to_string()))?;
    Ok((TlsConnector2(TlsConnector::from(Arc::new(config))), name))
}
