use portico_cert_store::CredentialId;

use super::*;
use crate::acme::ChallengeMethod;
use crate::plan::issuers::{Health, Issuers, Restriction, RestrictionKind};
use crate::plan::reconcile::OpenOrder;
use crate::store::group::{LiveCredential, NameState, OrderableDomain};

const NOW: i64 = 1_000_000_000;

/// One tenant with one group, whose certificate of `first` serves in one cell.
struct World {
    facts: Facts,
    group: GroupId,
    cell: CellId,
}

fn live(issuer: &str, names: &[&str], renew_at: i64) -> LiveCredential {
    LiveCredential {
        id: CredentialId::generate(),
        issuer: issuer.to_owned(),
        names: names.iter().map(ToString::to_string).collect(),
        not_before: 0,
        not_after: renew_at * 2,
        issued_at: 0,
        renew_at,
        window_end: None,
    }
}

impl World {
    fn new(names: &[&str]) -> Self {
        let (tenant, cell) = (TenantId::generate(), CellId::parse("default").unwrap());
        let issuer =
            |name: &str| IssuerFacts { name: name.to_owned(), by_default: true, health: Health::Well };
        let mut facts = Facts {
            now_ms: NOW,
            issuers: Issuers { all: vec![issuer("first"), issuer("second")], ..Issuers::default() },
            backups: Backups { by_default: true, ..Backups::default() },
            ..Facts::default()
        };
        let mut of: Names = Names::new();
        for name in names {
            let id = DomainId::generate();
            of.insert((*name).to_owned(), id);
            facts.domains.push(OrderableDomain {
                id,
                tenant,
                name: (*name).to_owned(),
                spec: serde_json::from_value(serde_json::json!({ "hostname": name })).unwrap(),
                sharing: portico_api::v1::Sharing::Tenant,
                tenant_backups: None,
                shared_group: None,
                cells: vec![cell.clone()],
                challenge_label: String::new(),
                created_at: 0,
            });
            let methods = vec![ChallengeMethod::Http01];
            facts.names.insert(id, NameState { methods, ready_at: Some(0), ..NameState::default() });
        }
        let group = GroupId::generate();
        let cells = vec![cell.clone()];
        facts.groups.push(GroupRow {
            id: group,
            tenant: Some(tenant),
            cells,
            alone: false,
            names: of.clone(),
        });
        facts.lineages.push(LineageRow {
            id: LineageId::generate(),
            group,
            cell: cell.clone(),
            live: Some(live("first", names, NOW * 2)),
            serves: of,
            leaving: false,
        });
        Self { facts, group, cell }
    }

    /// Writes down what [`changes`] asks for, as the task does.
    fn arrange(&mut self) {
        for change in changes(&self.facts) {
            let groups = &mut self.facts.backups.groups;
            match change {
                BackupChange::New { of, tenant, cells, names, shown } => {
                    let state = if shown { Backup::Shown } else { Backup::Staged };
                    let lineage = |cell| BackupLineage {
                        id: LineageId::generate(),
                        cell,
                        state,
                        live: None,
                        holds: Names::new(),
                    };
                    let lineages = cells.into_iter().map(lineage).collect();
                    groups.push(BackupGroup {
                        id: GroupId::generate(),
                        of,
                        tenant,
                        leaving: false,
                        names,
                        lineages,
                    });
                }
                BackupChange::Names { group, names, shown } => {
                    let backup = groups.iter_mut().find(|backup| backup.id == group).unwrap();
                    backup.names = names;
                    if shown {
                        backup.lineages.iter_mut().for_each(|lineage| lineage.state = Backup::Shown);
                    }
                }
                BackupChange::Retire { group } => {
                    let backup = groups.iter_mut().find(|backup| backup.id == group).unwrap();
                    (backup.leaving, backup.names) = (true, Names::new());
                }
            }
        }
        assert_eq!(changes(&self.facts), [], "the plan of a plan is itself");
    }

    fn backup(&mut self) -> &mut BackupLineage {
        &mut self.facts.backups.groups[0].lineages[0]
    }

    fn issue(&mut self, order: &DueOrder, renew_at: i64) {
        let names: Vec<&str> = order.names.keys().map(String::as_str).collect();
        let (live, holds) = (live(&order.issuer, &names, renew_at), order.names.clone());
        let lineage = self.backup();
        (lineage.live, lineage.holds) = (Some(live), holds);
    }

    fn due(&self) -> Option<DueOrder> {
        let mut due = orders_due(&self.facts);
        assert!(due.len() < 2);
        due.pop()
    }
}

#[test]
fn a_backup_is_of_another_issuer_and_due_when_that_one_ends_or_issues_what_serves() {
    let mut world = World::new(&["a.test", "b.test"]);
    world.arrange();
    let order = world.due().unwrap();
    assert_eq!((order.issuer.as_str(), order.names.len(), order.backup), ("second", 2, true));
    assert_eq!((order.deadline, order.keeps_alive(), order.renewal), (None, false, false));
    world.issue(&order, NOW * 2);
    assert_eq!(world.due(), None);
    world.facts.now_ms = NOW * 2;
    world.facts.lineages[0].live = Some(live("first", &["a.test", "b.test"], NOW * 3));
    let renewal = world.due().unwrap();
    assert!(renewal.renewal && renewal.replaces.is_some() && renewal.issuer == "second");
    world.issue(&renewal, NOW * 5);
    // What serves comes from the backup's issuer by now: both would go with it.
    world.facts.lineages[0].live = Some(live("second", &["a.test", "b.test"], NOW * 4));
    let other = world.due().unwrap();
    assert_eq!((other.issuer.as_str(), other.replaces), ("first", None));
}

#[test]
fn what_serves_comes_first() {
    let mut world = World::new(&["a.test"]);
    world.arrange();
    assert!(world.due().is_some());
    let serving = world.facts.lineages[0].clone();
    world.facts.lineages[0].live = None;
    assert_eq!(world.due(), None, "nothing serves yet");
    world.facts.lineages[0].live = Some(live("first", &["a.test"], NOW));
    assert_eq!(world.due(), None, "what serves is due itself");
    world.facts.lineages[0] = serving.clone();
    world.facts.open_orders = vec![open(serving.id, false)];
    assert_eq!(world.due(), None, "it is being replaced");
    world.facts.open_orders = (0..ORDERS_OPEN_MAX).map(|_| open(LineageId::generate(), true)).collect();
    assert_eq!(world.due(), None, "enough of them are open");
    world.facts.open_orders.pop();
    assert!(world.due().is_some());
    world.facts.issuers.all[1].health =
        Health::Away { since: 0, until: NOW * 2, pauses: 0, why: String::new() };
    assert_eq!(world.due(), None, "no other issuer works");
}

#[test]
fn the_domain_decides_then_its_tenant_then_the_fleet() {
    let has =
        |world: &World| changes(&world.facts).iter().any(|change| matches!(change, BackupChange::New { .. }));
    let mut world = World::new(&["a.test"]);
    assert!(has(&world));
    for (domain, tenant, fleet, expected) in [
        (None, None, false, false),
        (None, Some(true), false, true),
        (None, Some(false), true, false),
        (Some(true), Some(false), false, true),
        (Some(false), Some(true), true, false),
    ] {
        world.facts.domains[0].spec.backup_certificate = domain;
        world.facts.domains[0].tenant_backups = tenant;
        world.facts.backups.by_default = fleet;
        assert_eq!(has(&world), expected, "{domain:?} {tenant:?} {fleet}");
    }
    world.facts.issuers.all.pop();
    world.facts.domains[0].spec.backup_certificate = Some(true);
    assert!(!has(&world), "there is no other issuer");
}

#[test]
fn names_that_an_issuer_will_not_have_are_left_out_alone() {
    let mut world = World::new(&["a.test", "b.test", "c.test"]);
    world.arrange();
    let of = |world: &World, name: &str| world.facts.groups[0].names[name];
    let (forbidden, failed) = (of(&world, "a.test"), of(&world, "b.test"));
    let restriction = Restriction {
        kind: RestrictionKind::Caa,
        methods: Vec::new(),
        why: String::new(),
        until: NOW + 1000,
    };
    world.facts.names.get_mut(&forbidden).unwrap().issuers.insert("second".to_owned(), restriction);
    world.facts.backups.left_out.insert((failed, "second".to_owned()), NOW + 500);
    let order = world.due().unwrap();
    assert_eq!(order.names.keys().collect::<Vec<_>>(), ["c.test"]);
    world.issue(&order, NOW * 2);
    assert_eq!(world.due(), None);
    world.facts.now_ms = NOW + 500;
    assert_eq!(world.due().unwrap().names.len(), 2, "it may be asked for again");
}

#[test]
fn what_is_shown_outlives_its_group_until_another_follows() {
    let mut world = World::new(&["a.test", "b.test"]);
    world.arrange();
    let order = world.due().unwrap();
    world.issue(&order, NOW * 2);
    let first = world.backup().id;
    // The group is retired while its backup is only staged: gone at once.
    let group = world.facts.groups.pop().unwrap();
    let staged = world.facts.backups.clone();
    world.arrange();
    assert_eq!(lineages_to_retire(&world.facts), [first]);
    // The same, shown.
    world.facts.backups = staged;
    world.backup().state = Backup::Shown;
    world.arrange();
    assert_eq!(lineages_to_retire(&world.facts), []);
    let next = GroupId::generate();
    assert_ne!(next, world.group);
    world.facts.groups.push(GroupRow { id: next, ..group });
    world.facts.lineages[0].group = next;
    world.arrange();
    let follower = &world.facts.backups.groups[1];
    assert_eq!((follower.of, follower.lineages[0].state), (next, Backup::Shown));
    let order = world.due().unwrap();
    assert_eq!((&order.cell, order.group), (&world.cell, follower.id));
    let lineage = &mut world.facts.backups.groups[1].lineages[0];
    (lineage.live, lineage.holds) = (Some(live("second", &["a.test", "b.test"], NOW * 2)), order.names);
    assert_eq!(lineages_to_retire(&world.facts), [first]);
    assert_eq!(changes(&world.facts), []);
    // Renewals of what is shown keep names alive.
    world.facts.now_ms = NOW * 2;
    world.facts.lineages[0].live = Some(live("first", &["a.test", "b.test"], NOW * 3));
    assert!(world.due().unwrap().keeps_alive());
}

#[test]
fn what_is_shown_is_renewed_although_what_it_stands_in_for_is_not() {
    let mut world = World::new(&["a.test"]);
    world.arrange();
    let order = world.due().unwrap();
    world.issue(&order, NOW * 2);
    // Its CA is gone for good: it is due, an order for it is open and waits.
    world.facts.now_ms = NOW * 2;
    let lineage = world.facts.lineages[0].id;
    world.facts.open_orders = vec![open(lineage, false)];
    assert_eq!(world.due(), None, "it only stands by");
    world.backup().state = Backup::Shown;
    let renewal = world.due().unwrap();
    assert!(renewal.keeps_alive() && renewal.renewal && renewal.issuer == "second");
}

#[test]
fn an_issuer_that_was_away_is_tried_by_one_backup_at_a_time() {
    let mut world = World::new(&["a.test"]);
    let other = World::new(&["b.test"]).facts;
    world.facts.domains.extend(other.domains);
    world.facts.names.extend(other.names);
    world.facts.groups.extend(other.groups);
    world.facts.lineages.extend(other.lineages);
    world.arrange();
    assert_eq!(orders_due(&world.facts).len(), 2);
    world.facts.issuers.all[1].health = Health::Away { since: 0, until: NOW, pauses: 0, why: String::new() };
    let due = orders_due(&world.facts);
    assert_eq!(due.len(), 1, "its pause is over");
    world.facts.open_orders = vec![OpenOrder { issuer: "second".to_owned(), ..open(due[0].lineage, true) }];
    assert_eq!(orders_due(&world.facts), [], "one tries it");
}

#[test]
fn the_issuer_that_may_have_most_of_the_names_gets_them() {
    let mut world = World::new(&["a.test", "b.test"]);
    let third = IssuerFacts { name: "third".to_owned(), by_default: true, health: Health::Well };
    world.facts.issuers.all.push(third);
    world.arrange();
    assert_eq!(world.due().unwrap().issuer, "second", "the first of equals");
    let failed = world.facts.groups[0].names["a.test"];
    world.facts.backups.left_out.insert((failed, "second".to_owned()), NOW + 500);
    let order = world.due().unwrap();
    assert_eq!((order.issuer.as_str(), order.names.len()), ("third", 2));
    world.issue(&order, NOW * 2);
    world.facts.backups.left_out.clear();
    assert_eq!(world.due(), None, "it stays until it is due");
}

#[test]
fn names_take_what_is_shown_with_them_to_another_group() {
    let mut world = World::new(&["a.test"]);
    let other = World::new(&["b.test"]).facts;
    let coming = other.groups[0].clone();
    world.facts.domains.extend(other.domains);
    world.facts.names.extend(other.names);
    world.facts.groups.push(coming.clone());
    world.facts.lineages.extend(other.lineages);
    world.arrange();
    for order in orders_due(&world.facts) {
        let mut lineages = world.facts.backups.groups.iter_mut().flat_map(|backup| &mut backup.lineages);
        let lineage = lineages.find(|lineage| lineage.id == order.lineage).unwrap();
        (lineage.live, lineage.holds) = (Some(live("second", &[], NOW * 2)), order.names);
    }
    let shown = world.facts.backups.groups.iter_mut().find(|backup| backup.of == coming.id).unwrap();
    shown.lineages[0].state = Backup::Shown;
    // The two become one group.
    world.facts.groups.retain(|group| group.id != coming.id);
    world.facts.groups[0].names.extend(coming.names);
    world.arrange();
    let of_both = world.facts.backups.groups.iter_mut().find(|backup| !backup.leaving).unwrap();
    assert_eq!((of_both.names.len(), of_both.lineages[0].state), (2, Backup::Shown));
    // Taken back, it stays so.
    of_both.lineages[0].state = Backup::Staged;
    world.arrange();
    assert!(
        world
            .facts
            .backups
            .groups
            .iter()
            .all(|backup| backup.leaving || backup.lineages[0].state == Backup::Staged)
    );
}

#[test]
fn a_name_of_another_owner_is_not_what_a_backup_holds() {
    let mut world = World::new(&["a.test"]);
    world.arrange();
    let order = world.due().unwrap();
    world.issue(&order, NOW * 2);
    assert_eq!(world.due(), None);
    world.backup().holds.insert("a.test".to_owned(), DomainId::generate());
    assert_eq!(world.due().unwrap().names, order.names);
}

fn open(lineage: LineageId, backup: bool) -> OpenOrder {
    OpenOrder {
        id: portico_cert_store::OrderId::generate(),
        issuer: "first".to_owned(),
        lineage,
        name_set: String::new(),
        tenant: None,
        keeps_alive: false,
        backup,
        lacks_key: false,
        next_at: NOW,
    }
}

#[test]
fn a_name_that_was_retired_leaves_its_backup_in_time_too() {
    let mut world = World::new(&["a.test", "b.test"]);
    world.arrange();
    let order = world.due().unwrap();
    world.issue(&order, NOW * 2);
    world.facts.domains.retain(|domain| domain.name != "b.test");
    world.facts.groups[0].names.remove("b.test");
    world.facts.lineages[0].serves.remove("b.test");
    world.arrange();
    world.facts.retired.names.insert("b.test".to_owned(), NOW - 1000);
    world.facts.retired.leave_within_ms = 2000;
    assert_eq!(world.due().map(|due| due.names), None, "its renewal may come before");
    world.facts.now_ms += 1000;
    let due = world.due().unwrap();
    assert_eq!(due.names.keys().collect::<Vec<_>>(), ["a.test"]);
}
