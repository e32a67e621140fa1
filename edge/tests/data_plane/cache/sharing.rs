//! How much is kept, and at whose cost.

use portico_api::distribution as wire;

use super::{cached, is_hit, reply, target};
use crate::client::https;
use crate::harness::{Setup, TestEdge, on_each_backend, tenant_with, wait_until};
use crate::origin::Origin;

const FRESH: &str = "Cache-Control: max-age=600";

#[test]
fn one_tenant_cannot_push_out_anothers_pages() {
    on_each_backend(|backend| {
        let capacity = 2 << 20;
        let page = "x".repeat(16 << 10);
        let origin = Origin::start(move |_| reply(200, &[FRESH], &page));
        let mut edge = TestEdge::with(backend, Setup { cache_bytes: capacity, ..Setup::default() });
        let served = ["small.example", "loud.example"].map(|name| {
            edge.serve_with(&[name], &[origin.grant()], |body| {
                body.routes = vec![cached(&origin.url(), &wire::CachePolicy::default())];
            })
        });
        let (mut small, mut loud) = (https(edge.https, "small.example"), https(edge.https, "loud.example"));
        let pages = 20;
        for number in 0..pages {
            small.get("small.example", &format!("/{number}"));
        }
        for number in 0..600 {
            assert_eq!(loud.get("loud.example", &format!("/{number}")).status, 200);
            assert!(edge.edge.cache.bytes() <= capacity, "{} bytes", edge.edge.cache.bytes());
        }
        // What was asked for last is there, so the loud one is not without.
        assert!(is_hit(&loud.get("loud.example", "/599")));
        for number in 0..pages {
            assert!(is_hit(&small.get("small.example", &format!("/{number}"))), "{number}");
        }
        let [small, loud] = served.map(|served| edge.edge.cache.bytes_of(served.tenant));
        assert!(loud > capacity / 2, "{small} and {loud} of {capacity}");
    });
}

#[test]
fn a_tenant_with_a_share_of_its_own_holds_no_more_than_that() {
    on_each_backend(|backend| {
        let page = "x".repeat(16 << 10);
        let origin = Origin::start(move |_| reply(200, &[FRESH], &page));
        let mut edge = TestEdge::with(backend, Setup { cache_bytes: 4 << 20, ..Setup::default() });
        let served = edge.serve_with(&["shop.example"], &[origin.grant()], |body| {
            body.routes = vec![cached(&origin.url(), &wire::CachePolicy::default())];
        });
        let limit = |edge: &mut TestEdge, version: u64, cache_bytes: u64| {
            let mut resource = tenant_with(served.tenant, version, &[origin.grant()], None);
            let limits = wire::TenantLimits { cache_bytes, ..wire::TenantLimits::default() };
            let mut body: wire::Tenant = prost::Message::decode(resource.body).unwrap();
            body.limits = Some(limits);
            resource.body = prost::Message::encode_to_vec(&body).into();
            edge.apply(vec![resource]);
        };
        let share = 512 << 10;
        limit(&mut edge, 2, share);
        let mut client = https(edge.https, "shop.example");
        for number in 0..200 {
            client.get("shop.example", &format!("/{number}"));
            let held = edge.edge.cache.bytes_of(served.tenant);
            assert!(held <= share, "{held} bytes");
        }
        assert!(edge.edge.cache.bytes_of(served.tenant) > share / 2);
        assert!(is_hit(&client.get("shop.example", "/199")), "the last is kept");
        // A smaller one is reached as answers come.
        limit(&mut edge, 3, share / 4);
        wait_until("the rest has gone", || {
            https(edge.https, "shop.example").get("shop.example", "/more");
            https(edge.https, "shop.example").get("shop.example", "/yet-more");
            edge.edge.cache.bytes_of(served.tenant) <= share / 4
        });
        limit(&mut edge, 4, 1);
        client.get("shop.example", "/too-large");
        assert!(!is_hit(&client.get("shop.example", "/too-large")));
    });
}

#[test]
fn what_is_asked_for_often_outlives_what_is_asked_for_once() {
    on_each_backend(|backend| {
        let page = "x".repeat(16 << 10);
        let origin = Origin::start(move |_| reply(200, &[FRESH], &page));
        let mut edge = TestEdge::with(backend, Setup { cache_bytes: 1 << 20, ..Setup::default() });
        edge.serve_with(&["shop.example"], &[origin.grant()], |body| {
            body.routes = vec![cached(&origin.url(), &wire::CachePolicy::default())];
        });
        let mut client = https(edge.https, "shop.example");
        for number in 0..300 {
            client.get("shop.example", "/popular");
            client.get("shop.example", &format!("/{number}"));
        }
        let popular = origin.messages().iter().filter(|message| target(message) == "/popular").count();
        assert_eq!(popular, 1);
    });
}

#[test]
fn nothing_is_kept_where_there_is_no_room_for_it() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| reply(200, &[FRESH], "x"));
        let mut edge = TestEdge::with(backend, Setup { cache_bytes: 0, ..Setup::default() });
        edge.serve_with(&["shop.example"], &[origin.grant()], |body| {
            body.routes = vec![cached(&origin.url(), &wire::CachePolicy::default())];
        });
        for _ in 0..2 {
            assert_eq!(https(edge.https, "shop.example").get("shop.example", "/").text(), "x");
        }
        assert_eq!((origin.messages().len(), edge.edge.cache.entries()), (2, 0));
    });
}

#[test]
fn variants_of_one_page_are_bounded() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| reply(200, &[FRESH, "Vary: X-A"], "x"));
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&["shop.example"], &[origin.grant()], |body| {
            body.routes = vec![cached(&origin.url(), &wire::CachePolicy::default())];
        });
        let mut client = https(edge.https, "shop.example");
        for number in 0..50 {
            super::ask(&mut client, "GET", "/", &[("x-a", &number.to_string())]);
        }
        wait_until("all are kept that will be", || edge.edge.cache.entries() == 16);
        let long = "x".repeat(5000);
        super::ask(&mut client, "GET", "/long", &[("x-a", &long)]);
        assert!(!is_hit(&super::ask(&mut client, "GET", "/long", &[("x-a", &long)])));
    });
}
