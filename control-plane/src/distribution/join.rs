//! How an edge gets its identity: once by a token, then again and again by the identity itself.
//!
//! A token is `pjt_<id>_<secret>_<fingerprint>`: an id (ULID), 32 random bytes in hex of which only the SHA-256 is stored,
//! and the SHA-256 of the internal CA's certificate, by which the joining edge knows whom it talks to. Everything about a
//! request is checked before the token is spent, and spending it is one statement, so that it is good for one edge.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand;
use portico_api::distribution::{JoinRequest, JoinResponse, RenewRequest, RenewResponse};
use portico_api::v1;
use portico_cert_store::{CellId, EdgeId, Generation};
use time::OffsetDateTime;
use tonic::{Code, Status};
use ulid::Ulid;

use super::context::Context;
use super::metrics;
use crate::ca::{self, EdgeRequest, IssuedIdentity, RequestError};
use crate::clock::rfc3339;
use crate::store::edge::{self, EdgeRow, JoinTokenRow};
use crate::store::{StoreError, WriteTx, cell, edge_key, event};

/// The bounds of a token's life, seconds.
pub const TOKEN_TTL_SECONDS: std::ops::RangeInclusive<u32> = 60..=86_400;

const SECRET_BYTES: usize = 32;
const FINGERPRINT_HEX: usize = 64;
/// An expired token is remembered this long, so that a late edge is told "expired" and not "unknown".
const EXPIRED_KEPT_MS: i64 = 7 * 24 * 3600 * 1000;
const HPKE_PUBLIC_KEY_BYTES: usize = 32;
pub(super) const BUILD_CHARS_MAX: usize = 64;

/// Why no identity is given.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the join token is not of the form pjt_<id>_<secret>_<fingerprint>: copy it whole")]
    Malformed,
    #[error("the join token was made by another control plane: ask the operator of this one for a token")]
    OtherControlPlane,
    #[error("the join token is not known here: make a new one with `portico edge join`")]
    Unknown,
    #[error("the join token expired at {at}: make a new one with `portico edge join`")]
    Expired { at: String },
    #[error(
        "the join token was used at {at} and is good for one edge only: make a new one with `portico edge join`"
    )]
    Used { at: String },
    #[error("the HPKE public key must be {HPKE_PUBLIC_KEY_BYTES} bytes (X25519)")]
    HpkeKey,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("edge {0} is not known here or was removed: join again with a new token")]
    Removed(EdgeId),
    #[error(
        "edge {edge} keeps the keys of cell {cell} for itself, so no second one can join it: take that one out first (`portico \
         edge rm {edge}`), or let the new one join another cell"
    )]
    Taken { cell: CellId, edge: EdgeId },
    #[error("a join token lives from {} to {} seconds", TOKEN_TTL_SECONDS.start(), TOKEN_TTL_SECONDS.end())]
    Ttl,
    #[error("the control plane cannot store the edge now; try again")]
    Store(#[from] StoreError),
    #[error("the internal CA cannot sign now; try again")]
    Ca(#[from] ca::CaError),
}

/// A token, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TokenText {
    id: String,
    secret: String,
    fingerprint: String,
}

/// Makes a token for one edge of `cell`, in the caller's transaction; the only time that its text exists here.
pub(super) async fn create_token(
    context: &Context,
    tx: &mut WriteTx,
    cell: &CellId,
    ttl_seconds: u32,
) -> Result<v1::JoinToken, JoinError> {
    if !TOKEN_TTL_SECONDS.contains(&ttl_seconds) {
        return Err(JoinError::Ttl);
    }
    check_free(tx, cell).await?;
    let mut secret = [0; SECRET_BYTES];
    rand::fill(&mut secret).map_err(|_| ca::CaError::Crypto)?;
    let text = TokenText {
        id: Ulid::new().to_string(),
        secret: hex::encode(secret),
        fingerprint: context.ca.fingerprint_hex(),
    };
    let now = context.clock.now_ms();
    let row = JoinTokenRow {
        id: text.id.clone(),
        secret_sha256: ca::sha256(text.secret.as_bytes()).to_vec(),
        cell: cell.clone(),
        expires_at_ms: now + i64::from(ttl_seconds) * 1000,
        used_at_ms: None,
    };
    cell::ensure(tx, &context.sealer, cell, now).await?;
    edge::drop_expired_join_tokens(tx, now - EXPIRED_KEPT_MS).await?;
    edge::insert_join_token(tx, &row, now).await?;
    Ok(v1::JoinToken {
        token: text.to_string(),
        expires_at: rfc3339(row.expires_at_ms),
        distribution: context.advertised.clone(),
    })
}

/// Spends a token and gives an edge its first identity.
pub(super) async fn join(context: &Context, request: JoinRequest) -> Result<JoinResponse, JoinError> {
    let joined = try_join(context, request).await;
    metrics::join(if joined.is_ok() { "joined" } else { "refused" });
    joined
}

async fn try_join(context: &Context, request: JoinRequest) -> Result<JoinResponse, JoinError> {
    let token = TokenText::parse(&request.token).ok_or(JoinError::Malformed)?;
    if token.fingerprint != context.ca.fingerprint_hex() {
        return Err(JoinError::OtherControlPlane);
    }
    let now = context.clock.now_ms();
    let stored = edge::find_join_token(&mut *context.store.read().await?, &token.id).await?;
    let stored = check_token(stored, &token, now)?;
    let key = EdgeRequest::parse(&request.csr_der)?;
    if request.hpke_public_key.len() != HPKE_PUBLIC_KEY_BYTES {
        return Err(JoinError::HpkeKey);
    }
    let id = EdgeId::generate();
    let identity = sign(context, &key, id)?;
    let row = EdgeRow {
        id,
        cell: stored.cell.clone(),
        hpke_public_key: request.hpke_public_key.to_vec(),
        identity_not_after_ms: identity.not_after.unix_timestamp() * 1000,
        build: request.build.chars().take(BUILD_CHARS_MAX).collect(),
        io_backend: String::new(),
        listeners: Vec::new(),
        applied: Generation::default(),
        connections: 0,
        names: 0,
        joined_at_ms: now,
        last_seen_at_ms: None,
    };
    let mut tx = context.store.begin().await?;
    if !edge::use_join_token(&mut tx, &stored.id, id, now).await? {
        return Err(JoinError::Used { at: rfc3339(now) });
    }
    check_free(&mut tx, &stored.cell).await?;
    cell::ensure(&mut tx, &context.sealer, &stored.cell, now).await?;
    edge::insert(&mut tx, &row, &identity.serial).await?;
    let text = format!("joined cell {}", stored.cell);
    event::append(&mut tx, "edge.joined", None, &id.to_string(), &text, now).await?;
    tx.commit().await?;
    Ok(JoinResponse {
        edge_id: id.to_string(),
        cell_id: stored.cell.to_string(),
        certificate_chain_der: vec![identity.certificate.to_vec().into()],
        ca_der: vec![context.ca.certificate().to_vec().into()],
    })
}

/// Gives an edge that has an identity the next one.
pub(super) async fn renew(
    context: &Context,
    id: EdgeId,
    request: RenewRequest,
) -> Result<RenewResponse, JoinError> {
    edge::find(&mut *context.store.read().await?, id).await?.ok_or(JoinError::Removed(id))?;
    let key = EdgeRequest::parse(&request.csr_der)?;
    let identity = sign(context, &key, id)?;
    let mut tx = context.store.begin().await?;
    edge::renewed(&mut tx, id, &identity.serial, identity.not_after.unix_timestamp() * 1000).await?;
    tx.commit().await?;
    Ok(RenewResponse {
        certificate_chain_der: vec![identity.certificate.to_vec().into()],
        ca_der: vec![context.ca.certificate().to_vec().into()],
    })
}

/// No edge of the cell keeps its keys to itself.
async fn check_free(tx: &mut WriteTx, cell: &CellId) -> Result<(), JoinError> {
    match edge_key::taken_by(tx, cell).await? {
        Some(edge) => Err(JoinError::Taken { cell: cell.clone(), edge }),
        None => Ok(()),
    }
}

fn sign(context: &Context, key: &EdgeRequest, id: EdgeId) -> Result<IssuedIdentity, ca::CaError> {
    let now = date(context.clock.now_ms());
    context.ca.sign_edge(key, id, now, context.identity_lifetime)
}

/// Unknown and wrong secret are one answer: who guesses learns nothing of ids.
fn check_token(
    stored: Option<JoinTokenRow>,
    token: &TokenText,
    now_ms: i64,
) -> Result<JoinTokenRow, JoinError> {
    let stored = stored.ok_or(JoinError::Unknown)?;
    let given = ca::sha256(token.secret.as_bytes());
    verify_slices_are_equal(&given, &stored.secret_sha256).map_err(|_| JoinError::Unknown)?;
    if let Some(at) = stored.used_at_ms {
        return Err(JoinError::Used { at: rfc3339(at) });
    }
    if now_ms >= stored.expires_at_ms {
        return Err(JoinError::Expired { at: rfc3339(stored.expires_at_ms) });
    }
    Ok(stored)
}

pub(super) fn date(ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(ms / 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

impl TokenText {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().strip_prefix("pjt_")?.split('_').map(str::to_owned);
        let token = Self { id: parts.next()?, secret: parts.next()?, fingerprint: parts.next()? };
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        let whole = parts.next().is_none()
            && Ulid::from_string(&token.id).is_ok()
            && is_hex(&token.secret, 2 * SECRET_BYTES)
            && is_hex(&token.fingerprint, FINGERPRINT_HEX);
        whole.then_some(token)
    }
}

impl std::fmt::Display for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pjt_{}_{}_{}", self.id, self.secret, self.fingerprint)
    }
}

impl From<JoinError> for Status {
    fn from(error: JoinError) -> Self {
        let code = match &error {
            JoinError::Malformed | JoinError::HpkeKey | JoinError::Request(_) | JoinError::Ttl => {
                Code::InvalidArgument
            }
            JoinError::OtherControlPlane | JoinError::Unknown => Code::Unauthenticated,
            JoinError::Expired { .. } | JoinError::Used { .. } | JoinError::Taken { .. } => {
                Code::FailedPrecondition
            }
            JoinError::Removed(_) => Code::PermissionDenied,
            JoinError::Store(_) | JoinError::Ca(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot give an edge its identity");
                Code::Unavailable
            }
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenText {
        TokenText { id: Ulid::new().to_string(), secret: "ab".repeat(32), fingerprint: "cd".repeat(32) }
    }

    #[test]
    fn token_reads_back_and_a_damaged_one_does_not() {
        let token = token();
        let text = token.to_string();
        assert_eq!(TokenText::parse(&format!("{text}\n")), Some(token));
        for bad in [
            "",
            "pjt_",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &format!("{text}_x"),
            &text.replace("ab", "xy"),
        ] {
            assert_eq!(TokenText::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn each_refusal_says_why_and_a_wrong_secret_says_no_more_than_an_unknown_id() {
        let token = token();
        let row = JoinTokenRow {
            id: token.id.clone(),
            secret_sha256: ca::sha256(token.secret.as_bytes()).to_vec(),
            cell: CellId::parse("default").unwrap(),
            expires_at_ms: 1_000,
            used_at_ms: None,
        };
        check_token(Some(row.clone()), &token, 999).unwrap();
        let refusal = |row, token: &TokenText, now| check_token(row, token, now).unwrap_err().to_string();
        assert!(refusal(Some(row.clone()), &token, 1_000).contains("expired at 1970-01-01T00:00:01"));
        let used = JoinTokenRow { used_at_ms: Some(500), ..row.clone() };
        assert!(refusal(Some(used), &token, 999).contains("was used at"));
        let wrong = TokenText { secret: "ac".repeat(32), ..token.clone() };
        assert_eq!(refusal(Some(row), &wrong, 999), refusal(None, &token, 999));
    }
}
