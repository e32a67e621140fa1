//! What became of each name, for people and programs.

use portico_api::v1::Problem;
use portico_cert_store::NamePattern;
use serde::Serialize;

use super::compare::Compared;
use super::found::{FoundCertificate, Skipped};
use crate::output::{self, Colour, Table, line};

/// With more rows than this a table leaves out names of which there is nothing to tell.
const ROWS_SHOWN: usize = 100;

/// An adoption, or one that would be.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) dry_run: bool,
    pub(super) names: Vec<NameReport>,
    pub(super) accounts: Vec<AccountReport>,
    /// What was found and is not taken.
    pub(super) skipped: Vec<Skipped>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rollback_file: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct NameReport {
    pub(super) name: String,
    pub(super) result: NameResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<String>,
    /// The file of its certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<String>,
    /// Lower-case hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fingerprint_sha256: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) renew_at: Option<String>,
    /// It is replaced on the account that ordered it.
    pub(super) on_its_account: bool,
    pub(super) route: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route_from: Option<String>,
    /// Why it was not adopted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    pub(super) remarks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compared: Option<Compared>,
    #[serde(skip)]
    pub(super) domain: Option<portico_cert_store::DomainId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NameResult {
    Adopted,
    /// It was so before.
    Unchanged,
    WouldBeAdopted,
    NotAdopted,
}

#[derive(Debug, Serialize)]
pub(super) struct AccountReport {
    pub(super) issuer: String,
    pub(super) file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    pub(super) text: String,
}

impl NameReport {
    pub(super) fn of(name: &NamePattern, certificate: &FoundCertificate) -> Self {
        let fingerprint = certificate.facts.fingerprint_sha256;
        Self {
            certificate: Some(certificate.from.display().to_string()),
            fingerprint_sha256: Some(hex::encode(fingerprint)),
            ..Self::refused(name.to_string(), String::new())
        }
    }

    pub(super) fn refused(name: String, why: String) -> Self {
        Self {
            name,
            result: NameResult::NotAdopted,
            tenant: None,
            certificate: None,
            fingerprint_sha256: None,
            not_after: None,
            renew_at: None,
            on_its_account: false,
            route: String::new(),
            route_from: None,
            why: Some(why).filter(|why| !why.is_empty()),
            remarks: Vec::new(),
            compared: None,
            domain: None,
        }
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.result != NameResult::NotAdopted
    }

    fn differs(&self) -> bool {
        self.compared.as_ref().is_some_and(|compared| !compared.differences.is_empty())
    }

    fn about(&self) -> String {
        let mut parts: Vec<String> = self.why.iter().cloned().collect();
        if let Some(compared) = &self.compared {
            parts.push(compared.text());
        }
        parts.extend(self.remarks.iter().cloned());
        parts.join("; ")
    }
}

/// What a refusal of the API says, with what to do about it here.
pub(super) fn problem_text(problem: &Problem) -> String {
    let is_own =
        problem.errors.iter().any(|error| matches!(error.code.as_str(), "origin_denied" | "origin_own"));
    let hint = if is_own {
        "; is it the old machine itself? Then say what the edges call it (--localhost-is HOST), or grant the address to the \
         tenant (tenant set --egress-grant)"
    } else {
        ""
    };
    format!("{problem}{hint}")
}

impl Report {
    /// How many names were not adopted, and how many of the others are served otherwise than before.
    pub(super) fn faults(&self) -> (usize, usize) {
        let refused = self.names.iter().filter(|name| !name.is_adopted()).count();
        (refused, self.names.iter().filter(|name| name.differs()).count())
    }

    pub(super) fn print(&self) {
        let hide = self.names.len() > ROWS_SHOWN;
        let mut table = Table::new(&["NAME", "RESULT", "TENANT", "UNTIL", "RENEWAL", "REQUESTS", "ABOUT"]);
        let is_shown = |name: &&NameReport| !hide || !name.is_adopted() || name.differs();
        for name in self.names.iter().filter(is_shown) {
            let renewal = name.renew_at.as_deref().map(|at| {
                let how = if name.on_its_account { "on its account" } else { "as any other" };
                format!("{} {how}", output::date(at))
            });
            table.row([
                name.name.clone(),
                result_text(name),
                output::or_dash(name.tenant.clone()),
                output::or_dash(name.not_after.as_deref().map(output::date)),
                output::or_dash(renewal),
                output::or_dash(Some(name.route.clone())),
                output::or_dash(Some(name.about())),
            ]);
        }
        if !table.is_empty() {
            table.print();
        }
        let mut table = Table::new(&["LEFT OUT", "BECAUSE"]);
        for skipped in &self.skipped {
            table.row([skipped.what.clone(), skipped.why.clone()]);
        }
        if !table.is_empty() {
            table.print();
        }
        for account in &self.accounts {
            line(format!("account of issuer {} ({}): {}", account.issuer, account.file, account.text));
        }
        let (refused, different) = self.faults();
        let adopted = self.names.len() - refused;
        let word = if self.dry_run { "would be adopted" } else { "adopted" };
        let mut text = format!("{adopted} names {word}, {refused} not");
        if different > 0 {
            text.push_str(&format!(", {different} answered otherwise than by the old server"));
        }
        line(text);
        if let Some(file) = &self.rollback_file {
            line(format!("to undo it: {} adopt --rollback {file}", crate::invocation()));
        }
    }
}

fn result_text(name: &NameReport) -> String {
    let (word, colour) = match name.result {
        NameResult::Adopted => ("adopted", Colour::Green),
        NameResult::Unchanged => ("as before", Colour::Green),
        NameResult::WouldBeAdopted => ("would be", Colour::Green),
        NameResult::NotAdopted => ("not adopted", Colour::Red),
    };
    output::paint(word, colour)
}
