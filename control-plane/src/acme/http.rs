//! The way to a CA: one HTTP client per issuer.
//!
//! instant_acme's own client has no time limit, leaves Nagle's algorithm on and drops the headers of an error, so this
//! one stands in its place ([`HttpClient`]): connect and request time limits, TCP_NODELAY, a bound on each body, a pace
//! below the CA's published request limits, no redirect, no other host than the directory's, and a record of each
//! answer's status, `Retry-After` and `Location` for the step that caused it ([`observe`]).
//!
//! A CA may move what its directory names (RFC 8555 section 7.1.1). Where one of these places is gone, that is nothing about an
//! order or an account, and the directory is read again before the next use.
//!
//! Deliberately absent: proxies, HTTP caching, retries (the order machine's).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{AcmeError, AcmeErrorKind};
use crate::clock;
use crate::store::lease::Term;

/// Time for TCP and TLS to the CA.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one request and its whole answer, without waiting for the pace. Boulder answers newOrder of 100 names
/// within some seconds; a hung CA must not hold an order for longer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer other than a certificate chain.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The largest certificate chain: 100 names and four intermediates stay below 40 KiB.
pub const CERTIFICATE_BYTES_MAX: usize = 256 * 1024;
/// A directory is read again no sooner where nothing but a CA that knows a certificate no more asks for it.
const DIRECTORY_PAUSE: Duration = Duration::from_secs(3600);
/// A `Retry-After` beyond this is cut to it: no CA's answer parks an order for longer than a day.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Where a CA is and how to behave there.
#[derive(Clone, Debug)]
pub struct CaEndpoint {
    /// `https://host[:port]/path` of the ACME directory.
    pub directory: Uri,
    /// Trust anchors for the CA's own TLS.
    pub roots: Arc<RootCertStore>,
    /// Orders are never created while another request is in flight: Pebble deadlocks otherwise.
    pub serialize_orders: bool,
    /// All requests.
    pub pace: Pace,
    /// newNonce, which Let's Encrypt limits more strictly than the rest.
    pub nonce_pace: Pace,
}

/// A request rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub per_second: u32,
    pub burst: u32,
}

/// What the last answer within one step said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// HTTP status; `None`: no answer came.
    pub status: Option<u16>,
    /// When to come back, from now.
    pub retry_after: Option<Duration>,
    /// URL of the order or account that the answer speaks of.
    pub location: Option<String>,
    /// Until when the object in the answer's body stands, as the CA says there; Unix milliseconds.
    pub expires_ms: Option<i64>,
}

tokio::task_local! {
    static OBSERVED: Mutex<Observed>;
}

/// Runs one step at the CA and tells what its last answer said, whatever instant_acme made of it.
pub async fn observe<T>(step: impl Future<Output = T>) -> (T, Observed) {
    OBSERVED
        .scope(Mutex::new(Observed::default()), async {
            let result = step.await;
            let observed = OBSERVED.with(|observed| lock(observed).clone());
            (result, observed)
        })
        .await
}

fn record(observed: Observed) {
    // Outside of a step (no scope) nobody asks for the record.
    let _ = OBSERVED.try_with(|slot| *lock(slot) = observed);
}

/// Adds what the body of the answer says of its end: of an authorization nothing else does (RFC 8555 section 7.1.4), and
/// instant_acme does not read it.
fn record_end(body: &[u8]) {
    #[derive(serde::Deserialize)]
    struct Ending {
        expires: Option<String>,
    }
    let ending: Option<Ending> = serde_json::from_slice(body).ok();
    let expires_ms = ending.and_then(|ending| clock::parse_rfc3339(&ending.expires?));
    let _ = OBSERVED.try_with(|slot| lock(slot).expires_ms = expires_ms);
}

/// The values under these locks are replaced whole, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client; clones share connections and pace.
#[derive(Clone)]
pub struct CaHttp {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client<CaConnector, Full<Bytes>>,
    directory: Uri,
    endpoints: Directory,
    read_again_at: Mutex<Instant>,
    /// The CA's clock at its last answer, Unix milliseconds; 0: it has not said.
    date_ms: AtomicI64,
    gate: Option<RwLock<()>>,
    pace: Pacer,
    nonce_pace: Pacer,
    /// Renewal information, which CAs limit apart from the rest.
    renewal_info_pace: Pacer,
    /// That what is asked is asked within; none on a database of our own.
    term: Option<Term>,
}

/// What the directory said last.
#[derive(Default)]
struct Directory {
    known: std::sync::RwLock<Option<Arc<Endpoints>>>,
    /// What it names has changed so many times.
    moves: AtomicU64,
    /// A place that it names is not there.
    is_gone: AtomicBool,
}

impl Directory {
    fn get(&self) -> Option<Arc<Endpoints>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, endpoints: Endpoints) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref().is_some_and(|known| *known != endpoints) {
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
        *known = Some(Arc::new(endpoints));
        self.is_gone.store(false, Ordering::Relaxed);
    }
}

/// The directory's URLs that are treated in a special way.
#[derive(PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoints {
    new_nonce: String,
    new_account: String,
    new_order: String,
    revoke_cert: Option<String>,
    key_change: Option<String>,
    renewal_info: Option<String>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    caa_identities: Arc<[String]>,
}

impl std::fmt::Debug for CaHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaHttp").field("directory", &self.inner.directory).finish_non_exhaustive()
    }
}

impl CaHttp {
    /// # Errors
    /// The directory's URL is not `https://host/..`, or the TLS configuration cannot be made.
    pub fn new(endpoint: &CaEndpoint) -> Result<Self, CaHttpError> {
        Self::within(endpoint, None)
    }

    /// The same, where nothing is asked any more when the term is over.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn within(endpoint: &CaEndpoint, term: Option<Term>) -> Result<Self, CaHttpError> {
        let directory = endpoint.directory.clone();
        if directory.scheme_str() != Some("https") || directory.host().is_none() {
            return Err(CaHttpError::DirectoryUrl(directory.to_string()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(CaHttpError::Tls)?
            .with_root_certificates(endpoint.roots.clone())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .timer(hyper_util::rt::TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(CaConnector { tls: TlsConnector::from(Arc::new(tls)), term: term.clone() });
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                directory,
                endpoints: Directory::default(),
                read_again_at: Mutex::new(Instant::now()),
                date_ms: AtomicI64::new(0),
                gate: endpoint.serialize_orders.then(|| RwLock::new(())),
                pace: Pacer::new(endpoint.pace),
                nonce_pace: Pacer::new(endpoint.nonce_pace),
                renewal_info_pace: Pacer::new(endpoint.pace),
                term,
            }),
        })
    }

    /// URL of the directory.
    pub fn directory(&self) -> String {
        self.inner.directory.to_string()
    }

    /// The CA's clock at its last answer, Unix milliseconds.
    pub fn date_ms(&self) -> Option<i64> {
        Some(self.inner.date_ms.load(Ordering::Relaxed)).filter(|date| *date > 0)
    }

    /// What the CA calls itself in CAA records, by its directory; empty when it does not say. `None`: no directory has
    /// been read yet.
    pub fn caa_identities(&self) -> Option<Arc<[String]>> {
        self.inner.endpoints.get().map(|endpoints| endpoints.meta.caa_identities.clone())
    }

    /// Where the CA tells when to renew; `None`: it does not, or no directory has been read yet.
    pub fn renewal_info_url(&self) -> Option<String> {
        self.inner.endpoints.get().and_then(|endpoints| endpoints.renewal_info.clone())
    }

    /// How often the directory has named other places than before; it is read again first where one of them is gone. What was
    /// made of it at another count, as instant_acme's accounts are, leads nowhere.
    ///
    /// # Errors
    /// The directory had to be read and was not.
    pub async fn moves(&self) -> Result<u64, AcmeError> {
        if self.inner.endpoints.is_gone.load(Ordering::Relaxed) {
            self.read_directory().await?;
        }
        Ok(self.inner.endpoints.moves.load(Ordering::Relaxed))
    }

    /// A request outside of instant_acme's.
    pub(super) async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>, AcmeError> {
        self.inner.send(request).await.map_err(|error| AcmeError::from_http(&error))
    }

    /// URL of newAccount. The directory has been read.
    pub(super) fn new_account_url(&self) -> Result<String, AcmeError> {
        Ok(self.endpoints()?.new_account.clone())
    }

    /// URL of revokeCert; the directory is read if it has not been.
    pub(super) async fn revoke_url(&self) -> Result<String, AcmeError> {
        if self.inner.endpoints.get().is_none() || self.inner.endpoints.is_gone.load(Ordering::Relaxed) {
            self.read_directory().await?;
        }
        let url = self.endpoints()?.revoke_cert.clone();
        let none = "the CA's directory has no revokeCert";
        url.ok_or_else(|| AcmeError::plain(AcmeErrorKind::Garbage, none))
    }

    /// URL of keyChange. The directory has been read.
    pub(super) fn key_change_url(&self) -> Result<String, AcmeError> {
        let none = "the CA has no way to change the key of an account";
        let url = self.endpoints()?.key_change.clone();
        url.ok_or_else(|| AcmeError::plain(AcmeErrorKind::Account, none))
    }

    fn endpoints(&self) -> Result<Arc<Endpoints>, AcmeError> {
        self.inner.endpoints.get().ok_or_else(|| AcmeError::ours("no directory has been read"))
    }

    /// A nonce for a request that we sign ourselves. The directory has been read.
    pub(super) async fn nonce(&self) -> Result<String, AcmeError> {
        let request =
            Request::head(&self.endpoints()?.new_nonce).body(Bytes::new()).map_err(AcmeError::ours)?;
        let answer = self.ask(request).await?;
        let nonce = answer.headers().get("replay-nonce").and_then(|nonce| nonce.to_str().ok());
        let nonce = nonce.ok_or_else(|| AcmeError::plain(AcmeErrorKind::Garbage, "the CA gives no nonce"))?;
        Ok(nonce.to_owned())
    }

    /// Reads the directory once an hour at most, for what may have moved; what it says counts from the next request on.
    pub(super) async fn read_directory_at_times(&self) {
        let now = Instant::now();
        let is_due = {
            let mut at = lock(&self.inner.read_again_at);
            let is_due = *at <= now;
            if is_due {
                *at = now + DIRECTORY_PAUSE;
            }
            is_due
        };
        if is_due && let Err(error) = self.read_directory().await {
            tracing::info!(directory = %self.inner.directory, %error, "the directory was not read again");
        }
    }

    /// Reads the directory, for what it says about the CA.
    ///
    /// # Errors
    /// No answer, or none that is a directory.
    pub async fn read_directory(&self) -> Result<(), AcmeError> {
        let request =
            Request::get(self.inner.directory.clone()).body(Bytes::new()).map_err(AcmeError::ours)?;
        let answer = self.ask(request).await?;
        match self.inner.endpoints.get() {
            Some(_) if answer.status() == StatusCode::OK => Ok(()),
            _ if answer.status().is_server_error() => {
                let text = format!("the directory cannot be read: {}", answer.status());
                Err(AcmeError::plain(AcmeErrorKind::Unavailable, &text))
            }
            _ => {
                let text = format!("the directory's answer is none: {}", answer.status());
                Err(AcmeError::plain(AcmeErrorKind::Garbage, &text))
            }
        }
    }
}

/// Why a request to a CA was not made or its answer not taken.
#[derive(Debug, thiserror::Error)]
pub enum CaHttpError {
    #[error("`{0}` is no ACME directory: an https:// URL with a host is needed")]
    DirectoryUrl(String),
    #[error("TLS set-up")]
    Tls(#[source] rustls::Error),
    #[error("the CA named {0}, which is not on the directory's own host: not followed")]
    OtherHost(String),
    #[error("the CA answered with a redirect ({0}): not followed")]
    Redirect(StatusCode),
    #[error("another replica asks this CA now")]
    TermOver,
    #[error("{0}, which the CA's directory named, is not there: the directory is read again")]
    Gone(String),
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    #[error("no connection to the CA")]
    Connect(#[source] hyper_util::client::legacy::Error),
    #[error("the answer is larger than {0} bytes or broke off")]
    Body(usize, #[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HttpClient for CaHttp {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            // The body is already in memory: this only takes it out of instant_acme's wrapper.
            let (parts, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let response = inner.send(Request::from_parts(parts, body)).await;
            response.map(|r| BytesResponse::from(r.map(Full::new))).map_err(|e| Error::Other(Box::new(e)))
        })
    }
}

impl Inner {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, CaHttpError> {
        record(Observed::default());
        let uri = request.uri().clone();
        if uri.scheme_str() != Some("https") || uri.authority() != self.directory.authority() {
            return Err(CaHttpError::OtherHost(uri.to_string()));
        }
        let kind = self.kind(request.method(), &uri);
        match kind {
            RequestKind::RenewalInfo => self.renewal_info_pace.wait().await,
            RequestKind::NewNonce => {
                self.pace.wait().await;
                self.nonce_pace.wait().await;
            }
            RequestKind::Directory | RequestKind::NewAccount | RequestKind::NewOrder | RequestKind::Other => {
                self.pace.wait().await
            }
        }
        let _gate = self.pass_gate(kind).await;
        // And once more with each write to the connection: making one takes its time.
        if !stands(self.term.as_ref()) {
            return Err(CaHttpError::TermOver);
        }
        let response = timeout(REQUEST_TIMEOUT, self.exchange(request)).await;
        let result = response.unwrap_or(Err(CaHttpError::Timeout));
        let status = result.as_ref().map_or("none", |r| status_class(r.status()));
        crate::metrics::acme_request(kind.label(), status);
        let response = result?;
        if uri == self.directory && response.status() == StatusCode::OK {
            // A directory that does not parse is instant_acme's to refuse.
            if let Ok(endpoints) = serde_json::from_slice::<Endpoints>(response.body()) {
                self.endpoints.set(endpoints);
            }
        }
        if kind.is_named() && matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE) {
            self.endpoints.is_gone.store(true, Ordering::Relaxed);
            return Err(CaHttpError::Gone(uri.to_string()));
        }
        Ok(response)
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, CaHttpError> {
        let response = self.client.request(request.map(Full::new)).await.map_err(CaHttpError::Connect)?;
        record(observed(&response));
        let date = response.headers().get(DATE).and_then(|date| parse_date(date.to_str().ok()?));
        if let Some(date) = date {
            self.date_ms.store(date.unix_timestamp().saturating_mul(1000), Ordering::Relaxed);
        }
        if response.status().is_redirection() {
            return Err(CaHttpError::Redirect(response.status()));
        }
        let is_chain = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"application/pem-certificate-chain"));
        let bytes_max = if is_chain { CERTIFICATE_BYTES_MAX } else { BODY_BYTES_MAX };
        let (parts, body) = response.into_parts();
        let body =
            Limited::new(body, bytes_max).collect().await.map_err(|e| CaHttpError::Body(bytes_max, e))?;
        let body = body.to_bytes();
        if !is_chain && parts.status.is_success() {
            record_end(&body);
        }
        Ok(Response::from_parts(parts, body))
    }

    fn kind(&self, method: &Method, uri: &Uri) -> RequestKind {
        let is = |url: &str| uri == url;
        match self.endpoints.get().as_deref() {
            Some(endpoints) if is(&endpoints.new_order) => RequestKind::NewOrder,
            Some(endpoints) if is(&endpoints.new_account) => RequestKind::NewAccount,
            Some(Endpoints { renewal_info: Some(base), .. }) if uri.to_string().starts_with(base) => {
                RequestKind::RenewalInfo
            }
            Some(endpoints) if is(&endpoints.new_nonce) && method == Method::HEAD => RequestKind::NewNonce,
            Some(_) | None if *uri == self.directory => RequestKind::Directory,
            Some(_) | None => RequestKind::Other,
        }
    }

    /// With `serialize_orders`: newOrder waits until nothing else is in flight, and all else until it is answered.
    async fn pass_gate(&self, kind: RequestKind) -> Option<GatePass<'_>> {
        let gate = self.gate.as_ref()?;
        Some(match kind {
            RequestKind::NewOrder => GatePass::Alone { _guard: gate.write().await },
            RequestKind::NewNonce
            | RequestKind::NewAccount
            | RequestKind::Directory
            | RequestKind::RenewalInfo
            | RequestKind::Other => GatePass::Shared { _guard: gate.read().await },
        })
    }
}

fn stands(term: Option<&Term>) -> bool {
    term.is_none_or(Term::stands)
}

enum GatePass<'a> {
    Alone { _guard: tokio::sync::RwLockWriteGuard<'a, ()> },
    Shared { _guard: tokio::sync::RwLockReadGuard<'a, ()> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestKind {
    Directory,
    NewNonce,
    NewAccount,
    NewOrder,
    RenewalInfo,
    Other,
}

impl RequestKind {
    /// By the directory itself: a 404 there is about the place, not about what was asked for. Renewal information has it for a
    /// certificate that the CA does not know.
    fn is_named(self) -> bool {
        matches!(self, Self::NewNonce | Self::NewAccount | Self::NewOrder)
    }

    fn label(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::NewNonce => "new_nonce",
            Self::NewAccount => "new_account",
            Self::NewOrder => "new_order",
            Self::RenewalInfo => "renewal_info",
            Self::Other => "other",
        }
    }
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        429 => "429",
        400..=499 => "4xx",
        503 => "503",
        _ => "5xx",
    }
}

fn observed<B>(response: &Response<B>) -> Observed {
    let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
    Observed {
        status: Some(response.status().as_u16()),
        retry_after: text(RETRY_AFTER).and_then(parse_retry_after),
        location: text(LOCATION).map(str::to_owned),
        expires_ms: None,
    }
}

/// `Retry-After` in either of its forms (RFC 9110 section 10.2.3), cut to [`RETRY_AFTER_MAX`].
fn parse_retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = parse_date(text)?;
            Duration::try_from(at - clock::utc()).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// RFC 9110 section 5.6.7.
fn parse_date(text: &str) -> Option<time::OffsetDateTime> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    Some(time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc())
}

/// Hands out times at which a request may start (GCRA): `burst` at once, then `per_second`.
struct Pacer {
    interval: Duration,
    tolerance: Duration,
    next: Mutex<Instant>,
}

impl Pacer {
    fn new(pace: Pace) -> Self {
        let interval = Duration::from_secs(1) / pace.per_second.max(1);
        Self { interval, tolerance: interval * pace.burst, next: Mutex::new(Instant::now()) }
    }

    async fn wait(&self) {
        let start = self.claim(Instant::now());
        sleep_until(start).await;
    }

    fn claim(&self, now: Instant) -> Instant {
        let mut next = lock(&self.next);
        let arrival = (*next).max(now);
        *next = arrival + self.interval;
        arrival.checked_sub(self.tolerance).map_or(now, |start| start.max(now))
    }
}

#[derive(Clone)]
struct CaConnector {
    tls: TlsConnector,
    term: Option<Term>,
}

impl tower::Service<Uri> for CaConnector {
    type Response = CaStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<CaStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, term) = (self.tls.clone(), self.term.clone());
        Box::pin(async move {
            match timeout(CONNECT_TIMEOUT, connect(&tls, &uri)).await {
                Ok(stream) => Ok(CaStream { io: stream?, term }),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS connection in time")),
            }
        })
    }
}

async fn connect(tls: &TlsConnector, uri: &Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let name =
        ServerName::try_from(host.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    tcp.set_nodelay(true)?;
    Ok(TokioIo::new(tls.connect(name, tcp).await?))
}

/// A TLS connection to the CA that tells hyper which protocol was agreed, and takes nothing more when the term is over: a
/// process that was stopped within a request must not go on with it, since another replica has asked by then.
struct CaStream {
    io: TokioIo<TlsStream<TcpStream>>,
    term: Option<Term>,
}

impl CaStream {
    fn within_term(&self) -> io::Result<()> {
        if stands(self.term.as_ref()) { Ok(()) } else { Err(io::Error::other(CaHttpError::TermOver)) }
    }
}

impl Connection for CaStream {
    fn connected(&self) -> Connected {
        let (_, session) = self.io.inner().get_ref();
        if session.alpn_protocol() == Some(b"h2") {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl Read for CaStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for CaStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.within_term()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written may not have left yet.
        self.within_term()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        assert_eq!(parse_retry_after(" 17 "), Some(Duration::from_secs(17)));
        assert_eq!(parse_retry_after("99999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("Fri, 31 Dec 2100 23:59:59 GMT"), Some(RETRY_AFTER_MAX));
        for nonsense in ["", "soon", "-5", "1e9", "Fri, 99 Dec 2100 23:59:59 GMT"] {
            assert_eq!(parse_retry_after(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_pace_lets_its_burst_through_and_then_its_rate() {
        let pacer = Pacer::new(Pace { per_second: 10, burst: 5 });
        let now = Instant::now();
        for _ in 0..6 {
            assert_eq!(pacer.claim(now), now);
        }
        let last = (0..10).map(|_| pacer.claim(now)).last().unwrap();
        assert_eq!(last - now, Duration::from_secs(1));
        let later = now + Duration::from_secs(60);
        assert_eq!(pacer.claim(later), later, "an idle time pays the debt, and no more");
    }

    #[test]
    fn a_directory_without_tls_or_host_is_refused() {
        for url in ["http://ca.example/dir", "/dir", "ftp://ca.example/dir"] {
            let endpoint = CaEndpoint {
                directory: url.parse().unwrap(),
                roots: Arc::new(RootCertStore::empty()),
                serialize_orders: false,
                pace: Pace { per_second: 1, burst: 1 },
                nonce_pace: Pace { per_second: 1, burst: 1 },
            };
            assert!(matches!(CaHttp::new(&endpoint), Err(CaHttpError::DirectoryUrl(_))), "{url}");
        }
    }
}
