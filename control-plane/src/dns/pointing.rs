//! Where a name points, as one observation: whoever looks, the check of ownership or the pre-flight, says the same words.
//!
//! It says what was found. What to set instead is the reader's to add, who knows whether that is said already.

use std::net::IpAddr;

use portico_api::v1::{ConditionKind, ConditionStatus};

use super::lookup::Found;
use crate::store::condition::Observation;

/// Addresses that are listed.
const SHOWN_MAX: usize = 8;

/// Whether all addresses of `name` are among `ours`. Unknown is never false.
pub(crate) fn points_here(name: &str, ours: &[IpAddr], found: &Found<IpAddr>) -> Observation {
    let is_ours = |address: &IpAddr| ours.iter().any(|own| own.to_canonical() == address.to_canonical());
    let (status, reason, message) = match found {
        Found::Unknown(why) => (ConditionStatus::Unknown, "LookupFailed", why.clone()),
        Found::Nothing => (ConditionStatus::False, "NoAddress", format!("{name} has no address")),
        Found::Records(_) if ours.is_empty() => {
            (ConditionStatus::Unknown, "NotConfigured", "fleet.public_addresses is not configured".to_owned())
        }
        Found::Records(addresses) => {
            let (own, foreign): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().copied().partition(is_ours);
            match (own.is_empty(), foreign.is_empty()) {
                (_, true) => {
                    (ConditionStatus::True, "PointsHere", format!("{name} resolves to {}", list(own)))
                }
                (false, false) => {
                    let message = format!("{name} also resolves to {}, which is not ours", list(foreign));
                    (ConditionStatus::False, "PointsPartlyHere", message)
                }
                (true, false) => (
                    ConditionStatus::False,
                    "PointsElsewhere",
                    format!("{name} resolves to {}", list(foreign)),
                ),
            }
        }
    };
    Observation {
        kind: ConditionKind::DnsPointsHere,
        status,
        reason: reason.to_owned(),
        message,
        next_check_at: None,
    }
}

/// The record that brings a name here, in words.
pub(crate) fn record_to_set(name: &str, ours: &[IpAddr]) -> String {
    format!("set the A or AAAA records of {name} to {}", list(ours.to_vec()))
}

/// In one order, whatever order a resolver gives them in.
pub(super) fn list(mut addresses: Vec<IpAddr>) -> String {
    addresses.sort_unstable();
    let more = addresses.len().saturating_sub(SHOWN_MAX);
    let shown: Vec<String> = addresses.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_same_in_whatever_order_the_answers_come() {
        let ours: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        let seen = |addresses: &[&str]| {
            let found = addresses.iter().map(|address| address.parse().unwrap()).collect();
            points_here("shop.test", &ours, &Found::Records(found))
        };
        assert_eq!(seen(&["198.51.100.2", "198.51.100.1"]), seen(&["198.51.100.1", "198.51.100.2"]));
        assert_eq!(seen(&["198.51.100.2"]).message, "shop.test resolves to 198.51.100.2");
        assert_eq!(seen(&["::ffff:192.0.2.1"]).status, ConditionStatus::True);
        let partly = seen(&["192.0.2.1", "198.51.100.2"]);
        assert_eq!((partly.status, partly.reason.as_str()), (ConditionStatus::False, "PointsPartlyHere"));
        let unknown = points_here("shop.test", &ours, &Found::Unknown("no answer".to_owned()));
        assert_eq!(unknown.status, ConditionStatus::Unknown);
    }
}
