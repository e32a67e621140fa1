//! Fetching an HTTP-01 answer as a CA would (RFC 8555 section 8.3).
//!
//! A redirect is followed to http and https on their usual ports, at most ten times, as Let's Encrypt does; nobody checks
//! the certificate on the way, since the site may have none yet that is valid. Ports 80 and 443 stand for the fleet's.
//! Every connect, each hop's included, asks the egress guard: our own public addresses, what the operator's `[egress]`
//! allows for all and what the operator granted the tenant whose name it is; elsewhere what any origin may be reached at. Deliberately absent: redirects to IP addresses, which CAs
//! refuse, and any memory of what was fetched.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, LOCATION};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use portico_cert_store::DomainName;
use portico_prober::egress::{EgressPolicy, Grant};
use portico_prober::{AnyCertificate, connect_guarded};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::Issuance;
use crate::config::EgressAllow;

const REDIRECTS_MAX: usize = 10;
/// Addresses of a redirect's target that are tried.
const ADDRESSES_MAX: usize = 4;
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// For one hop, and for all of them: a CA is no more patient.
const HOP_DEADLINE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(15);
/// A key authorization has 87 bytes; some servers add a line end.
const BODY_BYTES_MAX: usize = 1024;
/// Of where a server redirects to, as it is told: a server says what it likes, and may say it in 400 kB.
const TARGET_BYTES_MAX: usize = 200;

/// Fetches the answer for `token` at one of the name's addresses; an error says for the tenant what came instead.
pub(super) async fn fetch_as_a_ca(
    issuance: &Issuance,
    granted: &[EgressAllow],
    name: &DomainName,
    address: IpAddr,
    token: &str,
    answer: &str,
) -> Result<(), String> {
    let first = format!("http://{name}/.well-known/acme-challenge/{token}");
    let followed =
        tokio::time::timeout(DEADLINE, follow(issuance, granted, name, address, &first, answer)).await;
    followed
        .unwrap_or_else(|_| Err(format!("{first} at {address} has no answer in {} s", DEADLINE.as_secs())))
}

async fn follow(
    issuance: &Issuance,
    granted: &[EgressAllow],
    name: &DomainName,
    address: IpAddr,
    first: &str,
    answer: &str,
) -> Result<(), String> {
    let mut url = Url::parse(first).map_err(|error| format!("{first}: {error}"))?;
    for _ in 0..=REDIRECTS_MAX {
        // The address under test stays: a CA may be sent to any of the name's.
        let addresses = match host(&url)? {
            host if host == *name => vec![address],
            host => issuance.lookup.addresses(&host).await.records().to_vec(),
        };
        let fetched = tokio::time::timeout(HOP_DEADLINE, fetch(issuance, granted, &url, &addresses)).await;
        let fetched = fetched.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let at = if url.as_str() == first {
            first.to_owned()
        } else {
            format!("{first}, redirected to {},", told(url.as_str()))
        };
        match fetched.map_err(|error| format!("{at} at {address}: {error}"))? {
            // Trailing white space is ignored (RFC 8555 section 8.3).
            Fetched::Body(body) if body.trim_ascii_end() == answer.as_bytes() => return Ok(()),
            Fetched::Body(_) => {
                return Err(format!("{at} at {address} is answered by somebody else, not by our edges"));
            }
            Fetched::Status(status) => return Err(format!("{at} at {address} is answered with {status}")),
            Fetched::Redirect(location) => {
                let next = url.join(&location);
                url =
                    next.map_err(|error| format!("{at} is redirected to {:?}: {error}", told(&location)))?;
                check_port(issuance, &url)
                    .map_err(|why| format!("{at} is redirected to {}: {why}", told(url.as_str())))?;
            }
        }
    }
    Err(format!("{first} is redirected more than {REDIRECTS_MAX} times"))
}

enum Fetched {
    Body(Bytes),
    Status(StatusCode),
    Redirect(String),
}

/// Of the target of a redirect, what is told of it.
fn told(target: &str) -> &str {
    &target[..target.floor_char_boundary(TARGET_BYTES_MAX)]
}

fn host(url: &Url) -> Result<DomainName, String> {
    let at = told(url.as_str());
    match url.host() {
        Some(Host::Domain(name)) => DomainName::parse(name).map_err(|error| format!("{at}: {error}")),
        _ => Err(format!("{at}: a CA follows no redirect to an IP address")),
    }
}

fn port(issuance: &Issuance, url: &Url) -> u16 {
    let fleet = &issuance.parts.config.fleet;
    if url.scheme() == "https" { fleet.https_port } else { fleet.http_port }
}

fn check_port(issuance: &Issuance, url: &Url) -> Result<(), &'static str> {
    let usual = match url.scheme() {
        "http" => 80,
        "https" => 443,
        _ => return Err("a CA follows to http and https only"),
    };
    match url.port_or_known_default() {
        Some(found) if found == usual || found == port(issuance, url) => Ok(()),
        _ => Err("a CA follows to ports 80 and 443 only"),
    }
}

async fn fetch(
    issuance: &Issuance,
    granted: &[EgressAllow],
    url: &Url,
    addresses: &[IpAddr],
) -> Result<Fetched, String> {
    let port = port(issuance, url);
    let sockets: Vec<_> =
        addresses.iter().take(ADDRESSES_MAX).map(|address| SocketAddr::new(*address, port)).collect();
    let stream = connect(issuance, granted, &sockets).await?;
    if url.scheme() != "https" {
        return exchange(stream, url).await;
    }
    let server = ServerName::try_from(host(url)?.to_string()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(ANY_CERTIFICATE.clone())
        .connect(server, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    exchange(stream, url).await
}

pub(super) async fn connect(
    issuance: &Issuance,
    granted: &[EgressAllow],
    sockets: &[SocketAddr],
) -> Result<TcpStream, String> {
    let config = &issuance.parts.config;
    let own =
        [Some(config.api), Some(config.distribution), config.dns.responder].into_iter().flatten().collect();
    let policy = EgressPolicy::new(Vec::new(), own);
    let ports = [config.fleet.http_port, config.fleet.https_port];
    let edges = config.fleet.public_addresses.iter().map(|ip| Grant { net: (*ip).into(), ports: &ports });
    let allowed =
        config.egress.allow.iter().chain(granted).map(|allow| Grant { net: allow.cidr, ports: &allow.ports });
    let grants: Vec<Grant<'_>> = edges.chain(allowed).collect();
    connect_guarded(sockets, &policy, &grants, CONNECT_DEADLINE).await.map_err(|error| error.to_string())
}

async fn exchange<S>(stream: S, url: &Url) -> Result<Fetched, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let answered = ask(&mut sender, url).await;
    connection.abort();
    answered
}

async fn ask(
    sender: &mut hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
    url: &Url,
) -> Result<Fetched, String> {
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = Request::get(path).header(HOST, authority).body(Empty::<Bytes>::new());
    let response =
        sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
    let status = response.status();
    if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
        return Ok(Fetched::Redirect(location.to_owned()));
    }
    if status != StatusCode::OK {
        return Ok(Fetched::Status(status));
    }
    let body =
        Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    Ok(Fetched::Body(body.to_bytes()))
}

/// TLS that takes any certificate whose key the peer holds.
static ANY_CERTIFICATE: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Arc::new(config)
});
