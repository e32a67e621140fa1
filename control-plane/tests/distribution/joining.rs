//! Joining and renewing: who gets an identity, and for how long it counts.

use std::time::Duration;

use portico_cert_store::{EdgeId, Generation};
use rcgen::{CertificateParams, KeyPair};
use tonic::Code;

use crate::edge::{Identity, TestEdge, connect, connect_raw, shown_certificate};
use crate::plane::{Plane, cell_id, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gives_one_edge_one_identity_in_its_cell() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let token = plane.token("two").await;
    let identity = Identity::join(address, &token).await.unwrap();
    assert_eq!(identity.cell, cell_id("two"));
    assert_eq!(portico_control_plane::ca::edge_of_certificate(&identity.chain[0]), Some(identity.edge));

    let again = Identity::join(address, &token).await.err().unwrap();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert!(again.message().contains("was used at"), "{}", again.message());

    let edges = plane.distribution().edges().await.unwrap();
    assert_eq!(edges.len(), 1);
    assert_eq!((edges[0].id, edges[0].connected), (identity.edge, false));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_used_by_twenty_at_once_lets_one_in() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let token = plane.token("default").await;
    let joins = (0..20).map(|_| {
        let token = token.clone();
        tokio::spawn(async move { Identity::join(address, &token).await.is_ok() })
    });
    let mut joined = 0;
    for join in joins.collect::<Vec<_>>() {
        joined += usize::from(join.await.unwrap());
    }
    assert_eq!(joined, 1);
    assert_eq!(plane.distribution().edges().await.unwrap().len(), 1);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_says_why_and_is_not_spent() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let token = plane.token("default").await;
    let refused = async |token: String| Identity::join(address, &token).await.err().unwrap();

    let parts: Vec<_> = token.split('_').collect();
    let wrong = format!("pjt_{}_{}_{}", parts[1], "0".repeat(64), parts[3]);
    assert_eq!(refused(wrong).await.code(), Code::Unauthenticated);
    let unknown = format!("pjt_01ARZ3NDEKTSV4RRFFQ69G5FAV_{}_{}", parts[2], parts[3]);
    assert!(refused(unknown).await.message().contains("not known"));
    let cut = format!("pjt_{}_{}_{}", parts[1], &parts[2][1..], parts[3]);
    assert_eq!(refused(cut).await.code(), Code::InvalidArgument);

    // A request that is no request does not spend the token either.
    let key = KeyPair::generate().unwrap();
    let mut csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    *csr.last_mut().unwrap() ^= 1;
    let forged = Identity::join_with(address, &token, key, csr).await.err().unwrap();
    assert_eq!(forged.code(), Code::InvalidArgument);
    assert!(forged.message().contains("signature"), "{}", forged.message());
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let p384 = Identity::join_with(address, &token, key, csr).await.err().unwrap();
    assert!(p384.message().contains("P-256"), "{}", p384.message());
    Identity::join(address, &token).await.unwrap();

    let late = plane.token("default").await;
    plane.clock.advance(Duration::from_secs(601));
    let late = refused(late).await;
    assert_eq!(late.code(), Code::FailedPrecondition);
    assert!(late.message().contains("expired at"), "{}", late.message());
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_with_another_ca_gets_no_token() {
    let (plane, impostor) = (Plane::start().await, Plane::start().await);
    let token = plane.token("default").await;
    let refused = Identity::join(impostor.distribution().address, &token).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "the TLS handshake fails first: {refused:?}");
    Identity::join(plane.distribution().address, &token).await.unwrap();
    plane.shutdown().await;
    impostor.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_needs_a_certificate_of_a_known_edge() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let identity = plane.join("default").await;
    let mut bare = connect(address, identity.config(false)).await;
    let refused = bare.sync(tokio_stream::empty()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = bare.renew(portico_api::distribution::RenewRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);

    // Another fleet's edge does not get past TLS.
    let other = Plane::start().await;
    let mut stranger = other.join("default").await;
    stranger.ca = identity.ca.clone();
    let refused = stranger.client(address).await.sync(tokio_stream::empty()).await.err();
    assert!(refused.is_some());
    assert!(plane.distribution().fleet.live_edges(None).is_empty());
    plane.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_is_not_the_certificates_edge_is_refused() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let identity = std::sync::Arc::new(plane.join("default").await);
    let refused = async |change: &dyn Fn(&mut portico_api::distribution::Hello)| {
        let mut hello = identity.hello(Generation::default());
        change(&mut hello);
        let edge = TestEdge::resume_as(address, identity.clone(), Default::default(), hello).await;
        edge.wait_ended().await
    };
    let other = refused(&|hello| hello.edge_id = EdgeId::generate().to_string()).await;
    assert_eq!(other.code(), Code::PermissionDenied);
    let cell = refused(&|hello| hello.cell_id = "elsewhere".to_owned()).await;
    assert_eq!(cell.code(), Code::FailedPrecondition);
    assert!(cell.message().contains("joined cell default"), "{}", cell.message());
    for protocol in [0, 3, u32::MAX] {
        let skew = refused(&|hello| hello.protocol = protocol).await;
        assert_eq!(skew.code(), Code::FailedPrecondition, "protocol {protocol}");
    }
    let key = refused(&|hello| hello.hpke_public_key = vec![1; 31].into()).await;
    assert_eq!(key.code(), Code::InvalidArgument);
    // The neighbouring release's protocol is welcome.
    let mut hello = identity.hello(Generation::default());
    hello.protocol = 2;
    let next = TestEdge::resume_as(address, identity.clone(), Default::default(), hello).await;
    next.wait("a snapshot", |state| state.snapshots == 1).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listeners_certificate_is_replaced_before_it_ends() {
    let plane = Plane::start_with("identity_lifetime_seconds = 2").await;
    let address = plane.distribution().address;
    let token = plane.token("default").await;
    let fingerprint = token.rsplit('_').next().unwrap().to_owned();
    let first = shown_certificate(address, &fingerprint).await;
    until("another certificate", async || shown_certificate(address, &fingerprint).await != first).await;
    Identity::join(address, &token).await.unwrap();
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_renewed_and_an_expired_one_is_refused() {
    let plane = Plane::start_with("identity_lifetime_seconds = 600").await;
    let address = plane.distribution().address;
    let (mut kept, lapsed) = (plane.join("default").await, plane.join("default").await);
    let first = plane.distribution().edge(kept.edge).await.unwrap().unwrap().identity_not_after;
    lapsed.client(address).await.sync(tokio_stream::empty()).await.unwrap();
    plane.clock.advance(Duration::from_secs(500));
    kept.renew(address).await.unwrap();
    let second = plane.distribution().edge(kept.edge).await.unwrap().unwrap().identity_not_after;
    assert!(second > first, "{second} {first}");
    plane.clock.advance(Duration::from_secs(300));
    let refused = lapsed.client(address).await.sync(tokio_stream::empty()).await.err().unwrap();
    // TLS ends it, so no answer of the service comes; which face of a dead connection is seen first is a race.
    assert!(std::error::Error::source(&refused).is_some(), "an answer of the service: {refused:?}");
    let edge = TestEdge::connect(address, kept, Generation::default()).await;
    edge.wait("a snapshot", |state| state.snapshots == 1).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_edge_is_cut_off_and_what_it_could_read_is_named() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let tenant = plane.tenant(&["default"]).await;
    let (domain, _) = plane.domain(tenant, "a.example").await;
    let issued = plane.issue(tenant, domain, "a.example", "default").await;
    let (gone, stays) = (plane.edge("default").await, plane.edge("default").await);
    let removed = plane.distribution().remove_edge(gone.identity.edge).await.unwrap().unwrap();
    assert_eq!((removed.epoch, removed.rekey), (2, vec![issued.lineage]));
    gone.wait_ended().await;
    assert!(plane.renew_at(issued.credential).await <= plane.clock.now_ms(), "due for a new key");

    let (identity, state) = gone.disconnect().await;
    let refused = TestEdge::resume(address, identity.clone(), state).await.wait_ended().await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut client = identity.client(address).await;
    let refused = client.renew(portico_api::distribution::RenewRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(plane.distribution().remove_edge(identity.edge).await.unwrap(), None);

    // Those that stay get the new key before anything sealed under it.
    stays.wait("the key of epoch 2", |state| state.keys.contains_key(&2)).await;
    let next = plane.issue(tenant, domain, "a.example", "default").await;
    assert_eq!(next.epoch, 2);
    let id = next.lineage.to_string();
    stays
        .wait("the new credential", |state| {
            state.resource(portico_api::distribution::ResourceKind::Credential, &id).is_some()
        })
        .await;
    until("one edge left", async || plane.distribution().edges().await.unwrap().len() == 1).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_only_stands_there_is_ended() {
    use tokio::io::AsyncReadExt as _;
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let token = plane.token("default").await;
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut nobody = connect_raw(address, token.rsplit('_').next().unwrap()).await;
    let mut end = Vec::new();
    // Whether by an error or by an orderly end is the transport's affair.
    let ended = tokio::time::timeout(Duration::from_secs(60), nobody.read_to_end(&mut end)).await;
    assert!(ended.is_ok(), "a connection without identity stood for 20 s");
    let ended = tokio::time::timeout(Duration::from_secs(60), silent.read_to_end(&mut end)).await;
    assert!(ended.is_ok(), "a connection without TLS stood for 20 s");
    plane.shutdown().await;
}
