//! An edge made of the generated client: joins, follows, acknowledges, and remembers all that it was told.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use hyper_util::rt::TokioIo;
use portico_api::distribution::distribution_client::DistributionClient;
use portico_api::distribution::{
    Ack, ControlMessage, EdgeMessage, Hello, JoinRequest, KeyRequest, Nack, PROTOCOL_VERSION, Rejection,
    RenewRequest, Resource, ResourceKind, SealedCellKey, Status as EdgeStatus, Urgent, UrgentAck, UsageAck,
    control_message::Kind, edge_message, urgent,
};
use portico_cert_store::{CellId, CellKey, EdgeId, Generation, KeyType, NamePattern, PrivateKey, hpke};
use portico_control_plane::clock::instant;
use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub(crate) const SERVER_NAME: &str = "control-plane.portico.internal";

/// What a joined edge keeps.
pub(crate) struct Identity {
    pub(crate) edge: EdgeId,
    pub(crate) cell: CellId,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) hpke: hpke::HpkePrivateKey,
    pub(crate) hpke_public: [u8; 32],
}

impl Identity {
    pub(crate) async fn join(address: SocketAddr, token: &str) -> Result<Self, Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        Self::join_with(address, token, key, csr).await
    }

    pub(crate) async fn join_with(
        address: SocketAddr,
        token: &str,
        key: KeyPair,
        csr: Vec<u8>,
    ) -> Result<Self, Status> {
        let (hpke, hpke_public) = hpke::generate_key_pair().unwrap();
        let fingerprint = token.rsplit('_').next().unwrap_or_default().to_owned();
        let mut client = connect(address, joining_config(fingerprint)).await;
        let request = JoinRequest {
            token: token.to_owned(),
            csr_der: csr.into(),
            hpke_public_key: hpke_public.to_vec().into(),
            build: "test".to_owned(),
        };
        let joined = client.join(request).await?.into_inner();
        let chain = joined.certificate_chain_der.iter().map(|der| CertificateDer::from(der.to_vec()));
        Ok(Self {
            edge: joined.edge_id.parse().unwrap(),
            cell: joined.cell_id.parse().unwrap(),
            chain: chain.collect(),
            key,
            ca: CertificateDer::from(joined.ca_der[0].to_vec()),
            hpke,
            hpke_public,
        })
    }

    /// Replaces the certificate by a fresh one for a new key.
    pub(crate) async fn renew(&mut self, address: SocketAddr) -> Result<(), Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let renewed =
            self.client(address).await.renew(RenewRequest { csr_der: csr.into() }).await?.into_inner();
        self.chain = vec![CertificateDer::from(renewed.certificate_chain_der[0].to_vec())];
        self.key = key;
        Ok(())
    }

    pub(crate) async fn client(&self, address: SocketAddr) -> DistributionClient<Channel> {
        connect(address, self.config(true)).await
    }

    pub(crate) fn config(&self, with_certificate: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let builder = builder().with_root_certificates(roots);
        if !with_certificate {
            return builder.with_no_client_auth();
        }
        let key = PrivateKeyDer::try_from(self.key.serialized_der().to_vec()).unwrap();
        builder.with_client_auth_cert(self.chain.clone(), key).unwrap()
    }

    pub(crate) fn hello(&self, applied: Generation) -> Hello {
        Hello {
            edge_id: self.edge.to_string(),
            cell_id: self.cell.to_string(),
            protocol: PROTOCOL_VERSION,
            build: "test".to_owned(),
            applied: Some(applied.into()),
            hpke_public_key: self.hpke_public.to_vec().into(),
            cell_key_epochs: vec![],
            ..Hello::default()
        }
    }
}

/// How a test edge behaves; changed while it runs.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// Ids of resources that it refuses.
    pub(crate) nacks: HashSet<String>,
    /// It refuses whole batches.
    pub(crate) rejects: bool,
    /// It does not answer urgent messages.
    pub(crate) stalled: bool,
    /// It takes batches and never says so.
    pub(crate) silent: bool,
}

/// What an edge has and has seen.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) applied: Generation,
    pub(crate) resources: HashMap<(u32, String), Resource>,
    pub(crate) tombstones: Vec<String>,
    pub(crate) keys: HashMap<u32, CellKey>,
    pub(crate) urgents: Vec<Urgent>,
    /// Keys of its own, by the order that each was made for, with the request.
    pub(crate) own_keys: HashMap<String, (PrivateKey, Vec<u8>)>,
    pub(crate) usage_acks: Vec<UsageAck>,
    pub(crate) snapshots: usize,
    pub(crate) deltas: usize,
    pub(crate) largest_chunk: usize,
    pub(crate) signed_off: bool,
    /// When each generation was received.
    pub(crate) received: HashMap<u64, Instant>,
    /// Every message as it was encoded, for a scan.
    pub(crate) bytes: Vec<u8>,
    pub(crate) keep_bytes: bool,
    pub(crate) ended: Option<Status>,
    pub(crate) behaviour: Behaviour,
    /// What it had is somewhere else now: it takes nothing more, and confirms nothing.
    left: bool,
    building: Option<(Generation, u64, Vec<Resource>)>,
}

impl State {
    pub(crate) fn resource(&self, kind: ResourceKind, id: impl ToString) -> Option<&Resource> {
        self.resources.get(&(kind as u32, id.to_string()))
    }

    /// The request for the key that it has made for an order, which it would keep.
    fn request(&mut self, wanted: &KeyRequest) -> Vec<u8> {
        let make = || {
            let names = wanted.names.iter().map(|name| NamePattern::parse(name).unwrap());
            let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            let request = key.csr(&names.collect::<Vec<_>>()).unwrap();
            (key, request)
        };
        self.own_keys.entry(wanted.order_id.clone()).or_insert_with(make).1.clone()
    }

    pub(crate) fn names(&self) -> usize {
        self.resources.keys().filter(|(kind, _)| *kind == ResourceKind::Domain as u32).count()
    }
}

pub(crate) struct TestEdge {
    pub(crate) identity: Arc<Identity>,
    state: Arc<Mutex<State>>,
    changed: watch::Receiver<()>,
    pub(crate) outgoing: mpsc::Sender<EdgeMessage>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestEdge {
    pub(crate) async fn connect(address: SocketAddr, identity: Identity, applied: Generation) -> Self {
        let state = State { applied, ..State::default() };
        Self::resume(address, Arc::new(identity), state).await
    }

    /// Connects with what an earlier stream has left.
    pub(crate) async fn resume(address: SocketAddr, identity: Arc<Identity>, state: State) -> Self {
        let hello = identity.hello(state.applied);
        Self::resume_as(address, identity, state, hello).await
    }

    pub(crate) async fn resume_as(
        address: SocketAddr,
        identity: Arc<Identity>,
        state: State,
        hello: Hello,
    ) -> Self {
        let (outgoing, queue) = mpsc::channel(64);
        let hello = EdgeMessage { kind: Some(edge_message::Kind::Hello(hello)) };
        outgoing.send(hello).await.unwrap();
        let state = Arc::new(Mutex::new(state));
        let (wake, changed) = watch::channel(());
        let task = tokio::spawn({
            let (identity, state, outgoing) = (identity.clone(), state.clone(), outgoing.clone());
            async move {
                let mut client = identity.client(address).await;
                let ended = match client.sync(ReceiverStream::new(queue)).await {
                    Ok(stream) => follow(&identity, stream.into_inner(), &state, &outgoing, &wake).await,
                    Err(status) => status,
                };
                state.lock().unwrap().ended = Some(ended);
                wake.send_replace(());
            }
        });
        Self { identity, state, changed, outgoing, task }
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Waits until the state is as wanted; panics after 60 s.
    pub(crate) async fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let mut changed = self.changed.clone();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            changed.mark_unchanged();
            if self.with(|state| holds(state)) {
                return;
            }
            let woken = tokio::time::timeout_at(deadline, changed.changed()).await;
            let described = self.with(|state| format!("at {}, ended: {:?}", state.applied, state.ended));
            if woken.is_err() {
                panic!("{} waited 60 s for {what}; {described}", self.identity.edge);
            }
            if matches!(woken, Ok(Err(_))) && !self.with(|state| holds(state)) {
                panic!("{} ended before {what}; {described}", self.identity.edge);
            }
        }
    }

    pub(crate) async fn wait_ended(&self) -> Status {
        self.wait("the end of the stream", |state| state.ended.is_some()).await;
        self.with(|state| state.ended.clone().unwrap())
    }

    /// Ends the stream; what the edge has is left.
    pub(crate) async fn disconnect(mut self) -> (Arc<Identity>, State) {
        self.task.abort();
        // The only error is the abort itself.
        drop((&mut self.task).await);
        (self.identity.clone(), self.leave())
    }

    /// Ends the stream where others still hold the edge; what it has is left.
    pub(crate) fn leave(&self) -> State {
        self.task.abort();
        // The task may be within a message yet.
        let mut state = self.with(|state| std::mem::replace(state, State { left: true, ..State::default() }));
        state.building = None;
        state.ended = None;
        state
    }

    pub(crate) async fn say_status(&self, listeners: &[&str]) {
        let status = EdgeStatus {
            io_backend: "epoll".to_owned(),
            listeners: listeners.iter().map(ToString::to_string).collect(),
            ..EdgeStatus::default()
        };
        let message = EdgeMessage { kind: Some(edge_message::Kind::Status(status)) };
        self.outgoing.send(message).await.unwrap();
    }
}

async fn follow(
    identity: &Identity,
    mut stream: tonic::Streaming<ControlMessage>,
    state: &Mutex<State>,
    outgoing: &mpsc::Sender<EdgeMessage>,
    wake: &watch::Sender<()>,
) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                let answer = {
                    let mut state = state.lock().unwrap();
                    if state.left {
                        return Status::cancelled("it has left");
                    }
                    let answer = take(identity, &mut state, message);
                    answer.filter(|_| !state.behaviour.silent)
                };
                if let Some(answer) = answer {
                    drop(outgoing.send(EdgeMessage { kind: Some(answer) }).await);
                }
                wake.send_replace(());
            }
            Ok(None) => return Status::ok("ended"),
            Err(status) => return status,
        }
    }
}

fn take(identity: &Identity, state: &mut State, message: ControlMessage) -> Option<edge_message::Kind> {
    if state.keep_bytes {
        state.bytes.extend(message.encode_to_vec());
    }
    match message.kind.unwrap() {
        Kind::CellKey(sealed) => {
            let key = open_key(identity, &sealed);
            state.keys.insert(sealed.epoch, key);
            None
        }
        Kind::SnapshotBegin(begin) => {
            state.signed_off = begin.removals_signed_off;
            state.building = Some((begin.generation.unwrap().into(), begin.resources, Vec::new()));
            None
        }
        Kind::SnapshotChunk(chunk) => {
            state.largest_chunk = state.largest_chunk.max(chunk.encoded_len());
            state.building.as_mut().unwrap().2.extend(chunk.resources);
            None
        }
        Kind::SnapshotEnd(end) => {
            let (generation, count, resources) = state.building.take().unwrap();
            let encoded: Vec<u8> = resources.iter().flat_map(Message::encode_to_vec).collect();
            assert_eq!(end.sha256, digest::digest(&digest::SHA256, &encoded).as_ref());
            assert_eq!(resources.len() as u64, count);
            state.snapshots += 1;
            Some(apply(state, generation, resources, true))
        }
        Kind::Delta(delta) => {
            assert_eq!(Generation::from(delta.base.unwrap()), state.applied, "a delta from another base");
            state.deltas += 1;
            state.signed_off = delta.removals_signed_off;
            if !state.behaviour.rejects {
                for gone in delta.tombstones {
                    state.resources.remove(&(gone.kind, gone.id.clone()));
                    state.tombstones.push(gone.id);
                }
            }
            Some(apply(state, delta.generation.unwrap().into(), delta.resources, false))
        }
        Kind::Urgent(urgent) => {
            let sequence = urgent.sequence;
            let certificate_request = match &urgent.action {
                Some(urgent::Action::KeyRequest(wanted)) => state.request(wanted).into(),
                _ => bytes::Bytes::new(),
            };
            state.urgents.push(urgent);
            let ack = UrgentAck { sequence, met: 7, certificate_request, ..UrgentAck::default() };
            (!state.behaviour.stalled).then_some(edge_message::Kind::UrgentAck(ack))
        }
        Kind::UsageAck(ack) => {
            state.usage_acks.push(ack);
            None
        }
    }
}

fn apply(
    state: &mut State,
    generation: Generation,
    resources: Vec<Resource>,
    whole: bool,
) -> edge_message::Kind {
    assert!(generation > state.applied, "{generation} is not above {}", state.applied);
    let mut ack = Ack { generation: Some(generation.into()), ..Ack::default() };
    if state.behaviour.rejects {
        ack.generation = Some(state.applied.into());
        let (code, text) = ("TestRefuses".to_owned(), "as told".to_owned());
        ack.rejected = Some(Rejection { refused: Some(generation.into()), code, text });
        return edge_message::Kind::Ack(ack);
    }
    if whole {
        state.resources.clear();
    }
    for resource in resources {
        if state.behaviour.nacks.contains(&resource.id) {
            ack.nacks.push(Nack {
                kind: resource.kind,
                id: resource.id,
                version: resource.version,
                code: "TestNack".to_owned(),
                text: "as told".to_owned(),
            });
            continue;
        }
        state.resources.insert((resource.kind, resource.id.clone()), resource);
    }
    state.applied = generation;
    state.received.insert(generation.sequence, instant());
    edge_message::Kind::Ack(ack)
}

fn open_key(identity: &Identity, sealed: &SealedCellKey) -> CellKey {
    assert_eq!(sealed.cell_id, identity.cell.as_str());
    hpke::open_cell_key(
        &identity.hpke,
        identity.cell.clone(),
        sealed.epoch,
        &sealed.encapsulated_key,
        &sealed.ciphertext,
    )
    .unwrap()
}

pub(crate) async fn connect(address: SocketAddr, mut config: ClientConfig) -> DistributionClient<Channel> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::try_from(format!("http://{SERVER_NAME}")).unwrap();
    DistributionClient::new(endpoint.connect_with_connector_lazy(connector))
}

/// TLS without a client certificate, and nothing on it.
pub(crate) async fn connect_raw(address: SocketAddr, fingerprint: &str) -> TlsStream<TcpStream> {
    let mut config = joining_config(fingerprint.to_owned());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// The leaf that a new connection is shown, after it was verified.
pub(crate) async fn shown_certificate(address: SocketAddr, fingerprint: &str) -> CertificateDer<'static> {
    let stream = connect_raw(address, fingerprint).await;
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap()
}

/// Trusts the chain that holds the certificate with the token's fingerprint.
pub(crate) fn joining_config(fingerprint: String) -> ClientConfig {
    builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(fingerprint)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let hex = |der: &[u8]| {
            let hash = digest::digest(&digest::SHA256, der);
            hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let pinned = others.iter().find(|der| hex(der) == self.0);
        let ca = pinned.ok_or_else(|| rustls::Error::General("no certificate of that fingerprint".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        verifier.build().unwrap().verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
