//! The end of an exchange, however it comes: counted, logged, and told to the connection's clock.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode, header, request::Parts};

use portico_api::rule::Rule;

use super::{ConnectionContext, Noted, Protocol, Reached, Tally};
use crate::{
    access_log::AccessRecord,
    cache::Outcome,
    clock,
    http::{budget::ConnectionBudget, visitor::Visitor},
    live::{Host, TenantShare},
    metrics::ActionTaken,
};

/// The client was cut because it took nothing of its answer any more.
const CLIENT_STALLED: &str = "client_stalled";

/// Travels with an answer's body and does its work when dropped.
#[derive(Debug)]
pub struct ExchangeEnd {
    context: Rc<ConnectionContext>,
    noted: Noted,
    authority: Option<Box<str>>,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    host: Option<Arc<Host>>,
    share: Option<TenantShare>,
    visitor: Arc<Visitor>,
    tally: Rc<Tally>,
    status: StatusCode,
    reason: Option<&'static str>,
    origin: Option<Reached>,
    cache: Option<Outcome>,
    route: Option<Box<str>>,
    action: ActionTaken,
    first_byte: Option<Duration>,
    response_bytes: u64,
    complete: bool,
    is_last: bool,
}

impl ExchangeEnd {
    pub(super) fn begin(context: &Rc<ConnectionContext>, parts: &Parts) -> Self {
        let is_last = !context.clock.exchange_begins();
        context.worker.edge.metrics.exchange_begins(context.protocol);
        let visitor = Arc::new(context.visitor(parts));
        let logged = context.worker.edge.access_log.is_on() || visitor.span.is_some();
        let authority = || {
            let of_uri = parts.uri.authority().map(|authority| authority.as_str().into());
            of_uri
                .or_else(|| Some(String::from_utf8_lossy(parts.headers.get(header::HOST)?.as_bytes()).into()))
        };
        Self {
            context: Rc::clone(context),
            noted: Noted::of(parts),
            authority: if logged { authority() } else { None },
            referer: parts.headers.get(header::REFERER).filter(|_| logged).cloned(),
            user_agent: parts.headers.get(header::USER_AGENT).filter(|_| logged).cloned(),
            host: None,
            share: None,
            visitor,
            tally: Tally::of_exchange(context),
            // What is logged when there is never an answer: the client went away (the number is a custom of nginx).
            status: StatusCode::from_u16(499).expect("499 is a status code"),
            reason: Some("no_answer"),
            origin: None,
            cache: None,
            route: None,
            action: ActionTaken::Own,
            first_byte: None,
            response_bytes: 0,
            complete: false,
            is_last,
        }
    }

    /// What the client's connection may hold; it has other exchanges beside this one.
    pub(crate) fn budget(&self) -> Option<&ConnectionBudget> {
        (self.context.protocol != Protocol::Http1).then_some(&self.context.budget)
    }

    pub(super) fn of_host(&mut self, host: &Arc<Host>) {
        self.host = Some(Arc::clone(host));
        self.tally.of_host(host);
        let traces = &self.context.worker.edge.traces;
        if self.visitor.span.is_some() && !traces.admits(Some(host.tenant.spans())) {
            Arc::make_mut(&mut self.visitor).span = None;
        }
    }

    pub(super) fn host(&self) -> Option<&Host> {
        self.host.as_deref()
    }

    pub(super) fn of_route(&mut self, rule: &Rule, action: ActionTaken) {
        self.action = action;
        if self.visitor.span.is_some() {
            self.route = Some(rule.path.as_str().into());
        }
    }

    pub(super) fn takes(&mut self, share: TenantShare) {
        self.share = Some(share);
    }

    pub(super) fn answered(
        &mut self,
        status: StatusCode,
        reason: Option<&'static str>,
        origin: Option<Reached>,
        cache: Option<Outcome>,
    ) {
        let first_byte = clock::now().duration_since(self.noted.started);
        self.context.worker.edge.metrics.first_byte_seconds.record(first_byte.as_secs_f64());
        self.first_byte = Some(first_byte);
        self.status = status;
        self.reason = reason;
        self.origin = origin;
        self.cache = cache;
        if cache.is_some_and(Outcome::is_from_cache) {
            self.tally.comes_from_cache();
        }
    }

    pub(super) fn tally(&self) -> Rc<Tally> {
        Rc::clone(&self.tally)
    }

    pub(super) fn started_unix_ms(&self) -> i64 {
        self.noted.started_unix_ms
    }

    pub(super) fn visitor(&self) -> &Arc<Visitor> {
        &self.visitor
    }

    /// The connection has had its share of exchanges or of time.
    pub(super) fn is_last(&self) -> bool {
        self.is_last
    }

    /// How long a piece of the answer has to wait for its turn among all of the tenant's.
    pub(crate) fn queue(&self, bytes: usize) -> Duration {
        self.share.as_ref().map_or(Duration::ZERO, |share| share.queue(bytes))
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
        self.tally.sent(bytes);
    }

    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    pub(crate) fn broken(&mut self, reason: &'static str) {
        self.reason = Some(reason);
    }

    /// The client takes no more of the answer.
    pub(crate) fn stalled(&mut self) {
        self.complete = false;
        self.reason = Some(CLIENT_STALLED);
    }
}

impl Drop for ExchangeEnd {
    fn drop(&mut self) {
        self.context.clock.exchange_ends();
        let edge = &self.context.worker.edge;
        if std::thread::panicking() {
            edge.metrics.exchange_panics.increment(1); // in its body: the head's are caught where they happen
        }
        if !self.complete
            && matches!(self.reason, None | Some("no_answer"))
            && self.context.clock.was_cut_unread()
        {
            self.reason = Some(CLIENT_STALLED);
        }
        // HTTP/3 sees it on the stream.
        let given_up = !self.complete && matches!(self.reason, None | Some("no_answer"));
        if given_up && self.context.protocol == Protocol::Http2 {
            self.context.clock.request_given_up();
        }
        let duration = clock::now().duration_since(self.noted.started);
        edge.metrics.exchange(self.context.protocol, self.status, self.action);
        if let Some(outcome) = self.cache {
            edge.metrics.cache(outcome);
        }
        edge.metrics.exchange_seconds.record(duration.as_secs_f64());
        // Nobody's until now: of a request that was refused before its host was known.
        let is_recorded = self.visitor.span.is_some() && (self.host.is_some() || edge.traces.admits(None));
        if !edge.access_log.is_on() && !is_recorded {
            return;
        }
        let record = self.record(duration);
        let edge = &self.context.worker.edge;
        #[cfg(feature = "otlp")]
        if is_recorded {
            edge.traces.write(&record);
        }
        edge.access_log.write(record.into());
    }
}

impl ExchangeEnd {
    /// Takes what is only needed once.
    fn record(&mut self, duration: Duration) -> AccessRecord {
        AccessRecord {
            started_unix_ms: self.noted.started_unix_ms,
            ended_unix_ns: u64::try_from(clock::unix_elapsed().as_nanos()).unwrap_or(u64::MAX),
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            first_byte: self.first_byte,
            peer: self.context.peer,
            local_port: self.context.local.port(),
            visitor: Arc::clone(&self.visitor),
            protocol: self.context.protocol,
            version: self.noted.version,
            handshake: self.context.handshake.clone(),
            method: self.noted.method.clone(),
            authority: self.authority.take(),
            target: self.noted.target.clone(),
            host: self.host.take(),
            route: self.route.take(),
            status: self.status,
            request_bytes: self.tally.request_bytes(),
            response_bytes: self.response_bytes,
            referer: self.referer.take(),
            user_agent: self.user_agent.take(),
            origin: self.origin.take(),
            cache: self.cache,
            reason: self.reason,
            complete: self.complete,
        }
    }
}
