//! The old server beside the edges, name by name, before DNS moves.
//!
//! What is compared: the status, where a redirect leads, the names and the issuer of the certificate, and whether its chain holds.
//! Bodies are not: pages differ from one request to the next.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use portico_api::v1::client::Client;
use portico_cert_store::DomainName;
use portico_prober::{CertificateReport, Check, CheckOptions, Prober, Report, Roots};
use serde::Serialize;

use super::report::NameReport;
use crate::commands::check::{resolve, system_roots};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::progress;
use crate::settings::{Settings, read_bounded};

/// Checks under way at once.
const CONCURRENCY: usize = 100;
/// Between two looks at edges that do not show the certificate yet.
const PAUSE: Duration = Duration::from_millis(250);

/// Whom to ask.
#[derive(Debug)]
pub(super) struct Places {
    /// The old server; absent: where DNS points.
    pub(super) old: Option<String>,
    pub(super) edges: Vec<String>,
    /// How long edges may take to show a certificate.
    pub(super) patience: Duration,
}

/// One name, there and here.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<SocketAddr>,
    edges: Vec<SocketAddr>,
    /// Why there is nothing to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_compared: Option<String>,
    pub(super) differences: Vec<String>,
}

impl Compared {
    pub(super) fn text(&self) -> String {
        match (&self.not_compared, self.differences.as_slice()) {
            (Some(why), []) => format!("not compared: {why}"),
            (_, []) => "as the old server".to_owned(),
            (_, differences) => differences.join("; "),
        }
    }
}

/// Compares each name that was adopted; a wildcard is no name that can be asked for.
///
/// # Errors
/// Nobody knows where edges are; the API's.
pub(super) async fn compare(
    settings: &Settings,
    client: &Client,
    places: &Places,
    names: &mut [NameReport],
) -> Outcome {
    let mut asked: Vec<(&mut NameReport, DomainName)> = Vec::new();
    for report in names.iter_mut().filter(|report| report.is_adopted()) {
        if let Ok(name) = DomainName::parse(&report.name) {
            asked.push((report, name));
        }
    }
    let Some((first, _)) = asked.first() else { return Ok(()) };
    let edges = edges(settings, client, places, first).await?;
    let prober = prober(settings)?;
    let bar = progress::bar("comparing", asked.len() as u64);
    let ours: BTreeSet<IpAddr> = edges.iter().map(SocketAddr::ip).collect();
    let all: Vec<DomainName> = asked.iter().map(|(_, name)| name.clone()).collect();
    // A name may have two, with an RSA key and with another.
    let mut wanted: HashMap<DomainName, BTreeSet<String>> = HashMap::new();
    for (report, name) in &asked {
        wanted.entry(name.clone()).or_default().extend(report.fingerprint_sha256.clone());
    }
    let until = tokio::time::Instant::now() + places.patience;
    let one = |(index, name): (usize, DomainName)| {
        let (prober, edges, ours) = (&prober, &edges, &ours);
        let fingerprints = wanted.get(&name).cloned().unwrap_or_default();
        async move {
            let at = |address: SocketAddr| Check { name: name.clone(), address };
            let at_old = match old_address(places, ours, &name).await {
                Ok(address) => Ok(prober.check(at(address)).await),
                Err(why) => Err(why),
            };
            let mut at_edges = Vec::with_capacity(edges.len());
            for edge in edges {
                at_edges.push(settled(prober, at(*edge), &fingerprints, until).await);
            }
            (index, judged(at_old, at_edges, &fingerprints))
        }
    };
    let mut work = std::pin::pin!(
        futures_util::stream::iter(all.into_iter().enumerate()).map(one).buffer_unordered(CONCURRENCY)
    );
    while let Some((index, compared)) = work.next().await {
        asked[index].0.compared = Some(compared);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// What an edge answers, once it shows the certificate or has had its time.
async fn settled(
    prober: &Prober,
    check: Check,
    fingerprints: &BTreeSet<String>,
    until: tokio::time::Instant,
) -> Report {
    loop {
        let report = prober.check(Check { name: check.name.clone(), address: check.address }).await;
        if shows(&report, fingerprints) || tokio::time::Instant::now() + PAUSE > until {
            return report;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn shows(report: &Report, fingerprints: &BTreeSet<String>) -> bool {
    report.certificate.as_ref().is_some_and(|one| fingerprints.contains(&one.fingerprint_sha256))
}

fn judged(old: Result<Report, String>, edges: Vec<Report>, fingerprints: &BTreeSet<String>) -> Compared {
    let addresses = edges.iter().map(|report| report.address).collect();
    let mut differences = Vec::new();
    for edge in &edges {
        if let Some(failure) = &edge.failure {
            differences.push(format!("edge {}: {failure}", edge.address));
        } else if !shows(edge, fingerprints) {
            differences.push(format!("edge {} does not show the adopted certificate", edge.address));
        }
    }
    let (old, not_compared) = match old {
        Err(why) => (None, Some(why)),
        Ok(old) if old.failure.is_some() && old.certificate.is_none() => {
            let why = old.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            (Some(old.address), Some(format!("old server {}: {why}", old.address)))
        }
        Ok(old) => {
            for edge in edges.iter().filter(|edge| edge.failure.is_none()) {
                differences.extend(differing(&old, edge));
            }
            (Some(old.address), None)
        }
    };
    Compared { old, edges: addresses, not_compared, differences }
}

/// How an edge's answer differs from the old server's.
fn differing(old: &Report, edge: &Report) -> Vec<String> {
    let status =
        |report: &Report| report.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    let location =
        |report: &Report| report.redirect.as_ref().map_or("nowhere".to_owned(), |to| to.location.clone());
    let chain = |report: &Report| report.chain.as_ref().map_or("none", |chain| chain.word()).to_owned();
    let names = |report: &Report| {
        let of = |certificate: &CertificateReport| {
            let mut names = certificate.names.clone();
            names.sort();
            names.join(" ")
        };
        report.certificate.as_ref().map(of).unwrap_or_default()
    };
    let issuer =
        |report: &Report| report.certificate.as_ref().map(|one| one.issuer.clone()).unwrap_or_default();
    let mut differences = Vec::new();
    let mut look = |what: &str, old: String, new: String| {
        if old != new {
            differences.push(format!("{what}: {old} at the old server, {new} at {}", edge.address));
        }
    };
    look("status", status(old), status(edge));
    look("redirect to", location(old), location(edge));
    look("chain", chain(old), chain(edge));
    look("certificate's names", names(old), names(edge));
    look("certificate's issuer", issuer(old), issuer(edge));
    differences
}

async fn old_address(
    places: &Places,
    ours: &BTreeSet<IpAddr>,
    name: &DomainName,
) -> Result<SocketAddr, String> {
    let text = places.old.as_deref().unwrap_or(name.as_str());
    let found = resolve(text).await.map_err(|failure| failure.text)?;
    let old = found.into_iter().find(|address| places.old.is_some() || !ours.contains(&address.ip()));
    old.ok_or_else(|| format!("{name} points to the edges already; name the old server (--old ADDR)"))
}

/// The edges that were named, or those that the control plane tells visitors of.
async fn edges(
    settings: &Settings,
    client: &Client,
    places: &Places,
    first: &NameReport,
) -> Outcome<Vec<SocketAddr>> {
    let mut edges = Vec::new();
    for text in &places.edges {
        edges.extend(resolve(text).await?);
    }
    if edges.is_empty() {
        edges = settings.context.as_ref().map(|context| context.edges_https.clone()).unwrap_or_default();
    }
    if let (true, Some(domain)) = (edges.is_empty(), first.domain) {
        let preview = client.preview(domain).await?;
        let ips = preview.hosts_lines.iter().filter_map(|line| line.split_whitespace().next()?.parse().ok());
        edges = ips.map(|ip: IpAddr| SocketAddr::new(ip, settings.https_port())).collect();
    }
    if edges.is_empty() {
        let text = "where the edges are is not known, so nothing was compared";
        return Err(Failure::failed(text)
            .next_text("the same command again, with --edge IP:PORT or with --no-compare"));
    }
    edges.sort();
    edges.dedup();
    Ok(edges)
}

fn prober(settings: &Settings) -> Outcome<Prober> {
    let roots = match settings.roots_file() {
        Some(file) => Roots::from_pem(&read_bounded(file)?).map_err(|error| Failure::file(file, error))?,
        None => system_roots()?,
    };
    Prober::new(&roots, CheckOptions::default()).map_err(|error| Failure::failed(error.to_string()))
}

/// Says what a comparison is not, once.
pub(super) fn remark_if_unreachable(names: &[NameReport]) {
    let is_without =
        |name: &&NameReport| name.compared.as_ref().is_some_and(|one| one.not_compared.is_some());
    let without = names.iter().filter(is_without).count();
    if without > 0 {
        output::remark(format!("{without} names could not be compared with the old server"));
    }
}
