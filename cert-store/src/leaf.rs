//! What the SNI index needs of a leaf that was parsed in full before: names, dates, kind of key.
//!
//! An edge reads 100,000 of them back from its own disk at a start, each behind a checksum, and a full parse would be the
//! largest part of that time. So this walks the DER (RFC 5280 section 4.1) and looks into four fields. It trusts no byte
//! all the same: whatever it cannot follow is None, and the caller then parses in full.
//! Deliberately absent: everything else in a certificate, and long forms that no CA issues.

use crate::certificate::{CERTIFICATE_NAMES_MAX, KeyType, served_name};
use crate::domain_name::NamePattern;

/// The part of a leaf's facts that a credential keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafSummary {
    pub(crate) names: Vec<NamePattern>,
    /// Unix seconds.
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) key_type: KeyType,
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// Explicit tags of TBSCertificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// GeneralName's dNSName.
const DNS_NAME: u8 = 0x82;

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// id-ecPublicKey with the curve P-256 (RFC 5480 section 2.1.1), as the whole AlgorithmIdentifier's content.
const EC_P256: &[u8] = &[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07,
];

impl LeafSummary {
    pub(crate) fn read(leaf: &[u8]) -> Option<Self> {
        let mut outer = Der(leaf);
        let mut certificate = Der(outer.take(SEQUENCE)?);
        let mut tbs = Der(certificate.take(SEQUENCE)?);
        tbs.take(VERSION)?;
        tbs.take(INTEGER)?; // serial
        tbs.take(SEQUENCE)?; // signature algorithm
        tbs.take(SEQUENCE)?; // issuer
        let mut validity = Der(tbs.take(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        tbs.take(SEQUENCE)?; // subject
        let key_type = key_type(&mut tbs)?;
        let mut extensions = Der(Der(tbs.take(EXTENSIONS)?).take(SEQUENCE)?);
        let names = loop {
            let mut extension = Der(extensions.take(SEQUENCE)?);
            if extension.take(OBJECT_ID)? != SUBJECT_ALT_NAME {
                continue;
            }
            if extension.0.first() == Some(&BOOLEAN) {
                extension.take(BOOLEAN)?; // critical
            }
            let mut value = Der(extension.take(OCTET_STRING)?);
            break names(value.take(SEQUENCE)?)?;
        };
        outer.0.is_empty().then_some(Self { names, not_before, not_after, key_type })
    }
}

fn key_type(tbs: &mut Der<'_>) -> Option<KeyType> {
    let whole = tbs.0;
    let mut spki = Der(tbs.take(SEQUENCE)?);
    let algorithm = spki.take(SEQUENCE)?;
    spki.take(BIT_STRING)?;
    if algorithm == EC_P256 {
        return Some(KeyType::EcdsaP256);
    }
    KeyType::of_spki_der(whole.get(..whole.len() - tbs.0.len())?).ok()
}

fn names(general_names: &[u8]) -> Option<Vec<NamePattern>> {
    let mut rest = Der(general_names);
    let mut names = Vec::with_capacity(1);
    let mut entries = 0;
    while !rest.0.is_empty() {
        let (tag, value) = rest.next()?;
        entries += 1;
        if tag == DNS_NAME {
            names.extend(served_name(std::str::from_utf8(value).ok()?));
        }
    }
    (!names.is_empty() && entries <= CERTIFICATE_NAMES_MAX).then_some(names)
}

/// What is left of some DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, value) = self.next()?;
        (found == tag).then_some(value)
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => rest.split_first().map(|(byte, rest)| (usize::from(*byte), rest))?,
            0x82 => {
                let (bytes, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*bytes)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    /// A time to the second in UTC, the only form of RFC 5280 section 4.1.2.5.
    fn time(&mut self) -> Option<u64> {
        let (tag, text) = self.next()?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = digits(text)?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (century, rest) = digits(text)?;
                let (year, rest) = digits(rest)?;
                (century * 100 + year, rest)
            }
            _ => return None,
        };
        let (month, rest) = digits(rest)?;
        let (day, rest) = digits(rest)?;
        let (hour, rest) = digits(rest)?;
        let (minute, rest) = digits(rest)?;
        let (second, rest) = digits(rest)?;
        let in_range =
            (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
        if rest != b"Z" || year < 1970 || !in_range {
            return None;
        }
        Some(((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
    }
}

fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let (two, rest) = text.split_first_chunk::<2>()?;
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    Some((digit(two[0])? * 10 + digit(two[1])?, rest))
}

/// In the Gregorian calendar, from 1970 on; years begin in March here, so that the leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_years = year * 365 + year / 4 - year / 100 + year / 400;
    of_years + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::certificate::CertificateFacts;

    fn leaf(
        names: &[&str],
        algorithm: &'static rcgen::SignatureAlgorithm,
        not_after: (i32, u8, u8),
    ) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.not_before = rcgen::date_time_ymd(1999, 12, 31);
        parameters.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    fn of_full_parse(leaf: &[u8]) -> LeafSummary {
        let facts = CertificateFacts::of_der(leaf).unwrap();
        LeafSummary {
            names: facts.names,
            not_before: facts.not_before.as_secs(),
            not_after: facts.not_after.as_secs(),
            key_type: facts.key_type,
        }
    }

    #[test]
    fn the_short_way_reads_what_the_full_parse_reads() {
        let many: Vec<String> = (0..100).map(|n| format!("n{n}.example.org")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for names in [&["www.example.org"][..], &["*.example.org", "example.org", "192.0.2.1"], &many] {
            for algorithm in
                [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
            {
                for not_after in [(2024, 2, 29), (2027, 1, 1), (2049, 12, 31), (2050, 1, 1), (2400, 3, 1)] {
                    let leaf = leaf(names, algorithm, not_after);
                    assert_eq!(
                        LeafSummary::read(&leaf),
                        Some(of_full_parse(&leaf)),
                        "{names:?} {not_after:?}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_leaves_give_nothing_or_something_but_no_panic(at in 0_usize..400, byte: u8, cut in 0_usize..600) {
            let mut leaf = leaf(&["www.example.org"], &rcgen::PKCS_ECDSA_P256_SHA256, (2030, 1, 1));
            let end = leaf.len();
            leaf[at % end] = byte;
            let _read = LeafSummary::read(&leaf[..cut.min(end)]);
            let _read = LeafSummary::read(&leaf);
        }
    }
}
