//! The file that an adoption leaves, and the way back by it.
//!
//! A line of JSON for each step, on disk before the next: what a call is about to make, then what it made. So the way back is whole
//! after a kill at any point: what was begun and has no end is looked for by the mark that it would have left.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use portico_api::v1::client::Client;
use portico_api::v1::{AdoptionAnswer, CertificateState, CertificateSummary, Domain};
use portico_cert_store::{CredentialId, DomainId, TenantId};
use serde::{Deserialize, Serialize};

use super::plan::Item;
use crate::commands::named_domain::claims;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table, line};
use crate::progress;
use crate::settings::Settings;

/// The form of the file.
const VERSION: u32 = 1;
/// The longest file: 20,000 adoptions have some 10 MB.
const BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Step {
    Begin {
        version: u32,
        /// Stands in the proof of each domain that the run made.
        mark: String,
    },
    /// A call is about to be sent that makes these domains, and a certificate.
    Begun(Call),
    Made {
        domains: Vec<MadeDomain>,
        /// Domains that were there already.
        #[serde(default)]
        there: Vec<MadeDomain>,
        certificates: Vec<CredentialId>,
    },
    /// The call was refused; it made nothing.
    Refused,
}

#[derive(Debug, Serialize, Deserialize)]
struct Call {
    tenant: TenantId,
    /// Names that the tenant does not have.
    new: Vec<String>,
    /// Those that it has, without this certificate.
    #[serde(default)]
    there: Vec<String>,
    /// SHA-256 of the certificate, lower-case hex. Absent: of an earlier release.
    #[serde(default)]
    certificate: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MadeDomain {
    id: DomainId,
    hostname: String,
    /// As it was made. One that was changed since is somebody's.
    revision: u64,
}

/// The file of a running adoption.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// There is something to take back, or may be.
    is_needed: bool,
}

impl Journal {
    /// # Errors
    /// There is such a file, or none can be made.
    pub(super) fn create(path: PathBuf, mark: &str) -> Outcome<Self> {
        let file = File::options().write(true).create_new(true).open(&path).map_err(|error| {
            Failure::file(&path, error)
                .next_text("--rollback-file with a name that is free, in a folder that is yours")
        })?;
        let mut journal = Self { file, path, is_needed: false };
        journal.write(&Step::Begin { version: VERSION, mark: mark.to_owned() })?;
        Ok(journal)
    }

    pub(super) fn begun(&mut self, item: &Item) -> Outcome {
        let certificate = item.names.first().and_then(|name| name.fingerprint_sha256.clone());
        let (new, there) = (item.new.clone(), item.there.clone());
        self.write(&Step::Begun(Call { tenant: item.tenant, new, there, certificate }))
    }

    /// The file, if there is a way back; else it goes.
    pub(super) fn close(self) -> Option<String> {
        if !self.is_needed {
            // A file that stays does no harm.
            drop(std::fs::remove_file(&self.path));
        }
        self.is_needed.then(|| self.path.display().to_string())
    }

    pub(super) fn made(&mut self, answer: &AdoptionAnswer) -> Outcome {
        let of = |created: bool| {
            let domains = answer.domains.iter().filter(move |domain| domain.created == created);
            domains.filter_map(|domain| {
                let (id, revision) = (domain.domain_id?, domain.revision?);
                Some(MadeDomain { id, hostname: domain.hostname.clone(), revision })
            })
        };
        self.is_needed |= !answer.unchanged;
        let new = answer.certificates.iter().filter(|_| !answer.unchanged);
        let certificates = new.map(|one| one.summary.credential_id);
        self.write(&Step::Made {
            domains: of(true).collect(),
            there: of(false).collect(),
            certificates: certificates.collect(),
        })
    }

    pub(super) fn refused(&mut self) -> Outcome {
        self.write(&Step::Refused)
    }

    /// Nobody knows what became of the call.
    pub(super) fn lost(&mut self) {
        self.is_needed = true;
    }

    fn write(&mut self, step: &Step) -> Outcome {
        let line = serde_json::to_string(step).map_err(|error| Failure::failed(error.to_string()))?;
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Failure::file(&self.path, error))
    }
}

/// What is to be undone.
#[derive(Debug, Default)]
struct Undo {
    mark: String,
    domains: Vec<MadeDomain>,
    /// Domains that were there already; the run may have vouched for them.
    there: Vec<MadeDomain>,
    certificates: Vec<CredentialId>,
    /// Calls of which is not known what became of them.
    open: Vec<Call>,
}

impl Undo {
    /// Whether the run has vouched for a domain.
    fn is_by_us(&self, domain: &Domain) -> bool {
        domain.proof.as_ref().is_some_and(|proof| self.is_marked(&proof.evidence))
    }

    /// By the mark as the note has it: one run's may begin as another's does.
    fn is_marked(&self, evidence: &str) -> bool {
        evidence.contains(&format!("({})", self.mark))
    }
}

fn read(path: &Path) -> Outcome<Undo> {
    let file = File::open(path).map_err(|error| Failure::file(path, error))?;
    let (mut undo, mut has_begun, mut number) = (Undo::default(), false, 0);
    let mut lines = BufReader::new(file.take(BYTES_MAX)).lines().peekable();
    while let Some(line) = lines.next() {
        number += 1;
        let line = line.map_err(|error| Failure::file(path, error))?;
        let step: Step = match serde_json::from_str(&line) {
            Ok(step) => step,
            // Cut off by a kill: the call before it is looked for.
            Err(_) if has_begun && lines.peek().is_none() => break,
            Err(error) => {
                return Err(Failure::file(path, format!("line {number} is none of an adoption's: {error}")));
            }
        };
        match (step, has_begun) {
            (Step::Begin { version: VERSION, mark }, false) => (undo.mark, has_begun) = (mark, true),
            (Step::Begin { version, .. }, _) => {
                let text = format!("it is of form {version}, this release reads {VERSION}");
                return Err(Failure::file(path, text));
            }
            (_, false) => return Err(Failure::file(path, "it does not begin as a file of an adoption does")),
            (Step::Begun(call), true) => undo.open.push(call),
            (Step::Made { domains, there, certificates }, true) => {
                undo.open.pop();
                undo.domains.extend(domains);
                undo.there.extend(there);
                undo.certificates.extend(certificates);
            }
            (Step::Refused, true) => drop(undo.open.pop()),
        }
    }
    if has_begun { Ok(undo) } else { Err(Failure::file(path, "it is empty: the adoption had not begun")) }
}

/// What a way back came to.
#[derive(Debug, Default, Serialize)]
struct Undone {
    certificates: usize,
    domains: usize,
    /// Of them, still served until an operator signs their removal off.
    held: usize,
    /// Domains that stay, with why.
    stay: Vec<Stays>,
}

#[derive(Debug, Serialize)]
struct Stays {
    name: String,
    why: String,
}

/// Takes back what an adoption made: its domains with their routes, its certificates. Nothing else.
///
/// # Errors
/// The file is none; the API's.
pub(super) async fn run(settings: &Settings, path: &Path, dry_run: bool) -> Outcome {
    let mut undo = read(path)?;
    let client = settings.client()?;
    find_open(&client, &mut undo).await?;
    let mut undone = Undone::default();
    let bar = progress::bar("undoing", (undo.certificates.len() + undo.domains.len()) as u64);
    for id in &undo.certificates {
        undone.certificates += usize::from(remove_certificate(&client, *id, dry_run).await?);
        bar.inc(1);
    }
    for made in &undo.there {
        if let Some(why) = stays_vouched_for(&client, &undo, made).await? {
            undone.stay.push(Stays { name: made.hostname.clone(), why });
        }
    }
    for made in undo.domains {
        match remove(&client, &made, dry_run).await? {
            Removal::Done => undone.domains += 1,
            Removal::Held => (undone.domains, undone.held) = (undone.domains + 1, undone.held + 1),
            Removal::Gone => {}
            Removal::Stays(why) => undone.stay.push(Stays { name: made.hostname, why }),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    finish(settings, &undone, dry_run)
}

/// Whether it was in use. One that was replaced since is gone, and what took its place stays.
async fn remove_certificate(client: &Client, id: CredentialId, dry_run: bool) -> Outcome<bool> {
    let is_in_use = match client.certificate(id).await {
        Ok(certificate) => certificate.state != CertificateState::Replaced,
        Err(error) if error.status() == Some(404) => false,
        Err(error) => return Err(error.into()),
    };
    if is_in_use && !dry_run {
        client.delete_certificate(id, true).await?;
    }
    Ok(is_in_use)
}

/// Why a domain that was there already is not as it was before: nothing takes a proof away but its end.
async fn stays_vouched_for(client: &Client, undo: &Undo, made: &MadeDomain) -> Outcome<Option<String>> {
    let domain = match client.domain(&made.id.to_string()).await {
        Ok(domain) => domain,
        Err(error) if error.status() == Some(404) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(undo.is_by_us(&domain).then(|| {
        "it was there before without a proof, and stays served on the word that the adoption gave for it; remove it if that is \
         not to stand (domain rm), and let its tenant add and prove it again"
            .to_owned()
    }))
}

enum Removal {
    Done,
    Held,
    Gone,
    Stays(String),
}

async fn remove(client: &Client, made: &MadeDomain, dry_run: bool) -> Outcome<Removal> {
    let domain = match client.domain(&made.id.to_string()).await {
        Ok(domain) => domain,
        Err(error) if error.status() == Some(404) => return Ok(Removal::Gone),
        Err(error) => return Err(error.into()),
    };
    if domain.revision != made.revision {
        let why = "it was changed since it was adopted; remove it by hand if nobody needs it (domain rm)";
        return Ok(Removal::Stays(why.to_owned()));
    }
    if dry_run {
        return Ok(Removal::Done);
    }
    match client.delete_domain(made.id, Some(domain.revision)).await {
        Ok(None) => Ok(Removal::Done),
        Ok(Some(_)) => Ok(Removal::Held),
        Err(error) if error.status() == Some(412) => {
            Ok(Removal::Stays("it is being changed just now".to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// A claim's first revision is 1, and its proof makes 2 of it.
const REVISION_AS_MADE: u64 = 2;

/// What calls made whose answers were lost: domains by the mark in their proofs, the certificate by what it is, where it was not
/// before.
async fn find_open(client: &Client, undo: &mut Undo) -> Outcome {
    let mut certificates = BTreeSet::new();
    for call in std::mem::take(&mut undo.open) {
        let new = call.new.iter().map(|hostname| (hostname, true));
        for (hostname, is_new) in new.chain(call.there.iter().map(|hostname| (hostname, false))) {
            let Some(domain) = claims(client, hostname, Some(call.tenant)).await?.into_iter().next() else {
                continue;
            };
            let is_ours = undo.is_by_us(&domain);
            let is_this = |one: &&CertificateSummary| match &call.certificate {
                Some(certificate) => one.adopted && one.fingerprint_sha256 == *certificate,
                None => one.adopted && is_ours,
            };
            certificates.extend(domain.certificates.iter().filter(is_this).map(|one| one.credential_id));
            let made = MadeDomain { id: domain.id, hostname: hostname.clone(), revision: REVISION_AS_MADE };
            match (is_new && is_ours, is_ours) {
                (true, _) => undo.domains.push(made),
                (false, true) => undo.there.push(made),
                (false, false) => {}
            }
        }
    }
    undo.certificates.extend(certificates);
    Ok(())
}

fn finish(settings: &Settings, undone: &Undone, dry_run: bool) -> Outcome {
    if settings.format == Format::Json {
        output::json(undone)?;
    } else {
        let mut table = Table::new(&["NAME", "STAYS BECAUSE"]);
        for stays in &undone.stay {
            table.row([stays.name.clone(), stays.why.clone()]);
        }
        if !table.is_empty() {
            table.print();
        }
        let word = if dry_run { "would be removed" } else { "removed" };
        line(format!("{} certificates and {} domains {word}", undone.certificates, undone.domains));
    }
    if undone.held > 0 {
        let text = format!(
            "{} names are served until their removal is signed off: they are many at once",
            undone.held
        );
        return Err(Failure::not_ready(text).next("removal list"));
    }
    if undone.stay.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("{} domains stay", undone.stay.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::adopt::report::NameReport;

    fn tenant() -> TenantId {
        TenantId::generate()
    }

    /// A call for a name that is new and its www, which is there.
    fn item(name: &str) -> Item {
        let report = NameReport {
            fingerprint_sha256: Some("c0ffee".to_owned()),
            ..NameReport::refused(name.to_owned(), String::new())
        };
        Item {
            tenant: tenant(),
            certificate: 0,
            issuer: None,
            domains: Vec::new(),
            names: vec![report],
            new: vec![name.to_owned()],
            there: vec![format!("www.{name}")],
        }
    }

    #[test]
    fn what_was_begun_and_has_no_end_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("back");
        let mut journal = Journal::create(path.clone(), "run 1").unwrap();
        assert!(Journal::create(path.clone(), "run 2").is_err(), "a file that is there is somebody's");
        journal.begun(&item("a.test")).unwrap();
        journal.refused().unwrap();
        journal.begun(&item("b.test")).unwrap();
        let answer = AdoptionAnswer {
            domains: vec![portico_api::v1::AdoptedDomain {
                hostname: "b.test".to_owned(),
                domain_id: Some(DomainId::generate()),
                created: true,
                revision: Some(2),
                unchanged: false,
                problem: None,
            }],
            certificates: Vec::new(),
            unchanged: false,
            account: None,
        };
        journal.made(&answer).unwrap();
        journal.begun(&item("c.test")).unwrap();
        // Killed in the middle of a line.
        journal.file.write_all(b"{\"step\":\"ma").unwrap();
        let undo = read(&path).unwrap();
        assert_eq!((undo.mark.as_str(), undo.domains.len()), ("run 1", 1));
        assert_eq!(undo.open.iter().map(|call| call.new.clone()).collect::<Vec<_>>(), [["c.test"]]);
        assert_eq!(undo.open[0].there, ["www.c.test"]);
        assert_eq!(undo.open[0].certificate.as_deref(), Some("c0ffee"), "it is known by that");
        assert!(undo.is_marked("the operator's word: moved (run 1)"));
        assert!(!undo.is_marked("the operator's word: moved (run 12)"), "another run's");
        assert_eq!(journal.close(), Some(path.display().to_string()));
    }

    #[test]
    fn a_run_that_made_nothing_leaves_no_way_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("back");
        let mut journal = Journal::create(path.clone(), "run 1").unwrap();
        journal.begun(&item("a.test")).unwrap();
        journal.refused().unwrap();
        assert_eq!(journal.close(), None);
        assert!(!path.exists());
        let mut journal = Journal::create(path.clone(), "run 2").unwrap();
        journal.begun(&item("a.test")).unwrap();
        journal.lost();
        assert!(journal.close().is_some() && path.exists(), "it may have made something");
    }

    /// Files of earlier releases say less.
    #[test]
    fn a_file_without_the_certificate_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("back");
        let begun = format!("{{\"step\":\"begun\",\"tenant\":\"{}\",\"new\":[\"a.test\"]}}", tenant());
        std::fs::write(&path, format!("{{\"step\":\"begin\",\"version\":1,\"mark\":\"x\"}}\n{begun}\n"))
            .unwrap();
        let undo = read(&path).unwrap();
        assert_eq!((undo.open.len(), undo.open[0].certificate.as_ref()), (1, None));
    }

    #[test]
    fn a_file_of_something_else_undoes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for (text, words) in [
            ("", "it is empty"),
            ("hello\n", "line 1 is none"),
            ("{\"step\":\"refused\"}\n", "does not begin"),
            ("{\"step\":\"begin\",\"version\":9,\"mark\":\"x\"}\n", "form 9"),
            (
                "{\"step\":\"begin\",\"version\":1,\"mark\":\"x\"}\nhello\n{\"step\":\"refused\"}\n",
                "line 2 is none",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let told = read(&path).unwrap_err().text;
            assert!(told.contains(words), "{text}: {told}");
        }
    }
}
