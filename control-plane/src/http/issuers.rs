//! `/v1/issuers`: the CAs of the configuration, how they stand, and our accounts there.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{self, AdoptAccount, Issuer, IssuerAccount, IssuerState, Page};

use super::call::OperatorCall;
use super::fault::{Answered, Fault, field};
use super::json_body::SecretBody;
use super::write::{Answer, Begun, Write};
use crate::acme::{AccountKey, AcmeError, AcmeErrorKind, RsaAccountKey};
use crate::app::App;
use crate::clock::rfc3339;
use crate::config::IssuerConfig;
use crate::plan::issuers::{Health, Standing};
use crate::store::account::{self, AccountOrigin, AccountRow, AccountState};
use crate::store::{Connection, StoreError, issuer};
use crate::tasks::issuance::adoption;

/// Lists the issuers in the order of preference, with whether orders go there.
#[utoipa::path(get, path = "/v1/issuers", tag = "issuers", responses((status = 200, body = Page<Issuer>)))]
pub(super) async fn list(State(app): State<App>, _call: OperatorCall) -> Answered<axum::Json<Page<Issuer>>> {
    let mut read = app.parts.store.read().await?;
    let now = app.parts.clock.now_ms();
    let mut items = Vec::new();
    for config in &app.parts.config.issuers {
        items.push(shown(&mut read, config, now).await?);
    }
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Takes over the ACME account of another client by its private key, so that what it has ordered is renewed as a replacement,
/// which spends no limit. The CA is asked for the account that the key has; the key is sealed and shown to nobody. Orders are signed
/// with P-256 keys alone; with `change_key` the account of an RSA key gets one, which locks out whoever has the old one (422 `rsa_key`
/// without). 200 when it is ours already.
#[utoipa::path(post, path = "/v1/issuers/{name}/accounts", tag = "issuers", params(("name" = String, Path)),
    request_body = AdoptAccount, responses((status = 201, body = IssuerAccount), (status = 200, body = IssuerAccount),
        (status = 404), (status = 422), (status = 503)))]
pub(super) async fn adopt(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(name): Path<String>,
    body: SecretBody<AdoptAccount>,
) -> Answered<Response> {
    let config = app.parts.config.issuers.iter().find(|issuer| issuer.name == name);
    let config = config.ok_or_else(|| Fault::not_found("issuer"))?;
    let pem = body.value.key_pem.reveal();
    // Before the writer's turn: the CA may take its time.
    let adopted = match (AccountKey::from_pem(pem), RsaAccountKey::from_pem(pem)) {
        (Ok(key), _) => {
            let found = adoption::find(config, &key).await.map_err(|error| refused(&name, &error))?;
            Adopted::Found(key, found)
        }
        (Err(_), Some(old)) if body.value.change_key => {
            let changed = adoption::change_key(&app.parts, config, &old).await;
            Adopted::Changed(changed.map_err(|error| refused(&name, &error))?)
        }
        (Err(why), Some(_)) => return Err(Fault::fields(vec![field("/key_pem", "rsa_key", why)])),
        (Err(why), None) => return Err(Fault::fields(vec![field("/key_pem", "invalid_key", why)])),
    };
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let now_ms = write.now_ms;
    let row = match &adopted {
        Adopted::Found(key, found) => {
            if let Some(row) = account::of_url(&mut write.tx, &name, &found.url).await? {
                return write.finish(Answer::json(StatusCode::OK, &account_shown(&row))).await;
            }
            adoption::put(&mut write.tx, &app.parts.sealer, config, key, found, now_ms).await?
        }
        Adopted::Changed(changed) => adoption::put_changed(&mut write.tx, &name, changed, now_ms).await?,
    };
    let shown = account_shown(&row);
    write.audit("issuer.adopt_account", &name, &(), &shown).await?;
    let url = shown.url.as_deref().unwrap_or_default();
    let text = match &adopted {
        Adopted::Found(..) => format!("account {url} of issuer {name} was adopted"),
        Adopted::Changed(_) => {
            format!(
                "account {url} of issuer {name} was adopted and has a new key; its old one opens it no more"
            )
        }
    };
    write.event("issuer.account_adopted", None, &name, &text).await?;
    write.finish(Answer::json(StatusCode::CREATED, &shown)).await
}

/// An account of another client's, as the CA has it now.
enum Adopted {
    Found(AccountKey, adoption::Found),
    Changed(adoption::Changed),
}

fn refused(name: &str, error: &AcmeError) -> Fault {
    match error.kind {
        AcmeErrorKind::Account | AcmeErrorKind::RequestRefused | AcmeErrorKind::NamesRefused => {
            let why = format!("has no account at issuer {name}: {}", error.detail);
            Fault::fields(vec![field("/key_pem", "no_account", why)])
        }
        AcmeErrorKind::AccountLimited
        | AcmeErrorKind::NamesLimited
        | AcmeErrorKind::Unavailable
        | AcmeErrorKind::BadNonce
        | AcmeErrorKind::OrderGone
        | AcmeErrorKind::Garbage
        | AcmeErrorKind::Ours => {
            Fault::new(StatusCode::SERVICE_UNAVAILABLE, "ca_unavailable", error.to_string())
        }
    }
}

async fn shown(connection: &mut Connection, config: &IssuerConfig, now: i64) -> Result<Issuer, StoreError> {
    let health = issuer::health(connection, &config.name).await?;
    let figures = issuer::figures(connection, &config.name, now).await?;
    let accounts = account::of_issuer(connection, &config.name, &config.directory).await?;
    let (state, failing_since, tried_at, reason) = match (&health, health.standing(now)) {
        (Health::Well, _) => (IssuerState::Well, None, None, None),
        (Health::Failing { since, .. }, _) => (IssuerState::Failing, Some(*since), None, None),
        (Health::Away { since, until, why, .. }, standing) => {
            let state = if standing == Standing::Trial { IssuerState::Trial } else { IssuerState::Away };
            (state, Some(*since), Some(*until), Some(why.clone()))
        }
    };
    Ok(Issuer {
        name: config.name.clone(),
        directory: config.directory.clone(),
        by_default: config.by_default,
        state,
        failing_since: failing_since.map(rfc3339),
        tried_at: tried_at.map(rfc3339),
        reason,
        certificates: figures.certificates,
        due: figures.due,
        orders: figures.orders,
        accounts: accounts.iter().map(account_shown).collect(),
    })
}

fn account_shown(row: &AccountRow) -> IssuerAccount {
    let url = match &row.state {
        AccountState::Registered { url } => Some(url.clone()),
        AccountState::Intended | AccountState::Lost => None,
    };
    IssuerAccount {
        registered: url.is_some(),
        url,
        origin: match row.origin {
            AccountOrigin::Made => v1::AccountOrigin::Made,
            AccountOrigin::Adopted => v1::AccountOrigin::Adopted,
        },
        created_at: rfc3339(row.created_at),
    }
}
