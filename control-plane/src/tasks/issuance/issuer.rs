//! An issuer at work: its configuration, the way to its CA, what is known of it. Its accounts are [`super::account`]'s.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use anyhow::Context as _;
use rustls::RootCertStore;
use tokio::sync::Mutex;

use super::account::Accounts;
use super::turns::Turns;
use crate::Parts;
use crate::acme::{CaEndpoint, CaHttp, Pace};
use crate::clock::{MINUTE_MS, is_within};
use crate::config::IssuerConfig;
use crate::plan::ledger::{At, Limits};
use crate::roots::roots;
use crate::store::lease::Term;

/// A CA whose directory cannot be read is asked for it again no sooner.
const DIRECTORY_PAUSE_MS: i64 = MINUTE_MS;

/// Orders that are halved in a row, over all tenants, before one is issued. One bad name among 100 takes 7; a CA that
/// refuses everything would have each name of the fleet ordered alone.
const HALVED_IN_A_ROW_MAX: u32 = 16;

/// One configured issuer.
#[derive(Debug)]
pub(crate) struct Issuer {
    pub(crate) config: IssuerConfig,
    pub(super) limits: Limits,
    pub(super) turns: Turns,
    /// What issued chains must lead to.
    pub(crate) roots: Arc<RootCertStore>,
    /// What the CA's own server must lead to.
    ca_roots: Arc<RootCertStore>,
    http: CaHttp,
    pub(super) accounts: Accounts,
    /// Nothing new is asked of this CA within these times (Unix milliseconds): since when, and until when.
    held: StdMutex<(i64, i64)>,
    /// Orders that were halved since one was issued.
    halved_in_a_row: AtomicU32,
    /// Held while the directory is read; when that was tried last.
    directory_at_ms: Mutex<i64>,
}

impl Issuer {
    /// # Errors
    /// A file of roots that cannot be read, or a directory that is no https URL.
    pub(crate) fn new(config: &IssuerConfig) -> anyhow::Result<Self> {
        let issuer = || format!("issuer \"{}\"", config.name);
        let ca_roots = Arc::new(roots(config.root_pem.as_deref(), true).with_context(issuer)?);
        let chain_roots = Arc::new(roots(config.roots_pem.as_deref(), false).with_context(issuer)?);
        Self::with_roots(config, ca_roots, chain_roots, None)
    }

    /// The same CA, asked within this term only; nothing that was learnt of it is kept.
    ///
    /// # Errors
    /// The TLS configuration cannot be made.
    pub(super) fn within(&self, term: &Term) -> anyhow::Result<Self> {
        Self::with_roots(&self.config, self.ca_roots.clone(), self.roots.clone(), Some(term.clone()))
    }

    fn with_roots(
        config: &IssuerConfig,
        ca_roots: Arc<RootCertStore>,
        roots: Arc<RootCertStore>,
        term: Option<Term>,
    ) -> anyhow::Result<Self> {
        let name = &config.name;
        let endpoint = CaEndpoint {
            directory: config.directory.parse().with_context(|| format!("issuer \"{name}\": directory"))?,
            roots: ca_roots.clone(),
            serialize_orders: config.serialize_orders,
            pace: Pace {
                per_second: config.requests_per_second,
                burst: config.requests_per_second.div_ceil(4),
            },
            nonce_pace: Pace {
                per_second: config.nonces_per_second,
                burst: config.nonces_per_second.div_ceil(2),
            },
        };
        Ok(Self {
            config: config.clone(),
            limits: config.limits(),
            turns: Turns::default(),
            roots,
            ca_roots,
            http: CaHttp::within(&endpoint, term)?,
            accounts: Accounts::default(),
            held: StdMutex::new((0, 0)),
            halved_in_a_row: AtomicU32::new(0),
            directory_at_ms: Mutex::new(0),
        })
    }

    /// Whose buckets the limits of its own account are, and those of the CA itself.
    pub(super) fn at(&self) -> At<'_> {
        At { ca: &self.config.directory, account: &self.config.name }
    }

    /// What the CA calls itself in CAA records: as configured, else as its directory says; empty when nobody says or it
    /// cannot be asked at present.
    pub(crate) async fn caa_identities(&self, parts: &Parts) -> Arc<[String]> {
        if !self.config.caa.is_empty() {
            return self.config.caa.clone().into();
        }
        if let Some(known) = self.http.caa_identities() {
            return known;
        }
        let mut at = self.directory_at_ms.lock().await;
        let now = parts.clock.now_ms();
        if self.http.caa_identities().is_none() && !is_within(DIRECTORY_PAUSE_MS, *at, now) {
            if let Err(error) = self.http.read_directory().await {
                tracing::info!(issuer = self.config.name, %error, "CAA records are not looked at for now");
            }
            *at = parts.clock.now_ms();
        }
        self.http.caa_identities().unwrap_or_default()
    }

    /// The way to the CA.
    pub(super) fn http(&self) -> &CaHttp {
        &self.http
    }

    /// Whether nothing new is asked of this CA for now. One that began later than now is over: the clock has been set back.
    pub(crate) fn is_held(&self, now_ms: i64) -> bool {
        let (since, until) = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        (since..until).contains(&now_ms)
    }

    /// Whether one more order that the CA refuses as a whole is to be halved; counts it.
    pub(crate) fn may_halve(&self) -> bool {
        self.halved_in_a_row.fetch_add(1, Ordering::Relaxed) < HALVED_IN_A_ROW_MAX
    }

    /// The CA has issued: what it refuses is the names' fault again.
    pub(crate) fn has_issued(&self) {
        self.halved_in_a_row.store(0, Ordering::Relaxed);
    }

    /// The CA wants to be left alone until then.
    pub(crate) fn hold(&self, now_ms: i64, until_ms: i64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let until = if held.0 <= now_ms { held.1.max(until_ms) } else { until_ms };
        *held = (now_ms, until);
    }
}
