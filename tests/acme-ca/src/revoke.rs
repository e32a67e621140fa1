//! Revocation (RFC 8555 section 7.6): by the account that ordered the certificate, by an account that
//! holds valid authorizations for all its names, or by the certificate's own key.
//!
//! A revocation is remembered and counted; no CRL is published.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::State;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::Deserialize;

use crate::book::{AuthorizationState, Book, Certificate};
use crate::ca::Ca;
use crate::clock::Moment;
use crate::issue::certificate_key;
use crate::problem::{Kind, Problem};
use crate::request::{Signed, Signer};
use crate::stats::{LOG_MAX, RevocationEntry};

#[derive(Deserialize)]
struct Revocation {
    certificate: String,
    reason: Option<u8>,
}

/// Unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation (RFC 5280 5.3.1).
const REASONS: [u8; 5] = [0, 1, 3, 4, 5];

/// `POST /acme/revoke-cert`.
pub(crate) async fn revoke_cert(State(ca): State<Arc<Ca>>, signed: Signed) -> Result<StatusCode, Problem> {
    let wanted: Revocation = signed.json()?;
    let reason = wanted.reason.unwrap_or(0);
    if !REASONS.contains(&reason) {
        return Err(Problem::new(Kind::BadRevocationReason, format!("reason {reason} is not taken")));
    }
    let der = BASE64_URL_SAFE_NO_PAD
        .decode(&wanted.certificate)
        .map_err(|_| Problem::malformed("certificate is not unpadded base64url"))?;
    let now = ca.clock.now();
    let mut book = ca.book();
    let found = book.certificates.iter().find(|(_, c)| c.der == der);
    let (id, certificate) = found.ok_or_else(|| Problem::not_found("certificate of this CA"))?;
    if certificate.revoked.is_some() {
        return Err(Problem::new(Kind::AlreadyRevoked, "the certificate was revoked before"));
    }
    if !may_revoke(&book, &signed.signer, certificate, now)? {
        return Err(Problem::unauthorized("neither the orderer nor the key nor authorized for all names"));
    }
    let id = id.clone();
    let entry = RevocationEntry {
        at: now.rfc3339(),
        names: certificate.names.iter().cloned().collect(),
        fingerprint: fingerprint(&certificate.der),
        reason,
        signed_by: match signed.signer {
            Signer::Key(_) => "key",
            Signer::Account { .. } => "account",
        },
    };
    if book.stats.revocations.len() < LOG_MAX {
        book.stats.revocations.push(entry);
    }
    if let Some(certificate) = book.certificates.get_mut(&id) {
        certificate.revoked = Some((now, reason));
    }
    book.stats.certificates.revoked += 1;
    Ok(StatusCode::OK)
}

fn fingerprint(der: &[u8]) -> String {
    digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn may_revoke(book: &Book, signer: &Signer, certificate: &Certificate, now: Moment) -> Result<bool, Problem> {
    let account = match signer {
        Signer::Key(key) => return Ok(certificate_key(&certificate.der)?.is_account_key(key)),
        Signer::Account { id, .. } => id,
    };
    let authorized = |name: &String| {
        let id = book.newest_authorization.get(&(account.clone(), name.clone()));
        let authorization = id.and_then(|id| book.authorizations.get(id));
        authorization.is_some_and(|a| a.state_at(now) == Some(AuthorizationState::Valid))
    };
    Ok(certificate.account == *account || certificate.names.iter().all(authorized))
}
