//! A small fleet's quarter of a year, each promise asserted. The large one is `portico-simulate`.

use portico_simulator::ca::{Exemption, Profile};
use portico_simulator::simulation::classic;
use portico_simulator::time::{DAY_MS, HOUR_MS};
use portico_simulator::{Outcome, Scenario, Start, Violation, run};

fn scenario(start: Start, exemption: Exemption) -> Scenario {
    Scenario {
        seed: 7,
        names: 2000,
        days: 90,
        start,
        exemption,
        edges_per_cell: 2,
        churn: 0.01,
        profiles: vec![
            (0, classic()),
            (30, Profile { lifetime_ms: 64 * DAY_MS, reuse_ms: 10 * DAY_MS }),
            (60, Profile { lifetime_ms: 45 * DAY_MS, reuse_ms: 7 * HOUR_MS }),
        ],
        outage: Some((40, 3)),
        revocation: Some((50, 0.2)),
        sites_with_others: 5,
        stolen_orders: 0,
    }
}

fn held(outcome: &Outcome) {
    assert!(outcome.violations.is_empty(), "seed {}:\n{}", outcome.scenario.seed, outcome.text());
    assert!(outcome.counts.certificates > 1000 && outcome.ledger.compared > 100, "{}", outcome.text());
}

#[test]
fn a_quarter_with_an_outage_a_revocation_and_shorter_lifetimes_breaks_no_promise() {
    for exemption in [Exemption::InWindow, Exemption::CoveredNames] {
        let outcome = run(&scenario(Start::Established, exemption));
        held(&outcome);
        assert!(
            outcome.flat.is_some_and(|(fewest, _)| fewest > 0),
            "no two days were compared: {}",
            outcome.text()
        );
        let revocation = outcome.revocation.expect("the scenario has one");
        assert!(revocation.certificates > 100 && revocation.replaced_in_ms.is_some(), "{}", outcome.text());
    }
}

#[test]
fn a_cold_account_is_done_when_the_plan_says() {
    let outcome = run(&scenario(Start::Cold, Exemption::CoveredNames));
    held(&outcome);
    assert_eq!(outcome.eta.len(), 4, "{}", outcome.text());
}

#[test]
fn a_seed_replays() {
    let short = Scenario { names: 300, days: 40, ..scenario(Start::Cold, Exemption::InWindow) };
    let (first, second) = (run(&short), run(&short));
    let json = |outcome: &Outcome| serde_json::to_string(outcome).expect("a report has a JSON form");
    assert_eq!(json(&first), json(&second));
}

#[test]
fn a_broken_ledger_is_noticed() {
    // An account of which somebody else spends orders in secret meets its limit, and the simulation says so.
    let spoiled = Scenario { stolen_orders: 20, days: 4, ..scenario(Start::Cold, Exemption::InWindow) };
    let outcome = run(&spoiled);
    assert!(outcome.counts.limited_account > 0, "{}", outcome.text());
    for broken in [Violation::LimitHit, Violation::LedgerBehind] {
        assert!(outcome.violations.contains_key(&broken), "{}", outcome.text());
    }
}
