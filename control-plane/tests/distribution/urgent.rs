//! Urgent messages: to all edges at once, acknowledged within a deadline, absent edges named.

use std::time::Duration;

use portico_api::distribution::urgent::Action;
use portico_api::distribution::{Hello, PurgeTarget, Urgent, purge_target};
use portico_api::v1::{PurgeDone, PurgeRequest, Suspension, SuspensionMode};
use portico_cert_store::Generation;
use portico_control_plane::clock::instant;

use crate::edge::{State, TestEdge};
use crate::plane::{Plane, cell_id, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_reaches_every_edge_and_a_stalled_one_is_named_at_the_deadline() {
    let plane = Plane::start().await;
    let (one, two, stalled) =
        (plane.edge("default").await, plane.edge("default").await, plane.edge("default").await);
    let fleet = &plane.distribution().fleet;
    let expires = plane.clock.now_ms() + 60_000;
    let started = instant();
    let outcome = fleet.set_http01("a.example", "token", "token.thumb", expires, None).await;
    assert_eq!((outcome.acked.len(), outcome.not_acked.len()), (3, 0));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    stalled.with(|state| state.behaviour.stalled = true);
    let started = instant();
    let outcome = fleet.set_tls_alpn01("a.example", [7; 32], expires, None).await;
    let mut acked = vec![one.identity.edge, two.identity.edge];
    acked.sort();
    assert_eq!((outcome.acked, outcome.not_acked), (acked, vec![stalled.identity.edge]));
    let took = started.elapsed();
    assert!((4..7).contains(&took.as_secs()), "{took:?}");
    one.with(|state| {
        assert!(state.urgents.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
        assert!(matches!(&state.urgents[0].action, Some(Action::SetHttp01(set)) if set.token == "token"));
        assert!(
            matches!(&state.urgents[1].action, Some(Action::SetTlsAlpn01(set)) if set.digest.len() == 32)
        );
    });
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_goes_to_the_named_cells_and_to_an_edge_that_connects_while_it_stands() {
    let plane = Plane::start().await;
    let (one, two) = (plane.edge("one").await, plane.edge("two").await);
    let fleet = &plane.distribution().fleet;
    let expires = plane.clock.now_ms() + 60_000;
    let outcome = fleet.set_http01("a.example", "t1", "t1.thumb", expires, Some(&[cell_id("one")])).await;
    assert_eq!((outcome.acked, outcome.not_acked), (vec![one.identity.edge], vec![]));
    assert!(two.with(|state| state.urgents.is_empty()));

    // An edge that is away for a moment is waited for, and told when it is back.
    let address = plane.distribution().address;
    let (identity, state) = one.disconnect().await;
    let edge = identity.edge;
    let pushed = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.set_http01("a.example", "t2", "t2.thumb", expires, Some(&[cell_id("one")])).await }
    });
    let back = TestEdge::resume(address, identity, state).await;
    back.wait("both challenges", |state| state.urgents.len() >= 3).await;
    assert_eq!(pushed.await.unwrap().acked, [edge]);

    // A cleared one is not told again.
    for token in ["t1", "t2"] {
        fleet.clear_challenge("a.example", Some(token), Some(&[cell_id("one")]), None).await;
    }
    let (identity, mut state) = back.disconnect().await;
    state.urgents.clear();
    let back = TestEdge::resume(address, identity, state).await;
    let outcome = fleet.set_http01("b.example", "t3", "t3.thumb", expires, Some(&[cell_id("one")])).await;
    assert_eq!(outcome.acked, [edge]);
    assert_eq!(back.with(|state| state.urgents.len()), 1);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_is_on_all_edges_within_a_second_and_names_those_it_is_not_on() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (one, gone) = (plane.edge("default").await, plane.edge("default").await);
    let suspension = Suspension { mode: SuspensionMode::Legal, reason: "order 7".to_owned(), until: None };
    let fleet = &plane.distribution().fleet;
    let started = instant();
    let outcome = fleet.suspend(tenant, None, Some(&suspension), 9).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(outcome.acked.len(), 2);
    let gone = gone.disconnect().await.0.edge;
    let started = instant();
    let outcome = fleet.suspend(tenant, None, None, 10).await;
    assert_eq!((outcome.acked, outcome.not_acked), (vec![one.identity.edge], vec![gone]));
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    one.with(|state| {
        let Some(Action::Suspend(suspend)) = &state.urgents[0].action else { panic!("not a suspension") };
        assert_eq!((suspend.tenant_id.as_str(), suspend.version), (tenant.to_string().as_str(), 9));
        assert!(
            matches!(&state.urgents[1].action, Some(Action::Suspend(resume)) if resume.suspension.is_none())
        );
    });
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_silent_for_ten_seconds_is_named_and_not_waited_for() {
    let plane = Plane::start().await;
    let (quiet, heard) = (plane.edge("default").await, plane.edge("default").await);
    quiet.with(|state| state.behaviour.stalled = true);
    let fleet = &plane.distribution().fleet;
    until("the quiet edge to count as gone", async || {
        heard.say_status(&[]).await;
        fleet.live_edges(None) == [heard.identity.edge]
    })
    .await;
    let started = instant();
    let expires = plane.clock.now_ms() + 60_000;
    let outcome = fleet.set_http01("a.example", "token", "token.thumb", expires, None).await;
    assert_eq!((outcome.acked, outcome.not_acked), (vec![heard.identity.edge], vec![quiet.identity.edge]));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    // The stream stands all the same: the message is told, and one word makes it live again.
    quiet.wait("the challenge", |state| state.urgents.len() == 1).await;
    quiet.say_status(&[]).await;
    until("it to be live again", async || fleet.live_edges(None).len() == 2).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_every_edge_and_one_that_was_away_when_it_is_back() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (one, gone) = (plane.edge("default").await, plane.edge("default").await);
    let api = plane.api();
    let of_tag = |tag: &str| PurgeRequest { tags: vec![tag.to_owned()], ..PurgeRequest::default() };
    let first = api.purge(tenant, &of_tag("first")).await.unwrap();
    assert_eq!((first.number, first.done.len(), first.pending.len()), (1, 2, 0));
    let (identity, mut state) = gone.disconnect().await;
    let second = api.purge(tenant, &PurgeRequest { soft: true, ..of_tag("second") }).await.unwrap();
    let done = PurgeDone { edge: one.identity.edge.to_string(), answers: 7 };
    assert_eq!((second.done, second.pending), (vec![done], vec![identity.edge.to_string()]));
    assert_eq!(tags(&one.with(|state| state.urgents.clone())), ["first", "second"]);

    // The control plane has been started again meanwhile: what it has acknowledged is not forgotten.
    state.urgents.clear();
    drop(one);
    let plane = plane.restart(|_| ()).await;
    let address = plane.distribution().address;
    let back = async |purged: u64, cache_since_unix_ms: u64| {
        let hello = Hello { purged, cache_since_unix_ms, ..identity.hello(Generation::default()) };
        let edge = TestEdge::resume_as(address, identity.clone(), State::default(), hello).await;
        // Told before anything else.
        edge.wait("a snapshot", |state| state.snapshots == 1).await;
        let urgents = edge.with(|state| state.urgents.clone());
        let _left = edge.disconnect().await;
        urgents
    };
    let now = plane.clock.now_ms().unsigned_abs();
    let missed = back(1, now).await;
    assert_eq!(tags(&missed), ["second"]);
    assert!(matches!(&missed[0].action, Some(Action::Purge(purge)) if purge.soft && purge.number == 2));
    assert_eq!(tags(&back(2, now).await), Vec::<String>::new());
    assert_eq!(tags(&back(0, now).await), ["first", "second"], "it may have kept something since");
    assert_eq!(back(0, now + 3_600_000).await, [], "it has begun after them");
    assert_eq!(back(0, 0).await, [], "it keeps nothing");
    // It knows more than this database does, which has been restored: nothing less than everything is enough.
    let [all] = &back(7, now).await[..] else { panic!("not one message") };
    let Some(Action::Purge(purge)) = &all.action else { panic!("not a purge") };
    assert_eq!((purge.tenant_id.as_str(), purge.targets.len()), ("", 1));
    plane.shutdown().await;
}

fn tags(urgents: &[Urgent]) -> Vec<String> {
    let targets = urgents.iter().flat_map(|urgent| match &urgent.action {
        Some(Action::Purge(purge)) => purge.targets.clone(),
        _ => Vec::new(),
    });
    let tag = |target: PurgeTarget| match target.kind {
        Some(purge_target::Kind::Tag(tag)) => tag,
        other => panic!("{other:?}"),
    };
    targets.map(tag).collect()
}
