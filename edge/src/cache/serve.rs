//! One request through the cache.

use std::{rc::Rc, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};

use super::{
    Cache, answer,
    detached::{Detachable, Place},
    filling::{self, FillJob, Filling},
    flight::{Leading, Progress, Turn, Waiting},
    freshness::{self, Life, RequestFacts, Timing},
    key::CacheKey,
    outcome::{self, Forwarded, Outcome, Told},
    request::{self, Wishes},
    store::Held,
    stored::{Head, Stored, StoredBody, Variant},
};
use crate::{
    clock,
    exchange::{Answer, ConnectionContext, Dropped, EARLY_DATA},
    http::{
        authority::Authority,
        body::{OriginBody, RequestBody, ResponseSource},
        visitor::Visitor,
    },
    limits::{self, Deadlines},
    live::{Host, Route, Upstream},
    upstream::{self, Forwarding},
};

/// What a request is for, beside its own words.
pub(crate) struct Asking<'a> {
    pub context: &'a Rc<ConnectionContext>,
    pub host: &'a Arc<Host>,
    pub authority: &'a Authority,
    pub route: &'a Route,
    pub upstream: &'a Arc<Upstream>,
    pub visitor: &'a Arc<Visitor>,
    /// As the client asked for it, before the route has changed it.
    pub path: &'a str,
}

/// Answers a request of a proxy route: from what is kept, or from an origin. `parts` are as the route made them.
///
/// # Errors
/// [`Dropped`], when the host is suspended in that way.
pub(crate) async fn serve(
    mut parts: Parts,
    body: RequestBody,
    asking: Asking<'_>,
) -> Result<Answer, Dropped> {
    let cache = Arc::clone(&asking.context.worker.edge.cache);
    let Some(rule) = asking.upstream.cache.as_ref().filter(|_| cache.is_on()) else {
        return forward(parts, body, &asking).await;
    };
    if let Some(why) = request::bypass_reason(asking.path, &parts, &body) {
        let told = Told::detailed(Outcome::Bypass, why);
        return Ok(labelled(forward(parts, body, &asking).await?, told));
    }
    let query = rule.query.normalised(parts.uri.query()).map(std::borrow::Cow::into_owned);
    let wishes = request::normalise(&mut parts, query.as_deref());
    let tls = asking.visitor.tls;
    let key = CacheKey::new(asking.host.tenant.id, tls, asking.authority, asking.path, query.as_deref());
    let exchange = Rc::new(Exchange {
        cache,
        key: Arc::new(key),
        route: asking.route.fingerprint(),
        facts: RequestFacts::of(&parts.headers, asking.context.client().is_some()),
        parts,
        wishes,
        context: Rc::clone(asking.context),
        host: Arc::clone(asking.host),
        authority: asking.authority.clone(),
        upstream: Arc::clone(asking.upstream),
        visitor: Arc::clone(asking.visitor),
    });
    exchange.run().await
}

/// What a request's method says of what is kept (RFC 9110 section 16.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Changes,
    /// Nobody has registered it.
    Unknown,
}

/// Registered methods that are not safe, beyond those that `http` knows. In order.
const UNSAFE: [&str; 25] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPPATCH",
    "REBIND",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
];

impl Effect {
    fn of(method: &Method) -> Self {
        match method.as_str() {
            _ if method.is_safe() => Self::None,
            "PROPFIND" | "REPORT" | "SEARCH" => Self::None,
            "POST" | "PUT" | "PATCH" | "DELETE" | "VERSION-CONTROL" => Self::Changes,
            name if UNSAFE.binary_search(&name).is_ok() => Self::Changes,
            _ => Self::Unknown,
        }
    }
}

/// Sends a request on; what an unsafe one changes is forgotten (RFC 9111 section 4.4).
async fn forward(parts: Parts, body: RequestBody, asking: &Asking<'_>) -> Result<Answer, Dropped> {
    let Asking { context, host, authority, upstream, visitor, .. } = *asking;
    let effect = Effect::of(&parts.method);
    let query = parts.uri.query().map(ToOwned::to_owned);
    let answer =
        upstream::forward(parts, body, Forwarding { context, host, authority, upstream, visitor }).await?;
    let done = answer.response.status().is_success() || answer.response.status().is_redirection();
    if done && answer.reason.is_none() {
        let headers = answer.response.headers();
        context.worker.edge.cache.invalidate(effect, asking, query.as_deref(), headers);
    }
    Ok(answer)
}

impl Cache {
    /// Forgets what an unsafe request was for, and what its answer names of the same host. After an unknown method that is only
    /// asked about before its next use, where nothing stale may stand in: nearly any server answers a stranger's `FOO /` with
    /// 200, and that is no purge.
    fn invalidate(&self, effect: Effect, asking: &Asking<'_>, query: Option<&str>, answer: &HeaderMap) {
        if !self.is_on() || effect == Effect::None {
            return;
        }
        let named = [header::LOCATION, header::CONTENT_LOCATION].map(|name| {
            let text = answer.get(name)?.to_str().ok()?;
            path_here(text, asking)
        });
        let own = (asking.path.to_owned(), query.map(ToOwned::to_owned));
        for (path, query) in named.into_iter().flatten().chain([own]) {
            let Host { tenant, routes, .. } = &**asking.host;
            for tls in [true, false] {
                let resource = (tls, asking.authority);
                for key in CacheKey::all(tenant.id, routes, resource, &path, query.as_deref()) {
                    if effect == Effect::Changes {
                        self.forget(&key);
                    } else {
                        self.doubt(&key);
                    }
                }
            }
        }
    }

    /// What is on its way is new enough.
    fn doubt(&self, key: &CacheKey) {
        let now = clock::now();
        for stored in self.store.of_key(key) {
            stored.make_stale(now);
        }
    }

    /// Also what is on its way.
    pub(super) fn forget(&self, key: &CacheKey) -> usize {
        self.flights.doom_key(key);
        self.store.settle();
        self.store.remove_key(key)
    }
}

/// Path and query of a reference within the same host.
fn path_here(text: &str, asking: &Asking<'_>) -> Option<(String, Option<String>)> {
    let scheme = if asking.visitor.tls { "https" } else { "http" };
    let name = asking.authority.name.as_str();
    let authority = asking.authority.port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    let base = url::Url::parse(&format!("{scheme}://{authority}{}", asking.path)).ok()?;
    let target = base.join(text).ok()?;
    let here = target.host_str() == base.host_str()
        && target.port_or_known_default() == base.port_or_known_default();
    here.then(|| (target.path().to_owned(), target.query().map(ToOwned::to_owned)))
}

/// One request whose answer may be kept, with all that its fetch needs: that may outlive the client's connection.
struct Exchange {
    cache: Arc<Cache>,
    key: Arc<CacheKey>,
    route: u64,
    facts: RequestFacts,
    parts: Parts,
    wishes: Wishes,
    context: Rc<ConnectionContext>,
    host: Arc<Host>,
    authority: Authority,
    upstream: Arc<Upstream>,
    visitor: Arc<Visitor>,
}

/// What came of waiting.
enum Waited {
    LookAgain,
    Alone,
    Answer(Box<Answer>),
}

impl Exchange {
    async fn run(self: &Rc<Self>) -> Result<Answer, Dropped> {
        for round in 0..=limits::CACHE_WAITS_MAX {
            let now = clock::now();
            let found = self.find();
            if let Some(answer) = found.as_ref().and_then(|stored| self.from_kept(stored, now)) {
                return Ok(answer);
            }
            if self.wishes.only_if_cached {
                let mut answer = Answer::page(StatusCode::GATEWAY_TIMEOUT, "only_if_cached");
                outcome::tell_only_if_cached(answer.response.headers_mut());
                return Ok(answer);
            }
            if round == limits::CACHE_WAITS_MAX
                || !self.may_lead()
                || self.cache.passes.holds(self.pass_hash(), now)
            {
                return self.alone(found).await;
            }
            match self.cache.flights.join(&self.key) {
                Turn::Lead(leading) => {
                    let (exchange, audience) = (Rc::clone(self), leading.audience());
                    let work = async move { exchange.lead(leading, found).await };
                    return Detachable::new(&self.cache, audience, work).await;
                }
                // What has to be asked for each time is asked for by each.
                Turn::Wait(_) if found.as_ref().is_some_and(|stored| stored.life.lifetime.is_zero()) => {
                    return self.alone(found).await;
                }
                Turn::Wait(waiting) => match self.wait(waiting).await {
                    Waited::LookAgain => {}
                    Waited::Alone => return self.alone(self.find()).await,
                    Waited::Answer(answer) => return Ok(*answer),
                },
            }
        }
        self.alone(None).await
    }

    fn deadlines(&self) -> &Deadlines {
        &self.context.worker.edge.deadlines
    }

    fn find(&self) -> Option<Arc<Stored>> {
        self.cache.store.find(&self.key, |stored| {
            (stored.life.shared || !self.facts.authorization)
                && stored.variant.fits(self.route, &self.parts.headers)
        })
    }

    /// Why the origin is asked although there may be something for that URL.
    fn forwarded(&self, found: Option<&Stored>) -> Forwarded {
        if found.is_some() {
            return Forwarded::Stale;
        }
        let for_others = |stored: &Stored| {
            stored.variant.route == self.route && !stored.variant.fits(self.route, &self.parts.headers)
        };
        let others = self.cache.store.of_key(&self.key);
        if others.iter().any(|stored| for_others(stored)) { Forwarded::VaryMiss } else { Forwarded::UriMiss }
    }

    /// What one kind of request gets says nothing of what another gets: nobody can keep a page out of the cache by asking
    /// for it as somebody.
    fn pass_hash(&self) -> u64 {
        let kind = u64::from(self.facts.authorization) | (u64::from(self.facts.cookie) << 1);
        self.cache.store.hash_of(&self.key) ^ kind.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Its answer would be the same for others.
    fn may_lead(&self) -> bool {
        self.parts.method == Method::GET && self.wishes.range.is_none()
    }

    /// From what is fresh, or stale and good enough.
    fn from_kept(self: &Rc<Self>, stored: &Arc<Stored>, now: std::time::Instant) -> Option<Answer> {
        if let Some(left) = stored.left(now) {
            let told = Told { left: Some(Ok(left)), ..Told::of(Outcome::Hit) };
            return Some(self.answer(stored, now, told));
        }
        if stored.is_spared(now) {
            return Some(self.stale(stored, now, "stale-if-error"));
        }
        if stored.serves_while_revalidating(now) && self.revalidate_behind(stored) {
            return Some(self.stale(stored, now, "stale-while-revalidate"));
        }
        None
    }

    fn answer(&self, stored: &Stored, now: std::time::Instant, told: Told) -> Answer {
        answer::from_stored(stored, (&self.parts.method, &self.wishes, &self.host), now, told)
    }

    fn stale(&self, stored: &Stored, now: std::time::Instant, detail: &'static str) -> Answer {
        let over = stored.life.stale_for(now);
        self.answer(stored, now, Told { left: Some(Err(over)), ..Told::detailed(Outcome::Stale, detail) })
    }

    /// Asks the origin while the client has its stale answer; false: too many are asked so already.
    fn revalidate_behind(self: &Rc<Self>, stored: &Arc<Stored>) -> bool {
        let Turn::Lead(leading) = self.cache.flights.join(&self.key) else { return true };
        let Some(place) = Place::take(&self.cache, limits::CACHE_BACKGROUND_MAX) else { return false };
        let (exchange, stored) = (Rc::clone(self), Arc::clone(stored));
        tokio::task::spawn_local(async move {
            let _answer = exchange.lead(leading, Some(stored)).await;
            drop(place);
        });
        true
    }

    /// As if there were no cache, but for what stands in for a failing origin.
    async fn alone(&self, found: Option<Arc<Stored>>) -> Result<Answer, Dropped> {
        let answer = self.ask(self.parts.clone()).await?;
        let forwarded = self.forwarded(found.as_deref());
        if let Some(stored) = found.filter(|_| is_failure(&answer)) {
            let now = clock::now();
            if stored.serves_for_error(now) {
                stored.spare(now + self.deadlines().cache_spare);
                return Ok(self.stale(&stored, now, "stale-if-error"));
            }
        }
        let why = match (self.may_lead(), self.wishes.range.is_some()) {
            (true, _) => (Outcome::NotKept, "alone"),
            (false, true) => (Outcome::Bypass, "part"),
            (false, false) => (Outcome::Bypass, "head"),
        };
        Ok(labelled(answer, Told::detailed(why.0, why.1).forwarded(forwarded)))
    }

    async fn wait(&self, mut waiting: Waiting) -> Waited {
        let progress = tokio::time::timeout(self.deadlines().cache_wait, waiting.outcome()).await;
        match progress {
            Ok(Progress::Filling(filling)) => match self.read_along(&filling) {
                Some(answer) => Waited::Answer(Box::new(answer)),
                None => Waited::Alone,
            },
            Ok(Progress::Kept | Progress::Abandoned) => Waited::LookAgain,
            Ok(Progress::Asking | Progress::NotKept) | Err(_) => Waited::Alone,
        }
    }

    fn read_along(&self, filling: &Arc<Filling>) -> Option<Answer> {
        let fits = filling.variant.fits(self.route, &self.parts.headers)
            && (filling.life.shared || !self.facts.authorization);
        fits.then(|| {
            let asked = (&self.parts.method, &self.wishes);
            let reader = filling.read(&self.host);
            answer::from_filling(filling, reader, asked, Told::of(Outcome::Collapsed))
        })
    }

    /// Asks the origin for everybody.
    async fn lead(&self, leading: Leading, stale: Option<Arc<Stored>>) -> Result<Answer, Dropped> {
        let tenant = &self.host.tenant;
        let most = tenant.cache_bytes_max(&self.context.worker.edge.live.fleet.load().tenant_limits);
        self.cache.store.limit(tenant.id, most);
        let mut fetch = request::whole(&self.parts);
        if let Some(stale) = &stale {
            add_validators(&mut fetch.headers, &stale.head);
        }
        let (answer, timing) = self.timed(fetch).await?;
        let forwarded = self.forwarded(stale.as_deref());
        let Some(stale) = stale else { return Ok(self.keep(leading, answer, timing, forwarded)) };
        let now = timing.received;
        if is_failure(&answer) && stale.serves_for_error(now) {
            stale.spare(now + self.deadlines().cache_spare);
            leading.uncacheable();
            return Ok(self.stale(&stale, now, "stale-if-error"));
        }
        if answer.response.status() != StatusCode::NOT_MODIFIED {
            if !answer.response.status().is_server_error() && self.about_this_request(&answer).is_none() {
                self.cache.store.remove(&stale);
            }
            return Ok(self.keep(leading, answer, timing, forwarded));
        }
        if names_another(answer.response.headers(), &stale.head) {
            // It is of something that is not here: the whole is asked for.
            self.cache.store.remove(&stale);
            release(answer);
            let (answer, timing) = self.timed(request::whole(&self.parts)).await?;
            return Ok(self.keep(leading, answer, timing, forwarded));
        }
        let told = Told::of(Outcome::Revalidated).forwarded(forwarded);
        let freshened = self.freshen(leading, &stale, answer.response.headers(), timing);
        let origin = answer.origin.clone();
        release(answer);
        let answer = match freshened {
            Ok(stored) => self.answer(&stored, now, told),
            Err(head) => {
                // Good for this client, who has asked, and no more.
                answer::from_body(&head, &stale, (&self.parts.method, &self.wishes, &self.host), told)
            }
        };
        Ok(Answer { origin, ..answer })
    }

    async fn ask(&self, parts: Parts) -> Result<Answer, Dropped> {
        let forwarding = Forwarding {
            context: &self.context,
            host: &self.host,
            authority: &self.authority,
            upstream: &self.upstream,
            visitor: &self.visitor,
        };
        upstream::forward(parts, RequestBody::empty(), forwarding).await
    }

    async fn timed(&self, parts: Parts) -> Result<(Answer, Timing), Dropped> {
        let sent = clock::now();
        let answer = self.ask(parts).await?;
        let received_wall = std::time::SystemTime::UNIX_EPOCH + clock::unix_elapsed();
        Ok((answer, Timing { sent, received: clock::now(), received_wall }))
    }

    /// The entry with what the origin said of it now; else the head, if it is not to be kept any longer.
    fn freshen(
        &self,
        leading: Leading,
        stale: &Arc<Stored>,
        said: &HeaderMap,
        timing: Timing,
    ) -> Result<Arc<Stored>, Head> {
        let Some(rule) = &self.upstream.cache else { return Err(stale.head.clone()) };
        let mut head = stale.head.freshened(said);
        if !said.contains_key(header::DATE) {
            head.headers.remove(header::DATE); // the old one is not when it was validated
        }
        date(&mut head.headers);
        let mut aged = head.headers.clone();
        if let Some(age) = said.get(header::AGE) {
            aged.insert(header::AGE, age.clone());
        }
        let made = Life::of(self.facts, head.status, &aged, rule, timing).and_then(|life| {
            let variant = Variant::of(self.route, &self.parts.headers, &head.headers)?;
            let weight = Stored::head_weight(&self.key, &variant, &head);
            let held = self.cache.store.take(self.key.tenant(), weight).ok_or("no_room")?;
            let body = Arc::clone(&stale.body);
            Ok(Arc::new(Stored::new(Arc::clone(&self.key), variant, head.clone(), life, body, held)))
        });
        match made {
            Ok(stored) => {
                // Also where its `Vary` is another now.
                self.cache.store.remove(stale);
                self.put(leading, &stored);
                Ok(stored)
            }
            Err(_) => {
                self.cache.store.remove(stale);
                leading.uncacheable();
                Err(head)
            }
        }
    }

    fn put(&self, leading: Leading, stored: &Arc<Stored>) {
        put(&self.cache, leading, stored);
    }

    /// Why an answer says nothing of the page: it is about when this request came (RFC 8470 section 5.2), or perhaps about what is
    /// odd in it. Whoever can bring one about must not take away what is kept, or keep others from keeping the page.
    fn about_this_request(&self, answer: &Answer) -> Option<&'static str> {
        match answer.response.status() {
            StatusCode::TOO_EARLY if self.parts.headers.contains_key(EARLY_DATA) => Some("too_early"),
            status if freshness::is_of_page(status) => None,
            _ => Some("status"),
        }
    }

    /// Passes an answer on, and keeps it if it may be kept.
    fn keep(&self, leading: Leading, mut answer: Answer, timing: Timing, forwarded: Forwarded) -> Answer {
        if let Some(why) = self.about_this_request(&answer) {
            drop(leading); // who waits for it goes on in its place
            return labelled(answer, Told::detailed(Outcome::NotKept, why).forwarded(forwarded));
        }
        let wanted = match self.plan(&answer, timing) {
            Ok(wanted) => wanted,
            Err(why) => {
                if answer.reason.is_none() && !answer.response.status().is_server_error() {
                    self.cache.passes.note(self.pass_hash(), timing.received);
                }
                leading.uncacheable();
                return labelled(answer, Told::detailed(Outcome::NotKept, why).forwarded(forwarded));
            }
        };
        let body = match std::mem::replace(answer.response.body_mut(), ResponseSource::Empty) {
            ResponseSource::Origin(body) => *body,
            other @ (ResponseSource::Empty
            | ResponseSource::Full(_)
            | ResponseSource::Stored(_)
            | ResponseSource::Growing(_)
            | ResponseSource::Coded(_)) => {
                *answer.response.body_mut() = other;
                leading.uncacheable();
                return labelled(answer, Told::detailed(Outcome::NotKept, "body").forwarded(forwarded));
            }
        };
        let Plan { head, variant, life, length, head_held, body_held, bytes_max } = wanted;
        let filling = Filling::new(&self.key, variant, head, length, life, body_held);
        if length.is_some() {
            leading.filling(&filling);
        }
        let (cache, key, filled) = (Arc::clone(&self.cache), Arc::clone(&self.key), Arc::clone(&filling));
        let keep = move |leading: Leading, body: Arc<StoredBody>| {
            let (variant, head, life) = (filled.variant.clone(), filled.head.clone(), filled.life);
            put(&cache, leading, &Arc::new(Stored::new(key, variant, head, life, body, head_held)));
        };
        let store = Arc::clone(&self.cache.store);
        let job = FillJob { store, filling: Arc::clone(&filling), bytes_max, leading };
        let reader = filling::begin(job, body, &self.host, keep);
        let asked = (&self.parts.method, &self.wishes);
        let kept =
            answer::from_filling(&filling, reader, asked, Told::of(Outcome::Miss).forwarded(forwarded));
        Answer { origin: answer.origin, ..kept }
    }

    /// What is to be kept of an answer.
    fn plan(&self, answer: &Answer, timing: Timing) -> Result<Plan, &'static str> {
        let rule = self.upstream.cache.as_ref().ok_or("off")?;
        if answer.reason.is_some() {
            return Err("own_page");
        }
        let ResponseSource::Origin(body) = answer.response.body() else { return Err("body") };
        // One that ends with its connection may have been cut short (RFC 9111 section 3.3).
        if !body.is_framed() {
            return Err("unframed");
        }
        let mut headers = answer.response.headers().clone();
        date(&mut headers);
        let status = answer.response.status();
        let life = Life::of(self.facts, status, &headers, rule, timing)?;
        let variant = Variant::of(self.route, &self.parts.headers, &headers)?;
        let length = length_of(&headers)?;
        let store = &self.cache.store;
        let bytes_max = rule.max_object_bytes.min(store.capacity() / limits::CACHE_OBJECT_SHARE);
        if length.is_some_and(|length| length > bytes_max) {
            return Err("too_large");
        }
        let head = Head::of(status, headers);
        let tenant = self.key.tenant();
        let weight = Stored::head_weight(&self.key, &variant, &head);
        let head_held = store.take(tenant, weight).ok_or("no_room")?;
        let body_held = store.take(tenant, length.unwrap_or(0)).ok_or("no_room")?;
        Ok(Plan { head, variant, life, length, head_held, body_held, bytes_max })
    }
}

/// What is to be kept, and the room for it.
struct Plan {
    head: Head,
    variant: Variant,
    life: Life,
    length: Option<u64>,
    head_held: Held,
    body_held: Held,
    bytes_max: u64,
}

fn put(cache: &Cache, leading: Leading, stored: &Arc<Stored>) {
    if cache.store.put(stored, || leading.is_doomed()) {
        leading.kept();
    } else {
        leading.uncacheable();
    }
}

/// The origin, or who stands before it, says that it cannot answer.
fn is_failure(answer: &Answer) -> bool {
    matches!(answer.response.status().as_u16(), 500 | 502 | 503 | 504)
}

fn labelled(mut answer: Answer, told: Told) -> Answer {
    if answer.reason.is_none() {
        told.tell(answer.response.headers_mut());
        super::stored::take_tags(answer.response.headers_mut());
    }
    answer.cache = Some(told.outcome);
    answer
}

fn add_validators(headers: &mut HeaderMap, of: &Head) {
    if let Some(etag) = of.etag() {
        headers.insert(header::IF_NONE_MATCH, etag.clone());
    }
    if let Some(modified) = of.last_modified() {
        headers.insert(header::IF_MODIFIED_SINCE, modified.clone());
    }
}

/// A 304 with a strong validator that is not ours (RFC 9111 section 4.3.4).
fn names_another(said: &HeaderMap, ours: &Head) -> bool {
    let strip = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        bytes.strip_prefix(b"W/").unwrap_or(bytes).to_vec()
    };
    let Some(theirs) = said.get(header::ETAG) else { return false };
    ours.etag().map(strip) != Some(strip(theirs))
}

/// Gives the connection back: a 304 has no body to read.
fn release(answer: Answer) {
    if let ResponseSource::Origin(body) = answer.response.into_body() {
        OriginBody::release(*body);
    }
}

fn length_of(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    value.to_str().ok().and_then(|text| text.trim().parse().ok()).map(Some).ok_or("length")
}

/// RFC 9110 section 6.6.1: whoever keeps an answer without a date gives it one.
fn date(headers: &mut HeaderMap) {
    if headers.contains_key(header::DATE) {
        return;
    }
    let now = std::time::SystemTime::UNIX_EPOCH + clock::unix_elapsed();
    if let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        headers.insert(header::DATE, value);
    }
}

#[cfg(test)]
#[path = "serve/tests.rs"]
mod tests;
