//! What a CA meets at an edge: port 80 and 443, answering exactly the challenges that the edges were pushed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use portico_api::distribution::urgent::Action;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use crate::edge::{State, TestEdge};

/// The listeners of a fleet of test edges.
pub struct StandIn {
    pub http_port: u16,
    pub tls_port: u16,
    pub edges: Arc<Mutex<Vec<Arc<TestEdge>>>>,
    /// HTTP-01 fetches that were answered with a key authorization.
    pub answered: Arc<AtomicUsize>,
    /// HTTP-01 fetches that were not, and which edges knew no answer.
    pub missed: Arc<Mutex<Vec<String>>>,
    tasks: tokio::task::JoinSet<()>,
}

/// What its listeners answer by.
#[derive(Clone)]
struct Known {
    edges: Arc<Mutex<Vec<Arc<TestEdge>>>>,
    answered: Arc<AtomicUsize>,
    missed: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    pub async fn start() -> Self {
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (http_port, tls_port) = (http.local_addr().unwrap().port(), tls.local_addr().unwrap().port());
        let edges: Arc<Mutex<Vec<Arc<TestEdge>>>> = Arc::default();
        let answered = Arc::new(AtomicUsize::new(0));
        let missed = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = tokio::task::JoinSet::new();
        let known = Known { edges: edges.clone(), answered: answered.clone(), missed: missed.clone() };
        let of_tls = known.clone();
        tasks.spawn(async move {
            while let Ok((stream, _)) = http.accept().await {
                tokio::spawn(serve_http(stream, known.clone(), true));
            }
        });
        tasks.spawn(async move {
            while let Ok((stream, _)) = tls.accept().await {
                tokio::spawn(serve_tls(stream, of_tls.clone()));
            }
        });
        Self { http_port, tls_port, edges, answered, missed, tasks }
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
    let answers: Vec<Option<T>> = edges.iter().map(|edge| edge.with(|state| look(&actions(state)))).collect();
    let mut answers = answers.into_iter();
    let first = answers.next()??;
    answers.all(|answer| answer.as_ref() == Some(&first)).then_some(first)
}

fn actions(state: &State) -> Vec<Action> {
    state.urgents.iter().filter_map(|urgent| urgent.action.clone()).collect()
}

fn http01(actions: &[Action], host: &str, token: &str) -> Option<String> {
    actions.iter().rev().find_map(|action| match action {
        Action::SetHttp01(set) if set.host == host && set.token == token => {
            Some(Some(set.key_authorization.clone()))
        }
        Action::ClearChallenge(clear) if clear.host == host && clear.token == token => Some(None),
        Action::SetHttp01(_)
        | Action::SetTlsAlpn01(_)
        | Action::ClearChallenge(_)
        | Action::Suspend(_)
        | Action::Purge(_)
        | Action::Drill(_)
        | Action::KeyRequest(_) => None,
    })?
}

fn tls_alpn01(actions: &[Action], host: &str) -> Option<Vec<u8>> {
    actions.iter().rev().find_map(|action| match action {
        Action::SetTlsAlpn01(set) if set.host == host => Some(Some(set.digest.to_vec())),
        Action::ClearChallenge(clear) if clear.host == host && clear.token.is_empty() => Some(None),
        Action::SetHttp01(_)
        | Action::SetTlsAlpn01(_)
        | Action::ClearChallenge(_)
        | Action::Suspend(_)
        | Action::Purge(_)
        | Action::Drill(_)
        | Action::KeyRequest(_) => None,
    })?
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    known: Known,
    plain: bool,
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
    let answer = match redirect(&host, path).filter(|_| plain) {
        Some(location) => {
            format!("HTTP/1.1 301 Moved Permanently\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
        }
        None => own_answer(&host, path, &known),
    };
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

/// Sites that redirect on port 80, by the first label of their name.
fn redirect(host: &str, path: &str) -> Option<String> {
    match host.split('.').next()? {
        "https-only" => Some(format!("https://{host}{path}")),
        "loop" => Some(format!("http://{host}{path}")),
        "metadata" => Some(format!("http://link-local.test{path}")),
        "long" => Some(format!("http://{host}:22/{}", "a".repeat(100_000))),
        "odd-port" => Some(format!("http://{host}:22{path}")),
        "address" => Some(format!("http://127.0.0.1{path}")),
        _ => None,
    }
}

fn own_answer(host: &str, path: &str, known: &Known) -> String {
    // As if something else than the edges had the site's port 80.
    let token = path.strip_prefix("/.well-known/acme-challenge/").filter(|_| !host.starts_with("no-http."));
    let answer = token.and_then(|token| {
        // Held, so that no edge is taken away while it is asked.
        let edges = known.edges.lock().unwrap();
        let answer = on_all_edges(&edges, |actions| http01(actions, host, token));
        if answer.is_none() {
            let knows =
                |edge: &Arc<TestEdge>| edge.with(|state| http01(&actions(state), host, token).is_some());
            let lacking = edges.iter().filter(|edge| !knows(edge)).map(|edge| edge.identity.edge.to_string());
            let lacking: Vec<String> = lacking.collect();
            known.missed.lock().unwrap().push(format!("{host} {token}: {lacking:?} of {}", edges.len()));
        }
        answer
    });
    match answer {
        Some(body) => {
            known.answered.fetch_add(1, Ordering::Relaxed);
            let length = body.len();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
        }
        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
    }
}

/// A client that wants a challenge gets its certificate; any other one that has expired, and the site behind it.
async fn serve_tls(stream: TcpStream, known: Known) -> Option<()> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.ok()?;
    let hello = start.client_hello();
    let host = hello.server_name()?.to_owned();
    let challenge = hello.alpn().is_some_and(|mut offered| offered.any(|name| name == b"acme-tls/1"));
    let mut params = CertificateParams::new(vec![host.clone()]).unwrap();
    if challenge {
        let digest = on_all_edges(&known.edges.lock().unwrap(), |actions| tls_alpn01(actions, &host))?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
    } else {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let mut config = server_config(&params);
    if challenge {
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    }
    let mut tls = start.into_stream(Arc::new(config)).await.ok()?;
    if challenge {
        return tls.shutdown().await.ok();
    }
    serve_http(tls, known, false).await
}

/// A server that shows a certificate of its own making.
pub fn server_config(params: &CertificateParams) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let certificate = params.clone().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialized_der().to_vec()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    // Not `with_single_cert`: that refuses the critical extension which a challenge's certificate is for.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
}
