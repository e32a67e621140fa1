//! Active health checks: one checker for the whole edge, on the service thread.
//!
//! It asks only origins of routes that are in use, each at its own interval with jitter, and a bounded number at a time: more
//! than that wait, so that many thousands of tenants make checks rarer and never a storm.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::{Arc, PoisonError},
    time::Instant,
};

use http::{HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use hyper_util::rt::TokioIo;

use super::{
    Names, OriginError, OriginWatch,
    connect::{Connector, Opened, Target},
    endpoint_uri, http2,
    origins::http1_builder,
    trust::Offer,
    watch::{Checks, Watched},
};
use crate::{
    clock,
    egress::EgressGuard,
    http::body::RequestBody,
    io::Backend,
    limits::{self, Deadlines},
    live::{HealthCheck, Origin},
    server::Edge,
};

/// Checks for as long as it is polled; on a `LocalSet`.
///
/// # Errors
/// When it cannot resolve names.
pub async fn check_origins(edge: Arc<Edge>) -> io::Result<()> {
    let names = Names::new(&edge.resolvers, edge.deadlines.dns_answer)?;
    let guard = EgressGuard::new(Arc::clone(&edge.live), edge.own_sockets.clone());
    let (tls, metrics) = (edge.origin_tls.clone(), Arc::clone(&edge.metrics));
    let connector = Rc::new(Connector::new(names, guard, tls, Backend::Epoll, metrics, Arc::default()));
    let under_way = Rc::default();
    loop {
        tokio::time::sleep(limits::HEALTH_TICK).await;
        for due in begin_due(&edge.origin_watch, &under_way, clock::now()) {
            let (edge, connector) = (Arc::clone(&edge), Rc::clone(&connector));
            tokio::task::spawn_local(async move {
                let Due { watched, check, place } = due;
                let result = ask(&connector, &watched, &check, &edge.deadlines).await;
                drop(place);
                note(&edge, &watched, &check, result);
            });
        }
    }
}

/// A check that is to be made now.
struct Due {
    watched: Arc<Watched>,
    check: Arc<HealthCheck>,
    place: Place,
}

/// One of [`limits::HEALTH_CHECKS_AT_ONCE`], until it is dropped.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(under_way: &Rc<Cell<usize>>) -> Self {
        under_way.set(under_way.get() + 1);
        Self(Rc::clone(under_way))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Those that have waited longest, so that each has its turn, as far as there is room beside those under way.
fn begin_due(watch: &OriginWatch, under_way: &Rc<Cell<usize>>, now: Instant) -> Vec<Due> {
    let rows = watch.checked().into_iter().filter_map(|watched| {
        let check = watched.origin.health_check.clone()?;
        Some((due_since(&watched, &check, now)?, watched, check))
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_unstable_by_key(|(since, ..)| *since);
    let room = limits::HEALTH_CHECKS_AT_ONCE - under_way.get();
    let begin = |(_, watched, check): (Instant, Arc<Watched>, Arc<HealthCheck>)| {
        begin(&watched, &check, now);
        Due { watched, check, place: Place::take(under_way) }
    };
    rows.into_iter().take(room).map(begin).collect()
}

/// Since when a check has been due, if one is.
fn due_since(watched: &Watched, check: &HealthCheck, now: Instant) -> Option<Instant> {
    let mut checks = watched.checks.lock().unwrap_or_else(PoisonError::into_inner);
    if watched.unused_for(now) > limits::HEALTH_UNUSED_AFTER.max(check.interval * 3) {
        // Nobody wants to know; what was known is of no worth when somebody does again.
        *checks = Checks { under_way: checks.under_way, ..Checks::default() };
        watched.set_unwell(false);
        return None;
    }
    // The first one at any moment of an interval: after a start not all at once.
    let due = *checks.due.get_or_insert_with(|| now + check.interval.mul_f64(random_share()));
    (now >= due && !checks.under_way).then_some(due)
}

fn begin(watched: &Watched, check: &HealthCheck, now: Instant) {
    let mut checks = watched.checks.lock().unwrap_or_else(PoisonError::into_inner);
    checks.under_way = true;
    checks.due = Some(now + check.interval.mul_f64(0.9 + random_share() / 5.0));
}

fn note(edge: &Edge, watched: &Watched, check: &HealthCheck, result: Result<StatusCode, OriginError>) {
    let mut checks = watched.checks.lock().unwrap_or_else(PoisonError::into_inner);
    checks.under_way = false;
    let why = match result {
        Ok(status) if status.is_success() || status.is_redirection() => None,
        Ok(status) => Some(format!("it answered {status}")),
        Err(error) => Some(crate::live::full_text(&error)),
    };
    edge.metrics.health_check(why.is_none());
    let (tenant, origin) = (watched.tenant.id, &watched.origin);
    match why {
        None => {
            (checks.good, checks.bad) = (checks.good + 1, 0);
            if checks.good >= check.healthy_after && watched.set_unwell(false) {
                tracing::info!(%tenant, %origin, "an origin passes its health check again");
            }
        }
        Some(why) => {
            (checks.good, checks.bad) = (0, checks.bad + 1);
            if checks.bad >= check.unhealthy_after && watched.set_unwell(true) {
                tracing::warn!(%tenant, %origin, why, "an origin fails its health check and gets no requests");
            }
        }
    }
}

async fn ask(
    connector: &Connector,
    watched: &Watched,
    check: &HealthCheck,
    deadlines: &Deadlines,
) -> Result<StatusCode, OriginError> {
    let deadline = check.interval.min(deadlines.health_answer);
    let asking = Box::pin(async {
        let origin = &watched.origin;
        let offer = Offer::for_check(origin.protocol);
        // Of this moment: a check with what was replaced would call a well origin unwell.
        let identity = origin.identity(&watched.tenant);
        let target = Target { origin, identity: &identity, client: None, sockets: &Rc::default() };
        let opened = connector.open(&watched.tenant, target, offer, deadline).await?;
        status_of(opened, origin, check, deadlines).await
    });
    tokio::time::timeout(deadline, asking).await.unwrap_or(Err(OriginError::FirstByteTimeout))
}

async fn status_of(
    opened: Opened,
    origin: &Origin,
    check: &HealthCheck,
    deadlines: &Deadlines,
) -> Result<StatusCode, OriginError> {
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = Method::GET;
    let host = origin.host_header.clone().unwrap_or_else(|| origin.own_authority());
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("portico-health"));
    let response = if opened.http2 {
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = endpoint_uri(origin, &host, check.path.clone())?;
        let ended = Rc::default();
        let connection =
            http2::handshake(opened.stream, opened.address, opened.said, &ended, deadlines).await?;
        let stream = http2::Http2Stream::begin(&connection);
        let answered = stream.sender().send_request(request).await;
        return answered.map(|answer| answer.status()).map_err(|error| connection.reason(error));
    } else {
        *request.uri_mut() = Uri::from(check.path.clone());
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let (mut sender, connection) =
            http1_builder().handshake(TokioIo::new(opened.stream)).await.map_err(OriginError::of_hyper)?;
        tokio::task::spawn_local(connection);
        sender.send_request(request).await
    };
    Ok(response.map_err(OriginError::of_hyper)?.status())
}

/// From 0 to 1.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    // Without random bytes all checks are in step, which is no worse than a busy moment.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
