//! What needs no token, on the API's loopback address: life signs, metrics, the document of the API.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::fault::{Answered, Fault};
use crate::app::App;
use crate::{metrics, store};

/// The process runs.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers.
pub(super) async fn readyz(State(app): State<App>) -> Answered<&'static str> {
    let mut read = app.parts.store.read().await.map_err(|_| not_ready())?;
    store::meta::epoch(&mut read).await.map_err(|_| not_ready())?;
    Ok("ready\n")
}

fn not_ready() -> Fault {
    Fault::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the database does not answer")
}

/// Prometheus' text format.
pub(super) async fn metrics() -> Response {
    let text = metrics::handle().map(|handle| handle.render()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

pub(super) async fn openapi() -> Response {
    axum::Json(super::openapi()).into_response()
}
