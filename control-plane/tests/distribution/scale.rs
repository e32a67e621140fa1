//! Many edges at once, and how long a change takes.

use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_cert_store::Generation;
use portico_control_plane::clock::instant;

use crate::edge::TestEdge;
use crate::plane::Plane;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_edges_that_reconnect_at_once_are_current_within_a_minute_by_deltas() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let tenant = plane.tenant(&[]).await;
    let names: Vec<_> = (0..1_000).map(|at| format!("n{at}.example")).collect();
    let ids = plane.domains(tenant, &names).await;
    let mut left = Vec::new();
    for _ in 0..scaled("PORTICO_TEST_EDGES", 200) {
        left.push(plane.edge("default").await.disconnect().await);
    }
    // While they are away, the control plane restarts and a hundred domains change.
    let plane = plane.restart(|_| {}).await;
    for id in &ids[..100] {
        plane.touch(*id, 7).await;
    }
    let target = plane.distribution().publish_now().await.unwrap();
    let started = instant();
    let mut edges = Vec::new();
    for (identity, state) in left {
        edges.push(TestEdge::resume(address, identity, state).await);
    }
    for edge in &edges {
        edge.wait("the present generation", |state| state.applied >= target).await;
    }
    let took = started.elapsed();
    println!("{} edges reconnected at once and were current after {took:?}", edges.len());
    for edge in &edges {
        edge.with(|state| {
            assert_eq!(state.snapshots, 1, "only the first one, before");
            let changed = state.resource(ResourceKind::Domain, ids[0]).unwrap();
            assert!(changed.version > ids.len() as u64);
        });
    }
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_on_fifty_edges() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let names: Vec<_> = (0..1_000).map(|at| format!("n{at}.example")).collect();
    let ids = plane.domains(tenant, &names).await;
    let mut edges = Vec::new();
    for _ in 0..50 {
        edges.push(plane.edge("default").await);
    }
    let (mut delays, mut whole) = (Vec::new(), Vec::new());
    for round in 0..100_u32 {
        let begun = instant();
        let sequence = plane.touch(ids[round as usize], round + 1).await;
        let committed = instant();
        let generation = Generation { epoch: 1, sequence };
        for edge in &edges {
            edge.wait("the change", |state| state.applied >= generation).await;
            let at = edge.with(|state| {
                state.received.iter().filter(|(of, _)| **of >= sequence).map(|(_, at)| *at).min()
            });
            // An edge may have it before the writer's own thread runs again.
            delays.push(at.unwrap().saturating_duration_since(committed));
            whole.push(at.unwrap().duration_since(begun));
        }
    }
    report("change committed -> applied on 50 edges", &mut delays);
    report("change begun (write and disk included) -> applied on 50 edges", &mut whole);
    plane.shutdown().await;
}

/// A test's size; a variable of the environment makes it larger for a measurement.
pub(crate) fn scaled(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn report(what: &str, delays: &mut [Duration]) {
    delays.sort();
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!("{what}, {} samples: p50 {:?}, p99 {:?}, max {:?}", delays.len(), at(50), at(99), at(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_control_plane_loads_and_sends_its_whole_state_in_seconds() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let count = scaled("PORTICO_TEST_NAMES", 5_000);
    let names: Vec<_> = (0..count).map(|at| format!("n{at}.example")).collect();
    plane.domains(tenant, &names).await;
    let started = instant();
    let plane = plane.restart(|_| {}).await;
    let loaded = started.elapsed();
    let started = instant();
    let edge = plane.edge("default").await;
    println!(
        "{count} names: restarted and loaded in {loaded:?}, snapshot joined, sent and acked in {:?}",
        started.elapsed()
    );
    assert_eq!(edge.with(|state| state.names()), count);
    plane.shutdown().await;
}
