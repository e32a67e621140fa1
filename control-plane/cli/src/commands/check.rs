//! `portico check NAME... --connect ADDR`: what do these addresses serve for these names?
//!
//! The operator's own check: it may go to any address. Where the API is known, the certificate is compared with those
//! that the control plane wants served.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use portico_api::v1::client::Client;
use portico_cert_store::DomainName;
use portico_prober::{Alpn, Check, CheckOptions, ClientCertificate, Method, Prober, Report, Roots};
use serde::Serialize;

use crate::commands::cert::names_text;
use crate::commands::named_domain::claims;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Colour, Format, Table, line};
use crate::progress;
use crate::settings::{Settings, read_bounded};

/// Names in one run.
const NAMES_MAX: usize = 1_000_000;
/// With more rows than this a table shows the faulty ones only.
const ROWS_SHOWN: usize = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The names to ask for
    #[arg(value_name = "NAME", required_unless_present = "names_file")]
    names: Vec<DomainName>,
    /// A file with more names, one a line
    #[arg(long, value_name = "FILE")]
    names_file: Option<PathBuf>,
    /// An address to ask, ip[:port] or host[:port]; repeatable [default: the context's edges, else what DNS says]
    #[arg(long, value_name = "ADDR")]
    connect: Vec<String>,
    /// Path of the request
    #[arg(long, default_value = "/", value_parser = path)]
    path: String,
    /// Ask for the head only
    #[arg(long)]
    head: bool,
    /// Offer HTTP/1.1 only
    #[arg(long)]
    http1: bool,
    /// A certificate to show to servers that ask for one: a PEM file, its key in it or in --client-key
    #[arg(long, value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// The key of --client-cert
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// Checks under way at once
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    concurrency: u16,
    /// How long one check may take
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse_some)]
    timeout: Duration,
    /// Show every row, also when there are many
    #[arg(long)]
    all: bool,
}

/// One report, with what the control plane says of it.
#[derive(Debug, Serialize)]
struct Checked {
    #[serde(flatten)]
    report: Report,
    /// The certificate is one that the control plane wants served there; absent when it does not know the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<bool>,
}

impl Checked {
    /// An answer that is no server's fault, on a chain that holds, with the certificate that is wanted there.
    fn is_sound(&self) -> bool {
        let answered = self.report.status.is_some_and(|status| status < 500);
        answered && self.report.is_sound() && self.expected != Some(false)
    }
}

pub(crate) async fn run(settings: &Settings, args: CheckArgs) -> Outcome {
    let names = names(&args)?;
    let prober = prober(settings, &args)?;
    let expected =
        if settings.names_an_api() { expected(&settings.client()?, &names).await? } else { HashMap::new() };
    let checks = checks(settings, &args, &names).await?;

    let bar = progress::bar("checking", checks.len() as u64);
    let mut checked: Vec<Checked> = Vec::with_capacity(checks.len());
    let mut reports = std::pin::pin!(prober.check_all(checks));
    while let Some(report) = reports.next().await {
        bar.inc(1);
        let fingerprint = report.certificate.as_ref().map(|certificate| &certificate.fingerprint_sha256);
        let wanted = expected.get(&report.name);
        let expected = wanted.zip(fingerprint).map(|(wanted, fingerprint)| wanted.contains(fingerprint));
        checked.push(Checked { report, expected });
    }
    bar.finish_and_clear();
    checked.sort_by(|a, b| {
        let key = |c: &Checked| (c.is_sound(), c.report.name.to_string(), c.report.address);
        key(a).cmp(&key(b))
    });
    let next = checked.first().map(|first| match &first.report {
        // It fails for that before it says what it serves.
        report if report.asks_for_certificate && report.status.is_none() && args.client_cert.is_none() => {
            format!("check {} --client-cert FILE.pem --client-key FILE.key", report.name)
        }
        report => next(settings, &expected, &report.name),
    });
    finish(settings, &args, &checked, next)
}

/// What to try when `name` is not served as it should be.
fn next(settings: &Settings, expected: &HashMap<DomainName, HashSet<String>>, name: &DomainName) -> String {
    match (expected.contains_key(name), settings.names_an_api()) {
        (true, _) => format!("domain show {name}"),
        (false, true) => {
            format!("domain add {name} --tenant TENANT --proxy URL   (there is no domain of this name)")
        }
        (false, false) => format!("check {name} --context DIR   (to compare it with what should be served)"),
    }
}

fn finish(settings: &Settings, args: &CheckArgs, checked: &[Checked], next: Option<String>) -> Outcome {
    let faulty = checked.iter().filter(|checked| !checked.is_sound()).count();
    if settings.format == Format::Json {
        output::json(&checked)?;
    } else {
        print(args, checked, faulty);
    }
    if faulty == 0 {
        return Ok(());
    }
    let failure = Failure::failed(format!("{faulty} of {} checks found something wrong", checked.len()));
    Err(next.into_iter().fold(failure, Failure::next))
}

fn print(args: &CheckArgs, checked: &[Checked], faulty: usize) {
    let hide_sound = checked.len() > ROWS_SHOWN && !args.all;
    let mut table = Table::new(&[
        "NAME",
        "ADDRESS",
        "CHAIN",
        "STATUS",
        "PROTOCOL",
        "CERTIFICATE",
        "EXPIRES",
        "MS",
        "ANSWER",
    ]);
    for checked in checked.iter().filter(|checked| !(hide_sound && checked.is_sound())) {
        let report = &checked.report;
        let certificate = report.certificate.as_ref();
        table.row([
            report.name.to_string(),
            report.address.to_string(),
            chain_text(checked),
            output::or_dash(report.status.map(|status| status.to_string())),
            output::or_dash(report.protocol.clone()),
            output::or_dash(certificate.map(|certificate| names_text(&certificate.names))),
            output::or_dash(certificate.map(|certificate| certificate.not_after.chars().take(10).collect())),
            format!("{:.1}", report.timings.total_ms),
            answer_text(report),
        ]);
    }
    if !table.is_empty() {
        table.print();
    }
    if hide_sound || checked.len() > 1 {
        line(format!("{} checks, {faulty} with something wrong", checked.len()));
    }
}

fn chain_text(checked: &Checked) -> String {
    match (&checked.report.chain, checked.expected) {
        (None, _) => output::paint("none", Colour::Red),
        (Some(verdict), _) if !verdict.is_trusted() => output::paint(verdict.word(), Colour::Red),
        (Some(_), Some(false)) => output::paint("not ours", Colour::Red),
        (Some(verdict), _) => output::paint(verdict.word(), Colour::Green),
    }
}

fn answer_text(report: &Report) -> String {
    const SHOWN: usize = 60;
    if let Some(failure) = &report.failure {
        return output::paint(&failure.to_string(), Colour::Red);
    }
    if let Some(redirect) = &report.redirect {
        return format!("-> {} (not followed)", redirect.location);
    }
    let first = report.body.as_ref().and_then(|body| body.first.lines().next()).unwrap_or_default();
    let printable = first.chars().filter(|character| !character.is_control());
    printable.take(SHOWN).collect()
}

fn names(args: &CheckArgs) -> Outcome<Vec<DomainName>> {
    let mut names = args.names.clone();
    if let Some(file) = &args.names_file {
        let text = std::fs::read_to_string(file).map_err(|error| Failure::file(file, error))?;
        for (index, name) in text.lines().enumerate().filter(|(_, name)| !name.trim().is_empty()) {
            let name = DomainName::parse(name.trim())
                .map_err(|error| Failure::usage(format!("{}:{}: {error}", file.display(), index + 1)))?;
            names.push(name);
        }
    }
    if names.len() > NAMES_MAX {
        return Err(Failure::usage(format!("more than {NAMES_MAX} names; split the file")));
    }
    Ok(names)
}

fn prober(settings: &Settings, args: &CheckArgs) -> Outcome<Prober> {
    let roots = match settings.roots_file() {
        Some(file) => Roots::from_pem(&read_bounded(file)?).map_err(|error| Failure::file(file, error))?,
        None => system_roots()?,
    };
    let options = CheckOptions {
        method: if args.head { Method::Head } else { Method::Get },
        path: args.path.clone(),
        alpn: if args.http1 { Alpn::Http1 } else { Alpn::H2AndHttp1 },
        step_deadline: args.timeout.min(CheckOptions::default().step_deadline),
        deadline: args.timeout,
        concurrency: args.concurrency.into(),
        client_certificate: client_certificate(args)?,
        ..CheckOptions::default()
    };
    Prober::new(&roots, options).map_err(|error| Failure::failed(error.to_string()))
}

fn client_certificate(args: &CheckArgs) -> Outcome<Option<ClientCertificate>> {
    let Some(file) = &args.client_cert else { return Ok(None) };
    let chain = read_bounded(file)?;
    let key = args.client_key.as_deref().map(read_bounded).transpose()?;
    ClientCertificate::from_pem(&chain, key.as_ref().unwrap_or(&chain))
        .map(Some)
        .map_err(|error| Failure::file(file, error))
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("it begins with a slash: /{text}")) }
}

pub(super) fn system_roots() -> Outcome<Roots> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = rustls::RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    Roots::from_store(store)
        .map_err(|_| Failure::failed("this system has no trust anchors").next("check NAME --roots FILE.pem"))
}

/// Every name at every address that was asked for.
async fn checks(settings: &Settings, args: &CheckArgs, names: &[DomainName]) -> Outcome<Vec<Check>> {
    let edges = settings.context.as_ref().map(|context| context.edges_https.clone()).unwrap_or_default();
    let mut addresses = Vec::new();
    for text in &args.connect {
        let found = resolve(text).await;
        addresses.extend(found.map_err(|failure| failure.next("check NAME --connect IP:PORT"))?);
    }
    if args.connect.is_empty() {
        addresses = edges;
    }
    let mut checks = Vec::new();
    for name in names {
        if addresses.is_empty() {
            let found = resolve(name.as_str()).await?;
            checks.extend(found.into_iter().map(|address| Check { name: name.clone(), address }));
        } else {
            checks.extend(addresses.iter().map(|address| Check { name: name.clone(), address: *address }));
        }
    }
    Ok(checks)
}

/// `ip`, `ip:port`, `host` or `host:port`; the port is 443 when none is given.
pub(super) async fn resolve(text: &str) -> Outcome<Vec<SocketAddr>> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
        return Ok(vec![SocketAddr::new(ip, 443)]);
    }
    let with_port = if text.contains(':') { text.to_owned() } else { format!("{text}:443") };
    let found = tokio::net::lookup_host(&with_port).await;
    let mut addresses: Vec<SocketAddr> = found
        .map_err(|error| {
            Failure::failed(format!("{text}: {error}")).next(format!("check {text} --connect ADDR"))
        })?
        .collect();
    addresses.dedup();
    Ok(addresses)
}

/// The fingerprints that the control plane wants served, for each name that it knows.
async fn expected(client: &Client, names: &[DomainName]) -> Outcome<HashMap<DomainName, HashSet<String>>> {
    const CONCURRENCY: usize = 16;
    let mut answers = futures_util::stream::iter(names)
        .map(|name| async move { (name, claims(client, name.as_str(), None).await) })
        .buffer_unordered(CONCURRENCY);
    let mut expected = HashMap::new();
    while let Some((name, claims)) = answers.next().await {
        let claims = claims?;
        if claims.is_empty() {
            continue;
        }
        // Of several claims at most one is served, and one that was displaced may still have its certificates.
        let served = claims.iter().any(|claim| claim.proof.is_some());
        let meant = claims.into_iter().filter(|claim| !served || claim.proof.is_some());
        let certificates = meant.flat_map(|claim| claim.certificates);
        let fingerprints = certificates.map(|certificate| certificate.fingerprint_sha256);
        expected.insert(name.clone(), fingerprints.collect());
    }
    Ok(expected)
}
