//! Fetching the proof file of a claim: from addresses none of which is ours, through the egress guard, without
//! following anything.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use portico_api::v1::ProofMethod;
use portico_prober::connect_guarded;
use portico_prober::egress::Grant;

use crate::app::App;
use crate::proof;
use crate::store::domain::DomainRow;

/// The whole fetch.
const DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The content with room for blanks; more is something else.
const BODY_BYTES_MAX: usize = 1024;
const ADDRESSES_MAX: usize = 4;

/// Whether an address is one of ours, by which nobody proves anything.
pub(super) fn is_own(app: &App, address: IpAddr) -> bool {
    app.is_ours(address) || is_own_listener(app, address)
}

/// Whether what a server gave for the file is what the claim's file holds.
pub(super) fn proves(row: &DomainRow, body: &[u8]) -> bool {
    body.trim_ascii() == proof::http_content(&row.labels.http_token, row.tenant_id, &row.name).as_bytes()
}

/// The proof, when the file is there. None of the addresses is ours.
pub(super) async fn http_proof(
    app: &App,
    row: &DomainRow,
    addresses: &[IpAddr],
) -> Option<(ProofMethod, String)> {
    let port = app.parts.config.fleet.http_port;
    let targets: Vec<SocketAddr> =
        addresses.iter().take(ADDRESSES_MAX).map(|&address| (address, port).into()).collect();
    let (host, token) = (row.name.base().as_str(), &row.labels.http_token);
    let path = proof::http_path(token);
    let fetched = tokio::time::timeout(DEADLINE, fetch(app, &targets, host, &path)).await;
    match fetched {
        Ok(Ok((from, body))) if proves(row, &body) => {
            Some((ProofMethod::Http, format!("http://{host}{path} from {from}")))
        }
        Ok(Ok(_)) => None,
        Ok(Err(error)) => {
            tracing::debug!(host, error = format!("{error:#}"), "no HTTP token");
            None
        }
        Err(_) => None,
    }
}

/// An edge's listener may have another address than the world sees; the egress guard knows those.
fn is_own_listener(app: &App, address: IpAddr) -> bool {
    let port = app.parts.config.fleet.http_port;
    let everything = Grant { net: any(address), ports: &[port] };
    matches!(
        app.egress.check(SocketAddr::from((address, port)), [everything]),
        Err(portico_prober::egress::EgressRefused::Own { .. })
    )
}

fn any(address: IpAddr) -> ipnet::IpNet {
    ipnet::IpNet::from(address.to_canonical())
}

async fn fetch(
    app: &App,
    targets: &[SocketAddr],
    host: &str,
    path: &str,
) -> anyhow::Result<(SocketAddr, Bytes)> {
    let allow = &app.parts.config.egress.allow;
    let grants: Vec<Grant<'_>> =
        allow.iter().map(|allow| Grant { net: allow.cidr, ports: &allow.ports }).collect();
    let stream = connect_guarded(targets, &app.egress, &grants, CONNECT_DEADLINE).await?;
    let from = stream.peer_addr()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "portico-control-plane")
        // RFC 8586: an edge of ours in the way knows by it whose request for this path it is, and refuses it.
        .header("cdn-loop", "portico")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status() == http::StatusCode::OK, "answered {}", response.status());
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| anyhow::anyhow!("read the body: {error}"))?.to_bytes())
    };
    tokio::pin!(connection, exchange);
    let body = tokio::select! {
        body = &mut exchange => body?,
        ended = &mut connection => {
            ended?;
            exchange.await?
        }
    };
    Ok((from, body))
}
