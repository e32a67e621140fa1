//! The running CA: arguments, start, shutdown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use futures_util::future::BoxFuture;
use http::Uri;
use http::uri::PathAndQuery;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::book::Book;
use crate::clock::{Clock, parse_duration};
use crate::external_account::ExternalAccount;
use crate::faults::{Endpoint, Fault, FaultKind, Faults};
use crate::issue::Hierarchy;
use crate::limits::{LimitOverride, Limits};
use crate::nonce::NoncePool;
use crate::profile::{Profile, Profiles};
use crate::tls::ApiIdentity;
use crate::validate::Validator;
use crate::{management, server};

/// Arguments of `portico-acme-ca ca`.
#[derive(Args, Clone, Debug)]
pub struct CaArgs {
    /// Address of the ACME API (HTTPS); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:14000", value_parser = loopback)]
    pub listen: SocketAddr,
    /// Address of the management listener (plain HTTP, JSON); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15000", value_parser = loopback)]
    pub management: SocketAddr,
    /// The DNS server that names are resolved with.
    #[arg(long, value_name = "ADDR")]
    pub dns: SocketAddr,
    /// Port that HTTP-01 connects to in place of 80.
    #[arg(long, default_value_t = 80)]
    pub http_port: u16,
    /// Port that TLS-ALPN-01 and redirects to https connect to in place of 443.
    #[arg(long, default_value_t = 443)]
    pub tls_port: u16,
    /// Writes the root certificate (PEM) that issued chains end in.
    #[arg(long, value_name = "FILE")]
    pub root_out: Option<PathBuf>,
    /// Writes the certificate (PEM) that clients need to trust the API's own TLS.
    #[arg(long, value_name = "FILE")]
    pub api_ca_out: Option<PathBuf>,
    /// Lifetime of leaves of the profile `classic`, which is the default one: 90d, 160h, 10m.
    #[arg(long, default_value = "90d", value_parser = parse_duration)]
    pub validity: Duration,
    /// How long a valid authorization may be reused, in the profile `classic`.
    #[arg(long, default_value = "30d", value_parser = parse_duration)]
    pub authz_lifetime: Duration,
    /// How long an authorization or an order may stay pending.
    #[arg(long, default_value = "7d", value_parser = parse_duration)]
    pub pending_lifetime: Duration,
    /// Names in one order at the most, in the profile `classic`.
    #[arg(long, default_value_t = 100)]
    pub max_names: usize,
    /// The limits to enforce.
    #[arg(long, value_enum, default_value_t = LimitTable::Letsencrypt)]
    pub limits: LimitTable,
    /// Multiplies the counts of the limits.
    #[arg(long, default_value_t = 1.0)]
    pub limit_scale: f64,
    /// Sets one limit, as in `new-orders=10/60s`; repeatable, not scaled.
    #[arg(long, value_name = "NAME=COUNT/PERIOD")]
    pub limit: Vec<LimitOverride>,
    /// Polls for which a finalized order stays `processing`.
    #[arg(long, default_value_t = 0)]
    pub processing_polls: u32,
    /// No renewal information (RFC 9773), as some CAs have none.
    #[arg(long)]
    pub no_ari: bool,
    /// `Retry-After` of renewal information; 0s: none.
    #[arg(long, default_value = "6h", value_parser = parse_duration)]
    pub ari_retry_after: Duration,
    /// What an order that replaces a certificate is exempt from.
    #[arg(long, value_enum, default_value_t = AriExemption::Full)]
    pub ari_exemption: AriExemption,
    /// Further `host:port` under which clients reach the API; `localhost` and the address are always known.
    #[arg(long, value_name = "HOST:PORT")]
    pub authority: Vec<String>,
    /// An external account, as in `kid-1=zWNDZM6eQGHWpSRTPal5eIUYFTu7EajV`, which one account may be bound to; repeatable.
    /// With any, each new account needs one (RFC 8555 section 7.3.4).
    #[arg(long, value_name = "KEY_ID=BASE64URL")]
    pub external_account: Vec<ExternalAccount>,
    /// What this CA calls itself in CAA records. It does not look at them: who issues in spite of one must be told by others.
    #[arg(long, default_value = "acme-ca.test")]
    pub caa_identity: String,
    /// Ends when standard input ends: a parent holds the other end of a pipe.
    #[arg(long)]
    pub exit_on_stdin_eof: bool,
}

/// Which table of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LimitTable {
    Letsencrypt,
    None,
}

/// How far an order that replaces a certificate is exempt from limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AriExemption {
    /// From all limits, as Let's Encrypt's documentation has it.
    Full,
    /// From all limits, for the names of the certificate that it replaces; others are counted.
    CoveredNames,
    /// From all limits, if the suggested window is open, as Boulder's code has it.
    InWindow,
}

impl CaArgs {
    /// Arguments for a CA inside a test: free ports on 127.0.0.1, all else by default.
    pub fn in_process(dns: SocketAddr) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: free,
            management: free,
            dns,
            http_port: 80,
            tls_port: 443,
            root_out: None,
            api_ca_out: None,
            validity: Duration::from_secs(90 * 86_400),
            authz_lifetime: Duration::from_secs(30 * 86_400),
            pending_lifetime: Duration::from_secs(7 * 86_400),
            max_names: 100,
            limits: LimitTable::Letsencrypt,
            limit_scale: 1.0,
            limit: vec![],
            processing_polls: 0,
            no_ari: false,
            ari_retry_after: Duration::from_secs(6 * 3600),
            ari_exemption: AriExemption::Full,
            authority: vec![],
            external_account: vec![],
            caa_identity: "acme-ca.test".to_owned(),
            exit_on_stdin_eof: false,
        }
    }
}

/// What a parent needs to know of a started CA; printed as one JSON line by the binary.
#[derive(Clone, Debug, Serialize)]
pub struct CaAddresses {
    pub service: &'static str,
    /// The directory URL, by `localhost`.
    pub directory: String,
    pub api: SocketAddr,
    pub management: SocketAddr,
    pub http_port: u16,
    pub tls_port: u16,
    pub dns: SocketAddr,
}

/// A running CA. Dropping it stops it.
#[derive(Debug)]
pub struct CaHandle {
    pub addresses: CaAddresses,
    /// Root of the issued chains, PEM.
    pub root_pem: String,
    /// Trust anchor of the API's own TLS, PEM.
    pub api_ca_pem: String,
    tasks: JoinSet<()>,
}

impl CaHandle {
    /// Waits until a listener has ended, which only happens on a fault.
    pub async fn stopped(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Starts a CA on the current tokio runtime. Boxed: compiled once, in this crate, and not
/// again in every program that awaits it.
///
/// # Errors
/// A taken or wrong address, a file that cannot be written, a value out of range.
pub fn start(args: CaArgs) -> BoxFuture<'static, anyhow::Result<CaHandle>> {
    Box::pin(assemble(args))
}

async fn assemble(args: CaArgs) -> anyhow::Result<CaHandle> {
    check(&args)?;
    let api = bind(args.listen, "--listen").await?;
    let management = bind(args.management, "--management").await?;
    let addresses = CaAddresses {
        service: "acme-ca",
        directory: format!("https://localhost:{}/directory", api.local_addr()?.port()),
        api: api.local_addr()?,
        management: management.local_addr()?,
        http_port: args.http_port,
        tls_port: args.tls_port,
        dns: args.dns,
    };
    let ca = Arc::new(Ca::new(&args, addresses.api)?);
    let identity = ApiIdentity::generate(&ca.authorities, ca.clock.now())?;
    let root_pem = ca.hierarchy.root_pem();
    write_out(args.root_out.as_ref(), &root_pem, "--root-out")?;
    write_out(args.api_ca_out.as_ref(), &identity.ca_pem, "--api-ca-out")?;
    let api_ca_pem = identity.ca_pem.clone();
    let mut tasks = JoinSet::new();
    let routes = management::router(Arc::clone(&ca), api_ca_pem.clone());
    tasks.spawn(server::serve_api(api, identity.tls, Arc::clone(&ca)));
    tasks.spawn(server::serve_plain(management, routes));
    Ok(CaHandle { addresses, root_pem, api_ca_pem, tasks })
}

/// Everything that the handlers share.
#[derive(Debug)]
pub(crate) struct Ca {
    pub(crate) config: Config,
    /// `host:port` forms under which the API answers.
    pub(crate) authorities: Vec<String>,
    pub(crate) clock: Clock,
    pub(crate) nonces: NoncePool,
    pub(crate) faults: Faults,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) validator: Validator,
    /// How often its places have moved.
    moves: AtomicU32,
    book: Mutex<Book>,
}

/// Fixed at start.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How long a valid authorization is; a profile may reuse it for less.
    pub(crate) authorization_lifetime: Duration,
    pub(crate) external_accounts: Vec<ExternalAccount>,
    pub(crate) caa_identity: String,
    pub(crate) ari: bool,
    /// Zero: not said.
    pub(crate) ari_retry_after: Duration,
    pub(crate) ari_exemption: AriExemption,
    pub(crate) processing_polls: u32,
    /// Sent with an order that is `processing`.
    pub(crate) retry_after: Duration,
}

impl Ca {
    fn new(args: &CaArgs, api: SocketAddr) -> anyhow::Result<Self> {
        let clock = Clock::default();
        let hierarchy = Hierarchy::generate(clock.now()).context("make the CA's keys")?;
        let mut authorities = vec![format!("localhost:{}", api.port()), api.to_string()];
        authorities.extend(args.authority.iter().cloned());
        let mut limits = match args.limits {
            LimitTable::Letsencrypt => Limits::letsencrypt().scaled(args.limit_scale),
            LimitTable::None => Limits::none(),
        };
        for change in &args.limit {
            limits.set(*change);
        }
        let config = Config {
            authorization_lifetime: args.authz_lifetime,
            external_accounts: args.external_account.clone(),
            caa_identity: args.caa_identity.clone(),
            ari: !args.no_ari,
            ari_retry_after: args.ari_retry_after,
            ari_exemption: args.ari_exemption,
            processing_polls: args.processing_polls,
            retry_after: Duration::from_secs(1),
        };
        let profiles = Profiles::new(Profile {
            validity: args.validity,
            names_max: args.max_names,
            reuse: args.authz_lifetime,
            pending_authorization_lifetime: args.pending_lifetime,
            order_lifetime: args.pending_lifetime,
        });
        Ok(Self {
            config,
            authorities,
            clock,
            nonces: NoncePool::default(),
            faults: Faults::default(),
            hierarchy,
            validator: Validator::new(args.dns, args.http_port, args.tls_port)?,
            moves: AtomicU32::new(0),
            book: Mutex::new(Book::new(limits, profiles)),
        })
    }

    /// What stands before the path of every place but the directory.
    pub(crate) fn prefix(&self) -> String {
        match self.moves.load(Ordering::Relaxed) {
            0 => String::new(),
            moves => format!("/moved-{moves}"),
        }
    }

    pub(crate) fn move_places(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Where a request would have gone before any move; to nowhere when its place is one that was left.
    pub(crate) fn unmoved(&self, uri: &Uri) -> Uri {
        let path = uri.path();
        if path == "/directory" {
            return uri.clone();
        }
        let here = path.strip_prefix(&self.prefix()).filter(|rest| rest.starts_with('/'));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(here.unwrap_or("/gone")).expect("it was a path"));
        Uri::from_parts(parts).expect("only its path is another")
    }

    /// The state; never held across an await.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses up and counts a fault, if one fits. Not to be called while the book is held.
    pub(crate) fn take_fault(&self, endpoint: Endpoint, kinds: &[FaultKind]) -> Option<Fault> {
        let fault = self.faults.take(endpoint, kinds)?;
        *self.book().stats.faults.entry(fault.kind.as_str()).or_default() += 1;
        Some(fault)
    }

    /// As [`Self::take_fault`], for a caller that holds the book.
    pub(crate) fn take_fault_of(
        &self,
        book: &mut Book,
        endpoint: Endpoint,
        kind: FaultKind,
    ) -> Option<Fault> {
        let fault = self.faults.take(endpoint, &[kind])?;
        *book.stats.faults.entry(fault.kind.as_str()).or_default() += 1;
        Some(fault)
    }
}

/// Reads an address and insists on loopback: this CA and its DNS stub are for tests.
///
/// # Errors
/// A text that says what was expected.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "expected IP:PORT, as in 127.0.0.1:14000".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("not a loopback address: a test CA is never offered to a network".to_owned())
    }
}

/// Binds with an error that names the flag.
///
/// # Errors
/// The address is not loopback, taken, or not ours.
pub(crate) async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    ensure!(address.ip().is_loopback(), "{flag} {address}: not a loopback address");
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: choose another address with {flag}"))
}

fn check(args: &CaArgs) -> anyhow::Result<()> {
    ensure!(args.validity >= Duration::from_secs(4), "--validity must be at least 4s");
    ensure!(args.max_names >= 1, "--max-names must be at least 1");
    ensure!(args.limit_scale.is_finite() && args.limit_scale > 0.0, "--limit-scale must be above 0");
    ensure!(args.http_port != 0 && args.tls_port != 0, "--http-port and --tls-port must not be 0");
    for authority in &args.authority {
        let parsed: Result<http::uri::Authority, _> = authority.parse();
        let good = parsed.is_ok_and(|a| a.port().is_some() && !a.as_str().contains('@'));
        ensure!(good, "--authority {authority:?}: write HOST:PORT");
    }
    Ok(())
}

fn write_out(path: Option<&PathBuf>, text: &str, flag: &str) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text).with_context(|| format!("write {flag} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CaArgs,
    }

    #[test]
    fn a_ca_in_a_test_differs_from_one_on_the_command_line_by_its_ports_only() {
        let free = ["ca", "--listen", "127.0.0.1:0", "--management", "127.0.0.1:0", "--dns", "127.0.0.1:53"];
        let line = Line::try_parse_from(free).unwrap().args;
        let in_process = CaArgs::in_process(SocketAddr::from(([127, 0, 0, 1], 53)));
        assert_eq!(format!("{line:?}"), format!("{in_process:?}"));
    }
}
