//! Domains: a name that a tenant brings, and how far it has come.

use portico_cert_store::{CellId, DomainId, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Action, CertificateSummary, ClientCertificates, MinimumTls, Route};

/// The most domains that one `domains/batch` call takes.
pub const BATCH_ITEMS_MAX: usize = 1000;

/// The most ids that `GET /v1/domains?ids=` takes.
pub const IDS_MAX: usize = 200;

/// A name, what its tenant wants of it, and what is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Domain {
    #[schema(value_type = String)]
    pub id: DomainId,
    #[schema(value_type = String)]
    pub tenant_id: TenantId,
    #[serde(default)]
    pub tenant_name: String,
    #[serde(flatten)]
    pub spec: DomainSpec,
    /// The hostname in the script that people read.
    pub hostname_unicode: String,
    pub status: DomainStatus,
    pub conditions: Vec<Condition>,
    /// Absent when `active` and nothing is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_action: Option<NextAction>,
    pub dns: DnsInstructions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// For each cell that serves the domain, the uploaded ones too.
    pub certificates: Vec<CertificateSummary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspension: Option<Suspension>,
    pub revision: u64,
    /// RFC 3339.
    pub created_at: String,
}

/// What a caller decides about a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainSpec {
    /// `shop.example`, `*.shop.example`; Unicode is taken and stored as A-labels.
    pub hostname: String,
    /// None: every request gets 404, which is how a name is brought before its site is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Absent or empty: the tenant's cells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub cells: Vec<CellId>,
    /// Its certificate holds this name only, whatever the tenant's sharing says.
    #[serde(default)]
    pub alone: bool,
    /// Certificates are ordered for it (the default), also beside an uploaded one, to fall back to. `false`: uploaded ones alone
    /// are shown; one that was issued before serves to its end.
    #[serde(default = "yes")]
    pub issue_certificates: bool,
    /// Whether a backup certificate stands by for it, of another issuer and with another key. Absent: as its tenant has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_certificate: Option<bool>,
    #[serde(default)]
    pub minimum_tls: MinimumTls,
    /// HTTP/2 is offered to clients.
    #[serde(default = "yes")]
    pub http2: bool,
    /// HTTP/3 is offered to clients, where an edge has it.
    #[serde(default = "yes")]
    pub http3: bool,
    /// GET, HEAD and OPTIONS without a body are taken before the handshake has ended (0-RTT), over HTTP/3, and go to origins with
    /// `Early-Data: 1` (RFC 8470): such a request may come twice. Needs `http3`, and is not to be had with `client_certificates`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early_data: bool,
    /// Set: clients are asked for a certificate (mTLS). `null` in a patch ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificates: Option<ClientCertificates>,
    /// Strict-Transport-Security max-age, seconds. 0 is sent as it is: browsers forget what they were told before. `null`, as
    /// from the start: no header, and browsers go on with what they know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsts_max_age_seconds: Option<u32>,
    /// Strict-Transport-Security holds for all names below, whoever serves them. Needs a max-age.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hsts_include_subdomains: bool,
    /// Browsers may build the name into their lists, which is hard to take back. Needs `hsts_include_subdomains`, a max-age of
    /// a year or more and `https_redirect`, as those lists do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hsts_preload: bool,
    /// Port 80 redirects to https (the default), or goes to the routes.
    #[serde(default = "yes")]
    pub https_redirect: bool,
    /// Set: every request gets 503 with this text. Certificates are renewed and challenges are answered, the origin's own
    /// too. `null` in a patch ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
}

impl DomainSpec {
    /// A name with every setting at its default, and no route yet.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            routes: Vec::new(),
            cells: Vec::new(),
            alone: false,
            issue_certificates: true,
            backup_certificate: None,
            minimum_tls: MinimumTls::default(),
            http2: true,
            http3: true,
            early_data: false,
            client_certificates: None,
            hsts_max_age_seconds: None,
            hsts_include_subdomains: false,
            hsts_preload: false,
            https_redirect: true,
            maintenance: None,
        }
    }

    /// The first route whose origins are shown the tenant's client certificate.
    #[must_use]
    pub fn shows_client_certificate(&self) -> Option<usize> {
        let shows = |route: &Route| match &route.action {
            Action::Proxy(proxy) => proxy.tls.as_ref().is_some_and(|tls| tls.client_certificate),
            Action::Redirect(_) | Action::Static(_) => false,
        };
        self.routes.iter().position(shows)
    }
}

/// The tenant's own switch, unlike a [`Suspension`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// Shown on the page; at most 500 bytes.
    #[serde(default)]
    pub text: String,
    /// Sent as Retry-After; 1 to 604,800 (a week).
    #[serde(default = "retry_after")]
    pub retry_after_seconds: u32,
}

fn retry_after() -> u32 {
    300
}

fn yes() -> bool {
    true
}

/// One word for where a domain stands; `conditions` and `next_action` say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DomainStatus {
    /// Waiting for the tenant: proof of control or DNS.
    Pending,
    Validating,
    Issuing,
    Deploying,
    Active,
    /// Serves, but something needs attention (a renewal fails, a re-check fails).
    Degraded,
    /// Does not serve and will not without an act of somebody.
    Failed,
    /// Led here once, leads elsewhere for longer than its time of grace: nothing is ordered for it until it leads here again.
    Left,
    Suspended,
    Deleting,
}

/// One observed fact. Unknown is never false.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    pub status: ConditionStatus,
    /// CamelCase, stable.
    pub reason: String,
    /// For people.
    pub message: String,
    /// RFC 3339; when `status` last changed.
    pub since: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_check_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum ConditionKind {
    OwnershipProved,
    DnsPointsHere,
    ChallengeReachable,
    /// The name's CAA records let the CA issue.
    CaaPermits,
    CertificateReady,
    /// Of the certificate that the tenant brought; absent where there is none.
    UploadedCertificate,
    Deployed,
    /// Of a name that led here once: it still does. False: it has left, with what follows and when.
    Present,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// The next step, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextAction {
    pub actor: Actor,
    pub text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<DnsRecord>,
    /// RFC 3339; when the system looks again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    Tenant,
    Operator,
    System,
}

/// The records that prove control, carry traffic, or delegate the DNS challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsInstructions {
    pub records: Vec<DnsRecord>,
    /// Proves control too, as long as the name is served for nobody and does not point here. Absent for a wildcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_file: Option<ProofFile>,
}

/// A file on the server that a name points to today.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofFile {
    /// Plain HTTP; no redirect is followed.
    pub url: String,
    pub content: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsRecord {
    pub name: String,
    /// `CNAME`, `TXT`, `A`, `AAAA`
    #[serde(rename = "type")]
    pub kind: String,
    pub value: String,
    pub purpose: RecordPurpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordPurpose {
    /// One CNAME to an unguessable target: proof and traffic at once.
    ProofAndTraffic,
    /// TXT `_portico.<host>`.
    Proof,
    Traffic,
    /// CNAME `_acme-challenge.<host>` to the control plane's own zone.
    ChallengeDelegation,
}

/// The newest valid proof that the tenant controls the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    pub method: ProofMethod,
    /// RFC 3339.
    pub proved_at: String,
    /// What was seen: the record, the URL and address, or the operator's note.
    pub evidence: String,
    /// Who caused the check: a token id, or `system`.
    pub actor: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProofMethod {
    Cname,
    Txt,
    Http,
    Attestation,
}

/// Body of `POST /v1/tenants/{tenant}/domains/batch`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainBatch {
    /// At most 1,000.
    pub items: Vec<DomainSpec>,
    /// All or nothing.
    #[serde(default)]
    pub atomic: bool,
}

/// The answer to a batch, one result an item, in order.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DomainBatchAnswer {
    pub results: Vec<DomainBatchResult>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DomainBatchResult {
    /// The HTTP status that a single call would have had: 200, 201, 409, 422.
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub id: Option<DomainId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<super::Problem>,
}

/// Body of the operator's `POST /v1/domains/attest`: the operator vouches for names, audited. It never displaces a
/// tenant's own proof.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    #[schema(value_type = Vec<String>)]
    pub domain_ids: Vec<DomainId>,
    /// Why the operator may vouch; kept with each proof.
    pub note: String,
}

/// A tenant or domain taken out of service for a while; certificate and challenges stay alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Suspension {
    pub mode: SuspensionMode,
    /// Shown on the page; at most 500 bytes.
    #[serde(default)]
    pub reason: String,
    /// RFC 3339; absent: until resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SuspensionMode {
    /// 503 with a neutral page.
    Page,
    /// 410.
    Gone,
    /// 451.
    Legal,
    /// The connection is closed.
    Drop,
}

/// The answer to suspend and resume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SuspensionAnswer {
    /// Connected edges that confirmed within the second.
    #[schema(value_type = Vec<String>)]
    pub acked: Vec<portico_cert_store::EdgeId>,
    /// Edges that have not; they follow when they reconnect.
    #[schema(value_type = Vec<String>)]
    pub not_acked: Vec<portico_cert_store::EdgeId>,
}

/// `GET /v1/domains/{id}/preview`: how to try the site on an edge before DNS moves.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    pub hostname: String,
    /// `address hostname`, for /etc/hosts.
    pub hosts_lines: Vec<String>,
    /// Works as it is.
    pub curl_lines: Vec<String>,
    pub dns_points_here: ConditionStatus,
}
