//! The tenants' API over HTTP: axum handlers, each of them short: read the call, ask `app` and `store`, answer.
//!
//! Every write goes through [`write::Write`]; every error through [`fault::Fault`]. The OpenAPI document is made from
//! the handlers and committed as `openapi/v1.json`; a test compares. Plain HTTP on a loopback address only; whoever
//! wants it elsewhere puts a TLS proxy before it.

mod adoptions;
mod backups;
mod budget;
pub(crate) mod call;
mod cells;
mod certificate_requests;
mod certificates;
mod default_certificate;
mod domains;
mod edges;
pub(crate) mod fault;
mod health;
mod imports;
mod issuers;
pub(crate) mod json_body;
mod list;
mod origin_authority;
pub(crate) mod pace;
mod plan;
mod purges;
mod query;
mod refusals;
mod rekeys;
mod removals;
mod renewals;
mod request_id;
mod shared_group;
mod tenants;
mod tokens;
mod trail;
mod usage;
pub(crate) mod waits;
mod webhooks;
pub(crate) mod write;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::clock;
use crate::metrics as names;
use fault::Fault;

pub use tokens::ensure_operator_token;

/// A request that is not a long poll ends by then.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// A long poll waits for at most 300 s.
const LONG_POLL_DEADLINE: Duration = Duration::from_secs(360);

/// Binds and serves; the task ends with `parts.shutdown`.
///
/// # Errors
/// The address is taken, or not a loopback address.
pub async fn start(app: &App, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<SocketAddr> {
    let wanted = app.parts.config.api;
    anyhow::ensure!(wanted.ip().is_loopback(), "api = \"{wanted}\" is not a loopback address");
    let listener = TcpListener::bind(wanted).await.with_context(|| format!("bind api = \"{wanted}\""))?;
    let address = listener.local_addr()?;
    names::describe();
    let router = router(app.clone());
    let shutdown = app.parts.shutdown.clone();
    tasks.spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
        Ok(())
    });
    Ok(address)
}

/// Everything under one router.
pub fn router(app: App) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .route("/v1/openapi.json", axum::routing::get(health::openapi))
        .route("/healthz", axum::routing::get(health::healthz))
        .route("/readyz", axum::routing::get(health::readyz))
        .route("/metrics", axum::routing::get(health::metrics))
        .fallback(async || Fault::not_found("path"))
        .method_not_allowed_fallback(async || {
            Fault::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "see /v1/openapi.json for the calls",
            )
        })
        .layer(middleware::from_fn(measure))
        .layer(middleware::from_fn(request_id::assign))
        .with_state(app)
}

/// The OpenAPI document.
pub fn openapi() -> OpenApi {
    let mut document = documented().split_for_parts().1;
    refusals::describe(&mut document);
    document
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Portico's tenant API",
        description = "Wanted state is what callers send; observed state is in status, conditions and next_action. \
                       Errors are RFC 9457 problems. Every POST takes an Idempotency-Key, kept 24 hours; PATCH and \
                       DELETE of a tenant or domain need If-Match with the ETag last seen.",
        version = "1",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(portico_api::v1::Problem)),
    modifiers(&TokenScheme),
    security(("token" = []))
)]
struct Document;

struct TokenScheme;

impl utoipa::Modify for TokenScheme {
    fn modify(&self, document: &mut OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("ptk_<id>_<secret>").build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(tenants::create, tenants::list))
        .routes(routes!(tenants::show, tenants::patch))
        .routes(routes!(tenants::suspend))
        .routes(routes!(tenants::resume))
        .routes(routes!(purges::create))
        .routes(routes!(origin_authority::create, origin_authority::show))
        .routes(routes!(origin_authority::create_next, origin_authority::delete_next))
        .routes(routes!(origin_authority::switch))
        .routes(routes!(shared_group::show, shared_group::offer, shared_group::leave))
        .routes(routes!(shared_group::consent))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::delete))
        .routes(routes!(domains::create))
        .routes(routes!(domains::create_batch))
        .routes(routes!(imports::create))
        .routes(routes!(domains::list))
        .routes(routes!(domains::attest))
        .routes(routes!(domains::show, domains::patch, domains::delete))
        .routes(routes!(domains::check))
        .routes(routes!(domains::retry))
        .routes(routes!(domains::suspend))
        .routes(routes!(domains::resume))
        .routes(routes!(domains::preview))
        .routes(routes!(certificates::list))
        .routes(routes!(certificates::show, certificates::delete))
        .routes(routes!(certificates::upload))
        .routes(routes!(certificate_requests::create, certificate_requests::list))
        .routes(routes!(certificate_requests::show, certificate_requests::delete))
        .routes(routes!(adoptions::create))
        .routes(routes!(edges::list))
        .routes(routes!(edges::create_join_token))
        .routes(routes!(edges::show, edges::delete))
        .routes(routes!(cells::list))
        .routes(routes!(cells::show, cells::put))
        .routes(routes!(default_certificate::show, default_certificate::choose, default_certificate::delete))
        .routes(routes!(removals::list))
        .routes(routes!(removals::sign_off))
        .routes(routes!(plan::show))
        .routes(routes!(issuers::list))
        .routes(routes!(issuers::adopt))
        .routes(routes!(backups::list))
        .routes(routes!(backups::switch))
        .routes(routes!(backups::switch_back))
        .routes(routes!(backups::drill))
        .routes(routes!(renewals::show))
        .routes(routes!(rekeys::list, rekeys::create))
        .routes(routes!(rekeys::show))
        .routes(routes!(budget::show))
        .routes(routes!(usage::list))
        .routes(routes!(trail::events))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::create_of_tenant))
        .routes(routes!(webhooks::show, webhooks::delete))
        .routes(routes!(webhooks::replay))
        .routes(routes!(webhooks::renew_secret))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::tries))
        .routes(routes!(trail::audit))
        .routes(routes!(trail::verify))
}

/// Counts and times requests by method and class of answer; nothing a client sends becomes a label.
async fn measure(request: Request, next: Next) -> Response {
    let method = names::method(request.method().as_str());
    let waits = |query: &str| query.contains("wait=");
    let long = request.method() == Method::GET && request.uri().query().is_some_and(waits);
    let began = clock::instant();
    let deadline = if long { LONG_POLL_DEADLINE } else { REQUEST_DEADLINE };
    let response = match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => axum::response::IntoResponse::into_response(Fault::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "the call took too long; send it again with the same Idempotency-Key",
        )),
    };
    names::request(method, response.status(), began.elapsed());
    response
}
