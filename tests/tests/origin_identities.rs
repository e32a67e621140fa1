//! Origins that let in nobody but the tenant's own edges: the authority is made by the control plane, each cell has a key of
//! its own, and an origin is never touched again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portico_api::v1::client::ClientError;
use portico_api::v1::{OriginAuthority, OriginIdentity, Sharing};
use portico_cert_store::{DomainId, TenantId};
use portico_tests::{CellPlan, Lab, LabOptions, ask, holds, wait_until};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio_rustls::TlsAcceptor;

const NAME: &str = "shut.test";
const DEADLINE: Duration = Duration::from_secs(60);

/// The leaves that an origin was shown, by those who were let in.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

/// An origin that closes each connection after its answer, so that each request is one handshake.
struct Origin {
    /// Its own certificate, which is its authority too.
    ca_pem: String,
    seen: Seen,
    /// Whom it lets in.
    acceptor: Arc<Mutex<TlsAcceptor>>,
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Origin {
    /// Lets in clients whom these authorities vouch for, and nobody else.
    async fn start(address: SocketAddr, trust_pem: &str) -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec!["in.test".to_owned()])?.self_signed(&key)?;
        let acceptor = Arc::new(Mutex::new(acceptor(trust_pem, &certificate, &key)?));
        let seen = Seen::default();
        let listener = tokio::net::TcpListener::bind(address).await?;
        tokio::spawn(accept(listener, Arc::clone(&acceptor), Arc::clone(&seen)));
        Ok(Self { ca_pem: certificate.pem(), seen, acceptor, certificate, key })
    }

    /// As after a reload of its configuration.
    fn trust(&self, trust_pem: &str) -> Result<()> {
        let acceptor = acceptor(trust_pem, &self.certificate, &self.key)?;
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }
}

fn acceptor(trust_pem: &str, certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> Result<TlsAcceptor> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(trust_pem.as_bytes()) {
        roots.add(authority?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let own_key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], own_key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: tokio::net::TcpListener, acceptor: Arc<Mutex<TlsAcceptor>>, all: Seen) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = Arc::clone(&all);
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let leaf = stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
            leaves_of(&seen).extend(leaf);
            let service = service_fn(async |_| {
                let answer = http::Response::builder().header("connection", "close");
                answer.body(Full::new(Bytes::from("let in")))
            });
            let serving = hyper::server::conn::http1::Builder::new();
            // How it ends is the edge's affair.
            let _ended = serving.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[tokio::test]
async fn each_cell_shows_a_key_of_its_own_below_one_authority() -> Result<()> {
    let lab = Lab::start(two_cells()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &["master", "shadow"]).await?;
    let origin = SocketAddr::new(lab.origin.ip(), 9001);
    let route = |ca: Option<&str>| {
        let tls = json!({ "server_name": "in.test", "ca_pem": ca, "client_certificate": true });
        let action = json!({ "type": "proxy", "origin": format!("https://{origin}"), "tls": tls });
        json!({ "routes": [{ "path_prefix": "/", "action": action }] })
    };

    // Without an authority the origin could trust nobody; what to do is said, and where it is wrong.
    let domain = lab.domain(&tenant, NAME).await?;
    let refused = lab.client.patch_domain(domain.id, &route(None), Some(domain.revision)).await;
    let Err(ClientError::Problem(problem)) = refused else { panic!("{refused:?}") };
    let error = &problem.errors[0];
    assert_eq!((problem.status, error.code.as_str()), (422, "no_origin_authority"));
    assert_eq!(error.pointer, "/routes/0/action/tls/client_certificate");
    assert!(error.message.contains("/origin-authority"), "{}", error.message);
    let missing = lab.client.origin_authority(tenant.id).await;
    assert!(matches!(&missing, Err(error) if error.code() == Some("no_origin_authority")), "{missing:?}");

    let authority = lab.client.create_origin_authority(tenant.id).await?;
    assert_eq!(lab.client.create_origin_authority(tenant.id).await?, authority, "made once");
    assert_eq!(authority.identities, []);
    let shut = Origin::start(origin, &authority.trust_pem()).await?;
    let (ca_pem, seen) = (&shut.ca_pem, Arc::clone(&shut.seen));
    lab.active(NAME).await?;
    let domain = lab.client.domain(NAME).await?;
    lab.client.patch_domain(domain.id, &route(Some(ca_pem)), Some(domain.revision)).await?;

    // Not one request is refused from the moment on that the route is there.
    for edge in &lab.edges {
        wait_until("the new route", DEADLINE, async || {
            let answer = ask(edge.https, NAME, "/", &lab.issuing_root).await.ok()?;
            assert_eq!(answer.status, 200);
            (answer.body == "let in").then_some(())
        })
        .await;
    }
    let leaves: Vec<Vec<u8>> = leaves_of(&seen).clone();
    let [master, .., shadow] = &leaves[..] else { panic!("{} leaves", leaves.len()) };
    assert_ne!(master, shadow);
    let shown = lab.client.origin_authority(tenant.id).await?;
    let cells: Vec<&str> = shown.identities.iter().map(|identity| identity.cell.as_str()).collect();
    assert_eq!(cells, ["master", "shadow"]);
    assert!(holds(&lab.edges[0].folder, master)?, "kept for a start without the control plane");
    assert!(!holds(&lab.edges[0].folder, shadow)? && !holds(&lab.edges[1].folder, master)?);

    // An edge that has lost its control plane still gets in, after its own restart too.
    restarted_alone(lab, seen).await
}

fn two_cells() -> LabOptions {
    let cells = vec![CellPlan { name: "master", edges: 1 }, CellPlan { name: "shadow", edges: 1 }];
    LabOptions { cells, ..LabOptions::default() }
}

/// Also of who panicked meanwhile.
fn leaves_of(seen: &Seen) -> MutexGuard<'_, Vec<Vec<u8>>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn restarted_alone(mut lab: Lab, seen: Seen) -> Result<()> {
    lab.control_plane.kill();
    lab.edges[0].process.kill();
    lab.restart_edge(0).await;
    let before = leaves_of(&seen).len();
    let answer = ask(lab.edges[0].https, NAME, "/", &lab.issuing_root).await?;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"let in"[..]));
    let leaves = leaves_of(&seen);
    assert_eq!(leaves.len(), before + 1);
    assert_eq!(leaves.last(), leaves.first(), "by the same certificate");
    Ok(())
}

#[tokio::test]
async fn what_is_no_longer_needed_is_taken_back_and_a_removed_edge_gets_nothing_new() -> Result<()> {
    let lab = Lab::start(two_cells()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &["master", "shadow"]).await?;
    lab.client.create_origin_authority(tenant.id).await?;
    let route = |cell: &str, shows: bool| {
        let tls = json!({ "client_certificate": shows });
        let action = json!({ "type": "proxy", "origin": format!("https://{}", lab.origin), "tls": tls });
        json!({ "cells": [cell], "routes": [{ "path_prefix": "/", "action": action }] })
    };
    // A name that nobody has proved is not served: its cell gets no key for it.
    let claimed = lab.client.create_domain(tenant.id, &lab.proxied("unproved.test")).await?;
    lab.client.patch_domain(claimed.id, &route("shadow", true), Some(claimed.revision)).await?;
    let domain = lab.domain(&tenant, NAME).await?;
    let domain = lab.client.patch_domain(domain.id, &route("master", true), Some(domain.revision)).await?;
    let shown = async || lab.client.origin_authority(tenant.id).await.map(|found| found.identities);
    let first = shown().await?;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].cell.as_str(), "master");
    // The edge could read the key of the cell: another is made.
    let edges = lab.client.edges().await?;
    let removed =
        edges.items.iter().find(|edge| edge.cell.as_str() == "master").expect("an edge of each cell");
    lab.client.delete_edge(removed.id).await?;
    wait_until("another certificate", DEADLINE, async || {
        let now = shown().await.ok()?;
        (now.len() == 1 && now[0].certificate_sha256 != first[0].certificate_sha256).then_some(())
    })
    .await;
    lab.client.patch_domain(domain.id, &route("master", false), Some(domain.revision)).await?;
    wait_until("none is needed", DEADLINE, async || shown().await.ok()?.is_empty().then_some(())).await;
    Ok(())
}

/// Asks two edges without a pause, until it is told to end; answers how often each was asked. No request may fail.
async fn ask_all_the_time(edges: Vec<SocketAddr>, root: PathBuf, end: Arc<AtomicBool>) -> Vec<usize> {
    let mut counts = vec![0; edges.len()];
    while !end.load(Ordering::Relaxed) {
        for (edge, count) in edges.iter().zip(&mut counts) {
            let answer = ask(*edge, NAME, "/", &root).await.expect("an answer of the edge");
            assert_eq!((answer.status, &answer.body[..]), (200, &b"let in"[..]), "after {count} requests");
            *count += 1;
        }
    }
    counts
}

/// Whether the newest leaf that the origin was shown is one of these.
fn newest_is_of(seen: &Seen, identities: &[OriginIdentity]) -> bool {
    let leaf = leaves_of(seen).last().cloned().unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    identities.iter().any(|identity| identity.certificate_sha256 == hex)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_replaced_without_a_failed_request() -> Result<()> {
    let lab = Lab::start(two_cells()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &["master", "shadow"]).await?;
    let address = SocketAddr::new(lab.origin.ip(), 9001);
    let early = lab.client.create_next_origin_authority(tenant.id).await;
    assert!(matches!(&early, Err(error) if error.code() == Some("no_origin_authority")), "{early:?}");
    let first = lab.client.create_origin_authority(tenant.id).await?;
    let origin = Origin::start(address, &first.trust_pem()).await?;
    let domain = lab.domain(&tenant, NAME).await?;
    lab.active(NAME).await?;
    route_to(&lab, domain.id, address, &origin).await?;
    let edges: Vec<SocketAddr> = lab.edges.iter().map(|edge| edge.https).collect();
    let (end, root) = (Arc::new(AtomicBool::new(false)), lab.issuing_root.clone());
    let asking = tokio::spawn(ask_all_the_time(edges, root, Arc::clone(&end)));

    let refused = lab.client.switch_origin_authority(tenant.id).await;
    assert!(
        matches!(&refused, Err(error) if error.code() == Some("no_next_origin_authority")),
        "{refused:?}"
    );
    let prepared = lab.client.create_next_origin_authority(tenant.id).await?;
    assert_eq!(lab.client.create_next_origin_authority(tenant.id).await?, prepared, "made once");
    let next = prepared.next.clone().expect("the next one");
    assert_eq!(prepared.present, first.present);
    wait_until("still the first one's", DEADLINE, async || {
        newest_is_of(&origin.seen, &prepared.identities).then_some(())
    })
    .await;
    origin.trust(&prepared.trust_pem())?;
    let switched = lab.client.switch_origin_authority(tenant.id).await?;
    assert_eq!((&switched.present, &switched.next), (&next, &None));
    assert_eq!(switched.trust_pem().matches("BEGIN CERTIFICATE").count(), 2, "both until all have switched");
    let done = replaced(&lab, tenant.id).await;
    assert_eq!((done.trust_pem(), &done.present), (next.certificate_pem.clone(), &next));
    // The old one is no longer let in, and nobody comes with it.
    origin.trust(&done.trust_pem())?;
    let before = leaves_of(&origin.seen).len();
    wait_until("requests under the new one alone", DEADLINE, async || {
        (leaves_of(&origin.seen).len() > before + 10).then_some(())
    })
    .await;
    assert!(
        newest_is_of(&origin.seen, &done.identities) && !newest_is_of(&origin.seen, &prepared.identities)
    );
    end.store(true, Ordering::Relaxed);
    let counts = asking.await?;
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    waits_for_an_edge_that_is_away(lab, tenant.id).await
}

/// Has the tenant's name lead to the origin, and waits until both edges know.
async fn route_to(lab: &Lab, domain: DomainId, address: SocketAddr, origin: &Origin) -> Result<()> {
    let tls = json!({ "server_name": "in.test", "ca_pem": origin.ca_pem, "client_certificate": true });
    let action = json!({ "type": "proxy", "origin": format!("https://{address}"), "tls": tls });
    let routes = json!({ "routes": [{ "path_prefix": "/", "action": action }] });
    let revision = lab.client.domain(NAME).await?.revision;
    lab.client.patch_domain(domain, &routes, Some(revision)).await?;
    for edge in &lab.edges {
        wait_until("the route", DEADLINE, async || {
            let answer = ask(edge.https, NAME, "/", &lab.issuing_root).await.ok()?;
            (answer.body == "let in").then_some(())
        })
        .await;
    }
    Ok(())
}

/// The authority, as soon as the one before it is gone.
async fn replaced(lab: &Lab, tenant: TenantId) -> OriginAuthority {
    wait_until("every edge shows the new one", DEADLINE, async || {
        let shown = lab.client.origin_authority(tenant).await.ok()?;
        shown.previous.is_none().then_some(shown)
    })
    .await
}

async fn waits_for_an_edge_that_is_away(mut lab: Lab, tenant: TenantId) -> Result<()> {
    lab.client.create_next_origin_authority(tenant).await?;
    lab.edges[1].process.kill();
    lab.client.switch_origin_authority(tenant).await?;
    let away = lab.client.edges().await?.items.into_iter().find(|edge| edge.cell.as_str() == "shadow");
    let away = away.expect("an edge of each cell").id;
    wait_until("the edge that is here", DEADLINE, async || {
        let previous = lab.client.origin_authority(tenant).await.ok()?.previous?;
        (previous.edges_behind == [away]).then_some(())
    })
    .await;
    let Err(early) = lab.client.create_next_origin_authority(tenant).await else { panic!("it is under way") };
    assert_eq!(early.code(), Some("switch_under_way"));
    assert!(early.to_string().contains(&away.to_string()), "{early}");
    lab.restart_edge(1).await;
    replaced(&lab, tenant).await;
    Ok(())
}
