//! What one visitor's odd request makes of a page that others get: nothing (THREATS G4).

use super::{Shop, is_hit, reply};
use crate::harness::on_each_backend;

const FRESH: &str = "Cache-Control: max-age=60";

/// The origin does not see such a field, so its answer is not for those who have it.
#[test]
fn a_field_that_connection_names_tells_no_variants_apart() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| {
            let language = message.header("accept-language").unwrap_or("any");
            reply(200, &[FRESH, "Vary: Accept-Language"], language)
        });
        let german = ("accept-language", "de");
        let attack = shop.ask("GET", "/", &[german, ("connection", "keep-alive, Accept-Language")]);
        assert_eq!(attack.text(), "any");
        let victim = shop.ask("GET", "/", &[german]);
        assert_eq!((victim.text().as_str(), is_hit(&victim)), ("de", false));
        let other = shop.get("/");
        assert_eq!((other.text().as_str(), is_hit(&other)), ("any", true), "it is for those who have none");
    });
}
