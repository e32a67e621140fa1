//! Every name of a CSV, on every edge: the certificate names it, the chain leads to the root, the body is its tenant's.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use portico_cert_store::DomainName;
use rustls::ClientConfig;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{self, ConnectError, TlsChoice};

/// Names asked at once.
const AT_ONCE: usize = 100;
/// Faults that are printed; the rest are counted.
const FAULTS_SHOWN: usize = 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// The file that was imported.
    #[arg(long)]
    csv: PathBuf,
    /// An edge's https address; may be given several times.
    #[arg(long = "edge", required = true)]
    edges: Vec<SocketAddr>,
    /// PEM file with the issuing root.
    #[arg(long)]
    roots: PathBuf,
    /// What each body must hold; `{tenant}` and `{hostname}` are filled in.
    #[arg(long, default_value = "{hostname}")]
    expect: String,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Verdict {
    asked: u64,
    right: u64,
    wrong_certificates: u64,
    wrong_bodies: u64,
    failed: u64,
    certificates: usize,
    seconds: f64,
    faults: Vec<String>,
}

#[derive(Clone, Debug, serde::Deserialize)]
struct Row {
    tenant: String,
    hostname: String,
}

enum Fault {
    Certificate(String),
    Body(String),
    Failed(String),
}

pub(crate) fn run(args: &VerifyArgs) -> Result<()> {
    if let Some(edge) = args.edges.iter().find(|e| !e.ip().is_loopback()) {
        bail!("{edge} is not on loopback: this tool only asks servers on the same machine");
    }
    let mut reader =
        csv::Reader::from_path(&args.csv).with_context(|| format!("read {}", args.csv.display()))?;
    let rows: Vec<Row> =
        reader.deserialize().collect::<Result<_, _>>().with_context(|| args.csv.display().to_string())?;
    let choice = TlsChoice { resume: false, http2: false, classical: true };
    let config = client::config(client::read_roots(&args.roots)?, choice)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let verdict = runtime.block_on(ask_all(args, rows, config))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        println!(
            "asked {}  right {}  wrong certificates {}  wrong bodies {}  failed {}  distinct certificates {}  in {:.1} s",
            verdict.asked,
            verdict.right,
            verdict.wrong_certificates,
            verdict.wrong_bodies,
            verdict.failed,
            verdict.certificates,
            verdict.seconds
        );
        for fault in &verdict.faults {
            println!("  {fault}");
        }
    }
    if verdict.asked == 0 || verdict.right != verdict.asked {
        bail!("{} of {} answers were right", verdict.right, verdict.asked);
    }
    Ok(())
}

async fn ask_all(args: &VerifyArgs, rows: Vec<Row>, config: Arc<ClientConfig>) -> Result<Verdict> {
    let started = Instant::now();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for row in rows {
        let name = DomainName::parse(&row.hostname).with_context(|| row.hostname.clone())?;
        let expected = args.expect.replace("{tenant}", &row.tenant).replace("{hostname}", name.as_str());
        for &edge in &args.edges {
            let permit = Arc::clone(&permits).acquire_owned().await?;
            let (name, expected, config) = (name.clone(), expected.clone(), Arc::clone(&config));
            tasks.spawn(async move {
                let outcome = ask(edge, &name, &expected, &config).await;
                drop(permit);
                (edge, name, outcome)
            });
        }
    }
    let mut verdict = Verdict::default();
    let mut certificates = BTreeSet::new();
    while let Some(task) = tasks.join_next().await {
        let (edge, name, outcome) = task?;
        verdict.asked += 1;
        let fault = match outcome {
            Ok(leaf) => {
                certificates.insert(leaf);
                verdict.right += 1;
                continue;
            }
            Err(Fault::Certificate(why)) => {
                verdict.wrong_certificates += 1;
                why
            }
            Err(Fault::Body(why)) => {
                verdict.wrong_bodies += 1;
                why
            }
            Err(Fault::Failed(why)) => {
                verdict.failed += 1;
                why
            }
        };
        if verdict.faults.len() < FAULTS_SHOWN {
            verdict.faults.push(format!("{name} on {edge}: {fault}"));
        }
    }
    verdict.certificates = certificates.len();
    verdict.seconds = started.elapsed().as_secs_f64();
    Ok(verdict)
}

/// Asks `name` on `edge`; returns the leaf certificate that was shown.
async fn ask(
    edge: SocketAddr,
    name: &DomainName,
    expected: &str,
    config: &Arc<ClientConfig>,
) -> Result<Vec<u8>, Fault> {
    let stream = client::connect(edge, name, config).await.map_err(|e| match e {
        ConnectError::WrongCertificate(why) => Fault::Certificate(why),
        ConnectError::Failed(why) => Fault::Failed(why),
    })?;
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|leaf| leaf.to_vec())
        .ok_or_else(|| Fault::Certificate("no certificate shown".to_owned()))?;
    let failed = |e: hyper::Error| Fault::Failed(e.to_string());
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = tokio::spawn(driver);
    let request = http::Request::get("/")
        .header(http::header::HOST, format!("{name}:{}", edge.port()))
        .body(Empty::<Bytes>::new())
        .map_err(|e| Fault::Failed(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(failed)?.to_bytes();
    drop(sender);
    let _closed = driver.await;
    if !status.is_success() {
        return Err(Fault::Failed(format!("status {}", status.as_u16())));
    }
    let body = String::from_utf8_lossy(&body);
    if !body.contains(expected) {
        return Err(Fault::Body(format!(
            "the body lacks {expected:?}: {:?}",
            body.chars().take(120).collect::<String>()
        )));
    }
    Ok(leaf)
}
