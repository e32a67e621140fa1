//! Management of the DNS stub. Plain HTTP on loopback, JSON.
//!
//! - `GET /healthz`, `GET /stats`.
//! - `POST /records {"name","type","values"}` or a list of up to 5,000: replaces record sets, all or none;
//!   `DELETE /records {"name","type"}` removes, `GET /records?name=` shows.
//! - `POST /forward {"zone","address"}`: queries at or below the zone go there; `DELETE /forward {"zone"}`.
//! - `POST /nxdomain {"names"}`: names without records that do not exist; `DELETE` ends it.
//! - `POST /faults {"name","fault"}` with `servfail`, `refused` or `timeout`; `DELETE /faults {"name"}`.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Stub;
use super::records::{NameFault, ParsedSet, RecordSet, Records, parse_name};
use crate::management::{OneOrMany, refuse};

/// Record sets in one call.
const SETS_MAX: usize = 5_000;
/// 5,000 sets with a long TXT value each fit well.
const BODY_MAX: usize = 8 * 1024 * 1024;
/// Zones, faults and denied names each.
const LIST_MAX: usize = 10_000;

type Outcome = Result<Response, Refused>;

/// A request that is wrong: 400 with the reason.
struct Refused(String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        refuse(StatusCode::BAD_REQUEST, &self.0)
    }
}

/// The routes over `stub`.
pub(crate) fn router(stub: Arc<Stub>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/stats", get(stats))
        .route("/records", get(show_records).post(set_records).delete(delete_records))
        .route("/forward", get(list_forwards).post(set_forward).delete(end_forward))
        .route("/nxdomain", get(list_denied).post(deny).delete(end_denial))
        .route("/faults", get(list_faults).post(set_fault).delete(end_fault))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(stub)
}

async fn stats(State(stub): State<Arc<Stub>>) -> Response {
    let names = read(&stub).len();
    let stats = stub.stats.lock().unwrap_or_else(PoisonError::into_inner);
    match serde_json::to_value(&*stats) {
        Ok(mut document) => {
            document["names_with_records"] = json!(names);
            Json(document).into_response()
        }
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

#[derive(Deserialize)]
struct NameQuery {
    name: String,
}

async fn show_records(State(stub): State<Arc<Stub>>, Query(query): Query<NameQuery>) -> Outcome {
    let name = parse_name(&query.name).map_err(Refused)?;
    Ok(Json(read(&stub).sets_of(&name)).into_response())
}

async fn set_records(State(stub): State<Arc<Stub>>, Json(sets): Json<OneOrMany<RecordSet>>) -> Outcome {
    let parsed = parse_sets(sets.into_vec())?;
    let count = parsed.len();
    write(&stub).replace(parsed).map_err(Refused)?;
    Ok(Json(json!({ "set": count })).into_response())
}

async fn delete_records(State(stub): State<Arc<Stub>>, Json(sets): Json<OneOrMany<RecordSet>>) -> Outcome {
    let mut sets = sets.into_vec();
    for set in &mut sets {
        set.values.clear();
    }
    let parsed = parse_sets(sets)?;
    let count = parsed.len();
    write(&stub).replace(parsed).map_err(Refused)?;
    Ok(Json(json!({ "removed": count })).into_response())
}

fn parse_sets(sets: Vec<RecordSet>) -> Result<Vec<ParsedSet>, Refused> {
    if sets.len() > SETS_MAX {
        return Err(Refused(format!("more than {SETS_MAX} record sets in one call")));
    }
    sets.iter()
        .enumerate()
        .map(|(index, set)| set.parse().map_err(|reason| Refused(format!("record set {index}: {reason}"))))
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    zone: String,
    address: SocketAddr,
}

async fn list_forwards(State(stub): State<Arc<Stub>>) -> Json<Value> {
    Json(json!(read(&stub).forward_list()))
}

async fn set_forward(State(stub): State<Arc<Stub>>, Json(wanted): Json<Forward>) -> Outcome {
    let zone = parse_name(&wanted.zone).map_err(Refused)?;
    let mut records = write(&stub);
    if records.forward_list().len() >= LIST_MAX {
        return Err(Refused(format!("more than {LIST_MAX} zones")));
    }
    records.forward(&zone, Some(wanted.address));
    Ok(Json(json!(records.forward_list())).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Zone {
    zone: String,
}

async fn end_forward(State(stub): State<Arc<Stub>>, Json(wanted): Json<Zone>) -> Outcome {
    let zone = parse_name(&wanted.zone).map_err(Refused)?;
    write(&stub).forward(&zone, None);
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    names: Vec<String>,
}

async fn list_denied(State(stub): State<Arc<Stub>>) -> Json<Value> {
    Json(json!(read(&stub).denied()))
}

async fn deny(State(stub): State<Arc<Stub>>, Json(wanted): Json<Names>) -> Outcome {
    change_denied(&stub, &wanted, true)
}

async fn end_denial(State(stub): State<Arc<Stub>>, Json(wanted): Json<Names>) -> Outcome {
    change_denied(&stub, &wanted, false)
}

fn change_denied(stub: &Stub, wanted: &Names, denied: bool) -> Outcome {
    let names: Result<Vec<_>, String> = wanted.names.iter().map(|name| parse_name(name)).collect();
    let names = names.map_err(Refused)?;
    let mut records = write(stub);
    if denied && records.denied().len() + names.len() > LIST_MAX {
        return Err(Refused(format!("more than {LIST_MAX} names")));
    }
    for name in &names {
        records.deny(name, denied);
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultFor {
    name: String,
    fault: NameFault,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneName {
    name: String,
}

async fn list_faults(State(stub): State<Arc<Stub>>) -> Json<Value> {
    Json(json!(read(&stub).fault_list()))
}

async fn set_fault(State(stub): State<Arc<Stub>>, Json(wanted): Json<FaultFor>) -> Outcome {
    let name = parse_name(&wanted.name).map_err(Refused)?;
    let mut records = write(&stub);
    if records.fault_list().len() >= LIST_MAX {
        return Err(Refused(format!("more than {LIST_MAX} faults")));
    }
    records.set_fault(&name, Some(wanted.fault));
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn end_fault(State(stub): State<Arc<Stub>>, Json(wanted): Json<OneName>) -> Outcome {
    let name = parse_name(&wanted.name).map_err(Refused)?;
    write(&stub).set_fault(&name, None);
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn read(stub: &Stub) -> RwLockReadGuard<'_, Records> {
    stub.records.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(stub: &Stub) -> RwLockWriteGuard<'_, Records> {
    stub.records.write().unwrap_or_else(PoisonError::into_inner)
}
