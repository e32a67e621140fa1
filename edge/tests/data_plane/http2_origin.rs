//! Origins that speak HTTP/2 or have certificates of their own authority.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_api::distribution as wire;
use portico_edge::io::Backend;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::client::{collect, http2, http2_get, https, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};
use crate::origin::tls_config;
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

/// Echoes each piece of a body as it comes and ends with the trailers of gRPC. Lives on a thread of its own.
struct Echo {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    goodbye: watch::Sender<usize>,
}

type EchoBody = http_body_util::combinators::BoxBody<Bytes, hyper::Error>;

impl Echo {
    fn start(streams_max: u32, tls: Option<rustls::ServerConfig>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (goodbye, said) = watch::channel(0);
        let echo = Self { address, connections: Arc::default(), requests: Arc::default(), goodbye };
        let (connections, requests) = (Arc::clone(&echo.connections), Arc::clone(&echo.requests));
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let acceptor = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (requests, said, acceptor) = (Arc::clone(&requests), said.clone(), acceptor.clone());
                    tokio::spawn(async move {
                        match acceptor {
                            None => serve(stream, streams_max, requests, said).await,
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    serve(stream, streams_max, requests, said).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        echo
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// GOAWAY on every connection that is open now.
    fn say_goodbye(&self) {
        self.goodbye.send_modify(|times| *times += 1);
    }

    fn edge(&self, backend: Backend, change: impl FnOnce(&mut wire::Proxy)) -> TestEdge {
        let mut edge = TestEdge::start(backend);
        let route = proxy(&[format!("http://{}", self.address)], |proxy| {
            proxy.protocol = wire::OriginProtocol::Http2.into();
            change(proxy);
        });
        edge.serve_with(&[HOST], &[("127.0.0.0/8", self.address.port())], |domain| {
            domain.routes = vec![route.clone()]
        });
        edge
    }
}

async fn serve<S>(stream: S, streams_max: u32, requests: Arc<AtomicUsize>, mut said: watch::Receiver<usize>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    said.mark_unchanged();
    let service = service_fn(move |request| {
        requests.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, Infallible>(echo(request)) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(streams_max)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = said.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn echo(request: Request<Incoming>) -> Response<EchoBody> {
    let seen =
        format!("{:?} {} {}", request.version(), request.uri(), request.headers().contains_key("host"));
    let te = request.headers().get("te").cloned();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let pieces = request.into_body().into_data_stream().map(|piece| piece.map(Frame::data));
    let end = futures_util::stream::once(async move { Ok(Frame::trailers(trailers)) });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(pieces.chain(end))));
    response.headers_mut().insert("seen", seen.parse().unwrap());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if let Some(te) = te {
        response.headers_mut().insert("seen-te", te);
    }
    response
}

/// Answers everything with 200 and tells the names of each request's trailers.
pub fn trailer_recorder() -> (SocketAddr, mpsc::Receiver<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (told, recorded) = mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let told = told.clone();
                    async move {
                        let body = request.into_body().collect().await?;
                        let names = body.trailers().into_iter().flat_map(HeaderMap::keys);
                        let _gone = told.send(names.map(ToString::to_string).collect());
                        Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
                    }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    (address, recorded)
}

#[test]
fn a_call_that_streams_both_ways_passes_with_its_trailers() {
    on_each_backend(|backend| {
        let origin = Echo::start(100, None);
        let edge = origin.edge(backend, |_| ());
        runtime().block_on(async {
            let (give, take) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
            let pieces = tokio_stream::wrappers::UnboundedReceiverStream::new(take);
            let body = StreamBody::new(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
            let mut sender = http2(edge.https, Some(HOST)).await.unwrap();
            let request = Request::post(format!("https://{HOST}/pkg.Service/Call?a=b"))
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(
                response.headers()["seen"],
                format!("HTTP/2.0 http://{HOST}/pkg.Service/Call?a=b false")
            );
            assert_eq!(response.headers()["seen-te"], "trailers");
            assert_eq!(response.headers()["via"], "2 portico");
            let mut answer = response.into_body();
            // Each piece comes back before the next one is sent: neither direction waits for the other's end.
            for number in 0..20 {
                let piece = Bytes::from(format!("message {number}"));
                give.send(piece.clone()).unwrap();
                assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
            }
            drop(give);
            let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            assert!(answer.frame().await.is_none());
        });
    });
}

#[test]
fn many_exchanges_share_one_connection_and_keep_to_the_origins_limit() {
    on_each_backend(|backend| {
        for (streams_max, connections) in [(200, 1), (3, 14)] {
            let origin = Echo::start(streams_max, None);
            let edge = origin.edge(backend, |_| ());
            let before = edge.metric("portico_edge_panics_total");
            runtime().block_on(async {
                let sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
                let requests = (0..40).map(|_| {
                    let mut sender = sender.clone();
                    async move {
                        let request = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
                        collect(sender.send_request(request).await.unwrap()).await.unwrap().status
                    }
                });
                let statuses = futures_util::future::join_all(requests).await;
                assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
            });
            assert!(origin.connections() <= connections, "{} connections", origin.connections());
            assert_eq!(edge.metric("portico_edge_panics_total"), before);
            assert_eq!(origin.requests.load(Ordering::SeqCst), 40);
        }
    });
}

#[test]
fn an_origins_goodbye_costs_no_request() {
    on_each_backend(|backend| {
        let origin = Echo::start(100, None);
        let edge = origin.edge(backend, |_| ());
        let address = edge.https;
        let mut client = https(address, HOST);
        for round in 1..=5 {
            for _ in 0..20 {
                client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi"));
                let answer = client.answer();
                assert_eq!((answer.status, answer.text().as_str()), (200, "hi"));
            }
            origin.say_goodbye();
            // A call without a body may be sent again while the goodbye is under way.
            wait_until("a new connection is used", || {
                assert_eq!(https(address, HOST).get(HOST, "/").status, 200);
                origin.connections() > round
            });
        }
    });
}

/// A certificate authority of origins.
pub struct Authority {
    pem: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self { pem: rcgen::CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    pub fn der(&self) -> Bytes {
        self.pem.der().to_vec().into()
    }

    pub fn server(&self, names: &[&str], alpn: &[&str]) -> rustls::ServerConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let params =
            rcgen::CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
                .unwrap();
        let certificate = params.signed_by(&key, &self.pem).unwrap();
        let mut config = tls_config(certificate.der().clone(), &key);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

#[test]
fn an_origins_own_authority_is_trusted_for_its_own_route_and_name_alone() {
    on_each_backend(|backend| {
        let (own, foreign) = (Authority::new(), Authority::new());
        let origin = Echo::start(100, Some(own.server(&["in.example"], &["h2", "http/1.1"])));
        let trusts = |ca: Option<Bytes>, name: &str, protocol: wire::OriginProtocol| {
            let mut edge = TestEdge::with(backend, Setup::default());
            let route = proxy(&[format!("https://{}", origin.address)], |proxy| {
                proxy.tls_ca_der = ca.into_iter().collect();
                proxy.tls_server_name = name.to_owned();
                proxy.protocol = protocol.into();
            });
            edge.serve_with(&[HOST], &[("127.0.0.0/8", origin.address.port())], |domain| {
                domain.routes = vec![route.clone()]
            });
            let answer = http2_get(edge.https, Some(HOST), HOST, "/x").unwrap();
            (answer.status, answer.header("seen").map(str::to_owned), edge.log_lines(1)[0]["reason"].clone())
        };
        let (auto, http2) = (wire::OriginProtocol::Auto, wire::OriginProtocol::Http2);
        let seen = Some(format!("HTTP/2.0 https://{HOST}/x false"));
        for protocol in [auto, http2] {
            let (status, by_origin, _) = trusts(Some(own.der()), "in.example", protocol);
            assert_eq!((status, &by_origin), (200, &seen), "HTTP/2 by ALPN");
        }
        // Of the same name as ours, but with another key: then it is the signature that is wrong.
        let unknown = ["tls_unknown_issuer", "tls_certificate"];
        for (ca, name, words) in [
            (None, "in.example", &unknown[..]),
            (Some(foreign.der()), "in.example", &unknown),
            (Some(own.der()), "other.example", &["tls_wrong_name"]),
            (Some(own.der()), "", &["tls_wrong_name"]),
        ] {
            let (status, _, reason) = trusts(ca, name, auto);
            let reason = reason.as_str().unwrap_or_default();
            assert!(status == 502 && words.contains(&reason), "{name:?}: {status} {reason}");
        }
    });
}

#[test]
fn an_overriding_host_is_what_an_http2_origin_sees() {
    on_each_backend(|backend| {
        let origin = Echo::start(100, None);
        let edge = origin.edge(backend, |proxy| proxy.host_header = "in.example:8080".into());
        for answer in
            [https(edge.https, HOST).get(HOST, "/a"), http2_get(edge.https, Some(HOST), HOST, "/a").unwrap()]
        {
            assert_eq!(answer.header("seen"), Some("HTTP/2.0 http://in.example:8080/a false"));
        }
    });
}

#[test]
fn an_origin_without_http2_is_told_from_one_that_fails() {
    on_each_backend(|backend| {
        let own = Authority::new();
        let origin = Echo::start(100, Some(own.server(&["in.example"], &[])));
        let mut edge = TestEdge::start(backend);
        let route = proxy(&[format!("https://{}", origin.address)], |proxy| {
            proxy.tls_ca_der = vec![own.der()];
            proxy.tls_server_name = "in.example".into();
            proxy.protocol = wire::OriginProtocol::Http2.into();
        });
        edge.serve_with(&[HOST], &[("127.0.0.0/8", origin.address.port())], |domain| {
            domain.routes = vec![route.clone()]
        });
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 502);
        assert_eq!(edge.log_lines(1)[0]["reason"], "not_http2");
    });
}
