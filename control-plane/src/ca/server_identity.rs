//! The distribution listener's own certificate: made at start, replaced before it ends, its key never stored.

use std::fmt;
use std::sync::{Arc, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::signing_key::P256Key;
use super::{CaError, InternalCa};

/// A name that every listener's certificate carries, so that an edge can verify the control plane by what it is,
/// whatever address it was reached at.
pub const SERVER_DNS_NAME: &str = "control-plane.portico.internal";

/// What the listener shows; shared between the acceptor and the task that renews it.
#[derive(Clone)]
pub struct ServerIdentity {
    names: Arc<[String]>,
    lifetime: Duration,
    current: Arc<RwLock<Current>>,
}

struct Current {
    key: Arc<CertifiedKey>,
    not_after: OffsetDateTime,
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServerIdentity {
    /// A first certificate for `names` (DNS names, IP addresses); [`SERVER_DNS_NAME`] is always among them.
    pub fn new(
        ca: &InternalCa,
        mut names: Vec<String>,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Self, CaError> {
        names.push(SERVER_DNS_NAME.to_owned());
        names.sort();
        names.dedup();
        let current = issue(ca, &names, now, lifetime)?;
        Ok(Self { names: names.into(), lifetime, current: Arc::new(RwLock::new(current)) })
    }

    /// When the next certificate is due: a third of the lifetime before this one ends.
    pub fn renew_at(&self) -> OffsetDateTime {
        self.read(|current| current.not_after) - self.lifetime / 3
    }

    /// Takes a new certificate and key into use; connections that stand keep theirs.
    pub fn renew(&self, ca: &InternalCa, now: OffsetDateTime) -> Result<(), CaError> {
        let next = issue(ca, &self.names, now, self.lifetime)?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = next;
        Ok(())
    }

    fn read<T>(&self, take: impl FnOnce(&Current) -> T) -> T {
        take(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read(|current| current.key.clone()))
    }
}

fn issue(
    ca: &InternalCa,
    names: &[String],
    now: OffsetDateTime,
    lifetime: Duration,
) -> Result<Current, CaError> {
    let (key, pkcs8) = P256Key::generate()?;
    let leaf = ca.sign_server(&key, names, now, lifetime)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| CaError::Crypto)?;
    // The authority goes along: a joining edge knows it only by the fingerprint in its token.
    let chain = vec![leaf.certificate, ca.certificate().clone()];
    Ok(Current { key: Arc::new(CertifiedKey::new(chain, signer)), not_after: leaf.not_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_certificate_is_another_and_is_due_before_the_old_one_ends() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (ca, _) = InternalCa::generate(now).unwrap();
        let lifetime = Duration::seconds(30);
        let identity = ServerIdentity::new(&ca, vec!["127.0.0.1".to_owned()], now, lifetime).unwrap();
        assert_eq!(identity.renew_at(), now + Duration::seconds(20));
        let before = identity.read(|current| current.key.clone());
        identity.renew(&ca, now + Duration::seconds(20)).unwrap();
        let after = identity.read(|current| current.key.clone());
        assert_ne!(before.cert[0], after.cert[0]);
        assert_eq!(after.cert[1], *ca.certificate());
        assert_eq!(identity.renew_at(), now + Duration::seconds(40));
    }
}
