//! Each bound on what the control plane may make an edge hold: the bound itself is taken, one more is refused.

#![allow(
    missing_debug_implementations,
    clippy::unwrap_used,
    reason = "a test binary: nobody uses its types, and a failed unwrap is a failed test"
)]

mod fleet;

use std::time::Duration;

use fleet::{Bench, Shop, cell, delta, resource, snapshot, tombstone};
use portico_api::distribution::{self as wire, ResourceKind};
use portico_cert_store::LineageId;
use portico_edge::challenge::ChallengePublisher;
use portico_edge::live::limits::*;
use portico_edge::live::{Action, Upstream};

/// A tenant's shop on an edge, and how many changes it has seen.
struct Stage {
    bench: Bench,
    shop: Shop,
    version: u64,
}

impl Stage {
    fn new() -> Self {
        let (mut bench, shop) = (Bench::new(), Shop::new("www.shop.example"));
        bench.snapshot(shop.resources(1));
        Self { bench, shop, version: 1 }
    }

    /// The code that the change is refused with; empty: it is taken.
    fn put(&mut self, resource: wire::Resource) -> String {
        let published = self.bench.delta(vec![resource]);
        published.nacks.first().map(|nack| nack.code.clone()).unwrap_or_default()
    }

    fn domain(&mut self, change: impl FnOnce(&mut wire::Domain)) -> String {
        self.version += 1;
        let resource = self.shop.domain(self.version, change);
        self.put(resource)
    }

    fn action(&mut self, action: wire::route::Action) -> String {
        let route = wire::Route { path_prefix: "/".into(), action: Some(action), rule: None };
        self.domain(|body| body.routes = vec![route])
    }

    fn proxy(&mut self, change: impl FnOnce(&mut wire::Proxy)) -> String {
        let mut proxy = wire::Proxy { origin: "http://a.example".into(), ..wire::Proxy::default() };
        change(&mut proxy);
        self.action(wire::route::Action::Proxy(proxy))
    }

    fn tenant(&mut self, change: impl FnOnce(&mut wire::Tenant)) -> String {
        self.version += 1;
        let mut body = wire::Tenant::default();
        change(&mut body);
        let (id, version) = (self.shop.tenant, self.version);
        self.put(resource(ResourceKind::Tenant, &id.to_string(), version, id, &body))
    }

    /// The upstream of the one route that is published.
    fn upstream(&self) -> Upstream {
        let host = self.bench.host("www.shop.example").unwrap();
        let Action::Proxy(upstream) = &host.routes[0].action else { panic!("not a proxy") };
        Upstream::clone(upstream)
    }
}

#[test]
fn origins_of_a_route() {
    let mut stage = Stage::new();
    let several = |count: usize, weight| -> Vec<_> {
        let url = |number| format!("http://{number}.example");
        (0..count).map(|number| wire::WeightedOrigin { url: url(number), weight }).collect()
    };
    assert_eq!(stage.proxy(|proxy| proxy.origins = several(ORIGINS_MAX, ORIGIN_WEIGHT_MAX)), "");
    assert_eq!(stage.proxy(|proxy| proxy.origins = several(ORIGINS_MAX + 1, 1)), "BadProxy");
    assert_eq!(stage.proxy(|proxy| proxy.origins = several(2, ORIGIN_WEIGHT_MAX + 1)), "BadProxy");
    assert_eq!(stage.proxy(|proxy| proxy.origins = several(2, 0)), "BadProxy");
    let root = bytes::Bytes::from(stage.shop.minted.leaf.clone());
    assert_eq!(stage.proxy(|proxy| proxy.tls_ca_der = vec![root.clone(); ORIGIN_ROOTS_MAX]), "");
    assert_eq!(stage.proxy(|proxy| proxy.tls_ca_der = vec![root; ORIGIN_ROOTS_MAX + 1]), "BadOriginCa");
}

#[test]
fn health_checks() {
    let mut stage = Stage::new();
    let check = |interval: Duration, after: u32| wire::HealthCheck {
        path: "/".into(),
        interval_seconds: interval.as_secs().try_into().unwrap(),
        healthy_after: after,
        unhealthy_after: after,
    };
    let second = Duration::from_secs(1);
    for (check, code) in [
        (check(HEALTH_INTERVAL_MIN, 1), ""),
        (check(HEALTH_INTERVAL_MAX, HEALTH_THRESHOLD_MAX), ""),
        (check(HEALTH_INTERVAL_MIN - second, 1), "BadHealthCheck"),
        (check(HEALTH_INTERVAL_MAX + second, 1), "BadHealthCheck"),
        (check(second, HEALTH_THRESHOLD_MAX + 1), "BadHealthCheck"),
        (check(second, 0), "BadHealthCheck"),
    ] {
        assert_eq!(stage.proxy(|proxy| proxy.health_check = Some(check.clone())), code, "{check:?}");
    }
}

/// A later release may allow more: what is beyond the bounds is cut to them.
#[test]
fn times_and_breakers_are_cut_to_the_bounds() {
    let mut stage = Stage::new();
    let code = stage.proxy(|proxy| {
        (proxy.connect_timeout_ms, proxy.first_byte_timeout_ms) = (u32::MAX, u32::MAX);
        proxy.idle_timeout_ms = 1;
        (proxy.in_flight_max, proxy.pending_max) = (u32::MAX, u32::MAX);
    });
    assert_eq!(code, "");
    let upstream = stage.upstream();
    assert_eq!(upstream.deadlines.connect, Some(ORIGIN_CONNECT_TIMEOUT_MAX));
    assert_eq!(upstream.deadlines.first_byte, Some(ORIGIN_ANSWER_TIMEOUT_MAX));
    assert_eq!(upstream.deadlines.idle, Some(ORIGIN_TIMEOUT_MIN));
    let breaker = upstream.origins[0].origin.breaker.as_ref().unwrap();
    assert_eq!((breaker.in_flight_max, breaker.pending_max), (BREAKER_IN_FLIGHT_MAX, BREAKER_PENDING_MAX));
}

#[test]
fn answers_of_a_route() {
    let mut stage = Stage::new();
    let answer = |bytes: usize, content_type: usize| {
        wire::route::Action::StaticAnswer(wire::StaticAnswer {
            status: 200,
            content_type: "x".repeat(content_type),
            body: vec![b'x'; bytes].into(),
        })
    };
    let redirect = |bytes: usize| {
        let base = "https://a.example/";
        let location = base.to_owned() + &"x".repeat(bytes - base.len());
        wire::route::Action::Redirect(wire::Redirect { location, status: 302, ..Default::default() })
    };
    for (action, code) in [
        (answer(STATIC_BODY_BYTES_MAX, CONTENT_TYPE_BYTES_MAX), ""),
        (answer(STATIC_BODY_BYTES_MAX + 1, 1), "BadStaticAnswer"),
        (answer(1, CONTENT_TYPE_BYTES_MAX + 1), "BadStaticAnswer"),
        (redirect(LOCATION_BYTES_MAX), ""),
        (redirect(LOCATION_BYTES_MAX + 1), "BadRedirect"),
    ] {
        assert_eq!(stage.action(action), code);
    }
    let fixed = |count: usize| (0..count).map(|_| fleet::fixed("x")).collect::<Vec<_>>();
    assert_eq!(stage.domain(|body| body.routes = fixed(ROUTES_MAX + 1)), "TooManyRoutes");
    let prefix = |bytes: usize| {
        let path_prefix = "/".to_owned() + &"x".repeat(bytes - 1);
        vec![wire::Route { path_prefix, ..fleet::fixed("x") }]
    };
    assert_eq!(stage.domain(|body| body.routes = prefix(PATH_PREFIX_BYTES_MAX)), "");
    assert_ne!(stage.domain(|body| body.routes = prefix(PATH_PREFIX_BYTES_MAX + 1)), "");
}

#[test]
fn what_a_domain_says_beside_its_routes() {
    let mut stage = Stage::new();
    let maintenance = |bytes: usize, seconds: u32| {
        Some(wire::Maintenance { text: "x".repeat(bytes), retry_after_seconds: seconds })
    };
    let suspension =
        |bytes: usize| Some(wire::Suspension { reason: "x".repeat(bytes), ..Default::default() });
    let most = (MAINTENANCE_TEXT_BYTES_MAX, RETRY_AFTER_SECONDS_MAX);
    for (wanted, code) in [
        (maintenance(most.0, most.1), ""),
        (maintenance(most.0 + 1, 1), "BadMaintenance"),
        (maintenance(1, most.1 + 1), "BadMaintenance"),
    ] {
        assert_eq!(stage.domain(|body| body.maintenance = wanted), code);
    }
    for (bytes, code) in
        [(SUSPENSION_REASON_BYTES_MAX, ""), (SUSPENSION_REASON_BYTES_MAX + 1, "BadSuspension")]
    {
        assert_eq!(stage.domain(|body| body.suspension = suspension(bytes)), code);
    }
    for (bytes, code) in [(THUMBPRINT_BYTES_MAX, ""), (THUMBPRINT_BYTES_MAX + 1, "BadThumbprint")] {
        assert_eq!(stage.domain(|body| body.acme_thumbprint = "x".repeat(bytes)), code);
    }
    let lineages = |count: usize, cell_id: &str| -> Vec<_> {
        let fresh = || LineageId::generate().to_string();
        (0..count).map(|_| wire::LineageRef { cell_id: cell_id.into(), lineage_id: fresh() }).collect()
    };
    let own = cell().to_string();
    for (lineages, code) in [
        (lineages(LINEAGES_PER_NAME_MAX, &own), ""),
        (lineages(LINEAGES_PER_NAME_MAX + 1, &own), "BadLineages"),
        (lineages(LINEAGE_REFERENCES_MAX, "elsewhere"), ""),
        (lineages(LINEAGE_REFERENCES_MAX + 1, "elsewhere"), "BadLineages"),
    ] {
        assert_eq!(stage.domain(|body| body.lineages = lineages), code);
    }
}

#[test]
fn what_tenants_fleets_and_credentials_say() {
    let mut stage = Stage::new();
    let grants = |count: usize, ports: usize| {
        let ports: Vec<u32> = (1..=u32::try_from(ports).unwrap()).collect();
        vec![wire::EgressGrant { cidr: "10.0.0.0/8".into(), ports }; count]
    };
    for (grants, code) in [
        (grants(EGRESS_GRANTS_MAX, EGRESS_PORTS_MAX), ""),
        (grants(EGRESS_GRANTS_MAX + 1, 1), "BadEgressGrant"),
        (grants(1, EGRESS_PORTS_MAX + 1), "BadEgressGrant"),
    ] {
        assert_eq!(stage.tenant(|body| body.egress_grants = grants), code);
    }
    for (version, denied, code) in [(2, DENIED_NETWORKS_MAX, ""), (3, DENIED_NETWORKS_MAX + 1, "BadFleet")] {
        let body = wire::Fleet { denied_cidrs: vec!["10.0.0.0/8".into(); denied], ..Default::default() };
        let mut fleet = resource(ResourceKind::Fleet, "fleet", version, stage.shop.tenant, &body);
        fleet.tenant_id = String::new();
        assert_eq!(stage.put(fleet), code);
    }
    let mut body = stage.shop.minted.body.clone();
    body.chain_der = vec![body.chain_der[0].clone(); CHAIN_CERTIFICATES_MAX + 1];
    let long = fleet::credential(stage.shop.lineage, 9, stage.shop.tenant, &body);
    assert_eq!(stage.put(long), "BadCertificate");
    let text = stage.bench.delta(vec![fleet::credential(stage.shop.lineage, 9, stage.shop.tenant, &body)]);
    assert!(text.nacks[0].text.contains("at most 8"), "{:?}", text.nacks);
}

#[test]
fn what_one_batch_holds() {
    let mut stage = Stage::new();
    let applied = stage.bench.publisher.applied();
    let unknown = |bytes: usize| wire::Resource { kind: 99, id: "x".repeat(bytes), ..Default::default() };
    let mut refused = |batch| stage.bench.apply(batch).unwrap_err().fault.code;
    let id = vec![unknown(RESOURCE_ID_BYTES_MAX + 1)];
    assert_eq!(refused(delta(applied, id)), "BadResourceId");
    let mut many = delta(applied, Vec::new());
    many.tombstones = vec![tombstone(ResourceKind::Domain, "x"); DELTA_ITEMS_MAX + 1];
    assert_eq!(refused(many), "TooManyResources");
    let mut generation = applied;
    generation.sequence += 1;
    let mut many = snapshot(generation, Vec::new());
    many.tombstones = vec![wire::Tombstone::default(); usize::try_from(SNAPSHOT_RESOURCES_MAX).unwrap() + 1];
    assert_eq!(refused(many), "TooManyResources");
    assert_eq!(stage.put(unknown(RESOURCE_ID_BYTES_MAX)), "");
}

#[test]
fn challenges() {
    let mut publisher = ChallengePublisher::new();
    let mut set = |token: usize, thumbprint: usize| {
        let token = "t".repeat(token);
        let authorization = format!("{token}.{}", "x".repeat(thumbprint));
        publisher.set_http01("www.shop.example", &token, &authorization, 1000, 0).is_ok()
    };
    assert!(set(TOKEN_BYTES_MIN, 43) && set(TOKEN_BYTES_MAX, THUMBPRINT_BYTES_MAX));
    assert!(!set(TOKEN_BYTES_MIN - 1, 43) && !set(TOKEN_BYTES_MAX + 1, 43));
    assert!(!set(TOKEN_BYTES_MIN, KEY_AUTHORIZATION_BYTES_MAX - TOKEN_BYTES_MIN));
}

/// Of keys with long chains, so that it takes few of them.
#[test]
fn parsed_keys_take_no_more_than_the_caches_bytes() {
    use portico_cert_store::{
        CERTIFICATE_BYTES_MAX, CHAIN_LENGTH_MAX, CellKeys, CertificateChain, ChainInterner, Credential,
        CredentialId, CredentialParts, GroupId, PrivateKey, SealContext,
    };
    use portico_edge::limits::KEY_CACHE_BYTES;

    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = |padding: usize| {
        let mut params = rcgen::CertificateParams::new(vec!["www.shop.example".to_owned()]).unwrap();
        let padding =
            rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![0; padding]);
        params.custom_extensions.push(padding);
        params.self_signed(&key).unwrap().der().clone()
    };
    let chain: Vec<_> = (0..CHAIN_LENGTH_MAX).map(|_| certificate(CERTIFICATE_BYTES_MAX - 1024)).collect();
    let chain = CertificateChain::parse_der(chain).unwrap();
    let spki_sha256 = chain.facts().spki_sha256;
    let private = PrivateKey::from_pkcs8_der(&key.serialize_der()).unwrap();
    let (cell, cell_keys, interner) = (cell(), CellKeys::new(), ChainInterner::new());
    cell_keys.add(fleet::cell_key(1));
    let (live, _publisher) = portico_edge::live::Live::new(8, KEY_CACHE_BYTES, cell_keys);
    let each = (CHAIN_LENGTH_MAX * (CERTIFICATE_BYTES_MAX - 1024)) as u64;
    for _ in 0..2 * KEY_CACHE_BYTES / each {
        let id = CredentialId::generate();
        let context =
            SealContext { cell: &cell, epoch: 1, key_tenant: "operator", credential: id, spki_sha256 };
        let parts = CredentialParts {
            id,
            lineage: LineageId::generate(),
            group: GroupId::generate(),
            cell: cell.clone(),
            cell_key_epoch: 1,
            key_tenant: "operator".into(),
            spki_sha256,
            chain: chain.clone(),
            sealed_key: fleet::cell_key(1).seal(&private, &context).unwrap(),
        };
        let credential = Credential::new(parts, &interner).unwrap();
        live.keys.certified_key(&credential).unwrap();
    }
    let held = live.keys.weighted_bytes();
    assert!(held <= KEY_CACHE_BYTES && held > KEY_CACHE_BYTES / 2, "{held}");
}
