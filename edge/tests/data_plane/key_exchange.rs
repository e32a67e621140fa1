//! Which group a client and the edge exchange keys by.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion};

use crate::client::{Https, trust_all, try_https};
use crate::harness::{Setup, TestEdge, on_each_backend};
use crate::http3_client::http3_with;

/// A client with these groups, in its order of preference.
fn with_groups(
    groups: &[&'static dyn SupportedKxGroup],
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &str,
) -> ClientConfig {
    let provider = CryptoProvider { kx_groups: groups.to_vec(), ..default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    trust_all(&mut config);
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

/// X25519MLKEM768, also for clients of TLS 1.2, with how often a client has made a share of it.
#[derive(Debug)]
struct Hybrid(AtomicUsize);

impl SupportedKxGroup for Hybrid {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        kx_group::X25519MLKEM768.start()
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, _: ProtocolVersion) -> bool {
        true
    }
}

#[test]
fn a_client_that_can_do_the_hybrid_exchange_does_it_whatever_it_names_first() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let (hybrid, classical) = (kx_group::X25519MLKEM768, kx_group::X25519);
        let retried = HandshakeKind::FullWithHelloRetryRequest;
        for (groups, group, kind) in [
            (&[hybrid, classical][..], NamedGroup::X25519MLKEM768, HandshakeKind::Full),
            (&[classical, hybrid], NamedGroup::X25519MLKEM768, retried),
            (&[kx_group::SECP256R1, hybrid, classical], NamedGroup::X25519MLKEM768, retried),
            (&[classical, kx_group::SECP256R1], NamedGroup::X25519, HandshakeKind::Full),
            (&[kx_group::SECP384R1], NamedGroup::secp384r1, HandshakeKind::Full),
        ] {
            let config = with_groups(groups, &TLS13, "http/1.1");
            let mut client = try_https(edge.https, Some("shop.example"), config.clone()).unwrap();
            let done = |client: &Https| {
                let group = client.stream.conn.negotiated_key_exchange_group().map(|group| group.name());
                (group, client.stream.conn.handshake_kind())
            };
            assert_eq!(done(&client), (Some(group), Some(kind)), "{groups:?}");
            assert_eq!(client.get("shop.example", "/").status, 200, "{groups:?}");
            // A session that goes on makes new keys in the same group.
            let mut client = try_https(edge.https, Some("shop.example"), config).unwrap();
            assert_eq!(client.get("shop.example", "/").status, 200, "{groups:?}");
            assert_eq!(done(&client), (Some(group), Some(HandshakeKind::Resumed)), "{groups:?}");
        }
        // TLS 1.2 has no such group, whoever names it there.
        static NAMED: Hybrid = Hybrid(AtomicUsize::new(0));
        let config = with_groups(&[&NAMED, classical], &TLS12, "http/1.1");
        let mut client = try_https(edge.https, Some("shop.example"), config).unwrap();
        assert_eq!(client.get("shop.example", "/").status, 200);
        let group = client.stream.conn.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519);
    });
}

#[test]
fn over_quic_a_client_does_the_hybrid_exchange_too() {
    static HYBRID: Hybrid = Hybrid(AtomicUsize::new(0));
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        edge.serve(&["shop.example"]);
        let shares = |groups: &[&'static dyn SupportedKxGroup]| {
            let before = HYBRID.0.load(Ordering::SeqCst);
            let config = with_groups(groups, &TLS13, "h3");
            let request = http::Request::get("https://shop.example/").body(()).unwrap();
            let answer = http3_with(config, edge.https, Some("shop.example"), request).unwrap();
            assert_eq!(answer.status, 200, "{groups:?}");
            HYBRID.0.load(Ordering::SeqCst) - before
        };
        // A share of it that comes second was asked for.
        assert_eq!(shares(&[kx_group::X25519, &HYBRID]), 1);
        assert_eq!(shares(&[&HYBRID, kx_group::X25519]), 1);
        assert_eq!(shares(&[kx_group::X25519]), 0);
    });
}
