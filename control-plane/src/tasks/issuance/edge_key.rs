//! The key of an order for a cell whose one edge keeps its keys: the edge makes it and gives the request.
//!
//! It is asked before the CA hears of the order, and before the order takes anything of the CA's limits. The request is durable
//! in the order's row; the edge gives the same again for the same order.

use portico_api::distribution::KeyRequest;
use portico_cert_store::{CellId, EdgeId, NamePattern};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::stopped::Stop;
use super::{Issuance, ORDERED_KEY, fail_point};
use crate::acme::AcmeError;
use crate::ca::{EdgeRequest, sha256};
use crate::limits::CERTIFICATE_REQUEST_BYTES_MAX;
use crate::store::order::{OrderRow, OrderState};
use crate::store::{cell, compromise, edge_key, group, to_word};

/// Gets the request of an order from its edge; no edge to ask is a wait.
pub(super) async fn ask(issuance: &Issuance, row: &OrderRow) -> Result<(), Stop> {
    let mut read = issuance.parts.store.read().await?;
    let cell = group::cell_of_lineage(&mut read, row.lineage).await?;
    drop(read);
    let wanted = KeyRequest {
        order_id: row.id.to_string(),
        names: row.names.clone(),
        key_type: to_word(&ORDERED_KEY)?,
    };
    let outcome = issuance.fleet.request_key(&cell, wanted).await;
    let Some((edge, csr)) = outcome.requests.first() else {
        let text = no_key(&cell, &outcome.words());
        // One that the CA has must not wait for ever: those of other cells for the same names would.
        let is_planned = row.state == OrderState::Planned;
        return Err(if is_planned { Stop::NotYet(text) } else { AcmeError::order_ended(&text).into() });
    };
    fail_point::reach("order.key_made");
    let refused = |why: &str| {
        let text =
            format!("edge {edge} of cell {cell} keeps its keys; its request for this one is refused: {why}");
        tracing::error!(order = %row.id, text, "an edge's certificate request is not taken");
        Stop::NotYet(text)
    };
    let spki_sha256 = check(csr, &row.names).map_err(|why| refused(&why))?;
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    if compromise::is_compromised(&mut tx, &spki_sha256).await? {
        return Err(refused("its key was reported compromised"));
    }
    if edge_key::is_used(&mut tx, &spki_sha256, row.id).await? {
        return Err(refused("its key is that of another certificate or order"));
    }
    let epoch = cell::newest_epoch(&mut tx, &cell).await?.unwrap_or(row.cell_key_epoch);
    edge_key::put_request(&mut tx, row.id, csr, &spki_sha256, epoch, now).await?;
    tx.commit().await?;
    fail_point::reach("order.key_recorded");
    Ok(())
}

/// Why nobody makes the key, for people.
fn no_key(cell: &CellId, words: &[(EdgeId, Option<String>)]) -> String {
    let why = match words.first() {
        None => format!("no edge has joined it; make a token with `portico edge join --cell {cell}`"),
        Some((edge, why)) => format!("{edge}: {}", why.as_deref().unwrap_or("its answer holds no request")),
    };
    format!("the edge of cell {cell} makes the key and keeps it, and cannot be asked now: {why}")
}

/// A P-256 request for exactly these names, signed with its key, and nothing else; answers the SHA-256 of the public key.
fn check(csr: &[u8], names: &[String]) -> Result<[u8; 32], String> {
    EdgeRequest::parse_within(csr, CERTIFICATE_REQUEST_BYTES_MAX).map_err(|error| error.to_string())?;
    let malformed = || "it is not PKCS#10 in DER".to_owned();
    let (_, request) = X509CertificationRequest::from_der(csr).map_err(|_| malformed())?;
    let info = &request.certification_request_info;
    if info.subject.iter().next().is_some() {
        return Err("it names a subject".to_owned());
    }
    let mut asked = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension else {
            return Err("it asks for more than names".to_owned());
        };
        for name in &alternative.general_names {
            let GeneralName::DNSName(name) = name else {
                return Err("it asks for a name that is no host's".to_owned());
            };
            asked.push(NamePattern::parse(name).map_err(|error| error.to_string())?.to_string());
        }
    }
    asked.sort();
    let mut wanted = names.to_vec();
    wanted.sort();
    if asked != wanted {
        return Err(format!("it is for {} names that are not the order's", asked.len()));
    }
    Ok(sha256(info.subject_pki.raw))
}

#[cfg(test)]
mod tests {
    use portico_cert_store::{KeyType, PrivateKey};

    use super::*;

    fn csr(key_type: KeyType, names: &[&str]) -> (PrivateKey, Vec<u8>) {
        let key = PrivateKey::generate(key_type).unwrap();
        let names: Vec<NamePattern> = names.iter().map(|name| NamePattern::parse(name).unwrap()).collect();
        let csr = key.csr(&names).unwrap();
        (key, csr)
    }

    #[test]
    fn only_a_request_for_exactly_the_orders_names_is_taken() {
        let names = ["*.shop.test", "shop.test"].map(str::to_owned);
        let (key, good) = csr(KeyType::EcdsaP256, &["shop.test", "*.shop.test"]);
        assert_eq!(check(&good, &names), Ok(key.spki_sha256()));
        for other in
            [&["shop.test"][..], &["shop.test", "*.shop.test", "rival.test"], &["shop.test", "rival.test"]]
        {
            let (_, bad) = csr(KeyType::EcdsaP256, other);
            assert!(check(&bad, &names).unwrap_err().contains("not the order's"), "{other:?}");
        }
        let (_, other_kind) = csr(KeyType::EcdsaP384, &["shop.test", "*.shop.test"]);
        assert!(check(&other_kind, &names).unwrap_err().contains("P-256"));
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(check(&forged, &names).unwrap_err().contains("signature"));
        assert!(check(&good[..good.len() - 1], &names).is_err() && check(b"", &names).is_err());
        let refusal = |bytes: usize| check(&vec![0x30; bytes], &names).unwrap_err();
        assert!(!refusal(CERTIFICATE_REQUEST_BYTES_MAX).contains("larger"), "the bound itself");
        assert!(refusal(CERTIFICATE_REQUEST_BYTES_MAX + 1).contains("larger"));
    }

    #[test]
    fn a_request_that_asks_for_more_is_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["shop.test".to_owned()];
        let of = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::new(names.to_vec()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            change(&mut params);
            check(params.serialize_request(&key).unwrap().der(), &names)
        };
        of(&|_| {}).unwrap();
        let subject = of(&|params| params.distinguished_name.push(rcgen::DnType::CommonName, "other.test"));
        assert!(subject.unwrap_err().contains("subject"));
        let usage = of(&|params| params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign]);
        assert!(usage.unwrap_err().contains("more than names"));
        let address = of(&|params| {
            params.subject_alt_names.push(rcgen::SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        });
        assert!(address.unwrap_err().contains("no host's"));
    }
}
