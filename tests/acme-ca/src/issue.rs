//! The CA's hierarchy and what it signs: root, intermediate, leaves; reading of CSRs.
//!
//! Root and intermediate are made at each start and live in memory only. Absent: CRL, OCSP, CT.

use std::collections::BTreeSet;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::clock::Moment;
use crate::jws::PublicKey;
use crate::problem::{Kind, Problem};

/// The keys and certificates that sign.
pub(crate) struct Hierarchy {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
    /// Signs nothing; stands in the chain when a wrong one is asked for.
    stranger: CertifiedIssuer<'static, KeyPair>,
    /// The intermediate's name and key in a certificate that is over; likewise.
    expired: rcgen::Certificate,
}

/// A certificate signing request that passed all checks but those against the order.
#[derive(Debug)]
pub(crate) struct Csr {
    pub(crate) names: BTreeSet<String>,
    pub(crate) key: LeafKey,
}

/// The public key of a leaf.
#[derive(Clone, Debug)]
pub(crate) struct LeafKey {
    algorithm: &'static SignatureAlgorithm,
    raw: Vec<u8>,
}

/// How a leaf is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafPlan<'a> {
    pub(crate) names: &'a BTreeSet<String>,
    pub(crate) key: &'a LeafKey,
    pub(crate) not_before: Moment,
    pub(crate) not_after: Moment,
}

/// A signed leaf.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
}

/// Twenty years for the root: longer than any clock is moved.
const ROOT_DAYS: u64 = 20 * 365;
const INTERMEDIATE_DAYS: u64 = 10 * 365;
const DAY: Duration = Duration::from_secs(86_400);

impl Hierarchy {
    /// Makes new keys and certificates.
    ///
    /// # Errors
    /// Of the crypto library.
    pub(crate) fn generate(now: Moment) -> Result<Self, rcgen::Error> {
        let root_plan = ca_params("Portico Test Root", now, ROOT_DAYS, BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root_plan, KeyPair::generate()?)?;
        let plan =
            ca_params("Portico Test Intermediate", now, INTERMEDIATE_DAYS, BasicConstraints::Constrained(0));
        let mut over = plan.clone();
        over.not_after = now.minus(DAY / 2).date();
        let intermediate = CertifiedIssuer::signed_by(plan, KeyPair::generate()?, &root)?;
        let expired = over.signed_by(intermediate.key(), &root)?;
        let plan =
            ca_params("Portico Test Stranger", now, INTERMEDIATE_DAYS, BasicConstraints::Constrained(0));
        let stranger = CertifiedIssuer::signed_by(plan, KeyPair::generate()?, &root)?;
        Ok(Self { root, intermediate, stranger, expired })
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn intermediate_pem(&self) -> String {
        self.intermediate.pem()
    }

    pub(crate) fn stranger_pem(&self) -> String {
        self.stranger.pem()
    }

    pub(crate) fn expired_intermediate_pem(&self) -> String {
        self.expired.pem()
    }

    /// Signs a leaf with a random serial of 16 bytes, no common name, and key identifiers.
    ///
    /// # Errors
    /// Of the crypto library.
    pub(crate) fn sign(&self, plan: LeafPlan<'_>) -> Result<Leaf, rcgen::Error> {
        let names: Vec<String> = plan.names.iter().cloned().collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(random_serial());
        params.not_before = plan.not_before.date();
        params.not_after = plan.not_after.date();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(plan.key, &self.intermediate)?;
        Ok(Leaf { der: certificate.der().to_vec(), pem: certificate.pem() })
    }
}

impl std::fmt::Debug for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hierarchy").finish_non_exhaustive()
    }
}

impl Csr {
    /// Reads a DER request and checks its signature, names and key.
    ///
    /// # Errors
    /// `badCSR`.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, Problem> {
        let (rest, csr) = X509CertificationRequest::from_der(der)
            .map_err(|error| bad_csr(format!("not a certificate request: {error}")))?;
        if !rest.is_empty() {
            return Err(bad_csr("bytes after the certificate request"));
        }
        csr.verify_signature().map_err(|_| bad_csr("the signature of the request does not verify"))?;
        let info = &csr.certification_request_info;
        let mut names = BTreeSet::new();
        for attribute in info.subject.iter_common_name() {
            let name = attribute.as_str().map_err(|_| bad_csr("the common name is not text"))?;
            names.insert(name.to_ascii_lowercase());
        }
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                for name in &san.general_names {
                    let GeneralName::DNSName(name) = name else {
                        return Err(bad_csr("a subject alternative name that is not a DNS name"));
                    };
                    names.insert(name.to_ascii_lowercase());
                }
            }
        }
        if names.is_empty() {
            return Err(bad_csr("the request names nothing"));
        }
        Ok(Self { names, key: LeafKey::from_spki(&info.subject_pki)? })
    }
}

impl LeafKey {
    /// A fresh key that nobody holds, for the `wrong-key` fault.
    ///
    /// # Errors
    /// Of the crypto library.
    pub(crate) fn of_nobody() -> Result<Self, rcgen::Error> {
        let pair = KeyPair::generate()?;
        Ok(Self { algorithm: pair.algorithm(), raw: pair.public_key_raw().to_vec() })
    }

    /// Whether this is the public key that signs an account's requests.
    pub(crate) fn is_account_key(&self, key: &PublicKey) -> bool {
        match key {
            PublicKey::P256 { point } => self.raw == *point,
            PublicKey::Rsa { n, .. } => {
                // RSAPublicKey is SEQUENCE { INTEGER n, INTEGER e }: the modulus stands in it as it is.
                self.raw.windows(n.len()).any(|window| window == n)
            }
        }
    }

    fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, Problem> {
        let raw = spki.subject_public_key.data.to_vec();
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let curve = curve.map(|oid| oid.to_id_string());
        let bits = spki.parsed().map_err(|_| bad_csr("the public key is not understood"))?.key_size();
        let algorithm = match (spki.algorithm.algorithm.to_id_string().as_str(), curve.as_deref(), bits) {
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7"), 256) => &rcgen::PKCS_ECDSA_P256_SHA256,
            ("1.2.840.10045.2.1", Some("1.3.132.0.34"), 384) => &rcgen::PKCS_ECDSA_P384_SHA384,
            ("1.2.840.113549.1.1.1", _, 2048 | 3072 | 4096) => &rcgen::PKCS_RSA_SHA256,
            _ => return Err(bad_csr("the key must be P-256, P-384, or RSA of 2048, 3072 or 4096 bits")),
        };
        Ok(Self { algorithm, raw })
    }
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        &self.raw
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// The key of a certificate, read back from its DER.
///
/// # Errors
/// `malformed`.
pub(crate) fn certificate_key(der: &[u8]) -> Result<LeafKey, Problem> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|error| Problem::malformed(format!("not a certificate: {error}")))?;
    LeafKey::from_spki(certificate.public_key()).map_err(|problem| Problem::malformed(problem.detail))
}

fn ca_params(name: &str, now: Moment, days: u64, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // A serial in the name keeps the CAs of two starts apart in one trust store.
    let name = format!("{name} {}", &crate::token::random_token(6));
    params.distinguished_name.push(DnType::OrganizationName, "Portico Test CA (never trust)");
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(random_serial());
    params.not_before = now.minus(DAY).date();
    params.not_after = now.plus(DAY * u32::try_from(days).unwrap_or(u32::MAX)).date();
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// 16 bytes, positive and without a leading zero, so that its DER has always the same length.
fn random_serial() -> SerialNumber {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}

fn bad_csr(detail: impl Into<String>) -> Problem {
    Problem::new(Kind::BadCsr, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn request(names: &[&str], key: &KeyPair) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_leaf_has_the_csr_key_the_names_both_identifiers_and_no_common_name() {
        let now = Clock::default().now();
        let hierarchy = Hierarchy::generate(now).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = Csr::parse(&request(&["www.shop.test", "shop.test"], &key)).unwrap();
        let plan = LeafPlan { names: &csr.names, key: &csr.key, not_before: now, not_after: now.plus(DAY) };
        let leaf = hierarchy.sign(plan).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&leaf.der).unwrap();
        assert_eq!(certificate.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
        assert_eq!(certificate.raw_serial().len(), 16);
        assert_eq!(certificate.subject().iter().count(), 0);
        let san = certificate.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical);
        assert_eq!(san.value.general_names.len(), 2);
        let has = |wanted: &str| certificate.extensions().iter().any(|e| e.oid.to_id_string() == wanted);
        assert!(has("2.5.29.14") && has("2.5.29.35"), "subject or authority key identifier is missing");
        let intermediate = x509_parser::parse_x509_certificate(hierarchy.intermediate.der()).unwrap().1;
        certificate.verify_signature(Some(intermediate.public_key())).unwrap();
        let root = x509_parser::parse_x509_certificate(hierarchy.root.der()).unwrap().1;
        intermediate.verify_signature(Some(root.public_key())).unwrap();
    }

    #[test]
    fn wrong_requests_are_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&["shop.test"], &key);
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        for wrong in [&good[..good.len() - 1], &flipped, &request(&[], &key), &request(&["a.test"], &p521)] {
            assert_eq!(Csr::parse(wrong).unwrap_err().kind, Kind::BadCsr);
        }
        let with_address = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let with_address = with_address.serialize_request(&key).unwrap().der().to_vec();
        assert_eq!(Csr::parse(&with_address).unwrap_err().kind, Kind::BadCsr);
    }
}
