//! `/v1/domains` and `/v1/tenants/{id}/domains`

mod read;
mod suspension;
mod write;

pub(super) use read::{__path_list, __path_preview, __path_show, list, preview, show};
pub(super) use suspension::{__path_resume, __path_suspend, resume, suspend};
pub(super) use write::{
    __path_attest, __path_check, __path_create, __path_create_batch, __path_delete, __path_patch,
    __path_retry, attest, check, create, create_batch, delete, patch, retry,
};
pub(super) use write::{NOTE_BYTES_MAX, done, refused};

use portico_cert_store::{DomainId, NamePattern};

use super::call::Call;
use super::fault::{Answered, Fault};
use crate::store::domain::{self, DomainRow};
use crate::store::{Connection, tenant};

/// Claims of a name that are told when a name alone does not say which is meant.
const CLAIMS_SHOWN_MAX: usize = 10;

/// The domain of a path, by id or hostname, when the caller may see it.
pub(super) async fn find(connection: &mut Connection, call: &Call, text: &str) -> Answered<DomainRow> {
    let found = match text.parse::<DomainId>() {
        Ok(id) => domain::find(connection, id).await?,
        Err(_) => find_by_name(connection, call, text).await?,
    };
    found.filter(|row| call.caller.sees(row.tenant_id)).ok_or_else(missing)
}

/// A tenant means its own claim. An operator sees the claims of all: where there are several, one of them may be served, but
/// whoever deletes or suspends by name need not mean that one.
async fn find_by_name(connection: &mut Connection, call: &Call, text: &str) -> Answered<Option<DomainRow>> {
    let Ok(name) = NamePattern::parse(text) else { return Ok(None) };
    if let Some(tenant) = call.caller.tenant {
        return Ok(domain::find_of_tenant(connection, tenant, &name).await?);
    }
    let mut claims = domain::claims(connection, &name).await?;
    if claims.len() > 1 {
        return Err(ambiguous(connection, &name, &claims).await?);
    }
    Ok(claims.pop())
}

async fn ambiguous(connection: &mut Connection, name: &NamePattern, claims: &[DomainRow]) -> Answered<Fault> {
    let mut listed = Vec::new();
    for row in claims.iter().take(CLAIMS_SHOWN_MAX) {
        let tenant = tenant::find(connection, row.tenant_id).await?;
        let tenant = tenant.map_or_else(|| row.tenant_id.to_string(), |tenant| tenant.spec.name);
        listed.push(format!("{tenant}: {}{}", row.id, if row.served { " (served)" } else { "" }));
    }
    let detail = format!(
        "{} tenants claim {name}, so a name does not say which domain is meant; use an id: {}",
        claims.len(),
        listed.join(", ")
    );
    Ok(Fault::conflict("ambiguous_hostname", detail))
}

fn missing() -> Fault {
    Fault::not_found("domain")
}
