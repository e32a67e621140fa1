//! The demo origin: one address a tenant, each answers with the tenant's name and what it received.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::failure::{Failure, Outcome};

/// Connections at once, over all addresses.
const CONNECTIONS_MAX: usize = 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct OriginArgs {
    /// A tenant and the address that answers in its name; repeatable
    #[arg(long, value_name = "TENANT=ADDR", value_parser = parse_serve, required = true)]
    serve: Vec<(String, SocketAddr)>,
}

/// Serves until the process is ended.
pub(crate) async fn run(args: OriginArgs) -> Outcome {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut listeners = JoinSet::new();
    for (tenant, address) in args.serve {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.map_err(|error| Failure::failed(format!("origin of {tenant} at {address}: {error}")))?;
        listeners.spawn(serve(listener, Arc::from(tenant), Arc::clone(&permits)));
    }
    while listeners.join_next().await.is_some() {}
    Err(Failure::failed("a listener of the origin ended"))
}

async fn serve(listener: TcpListener, tenant: Arc<str>, permits: Arc<Semaphore>) {
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let tenant = Arc::clone(&tenant);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = answer(&tenant, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let _client_went =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
            drop(permit);
        });
    }
}

fn answer(tenant: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut body = format!("origin of {tenant}\n{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        let _infallible = writeln!(body, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn parse_serve(text: &str) -> Result<(String, SocketAddr), String> {
    let (tenant, address) = text.split_once('=').ok_or("write TENANT=ADDR")?;
    Ok((tenant.to_owned(), address.parse().map_err(|_| format!("{address:?} is no address"))?))
}
