use std::net::Ipv4Addr;

use super::*;
use crate::live::{HealthCheck, OriginHost, OriginProtocol, OriginScheme, Presents};

pub(in crate::upstream) fn tenant() -> Arc<TenantState> {
    Arc::new(TenantState::new(TenantId::generate(), Vec::new()))
}

/// Origins that are told apart by their numbers.
pub(in crate::upstream) fn numbered(number: u32) -> Arc<Origin> {
    Arc::new(unwatched(number))
}

fn unwatched(number: u32) -> Origin {
    Origin {
        scheme: OriginScheme::Http,
        host: OriginHost::Address(Ipv4Addr::from(0x0a00_0000 + number).into()),
        port: 80,
        host_header: None,
        protocol: OriginProtocol::Auto,
        proxy_protocol: None,
        server_name: None,
        roots: None,
        presents: Presents::Nothing,
        health_check: None,
        breaker: None,
    }
}

/// The same, and they are to be checked.
pub(in crate::upstream) fn checked(number: u32, interval: Duration) -> Arc<Origin> {
    let path = http::uri::PathAndQuery::from_static("/up");
    let check = HealthCheck { path, interval, healthy_after: 1, unhealthy_after: 1 };
    Arc::new(Origin { health_check: Some(Arc::new(check)), ..unwatched(number) })
}

/// Counts lines of the log.
struct Lines(Arc<AtomicU32>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn origins_beyond_the_bound_are_told_of_now_and_then() {
    use tracing_subscriber::layer::SubscriberExt as _;
    let (watch, tenant) = (OriginWatch::default(), tenant());
    let bound = u32::try_from(limits::WATCHED_ORIGINS_MAX).expect("it fits");
    let of = |number| watch.of(&tenant, &checked(number, Duration::from_secs(1)));
    let _known: Vec<_> = (0..bound).map(of).collect();
    let lines = Arc::<AtomicU32>::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(Lines(Arc::clone(&lines))), || {
        for number in bound..2 * bound {
            of(number);
        }
    });
    let lines = lines.load(Ordering::Relaxed);
    assert!(lines > 0 && lines < bound / 10, "{lines} lines");
}

#[test]
fn watched_origins_are_bounded_and_those_that_nobody_knows_make_room() {
    let (watch, tenant) = (OriginWatch::default(), tenant());
    let bound = u32::try_from(limits::WATCHED_ORIGINS_MAX).expect("it fits");
    let of = |number| watch.of(&tenant, &checked(number, Duration::from_secs(1)));
    let mut known: Vec<_> = (0..=bound).map(of).collect();
    assert!(known.iter().all(Option::is_some), "the one too many is spared by its worker all the same");
    assert_eq!(watch.checked().len(), limits::WATCHED_ORIGINS_MAX);
    known.truncate(10);
    assert_eq!(watch.checked().len(), 10);
    assert!(of(bound).is_some_and(|late| watch.checked().iter().any(|one| Arc::ptr_eq(one, &late))));
}
