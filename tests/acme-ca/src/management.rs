//! The management listener: what happened, and what shall go wrong. Plain HTTP on loopback, JSON.
//!
//! - `GET /healthz`: 200 while the CA answers.
//! - `GET /stats`: all counters, the limits in force and the log of newOrder requests.
//! - `GET /roots`: the root and intermediate of issued chains, and the API's own anchor, as PEM.
//! - `POST /clock {"advance_seconds": n}`: moves the CA's clock forward; `GET /clock` reads it.
//! - `POST /faults`: one fault or a list, with `PUT` instead of those set before; `GET /faults` lists those left,
//!   `DELETE /faults` removes all.
//! - `GET /buckets`: what is spent of each limit.
//! - `POST /outside {"names": [..], "certificates": n}`: an account of somebody else obtains so many certificates, or as many
//!   as the limits let it, and says how many; it spends of the limits that are global.
//! - `POST /refused {"names": [..], "at_finalize": false, "unnamed": "rejectedIdentifier"}`: names that no order may hold
//!   from now on, instead of those set before; with `unnamed` the CA does not say which name it is.
//! - `POST /ari {"names": [..], "start": "..", "end": "..", "explanation_url": ".."}`: renewal windows of the certificates
//!   with one of the names, or of all there are; without times in the past, as before a mass revocation. Answers how many.
//!   With `"already_replaced": true` no order replaces them any more.
//! - `POST /profiles {"name": "classic", "validity_seconds": n, "reuse_seconds": n}`: for what is ordered from now on.
//! - `POST /move`: all places but the directory are elsewhere from now on, and gone where they were.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::book::Refused;
use crate::budget::{self, Outside};
use crate::ca::Ca;
use crate::faults::Fault;
use crate::renewal_info::{self, SetWindows};

/// The routes over `ca`; `api_ca_pem` is the trust anchor of the API's TLS.
pub(crate) fn router(ca: Arc<Ca>, api_ca_pem: String) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/stats", get(stats))
        .route("/roots", get(async move |State(ca): State<Arc<Ca>>| roots(&ca, &api_ca_pem)))
        .route("/clock", get(clock).post(advance))
        .route("/faults", get(list_faults).post(add_faults).put(replace_faults).delete(clear_faults))
        .route("/buckets", get(buckets))
        .route("/outside", post(outside))
        .route("/refused", post(refuse_names))
        .route("/ari", post(set_windows))
        .route("/profiles", post(change_profile))
        .route("/move", post(move_places))
        .with_state(ca)
}

async fn buckets(State(ca): State<Arc<Ca>>) -> Json<Value> {
    Json(budget::buckets(&ca.book(), ca.clock.now()))
}

async fn outside(State(ca): State<Arc<Ca>>, Json(outside): Json<Outside>) -> Json<Value> {
    let now = ca.clock.now();
    Json(json!({ "obtained": outside.obtain(&mut ca.book(), now) }))
}

async fn stats(State(ca): State<Arc<Ca>>) -> Response {
    let book = ca.book();
    let limits: serde_json::Map<String, Value> = book
        .limits
        .in_force()
        .map(|(name, limit)| {
            (name.to_string(), json!({ "count": limit.count, "period_seconds": limit.period.as_secs() }))
        })
        .collect();
    let mut document = match serde_json::to_value(&book.stats) {
        Ok(document) => document,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    document["clock"] = json!(ca.clock.now().rfc3339());
    document["limits"] = Value::Object(limits);
    Json(document).into_response()
}

fn roots(ca: &Ca, api_ca_pem: &str) -> Json<Value> {
    Json(json!({
        "root": ca.hierarchy.root_pem(),
        "intermediate": ca.hierarchy.intermediate_pem(),
        "api_ca": api_ca_pem,
    }))
}

async fn clock(State(ca): State<Arc<Ca>>) -> Json<Value> {
    Json(json!({ "now": ca.clock.now().rfc3339() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: u64,
}

/// Ten years: beyond that the root itself would expire.
const ADVANCE_SECONDS_MAX: u64 = 10 * 365 * 86_400;

async fn advance(State(ca): State<Arc<Ca>>, Json(wanted): Json<Advance>) -> Response {
    if wanted.advance_seconds > ADVANCE_SECONDS_MAX {
        return refuse(StatusCode::BAD_REQUEST, "advance_seconds is above ten years");
    }
    ca.clock.advance(Duration::from_secs(wanted.advance_seconds));
    clock(State(ca)).await.into_response()
}

/// Names that the policy may hold.
const REFUSED_MAX: usize = 10_000;

async fn refuse_names(State(ca): State<Arc<Ca>>, Json(wanted): Json<Refused>) -> Response {
    if wanted.names.len() > REFUSED_MAX {
        return refuse(StatusCode::BAD_REQUEST, "more than 10,000 names");
    }
    ca.book().refused = wanted;
    StatusCode::NO_CONTENT.into_response()
}

async fn set_windows(State(ca): State<Arc<Ca>>, Json(wanted): Json<SetWindows>) -> Json<Value> {
    let now = ca.clock.now();
    Json(json!({ "certificates": renewal_info::set_windows(&mut ca.book(), wanted, now) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeProfile {
    name: String,
    validity_seconds: Option<u64>,
    reuse_seconds: Option<u64>,
}

async fn change_profile(State(ca): State<Arc<Ca>>, Json(wanted): Json<ChangeProfile>) -> Response {
    let (validity, reuse) = (wanted.validity_seconds, wanted.reuse_seconds);
    let seconds = |seconds: Option<u64>| seconds.map(|n| Duration::from_secs(n.min(ADVANCE_SECONDS_MAX)));
    match ca.book().profiles.change(&wanted.name, seconds(validity), seconds(reuse)) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
    }
}

/// All but the directory goes elsewhere, and nothing is left where it was.
async fn move_places(State(ca): State<Arc<Ca>>) -> StatusCode {
    ca.move_places();
    StatusCode::NO_CONTENT
}

async fn list_faults(State(ca): State<Arc<Ca>>) -> Json<Vec<Fault>> {
    Json(ca.faults.list())
}

async fn clear_faults(State(ca): State<Arc<Ca>>) -> StatusCode {
    ca.faults.clear();
    StatusCode::NO_CONTENT
}

async fn add_faults(State(ca): State<Arc<Ca>>, Json(wanted): Json<OneOrMany<Fault>>) -> Response {
    set_faults(&ca, wanted, false)
}

async fn replace_faults(State(ca): State<Arc<Ca>>, Json(wanted): Json<OneOrMany<Fault>>) -> Response {
    set_faults(&ca, wanted, true)
}

fn set_faults(ca: &Ca, wanted: OneOrMany<Fault>, instead: bool) -> Response {
    match ca.faults.add(wanted.into_vec(), instead) {
        Ok(()) => Json(ca.faults.list()).into_response(),
        Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
    }
}

/// A body that is one object or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::Many(list) => list,
            Self::One(one) => vec![one],
        }
    }
}

/// A refusal as JSON: `{"error": ".."}`.
pub(crate) fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({ "error": reason }))).into_response()
}
