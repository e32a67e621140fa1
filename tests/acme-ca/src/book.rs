//! What the CA remembers, in memory: accounts, orders, authorizations, certificates, limits, counters.
//!
//! One lock guards it; nothing awaits or signs while it is held. Lost at exit, as a test wants it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::Moment;
use crate::jws::PublicKey;
use crate::limits::Limits;
use crate::problem::Problem;
use crate::profile::Profiles;
use crate::renewal_info::Window;
use crate::stats::Stats;
use crate::token::random_token;

/// All state behind the one lock.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) accounts: HashMap<String, Account>,
    /// Account by key thumbprint.
    pub(crate) account_of_key: HashMap<String, String>,
    /// Key ids; each may be bound once.
    pub(crate) external_accounts_used: HashSet<String>,
    pub(crate) orders: HashMap<String, Order>,
    /// The newest order of an account for a set of names.
    pub(crate) newest_order: HashMap<(String, BTreeSet<String>), String>,
    pub(crate) authorizations: HashMap<String, Authorization>,
    /// The newest authorization of an account for a name.
    pub(crate) newest_authorization: HashMap<(String, String), String>,
    /// Authorization by challenge.
    pub(crate) authorization_of_challenge: HashMap<String, String>,
    pub(crate) certificates: HashMap<String, Certificate>,
    /// Certificate by what renewal information calls it.
    pub(crate) certificate_of_id: HashMap<String, String>,
    /// By the same: the newest order that replaces it.
    pub(crate) replaced_by: HashMap<String, String>,
    /// Sets issued before: an order for one of them is a renewal.
    pub(crate) issued_sets: HashSet<BTreeSet<String>>,
    pub(crate) refused: Refused,
    pub(crate) profiles: Profiles,
    pub(crate) limits: Limits,
    pub(crate) stats: Stats,
}

/// Names for which this CA does not issue, and what it says of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refused {
    pub(crate) names: BTreeSet<String>,
    /// Refused at finalize, not at newOrder.
    #[serde(default)]
    pub(crate) at_finalize: bool,
    /// The refusal has this type and does not say which name it is about.
    #[serde(default)]
    pub(crate) unnamed: Option<UnnamedRefusal>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum UnnamedRefusal {
    RejectedIdentifier,
    Malformed,
}

#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) key: PublicKey,
    pub(crate) contact: Vec<String>,
    pub(crate) deactivated: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) account: String,
    pub(crate) names: BTreeSet<String>,
    pub(crate) authorizations: Vec<String>,
    pub(crate) expires: Moment,
    pub(crate) profile: &'static str,
    /// The certificate that it replaces.
    pub(crate) replaces: Option<String>,
    /// Names that limits on certificates count; none of an order that replaces and is exempt.
    pub(crate) charged: BTreeSet<String>,
    pub(crate) progress: Progress,
}

/// How far an order has come; what is still open follows from its authorizations.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    Open,
    /// Finalization has begun and the leaf is being signed.
    Signing,
    /// Signed, but shown as `processing` for some polls more.
    Processing {
        certificate: String,
        polls_left: u32,
    },
    Valid {
        certificate: String,
    },
    Failed(Box<Problem>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OrderStatus {
    Pending,
    Ready,
    Processing,
    Valid,
    Invalid,
}

#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(crate) account: String,
    /// With `*.` for a wildcard.
    pub(crate) name: String,
    pub(crate) state: AuthorizationState,
    pub(crate) expires: Moment,
    pub(crate) challenges: Vec<Challenge>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorizationState {
    Pending,
    Valid,
    Invalid,
    Deactivated,
}

#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    pub(crate) id: String,
    pub(crate) kind: ChallengeKind,
    pub(crate) token: String,
    pub(crate) state: ChallengeState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChallengeKind {
    Http01,
    TlsAlpn01,
    Dns01,
}

#[derive(Clone, Debug)]
pub(crate) enum ChallengeState {
    Pending,
    Processing,
    Valid { at: Moment },
    Invalid(Box<Problem>),
}

#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) account: String,
    pub(crate) names: BTreeSet<String>,
    pub(crate) der: Vec<u8>,
    /// Leaf, then intermediate.
    pub(crate) chain_pem: String,
    pub(crate) not_before: Moment,
    pub(crate) not_after: Moment,
    pub(crate) revoked: Option<(Moment, u8)>,
    /// Set over the management listener.
    pub(crate) window: Option<Window>,
    pub(crate) replaced: bool,
}

/// Bounds of what is remembered; at about 2 kB an order the largest is some 1 GB.
pub(crate) const ACCOUNTS_MAX: usize = 20_000;
pub(crate) const ORDERS_MAX: usize = 500_000;
pub(crate) const AUTHORIZATIONS_MAX: usize = 2_000_000;

impl Book {
    pub(crate) fn new(limits: Limits, profiles: Profiles) -> Self {
        Self {
            accounts: HashMap::new(),
            account_of_key: HashMap::new(),
            external_accounts_used: HashSet::new(),
            orders: HashMap::new(),
            newest_order: HashMap::new(),
            authorizations: HashMap::new(),
            newest_authorization: HashMap::new(),
            authorization_of_challenge: HashMap::new(),
            certificates: HashMap::new(),
            certificate_of_id: HashMap::new(),
            replaced_by: HashMap::new(),
            issued_sets: HashSet::new(),
            limits,
            profiles,
            refused: Refused::default(),
            stats: Stats::default(),
        }
    }

    /// The status of an order at `now`.
    pub(crate) fn order_status(&self, order: &Order, now: Moment) -> OrderStatus {
        match &order.progress {
            Progress::Signing | Progress::Processing { .. } => OrderStatus::Processing,
            Progress::Valid { .. } => OrderStatus::Valid,
            Progress::Failed(_) => OrderStatus::Invalid,
            Progress::Open if order.expires <= now => OrderStatus::Invalid,
            Progress::Open => {
                let mut all_valid = true;
                for id in &order.authorizations {
                    let Some(authorization) = self.authorizations.get(id) else {
                        return OrderStatus::Invalid;
                    };
                    match authorization.state_at(now) {
                        Some(AuthorizationState::Valid) => {}
                        Some(AuthorizationState::Pending) => all_valid = false,
                        Some(AuthorizationState::Invalid | AuthorizationState::Deactivated) | None => {
                            return OrderStatus::Invalid;
                        }
                    }
                }
                if all_valid { OrderStatus::Ready } else { OrderStatus::Pending }
            }
        }
    }

    /// The order object (RFC 8555 section 7.1.3).
    pub(crate) fn order_document(&self, base: &str, id: &str, order: &Order, now: Moment) -> Value {
        let identifiers: Vec<Value> =
            order.names.iter().map(|name| json!({ "type": "dns", "value": name })).collect();
        let authorizations: Vec<String> =
            order.authorizations.iter().map(|id| format!("{base}/acme/authorization/{id}")).collect();
        let mut document = json!({
            "status": self.order_status(order, now).as_str(),
            "expires": order.expires.rfc3339(),
            "identifiers": identifiers,
            "authorizations": authorizations,
            "finalize": format!("{base}/acme/finalize/{id}"),
        });
        document["profile"] = json!(order.profile);
        if let Some(replaces) = &order.replaces {
            document["replaces"] = json!(replaces);
        }
        match &order.progress {
            Progress::Valid { certificate } => {
                document["certificate"] = json!(format!("{base}/acme/certificate/{certificate}"));
            }
            Progress::Failed(problem) => document["error"] = problem.document(),
            Progress::Open | Progress::Signing | Progress::Processing { .. } => {}
        }
        document
    }

    /// Makes a pending authorization with its challenges.
    pub(crate) fn add_authorization(&mut self, account: &str, name: &str, expires: Moment) -> String {
        let id = random_token(12);
        let kinds: &[ChallengeKind] =
            if name.starts_with("*.") { &[ChallengeKind::Dns01] } else { &ChallengeKind::ALL };
        let challenges: Vec<Challenge> = kinds
            .iter()
            .map(|kind| Challenge {
                id: random_token(12),
                kind: *kind,
                token: random_token(32),
                state: ChallengeState::Pending,
            })
            .collect();
        for challenge in &challenges {
            self.authorization_of_challenge.insert(challenge.id.clone(), id.clone());
        }
        let authorization = Authorization {
            account: account.to_owned(),
            name: name.to_owned(),
            state: AuthorizationState::Pending,
            expires,
            challenges,
        };
        self.authorizations.insert(id.clone(), authorization);
        self.newest_authorization.insert((account.to_owned(), name.to_owned()), id.clone());
        self.stats.authorizations.created += 1;
        id
    }
}

impl Authorization {
    /// The state, or `None` once expired.
    pub(crate) fn state_at(&self, now: Moment) -> Option<AuthorizationState> {
        let open = matches!(self.state, AuthorizationState::Pending | AuthorizationState::Valid);
        if open && self.expires <= now { None } else { Some(self.state) }
    }

    /// The authorization object (RFC 8555 section 7.1.4). One that is no longer pending shows only the
    /// challenge that decided it.
    pub(crate) fn document(&self, base: &str, now: Moment) -> Value {
        let status = self.state_at(now).map_or("expired", AuthorizationState::as_str);
        let shown = |c: &&Challenge| match self.state {
            AuthorizationState::Valid => matches!(c.state, ChallengeState::Valid { .. }),
            AuthorizationState::Invalid => matches!(c.state, ChallengeState::Invalid(_)),
            AuthorizationState::Pending | AuthorizationState::Deactivated => true,
        };
        let challenges: Vec<Value> = self.challenges.iter().filter(shown).map(|c| c.document(base)).collect();
        let mut document = json!({
            "identifier": { "type": "dns", "value": crate::identifier::base_name(&self.name) },
            "status": status,
            "expires": self.expires.rfc3339(),
            "challenges": challenges,
        });
        if self.name.starts_with("*.") {
            document["wildcard"] = json!(true);
        }
        document
    }

    /// Whether it can serve a new order; a valid one for as long as `reuse` after its validation.
    pub(crate) fn is_usable(&self, now: Moment, reuse: Duration) -> bool {
        let is_fresh = |challenge: &Challenge| match challenge.state {
            ChallengeState::Valid { at } => at.plus(reuse) > now,
            ChallengeState::Pending | ChallengeState::Processing | ChallengeState::Invalid(_) => false,
        };
        self.expires > now
            && match self.state {
                AuthorizationState::Pending => true,
                AuthorizationState::Valid => self.challenges.iter().any(is_fresh),
                AuthorizationState::Invalid | AuthorizationState::Deactivated => false,
            }
    }
}

impl Challenge {
    /// The challenge object (RFC 8555 section 7.1.5).
    pub(crate) fn document(&self, base: &str) -> Value {
        let mut document = json!({
            "type": self.kind.as_str(),
            "url": format!("{base}/acme/challenge/{}", self.id),
            "token": self.token,
        });
        match &self.state {
            ChallengeState::Pending => document["status"] = json!("pending"),
            ChallengeState::Processing => document["status"] = json!("processing"),
            ChallengeState::Valid { at } => {
                document["status"] = json!("valid");
                document["validated"] = json!(at.rfc3339());
            }
            ChallengeState::Invalid(problem) => {
                document["status"] = json!("invalid");
                document["error"] = problem.document();
            }
        }
        document
    }
}

impl ChallengeKind {
    pub(crate) const ALL: [Self; 3] = [Self::Http01, Self::TlsAlpn01, Self::Dns01];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        }
    }
}

impl AuthorizationState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::Deactivated => "deactivated",
        }
    }
}

impl OrderStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Processing => "processing",
            Self::Valid => "valid",
            Self::Invalid => "invalid",
        }
    }
}
