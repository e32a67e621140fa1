//! Random identifiers, as unpadded base64url.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// `bytes` random bytes as text.
pub(crate) fn random_token(bytes: usize) -> String {
    let mut raw = vec![0; bytes];
    rand::fill(&mut raw[..]);
    BASE64_URL_SAFE_NO_PAD.encode(raw)
}
