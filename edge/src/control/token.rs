//! The join token: `pjt_<id>_<secret>_<sha256 of the internal CA's certificate in hex>`.

use std::fmt;

use zeroize::Zeroizing;

/// Good for one edge and for a short time. Never printed.
#[derive(Clone)]
pub struct JoinToken {
    text: Zeroizing<String>,
    ca_sha256: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the join token has not the form pjt_<id>_<secret>_<fingerprint>; it is the word behind --token of the line that `portico edge join` printed"
)]
pub struct TokenError;

impl JoinToken {
    /// # Errors
    /// [`TokenError`] if a part is missing or the fingerprint is not 64 hex digits.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let mut parts = text.split('_');
        let (Some("pjt"), Some(id), Some(secret), Some(fingerprint), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError);
        };
        let plain = |part: &str| {
            (1..=128).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !plain(id) || !plain(secret) {
            return Err(TokenError);
        }
        let mut ca_sha256 = [0; 32];
        hex::decode_to_slice(fingerprint, &mut ca_sha256).map_err(|_| TokenError)?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), ca_sha256 })
    }

    pub(super) fn secret_text(&self) -> &str {
        &self.text
    }

    /// Of the certificate by which the control plane has to be vouched for.
    pub(super) fn ca_sha256(&self) -> [u8; 32] {
        self.ca_sha256
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_token_is_read_and_it_is_never_printed() {
        let text = format!("pjt_01ARZ3NDEKTSV4RRFFQ69G5FAV_5ec2e7_{}", "a1".repeat(32));
        let token = JoinToken::parse(&format!("{text}\n")).unwrap();
        assert_eq!(token.ca_sha256(), [0xa1; 32]);
        assert!(!format!("{token:?}").contains("5ec2e7"));
        for cut in 0..text.len() {
            assert!(JoinToken::parse(&text[..cut]).is_err(), "{cut}");
        }
        for bad in [
            format!("{text}_x"),
            text.replace("pjt", "pxt"),
            text.replace("a1", "g1"),
            text.replace("5ec", "é"),
        ] {
            assert!(JoinToken::parse(&bad).is_err(), "{bad}");
        }
    }
}
