//! A bug of ours in one exchange costs that exchange and no other.

use std::sync::Once;

use tracing::field::{Field, Visit};

use crate::client::{http2_get, https};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};
use crate::http3_client::http3_get;

const BROKEN: &str = "panics.example";
const SOUND: &str = "sound.example";

/// The fault comes from outside the product: whoever listens to its log may panic, in the middle of an exchange.
struct PanickingListener;

struct Looking;

impl Visit for Looking {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let told_of_it = field.name() == "host" && format!("{value:?}").contains(BROKEN);
        assert!(!told_of_it, "a fault that the test has injected");
    }
}

impl tracing::Subscriber for PanickingListener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("portico_edge::upstream")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Looking);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_panic_in_one_exchange_loses_only_that_exchange() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| tracing::subscriber::set_global_default(PanickingListener).unwrap());
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        // Both on one certificate; the broken one's origin is refused by the guard, which is logged, which panics.
        edge.serve_with(&[BROKEN, SOUND], &[], |domain| {
            if domain.name == BROKEN {
                domain.routes = vec![proxy_to("http://127.0.0.1:1")];
            }
        });
        let panics = || edge.metric("portico_edge_panics_total{in=\"exchange\"}");
        let before = panics();
        let mut other = https(edge.https, SOUND);
        assert_eq!(other.get(SOUND, "/").status, 200);
        let mut client = https(edge.https, BROKEN);
        for round in 1..=3 {
            assert_eq!(client.get(BROKEN, "/").status, 500);
            assert_eq!(client.get(SOUND, "/").status, 200, "the connection goes on");
            assert_eq!(http2_get(edge.https, Some(BROKEN), BROKEN, "/").unwrap().status, 500);
            assert_eq!(http3_get(edge.https, Some(BROKEN), BROKEN, "/"), Ok(500));
            assert_eq!(other.get(SOUND, "/").status, 200, "other connections go on");
            assert_eq!(panics() - before, f64::from(3 * round), "each is counted");
        }
        assert_eq!(edge.metric("portico_edge_panics_total{in=\"worker\"}"), 0.0);
    });
}
