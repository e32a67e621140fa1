//! No bytes from the control plane or the disk can make the writer panic, or touch another tenant.

mod fleet;

use fleet::{Bench, Shop, credential, delta, domain_body, resource, route, tenant};
use portico_api::distribution as wire;
use portico_cert_store::{DomainId, LineageId};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message as _;
use wire::ResourceKind;

/// What is done to bytes.
#[derive(Clone, Debug)]
enum Spoil {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Double,
}

fn spoil() -> impl Strategy<Value = Spoil> {
    prop_oneof![
        (any::<Index>(), 1..=255_u8).prop_map(|(at, mask)| Spoil::Flip(at, mask)),
        any::<Index>().prop_map(Spoil::Cut),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, more)| Spoil::Insert(at, more)),
        Just(Spoil::Double),
    ]
}

fn spoilt(mut bytes: Vec<u8>, spoils: &[Spoil]) -> Vec<u8> {
    for spoil in spoils {
        match spoil {
            Spoil::Flip(at, mask) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Spoil::Flip(..) => {}
            Spoil::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Spoil::Insert(at, more) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Spoil::Double => bytes.extend(bytes.clone()),
        }
    }
    bytes
}

/// A route with all that a rule can hold.
fn ruled() -> wire::Route {
    let changes = Some(wire::HeaderChanges {
        set: vec![wire::HeaderField { name: "x-a".into(), value: "b".into() }],
        remove: vec!["x-c".into()],
    });
    let rule = wire::Rule {
        level: 1,
        path: Some(wire::rule::Path::Exact("/b".into())),
        methods: vec!["GET".into()],
        headers: vec![wire::HeaderCondition { name: "x-d".into(), equals: Some("e".into()) }],
        replace_prefix: Some("/f".into()),
        request_headers: changes.clone(),
        response_headers: changes,
    };
    let proxy = wire::Proxy { origin: "http://b.example".into(), ..wire::Proxy::default() };
    wire::Route {
        path_prefix: String::new(),
        action: Some(wire::route::Action::Proxy(proxy)),
        rule: Some(rule),
    }
}

/// One resource of each kind, valid, with everything in it that a kind can hold.
fn templates(shop: &Shop) -> Vec<wire::Resource> {
    let suspension = Some(wire::Suspension { mode: 2, reason: "r".into(), until_unix_ms: 5 });
    let tenant_body = wire::Tenant {
        egress_grants: vec![wire::EgressGrant { cidr: "10.0.0.0/8".into(), ports: vec![80] }],
        suspension: suspension.clone(),
        limits: Some(wire::TenantLimits {
            requests_per_second: 5,
            exchanges: 6,
            bytes_per_second: 1 << 20,
            request_body_bytes: 7,
            connections: 8,
            cache_bytes: 9,
        }),
        error_pages: vec![wire::ErrorPage { status: 503, content_type: "a/b".into(), body: "p".into() }],
    };
    let route = |action| wire::Route { path_prefix: "/a".into(), action: Some(action), rule: None };
    let mut domain_body = domain_body(&shop.name, &[shop.lineage]);
    domain_body.suspension = suspension;
    domain_body.acme_thumbprint = "abc".into();
    domain_body.tls = Some(wire::TlsPolicy {
        minimum_version: 2,
        http2_off: true,
        http3_off: true,
        client_certificates: None,
        early_data: true,
    });
    domain_body.routes.extend([
        route(wire::route::Action::Proxy(wire::Proxy {
            origin: "http://[::1]:80".into(),
            host_header: "h".into(),
            origins: ["http://[::1]:80", "https://b.example"]
                .map(|url| wire::WeightedOrigin { url: url.into(), weight: 7 })
                .into(),
            protocol: 2,
            tls_server_name: "c.example".into(),
            health_check: Some(wire::HealthCheck {
                path: "/".into(),
                interval_seconds: 5,
                healthy_after: 1,
                unhealthy_after: 2,
            }),
            connect_timeout_ms: 100,
            in_flight_max: 5,
            pending_max: 5,
            ..wire::Proxy::default()
        })),
        route(wire::route::Action::Redirect(wire::Redirect {
            location: "https://b.example/".into(),
            status: 301,
            keep_path: true,
            keep_query: Some(false),
        })),
    ]);
    domain_body.routes.push(ruled());
    domain_body.hsts_preload = true;
    domain_body.maintenance = Some(wire::Maintenance { text: "g".into(), retry_after_seconds: 7 });
    let fleet = wire::Fleet {
        unknown_sni: 1,
        default_domain_id: shop.domain.to_string(),
        denied_cidrs: vec!["10.0.0.0/8".into()],
        denied_sockets: vec!["192.0.2.1:7443".into()],
        tenant_limits: tenant_body.limits,
    };
    vec![
        resource(ResourceKind::Tenant, &shop.tenant.to_string(), 2, shop.tenant, &tenant_body),
        credential(shop.lineage, 2, shop.tenant, &shop.minted.body),
        fleet::domain(shop.domain, 2, shop.tenant, &domain_body),
        resource(ResourceKind::Fleet, "fleet", 2, shop.tenant, &fleet),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn spoilt_resources_are_nacked_or_taken_and_never_reach_another_tenant(
        spoils in prop::collection::vec((any::<Index>(), any::<bool>(), prop::collection::vec(spoil(), 1..4)), 1..6),
        random in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0..6_u32,
    ) {
        let (good, victim) = (Shop::new("good.example"), Shop::new("victim.example"));
        let mut bench = Bench::new();
        let mut all = good.resources(1);
        all.extend(victim.resources(1));
        bench.snapshot(all);
        let templates = templates(&victim);
        for (which, inside, spoils) in &spoils {
            let template = &templates[which.index(templates.len())];
            let changed = if *inside {
                let body = spoilt(template.body.to_vec(), spoils).into();
                wire::Resource { body, ..template.clone() }
            } else {
                match wire::Resource::decode(&*spoilt(template.encode_to_vec(), spoils)) {
                    Ok(changed) => changed,
                    Err(_) => continue,
                }
            };
            apply(&mut bench, changed)?;
        }
        apply(&mut bench, wire::Resource { kind, id: victim.domain.to_string(), version: 9, body: random.into(), ..Default::default() })?;
        prop_assert_eq!(bench.served("good.example"), Some(good.minted.leaf));
        prop_assert!(route(&bench.host("good.example").unwrap(), "/").is_some());
    }
}

fn apply(bench: &mut Bench, changed: wire::Resource) -> Result<(), TestCaseError> {
    let batch = delta(bench.publisher.applied(), vec![changed]);
    if let Ok(published) = bench.apply(batch) {
        // Staging holds panics to their resource; here they are what is looked for.
        let panicked = published.nacks.iter().find(|nack| nack.code == "InternalFault");
        prop_assert!(panicked.is_none(), "{:?}", panicked);
    }
    Ok(())
}

#[test]
fn a_poisoned_reference_does_not_resolve_to_a_foreign_lineage_later() {
    // A lineage that does not exist yet is claimed by a stranger first, then arrives for its real tenant.
    let (owner, stranger) = (Shop::new("www.shop.example"), Shop::new("other.example"));
    let mut bench = Bench::new();
    let mut all = stranger.resources(1);
    all.push(tenant(owner.tenant, 1));
    all.push(fleet::domain(
        DomainId::generate(),
        1,
        stranger.tenant,
        &domain_body("www.shop.example", &[owner.lineage, LineageId::generate()]),
    ));
    bench.snapshot(all);
    bench.delta(vec![credential(owner.lineage, 2, owner.tenant, &owner.minted.body)]);
    assert_eq!(bench.served("www.shop.example"), None);
}
