use std::path::Path;

use portico_cert_store::TenantId;

use super::*;
use crate::{config::Config, memory::Memory};

#[test]
fn requests_that_no_client_waits_for_are_bounded() {
    let cache = Cache::new(1 << 20, []);
    let (orphan, any) = (limits::CACHE_ORPHANS_MAX, limits::CACHE_BACKGROUND_MAX);
    let mut places: Vec<_> = std::iter::from_fn(|| Place::take(&cache, orphan)).take(any).collect();
    assert_eq!(places.len(), orphan);
    places.extend(std::iter::from_fn(|| Place::take(&cache, any)).take(any));
    assert_eq!(places.len(), any, "revalidations have room beside those that have lost their clients");
    places.pop();
    assert!(Place::take(&cache, any).is_some(), "one that has ended leaves its place");
}

#[test]
fn an_edge_whose_file_says_nothing_of_it_has_a_bounded_cache() {
    let text = "[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n[standalone]\n";
    let config = Config::parse(Path::new("/srv/edge.toml"), text).expect("it is whole");
    assert_eq!((config.cache_bytes, config.memory_bytes), (None, None));
    let cache = Cache::new(Memory::bounded(None).cache_bytes(), []);
    // Nobody may hold more than a part of it on the way in.
    let share = limits::CACHE_BYTES / 16;
    let held: Vec<_> = (0..1000).map_while(|_| cache.store.take(TenantId::generate(), share)).collect();
    assert_eq!((held.len(), cache.bytes()), (16, limits::CACHE_BYTES));
    assert!(cache.store.take(TenantId::generate(), 1).is_none());
}

#[test]
fn methods_say_what_they_do() {
    assert!(UNSAFE.is_sorted());
    for (method, effect) in [
        ("GET", Effect::None),
        ("OPTIONS", Effect::None),
        ("QUERY", Effect::None),
        ("SEARCH", Effect::None),
        ("POST", Effect::Changes),
        ("PATCH", Effect::Changes),
        ("ACL", Effect::Changes),
        ("PROPPATCH", Effect::Changes),
        ("UPDATEREDIRECTREF", Effect::Changes),
        ("PURGE", Effect::Unknown),
        ("post", Effect::Unknown),
    ] {
        assert_eq!(Effect::of(&method.parse().expect("a token")), effect, "{method}");
    }
}
