//! Revocation of a certificate whose key others may have (RFC 8555 section 7.6, RFC 5280 section 5.3.1: keyCompromise).
//!
//! Signed with that key where we have it: a CA then knows that it is compromised and takes it from nobody any more. Where it was
//! forgotten, the account that ordered the certificate signs.

use http::StatusCode;
use instant_acme::{RevocationReason, RevocationRequest};
use portico_cert_store::CertificateChain;
use serde_json::json;

use super::account::{Account, NonceTries};
use super::error::AcmeError;
use super::http::{CaHttp, observe};
use super::jws::{Signer, encode, refusal};

/// keyCompromise (RFC 5280 section 5.3.1).
const KEY_COMPROMISE: u8 = 1;

impl CaHttp {
    /// Revokes the leaf of a chain in PEM as compromised, signed with its own key (P-256 or RSA, PKCS#8). One that is revoked already is
    /// no error: a crash may have taken the CA's answer from us.
    ///
    /// # Errors
    /// Any of the CA's.
    pub async fn revoke_by_key(&self, chain_pem: &str, key_pkcs8: &[u8]) -> Result<(), AcmeError> {
        let signer = Signer::of_key(key_pkcs8)?;
        let chain = leaf(chain_pem)?;
        let payload = json!({ "certificate": encode(chain.leaf()), "reason": KEY_COMPROMISE });
        let url = self.revoke_url().await?;
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(signer.post(self, &url, &payload)).await;
            match result {
                Ok((StatusCode::OK, _)) => return Ok(()),
                Ok((_, body)) if says_revoked(&body) => return Ok(()),
                Ok((_, body)) => tries.again(refusal(&body, observed))?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Account {
    /// The same, signed by the account that ordered it.
    ///
    /// # Errors
    /// Any of the CA's.
    pub async fn revoke(&self, chain_pem: &str) -> Result<(), AcmeError> {
        let chain = leaf(chain_pem)?;
        let request =
            RevocationRequest { certificate: chain.leaf(), reason: Some(RevocationReason::KeyCompromise) };
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(self.account.revoke(&request)).await;
            match result {
                Ok(()) => return Ok(()),
                Err(instant_acme::Error::Api(problem)) if is_revoked(problem.r#type.as_deref()) => {
                    return Ok(());
                }
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }
}

fn leaf(chain_pem: &str) -> Result<CertificateChain, AcmeError> {
    CertificateChain::parse_pem(chain_pem.as_bytes()).map_err(AcmeError::ours)
}

fn says_revoked(body: &[u8]) -> bool {
    let problem: Option<instant_acme::Problem> = serde_json::from_slice(body).ok();
    problem.is_some_and(|problem| is_revoked(problem.r#type.as_deref()))
}

fn is_revoked(kind: Option<&str>) -> bool {
    kind == Some("urn:ietf:params:acme:error:alreadyRevoked")
}
