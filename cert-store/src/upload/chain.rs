//! The chain of an upload: order, links, dates, signatures, and what its leaf is good for.

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::error::X509Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{ED25519_REFUSED, UPLOADED_REMAINING_SECONDS_MIN, UploadFault, of_chain, unreadable};
use crate::certificate::{
    CERTIFICATE_BYTES_MAX, CHAIN_LENGTH_MAX, CertificateError, CertificateFacts, KeyType,
};

/// Hash functions that no longer hold: MD2, MD5, SHA-1 (RFC 9155; Baseline Requirements, section 7.1.3.2).
const BROKEN_SIGNATURES: [&str; 6] = [
    "1.2.840.113549.1.1.2",
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.3.14.3.2.29",
    "1.2.840.10045.4.1",
    "1.2.840.10040.4.3",
];
/// id-pe-acmeIdentifier (RFC 8737 section 6.1).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
/// id-pe-tlsfeature (RFC 7633 section 6).
const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";

/// Gives the chain as it may be served: leaf first, without a root at its end.
pub(super) fn check(
    mut found: Vec<CertificateDer<'static>>,
    roots: Option<&RootCertStore>,
    now: UnixTime,
) -> Result<Vec<CertificateDer<'static>>, UploadFault> {
    if found.is_empty() {
        return Err(of_chain(
            "not_pem",
            "holds no certificate in PEM; give the site's own first, then its intermediates",
        ));
    }
    if found.len() > CHAIN_LENGTH_MAX {
        let text = format!(
            "holds more than {CHAIN_LENGTH_MAX} certificates; give the site's own and its intermediates only"
        );
        return Err(of_chain("too_many", text));
    }
    let without_root = {
        check_no_duplicate(&found)?;
        let parsed = parse(&found)?;
        let last_is_root = parsed.len() > 1 && parsed.last().is_some_and(is_root);
        let length = parsed.len() - usize::from(last_is_root);
        check_order(&parsed[..length])?;
        check_signatures(&parsed[..length])?;
        check_one_root(&parsed[..length])?;
        check_dates(&parsed[..length], now)?;
        check_leaf(&parsed[0])?;
        length
    };
    check_key(&found[0])?;
    check_path(&found[..without_root], roots, now)?;
    found.truncate(without_root);
    Ok(found)
}

fn parse<'a>(found: &'a [CertificateDer<'static>]) -> Result<Vec<X509Certificate<'a>>, UploadFault> {
    let mut parsed = Vec::with_capacity(found.len());
    for (index, der) in found.iter().enumerate() {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(unreadable(&CertificateError::TooLarge { index, octets: der.len() }));
        }
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => parsed.push(certificate),
            Ok(_) | Err(_) => {
                let text =
                    format!("certificate {} cannot be read; give the file as the CA issued it", index + 1);
                return Err(of_chain("invalid_certificate", text));
            }
        }
    }
    Ok(parsed)
}

fn check_no_duplicate(found: &[CertificateDer<'static>]) -> Result<(), UploadFault> {
    for (index, der) in found.iter().enumerate() {
        if let Some(first) = found[..index].iter().position(|before| before == der) {
            let text = format!("holds certificate {} again as number {}; give it once", first + 1, index + 1);
            return Err(of_chain("duplicate_certificate", text));
        }
    }
    Ok(())
}

/// Nothing may stand behind one that signed itself. A self-issued one that another key signed, as when an authority changes
/// its key (RFC 4210 section 4.4), is an intermediate.
fn check_one_root(without_root: &[X509Certificate<'_>]) -> Result<(), UploadFault> {
    let signed_itself = |certificate: &X509Certificate<'_>| {
        is_root(certificate) && certificate.verify_signature(None).is_ok()
    };
    let Some(root) = without_root.iter().position(signed_itself) else { return Ok(()) };
    let text =
        format!("goes on behind certificate {}, a root; end with that one, or leave it out too", root + 1);
    Err(of_chain("behind_root", text))
}

fn is_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.is_ca() && certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// Each certificate has to be that of the one before's issuer.
fn check_order(chain: &[X509Certificate<'_>]) -> Result<(), UploadFault> {
    if chain[0].is_ca() {
        let text = match chain.iter().position(|certificate| !certificate.is_ca()) {
            Some(leaf) => format!(
                "begins with the certificate of an authority; the site's own, which is number {}, goes first, then the one \
                 that issued it, and so on",
                leaf + 1
            ),
            None => "holds certificates of authorities only; the site's own goes first".to_owned(),
        };
        return Err(of_chain("wrong_order", text));
    }
    for (index, pair) in chain.windows(2).enumerate() {
        let [child, parent] = pair else { continue };
        if child.issuer().as_raw() == parent.subject().as_raw() {
            continue;
        }
        let (child, place) = (index + 1, index + 2);
        let issuer = chain.iter().position(|other| other.subject().as_raw() == pair[0].issuer().as_raw());
        let text = match issuer {
            Some(issuer) => format!(
                "is out of order: certificate {child} was issued by number {}, which belongs behind it",
                issuer + 1
            ),
            None => format!(
                "does not hold together: certificate {place} (`{}`) did not issue certificate {child}, `{}` did; put \
                 that one there",
                pair[1].subject(),
                pair[0].issuer()
            ),
        };
        return Err(of_chain(if issuer.is_some() { "wrong_order" } else { "wrong_issuer" }, text));
    }
    Ok(())
}

fn check_signatures(chain: &[X509Certificate<'_>]) -> Result<(), UploadFault> {
    for (index, certificate) in chain.iter().enumerate() {
        let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
        if BROKEN_SIGNATURES.contains(&algorithm.as_str()) {
            let text = format!(
                "certificate {} is signed with SHA-1 or older, which clients refuse; have it issued anew",
                index + 1
            );
            return Err(of_chain("weak_signature", text));
        }
    }
    for (index, pair) in chain.windows(2).enumerate() {
        // What this reader has no algorithm for (P-521) is left to the check of the path.
        if matches!(
            pair[0].verify_signature(Some(pair[1].public_key())),
            Err(X509Error::SignatureVerificationError)
        ) {
            let (child, parent) = (index + 1, index + 2);
            let text = format!(
                "does not hold together: certificate {parent} has the name of certificate {child}'s issuer and not its \
                 key; take the intermediate that the CA gave with this certificate"
            );
            return Err(of_chain("wrong_issuer", text));
        }
    }
    Ok(())
}

fn check_dates(chain: &[X509Certificate<'_>], now: UnixTime) -> Result<(), UploadFault> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    for (index, certificate) in chain.iter().enumerate() {
        let validity = certificate.validity();
        let number = index + 1;
        if validity.not_before.timestamp() > now {
            let text =
                format!("certificate {number} is valid only from {} on; upload it then", validity.not_before);
            return Err(of_chain("not_yet_valid", text));
        }
        if validity.not_after.timestamp() < now {
            let what =
                if index == 0 { "have a new one issued" } else { "take the CA's present intermediate" };
            let text = format!("certificate {number} expired at {}; {what}", validity.not_after);
            return Err(of_chain("expired", text));
        }
    }
    let remaining = chain[0].validity().not_after.timestamp() - now;
    if remaining < UPLOADED_REMAINING_SECONDS_MIN.cast_signed() {
        let text = format!("ends in {remaining} s, too soon to be of use; have a new one issued");
        return Err(of_chain("ends_too_soon", text));
    }
    Ok(())
}

/// What a leaf must be good for, and what would make it useless or worse here.
fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), UploadFault> {
    let unreadable =
        |_| of_chain("invalid_certificate", "certificate 1 holds an extension that cannot be read");
    let usage = leaf.key_usage().map_err(unreadable)?;
    let purposes = leaf.extended_key_usage().map_err(unreadable)?;
    if usage.is_some_and(|usage| !usage.value.digital_signature()) {
        let text = "certificate 1 may not sign handshakes (its key usage lacks digitalSignature); have one issued for TLS \
                    servers";
        return Err(of_chain("wrong_usage", text));
    }
    if purposes.is_some_and(|purposes| !purposes.value.server_auth && !purposes.value.any) {
        let text = "certificate 1 is not for servers (its extended key usage lacks serverAuth); have one issued for TLS \
                    servers";
        return Err(of_chain("wrong_usage", text));
    }
    for extension in leaf.extensions() {
        match extension.oid.to_id_string().as_str() {
            ACME_IDENTIFIER => {
                let text = "certificate 1 answers a CA's validation (acmeIdentifier) and is for no visitor";
                return Err(of_chain("acme_identifier", text));
            }
            TLS_FEATURE => {
                let text = "certificate 1 demands a stapled OCSP answer (must-staple), which is not given here, so that \
                            browsers would refuse it; have one issued without";
                return Err(of_chain("must_staple", text));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn check_key(leaf: &CertificateDer<'_>) -> Result<(), UploadFault> {
    let facts = CertificateFacts::of_der(leaf).map_err(|error| {
        let CertificateError::KeyType { found } = &error else { return unreadable(&error) };
        let text = format!(
            "certificate 1 has a key that is too weak or that clients do not know ({found}); use RSA of 2048, 3072 or \
             4096 bits, or ECDSA P-256 or P-384"
        );
        of_chain("weak_key", text)
    })?;
    if facts.key_type == KeyType::Ed25519 {
        return Err(of_chain("key_unsupported", format!("the certificate's key {ED25519_REFUSED}")));
    }
    Ok(())
}

/// The path as clients build it. Without `roots` its own end is what it has to lead to.
fn check_path(
    chain: &[CertificateDer<'static>],
    roots: Option<&RootCertStore>,
    now: UnixTime,
) -> Result<(), UploadFault> {
    let (leaf, rest) = chain.split_first().expect("the chain was found not to be empty");
    let broken = |error: &webpki::Error| of_chain("invalid_chain", format!("is refused by clients: {error}"));
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|error| broken(&error))?;
    let verify = |anchors: &[rustls_pki_types::TrustAnchor<'_>], between: &[CertificateDer<'static>]| {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            anchors,
            between,
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .map(|_| ())
    };
    match (roots, rest.split_last()) {
        (Some(roots), _) => verify(&roots.roots, rest).map_err(|error| {
            if error == webpki::Error::UnknownIssuer { untrusted(rest.len()) } else { broken(&error) }
        }),
        (None, Some((top, between))) => {
            let anchor = webpki::anchor_from_trusted_cert(top).map_err(|error| broken(&error))?;
            verify(&[anchor], between).map_err(|error| broken(&error))
        }
        // One of an authority that is not in the chain, or its own: nothing to build.
        (None, None) => Ok(()),
    }
}

fn untrusted(intermediates: usize) -> UploadFault {
    let missing = if intermediates == 0 {
        "the CA's intermediate is missing: append it (CAs call the whole file fullchain or bundle)"
    } else {
        "append the missing intermediates"
    };
    of_chain("untrusted", format!("leads to no root that clients trust; {missing}"))
}
