//! The SAN planner: which names share a certificate.
//!
//! [`plan`] is pure: names with their tenants and policies, today's groups, and limits give the groups to be, which of
//! them need an order, how long the CA's limits make that take, and how many names and tenants hang on one key. What-if
//! is a second call with another input.
//!
//! Names that may share form a pool: the same tenant and registered domain by default, one tenant or an operator's
//! group by choice, and always one TLS policy. Within a pool the plan is *stable*: groups keep their id and their names,
//! a new name fills the smallest gap (of a group that needs an order anyway, if there is one), and two groups are merged
//! only when they have shrunk so far that both fit into four fifths of a certificate. So one name more or less changes
//! at most two groups, and the plan of a plan is itself. A wildcard never shares with a name that it covers (CAs refuse
//! such an order as redundant); it may share with its base.
//!
//! Deliberately absent: the CA ledger's state beyond the two numbers in [`PlanLimits`], and certificates: a name that a
//! wildcard already covers still gets its own place, since its owner asked for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::domain_name::NamePattern;
use crate::ids::{DomainId, GroupId, TenantId};
use crate::tls_policy::TlsPolicy;

mod explain;
mod packing;

pub use self::explain::BlastRadius;
use self::packing::{Bin, pack};

/// All that a plan depends on. The order of the lists does not matter.
#[derive(Debug, Clone, Default)]
pub struct PlanInput {
    pub names: Vec<PlanName>,
    /// Today's groups.
    pub groups: Vec<PlanGroup>,
    pub limits: PlanLimits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanName {
    pub name: NamePattern,
    pub domain: DomainId,
    pub tenant: TenantId,
    pub policy: TlsPolicy,
    pub sharing: Sharing,
    /// Ownership is proved and pre-flight passed.
    pub ready: bool,
    /// Its last validation failed: it is ordered alone until one has succeeded.
    pub failed_before: bool,
    /// Names of different parts never share: the CA refused an order for all of them and named no culprit. 0: none.
    pub part: u64,
}

/// With what a name may share a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    Alone,
    /// With the tenant's names of the same registered domain.
    #[default]
    RegisteredDomain,
    /// With all names of the tenant. Opt-in: certificate transparency logs show for ever that they belong together.
    Tenant,
    /// With names of other tenants in a group of the operator's, each tenant's consent on record.
    Operator {
        group: String,
    },
}

/// A group as it is today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanGroup {
    pub id: GroupId,
    pub names: Vec<NamePattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanLimits {
    /// 25 by default: fits the newer CA profiles, and QUIC's first flight before address validation (3 x 1200 bytes).
    pub names_per_certificate_max: usize,
    /// Orders that the CA would take at once.
    pub orders_available: u64,
    /// Orders that come free each hour after those; Let's Encrypt: 300 in 3 hours.
    pub orders_per_hour: u32,
}

/// The groups to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Those of today first in their pool; pools in a fixed order.
    pub groups: Vec<PlannedGroup>,
    /// Groups of today that no name needs any more, by id. Retire a group after its names are served by another.
    pub retired: Vec<GroupId>,
    /// Names that are in no group yet.
    pub waiting: Vec<WaitingName>,
    pub limits: PlanLimits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedGroup {
    /// None: a new group; who carries out the plan gives it an id.
    pub id: Option<GroupId>,
    pub basis: Basis,
    pub policy: TlsPolicy,
    /// Apex before wildcard before subdomains.
    pub names: Vec<NamePattern>,
    /// Of `names`, those that the group has not today.
    pub added: Vec<NamePattern>,
    /// What the group has today and will not have.
    pub removed: Vec<NamePattern>,
    pub tenants: Vec<TenantId>,
    pub domains: Vec<DomainId>,
    pub order: OrderNeed,
}

/// Why the names of a group may be together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Basis {
    /// The name's own choice.
    Alone {
        name: NamePattern,
    },
    /// The name failed a validation and must not hold up others.
    Probation {
        name: NamePattern,
    },
    RegisteredDomain {
        tenant: TenantId,
        registered_domain: String,
    },
    Tenant {
        tenant: TenantId,
    },
    Operator {
        group: String,
    },
}

/// When a group needs an order at the CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OrderNeed {
    /// Its names are as they were.
    None,
    /// It lost names, or takes over those of a group that has shrunk: free of CA limits at the next renewal.
    AtRenewal,
    /// It holds a name that has no place today.
    Now,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingName {
    pub name: NamePattern,
    pub reason: WaitingReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitingReason {
    /// Ownership is not proved, or pre-flight has not passed.
    NotReady,
    /// The input names it twice; the first by tenant and domain is planned.
    Duplicate,
}

/// What may be in one group: the basis, the policy and the part.
type PoolKey = (Basis, TlsPolicy, u64);

/// Makes the plan. Time is near-linear in the names; 100,000 take well under a second.
pub fn plan(input: &PlanInput) -> Plan {
    let limits = input.limits.clone();
    let names_max = limits.names_per_certificate_max.max(1);
    let (names, waiting) = placeable_names(input);
    let (pool_keys, pool_of) = pools(&names);
    let homes = present_homes(&input.groups, &names, &pool_of, names_max);
    let mut pools: Vec<Pool<'_>> = pool_keys.iter().map(|_| Pool::default()).collect();
    for (home, pool) in homes.bins {
        pools[pool].bins.push(home);
    }
    for (index, &pool) in pool_of.iter().enumerate().filter(|&(index, _)| !homes.housed[index]) {
        pools[pool].homeless.push(index);
    }

    let mut groups = Vec::new();
    let mut retired: BTreeSet<GroupId> = input.groups.iter().map(|group| group.id).collect();
    for ((basis, policy, _), pool) in pool_keys.into_iter().zip(pools) {
        for bin in pack(pool.bins, &pool.homeless, &names, names_max) {
            if let Some(id) = bin.id {
                retired.remove(&id);
            }
            groups.push(planned_group(bin, basis.clone(), policy, &names));
        }
    }
    Plan { groups, retired: retired.into_iter().collect(), waiting, limits }
}

/// A name that is to be in a group, with what sorting it needs.
struct Placeable<'a> {
    plan: &'a PlanName,
    /// Labels from the top down, so that names sort by domain, apex first, wildcard next.
    sort_key: String,
    registered_domain: &'a str,
}

#[derive(Default)]
struct Pool<'a> {
    bins: Vec<Bin<'a>>,
    homeless: Vec<usize>,
}

/// Today's groups as far as they can stay.
struct Homes<'a> {
    /// Each with its pool.
    bins: Vec<(Bin<'a>, usize)>,
    /// For each name, whether it is in one of them.
    housed: Vec<bool>,
}

fn placeable_names(input: &PlanInput) -> (Vec<Placeable<'_>>, Vec<WaitingName>) {
    let mut waiting = Vec::new();
    let mut names = Vec::with_capacity(input.names.len());
    for plan in &input.names {
        if plan.ready {
            let base = plan.name.base();
            let registered_domain = base.registered_domain().unwrap_or(base.as_str());
            names.push(Placeable { plan, sort_key: sort_key(&plan.name), registered_domain });
        } else {
            waiting.push(WaitingName { name: plan.name.clone(), reason: WaitingReason::NotReady });
        }
    }
    names.sort_by(|a, b| {
        let tie = |name: &Placeable<'_>| (name.plan.tenant, name.plan.domain);
        a.sort_key.cmp(&b.sort_key).then_with(|| tie(a).cmp(&tie(b)))
    });
    names.dedup_by(|later, first| {
        let duplicate = later.plan.name == first.plan.name;
        if duplicate {
            waiting.push(WaitingName { name: later.plan.name.clone(), reason: WaitingReason::Duplicate });
        }
        duplicate
    });
    waiting.sort_by(|a, b| (&a.name, a.reason).cmp(&(&b.name, b.reason)));
    (names, waiting)
}

fn sort_key(name: &NamePattern) -> String {
    // U+0001 sorts before all that a label holds, so a domain comes before its subdomains.
    let mut key: Vec<&str> = name.base().as_str().rsplit('.').collect();
    if name.is_wildcard() {
        key.push("*");
    }
    key.join("\u{1}")
}

/// All pools in order, and for each name which one it is in.
fn pools(names: &[Placeable<'_>]) -> (Vec<PoolKey>, Vec<usize>) {
    let mut met: HashMap<PoolKey, usize, foldhash::fast::RandomState> = HashMap::default();
    let first_met: Vec<usize> = names
        .iter()
        .map(|name| {
            let next = met.len();
            *met.entry(pool_key(name)).or_insert(next)
        })
        .collect();
    let mut keys: Vec<(PoolKey, usize)> = met.into_iter().collect();
    keys.sort_unstable();
    let mut rank = vec![0; keys.len()];
    for (position, &(_, met)) in keys.iter().enumerate() {
        rank[met] = position;
    }
    (keys.into_iter().map(|(key, _)| key).collect(), first_met.into_iter().map(|met| rank[met]).collect())
}

fn pool_key(name: &Placeable<'_>) -> PoolKey {
    let plan = name.plan;
    let basis = match &plan.sharing {
        _ if plan.failed_before => Basis::Probation { name: plan.name.clone() },
        Sharing::Alone => Basis::Alone { name: plan.name.clone() },
        Sharing::RegisteredDomain => Basis::RegisteredDomain {
            tenant: plan.tenant,
            registered_domain: name.registered_domain.to_owned(),
        },
        Sharing::Tenant => Basis::Tenant { tenant: plan.tenant },
        Sharing::Operator { group } => Basis::Operator { group: group.clone() },
    };
    (basis, plan.policy, plan.part)
}

/// Keeps each group's names together as far as they still may be: those of the pool that most of them are in.
fn present_homes<'a>(
    groups: &'a [PlanGroup],
    names: &[Placeable<'_>],
    pool_of: &[usize],
    names_max: usize,
) -> Homes<'a> {
    let index_of: HashMap<&NamePattern, usize, foldhash::fast::RandomState> =
        names.iter().enumerate().map(|(index, name)| (&name.plan.name, index)).collect();
    let mut housed = vec![false; names.len()];
    let mut by_id: Vec<&PlanGroup> = groups.iter().collect();
    by_id.sort_by_key(|group| group.id);
    let mut bins = Vec::new();
    for group in by_id {
        let known = group.names.iter().filter_map(|name| index_of.get(name).copied());
        let mut present: Vec<usize> = known.filter(|&index| !housed[index]).collect();
        present.sort_unstable();
        present.dedup();
        let Some(pool) = commonest_pool(&present, pool_of) else { continue };
        present.retain(|&index| pool_of[index] == pool);
        packing::drop_covered(&mut present, names);
        present.truncate(names_max);
        for &index in &present {
            housed[index] = true;
        }
        bins.push((Bin::of_today(group, present), pool));
    }
    Homes { bins, housed }
}

/// The pool of most of these names; the first where two have equally many.
fn commonest_pool(present: &[usize], pool_of: &[usize]) -> Option<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for &index in present {
        *counts.entry(pool_of[index]).or_default() += 1;
    }
    counts.into_iter().max_by_key(|&(pool, count)| (count, std::cmp::Reverse(pool))).map(|(pool, _)| pool)
}

fn planned_group(bin: Bin<'_>, basis: Basis, policy: TlsPolicy, names: &[Placeable<'_>]) -> PlannedGroup {
    let mut members = bin.members;
    members.sort_unstable();
    let plans = || members.iter().map(|&index| names[index].plan);
    // Groups are small: looking through the list is faster than any set.
    let added: Vec<NamePattern> =
        plans().map(|plan| &plan.name).filter(|name| !bin.today.contains(name)).cloned().collect();
    let removed: Vec<NamePattern> =
        bin.today.iter().filter(|name| !plans().any(|plan| plan.name == **name)).cloned().collect();
    let order = match (bin.id.is_none() || bin.has_homeless, added.is_empty() && removed.is_empty()) {
        (true, _) => OrderNeed::Now,
        (false, true) => OrderNeed::None,
        (false, false) => OrderNeed::AtRenewal,
    };
    PlannedGroup {
        id: bin.id,
        basis,
        policy,
        tenants: distinct(plans().map(|plan| plan.tenant)),
        domains: distinct(plans().map(|plan| plan.domain)),
        names: plans().map(|plan| plan.name.clone()).collect(),
        added,
        removed,
        order,
    }
}

fn distinct<T: Ord>(ids: impl Iterator<Item = T>) -> Vec<T> {
    let mut ids: Vec<T> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Default for PlanLimits {
    fn default() -> Self {
        Self { names_per_certificate_max: 25, orders_available: 300, orders_per_hour: 100 }
    }
}

#[cfg(test)]
mod tests;
