//! Renewal information, replacing orders and profiles (RFC 9773, draft-aaron-acme-profiles).

use std::time::Duration;

use http::Method;
use instant_acme::{Account, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, Order};
use portico_acme_ca::AriExemption;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::stage::{Issued, Stage, problem_type};
use crate::strictness::{expect, get};

const DAY: u64 = 86_400;

fn id_of(issued: &Issued) -> CertificateIdentifier<'static> {
    CertificateIdentifier::try_from(&issued.certificates()[0]).unwrap().into_owned()
}

async fn replacing(
    account: &Account,
    names: &[&str],
    old: &CertificateIdentifier<'static>,
) -> Result<Order, Error> {
    let names: Vec<Identifier> = names.iter().map(|n| Identifier::Dns((*n).to_owned())).collect();
    account.new_order(&NewOrder::new(&names).replaces(old.clone())).await
}

#[tokio::test]
async fn a_window_is_suggested_moved_to_the_past_on_demand_and_with_a_revocation() {
    let stage = Stage::start(|args| args.ari_retry_after = Duration::from_secs(7)).await;
    let account = stage.account().await;
    let issued = stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
    let other = stage.obtain(&account, &["else.test"], ChallengeType::Http01).await.unwrap();
    let (info, again) = account.renewal_info(&id_of(&issued)).await.unwrap();
    // What is left of it when the answer was read.
    assert!(again <= Duration::from_secs(7) && again > Duration::from_secs(5), "{again:?}");
    let in_days = |at: OffsetDateTime| (at - OffsetDateTime::now_utc()).whole_hours() / 24;
    let window = info.suggested_window;
    assert!(
        window.start < window.end && in_days(window.start) >= 58 && in_days(window.end) <= 61,
        "{window:?}"
    );
    let url = "https://ca.test/incident";
    let moved = json!({ "names": ["shop.test"], "explanation_url": url });
    assert_eq!(stage.ca_call(Method::POST, "/ari", &moved).await.1["certificates"], 1);
    let (info, _) = account.renewal_info(&id_of(&issued)).await.unwrap();
    assert!(info.suggested_window.end < OffsetDateTime::now_utc());
    assert_eq!(info.explanation_url.as_deref(), Some(url));
    let (info, _) = account.renewal_info(&id_of(&other)).await.unwrap();
    assert!(info.suggested_window.start > OffsetDateTime::now_utc(), "another certificate's window stays");
    let leaf = &other.certificates()[0];
    let request = instant_acme::RevocationRequest { certificate: leaf, reason: None };
    account.revoke(&request).await.unwrap();
    let (info, _) = account.renewal_info(&id_of(&other)).await.unwrap();
    assert!(info.suggested_window.end < OffsetDateTime::now_utc());
    assert_eq!(stage.stats().await["requests"]["renewalInfo"], 4);
    // Asked by hand: instant-acme looks for Retry-After before it looks for a problem.
    let directory = get(&stage.client, &stage.ca.addresses.directory).await;
    let directory: Value = serde_json::from_slice(directory.body()).unwrap();
    let unknown = format!("{}/aaaa.bbbb", directory["renewalInfo"].as_str().unwrap());
    expect(&get(&stage.client, &unknown).await, 404, "malformed");
}

#[tokio::test]
async fn a_certificate_is_replaced_once_by_its_own_account_with_a_name_in_common() {
    let stage = Stage::start(|_| {}).await;
    let (account, stranger) = (stage.account().await, stage.account().await);
    let issued =
        stage.obtain(&account, &["shop.test", "www.shop.test"], ChallengeType::Http01).await.unwrap();
    let old = id_of(&issued);
    let refused = replacing(&stranger, &["shop.test"], &old).await.err().unwrap();
    assert_eq!(problem_type(&refused), "unauthorized");
    let refused = replacing(&account, &["else.test"], &old).await.err().unwrap();
    assert_eq!(problem_type(&refused), "malformed");
    let names = ["new.test", "shop.test"];
    let mut order = replacing(&account, &names, &old).await.unwrap();
    // An open order holds the predecessor, as Boulder has it; without `replaces` the same order comes back.
    let again = replacing(&account, &names, &old).await.err().unwrap();
    assert_eq!(problem_type(&again), "alreadyReplaced");
    assert_eq!(stage.order(&account, &names).await.unwrap().url(), order.url());
    stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    let new = stage.finish(&mut order, &names).await.unwrap();
    let again = replacing(&account, &["shop.test"], &old).await.err().unwrap();
    assert_eq!(problem_type(&again), "alreadyReplaced");
    replacing(&account, &["shop.test"], &id_of(&new)).await.unwrap();
    let log = stage.stats().await["new_orders"].clone();
    assert_eq!(log[3]["replaces"], old.to_string());
}

#[tokio::test]
async fn a_failed_order_frees_its_predecessor() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let issued = stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
    let old = id_of(&issued);
    stage.ca_call(Method::POST, "/profiles", &json!({ "name": "classic", "reuse_seconds": 0 })).await;
    stage.dns_call(Method::POST, "/nxdomain", &json!({ "names": ["shop.test"] })).await;
    let mut order = replacing(&account, &["shop.test"], &old).await.unwrap();
    stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    replacing(&account, &["shop.test"], &old).await.unwrap();
}

#[tokio::test]
async fn replacing_is_exempt_from_all_limits_or_for_covered_names_only() {
    for exemption in [AriExemption::Full, AriExemption::CoveredNames] {
        let stage = Stage::start(|args| {
            args.limit =
                ["new-orders=1/3h", "certificates-per-exact-set=1/7d", "certificates-per-domain=1/7d"]
                    .map(|limit| limit.parse().unwrap())
                    .to_vec();
            args.ari_exemption = exemption;
        })
        .await;
        let account = stage.account().await;
        let mut issued = stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
        let refused = stage.order(&account, &["shop.test"]).await.err().unwrap();
        assert_eq!(problem_type(&refused), "rateLimited");
        for _ in 0..3 {
            let mut order = replacing(&account, &["shop.test"], &id_of(&issued)).await.unwrap();
            stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
            issued = stage.finish(&mut order, &["shop.test"]).await.unwrap();
        }
        let more = replacing(&account, &["shop.test", "b.shop.test"], &id_of(&issued)).await;
        let covered_only = exemption == AriExemption::CoveredNames;
        match more {
            Ok(_) => assert!(!covered_only),
            Err(error) => assert!(covered_only && problem_type(&error) == "rateLimited", "{error}"),
        }
    }
}

#[tokio::test]
async fn replacing_may_be_exempt_in_its_window_only() {
    let stage = Stage::start(|args| {
        args.limit = vec!["certificates-per-exact-set=1/7d".parse().unwrap()];
        args.ari_exemption = AriExemption::InWindow;
    })
    .await;
    let account = stage.account().await;
    let issued = stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
    let early = replacing(&account, &["shop.test"], &id_of(&issued)).await.err().unwrap();
    assert_eq!(problem_type(&early), "rateLimited");
    let now = OffsetDateTime::now_utc();
    let text = |at: OffsetDateTime| at.format(&time::format_description::well_known::Rfc3339).unwrap();
    let whole = |at: OffsetDateTime| at.replace_nanosecond(0).unwrap();
    let (start, end) = (whole(now - time::Duration::HOUR), whole(now + time::Duration::HOUR));
    stage.ca_call(Method::POST, "/ari", &json!({ "start": text(start), "end": text(end) })).await;
    replacing(&account, &["shop.test"], &id_of(&issued)).await.unwrap();
}

#[tokio::test]
async fn profiles_differ_in_lifetime_names_and_reuse() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let known: Vec<_> = account.profiles().map(|profile| profile.name.to_owned()).collect();
    assert_eq!(known.len(), 3, "{known:?}");
    for (profile, hours) in [("classic", 90 * 24), ("tlsserver", 45 * 24), ("shortlived", 160)] {
        let name = format!("{profile}.test");
        let names = [Identifier::Dns(name.clone())];
        let mut order = account.new_order(&NewOrder::new(&names).profile(profile)).await.unwrap();
        stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
        let issued = stage.finish(&mut order, &[&name]).await.unwrap();
        let leaf = &issued.certificates()[0];
        let validity = x509_parser::parse_x509_certificate(leaf).unwrap().1.validity().clone();
        assert_eq!((validity.not_after - validity.not_before).unwrap().whole_hours(), hours);
    }
    let many: Vec<_> = (0..26).map(|n| Identifier::Dns(format!("n{n}.test"))).collect();
    let refused = account.new_order(&NewOrder::new(&many).profile("tlsserver")).await.err().unwrap();
    assert_eq!(problem_type(&refused), "malformed");
    account.new_order(&NewOrder::new(&many)).await.unwrap();
    let one = [Identifier::Dns("classic.test".to_owned())];
    let refused = account.new_order(&NewOrder::new(&one).profile("gold")).await.err().unwrap();
    assert_eq!(problem_type(&refused), "invalidProfile");
    stage.advance(8 * 3600).await;
    let status = |order: &mut Order| order.state().status;
    let mut order = account.new_order(&NewOrder::new(&one)).await.unwrap();
    assert_eq!(status(&mut order), instant_acme::OrderStatus::Ready, "30 days of reuse");
    let one = [Identifier::Dns("shortlived.test".to_owned())];
    let mut order = account.new_order(&NewOrder::new(&one).profile("shortlived")).await.unwrap();
    assert_eq!(status(&mut order), instant_acme::OrderStatus::Pending, "7 hours of reuse");
    let shorter = json!({ "name": "classic", "validity_seconds": 45 * DAY });
    assert_eq!(stage.ca_call(Method::POST, "/profiles", &shorter).await.0, 204);
    let issued = stage.obtain(&account, &["later.test"], ChallengeType::Http01).await.unwrap();
    let leaf = &issued.certificates()[0];
    let validity = x509_parser::parse_x509_certificate(leaf).unwrap().1.validity().clone();
    assert_eq!((validity.not_after - validity.not_before).unwrap().whole_days(), 45);
}
