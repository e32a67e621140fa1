//! Webhooks: what may be set, what is sent, and how it is signed.
//!
//! The scheme is Standard Webhooks: `webhook-id` is the same however often an event is sent, `webhook-timestamp` is the
//! moment of the try, and `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body` by the
//! endpoint's secret; two of them while a secret is being replaced.

use std::net::IpAddr;

use aws_lc_rs::{hmac, rand};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use portico_api::v1::{
    Event, FieldError, Webhook, WebhookData, WebhookMessage, WebhookRequest, WebhookState,
};
use portico_cert_store::DomainName;
use portico_prober::egress::special_range;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::spec;
use crate::clock::rfc3339;
use crate::http::fault::field;
use crate::limits;
use crate::sealer::{Sealer, SealerError};
use crate::store::webhook::WebhookRow;

pub(crate) mod send;

const PURPOSE: &str = "webhook secret";
const SECRET_BYTES: usize = 32;
const LABEL_BYTES_MAX: usize = 100;
const KIND_BYTES_MAX: usize = 64;

/// What is wrong with an endpoint that somebody wants.
pub(crate) fn check(wanted: &WebhookRequest) -> Vec<FieldError> {
    let mut errors = Vec::new();
    errors.extend(check_url(&wanted.url).err().map(|text| field("/url", "invalid_url", text)));
    if wanted.kinds.len() > limits::WEBHOOK_KINDS_MAX {
        errors.push(field(
            "/kinds",
            "too_many",
            format!("at most {}; leave it out for all", limits::WEBHOOK_KINDS_MAX),
        ));
    }
    let is_plain = |kind: &String| {
        (1..=KIND_BYTES_MAX).contains(&kind.len())
            && kind.contains('.')
            && kind.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.'))
    };
    for (index, kind) in wanted.kinds.iter().enumerate().filter(|(_, kind)| !is_plain(kind)) {
        let text = format!(
            "{kind:?} is no kind of an event; they look like `domain.left` (GET /v1/events shows them)"
        );
        errors.push(field(format!("/kinds/{index}"), "invalid_kind", text));
    }
    if wanted.label.len() > LABEL_BYTES_MAX {
        errors.push(field("/label", "invalid_label", format!("must have at most {LABEL_BYTES_MAX} bytes")));
    }
    errors
}

/// Where the body would be read on its way, only a private network may be in between.
fn check_url(text: &str) -> Result<Url, String> {
    let url = spec::absolute(text)?;
    if url.fragment().is_some() {
        return Err("must not have a part behind #, which is never sent".to_owned());
    }
    let address = match url.host() {
        Some(Host::Domain(name)) => {
            DomainName::parse(name).map_err(|error| error.to_string())?;
            None
        }
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        None => return Err("has no host".to_owned()),
    };
    if url.scheme() == "https" || address.is_some_and(|address| special_range(address).is_some()) {
        return Ok(url);
    }
    Err("must begin with https://; http:// is for an address in a private range only, such as http://10.0.0.5:8080/"
        .to_owned())
}

/// Where an endpoint is, for events and the trail: its URL without the query, which may hold a secret.
pub(crate) fn place(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// A new secret as it is shown, and sealed for the endpoint.
pub(crate) fn new_secret(sealer: &Sealer, id: &str) -> (String, Vec<u8>) {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    rand::fill(bytes.as_mut_slice()).expect("the system gives random bytes");
    let text = format!("whsec_{}", BASE64_STANDARD.encode(bytes.as_slice()));
    (text, sealer.seal(PURPOSE, id, bytes.as_slice()))
}

/// The secrets that sign now, the newest first.
///
/// # Errors
/// One cannot be opened.
pub(crate) fn secrets(
    sealer: &Sealer,
    row: &WebhookRow,
    now_ms: i64,
) -> Result<Vec<Zeroizing<Vec<u8>>>, SealerError> {
    let previous = row.previous.as_ref().filter(|(_, until)| *until > now_ms).map(|(sealed, _)| sealed);
    std::iter::once(&row.sealed_secret)
        .chain(previous)
        .map(|sealed| sealer.open(PURPOSE, &row.id, sealed))
        .collect()
}

/// A message as it goes over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) timestamp: i64,
    pub(crate) signature: String,
    pub(crate) body: Vec<u8>,
}

/// The event as it is sent now; one without a number is a test. `epoch` is the database's: after a restore numbers may be given out anew.
pub(crate) fn signed(secrets: &[Zeroizing<Vec<u8>>], epoch: u64, event: &Event, now_ms: i64) -> Signed {
    let message = WebhookMessage {
        kind: event.kind.clone(),
        timestamp: event.at.clone(),
        data: WebhookData {
            sequence: event.sequence,
            tenant_id: event.tenant_id.clone(),
            subject: event.subject.clone(),
            text: event.text.clone(),
        },
    };
    let body = serde_json::to_vec(&message).unwrap_or_default();
    // Each test is a message of its own: receivers drop what they have had.
    let id = match event.sequence {
        0 => format!("test_{}", ulid::Ulid::new()),
        sequence => format!("evt_{epoch}_{sequence}"),
    };
    let timestamp = now_ms / 1000;
    let signature = signature(secrets, &id, timestamp, &body);
    Signed { id, timestamp, signature, body }
}

fn signature(secrets: &[Zeroizing<Vec<u8>>], id: &str, timestamp: i64, body: &[u8]) -> String {
    let one = |secret: &Zeroizing<Vec<u8>>| {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", BASE64_STANDARD.encode(context.sign().as_ref()))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// As the API shows it.
pub(crate) fn shown(row: &WebhookRow, now_ms: i64) -> Webhook {
    let state = match (&row.disabled, row.failures) {
        (Some(_), _) => WebhookState::Disabled,
        (None, 0) => WebhookState::Active,
        (None, _) => WebhookState::Failing,
    };
    let previous = row.previous.as_ref().map(|(_, until)| *until).filter(|until| *until > now_ms);
    Webhook {
        id: row.id.clone(),
        tenant_id: row.tenant,
        url: row.url.clone(),
        kinds: row.kinds.clone(),
        label: row.label.clone(),
        state,
        delivered_to: row.delivered_to,
        failures: row.failures,
        failing_since: row.failing_since.map(rfc3339),
        error: row.disabled.clone().or_else(|| row.last_error.clone()),
        next_try_at: (state == WebhookState::Failing).then(|| rfc3339(row.next_at)),
        taken_at: row.taken_at.map(rfc3339),
        previous_secret_until: previous.map(rfc3339),
        created_at: rfc3339(row.created_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(url: &str) -> WebhookRequest {
        WebhookRequest { url: url.to_owned(), kinds: Vec::new(), label: String::new(), since: None }
    }

    #[test]
    fn a_signature_is_as_the_standard_has_it() {
        // The example of the specification's libraries.
        let secret = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let made = signature(
            &[Zeroizing::new(secret)],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(made, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn only_a_private_network_may_read_what_is_sent() {
        for good in [
            "https://hooks.example/a?b=c",
            "https://192.0.2.1:8443/",
            "http://10.1.2.3:8080/x",
            "http://127.0.0.1:9/",
            "http://[fd00::1]/",
        ] {
            assert!(check(&wanted(good)).is_empty(), "{good}");
        }
        for wrong in [
            "http://hooks.example/",
            "http://1.1.1.1/",
            "ftp://10.0.0.1/",
            "hooks.example",
            "https://user:secret@hooks.example/",
            "https://hooks.example/#x",
            "https://a b/",
        ] {
            let errors = check(&wanted(wrong));
            assert_eq!((errors.len(), &*errors[0].pointer), (1, "/url"), "{wrong}: {errors:?}");
        }
    }

    #[test]
    fn kinds_are_few_and_look_like_kinds() {
        let mut request = wanted("https://hooks.example/");
        request.kinds = vec!["domain.left".to_owned(); limits::WEBHOOK_KINDS_MAX];
        assert!(check(&request).is_empty());
        request.kinds.push("domain.left".to_owned());
        assert_eq!(check(&request)[0].pointer, "/kinds");
        request.kinds = vec!["domain".to_owned(), "Domain.Left".to_owned(), "x.".repeat(40)];
        let pointers: Vec<_> = check(&request).into_iter().map(|error| error.pointer).collect();
        assert_eq!(pointers, ["/kinds/0", "/kinds/1", "/kinds/2"]);
    }
}
