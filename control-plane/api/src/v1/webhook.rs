//! Webhooks: endpoints to which events are sent, signed as Standard Webhooks has it.

use portico_cert_store::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/webhooks` and `POST /v1/tenants/{id}/webhooks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// `https://..`; `http://` to an address in a private range only.
    pub url: String,
    /// Kinds of events, such as `domain.left`; absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// For people; at most 100 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The first event that is sent is the one after this number; absent: the first after now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// An endpoint and how far it has come.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    pub id: String,
    /// Absent: the operators', who hear of everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant_id: Option<TenantId>,
    pub url: String,
    /// Empty: all kinds.
    pub kinds: Vec<String>,
    pub label: String,
    pub state: WebhookState,
    /// Events up to this number were taken, or are not for it.
    pub delivered_to: u64,
    /// Tries in a row that failed.
    pub failures: u32,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
    /// Of the last try, or why it is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// RFC 3339; while it fails: when it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<String>,
    /// RFC 3339; when it took one last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
    /// RFC 3339; until then the secret before signs too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret_until: Option<String>,
    /// RFC 3339.
    pub created_at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    Active,
    /// The last try failed; it is tried again.
    Failing,
    /// Nothing is sent until it is replayed or resumed.
    Disabled,
}

/// An endpoint with its secret, shown once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewWebhook {
    #[serde(flatten)]
    pub webhook: Webhook,
    /// `whsec_` and base64: the receiver verifies `webhook-signature` by it.
    pub secret: String,
}

/// A new secret, shown once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookSecret {
    pub secret: String,
    /// RFC 3339; until then the secret before signs too.
    pub previous_until: String,
}

/// Body of `POST /v1/webhooks/{id}/replay`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookReplay {
    /// Events after this number are sent, again where they were sent before. Absent: on from where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// One try to send one event.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookTry {
    /// Of the event; 0: a test.
    pub sequence: u64,
    pub kind: String,
    /// RFC 3339.
    pub at: String,
    /// Of the HTTP answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Absent: it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub took_ms: u64,
}

/// What is sent: the body of the POST.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookMessage {
    /// The event's kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// RFC 3339; when it happened.
    pub timestamp: String,
    pub data: WebhookData,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookData {
    /// Of the event: rising, not without gaps.
    pub sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The id of what it is about.
    pub subject: String,
    pub text: String,
}
