//! Snapshots, deltas, cells, refusals, epochs.

use portico_api::distribution::{Credential, Domain, Fleet, ResourceKind, Tenant};
use portico_api::v1::{Actor, ConditionKind, ConditionStatus, DomainStatus};
use portico_cert_store::{DomainId, Generation, SealContext, SealedKey, TenantId};
use portico_control_plane::store::{change, sql};
use prost::Message;
use std::time::Duration;

use crate::edge::TestEdge;
use crate::plane::{Plane, cell_id, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_gets_a_snapshot_then_each_change_as_a_delta() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (first, _) = plane.domain(tenant, "a.example").await;
    let edge = plane.edge("default").await;
    edge.wait("the domain", |state| state.resource(ResourceKind::Domain, first).is_some()).await;
    edge.with(|state| {
        assert!(state.resource(ResourceKind::Tenant, tenant).is_some());
        assert!(state.resource(ResourceKind::Fleet, "fleet").is_some());
        let domain = state.resource(ResourceKind::Domain, first).unwrap();
        let body = Domain::decode(domain.body.clone()).unwrap();
        assert_eq!((body.name.as_str(), body.served), ("a.example", true));
    });
    let (second, sequence) = plane.domain(tenant, "b.example").await;
    edge.wait("the second domain", |state| state.resource(ResourceKind::Domain, second).is_some()).await;
    assert_eq!(edge.with(|state| state.applied), Generation { epoch: 1, sequence });
    let issued = plane.issue(tenant, second, "b.example", "default").await;
    edge.wait("its credential", |state| state.resource(ResourceKind::Credential, issued.lineage).is_some())
        .await;
    edge.with(|state| {
        let domain =
            Domain::decode(state.resource(ResourceKind::Domain, second).unwrap().body.clone()).unwrap();
        assert_eq!(domain.lineages[0].lineage_id, issued.lineage.to_string());
    });
    let sequence = plane.delete(&[second]).await;
    edge.wait("its removal", |state| state.resource(ResourceKind::Domain, second).is_none()).await;
    edge.with(|state| {
        assert_eq!((state.snapshots, state.applied.sequence), (1, sequence));
        assert_eq!(state.tombstones, [second.to_string()]);
    });
    let applied = plane.distribution().fleet.applied(edge.identity.edge);
    assert!(applied.sequence >= sequence - 1);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_opens_its_cells_keys_and_sees_nothing_of_another_cells() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&["one", "two"]).await;
    let (domain, _) = plane.domain(tenant, "a.example").await;
    let issued = [
        plane.issue(tenant, domain, "a.example", "one").await,
        plane.issue(tenant, domain, "a.example", "two").await,
    ];
    let mut edges = Vec::new();
    for cell in ["one", "two"] {
        let identity = plane.join(cell).await;
        let edge = TestEdge::connect(plane.distribution().address, identity, Generation::default()).await;
        edge.with(|state| state.keep_bytes = true);
        edge.wait("a snapshot", |state| state.snapshots == 1).await;
        edges.push(edge);
    }
    // A renewal of each comes as a delta.
    let renewed = [
        plane.issue(tenant, domain, "a.example", "one").await,
        plane.issue(tenant, domain, "a.example", "two").await,
    ];
    for (at, edge) in edges.iter().enumerate() {
        let own = &renewed[at];
        edge.wait("own credential", |state| state.resource(ResourceKind::Credential, own.lineage).is_some())
            .await;
        edge.with(|state| {
            let other = 1 - at;
            for foreign in [&issued[other], &renewed[other]] {
                assert!(state.resource(ResourceKind::Credential, foreign.lineage).is_none());
                assert!(!contains(&state.bytes, &foreign.sealed), "sealed bytes of the other cell");
                assert_absent(&state.bytes, foreign.key.secret_der());
            }
            let body = state.resource(ResourceKind::Credential, own.lineage).unwrap().body.clone();
            let body = Credential::decode(body).unwrap();
            assert!(contains(&state.bytes, &own.sealed), "the scan would find what is there");
            let cell = cell_id(["one", "two"][at]);
            let context = SealContext {
                cell: &cell,
                epoch: body.cell_key_epoch,
                key_tenant: &body.key_tenant,
                credential: own.credential,
                spki_sha256: own.key.spki_sha256(),
            };
            let key = &state.keys[&body.cell_key_epoch];
            let opened = key.open(&SealedKey::from_bytes(body.sealed_key.to_vec()), &context).unwrap();
            assert_eq!(opened.spki_sha256(), own.key.spki_sha256());
            assert_absent(&state.bytes, own.key.secret_der());
        });
    }
    let secrets: Vec<_> =
        edges.iter().map(|edge| edge.with(|state| *state.keys[&1].secret_bytes())).collect();
    assert_ne!(secrets[0], secrets[1]);
    for edge in &edges {
        edge.with(|state| secrets.iter().for_each(|secret| assert_absent(&state.bytes, secret)));
    }
    plane.shutdown().await;
}

/// Neither raw nor in hex nor in base64, from any 24 bytes of it on.
fn assert_absent(bytes: &[u8], secret: &[u8]) {
    use base64::Engine as _;
    for window in secret.windows(24) {
        let hex: String = window.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(window);
        // The other parts of a PKCS#8 document are the same in every key of its type, or its public key.
        if secret.len() > 32 && !is_scalar_part(secret, window) {
            continue;
        }
        assert!(!contains(bytes, window), "a secret is on the wire");
        assert!(!contains(bytes, hex.as_bytes()), "a secret is on the wire in hex");
        assert!(!contains(bytes, base64.as_bytes()), "a secret is on the wire in base64");
    }
}

/// The private scalar of a P-256 key in PKCS#8 is the OCTET STRING (04 20) of its ECPrivateKey.
fn is_scalar_part(pkcs8: &[u8], window: &[u8]) -> bool {
    let start = pkcs8.windows(2).position(|pair| pair == [0x04, 0x20]).unwrap() + 2;
    pkcs8[start..start + 32].windows(window.len()).any(|part| part == window)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_goes_to_its_cells_only_and_leaves_a_cell_as_a_tombstone() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&["one", "two"]).await;
    let (domain, _) = plane.domain(tenant, "a.example").await;
    let (one, two, three) = (plane.edge("one").await, plane.edge("two").await, plane.edge("three").await);
    let has = |edge: &TestEdge| edge.with(|state| state.resource(ResourceKind::Domain, domain).is_some());
    for edge in [&one, &two] {
        edge.wait("the domain", |state| state.resource(ResourceKind::Domain, domain).is_some()).await;
    }
    assert!(!has(&three));
    let mut tx = plane.begin().await;
    sql::query(
        "UPDATE domains SET spec = json_set(spec, '$.cells', json('[\"two\", \"three\"]')) WHERE id = ?",
    )
    .bind(domain.to_string())
    .execute(&mut tx)
    .await
    .unwrap();
    let id = domain.to_string();
    change::record(&mut tx, ResourceKind::Domain, &id, None).await.unwrap();
    tx.commit().await.unwrap();
    three.wait("the domain", |state| state.resource(ResourceKind::Domain, domain).is_some()).await;
    one.wait("its tombstone", |state| state.tombstones == [id.clone()]).await;
    assert!(has(&two));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_resumes_from_its_generation_and_gets_a_snapshot_only_when_its_base_is_unknown() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let tenant = plane.tenant(&[]).await;
    let (first, _) = plane.domain(tenant, "a.example").await;
    let (identity, state) = plane.edge("default").await.disconnect().await;
    let (second, _) = plane.domain(tenant, "b.example").await;
    plane.delete(&[first]).await;
    let edge = TestEdge::resume(address, identity, state).await;
    edge.wait("what it missed", |state| {
        state.resource(ResourceKind::Domain, second).is_some()
            && state.resource(ResourceKind::Domain, first).is_none()
    })
    .await;
    assert_eq!(edge.with(|state| (state.snapshots, state.deltas)), (1, 1));

    // The same over a restart of the control plane: what it knows is in the database.
    let (identity, state) = edge.disconnect().await;
    let plane = plane.restart(|_| {}).await;
    let (third, _) = plane.domain(tenant, "c.example").await;
    plane.delete(&[second]).await;
    let edge = TestEdge::resume(address, identity, state).await;
    edge.wait("what it missed", |state| {
        state.resource(ResourceKind::Domain, third).is_some()
            && state.resource(ResourceKind::Domain, second).is_none()
    })
    .await;
    assert_eq!(edge.with(|state| state.snapshots), 1);

    // An older epoch is another history.
    let (identity, mut state) = edge.disconnect().await;
    let mut tx = plane.begin().await;
    portico_control_plane::store::meta::raise_epoch(&mut tx, 4).await.unwrap();
    tx.commit().await.unwrap();
    state.snapshots = 0;
    let edge = TestEdge::resume(address, identity, state).await;
    edge.wait("a snapshot of the new epoch", |state| state.snapshots == 1 && state.applied.epoch == 4).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_raises_the_epoch_and_every_edge_follows_it() {
    let plane = Plane::start().await;
    let address = plane.distribution().address;
    let tenant = plane.tenant(&[]).await;
    let (kept, _) = plane.domain(tenant, "kept.example").await;
    let (one, two) = (plane.edge("default").await, plane.edge("default").await);
    let backup = plane.folder.path().join("backup.db");
    plane.store().copy_to(&backup).await.unwrap();
    let (lost, sequence) = plane.domain(tenant, "lost.example").await;
    for edge in [&one, &two] {
        edge.wait("the newer domain", |state| state.resource(ResourceKind::Domain, lost).is_some()).await;
    }
    let ((identity_one, one), (identity_two, two)) = (one.disconnect().await, two.disconnect().await);
    let plane = plane
        .restart(|folder| {
            let data = folder.path().join("data");
            for rest in ["portico.db-wal", "portico.db-shm"] {
                drop(std::fs::remove_file(data.join(rest)));
            }
            std::fs::copy(folder.path().join("backup.db"), data.join("portico.db")).unwrap();
        })
        .await;
    assert!(plane.distribution().generation() < Generation { epoch: 1, sequence });
    let one = TestEdge::resume(address, identity_one, one).await;
    one.wait("the restored state", |state| state.applied.epoch == 2).await;
    let two = TestEdge::resume(address, identity_two, two).await;
    two.wait("the restored state", |state| state.applied.epoch == 2).await;
    for edge in [&one, &two] {
        edge.with(|state| {
            assert!(state.resource(ResourceKind::Domain, kept).is_some());
            assert!(state.resource(ResourceKind::Domain, lost).is_none());
            assert!(!state.signed_off, "an edge decides by itself whether it may lose so much");
        });
    }
    assert_eq!(
        plane.events("fleet.epoch_raised").await.len(),
        1,
        "the second edge is behind the raised epoch"
    );
    // Life goes on in the new epoch, by deltas.
    let (next, _) = plane.domain(tenant, "next.example").await;
    two.wait("a delta", |state| state.resource(ResourceKind::Domain, next).is_some()).await;
    assert_eq!(two.with(|state| state.snapshots), 2);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_generation_is_refused_and_moves_no_epoch() {
    let plane = Plane::start().await;
    let before = plane.distribution().generation();
    let applied = Generation { epoch: u64::MAX, sequence: 1 };
    let identity = plane.join("default").await;
    let edge = TestEdge::connect(plane.distribution().address, identity, applied).await;
    assert!(edge.wait_ended().await.message().contains("absurdly"));
    assert_eq!(plane.distribution().generation().epoch, before.epoch);
    plane.shutdown().await;
}

/// A domain whose newest version the only edge refuses.
struct Refused {
    plane: Plane,
    tenant: TenantId,
    domain: DomainId,
    version: u64,
    edge: TestEdge,
}

async fn refused() -> Refused {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (domain, _) = plane.domain(tenant, "bad.example").await;
    let edge = plane.edge("default").await;
    edge.with(|state| state.behaviour.nacks = [domain.to_string()].into());
    let version = plane.touch(domain, 1).await;
    Refused { plane, tenant, domain, version, edge }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nacked_resource_is_named_with_its_reason_until_a_newer_one_is_taken() {
    let Refused { plane, tenant, domain: bad, version, edge } = refused().await;
    let (good, _) = plane.domain(tenant, "good.example").await;
    edge.wait("the rest", |state| state.resource(ResourceKind::Domain, good).is_some()).await;
    let nacks = async || plane.distribution().edge(edge.identity.edge).await.unwrap().unwrap().nacks;
    until("the nack", async || !nacks().await.is_empty()).await;
    let seen = nacks().await;
    assert_eq!((seen[0].id.as_str(), seen[0].kind.as_str()), (bad.to_string().as_str(), "domain"));
    assert_eq!((seen[0].version, seen[0].code.as_str()), (version, "TestNack"));
    assert!(plane.events("edge.resource_refused").await[0].contains("as told"));
    edge.with(|state| state.behaviour.nacks.clear());
    plane.touch(bad, 2).await;
    until("the nack to go", async || nacks().await.is_empty()).await;
    plane.shutdown().await;
}

/// The reason of a refusal may have lain in something else, such as a domain that was held and then let go.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_resource_goes_along_with_the_next_change_and_is_told_once() {
    let Refused { plane, tenant, domain: bad, version, edge } = refused().await;
    let nacks = async || plane.distribution().edge(edge.identity.edge).await.unwrap().unwrap().nacks;
    until("the nack", async || !nacks().await.is_empty()).await;
    for name in ["one.example", "two.example"] {
        let (other, _) = plane.domain(tenant, name).await;
        edge.wait("another change", |state| state.resource(ResourceKind::Domain, other).is_some()).await;
    }
    assert_eq!(plane.events("edge.resource_refused").await.len(), 1, "refused again, and told once");
    edge.with(|state| state.behaviour.nacks.clear());
    plane.domain(tenant, "three.example").await;
    until("the nack to go", async || nacks().await.is_empty()).await;
    let held = edge.with(|state| state.resource(ResourceKind::Domain, bad).map(|held| held.version));
    assert_eq!(held, Some(version), "taken as it was");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_an_edge_refuses_is_degraded_alone_until_a_later_version_is_taken() {
    let plane = Plane::start().await;
    let tenants = [plane.tenant(&[]).await, plane.tenant(&[]).await];
    let (bad, _) = plane.domain(tenants[0], "bad.example").await;
    let (good, _) = plane.domain(tenants[1], "good.example").await;
    for domain in [bad, good] {
        plane.prove(domain).await;
    }
    let issued = plane.issue(tenants[0], bad, "bad.example", "default").await;
    plane.issue(tenants[1], good, "good.example", "default").await;
    let edge = plane.edge("default").await;
    let api = plane.api();
    let show = async |domain: DomainId| api.domain(&domain.to_string()).await.unwrap();
    let stands = async |domain, status| show(domain).await.status == status;
    until("both to be active", async || {
        stands(bad, DomainStatus::Active).await && stands(good, DomainStatus::Active).await
    })
    .await;

    let who = edge.identity.edge.to_string();
    for (refused, actor) in [(bad.to_string(), Actor::Tenant), (issued.lineage.to_string(), Actor::Operator)]
    {
        let kind = if actor == Actor::Tenant { ResourceKind::Domain } else { ResourceKind::Credential };
        let change = async || {
            let mut tx = plane.begin().await;
            let tenant = tenants[0].to_string();
            let version = change::record(&mut tx, kind, &refused, Some(&tenant)).await.unwrap();
            tx.commit().await.unwrap();
            version
        };
        edge.with(|state| state.behaviour.nacks = [refused.clone()].into());
        let version = change().await;
        until("the refusal to show", async || stands(bad, DomainStatus::Degraded).await).await;
        let shown = show(bad).await;
        let next = shown.next_action.unwrap();
        let deployed = shown.conditions.iter().find(|found| found.kind == ConditionKind::Deployed).unwrap();
        assert_eq!((deployed.status, deployed.reason.as_str()), (ConditionStatus::False, "Refused"));
        assert_eq!(next.actor, actor);
        for part in [who.as_str(), "TestNack", "as told", &format!("version {version}")] {
            assert!(
                deployed.message.contains(part) && next.text.contains(part),
                "{part}: {deployed:?} {next:?}"
            );
        }
        assert!(stands(good, DomainStatus::Active).await, "the other tenant is not touched");
        edge.with(|state| state.behaviour.nacks.clear());
        change().await;
        until("it to be active again", async || stands(bad, DomainStatus::Active).await).await;
    }
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_is_shown_and_followed_by_a_snapshot_while_others_go_on() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (good, bad) = (plane.edge("default").await, plane.edge("default").await);
    bad.with(|state| state.behaviour.rejects = true);
    let (domain, _) = plane.domain(tenant, "a.example").await;
    good.wait("the domain", |state| state.resource(ResourceKind::Domain, domain).is_some()).await;
    let nacks = async || plane.distribution().edge(bad.identity.edge).await.unwrap().unwrap().nacks;
    until("the refusal", async || nacks().await.iter().any(|nack| nack.kind == "batch")).await;
    bad.wait("a snapshot in its place", |state| state.snapshots == 2).await;
    assert!(bad.with(|state| state.resource(ResourceKind::Domain, domain).is_none()));
    bad.with(|state| state.behaviour.rejects = false);
    plane.distribution().sign_off_removals("test").await.unwrap();
    bad.wait("the domain", |state| state.resource(ResourceKind::Domain, domain).is_some()).await;
    until("the refusal to go", async || nacks().await.is_empty()).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_removal_waits_for_an_operators_word_and_nothing_else_does() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let names: Vec<_> = (0..200).map(|at| format!("n{at}.example")).collect();
    let ids = plane.domains(tenant, &names).await;
    let edge = plane.edge("default").await;
    edge.wait("all of them", |state| state.names() == 200).await;
    plane.delete(&ids[..40]).await;
    let (other, _) = plane.domain(tenant, "other.example").await;
    edge.wait("another change", |state| state.resource(ResourceKind::Domain, other).is_some()).await;
    assert_eq!(edge.with(|state| state.names()), 201, "nothing went");
    assert_eq!(plane.distribution().held_removals().await.unwrap().len(), 40);
    assert_eq!(plane.events("removals.held").await.len(), 1);
    // Held ones stay held over a restart.
    let (identity, state) = edge.disconnect().await;
    let address = plane.distribution().address;
    let plane = plane.restart(|_| {}).await;
    let edge = TestEdge::resume(address, identity, state).await;
    let (more, _) = plane.domain(tenant, "more.example").await;
    edge.wait("another change", |state| state.resource(ResourceKind::Domain, more).is_some()).await;
    assert_eq!(edge.with(|state| state.names()), 202);

    assert_eq!(plane.distribution().sign_off_removals("operator").await.unwrap(), 40);
    edge.wait("the removals", |state| state.names() == 162).await;
    assert!(edge.with(|state| state.signed_off));
    until("nothing held", async || plane.distribution().held_removals().await.unwrap().is_empty()).await;
    // Few may always go.
    plane.delete(&ids[40..45]).await;
    edge.wait("a few removals", |state| state.names() == 157).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_state_comes_in_chunks_and_a_large_change_in_parts() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let edge = plane.edge("default").await;
    let names: Vec<_> = (0..5_000).map(|at| format!("n{at}.example")).collect();
    plane.domains(tenant, &names).await;
    edge.wait("all of it", |state| state.names() == 5_000).await;
    edge.with(|state| assert!(state.deltas >= 3 && state.snapshots == 1, "{} deltas", state.deltas));
    let late = plane.edge("default").await;
    late.wait("all of it", |state| state.names() == 5_000).await;
    late.with(|state| {
        assert!(state.largest_chunk <= portico_api::distribution::SNAPSHOT_CHUNK_BYTES_MAX);
    });
    let resources = |edge: &TestEdge| {
        edge.with(|state| {
            let mut all: Vec<_> = state.resources.values().map(Message::encode_to_vec).collect();
            all.sort();
            all
        })
    };
    assert_eq!(resources(&edge), resources(&late), "both ways lead to the same state, byte for byte");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_limits_and_those_of_the_fleet_are_on_every_edge() {
    let plane = Plane::start_with("[fleet]\ntenant_limits = { exchanges = 1000 }").await;
    let edge = plane.edge("default").await;
    let fleet = edge.with(|state| {
        let fleet = state.resource(ResourceKind::Fleet, "fleet").unwrap();
        Fleet::decode(fleet.body.clone()).unwrap().tenant_limits
    });
    assert_eq!(fleet.map(|limits| limits.exchanges), Some(1000));
    let tenant = plane.tenant(&[]).await;
    let patch = serde_json::json!({ "name": "limited", "limits": { "requests_per_second": 100 } });
    plane.api().patch_tenant(tenant, &patch, Some(1)).await.unwrap();
    edge.wait("the limit", |state| {
        let Some(resource) = state.resource(ResourceKind::Tenant, tenant) else { return false };
        let limits = Tenant::decode(resource.body.clone()).unwrap().limits;
        limits.is_some_and(|limits| limits.requests_per_second == 100 && limits.exchanges == 0)
    })
    .await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_generation_ends_when_every_live_edge_of_the_cells_has_it() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&["one"]).await;
    let (one, slow, _elsewhere) = (plane.edge("one").await, plane.edge("one").await, plane.edge("two").await);
    let (_, sequence) = plane.domain(tenant, "a.example").await;
    let generation = Generation { epoch: 1, sequence };
    let fleet = &plane.distribution().fleet;
    let waited = fleet.wait_applied(&[cell_id("one")], generation, Duration::from_secs(10)).await;
    let mut both = vec![one.identity.edge, slow.identity.edge];
    both.sort();
    assert_eq!((waited.applied, waited.behind), (both, vec![]));
    // One that takes nothing is named at the deadline.
    slow.with(|state| state.behaviour.rejects = true);
    let (_, sequence) = plane.domain(tenant, "b.example").await;
    let generation = Generation { epoch: 1, sequence };
    let waited = fleet.wait_applied(&[cell_id("one")], generation, Duration::from_secs(1)).await;
    assert_eq!((waited.applied, waited.behind), (vec![one.identity.edge], vec![slow.identity.edge]));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_removal_goes_when_another_domain_has_taken_the_name_over() {
    let plane = Plane::start().await;
    let (old, new) = (plane.tenant(&[]).await, plane.tenant(&[]).await);
    let names: Vec<_> = (0..100).map(|at| format!("n{at}.example")).collect();
    let ids = plane.domains(old, &names).await;
    let edge = plane.edge("default").await;
    plane.delete(&ids[..50]).await;
    until("held", async || plane.distribution().held_removals().await.unwrap().len() == 50).await;
    let (taken, _) = plane.domain(new, "n7.example").await;
    edge.wait("the new owner alone", |state| {
        state.resource(ResourceKind::Domain, taken).is_some()
            && state.resource(ResourceKind::Domain, ids[7]).is_none()
    })
    .await;
    assert_eq!(edge.with(|state| state.names()), 100, "the other 49 are still held");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_applies_nothing_delays_no_other_and_queues_nothing() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let (domain, _) = plane.domain(tenant, "a.example").await;
    let (stuck, quick) = (plane.edge("default").await, plane.edge("default").await);
    stuck.with(|state| state.behaviour.silent = true);
    let mut last = 0;
    for round in 1..=50 {
        last = plane.touch(domain, round).await;
        quick.wait("each change", |state| state.applied.sequence >= last).await;
    }
    assert_eq!(stuck.with(|state| state.deltas), 1, "one in flight, unanswered");
    // What was missed meanwhile comes as one delta.
    let (identity, mut state) = stuck.disconnect().await;
    state.behaviour.silent = false;
    (state.deltas, state.applied) = (0, Generation { epoch: 1, sequence: state.applied.sequence });
    let back = TestEdge::resume(plane.distribution().address, identity, state).await;
    back.wait("the last change", |state| state.applied.sequence >= last).await;
    assert_eq!(back.with(|state| state.deltas), 1);
    plane.shutdown().await;
}
