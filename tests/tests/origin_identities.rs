//! Origins that let in nobody but the tenant's own edges: the authority is made by the control plane, each cell has a key of
//! its own, and an origin is never touched again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portico_api::v1::client::ClientError;
use portico_api::v1::{OriginAuthority, Sharing};
use portico_tests::{CellPlan, Lab, LabOptions, ask, holds, wait_until};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

const NAME: &str = "shut.test";
const DEADLINE: Duration = Duration::from_secs(60);

/// The leaves that an origin was shown, by those who were let in.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

/// Trusts clients by this authority alone. Its own certificate is its authority too.
async fn start_origin(address: SocketAddr, authority: &OriginAuthority) -> Result<(String, Seen)> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["in.test".to_owned()])?.self_signed(&key)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let own_key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], own_key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind(address).await?;
    let seen = Seen::default();
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&all));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let leaf = stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
                leaves_of(&seen).extend(leaf);
                let service = service_fn(async |_| {
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from("let in"))))
                });
                let serving = hyper::server::conn::http1::Builder::new();
                // How it ends is the edge's affair.
                let _ended = serving.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok((certificate.pem(), seen))
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
    let (ca_pem, seen) = start_origin(origin, &authority).await?;
    lab.active(NAME).await?;
    let domain = lab.client.domain(NAME).await?;
    lab.client.patch_domain(domain.id, &route(Some(&ca_pem)), Some(domain.revision)).await?;

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
