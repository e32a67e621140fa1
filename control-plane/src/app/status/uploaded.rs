//! What a domain's uploaded certificates mean for it.

use portico_api::v1::{Condition, ConditionKind, ConditionStatus};

use super::{Facts, UploadedFacts};
use crate::clock::rfc3339;

/// `None`: there is none.
pub(super) fn condition(facts: &Facts<'_>, now: i64) -> Option<Condition> {
    let newest = facts.uploaded.iter().map(|uploaded| uploaded.created_at).max()?;
    let say = |status, reason: &str, message: String, since| {
        Some(super::condition(ConditionKind::UploadedCertificate, status, reason, &message, since))
    };
    if let Some(over) = facts.uploaded.iter().filter(|uploaded| uploaded.not_after <= now).min_by_key(ends) {
        let message = format!("the {} one ended; upload another or remove it", named(over));
        return say(ConditionStatus::False, "Expired", message, over.not_after);
    }
    let has = |cell| facts.uploaded.iter().any(|uploaded| uploaded.cell == cell);
    if let Some(lacking) = facts.cells.iter().find(|cell| !has(cell.cell.clone())) {
        let message = format!("cell {} has not its key; upload it again", lacking.cell);
        return say(ConditionStatus::False, "NotInCell", message, newest);
    }
    if let Some(soon) = facts.uploaded.iter().filter(|uploaded| uploaded.renew_at <= now).min_by_key(ends) {
        let message = format!("the {} one ends at {}; upload the next", named(soon), rfc3339(soon.not_after));
        return say(ConditionStatus::True, "EndsSoon", message, soon.renew_at);
    }
    let first = facts.uploaded.iter().min_by_key(ends)?;
    let message = format!("valid until {}", rfc3339(first.not_after));
    say(ConditionStatus::True, "Uploaded", message, newest)
}

/// What to do where an uploaded certificate is about to end and nothing would take its place.
pub(super) fn ends_alone(facts: &Facts<'_>, now: i64) -> Option<String> {
    let last_of = |cell| facts.uploaded.iter().filter(|u| u.cell == cell).max_by_key(ends);
    for cell in &facts.cells {
        let Some(last) = last_of(cell.cell.clone()) else { continue };
        let stands_alone = cell.certificate.is_none_or(|best| best.not_after <= last.not_after);
        if stands_alone && last.renew_at <= now {
            return Some(format!(
                "Upload the next certificate for {}: the present one ends at {} and cell {} has no other.",
                facts.name,
                rfc3339(last.not_after),
                cell.cell
            ));
        }
    }
    None
}

fn ends(uploaded: &&UploadedFacts) -> i64 {
    uploaded.not_after
}

fn named(uploaded: &UploadedFacts) -> String {
    format!("{} in cell {}", uploaded.key, uploaded.cell)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HOUR, NOW, active, dns, good};
    use super::super::{CellFacts, CertificateFacts, assess};
    use super::*;
    use portico_api::v1::DomainStatus;

    fn uploaded(cell: &str, ends_in_hours: i64, asked_in_hours: i64) -> UploadedFacts {
        UploadedFacts {
            cell: cell.parse().unwrap(),
            key: "RSA 2048".to_owned(),
            created_at: NOW - HOUR,
            renew_at: NOW + asked_in_hours * HOUR,
            not_after: NOW + ends_in_hours * HOUR,
        }
    }

    #[test]
    fn the_condition_tells_of_the_end_and_of_cells_without_the_key() {
        let dns = dns();
        assert!(condition(&active(&dns), NOW).is_none());
        for (uploaded, status, reason, words) in [
            (vec![uploaded("default", 100, 50)], ConditionStatus::True, "Uploaded", "valid until"),
            (vec![uploaded("default", 100, -1)], ConditionStatus::True, "EndsSoon", "upload the next"),
            (
                vec![uploaded("default", 0, -50)],
                ConditionStatus::False,
                "Expired",
                "RSA 2048 in cell default",
            ),
            (
                vec![uploaded("other", 100, 50)],
                ConditionStatus::False,
                "NotInCell",
                "cell default has not its key",
            ),
            (
                vec![uploaded("default", 100, 50), uploaded("default", 90, -1)],
                ConditionStatus::True,
                "EndsSoon",
                "upload the next",
            ),
        ] {
            let facts = Facts { uploaded, ..active(&dns) };
            let found = condition(&facts, NOW).unwrap();
            assert_eq!((found.status, found.reason.as_str()), (status, reason));
            assert!(found.message.contains(words), "{}", found.message);
            let assessed = assess(&facts, NOW);
            assert_eq!(assessed.status, DomainStatus::Active, "an issued one stands by: {reason}");
            assert!(assessed.conditions.contains(&found));
        }
    }

    #[test]
    fn what_ends_with_nothing_to_follow_is_the_tenants_to_act_on() {
        let dns = dns();
        let alone = |ends: i64, asked: i64| {
            let own = uploaded("default", ends, asked);
            let certificate = CertificateFacts { not_after: own.not_after, ..good() };
            let cell = CellFacts {
                cell: own.cell.clone(),
                certificate: Some(certificate),
                live_edges: 1,
                current_edges: 1,
            };
            Facts { issues: false, cells: vec![cell], uploaded: vec![own], ..active(&dns) }
        };
        assert_eq!(assess(&alone(100, 50), NOW).status, DomainStatus::Active);
        let soon = assess(&alone(100, -1), NOW);
        assert_eq!(soon.status, DomainStatus::Degraded);
        assert!(soon.next_action.unwrap().text.contains("Upload the next certificate"));
        let over = assess(&alone(-1, -50), NOW);
        assert_eq!(over.status, DomainStatus::Pending);
        assert!(over.next_action.unwrap().text.contains("portico cert upload"));
    }
}
