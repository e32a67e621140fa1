//! What a plan means, in figures and in words.

use std::fmt::{self, Write};
use std::time::Duration;

use super::{Basis, OrderNeed, Plan, PlannedGroup, WaitingReason};
use crate::domain_name::NamePattern;
use crate::ids::TenantId;

/// Groups that [`Plan::explain`] lists; a plan of 4,000 groups is read by name, not whole.
const GROUPS_EXPLAINED_MAX: usize = 100;
/// Names shown of one group.
const NAMES_SHOWN_MAX: usize = 4;

/// What one lost key or one revocation would take with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlastRadius {
    pub groups: usize,
    pub names: usize,
    /// Most names on one key.
    pub names_per_key_max: usize,
    /// Most tenants on one key.
    pub tenants_per_key_max: usize,
}

impl Plan {
    /// Orders that the plan needs now.
    pub fn orders_now(&self) -> usize {
        self.groups.iter().filter(|group| group.order == OrderNeed::Now).count()
    }

    /// Changes that wait for a renewal.
    pub fn orders_at_renewal(&self) -> usize {
        self.groups.iter().filter(|group| group.order == OrderNeed::AtRenewal).count()
    }

    /// Groups that are new, changed or retired.
    pub fn changed_groups(&self) -> usize {
        self.retired.len() + self.groups.iter().filter(|group| group.order != OrderNeed::None).count()
    }

    /// Time until the CA's order limits have let the last of the orders through that are needed now.
    pub fn eta(&self) -> Duration {
        let waiting = (self.orders_now() as u64).saturating_sub(self.limits.orders_available);
        let per_hour = u64::from(self.limits.orders_per_hour.max(1));
        Duration::from_secs((waiting * 3600).div_ceil(per_hour))
    }

    pub fn blast_radius(&self) -> BlastRadius {
        BlastRadius {
            groups: self.groups.len(),
            names: self.groups.iter().map(|group| group.names.len()).sum(),
            names_per_key_max: self.groups.iter().map(|group| group.names.len()).max().unwrap_or(0),
            tenants_per_key_max: self.groups.iter().map(|group| group.tenants.len()).max().unwrap_or(0),
        }
    }

    /// The group that is to hold a name.
    pub fn group_of(&self, name: &NamePattern) -> Option<&PlannedGroup> {
        self.groups.iter().find(|group| group.names.contains(name))
    }

    /// The whole plan for an operator: totals, then what changes, at most 100 groups of it.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        self.write_explanation(&mut text).expect("writing to a string does not fail");
        text
    }

    /// Why a name is where it is, in one sentence; `called`: what people call a tenant.
    pub fn explain_name(&self, name: &NamePattern, called: &dyn Fn(TenantId) -> String) -> String {
        if let Some(group) = self.group_of(name) {
            let others = group.names.len() - 1;
            let company = if others == 0 {
                "alone".into()
            } else {
                let names: Vec<NamePattern> =
                    group.names.iter().filter(|other| *other != name).cloned().collect();
                format!("with {} ({})", count(others, "other name"), some_names(&names))
            };
            let basis = group.basis.in_words(called);
            return format!("{name} is {company} in {}: {basis}; {}", group.title(), group.order);
        }
        match self.waiting.iter().find(|waiting| waiting.name == *name) {
            Some(waiting) => format!("{name} waits: {}", waiting.reason),
            None => format!("{name} is not part of this plan"),
        }
    }

    fn write_explanation(&self, out: &mut String) -> fmt::Result {
        let radius = self.blast_radius();
        writeln!(
            out,
            "{} in {}: {} now, {} at the next renewal, {} to retire, {} waiting",
            count(radius.names, "name"),
            count(radius.groups, "group"),
            count(self.orders_now(), "order"),
            count(self.orders_at_renewal(), "change"),
            count(self.retired.len(), "group"),
            count(self.waiting.len(), "name"),
        )?;
        writeln!(out, "last order possible in: {}", duration_text(self.eta()))?;
        writeln!(
            out,
            "one key serves at most {} of {}",
            count(radius.names_per_key_max, "name"),
            count(radius.tenants_per_key_max, "tenant"),
        )?;
        let changed = || self.groups.iter().filter(|group| group.order != OrderNeed::None);
        for group in changed().take(GROUPS_EXPLAINED_MAX) {
            writeln!(out, "{}: {}; {}; {}", group.title(), group.basis, group.change_text(), group.order)?;
        }
        let more = changed().count().saturating_sub(GROUPS_EXPLAINED_MAX);
        if more > 0 {
            writeln!(out, "and {} more that change", count(more, "group"))?;
        }
        Ok(())
    }
}

impl PlannedGroup {
    fn title(&self) -> String {
        match self.id {
            Some(id) => id.to_string(),
            None => "a new group".into(),
        }
    }

    fn change_text(&self) -> String {
        let added = (!self.added.is_empty()).then(|| format!("adds {}", some_names(&self.added)));
        let removed = (!self.removed.is_empty()).then(|| format!("drops {}", some_names(&self.removed)));
        [added, removed].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Basis {
    /// Why the names may be together; `called`: what people call a tenant. It does not say who wanted it so: a plan may be
    /// a what-if.
    pub fn in_words(&self, called: &dyn Fn(TenantId) -> String) -> String {
        match self {
            Self::Alone { .. } => "alone, by its own setting or sharing = alone".into(),
            Self::Probation { .. } => {
                "alone until a validation has succeeded, since the last one failed".into()
            }
            Self::RegisteredDomain { tenant, registered_domain } => {
                format!("names of {registered_domain}, tenant {}", called(*tenant))
            }
            Self::Tenant { tenant } => {
                format!("names of tenant {}, by sharing = tenant: linked in public logs", called(*tenant))
            }
            Self::Operator { group } => format!("operator's group `{group}`, by consent of each tenant"),
        }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_words(&|tenant| tenant.to_string()))
    }
}

impl fmt::Display for OrderNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no order needed",
            Self::AtRenewal => "changes at its next renewal",
            Self::Now => "to be ordered now",
        })
    }
}

impl fmt::Display for WaitingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "ownership is not proved yet, or pre-flight has not passed",
            Self::Duplicate => "it is there twice, and the other entry is planned",
        })
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn some_names(names: &[NamePattern]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_SHOWN_MAX).map(ToString::to_string).collect();
    match names.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn duration_text(duration: Duration) -> String {
    match duration.as_secs() {
        0 => "no wait".into(),
        seconds @ 1..7_200 => format!("{} min", seconds.div_ceil(60)),
        seconds @ 7_200..172_800 => format!("{} h", seconds.div_ceil(3_600)),
        seconds => format!("{} days", seconds.div_ceil(86_400)),
    }
}
