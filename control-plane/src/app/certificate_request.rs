//! Keys for certificates that tenants order themselves, with a client of their own: made here, so that none is carried anywhere.
//!
//! The request is for any client that takes one (`certbot certonly --csr`). The key waits, sealed by the control plane's own keys:
//! which cells serve the names is known when the certificate comes ([`super::upload`]), and no edge can open it before. A renewal
//! by the same request has the same key, which is in service by then.

use axum::http::StatusCode;
use portico_api::v1::{
    CertificateRequest, CertificateRequestId, CertificateRequestSpec, FieldError, UPLOAD_HOSTNAMES_MAX,
};
use portico_cert_store::{
    CertificateFacts, KeyType, NamePattern, PrivateKey, SealContext, SealedKey, TenantId, request_pem,
};
use tokio::sync::Semaphore;

use super::App;
use crate::clock::rfc3339;
use crate::http::fault::{Answered, Fault, field};
use crate::http::waits::Wait;
use crate::http::write::Write;
use crate::limits::{CERTIFICATE_REQUEST_LASTS_MS, CERTIFICATE_REQUESTS_OF_TENANT_MAX};
use crate::store::certificate_request::{self as store, CertificateRequestRow};
use crate::store::uploaded::{self, SealedInCell};
use crate::store::{Connection, cell, compromise, domain};

/// What a key is sealed for.
const PURPOSE: &str = "certificate request";

/// One RSA key is made at a time: one of 4096 bits takes a core for a second or more.
static RSA_TURN: Semaphore = Semaphore::const_new(1);

/// A request that can be made.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Each once.
    names: Vec<NamePattern>,
    key_type: KeyType,
}

impl Wanted {
    /// Sorted.
    fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        texts.sort_unstable();
        texts
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Made {
    New(CertificateRequestRow),
    /// One for these names and this kind of key waits already.
    Same(CertificateRequestRow),
}

/// Reads names and kind of key; whose the names are is looked at by [`make_key`] and [`put`].
///
/// # Errors
/// 422 with what is wrong.
pub(crate) fn read(spec: &CertificateRequestSpec) -> Answered<Wanted> {
    let hostnames = &spec.hostnames;
    if !(1..=UPLOAD_HOSTNAMES_MAX).contains(&hostnames.len()) {
        let text =
            format!("must have 1 to {UPLOAD_HOSTNAMES_MAX} names, those that the certificate is to hold");
        return Err(Fault::fields(vec![field("/hostnames", "out_of_range", text)]));
    }
    let (mut names, mut errors) = (Vec::with_capacity(hostnames.len()), Vec::new());
    for (index, hostname) in hostnames.iter().enumerate() {
        let at = format!("/hostnames/{index}");
        match NamePattern::parse(hostname) {
            Err(error) => errors.push(field(at, "domain_name_invalid", error.to_string())),
            Ok(name) if names.contains(&name) => errors.push(field(at, "duplicate", "is there twice")),
            Ok(name) => names.push(name),
        }
    }
    let key_type = spec.key_type.unwrap_or(KeyType::EcdsaP256);
    if key_type == KeyType::Ed25519 {
        let text = "no browser can verify Ed25519, and no public CA signs it; use ecdsa-p256, or rsa2048 for old clients";
        errors.push(field("/key_type", "key_unsupported", text));
    }
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    Ok(Wanted { names, key_type })
}

/// Makes the key, before the writer's turn, for one of RSA takes long; `None` where a request like it waits already. None is made
/// for what [`put`] would refuse.
///
/// # Errors
/// 422 with names that are no domains of the tenant, 409 where it has too many, 429 where it asks for too many at once; the store's.
pub(crate) async fn make_key(app: &App, tenant: TenantId, wanted: &Wanted) -> Answered<Option<PrivateKey>> {
    let mut read = app.parts.store.read().await?;
    let errors = foreign(&mut read, tenant, wanted).await?;
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    let now = app.parts.clock.now_ms();
    if store::find_same(&mut read, tenant, &wanted.texts(), wanted.key_type, now).await?.is_some() {
        return Ok(None);
    }
    has_room(&mut read, tenant).await?;
    drop(read);
    let key_type = wanted.key_type;
    if !key_type.is_rsa() {
        return PrivateKey::generate(key_type).map(Some).map_err(|error| failed(&error));
    }
    let place = app.waits.begin_rsa_key(tenant)?;
    let made = in_turn(place, move || PrivateKey::generate(key_type)).await?;
    made.map(Some).map_err(|error| failed(&error))
}

/// Does `work` when its turn comes. Turn and place are the work's and not the caller's, who may hang up: it goes on all the same,
/// and the next must not begin beside it.
async fn in_turn<T: Send + 'static>(place: Wait, work: impl FnOnce() -> T + Send + 'static) -> Answered<T> {
    let turn = RSA_TURN.acquire().await.map_err(|error| failed(&error))?;
    let held = (turn, place);
    let done = tokio::task::spawn_blocking(move || {
        let _held = held;
        work()
    });
    done.await.map_err(|error| failed(&error))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Fault {
    tracing::error!(error, "a key cannot be made");
    Fault::internal()
}

/// Writes the request down with its key.
///
/// # Errors
/// 422 with names that are no domains of the tenant, 409 where it has too many; the store's.
pub(crate) async fn put(
    app: &App,
    write: &mut Write,
    tenant: TenantId,
    wanted: &Wanted,
    key: Option<PrivateKey>,
) -> Answered<Made> {
    let errors = foreign(&mut write.tx, tenant, wanted).await?;
    if !errors.is_empty() {
        return Err(Fault::fields(errors));
    }
    let names = wanted.texts();
    if let Some(same) = store::find_same(&mut write.tx, tenant, &names, wanted.key_type, write.now_ms).await?
    {
        return Ok(Made::Same(same));
    }
    has_room(&mut write.tx, tenant).await?;
    // It went in the moment since the look before.
    let Some(key) = key else {
        return Err(Fault::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "the request that waited has gone just now; send this again",
        ));
    };
    let csr = key.csr(&wanted.names).map_err(|error| {
        tracing::error!(%error, "a certificate request cannot be made");
        Fault::internal()
    })?;
    let id = CertificateRequestId::generate();
    let row = CertificateRequestRow {
        id,
        tenant,
        names,
        key_type: wanted.key_type,
        csr_pem: request_pem(&csr),
        sealed_key: app.parts.sealer.seal(PURPOSE, &id.to_string(), key.secret_der()),
        spki_sha256: key.spki_sha256().to_vec(),
        created_at: write.now_ms,
        expires_at: write.now_ms + CERTIFICATE_REQUEST_LASTS_MS,
    };
    store::insert(&mut write.tx, &row).await?;
    write.keeps(row.csr_pem.len());
    write.audit("certificate_request.create", &id.to_string(), &(), &described(&row)).await?;
    Ok(Made::New(row))
}

async fn foreign(
    connection: &mut Connection,
    tenant: TenantId,
    wanted: &Wanted,
) -> Answered<Vec<FieldError>> {
    let mut errors = Vec::new();
    for (index, name) in wanted.names.iter().enumerate() {
        if domain::find_of_tenant(connection, tenant, name).await?.is_none() {
            let text = format!("{name} is no domain of this tenant; add it first");
            errors.push(field(format!("/hostnames/{index}"), "unknown_domain", text));
        }
    }
    Ok(errors)
}

async fn has_room(connection: &mut Connection, tenant: TenantId) -> Answered<()> {
    if store::count(connection, tenant).await? < CERTIFICATE_REQUESTS_OF_TENANT_MAX {
        return Ok(());
    }
    let detail = format!(
        "{CERTIFICATE_REQUESTS_OF_TENANT_MAX} certificate requests of the tenant wait for their certificates; upload those, or \
         delete requests that are not needed (`portico cert requests`, `portico cert rm ID`)"
    );
    Err(Fault::conflict("certificate_requests_full", detail))
}

/// The key of a certificate that was brought without one.
///
/// # Errors
/// 422 where none is here, or it was reported compromised; the store's; a key that cannot be opened.
pub(crate) async fn key_of(app: &App, tenant: TenantId, facts: &CertificateFacts) -> Answered<PrivateKey> {
    let spki_sha256 = facts.spki_sha256;
    let mut read = app.parts.store.read().await?;
    // Before any other word: whoever has the key in service is not to be told to bring it.
    if compromise::is_compromised(&mut read, &spki_sha256).await? {
        let text = "the key of this certificate was reported compromised and is never accepted again; make a new request";
        return Err(Fault::fields(vec![field("/chain_pem", "key_compromised", text)]));
    }
    let unreadable = |error: &(dyn std::error::Error + 'static)| {
        tracing::error!(error, "a key that waits or serves cannot be opened");
        Fault::internal()
    };
    let now = app.parts.clock.now_ms();
    if let Some(row) = store::of_key(&mut read, tenant, &spki_sha256, now).await? {
        let opened = app.parts.sealer.open(PURPOSE, &row.id.to_string(), &row.sealed_key);
        let opened = opened.map_err(|error| unreadable(&error))?;
        return PrivateKey::from_pkcs8_der(&opened).map_err(|error| unreadable(&error));
    }
    let Some(held) = uploaded::key_in_service(&mut read, tenant, &spki_sha256).await? else {
        let text = format!(
            "is missing, and no key of the tenant is here for this certificate ({}, public key {}): none of its certificate \
             requests that wait has it, nor a certificate that it has uploaded and that is in service; give the key, or have \
             the certificate issued by a request that was made here (`portico shadow csr NAME`)",
            facts.key_type,
            hex::encode(spki_sha256)
        );
        return Err(Fault::fields(vec![field("/key_pem", "unknown_key", text)]));
    };
    let SealedInCell { cell, epoch, credential, key_tenant, sealed_key } = held;
    let of_cell = cell::key(&mut read, &app.parts.sealer, &cell, epoch).await;
    let of_cell = of_cell.map_err(|error| unreadable(&error))?.ok_or_else(Fault::internal)?;
    let context = SealContext { cell: &cell, epoch, key_tenant: &key_tenant, credential, spki_sha256 };
    of_cell.open(&SealedKey::from_bytes(sealed_key), &context).map_err(|error| unreadable(&error))
}

/// The certificate of a key is here: a request for it is over.
///
/// # Errors
/// The store's.
pub(crate) async fn complete(write: &mut Write, tenant: TenantId, spki_sha256: &[u8]) -> Answered<()> {
    let Some(row) = store::complete(&mut write.tx, tenant, spki_sha256).await? else { return Ok(()) };
    write.audit("certificate_request.complete", &row.id.to_string(), &described(&row), &()).await
}

/// Forgets a request and its key.
///
/// # Errors
/// The store's.
pub(crate) async fn delete(write: &mut Write, row: &CertificateRequestRow) -> Answered<()> {
    store::delete(&mut write.tx, row.id).await?;
    write.audit("certificate_request.delete", &row.id.to_string(), &described(row), &()).await
}

pub(crate) fn shown(row: &CertificateRequestRow) -> CertificateRequest {
    CertificateRequest {
        id: row.id,
        tenant_id: row.tenant,
        hostnames: row.names.clone(),
        key_type: row.key_type,
        csr_pem: row.csr_pem.clone(),
        spki_sha256: hex::encode(&row.spki_sha256),
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
    }
}

/// What the trail says of a request.
pub(crate) fn described(row: &CertificateRequestRow) -> serde_json::Value {
    serde_json::json!({
        "tenant_id": row.tenant,
        "hostnames": row.names,
        "key_type": row.key_type,
        "spki_sha256": hex::encode(&row.spki_sha256),
        "expires_at": rfc3339(row.expires_at),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::http::waits::Waits;

    #[tokio::test]
    async fn a_caller_that_hangs_up_frees_neither_turn_nor_place_while_its_key_is_made() {
        let (waits, tenant) = (Waits::default(), TenantId::generate());
        let places = || std::iter::from_fn(|| waits.begin_rsa_key(tenant).ok()).collect::<Vec<_>>().len();
        let all = places();
        let (begun, begins) = oneshot::channel::<()>();
        let (end, ended) = mpsc::channel::<()>();
        let work = move || {
            begun.send(()).unwrap();
            ended.recv().unwrap();
        };
        let caller = tokio::spawn(in_turn(waits.begin_rsa_key(tenant).unwrap(), work));
        begins.await.unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert_eq!((places(), RSA_TURN.available_permits()), (all - 1, 0));
        end.send(()).unwrap();
        // Held in this order: whoever has the next turn may find the place taken for a moment.
        let _turn = RSA_TURN.acquire().await.unwrap();
        while places() < all {
            tokio::task::yield_now().await;
        }
    }
}
