//! The calls, in the order of the table in the parent's parent.

use std::fmt::Write as _;
use std::time::Duration;

use http::Method;
use portico_cert_store::{CellId, CredentialId, DomainId, EdgeId, TenantId};
use serde_json::Value;

use super::{Call, Client, ClientError, decode};
use crate::v1::{
    AdoptAccount, Adoption, AdoptionAnswer, Attestation, AuditEntry, AuditVerdict, Backup, BackupDrill,
    BackupDrillRequest, BackupScope, BackupSwitch, BudgetReport, Cell, CellRequest, Certificate,
    CertificateRequest, CertificateRequestId, CertificateRequestSpec, CertificateUpload,
    CertificateUploadAnswer, DefaultCertificate, DefaultCertificateRequest, Domain, DomainBatch,
    DomainBatchAnswer, DomainSpec, DomainStatus, Edge, Event, HeldRemoval, Import, ImportAnswer, Issuer,
    IssuerAccount, JoinToken, JoinTokenRequest, NewToken, NewWebhook, OriginAuthority, Page, PlanReport,
    Preview, Purge, PurgeRequest, Rekey, RekeyId, RekeyRequest, RemovalSignOff, RemovalsSignedOff,
    RenewalsReport, SecretPem, SharedGroup, SharedGroupOffer, Sharing, SharingConsentRequest, Suspension,
    SuspensionAnswer, Tenant, TenantSpec, Token, TokenRequest, UsageBy, UsageOrder, UsageRow, Webhook,
    WebhookReplay, WebhookRequest, WebhookSecret, WebhookTry,
};

/// Which domains to list; all when empty.
#[derive(Clone, Debug, Default)]
pub struct DomainQuery {
    pub tenant: Option<TenantId>,
    pub status: Option<DomainStatus>,
    /// Part of the hostname.
    pub q: Option<String>,
    /// The whole hostname: each tenant's claim of it.
    pub hostname: Option<String>,
    pub cursor: Option<String>,
    pub limit: Option<u32>,
}

/// Which certificates to list; all when empty.
#[derive(Clone, Debug, Default)]
pub struct CertificateQuery {
    /// A domain's id or hostname.
    pub domain: Option<String>,
    /// RFC 3339.
    pub expires_before: Option<String>,
    pub cursor: Option<String>,
    pub limit: Option<u32>,
}

/// Tenants.
impl Client {
    pub async fn create_tenant(&self, spec: &TenantSpec) -> Result<Tenant, ClientError> {
        self.post("/v1/tenants", spec).await
    }

    /// `name`: the one tenant of that name.
    pub async fn tenants(
        &self,
        name: Option<&str>,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page<Tenant>, ClientError> {
        let query =
            Query::new("/v1/tenants").text("name", name).text("cursor", cursor).number("limit", limit);
        self.get(&query.0).await
    }

    pub async fn tenant(&self, id: TenantId) -> Result<Tenant, ClientError> {
        self.get(&format!("/v1/tenants/{id}")).await
    }

    /// The tenant whose token this is; 404 `no_tenant_of_its_own` with an operator's.
    pub async fn own_tenant(&self) -> Result<Tenant, ClientError> {
        self.get("/v1/tenants/self").await
    }

    /// `patch` is a merge patch (RFC 7396) of [`TenantSpec`]; `revision` guards against a change in between.
    pub async fn patch_tenant(
        &self,
        id: TenantId,
        patch: &Value,
        revision: Option<u64>,
    ) -> Result<Tenant, ClientError> {
        self.patch(&format!("/v1/tenants/{id}"), patch, revision).await
    }

    pub async fn suspend_tenant(
        &self,
        id: TenantId,
        suspension: &Suspension,
    ) -> Result<SuspensionAnswer, ClientError> {
        self.post(&format!("/v1/tenants/{id}/suspend"), suspension).await
    }

    pub async fn resume_tenant(&self, id: TenantId) -> Result<SuspensionAnswer, ClientError> {
        self.act(&format!("/v1/tenants/{id}/resume")).await
    }

    pub async fn shared_group(&self, id: TenantId) -> Result<SharedGroup, ClientError> {
        self.get(&format!("/v1/tenants/{id}/shared-group")).await
    }

    pub async fn offer_shared_group(
        &self,
        id: TenantId,
        offer: &SharedGroupOffer,
    ) -> Result<SharedGroup, ClientError> {
        let path = format!("/v1/tenants/{id}/shared-group");
        decode(&self.send(Call::new(Method::PUT, &path).json(offer)?).await?)
    }

    pub async fn consent_to_sharing(
        &self,
        id: TenantId,
        consent: &SharingConsentRequest,
    ) -> Result<SharedGroup, ClientError> {
        self.post(&format!("/v1/tenants/{id}/shared-group/consent"), consent).await
    }

    pub async fn leave_shared_group(&self, id: TenantId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/tenants/{id}/shared-group"), None).await
    }

    /// Makes it, where there is none.
    pub async fn create_origin_authority(&self, id: TenantId) -> Result<OriginAuthority, ClientError> {
        self.act(&format!("/v1/tenants/{id}/origin-authority")).await
    }

    pub async fn origin_authority(&self, id: TenantId) -> Result<OriginAuthority, ClientError> {
        self.get(&format!("/v1/tenants/{id}/origin-authority")).await
    }

    /// Makes the one that is to take its place, where there is none.
    pub async fn create_next_origin_authority(&self, id: TenantId) -> Result<OriginAuthority, ClientError> {
        self.act(&format!("/v1/tenants/{id}/origin-authority/next")).await
    }

    pub async fn delete_next_origin_authority(&self, id: TenantId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/tenants/{id}/origin-authority/next"), None).await
    }

    /// Has the next one issue from now on: its origins trust both.
    pub async fn switch_origin_authority(&self, id: TenantId) -> Result<OriginAuthority, ClientError> {
        self.act(&format!("/v1/tenants/{id}/origin-authority/switch")).await
    }

    pub async fn purge(&self, id: TenantId, request: &PurgeRequest) -> Result<Purge, ClientError> {
        self.post(&format!("/v1/tenants/{id}/purges"), request).await
    }
}

/// Tokens.
impl Client {
    pub async fn create_token(&self, request: &TokenRequest) -> Result<NewToken, ClientError> {
        self.post("/v1/tokens", request).await
    }

    pub async fn tokens(&self, cursor: Option<&str>, limit: Option<u32>) -> Result<Page<Token>, ClientError> {
        self.get(&Query::new("/v1/tokens").text("cursor", cursor).number("limit", limit).0).await
    }

    pub async fn delete_token(&self, id: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/tokens/{}", escaped(id)), None).await
    }
}

/// Domains. `domain` is an id or a hostname.
impl Client {
    pub async fn create_domain(&self, tenant: TenantId, spec: &DomainSpec) -> Result<Domain, ClientError> {
        self.post(&format!("/v1/tenants/{tenant}/domains"), spec).await
    }

    pub async fn create_domains(
        &self,
        tenant: TenantId,
        batch: &DomainBatch,
    ) -> Result<DomainBatchAnswer, ClientError> {
        self.post(&format!("/v1/tenants/{tenant}/domains/batch"), batch).await
    }

    /// Tenants and domains, all or nothing.
    pub async fn import(&self, import: &Import) -> Result<ImportAnswer, ClientError> {
        self.post("/v1/imports", import).await
    }

    pub async fn domains(&self, query: &DomainQuery) -> Result<Page<Domain>, ClientError> {
        let status = query
            .status
            .map(|status| serde_json::to_value(status).map_err(ClientError::Answer))
            .transpose()?;
        let query = Query::new("/v1/domains")
            .text("tenant", query.tenant.map(|id| id.to_string()).as_deref())
            .text("status", status.as_ref().and_then(Value::as_str))
            .text("q", query.q.as_deref())
            .text("hostname", query.hostname.as_deref())
            .text("cursor", query.cursor.as_deref())
            .number("limit", query.limit);
        self.get(&query.0).await
    }

    /// Those of `ids` (at most [`crate::v1::IDS_MAX`]) that there are.
    pub async fn domains_of(&self, ids: &[DomainId]) -> Result<Vec<Domain>, ClientError> {
        let ids: Vec<String> = ids.iter().map(DomainId::to_string).collect();
        let page: Page<Domain> = self.get(&format!("/v1/domains?ids={}", ids.join(","))).await?;
        Ok(page.items)
    }

    pub async fn domain(&self, domain: &str) -> Result<Domain, ClientError> {
        self.get(&format!("/v1/domains/{}", escaped(domain))).await
    }

    /// The domain when it is active, or as it stands when `timeout` has passed.
    pub async fn domain_wait_active(&self, domain: &str, timeout: Duration) -> Result<Domain, ClientError> {
        let path = format!("/v1/domains/{}?wait=active&timeout={}s", escaped(domain), timeout.as_secs());
        let call = Call { extra_time: timeout, ..Call::new(Method::GET, &path) };
        decode(&self.send(call).await?)
    }

    /// `patch` is a merge patch (RFC 7396) of [`DomainSpec`]; `revision` guards against a change in between.
    pub async fn patch_domain(
        &self,
        id: DomainId,
        patch: &Value,
        revision: Option<u64>,
    ) -> Result<Domain, ClientError> {
        self.patch(&format!("/v1/domains/{id}"), patch, revision).await
    }

    /// The removal, when it is held back: the edges serve the name until an operator signs it off.
    pub async fn delete_domain(
        &self,
        id: DomainId,
        revision: Option<u64>,
    ) -> Result<Option<HeldRemoval>, ClientError> {
        let path = format!("/v1/domains/{id}");
        let answer = self.send(Call { if_match: revision, ..Call::new(Method::DELETE, &path) }).await?;
        if answer.is_empty() { Ok(None) } else { decode(&answer).map(Some) }
    }

    /// Has DNS and proofs looked at now.
    pub async fn check_domain(&self, id: DomainId) -> Result<Domain, ClientError> {
        self.act(&format!("/v1/domains/{id}/check")).await
    }

    /// Has a failed certificate tried again now.
    pub async fn retry_domain(&self, id: DomainId) -> Result<Domain, ClientError> {
        self.act(&format!("/v1/domains/{id}/retry")).await
    }

    pub async fn suspend_domain(
        &self,
        id: DomainId,
        suspension: &Suspension,
    ) -> Result<SuspensionAnswer, ClientError> {
        self.post(&format!("/v1/domains/{id}/suspend"), suspension).await
    }

    pub async fn resume_domain(&self, id: DomainId) -> Result<SuspensionAnswer, ClientError> {
        self.act(&format!("/v1/domains/{id}/resume")).await
    }

    pub async fn attest_domains(&self, attestation: &Attestation) -> Result<DomainBatchAnswer, ClientError> {
        self.post("/v1/domains/attest", attestation).await
    }

    pub async fn preview(&self, id: DomainId) -> Result<Preview, ClientError> {
        self.get(&format!("/v1/domains/{id}/preview")).await
    }
}

/// Certificates.
impl Client {
    pub async fn certificates(&self, query: &CertificateQuery) -> Result<Page<Certificate>, ClientError> {
        let query = Query::new("/v1/certificates")
            .text("domain", query.domain.as_deref())
            .text("expires_before", query.expires_before.as_deref())
            .text("cursor", query.cursor.as_deref())
            .number("limit", query.limit);
        self.get(&query.0).await
    }

    pub async fn certificate(&self, id: CredentialId) -> Result<Certificate, ClientError> {
        self.get(&format!("/v1/certificates/{id}")).await
    }

    pub async fn upload_certificate(
        &self,
        tenant: TenantId,
        upload: &CertificateUpload,
    ) -> Result<CertificateUploadAnswer, ClientError> {
        self.post(&format!("/v1/tenants/{tenant}/certificates"), upload).await
    }

    /// Makes a key here and a request for a certificate that the tenant orders itself; the one that waits already, if there is.
    pub async fn request_certificate(
        &self,
        tenant: TenantId,
        spec: &CertificateRequestSpec,
    ) -> Result<CertificateRequest, ClientError> {
        self.post(&format!("/v1/tenants/{tenant}/certificate-requests"), spec).await
    }

    /// Those of a tenant whose certificates have not come.
    pub async fn certificate_requests(
        &self,
        tenant: TenantId,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page<CertificateRequest>, ClientError> {
        let path = format!("/v1/tenants/{tenant}/certificate-requests");
        self.get(&Query::new(&path).text("cursor", cursor).number("limit", limit).0).await
    }

    /// Its key is destroyed.
    pub async fn delete_certificate_request(&self, id: CertificateRequestId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/certificate-requests/{id}"), None).await
    }

    /// Takes over a certificate of another ACME client, and the names that it serves.
    pub async fn adopt_certificate(
        &self,
        tenant: TenantId,
        adoption: &Adoption,
    ) -> Result<AdoptionAnswer, ClientError> {
        self.post(&format!("/v1/tenants/{tenant}/adoptions"), adoption).await
    }

    /// Of an uploaded or adopted certificate. `leave_unserved`: also where a name has no other.
    pub async fn delete_certificate(
        &self,
        id: CredentialId,
        leave_unserved: bool,
    ) -> Result<(), ClientError> {
        let flag = if leave_unserved { "?leave_unserved=true" } else { "" };
        self.delete(&format!("/v1/certificates/{id}{flag}"), None).await
    }
}

/// Edges.
impl Client {
    pub async fn create_join_token(&self, request: &JoinTokenRequest) -> Result<JoinToken, ClientError> {
        self.post("/v1/edges/join-tokens", request).await
    }

    pub async fn edges(&self) -> Result<Page<Edge>, ClientError> {
        self.get("/v1/edges").await
    }

    pub async fn edge(&self, id: EdgeId) -> Result<Edge, ClientError> {
        self.get(&format!("/v1/edges/{id}")).await
    }

    pub async fn delete_edge(&self, id: EdgeId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/edges/{id}"), None).await
    }

    pub async fn cells(&self) -> Result<Page<Cell>, ClientError> {
        self.get("/v1/cells").await
    }

    pub async fn cell(&self, cell: &CellId) -> Result<Cell, ClientError> {
        self.get(&format!("/v1/cells/{cell}")).await
    }

    /// Says where the keys of a cell are made from now on.
    pub async fn put_cell(&self, cell: &CellId, request: &CellRequest) -> Result<Cell, ClientError> {
        let path = format!("/v1/cells/{cell}");
        decode(&self.send(Call::new(Method::PUT, &path).json(request)?).await?)
    }

    pub async fn default_certificate(&self) -> Result<DefaultCertificate, ClientError> {
        self.get("/v1/default-certificate").await
    }

    pub async fn choose_default_certificate(
        &self,
        request: &DefaultCertificateRequest,
    ) -> Result<DefaultCertificate, ClientError> {
        decode(&self.send(Call::new(Method::PUT, "/v1/default-certificate").json(request)?).await?)
    }

    pub async fn delete_default_certificate(&self) -> Result<(), ClientError> {
        self.delete("/v1/default-certificate", None).await
    }
}

/// Removals that are held back.
impl Client {
    pub async fn held_removals(
        &self,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page<HeldRemoval>, ClientError> {
        self.get(&Query::new("/v1/removals").text("cursor", cursor).number("limit", limit).0).await
    }

    /// `held`: how many the caller saw held.
    pub async fn sign_off_removals(&self, held: u64) -> Result<RemovalsSignedOff, ClientError> {
        self.post("/v1/removals/sign-off", &RemovalSignOff { held }).await
    }
}

/// What to plan under in place of what is configured.
#[derive(Clone, Debug, Default)]
pub struct PlanQuery {
    pub names_per_certificate_max: Option<u32>,
    pub sharing: Option<Sharing>,
    /// At least 1.
    pub orders_3h: Option<u32>,
    /// Groups to list, up to 10,000; 100 by default.
    pub groups: Option<u32>,
    /// Cells that each name is in, instead of its own.
    pub cells: Option<u32>,
    /// A name whose place is to be explained.
    pub explain: Option<String>,
}

/// The plan of issuance.
impl Client {
    pub async fn create_rekey(&self, request: &RekeyRequest) -> Result<Rekey, ClientError> {
        self.post("/v1/rekeys", request).await
    }

    /// The newest first.
    pub async fn rekeys(&self, cursor: Option<&str>, limit: Option<u32>) -> Result<Page<Rekey>, ClientError> {
        self.get(&Query::new("/v1/rekeys").text("cursor", cursor).number("limit", limit).0).await
    }

    pub async fn rekey(&self, id: RekeyId) -> Result<Rekey, ClientError> {
        self.get(&format!("/v1/rekeys/{id}")).await
    }

    pub async fn renewals(&self) -> Result<RenewalsReport, ClientError> {
        self.get("/v1/renewals").await
    }

    pub async fn issuers(&self) -> Result<Page<Issuer>, ClientError> {
        self.get("/v1/issuers").await
    }

    /// Takes over the account that this key has at the issuer's CA. `change_key`: an RSA key is changed for a new one, which locks
    /// out whoever uses it.
    pub async fn adopt_account(
        &self,
        issuer: &str,
        key_pem: SecretPem,
        change_key: bool,
    ) -> Result<IssuerAccount, ClientError> {
        self.post(&format!("/v1/issuers/{issuer}/accounts"), &AdoptAccount { key_pem, change_key }).await
    }

    pub async fn backups(
        &self,
        scope: &BackupScope,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page<Backup>, ClientError> {
        let (group, tenant) = (scope.group.map(|id| id.to_string()), scope.tenant.map(|id| id.to_string()));
        let query =
            Query::new("/v1/backups").text("group", group.as_deref()).text("tenant", tenant.as_deref());
        let query = query.text("issuer", scope.issuer.as_deref()).text("cursor", cursor);
        self.get(&query.number("limit", limit).0).await
    }

    /// Shows backup certificates instead of what serves.
    pub async fn switch_to_backup(&self, scope: &BackupScope) -> Result<BackupSwitch, ClientError> {
        self.post_and_wait("/v1/backups/switch-to-backup", scope).await
    }

    /// The way back.
    pub async fn switch_back(&self, scope: &BackupScope) -> Result<BackupSwitch, ClientError> {
        self.post_and_wait("/v1/backups/switch-back", scope).await
    }

    /// Has the edges try whether they would serve names by their backups.
    pub async fn drill_backups(&self, request: &BackupDrillRequest) -> Result<BackupDrill, ClientError> {
        self.post_and_wait("/v1/backups/drill", request).await
    }

    /// Of one issuer or all, and of one name or all that the token sees.
    pub async fn budget(
        &self,
        issuer: Option<&str>,
        name: Option<&str>,
    ) -> Result<BudgetReport, ClientError> {
        self.get(&Query::new("/v1/budget").text("issuer", issuer).text("name", name).0).await
    }

    pub async fn plan(&self, query: &PlanQuery) -> Result<PlanReport, ClientError> {
        let sharing = query.sharing.map(|sharing| match sharing {
            Sharing::Alone => "alone",
            Sharing::RegisteredDomain => "registered_domain",
            Sharing::Tenant => "tenant",
        });
        let text = Query::new("/v1/plan")
            .number("names_per_certificate_max", query.names_per_certificate_max)
            .number("orders_3h", query.orders_3h)
            .number("groups", query.groups)
            .number("cells", query.cells)
            .text("sharing", sharing)
            .text("explain", query.explain.as_deref());
        self.get(&text.0).await
    }
}

/// Which figures of usage, and how they are summed.
#[derive(Clone, Debug, Default)]
pub struct UsageQuery {
    /// Whole hours, RFC 3339.
    pub from: Option<String>,
    /// Not in itself.
    pub to: Option<String>,
    pub tenant: Option<TenantId>,
    /// A domain's name.
    pub domain: Option<String>,
    /// None: one sum of all.
    pub by: Vec<UsageBy>,
    pub order: UsageOrder,
}

/// What was served.
impl Client {
    pub async fn usage(
        &self,
        query: &UsageQuery,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page<UsageRow>, ClientError> {
        let by: Vec<String> = query.by.iter().map(ToString::to_string).collect();
        let order = match query.order {
            UsageOrder::Key => None,
            UsageOrder::Requests => Some("requests"),
            UsageOrder::ResponseBytes => Some("response_bytes"),
        };
        let text = Query::new("/v1/usage")
            .text("from", query.from.as_deref())
            .text("to", query.to.as_deref())
            .text("tenant", query.tenant.map(|tenant| tenant.to_string()).as_deref())
            .text("domain", query.domain.as_deref())
            .text("by", Some(&by.join(",")))
            .text("order", order)
            .text("cursor", cursor)
            .number("limit", limit);
        self.get(&text.0).await
    }
}

/// Webhooks.
impl Client {
    /// Of the operators.
    pub async fn create_webhook(&self, request: &WebhookRequest) -> Result<NewWebhook, ClientError> {
        self.post("/v1/webhooks", request).await
    }

    pub async fn create_tenant_webhook(
        &self,
        tenant: TenantId,
        request: &WebhookRequest,
    ) -> Result<NewWebhook, ClientError> {
        self.post(&format!("/v1/tenants/{tenant}/webhooks"), request).await
    }

    pub async fn webhooks(
        &self,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page<Webhook>, ClientError> {
        self.get(&Query::new("/v1/webhooks").text("cursor", cursor).number("limit", limit).0).await
    }

    pub async fn webhook(&self, id: &str) -> Result<Webhook, ClientError> {
        self.get(&webhook_path(id, "")).await
    }

    pub async fn delete_webhook(&self, id: &str) -> Result<(), ClientError> {
        self.delete(&webhook_path(id, ""), None).await
    }

    pub async fn replay_webhook(&self, id: &str, replay: &WebhookReplay) -> Result<Webhook, ClientError> {
        self.post(&webhook_path(id, "/replay"), replay).await
    }

    pub async fn renew_webhook_secret(&self, id: &str) -> Result<WebhookSecret, ClientError> {
        self.act(&webhook_path(id, "/secret")).await
    }

    pub async fn test_webhook(&self, id: &str) -> Result<WebhookTry, ClientError> {
        self.act(&webhook_path(id, "/test")).await
    }

    /// Newest first.
    pub async fn webhook_tries(&self, id: &str, limit: Option<u32>) -> Result<Page<WebhookTry>, ClientError> {
        self.get(&Query::new(&webhook_path(id, "/tries")).number("limit", limit).0).await
    }
}

/// What is no id becomes one that there is not.
fn webhook_path(id: &str, below: &str) -> String {
    let id: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    format!("/v1/webhooks/{}{below}", if id.is_empty() { "none" } else { &id })
}

/// Events, the audit trail, and the server's own state.
impl Client {
    pub async fn events(&self, since: u64, limit: Option<u32>) -> Result<Page<Event>, ClientError> {
        self.get(&Query::new("/v1/events").number("since", Some(since)).number("limit", limit).0).await
    }

    pub async fn audit(&self, since: u64, limit: Option<u32>) -> Result<Page<AuditEntry>, ClientError> {
        self.get(&Query::new("/v1/audit").number("since", Some(since)).number("limit", limit).0).await
    }

    /// `from`: an earlier answer's mark.
    pub async fn verify_audit(&self, from: Option<&str>) -> Result<AuditVerdict, ClientError> {
        self.get(&Query::new("/v1/audit/verify").text("from", from).0).await
    }

    pub async fn openapi(&self) -> Result<Value, ClientError> {
        self.get("/v1/openapi.json").await
    }

    /// Ends without error when the control plane can serve calls.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.send(Call::new(Method::GET, "/readyz")).await.map(drop)
    }
}

impl Client {
    /// A POST without a body.
    async fn act<A: serde::de::DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        decode(&self.send(Call::new(Method::POST, path)).await?)
    }
}

/// A path with its query.
struct Query(String);

impl Query {
    fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    fn text(mut self, key: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            let separator = if self.0.contains('?') { '&' } else { '?' };
            let _infallible = write!(self.0, "{separator}{key}={}", escaped(value));
        }
        self
    }

    fn number(self, key: &str, value: Option<impl Into<u64>>) -> Self {
        self.text(key, value.map(|number| number.into().to_string()).as_deref())
    }
}

/// Percent-encoding of all but RFC 3986's unreserved characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}
