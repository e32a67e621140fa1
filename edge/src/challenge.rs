//! Challenges of orders in flight: HTTP-01 (RFC 8555 section 8.3) and TLS-ALPN-01 (RFC 8737).
//!
//! They come by urgent message, live in memory only and are forgotten at their deadline. Answers are exact: another
//! host's token, or another token, is not answered here, so that it can go to the tenant's own route. Readers see an
//! expired challenge as absent even before the writer has swept it.
//!
//! The private key of a TLS-ALPN-01 certificate is made here and never leaves the process.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use portico_cert_store::{DomainName, NamePattern, NameTable, NameTablePublisher};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::live::{Fault, limits};

/// What workers read.
pub struct Challenges {
    by_host: NameTable<HostChallenges>,
}

/// The one writer.
pub struct ChallengePublisher {
    table: NameTablePublisher<HostChallenges>,
    hosts: HashMap<DomainName, Arc<HostChallenges>>,
    count: usize,
}

/// All challenges of one host, replaced as a whole at each change.
#[derive(Clone, Default)]
struct HostChallenges {
    http01: Vec<Http01>,
    tls_alpn01: Option<TlsAlpn01>,
}

#[derive(Clone)]
struct Http01 {
    token: Box<str>,
    key_authorization: Arc<str>,
    expires_unix_ms: i64,
}

#[derive(Clone)]
struct TlsAlpn01 {
    certified: Arc<CertifiedKey>,
    expires_unix_ms: i64,
}

impl Challenges {
    /// The key authorization for exactly this token of exactly this host.
    pub fn http01(&self, host: &str, token: &str, now_unix_ms: i64) -> Option<Arc<str>> {
        let host = self.by_host.get_exact(host)?;
        let found = host.http01.iter().find(|challenge| *challenge.token == *token)?;
        (now_unix_ms < found.expires_unix_ms).then(|| Arc::clone(&found.key_authorization))
    }

    /// The certificate that proves control of `host` to a client that offers `acme-tls/1` alone.
    pub fn tls_alpn01(&self, host: &str, now_unix_ms: i64) -> Option<Arc<CertifiedKey>> {
        let host = self.by_host.get_exact(host)?;
        let found = host.tls_alpn01.as_ref()?;
        (now_unix_ms < found.expires_unix_ms).then(|| Arc::clone(&found.certified))
    }
}

impl ChallengePublisher {
    pub fn new() -> Self {
        Self { table: NameTablePublisher::new(1024), hosts: HashMap::new(), count: 0 }
    }

    pub fn reader(&self) -> Challenges {
        Challenges { by_host: self.table.reader() }
    }

    /// Answers `token` on `host` from now on. The same token is replaced.
    ///
    /// # Errors
    /// A [`Fault`] if a value has no valid form or the store is full; what was set before stays.
    pub fn set_http01(
        &mut self,
        host: &str,
        token: &str,
        key_authorization: &str,
        expires_unix_ms: i64,
        now_unix_ms: i64,
    ) -> Result<(), Fault> {
        let host = parse_host(host)?;
        check_token(token)?;
        let fits = key_authorization.len() <= limits::KEY_AUTHORIZATION_BYTES_MAX
            && key_authorization.split_once('.').is_some_and(|(left, thumbprint)| {
                left == token && !thumbprint.is_empty() && thumbprint.bytes().all(is_base64url)
            });
        if !fits {
            return Err(Fault::new("BadChallenge", "the key authorization is not `token.thumbprint`"));
        }
        let challenge = Http01 {
            token: token.into(),
            key_authorization: key_authorization.into(),
            expires_unix_ms: bounded(expires_unix_ms, now_unix_ms),
        };
        self.change(host, now_unix_ms, |challenges| {
            challenges.http01.retain(|held| held.token != challenge.token);
            if challenges.http01.len() >= limits::CHALLENGES_PER_HOST_MAX {
                let text = format!("this host has {} HTTP-01 challenges already", challenges.http01.len());
                return Err(Fault::new("TooManyChallenges", text));
            }
            challenges.http01.push(challenge);
            Ok(())
        })
    }

    /// Makes and serves the challenge certificate of `host`. `digest` is the SHA-256 of the key authorization.
    ///
    /// # Errors
    /// A [`Fault`] if a value has no valid form or the store is full.
    pub fn set_tls_alpn01(
        &mut self,
        host: &str,
        digest: &[u8],
        expires_unix_ms: i64,
        now_unix_ms: i64,
    ) -> Result<(), Fault> {
        let host = parse_host(host)?;
        let digest: [u8; 32] =
            digest.try_into().map_err(|_| Fault::new("BadChallenge", "the digest has not 32 bytes"))?;
        let expires_unix_ms = bounded(expires_unix_ms, now_unix_ms);
        let certified = challenge_certificate(&host, &digest)?;
        self.change(host, now_unix_ms, |challenges| {
            challenges.tls_alpn01 = Some(TlsAlpn01 { certified, expires_unix_ms });
            Ok(())
        })
    }

    /// Forgets one token, or with an empty token the host's TLS-ALPN-01 challenge. Nothing there: nothing to do.
    ///
    /// # Errors
    /// A [`Fault`] if the host is no name.
    pub fn clear(&mut self, host: &str, token: &str, now_unix_ms: i64) -> Result<(), Fault> {
        let host = parse_host(host)?;
        self.change(host, now_unix_ms, |challenges| {
            if token.is_empty() {
                challenges.tls_alpn01 = None;
            } else {
                challenges.http01.retain(|held| *held.token != *token);
            }
            Ok(())
        })
    }

    /// Forgets what has expired.
    pub fn sweep(&mut self, now_unix_ms: i64) {
        let expired = |challenges: &HostChallenges| challenges.len() != challenges.alive(now_unix_ms).len();
        let hosts: Vec<_> =
            self.hosts.iter().filter(|(_, held)| expired(held)).map(|(host, _)| host.clone()).collect();
        for host in hosts {
            // `change` drops what has expired before it calls the closure.
            let swept = self.change(host, now_unix_ms, |_| Ok(()));
            debug_assert!(swept.is_ok());
        }
    }

    /// Challenges held, expired ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn change(
        &mut self,
        host: DomainName,
        now_unix_ms: i64,
        act: impl FnOnce(&mut HostChallenges) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let before = self.hosts.get(&host).map_or(0, |held| held.len());
        let mut challenges = self.hosts.get(&host).map(|held| held.alive(now_unix_ms)).unwrap_or_default();
        act(&mut challenges)?;
        let count = self.count - before + challenges.len();
        if count > limits::CHALLENGES_MAX && count > self.count {
            return Err(Fault::new("TooManyChallenges", "the edge holds as many challenges as it can"));
        }
        self.count = count;
        let pattern = NamePattern::Exact(host.clone());
        if challenges.len() == 0 {
            self.table.remove(&pattern);
            self.hosts.remove(&host);
        } else {
            let challenges = Arc::new(challenges);
            self.table.insert(pattern, Arc::clone(&challenges));
            self.hosts.insert(host, challenges);
        }
        Ok(())
    }
}

impl Default for ChallengePublisher {
    fn default() -> Self {
        Self::new()
    }
}

impl HostChallenges {
    fn len(&self) -> usize {
        self.http01.len() + usize::from(self.tls_alpn01.is_some())
    }

    fn alive(&self, now_unix_ms: i64) -> Self {
        Self {
            http01: self.http01.iter().filter(|held| now_unix_ms < held.expires_unix_ms).cloned().collect(),
            tls_alpn01: self.tls_alpn01.clone().filter(|held| now_unix_ms < held.expires_unix_ms),
        }
    }
}

/// Whether `token` has the form that CAs send; anything else on the challenge path is the tenant's.
pub fn is_token(token: &str) -> bool {
    (limits::TOKEN_BYTES_MIN..=limits::TOKEN_BYTES_MAX).contains(&token.len())
        && token.bytes().all(is_base64url)
}

fn check_token(token: &str) -> Result<(), Fault> {
    if is_token(token) {
        Ok(())
    } else {
        let (least, most) = (limits::TOKEN_BYTES_MIN, limits::TOKEN_BYTES_MAX);
        Err(Fault::new("BadChallenge", format!("a token has {least} to {most} base64url characters")))
    }
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn parse_host(host: &str) -> Result<DomainName, Fault> {
    DomainName::parse(host).map_err(|error| Fault::new("BadChallenge", error.to_string()))
}

/// Until when a challenge is answered, by our clock. A deadline that has passed was set by another clock than ours: the sender
/// waits for our ack and has the CA look then, so it is held for as long as a validation takes.
fn bounded(expires_unix_ms: i64, now_unix_ms: i64) -> i64 {
    if expires_unix_ms <= now_unix_ms {
        return now_unix_ms.saturating_add(limits::CHALLENGE_LIFE_APART_MS);
    }
    expires_unix_ms.min(now_unix_ms.saturating_add(limits::CHALLENGE_LIFE_MS_MAX))
}

/// RFC 8737 section 3: self-signed, the host as its only name, the digest in a critical acmeIdentifier extension.
fn challenge_certificate(host: &DomainName, digest: &[u8; 32]) -> Result<Arc<CertifiedKey>, Fault> {
    let failed = |error: &dyn fmt::Display| Fault::new("ChallengeCertificate", error.to_string());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
    let mut params =
        rcgen::CertificateParams::new(vec![host.as_str().to_owned()]).map_err(|error| failed(&error))?;
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
    let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = any_supported_type(&secret).map_err(|error| failed(&error))?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)))
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges").field("hosts", &self.by_host.len()).finish()
    }
}

impl fmt::Debug for ChallengePublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChallengePublisher").field("count", &self.count).finish()
    }
}
