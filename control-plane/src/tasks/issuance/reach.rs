//! Whether a CA that goes to a name's addresses would meet a challenge of ours: by HTTP-01 ([`super::self_fetch`]), and by
//! TLS-ALPN-01 ([`super::tls_alpn`]) where an order would go by that.
//!
//! A name whose addresses are all ours is taken to have TLS-ALPN-01 as its second way without a look: an order gets to it only
//! after the first has failed. Where it is the first, it is looked at like the other, for a proxy before the edges can pass one on
//! and not the other.

use std::net::IpAddr;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use portico_api::v1::{ConditionStatus, EgressGrant};
use portico_cert_store::{DomainName, TenantId};

use super::Issuance;
use super::issuer::Issuer;
use super::preflight::{Looked, is_wanted};
use super::{self_fetch, tls_alpn};
use crate::acme::ChallengeMethod;
use crate::clock::MINUTE_MS;
use crate::config::EgressAllow;
use crate::store::{StoreError, issuance as orders, tenant};

/// Addresses of a name that are tried; a CA picks any of them.
const ADDRESSES_MAX: usize = 4;
/// How long the probe's token stands on the edges.
const TOKEN_LIFETIME_MS: i64 = MINUTE_MS;

/// By which ways a name is reached, and why not by others.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) methods: Vec<ChallengeMethod>,
    pub(super) texts: Vec<String>,
}

/// Looks at the addresses of a name. `ours`: whether they are all the fleet's.
pub(super) async fn by_address(
    issuance: &Issuance,
    issuers: &[&Issuer],
    domain: &Looked,
    (name, addresses): (&DomainName, &[IpAddr]),
    ours: ConditionStatus,
) -> Reached {
    let mut reached = Reached::default();
    let is_wanted = |method| is_wanted(issuers, &domain.name, method);
    if is_wanted(ChallengeMethod::Http01) {
        match fetch_through(issuance, domain.tenant, name, addresses).await.and_then(first_failure) {
            Ok(()) => reached.methods.push(ChallengeMethod::Http01),
            Err(text) => reached.texts.push(text),
        }
    }
    if !is_wanted(ChallengeMethod::TlsAlpn01) {
        return reached;
    }
    let met = if goes_by_tls_alpn(issuers, &reached.methods) {
        meet_through(issuance, domain, name, addresses).await
    } else {
        Look::Skipped
    };
    match met {
        Look::Met => reached.methods.push(ChallengeMethod::TlsAlpn01),
        Look::Skipped if ours == ConditionStatus::True => reached.methods.push(ChallengeMethod::TlsAlpn01),
        Look::Skipped => {}
        Look::Missed(text) if reached.texts.contains(&text) => {}
        Look::Missed(text) => reached.texts.push(text),
    }
    reached
}

/// Whether some issuer's first way to the name would be TLS-ALPN-01.
fn goes_by_tls_alpn(issuers: &[&Issuer], reached: &[ChallengeMethod]) -> bool {
    let first = |issuer: &&Issuer| {
        let usable =
            |method: &&ChallengeMethod| **method == ChallengeMethod::TlsAlpn01 || reached.contains(method);
        issuer.config.challenges.iter().find(usable).copied()
    };
    issuers.iter().any(|issuer| first(issuer) == Some(ChallengeMethod::TlsAlpn01))
}

fn first_failure(looks: Vec<Result<(), String>>) -> Result<(), String> {
    // A CA may pick any of the addresses.
    looks.into_iter().collect()
}

/// What became of a look by TLS-ALPN-01.
enum Look {
    Met,
    Missed(String),
    Skipped,
}

/// Puts a challenge of our own making on the edges and looks for it at each of the first addresses.
async fn meet_through(issuance: &Issuance, domain: &Looked, name: &DomainName, addresses: &[IpAddr]) -> Look {
    // An edge has one such challenge of a host: that of an order under way must not be overwritten.
    let is_ordered = async {
        let mut read = issuance.parts.store.read().await?;
        orders::is_being_validated(&mut read, domain.id).await
    };
    let granted = match (is_ordered.await, granted(issuance, domain.tenant).await) {
        (Ok(true), _) => return Look::Skipped,
        (Ok(false), Ok(granted)) => granted,
        (Err(error), _) | (_, Err(error)) => return Look::Missed(error.to_string()),
    };
    let digest = random();
    let expires = issuance.parts.clock.now_ms() + TOKEN_LIFETIME_MS;
    // Left to its own end: what is there when it would be cleared may be an order's.
    let outcome = issuance.fleet.set_tls_alpn01(name.as_str(), digest, expires, None).await;
    if outcome.acked.is_empty() {
        return Look::Missed(NO_EDGE.to_owned());
    }
    for address in addresses.iter().take(ADDRESSES_MAX) {
        if let Err(text) = tls_alpn::meet_as_a_ca(issuance, &granted, name, *address, &digest).await {
            return Look::Missed(text);
        }
    }
    Look::Met
}

const NO_EDGE: &str = "no edge is connected to answer a challenge";

/// Puts a random token on the edges and fetches it as a CA would, from each of the first addresses; an error says why it was
/// not tried.
pub(super) async fn fetch_through(
    issuance: &Issuance,
    tenant: TenantId,
    name: &DomainName,
    addresses: &[IpAddr],
) -> Result<Vec<Result<(), String>>, String> {
    let granted = granted(issuance, tenant).await.map_err(|error| error.to_string())?;
    let token = random_token();
    let answer = format!("{token}.{}", random_token());
    let expires = issuance.parts.clock.now_ms() + TOKEN_LIFETIME_MS;
    let outcome = issuance.fleet.set_http01(name.as_str(), &token, &answer, expires, None).await;
    let result = if outcome.acked.is_empty() {
        Err(NO_EDGE.to_owned())
    } else {
        let mut fetched = Vec::new();
        for address in addresses.iter().take(ADDRESSES_MAX) {
            fetched
                .push(self_fetch::fetch_as_a_ca(issuance, &granted, name, *address, &token, &answer).await);
        }
        Ok(fetched)
    };
    let (fleet, name) = (issuance.fleet.clone(), name.clone());
    tokio::spawn(async move { fleet.clear_challenge(name.as_str(), Some(&token), None, None).await });
    result
}

/// The operator's word on what may be reached for this tenant, as at its origins.
async fn granted(issuance: &Issuance, tenant: TenantId) -> Result<Vec<EgressAllow>, StoreError> {
    let found = tenant::find(&mut *issuance.parts.store.read().await?, tenant).await?;
    let grants = found.map(|tenant| tenant.spec.egress_grants).unwrap_or_default();
    let allow = |grant: EgressGrant| Some(EgressAllow { cidr: grant.cidr.parse().ok()?, ports: grant.ports });
    Ok(grants.into_iter().filter_map(allow).collect())
}

/// 256 random bits: nobody answers it by chance.
fn random_token() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(random())
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the operating system's random source works");
    bytes
}
