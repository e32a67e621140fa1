//! A CA tells of a revocation: all windows are in the past at once. What that takes is printed by
//! `PORTICO_MASS_CERTIFICATES=10000 cargo test --release --workspace --test issuance -- mass`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use portico_acme_ca::LimitTable;
use portico_control_plane::store::renewals::{self, Standing};
use serde_json::{Value, json};

use crate::lab::{Lab, Options};

/// Nothing of ours holds orders back, so that the pace of the order machine shows.
const NO_LIMITS: &str = "limits = { preset = \"none\", tenant_1h = 0, tenant_24h = 0 }";
/// How many certificates instead of a few hundred, for figures.
const CERTIFICATES: &str = "PORTICO_MASS_CERTIFICATES";
/// Names that one transaction adds.
const CHUNK: usize = 500;

/// What a mass replacement took.
struct Figures {
    issued_in: Duration,
    replaced_in: Duration,
    requests: Value,
    /// How many were replaced before the last of the small tenants'.
    small_tenants_done_after: usize,
}

/// Within the hour, of ten thousand: the CA may revoke them a day later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_a_ca_is_about_to_revoke_are_replaced_once_each() {
    let wanted = std::env::var(CERTIFICATES).ok();
    let certificates: usize = wanted.as_ref().map_or(300, |text| text.parse().unwrap());
    let figures = replace_all(certificates, 1 + certificates / 30).await;
    if wanted.is_some() {
        // Past the capture of the test harness, which hides what a passing test prints.
        let Figures { issued_in, replaced_in, requests, small_tenants_done_after } = figures;
        writeln!(
            std::io::stderr(),
            "{certificates} certificates: first issued in {issued_in:?}, all replaced in {replaced_in:?}; those of the small \
             tenants after {small_tenants_done_after}; requests to the CA: {requests}"
        )
        .unwrap();
    }
}

/// As many certificates of one name each, half of them of one tenant; the CA wants all of them replaced.
async fn replace_all(certificates: usize, tenants: usize) -> Figures {
    let ca = |args: &mut portico_acme_ca::CaArgs| {
        args.limits = LimitTable::None;
        args.ari_retry_after = Duration::from_secs(600);
    };
    let options = Options {
        ca,
        issuer: NO_LIMITS,
        preflight: false,
        challenges: r#"["http-01"]"#,
        ..Options::default()
    };
    let lab = Lab::start(&options).await;
    let began = Instant::now();
    add_domains(&lab, certificates, tenants).await;
    until(&lab, "issued", |standing| standing.live == wide(certificates) && standing.by_ari == standing.live)
        .await;
    let issued_in = began.elapsed();
    // What is over before a certificate was issued would be nonsense.
    lab.world.advance(1).await;
    lab.world.set_windows(json!({ "explanation_url": "https://ca.test/revocation" })).await;
    let began = Instant::now();
    lab.world.advance_to(lab.world.clock.now_ms() + 3_600_000).await;
    until(&lab, "told", |standing| standing.due > 0 || standing.replaced_recently > 0).await;
    until(&lab, "replaced", |standing| standing.due == 0 && standing.orders == 0).await;
    let replaced_in = began.elapsed();
    let stats = lab.world.stats().await;
    assert_eq!(stats["orders"]["replacing"], certificates, "each was replaced, and once");
    assert_eq!(stats["orders"]["created"], 2 * certificates);
    assert_eq!(stats["problems"], json!({}));
    let told = lab.rows("SELECT text FROM events WHERE kind = 'certificate.window_moved'").await.len();
    assert!(told < certificates, "{told} events");
    Figures {
        issued_in,
        replaced_in,
        requests: stats["requests"].clone(),
        small_tenants_done_after: last_of_small(&lab).await,
    }
}

async fn add_domains(lab: &Lab, certificates: usize, tenants: usize) {
    let mut ids = Vec::new();
    for _ in 0..tenants {
        ids.push(lab.tenant(&[], "registered_domain").await);
    }
    let mut of_tenant: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for n in 0..certificates {
        let tenant = if n % 2 == 0 { 0 } else { 1 + n / 2 % (tenants - 1) };
        of_tenant.entry(ids[tenant]).or_default().push(format!("shop{n}.test"));
        if n % CHUNK == CHUNK - 1 || n == certificates - 1 {
            for (tenant, names) in std::mem::take(&mut of_tenant) {
                lab.domains(tenant, &names).await;
            }
        }
    }
}

/// Waits as long as something moves.
async fn until(lab: &Lab, what: &str, good: impl Fn(&Standing) -> bool) {
    let mut last = (Standing::default(), tokio::time::Instant::now());
    loop {
        let mut read = lab.running.parts.store.read().await.unwrap();
        let standing = renewals::standing(&mut read, lab.world.clock.now_ms()).await.unwrap();
        drop(read);
        if good(&standing) {
            return;
        }
        if standing != last.0 {
            last = (standing, tokio::time::Instant::now());
        }
        assert!(last.1.elapsed() < Duration::from_secs(60), "not {what}: {:?}", last.0);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The place of the last replacement that is not of the tenant that has half of all.
async fn last_of_small(lab: &Lab) -> usize {
    let orders = lab
        .rows("SELECT tenant_id FROM orders WHERE replaces_accepted = 1 ORDER BY issued_at, updated_at, id")
        .await
        .concat();
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for tenant in &orders {
        *counts.entry(tenant).or_default() += 1;
    }
    let (large, _) = counts.into_iter().max_by_key(|(_, count)| *count).unwrap();
    orders.iter().rposition(|tenant| tenant != large).unwrap()
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}
