//! Who may be served for a name: the pure rules of ownership (P6).
//!
//! A tenant proves control of a host by one of four means, each tied to texts that no other claim ever had:
//!
//! - a CNAME at the host to the claim's own target: proof and traffic at once;
//! - TXT `_portico.<host>` with the claim's token; for a wildcard at its base, and nothing else will do;
//! - a file at the claim's token, fetched over HTTP from addresses none of which is ours, so that it cannot be served by
//!   us for somebody else, and only while nobody else is proved; its content cannot be told from its path, so that a
//!   server that echoes paths proves nothing;
//! - an operator's word, which displaces nobody.
//!
//! A claim alone displaces nobody. A rival's DNS proof takes over, because whoever writes the zone decides; the loser's
//! texts are replaced, so that a record that was left behind proves nothing afterwards. A re-check that fails ends
//! nothing: `decide` is asked only about proofs that were found. Deliberately absent: time-outs of ownership.

use std::net::IpAddr;

use aws_lc_rs::hmac;
use portico_api::v1::ProofMethod;
use portico_cert_store::{DomainId, NamePattern, TenantId};

/// A claim that stands on a proof, or wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub domain: DomainId,
    pub method: ProofMethod,
}

/// What follows from a proof that was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody is proved: serve this claim.
    Serve,
    /// The claim is served already; the proof that stands goes on.
    Confirm,
    /// The claim is served already; this proof is the better one to stand on.
    Replace,
    /// Serve this claim instead of that one.
    Displace(DomainId),
    Refuse(Refusal),
}

/// Why a proof that holds changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a wildcard is proved by TXT at its base or by the operator's attestation only")]
    WildcardNeedsTxt,
    #[error("the name is served for another account; only a DNS record (TXT or CNAME) moves it")]
    OwnedByAnother,
}

/// Decides about a proof of `method` for the claim `domain` of `name`, given who is served for the very same name now.
pub fn decide(
    domain: DomainId,
    name: &NamePattern,
    method: ProofMethod,
    served: Option<Standing>,
) -> Decision {
    let fits = match method {
        ProofMethod::Txt | ProofMethod::Attestation => true,
        ProofMethod::Cname | ProofMethod::Http => !name.is_wildcard(),
    };
    if !fits {
        return Decision::Refuse(Refusal::WildcardNeedsTxt);
    }
    match served {
        None => Decision::Serve,
        Some(standing) if standing.domain == domain => {
            if standing.method == ProofMethod::Attestation && method != ProofMethod::Attestation {
                Decision::Replace
            } else {
                Decision::Confirm
            }
        }
        Some(standing) => match method {
            ProofMethod::Cname | ProofMethod::Txt => Decision::Displace(standing.domain),
            ProofMethod::Http | ProofMethod::Attestation => Decision::Refuse(Refusal::OwnedByAnother),
        },
    }
}

/// The name at which the TXT token of a claim is looked for.
pub fn txt_name(name: &NamePattern) -> String {
    format!("_portico.{}", name.base())
}

/// The CNAME target of a claim; `None` for a wildcard, or when no zone for targets is configured.
pub fn cname_target(name: &NamePattern, label: &str, zone: Option<&str>) -> Option<String> {
    if name.is_wildcard() { None } else { zone.map(|zone| format!("{label}.{zone}")) }
}

/// Where the proof file of a claim is fetched; its content is [`http_content`] and nothing else but blanks around it.
pub fn http_path(token: &str) -> String {
    format!("/.well-known/portico/{token}")
}

/// What the proof file holds: HMAC-SHA256 of tenant and host under the token, hex.
pub fn http_content(token: &str, tenant: TenantId, name: &NamePattern) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    let text = format!("portico http proof\n{tenant}\n{}", name.base());
    hex::encode(hmac::sign(&key, text.as_bytes()).as_ref())
}

/// Whether one of the TXT values is the claim's token.
pub fn txt_proves(values: &[String], token: &str) -> bool {
    values.iter().any(|value| value.trim() == token)
}

/// Whether the CNAME at the host is the claim's target.
pub fn cname_proves(targets: &[String], target: &str) -> bool {
    targets.iter().any(|found| found.trim_end_matches('.').eq_ignore_ascii_case(target))
}

/// Whether an HTTP token may be fetched at all: the name has addresses, and none of them is ours. One of ours among
/// others is enough to refuse: a name that dangles towards us must not be claimed by whoever we serve next.
pub fn http_may_be_fetched(addresses: &[IpAddr], is_ours: impl Fn(IpAddr) -> bool) -> bool {
    !addresses.is_empty() && !addresses.iter().any(|&address| is_ours(address))
}

#[cfg(test)]
#[path = "proof/tests.rs"]
mod tests;
