//! Authorizations and challenges (RFC 8555 section 7.5): reading, deactivating, and starting a validation.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header::LINK;
use serde::Deserialize;

use crate::book::{Authorization, AuthorizationState, Book, ChallengeKind, ChallengeState};
use crate::ca::Ca;
use crate::faults::{Endpoint, FaultKind};
use crate::identifier::base_name;
use crate::limits::LimitName;
use crate::order::failure_subject;
use crate::problem::{Kind, Problem};
use crate::request::Signed;
use crate::validate::Target;

#[derive(Deserialize)]
struct Deactivate {
    status: String,
}

/// `POST /acme/authorization/{id}`.
pub(crate) async fn authorization(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    let mut book = ca.book();
    let authorization = own_authorization(&mut book, signed.account()?.0, &id)?;
    if !signed.payload.is_empty() {
        let update: Deactivate = signed.json()?;
        if update.status != "deactivated" {
            return Err(Problem::malformed("the only status to ask for is deactivated"));
        }
        authorization.state = AuthorizationState::Deactivated;
    }
    Ok(Json(authorization.document(&signed.base, ca.clock.now())).into_response())
}

/// `POST /acme/challenge/{id}`: `{}` starts the validation, an empty payload only reads.
pub(crate) async fn challenge(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    let (account, key) = signed.account()?;
    let now = ca.clock.now();
    let mut book = ca.book();
    let missing = || Problem::not_found("challenge");
    let authorization_id = book.authorization_of_challenge.get(&id).cloned().ok_or_else(missing)?;
    let authorization = own_authorization(&mut book, account, &authorization_id)?;
    let start = if signed.payload.is_empty() {
        false
    } else {
        let _: serde_json::Map<String, serde_json::Value> = signed.json()?;
        true
    };
    if start && authorization.state_at(now).is_none() {
        return Err(Problem::malformed("the authorization has expired"));
    }
    let pending = authorization.state == AuthorizationState::Pending;
    // One validation at a time for an authorization, whichever challenge: the second request only reads.
    let idle = authorization.challenges.iter().all(|c| matches!(c.state, ChallengeState::Pending));
    let name = authorization.name.clone();
    let challenge = authorization.challenges.iter_mut().find(|c| c.id == id).ok_or_else(missing)?;
    if start && pending && idle {
        challenge.state = ChallengeState::Processing;
        let target = Target {
            name: base_name(&name).to_owned(),
            kind: challenge.kind,
            token: challenge.token.clone(),
            key_authorization: format!("{}.{}", challenge.token, key.thumbprint()),
        };
        let job = Validation { authorization: authorization_id.clone(), challenge: id.clone(), name, target };
        tokio::spawn(validate(Arc::clone(&ca), job));
    }
    let up = format!("<{}/acme/authorization/{authorization_id}>;rel=\"up\"", signed.base);
    Ok(([(LINK, up)], Json(challenge.document(&signed.base))).into_response())
}

struct Validation {
    authorization: String,
    challenge: String,
    /// With `*.` for a wildcard.
    name: String,
    target: Target,
}

async fn validate(ca: Arc<Ca>, job: Validation) {
    let outcome = match ca.take_fault(Endpoint::Challenge, &[FaultKind::ValidationTrouble]) {
        Some(_) => Err(Problem::new(Kind::ServerInternal, "the validation could not be carried out")),
        None => ca.validator.validate(&job.target).await,
    };
    if let Err(problem) = &outcome {
        tracing::info!(
            name = job.name,
            kind = job.target.kind.as_str(),
            detail = problem.detail,
            "not valid"
        );
    }
    let mut book = ca.book();
    record(&ca, &mut book, &job, job.target.kind, outcome);
}

fn record(ca: &Ca, book: &mut Book, job: &Validation, kind: ChallengeKind, outcome: Result<(), Problem>) {
    let now = ca.clock.now();
    book.stats.record_validation(&job.name, kind.as_str(), outcome.is_err());
    let Some(authorization) = book.authorizations.get_mut(&job.authorization) else { return };
    let Some(challenge) = authorization.challenges.iter_mut().find(|c| c.id == job.challenge) else { return };
    match outcome {
        Ok(()) => challenge.state = ChallengeState::Valid { at: now },
        Err(ref problem) => challenge.state = ChallengeState::Invalid(Box::new(problem.clone())),
    }
    if authorization.state != AuthorizationState::Pending {
        return; // deactivated while the validation ran
    }
    if outcome.is_ok() {
        authorization.state = AuthorizationState::Valid;
        authorization.expires = now.plus(ca.config.authorization_lifetime);
        let subject = failure_subject(&authorization.account, &authorization.name);
        book.limits.refill(LimitName::ConsecutiveFailures, &subject);
        return;
    }
    authorization.state = AuthorizationState::Invalid;
    let subject = failure_subject(&authorization.account, &authorization.name);
    book.limits.spend(LimitName::FailedAuthorizations, &subject, now);
    book.limits.spend(LimitName::ConsecutiveFailures, &subject, now);
}

fn own_authorization<'a>(
    book: &'a mut Book,
    account: &str,
    id: &str,
) -> Result<&'a mut Authorization, Problem> {
    let authorization = book.authorizations.get_mut(id).ok_or_else(|| Problem::not_found("authorization"))?;
    if authorization.account == account {
        Ok(authorization)
    } else {
        Err(Problem::unauthorized("the authorization belongs to another account"))
    }
}
