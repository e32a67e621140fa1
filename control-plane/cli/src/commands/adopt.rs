//! `portico adopt --from PROGRAM DIR`: takes over what certbot, Caddy, acme.sh or nginx serves today.
//!
//! Five visible steps: read the folder ([`found`] and a module for each program), look what the control plane has ([`plan`]), take
//! the accounts, send the certificates with their names, compare old server and edges ([`compare`]). What was made is written down
//! as it is made ([`rollback`]), and told name by name ([`report`]). Nothing is ordered: a certificate is replaced when its time
//! comes, on the account that ordered it where that is ours by then.

mod acme_sh;
mod caddy;
mod certbot;
mod compare;
mod found;
mod jwk;
mod nginx;
mod plan;
mod report;
mod rollback;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use portico_api::v1::client::{Client, ClientError};
use portico_api::v1::{Adoption, AdoptionAnswer, SecretPem};
use portico_cert_store::{KeyType, NamePattern, PrivateKey, UPLOADED_KEY_BYTES_MAX};
use url::Url;

use crate::clock;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::progress;
use crate::settings::Settings;
use compare::Places;
use found::{AccountFile, Files, Found, KeyForm};
use plan::{Item, Plan, Wishes};
use report::{AccountReport, NameReport, NameResult, Report, problem_text};
use rollback::Journal;

/// What the note may have of the caller's words, bytes: the rest is the mark of the run.
const NOTE_BYTES_MAX: usize = 400;

#[derive(Debug, clap::Args)]
pub(crate) struct AdoptArgs {
    /// The program whose folder it is
    #[arg(
        long,
        value_enum,
        value_name = "PROGRAM",
        required_unless_present = "rollback",
        requires = "folder"
    )]
    from: Option<Program>,
    /// Its folder: /etc/letsencrypt, /var/lib/caddy, ~/.acme.sh, /etc/nginx, or a copy
    #[arg(value_name = "DIR", required_unless_present = "rollback")]
    folder: Option<PathBuf>,
    /// Whose the names are, by name or id [default: the tenant that has each as a domain]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Where requests go for names of which the folder does not say it, as http://192.0.2.10:80
    #[arg(long, value_name = "URL", value_parser = http_url)]
    proxy: Option<Url>,
    /// What the edges call the old machine: stands in the place of localhost in its configuration
    #[arg(long, value_name = "HOST")]
    localhost_is: Option<String>,
    /// Of Caddy: its configuration in JSON [default: autosave.json below DIR]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the other machine's / is, when DIR is in a copy of it
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// This name only; repeatable
    #[arg(long, value_name = "NAME")]
    only: Vec<NamePattern>,
    /// Give accounts with RSA keys (certbot's) a new key here. From then on the old program can use them no more
    #[arg(long)]
    change_account_keys: bool,
    /// Leave accounts where they are: what follows is then ordered on the issuer's own
    #[arg(long, conflicts_with = "change_account_keys")]
    without_accounts: bool,
    /// Why you may vouch for the names, for the record [default: which folder they were served from]
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Tell what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Where to write down what is made [default: ./portico-adopt-TIME.rollback]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "rollback"])]
    rollback_file: Option<PathBuf>,
    /// Undo an adoption by the file that it left: the domains, routes and certificates that it made, and nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "folder"])]
    rollback: Option<PathBuf>,
    /// The old server, ip[:port] or host[:port], to compare the edges with [default: where DNS points]
    #[arg(long, value_name = "ADDR")]
    old: Option<String>,
    /// An edge to compare, ip[:port]; repeatable [default: the context's, else those that the control plane tells visitors of]
    #[arg(long = "edge", value_name = "ADDR")]
    edges: Vec<String>,
    /// Do not compare
    #[arg(long)]
    no_compare: bool,
    /// How long edges may take to show the certificates
    #[arg(long, default_value = "60s", value_parser = crate::duration::parse)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Program {
    Certbot,
    Caddy,
    #[value(name = "acme.sh")]
    AcmeSh,
    Nginx,
}

impl Program {
    fn word(self) -> &'static str {
        match self {
            Self::Certbot => "certbot",
            Self::Caddy => "caddy",
            Self::AcmeSh => "acme.sh",
            Self::Nginx => "nginx",
        }
    }
}

pub(crate) async fn run(settings: &Settings, args: AdoptArgs) -> Outcome {
    if let Some(file) = &args.rollback {
        return rollback::run(settings, file, args.dry_run).await;
    }
    let (Some(program), Some(folder)) = (args.from, args.folder.as_deref()) else {
        return Err(Failure::usage("say whose folder it is (--from), and which"));
    };
    let found = read(program, folder, &args)?;
    let client = settings.client()?;
    let plan = plan::make(&client, &wishes(&args), found).await?;
    let files = files(&args)?;
    let mut report = Report { dry_run: args.dry_run, ..Report::default() };
    // The old process ends at any point: each run has a mark of its own.
    let started = clock::unix().as_secs();
    let mark = format!("adoption {started}-{}", std::process::id());
    let mut sending = Sending {
        client: &client,
        accounts: HashMap::new(),
        note: note(&args, program, folder, &mark),
        journal: None,
    };
    if !args.dry_run && !plan.items.is_empty() {
        let default = || PathBuf::from(format!("portico-adopt-{started}-{}.rollback", std::process::id()));
        sending.journal = Some(Journal::create(args.rollback_file.clone().unwrap_or_else(default), &mark)?);
    }
    // What was done until something fails is told, too.
    let ready = match args.without_accounts {
        true => Ok(()),
        false => accounts(&client, &plan, &files, &args, (&mut sending.accounts, &mut report)).await,
    };
    let sent = sending.send_all(ready, plan, &mut report).await;
    report.rollback_file = sending.journal.take().and_then(Journal::close);
    if sent.is_ok() && !args.dry_run && !args.no_compare {
        let places = Places { old: args.old.clone(), edges: args.edges.clone(), patience: args.timeout };
        let compared = compare::compare(settings, &client, &places, &mut report.names).await;
        compare::remark_if_unreachable(&report.names);
        finish(settings, &report)?;
        compared?;
    } else {
        finish(settings, &report)?;
    }
    sent?;
    verdict(&report)
}

fn verdict(report: &Report) -> Outcome {
    match report.faults() {
        (0, 0) if report.names.is_empty() => Err(Failure::failed("there is nothing to adopt")),
        (0, 0) => Ok(()),
        (0, different) => Err(Failure::failed(format!(
            "{different} names are answered otherwise than by the old server; look at them before DNS moves"
        ))),
        (refused, _) => {
            Err(Failure::failed(format!("{refused} of {} names were not adopted", report.names.len())))
        }
    }
}

fn finish(settings: &Settings, report: &Report) -> Outcome {
    if settings.format == Format::Json {
        return output::json(report);
    }
    report.print();
    Ok(())
}

fn read(program: Program, folder: &Path, args: &AdoptArgs) -> Outcome<Found> {
    if args.config.is_some() && program != Program::Caddy {
        return Err(Failure::usage("--config is for --from caddy"));
    }
    if !folder.exists() {
        return Err(Failure::usage(format!("{} is not there", folder.display())));
    }
    let files = files(args)?;
    let now = clock::unix();
    match program {
        Program::Certbot => certbot::read(folder, &files, now),
        Program::Caddy => caddy::read(folder, args.config.as_deref(), &files, now),
        Program::AcmeSh => acme_sh::read(folder, &files, now),
        Program::Nginx => nginx::read(folder, &files, now),
    }
}

/// The other machine's files: of a copy only what lies in it, or in what was named besides.
fn files(args: &AdoptArgs) -> Outcome<Files> {
    let named = [args.folder.as_deref(), args.config.as_deref()];
    Files::new(args.root.as_deref(), named.into_iter().flatten())
}

fn wishes(args: &AdoptArgs) -> Wishes {
    Wishes {
        tenant: args.tenant.clone(),
        proxy: args.proxy.clone(),
        localhost_is: args.localhost_is.clone(),
        only: args.only.iter().cloned().collect(),
    }
}

/// The operator's word for the names, with the run's mark behind it.
fn note(args: &AdoptArgs, program: Program, folder: &Path, mark: &str) -> String {
    let default = || format!("served by {} until now, from {}", program.word(), folder.display());
    let mut text = args.note.clone().unwrap_or_else(default);
    let end = (0..=NOTE_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    format!("{text} ({mark})")
}

/// Takes the accounts over that certificates were ordered on. One that cannot be had is told, and its certificates are replaced as
/// any other.
async fn accounts(
    client: &Client,
    plan: &Plan,
    files: &Files,
    args: &AdoptArgs,
    (urls, report): (&mut AccountUrls, &mut Report),
) -> Outcome {
    let wanted = plan::accounts(plan);
    let issuers = if wanted.is_empty() { Vec::new() } else { client.issuers().await?.items };
    let ours: HashSet<String> =
        issuers.into_iter().flat_map(|issuer| issuer.accounts).filter_map(|account| account.url).collect();
    for (issuer, account) in wanted {
        let (url, text) = match account_key(files, &account) {
            // Its key may be another one by now.
            _ if account.url.as_ref().is_some_and(|url| ours.contains(url)) => {
                (account.url.clone(), "is ours already".to_owned())
            }
            Err(why) => (None, why),
            Ok((_, kind)) if args.dry_run => (None, would_be(kind, args.change_account_keys)),
            Ok((_, kind)) if kind.is_rsa() && !args.change_account_keys => (None, would_be(kind, false)),
            Ok((key, kind)) => match client.adopt_account(&issuer, key, kind.is_rsa()).await {
                Ok(account) => {
                    let key = if kind.is_rsa() {
                        ", with a new key: its old program can use it no more"
                    } else {
                        ""
                    };
                    (account.url.clone(), format!("{} is ours too{key}", account.url.unwrap_or_default()))
                }
                Err(error) if error.code().is_some() => {
                    (None, format!("{error}; its names are renewed as any other"))
                }
                Err(error) => return Err(error.into()),
            },
        };
        if let Some(url) = &url {
            urls.insert((issuer.clone(), account.file.clone()), url.clone());
        }
        report.accounts.push(AccountReport { issuer, file: account.file.display().to_string(), url, text });
    }
    Ok(())
}

fn would_be(kind: KeyType, change: bool) -> String {
    match (kind, change) {
        (KeyType::EcdsaP256, _) => "would be taken over".to_owned(),
        (kind, true) if kind.is_rsa() => {
            "would get a new key here (it has an RSA key), which locks its old program out".to_owned()
        }
        (kind, false) if kind.is_rsa() => {
            "has an RSA key, and orders are signed with P-256 keys alone: its names are renewed as any \
             other, unless --change-account-keys gives it a new key, which locks its old program out"
                .to_owned()
        }
        (kind, _) => format!(
            "has a key of the kind {kind}, which cannot be taken over; its names are renewed as any other"
        ),
    }
}

fn account_key(files: &Files, account: &AccountFile) -> Result<(SecretPem, KeyType), String> {
    let text = zeroize::Zeroizing::new(files.read(&account.file, UPLOADED_KEY_BYTES_MAX)?);
    let pem = match account.form {
        KeyForm::Pem => SecretPem::new(text.to_string()),
        KeyForm::Jwk => jwk::pem(&text)?,
    };
    let key = PrivateKey::from_pem(pem.reveal().as_bytes()).map_err(|error| error.to_string())?;
    Ok((pem, key.key_type()))
}

/// URLs of accounts that are ours by now, by issuer and file.
type AccountUrls = HashMap<(String, PathBuf), String>;

/// The step that changes the control plane.
struct Sending<'a> {
    client: &'a Client,
    accounts: AccountUrls,
    note: String,
    /// Absent in a dry run.
    journal: Option<Journal>,
}

impl Sending<'_> {
    /// `ready`: what came of the steps before; nothing is sent after a failure.
    ///
    /// # Errors
    /// That of `ready`; the API cannot be reached, or refuses the caller. What was done until then is in the report.
    async fn send_all(&mut self, ready: Outcome, plan: Plan, report: &mut Report) -> Outcome {
        let Plan { certificates, items, refused, skipped } = plan;
        report.names = refused;
        report.skipped = skipped;
        let bar = progress::bar("adopting", items.len() as u64);
        let mut ended = ready;
        for mut item in items {
            let certificate = &certificates[item.certificate];
            let account = certificate.account.as_ref().zip(item.issuer.clone());
            let account =
                account.and_then(|(account, issuer)| self.accounts.get(&(issuer, account.file.clone())));
            let adoption = Adoption {
                domains: std::mem::take(&mut item.domains),
                chain_pem: certificate.chain_pem.clone(),
                key_pem: certificate.key_pem.clone(),
                note: self.note.clone(),
                issuer: item.issuer.clone(),
                account: account.cloned(),
                dry_run: self.journal.is_none(),
            };
            if ended.is_ok() {
                ended = self.send(&mut item, &adoption).await;
            } else {
                item.names.iter_mut().for_each(|name| name.why = Some("not reached".to_owned()));
            }
            report.names.append(&mut item.names);
            bar.inc(1);
        }
        bar.finish_and_clear();
        report.names.sort_by(|a, b| (a.is_adopted(), &a.name).cmp(&(b.is_adopted(), &b.name)));
        ended
    }

    async fn send(&mut self, item: &mut Item, adoption: &Adoption) -> Outcome {
        if let Some(journal) = &mut self.journal {
            journal.begun(item)?;
        }
        match self.client.adopt_certificate(item.tenant, adoption).await {
            Ok(answer) => {
                told(&mut item.names, &answer, adoption.dry_run);
                if let Some(journal) = &mut self.journal {
                    journal.made(&answer)?;
                }
                Ok(())
            }
            Err(error) => {
                let refused = error
                    .status()
                    .filter(|status| (400..500).contains(status) && ![401, 403, 429].contains(status));
                let text = if let ClientError::Problem(problem) = &error {
                    problem_text(problem)
                } else {
                    error.to_string()
                };
                item.names.iter_mut().for_each(|name| name.why = Some(text.clone()));
                if refused.is_none() {
                    let is_lost = error.status().is_none_or(|status| status >= 500);
                    if let Some(journal) = self.journal.as_mut().filter(|_| is_lost) {
                        journal.lost();
                    }
                    return Err(error.into());
                }
                if let Some(journal) = &mut self.journal {
                    journal.refused()?;
                }
                Ok(())
            }
        }
    }
}

/// Puts an answer into the reports of its names.
fn told(names: &mut [NameReport], answer: &AdoptionAnswer, dry_run: bool) {
    let first = answer.certificates.first().map(|certificate| &certificate.summary);
    for (name, domain) in names.iter_mut().zip(&answer.domains) {
        if let Some(problem) = &domain.problem {
            name.why = Some(problem_text(problem));
            continue;
        }
        name.result = match (dry_run, domain.unchanged) {
            (true, _) => NameResult::WouldBeAdopted,
            (false, true) => NameResult::Unchanged,
            (false, false) => NameResult::Adopted,
        };
        name.domain = domain.domain_id;
        name.not_after = first.map(|summary| summary.not_after.clone());
        name.renew_at = first.map(|summary| summary.renew_at.clone());
        name.on_its_account = answer.account.is_some();
    }
}

fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{error}; write http://host[:port]"))?;
    match (url.scheme(), url.path(), url.username()) {
        ("http" | "https", "/" | "", "") => Ok(url),
        _ => Err("it is http://host[:port] or https://host[:port], without a path".to_owned()),
    }
}
