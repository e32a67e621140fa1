use portico_api::v1::DnsRecord;
use portico_cert_store::DomainId;

use super::*;
use crate::store::condition::Observation;

pub(super) const NOW: i64 = 1_800_000_000_000;
pub(super) const HOUR: i64 = 3_600_000;

pub(super) fn dns() -> DnsInstructions {
    let record = |name: &str, kind: &str, value: &str, purpose| DnsRecord {
        name: name.into(),
        kind: kind.into(),
        value: value.into(),
        purpose,
    };
    DnsInstructions {
        records: vec![
            record("www.shop.example", "CNAME", "abc.edge.test", RecordPurpose::ProofAndTraffic),
            record("_portico.www.shop.example", "TXT", "portico-123", RecordPurpose::Proof),
            record("www.shop.example", "A", "192.0.2.1", RecordPurpose::Traffic),
        ],
        proof_file: None,
    }
}

fn row(kind: ConditionKind, status: ConditionStatus, reason: &str) -> ConditionRow {
    ConditionRow {
        domain_id: DomainId::generate(),
        observed: Observation {
            kind,
            status,
            reason: reason.into(),
            message: format!("{reason}."),
            next_check_at: None,
        },
        since: NOW - HOUR,
    }
}

fn cell(certificate: Option<CertificateFacts>, live_edges: usize, current_edges: usize) -> CellFacts {
    CellFacts { cell: "default".parse().unwrap(), certificate, live_edges, current_edges }
}

pub(super) fn good() -> CertificateFacts {
    CertificateFacts { created_at: NOW - HOUR, renew_at: NOW + 100 * HOUR, not_after: NOW + 300 * HOUR }
}

/// A domain that is proved, certified and on its two edges.
pub(super) fn active(dns: &DnsInstructions) -> Facts<'_> {
    Facts {
        name: "www.shop.example",
        suspended: false,
        proved_at: Some(NOW - HOUR),
        owned_by_another: false,
        created_at: NOW - 2 * HOUR,
        next_check_at: Some(NOW + HOUR),
        conditions: &[],
        dns,
        cells: vec![cell(Some(good()), 2, 2)],
        order: None,
        trouble: None,
        refusals: vec![],
        budget_until: None,
        issues: true,
        uploaded: vec![],
    }
}

fn order(step: OrderStep, error: Option<&str>) -> Option<OrderFacts> {
    Some(OrderFacts { step, carries: true, error: error.map(str::to_owned), next_at: NOW + HOUR })
}

/// An order of the group from before the name came to it.
fn others(step: OrderStep, next_at: i64) -> Option<OrderFacts> {
    Some(OrderFacts { step, carries: false, error: Some("HTTP 503".to_owned()), next_at })
}

#[test]
fn a_name_that_came_later_is_not_blamed_for_the_order_of_its_group() {
    let dns = dns();
    let reason = |order| {
        let facts = Facts { cells: vec![cell(None, 2, 0)], order, ..active(&dns) };
        let found = assess(&facts, NOW);
        let ready = |condition: &&Condition| condition.kind == ConditionKind::CertificateReady;
        found.conditions.iter().find(ready).unwrap().reason.clone()
    };
    assert_eq!(reason(others(OrderStep::Issuing, NOW + HOUR)), "WaitsForGroupOrder");
    assert_eq!(reason(others(OrderStep::Failed, NOW + HOUR)), "WaitsForGroupOrder");
    assert_eq!(reason(others(OrderStep::Failed, NOW)), "NotIssued");
    assert_eq!(reason(order(OrderStep::Failed, Some("x"))), "OrderFailed");
    assert_eq!(reason(order(OrderStep::Validating, Some("x"))), "OrderWaits");
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_stage_has_its_word_its_actor_and_its_record() {
    use ConditionKind::{CaaPermits, ChallengeReachable, DnsPointsHere, OwnershipProved};
    use ConditionStatus::{False, True, Unknown};
    use DomainStatus::{Active, Degraded, Deploying, Failed, Issuing, Pending, Suspended, Validating};
    let dns = dns();
    let base = || active(&dns);
    let bare = || Facts { cells: vec![cell(None, 2, 0)], ..base() };
    let elsewhere = [row(DnsPointsHere, False, "Elsewhere")];
    let unknown = [row(DnsPointsHere, Unknown, "NoAnswer"), row(ChallengeReachable, Unknown, "NoAnswer")];
    let unreachable = [row(ChallengeReachable, False, "NotFetched")];
    let mut caa = [row(CaaPermits, False, "Forbidden")];
    caa[0].observed.message = "set shop.example CAA 0 issue \"ca.test\"".into();
    let caa_unknown = [row(CaaPermits, Unknown, "LookupFailed")];
    let recheck = [row(OwnershipProved, True, RECHECK_FAILED)];
    let late = CertificateFacts { renew_at: NOW - HOUR, ..good() };
    let expired = CertificateFacts { not_after: NOW - 1, ..good() };
    let at_ca = Some(Trouble { error: "CA said no.".into(), next_at: NOW + HOUR, at_ca: true });
    let before_ca = Some(Trouble { error: "CAA forbids.".into(), next_at: NOW + HOUR, at_ca: false });
    let unproved = || Facts { proved_at: None, ..bare() };
    let table: Vec<(&str, Facts<'_>, DomainStatus, &str)> = vec![
        ("active", base(), Active, ""),
        ("suspended", Facts { suspended: true, ..base() }, Suspended, "operator"),
        ("new", unproved(), Pending, "_portico.www.shop.example TXT \"portico-123\""),
        ("new, by CNAME", unproved(), Pending, "www.shop.example CNAME abc.edge.test"),
        ("rival", Facts { owned_by_another: true, ..unproved() }, Pending, "another account"),
        ("dns unknown", Facts { conditions: &unknown, ..unproved() }, Pending, "Prove that you control"),
        (
            "given up",
            Facts { created_at: NOW - CLAIM_LASTS_MS, next_check_at: None, ..unproved() },
            Failed,
            "no longer looks",
        ),
        ("before order", bare(), Issuing, "about to be ordered"),
        ("no budget", Facts { budget_until: Some(NOW + HOUR), ..bare() }, Issuing, "used up its budget"),
        ("budget again", Facts { budget_until: Some(NOW), ..bare() }, Issuing, "about to be ordered"),
        (
            "caa unknown",
            Facts { conditions: &caa_unknown, ..bare() },
            Pending,
            "No certificate may be issued",
        ),
        ("caa", Facts { conditions: &caa, ..bare() }, Pending, "set shop.example CAA 0 issue \"ca.test\""),
        (
            "points elsewhere",
            Facts { conditions: &elsewhere, ..bare() },
            Pending,
            "www.shop.example A 192.0.2.1",
        ),
        ("unknown is not false", Facts { conditions: &unknown, ..bare() }, Issuing, "about to be ordered"),
        ("unreachable", Facts { conditions: &unreachable, ..bare() }, Pending, "Point www.shop.example here"),
        (
            "validating",
            Facts { order: order(OrderStep::Validating, None), ..bare() },
            Validating,
            "CA is validating",
        ),
        ("issuing", Facts { order: order(OrderStep::Issuing, None), ..bare() }, Issuing, "being ordered"),
        (
            "waiting for the CA",
            Facts { order: order(OrderStep::Issuing, Some("429.")), ..bare() },
            Issuing,
            "429.",
        ),
        ("failed at the CA", Facts { trouble: at_ca.clone(), ..bare() }, Failed, "CA said no."),
        (
            "failed at the CA, points elsewhere",
            Facts { trouble: at_ca, conditions: &elsewhere, ..bare() },
            Failed,
            "www.shop.example A 192.0.2.1",
        ),
        ("failed before the CA", Facts { trouble: before_ca, ..bare() }, Pending, "CAA forbids."),
        (
            "order failed, and the CA is to blame",
            Facts { order: order(OrderStep::Failed, Some("another key")), ..bare() },
            Failed,
            "for no fault of the name: another key. It goes on by itself. \"system\"",
        ),
        (
            "ca in trouble",
            Facts { order: order(OrderStep::Issuing, Some("HTTP 503")), ..bare() },
            Issuing,
            "HTTP 503. It goes on by itself. \"system\"",
        ),
        (
            "order of others waits",
            Facts { order: others(OrderStep::Issuing, NOW + HOUR), ..bare() },
            Issuing,
            "waits for its SAN group: the order for the names that were there before it waits: HTTP 503. \"system\"",
        ),
        (
            "order of others failed",
            Facts { order: others(OrderStep::Failed, NOW + HOUR), ..bare() },
            Issuing,
            "failed: HTTP 503. It goes on by itself. \"system\"",
        ),
        (
            "order of others failed, its own is next",
            Facts { order: others(OrderStep::Failed, NOW), ..bare() },
            Issuing,
            "about to be ordered again. The last order failed: HTTP 503.",
        ),
        (
            "one of two edges",
            Facts { cells: vec![cell(Some(good()), 2, 1)], ..base() },
            Deploying,
            "On 1 of 2 edges",
        ),
        (
            "no edge",
            Facts { cells: vec![cell(Some(good()), 0, 0)], ..base() },
            Deploying,
            "portico edge join",
        ),
        (
            "second cell has none",
            Facts { cells: vec![cell(Some(good()), 1, 1), cell(None, 1, 0)], ..base() },
            Issuing,
            "about to be ordered",
        ),
        (
            "renewal fails",
            Facts {
                cells: vec![cell(Some(late), 2, 2)],
                order: order(OrderStep::Failed, Some("429.")),
                ..base()
            },
            Degraded,
            "renewal fails: 429.",
        ),
        (
            "renewal under way is no complaint",
            Facts { cells: vec![cell(Some(late), 2, 2)], order: order(OrderStep::Issuing, None), ..base() },
            Active,
            "",
        ),
        (
            "expired",
            Facts { cells: vec![cell(Some(expired), 2, 2)], ..base() },
            Issuing,
            "about to be ordered",
        ),
        ("recheck failed", Facts { conditions: &recheck, ..base() }, Degraded, "_portico.www.shop.example"),
    ];
    for (name, facts, status, part) in table {
        let found = assess(&facts, NOW);
        let text = found
            .next_action
            .as_ref()
            .map(|action| format!("{} {}", action.text, serde_json::to_string(&action.actor).unwrap()));
        assert_eq!(found.status, status, "{name}: {text:?}");
        assert_eq!(found.next_action.is_none(), part.is_empty(), "{name}");
        assert!(text.unwrap_or_default().contains(part), "{name}: {:?}", found.next_action);
        // What CAA permits is told once it was looked at.
        let told = found.conditions.iter().filter(|found| found.kind != CaaPermits).count();
        assert_eq!(told, 5, "{name}");
    }
}

#[test]
fn conditions_say_unknown_where_nothing_is_known() {
    let dns = dns();
    let facts = Facts { proved_at: None, cells: vec![cell(None, 0, 0)], ..active(&dns) };
    let found = assess(&facts, NOW);
    let status = |kind| found.conditions.iter().find(|condition| condition.kind == kind).unwrap().status;
    assert_eq!(status(ConditionKind::OwnershipProved), ConditionStatus::Unknown);
    assert_eq!(status(ConditionKind::DnsPointsHere), ConditionStatus::Unknown);
    assert_eq!(status(ConditionKind::CertificateReady), ConditionStatus::False);

    let away = Facts { cells: vec![cell(Some(good()), 0, 0)], ..active(&dns) };
    let found = assess(&away, NOW);
    assert_eq!(found.conditions[4].status, ConditionStatus::Unknown, "edges that are away may well serve it");

    // A stale "proved" row never outlives the proof.
    let stale = [row(ConditionKind::OwnershipProved, ConditionStatus::True, "Proved")];
    let displaced = Facts { proved_at: None, owned_by_another: true, conditions: &stale, ..active(&dns) };
    assert_eq!(assess(&displaced, NOW).conditions[0].reason, "OwnedByAnother");
    let unproved = Facts { proved_at: None, conditions: &stale, ..active(&dns) };
    assert_eq!(assess(&unproved, NOW).conditions[0].status, ConditionStatus::Unknown);
}
