//! The listener for edges: TLS by the internal CA, then gRPC.
//!
//! A client certificate is asked for and not demanded, because a joining edge has none yet; each call then looks at who
//! is there. Until it is known which edge a connection is of, it has its place among strangers ([`crate::admission`]),
//! also while it joins, so that no number of them keeps an edge out. TLS 1.3 only, no resumption: an edge connects
//! rarely, and every connection proves its identity anew.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, PollNext, once, select_with_strategy};
use portico_api::distribution::distribution_server::{Distribution, DistributionServer};
use portico_api::distribution::{
    ControlMessage, EdgeMessage, JoinRequest, JoinResponse, RenewRequest, RenewResponse,
};
use portico_cert_store::{EdgeId, UnixTime};
use rustls::RootCertStore;
use rustls::server::{Acceptor, NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Sleep;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Response, Status, Streaming};

use super::context::Context;
use super::sync::{self, Outgoing};
use super::{join, sync::unavailable};
use crate::admission::{Admission, Bounds, Stranger};
use crate::ca::{InternalCa, ServerIdentity, edge_of_certificate};
use crate::clock::Clock;
use crate::limits::{DISTRIBUTION_STRANGERS_MAX, DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX};
use crate::store::edge;

/// An edge says its ClientHello at once; who does not within this time is dropped.
const HELLO_DEADLINE: Duration = Duration::from_secs(3);
/// A client that does not finish its TLS handshake within this time is dropped.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Connections of edges that stand at the same time; one more is closed, and the edge tries again.
const CONNECTIONS_MAX: usize = 4_096;
/// A connection without an edge's certificate can only join, and ends after this time.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);
/// Calls at the same time on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 16;
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Messages between a stream's feeding half and the transport.
const BULK_QUEUE: usize = 2;
/// An edge's message: an ack with its nacks is the largest.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Serves edges until `context.shutdown`.
pub(super) async fn serve(
    context: Arc<Context>,
    listener: TcpListener,
    identity: ServerIdentity,
) -> anyhow::Result<()> {
    let tls = Arc::new(tls_config(&context.ca, identity, context.clock.clone())?);
    let (accepted, connections) = mpsc::channel(64);
    let shutdown = context.shutdown.clone();
    let bounds =
        Bounds { in_all: DISTRIBUTION_STRANGERS_MAX, of_address: DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX };
    let admission = Admission::new(listener, "distribution", bounds);
    let accepting = accept(admission, tls, accepted, shutdown.clone());
    let service = DistributionServer::new(Service(context)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let serving = Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.cancelled_owned());
    let (_, served) = tokio::join!(accepting, serving);
    Ok(served?)
}

fn tls_config(ca: &InternalCa, identity: ServerIdentity, clock: Clock) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(TlsClock(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Certificates are judged by the same clock that signs them.
#[derive(Debug)]
struct TlsClock(Clock);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.now())
    }
}

/// Takes connections and finishes their TLS handshakes side by side, so that a slow one delays nobody.
async fn accept(
    mut admission: Admission,
    tls: Arc<ServerConfig>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (stream, from, stranger) = tokio::select! {
            () = shutdown.cancelled() => return,
            admitted = admission.next() => admitted,
        };
        let (tls, slots, accepted) = (tls.clone(), slots.clone(), accepted.clone());
        tokio::spawn(async move {
            match connection(tls, stream, stranger, slots).await {
                // The server has ended when nobody takes it.
                Ok(connection) => drop(accepted.send(Ok(connection)).await),
                Err(error) => tracing::debug!(
                    %from,
                    error = &error as &dyn std::error::Error,
                    "no connection of an edge on the distribution port"
                ),
            }
        });
    }
}

/// Of an edge, or of one that may join.
async fn connection(
    tls: Arc<ServerConfig>,
    stream: TcpStream,
    stranger: Stranger,
    slots: Arc<Semaphore>,
) -> io::Result<Connection> {
    let stream = tokio::select! {
        () = stranger.pushed_out() => return Err(io::Error::other("it had to give its place to another")),
        shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake(tls, stream)) => shaken??,
    };
    let edge = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let standing = match edge.and_then(|certificate| edge_of_certificate(certificate)) {
        Some(edge) => {
            let Ok(slot) = slots.try_acquire_owned() else {
                tracing::warn!(%edge, connections = CONNECTIONS_MAX, "no room for an edge's connection");
                return Err(io::Error::other("too many edges are connected"));
            };
            Standing::Edge { edge, _slot: slot }
        }
        None => Standing::Stranger {
            pushed_out: Box::pin(stranger.pushed_out()),
            deadline: Box::pin(tokio::time::sleep(JOIN_DEADLINE)),
            _place: stranger,
        },
    };
    Ok(Connection { stream, standing })
}

async fn handshake(tls: Arc<ServerConfig>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    tokio::time::timeout(HELLO_DEADLINE, hello).await??.into_stream(tls).await
}

/// Who is at the other end, as its verified certificate says; `None`: no certificate.
#[derive(Clone, Copy, Debug)]
struct Peer {
    edge: Option<EdgeId>,
}

struct Connection {
    stream: TlsStream<TcpStream>,
    standing: Standing,
}

enum Standing {
    Edge {
        edge: EdgeId,
        _slot: OwnedSemaphorePermit,
    },
    /// Without identity it can only join.
    Stranger {
        pushed_out: Pin<Box<WaitForCancellationFutureOwned>>,
        deadline: Pin<Box<Sleep>>,
        _place: Stranger,
    },
}

impl Standing {
    /// Whether the time of a connection without identity is over; `task` is woken when it is.
    fn is_over(&mut self, task: &mut TaskContext<'_>) -> bool {
        match self {
            Self::Edge { .. } => false,
            Self::Stranger { pushed_out, deadline, .. } => {
                pushed_out.as_mut().poll(task).is_ready() || deadline.as_mut().poll(task).is_ready()
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self.standing {
            Standing::Edge { edge, .. } => Peer { edge: Some(edge) },
            Standing::Stranger { .. } => Peer { edge: None },
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.standing.is_over(task) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

struct Service(Arc<Context>);

#[tonic::async_trait]
impl Distribution for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Ok(Response::new(join::join(&self.0, request.into_inner()).await?))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let edge = peer_edge(&request)?;
        Ok(Response::new(join::renew(&self.0, edge, request.into_inner()).await?))
    }

    type SyncStream = BoxStream<'static, Result<ControlMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<EdgeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let edge = peer_edge(&request)?;
        let known = edge::find(&mut *self.0.store.read().await.map_err(unavailable)?, edge).await;
        known.map_err(unavailable)?.ok_or_else(|| sync::removed(edge))?;
        let (bulk, bulk_receiver) = mpsc::channel(BULK_QUEUE);
        let (urgents, urgents_receiver) = oneshot::channel();
        let context = self.0.clone();
        tokio::spawn(async move {
            sync::serve_edge(&context, edge, request.into_inner(), Outgoing { bulk, urgents }).await;
        });
        Ok(Response::new(outgoing(bulk_receiver, urgents_receiver)))
    }
}

fn peer_edge<T>(request: &Request<T>) -> Result<EdgeId, Status> {
    let edge = request.extensions().get::<Peer>().and_then(|peer| peer.edge);
    edge.ok_or_else(|| {
        Status::unauthenticated("this call needs the client certificate of an edge: join with a token first")
    })
}

/// One stream of two queues; an urgent message passes whatever waits in the other.
fn outgoing(
    bulk: mpsc::Receiver<Result<ControlMessage, Status>>,
    urgents: oneshot::Receiver<(Vec<ControlMessage>, mpsc::Receiver<ControlMessage>)>,
) -> BoxStream<'static, Result<ControlMessage, Status>> {
    let urgents = once(urgents).flat_map(|ready| {
        // Not ready: the edge was refused, and there is nothing to tell it here.
        let (standing, queue) = ready.unwrap_or_else(|_| (Vec::new(), mpsc::channel(1).1));
        futures_util::stream::iter(standing).chain(ReceiverStream::new(queue)).map(Ok)
    });
    select_with_strategy(urgents, ReceiverStream::new(bulk), |(): &mut ()| PollNext::Left).boxed()
}
