//! What a ClientHello says that matters to us.

use portico_cert_store::{ClientCapabilities, DomainName};
use rustls::{CipherSuite, NamedGroup, server::ClientHello};

/// The facts of one ClientHello, taken out of the borrowed message.
#[derive(Debug, Clone)]
pub struct HelloFacts {
    /// A server name that is a domain name.
    pub sni: Option<DomainName>,
    /// There was a server name, good or not.
    pub has_sni: bool,
    pub capabilities: ClientCapabilities,
    /// The client's first real suite is ChaCha20: it has no AES instructions (phones, small boards).
    pub prefers_chacha: bool,
    /// It can do X25519MLKEM768, whether or not it has sent a share for it.
    pub knows_hybrid: bool,
    /// It offers `acme-tls/1` and nothing else, as RFC 8737 section 3 has a validating CA do.
    pub acme_tls_only: bool,
}

const ACME_TLS_1: &[u8] = b"acme-tls/1";

impl HelloFacts {
    pub fn of(hello: &ClientHello<'_>) -> Self {
        let server_name = hello.server_name();
        let mut protocols = hello.alpn().into_iter().flatten();
        let acme_tls_only = protocols.next() == Some(ACME_TLS_1) && protocols.next().is_none();
        Self {
            sni: server_name.and_then(|name| DomainName::parse(name).ok()),
            has_sni: server_name.is_some(),
            capabilities: ClientCapabilities::of_hello(
                hello.signature_schemes(),
                hello.cipher_suites(),
                hello.named_groups(),
            ),
            prefers_chacha: prefers_chacha(hello.cipher_suites()),
            knows_hybrid: hello
                .named_groups()
                .is_some_and(|groups| groups.contains(&NamedGroup::X25519MLKEM768)),
            acme_tls_only,
        }
    }
}

fn prefers_chacha(suites: &[CipherSuite]) -> bool {
    let first = suites.iter().find(|suite| !is_grease(**suite));
    matches!(
        first,
        Some(
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        )
    )
}

/// Values that clients put in to keep servers tolerant (RFC 8701 section 2).
fn is_grease(suite: CipherSuite) -> bool {
    let value = u16::from(suite);
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grease_does_not_hide_a_chacha_client() {
        let grease = CipherSuite::from(0x3a3a);
        let (aes, chacha) =
            (CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert!(prefers_chacha(&[grease, chacha, aes]));
        assert!(!prefers_chacha(&[grease, aes, chacha]));
        assert!(!prefers_chacha(&[grease]));
        assert!(!is_grease(CipherSuite::from(0x0a1a)));
    }
}
