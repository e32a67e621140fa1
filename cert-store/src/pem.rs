//! Certificates as text (RFC 7468): the one place that reads them, because a private key may stand beside them.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{Error, PemObject as _};

/// What is wrong with a PEM text, in words that hold none of its bytes: a text that has lost its line breaks is one line,
/// and whoever repeats that line in a log has told the key in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemFault {
    #[error("a section does not end with an END line of its own; the line breaks may be lost")]
    NoEnd,
    #[error("a line that begins a section is damaged")]
    Start,
    #[error("a section's content is damaged")]
    Content,
}

impl PemFault {
    fn of(error: &Error) -> Self {
        if matches!(error, Error::MissingSectionEnd { .. }) {
            Self::NoEnd
        } else if matches!(error, Error::IllegalSectionStart { .. }) {
            Self::Start
        } else {
            Self::Content
        }
    }
}

/// The certificates of a PEM text, in their order; other sections, such as a key, are passed over.
///
/// # Errors
/// [`PemFault`] in place of a section, after which nothing more comes.
pub fn pem_certificates(pem: &[u8]) -> impl Iterator<Item = Result<CertificateDer<'static>, PemFault>> {
    let mut sections = CertificateDer::pem_slice_iter(pem);
    let mut failed = false;
    std::iter::from_fn(move || {
        let section = if failed { None } else { sections.next() }?;
        failed = section.is_err();
        Some(section.map_err(|error| PemFault::of(&error)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_tells_nothing_of_the_text() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let certificate =
            rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap().cert.pem();
        let whole = format!("{key}{certificate}");
        assert_eq!(pem_certificates(whole.as_bytes()).filter(Result::is_ok).count(), 1);
        let faults = [
            (whole.replace('\n', ""), PemFault::NoEnd),
            (whole.replace('\n', " "), PemFault::NoEnd),
            (key.replacen("KEY-----", "KEY", 1), PemFault::Start),
            (certificate.replacen('\n', "\n*", 1), PemFault::Content),
        ];
        for (text, fault) in faults {
            let found: Vec<_> = pem_certificates(text.as_bytes()).collect();
            assert_eq!(found.last(), Some(&Err(fault)), "{text}");
        }
    }
}
