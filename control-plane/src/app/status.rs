//! Where a domain stands, in one word, with the reasons and the next step: a pure function of stored facts.
//!
//! The order of the questions is the order of a domain's life: suspended? proved? certificate? on the edges? well?
//! Unknown is never false: a check that got no answer takes nothing away and is shown as not known.

use portico_api::v1::{
    Actor, Condition, ConditionKind, ConditionStatus, DnsInstructions, DomainStatus, NextAction,
    RecordPurpose,
};
use portico_cert_store::{CellId, EdgeId};

use super::instructions::{file_text, proof_text, traffic_text};
use crate::clock::{DAY_MS, NEVER_MS, rfc3339};
use crate::store::condition::ConditionRow;
use crate::tasks::issuance::{LEFT, RETIRED};

#[path = "status/uploaded.rs"]
mod uploaded;

/// Unproved claims are looked at for so long after they were made.
pub(crate) const CLAIM_LASTS_MS: i64 = 7 * DAY_MS;

/// What is stored about a domain. Times are Unix milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) name: &'a str,
    pub(crate) suspended: bool,
    /// When the standing proof was accepted; `None`: there is none, or another claim's is newer.
    pub(crate) proved_at: Option<i64>,
    /// The name is served for another tenant.
    pub(crate) owned_by_another: bool,
    pub(crate) created_at: i64,
    pub(crate) next_check_at: Option<i64>,
    pub(crate) conditions: &'a [ConditionRow],
    pub(crate) dns: &'a DnsInstructions,
    /// One for each cell that is to serve the domain.
    pub(crate) cells: Vec<CellFacts>,
    pub(crate) order: Option<OrderFacts>,
    /// What kept the name from being ordered, when something did.
    pub(crate) trouble: Option<Trouble>,
    /// What edges refuse of it at present.
    pub(crate) refusals: Vec<RefusalFacts>,
    /// The tenant has used up its budget of new orders until then.
    pub(crate) budget_until: Option<i64>,
    /// Certificates are ordered for it.
    pub(crate) issues: bool,
    /// What the tenant has brought for it, one for each kind of key and cell.
    pub(crate) uploaded: Vec<UploadedFacts>,
}

#[derive(Clone, Debug)]
pub(crate) struct UploadedFacts {
    pub(crate) cell: CellId,
    /// `RSA 2048`
    pub(crate) key: String,
    pub(crate) created_at: i64,
    /// From when on the next is asked for.
    pub(crate) renew_at: i64,
    pub(crate) not_after: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct CellFacts {
    pub(crate) cell: CellId,
    /// The issued one while it is valid; else the one that ends last.
    pub(crate) certificate: Option<CertificateFacts>,
    pub(crate) live_edges: usize,
    /// Live edges that have applied the domain and its certificate.
    pub(crate) current_edges: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct CertificateFacts {
    pub(crate) created_at: i64,
    pub(crate) renew_at: i64,
    pub(crate) not_after: i64,
}

/// The newest order of the name's group that has not ended well.
#[derive(Clone, Debug)]
pub(crate) struct OrderFacts {
    pub(crate) step: OrderStep,
    /// It is for the name too; else the name came to the group later, and what is wrong is not its fault.
    pub(crate) carries: bool,
    /// Of the order, not of one of its names: the CA's fault or ours.
    pub(crate) error: Option<String>,
    pub(crate) next_at: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OrderStep {
    /// The CA is to look, or looks.
    Validating,
    Issuing,
    Failed,
}

/// An edge has refused a version and keeps what it had, until it takes a later one.
#[derive(Clone, Debug)]
pub(crate) struct RefusalFacts {
    pub(crate) edge: EdgeId,
    pub(crate) of: RefusedPart,
    pub(crate) version: u64,
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) since: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedPart {
    Domain,
    Certificate,
    Tenant,
}

#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) error: String,
    pub(crate) next_at: i64,
    /// A CA's validation failed; else the pre-flight did.
    pub(crate) at_ca: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Assessment {
    pub(crate) status: DomainStatus,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) next_action: Option<NextAction>,
}

/// Assesses a domain at `now`.
pub(crate) fn assess(facts: &Facts<'_>, now: i64) -> Assessment {
    let (status, next_action) = judge(facts, now);
    Assessment { status, conditions: conditions(facts, now), next_action }
}

fn judge(facts: &Facts<'_>, now: i64) -> (DomainStatus, Option<NextAction>) {
    if facts.suspended {
        let text =
            "Suspended by the operator; its certificate is kept alive. An operator resumes it.".to_owned();
        return (DomainStatus::Suspended, Some(act(Actor::Operator, text)));
    }
    if facts.proved_at.is_none() {
        return unproved(facts, now);
    }
    if let Some(gone) = gone(facts, RETIRED) {
        return (DomainStatus::Left, Some(gone));
    }
    if let Some(refusal) = facts.refusals.first() {
        return (DomainStatus::Degraded, Some(refused(refusal)));
    }
    let usable = |cell: &CellFacts| cell.certificate.is_some_and(|certificate| certificate.not_after > now);
    if !facts.cells.iter().all(usable) {
        return uncertified(facts, now);
    }
    if let Some(waiting) =
        facts.cells.iter().find(|cell| cell.live_edges == 0 || cell.current_edges < cell.live_edges)
    {
        return (DomainStatus::Deploying, Some(deploying(waiting)));
    }
    match complaint(facts, now) {
        Some(action) => (DomainStatus::Degraded, Some(action)),
        None => (DomainStatus::Active, None),
    }
}

fn unproved(facts: &Facts<'_>, now: i64) -> (DomainStatus, Option<NextAction>) {
    let record = proof_text(facts.dns);
    let records = |purposes: &[RecordPurpose]| {
        facts.dns.records.iter().filter(|record| purposes.contains(&record.purpose)).cloned().collect()
    };
    let mut action = if facts.owned_by_another {
        act(
            Actor::Tenant,
            format!("The name is served for another account here. To take it over, set {record}."),
        )
    } else {
        let file = file_text(facts.dns);
        act(Actor::Tenant, format!("Prove that you control {}: set {record}.{file}", facts.name))
    };
    action.records = records(&[RecordPurpose::ProofAndTraffic, RecordPurpose::Proof]);
    action.retry_at = facts.next_check_at.map(rfc3339);
    let given_up = facts.next_check_at.is_none() && now - facts.created_at >= CLAIM_LASTS_MS;
    if given_up {
        action.text = format!("{} Then ask for a check; the system no longer looks by itself.", action.text);
        return (DomainStatus::Failed, Some(action));
    }
    (DomainStatus::Pending, Some(action))
}

fn uncertified(facts: &Facts<'_>, now: i64) -> (DomainStatus, Option<NextAction>) {
    if !facts.issues {
        let text = format!(
            "Upload a certificate for {} (`portico cert upload`), or have one issued (issue_certificates).",
            facts.name
        );
        return (DomainStatus::Pending, Some(act(Actor::Tenant, text)));
    }
    if let Some(order) = facts.order.as_ref().filter(|order| order.step != OrderStep::Failed) {
        return under_way(order, now);
    }
    let at_ca = facts.trouble.as_ref().is_some_and(|trouble| trouble.at_ca);
    let elsewhere = is(facts, ConditionKind::DnsPointsHere, ConditionStatus::False);
    let unreachable = is(facts, ConditionKind::ChallengeReachable, ConditionStatus::False);
    if (elsewhere || unreachable) && !at_ca {
        return (DomainStatus::Pending, Some(point_here(facts)));
    }
    if let Some(action) = forbidden_by_caa(facts).filter(|_| !at_ca) {
        return (DomainStatus::Pending, Some(action));
    }
    if let Some(trouble) = &facts.trouble {
        let mut action =
            if elsewhere || unreachable { point_here(facts) } else { act(Actor::Tenant, String::new()) };
        action.text = format!("No certificate yet: {} {}", trouble.error, action.text).trim().to_owned();
        if trouble.next_at >= NEVER_MS {
            action.text.push_str(PAUSED);
        }
        action.retry_at = is_ahead(trouble.next_at, now).then(|| rfc3339(trouble.next_at));
        return (if at_ca { DomainStatus::Failed } else { DomainStatus::Pending }, Some(action));
    }
    if let Some(order) = &facts.order {
        return failed_as_a_whole(order, now);
    }
    if let Some(until) = facts.budget_until.filter(|until| *until > now) {
        let text = "The tenant has used up its budget of new orders; its names go on in turn from the time shown. An \
                    operator can raise tenant_1h and tenant_24h of [issuer.limits].";
        return (DomainStatus::Issuing, Some(retry(text, until, now)));
    }
    (DomainStatus::Issuing, Some(act(Actor::System, "The certificate is about to be ordered.".to_owned())))
}

/// An order that is not over goes on by itself, whatever the CA says meanwhile.
fn under_way(order: &OrderFacts, now: i64) -> (DomainStatus, Option<NextAction>) {
    let status = match order.step {
        _ if !order.carries => DomainStatus::Issuing,
        OrderStep::Validating => DomainStatus::Validating,
        OrderStep::Issuing | OrderStep::Failed => DomainStatus::Issuing,
    };
    let text = match (&order.error, order.step) {
        _ if !order.carries => format!("{}.", waits_for_group(order)),
        (Some(error), _) => format!("{} {GOES_ON}", sentence(error)),
        (None, OrderStep::Validating) => "The CA is validating the name.".to_owned(),
        (None, _) => "The certificate is being ordered.".to_owned(),
    };
    (status, Some(retry(&text, order.next_at, now)))
}

/// The order ended and none of its names is to blame: another follows, and nobody has to do anything.
fn failed_as_a_whole(order: &OrderFacts, now: i64) -> (DomainStatus, Option<NextAction>) {
    let error = sentence(order.error.as_deref().unwrap_or("no reason is known"));
    if order.next_at <= now {
        let text = format!("The certificate is about to be ordered again. The last order failed: {error}");
        return (DomainStatus::Issuing, Some(act(Actor::System, text)));
    }
    if !order.carries {
        let text = format!("{}. {GOES_ON}", waits_for_group(order));
        return (DomainStatus::Issuing, Some(retry(&text, order.next_at, now)));
    }
    let text = format!("No certificate yet, for no fault of the name: {error} {GOES_ON}");
    (DomainStatus::Failed, Some(retry(&text, order.next_at, now)))
}

const GOES_ON: &str = "It goes on by itself.";
/// After too many failures in a row.
const PAUSED: &str =
    " It is not tried again by itself: mend it, then retry it (`portico domain retry NAME`).";

/// Whether something goes on by itself later.
fn is_ahead(at: i64, now: i64) -> bool {
    at > now && at < NEVER_MS
}

/// Of a name that came to its group after the order; without a full stop.
fn waits_for_group(order: &OrderFacts) -> String {
    let state = match (&order.error, order.step) {
        (None, _) => "is under way".to_owned(),
        (Some(error), OrderStep::Failed) => format!("failed: {}", error.trim_end_matches('.')),
        (Some(error), _) => format!("waits: {}", error.trim_end_matches('.')),
    };
    format!("The name waits for its SAN group: the order for the names that were there before it {state}")
}

fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

fn point_here(facts: &Facts<'_>) -> NextAction {
    let found = stored(facts, ConditionKind::DnsPointsHere)
        .map(|row| row.observed.message.clone())
        .unwrap_or_default();
    let mut text = format!("Point {} here: set {}.", facts.name, traffic_text(facts.dns));
    if !found.is_empty() {
        text = format!("{text} Now: {found}");
    }
    let mut action = act(Actor::Tenant, text);
    let wanted = [RecordPurpose::Traffic, RecordPurpose::ChallengeDelegation];
    action.records =
        facts.dns.records.iter().filter(|record| wanted.contains(&record.purpose)).cloned().collect();
    let next = stored(facts, ConditionKind::ChallengeReachable).and_then(|row| row.observed.next_check_at);
    action.retry_at = next.or(facts.next_check_at).map(rfc3339);
    action
}

fn forbidden_by_caa(facts: &Facts<'_>) -> Option<NextAction> {
    let caa = &stored(facts, ConditionKind::CaaPermits)?.observed;
    let actor = match caa.status {
        ConditionStatus::True => return None,
        ConditionStatus::False => Actor::Tenant,
        ConditionStatus::Unknown => Actor::System,
    };
    let mut action = act(actor, format!("No certificate may be issued: {}.", caa.message));
    action.retry_at = caa.next_check_at.map(rfc3339);
    Some(action)
}

fn deploying(cell: &CellFacts) -> NextAction {
    if cell.live_edges == 0 {
        let text = format!(
            "No edge of cell {} is connected; start one, or join one with `portico edge join --cell {}`.",
            cell.cell, cell.cell
        );
        return act(Actor::Operator, text);
    }
    let text = format!("On {} of {} edges of cell {}.", cell.current_edges, cell.live_edges, cell.cell);
    act(Actor::System, text)
}

/// The domain's own settings are its tenant's to change; the rest is made here, so an operator has to look.
fn refused(refusal: &RefusalFacts) -> NextAction {
    let keeps = format!("{} It keeps what it had.", refusal_text(refusal));
    match refusal.of {
        RefusedPart::Domain => act(
            Actor::Tenant,
            format!(
                "{keeps} Change the domain; its next version is sent at once. If nothing is wrong with it, ask the operator."
            ),
        ),
        RefusedPart::Certificate | RefusedPart::Tenant => act(
            Actor::Operator,
            format!(
                "{keeps} See `portico edge show {}`; the next version that it takes ends this.",
                refusal.edge
            ),
        ),
    }
}

fn refusal_text(refusal: &RefusalFacts) -> String {
    let part = match refusal.of {
        RefusedPart::Domain => "the domain",
        RefusedPart::Certificate => "the domain's certificate",
        RefusedPart::Tenant => "the tenant",
    };
    let RefusalFacts { edge, version, code, text, .. } = refusal;
    format!("Edge {edge} refuses {part}, version {version}: {code}: {text}.")
}

/// What is wrong with a domain that serves.
fn complaint(facts: &Facts<'_>, now: i64) -> Option<NextAction> {
    let late =
        facts.cells.iter().filter_map(|cell| cell.certificate).any(|certificate| certificate.renew_at < now);
    if let Some(order) = facts.order.as_ref().filter(|order| late && order.error.is_some()) {
        let error = order.error.as_deref().unwrap_or_default();
        return Some(retry(&format!("The renewal fails: {error}"), order.next_at, now));
    }
    if let Some(ending) = uploaded::ends_alone(facts, now) {
        return Some(act(Actor::Tenant, ending));
    }
    if let Some(gone) = gone(facts, LEFT) {
        return Some(gone);
    }
    let row =
        stored(facts, ConditionKind::OwnershipProved).filter(|row| row.observed.reason == RECHECK_FAILED)?;
    let mut action =
        act(Actor::Tenant, format!("{} Set {} again.", row.observed.message, proof_text(facts.dns)));
    action.records = facts.dns.records.clone();
    action.retry_at = facts.next_check_at.map(rfc3339);
    Some(action)
}

/// Of a name that has left.
fn gone(facts: &Facts<'_>, reason: &str) -> Option<NextAction> {
    let row = stored(facts, ConditionKind::Present).filter(|row| row.observed.reason == reason)?;
    let set = traffic_text(facts.dns);
    let text = format!("{} To stay, set {set}; else delete the domain.", sentence(&row.observed.message));
    let mut action = act(Actor::Tenant, text);
    let wanted = [RecordPurpose::ProofAndTraffic, RecordPurpose::Traffic];
    action.records =
        facts.dns.records.iter().filter(|record| wanted.contains(&record.purpose)).cloned().collect();
    action.retry_at = row.observed.next_check_at.map(rfc3339);
    Some(action)
}

/// The reason of [`ConditionKind::OwnershipProved`] when the record of a standing proof is gone.
pub(crate) const RECHECK_FAILED: &str = "RecheckFailed";

fn conditions(facts: &Facts<'_>, now: i64) -> Vec<Condition> {
    let ownership = match (facts.proved_at, stored(facts, ConditionKind::OwnershipProved)) {
        (Some(_), Some(row)) if row.observed.status == ConditionStatus::True => row.into(),
        (Some(at), _) => condition(ConditionKind::OwnershipProved, ConditionStatus::True, "Proved", "", at),
        (None, _) if facts.owned_by_another => {
            let message = "the name is served for another account; a DNS record moves it";
            let kind = ConditionKind::OwnershipProved;
            condition(kind, ConditionStatus::False, "OwnedByAnother", message, facts.created_at)
        }
        (None, Some(row)) if row.observed.status != ConditionStatus::True => row.into(),
        (None, _) => {
            let (kind, at) = (ConditionKind::OwnershipProved, facts.created_at);
            condition(kind, ConditionStatus::Unknown, "NotChecked", "no check has ended yet", at)
        }
    };
    let observed = |kind| {
        stored(facts, kind).map_or_else(
            || condition(kind, ConditionStatus::Unknown, "NotChecked", "not looked at yet", facts.created_at),
            Condition::from,
        )
    };
    let mut conditions = vec![
        ownership,
        observed(ConditionKind::DnsPointsHere),
        observed(ConditionKind::ChallengeReachable),
        certificate_ready(facts, now),
        deployed(facts, now),
    ];
    conditions.extend(uploaded::condition(facts, now));
    // What never led here is not watched.
    conditions.extend(stored(facts, ConditionKind::Present).map(Condition::from));
    // A CA that does not say what it calls itself in CAA records leaves nothing to look at.
    conditions.extend(stored(facts, ConditionKind::CaaPermits).map(Condition::from));
    conditions
}

fn certificate_ready(facts: &Facts<'_>, now: i64) -> Condition {
    let kind = ConditionKind::CertificateReady;
    let lacking = facts.cells.iter().find(|cell| cell.certificate.is_none_or(|found| found.not_after <= now));
    let newest = facts.cells.iter().filter_map(|cell| cell.certificate).map(|found| found.created_at).max();
    match lacking {
        None => condition(kind, ConditionStatus::True, "Issued", "", newest.unwrap_or(facts.created_at)),
        Some(cell) => match cell.certificate {
            Some(found) => {
                let message = format!("expired in cell {}", cell.cell);
                condition(kind, ConditionStatus::False, "Expired", &message, found.not_after)
            }
            None => {
                let (reason, message) = lacks_certificate(facts, &cell.cell, now);
                condition(kind, ConditionStatus::False, reason, &message, facts.created_at)
            }
        },
    }
}

/// Why there is none yet: the name's own fault, its order's, or that of the group that it came to.
fn lacks_certificate(facts: &Facts<'_>, cell: &CellId, now: i64) -> (&'static str, String) {
    if let Some(trouble) = &facts.trouble {
        return ("OrderFailed", trouble.error.clone());
    }
    let none = || format!("cell {cell} has no certificate for it yet");
    match &facts.order {
        Some(order) if order.step == OrderStep::Failed && order.next_at <= now => ("NotIssued", none()),
        Some(order) if !order.carries => ("WaitsForGroupOrder", waits_for_group(order)),
        Some(OrderFacts { step: OrderStep::Failed, error: Some(error), .. }) => {
            ("OrderFailed", error.clone())
        }
        Some(OrderFacts { error: Some(error), .. }) => ("OrderWaits", error.clone()),
        Some(_) | None => ("NotIssued", none()),
    }
}

fn deployed(facts: &Facts<'_>, now: i64) -> Condition {
    let kind = ConditionKind::Deployed;
    if let Some(first) = facts.refusals.first() {
        let mut message = refusal_text(first);
        if facts.refusals.len() > 1 {
            message = format!("{message} And {} more.", facts.refusals.len() - 1);
        }
        return condition(kind, ConditionStatus::False, "Refused", &message, first.since);
    }
    let newest = facts.cells.iter().filter_map(|cell| cell.certificate).map(|found| found.created_at).max();
    let Some(since) = newest.filter(|_| facts.proved_at.is_some()) else {
        return condition(kind, ConditionStatus::False, "NothingToDeploy", "", facts.created_at);
    };
    if facts.cells.iter().any(|cell| cell.live_edges == 0) {
        // Edges that are away serve what they have; what that is cannot be told from here.
        return condition(
            kind,
            ConditionStatus::Unknown,
            "NoEdgeConnected",
            "no edge of a cell is connected",
            since,
        );
    }
    let count = |of: fn(&CellFacts) -> usize| facts.cells.iter().map(of).sum::<usize>();
    let (current, live) = (count(|cell| cell.current_edges), count(|cell| cell.live_edges));
    let message = format!("on {current} of {live} connected edges");
    let (status, reason) = if current == live {
        (ConditionStatus::True, "OnAllEdges")
    } else {
        (ConditionStatus::False, "Spreading")
    };
    condition(kind, status, reason, &message, since.min(now))
}

fn condition(
    kind: ConditionKind,
    status: ConditionStatus,
    reason: &str,
    message: &str,
    since: i64,
) -> Condition {
    Condition {
        kind,
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: rfc3339(since),
        next_check_at: None,
    }
}

fn stored<'a>(facts: &Facts<'a>, kind: ConditionKind) -> Option<&'a ConditionRow> {
    facts.conditions.iter().find(|row| row.observed.kind == kind)
}

fn is(facts: &Facts<'_>, kind: ConditionKind, status: ConditionStatus) -> bool {
    stored(facts, kind).is_some_and(|row| row.observed.status == status)
}

fn act(actor: Actor, text: String) -> NextAction {
    NextAction { actor, text, records: Vec::new(), retry_at: None }
}

fn retry(text: &str, next_at: i64, now: i64) -> NextAction {
    NextAction {
        retry_at: is_ahead(next_at, now).then(|| rfc3339(next_at)),
        ..act(Actor::System, text.to_owned())
    }
}

#[cfg(test)]
#[path = "status/tests.rs"]
mod tests;
