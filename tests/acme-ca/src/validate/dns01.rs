//! DNS-01 (RFC 8555 section 8.4).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::{Target, Validator};
use crate::problem::Problem;

impl Validator {
    pub(super) async fn dns01(&self, target: &Target) -> Result<(), Problem> {
        let wanted =
            BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, target.key_authorization.as_bytes()).as_ref());
        let name = format!("_acme-challenge.{}", target.name);
        let found = self.resolver.texts(&name).await?;
        if found.contains(&wanted) {
            return Ok(());
        }
        let detail = match found.first() {
            None => format!("{name} has no TXT record"),
            Some(first) => {
                let shown: String = first.chars().take(80).collect();
                format!("none of the {} TXT records at {name} is right; the first is {shown:?}", found.len())
            }
        };
        Err(Problem::unauthorized(detail))
    }
}
