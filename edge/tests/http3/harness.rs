//! The edge as a process with one standalone file, and an HTTP/3 client for it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h3::client::{RequestStream, SendRequest};
use http::{HeaderMap, Request, StatusCode};
use portico_edge::http::h3::adapter::{Accepting, BidiStream, Connection, Opener};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use tokio::task::LocalSet;

use crate::fleet::process::EdgeProcess;

/// Nothing in these tests takes long; what does is stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Names of the one certificate; each answers with its own name.
pub const NAMES: [&str; 3] = ["one.example", "two.example", "proxied.example"];

pub struct TestEdge {
    pub process: EdgeProcess,
    pub address: SocketAddr,
    pub roots: Arc<RootCertStore>,
    _folder: tempfile::TempDir,
}

/// Runs a test on epoll, and on io_uring where this kernel has it.
pub fn on_each_backend<F: Future<Output = ()>>(test: impl Fn(&'static str) -> F) {
    let mut backends = vec!["epoll"];
    match portico_edge::io::probe() {
        Ok(_) => backends.push("uring"),
        Err(refused) => portico_skipping::skipped(&format!("io_uring: {refused}")),
    }
    for backend in backends {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            tokio::time::timeout(3 * PATIENCE, test(backend)).await.expect("the test ends in time");
        });
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

impl TestEdge {
    /// Two workers. `origin` is where `proxied.example` goes.
    pub fn start(backend: &str, origin: Option<SocketAddr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
        let certificates = folder.path().join("certificates");
        std::fs::create_dir(&certificates).unwrap();
        std::fs::write(certificates.join("all.pem"), pem).unwrap();
        let file = folder.path().join("edge.toml");
        std::fs::write(&file, config(folder.path(), origin)).unwrap();
        let process = EdgeProcess::start(&file, backend);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Self { address: process.address, process, roots: Arc::new(roots), _folder: folder }
    }

    pub async fn connect(&self, name: &str) -> Client {
        Client::open(self, name).await.unwrap()
    }
}

fn config(folder: &std::path::Path, origin: Option<SocketAddr>) -> String {
    let folder = folder.display();
    let mut text = format!(
        r#"
workers = 2
state = "{folder}/state"
metrics = "127.0.0.1:0"
admin_socket = "{folder}/admin.sock"
access_log = "off"
drain_seconds = 15
[[listen]]
address = "127.0.0.1:0"
kind = "https"
http3 = true
[certificates]
folder = "{folder}/certificates"
"#
    );
    for name in &NAMES[..2] {
        text += &format!("[[route]]\nhost = \"{name}\"\nstatic_body = \"{name}\"\n");
    }
    if let Some(origin) = origin {
        text += &format!(
            "[[route]]\nhost = \"proxied.example\"\nproxy = \"http://{origin}\"\n[egress]\nallow = [{{ cidr = \"127.0.0.1/32\", ports = [{}] }}]\n",
            origin.port()
        );
    }
    text
}

pub struct Client {
    pub endpoint: quinn::Endpoint,
    pub connection: quinn::Connection,
    pub sender: SendRequest<Opener, Bytes>,
}

pub type Stream = RequestStream<BidiStream<Bytes>, Bytes>;

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub fn client_config(roots: &Arc<RootCertStore>) -> quinn::ClientConfig {
    quic(tls_config(roots, b"h3"))
}

/// One that sends data before the handshake if its ticket allows it.
pub fn early_client_config(roots: &Arc<RootCertStore>) -> quinn::ClientConfig {
    let mut tls = tls_config(roots, b"h3");
    tls.enable_early_data = true;
    quic(tls)
}

pub fn quic(tls: rustls::ClientConfig) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

pub fn tls_config(roots: &Arc<RootCertStore>, alpn: &[u8]) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls
}

impl Client {
    pub async fn open(edge: &TestEdge, name: &str) -> Result<Self, quinn::ConnectionError> {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(client_config(&edge.roots), edge.address, name).unwrap();
        let connection = within(connecting).await?;
        let adapter = Connection::new(connection.clone(), Rc::new(Accepting::default()));
        let (mut driver, sender) = h3::client::builder().send_grease(false).build(adapter).await.unwrap();
        tokio::task::spawn_local(async move {
            // Its end is seen on the connection.
            let _ended = std::future::poll_fn(|context| driver.poll_close(context)).await;
        });
        Ok(Self { endpoint, connection, sender })
    }

    pub async fn get(&mut self, name: &str, path: &str) -> Answer {
        let request = Request::get(format!("https://{name}{path}")).body(()).unwrap();
        self.exchange(request, &[]).await
    }

    pub async fn exchange(&mut self, request: Request<()>, body: &[Bytes]) -> Answer {
        within(async {
            let mut stream = self.sender.send_request(request).await.unwrap();
            for piece in body {
                stream.send_data(piece.clone()).await.unwrap();
            }
            stream.finish().await.unwrap();
            answer(&mut stream).await.unwrap()
        })
        .await
    }
}

pub async fn answer(stream: &mut Stream) -> Result<Answer, h3::error::StreamError> {
    let (head, ()) = stream.recv_response().await?.into_parts();
    let mut body = BytesMut::new();
    while let Some(mut data) = stream.recv_data().await? {
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    Ok(Answer { status: head.status, headers: head.headers, body: body.freeze() })
}
