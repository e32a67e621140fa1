//! Accounts: newAccount, updates, deactivation, key change (RFC 8555 section 7.3).
//!
//! Absent: order lists.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::LOCATION;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::book::{ACCOUNTS_MAX, Account};
use crate::ca::Ca;
use crate::external_account;
use crate::jws::{Jws, KeyReference, PublicKey, RawJwk};
use crate::limits::LimitName;
use crate::problem::{Kind, Problem};
use crate::request::{Signed, Signer};
use crate::token::random_token;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewAccount {
    #[serde(default)]
    contact: Vec<String>,
    #[serde(default)]
    terms_of_service_agreed: bool,
    #[serde(default)]
    only_return_existing: bool,
    external_account_binding: Option<Value>,
}

/// `POST /acme/new-account`.
pub(crate) async fn new_account(State(ca): State<Arc<Ca>>, signed: Signed) -> Result<Response, Problem> {
    let Signer::Key(key) = &signed.signer else {
        return Err(Problem::malformed("a new account is signed by its key: use jwk"));
    };
    let wanted: NewAccount = signed.json()?;
    let now = ca.clock.now();
    let mut book = ca.book();
    let thumbprint = key.thumbprint();
    if let Some(id) = book.account_of_key.get(&thumbprint).cloned() {
        book.stats.accounts.found += 1;
        let account = &book.accounts[&id];
        if account.deactivated {
            return Err(Problem::unauthorized("the account of this key is deactivated"));
        }
        return Ok(answer(StatusCode::OK, &signed.base, &id, account));
    }
    if wanted.only_return_existing {
        return Err(Problem::new(Kind::AccountDoesNotExist, "no account has this key"));
    }
    if !wanted.terms_of_service_agreed {
        return Err(Problem::malformed("termsOfServiceAgreed must be true"));
    }
    check_contacts(&wanted.contact)?;
    let external = external_account::check(
        &ca.config.external_accounts,
        wanted.external_account_binding.as_ref(),
        key,
        &signed.url,
    )?;
    if external.is_some_and(|id| book.external_accounts_used.contains(id)) {
        return Err(Problem::unauthorized("the external account is bound to another account already"));
    }
    let address = signed.remote.to_string();
    if let Err(refusal) = book.limits.check(LimitName::NewAccounts, &address, now) {
        *book.stats.rate_limited.entry(refusal.name.as_str()).or_default() += 1;
        return Err(refusal.into_problem(now));
    }
    if book.accounts.len() >= ACCOUNTS_MAX {
        return Err(Problem::new(Kind::ServerInternal, "this CA holds no more accounts"));
    }
    book.limits.spend(LimitName::NewAccounts, &address, now);
    book.external_accounts_used.extend(external.map(str::to_owned));
    let id = random_token(9);
    let account = Account { key: key.clone(), contact: wanted.contact, deactivated: false };
    let response = answer(StatusCode::CREATED, &signed.base, &id, &account);
    book.account_of_key.insert(thumbprint, id.clone());
    book.accounts.insert(id, account);
    book.stats.accounts.created += 1;
    Ok(response)
}

#[derive(Deserialize)]
struct AccountUpdate {
    contact: Option<Vec<String>>,
    status: Option<String>,
}

/// `POST /acme/account/{id}`: read, new contacts, or deactivation.
pub(crate) async fn account(
    State(ca): State<Arc<Ca>>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    if signed.account()?.0 != id {
        return Err(Problem::unauthorized("this is another account"));
    }
    let update = if signed.payload.is_empty() {
        AccountUpdate { contact: None, status: None }
    } else {
        signed.json()?
    };
    if let Some(contact) = &update.contact {
        check_contacts(contact)?;
    }
    let mut book = ca.book();
    let account = book.accounts.get_mut(&id).ok_or_else(|| Problem::not_found("account"))?;
    match update.status.as_deref() {
        None | Some("valid") => {}
        Some("deactivated") => account.deactivated = true,
        Some(_) => return Err(Problem::malformed("the only status to ask for is deactivated")),
    }
    if let Some(contact) = update.contact {
        account.contact = contact;
    }
    Ok(answer(StatusCode::OK, &signed.base, &id, account))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyChange {
    account: String,
    old_key: RawJwk,
}

/// `POST /acme/key-change` (RFC 8555 section 7.3.5).
pub(crate) async fn key_change(State(ca): State<Arc<Ca>>, signed: Signed) -> Result<Response, Problem> {
    let (id, old_key) = signed.account()?;
    let inner = Jws::parse(&signed.payload)?;
    let KeyReference::Embedded(new_key) = &inner.header.key else {
        return Err(Problem::malformed("the inner JWS is signed by the new key: use jwk"));
    };
    inner.verify(new_key)?;
    if inner.header.url != signed.url {
        return Err(Problem::malformed("inner and outer url differ"));
    }
    if inner.header.nonce.is_some() {
        return Err(Problem::malformed("the inner JWS has no nonce"));
    }
    let change: KeyChange = serde_json::from_slice(&inner.payload)
        .map_err(|error| Problem::malformed(format!("the inner payload is not a key change: {error}")))?;
    if change.account != account_url(&signed.base, id) {
        return Err(Problem::malformed("the inner payload names another account"));
    }
    if PublicKey::from_jwk(&change.old_key)? != *old_key {
        return Err(Problem::malformed("oldKey is not the account's key"));
    }
    let mut book = ca.book();
    let thumbprint = new_key.thumbprint();
    if let Some(owner) = book.account_of_key.get(&thumbprint) {
        let url = account_url(&signed.base, owner);
        let conflict = Problem::malformed("the new key belongs to an account already");
        return Err(conflict.with_status(StatusCode::CONFLICT).with_location(url));
    }
    book.account_of_key.remove(&old_key.thumbprint());
    book.account_of_key.insert(thumbprint, id.to_owned());
    let account = book.accounts.get_mut(id).ok_or_else(|| Problem::not_found("account"))?;
    account.key = new_key.clone();
    Ok(answer(StatusCode::OK, &signed.base, id, account))
}

fn check_contacts(contacts: &[String]) -> Result<(), Problem> {
    if contacts.len() > 10 {
        return Err(Problem::new(Kind::InvalidContact, "at most 10 contacts"));
    }
    for contact in contacts {
        let Some(address) = contact.strip_prefix("mailto:") else {
            return Err(Problem::new(Kind::UnsupportedContact, format!("{contact:?} is not a mailto URL")));
        };
        let plausible = address.len() <= 254
            && address.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.'));
        if !plausible || address.contains([',', '?', ' ']) {
            return Err(Problem::new(Kind::InvalidContact, format!("{contact:?} is not one e-mail address")));
        }
    }
    Ok(())
}

fn answer(status: StatusCode, base: &str, id: &str, account: &Account) -> Response {
    let state = if account.deactivated { "deactivated" } else { "valid" };
    let document: Value = json!({ "status": state, "contact": account.contact });
    (status, [(LOCATION, account_url(base, id))], axum::Json(document)).into_response()
}

fn account_url(base: &str, id: &str) -> String {
    format!("{base}/acme/account/{id}")
}
