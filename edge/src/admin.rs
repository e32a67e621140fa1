//! The admin socket: what an operator on this machine may see and do. HTTP/1.1 with JSON on a unix socket, mode 0600, and
//! the peer's user is checked: it must be ours or root. What the metrics port answers is here as well.
//!
//! Certificates can be changed in standalone mode only; in a fleet they come from the control plane. Each answer to a
//! change says whether it survives a restart.

use std::{cell::RefCell, convert::Infallible, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use portico_api::{strict, v1::PurgeRequest};
use portico_cert_store::{CertificateFacts, DomainName, KeyType, LineageId};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

mod explain;

use crate::{
    access_log::ReopenError,
    clock,
    config::Mode,
    control::Control,
    drain::DrainSwitch,
    heap::{self, NoProfile},
    limits,
    live::{Counts, Fault, Host, Sites},
    server::Edge,
    service, standalone,
};

/// The state behind the socket; lives on the service thread.
#[derive(Debug)]
pub struct Admin {
    pub edge: Arc<Edge>,
    pub source: RefCell<Source>,
    pub switch: DrainSwitch,
    pub workers: usize,
    pub mode: Rc<Mode>,
}

/// Who writes the tables.
#[derive(Debug)]
pub enum Source {
    Standalone(Box<Sites>),
    /// The control stream, until it is started; from then on it alone writes.
    Fleet(Option<Box<Control>>),
}

/// What went wrong with a call.
struct Refused {
    status: StatusCode,
    code: &'static str,
    text: String,
}

/// Serves calls for the life of the process.
pub async fn serve(listener: UnixListener, admin: Rc<Admin>) {
    let places = service::Places::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !is_allowed(&stream) {
            tracing::warn!("the admin socket was opened by another user; closed");
            continue;
        }
        let Some(place) = places.take() else { continue };
        let deadlines = admin.edge.deadlines;
        let admin = Rc::clone(&admin);
        let service = service_fn(move |request| {
            let admin = Rc::clone(&admin);
            async move { Ok::<_, Infallible>(answer(request, &admin).await) }
        });
        tokio::task::spawn_local(service::serve_small(TokioIo::new(stream), service, place, deadlines));
    }
}

pub(crate) fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn answer(request: Request<Incoming>, admin: &Admin) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    if let Some(response) = service::read_only(&parts.method, parts.uri.path(), &admin.edge, &admin.mode) {
        return response;
    }
    if parts.method == Method::GET && parts.uri.path() == "/debug/pprof/heap" {
        return heap_profile().await;
    }
    let body = match Limited::new(body, limits::ADMIN_BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let text =
                format!("the body cannot be read ({error}); at most {} bytes", limits::ADMIN_BODY_BYTES_MAX);
            return respond(StatusCode::PAYLOAD_TOO_LARGE, &error_body("BodyTooLarge", &text));
        }
    };
    match route(&parts.method, parts.uri.path(), parts.uri.query(), &body, admin).await {
        Ok((status, value)) => respond(status, &value),
        Err(refused) => respond(refused.status, &error_body(refused.code, &refused.text)),
    }
}

async fn route(
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
    admin: &Admin,
) -> Result<(StatusCode, Value), Refused> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let ok = |value: Value| Ok((StatusCode::OK, value));
    match (method, segments.as_slice()) {
        (&Method::GET, ["v1", "status"]) => ok(status(admin)),
        (&Method::GET, ["debug", "generation"]) => ok(generation(admin)),
        (&Method::GET, ["v1", "certificates"]) => ok(list_certificates(admin)?),
        (&Method::POST, ["v1", "certificates"]) => Ok((StatusCode::CREATED, add_certificate(admin, body)?)),
        (&Method::PUT, ["v1", "certificates", id]) => ok(replace_certificate(admin, id, body)?),
        (&Method::DELETE, ["v1", "certificates", id]) => ok(remove_certificate(admin, id)?),
        (&Method::GET, ["v1", "names"]) => ok(list_names(admin)?),
        (&Method::POST, ["v1", "purge"]) => ok(purge(admin, body)?),
        (&Method::GET, ["debug", "usage"]) => ok(busiest(admin, query)?),
        (&Method::GET, ["debug", "certs"]) => ok(explain_sni(admin, query)?),
        (&Method::POST, ["v1", "drain"]) => {
            admin.switch.order();
            ok(json!({ "draining": true }))
        }
        (&Method::POST, ["v1", "access-log", "reopen"]) => {
            admin.edge.access_log.reopen().await?;
            ok(json!({ "reopened": true }))
        }
        _ => Err(Refused {
            status: StatusCode::NOT_FOUND,
            code: "NoSuchCall",
            text: "calls: GET /metrics, /healthz, /readyz, /v1/status, /v1/certificates, /v1/names, /debug/certs?sni=NAME, \
                   /debug/generation, /debug/usage?order=requests, /debug/pprof/heap; POST /v1/certificates, \
                   /v1/purge, /v1/drain, /v1/access-log/reopen; PUT and DELETE /v1/certificates/ID"
                .to_owned(),
        }),
    }
}

/// What is served: of which epoch of the control plane, and how far in it. Standalone it is the first for ever.
fn generation(admin: &Admin) -> Value {
    let live = &admin.edge.live;
    let applied = **live.applied.load();
    json!({
        "generation": applied.to_string(),
        "epoch": applied.epoch,
        "sequence": applied.sequence,
        "names": live.sni.len(),
    })
}

/// Bytes, in the format of `jeprof` and `pprof`.
async fn heap_profile() -> Response<Full<Bytes>> {
    let taken = tokio::task::spawn_blocking(heap::profile).await;
    match taken.unwrap_or_else(|panic| Err(NoProfile::Failed(panic.to_string()))) {
        Ok(profile) => {
            let mut response = Response::new(Full::new(profile.into()));
            let bytes = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, bytes);
            response
        }
        Err(error) => respond(error.status(), &error_body(error.code(), &error.to_string())),
    }
}

fn status(admin: &Admin) -> Value {
    let edge = &admin.edge;
    let operations = crate::io::operation_counts();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "process": std::process::id(),
        "mode": match *admin.source.borrow() { Source::Standalone(_) => "standalone", Source::Fleet(_) => "fleet" },
        "io_backend": edge.backend.as_str(),
        "io_operations": { "direct": operations.direct, "ring": operations.ring, "epoll": operations.epoll },
        "workers": admin.workers,
        "names": edge.live.sni.len(),
        "generation": edge.live.applied.load().to_string(),
        "connections": edge.open_connections(),
        "ready": edge.missing(&admin.mode).is_none(),
        "waiting_for": edge.missing(&admin.mode),
        "draining": edge.drain.is_ordered(),
        "listeners": edge.own_sockets,
    })
}

#[derive(Serialize)]
struct CertificateView {
    id: String,
    names: Vec<String>,
    not_before_unix: u64,
    not_after_unix: u64,
    issuer: String,
    key_type: KeyType,
    fingerprint_sha256: String,
}

impl CertificateView {
    fn of(id: LineageId, facts: &CertificateFacts) -> Self {
        Self {
            id: id.to_string(),
            names: facts.names.iter().map(ToString::to_string).collect(),
            not_before_unix: facts.not_before.as_secs(),
            not_after_unix: facts.not_after.as_secs(),
            issuer: facts.issuer.to_string(),
            key_type: facts.key_type,
            fingerprint_sha256: hex::encode(facts.fingerprint_sha256),
        }
    }
}

fn list_certificates(admin: &Admin) -> Result<Value, Refused> {
    with_sites(admin, |sites| {
        let list: Vec<_> =
            sites.certificates().iter().map(|(id, facts)| CertificateView::of(*id, facts)).collect();
        Ok(json!({ "certificates": list }))
    })
}

fn list_names(admin: &Admin) -> Result<Value, Refused> {
    with_sites(admin, |sites| {
        let certificates = sites.certificates();
        let names = certificates.iter().flat_map(|(_, facts)| facts.names.iter());
        let mut names: Vec<String> = names.map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        Ok(json!({ "names": names }))
    })
}

fn add_certificate(admin: &Admin, body: &[u8]) -> Result<Value, Refused> {
    let (chain, key) = parse(body)?;
    with_sites(admin, |sites| {
        let id = sites.add_certificate(chain, &key, clock::unix_time())?;
        Ok(changed(sites, id))
    })
}

fn replace_certificate(admin: &Admin, id: &str, body: &[u8]) -> Result<Value, Refused> {
    let id = lineage(id)?;
    let (chain, key) = parse(body)?;
    with_sites(admin, |sites| {
        sites.replace_certificate(id, chain, &key, clock::unix_time())?;
        Ok(changed(sites, id))
    })
}

fn remove_certificate(admin: &Admin, id: &str) -> Result<Value, Refused> {
    let id = lineage(id)?;
    with_sites(admin, |sites| {
        sites.remove_certificate(id, clock::unix_time())?;
        Ok(json!({ "removed": id.to_string(), "persists": false, "note": NOTE }))
    })
}

/// No change is written to a file.
const NOTE: &str = "in memory only: change the files too, or a restart undoes this";

fn changed(sites: &Sites, id: LineageId) -> Value {
    let view = sites.certificate(id).map(|facts| CertificateView::of(id, &facts));
    json!({ "certificate": view, "persists": false, "note": NOTE })
}

/// What a handshake for a name gets now.
fn explain_sni(admin: &Admin, query: Option<&str>) -> Result<Value, Refused> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let sni = pairs.into_iter().find(|(key, _)| key == "sni").map(|(_, value)| value.into_owned());
    let bad = |text: String| Refused { status: StatusCode::BAD_REQUEST, code: "BadName", text };
    let sni = sni.ok_or_else(|| bad("say which name: /debug/certs?sni=shop.example".to_owned()))?;
    let name = DomainName::parse(&sni).map_err(|error| bad(error.to_string()))?;
    Ok(explain::sni(&admin.edge.live, &name))
}

/// Forgets kept answers of a standalone edge. In a fleet the control plane tells all edges.
fn purge(admin: &Admin, body: &[u8]) -> Result<Value, Refused> {
    with_sites(admin, |sites| {
        let asked: PurgeRequest = strict::from_json(body).map_err(|error| Refused {
            status: StatusCode::BAD_REQUEST,
            code: "BadPurge",
            text: format!("{error}; send JSON such as {{\"hosts\": [\"shop.example\"]}}"),
        })?;
        let answers = admin.edge.cache.purge_of(sites.tenant(), asked, &admin.edge.live)?;
        Ok(json!({ "answers": answers }))
    })
}

/// The names of a standalone edge that were used most since it started. In a fleet the control plane sums them up.
fn busiest(admin: &Admin, query: Option<&str>) -> Result<Value, Refused> {
    with_sites(admin, |_| Ok(()))?;
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let order = pairs.into_iter().find(|(key, _)| key == "order").map(|(_, value)| value.into_owned());
    let by: fn(&Counts) -> u64 = match order.as_deref() {
        None | Some("requests") => |counts| counts.requests,
        Some("request_bytes") => |counts| counts.request_bytes,
        Some("response_bytes") => |counts| counts.response_bytes,
        Some("cached_bytes") => |counts| counts.cached_bytes,
        Some(other) => {
            let text =
                format!("{other:?} is no order; use requests, request_bytes, response_bytes or cached_bytes");
            return Err(Refused { status: StatusCode::BAD_REQUEST, code: "BadOrder", text });
        }
    };
    let mut used = admin.edge.live.used.look();
    used.sort_by(|(host, counts), (other, others)| {
        by(others).cmp(&by(counts)).then_with(|| host.name.cmp(&other.name))
    });
    used.truncate(limits::ADMIN_USAGE_ROWS_MAX);
    let row = |(host, counts): &(Arc<Host>, Counts)| {
        json!({
            "name": host.name.to_string(),
            "requests": counts.requests,
            "request_bytes": counts.request_bytes,
            "response_bytes": counts.response_bytes,
            "cached_bytes": counts.cached_bytes,
        })
    };
    Ok(json!({ "names": used.iter().map(row).collect::<Vec<_>>() }))
}

fn with_sites<T>(admin: &Admin, act: impl FnOnce(&mut Sites) -> Result<T, Refused>) -> Result<T, Refused> {
    match &mut *admin.source.borrow_mut() {
        Source::Standalone(sites) => act(sites),
        Source::Fleet(_) => Err(Refused {
            status: StatusCode::CONFLICT,
            code: "FleetMode",
            text: "this edge is part of a fleet: ask the control plane (`portico cert`, `portico usage`, `portico cache purge`)"
                .to_owned(),
        }),
    }
}

fn parse(
    body: &[u8],
) -> Result<(portico_cert_store::CertificateChain, portico_cert_store::PrivateKey), Refused> {
    standalone::parse_pair(body).map_err(|text| Refused {
        status: StatusCode::BAD_REQUEST,
        code: "BadCertificate",
        text: format!("{text}; send the chain and its key as one PEM text"),
    })
}

fn lineage(id: &str) -> Result<LineageId, Refused> {
    id.parse().map_err(|_| Refused {
        status: StatusCode::BAD_REQUEST,
        code: "BadId",
        text: format!("{id:?} is not a certificate id; GET /v1/certificates lists them"),
    })
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        let status = match fault.code {
            "UnknownCertificate" => StatusCode::NOT_FOUND,
            "StillReferenced" => StatusCode::CONFLICT,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self { status, code: fault.code, text: fault.text }
    }
}

impl From<ReopenError> for Refused {
    fn from(error: ReopenError) -> Self {
        let (status, code) = match error {
            ReopenError::Off => (StatusCode::CONFLICT, "NoAccessLog"),
            ReopenError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "NotReopened"),
            ReopenError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "WriterBusy"),
        };
        Self { status, code, text: error.to_string() }
    }
}

fn error_body(code: &str, text: &str) -> Value {
    json!({ "code": code, "detail": text })
}

fn respond(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut text = value.to_string();
    text.push('\n');
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
