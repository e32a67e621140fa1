//! What does a TLS handshake cost the server, per key type and version, full and resumed, without any socket?
//!
//! The client's work is timed out of the figure: only the server's calls are on the clock.

#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use portico_benches::Authority;
use portico_cert_store::KeyType;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion, version,
};

const NAME: &str = "shop.bench.test";

struct Case {
    title: &'static str,
    key_type: KeyType,
    version: &'static SupportedProtocolVersion,
    group: &'static dyn SupportedKxGroup,
    resumed: bool,
}

fn handshake(c: &mut Criterion) {
    let cases = [
        case(
            "P-256, TLS 1.3, X25519, full",
            KeyType::EcdsaP256,
            &version::TLS13,
            aws_lc_rs::kx_group::X25519,
            false,
        ),
        case(
            "P-256, TLS 1.3, X25519, resumed",
            KeyType::EcdsaP256,
            &version::TLS13,
            aws_lc_rs::kx_group::X25519,
            true,
        ),
        case(
            "P-256, TLS 1.3, X25519MLKEM768, full",
            KeyType::EcdsaP256,
            &version::TLS13,
            aws_lc_rs::kx_group::X25519MLKEM768,
            false,
        ),
        case(
            "RSA-2048, TLS 1.3, X25519, full",
            KeyType::Rsa2048,
            &version::TLS13,
            aws_lc_rs::kx_group::X25519,
            false,
        ),
        case(
            "P-256, TLS 1.2, X25519, full",
            KeyType::EcdsaP256,
            &version::TLS12,
            aws_lc_rs::kx_group::X25519,
            false,
        ),
        case(
            "P-256, TLS 1.2, X25519, resumed",
            KeyType::EcdsaP256,
            &version::TLS12,
            aws_lc_rs::kx_group::X25519,
            true,
        ),
        case(
            "RSA-2048, TLS 1.2, X25519, full",
            KeyType::Rsa2048,
            &version::TLS12,
            aws_lc_rs::kx_group::X25519,
            false,
        ),
    ];
    let mut group = c.benchmark_group("server_handshake");
    for case in &cases {
        let (client, server) = configs(case);
        if case.resumed {
            let (_, kind) = server_time(&client, &server);
            assert_eq!(kind, HandshakeKind::Full, "the first handshake earns the ticket");
            let (_, kind) = server_time(&client, &server);
            assert_eq!(kind, HandshakeKind::Resumed, "{}", case.title);
        }
        group.bench_function(case.title, |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| server_time(&client, &server).0).sum());
        });
    }
    group.finish();
}

fn case(
    title: &'static str,
    key_type: KeyType,
    version: &'static SupportedProtocolVersion,
    group: &'static dyn SupportedKxGroup,
    resumed: bool,
) -> Case {
    Case { title, key_type, version, group, resumed }
}

fn provider(group: &'static dyn SupportedKxGroup) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![group];
    provider
        .cipher_suites
        .sort_by_key(|suite| u8::from(suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256));
    Arc::new(provider)
}

fn configs(case: &Case) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let authority = Authority::new();
    let (chain, key) = authority.issue(&[NAME.to_owned()], case.key_type);
    let mut server = ServerConfig::builder_with_provider(provider(case.group))
        .with_protocol_versions(&[case.version])
        .expect("a version of the provider")
        .with_no_client_auth()
        .with_single_cert(
            chain.to_vec(),
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.secret_der().to_vec())),
        )
        .expect("certificate and key match");
    server.ignore_client_order = true;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    if case.resumed {
        server.ticketer = aws_lc_rs::Ticketer::new().expect("a ticketer");
    }
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).expect("a root");
    let client = ClientConfig::builder_with_provider(provider(case.group))
        .with_protocol_versions(&[case.version])
        .expect("a version of the provider")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(client), Arc::new(server))
}

/// One handshake to the end of the server's part, tickets read by the client; the time spent in the server's calls.
fn server_time(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Duration, HandshakeKind) {
    let name = ServerName::try_from(NAME).expect("a valid name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut spent = Duration::ZERO;
    let started = Instant::now();
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    spent += started.elapsed();
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory takes it");
        }
        let started = Instant::now();
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory gives it");
            server.process_new_packets().expect("the client is well behaved");
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).expect("memory takes it");
        }
        spent += started.elapsed();
        if wire.is_empty() && answer.is_empty() {
            break;
        }
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory gives it");
            client.process_new_packets().expect("the server is well behaved");
        }
    }
    (spent, server.handshake_kind().expect("the handshake is over"))
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(4));
    targets = handshake
}
criterion_main!(benches);
