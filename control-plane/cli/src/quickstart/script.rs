//! `quickstart --script`: runs every printed line and checks what comes back, then every name on every edge.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use portico_api::v1::DomainStatus;
use portico_api::v1::client::{Client, DomainQuery};
use portico_cert_store::{DomainName, NamePattern};
use portico_prober::{Check, CheckOptions, Prober, Report, Roots, chain_text};
use tokio::process::Command;

use super::addresses::Addresses;
use super::folder::{self, Folder};
use super::lines::{Ask, Expect, Line};
use super::onboarding;
use crate::commands::domain::listed;
use crate::failure::{Failure, Outcome};
use crate::output::line;

/// For one line: `domain add --wait` may take its minute.
const LINE_DEADLINE: Duration = Duration::from_secs(90);
const BODY_BYTES_MAX: usize = 1 << 20;

/// # Errors
/// The lines that did not bring what they promise, each with what came instead.
pub(super) async fn run(lines: &[Line], folder: &Folder, addresses: &Addresses, client: &Client) -> Outcome {
    let has_curl = has_curl().await;
    let means = if has_curl { "curl" } else { "the built-in client, as there is no curl here" };
    line(format!("\nrunning the lines above with {means}"));
    let mut faults = Vec::new();
    for each in lines {
        match run_line(each, folder, addresses, has_curl).await {
            Ok(()) => line(format!("ok      {}", each.about)),
            Err(text) => {
                line(format!("FAILED  {}\n        {}\n        {text}", each.about, each.command));
                faults.push(each.about.to_owned());
            }
        }
    }
    match check_all(folder, addresses, client).await {
        Ok(text) => line(format!("ok      {text}")),
        Err(failure) => {
            line(format!("FAILED  every name on every edge\n        {}", failure.text));
            faults.push("every name on every edge".to_owned());
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("{} checks failed: {}", faults.len(), faults.join("; "))).next(format!(
        "quickstart --dir {}   (without --script, to look around)",
        super::shell_path(folder.path())
    )))
}

async fn run_line(each: &Line, folder: &Folder, addresses: &Addresses, has_curl: bool) -> Result<(), String> {
    let answer = match &each.ask {
        Ask::Portico => return run_portico(each, has_curl).await,
        Ask::Https { .. } | Ask::Http { .. } if has_curl => curl(&each.command).await?,
        Ask::Https { name, edge, path } => built_in(folder, addresses.edge_https(*edge), name, path).await?,
        Ask::Http { name, edge, path } => {
            let host = format!("{name}:{}", addresses.http_port);
            plain_get(addresses.edge_http(*edge), &host, path).await?
        }
    };
    answer.compare(&each.expect)
}

/// Runs a `portico` line; a curl line that it prints is run as well.
async fn run_portico(each: &Line, has_curl: bool) -> Result<(), String> {
    let output = shell(&each.command).await?;
    let Expect::Output(texts) = &each.expect else {
        return Err("the line expects an HTTP answer".to_owned());
    };
    if let Some(missing) = texts.iter().find(|text| !output.contains(text.as_str())) {
        return Err(format!("{missing:?} is not in its output:\n{output}"));
    }
    for printed in output.lines().filter(|line| has_curl && line.starts_with("curl ")) {
        shell(printed).await.map_err(|text| format!("it printed {printed:?}, which failed: {text}"))?;
    }
    Ok(())
}

/// Runs a command line as a user would, and returns its standard output.
async fn shell(command: &str) -> Result<String, String> {
    let run = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LINE_DEADLINE, run)
        .await
        .map_err(|_| format!("no end within {} s", LINE_DEADLINE.as_secs()))?
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{}: {}{text}", output.status, String::from_utf8_lossy(&output.stderr)))
}

async fn has_curl() -> bool {
    let mut curl = Command::new("curl");
    curl.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    curl.status().await.is_ok_and(|status| status.success())
}

/// An HTTP answer, whoever asked.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    location: Option<String>,
    body: String,
}

impl Answer {
    fn compare(&self, expect: &Expect) -> Result<(), String> {
        let Expect::Answer { status, location, body } = expect else {
            return Err("the line expects an output".to_owned());
        };
        if self.status != *status {
            return Err(format!("status {} instead of {status}; body: {}", self.status, self.body));
        }
        if location.is_some() && self.location != *location {
            return Err(format!("location {:?} instead of {location:?}", self.location));
        }
        match body.iter().find(|text| !self.body.contains(text.as_str())) {
            Some(missing) => Err(format!("{missing:?} is not in the body: {}", self.body)),
            None => Ok(()),
        }
    }
}

/// Runs a `curl -i` line; curl itself has verified the certificate.
async fn curl(command: &str) -> Result<Answer, String> {
    let output = shell(command).await?;
    let (head, body) = output.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP answer: {output}"))?;
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    let location = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
    });
    Ok(Answer {
        status: status.ok_or_else(|| format!("no status: {head}"))?,
        location,
        body: body.to_owned(),
    })
}

/// The built-in client: verifies the certificate as curl does.
async fn built_in(folder: &Folder, address: SocketAddr, name: &str, path: &str) -> Result<Answer, String> {
    let options =
        CheckOptions { path: path.to_owned(), body_first_bytes: BODY_BYTES_MAX, ..CheckOptions::default() };
    let prober = prober(folder, options).map_err(|failure| failure.text)?;
    let name = DomainName::parse(name).map_err(|error| error.to_string())?;
    let report = prober.check(Check { name, address }).await;
    if let Some(text) = fault_of(&report) {
        return Err(text);
    }
    Ok(Answer {
        status: report.status.unwrap_or_default(),
        location: report.redirect.map(|redirect| redirect.location),
        body: report.body.map(|body| body.first).unwrap_or_default(),
    })
}

/// One GET over plain HTTP to a loopback address.
pub(super) async fn plain_get(address: SocketAddr, host: &str, path: &str) -> Result<Answer, String> {
    const DEADLINE: Duration = Duration::from_secs(5);
    let exchange = async {
        let tcp = tokio::net::TcpStream::connect(address).await.map_err(|e| chain_text(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| chain_text(&e))?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path).header(http::header::HOST, host).body(Empty::<Bytes>::new());
        let answer =
            sender.send_request(request.map_err(|e| chain_text(&e))?).await.map_err(|e| chain_text(&e))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?.to_bytes();
        driver.abort();
        let location = head.headers.get(http::header::LOCATION).and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: head.status.as_u16(),
            location: location.map(str::to_owned),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    };
    tokio::time::timeout(DEADLINE, exchange).await.unwrap_or_else(|_| Err("no answer within 5 s".to_owned()))
}

/// Every active name on every edge: a chain that holds, a certificate that the control plane wants there, the sharing
/// that the tenants chose.
async fn check_all(folder: &Folder, addresses: &Addresses, client: &Client) -> Outcome<String> {
    let domains = listed(client, DomainQuery::default(), 0).await?.items;
    let active: Vec<_> = domains.iter().filter(|domain| domain.status == DomainStatus::Active).collect();
    let mut checks = Vec::new();
    for domain in &active {
        let pattern =
            NamePattern::parse(&domain.spec.hostname).map_err(|e| Failure::failed(e.to_string()))?;
        let name = match &pattern {
            NamePattern::Exact(name) => name.clone(),
            NamePattern::Wildcard(base) => {
                DomainName::parse(&format!("some.{base}")).map_err(|e| Failure::failed(e.to_string()))?
            }
        };
        let edges = 0..addresses.edges.len();
        checks.extend(edges.map(|edge| Check { name: name.clone(), address: addresses.edge_https(edge) }));
    }
    let expected = 4 + onboarding::SHARED_NAMES;
    if active.len() < expected {
        return Err(Failure::failed(format!(
            "{} domains are active, at least {expected} should be",
            active.len()
        )));
    }
    let wanted: HashSet<&str> = active
        .iter()
        .flat_map(|domain| &domain.certificates)
        .map(|certificate| certificate.fingerprint_sha256.as_str())
        .collect();
    let prober = prober(folder, CheckOptions::default())?;
    let reports: Vec<Report> = prober.check_all(checks).collect().await;
    for report in &reports {
        let fault = fault_of(report).or_else(|| foreign(report, &wanted)).or_else(|| wrongly_shared(report));
        if let Some(text) = fault {
            return Err(Failure::failed(format!("{} at {}: {text}", report.name, report.address)));
        }
    }
    Ok(format!("{} names on {} edges, {} certificates", active.len(), addresses.edges.len(), wanted.len()))
}

fn prober(folder: &Folder, options: CheckOptions) -> Outcome<Prober> {
    let root = folder.file(folder::ROOT);
    let pem = crate::settings::read_bounded(&root)?;
    let roots = Roots::from_pem(&pem).map_err(|error| Failure::file(&root, error))?;
    Prober::new(&roots, options).map_err(|error| Failure::failed(error.to_string()))
}

fn fault_of(report: &Report) -> Option<String> {
    if let Some(failure) = &report.failure {
        return Some(failure.to_string());
    }
    if let Some(status) = report.status.filter(|status| *status >= 500) {
        return Some(format!("status {status}"));
    }
    report.chain.as_ref().filter(|chain| !chain.is_trusted()).map(|chain| format!("chain: {}", chain.word()))
}

fn foreign(report: &Report, wanted: &HashSet<&str>) -> Option<String> {
    let fingerprint = report.certificate.as_ref()?.fingerprint_sha256.as_str();
    (!wanted.contains(fingerprint)).then(|| "a certificate that the control plane does not know".to_owned())
}

/// The first tenant's names share within their registered domain only; the second's share with each other.
fn wrongly_shared(report: &Report) -> Option<String> {
    let is_boat = |name: &str| name.starts_with("boat-");
    let names = &report.certificate.as_ref()?.names;
    if let Some(other) = names.iter().find(|name| is_boat(name) != is_boat(report.name.as_str())) {
        return Some(format!("shares its certificate with {other}"));
    }
    let alone = is_boat(report.name.as_str()) && names.len() < 2;
    alone.then(|| "does not share its certificate, although its tenant asked for that".to_owned())
}
