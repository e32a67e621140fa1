//! Counters of everything that a test may want to assert about this CA, as one JSON document.
//!
//! Bounded: per-name counters stop at [`NAMES_MAX`] names and the newOrder log at [`LOG_MAX`] entries,
//! each with a counter of what was left out.

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything counted since start.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stats {
    pub(crate) requests: BTreeMap<&'static str, u64>,
    /// Problem documents sent, by type.
    pub(crate) problems: BTreeMap<&'static str, u64>,
    pub(crate) accounts: AccountStats,
    pub(crate) orders: OrderStats,
    pub(crate) authorizations: AuthorizationStats,
    pub(crate) certificates: CertificateStats,
    pub(crate) validations: ValidationStats,
    /// 429 answers by limit; `fault` counts those asked for on the management listener.
    pub(crate) rate_limited: BTreeMap<&'static str, u64>,
    /// Faults delivered, by kind.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Of the first [`LOG_MAX`].
    pub(crate) revocations: Vec<RevocationEntry>,
    pub(crate) new_orders: Vec<NewOrderEntry>,
    pub(crate) new_orders_left_out: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct AccountStats {
    pub(crate) created: u64,
    pub(crate) found: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct OrderStats {
    pub(crate) created: u64,
    pub(crate) reused: u64,
    pub(crate) finalized: u64,
    /// Of those created, with a certificate that they replace.
    pub(crate) replacing: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct AuthorizationStats {
    pub(crate) created: u64,
    pub(crate) reused_valid: u64,
    pub(crate) reused_pending: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct CertificateStats {
    pub(crate) issued: u64,
    pub(crate) downloaded: u64,
    pub(crate) revoked: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ValidationStats {
    #[serde(flatten)]
    pub(crate) total: Outcomes,
    pub(crate) by_challenge: BTreeMap<&'static str, Outcomes>,
    pub(crate) by_name: BTreeMap<String, BTreeMap<&'static str, Outcomes>>,
    pub(crate) names_left_out: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcomes {
    pub(crate) performed: u64,
    pub(crate) failed: u64,
}

/// One certificate that was revoked.
#[derive(Debug, Serialize)]
pub(crate) struct RevocationEntry {
    /// By the CA's clock.
    pub(crate) at: String,
    pub(crate) names: Vec<String>,
    /// SHA-256 of the certificate, hex.
    pub(crate) fingerprint: String,
    pub(crate) reason: u8,
    /// `key` or `account`.
    pub(crate) signed_by: &'static str,
}

/// One newOrder request that passed its signature check.
#[derive(Debug, Serialize)]
pub(crate) struct NewOrderEntry {
    /// By the CA's clock.
    pub(crate) at: String,
    pub(crate) account: String,
    pub(crate) names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    /// `created`, `reused`, or the problem type.
    pub(crate) result: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) order: Option<String>,
}

const NAMES_MAX: usize = 200_000;
pub(crate) const LOG_MAX: usize = 200_000;

impl Stats {
    /// Counts one validation.
    pub(crate) fn record_validation(&mut self, name: &str, challenge: &'static str, failed: bool) {
        self.validations.total.add(failed);
        self.validations.by_challenge.entry(challenge).or_default().add(failed);
        let by_name = &mut self.validations.by_name;
        if by_name.len() >= NAMES_MAX && !by_name.contains_key(name) {
            self.validations.names_left_out += 1;
            return;
        }
        by_name.entry(name.to_owned()).or_default().entry(challenge).or_default().add(failed);
    }

    /// Logs one newOrder request.
    pub(crate) fn record_new_order(&mut self, entry: NewOrderEntry) {
        if self.new_orders.len() >= LOG_MAX {
            self.new_orders_left_out += 1;
            return;
        }
        self.new_orders.push(entry);
    }
}

impl Outcomes {
    fn add(&mut self, failed: bool) {
        self.performed += 1;
        self.failed += u64::from(failed);
    }
}
