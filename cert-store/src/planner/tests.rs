use proptest::prelude::*;
use ulid::Ulid;

use super::*;
use crate::domain_name::DomainName;
use crate::tls_policy::{ClientCertificates, TlsVersion};

fn tenant(number: u128) -> TenantId {
    TenantId::from_ulid(Ulid(number))
}

fn by_id(tenant: TenantId) -> String {
    tenant.to_string()
}

fn pattern(text: &str) -> NamePattern {
    NamePattern::parse(text).unwrap()
}

fn name_with(text: &str, owner: u128, sharing: Sharing) -> PlanName {
    PlanName {
        name: pattern(text),
        domain: DomainId::from_ulid(Ulid(owner)),
        tenant: tenant(owner),
        policy: TlsPolicy::default(),
        sharing,
        ready: true,
        failed_before: false,
        part: 0,
    }
}

fn name(text: &str) -> PlanName {
    name_with(text, 1, Sharing::RegisteredDomain)
}

fn input(names: Vec<PlanName>) -> PlanInput {
    PlanInput { names, ..PlanInput::default() }
}

/// Today's groups, once a plan has been carried out; new groups get the next free ids.
fn carried_out(plan: &Plan, next_id: &mut u128) -> Vec<PlanGroup> {
    let mut id_of = |group: &PlannedGroup| {
        group.id.unwrap_or_else(|| {
            *next_id += 1;
            GroupId::from_ulid(Ulid(*next_id))
        })
    };
    plan.groups.iter().map(|group| PlanGroup { id: id_of(group), names: group.names.clone() }).collect()
}

fn sets(plan: &Plan) -> Vec<Vec<String>> {
    plan.groups.iter().map(|group| group.names.iter().map(ToString::to_string).collect()).collect()
}

#[test]
fn a_tenants_names_of_one_registered_domain_share_by_default() {
    let plan = plan(&input(vec![
        name("www.example.org"),
        name("example.org"),
        name("a.other.co.uk"),
        name("*.example.org"),
        name("other.co.uk"),
        name_with("shop.example.org", 2, Sharing::RegisteredDomain),
    ]));
    let expected = [
        vec!["example.org", "www.example.org"],
        vec!["*.example.org"],
        vec!["other.co.uk", "a.other.co.uk"],
        vec!["shop.example.org"],
    ];
    assert_eq!(sets(&plan), expected);
    assert_eq!(plan.orders_now(), 4);
}

#[test]
fn a_wildcard_shares_with_its_base_but_not_with_a_name_that_it_covers() {
    let mut names = vec![name("*.example.org"), name("example.org"), name("a.b.example.org")];
    assert_eq!(sets(&plan(&input(names.clone()))), [["example.org", "*.example.org", "a.b.example.org"]]);

    names.push(name("www.example.org"));
    let conflicting =
        PlanGroup { id: GroupId::from_ulid(Ulid(9)), names: names.iter().map(|n| n.name.clone()).collect() };
    for groups in [vec![], vec![conflicting]] {
        let plan = plan(&PlanInput { groups, ..input(names.clone()) });
        assert_eq!(plan.groups.len(), 2, "{:?}", sets(&plan));
        for group in &plan.groups {
            let covered = group.names.iter().any(|a| group.names.iter().any(|b| a != b && a.covers(b)));
            assert!(!covered, "{:?}", group.names);
        }
    }
}

#[test]
fn a_failed_name_is_alone_and_an_unready_one_waits() {
    let mut failed = name("b.example.org");
    failed.failed_before = true;
    let mut unready = name("c.example.org");
    unready.ready = false;
    let names = vec![name("a.example.org"), failed, unready, name("d.example.org"), name("d.example.org")];
    let plan = plan(&input(names));
    assert_eq!(sets(&plan), [vec!["b.example.org"], vec!["a.example.org", "d.example.org"]]);
    let waiting: Vec<_> = plan.waiting.iter().map(|w| (w.name.to_string(), w.reason)).collect();
    let expected = [("c.example.org", WaitingReason::NotReady), ("d.example.org", WaitingReason::Duplicate)];
    assert_eq!(waiting, expected.map(|(name, reason)| (name.to_owned(), reason)));
    assert!(plan.explain_name(&pattern("b.example.org"), &by_id).contains("last one failed"));
    assert!(plan.explain_name(&pattern("c.example.org"), &by_id).contains("not proved"));
    assert!(plan.explain_name(&pattern("a.example.org"), &by_id).contains("with 1 other name"));
}

#[test]
fn a_name_that_was_issued_alone_comes_back_to_a_group_with_one_free_place() {
    let all: Vec<PlanName> = (0..26).map(|n| name(&format!("n{n:02}.example.org"))).collect();
    let group = |id: u128, members: &[PlanName]| PlanGroup {
        id: GroupId::from_ulid(Ulid(id)),
        names: members.iter().map(|member| member.name.clone()).collect(),
    };
    // The largest certificate has 25 names.
    let mended = vec![group(1, &all[..24]), group(2, &all[24..25])];
    let planned = plan(&PlanInput { groups: mended, ..input(all[..25].to_vec()) });
    assert_eq!(planned.groups.len(), 1);
    assert_eq!(
        (planned.groups[0].id, planned.groups[0].names.len()),
        (Some(GroupId::from_ulid(Ulid(1))), 25)
    );

    let full = vec![group(1, &all[..25]), group(2, &all[25..])];
    let planned = plan(&PlanInput { groups: full, ..input(all) });
    assert_eq!(planned.groups.iter().map(|group| group.names.len()).collect::<Vec<_>>(), [25, 1]);
}

#[test]
fn names_that_ask_for_other_client_certificates_never_mix() {
    let asking = |required, authorities: u8| {
        let client_certificates = Some(ClientCertificates { required, authorities: [authorities; 8] });
        TlsPolicy { client_certificates, ..TlsPolicy::default() }
    };
    let policies = [
        ("a", TlsPolicy::default()),
        ("b", asking(true, 1)),
        ("c", asking(true, 1)),
        ("d", asking(false, 1)),
        ("e", asking(true, 2)),
        ("f", TlsPolicy { http3: false, ..TlsPolicy::default() }),
        ("g", TlsPolicy { http2: false, ..TlsPolicy::default() }),
    ];
    let named = |(label, policy): (&str, TlsPolicy)| PlanName {
        policy,
        ..name_with(&format!("{label}.x.example"), 1, Sharing::Tenant)
    };
    let names: Vec<PlanName> = policies.into_iter().map(named).collect();
    let mut groups = sets(&plan(&input(names)));
    groups.sort();
    let expected = [
        vec!["a.x.example"],
        vec!["b.x.example", "c.x.example"],
        vec!["d.x.example"],
        vec!["e.x.example"],
        vec!["f.x.example"],
        vec!["g.x.example"],
    ];
    assert_eq!(groups, expected.map(|group| group.into_iter().map(str::to_owned).collect::<Vec<_>>()));
}

#[test]
fn policies_and_tenants_never_mix_but_in_an_operators_group() {
    let strict = TlsPolicy { minimum_version: TlsVersion::Tls13, ..TlsPolicy::default() };
    let operator = || Sharing::Operator { group: "parked".into() };
    let mut tls13 = name_with("b.example", 1, operator());
    tls13.policy = strict;
    let names = vec![
        name_with("a.example", 1, operator()),
        tls13,
        name_with("c.example", 2, operator()),
        name_with("d.example", 3, Sharing::Tenant),
        name_with("e.example", 3, Sharing::Tenant),
        name_with("f.example", 4, Sharing::Tenant),
        name_with("g.example", 4, Sharing::Alone),
        name_with("h.example", 4, Sharing::Alone),
    ];
    let plan = plan(&input(names));
    let mut groups = sets(&plan);
    groups.sort();
    let expected = [
        vec!["a.example", "c.example"],
        vec!["b.example"],
        vec!["d.example", "e.example"],
        vec!["f.example"],
        vec!["g.example"],
        vec!["h.example"],
    ];
    assert_eq!(groups, expected);
    let radius = plan.blast_radius();
    assert_eq!((radius.names_per_key_max, radius.tenants_per_key_max, radius.names), (2, 2, 8));
}

#[test]
fn a_new_name_fills_a_gap_and_a_group_that_is_ordered_anyway_is_filled_first() {
    let names: Vec<_> = (0..49).map(|n| name(&format!("n{n:02}.example.org"))).collect();
    let mut ids = 100;
    let first = plan(&input(names.clone()));
    assert_eq!(first.groups.iter().map(|g| g.names.len()).collect::<Vec<_>>(), [25, 24]);
    let groups = carried_out(&first, &mut ids);

    let mut more = names;
    more.push(name("z0.example.org"));
    let second = plan(&PlanInput { groups: groups.clone(), ..input(more.clone()) });
    let changed: Vec<_> = second.groups.iter().filter(|g| g.order != OrderNeed::None).collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(
        (changed[0].id, &changed[0].added[..]),
        (Some(groups[1].id), &[pattern("z0.example.org")][..])
    );
    assert_eq!(changed[0].order, OrderNeed::Now);

    more.push(name("z1.example.org"));
    let third = plan(&PlanInput { groups: carried_out(&second, &mut ids), ..input(more) });
    assert_eq!(third.groups.len(), 3);
    assert_eq!(third.changed_groups(), 1);
}

#[test]
fn shrunken_groups_are_merged_at_renewal_only() {
    let names: Vec<_> = (0..50).map(|n| name(&format!("n{n:02}.example.org"))).collect();
    let groups = carried_out(&plan(&input(names.clone())), &mut 100);
    let kept: Vec<_> = names.iter().take(9).chain(names.iter().skip(25).take(12)).cloned().collect();
    let apart = plan(&PlanInput { groups: groups.clone(), ..input(kept.clone()) });
    assert_eq!((apart.groups.len(), apart.retired.len()), (2, 0), "21 do not fit into four fifths");
    let merged = plan(&PlanInput { groups: groups.clone(), ..input(kept[1..].to_vec()) });
    assert_eq!((merged.groups.len(), &merged.retired[..]), (1, &[groups[0].id][..]));
    assert_eq!(merged.groups[0].order, OrderNeed::AtRenewal);
    assert_eq!((merged.orders_now(), merged.orders_at_renewal()), (0, 1));
}

#[test]
fn a_lowered_limit_splits_and_an_empty_plan_retires_all() {
    let names: Vec<_> = (0..25).map(|n| name(&format!("n{n:02}.example.org"))).collect();
    let groups = carried_out(&plan(&input(names.clone())), &mut 100);
    let limits = PlanLimits { names_per_certificate_max: 10, ..PlanLimits::default() };
    let split = plan(&PlanInput { groups: groups.clone(), limits, ..input(names) });
    assert_eq!(split.groups.iter().map(|g| g.names.len()).collect::<Vec<_>>(), [10, 10, 5]);
    assert_eq!(split.groups[0].id, Some(groups[0].id));
    let empty = plan(&PlanInput { groups: groups.clone(), ..PlanInput::default() });
    assert_eq!((empty.groups.len(), &empty.retired[..]), (0, &[groups[0].id][..]));
    let absurd = PlanLimits { names_per_certificate_max: 0, ..PlanLimits::default() };
    let one_each =
        plan(&PlanInput { limits: absurd, ..input(vec![name("a.example.org"), name("b.example.org")]) });
    assert_eq!(one_each.groups.len(), 2);
}

#[test]
fn the_figures_of_a_large_import_are_those_of_the_design() {
    let apex_and_www = |n: u128, sharing: &Sharing| {
        [format!("d{n}.example"), format!("www.d{n}.example")]
            .map(|text| name_with(&text, n / 1000, sharing.clone()))
    };
    let by_domain =
        plan(&input((0..50_000).flat_map(|n| apex_and_www(n, &Sharing::RegisteredDomain)).collect()));
    assert_eq!(by_domain.orders_now(), 50_000);
    assert_eq!(by_domain.eta().as_secs() / 3_600, 497); // 20.7 days
    let shared = plan(&input((0..50_000).flat_map(|n| apex_and_www(n, &Sharing::Tenant)).collect()));
    assert!((4_000..4_300).contains(&shared.orders_now()), "{}", shared.orders_now());
    assert!(shared.eta().as_secs() / 3_600 < 40);
    let text = by_domain.explain();
    assert!(text.contains("50000 orders now") && text.contains("21 days"), "{text}");
    assert!(text.lines().count() < 120);
}

#[test]
fn a_hundred_thousand_names_are_planned_in_under_a_second() {
    let sharing = |n: u128| match n % 3 {
        0 => Sharing::Tenant,
        1 => Sharing::RegisteredDomain,
        _ => Sharing::Operator { group: "parked".into() },
    };
    // The heavy tail: most tenants have one domain, one has ten thousand; wildcards among them.
    let owner = |n: u128| if n.is_multiple_of(5) { 7 } else { n };
    let names: Vec<_> = (0..33_334_u128)
        .flat_map(|n| {
            let texts = [format!("d{n}.example"), format!("*.d{n}.example"), format!("www.d{n}.example")];
            texts.map(|text| name_with(&text, owner(n), sharing(n)))
        })
        .collect();
    let mut ids = 1;
    let timed = |input: &PlanInput| {
        let started = cpu_time();
        let plan = plan(input);
        (plan, cpu_time() - started)
    };
    let (first, from_nothing) = timed(&input(names.clone()));
    let again = PlanInput { groups: carried_out(&first, &mut ids), ..input(names) };
    let (second, from_today) = timed(&again);
    assert_eq!(second.changed_groups(), 0);
    println!("planned {} names: {from_nothing:?} from nothing, {from_today:?} from today", again.names.len());
    // Twice the promise, since other work shares the caches.
    assert!(
        from_nothing.as_secs_f64() < 2.0 && from_today.as_secs_f64() < 2.0,
        "{from_nothing:?} {from_today:?}"
    );
}

/// Time that this thread has run, whatever else the machine does (first field of schedstat, in nanoseconds).
fn cpu_time() -> std::time::Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    std::time::Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

/// How many groups differ between two plans, by what they hold.
fn differing(before: &[PlanGroup], after: &[PlanGroup]) -> usize {
    let before: BTreeMap<_, BTreeSet<_>> = before.iter().map(|g| (g.id, g.names.iter().collect())).collect();
    let after: BTreeMap<_, BTreeSet<_>> = after.iter().map(|g| (g.id, g.names.iter().collect())).collect();
    let ids: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    ids.into_iter().filter(|id| before.get(id) != after.get(id)).count()
}

/// Small, seeded, and good enough to choose names by (Steele, Lea, Flood 2014: SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn random_name(random: &mut Random) -> PlanName {
    let domain = random.below(3);
    let text = match random.below(8) {
        0 => format!("d{domain}.example"),
        1 => format!("*.d{domain}.example"),
        2 => format!("*.s{}.d{domain}.example", random.below(3)),
        3 | 4 => format!("n{}.s{}.d{domain}.example", random.below(6), random.below(3)),
        _ => format!("n{}.d{domain}.example", random.below(12)),
    };
    // What a name may share with follows from the name, so that a history only adds and removes.
    let owner = u128::from(domain % 2);
    let sharing = match domain {
        0 => Sharing::RegisteredDomain,
        1 => Sharing::Tenant,
        _ => Sharing::Operator { group: "parked".into() },
    };
    let mut name = name_with(&text, owner, sharing);
    name.policy.http3 = !text.contains("s2");
    name.failed_before = text.starts_with("n5");
    name.part = u64::from(text.starts_with("n4"));
    name
}

/// Panics with its seed if a step breaks a promise.
fn run_history(seed: u64) {
    let mut random = Random(seed);
    let limits = PlanLimits {
        names_per_certificate_max: [1, 2, 3, 5, 8, 25][usize::try_from(random.below(6)).unwrap()],
        ..PlanLimits::default()
    };
    let names_max = limits.names_per_certificate_max;
    let replan = |names: &[PlanName], groups: &[PlanGroup]| {
        plan(&PlanInput { names: names.to_vec(), groups: groups.to_vec(), limits: limits.clone() })
    };
    let mut ids = 0;
    let mut names: Vec<PlanName> = Vec::new();
    for _ in 0..random.below(60) {
        add_if_new(random_name(&mut random), &mut names);
    }
    let mut groups = carried_out(&replan(&names, &[]), &mut ids);
    let growing = random.below(10);
    for step in 0..12 {
        if random.below(10) < growing {
            add_if_new(random_name(&mut random), &mut names);
        } else if !names.is_empty() {
            let at = usize::try_from(random.below(names.len() as u64)).unwrap();
            names.swap_remove(at);
        }
        let planned = replan(&names, &groups);
        let after = carried_out(&planned, &mut ids);
        let changes = differing(&groups, &after);
        assert!(changes <= 2, "seed {seed}, step {step}: {changes} groups changed");
        assert_eq!(changes, planned.changed_groups(), "seed {seed}, step {step}: as reported");
        check_promises(&names, &planned, names_max, seed);
        groups = after;
    }
    assert_eq!(replan(&names, &groups).changed_groups(), 0, "seed {seed}: the plan of a plan is itself");
}

fn add_if_new(name: PlanName, names: &mut Vec<PlanName>) {
    if names.iter().all(|present| present.name != name.name) {
        names.push(name);
    }
}

fn check_promises(names: &[PlanName], plan: &Plan, names_max: usize, seed: u64) {
    let by_name: BTreeMap<&NamePattern, &PlanName> = names.iter().map(|name| (&name.name, name)).collect();
    let placed: Vec<_> = plan.groups.iter().flat_map(|group| &group.names).collect();
    assert_eq!(placed.len(), names.len(), "seed {seed}: each name once");
    assert!(placed.iter().all(|name| by_name.contains_key(*name)), "seed {seed}: no other name");
    for group in &plan.groups {
        let members: Vec<_> = group.names.iter().map(|name| by_name[name]).collect();
        assert!((1..=names_max).contains(&members.len()), "seed {seed}: {} names", members.len());
        assert!(members.iter().all(|m| m.policy == group.policy), "seed {seed}: policies mix");
        let failed = members.iter().any(|m| m.failed_before);
        assert!(!failed || members.len() == 1, "seed {seed}: a failed name has company");
        let operator = matches!(group.basis, Basis::Operator { .. });
        assert!(
            operator || members.iter().all(|m| m.tenant == members[0].tenant),
            "seed {seed}: tenants mix"
        );
        for a in &group.names {
            assert!(!group.names.iter().any(|b| a != b && a.covers(b)), "seed {seed}: {a} covers another");
        }
    }
}

#[test]
fn one_name_more_or_less_changes_at_most_two_groups_in_ten_thousand_histories() {
    // Fixed seeds: a failure names its seed and comes back.
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || (0..5_000).for_each(|seed| run_history(2 * seed + half)));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn the_order_of_the_input_does_not_matter(seed: u64, rotate in 0..100_usize) {
        let mut random = Random(seed);
        let mut names: Vec<PlanName> = Vec::new();
        while names.len() < 60 {
            let name = random_name(&mut random);
            add_if_new(name, &mut names);
        }
        let today = carried_out(&plan(&input(names[..40].to_vec())), &mut 0);
        let first = plan(&PlanInput { groups: today.clone(), ..input(names.clone()) });
        let shift = rotate % names.len();
        names.rotate_left(shift);
        let mut reversed = today;
        reversed.reverse();
        for group in &mut reversed {
            group.names.reverse();
        }
        prop_assert_eq!(plan(&PlanInput { groups: reversed, ..input(names) }), first);
    }

    #[test]
    fn any_history_of_groups_gives_a_sound_plan(seed: u64, max in 1..30_usize) {
        let mut random = Random(seed);
        let names: Vec<PlanName> = (0..80).map(|_| random_name(&mut random)).collect();
        let unique: BTreeMap<_, _> = names.iter().map(|name| (name.name.clone(), name.clone())).collect();
        // Groups that no plan would make: mixed, overlapping, with strangers.
        let groups = (0..12).map(|id| PlanGroup {
            id: GroupId::from_ulid(Ulid(id)),
            names: (0..random.below(40)).map(|_| random_name(&mut random).name).collect(),
        }).collect();
        let limits = PlanLimits { names_per_certificate_max: max, ..PlanLimits::default() };
        let planned = plan(&PlanInput { names, groups, limits });
        let unique: Vec<_> = unique.into_values().collect();
        check_promises(&unique, &planned, max, seed);
        let base = DomainName::parse("d0.example").unwrap();
        prop_assert!(!planned.explain().is_empty() && !planned.explain_name(&base.into(), &by_id).is_empty());
    }
}
