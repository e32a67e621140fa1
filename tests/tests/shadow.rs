//! MASTER and SHADOW: one name, two cells, two keys, one validation; and no key of one cell in the other.

use anyhow::Result;
use portico_api::v1::Sharing;
use portico_tests::{CaKind, CellPlan, Lab, LabOptions, ask, holds, pebble_is_installed};

fn two_cells(ca: CaKind) -> LabOptions {
    LabOptions {
        ca,
        cells: vec![CellPlan { name: "master", edges: 1 }, CellPlan { name: "shadow", edges: 1 }],
        ..LabOptions::default()
    }
}

async fn two_cells_have_two_keys_from_one_validation(ca: CaKind) -> Result<Lab> {
    let lab = Lab::start(two_cells(ca)).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &["master", "shadow"]).await?;
    for name in ["twice.test", "www.twice.test"] {
        lab.domain(&tenant, name).await?;
    }
    for name in ["twice.test", "www.twice.test"] {
        let domain = lab.active(name).await?;
        assert_eq!(domain.certificates.len(), 2, "{:?}", domain.certificates);
    }
    let master = ask(lab.edges[0].https, "twice.test", "/", &lab.issuing_root).await?;
    let shadow = ask(lab.edges[1].https, "twice.test", "/", &lab.issuing_root).await?;
    assert_eq!((master.status, shadow.status), (200, 200));
    assert_ne!(master.shown.spki, shadow.shown.spki, "two cells share a key");
    Ok(lab)
}

#[tokio::test]
async fn the_second_cell_costs_no_validation_at_our_ca() -> Result<()> {
    let lab = two_cells_have_two_keys_from_one_validation(CaKind::Own).await?;
    let stats = lab.ca_stats().await?;
    let per_name = stats["validations"].clone();
    println!("validations: {per_name}");
    for name in ["twice.test", "www.twice.test"] {
        assert_eq!(validations_of(&stats, name), 1, "{name}: {stats}");
    }
    Ok(())
}

/// The CA's own count of validations of `name`, over all challenge types.
fn validations_of(stats: &serde_json::Value, name: &str) -> u64 {
    fn sum(value: &serde_json::Value) -> u64 {
        match value {
            serde_json::Value::Number(n) => n.as_u64().unwrap_or(0),
            serde_json::Value::Object(map) => map.values().map(sum).sum(),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::String(_)
            | serde_json::Value::Array(_) => 0,
        }
    }
    sum(&stats["validations"]["by_name"][name])
}

#[tokio::test]
async fn the_second_cell_costs_no_validation_at_pebble() -> Result<()> {
    if !pebble_is_installed() {
        portico_skipping::skipped("pebble is not installed (apt-get install pebble)");
        return Ok(());
    }
    let lab = two_cells_have_two_keys_from_one_validation(CaKind::Pebble).await?;
    let log = lab.ca_log();
    for name in ["twice.test", "www.twice.test"] {
        let attempted = log
            .lines()
            .filter(|l| l.contains("Attempting to validate") && l.contains(&format!("//{name}:")))
            .count();
        println!("{name}: {attempted} fetches by Pebble's validators");
        // Pebble looks three times for one validation; a second validation would be six.
        assert!((1..=3).contains(&attempted), "{name}: {attempted} fetches\n{log}");
    }
    Ok(())
}

#[tokio::test]
async fn no_key_of_one_cell_is_in_the_other_cells_files() -> Result<()> {
    let lab = two_cells_have_two_keys_from_one_validation(CaKind::Own).await?;
    let master = ask(lab.edges[0].https, "twice.test", "/", &lab.issuing_root).await?;
    let shadow = ask(lab.edges[1].https, "twice.test", "/", &lab.issuing_root).await?;
    let own = holds(&lab.edges[0].folder, &master.shown.leaf)?;
    assert!(own, "the scan must find what is there: the cell's own certificate");
    // Only the resources of its own cell ever reach an edge, so not even the other certificate is in its files.
    assert!(!holds(&lab.edges[0].folder, &shadow.shown.leaf)?);
    assert!(!holds(&lab.edges[1].folder, &master.shown.leaf)?);
    Ok(())
}
