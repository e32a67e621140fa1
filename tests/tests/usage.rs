//! Every request is on an invoice once: figures of usage over edges that end, are killed, and lose their control plane.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use portico_api::distribution::UsageFile;
use portico_api::v1::client::UsageQuery;
use portico_api::v1::{Sharing, UsageBy, UsageRow};
use portico_tests::{Lab, LabOptions, ask, wait_until};
use prost::Message as _;

async fn usage(lab: &Lab, by: &[UsageBy]) -> Result<Vec<UsageRow>> {
    let query = UsageQuery { by: by.to_vec(), ..UsageQuery::default() };
    Ok(lab.client.usage(&query, None, None).await?.items)
}

/// Of the only series there is.
fn requests_on_disk(folder: &Path) -> Option<u64> {
    let mut files = std::fs::read_dir(folder).ok()?.filter_map(|file| Some(file.ok()?.path()));
    let path = files.find(|path| path.extension().is_some_and(|extension| extension == "usage"))?;
    let bytes = std::fs::read(path).ok()?;
    // Behind its checksum.
    let file = UsageFile::decode(&bytes[4..]).ok()?;
    let pending = file.pending.map(|pending| pending.rows).unwrap_or_default();
    Some(file.rows.iter().chain(&pending).map(|row| row.requests).sum())
}

#[tokio::test]
async fn every_request_is_counted_once_over_restarts_of_everything() -> Result<()> {
    let mut lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
    let names = ["one.test", "two.test"];
    for name in names {
        lab.domain(&tenant, name).await?;
    }
    for name in names {
        lab.active(name).await?;
    }
    let mut bytes = [0, 0];
    // An edge that ends as it should has told all before.
    for round in 0..10 {
        let answer = ask(lab.edges[0].https, names[round % 2], "/", &lab.issuing_root).await?;
        bytes[round % 2] += answer.body.len() as u64;
    }
    lab.edges[0].process.terminate(Duration::from_secs(60));
    let [told] = usage(&lab, &[]).await?.try_into().expect("one sum");
    assert_eq!(told.requests, 10);
    // One that is killed without a control plane has on its disk what its successor tells later.
    lab.control_plane.kill();
    for round in 0..20 {
        let answer = ask(lab.edges[1].https, names[round % 2], "/", &lab.issuing_root).await?;
        bytes[round % 2] += answer.body.len() as u64;
    }
    let folder = lab.edges[1].folder.join("state/usage");
    wait_until("the figures on the disk of the second edge", Duration::from_secs(60), async || {
        (requests_on_disk(&folder)? == 20).then_some(())
    })
    .await;
    lab.edges[1].process.kill();
    lab.restart_control_plane().await;
    for at in 0..lab.edges.len() {
        lab.restart_edge(at).await;
    }
    let sums = wait_until("all requests in the figures", Duration::from_secs(120), async || {
        let rows = usage(&lab, &[UsageBy::Domain]).await.ok()?;
        (rows.iter().map(|row| row.requests).sum::<u64>() >= 30).then_some(rows)
    })
    .await;
    let told: Vec<_> =
        sums.iter().map(|row| (row.domain.as_deref(), row.requests, row.response_bytes)).collect();
    assert_eq!(told, [(Some("one.test"), 15, bytes[0]), (Some("two.test"), 15, bytes[1])]);
    // And as an invoice.
    let csv = lab.portico().args(["usage", "--by", "tenant,domain", "--csv"]).output()?;
    let text = String::from_utf8(csv.stdout)?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "tenant,tenant_id,domain,domain_id,requests,request_bytes,response_bytes,cached_bytes"
    );
    assert!(lines[1].starts_with(&format!("{},{},one.test,dom_", tenant.spec.name, tenant.id)), "{text}");
    assert!(lines[1].ends_with(&format!(",15,0,{},0", bytes[0])), "{text}");
    assert_eq!(lines.len(), 3);
    let wrong = lab.portico().args(["usage", "--from", "2026-11-01T00:30:00Z"]).output()?;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8(wrong.stderr)?.contains("whole hour"));
    let backwards = lab.portico().args(["usage", "--from", "2026-11-02", "--to", "2026-11-01"]).output()?;
    assert_eq!(backwards.status.code(), Some(2));
    assert!(String::from_utf8(backwards.stderr)?.contains("before"));
    let table = lab.portico().args(["usage", "--by", "tenant"]).output()?;
    assert!(String::from_utf8(table.stdout)?.contains(&tenant.spec.name));
    Ok(())
}
