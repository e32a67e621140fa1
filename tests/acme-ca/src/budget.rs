//! What is spent of each limit, and others who spend: an outside account, as far as limits are concerned.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::book::Book;
use crate::clock::Moment;
use crate::identifier::registered_domain;
use crate::limits::LimitName;

/// Certificates that an account of somebody else obtains for names, one after the other at this moment.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outside {
    pub(crate) names: BTreeSet<String>,
    pub(crate) certificates: u32,
}

impl Outside {
    /// Spends as a certificate that is issued does, as often as the limits let it. Answers how often.
    pub(crate) fn obtain(&self, book: &mut Book, now: Moment) -> u32 {
        let set = self.names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let domains: BTreeSet<&str> = self.names.iter().map(|name| registered_domain(name)).collect();
        let mut obtained = 0;
        while obtained < self.certificates {
            let mut spends = vec![(LimitName::CertificatesPerExactSet, set.as_str())];
            if !book.issued_sets.contains(&self.names) {
                spends.extend(domains.iter().map(|domain| (LimitName::CertificatesPerDomain, *domain)));
            }
            if spends.iter().any(|(limit, subject)| book.limits.check(*limit, subject, now).is_err()) {
                break;
            }
            for (limit, subject) in spends {
                book.limits.spend(limit, subject, now);
            }
            book.issued_sets.insert(self.names.clone());
            obtained += 1;
        }
        obtained
    }
}

/// Every bucket that is not full, with what is spent of it: a part of a unit counts whole.
pub(crate) fn buckets(book: &Book, now: Moment) -> Value {
    let bucket =
        |(name, subject, limit, spent): (LimitName, &str, crate::limits::Limit, std::time::Duration)| {
            let used = spent.as_nanos().div_ceil(limit.interval().as_nanos().max(1));
            json!({
                "limit": name.as_str(),
                "subject": subject,
                "count": limit.count,
                "used": u64::try_from(used).unwrap_or(u64::MAX),
            })
        };
    Value::Array(book.limits.spent(now).map(bucket).collect())
}
