//! A client that shows what a server shows: certificate, verdict, answer. It follows nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;

const DEADLINE: Duration = Duration::from_secs(30);

/// The certificate that a server shows for a name; its chain was verified.
#[derive(Clone, Debug)]
pub struct Shown {
    pub leaf: Vec<u8>,
    /// The leaf's SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    pub names: Vec<String>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub shown: Shown,
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

/// Handshakes with `address` for `name`; an unverifiable chain or a wrong name is an error.
pub async fn shown(address: SocketAddr, name: &str, roots: &Path) -> Result<Shown> {
    let stream = connect(address, name, roots).await?;
    shown_on(&stream)
}

/// Handshakes and sends `GET path`.
pub async fn ask(address: SocketAddr, name: &str, path: &str, roots: &Path) -> Result<Answer> {
    let exchange = async {
        let stream = connect(address, name, roots).await?;
        let shown = shown_on(&stream)?;
        let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(driver);
        let request = http::Request::get(path)
            .header(http::header::HOST, format!("{name}:{}", address.port()))
            .body(Empty::<Bytes>::new())?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        let _closed = driver.await;
        Ok(Answer { shown, status: parts.status.as_u16(), headers: parts.headers, body })
    };
    tokio::time::timeout(DEADLINE, exchange)
        .await
        .map_err(|_| anyhow!("{name} on {address}: no answer in {DEADLINE:?}"))?
}

async fn connect(address: SocketAddr, name: &str, roots: &Path) -> Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots)? {
        store.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let handshake = async {
        let tcp = TcpStream::connect(address).await?;
        let server = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(server, tcp).await
    };
    tokio::time::timeout(DEADLINE, handshake)
        .await
        .map_err(|_| anyhow!("{name} on {address}: no handshake in {DEADLINE:?}"))?
        .with_context(|| format!("{name} on {address}"))
}

fn shown_on(stream: &TlsStream<TcpStream>) -> Result<Shown> {
    let leaf =
        stream.get_ref().1.peer_certificates().and_then(|c| c.first()).context("no certificate")?.to_vec();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).map_err(|e| anyhow!("leaf: {e}"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| anyhow!("SAN: {e}"))?
        .map(|san| {
            san.value
                .general_names
                .iter()
                .filter_map(
                    |n| if let GeneralName::DNSName(name) = n { Some((*name).to_owned()) } else { None },
                )
                .collect()
        })
        .unwrap_or_default();
    let spki = parsed.public_key().raw.to_vec();
    Ok(Shown { spki, names, leaf })
}
