//! The authority by which one tenant's origins know our edges.
//!
//! An origin is told to trust its certificate once. Each cell shows a leaf with a key of its own, which is renewed without
//! the origin being touched. The authority has no end of its own (RFC 5280 section 4.1.2.5): one that ran out unnoticed would
//! cut the tenant off from all its origins in one moment, and whoever trusts it has pinned it by hand.

use portico_cert_store::{CellId, PrivateKey, TenantId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::signing_key::P256Key;
use super::{CaError, IssuedIdentity, base_params, issued, leaf_params};

/// How long a leaf is valid. An edge that has lost its control plane shows the last one it had: that is how long its origins
/// take it.
pub const ORIGIN_IDENTITY_LIFETIME: Duration = Duration::days(90);

/// How far an origin's clock may be behind: it is not ours to set.
const CLOCKS_APART: Duration = Duration::DAY;

/// 9999-12-31T23:59:59Z, which says that there is no end (RFC 5280 section 4.1.2.5). Unix seconds.
const NO_END: i64 = 253_402_300_799;

/// One tenant's, ready to sign.
pub struct OriginAuthority {
    tenant: TenantId,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, P256Key>,
}

impl OriginAuthority {
    /// A new one; the second value is its key as PKCS#8, to be sealed by the caller.
    ///
    /// # Errors
    /// [`CaError`] where the library fails.
    pub fn generate(tenant: TenantId, now: OffsetDateTime) -> Result<(Self, Zeroizing<Vec<u8>>), CaError> {
        let (key, pkcs8) = P256Key::generate()?;
        let params = params(tenant, now - CLOCKS_APART);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok((Self { tenant, certificate, issuer: Issuer::new(params, key) }, pkcs8))
    }

    /// One that was stored.
    ///
    /// # Errors
    /// [`CaError::Damaged`], or [`CaError::KeyMismatch`].
    pub fn from_stored(tenant: TenantId, certificate: Vec<u8>, pkcs8: &[u8]) -> Result<Self, CaError> {
        let key = P256Key::from_pkcs8(pkcs8)?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| CaError::Damaged(error.to_string()))?;
        if parsed.public_key().subject_public_key.data != key.public_point() {
            return Err(CaError::KeyMismatch);
        }
        let params = params(tenant, parsed.validity().not_before.to_datetime());
        let certificate = CertificateDer::from(certificate);
        Ok(Self { tenant, certificate, issuer: Issuer::new(params, key) })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A leaf for the edges of one cell, with a new key.
    ///
    /// # Errors
    /// [`CaError`] where the library fails.
    pub fn issue(&self, cell: &CellId, now: OffsetDateTime) -> Result<(IssuedIdentity, PrivateKey), CaError> {
        let (key, pkcs8) = P256Key::generate()?;
        let mut params = leaf_params(&self.tenant.to_string(), now, ORIGIN_IDENTITY_LIFETIME);
        params.not_before = now - CLOCKS_APART;
        params.distinguished_name.push(DnType::OrganizationalUnitName, format!("cell {cell}"));
        params.subject_alt_names =
            vec![SanType::URI(format!("portico://tenant/{}", self.tenant).try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = issued(params.signed_by(&key, &self.issuer)?.der().clone())?;
        let key = PrivateKey::from_pkcs8_der(&pkcs8).map_err(|_| CaError::Crypto)?;
        Ok((leaf, key))
    }
}

fn params(tenant: TenantId, not_before: OffsetDateTime) -> CertificateParams {
    let mut params = base_params(&format!("Portico edges of {tenant}"));
    params.not_before = not_before;
    params.not_after =
        OffsetDateTime::from_unix_timestamp(NO_END).expect("the year 9999 is within the library's range");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl std::fmt::Debug for OriginAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OriginAuthority").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an origin would: the leaf leads to the one certificate that it was told to trust, long after.
    #[test]
    fn a_leaf_of_a_stored_authority_is_taken_by_who_trusts_the_first_one() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let tenant = TenantId::generate();
        let (first, pkcs8) = OriginAuthority::generate(tenant, now).unwrap();
        let (_, parsed) = X509Certificate::from_der(first.certificate()).unwrap();
        assert_eq!(parsed.validity().not_after.timestamp(), NO_END);
        assert!(first.certificate().windows(15).any(|text| text == b"99991231235959Z"));
        let again = OriginAuthority::from_stored(tenant, first.certificate().to_vec(), &pkcs8).unwrap();
        let late = now + Duration::days(365 * 40);
        let cells = ["one", "two"].map(|name| CellId::parse(name).unwrap());
        let [one, two] = cells.each_ref().map(|cell| again.issue(cell, late).unwrap());
        assert_ne!(one.1.spki_sha256(), two.1.spki_sha256(), "a key for each cell");
        let anchor = webpki::anchor_from_trusted_cert(first.certificate()).unwrap();
        let at = |time: OffsetDateTime| {
            let seconds = time.unix_timestamp().cast_unsigned();
            rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
        };
        let leaf = webpki::EndEntityCert::try_from(&one.0.certificate).unwrap();
        let verify = |time, usage| {
            let anchors = std::slice::from_ref(&anchor);
            leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, anchors, &[], at(time), usage, None, None)
                .map(|_| ())
        };
        verify(late, webpki::KeyUsage::client_auth()).unwrap();
        verify(late, webpki::KeyUsage::server_auth()).unwrap_err();
        verify(late + ORIGIN_IDENTITY_LIFETIME + Duration::SECOND, webpki::KeyUsage::client_auth())
            .unwrap_err();
        let (other, _) = OriginAuthority::generate(tenant, now).unwrap();
        let wrong = OriginAuthority::from_stored(tenant, other.certificate().to_vec(), &pkcs8);
        assert!(matches!(wrong, Err(CaError::KeyMismatch)));
    }
}
