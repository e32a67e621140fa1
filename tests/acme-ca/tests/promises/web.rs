//! A small HTTP client over hyper: one connection a request, so nothing is pooled or retried behind a
//! test's back.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Trusts one anchor and reaches the API of one CA.
#[derive(Clone)]
pub(crate) struct ApiClient {
    api: SocketAddr,
    tls: TlsConnector,
}

impl ApiClient {
    pub(crate) fn new(api: SocketAddr, anchor_pem: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(anchor_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { api, tls: TlsConnector::from(Arc::new(config)) }
    }

    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let authority = request.uri().authority().expect("absolute URL").to_string();
        let path = request.uri().path_and_query().expect("a path").to_string();
        if !request.headers().contains_key(HOST) {
            request.headers_mut().insert(HOST, authority.parse().unwrap());
        }
        *request.uri_mut() = path.parse().unwrap();
        let stream = TcpStream::connect(self.api).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = self.tls.connect(name, stream).await.map_err(|e| e.to_string())?;
        exchange(stream, request).await
    }
}

impl HttpClient for ApiClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("infallible").to_bytes();
            let response = client.send(Request::from_parts(parts, Full::new(body))).await;
            let response = response.map_err(|text| Error::Other(text.into()))?;
            Ok(BytesResponse::from(response.map(Full::new)))
        })
    }
}

/// Plain HTTP with JSON, as for the management listeners.
pub(crate) async fn json(
    method: Method,
    address: SocketAddr,
    path: &str,
    body: &Value,
) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let response = exchange(stream, request).await.unwrap();
    let value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (response.status(), value)
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let outcome = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    let outcome = outcome.await;
    driver.abort();
    outcome
}
