//! gRPC with tonic's client and server on both sides of the edge.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use portico_api::distribution::distribution_client::DistributionClient;
use portico_api::distribution::distribution_server::{Distribution, DistributionServer};
use portico_api::distribution::{
    self as wire, ControlMessage, EdgeMessage, JoinRequest, JoinResponse, RenewRequest, RenewResponse,
};
use portico_edge::io::Backend;
use rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::client::{any_version, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};

const HOST: &str = "shop.example";

/// Answers each message of a stream before the next one comes.
struct Answering;

#[tonic::async_trait]
impl Distribution for Answering {
    type SyncStream = futures_util::stream::BoxStream<'static, Result<ControlMessage, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        match request.into_inner().token.as_str() {
            "good" => Ok(Response::new(JoinResponse { edge_id: "edge-1".into(), ..JoinResponse::default() })),
            _ => Err(Status::permission_denied("of the origin")),
        }
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented("of the origin"))
    }

    async fn sync(
        &self,
        request: Request<Streaming<EdgeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let answers = request.into_inner().map(|message| message.map(|_| ControlMessage::default()));
        Ok(Response::new(answers.boxed()))
    }
}

fn origin() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = Server::builder().add_service(DistributionServer::new(Answering));
            server.serve_with_incoming(incoming).await.unwrap();
        });
    });
    address
}

fn edge_to(backend: Backend, origin: SocketAddr) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup::default());
    let mut route = proxy_to(&format!("http://{origin}"));
    if let Some(wire::route::Action::Proxy(proxy)) = &mut route.action {
        proxy.protocol = wire::OriginProtocol::Http2.into();
    }
    edge.serve_with(&[HOST], &[("127.0.0.0/8", origin.port())], |domain| domain.routes = vec![route.clone()]);
    edge
}

async fn client(edge: &TestEdge) -> DistributionClient<Channel> {
    let address = edge.https;
    let connector = tower::service_fn(move |_: http::Uri| async move {
        let tcp = tokio::net::TcpStream::connect(address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(any_version(&["h2"])));
        let stream = connector.connect(ServerName::try_from(HOST).unwrap(), tcp).await?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    let endpoint =
        Endpoint::from_static("http://shop.example").origin("https://shop.example".parse().unwrap());
    DistributionClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

#[test]
fn calls_and_streams_pass_in_both_directions() {
    on_each_backend(|backend| {
        let edge = edge_to(backend, origin());
        runtime().block_on(async {
            let mut client = client(&edge).await;
            let join = |token: &str| JoinRequest { token: token.into(), ..JoinRequest::default() };
            assert_eq!(client.join(join("good")).await.unwrap().into_inner().edge_id, "edge-1");
            let refused = client.join(join("bad")).await.unwrap_err();
            assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "of the origin"));

            let (sender, messages) = tokio::sync::mpsc::channel(1);
            let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
            // The first answer comes before the request has ended.
            let mut answers = client.sync(messages).await.unwrap().into_inner();
            for _ in 0..3 {
                sender.send(EdgeMessage::default()).await.unwrap();
                assert!(answers.message().await.unwrap().is_some());
            }
            drop(sender);
            assert!(answers.message().await.unwrap().is_none());
        });
    });
}

#[test]
fn our_own_errors_are_told_in_the_clients_words() {
    on_each_backend(|backend| {
        let nobody = portico_ports::reserve();
        let edge = edge_to(backend, nobody);
        runtime().block_on(async {
            let error = client(&edge).await.renew(RenewRequest::default()).await.unwrap_err();
            assert_eq!((error.code(), error.message()), (Code::Unavailable, "Bad Gateway"));
            assert!(error.metadata().get("x-request-id").is_some());
        });
        let line = &edge.log_lines(1)[0];
        assert_eq!((&line["status"], &line["reason"]), (&502.into(), &"connect".into()));
    });
}
