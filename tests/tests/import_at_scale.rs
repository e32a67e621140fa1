//! A hosting provider's CSV, imported against a CA that we did not write: every name on both edges, with its tenant's own
//! body; and one more domain while load runs, with no failed request.
//!
//! The usual run imports 200 hostnames; `PORTICO_SCALE_DOMAINS=2000` makes it the full one and prints the figures.

#![expect(clippy::disallowed_methods, reason = "it reports how long real processes took")]

use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portico_api::v1::Sharing;
use portico_tests::{CaKind, Lab, LabOptions, binary, pebble_is_installed};

#[tokio::test]
async fn every_imported_name_is_served_right_and_one_more_joins_under_load() -> Result<()> {
    let ca = if pebble_is_installed() {
        CaKind::Pebble
    } else {
        println!("pebble is not installed (apt-get install pebble): our own CA takes its place");
        CaKind::Own
    };
    let domains = std::env::var("PORTICO_SCALE_DOMAINS").unwrap_or_else(|_| "200".to_owned());
    let lab = Lab::start(LabOptions { ca, ..LabOptions::default() }).await?;
    let csv = lab.folder.path().join("domains.csv");
    let mut make = Command::new(binary("portico-loadtest"));
    make.args(["tenants", "--domains", &domains, "--origin", &format!("http://{}", lab.origin), "--out"])
        .arg(&csv);
    run(make).await?;

    let started = Instant::now();
    let records = lab.folder.path().join("records.json");
    let import = || {
        let mut command = lab.portico();
        command
            .args(["domain", "import"])
            .arg(&csv)
            .args(["--egress-grant", &format!("{}/32:{}", lab.origin.ip(), lab.origin.port())]);
        command
    };
    let mut first = import();
    first.arg("--records-out").arg(&records);
    run(first).await?;
    let claimed = started.elapsed();
    lab.set_records(&std::fs::read_to_string(&records)?).await?;
    // The same file again changes nothing; it waits until every domain is active.
    let mut again = import();
    again.args(["--wait", "--timeout", "40m"]);
    let printed = run(again).await?;
    println!("claimed after {:.1} s", claimed.as_secs_f64());
    println!("import of {domains}: {:.1} s\n{printed}", started.elapsed().as_secs_f64());

    let mut verify = Command::new(binary("portico-loadtest"));
    verify.arg("verify").arg("--csv").arg(&csv).arg("--roots").arg(&lab.issuing_root);
    for edge in &lab.edges {
        verify.args(["--edge", &edge.https.to_string()]);
    }
    println!("{}", run(verify).await?);
    for edge in &lab.edges {
        let status = std::fs::read_to_string(format!("/proc/{}/status", edge.process.pid()))?;
        let resident = status.lines().find(|l| l.starts_with("VmRSS")).context("VmRSS")?;
        println!("edge with {domains} names: {resident}");
    }
    one_more_under_load(&lab, &csv).await
}

async fn one_more_under_load(lab: &Lab, csv: &std::path::Path) -> Result<()> {
    let names = lab.folder.path().join("names");
    let mut reader = std::fs::read_to_string(csv)?;
    reader = reader
        .lines()
        .skip(1)
        .take(50)
        .filter_map(|l| l.split(',').nth(1))
        .map(|n| format!("{n}\n"))
        .collect();
    std::fs::write(&names, reader)?;
    let load = Command::new(binary("portico-loadtest"))
        .args([
            "handshakes",
            "--get",
            "--json",
            "--seconds",
            "12",
            "--rate",
            "100",
            "--connections",
            "32",
            "--connect",
        ])
        .arg(lab.edges[0].https.to_string())
        .arg("--names")
        .arg(&names)
        .arg("--roots")
        .arg(&lab.issuing_root)
        .stdout(Stdio::piped())
        .spawn()?;
    let tenant = lab.tenant("latecomer", Sharing::RegisteredDomain, &[]).await?;
    let started = Instant::now();
    let pebble_log = lab.folder.path().join("pebble.log");
    let answered = tokio::spawn(certificate_answer(pebble_log, lab.ca_management()));
    let served: Vec<_> = lab
        .edges
        .iter()
        .map(|edge| tokio::spawn(first_handshake(edge.https, lab.issuing_root.clone())))
        .collect();
    lab.domain(&tenant, "latecomer.test").await?;
    lab.active("latecomer.test").await?;
    println!("one more domain under load: active {:?} after its claim", started.elapsed());
    let answered = answered.await??;
    println!("the CA gave its certificate {:?} after its claim", answered - started);
    for (edge, served) in lab.edges.iter().zip(served) {
        let live = served.await?.saturating_duration_since(answered);
        println!("from the CA's answer to a handshake on {}: {live:?}", edge.https);
    }
    let output = tokio::task::spawn_blocking(move || load.wait_with_output()).await??;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    println!("load beside it: {report}");
    assert!(output.status.success(), "{report}");
    assert!(report["attempted"].as_u64().unwrap_or(0) > 0);
    tokio::time::timeout(Duration::from_secs(60), async {
        for edge in &lab.edges {
            portico_tests::ask(edge.https, "latecomer.test", "/", &lab.issuing_root).await?;
        }
        anyhow::Ok(())
    })
    .await?
}

/// When the CA gives out the next certificate: by Pebble's log, which tells of a request before it is answered, so the
/// figure is never too small; by our own CA's counter where Pebble is missing.
async fn certificate_answer(pebble_log: PathBuf, management: SocketAddr) -> Result<Instant> {
    let deadline = Instant::now() + Duration::from_secs(60);
    if pebble_log.exists() {
        let mut log = std::fs::File::open(pebble_log)?;
        log.seek(SeekFrom::End(0))?;
        let mut text = String::new();
        while !text.contains("/certZ/") {
            anyhow::ensure!(Instant::now() < deadline, "Pebble gave out no certificate: {text}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            log.read_to_string(&mut text)?;
        }
        return Ok(Instant::now());
    }
    let before = certificates_sent(management).await?;
    while certificates_sent(management).await? == before {
        anyhow::ensure!(Instant::now() < deadline, "the CA gave out no certificate");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(Instant::now())
}

async fn certificates_sent(management: SocketAddr) -> Result<u64> {
    let stats = portico_tests::ca_stats_at(management).await?;
    stats["certificates"]["downloaded"].as_u64().context("a counter")
}

/// When `edge` first shows a valid certificate for the latecomer, by real handshakes one after the other.
async fn first_handshake(edge: SocketAddr, roots: PathBuf) -> Instant {
    while portico_tests::shown(edge, "latecomer.test", &roots).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Instant::now()
}

/// Runs a command beside this thread, on which the laboratory's origin answers.
async fn run(mut command: Command) -> Result<String> {
    tokio::task::spawn_blocking(move || {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(
            output.status.success(),
            "{command:?}: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    })
    .await?
}
