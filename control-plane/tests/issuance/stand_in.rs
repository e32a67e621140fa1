//! What a CA meets at an edge: port 80 and 443, answering exactly the challenges that the edges were pushed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use portico_api::distribution::urgent::Action;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use crate::edge::TestEdge;

/// The listeners of a fleet of test edges.
pub struct StandIn {
    pub http_port: u16,
    pub tls_port: u16,
    pub edges: Arc<Mutex<Vec<Arc<TestEdge>>>>,
    /// HTTP-01 fetches that were answered with a key authorization.
    pub answered: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

impl StandIn {
    pub async fn start() -> Self {
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (http_port, tls_port) = (http.local_addr().unwrap().port(), tls.local_addr().unwrap().port());
        let edges: Arc<Mutex<Vec<Arc<TestEdge>>>> = Arc::default();
        let answered = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let (known, counter) = (edges.clone(), answered.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = http.accept().await {
                tokio::spawn(serve_http(stream, known.clone(), counter.clone()));
            }
        });
        let known = edges.clone();
        tasks.spawn(async move {
            while let Ok((stream, _)) = tls.accept().await {
                tokio::spawn(serve_tls(stream, known.clone()));
            }
        });
        Self { http_port, tls_port, edges, answered, tasks }
    }

    pub fn set_edges(&self, edges: Vec<Arc<TestEdge>>) {
        *self.edges.lock().unwrap() = edges;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Every edge must know the answer: the CA may meet any of them.
fn on_all_edges<T: PartialEq>(edges: &[Arc<TestEdge>], look: impl Fn(&[Action]) -> Option<T>) -> Option<T> {
    let answers: Vec<Option<T>> = edges
        .iter()
        .map(|edge| {
            edge.with(|state| {
                let actions: Vec<Action> =
                    state.urgents.iter().filter_map(|urgent| urgent.action.clone()).collect();
                look(&actions)
            })
        })
        .collect();
    let mut answers = answers.into_iter();
    let first = answers.next()??;
    answers.all(|answer| answer.as_ref() == Some(&first)).then_some(first)
}

fn http01(actions: &[Action], host: &str, token: &str) -> Option<String> {
    actions.iter().rev().find_map(|action| match action {
        Action::SetHttp01(set) if set.host == host && set.token == token => {
            Some(Some(set.key_authorization.clone()))
        }
        Action::ClearChallenge(clear) if clear.host == host && clear.token == token => Some(None),
        Action::SetHttp01(_) | Action::SetTlsAlpn01(_) | Action::ClearChallenge(_) | Action::Suspend(_) => {
            None
        }
    })?
}

fn tls_alpn01(actions: &[Action], host: &str) -> Option<Vec<u8>> {
    actions.iter().rev().find_map(|action| match action {
        Action::SetTlsAlpn01(set) if set.host == host => Some(Some(set.digest.to_vec())),
        Action::ClearChallenge(clear) if clear.host == host && clear.token.is_empty() => Some(None),
        Action::SetHttp01(_) | Action::SetTlsAlpn01(_) | Action::ClearChallenge(_) | Action::Suspend(_) => {
            None
        }
    })?
}

async fn serve_http(
    mut stream: TcpStream,
    edges: Arc<Mutex<Vec<Arc<TestEdge>>>>,
    counter: Arc<AtomicUsize>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.ok()? == 0 || head.len() > 16_384 {
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?;
    let host =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("host:").map(str::to_owned))?;
    let host = host.trim().split(':').next()?.to_owned();
    let answer = path.strip_prefix("/.well-known/acme-challenge/").and_then(|token| {
        let edges = edges.lock().unwrap().clone();
        on_all_edges(&edges, |actions| http01(actions, &host, token))
    });
    let answer = match answer {
        Some(body) => {
            counter.fetch_add(1, Ordering::Relaxed);
            let length = body.len();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
        }
        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
    };
    stream.write_all(answer.as_bytes()).await.ok()
}

async fn serve_tls(stream: TcpStream, edges: Arc<Mutex<Vec<Arc<TestEdge>>>>) -> Option<()> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.ok()?;
    let host = start.client_hello().server_name()?.to_owned();
    let known = edges.lock().unwrap().clone();
    let digest = on_all_edges(&known, |actions| tls_alpn01(actions, &host))?;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![host]).unwrap();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialized_der().to_vec()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    // Not `with_single_cert`: that refuses the critical extension which this certificate is for.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let mut tls = start.into_stream(Arc::new(config)).await.ok()?;
    tls.shutdown().await.ok()
}
