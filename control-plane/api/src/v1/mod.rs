//! The tenant API, version 1: JSON types of requests and answers.
//!
//! Wanted state and observed state are apart: what a caller sends is never changed by the server, what the server
//! observes stands in `status`, `conditions` and `next_action`. Enums are open: a caller must tolerate a value that it
//! does not know.
//!
//! | call | body -> answer | who |
//! |---|---|---|
//! | `POST /v1/tenants`, `GET /v1/tenants?cursor=&limit=&name=` | `TenantSpec` -> 201 `Tenant` (200 when it exists equal) / `Page<Tenant>` | operator; GET also the tenant (own) |
//! | `GET, PATCH /v1/tenants/{id}` | merge patch of `TenantSpec` -> `Tenant`; `self`: the token's own | operator; GET, and `error_pages` alone, also the tenant |
//! | `POST /v1/tenants/{id}/suspend`, `/resume` | `Suspension` / - -> `SuspensionAnswer` | operator |
//! | `POST /v1/tokens`, `GET /v1/tokens`, `DELETE /v1/tokens/{id}` | `TokenRequest` -> 201 `NewToken` / `Page<Token>` / 204 | operator |
//! | `POST /v1/tenants/{id}/domains` | `DomainSpec` -> 201 `Domain`; the same again -> 200 | tenant, operator |
//! | `POST /v1/tenants/{id}/domains/batch` | `DomainBatch` -> 200 `DomainBatchAnswer` | tenant, operator |
//! | `POST /v1/imports` | `Import` -> 200 `ImportAnswer`: tenants and domains, all or nothing | operator; tenant (own domains) |
//! | `GET /v1/domains?tenant=&status=&q=&hostname=&cursor=&limit=`, `GET /v1/domains?ids=` | `Page<Domain>` | tenant (own), operator |
//! | `GET /v1/domains/{id or hostname}?wait=active&timeout=60s` | `Domain` | tenant (own), operator |
//! | `PATCH, DELETE /v1/domains/{id}` | merge patch of `DomainSpec` -> `Domain` / 204, also when gone; 202 `HeldRemoval` while the edges serve it still | tenant (own), operator |
//! | `POST /v1/domains/{id}/check` | - -> `Domain` after looking at DNS and proofs now | tenant (own), operator |
//! | `POST /v1/domains/{id}/retry` | - -> `Domain`; a failed certificate is tried again now | tenant (own), operator |
//! | `POST /v1/domains/{id}/suspend`, `/resume` | `Suspension` / - -> `SuspensionAnswer` | operator |
//! | `POST /v1/tenants/{id}/purges` | `PurgeRequest` -> `Purge`: the edges forget what they keep | tenant (own), operator |
//! | `POST, GET /v1/tenants/{id}/origin-authority` | - -> 201 (200 when it exists) `OriginAuthority` | tenant (own), operator |
//! | `POST, DELETE /v1/tenants/{id}/origin-authority/next` | - -> 201 (200 when it exists) `OriginAuthority`; 204 | tenant (own), operator |
//! | `GET, DELETE /v1/tenants/{id}/shared-group` | - -> `SharedGroup`; 204: nothing is shared any more | tenant (own), operator |
//! | `PUT /v1/tenants/{id}/shared-group` | `SharedGroupOffer` -> `SharedGroup` | operator |
//! | `POST /v1/tenants/{id}/shared-group/consent` | `SharingConsentRequest` -> `SharedGroup` | tenant (own), operator with a note |
//! | `POST /v1/tenants/{id}/origin-authority/switch` | - -> `OriginAuthority` | tenant (own), operator |
//! | `POST /v1/domains/attest` | `Attestation` -> `DomainBatchAnswer` | operator |
//! | `GET /v1/domains/{id}/preview` | `Preview` | tenant (own), operator |
//! | `GET /v1/certificates?domain=&expires_before=&cursor=&limit=`, `GET /v1/certificates/{credential id}` | `Page<Certificate>`, `Certificate` | tenant (own), operator |
//! | `POST /v1/tenants/{id}/certificates` | `CertificateUpload` -> 201 `CertificateUploadAnswer`; the same again -> 200 | tenant (own), operator |
//! | `POST, GET /v1/tenants/{id}/certificate-requests?cursor=&limit=` | `CertificateRequestSpec` -> 201 `CertificateRequest` (200 when it waits already) / `Page<CertificateRequest>` | tenant (own), operator |
//! | `GET, DELETE /v1/certificate-requests/{id}` | `CertificateRequest` / 204 | tenant (own), operator |
//! | `DELETE /v1/certificates/{credential id}?leave_unserved=` | 204, also when gone: an uploaded or adopted one, in all its cells | tenant (own), operator |
//! | `POST /v1/tenants/{id}/adoptions` | `Adoption` -> 201 `AdoptionAnswer`; the same again -> 200 | operator |
//! | `POST /v1/edges/join-tokens` | `JoinTokenRequest` -> 201 `JoinToken` | operator |
//! | `GET /v1/edges`, `GET, DELETE /v1/edges/{id}` | `Page<Edge>` / `Edge` / 204 | operator |
//! | `GET /v1/cells`, `GET, PUT /v1/cells/{cell}` | `CellRequest` -> `Page<Cell>` / `Cell`: where its keys are made | operator |
//! | `GET, PUT, DELETE /v1/default-certificate` | `DefaultCertificateRequest` -> `DefaultCertificate` / 204 | operator |
//! | `GET /v1/removals?cursor=&limit=`, `POST /v1/removals/sign-off` | `Page<HeldRemoval>` / `RemovalSignOff` -> `RemovalsSignedOff` | operator |
//! | `GET /v1/plan?names_per_certificate_max=&sharing=&orders_3h=&groups=&cells=&explain=` | `PlanReport`, also under other settings | operator |
//! | `POST /v1/rekeys` | `RekeyRequest` -> 201 `Rekey`: keys are replaced before their time (200 when they are already, and for a dry run) | operator |
//! | `GET /v1/rekeys?cursor=&limit=`, `GET /v1/rekeys/{id}` | `Page<Rekey>`, `Rekey` | operator |
//! | `GET /v1/renewals` | `RenewalsReport`: what is due or late, and how far a mass replacement is | operator |
//! | `GET /v1/budget?issuer=&name=` | `BudgetReport`: what CAs still let us order | tenant (own), operator |
//! | `GET /v1/issuers` | `Page<Issuer>`: the CAs, how they stand, our accounts there | operator |
//! | `POST /v1/issuers/{name}/accounts` [`AdoptAccount`] | `IssuerAccount` | operator |
//! | `GET /v1/backups?group=&tenant=&issuer=&cursor=&limit=` | `Page<Backup>` | tenant (own), operator |
//! | `POST /v1/backups/switch-to-backup`, `POST /v1/backups/switch-back` [`BackupScope`] | [`BackupSwitch`] | operator |
//! | `POST /v1/backups/drill` [`BackupDrillRequest`] | [`BackupDrill`] | operator |
//! | `GET /v1/usage?from=&to=&tenant=&domain=&by=&order=&cursor=&limit=` | `Page<UsageRow>` | tenant (own), operator |
//! | `GET /v1/events?since=&limit=`, `GET /v1/audit?since=&limit=` | `Page<Event>`, `Page<AuditEntry>` | tenant (own events), operator |
//! | `POST /v1/webhooks`, `POST /v1/tenants/{id}/webhooks` [`WebhookRequest`] | `NewWebhook`, its secret shown once | operator; tenant (own) |
//! | `GET /v1/webhooks?cursor=&limit=`, `GET, DELETE /v1/webhooks/{id}` | `Page<Webhook>` / `Webhook` / 204 | tenant (own), operator |
//! | `POST /v1/webhooks/{id}/replay` [`WebhookReplay`], `../secret`, `../test` | `Webhook` / `WebhookSecret` / `WebhookTry` | tenant (own), operator |
//! | `GET /v1/webhooks/{id}/tries?limit=` | `Page<WebhookTry>`, newest first | tenant (own), operator |
//! | `GET /v1/audit/verify?from=` | [`AuditVerdict`] | operator |
//! | `GET /v1/openapi.json`, `/healthz`, `/readyz`, `/metrics` | | anyone on the API's loopback address |
//!
//! `Authorization: Bearer <token>`; `Idempotency-Key` (kept 24 h; another body under the same key is 409) on every
//! POST; `ETag` on every object and `If-Match` on PATCH and DELETE; an object of another tenant is 404, never
//! 403; an operator's call on a tenant's own object is 403 with that tenant's token.

mod adoption;
mod backup;
mod budget;
mod cache;
mod cell;
mod certificate;
mod certificate_request;
pub mod client;
mod compression;
mod domain;
mod edge;
mod error_pages;
mod event;
mod import;
mod issuer;
mod origin_authority;
mod page;
mod plan;
mod problem;
mod proxy;
mod rekey;
mod removal;
mod renewals;
mod route;
mod shared_group;
mod tenant;
mod tenant_limits;
mod tls;
mod token;
mod usage;
mod webhook;

pub use adoption::*;
pub use backup::*;
pub use budget::*;
pub use cache::*;
pub use cell::*;
pub use certificate::*;
pub use certificate_request::*;
pub use compression::*;
pub use domain::*;
pub use edge::*;
pub use error_pages::*;
pub use event::*;
pub use import::*;
pub use issuer::*;
pub use origin_authority::*;
pub use page::*;
pub use plan::*;
pub use problem::*;
pub use proxy::*;
pub use rekey::*;
pub use removal::*;
pub use renewals::*;
pub use route::*;
pub use shared_group::*;
pub use tenant::*;
pub use tenant_limits::*;
pub use tls::*;
pub use token::*;
pub use usage::*;
pub use webhook::*;
