//! Asks each CA when to renew its certificates (RFC 9773), several times a day for each, and writes down what follows.
//!
//! One loop: read the certificates whose CA is to be asked, ask, judge ([`crate::plan::renewal_info`]), record. A CA that
//! has no such information, or tells nonsense, leaves the share of the lifetime in force; one that cannot be reached
//! leaves what it said before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use portico_cert_store::{CredentialId, TenantId};

use super::Issuance;
use crate::acme::CertificateId;
use crate::acme::renewal_info::{NoSuggestion, Suggestion};
use crate::clock::rfc3339;
use crate::plan::{renewal_info, timing};
use crate::store::renewal_info::{self as store, Noted, Watched};
use crate::store::{StoreError, event};

/// Questions that are answered by one transaction.
const ASKED_AT_ONCE: u32 = 64;
/// Of them under way.
const IN_FLIGHT_MAX: usize = 8;
/// The loop looks at what is due at least this often: the clock may have been moved.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until shutdown.
pub(super) async fn run(issuance: Arc<Issuance>) {
    let shutdown = issuance.parts.shutdown.clone();
    loop {
        let asked = match turn(&issuance).await {
            Ok(asked) => asked,
            Err(error) => {
                tracing::warn!(%error, "renewal information could not be noted; it is asked for again");
                0
            }
        };
        let pause =
            if asked == usize::try_from(ASKED_AT_ONCE).unwrap_or(0) { Duration::ZERO } else { LOOK_INTERVAL };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Asks for as many as one transaction writes; answers how many that were.
async fn turn(issuance: &Arc<Issuance>) -> Result<usize, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let due = store::due(&mut *issuance.parts.store.read().await?, now, ASKED_AT_ONCE).await?;
    let asked = due.len();
    if asked == 0 {
        return Ok(0);
    }
    let answers: Vec<(Watched, Result<Suggestion, NoSuggestion>)> = futures_util::stream::iter(due)
        .map(async |watched| {
            let answer = ask(issuance, &watched).await;
            (watched, answer)
        })
        .buffer_unordered(IN_FLIGHT_MAX)
        .collect()
        .await;
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let mut moves: BTreeMap<Option<TenantId>, Vec<(CredentialId, String)>> = BTreeMap::new();
    for (watched, answer) in &answers {
        match judge(watched, answer, issuance.parts.config.renewal.share, now) {
            Ok(noted) => {
                if let Some(text) = moved(watched, &noted) {
                    crate::metrics::window_moved();
                    tracing::debug!(credential = %watched.id, text, "renewal window moved");
                    moves.entry(watched.tenant).or_default().push((watched.id, text));
                }
                store::note(&mut tx, watched.id, &noted, now).await?;
            }
            Err((text, next_at)) => {
                store::note_failure(&mut tx, watched.id, &text, watched.failures + 1, next_at).await?;
            }
        }
    }
    // Before a revocation the windows of thousands move: a tenant has one event for those that were met together.
    for (tenant, moves) in moves {
        let (first, text) = &moves[0];
        let more = match moves.len() {
            1 => String::new(),
            n => format!("; so of {} more certificates", n - 1),
        };
        let text = format!("{text}{more}");
        event::append(&mut tx, "certificate.window_moved", tenant, &first.to_string(), &text, now).await?;
    }
    tx.commit().await?;
    Ok(asked)
}

async fn ask(issuance: &Issuance, watched: &Watched) -> Result<Suggestion, NoSuggestion> {
    let Some(issuer) = issuance.issuer(&watched.issuer) else { return Err(NoSuggestion::NotOffered) };
    match CertificateId::of_chain(&watched.chain_pem) {
        Some(id) => issuer.http().renewal_info(&id).await,
        None => Err(NoSuggestion::NotOffered),
    }
}

/// What is to be written down, or the words of a failure and when to ask again.
fn judge(
    watched: &Watched,
    answer: &Result<Suggestion, NoSuggestion>,
    share: f64,
    now: i64,
) -> Result<Noted, (String, i64)> {
    let subject = watched.subject();
    let by_share = |note: &str, retry_after, result| {
        crate::metrics::renewal_info(result);
        Noted {
            window: None,
            explanation_url: None,
            note: Some(note.to_owned()),
            renew_at: timing::renew_at(watched.not_before, watched.not_after, share, watched.lineage),
            answered: result != "not_offered",
            failures: 0,
            next_at: renewal_info::next_poll(now, retry_after, &subject),
        }
    };
    match answer {
        Ok(suggestion) => match renewal_info::judge(suggestion, &subject) {
            Ok(window) => {
                crate::metrics::renewal_info("window");
                Ok(Noted {
                    window: Some(window),
                    explanation_url: suggestion.explanation_url.clone(),
                    note: None,
                    renew_at: renewal_info::renew_at(window, &subject),
                    answered: true,
                    failures: 0,
                    next_at: renewal_info::next_poll(now, suggestion.retry_after, &subject),
                })
            }
            Err(why) => Ok(by_share(why, suggestion.retry_after, "nonsense")),
        },
        Err(NoSuggestion::NotOffered) => {
            Ok(by_share("the CA has no renewal information", None, "not_offered"))
        }
        Err(NoSuggestion::Unusable { text, retry_after }) => Ok(by_share(text, *retry_after, "unusable")),
        Err(NoSuggestion::Unavailable { text, retry_after }) => {
            crate::metrics::renewal_info("unavailable");
            let failures = watched.failures + 1;
            let next_at = renewal_info::next_after_failure(now, failures, *retry_after, &subject);
            Err((text.clone(), next_at))
        }
    }
}

/// What to tell of a window that the CA has moved.
fn moved(watched: &Watched, noted: &Noted) -> Option<String> {
    let (before, now) = (watched.window?, noted.window?);
    now.has_moved_from(before).then(|| {
        let why = noted.explanation_url.as_deref().map(|url| format!("; the CA says why: {url}"));
        format!(
            "{}: the CA suggests to renew from {} to {} instead of from {}; due {}{}",
            watched.names.join(", "),
            rfc3339(now.start),
            rfc3339(now.end),
            rfc3339(before.start),
            rfc3339(noted.renew_at),
            why.unwrap_or_default(),
        )
    })
}
