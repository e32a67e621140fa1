//! Certificate profiles (draft-aaron-acme-profiles) with Let's Encrypt's names and figures.
//!
//! `classic` is the default and takes its figures from the command line; what it says can be changed while the CA runs,
//! as Let's Encrypt does on announced days (90, then 64, then 45 days).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::problem::{Kind, Problem};

/// What one profile gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Lifetime of a leaf.
    pub(crate) validity: Duration,
    pub(crate) names_max: usize,
    /// For how long a valid authorization serves further orders.
    pub(crate) reuse: Duration,
    pub(crate) pending_authorization_lifetime: Duration,
    pub(crate) order_lifetime: Duration,
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Profiles {
    profiles: BTreeMap<&'static str, Profile>,
}

/// Of an order that names none.
pub(crate) const DEFAULT: &str = "classic";

const HOUR: Duration = Duration::from_secs(3600);
const NEWER_NAMES_MAX: usize = 25;

impl Profiles {
    /// `classic` as given, the newer ones as published (2026-07-14).
    pub(crate) fn new(classic: Profile) -> Self {
        let newer = |validity| Profile {
            validity,
            names_max: NEWER_NAMES_MAX,
            reuse: HOUR * 7,
            pending_authorization_lifetime: HOUR,
            order_lifetime: HOUR * 8,
        };
        let profiles = BTreeMap::from([
            (DEFAULT, classic),
            ("tlsserver", newer(HOUR * 24 * 45)),
            ("shortlived", newer(HOUR * 160)),
        ]);
        Self { profiles }
    }

    /// The profile that an order asks for.
    ///
    /// # Errors
    /// `invalidProfile`.
    pub(crate) fn of_order(&self, wanted: Option<&str>) -> Result<(&'static str, Profile), Problem> {
        let wanted = wanted.unwrap_or(DEFAULT);
        self.profiles.get_key_value(wanted).map(|(name, profile)| (*name, *profile)).ok_or_else(|| {
            let known: Vec<&str> = self.profiles.keys().copied().collect();
            let detail = format!("no profile {wanted:?}; the profiles are {}", known.join(", "));
            Problem::new(Kind::InvalidProfile, detail)
        })
    }

    /// Gives a profile another lifetime or reuse, for what is ordered from now on.
    ///
    /// # Errors
    /// There is none of that name, or a lifetime below 4 s.
    pub(crate) fn change(
        &mut self,
        name: &str,
        validity: Option<Duration>,
        reuse: Option<Duration>,
    ) -> Result<(), String> {
        if validity.is_some_and(|validity| validity < Duration::from_secs(4)) {
            return Err("a lifetime must be at least 4 s".to_owned());
        }
        let profile = self.profiles.get_mut(name).ok_or_else(|| format!("no profile {name:?}"))?;
        profile.validity = validity.unwrap_or(profile.validity);
        profile.reuse = reuse.unwrap_or(profile.reuse);
        Ok(())
    }

    /// `meta.profiles` of the directory: each with its description.
    pub(crate) fn document(&self) -> Value {
        let describe = |profile: &Profile| {
            let hours = profile.validity.as_secs() / 3600;
            format!("{hours} hours, at most {} names", profile.names_max)
        };
        json!(self.profiles.iter().map(|(name, p)| (*name, describe(p))).collect::<BTreeMap<_, _>>())
    }
}

/// How far back a leaf's notBefore lies (Let's Encrypt: one hour).
pub(crate) fn backdate(validity: Duration) -> Duration {
    HOUR.min(validity / 4)
}
