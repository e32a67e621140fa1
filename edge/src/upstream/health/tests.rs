use std::time::Duration;

use portico_cert_store::{CellKeys, TenantId};
use tokio::task::LocalSet;

use super::*;
use crate::{
    live::{EgressGrant, Live, OriginHost, TenantState},
    metrics::Metrics,
    upstream::{
        OriginTls,
        watch::tests::{checked, tenant},
    },
};

const INTERVAL: Duration = Duration::from_secs(1);

#[test]
fn so_many_checks_run_at_once_and_the_others_have_their_turn() {
    let (watch, tenant) = (OriginWatch::default(), tenant());
    let count = u32::try_from(2 * limits::HEALTH_CHECKS_AT_ONCE).expect("it fits");
    let known: Vec<_> =
        (0..count).filter_map(|number| watch.of(&tenant, &checked(number, INTERVAL))).collect();
    let (under_way, start) = (Rc::default(), clock::now());
    assert!(begin_due(&watch, &under_way, start).is_empty(), "each at its own moment of the first interval");
    let due = start + INTERVAL;
    let mut first = begin_due(&watch, &under_way, due);
    assert_eq!(first.len(), limits::HEALTH_CHECKS_AT_ONCE);
    assert!(begin_due(&watch, &under_way, due).is_empty(), "no room");
    first.truncate(limits::HEALTH_CHECKS_AT_ONCE - 3);
    let next = begin_due(&watch, &under_way, due);
    assert_eq!(next.len(), 3);
    drop((first, next));
    let rest = begin_due(&watch, &under_way, due);
    assert_eq!(rest.len(), known.len() - limits::HEALTH_CHECKS_AT_ONCE - 3, "those that had none yet");
}

#[test]
fn an_origin_that_no_request_looks_for_is_not_checked_and_nothing_is_held_against_it() {
    let (watch, tenant) = (OriginWatch::default(), tenant());
    let known = watch.of(&tenant, &checked(0, INTERVAL)).expect("it has a check");
    let check = known.origin.health_check.clone().expect("it has a check");
    let used = clock::now();
    known.touch();
    assert_eq!(due_since(&known, &check, used), None, "its first moment is still to come");
    known.set_unwell(true);
    let wanted = used + limits::HEALTH_UNUSED_AFTER;
    assert!(due_since(&known, &check, wanted).is_some() && known.is_unwell());
    let unwanted = clock::now() + limits::HEALTH_UNUSED_AFTER + Duration::from_secs(1);
    assert_eq!(due_since(&known, &check, unwanted), None);
    assert!(!known.is_unwell());
}

/// Its interval is an hour; the next origin's turn is not to wait for that.
#[test]
fn an_origin_that_does_not_answer_its_check_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("it is bound");
    let grant =
        EgressGrant { net: "127.0.0.0/8".parse().expect("a network"), ports: [address.port()].into() };
    let tenant = Arc::new(TenantState::new(TenantId::generate(), vec![grant]));
    let (live, _publisher) = Live::new(8, 1 << 20, CellKeys::new());
    let origin = Origin {
        host: OriginHost::Address(address.ip()),
        port: address.port(),
        ..Origin::clone(&checked(0, Duration::from_secs(3600)))
    };
    let watched = OriginWatch::default().of(&tenant, &Arc::new(origin)).expect("it has a check");
    let check = watched.origin.health_check.clone().expect("it has a check");
    let deadlines = Deadlines { health_answer: Duration::from_millis(20), ..Deadlines::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked = LocalSet::new().block_on(&runtime, async {
        let names = Names::new(&[], deadlines.dns_answer).expect("a resolver");
        let guard = EgressGuard::new(live, Vec::new());
        let tls = OriginTls::with_roots(rustls::RootCertStore::empty());
        let connector =
            Connector::new(names, guard, tls, Backend::Epoll, Arc::new(Metrics::register()), Arc::default());
        let asking = ask(&connector, &watched, &check, &deadlines);
        // What only a failure takes.
        tokio::time::timeout(Duration::from_secs(60), asking).await
    });
    assert!(
        matches!(asked, Ok(Err(OriginError::FirstByteTimeout | OriginError::ConnectTimeout))),
        "{asked:?}"
    );
}
