//! Which requests may share a connection to an origin: those that would have made the same one.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_api::distribution as wire;

use crate::client::{https, runtime};
use crate::harness::{TestEdge, on_each_backend};
use crate::http2_origin::Authority;
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

/// An origin over TLS that tells each request its connection's number, server name and version of HTTP.
fn telling(config: rustls::ServerConfig) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let accepting = acceptor.accept(stream);
                tokio::spawn(async move {
                    let Ok(stream) = accepting.await else { return };
                    let tls = stream.get_ref().1;
                    let name = tls.server_name().unwrap_or_default().to_owned();
                    let is_http2 = tls.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |request: Request<Incoming>| {
                        let told = format!("{number} {name} {:?}", request.version());
                        async move { Ok::<_, Infallible>(Response::new(told)) }
                    });
                    let stream = TokioIo::new(stream);
                    let _ended = match is_http2 {
                        true => {
                            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            builder.serve_connection(stream, service).await
                        }
                        false => {
                            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
                        }
                    };
                });
            }
        });
    });
    address
}

#[test]
fn routes_of_one_tenant_to_one_address_share_by_tls_name_and_protocol_alone() {
    on_each_backend(|backend| {
        let authority = Authority::new();
        let names = ["one.example", "two.example"];
        let address = telling(authority.server(&names, &["h2", "http/1.1"]));
        let protocols =
            [(wire::OriginProtocol::Http1, "HTTP/1.1"), (wire::OriginProtocol::Http2, "HTTP/2.0")];
        let ways: Vec<_> = names
            .iter()
            .flat_map(|name| protocols.map(|(protocol, version)| (*name, protocol, version)))
            .collect();
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&[HOST], &[("127.0.0.0/8", address.port())], |domain| {
            // Each way stands in two routes.
            let routes = ways.iter().enumerate().flat_map(|(number, (name, protocol, _))| {
                ["a", "b"].map(|letter| {
                    let route = proxy(&[format!("https://{address}")], |proxy| {
                        proxy.tls_ca_der = vec![authority.der()];
                        proxy.tls_server_name = (*name).to_owned();
                        proxy.protocol = (*protocol).into();
                    });
                    wire::Route { path_prefix: format!("/{number}{letter}"), ..route }
                })
            });
            domain.routes = routes.collect();
        });
        let mut visitor = https(edge.https, HOST);
        let mut connections = HashSet::new();
        for _ in 0..3 {
            for (number, (name, _, version)) in ways.iter().enumerate() {
                for letter in ["a", "b"] {
                    let told = visitor.get(HOST, &format!("/{number}{letter}")).text();
                    let (connection, rest) = told.split_once(' ').unwrap_or_else(|| panic!("{told:?}"));
                    assert_eq!(rest, format!("{name} {version}"));
                    connections.insert((number, connection.to_owned()));
                }
            }
        }
        // Four ways with one connection each, which served all requests that went that way.
        let numbers: HashSet<&String> = connections.iter().map(|(_, connection)| connection).collect();
        assert_eq!((connections.len(), numbers.len()), (4, 4), "{connections:?}");
    });
}
