use super::*;
use crate::clock::{DAY_MS, HOUR_MS};
use crate::plan::ledger::Exemption;
use crate::plan::ledger::{Limits, Order, check, needs};
use crate::store::Store;

const AT: At<'static> = At { ca: "https://ca.test/dir", account: "le" };

fn order(names: &[String]) -> Vec<Need> {
    let order = Order {
        names,
        name_set: "set",
        exemption: Exemption::None,
        keeps_alive: false,
        can_wait: false,
        tenant: None,
    };
    needs(&order, AT, &Limits::default())
}

async fn level(store: &Store, limit: LimitName, subject: &str) -> Level {
    let key = BucketKey::new(limit, AT, subject);
    levels(&mut store.read().await.unwrap(), &[&key]).await.unwrap().of(&key)
}

#[tokio::test]
async fn what_is_reserved_counts_until_it_is_charged_or_released() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::for_tests(folder.path()).await.unwrap();
    let names = ["a.shop.test".to_owned()];
    let mut tx = store.begin().await.unwrap();
    for holder in ["one", "two"] {
        reserve(&mut tx, holder, &order(&names)).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(level(&store, LimitName::RegisteredDomain, "shop.test").await.reserved, 2);
    let mut tx = store.begin().await.unwrap();
    charge_reserved(&mut tx, "one", Charged::AtOrder, 1000).await.unwrap();
    charge_reserved(&mut tx, "one", Charged::AtOrder, 1000).await.unwrap();
    release(&mut tx, "two").await.unwrap();
    tx.commit().await.unwrap();
    let orders = level(&store, LimitName::Orders, "").await;
    assert_eq!((orders.reserved, orders.bucket.used(Limits::default().orders, 1000)), (0, 1), "charged once");
    let domain = level(&store, LimitName::RegisteredDomain, "shop.test").await;
    assert_eq!((domain.reserved, domain.bucket), (1, Bucket::default()));
    let mut tx = store.begin().await.unwrap();
    let set = BucketKey::new(LimitName::ExactSet, AT, "set");
    assert!(!was_charged(&mut tx, &set).await.unwrap());
    charge_reserved(&mut tx, "one", Charged::AtCertificate, 2000).await.unwrap();
    assert!(was_charged(&mut tx, &set).await.unwrap());
    tx.commit().await.unwrap();
    // As others are asked of one issuer: its account's, its CA's and tenants' buckets, in one go.
    let mut read = store.read().await.unwrap();
    assert_eq!(levels_at(&mut read, AT, 2000).await.unwrap().0.len(), 3);
    let elsewhere = At { ca: "https://other.test/dir", ..AT };
    assert_eq!(levels_at(&mut read, elsewhere, 2000).await.unwrap().0.len(), 0);
    let second = At { account: "second", ..AT };
    assert_eq!(levels_at(&mut read, second, 2000).await.unwrap().0.len(), 2);
}

#[tokio::test]
async fn empty_buckets_are_forgotten_but_not_that_a_set_was_issued() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::for_tests(folder.path()).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let keys = [LimitName::ExactSet, LimitName::Orders].map(|limit| BucketKey::new(limit, AT, "x"));
    for key in &keys {
        charge(&mut tx, key, HOUR_MS, 1000).await.unwrap();
    }
    prune(&mut tx, 1000).await.unwrap();
    assert!(was_charged(&mut tx, &keys[1]).await.unwrap(), "it is not empty");
    prune(&mut tx, 2 * HOUR_MS).await.unwrap();
    assert!(was_charged(&mut tx, &keys[0]).await.unwrap() && !was_charged(&mut tx, &keys[1]).await.unwrap());
    prune(&mut tx, 500 * DAY_MS).await.unwrap();
    assert!(!was_charged(&mut tx, &keys[0]).await.unwrap());
}

/// The clock is a year ahead, spends all, is set right: the bucket is full for as long as it takes to refill.
#[tokio::test]
async fn a_clock_that_is_set_back_is_seen_by_the_next_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::for_tests(folder.path()).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let (year, names) = (365 * DAY_MS, ["a.shop.test".to_owned()]);
    let key = BucketKey::new(LimitName::RegisteredDomain, AT, "shop.test");
    let rate = Limits::default().registered_domain;
    for _ in 0..50 {
        charge(&mut tx, &key, rate.interval_ms(), year).await.unwrap();
    }
    let (now, needs) = (1000, order(&names));
    for later in [now, now + rate.interval_ms() - 1] {
        let levels = levels_of(&mut tx, &needs).await.unwrap();
        let no_room = check(&needs, &levels, later).unwrap_err();
        assert_eq!((no_room.limit, no_room.next_ms), (LimitName::RegisteredDomain, now + rate.interval_ms()));
        see_clock(&mut tx, &needs, &levels, later).await.unwrap();
    }
    let levels = levels_of(&mut tx, &needs).await.unwrap();
    check(&needs, &levels, now + rate.interval_ms()).unwrap();
}

#[tokio::test]
async fn what_a_ca_says_of_others_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let key = BucketKey::new(LimitName::RegisteredDomain, AT, "shop.test");
    let rate = Limits::default().registered_domain;
    let store = Store::for_tests(folder.path()).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    learn(&mut tx, &key, rate, 90_000, 1000).await.unwrap();
    tx.commit().await.unwrap();
    store.close().await;
    let store = Store::for_tests(folder.path()).await.unwrap();
    let level = level(&store, LimitName::RegisteredDomain, "shop.test").await;
    assert_eq!(level.bucket.room_at(rate, 0, 0, 2000), 90_000);
}
