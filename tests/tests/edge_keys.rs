//! An edge that keeps its own keys, beside a cell that shares them: from the order to a real handshake, a renewal, and a restart with
//! nobody to ask.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use portico_api::v1::{CellCustody, CellRequest, RekeyRequest, Sharing};
use portico_cert_store::{CellId, CredentialId, Custody};
use portico_tests::{CellPlan, Lab, LabOptions, ask, holds, wait_until};

const NAME: &str = "alone.test";
const DEADLINE: Duration = Duration::from_secs(60);

/// The files of the keys that edge `at` keeps.
fn keys(lab: &Lab, at: usize) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(lab.edges[at].folder.join("state/keys"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The secret number in PKCS#8 of P-256: 32 bytes behind the header of an octet string.
fn scalar(key: &Path) -> Result<Vec<u8>> {
    let der = std::fs::read(key)?;
    let at = der.windows(2).position(|two| two == [0x04, 0x20]).context("no octet string")? + 2;
    Ok(der[at..at + 32].to_vec())
}

async fn spki(lab: &Lab, at: usize) -> Result<Vec<u8>> {
    let answer = ask(lab.edges[at].https, NAME, "/", &lab.issuing_root).await?;
    assert_eq!(answer.status, 200);
    Ok(answer.shown.spki)
}

async fn kept_by_edge(lab: &Lab) -> Result<CredentialId> {
    let domain = lab.client.domain(NAME).await?;
    let kept = domain.certificates.iter().find(|certificate| certificate.custody == Custody::Edge);
    Ok(kept.with_context(|| format!("{:?}", domain.certificates))?.credential_id)
}

#[tokio::test]
async fn an_edge_serves_by_a_key_that_is_nowhere_else() -> Result<()> {
    let cells = vec![CellPlan { name: "shared", edges: 1 }, CellPlan { name: "lone", edges: 1 }];
    let mut lab = Lab::start(LabOptions { cells, ..LabOptions::default() }).await?;
    let cell = CellId::parse("lone")?;
    let request = CellRequest { custody: CellCustody::Edge };
    assert_eq!(lab.client.put_cell(&cell, &request).await?.custody, CellCustody::Edge);
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &["shared", "lone"]).await?;
    lab.domain(&tenant, NAME).await?;
    lab.active(NAME).await?;
    let (shared, first) = (spki(&lab, 0).await?, spki(&lab, 1).await?);
    assert_ne!(shared, first);
    assert_eq!((keys(&lab, 0)?.len(), keys(&lab, 1)?.len()), (0, 1));
    let key = keys(&lab, 1)?.remove(0);
    let secret = scalar(&key)?;
    assert!(holds(&lab.edges[1].folder, &secret)?, "the scan must find what is there");
    for elsewhere in [lab.folder.path().join("control-plane"), lab.edges[0].folder.clone()] {
        assert!(!holds(&elsewhere, &secret)?, "{}", elsewhere.display());
    }

    let certificate = Some(kept_by_edge(&lab).await?);
    lab.client.create_rekey(&RekeyRequest { certificate, ..RekeyRequest::default() }).await?;
    let renewed = wait_until("a renewed key", DEADLINE, async || {
        spki(&lab, 1).await.ok().filter(|shown| *shown != first)
    })
    .await;
    wait_until("the end of the old key", DEADLINE, async || {
        let left = keys(&lab, 1).ok()?;
        (left.len() == 1 && left[0] != key).then_some(())
    })
    .await;
    assert!(!holds(&lab.edges[1].folder, &secret)?, "it is destroyed");

    lab.control_plane.kill();
    lab.kill_ca();
    lab.edges[1].process.kill();
    lab.restart_edge(1).await;
    assert_eq!(spki(&lab, 1).await?, renewed);
    Ok(())
}
