//! A distribution server for tests: the generated service over TLS of a CA made on the spot. Each test says what it
//! sends and looks at what the edge answers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use portico_api::distribution as wire;
use portico_cert_store::{EdgeId, Generation, hpke};
use prost::Message as _;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::distribution_server::{Distribution, DistributionServer};

use super::{cell, cell_key};

/// The internal CA.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
}

impl TestCa {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("ca {}", EdgeId::generate()));
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub fn fingerprint_hex(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.certificate);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn token(&self) -> String {
        format!("pjt_01ARZ3NDEKTSV4RRFFQ69G5FAV_{}_{}", "5e".repeat(32), self.fingerprint_hex())
    }

    fn server_chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![portico_edge::control::SERVER_NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![leaf, self.certificate.clone()], key)
    }

    /// An identity that began in the past and lasts `life` from now.
    fn sign_edge(&self, csr_der: &[u8], edge: EdgeId, life: Duration) -> Vec<u8> {
        let key = CsrKey::parse(csr_der);
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![SanType::URI(format!("{}{edge}", wire::EDGE_URI_PREFIX).try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = time::OffsetDateTime::from(std::time::UNIX_EPOCH + portico_edge::clock::unix_elapsed());
        params.not_before = now - time::Duration::seconds(60);
        params.not_after = now + life;
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}

/// The public key of a request whose own signature holds.
pub struct CsrKey(Vec<u8>);

impl CsrKey {
    pub fn parse(csr_der: &[u8]) -> Self {
        use x509_parser::prelude::FromDer as _;
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(csr_der).unwrap();
        request.verify_signature().unwrap();
        Self(request.certification_request_info.subject_pki.subject_public_key.data.to_vec())
    }
}

impl rcgen::PublicKeyData for CsrKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// What one stream is to the test.
pub struct Conversation {
    pub hello: wire::Hello,
    pub from_edge: mpsc::Receiver<wire::EdgeMessage>,
    to_edge: mpsc::Sender<Result<wire::ControlMessage, Status>>,
    /// The identity certificate shown on this stream.
    pub shown: Vec<u8>,
}

/// The running server.
pub struct TestControl {
    pub address: SocketAddr,
    pub state: Arc<State>,
    conversations: mpsc::Receiver<Conversation>,
    serving: JoinHandle<()>,
}

pub struct State {
    pub ca: TestCa,
    pub identity_life: Mutex<Duration>,
    /// Answered to joins instead of an identity.
    pub refuse_joins: Mutex<Option<Status>>,
    pub joins: AtomicUsize,
    /// Joins are heard and not answered.
    pub silent: AtomicBool,
    pub renewals: AtomicU64,
    conversations: mpsc::Sender<Conversation>,
}

#[derive(Clone)]
struct Service(Arc<State>);

/// The client certificate of a connection.
#[derive(Clone)]
struct Shown(Option<Vec<u8>>);

impl TestControl {
    pub async fn start(ca: TestCa) -> Self {
        Self::start_at(ca, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(ca: TestCa, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (conversations_sender, conversations) = mpsc::channel(16);
        let state = Arc::new(State {
            ca,
            identity_life: Mutex::new(Duration::from_secs(3600)),
            refuse_joins: Mutex::new(None),
            joins: AtomicUsize::new(0),
            silent: AtomicBool::new(false),
            renewals: AtomicU64::new(0),
            conversations: conversations_sender,
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self { address, state, conversations, serving }
    }

    /// The next stream, once its edge has said Hello.
    pub async fn conversation(&mut self) -> Conversation {
        within(self.conversations.recv()).await.expect("the server runs")
    }

    /// Gone at once, with all its connections; gives the CA back for the next one.
    pub async fn stop(self) -> (SocketAddr, TestCa) {
        self.serving.abort();
        let _aborted = self.serving.await;
        let address = self.address;
        drop(self.conversations);
        let mut state = self.state;
        for _ in 0..500 {
            match Arc::try_unwrap(state) {
                Ok(state) => return (address, state.ca),
                Err(shared) => state = shared,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("connections of the stopped server linger");
    }
}

impl Conversation {
    pub async fn send(&self, kind: wire::control_message::Kind) {
        assert!(self.offer(kind).await, "the stream stands");
    }

    /// False: the edge has ended the stream.
    pub async fn offer(&self, kind: wire::control_message::Kind) -> bool {
        self.to_edge.send(Ok(wire::ControlMessage { kind: Some(kind) })).await.is_ok()
    }

    pub async fn send_key(&self) {
        let (encapsulated, ciphertext) =
            hpke::seal_cell_key(&self.hello.hpke_public_key, &cell_key(1)).unwrap();
        self.send(wire::control_message::Kind::CellKey(wire::SealedCellKey {
            cell_id: cell().to_string(),
            epoch: 1,
            encapsulated_key: encapsulated.into(),
            ciphertext: ciphertext.into(),
        }))
        .await;
    }

    pub async fn send_snapshot(&self, generation: Generation, resources: &[wire::Resource]) {
        self.send_spoilt_snapshot(generation, resources, |_| ()).await;
    }

    /// The hash is of the true resources; `spoil` changes what is sent.
    pub async fn send_spoilt_snapshot(
        &self,
        generation: Generation,
        resources: &[wire::Resource],
        spoil: impl FnOnce(&mut Vec<wire::Resource>),
    ) {
        let mut hash = digest::Context::new(&digest::SHA256);
        resources.iter().for_each(|resource| hash.update(&resource.encode_to_vec()));
        self.send(wire::control_message::Kind::SnapshotBegin(wire::SnapshotBegin {
            generation: Some(generation.into()),
            resources: resources.len() as u64,
            removals_signed_off: false,
        }))
        .await;
        let mut sent = resources.to_vec();
        spoil(&mut sent);
        for chunk in sent.chunks(50) {
            let chunk = wire::SnapshotChunk { resources: chunk.to_vec() };
            self.send(wire::control_message::Kind::SnapshotChunk(chunk)).await;
        }
        let sha256 = hash.finish().as_ref().to_vec().into();
        self.send(wire::control_message::Kind::SnapshotEnd(wire::SnapshotEnd { sha256 })).await;
    }

    pub async fn send_delta(&self, base: Generation, generation: Generation, resources: Vec<wire::Resource>) {
        self.send(wire::control_message::Kind::Delta(wire::Delta {
            base: Some(base.into()),
            generation: Some(generation.into()),
            resources,
            ..wire::Delta::default()
        }))
        .await;
    }

    /// Sends an urgent message and waits for its ack.
    pub async fn send_urgent(&mut self, sequence: u64, action: wire::urgent::Action) -> wire::UrgentAck {
        let expires = portico_edge::clock::unix_ms() + 60_000;
        self.send(wire::control_message::Kind::Urgent(wire::Urgent {
            sequence,
            expires_unix_ms: u64::try_from(expires).unwrap(),
            action: Some(action),
        }))
        .await;
        loop {
            let message = within(self.from_edge.recv()).await.expect("the stream stands");
            if let Some(wire::edge_message::Kind::UrgentAck(ack)) = message.kind {
                assert_eq!(ack.sequence, sequence);
                return ack;
            }
        }
    }

    /// The next ack; status messages in between are skipped.
    pub async fn ack(&mut self) -> wire::Ack {
        loop {
            let message = within(self.from_edge.recv()).await.expect("the stream stands");
            if let Some(wire::edge_message::Kind::Ack(ack)) = message.kind {
                return ack;
            }
        }
    }

    pub async fn usage(&mut self) -> wire::UsageReport {
        loop {
            let message = within(self.from_edge.recv()).await.expect("the stream stands");
            if let Some(wire::edge_message::Kind::Usage(report)) = message.kind {
                return report;
            }
        }
    }

    pub async fn status(&mut self) -> wire::Status {
        loop {
            let message = within(self.from_edge.recv()).await.expect("the stream stands");
            if let Some(wire::edge_message::Kind::Status(status)) = message.kind {
                return status;
            }
        }
    }
}

/// Nothing in these tests takes long; what does is stuck.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it happens within a minute")
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let (chain, key) = state.ca.server_chain();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(state.ca.certificate.clone()).unwrap();
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).then(move |stream| {
        let tls = tls.clone();
        async move { Ok::<_, std::io::Error>(Connection(tls.accept(stream?).await?)) }
    });
    // A client that fails its handshake ends the stream of connections no more than any other.
    let incoming = incoming.filter(Result::is_ok);
    let service = DistributionServer::new(Service(state));
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

/// What an edge may send ahead of a handler that does not read.
pub const STREAM_WINDOW_BYTES: u32 = 65_535;

struct Connection(TlsStream<TcpStream>);

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        let certificates = self.0.get_ref().1.peer_certificates();
        Shown(certificates.and_then(|chain| chain.first()).map(|leaf| leaf.to_vec()))
    }
}

impl tokio::io::AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(task, buffer)
    }
}

impl tokio::io::AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(task, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        task: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(task)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        task: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(task)
    }
}

impl Service {
    fn identity(&self, csr_der: &[u8], edge: EdgeId) -> (Vec<bytes::Bytes>, Vec<bytes::Bytes>) {
        let life = *self.0.identity_life.lock().unwrap();
        let leaf = self.0.ca.sign_edge(csr_der, edge, life);
        (vec![leaf.into()], vec![self.0.ca.certificate.to_vec().into()])
    }
}

#[tonic::async_trait]
impl Distribution for Service {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        if let Some(refusal) = self.0.refuse_joins.lock().unwrap().clone() {
            return Err(refusal);
        }
        let request = request.into_inner();
        assert_eq!(request.token, self.0.ca.token());
        assert_eq!(request.hpke_public_key.len(), 32);
        self.0.joins.fetch_add(1, Ordering::SeqCst);
        if self.0.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let edge = EdgeId::generate();
        let (certificate_chain_der, ca_der) = self.identity(&request.csr_der, edge);
        Ok(Response::new(wire::JoinResponse {
            edge_id: edge.to_string(),
            cell_id: cell().to_string(),
            certificate_chain_der,
            ca_der,
        }))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        request
            .extensions()
            .get::<Shown>()
            .and_then(|shown| shown.0.clone())
            .ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        *self.0.identity_life.lock().unwrap() = Duration::from_secs(3600);
        let (certificate_chain_der, ca_der) =
            self.identity(&request.into_inner().csr_der, EdgeId::generate());
        self.0.renewals.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(wire::RenewResponse { certificate_chain_der, ca_der }))
    }

    type SyncStream = ReceiverStream<Result<wire::ControlMessage, Status>>;

    async fn sync(
        &self,
        request: Request<tonic::Streaming<wire::EdgeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let shown = request.extensions().get::<Shown>().and_then(|shown| shown.0.clone());
        let shown = shown.ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        let mut incoming = request.into_inner();
        let (to_edge, outgoing) = mpsc::channel(16);
        let conversations = self.0.conversations.clone();
        tokio::spawn(async move {
            let Ok(Some(first)) = incoming.message().await else { return };
            let Some(wire::edge_message::Kind::Hello(hello)) = first.kind else {
                panic!("Hello comes first")
            };
            let (sender, from_edge) = mpsc::channel(64);
            if conversations.send(Conversation { hello, from_edge, to_edge, shown }).await.is_err() {
                return;
            }
            while let Ok(Some(message)) = incoming.message().await {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
