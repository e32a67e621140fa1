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
pub(super) use write::{done, refused};

use portico_cert_store::{DomainId, NamePattern};

use super::call::Call;
use super::fault::{Answered, Fault};
use crate::store::domain::{self, DomainRow};
use crate::store::{Connection, StoreError};

/// The domain of a path, by id or hostname, when the caller may see it.
async fn find(connection: &mut Connection, call: &Call, text: &str) -> Answered<DomainRow> {
    let found = match text.parse::<DomainId>() {
        Ok(id) => domain::find(connection, id).await?,
        Err(_) => find_by_name(connection, call, text).await?,
    };
    found.filter(|row| call.caller.sees(row.tenant_id)).ok_or_else(missing)
}

/// A tenant means its own claim; an operator the served one, else the oldest claim.
async fn find_by_name(
    connection: &mut Connection,
    call: &Call,
    text: &str,
) -> Result<Option<DomainRow>, StoreError> {
    let Ok(name) = NamePattern::parse(text) else { return Ok(None) };
    if let Some(tenant) = call.caller.tenant {
        return domain::find_of_tenant(connection, tenant, &name).await;
    }
    match domain::find_served(connection, &name).await? {
        Some(served) => Ok(Some(served)),
        None => Ok(domain::claims(connection, &name).await?.into_iter().next()),
    }
}

fn missing() -> Fault {
    Fault::not_found("domain")
}
