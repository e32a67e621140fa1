//! Which certificates a client can use, by what its ClientHello says.
//!
//! TLS 1.3 says it in one list: a signature scheme names the curve too (RFC 8446 section 4.2.3). TLS 1.2 says it in
//! three: the cipher suite names the kind of key (RFC 8422 section 2), `signature_algorithms` the signature (RFC 5246
//! section 7.4.1.4.1), and `supported_groups` the curves of ECDSA keys as well as those of the exchange (RFC 8422
//! section 5.1). A client may list ECDSA signatures, because of other certificates in a chain, and no suite for an ECDSA
//! key; a certificate chosen by the signatures alone then ends the handshake.

use rustls::{CipherSuite, NamedGroup, SignatureScheme};

use crate::certificate::KeyType;

/// The kinds of key that a client can verify in the version that it will speak with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientCapabilities {
    pub ecdsa_p256: bool,
    pub ecdsa_p384: bool,
    pub rsa: bool,
    pub ed25519: bool,
}

impl ClientCapabilities {
    /// A client that verifies all.
    pub const ALL: Self = Self { ecdsa_p256: true, ecdsa_p384: true, rsa: true, ed25519: true };
    /// A client that verifies nothing of ours.
    pub const NONE: Self = Self { ecdsa_p256: false, ecdsa_p384: false, rsa: false, ed25519: false };
    /// A client that verifies RSA alone.
    pub const RSA: Self = Self { rsa: true, ..Self::NONE };

    /// From a ClientHello. Who lists a suite of TLS 1.3 speaks it: every one of our configurations offers it, and the newer
    /// version goes first. `groups`: absent where the client sent no such list, which leaves the choice to the server
    /// (RFC 8422 section 4).
    pub fn of_hello(
        schemes: &[SignatureScheme],
        suites: &[CipherSuite],
        groups: Option<&[NamedGroup]>,
    ) -> Self {
        if suites.iter().any(|suite| TLS13_SUITES.contains(suite)) {
            Self::of_tls13(schemes)
        } else {
            Self::of_tls12(schemes, suites, groups)
        }
    }

    /// By the signatures that TLS 1.3 has: PKCS #1 v1.5 stands in its lists for certificates alone.
    pub fn of_tls13(schemes: &[SignatureScheme]) -> Self {
        let offers = |wanted: &[SignatureScheme]| schemes.iter().any(|scheme| wanted.contains(scheme));
        Self {
            ecdsa_p256: offers(&[SignatureScheme::ECDSA_NISTP256_SHA256]),
            ecdsa_p384: offers(&[SignatureScheme::ECDSA_NISTP384_SHA384]),
            rsa: offers(&RSA_PSS),
            ed25519: offers(&[SignatureScheme::ED25519]),
        }
    }

    fn of_tls12(schemes: &[SignatureScheme], suites: &[CipherSuite], groups: Option<&[NamedGroup]>) -> Self {
        let signatures = Self::of_tls13(schemes);
        let has = |wanted: &[CipherSuite]| suites.iter().any(|suite| wanted.contains(suite));
        let knows = |curve: NamedGroup| groups.is_none_or(|groups| groups.contains(&curve));
        let ecdsa = has(&ECDSA_SUITES);
        let pkcs1 = schemes.iter().any(|scheme| RSA_PKCS1.contains(scheme));
        Self {
            ecdsa_p256: signatures.ecdsa_p256 && ecdsa && knows(NamedGroup::secp256r1),
            ecdsa_p384: signatures.ecdsa_p384 && ecdsa && knows(NamedGroup::secp384r1),
            rsa: (signatures.rsa || pkcs1) && has(&RSA_SUITES),
            // Its suites are ECDSA's (RFC 8422 section 2), and its curve is in no list.
            ed25519: signatures.ed25519 && ecdsa,
        }
    }

    pub fn supports(self, key_type: KeyType) -> bool {
        match key_type {
            KeyType::EcdsaP256 => self.ecdsa_p256,
            KeyType::EcdsaP384 => self.ecdsa_p384,
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => self.rsa,
            KeyType::Ed25519 => self.ed25519,
        }
    }
}

const RSA_PSS: [SignatureScheme; 3] =
    [SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PSS_SHA384, SignatureScheme::RSA_PSS_SHA512];
const RSA_PKCS1: [SignatureScheme; 3] =
    [SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::RSA_PKCS1_SHA384, SignatureScheme::RSA_PKCS1_SHA512];

// Those that we have; others do not help a client here.
const TLS13_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];
const ECDSA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];
const RSA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

#[cfg(test)]
mod tests {
    use super::*;

    use CipherSuite as C;
    use NamedGroup as G;
    use SignatureScheme as S;

    const MODERN: &[C] = &[
        C::TLS13_AES_128_GCM_SHA256,
        C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    const BOTH: &[C] =
        &[C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, C::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256];
    const RSA_ONLY: &[C] = &[C::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384];
    const ECDSA_ONLY: &[C] = &[C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256];
    /// A suite that we do not have.
    const OLD: &[C] = &[C::TLS_RSA_WITH_AES_128_CBC_SHA];
    const ALL_SCHEMES: &[S] = &[
        S::ECDSA_NISTP256_SHA256,
        S::ECDSA_NISTP384_SHA384,
        S::RSA_PSS_SHA256,
        S::RSA_PKCS1_SHA256,
        S::ED25519,
    ];

    /// What it is about, what the client lists, and what it can use.
    type Row = (&'static str, &'static [S], &'static [C], Option<&'static [G]>, &'static str);

    /// What a client with these lists can use, as letters: p (P-256), q (P-384), r (RSA), e (Ed25519).
    fn usable(schemes: &[S], suites: &[C], groups: Option<&[G]>) -> String {
        let found = ClientCapabilities::of_hello(schemes, suites, groups);
        let letters =
            [(found.ecdsa_p256, 'p'), (found.ecdsa_p384, 'q'), (found.rsa, 'r'), (found.ed25519, 'e')];
        letters.into_iter().filter(|(is, _)| *is).map(|(_, letter)| letter).collect()
    }

    #[test]
    fn what_a_client_can_use_by_version_suites_signatures_and_curves() {
        let p256: Option<&'static [G]> = Some(&[G::X25519, G::secp256r1]);
        let p384: Option<&'static [G]> = Some(&[G::secp384r1]);
        let x25519: Option<&'static [G]> = Some(&[G::X25519]);
        let table: &[Row] = &[
            ("1.3, all", ALL_SCHEMES, MODERN, p256, "pqre"),
            ("1.3: the groups say nothing of certificates", ALL_SCHEMES, MODERN, x25519, "pqre"),
            ("1.3: the scheme names the curve", &[S::ECDSA_NISTP384_SHA384], MODERN, p256, "q"),
            ("1.3: PKCS #1 signs no handshake", &[S::RSA_PKCS1_SHA256], MODERN, p256, ""),
            ("1.3: PSS does", &[S::RSA_PSS_SHA512], MODERN, p256, "r"),
            ("1.3 without suites of 1.2", &[S::ED25519], &[C::TLS13_CHACHA20_POLY1305_SHA256], p256, "e"),
            ("1.2, all suites, one curve", ALL_SCHEMES, BOTH, p256, "pre"),
            ("1.2, the other curve", ALL_SCHEMES, BOTH, p384, "qre"),
            ("1.2, neither curve", ALL_SCHEMES, BOTH, x25519, "re"),
            ("1.2, no list of curves", ALL_SCHEMES, BOTH, None, "pqre"),
            ("1.2, ECDSA signatures and no suite for them", ALL_SCHEMES, RSA_ONLY, p256, "r"),
            ("1.2, RSA signatures and no suite for them", ALL_SCHEMES, ECDSA_ONLY, p256, "pe"),
            ("1.2: PKCS #1 signs", &[S::RSA_PKCS1_SHA384], BOTH, p256, "r"),
            ("1.2: PSS too", &[S::RSA_PSS_SHA384], BOTH, p256, "r"),
            ("1.2, SHA-1 alone", &[S::RSA_PKCS1_SHA1, S::ECDSA_SHA1_Legacy], BOTH, p256, ""),
            ("1.2, a curve without its signature", &[S::ECDSA_NISTP384_SHA384], BOTH, p256, ""),
            ("1.2, suites that we do not have", ALL_SCHEMES, OLD, p256, ""),
            ("nothing at all", &[], &[], None, ""),
        ];
        for (case, schemes, suites, groups, expected) in table {
            assert_eq!(usable(schemes, suites, *groups), *expected, "{case}");
        }
    }

    #[test]
    fn each_kind_of_key_asks_for_its_own_capability() {
        let all = [
            KeyType::EcdsaP256,
            KeyType::EcdsaP384,
            KeyType::Rsa2048,
            KeyType::Rsa3072,
            KeyType::Rsa4096,
            KeyType::Ed25519,
        ];
        for key_type in all {
            assert!(ClientCapabilities::ALL.supports(key_type));
            assert!(!ClientCapabilities::NONE.supports(key_type));
            assert_eq!(ClientCapabilities::RSA.supports(key_type), key_type.is_rsa());
        }
        let p256 = ClientCapabilities { ecdsa_p256: true, ..ClientCapabilities::NONE };
        assert!(p256.supports(KeyType::EcdsaP256) && !p256.supports(KeyType::EcdsaP384));
    }
}
