use super::*;

fn sources(limits: SourceLimits) -> Arc<Sources> {
    Sources::new(limits, Arc::new(Metrics::register()))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn defaults_let_a_large_network_behind_one_address_pass_and_end_somewhere() {
    let sources = sources(SourceLimits::default());
    let nat = address("192.0.2.1");
    let open: Vec<_> = (0..limits::SOURCE_CONNECTIONS_MAX).map(|_| sources.connect(nat)).collect();
    assert!(open.iter().all(Result::is_ok));
    assert_eq!(sources.connect(nat).err(), Some(Refused));
    assert!(!sources.has_room(nat));
    assert!(sources.connect(address("192.0.2.2")).is_ok(), "its neighbour is somebody else");
    let source = open[0].as_ref().expect("it was taken");
    // Some more may be taken while the test runs: time pays.
    let handshakes = (0..).take_while(|_| source.take_handshake().is_ok()).count() as u64;
    assert!(handshakes >= limits::SOURCE_HANDSHAKES_BURST, "{handshakes}");
    let requests = (0..).take_while(|_| source.take_request().is_ok()).count() as u64;
    assert!(requests >= limits::SOURCE_REQUESTS_BURST, "{requests}");
    drop(open);
    assert!(sources.connect(nat).is_ok());
}

#[test]
fn after_its_burst_an_address_has_the_rate_of_the_defaults() {
    let rate = SourceLimits::default().handshakes.expect("there is one");
    let (meter, start) = (Meter::default(), Duration::from_secs(1));
    let taken = |now| (0..1_000_000).take_while(|_| meter.take(rate, now).is_ok()).count() as u64;
    assert_eq!(taken(start), limits::SOURCE_HANDSHAKES_BURST);
    assert_eq!(taken(start + Duration::from_secs(1)), limits::SOURCE_HANDSHAKES_PER_SECOND);
}

#[test]
fn an_ipv6_customer_is_one_source_and_a_mapped_address_is_its_ipv4_one() {
    let limits = SourceLimits { connections: Some(1), ..SourceLimits::none() };
    let sources = sources(limits);
    let kept = [sources.connect(address("2001:db8::1")), sources.connect(address("192.0.2.7"))];
    assert!(kept.iter().all(Result::is_ok));
    assert!(sources.connect(address("2001:db8::ffff:2")).is_err());
    assert!(sources.connect(address("2001:db8:0:1::1")).is_ok());
    assert!(sources.connect(address("::ffff:192.0.2.7")).is_err());
}

#[test]
fn exempt_networks_are_not_limited() {
    let exempt = ["10.0.0.0/8".parse().expect("a network")].into();
    let sources = sources(SourceLimits { connections: Some(1), exempt, ..SourceLimits::none() });
    let open: Vec<_> = (0..10).map(|_| sources.connect(address("10.1.2.3"))).collect();
    assert!(open.iter().all(Result::is_ok));
    let _kept = sources.connect(address("11.0.0.1"));
    assert!(sources.connect(address("11.0.0.1")).is_err());
    assert!(sources.has_room(address("10.1.2.3")) && !sources.has_room(address("11.0.0.1")));
}

#[test]
fn a_resumed_handshake_costs_a_quarter() {
    // So slow that no time passes for it.
    let limits = SourceLimits { handshakes: Some(Rate::new(1, 1_000)), ..SourceLimits::none() };
    let [full, resumed] = [false, true].map(|resumed| {
        let sources = sources(limits.clone());
        let source = sources.connect(address("192.0.2.1")).expect("the first");
        let take = |_: &u32| {
            let taken = source.take_handshake().is_ok();
            if resumed && taken {
                source.handshake_was_resumed();
            }
            taken
        };
        (0..100_000_u32).take_while(take).count()
    });
    assert!((1_000..1_100).contains(&full), "{full}");
    assert!((3_990..4_400).contains(&resumed), "{resumed}");
}

#[test]
fn signatures_cost_by_what_they_take() {
    // So slow that no time passes for it.
    let limits = SourceLimits { handshakes: Some(Rate::new(1, 1_000)), ..SourceLimits::none() };
    let handshakes = |key| {
        let sources = sources(limits.clone());
        let source = sources.connect(address("192.0.2.1")).expect("the first");
        let taken = |_: &u32| source.take_handshake().is_ok() && source.take_signature(key).is_ok();
        let full = (0..100_000_u32).take_while(taken).count();
        source.give_signature_back(key);
        full
    };
    for (key, more) in [
        (KeyType::EcdsaP256, 0),
        (KeyType::EcdsaP384, limits::SOURCE_P384_MORE),
        (KeyType::Rsa2048, limits::SOURCE_RSA2048_MORE),
        (KeyType::Rsa3072, limits::SOURCE_RSA3072_MORE),
        (KeyType::Rsa4096, limits::SOURCE_RSA4096_MORE),
    ] {
        let (counted, expected) = (handshakes(key) as u64, 1_000 / (1 + more));
        assert!((expected..=expected + expected / 10 + 1).contains(&counted), "{key}: {counted}");
    }
}

/// More addresses than slots: the table forgets those that say nothing and keeps those with connections.
#[test]
fn the_table_is_bounded_and_forgets_who_has_nothing_open() {
    let limits = SourceLimits { connections: Some(1), ..SourceLimits::none() };
    let sources = sources(limits);
    let kept = sources.connect(address("192.0.2.1")).expect("the first");
    for number in 0..3 * u32::try_from(limits::SOURCES_MAX).expect("it fits") {
        let passing = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
        assert!(sources.connect(passing).is_ok());
    }
    assert!(sources.connect(address("192.0.2.1")).is_err(), "still known");
    drop(kept);
    // And where every slot is in use, newcomers are served all the same.
    let all: Vec<_> = (0..2 * u32::try_from(limits::SOURCES_MAX).expect("it fits"))
        .map(|number| sources.connect(IpAddr::from(std::net::Ipv4Addr::from(0x0b00_0000 + number))))
        .collect();
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(sources.slots.len(), limits::SOURCES_MAX);
    drop(all);
    assert!(sources.slots.iter().all(|slot| slot.open.load(Ordering::Relaxed) == 0), "nothing is left over");
}

#[test]
fn threads_agree_on_the_number_of_connections() {
    let limits = SourceLimits { connections: Some(100), ..SourceLimits::none() };
    let sources = sources(limits);
    let open: Vec<Source> = std::thread::scope(|scope| {
        let connect =
            || (0..100).filter_map(|_| sources.connect(address("192.0.2.1")).ok()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(connect)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it connected")).collect()
    });
    assert_eq!(open.len(), 100);
}
