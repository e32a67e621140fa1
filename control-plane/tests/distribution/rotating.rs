//! An origin authority is replaced, and the one before stays as long as an edge may show what it issued.

use portico_api::distribution::ResourceKind;
use serde_json::json;

use crate::edge::State;
use crate::plane::{Plane, until};

/// The one origin identity that an edge has, with its version.
fn identity(state: &State) -> Option<(String, u64)> {
    let kind = ResourceKind::OriginIdentity as u32;
    let found = state.resources.iter().find(|((of, _), _)| *of == kind);
    found.map(|((_, id), resource)| (id.clone(), resource.version))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_goes_when_no_edge_is_behind_its_successor() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (domain, _) = plane.domain(tenant, "a.example").await;
    plane.prove(domain).await;
    let (good, bad) = (plane.edge("default").await, plane.edge("default").await);
    let api = plane.api();
    let first = api.create_origin_authority(tenant).await.unwrap();
    let action =
        json!({ "type": "proxy", "origin": "https://origin.test", "tls": { "client_certificate": true } });
    let patch = json!({ "routes": [{ "path_prefix": "/", "action": action }] });
    let revision = api.domain("a.example").await.unwrap().revision;
    api.patch_domain(domain, &patch, Some(revision)).await.unwrap();
    for edge in [&good, &bad] {
        edge.wait("its identity", |state| identity(state).is_some()).await;
    }
    let (id, version) = bad.with(|state| identity(state)).unwrap();
    bad.with(|state| state.behaviour.nacks = [id.clone()].into());
    let early = api.switch_origin_authority(tenant).await.unwrap_err();
    assert_eq!(early.code(), Some("no_next_origin_authority"));
    let next = api.create_next_origin_authority(tenant).await.unwrap().next.unwrap();
    api.delete_next_origin_authority(tenant).await.unwrap();
    assert_eq!(api.origin_authority(tenant).await.unwrap().next, None, "taken back before the switch");
    let again = api.create_next_origin_authority(tenant).await.unwrap();
    assert_ne!(again.next.as_ref().unwrap().certificate_sha256, next.certificate_sha256);
    assert_eq!(good.with(|state| identity(state)), Some((id, version)), "nothing is issued by it yet");

    let switched = api.switch_origin_authority(tenant).await.unwrap();
    assert_eq!((Some(&switched.present), &switched.next), (again.next.as_ref(), &None));
    assert_ne!(switched.identities, again.identities);
    good.wait("the new one's", |state| identity(state).is_some_and(|(_, newer)| newer > version)).await;
    let behind = async || {
        let previous = api.origin_authority(tenant).await.unwrap().previous;
        previous.map(|previous| (previous.certificate == first.present, previous.edges_behind))
    };
    let refusing = Some((true, vec![bad.identity.edge]));
    until("only the edge that refuses it is behind", || async { behind().await == refusing }).await;
    let early = api.create_next_origin_authority(tenant).await.unwrap_err();
    assert_eq!(early.code(), Some("switch_under_way"));
    assert!(early.to_string().contains(&bad.identity.edge.to_string()), "{early}");
    api.delete_edge(bad.identity.edge).await.unwrap();
    until("nobody is behind", || async { behind().await.is_none() }).await;
    let events = api.events(0, Some(500)).await.unwrap().items;
    let told = events.iter().filter(|event| event.kind == "tenant.origin_authority_replaced").count();
    assert_eq!(told, 1);
    plane.shutdown().await;
}
