//! The listeners: TLS and HTTP for the API with what every answer carries, plain HTTP for management.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{CACHE_CONTROL, LINK, LOCATION, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::ca::Ca;
use crate::faults::{Endpoint, Fault, FaultKind};
use crate::problem::{Kind, Problem};
use crate::request::base_url;
use crate::{account, authorization, order, renewal_info, revoke};

/// Connections at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 1_024;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// The answer of the fault `huge`.
const HUGE_BYTES: usize = 10_000_000;
const REPLAY_NONCE: HeaderName = HeaderName::from_static("replay-nonce");

/// Serves the ACME API until dropped.
pub(crate) async fn serve_api(listener: TcpListener, tls: Arc<ServerConfig>, ca: Arc<Ca>) {
    let acceptor = TlsAcceptor::from(tls);
    let routes = api_router(Arc::clone(&ca));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Owned here, so that dropping the listener's task ends open connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Some((stream, peer)) = accept(&listener).await else { continue };
        while connections.try_join_next().is_some() {}
        let (acceptor, routes, ca) = (acceptor.clone(), routes.clone(), Arc::clone(&ca));
        connections.spawn(async move {
            let _slot = slot;
            if let Ok(Ok(stream)) = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
                serve_connection(TokioIo::new(stream), peer, routes, Some(ca)).await;
            }
        });
    }
}

/// Serves plain HTTP until dropped.
pub(crate) async fn serve_plain(listener: TcpListener, routes: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Owned here, so that dropping the listener's task ends open connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Some((stream, peer)) = accept(&listener).await else { continue };
        while connections.try_join_next().is_some() {}
        let routes = routes.clone();
        connections.spawn(async move {
            let _slot = slot;
            serve_connection(TokioIo::new(stream), peer, routes, None).await;
        });
    }
}

async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Without it Nagle and delayed acknowledgements add 40 ms to every answer.
            stream.set_nodelay(true).ok()?;
            Some((stream, peer))
        }
        Err(error) => {
            // Out of descriptors: waiting is all that helps.
            tracing::warn!(%error, "accept failed");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// `ca`: of its API, whose places may have moved.
async fn serve_connection<I>(io: I, peer: SocketAddr, routes: Router, ca: Option<Arc<Ca>>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        if let Some(ca) = &ca {
            *request.uri_mut() = ca.unmoved(request.uri());
        }
        answer(routes.clone(), request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
    if let Err(error) = builder.serve_connection(io, service).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// Marks an answer that must not be sent: the connection is closed instead.
#[derive(Clone)]
struct CloseConnection;

async fn answer(routes: Router, request: http::Request<Incoming>) -> io::Result<Response> {
    let response = match routes.oneshot(request.map(axum::body::Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if response.extensions().get::<CloseConnection>().is_some() {
        return Err(io::Error::other("closed on demand"));
    }
    Ok(response)
}

fn api_router(ca: Arc<Ca>) -> Router {
    Router::new()
        .route("/directory", get(directory))
        .route("/terms", get(async || "This CA is for tests. Trust nothing that it signs.\n"))
        .route("/acme/new-nonce", get(async || StatusCode::NO_CONTENT).head(async || StatusCode::OK))
        .route("/acme/new-account", post(account::new_account))
        .route("/acme/account/{id}", post(account::account))
        .route("/acme/key-change", post(account::key_change))
        .route("/acme/new-order", post(order::new_order))
        .route("/acme/order/{id}", post(order::order))
        .route("/acme/finalize/{id}", post(order::finalize))
        .route("/acme/certificate/{id}", post(order::certificate))
        .route("/acme/authorization/{id}", post(authorization::authorization))
        .route("/acme/challenge/{id}", post(authorization::challenge))
        .route("/acme/revoke-cert", post(revoke::revoke_cert))
        .route("/acme/renewal-info/{id}", get(renewal_info::renewal_info))
        .fallback(async || Problem::not_found("resource"))
        .method_not_allowed_fallback(async || {
            Problem::malformed("this resource takes another method; read with POST-as-GET")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(from_fn_with_state(Arc::clone(&ca), around))
        .with_state(ca)
}

/// `GET /directory` (RFC 8555 section 7.1.1).
async fn directory(State(ca): State<Arc<Ca>>, request: Request) -> Result<Response, Problem> {
    let base = base_url(&ca, request.headers(), request.uri())?;
    let mut document = json!({
        "newNonce": format!("{base}/acme/new-nonce"),
        "newAccount": format!("{base}/acme/new-account"),
        "newOrder": format!("{base}/acme/new-order"),
        "revokeCert": format!("{base}/acme/revoke-cert"),
        "keyChange": format!("{base}/acme/key-change"),
        "meta": {
            "termsOfService": format!("{base}/terms"),
            "caaIdentities": [ca.config.caa_identity],
            "externalAccountRequired": !ca.config.external_accounts.is_empty(),
            "profiles": ca.book().profiles.document(),
        },
    });
    if ca.config.ari {
        document["renewalInfo"] = json!(format!("{base}/acme/renewal-info"));
    }
    Ok(axum::Json(document).into_response())
}

/// Around every request of the API: faults, counters, nonce, index link.
async fn around(State(ca): State<Arc<Ca>>, request: Request, next: Next) -> Response {
    let endpoint = Endpoint::of_path(request.uri().path());
    let base = base_url(&ca, request.headers(), request.uri()).ok();
    let name = endpoint.map_or("other", Endpoint::as_str);
    *ca.book().stats.requests.entry(name).or_default() += 1;
    let mut response = match faulty_answer(&ca, endpoint).await {
        Some(response) => response,
        None => {
            let response = next.run(request).await;
            if endpoint.is_some_and(|at| ca.take_fault(at, &[FaultKind::Lost]).is_some()) {
                closed()
            } else {
                response
            }
        }
    };
    if let Some(kind) = response.extensions().get::<Kind>().copied() {
        *ca.book().stats.problems.entry(kind.name()).or_default() += 1;
    }
    let headers = response.headers_mut();
    if let Ok(nonce) = HeaderValue::try_from(ca.nonces.issue()) {
        headers.insert(REPLAY_NONCE, nonce);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let index = base.and_then(|base| HeaderValue::try_from(format!("<{base}/directory>;rel=\"index\"")).ok());
    if let Some(index) = index.filter(|_| endpoint != Some(Endpoint::Directory)) {
        headers.append(LINK, index);
    }
    response
}

/// What a fault puts in place of the answer; `slow` waits here and answers nothing.
async fn faulty_answer(ca: &Ca, endpoint: Option<Endpoint>) -> Option<Response> {
    let endpoint = endpoint?;
    if let Some(fault) = ca.take_fault(endpoint, &[FaultKind::Slow]) {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
    }
    let instead = [
        FaultKind::RateLimited,
        FaultKind::Unavailable,
        FaultKind::UnavailableHtml,
        FaultKind::Garbage,
        FaultKind::Huge,
        FaultKind::Redirect,
        FaultKind::Empty,
        FaultKind::Close,
    ];
    let fault = ca.take_fault(endpoint, &instead)?;
    instead_of_answer(ca, &fault)
}

/// No answer.
fn closed() -> Response {
    let mut response = ().into_response();
    response.extensions_mut().insert(CloseConnection);
    response
}

/// `None` for the kinds that act elsewhere.
fn instead_of_answer(ca: &Ca, fault: &Fault) -> Option<Response> {
    let after = Duration::from_secs(fault.retry_after_seconds);
    let detail = "a fault was asked for on the management listener";
    Some(match fault.kind {
        FaultKind::RateLimited => {
            *ca.book().stats.rate_limited.entry("fault").or_default() += 1;
            Problem::new(Kind::RateLimited, detail).with_retry_after(after).into_response()
        }
        FaultKind::Unavailable => Problem::new(Kind::ServerInternal, detail)
            .with_status(StatusCode::SERVICE_UNAVAILABLE)
            .with_retry_after(after)
            .into_response(),
        FaultKind::UnavailableHtml => {
            let headers = [(RETRY_AFTER, HeaderValue::from(fault.retry_after_seconds))];
            let page = Html("<html><body><h1>503 Service Unavailable</h1></body></html>");
            (StatusCode::SERVICE_UNAVAILABLE, headers, page).into_response()
        }
        FaultKind::Garbage => "\u{fffd}{]certainly not JSON, nor PEM".into_response(),
        FaultKind::Huge => vec![b'x'; HUGE_BYTES].into_response(),
        FaultKind::Redirect => (StatusCode::FOUND, [(LOCATION, "/terms")]).into_response(),
        FaultKind::Empty => ().into_response(),
        FaultKind::Close => closed(),
        FaultKind::BadNonce
        | FaultKind::Slow
        | FaultKind::Lost
        | FaultKind::Processing
        | FaultKind::ValidationTrouble
        | FaultKind::WrongChain
        | FaultKind::WrongKey
        | FaultKind::WrongNames
        | FaultKind::MissingName
        | FaultKind::Expired
        | FaultKind::NotYetValid
        | FaultKind::NoIntermediate
        | FaultKind::ExpiredIntermediate => return None,
    })
}
