//! Which certificates a client can use, by what its ClientHello says.
//!
//! TLS 1.3 says it in one list: a signature scheme names the curve too (RFC 8446 section 4.2.3). TLS 1.2 says it in
//! three: the cipher suite names the kind of key (RFC 8422 section 2), `signature_algorithms` the signature (RFC 5246
//! section 7.4.1.4.1), and `supported_groups` the curves of ECDSA keys as well as those of the exchange (RFC 8422
//! section 5.1). A client may list ECDSA signatures, because of other certificates in a chain, and no suite for an ECDSA
//! key; a certificate chosen by the signatures alone then ends the handshake.

use rustls::{CipherSuite, NamedGroup, SignatureScheme};

use crate::certificate::KeyType;

/// The kinds of key that a client can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientCapabilities {
    pub ecdsa_p256: Support,
    pub ecdsa_p384: Support,
    pub rsa: Support,
    pub ed25519: Support,
}

/// Whether a client can verify a kind of key; more is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Support {
    No,
    /// In one version of TLS, and its hello does not say whether it will be that one.
    Perhaps,
    Yes,
}

impl ClientCapabilities {
    /// A client that verifies all.
    pub const ALL: Self = Self::of([Support::Yes; 4]);
    /// A client that verifies nothing of ours.
    pub const NONE: Self = Self::of([Support::No; 4]);
    /// A client that verifies RSA alone.
    pub const RSA: Self = Self { rsa: Support::Yes, ..Self::NONE };

    const fn of([ecdsa_p256, ecdsa_p384, rsa, ed25519]: [Support; 4]) -> Self {
        Self { ecdsa_p256, ecdsa_p384, rsa, ed25519 }
    }

    /// From a ClientHello. Its versions are not among what is known of it, so that a client with suites of both may speak
    /// either: some list suites of TLS 1.3 and do not speak it. `groups`: absent where the client sent no such list, which
    /// leaves the choice to the server (RFC 8422 section 4).
    pub fn of_hello(
        schemes: &[SignatureScheme],
        suites: &[CipherSuite],
        groups: Option<&[NamedGroup]>,
    ) -> Self {
        let lists = |wanted: &[CipherSuite]| suites.iter().any(|suite| wanted.contains(suite));
        let (new, old) = (in_tls13(schemes), in_tls12(schemes, suites, groups));
        let (speaks_new, speaks_old) = (lists(&TLS13_SUITES), lists(&ECDSA_SUITES) || lists(&RSA_SUITES));
        let support = |kind: usize| {
            if !speaks_new {
                Support::certain(old[kind])
            } else if !speaks_old || new[kind] == old[kind] {
                Support::certain(new[kind])
            } else {
                Support::Perhaps
            }
        };
        Self::of([support(0), support(1), support(2), support(3)])
    }

    /// By the signatures of a client that speaks TLS 1.3.
    pub fn of_tls13(schemes: &[SignatureScheme]) -> Self {
        Self::of(in_tls13(schemes).map(Support::certain))
    }

    pub fn supports(self, key_type: KeyType) -> Support {
        match key_type {
            KeyType::EcdsaP256 => self.ecdsa_p256,
            KeyType::EcdsaP384 => self.ecdsa_p384,
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => self.rsa,
            KeyType::Ed25519 => self.ed25519,
        }
    }
}

impl Support {
    fn certain(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }
}

/// P-256, P-384, RSA, Ed25519. PKCS #1 v1.5 stands in lists of TLS 1.3 for certificates alone.
fn in_tls13(schemes: &[SignatureScheme]) -> [bool; 4] {
    let offers = |wanted: &[SignatureScheme]| schemes.iter().any(|scheme| wanted.contains(scheme));
    [
        offers(&[SignatureScheme::ECDSA_NISTP256_SHA256]),
        offers(&[SignatureScheme::ECDSA_NISTP384_SHA384]),
        offers(&RSA_PSS),
        offers(&[SignatureScheme::ED25519]),
    ]
}

fn in_tls12(schemes: &[SignatureScheme], suites: &[CipherSuite], groups: Option<&[NamedGroup]>) -> [bool; 4] {
    let [p256, p384, pss, ed25519] = in_tls13(schemes);
    let has = |wanted: &[CipherSuite]| suites.iter().any(|suite| wanted.contains(suite));
    let knows = |curve: NamedGroup| groups.is_none_or(|groups| groups.contains(&curve));
    let ecdsa = has(&ECDSA_SUITES);
    let pkcs1 = schemes.iter().any(|scheme| RSA_PKCS1.contains(scheme));
    [
        p256 && ecdsa && knows(NamedGroup::secp256r1),
        p384 && ecdsa && knows(NamedGroup::secp384r1),
        (pss || pkcs1) && has(&RSA_SUITES),
        // Its suites are ECDSA's (RFC 8422 section 2), and its curve is in no list.
        ed25519 && ecdsa,
    ]
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
    const MODERN_RSA: &[C] = &[C::TLS13_AES_256_GCM_SHA384, C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    const NEW: &[C] = &[C::TLS13_CHACHA20_POLY1305_SHA256];
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

    /// What a client with these lists can use, as letters: p (P-256), q (P-384), r (RSA), e (Ed25519); `?` behind a perhaps.
    fn usable(schemes: &[S], suites: &[C], groups: Option<&[G]>) -> String {
        let found = ClientCapabilities::of_hello(schemes, suites, groups);
        let letters =
            [(found.ecdsa_p256, "p"), (found.ecdsa_p384, "q"), (found.rsa, "r"), (found.ed25519, "e")];
        let shown = |(support, letter): (Support, &str)| match support {
            Support::No => String::new(),
            Support::Perhaps => format!("{letter}?"),
            Support::Yes => letter.to_owned(),
        };
        letters.map(shown).concat()
    }

    #[test]
    fn what_a_client_can_use_by_version_suites_signatures_and_curves() {
        let p256: Option<&'static [G]> = Some(&[G::X25519, G::secp256r1]);
        let p384: Option<&'static [G]> = Some(&[G::secp384r1]);
        let x25519: Option<&'static [G]> = Some(&[G::X25519]);
        let table: &[Row] = &[
            ("1.3, all", ALL_SCHEMES, NEW, p256, "pqre"),
            ("1.3: the groups say nothing of certificates", ALL_SCHEMES, NEW, x25519, "pqre"),
            ("1.3: the scheme names the curve", &[S::ECDSA_NISTP384_SHA384], NEW, p256, "q"),
            ("1.3: PKCS #1 signs no handshake", &[S::RSA_PKCS1_SHA256], NEW, p256, ""),
            ("1.3: PSS does", &[S::RSA_PSS_SHA512], NEW, p256, "r"),
            ("both, all", ALL_SCHEMES, MODERN, None, "pqre"),
            ("both, one curve", ALL_SCHEMES, MODERN, p256, "pq?re"),
            ("both, neither curve", ALL_SCHEMES, MODERN, x25519, "p?q?re"),
            ("both, RSA suites", ALL_SCHEMES, MODERN_RSA, p256, "p?q?re?"),
            ("both, PKCS #1", &[S::RSA_PKCS1_SHA256], MODERN, p256, "r?"),
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
            assert_eq!(ClientCapabilities::ALL.supports(key_type), Support::Yes);
            assert_eq!(ClientCapabilities::NONE.supports(key_type), Support::No);
            assert_eq!(ClientCapabilities::RSA.supports(key_type), Support::certain(key_type.is_rsa()));
        }
        let p256 = ClientCapabilities { ecdsa_p256: Support::Perhaps, ..ClientCapabilities::NONE };
        assert_eq!(p256.supports(KeyType::EcdsaP256), Support::Perhaps);
        assert_eq!(p256.supports(KeyType::EcdsaP384), Support::No);
    }
}
