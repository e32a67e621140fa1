//! Two control planes on one PostgreSQL, an edge on each: both edges are told the same, whoever says it.

use std::time::Duration;

use portico_api::distribution::urgent::Action;
use portico_api::distribution::{ResourceKind, Urgent};

use crate::edge::TestEdge;
use crate::plane::{Plane, cell_id, until};
use crate::postgres;

/// `None`, said in words, where PostgreSQL is not installed.
async fn pair() -> Option<(Plane, Plane)> {
    let database = format!("database = \"{}\"", postgres::new_database()?);
    let one = Plane::start_with(&database).await;
    let two = one.beside(&database).await;
    Some((one, two))
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_of_both_hear_what_either_says_and_are_waited_for() {
    let Some((one, two)) = pair().await else { return };
    let tenant = one.tenant(&[]).await;
    let (near, far) = (one.edge("default").await, two.edge("default").await);
    let (domain, sequence) = one.domain(tenant, "a.example").await;
    for edge in [&near, &far] {
        edge.wait("the domain", |state| state.resource(ResourceKind::Domain, domain).is_some()).await;
    }
    let both = {
        let mut both = [near.identity.edge, far.identity.edge];
        both.sort();
        both
    };
    for plane in [&one, &two] {
        let fleet = &plane.distribution().fleet;
        until("both edges to be live", async || fleet.live_edges(None) == both).await;
        let mut generation = plane.distribution().generation();
        generation.sequence = sequence;
        let applied = fleet.wait_applied(&[cell_id("default")], generation, Duration::from_secs(60)).await;
        assert_eq!((applied.applied.as_slice(), applied.behind.as_slice()), (both.as_slice(), [].as_slice()));
        let token = format!("token-of-{}-characters", plane.distribution().address.port());
        let expires = plane.clock.now_ms() + 60_000;
        let outcome = fleet.set_http01("a.example", &token, "answer", expires, None).await;
        assert_eq!(
            (outcome.acked.as_slice(), outcome.not_acked.as_slice()),
            (both.as_slice(), [].as_slice())
        );
        for edge in [&near, &far] {
            let heard = edge.with(|state| {
                let of_token = |message: &Urgent| matches!(&message.action, Some(Action::SetHttp01(set)) if set.token == token);
                state.urgents.iter().filter(|message| of_token(message)).count()
            });
            assert_eq!(heard, 1);
        }
    }
    // One that goes over to the other goes on where it was.
    let (identity, state) = far.disconnect().await;
    let moved = TestEdge::resume(one.distribution().address, identity, state).await;
    let (later, _) = two.domain(tenant, "b.example").await;
    moved.wait("what came after", |state| state.resource(ResourceKind::Domain, later).is_some()).await;
    assert_eq!(moved.with(|state| state.snapshots), 1, "no second snapshot");
    // What one takes out of the fleet hangs on the other no more.
    two.distribution().remove_edge(moved.identity.edge).await.unwrap().unwrap();
    moved.wait_ended().await;
    until("one edge to be left", async || one.distribution().fleet.edges().len() == 1).await;
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_removal_waits_at_both_and_goes_at_both_with_one_word() {
    let Some((one, two)) = pair().await else { return };
    let tenant = one.tenant(&[]).await;
    let names: Vec<_> = (0..200).map(|at| format!("n{at}.example")).collect();
    let ids = one.domains(tenant, &names).await;
    let edges = [one.edge("default").await, two.edge("default").await];
    for edge in &edges {
        edge.wait("all of them", |state| state.names() == 200).await;
    }
    for round in 0..4 {
        let deleted = &ids[round * 40..round * 40 + 40];
        let left = 200 - round * 40 + round;
        one.delete(deleted).await;
        let (other, _) = two.domain(tenant, &format!("other{round}.example")).await;
        for edge in &edges {
            edge.wait("another change", |state| state.resource(ResourceKind::Domain, other).is_some()).await;
            assert_eq!(edge.with(|state| state.names()), left + 1, "nothing went");
        }
        assert_eq!(one.events("removals.held").await.len(), round + 1, "told once");
        let plane = [&one, &two][round % 2];
        assert_eq!(plane.distribution().sign_off_removals("operator").await.unwrap(), 40);
        for edge in &edges {
            edge.wait("the removals", |state| state.names() == left + 1 - 40).await;
        }
    }
    one.shutdown().await;
    two.shutdown().await;
}
