//! Urgent messages: done at once, whatever batch is under way.

use std::time::Duration;

use portico_api::distribution::{Drill, DrillFault, Suspend, Urgent, UrgentAck, urgent};
use portico_cert_store::UnixTime;

use super::OwnKeys;
use crate::cache::Cache;
use crate::live::{Fault, Live, LivePublisher, Suspension};

/// Does what an urgent message asks.
pub(super) fn handle(
    urgent: &Urgent,
    (publisher, cache, live, own_keys): (&mut LivePublisher, &Cache, &Live, &OwnKeys),
    now_unix_ms: i64,
) -> UrgentAck {
    if let Some(urgent::Action::Purge(purge)) = &urgent.action {
        return ack(urgent, cache.purge(purge, live).map(|met| met as u64));
    }
    if let Some(urgent::Action::Drill(wanted)) = &urgent.action {
        return match drill(wanted, publisher, now_unix_ms) {
            Ok(drill_faults) => UrgentAck { drill_faults, ..ack(urgent, Ok(0)) },
            Err(fault) => ack(urgent, Err(fault)),
        };
    }
    if let Some(urgent::Action::KeyRequest(wanted)) = &urgent.action {
        return match own_keys.request(wanted) {
            Ok(request) => UrgentAck { certificate_request: request.into(), ..ack(urgent, Ok(0)) },
            Err(fault) => ack(urgent, Err(fault)),
        };
    }
    ack(urgent, act(urgent, publisher, now_unix_ms).map(|()| 0))
}

fn ack(urgent: &Urgent, met: Result<u64, Fault>) -> UrgentAck {
    let sequence = urgent.sequence;
    match met {
        Ok(met) => UrgentAck { sequence, met, ..UrgentAck::default() },
        Err(fault) => UrgentAck {
            sequence,
            error_code: fault.code.to_owned(),
            error_text: fault.text,
            ..UrgentAck::default()
        },
    }
}

fn act(urgent: &Urgent, publisher: &mut LivePublisher, now: i64) -> Result<(), Fault> {
    let expires = i64::try_from(urgent.expires_unix_ms).unwrap_or(i64::MAX);
    match &urgent.action {
        Some(urgent::Action::SetHttp01(set)) => {
            publisher.challenges().set_http01(&set.host, &set.token, &set.key_authorization, expires, now)
        }
        Some(urgent::Action::SetTlsAlpn01(set)) => {
            publisher.challenges().set_tls_alpn01(&set.host, &set.digest, expires, now)
        }
        Some(urgent::Action::ClearChallenge(clear)) => {
            publisher.challenges().clear(&clear.host, &clear.token, now)
        }
        Some(urgent::Action::Suspend(order)) => suspend(order, publisher),
        // The last: of a newer release.
        Some(urgent::Action::Purge(_) | urgent::Action::Drill(_) | urgent::Action::KeyRequest(_)) | None => {
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
