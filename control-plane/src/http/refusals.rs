//! The refusals that many calls have in common, in the OpenAPI document: written once, not at every handler.

use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi, PathItem, Ref, RefOr, Response, ResponseBuilder};

/// Calls that need an operator's token; `(method, path)`, a path alone for all of its methods.
const OPERATORS: &[(Option<&str>, &str)] = &[
    (Some("post"), "/v1/tenants"),
    (None, "/v1/tenants/{id}/suspend"),
    (None, "/v1/tenants/{id}/resume"),
    (None, "/v1/tenants/{id}/adoptions"),
    (None, "/v1/tokens"),
    (None, "/v1/tokens/{id}"),
    (None, "/v1/domains/attest"),
    (None, "/v1/domains/{domain}/suspend"),
    (None, "/v1/domains/{domain}/resume"),
    (None, "/v1/edges"),
    (None, "/v1/edges/join-tokens"),
    (None, "/v1/edges/{id}"),
    (None, "/v1/cells"),
    (None, "/v1/cells/{cell}"),
    (None, "/v1/default-certificate"),
    (None, "/v1/removals"),
    (None, "/v1/removals/sign-off"),
    (None, "/v1/plan"),
    (None, "/v1/issuers"),
    (None, "/v1/issuers/{name}/accounts"),
    (None, "/v1/backups/switch-to-backup"),
    (None, "/v1/backups/switch-back"),
    (None, "/v1/backups/drill"),
    (None, "/v1/renewals"),
    (None, "/v1/rekeys"),
    (None, "/v1/rekeys/{id}"),
    (None, "/v1/audit"),
    (Some("post"), "/v1/webhooks"),
];

/// Adds 401 to every call, 403 to those that are an operator's, 429 to those for which a tenant is paced.
pub(super) fn describe(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            add(operation, "401", "no valid token came with the call");
            if is_operators(method, path) {
                add(operation, "403", "`operator_only`: the token is a tenant's");
            } else if method != "get" || path == "/v1/domains/{domain}" {
                add(operation, "429", "the tenant calls too often; `Retry-After` says when to go on");
            }
        }
    }
}

fn is_operators(method: &str, path: &str) -> bool {
    let is_same = |&(only, operators): &(Option<&str>, &str)| {
        operators == path && only.is_none_or(|only| only == method)
    };
    OPERATORS.iter().any(is_same) || path.starts_with("/v1/audit/")
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn add(operation: &mut Operation, status: &str, description: &str) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response: Response =
        ResponseBuilder::new().description(description).content("application/problem+json", problem).build();
    let documented = &mut operation.responses.responses;
    documented.entry(status.to_owned()).or_insert(RefOr::T(response));
}
