//! `/v1/tokens`, and the operator's first token.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path as FilePath;

use anyhow::Context as _;
use aws_lc_rs::rand;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{NewToken, Page, Token, TokenRequest};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::call::{OperatorCall, secret_sha256, split_token, token_text};
use super::fault::{Answered, Fault, field};
use super::json_body::JsonBody;
use super::list::{cursor_after, limit, read_cursor};
use super::query::Query;
use super::write::{Answer, Begun, Write};
use crate::Parts;
use crate::app::App;
use crate::clock::rfc3339;
use crate::secret_file;
use crate::store::token::{self, TokenRow};
use crate::store::{audit, tenant};

const LABEL_BYTES_MAX: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Makes a token; its secret is shown this once and kept nowhere. The same call again under its `Idempotency-Key` makes
/// no second one: it is 409 `secret_shown_once` and names the token, to be deleted where its secret was lost.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, body = NewToken), (status = 409), (status = 422)))]
pub(super) async fn create(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    body: JsonBody<TokenRequest>,
) -> Answered<Response> {
    let wanted = body.value;
    if !(1..=LABEL_BYTES_MAX).contains(&wanted.label.len()) {
        let message = format!("must have 1 to {LABEL_BYTES_MAX} bytes");
        return Err(Fault::fields(vec![field("/label", "invalid_label", message)]));
    }
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    if let Some(tenant) = wanted.tenant_id
        && tenant::find(&mut write.tx, tenant).await?.is_none()
    {
        return Err(Fault::fields(vec![field("/tenant_id", "unknown_tenant", "there is no such tenant")]));
    }
    let (id, secret) = new_secret();
    let row = TokenRow {
        id: id.clone(),
        secret_sha256: secret_sha256(&secret),
        tenant_id: wanted.tenant_id,
        label: wanted.label.clone(),
        created_at: write.now_ms,
    };
    token::insert(&mut write.tx, &row).await?;
    write.audit("token.create", &id, &(), &wanted).await?;
    let repeated = format!(
        "token {id} was made by this request before, and its secret was shown then only; if you do not have it, DELETE \
         /v1/tokens/{id} and make another with a new Idempotency-Key"
    );
    let answer = NewToken { token: token_text(&id, &secret), id };
    write.finish_shown_once(Answer::json(StatusCode::CREATED, &answer), &repeated).await
}

/// Lists tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    params(("cursor" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = Page<Token>)))]
pub(super) async fn list(
    State(app): State<App>,
    _call: OperatorCall,
    Query(query): Query<ListQuery>,
) -> Answered<axum::Json<Page<Token>>> {
    let (limit, after) = (limit(query.limit)?, read_cursor(query.cursor.as_deref())?);
    let mut rows = token::list(&mut *app.parts.store.read().await?, &after, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_after(&row.id));
    let items = rows.into_iter().map(shown).collect();
    Ok(axum::Json(Page { items, next_cursor }))
}

/// Ends a token at once; 204 also when there is none.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn delete(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
) -> Answered<Response> {
    let mut write = match Write::begin(&app, &call, &[]).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let now = write.now_ms;
    if let Some(row) = token::find(&mut write.tx, &id).await? {
        if row.tenant_id.is_none() && token::count_operators(&mut write.tx).await? <= 1 {
            return Err(Fault::conflict(
                "last_operator_token",
                "this is the last operator's token; make another first",
            ));
        }
        token::revoke(&mut write.tx, &id, now).await?;
        write.audit("token.delete", &id, &shown(row), &()).await?;
    }
    write.finish(Answer::no_content()).await
}

fn shown(row: TokenRow) -> Token {
    Token { id: row.id, tenant_id: row.tenant_id, label: row.label, created_at: rfc3339(row.created_at) }
}

fn new_secret() -> (String, String) {
    let mut secret = [0; 32];
    rand::fill(&mut secret).expect("the system gives random bytes");
    (ulid::Ulid::new().to_string(), hex::encode(secret))
}

/// Makes the operator's first token when no operator has one, or one more when `another` is asked for (the first was
/// lost), and writes it to the configured file (0600). A file that already holds a token is taken over, so that a start
/// that was killed in between goes on.
///
/// # Errors
/// The file cannot be written, or others can read it; the store's.
pub async fn ensure_operator_token(parts: &Parts, another: bool) -> anyhow::Result<()> {
    let mut tx = parts.store.begin().await?;
    if token::count_operators(&mut tx).await? > 0 && !another {
        return Ok(());
    }
    let Some(file) = &parts.config.operator_token_file else {
        tracing::warn!("no operator has a token: set operator_token_file and start again to get one");
        return Ok(());
    };
    let text = match read_token_file(file)? {
        Some(text) => text,
        None => write_token_file(file)?,
    };
    let (id, secret) =
        split_token(text.trim()).context("the text of a token that was just made or checked")?;
    if token::find(&mut tx, id).await?.is_some() {
        tracing::warn!(file = %file.display(), "this file holds a token that is good already; move it away to get another");
        return Ok(());
    }
    let row = TokenRow {
        id: id.to_owned(),
        secret_sha256: secret_sha256(secret),
        tenant_id: None,
        label: "operator".to_owned(),
        created_at: parts.clock.now_ms(),
    };
    token::insert(&mut tx, &row).await?;
    let entry = audit::Entry {
        at: row.created_at,
        actor: "system",
        request_id: "first start",
        action: "token.create",
        subject: &row.id,
        before: serde_json::Value::Null,
        after: serde_json::to_value(TokenRequest { tenant_id: None, label: row.label.clone() })?,
    };
    audit::append(&mut tx, &entry).await?;
    tx.commit().await?;
    tracing::info!(file = %file.display(), "the operator's token is in this file");
    Ok(())
}

fn read_token_file(file: &FilePath) -> anyhow::Result<Option<Zeroizing<String>>> {
    if !file.exists() {
        return Ok(None);
    }
    let text = secret_file::read_text(file)?;
    anyhow::ensure!(
        split_token(text.trim()).is_some(),
        "{} exists and holds no token; move it away",
        file.display()
    );
    Ok(Some(text))
}

fn write_token_file(file: &FilePath) -> anyhow::Result<Zeroizing<String>> {
    let (id, secret) = new_secret();
    let text = Zeroizing::new(token_text(&id, &secret));
    let part = file.with_extension("part");
    let write = || -> std::io::Result<()> {
        let mut out =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        writeln!(out, "{}", *text)?;
        out.sync_all()?;
        fs::rename(&part, file)
    };
    write().with_context(|| format!("write the operator's token to {}", file.display()))?;
    Ok(text)
}
