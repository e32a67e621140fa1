//! One API write: its rows, its audit entry, its event, its change for the edges and the memory of its
//! `Idempotency-Key`, all in one transaction (P7). Acknowledged means: all of it is on disk.

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{self, SHA256};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use portico_cert_store::TenantId;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::call::{Call, etag};
use super::fault::{Answered, Fault};
use super::pace::Pace;
use crate::app::App;
use crate::clock::{self, DAY_MS};
use crate::limits::WRITER_TURN_OF_TENANT_MAX;
use crate::store::idempotency::{self, Remembered};
use crate::store::{WriteTx, audit, event};

/// The code with which a repeated request is refused whose first answer held a secret.
const SHOWN_ONCE: &str = "secret_shown_once";

/// How long an `Idempotency-Key` is remembered.
pub(crate) const KEY_LASTS_MS: i64 = DAY_MS;

/// Keys of one tenant's token that are remembered at the same time, and the bytes of their answers.
pub(crate) const TENANT_KEYS_MAX: i64 = 5_000;
const TENANT_KEYS_BYTES_MAX: i64 = 32 << 20;

/// A write that has begun. Dropped unfinished, nothing of it happened.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) tx: WriteTx,
    pub(crate) now_ms: i64,
    actor: String,
    request_id: String,
    key: Option<String>,
    fingerprint: Vec<u8>,
    /// Absent for an operator.
    pace: Option<(Pace, TenantId)>,
    turn_began: Instant,
    /// The tenant's place in the writer's queue; given back after the transaction.
    _place: Option<OwnedSemaphorePermit>,
}

/// Either a write to do, or the answer that the same request got before.
#[derive(Debug)]
pub(crate) enum Begun {
    Fresh(Box<Write>),
    Replay(Response),
}

/// What a write answers.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    revision: Option<u64>,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Self {
        Self { status, revision: None, body: serde_json::to_vec(value).unwrap_or_default() }
    }

    pub(crate) fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, revision: None, body: Vec::new() }
    }

    pub(crate) fn revision(self, revision: u64) -> Self {
        Self { revision: Some(revision), ..self }
    }

    pub(crate) fn into_response(self) -> Response {
        respond(self.status, self.revision.map(etag).as_deref(), self.body)
    }
}

impl Write {
    /// Waits for the writer's turn; a request that was answered before gets that answer.
    ///
    /// # Errors
    /// 409 when the key came with another request; the store's.
    pub(crate) async fn begin(app: &App, call: &Call, body: &[u8]) -> Answered<Begun> {
        Self::begin_bulk(app, call, body, 0).await
    }

    /// As [`Self::begin`] for a call of so many items, which a tenant pays for whatever becomes of them. Between two of them it asks
    /// [`Self::assert_in_turn`].
    ///
    /// # Errors
    /// 409 when the key came with another request, 429 when the tenant writes too much; the store's.
    pub(crate) async fn begin_bulk(app: &App, call: &Call, body: &[u8], items: usize) -> Answered<Begun> {
        counted(app, call, items)?;
        let place = match call.caller.tenant {
            Some(tenant) => Some(app.waits.begin_write(tenant).await?),
            None => None,
        };
        let now_ms = app.parts.clock.now_ms();
        let fingerprint = fingerprint(call, body);
        let mut tx = app.parts.store.begin().await?;
        let turn_began = clock::instant();
        if let Some(key) = &call.idempotency_key {
            let actor = &call.caller.token_id;
            match idempotency::find(&mut tx, actor, key, now_ms - KEY_LASTS_MS).await? {
                // An operator's callers are its own.
                None if call.caller.tenant.is_none() => {}
                None => bounded(idempotency::held(&mut tx, actor).await?)?,
                Some(remembered) => {
                    if let Some(response) = answered(remembered, &fingerprint)? {
                        return Ok(Begun::Replay(response));
                    }
                }
            }
        }
        Ok(Begun::Fresh(Box::new(Self {
            tx,
            now_ms,
            actor: call.caller.token_id.clone(),
            request_id: call.request_id.to_string(),
            key: call.idempotency_key.clone(),
            fingerprint,
            pace: call.caller.tenant.map(|tenant| (app.pace.clone(), tenant)),
            turn_began,
            _place: place,
        })))
    }

    /// The answer that the same request got before, for a call that acts before its write begins.
    ///
    /// # Errors
    /// 409 when the key came with another request; the store's.
    pub(crate) async fn replayed(app: &App, call: &Call, body: &[u8]) -> Answered<Option<Response>> {
        let Some(key) = &call.idempotency_key else { return Ok(None) };
        let since = app.parts.clock.now_ms() - KEY_LASTS_MS;
        let mut read = app.parts.store.read().await?;
        match idempotency::find(&mut read, &call.caller.token_id, key, since).await? {
            None => Ok(None),
            Some(remembered) => answered(remembered, &fingerprint(call, body)),
        }
    }

    /// Whether a bulk call may go on to its next item: all others wait meanwhile. An operator's may.
    ///
    /// # Errors
    /// 413 when a tenant's has had the writer for too long; nothing of it is to happen.
    pub(crate) fn assert_in_turn(&self) -> Answered<()> {
        if self.pace.is_none() {
            return Ok(());
        }
        short_enough(clock::instant().saturating_duration_since(self.turn_began))
    }

    pub(crate) fn actor(&self) -> &str {
        &self.actor
    }

    /// Notes who changed what, from what to what.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn audit(
        &mut self,
        action: &str,
        subject: &str,
        before: &(impl Serialize + Sync),
        after: &(impl Serialize + Sync),
    ) -> Answered<()> {
        let entry = audit::Entry {
            at: self.now_ms,
            actor: &self.actor,
            request_id: &self.request_id,
            action,
            subject,
            before: serde_json::to_value(before).unwrap_or_default(),
            after: serde_json::to_value(after).unwrap_or_default(),
        };
        let bytes = audit::append(&mut self.tx, &entry).await?;
        if let Some((pace, tenant)) = &self.pace {
            pace.kept(*tenant, bytes);
        }
        Ok(())
    }

    /// Counts what else a tenant's write leaves in the database.
    pub(crate) fn keeps(&self, bytes: usize) {
        if let Some((pace, tenant)) = &self.pace {
            pace.kept(*tenant, bytes);
        }
    }

    /// Tells the followers of events.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn event(
        &mut self,
        kind: &str,
        tenant: Option<TenantId>,
        subject: &str,
        text: &str,
    ) -> Answered<()> {
        Ok(event::append(&mut self.tx, kind, tenant, subject, text, self.now_ms).await?)
    }

    /// Remembers the answer under the request's key and commits.
    ///
    /// # Errors
    /// The store's; then nothing of the write happened.
    pub(crate) async fn finish(mut self: Box<Self>, answer: Answer) -> Answered<Response> {
        self.remember(Some(&answer)).await?;
        self.tx.commit().await?;
        Ok(answer.into_response())
    }

    /// As [`Self::finish`] for an answer with a secret, which is kept nowhere: the same request later does nothing and is
    /// refused with `repeated`, which says what the first one made and what to do when its answer was lost.
    ///
    /// # Errors
    /// The store's; then nothing of the write happened.
    pub(crate) async fn finish_shown_once(
        mut self: Box<Self>,
        answer: Answer,
        repeated: &str,
    ) -> Answered<Response> {
        let kept =
            Answer { status: StatusCode::CONFLICT, revision: None, body: repeated.as_bytes().to_vec() };
        self.remember(Some(&kept)).await?;
        self.tx.commit().await?;
        Ok(answer.into_response())
    }

    /// Commits a write whose answer is made afterwards; the same request later does it again, to the same effect.
    ///
    /// # Errors
    /// The store's; then nothing of the write happened.
    pub(crate) async fn commit(mut self: Box<Self>) -> Answered<()> {
        self.remember(None).await?;
        Ok(self.tx.commit().await?)
    }

    async fn remember(&mut self, answer: Option<&Answer>) -> Answered<()> {
        let Some(key) = &self.key else { return Ok(()) };
        let remembered = Remembered {
            fingerprint: std::mem::take(&mut self.fingerprint),
            answer: answer.map(|answer| idempotency::Answer {
                status: answer.status.as_u16(),
                etag: answer.revision.map(etag),
                body: answer.body.clone(),
            }),
        };
        Ok(idempotency::put(&mut self.tx, &self.actor, key, &remembered, self.now_ms).await?)
    }
}

/// Counts a call of a tenant that writes, or takes long before it does. An operator's are not counted.
///
/// # Errors
/// 429.
pub(crate) fn paced(app: &App, call: &Call) -> Answered<()> {
    counted(app, call, 0)
}

fn counted(app: &App, call: &Call, items: usize) -> Answered<()> {
    call.caller.tenant.map_or(Ok(()), |tenant| app.pace.take(tenant, items, clock::instant()))
}

fn short_enough(turn: Duration) -> Answered<()> {
    if turn < WRITER_TURN_OF_TENANT_MAX {
        return Ok(());
    }
    let detail = format!(
        "looking at these items took longer than {} s, in which nobody else can write, so none was done; send fewer at once",
        WRITER_TURN_OF_TENANT_MAX.as_secs()
    );
    Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "too_much_at_once", detail))
}

/// What a request was answered that came with this key before; `None`: it was begun and not remembered, and its effect is the same
/// when it is done again.
fn answered(remembered: Remembered, fingerprint: &[u8]) -> Answered<Option<Response>> {
    if remembered.fingerprint != fingerprint {
        return Err(Fault::conflict(
            "idempotency_key_reused",
            "this Idempotency-Key came with another request within 24 hours; use a new one",
        ));
    }
    let Some(answer) = remembered.answer else { return Ok(None) };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    if status == StatusCode::CONFLICT {
        let detail = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(Fault::new(status, SHOWN_ONCE, detail));
    }
    let mut response = respond(status, answer.etag.as_deref(), answer.body);
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    Ok(Some(response))
}

fn bounded((keys, bytes): (i64, i64)) -> Answered<()> {
    if keys < TENANT_KEYS_MAX && bytes < TENANT_KEYS_BYTES_MAX {
        return Ok(());
    }
    let detail = format!(
        "{keys} Idempotency-Keys of this token are remembered, each for 24 hours; use bulk calls, or send this one without \
         a key"
    );
    let fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, "idempotency_keys_used_up", detail);
    Err(fault.retry_after(3600))
}

fn fingerprint(call: &Call, body: &[u8]) -> Vec<u8> {
    let mut hash = digest::Context::new(&SHA256);
    hash.update(format!("{} {}\n", call.method, call.path).as_bytes());
    // By itself: a body may hold a key, of which no copy is to be left.
    hash.update(body);
    hash.finish().as_ref().to_vec()
}

fn respond(status: StatusCode, etag: Option<&str>, body: Vec<u8>) -> Response {
    let has_body = !body.is_empty();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if has_body {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Some(etag) = etag.and_then(|etag| HeaderValue::from_str(etag).ok()) {
        headers.insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bulk_call_that_keeps_everybody_waiting_is_broken_off() {
        short_enough(WRITER_TURN_OF_TENANT_MAX / 2).unwrap();
        let fault = short_enough(WRITER_TURN_OF_TENANT_MAX).unwrap_err();
        assert_eq!((fault.status.as_u16(), fault.code), (413, "too_much_at_once"));
        assert!(fault.detail.contains("send fewer"), "{fault:?}");
    }
}
