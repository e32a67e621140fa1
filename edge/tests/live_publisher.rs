//! What the writer of the published tables promises: faults stay with their resource, or refuse the batch whole.

mod fleet;

use fleet::{
    Bench, NOW, Shop, credential, delta, domain, domain_body, fixed, mint, mint_operators, mint_valid, now,
    resource, route, snapshot, tenant, tombstone,
};
use portico_api::distribution as wire;
use portico_cert_store::{DomainId, Generation, LineageId, TenantId};
use portico_edge::live::{
    Action, Batch, BatchKind, Checks, OriginHost, Published, SuspensionMode, UnknownSni,
};
use wire::ResourceKind;

const NOW_MS: i64 = (NOW as i64) * 1000;

fn codes(published: &Published) -> Vec<&str> {
    published.nacks.iter().map(|nack| nack.code.as_str()).collect()
}

#[test]
fn a_snapshot_serves_its_names_and_a_renewal_replaces_the_certificate() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    assert_eq!(codes(&bench.snapshot(shop.resources(1))), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), Some(shop.minted.leaf.clone()));
    assert!(route(&bench.host("www.shop.example").unwrap(), "/x").is_some());

    let renewed = mint(shop.tenant, &["www.shop.example"]);
    let published = bench.delta(vec![credential(shop.lineage, 2, shop.tenant, &renewed.body)]);
    assert_eq!(codes(&published), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), Some(renewed.leaf));
}

#[test]
fn a_bad_resource_is_nacked_alone_and_keeps_its_previous_version() {
    let mut bench = Bench::new();
    let (good, poisoned) = (Shop::new("good.example"), Shop::new("poisoned.example"));
    let mut all = good.resources(1);
    all.extend(poisoned.resources(1));
    bench.snapshot(all);

    let mut garbage = poisoned.minted.body.clone();
    garbage.chain_der = vec![vec![0x30, 0x82, 0xff, 0xff, 1].into()];
    let published = bench.delta(vec![
        credential(poisoned.lineage, 2, poisoned.tenant, &garbage),
        poisoned.domain(2, |body| body.routes[0].path_prefix = "no-slash".into()),
        good.domain(2, |body| body.routes[0] = fixed("second")),
    ]);
    assert_eq!(codes(&published), ["BadCertificate", "BadPathPrefix"]);
    assert_eq!(published.nacks[1].version, 2);
    assert_eq!(bench.served("poisoned.example"), Some(poisoned.minted.leaf));
    assert!(route(&bench.host("poisoned.example").unwrap(), "/").is_some());
    let host = bench.host("good.example").unwrap();
    let Action::Static { body, .. } = &route(&host, "/").unwrap().action else {
        panic!("not the static answer")
    };
    assert_eq!(&body[..], b"second");
}

/// Enough for all cores to stage them; tables that were empty take them in one go.
#[test]
fn a_first_batch_of_many_names_serves_all_but_the_spoiled_one() {
    let shops: Vec<Shop> = (0..150).map(|n| Shop::new(&format!("n{n}.shop.example"))).collect();
    for (kind, code) in [(BatchKind::Snapshot, "KeyDoesNotOpen"), (BatchKind::LastGood, "BadCertificate")] {
        let mut bench = Bench::new();
        let mut resources: Vec<_> = shops.iter().flat_map(|shop| shop.resources(1)).collect();
        let mut spoiled = shops[70].minted.body.clone();
        if kind == BatchKind::LastGood {
            bench.context.checks = Checks::ServedBefore;
            spoiled.chain_der = vec![spoiled.chain_der[0].slice(..100)];
        } else {
            spoiled.sealed_key = shops[3].minted.body.sealed_key.clone();
        }
        resources[70 * 3 + 1] = credential(shops[70].lineage, 1, shops[70].tenant, &spoiled);
        let published =
            bench.apply(Batch { kind, ..snapshot(Generation { epoch: 1, sequence: 1 }, resources) }).unwrap();
        assert_eq!(codes(&published), [code]);
        for (n, shop) in shops.iter().enumerate() {
            assert_eq!(
                bench.served(&shop.name),
                (n != 70).then(|| shop.minted.leaf.clone()),
                "{}",
                shop.name
            );
            assert!(route(&bench.host(&shop.name).unwrap(), "/").is_some());
        }
        assert_eq!(bench.publisher.names(), 150);

        bench.context.checks = Checks::Handshake;
        bench.delta(vec![credential(shops[70].lineage, 2, shops[70].tenant, &shops[70].minted.body)]);
        assert_eq!(bench.served(&shops[70].name), Some(shops[70].minted.leaf.clone()));
        bench.remove(vec![
            tombstone(ResourceKind::Domain, &shops[9].domain.to_string()),
            tombstone(ResourceKind::Credential, &shops[9].lineage.to_string()),
        ]);
        assert_eq!(bench.served(&shops[9].name), None);
        assert!(bench.live.sni.credential_of(shops[9].lineage).is_none());
    }
}

#[test]
fn credentials_that_would_not_serve_are_refused_with_their_reason() {
    let shop = Shop::new("www.shop.example");
    let other = mint(shop.tenant, &["www.shop.example"]);
    type Spoil = fn(&mut wire::Credential, &wire::Credential);
    let cases: [(&str, Spoil); 8] = [
        ("BadCertificate", |body, _| body.chain_der.clear()),
        // The leaf of another key.
        ("BadCertificate", |body, other| body.chain_der = other.chain_der.clone()),
        ("BadCredential", |body, _| body.spki_sha256 = vec![1].into()),
        ("KeyDoesNotOpen", |body, other| body.sealed_key = other.sealed_key.clone()),
        ("KeyDoesNotOpen", |body, _| body.cell_key_epoch = 9),
        ("OtherCell", |body, _| body.cell_id = "cell-b".into()),
        ("ForeignKey", |body, _| body.key_tenant = TenantId::generate().to_string()),
        ("BadId", |body, _| body.credential_id = "crd_".into()),
    ];
    for (code, spoil) in cases {
        let mut bench = Bench::new();
        bench.snapshot(shop.resources(1));
        let mut body = shop.minted.body.clone();
        spoil(&mut body, &other.body);
        let published = bench.delta(vec![credential(shop.lineage, 2, shop.tenant, &body)]);
        assert_eq!(codes(&published), [code]);
        assert_eq!(bench.served("www.shop.example"), Some(shop.minted.leaf.clone()), "{code}");
    }
}

#[test]
fn a_certificate_that_is_not_valid_never_replaces_one_that_is() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    for (from, to) in [(NOW - 20 * 86_400, NOW - 86_400), (NOW + 86_400, NOW + 90 * 86_400)] {
        let minted = mint_valid(shop.tenant, &["www.shop.example"], from, to);
        let published = bench.delta(vec![credential(shop.lineage, 2, shop.tenant, &minted.body)]);
        assert_eq!(codes(&published), ["BadDates"]);
        assert_eq!(bench.served("www.shop.example"), Some(shop.minted.leaf.clone()));
    }
    // Where there is none, an expired one is better than nothing.
    let other = Shop {
        minted: mint_valid(shop.tenant, &["old.example"], NOW - 9_000_000, NOW - 1),
        ..Shop::new("old.example")
    };
    let mut resources = other.resources(5);
    let mut body = other.minted.body.clone();
    let again = mint_valid(other.tenant, &["old.example"], NOW - 9_000_000, NOW - 1);
    body.clone_from(&again.body);
    resources[1] = credential(other.lineage, 5, other.tenant, &body);
    assert_eq!(codes(&bench.delta(resources)), [""; 0]);
    assert_eq!(bench.served("old.example"), Some(again.leaf));
}

#[test]
fn a_certificate_that_drops_a_served_name_is_refused() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let narrower = mint(shop.tenant, &["other.shop.example"]);
    let published = bench.delta(vec![credential(shop.lineage, 2, shop.tenant, &narrower.body)]);
    assert_eq!(codes(&published), ["NameNotCovered"]);
    assert_eq!(bench.served("www.shop.example"), Some(shop.minted.leaf.clone()));
    // The name moves away in the same batch: then it may go.
    let lineage = LineageId::generate();
    let own = mint(shop.tenant, &["www.shop.example"]);
    let mut body = domain_body("www.shop.example", &[lineage]);
    body.served = true;
    let published = bench.delta(vec![
        credential(shop.lineage, 3, shop.tenant, &narrower.body),
        credential(lineage, 3, shop.tenant, &own.body),
        domain(shop.domain, 3, shop.tenant, &body),
    ]);
    assert_eq!(codes(&published), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), Some(own.leaf));
}

#[test]
fn a_domain_may_come_before_its_certificate() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench
        .snapshot(vec![tenant(shop.tenant, 1), shop.domain(1, |body| body.acme_thumbprint = "a_b-c".into())]);
    assert_eq!(bench.served("www.shop.example"), None);
    assert_eq!(bench.host("www.shop.example").unwrap().acme_thumbprint.as_deref(), Some("a_b-c"));
    bench.delta(vec![credential(shop.lineage, 2, shop.tenant, &shop.minted.body)]);
    assert_eq!(bench.served("www.shop.example"), Some(shop.minted.leaf));
}

#[test]
fn an_unproved_claim_hides_neither_the_owner_nor_its_wildcard() {
    let mut bench = Bench::new();
    let owner = Shop::new("www.shop.example");
    let wildcard = Shop::new("*.wild.example");
    let claimant = TenantId::generate();
    let mut all = owner.resources(1);
    all.extend(wildcard.resources(1));
    bench.snapshot(all);
    let claim = |name: &str, version| {
        let body = wire::Domain { served: false, ..domain_body(name, &[]) };
        domain(DomainId::generate(), version, claimant, &body)
    };
    bench.delta(vec![tenant(claimant, 2), claim("www.shop.example", 2), claim("x.wild.example", 2)]);
    assert_eq!(bench.host("www.shop.example").unwrap().tenant.id, owner.tenant);
    assert_eq!(bench.host("x.wild.example").unwrap().tenant.id, wildcard.tenant);
    assert_eq!(bench.served("x.wild.example"), Some(wildcard.minted.leaf));
    // The claim is all that is left when the owner goes; it serves nothing.
    bench.remove(vec![tombstone(ResourceKind::Domain, &owner.domain.to_string())]);
    let host = bench.host("www.shop.example").unwrap();
    assert_eq!((host.tenant.id, host.served), (claimant, false));
    assert_eq!(bench.served("www.shop.example"), None);
}

#[test]
fn a_tenant_never_serves_with_the_key_of_another() {
    let mut bench = Bench::new();
    let victim = Shop::new("www.shop.example");
    let thief = TenantId::generate();
    let mut all = victim.resources(1);
    all.push(tenant(thief, 1));
    // The operator's mistake, or worse: the certificate holds the name, but it is another tenant's.
    all.push(domain(DomainId::generate(), 1, thief, &domain_body("sub.shop.example", &[victim.lineage])));
    bench.snapshot(all);
    assert_eq!(bench.served("sub.shop.example"), None);
    let same_name =
        domain(DomainId::generate(), 9, thief, &domain_body("www.shop.example", &[victim.lineage]));
    bench.delta(vec![same_name]);
    assert_eq!(
        bench.served("www.shop.example"),
        None,
        "the newest proof owns the name; the key is not its tenant's"
    );
}

#[test]
fn envelope_faults_refuse_the_batch_whole() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let applied = bench.publisher.applied();
    let change = || shop.domain(9, |body| body.routes[0] = fixed("changed"));
    let at = |epoch, sequence| Generation { epoch, sequence };
    let mut same = delta(applied, vec![change()]);
    same.generation = applied;
    let mut other_base = delta(at(1, 7), vec![change()]);
    other_base.generation = at(1, 9);
    let mut epoch = delta(applied, vec![change()]);
    epoch.generation = at(2, 1);
    let mut large = change();
    large.body = vec![0; wire::RESOURCE_BYTES_MAX].into();
    let mut nameless = change();
    nameless.id = String::new();
    let mut both = delta(applied, vec![change()]);
    both.tombstones.push(tombstone(ResourceKind::Domain, &shop.domain.to_string()));
    let cases = [
        ("GenerationNotAbove", same),
        ("GenerationNotAbove", snapshot(at(0, 900), vec![change()])),
        ("BaseMismatch", other_base),
        ("EpochNeedsSnapshot", epoch),
        ("ResourceTooLarge", delta(applied, vec![change(), large])),
        ("BadResourceId", delta(applied, vec![change(), nameless])),
        ("DuplicateResource", delta(applied, vec![change(), change()])),
        ("DuplicateResource", both),
        ("TooManyResources", delta(applied, vec![change(); portico_edge::live::limits::DELTA_ITEMS_MAX + 1])),
    ];
    for (code, batch) in cases {
        let refused = bench.apply(batch).unwrap_err();
        assert_eq!(refused.fault.code, code);
        assert_eq!(bench.publisher.applied(), applied);
        let host = bench.host("www.shop.example").unwrap();
        let Action::Static { body, .. } = &host.routes[0].action else { panic!("not the static answer") };
        assert_eq!(&body[..], b"www.shop.example", "{code} left a trace");
    }
}

#[test]
fn removing_many_names_needs_the_sign_off() {
    let mut bench = Bench::new();
    let owner = TenantId::generate();
    let ids: Vec<DomainId> = (0..400).map(|_| DomainId::generate()).collect();
    let mut resources = vec![tenant(owner, 1)];
    let name = |index: usize| format!("n{index}.shop.example");
    resources.extend(
        ids.iter().enumerate().map(|(index, id)| domain(*id, 1, owner, &domain_body(&name(index), &[]))),
    );
    bench.snapshot(resources.clone());
    let tombstones = |count: usize| -> Vec<_> {
        ids.iter().take(count).map(|id| tombstone(ResourceKind::Domain, &id.to_string())).collect()
    };
    // 10 %, as tombstones and as a snapshot that lacks them.
    let mut batch = delta(bench.publisher.applied(), Vec::new());
    batch.tombstones = tombstones(40);
    assert_eq!(bench.apply(batch).unwrap_err().fault.code, "RemovalsNotSignedOff");
    let mut lacking = resources.clone();
    lacking.drain(1..41);
    let refused = bench.apply(snapshot(Generation { epoch: 2, sequence: 1 }, lacking)).unwrap_err();
    assert_eq!(refused.fault.code, "RemovalsNotSignedOff");
    assert_eq!(bench.publisher.names(), 400);
    // 32 names are never too many, and signed off any number goes.
    bench.remove(tombstones(32));
    assert_eq!(bench.publisher.names(), 368);
    let mut batch = delta(bench.publisher.applied(), Vec::new());
    batch.tombstones = tombstones(400);
    batch.removals_signed_off = true;
    bench.apply(batch).unwrap();
    assert_eq!(bench.publisher.names(), 0);
    assert!(bench.host(&name(399)).is_none());
}

#[test]
fn what_is_referenced_is_not_removed() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let published = bench.remove(vec![
        tombstone(ResourceKind::Credential, &shop.lineage.to_string()),
        tombstone(ResourceKind::Tenant, &shop.tenant.to_string()),
    ]);
    assert_eq!(codes(&published), ["StillReferenced", "StillReferenced"]);
    assert_eq!(bench.served("www.shop.example"), Some(shop.minted.leaf.clone()));
    // Together with the domain both may go, in whatever order they are listed.
    let published = bench.remove(vec![
        tombstone(ResourceKind::Tenant, &shop.tenant.to_string()),
        tombstone(ResourceKind::Credential, &shop.lineage.to_string()),
        tombstone(ResourceKind::Domain, &shop.domain.to_string()),
    ]);
    assert_eq!(codes(&published), [""; 0]);
    assert_eq!((bench.publisher.names(), bench.publisher.credentials()), (0, 0));
    assert_eq!(bench.served("www.shop.example"), None);
}

#[test]
fn versions_only_rise_within_an_epoch() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(5));
    let older = shop.domain(4, |body| body.routes.clear());
    assert_eq!(codes(&bench.delta(vec![older.clone()])), ["VersionNotAbove"]);
    assert!(route(&bench.host("www.shop.example").unwrap(), "/").is_some());
    // A restored backup has a higher epoch and counts from where it was.
    let mut restored = shop.resources(4);
    restored[2] = older;
    let published = bench.apply(snapshot(Generation { epoch: 2, sequence: 4 }, restored)).unwrap();
    assert_eq!(codes(&published), [""; 0]);
    assert!(route(&bench.host("www.shop.example").unwrap(), "/").is_none());
}

#[test]
fn an_unknown_tenant_or_a_domain_that_changes_its_name_is_nacked() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let stranger = domain(DomainId::generate(), 2, TenantId::generate(), &domain_body("a.example", &[]));
    let renamed = shop.domain(2, |body| body.name = "b.shop.example".into());
    assert_eq!(codes(&bench.delta(vec![stranger, renamed])), ["UnknownTenant", "DomainChanged"]);
    assert!(bench.host("a.example").is_none() && bench.host("b.shop.example").is_none());
}

#[test]
fn unknown_kinds_are_accepted_and_ignored() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    let newer = wire::Resource {
        kind: 77,
        id: "x".into(),
        version: 1,
        body: vec![255, 1].into(),
        ..Default::default()
    };
    let mut all = shop.resources(1);
    all.push(newer.clone());
    let published = bench.snapshot(all);
    assert_eq!(codes(&published), [""; 0]);
    assert!(published.accepted.contains(&newer));
}

#[test]
fn proxies_that_could_not_be_followed_are_nacked() {
    let proxy = |origin: &str, host_header: &str| {
        wire::route::Action::Proxy(wire::Proxy {
            origin: origin.into(),
            host_header: host_header.into(),
            ..wire::Proxy::default()
        })
    };
    let more = |change: fn(&mut wire::Proxy)| {
        let mut proxy = wire::Proxy { origin: "https://a.example".into(), ..wire::Proxy::default() };
        change(&mut proxy);
        wire::route::Action::Proxy(proxy)
    };
    nacked([
        ("BadOrigin", proxy("ftp://a.example", "")),
        ("BadOrigin", proxy("http://a.example/path", "")),
        ("BadOrigin", proxy("http://user:pw@a.example", "")),
        ("BadOrigin", proxy("http://a.example:0", "")),
        ("BadOrigin", proxy("http://a.example\r\nx: y", "")),
        ("BadOrigin", proxy("a.example:80", "")),
        ("BadOrigin", proxy("http://a.example", "b\r\nx: y")),
        ("BadOrigin", proxy("http://a.example", "u@b")),
        ("BadProxy", more(|proxy| proxy.origins = several(17, 1))),
        ("BadProxy", more(|proxy| proxy.origins = several(2, 0))),
        ("BadProxy", more(|proxy| proxy.origins = several(2, 1001))),
        ("BadProxy", more(|proxy| proxy.origins = [several(1, 1), several(1, 2)].concat())),
        ("BadOrigin", more(|proxy| proxy.origins = vec![wire::WeightedOrigin::default()])),
        ("BadServerName", more(|proxy| proxy.tls_server_name = "a b".into())),
        ("BadOriginCa", more(|proxy| proxy.tls_ca_der = vec!["no certificate".into()])),
        ("BadOriginCa", more(|proxy| proxy.tls_ca_der = vec!["".into(); 17])),
        ("BadHealthCheck", more(|proxy| proxy.health_check = Some(check("/", 0, 1)))),
        ("BadHealthCheck", more(|proxy| proxy.health_check = Some(check("/", 3601, 1)))),
        ("BadHealthCheck", more(|proxy| proxy.health_check = Some(check("x", 5, 1)))),
        ("BadHealthCheck", more(|proxy| proxy.health_check = Some(check("/", 5, 0)))),
        ("BadHealthCheck", more(|proxy| proxy.health_check = Some(check("/", 5, 11)))),
    ]);
}

#[test]
fn redirects_and_answers_that_could_not_be_given_are_nacked() {
    let redirect = |location: &str, status| {
        wire::route::Action::Redirect(wire::Redirect {
            location: location.into(),
            status,
            keep_path: true,
            keep_query: None,
        })
    };
    nacked([
        ("BadRedirect", redirect("https://a.example/", 200)),
        ("BadRedirect", redirect("/relative", 302)),
        ("BadRedirect", redirect("javascript:alert(1)", 302)),
        ("BadRedirect", redirect("https://a.example/\r\nset-cookie: a=b", 302)),
        ("BadRedirect", redirect("https://a.example/\tx", 302)),
        ("BadRedirect", redirect("https://a.example/?q", 302)),
        ("BadStaticAnswer", answer(99, "text/plain", 1)),
        ("BadStaticAnswer", answer(101, "text/plain", 0)),
        ("BadStaticAnswer", answer(700, "text/plain", 1)),
        ("BadStaticAnswer", answer(204, "text/plain", 1)),
        ("BadStaticAnswer", answer(200, "text/plain\r\nx: y", 1)),
        ("BadStaticAnswer", answer(200, "text/plain", 64 * 1024 + 1)),
    ]);
}

#[test]
fn routes_without_bounds_or_action_are_nacked() {
    let shop = Shop::new("www.shop.example");
    let mut bench = Bench::new();
    bench.snapshot(shop.resources(1));
    let published = bench.delta(vec![shop.domain(2, |body| body.routes = vec![fixed("x"); 101])]);
    assert_eq!(codes(&published), ["TooManyRoutes"]);
    let without_action = wire::Route { path_prefix: "/".into(), action: None, rule: None };
    let published = bench.delta(vec![shop.domain(2, |body| body.routes = vec![without_action])]);
    assert_eq!(codes(&published), ["UnknownAction"]);
    // The bounds themselves are fine.
    let most =
        vec![
            wire::Route { path_prefix: "/".into(), action: Some(answer(200, "", 64 * 1024)), rule: None };
            7
        ];
    assert_eq!(codes(&bench.delta(vec![shop.domain(2, |body| body.routes.clone_from(&most))])), [""; 0]);
}

/// Each action alone in a route, with the code that it is refused with.
fn nacked<const N: usize>(cases: [(&str, wire::route::Action); N]) {
    let shop = Shop::new("www.shop.example");
    let mut bench = Bench::new();
    bench.snapshot(shop.resources(1));
    for (code, action) in cases {
        let shown = format!("{action:?}");
        let route = wire::Route { path_prefix: "/".into(), action: Some(action), rule: None };
        let published = bench.delta(vec![shop.domain(2, |body| body.routes = vec![route])]);
        assert_eq!(codes(&published), [code], "{shown:.200}");
    }
}

fn answer(status: u32, content_type: &str, bytes: usize) -> wire::route::Action {
    wire::route::Action::StaticAnswer(wire::StaticAnswer {
        status,
        content_type: content_type.into(),
        body: vec![b'x'; bytes].into(),
    })
}

fn several(count: usize, weight: u32) -> Vec<wire::WeightedOrigin> {
    let url = |number| format!("http://{number}.example");
    (0..count).map(|number| wire::WeightedOrigin { url: url(number), weight }).collect()
}

fn check(path: &str, interval_seconds: u32, after: u32) -> wire::HealthCheck {
    wire::HealthCheck { path: path.into(), interval_seconds, healthy_after: after, unhealthy_after: after }
}

#[test]
fn rules_that_are_wrong_or_of_a_newer_release_are_nacked() {
    let shop = Shop::new("www.shop.example");
    let mut bench = Bench::new();
    bench.snapshot(shop.resources(1));
    let rule = |change: fn(&mut wire::Rule)| {
        let path = Some(wire::rule::Path::Prefix("/".into()));
        let mut rule = wire::Rule { level: wire::RULE_LEVEL, path, ..wire::Rule::default() };
        change(&mut rule);
        wire::Route { path_prefix: String::new(), rule: Some(rule), ..fixed("x") }
    };
    let changes = |name: &str| {
        let set = vec![wire::HeaderField { name: name.into(), value: "1".into() }];
        Some(wire::HeaderChanges { set, remove: vec![] })
    };
    let mut own = rule(|_| ());
    own.rule.as_mut().unwrap().response_headers = changes("strict-transport-security");
    for (code, route) in [
        ("UnknownRule", rule(|rule| rule.level += 1)),
        ("UnknownRule", rule(|rule| rule.path = None)),
        ("BadPathPrefix", rule(|rule| rule.path = Some(wire::rule::Path::Exact("x".into())))),
        ("BadPathPrefix", wire::Route { path_prefix: String::new(), ..fixed("x") }),
        ("BadMethods", rule(|rule| rule.methods = vec!["a b".into()])),
        ("BadHeaderCondition", rule(|rule| rule.headers = vec![wire::HeaderCondition::default()])),
        ("BadReplacePrefix", rule(|rule| rule.replace_prefix = Some("/b".into()))),
        ("BadResponseHeaders", own),
    ] {
        let shown = format!("{route:?}");
        let published = bench.delta(vec![shop.domain(2, |body| body.routes = vec![route])]);
        assert_eq!(codes(&published), [code], "{shown:.200}");
    }
    for (text, retry_after_seconds) in [("x".repeat(501), 1), (String::new(), 0), (String::new(), 604_801)] {
        let maintenance = Some(wire::Maintenance { text, retry_after_seconds });
        let published = bench.delta(vec![shop.domain(2, |body| body.maintenance = maintenance)]);
        assert_eq!(codes(&published), ["BadMaintenance"]);
    }
}

#[test]
fn routes_match_on_whole_segments_and_redirects_keep_the_path() {
    let shop = Shop::new("www.shop.example");
    let mut bench = Bench::new();
    let mut resources = shop.resources(1);
    let redirect = wire::Redirect {
        location: "https://new.example/base/".into(),
        status: 308,
        keep_path: true,
        keep_query: None,
    };
    let proxy = wire::Proxy {
        origin: "https://[2001:db8::1]:8443".into(),
        host_header: "in.example:1".into(),
        ..wire::Proxy::default()
    };
    resources[2] = shop.domain(1, |body| {
        body.routes = vec![
            wire::Route {
                path_prefix: "/old/".into(),
                action: Some(wire::route::Action::Redirect(redirect)),
                rule: None,
            },
            wire::Route {
                path_prefix: "/app".into(),
                action: Some(wire::route::Action::Proxy(proxy)),
                rule: None,
            },
        ];
    });
    assert_eq!(codes(&bench.snapshot(resources)), [""; 0]);
    let host = bench.host("www.shop.example").unwrap();
    for (path, matched) in [
        ("/old", Some("/old")),
        ("/old/", Some("/old")),
        ("/old/a", Some("/old")),
        ("/older", None),
        ("/app/x", Some("/app")),
        ("/application", None),
        ("/", None),
        ("*", None),
    ] {
        assert_eq!(route(&host, path).map(|route| route.rule.path.as_str()), matched, "{path}");
    }
    let Action::Redirect(redirect) = &route(&host, "/old/a").unwrap().action else {
        panic!("not the redirect")
    };
    assert_eq!(redirect.location_for("/old/a", Some("b=c")).unwrap(), "https://new.example/base/old/a?b=c");
    let Action::Proxy(upstream) = &route(&host, "/app").unwrap().action else { panic!("not the proxy") };
    let origin = &upstream.origins[0].origin;
    assert_eq!(origin.host, OriginHost::Address("2001:db8::1".parse().unwrap()));
    assert_eq!((origin.port, origin.host_header.as_ref().unwrap().as_bytes()), (8443, &b"in.example:1"[..]));
}

#[tokio::test]
async fn a_suspension_reaches_an_exchange_that_holds_an_older_host() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let held = bench.host("www.shop.example").unwrap();
    let exchange = tokio::spawn(async move { held.cut(NOW_MS).await });
    tokio::task::yield_now().await;
    // A new version of the host comes first; the exchange still holds the old one.
    bench.delta(vec![shop.domain(2, |body| body.routes = vec![fixed("v2")])]);
    let legal = wire::Suspension {
        mode: wire::suspension::Mode::Legal as i32,
        reason: "court".into(),
        until_unix_ms: 0,
    };
    bench.delta(vec![shop.domain(3, |body| body.suspension = Some(legal))]);
    let cut = tokio::time::timeout(std::time::Duration::from_secs(60), exchange).await.unwrap().unwrap();
    assert_eq!((cut.mode, &*cut.reason), (SuspensionMode::Legal, "court"));
    assert!(bench.host("www.shop.example").unwrap().suspended(NOW_MS).is_some());
    assert_eq!(
        bench.served("www.shop.example"),
        Some(shop.minted.leaf.clone()),
        "the certificate stays alive"
    );
    bench.delta(vec![shop.domain(4, |_| ())]);
    assert!(bench.host("www.shop.example").unwrap().suspended(NOW_MS).is_none());
}

#[test]
fn an_older_suspension_does_not_undo_a_newer_one() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let suspension = portico_edge::live::Suspension {
        mode: SuspensionMode::Drop,
        reason: "abuse".into(),
        until_unix_ms: 0,
    };
    let suspended = |bench: &Bench| bench.host("www.shop.example").unwrap().suspended(NOW_MS).is_some();
    bench.publisher.suspend(shop.tenant, None, Some(suspension.clone()), 7).unwrap();
    assert!(suspended(&bench));
    // A resource and an urgent message from before it.
    bench.delta(vec![tenant(shop.tenant, 6)]);
    bench.publisher.suspend(shop.tenant, None, None, 6).unwrap();
    assert!(suspended(&bench));
    bench.delta(vec![tenant(shop.tenant, 8)]);
    assert!(!suspended(&bench));
    bench.publisher.suspend(shop.tenant, Some(shop.domain), Some(suspension), 9).unwrap();
    assert!(suspended(&bench));
    assert_eq!(
        bench.publisher.suspend(TenantId::generate(), None, None, 1).unwrap_err().code,
        "UnknownSubject"
    );
    assert_eq!(
        bench.publisher.suspend(shop.tenant, Some(DomainId::generate()), None, 1).unwrap_err().code,
        "UnknownSubject"
    );
}

#[test]
fn the_default_certificate_is_the_one_that_serves_the_chosen_domain() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    let fleet =
        |version, body: &wire::Fleet| resource(ResourceKind::Fleet, "fleet", version, shop.tenant, body);
    let body = wire::Fleet {
        unknown_sni: wire::UnknownSni::Default as i32,
        default_domain_id: shop.domain.to_string(),
        denied_cidrs: vec!["10.1.2.3".into(), "2001:db8::/32".into()],
        denied_sockets: vec!["192.0.2.1:7443".into()],
        ..wire::Fleet::default()
    };
    bench.snapshot(vec![fleet(1, &body)]);
    assert!(bench.live.sni.default_credential().is_none());
    bench.delta(shop.resources(2));
    let shown = |bench: &Bench| bench.live.sni.default_credential().map(|credential| credential.lineage());
    assert_eq!(shown(&bench), Some(shop.lineage));
    // A renewal stays in its lineage, a new grouping moves the domain to another one, whose old one then goes.
    let regrouped = LineageId::generate();
    bench.delta(vec![
        credential(regrouped, 3, shop.tenant, &mint(shop.tenant, &["www.shop.example"]).body),
        shop.domain(3, |body| body.lineages[0].lineage_id = regrouped.to_string()),
    ]);
    assert_eq!(
        codes(&bench.remove(vec![tombstone(ResourceKind::Credential, &shop.lineage.to_string())])),
        [""; 0]
    );
    assert_eq!(shown(&bench), Some(regrouped));
    let policy = bench.live.fleet.load_full();
    assert_eq!((policy.unknown_sni, policy.denied_networks.len()), (UnknownSni::Default, 2));
    assert_eq!(policy.denied_sockets[..], ["192.0.2.1:7443".parse().unwrap()]);
    let bad = wire::Fleet { denied_cidrs: vec!["10.0.0.0/99".into()], ..body.clone() };
    assert_eq!(codes(&bench.delta(vec![fleet(3, &bad)])), ["BadFleet"]);
    let bad = wire::Fleet { denied_sockets: vec!["192.0.2.1".into()], ..body };
    assert_eq!(codes(&bench.delta(vec![fleet(4, &bad)])), ["BadFleet"]);
    // Never removed, neither by a tombstone nor by a snapshot without it.
    assert_eq!(codes(&bench.remove(vec![tombstone(ResourceKind::Fleet, "fleet")])), ["NotRemovable"]);
    bench.snapshot(shop.resources(2));
    assert_eq!(bench.live.fleet.load().unknown_sni, UnknownSni::Default);
    bench.remove(vec![tombstone(ResourceKind::Domain, &shop.domain.to_string())]);
    assert_eq!(shown(&bench), None);
}

/// An edge that was away hears in one batch that a name has left and that its certificate is renewed without it.
#[test]
fn a_certificate_may_lose_a_name_that_leaves_in_the_same_batch() {
    for whole in [false, true] {
        let mut bench = Bench::new();
        let group = Shop::new("stays.shop.example");
        let leaving = DomainId::generate();
        let names = ["stays.shop.example", "leaves.shop.example"];
        bench.snapshot(vec![
            tenant(group.tenant, 1),
            credential(group.lineage, 1, group.tenant, &mint(group.tenant, &names).body),
            group.domain(1, |_| ()),
            domain(leaving, 1, group.tenant, &domain_body("leaves.shop.example", &[group.lineage])),
        ]);
        assert!(bench.served("leaves.shop.example").is_some());
        let renewed = credential(group.lineage, 2, group.tenant, &group.minted.body);
        let published = if whole {
            bench.snapshot(vec![tenant(group.tenant, 1), renewed, group.domain(1, |_| ())])
        } else {
            let mut batch = delta(bench.publisher.applied(), vec![renewed]);
            batch.tombstones = vec![tombstone(ResourceKind::Domain, &leaving.to_string())];
            bench.apply(batch).unwrap()
        };
        assert_eq!(codes(&published), [""; 0]);
        assert_eq!(bench.served("stays.shop.example"), Some(group.minted.leaf.clone()));
        assert_eq!(bench.served("leaves.shop.example"), None);
        // Without the removal it would go dark, and is refused as before.
        let mut bench = Bench::new();
        bench.snapshot(vec![
            tenant(group.tenant, 1),
            credential(group.lineage, 1, group.tenant, &mint(group.tenant, &names).body),
            domain(leaving, 1, group.tenant, &domain_body("leaves.shop.example", &[group.lineage])),
        ]);
        let renewed = credential(group.lineage, 2, group.tenant, &group.minted.body);
        assert_eq!(codes(&bench.delta(vec![renewed])), ["NameNotCovered"]);
    }
}

/// A lineage that no name refers to.
fn staged(bench: &mut Bench, of: TenantId, body: &wire::Credential) -> LineageId {
    let lineage = LineageId::generate();
    assert_eq!(codes(&bench.delta(vec![credential(lineage, 1, of, body)])), [""; 0]);
    lineage
}

fn drilled(bench: &Bench, lineage: LineageId, names: &[&str]) -> Vec<String> {
    let names = names.iter().map(ToString::to_string).collect();
    let target = wire::DrillTarget { lineage_id: lineage.to_string(), names };
    let faults = bench.publisher.drill(&[target], now()).expect("these are few names");
    faults.into_iter().map(|fault| fault.code).collect()
}

#[test]
fn a_backup_is_shown_to_nobody_until_its_name_refers_to_it_and_falls_back_by_itself() {
    let mut bench = Bench::new();
    let shop = Shop::new("www.shop.example");
    bench.snapshot(shop.resources(1));
    let own = Some(shop.minted.leaf.clone());
    // It ends sooner than what serves, so that by its end alone it would never be shown.
    let backup = mint_valid(shop.tenant, &["www.shop.example"], NOW - 86_400, NOW + 86_400);
    let lineage = staged(&mut bench, shop.tenant, &backup.body);
    assert_eq!(bench.served("www.shop.example"), own);
    assert_eq!(drilled(&bench, lineage, &["www.shop.example"]), [""; 0]);

    let switched = |version, body: &wire::Credential| {
        let with_both = |of: &mut wire::Domain| {
            let first = wire::LineageRef { lineage_id: lineage.to_string(), ..of.lineages[0].clone() };
            of.lineages.insert(0, first);
        };
        vec![credential(lineage, version, shop.tenant, body), shop.domain(version, with_both)]
    };
    let first = wire::Credential { goes_first: true, ..backup.body.clone() };
    assert_eq!(codes(&bench.delta(switched(2, &first))), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), Some(backup.leaf.clone()));
    assert_eq!(drilled(&bench, lineage, &["www.shop.example"]), [""; 0], "also while it is shown");
    let again = vec![credential(lineage, 3, shop.tenant, &backup.body), shop.domain(3, |_| ())];
    assert_eq!(codes(&bench.delta(again)), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), own, "taken back");

    let over = mint_valid(shop.tenant, &["www.shop.example"], NOW - 86_400, NOW + 3600);
    let over = wire::Credential { goes_first: true, ..over.body };
    assert_eq!(codes(&bench.delta(switched(4, &over))), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), own, "its last hour has begun");
    // An edge that the backup has not reached.
    bench.remove(vec![tombstone(ResourceKind::Domain, &shop.domain.to_string())]);
    bench.remove(vec![tombstone(ResourceKind::Credential, &lineage.to_string())]);
    let [_, domain] = switched(5, &first).try_into().unwrap();
    assert_eq!(codes(&bench.delta(vec![domain])), [""; 0]);
    assert_eq!(bench.served("www.shop.example"), own);
}

#[test]
fn a_drill_tells_what_would_keep_a_name_from_being_served() {
    let mut bench = Bench::new();
    let (shop, rival) = (Shop::new("www.shop.example"), Shop::new("www.rival.example"));
    let name = ["www.shop.example"];
    bench.snapshot([shop.resources(1), rival.resources(1)].concat());
    let good = staged(&mut bench, shop.tenant, &mint(shop.tenant, &name).body);
    let operators = staged(&mut bench, shop.tenant, &mint_operators(&name).body);
    let foreign = staged(&mut bench, rival.tenant, &mint(rival.tenant, &name).body);
    let old = mint_valid(shop.tenant, &name, NOW - 86_400, NOW - 1);
    let old = staged(&mut bench, shop.tenant, &old.body);
    // A start from last-good opens no key.
    bench.context.checks = Checks::ServedBefore;
    let sealed_key = shop.minted.body.sealed_key.clone();
    let spoiled = wire::Credential { sealed_key, ..mint(shop.tenant, &name).body };
    let spoiled = staged(&mut bench, shop.tenant, &spoiled);
    assert_eq!(drilled(&bench, spoiled, &name), ["KeyDoesNotOpen"]);
    assert_eq!(drilled(&bench, good, &name), [""; 0]);
    assert_eq!(drilled(&bench, operators, &name), [""; 0]);
    assert_eq!(drilled(&bench, LineageId::generate(), &name), ["NotHere"]);
    assert_eq!(drilled(&bench, old, &name), ["NotValid"]);
    assert_eq!(drilled(&bench, foreign, &name), ["ForeignKey"]);
    assert_eq!(drilled(&bench, operators, &["www.rival.example"]), ["DoesNotCover"]);
    assert_eq!(drilled(&bench, good, &["gone.shop.example", "-"]), ["NotServed", "BadName"]);
    bench.delta(vec![shop.domain(2, |body| body.served = false)]);
    assert_eq!(drilled(&bench, good, &name), ["NotServed"]);

    let bad_id = wire::DrillTarget { lineage_id: "lin_".to_owned(), names: vec!["a.example".to_owned()] };
    assert_eq!(bench.publisher.drill(&[bad_id], now()).unwrap()[0].code, "BadId");
    let many = wire::DrillTarget {
        lineage_id: good.to_string(),
        names: vec!["www.shop.example".to_owned(); wire::DRILL_NAMES_MAX],
    };
    assert_eq!(bench.publisher.drill(std::slice::from_ref(&many), now()).unwrap().len(), many.names.len());
    let one_more = wire::DrillTarget { names: vec!["www.shop.example".to_owned()], ..many.clone() };
    assert_eq!(bench.publisher.drill(&[many, one_more], now()).unwrap_err().code, "DrillTooLarge");
}
