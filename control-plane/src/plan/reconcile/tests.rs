use portico_cert_store::CredentialId;

use super::*;
use crate::plan::issuers::{Health, IssuerFacts, Move, Restriction, RestrictionKind, moves};
use crate::store::group::LiveCredential;

const NOW: i64 = 1_000_000_000;

fn cell(name: &str) -> CellId {
    CellId::parse(name).unwrap()
}

fn issuer(name: &str) -> IssuerFacts {
    IssuerFacts { name: name.to_owned(), by_default: true, health: Health::Well }
}

/// A state of the world that a test writes down in few words.
struct World {
    facts: Facts,
    tenant: TenantId,
}

impl World {
    fn new() -> Self {
        let issuers = Issuers { all: vec![issuer("first")], ..Issuers::default() };
        Self { facts: Facts { now_ms: NOW, issuers, ..Facts::default() }, tenant: TenantId::generate() }
    }

    fn domain(&mut self, name: &str, cells: &[&str]) -> DomainId {
        let id = DomainId::generate();
        let spec = serde_json::json!({ "hostname": name });
        self.facts.domains.push(OrderableDomain {
            id,
            tenant: self.tenant,
            name: name.to_owned(),
            spec: serde_json::from_value(spec).unwrap(),
            sharing: v1::Sharing::RegisteredDomain,
            tenant_backups: None,
            shared_group: None,
            cells: cells.iter().map(|name| cell(name)).collect(),
            challenge_label: String::new(),
            created_at: 0,
        });
        id
    }

    fn ready(&mut self, name: &str, cells: &[&str]) -> DomainId {
        let id = self.domain(name, cells);
        let state =
            NameState { methods: vec![ChallengeMethod::Http01], ready_at: Some(0), ..NameState::default() };
        self.facts.names.insert(id, state);
        id
    }

    /// Carries out group changes as the task does.
    fn apply(&mut self, changes: Vec<GroupChange>) {
        for change in changes {
            match change {
                GroupChange::New { tenant, cells, alone, names, .. } => {
                    let id = GroupId::generate();
                    for cell in &cells {
                        self.facts.lineages.push(LineageRow {
                            id: LineageId::generate(),
                            group: id,
                            cell: cell.clone(),
                            live: None,
                            serves: Names::new(),
                            leaving: false,
                        });
                    }
                    self.facts.groups.push(GroupRow { id, tenant, cells, alone, names });
                }
                GroupChange::Names { group, names } => {
                    self.facts.groups.iter_mut().find(|g| g.id == group).unwrap().names = names;
                }
                GroupChange::Retire { group } => {
                    self.facts.groups.retain(|g| g.id != group);
                    for lineage in self.facts.lineages.iter_mut().filter(|l| l.group == group) {
                        lineage.leaving = true;
                    }
                }
            }
        }
    }

    fn plan(&mut self) {
        let changes = group_changes(&self.facts, 25);
        self.apply(changes);
        assert_eq!(group_changes(&self.facts, 25), [], "the plan of a plan is itself");
    }

    /// The order is issued, renewal due at `renew_at`.
    fn issue(&mut self, order: &DueOrder, renew_at: i64) {
        let lineage = self.facts.lineages.iter_mut().find(|lineage| lineage.id == order.lineage).unwrap();
        lineage.live = Some(LiveCredential {
            id: CredentialId::generate(),
            issuer: order.issuer.clone(),
            names: order.names.keys().cloned().collect(),
            not_before: 0,
            issued_at: 0,
            not_after: renew_at * 2,
            renew_at,
            window_end: None,
        });
        lineage.serves = order.names.clone();
    }
}

#[test]
fn names_that_become_ready_one_by_one_are_grouped_once() {
    let mut world = World::new();
    let first = world.ready("a.shop.test", &["default"]);
    world.facts.names.get_mut(&first).unwrap().ready_at = Some(NOW - 100);
    let unseen = world.domain("b.shop.test", &["default"]);
    assert_eq!(preflights_due(&world.facts), [unseen]);
    assert_eq!(group_changes(&world.facts, 25), [], "the other is still being looked at");
    world.facts.names.insert(
        unseen,
        NameState { methods: vec![ChallengeMethod::Http01], ready_at: Some(NOW), ..NameState::default() },
    );
    assert_eq!(group_changes(&world.facts, 25), [], "a third may follow at once");
    world.facts.now_ms = NOW + SETTLE_MS;
    world.plan();
    assert_eq!(world.facts.groups.len(), 1);
    assert_eq!(world.facts.groups[0].names.len(), 2);
}

#[test]
fn a_name_waits_no_longer_than_its_bound_for_others() {
    let mut world = World::new();
    let first = world.ready("a.shop.test", &["default"]);
    world.facts.names.get_mut(&first).unwrap().ready_at = Some(NOW - SETTLE_MAX_MS);
    world.domain("b.shop.test", &["default"]);
    world.plan();
    assert_eq!(world.facts.groups.len(), 1);
}

#[test]
fn the_second_cell_follows_when_the_first_is_issued() {
    let mut world = World::new();
    world.ready("a.shop.test", &["master", "shadow"]);
    world.plan();
    let first = orders_due(&world.facts);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].cell, cell("master"));
    world.facts.open_orders.push(open_order(&first[0], NOW));
    assert_eq!(orders_due(&world.facts), [], "one order of a group at a time");
    world.facts.open_orders.clear();
    world.issue(&first[0], NOW + 1000);
    let second = orders_due(&world.facts);
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].cell, cell("shadow"));
    assert_eq!(second[0].name_set, first[0].name_set);
    world.issue(&second[0], NOW + 1000);
    assert_eq!(orders_due(&world.facts), []);
    world.facts.now_ms = NOW + 1000;
    let renewal = orders_due(&world.facts);
    assert_eq!((renewal.len(), renewal[0].renewal), (1, true));
}

#[test]
fn a_failed_name_waits_alone_while_the_rest_is_ordered() {
    let mut world = World::new();
    world.ready("a.shop.test", &["default"]);
    let dead = world.ready("b.shop.test", &["default"]);
    world.plan();
    let first = orders_due(&world.facts);
    assert_eq!(first[0].names.len(), 2);
    let state = world.facts.names.get_mut(&dead).unwrap();
    (state.failed_before, state.next_at) = (true, NOW + 60_000);
    state.methods.clear();
    world.plan();
    let rest = orders_due(&world.facts);
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].names.keys().collect::<Vec<_>>(), ["a.shop.test"]);
    assert_eq!(preflights_due(&world.facts), []);
    world.issue(&rest[0], NOW + 1_000_000);
    world.facts.now_ms = NOW + 60_000;
    assert_eq!(preflights_due(&world.facts), [dead], "the back-off is over: look again, then order");
    world.facts.names.get_mut(&dead).unwrap().methods = vec![ChallengeMethod::Http01];
    let alone = orders_due(&world.facts);
    assert_eq!(alone.len(), 1);
    assert_eq!(alone[0].names.keys().collect::<Vec<_>>(), ["b.shop.test"]);
}

#[test]
fn a_lineage_of_a_retired_group_stays_until_its_names_are_live_elsewhere() {
    let mut world = World::new();
    let name = world.ready("a.shop.test", &["default"]);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.issue(&order, NOW + 1000);
    // Its owner wants it alone from now on, and in another cell too.
    let domain = world.facts.domains.iter_mut().find(|domain| domain.id == name).unwrap();
    domain.cells.insert(0, cell("another"));
    world.plan();
    assert_eq!(lineages_to_retire(&world.facts), [], "nobody else covers it");
    let first = orders_due(&world.facts).remove(0);
    assert_eq!(first.cell, cell("another"));
    world.issue(&first, NOW + 5000);
    assert_eq!(lineages_to_retire(&world.facts), [], "the other cell's certificate is not this cell's");
    assert_eq!(orders_due(&world.facts), [], "the old certificate serves this cell until it is due");
    world.facts.now_ms = NOW + 1000;
    let second = orders_due(&world.facts).remove(0);
    assert_eq!(second.cell, cell("default"));
    world.issue(&second, NOW + 5000);
    assert_eq!(lineages_to_retire(&world.facts), [order.lineage]);
}

#[test]
fn nothing_is_ordered_for_a_name_that_wants_none_and_what_it_has_serves_to_its_end() {
    let mut world = World::new();
    let never = world.domain("never.test", &["default"]);
    let name = world.ready("a.shop.test", &["default"]);
    let issues = |world: &mut World, domain: DomainId, wish: bool| {
        let found = world.facts.domains.iter_mut().find(|found| found.id == domain).unwrap();
        found.spec.issue_certificates = wish;
    };
    issues(&mut world, never, false);
    assert_eq!(preflights_due(&world.facts), []);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    assert_eq!(order.names.keys().collect::<Vec<_>>(), ["a.shop.test"]);
    world.issue(&order, NOW + 1000);
    issues(&mut world, name, false);
    world.plan();
    assert_eq!(world.facts.groups.len(), 0);
    world.facts.now_ms = NOW + 1000;
    assert_eq!(orders_due(&world.facts), [], "its renewal is due, and not wanted");
    assert_eq!(lineages_to_retire(&world.facts), []);
    world.facts.now_ms = 2 * (NOW + 1000);
    assert_eq!(lineages_to_retire(&world.facts), [order.lineage], "its end");
    issues(&mut world, name, true);
    world.plan();
    assert_eq!(orders_due(&world.facts).len(), 1);
}

#[test]
fn a_failed_order_holds_its_lineage_until_its_time() {
    let mut world = World::new();
    world.ready("a.shop.test", &["default"]);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.facts.retry_at.insert(order.lineage, NOW + 1);
    assert_eq!(orders_due(&world.facts), []);
    world.facts.now_ms = NOW + 1;
    assert_eq!(orders_due(&world.facts).len(), 1);
}

#[test]
fn one_tenants_import_does_not_hold_up_anothers_name() {
    let queues = vec![(0, vec!["a1", "a2", "a3", "a4"]), (0, vec!["b1"]), (2, vec!["c1", "c2"])];
    assert_eq!(fair(queues), ["a1", "b1", "a2", "a3", "c1", "a4", "c2"]);
    let mut world = World::new();
    for n in 0..300 {
        world.ready(&format!("import{n}.test"), &["default"]);
    }
    let importer = world.tenant;
    world.tenant = TenantId::generate();
    let single = world.ready("single.test", &["default"]);
    world.plan();
    let is_single = |order: &DueOrder| order.names.values().any(|domain| *domain == single);
    let due = orders_due(&world.facts);
    assert!(due[..2].iter().any(is_single), "{due:?}");
    // All that the importer may have open waits for hours: the other's order is planned and goes first all the same.
    for order in due.iter().filter(|order| !is_single(order)) {
        world.facts.open_orders.push(open_order(order, NOW + 3_600_000));
    }
    world.facts.spent.insert(Some(importer), 300);
    let due = orders_due(&world.facts);
    assert!(due.len() == 1 && is_single(&due[0]), "{due:?}");
    // Where one order at a time finds room, it is not the importer's again and again.
    world.facts.open_orders.clear();
    assert!(is_single(&orders_due(&world.facts)[0]));
}

#[test]
fn a_tenants_new_names_do_not_hold_up_its_renewals() {
    let mut world = World::new();
    let old = world.ready("old.test", &["default"]);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.issue(&order, NOW + 10);
    for n in 0..300 {
        world.ready(&format!("import{n}.test"), &["default"]);
    }
    world.plan();
    let due = orders_due(&world.facts);
    world.facts.open_orders.extend(due.iter().map(|order| open_order(order, NOW + 3_600_000)));
    assert_eq!(orders_due(&world.facts), [], "its new names have all the room that they may have");
    world.facts.now_ms = NOW + 10;
    let due = orders_due(&world.facts);
    assert!(due.len() == 1 && due[0].names.values().eq([&old]), "{due:?}");
}

#[test]
fn new_orders_that_all_wait_for_the_cas_limit_do_not_hold_up_a_renewal() {
    let mut world = World::new();
    let old = world.ready("old.test", &["default"]);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.issue(&order, NOW);
    for tenant in 0..6 {
        world.tenant = TenantId::generate();
        for n in 0..NEW_ORDERS_OF_TENANT_MAX {
            world.ready(&format!("import{n}.of{tenant}.test"), &["default"]);
            world.facts.domains.last_mut().unwrap().sharing = v1::Sharing::Alone;
        }
    }
    world.plan();
    let due = orders_due(&world.facts);
    assert_eq!(due[0].names.values().collect::<Vec<_>>(), [&old]);
    // The next slot is less than a minute away, for all of them.
    world.facts.open_orders.extend(due[1..].iter().map(|order| open_order(order, NOW + 36_000)));
    assert_eq!(world.facts.open_orders.len(), ORDERS_SOON_MAX);
    let due = orders_due(&world.facts);
    assert!(due.len() == 1 && due[0].renewal, "{due:?}");
}

fn open_order(order: &DueOrder, next_at: i64) -> OpenOrder {
    OpenOrder {
        id: OrderId::generate(),
        issuer: order.issuer.clone(),
        lineage: order.lineage,
        name_set: order.name_set.clone(),
        tenant: order.tenant,
        keeps_alive: order.keeps_alive(),
        backup: false,
        lacks_key: false,
        next_at,
    }
}

#[test]
fn a_set_is_the_same_in_any_order() {
    let one = name_set(["b.test", "a.test"].into_iter());
    assert_eq!(one, name_set(["a.test", "b.test"].into_iter()));
    assert_ne!(one, name_set(["a.test", "b.test", "c.test"].into_iter()));
    assert_eq!(one.len(), 64);
}

#[test]
fn a_name_that_another_tenant_has_proved_gets_a_certificate_of_its_own() {
    let mut world = World::new();
    let first = world.ready("shop.test", &["default"]);
    world.plan();
    world.issue(&orders_due(&world.facts)[0].clone(), NOW * 2);
    world.facts.domains.retain(|domain| domain.id != first);
    world.tenant = TenantId::generate();
    let second = world.ready("shop.test", &["default"]);
    world.plan();
    let due = orders_due(&world.facts);
    assert_eq!(due.len(), 1, "the old certificate serves the old tenant's domain only");
    assert_eq!(due[0].names, Names::from([("shop.test".to_owned(), second)]));
    assert_eq!(due[0].tenant, Some(world.tenant));
}

fn live_of(world: &World, group: usize) -> CredentialId {
    let group = world.facts.groups[group].id;
    let lineage = world.facts.lineages.iter().find(|lineage| lineage.group == group).unwrap();
    lineage.live.as_ref().unwrap().id
}

#[test]
fn a_merged_group_descends_from_the_certificate_whose_time_has_come_and_from_one_only() {
    let mut world = World::new();
    world.ready("shop.test", &["default"]);
    world.ready("rose.test", &["default"]);
    world.plan();
    for (order, renew_at) in orders_due(&world.facts).into_iter().zip([NOW * 2, NOW - 1]) {
        assert_eq!(order.replaces, None, "there is none to replace");
        world.issue(&order, renew_at);
    }
    let old = live_of(&world, 1);
    for domain in &mut world.facts.domains {
        domain.sharing = v1::Sharing::Tenant;
    }
    world.plan();
    assert_eq!(world.facts.groups.len(), 1);
    let due = orders_due(&world.facts);
    assert_eq!((due.len(), due[0].names.len(), due[0].renewal), (1, 2, false));
    assert!(due[0].keeps_alive());
    let expected = if world.facts.lineages.iter().any(|l| l.leaving && l.live.as_ref().unwrap().id == old) {
        // Its names are gone to the other group, whose certificate has time yet.
        old
    } else {
        live_of(&world, 0)
    };
    assert_eq!(due[0].replaces, Some(expected));
    world.facts.replaced.insert(expected);
    let due = orders_due(&world.facts);
    assert_ne!(due[0].replaces, Some(expected), "each certificate is replaced once");
}

#[test]
fn of_a_split_group_one_part_descends_from_the_certificate() {
    let mut world = World::new();
    world.ready("shop.test", &["default"]);
    let other = world.ready("www.shop.test", &["default"]);
    world.plan();
    world.issue(&orders_due(&world.facts)[0].clone(), NOW - 1);
    let old = live_of(&world, 0);
    world.facts.domains.iter_mut().find(|domain| domain.id == other).unwrap().sharing = v1::Sharing::Alone;
    world.plan();
    assert_eq!(world.facts.groups.len(), 2);
    let replaced: Vec<_> = orders_due(&world.facts).into_iter().filter_map(|due| due.replaces).collect();
    assert_eq!(replaced, [old]);
}

#[test]
fn a_mass_replacement_goes_by_deadline_and_tenants_have_their_turns() {
    let mut world = World::new();
    let hours = |n: i64| NOW + n * 3_600_000;
    let mut ends = HashMap::new();
    let mut issue = |world: &mut World, name: &str, end: i64| {
        world.ready(name, &["default"]);
        world.plan();
        let order = orders_due(&world.facts).into_iter().find(|due| due.names.contains_key(name)).unwrap();
        world.issue(&order, NOW - 1);
        let lineage = world.facts.lineages.iter_mut().find(|lineage| lineage.id == order.lineage).unwrap();
        let live = lineage.live.as_mut().unwrap();
        (live.window_end, live.not_after) = (Some(end), hours(2000));
        ends.insert(name.to_owned(), end);
    };
    // Names sort against their deadlines.
    for n in 0..30 {
        issue(&mut world, &format!("a{n:02}.test"), hours(100) - n);
    }
    issue(&mut world, "z.test", hours(-1));
    let large = world.tenant;
    world.tenant = TenantId::generate();
    issue(&mut world, "b.test", hours(101));
    issue(&mut world, "y.test", hours(-2));
    let due = orders_due(&world.facts);
    assert_eq!(due.len(), 33);
    let name = |due: &DueOrder| due.names.keys().next().unwrap().clone();
    let first: Vec<String> = due.iter().take(2).map(name).collect();
    assert!(first.contains(&"z.test".to_owned()) && first.contains(&"y.test".to_owned()), "{first:?}");
    let small = due.iter().position(|due| name(due) == "b.test").unwrap();
    assert!(small <= 4, "the other tenant's thirty do not go before: {small}");
    let of_large: Vec<i64> =
        due.iter().filter(|due| due.tenant == Some(large)).map(|due| ends[&name(due)]).collect();
    assert!(of_large.is_sorted(), "{of_large:?}");
}

#[test]
fn tenants_share_a_certificate_by_consent_alone_and_part_at_the_next_renewal() {
    let mut world = World::new();
    let tenants: Vec<TenantId> = (0..3).map(|_| TenantId::generate()).collect();
    for (tenant, name) in tenants.iter().zip(["a.test", "b.test", "c.test"]) {
        world.tenant = *tenant;
        world.ready(name, &["default"]);
    }
    world.plan();
    for order in orders_due(&world.facts) {
        assert_eq!(order.names.len(), 1, "nobody has consented");
        world.issue(&order, NOW + 1);
    }
    let consent = |world: &mut World, of: &[TenantId]| {
        for domain in &mut world.facts.domains {
            domain.shared_group = of.contains(&domain.tenant).then(|| "parked".to_owned());
        }
        world.plan();
    };
    consent(&mut world, &tenants[..2]);
    let groups = |world: &World| {
        let mut groups: Vec<(Option<TenantId>, Vec<String>)> = (world.facts.groups.iter())
            .map(|group| (group.tenant, group.names.keys().cloned().collect()))
            .collect();
        groups.sort();
        groups
    };
    let named = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (shared, own) = ((None, named(&["a.test", "b.test"])), (Some(tenants[2]), named(&["c.test"])));
    assert_eq!(groups(&world), [shared, own]);
    assert_eq!(orders_due(&world.facts), [], "the certificates at hand serve on until they are renewed");
    world.facts.now_ms = NOW + 2;
    let due = orders_due(&world.facts);
    let order = due.iter().find(|order| order.names.len() == 2).unwrap().clone();
    assert_eq!((order.tenant, order.keeps_alive()), (None, true), "the key is the operator's");
    world.issue(&order, NOW + 3);
    // One that fails is alone, with a key of its own tenant's.
    let failed = world.facts.domains[0].id;
    world.facts.names.get_mut(&failed).unwrap().failed_before = true;
    world.plan();
    assert!(groups(&world).contains(&(Some(tenants[0]), named(&["a.test"]))), "{:?}", groups(&world));
    world.facts.names.get_mut(&failed).unwrap().failed_before = false;
    world.plan();
    // Consent is taken back.
    consent(&mut world, &tenants[1..2]);
    assert!(groups(&world).contains(&(None, named(&["b.test"]))), "{:?}", groups(&world));
    assert!(groups(&world).contains(&(Some(tenants[0]), named(&["a.test"]))));
}

#[test]
fn each_tenant_has_the_first_of_its_issuers_that_works() {
    let mut world = World::new();
    world.facts.issuers.all =
        vec![issuer("first"), issuer("second"), IssuerFacts { by_default: false, ..issuer("third") }];
    world.ready("a.shop.test", &["default"]);
    world.plan();
    let chosen = |world: &World| orders_due(&world.facts)[0].issuer.clone();
    assert_eq!(chosen(&world), "first");
    let away = |until| Health::Away { since: 0, until, pauses: 0, why: "503".to_owned() };
    world.facts.issuers.all[0].health = away(NOW + 1);
    assert_eq!(chosen(&world), "second");
    world.facts.issuers.all[1].health = away(NOW + 1);
    assert_eq!(
        chosen(&world),
        "first",
        "nobody works: it waits for the first, and never goes to one by name only"
    );
    world.facts.issuers.of_tenant.insert(world.tenant, vec!["third".to_owned(), "gone".to_owned()]);
    assert_eq!(chosen(&world), "third");
    world.facts.issuers.of_tenant.insert(world.tenant, vec!["gone".to_owned()]);
    assert_eq!(chosen(&world), "first", "none of its own is configured any more");
}

#[test]
fn one_order_tries_an_issuer_that_was_away() {
    let mut world = World::new();
    world.facts.issuers.all = vec![issuer("first"), issuer("second")];
    world.facts.issuers.all[0].health = Health::Away { since: 0, until: NOW, pauses: 0, why: String::new() };
    for n in 0..3 {
        world.ready(&format!("n{n}.test"), &["default"]);
    }
    world.plan();
    let due = orders_due(&world.facts);
    let mut issuers: Vec<&str> = due.iter().map(|due| due.issuer.as_str()).collect();
    issuers.sort_unstable();
    assert_eq!(issuers, ["first", "second", "second"]);
    world.facts.open_orders.push(open_order(due.iter().find(|due| due.issuer == "first").unwrap(), NOW));
    assert!(orders_due(&world.facts).iter().all(|due| due.issuer == "second"), "it is being tried");
}

#[test]
fn open_orders_leave_an_issuer_that_is_away_and_renewals_only_when_they_must() {
    let mut world = World::new();
    world.facts.issuers.all = vec![issuer("first"), issuer("second")];
    world.ready("a.shop.test", &["default"]);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.facts.open_orders.push(open_order(&order, NOW));
    assert_eq!(moves(&world.facts), []);
    world.facts.issuers.all[0].health =
        Health::Away { since: 0, until: NOW * 10, pauses: 0, why: String::new() };
    let move_on = Move { order: world.facts.open_orders[0].id, to: "second".to_owned() };
    assert_eq!(moves(&world.facts), std::slice::from_ref(&move_on));
    // The same as a renewal: of a lifetime of 2 (NOW + 6000) a sixth is left only later.
    world.issue(&order, NOW);
    assert_eq!(moves(&world.facts), []);
    world.facts.now_ms = NOW * 2 - NOW / 3;
    assert_eq!(moves(&world.facts), [move_on]);
    world.facts.issuers.all[0].health = Health::Well;
    assert_eq!(moves(&world.facts), []);
}

#[test]
fn names_that_an_issuer_may_not_have_are_apart_and_go_to_the_next() {
    let mut world = World::new();
    world.facts.issuers.all = vec![issuer("first"), issuer("second")];
    world.ready("a.shop.test", &["default"]);
    let strict = world.ready("b.shop.test", &["default"]);
    let restriction = Restriction {
        kind: RestrictionKind::Caa,
        methods: Vec::new(),
        why: "set ..".to_owned(),
        until: NOW + 1000,
    };
    let known = &mut world.facts.names.get_mut(&strict).unwrap().issuers;
    known.insert("first".to_owned(), restriction);
    world.plan();
    let due = orders_due(&world.facts);
    assert_eq!(due.len(), 2);
    for due in &due {
        let expected = if due.names.contains_key("b.shop.test") { "second" } else { "first" };
        assert_eq!((due.names.len(), due.issuer.as_str()), (1, expected));
    }
    // Looked at too long ago: asked again, in a group that stays as it is.
    world.facts.now_ms = NOW + 1000;
    world.plan();
    assert!(orders_due(&world.facts).iter().all(|due| due.names.len() == 1 && due.issuer == "first"));
    let known = &mut world.facts.names.get_mut(&strict).unwrap().issuers;
    known.get_mut("first").unwrap().methods = vec![ChallengeMethod::Dns01];
    world.plan();
    assert_eq!(world.facts.groups.len(), 1, "it may, by another method: they share a certificate");
}

/// A group in two cells, both issued: in `a` just now, in `b` ten days ago.
fn two_cells(renew_in_ms: i64) -> World {
    let mut world = World::new();
    world.ready("shop.test", &["a", "b"]);
    world.plan();
    for renew_at in [NOW + 60 * DAY_MS, NOW + renew_in_ms] {
        let due = orders_due(&world.facts).remove(0);
        world.issue(&due, renew_at);
    }
    for (lineage, issued_at) in world.facts.lineages.iter_mut().zip([NOW - 1, NOW - 10 * DAY_MS]) {
        lineage.live.as_mut().unwrap().issued_at = issued_at;
    }
    world
}

#[test]
fn a_renewal_that_is_of_age_goes_along_while_authorizations_stand() {
    let mut world = two_cells(5 * DAY_MS);
    assert_eq!(orders_due(&world.facts), [], "its time has not come");
    let until = NOW + 7 * HOUR_MS;
    let first = world.facts.lineages[0].id;
    world.facts.authorized_until.insert(first, until);
    let due = orders_due(&world.facts);
    assert_eq!((due.len(), due[0].cell.as_str(), due[0].window_until), (1, "b", Some(until)));
    world.facts.authorized_until.insert(first, NOW + 1000);
    assert_eq!(orders_due(&world.facts), [], "an order takes longer than that");

    let mut young = two_cells(50 * DAY_MS);
    young.facts.authorized_until.insert(young.facts.lineages[0].id, until);
    assert_eq!(orders_due(&young.facts), [], "a third of its time at most");
    let mut newer = two_cells(5 * DAY_MS);
    newer.facts.authorized_until.insert(newer.facts.lineages[1].id, until);
    assert_eq!(orders_due(&newer.facts), [], "nobody follows what came before it");
}

#[test]
fn a_cell_more_than_the_limits_bear_is_not_ordered_and_what_is_there_is_kept() {
    let mut world = World::new();
    world.facts.cells_max.insert("first".to_owned(), 1);
    world.ready("shop.test", &["a", "b"]);
    world.plan();
    let due = orders_due(&world.facts).remove(0);
    assert_eq!(due.cell, cell("a"));
    world.issue(&due, NOW + 1000);
    assert_eq!(orders_due(&world.facts), [], "b is refused");
    world.facts.now_ms = NOW + 2000;
    assert_eq!(orders_due(&world.facts).len(), 1, "a is renewed");
}

#[test]
fn a_retired_name_leaves_with_a_renewal_or_when_its_time_is_over() {
    let mut world = World::new();
    for name in ["shop.test", "www.shop.test", "gone.shop.test"] {
        world.ready(name, &["default"]);
    }
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.issue(&order, NOW + 60 * DAY_MS);
    assert_eq!(orders_due(&world.facts), []);
    world.facts.domains.retain(|domain| domain.name != "gone.shop.test");
    world.facts.retired.leave_within_ms = 6 * DAY_MS;
    world.facts.retired.names.insert("gone.shop.test".to_owned(), NOW);
    world.plan();
    assert_eq!(orders_due(&world.facts), [], "a renewal may come first");
    world.facts.now_ms = NOW + 6 * DAY_MS - 1;
    assert_eq!(orders_due(&world.facts), []);
    world.facts.now_ms = NOW + 6 * DAY_MS;
    let due = orders_due(&world.facts);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].names.keys().collect::<Vec<_>>(), ["shop.test", "www.shop.test"]);
    assert!(due[0].keeps_alive(), "its names are served: it may use what is reserved for those");
    world.issue(&due[0], NOW + 120 * DAY_MS);
    assert_eq!(orders_due(&world.facts), [], "it is off");
}

#[test]
fn a_retired_name_alone_takes_its_certificate_along_and_others_wait_for_none() {
    let mut world = World::new();
    world.ready("gone.test", &["default"]);
    world.plan();
    let order = orders_due(&world.facts).remove(0);
    world.issue(&order, NOW + 60 * DAY_MS);
    world.facts.domains.clear();
    world.facts.retired.names.insert("gone.test".to_owned(), NOW);
    world.plan();
    assert_eq!(orders_due(&world.facts), []);
    assert_eq!(lineages_to_retire(&world.facts), [order.lineage]);
}

#[test]
fn a_retired_name_leaves_a_certificate_that_was_adopted_too() {
    let mut world = World::new();
    let shop = world.ready("shop.test", &["default"]);
    let names = ["gone.test".to_owned(), "shop.test".to_owned()];
    // In a group that was retired from the start.
    let adopted = LineageRow {
        id: LineageId::generate(),
        group: GroupId::generate(),
        cell: cell("default"),
        live: Some(LiveCredential {
            issuer: "le".to_owned(),
            id: CredentialId::generate(),
            names: names.to_vec(),
            not_before: 0,
            issued_at: 0,
            not_after: NOW + 90 * DAY_MS,
            renew_at: NOW + 60 * DAY_MS,
            window_end: None,
        }),
        serves: Names::from([(names[0].clone(), DomainId::generate()), (names[1].clone(), shop)]),
        leaving: true,
    };
    let id = adopted.id;
    world.facts.lineages.push(adopted);
    world.facts.retired.leave_within_ms = 6 * DAY_MS;
    world.facts.retired.names.insert(names[0].clone(), NOW);
    world.plan();
    assert_eq!((orders_due(&world.facts), lineages_to_retire(&world.facts)), (vec![], vec![]));
    world.facts.now_ms = NOW + 6 * DAY_MS;
    let due = orders_due(&world.facts);
    assert_eq!(
        due.iter().map(|order| order.names.keys().collect::<Vec<_>>()).collect::<Vec<_>>(),
        [["shop.test"]]
    );
    world.issue(&due[0], NOW + 120 * DAY_MS);
    assert_eq!(orders_due(&world.facts), []);
    assert_eq!(lineages_to_retire(&world.facts), [id]);
}

#[test]
fn an_order_that_waits_for_its_edge_holds_up_neither_other_cells_nor_other_names() {
    let mut world = World::new();
    let shop = world.ready("shop.test", &["lone", "shared"]);
    world.plan();
    let first = orders_due(&world.facts);
    assert_eq!(first.len(), 1, "one cell after the other: {first:?}");
    let waiting = first.into_iter().next().unwrap();
    world.facts.open_orders.push(open_order(&waiting, NOW));
    assert_eq!(orders_due(&world.facts), [], "its edge has it to answer");
    world.facts.open_orders[0].lacks_key = true;
    let other = orders_due(&world.facts);
    assert_eq!(other.len(), 1, "{other:?}");
    assert!(other[0].cell != waiting.cell && other[0].name_set == waiting.name_set, "{other:?}");
    assert_eq!(other[0].names.values().collect::<Vec<_>>(), [&shop]);
    // Many wait: another would say nothing new, but those of cells that can be asked go on.
    let lacking = OpenOrder { lacks_key: true, ..open_order(&waiting, NOW) };
    let many =
        (0..NEW_ORDERS_OF_TENANT_MAX).map(|_| OpenOrder { id: OrderId::generate(), ..lacking.clone() });
    world.facts.open_orders.extend(many);
    world.ready("rose.test", &["lone", "shared"]);
    world.plan();
    let cells: Vec<CellId> = orders_due(&world.facts).into_iter().map(|due| due.cell).collect();
    assert_eq!(cells, [other[0].cell.clone(), other[0].cell.clone()]);
}
