//! The internal CA: it names edges, and the control plane to edges.
//!
//! One P-256 authority for a fleet, made at the first start, ten years valid; its key is kept sealed in the database
//! and opened once at start. It signs two kinds of leaf: an edge's identity (client authentication, URI SAN
//! `portico://edge/<edge id>`, from a CSR whose key never leaves the edge) and the distribution listener's own
//! certificate (server authentication, key in memory only, see [`ServerIdentity`]).
//!
//! Deliberately absent: revocation lists. The control plane is the only party that edges' certificates are shown to,
//! and it asks its own table of edges whether an identity still counts.

mod origin_authority;
mod request;
mod server_identity;
mod signing_key;

pub use origin_authority::{ORIGIN_IDENTITY_LIFETIME, OriginAuthority};
pub use request::{CSR_BYTES_MAX, EdgeRequest, RequestError};
pub use server_identity::{SERVER_DNS_NAME, ServerIdentity};

use aws_lc_rs::digest;
use portico_api::distribution::EDGE_URI_PREFIX;
use portico_cert_store::EdgeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use signing_key::P256Key;

/// How long the authority itself is valid: ten years.
pub const AUTHORITY_LIFETIME: Duration = Duration::days(3653);
/// How long an edge's identity and the listener's certificate are valid, unless the configuration says otherwise.
pub const IDENTITY_LIFETIME: Duration = Duration::days(30);
/// Leaves begin this much in the past, for edges whose clock is slow.
const BACKDATE: Duration = Duration::minutes(5);

/// The fleet's own certificate authority, ready to sign.
pub struct InternalCa {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, P256Key>,
}

impl std::fmt::Debug for InternalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InternalCa").field("fingerprint", &self.fingerprint_hex()).finish_non_exhaustive()
    }
}

/// A leaf that was just signed.
#[derive(Clone, Debug)]
pub struct IssuedIdentity {
    pub certificate: CertificateDer<'static>,
    /// Lower-case hex.
    pub serial: String,
    pub not_after: OffsetDateTime,
}

/// What went wrong with the internal CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(
        "the internal CA's stored certificate or key is damaged ({0}): restore the database from a backup"
    )]
    Damaged(String),
    #[error(
        "the stored key does not belong to the internal CA's certificate: restore the database from a backup"
    )]
    KeyMismatch,
    #[error("signing failed")]
    Signing(#[from] rcgen::Error),
    #[error("the cryptographic library refused to make a key")]
    Crypto,
}

impl InternalCa {
    /// Makes a new authority; the second value is its key as PKCS#8, to be sealed by the caller.
    pub fn generate(now: OffsetDateTime) -> Result<(Self, Zeroizing<Vec<u8>>), CaError> {
        let (key, pkcs8) = P256Key::generate()?;
        // Two fleets' authorities must not share a name: a client may hold both.
        let name = format!("Portico internal CA {}", hex::encode(&key.key_hash()[..8]));
        let params = authority_params(&name, now);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok((Self { certificate, issuer: Issuer::new(params, key) }, pkcs8))
    }

    /// Loads a stored authority.
    pub fn from_stored(certificate_der: Vec<u8>, key_pkcs8: &[u8]) -> Result<Self, CaError> {
        let key = P256Key::from_pkcs8(key_pkcs8)?;
        let (name, public_key, not_before) = {
            let (_, parsed) =
                X509Certificate::from_der(&certificate_der).map_err(|e| CaError::Damaged(e.to_string()))?;
            let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
            let name = name.ok_or_else(|| CaError::Damaged("no common name".to_owned()))?.to_owned();
            (name, parsed.public_key().subject_public_key.data.to_vec(), parsed.validity().not_before)
        };
        if public_key != key.public_point() {
            return Err(CaError::KeyMismatch);
        }
        let params = authority_params(&name, not_before.to_datetime());
        Ok(Self { certificate: CertificateDer::from(certificate_der), issuer: Issuer::new(params, key) })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate: the last part of a join token, by which a joining edge knows whom it talks to.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    pub fn fingerprint_hex(&self) -> String {
        hex::encode(self.fingerprint())
    }

    /// Signs an edge's identity for the key in `request`.
    pub fn sign_edge(
        &self,
        request: &EdgeRequest,
        edge: EdgeId,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<IssuedIdentity, CaError> {
        let uri = format!("{EDGE_URI_PREFIX}{edge}");
        let mut params = leaf_params(&edge.to_string(), now, lifetime);
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issued(params.signed_by(request, &self.issuer)?.der().clone())
    }

    /// Signs the distribution listener's certificate for `names` (DNS names and IP addresses).
    fn sign_server(
        &self,
        key: &P256Key,
        names: &[String],
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<IssuedIdentity, CaError> {
        let mut params = leaf_params(SERVER_DNS_NAME, now, lifetime);
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        issued(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

/// The edge that a (verified) client certificate names; `None` for any other certificate.
pub fn edge_of_certificate(der: &[u8]) -> Option<EdgeId> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut edges = names.value.general_names.iter().filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        uri.strip_prefix(EDGE_URI_PREFIX)?.parse().ok()
    });
    let edge = edges.next()?;
    // A certificate that claims to be two edges is neither.
    edges.next().is_none().then_some(edge)
}

fn authority_params(common_name: &str, not_before: OffsetDateTime) -> CertificateParams {
    let mut params = base_params(common_name);
    params.not_before = not_before;
    params.not_after = not_before + AUTHORITY_LIFETIME;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(common_name: &str, now: OffsetDateTime, lifetime: Duration) -> CertificateParams {
    let mut params = base_params(common_name);
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn base_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(common_name.to_owned()));
    params
}

fn issued(certificate: CertificateDer<'static>) -> Result<IssuedIdentity, CaError> {
    let (serial, not_after) = {
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|e| CaError::Damaged(e.to_string()))?;
        (hex::encode(parsed.raw_serial()), parsed.validity().not_after.to_datetime())
    };
    Ok(IssuedIdentity { certificate, serial, not_after })
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> (P256Key, EdgeRequest) {
        let (key, _) = P256Key::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        (key, EdgeRequest::parse(csr.der()).unwrap())
    }

    #[test]
    fn edge_identity_carries_its_uri_and_chains_to_the_authority() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (ca, _) = InternalCa::generate(now).unwrap();
        let edge = EdgeId::generate();
        let issued = ca.sign_edge(&request().1, edge, now, IDENTITY_LIFETIME).unwrap();
        assert_eq!(edge_of_certificate(&issued.certificate), Some(edge));
        assert_eq!(issued.not_after, now + IDENTITY_LIFETIME);
        let anchor = webpki::anchor_from_trusted_cert(ca.certificate()).unwrap();
        let leaf = webpki::EndEntityCert::try_from(&issued.certificate).unwrap();
        let at = |t: OffsetDateTime| {
            rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
                t.unix_timestamp().cast_unsigned(),
            ))
        };
        let verify = |time, usage| {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                std::slice::from_ref(&anchor),
                &[],
                at(time),
                usage,
                None,
                None,
            )
            .map(|_| ())
        };
        verify(now, webpki::KeyUsage::client_auth()).unwrap();
        verify(now, webpki::KeyUsage::server_auth()).unwrap_err();
        verify(now + IDENTITY_LIFETIME + Duration::seconds(1), webpki::KeyUsage::client_auth()).unwrap_err();
    }

    #[test]
    fn stored_authority_signs_what_the_first_one_vouches_for() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (first, pkcs8) = InternalCa::generate(now).unwrap();
        let again = InternalCa::from_stored(first.certificate().to_vec(), &pkcs8).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        let issued = again.sign_edge(&request().1, EdgeId::generate(), now, IDENTITY_LIFETIME).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
        let (_, authority) = X509Certificate::from_der(first.certificate()).unwrap();
        assert_eq!(leaf.issuer(), authority.subject());
        leaf.verify_signature(Some(authority.public_key())).unwrap();
        let (_, other) = P256Key::generate().unwrap();
        assert!(matches!(
            InternalCa::from_stored(first.certificate().to_vec(), &other),
            Err(CaError::KeyMismatch)
        ));
    }

    #[test]
    fn certificate_without_exactly_one_edge_uri_is_nobody() {
        let (key, _) = P256Key::generate().unwrap();
        for uris in [vec![], vec![EdgeId::generate(), EdgeId::generate()]] {
            let mut params = base_params("x");
            params.subject_alt_names = uris
                .iter()
                .map(|id| SanType::URI(format!("{EDGE_URI_PREFIX}{id}").try_into().unwrap()))
                .collect();
            assert_eq!(edge_of_certificate(params.self_signed(&key).unwrap().der()), None);
        }
        assert_eq!(edge_of_certificate(b"not a certificate"), None);
    }
}
