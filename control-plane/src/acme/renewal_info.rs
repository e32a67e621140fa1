//! Renewal information (RFC 9773): what a certificate is called, and when its CA suggests to renew it.
//!
//! Asked by our own client rather than by instant_acme, which fails on an answer without `Retry-After` and needs an
//! account for what anybody may ask.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use instant_acme::CertificateIdentifier;
use portico_cert_store::CertificateChain;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::{AcmeError, cut};
use super::http::{CaHttp, observe};

/// The longest explanation URL that is kept.
pub const EXPLANATION_URL_BYTES_MAX: usize = 500;

/// What a CA calls one of its certificates: authority key identifier and serial (RFC 9773 section 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateId(String);

/// The CA's suggestion, as it came: nothing about the window is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// Unix milliseconds.
    pub start_ms: i64,
    pub end_ms: i64,
    /// A page that says why; a http(s) URL of at most [`EXPLANATION_URL_BYTES_MAX`].
    pub explanation_url: Option<String>,
    pub retry_after: Option<Duration>,
}

/// Why there is no suggestion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSuggestion {
    /// The CA's directory has no `renewalInfo`.
    NotOffered,
    /// The CA does not know the certificate, or its answer is no renewal information.
    Unusable { text: String, retry_after: Option<Duration> },
    /// No answer, or one of a CA in trouble.
    Unavailable { text: String, retry_after: Option<Duration> },
}

impl CertificateId {
    /// Of the leaf of a chain in PEM; `None` for one without an authority key identifier.
    pub fn of_chain(pem: &str) -> Option<Self> {
        let chain = CertificateChain::parse_pem(pem.as_bytes()).ok()?;
        let id = CertificateIdentifier::try_from(chain.leaf()).ok()?;
        Some(Self(id.to_string()))
    }

    /// One that was written down before; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (authority, serial) = text.split_once('.')?;
        let is_base64url = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        (is_base64url(authority) && is_base64url(serial)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For an order; valid by construction.
    pub(super) fn identifier(&self) -> CertificateIdentifier<'_> {
        let (authority, serial) = self.0.split_once('.').unwrap_or((&self.0, ""));
        CertificateIdentifier { authority_key_identifier: authority.into(), serial: serial.into() }
    }
}

impl CaHttp {
    /// Asks when a certificate should be renewed.
    ///
    /// # Errors
    /// [`NoSuggestion`].
    pub async fn renewal_info(&self, id: &CertificateId) -> Result<Suggestion, NoSuggestion> {
        if self.renewal_info_url().is_none() {
            self.read_directory().await.map_err(|error| unavailable(&error, None))?;
        }
        let Some(base) = self.renewal_info_url() else { return Err(NoSuggestion::NotOffered) };
        let url = format!("{}/{}", base.trim_end_matches('/'), id.as_str());
        let request =
            Request::get(url).body(Bytes::new()).map_err(|error| unusable(&error.to_string(), None))?;
        let (answer, observed) = observe(self.ask(request)).await;
        let retry_after = observed.retry_after;
        let answer = answer.map_err(|error| unavailable(&error, retry_after))?;
        match answer.status() {
            StatusCode::OK => read(answer.body(), retry_after),
            status @ (StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::GONE) => {
                // It does not know the certificate, or tells of them elsewhere by now.
                self.read_directory_at_times().await;
                Err(unusable(&format!("the CA answers {status}"), retry_after))
            }
            status => {
                let text = format!("the CA answers {status}");
                Err(NoSuggestion::Unavailable { text, retry_after })
            }
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    suggested_window: SuggestedWindow,
    #[serde(rename = "explanationURL")]
    explanation_url: Option<String>,
}

#[derive(serde::Deserialize)]
struct SuggestedWindow {
    start: String,
    end: String,
}

fn read(body: &[u8], retry_after: Option<Duration>) -> Result<Suggestion, NoSuggestion> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| unusable("the answer is no renewal information", retry_after))?;
    let time = |text: &str| {
        let at = OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| unusable(&format!("{text:?} is no time"), retry_after))?;
        Ok(at.unix_timestamp().saturating_mul(1000))
    };
    let is_url = |url: &String| {
        url.len() <= EXPLANATION_URL_BYTES_MAX
            && (url.starts_with("https://") || url.starts_with("http://"))
            && url.bytes().all(|byte| byte.is_ascii_graphic())
    };
    Ok(Suggestion {
        start_ms: time(&answer.suggested_window.start)?,
        end_ms: time(&answer.suggested_window.end)?,
        explanation_url: answer.explanation_url.filter(is_url),
        retry_after,
    })
}

fn unusable(text: &str, retry_after: Option<Duration>) -> NoSuggestion {
    NoSuggestion::Unusable { text: cut(text), retry_after }
}

fn unavailable(error: &AcmeError, retry_after: Option<Duration>) -> NoSuggestion {
    NoSuggestion::Unavailable { text: cut(&error.detail), retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9773 section 4.1.
    const NAMED: &str = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE";

    #[test]
    fn a_certificate_id_is_two_parts_of_base64url() {
        let id = CertificateId::parse(NAMED).unwrap();
        assert_eq!(id.identifier().to_string(), NAMED);
        for wrong in ["", ".", "a.", ".b", "a.b.c", "a/../x.b", "a b.c", "aYhb"] {
            assert_eq!(CertificateId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_suggestion_is_read_and_nonsense_is_told() {
        let body = br#"{"suggestedWindow":{"start":"2026-01-02T04:00:00Z","end":"2026-01-03T05:00:00+01:00"},
            "explanationURL":"https://ca.example/why","more":1}"#;
        let read_one = read(body, Some(Duration::from_secs(9))).unwrap();
        assert_eq!((read_one.end_ms - read_one.start_ms) / 3_600_000, 24);
        assert_eq!(read_one.explanation_url.as_deref(), Some("https://ca.example/why"));
        let spoilt = br#"{"suggestedWindow":{"start":"2026-01-02T04:00:00Z","end":"2026-01-03T04:00:00Z"},
            "explanationURL":"javascript:alert(1)"}"#;
        assert_eq!(read(spoilt, None).unwrap().explanation_url, None, "no link that an operator could click");
        for wrong in [
            &b"<html>"[..],
            br#"{"suggestedWindow":{"start":"soon","end":"2026-01-03T04:00:00Z"}}"#,
            br#"{"suggestedWindow":{"start":"2026-01-03T04:00:00Z"}}"#,
            br#"{}"#,
        ] {
            assert!(matches!(read(wrong, None), Err(NoSuggestion::Unusable { .. })));
        }
    }
}
