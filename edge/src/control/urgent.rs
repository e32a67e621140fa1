//! Urgent messages: done at once, whatever batch is under way.

use std::time::Duration;

use portico_api::distribution::urgent::Action;
use portico_api::distribution::{Drill, DrillFault, Suspend, Urgent, UrgentAck};
use portico_cert_store::UnixTime;

use crate::cache::Cache;
use crate::live::{Fault, Live, LivePublisher, Suspension};

/// Does what an urgent message asks; keys are [`super::key_requests`]'.
pub(super) fn handle(
    urgent: &Urgent,
    publisher: &mut LivePublisher,
    (cache, live): (&Cache, &Live),
    now_unix_ms: i64,
) -> UrgentAck {
    let sequence = urgent.sequence;
    let done = || UrgentAck { sequence, ..UrgentAck::default() };
    let result = match &urgent.action {
        Some(Action::Purge(purge)) => {
            cache.purge(purge, live).map(|met| UrgentAck { met: met as u64, ..done() })
        }
        Some(Action::Drill(wanted)) => {
            drill(wanted, publisher, now_unix_ms).map(|drill_faults| UrgentAck { drill_faults, ..done() })
        }
        _ => act(urgent, publisher, now_unix_ms).map(|()| done()),
    };
    result.unwrap_or_else(|fault| refused(sequence, fault))
}

/// The ack of a message that was not followed.
pub(super) fn refused(sequence: u64, fault: Fault) -> UrgentAck {
    let Fault { code, text } = fault;
    UrgentAck { sequence, error_code: code.to_owned(), error_text: text, ..UrgentAck::default() }
}

fn act(urgent: &Urgent, publisher: &mut LivePublisher, now: i64) -> Result<(), Fault> {
    let expires = i64::try_from(urgent.expires_unix_ms).unwrap_or(i64::MAX);
    match &urgent.action {
        Some(Action::SetHttp01(set)) => {
            publisher.challenges().set_http01(&set.host, &set.token, &set.key_authorization, expires, now)
        }
        Some(Action::SetTlsAlpn01(set)) => {
            publisher.challenges().set_tls_alpn01(&set.host, &set.digest, expires, now)
        }
        Some(Action::ClearChallenge(clear)) => publisher.challenges().clear(&clear.host, &clear.token, now),
        Some(Action::Suspend(order)) => suspend(order, publisher),
        // The last: of a newer release.
        Some(Action::Purge(_) | Action::Drill(_) | Action::KeyRequest(_)) | None => {
            Err(Fault::new("UnknownAction", "an urgent message that this edge does not know"))
        }
    }
}

/// Its deadline is not looked at: a late suspension is still one, and a stale one has a lower version.
fn suspend(order: &Suspend, publisher: &mut LivePublisher) -> Result<(), Fault> {
    let bad_id = |error: portico_cert_store::IdError| Fault::new("BadId", error.to_string());
    let tenant = order.tenant_id.parse().map_err(bad_id)?;
    let domain =
        if order.domain_id.is_empty() { None } else { Some(order.domain_id.parse().map_err(bad_id)?) };
    let suspension = order.suspension.as_ref().map(Suspension::parse).transpose()?;
    publisher.suspend(tenant, domain, suspension, order.version)
}

fn drill(wanted: &Drill, publisher: &LivePublisher, now_unix_ms: i64) -> Result<Vec<DrillFault>, Fault> {
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_unix_ms.unsigned_abs()));
    publisher.drill(&wanted.targets, now)
}
