//! Whether a name's CAA records let a CA issue: RFC 8659 with the two parameters of RFC 8657. A pure function; the climb to
//! the records is `dns::lookup`'s.
//!
//! Deliberately absent: `iodef`, which is the CA's to report to, and `issuemail`, `issuevmc` and their like.

use crate::acme::ChallengeMethod;

/// One CAA record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaaRecord {
    /// A CA that does not know the tag must not issue.
    pub critical: bool,
    /// Lower case.
    pub tag: String,
    pub value: String,
}

/// What is to be issued, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub wildcard: bool,
    /// What the CA calls itself in CAA records (`caaIdentities` of its directory, RFC 8555 section 7.1.1); not empty.
    pub identities: &'a [String],
    /// Our account's URL, where it is known.
    pub account: Option<&'a str>,
    pub methods: &'a [ChallengeMethod],
}

/// CAs that a refusal names.
const NAMED_MAX: usize = 4;

/// The methods by which the CA may validate under these records, found at `owner`; none found: any.
///
/// # Errors
/// For the tenant: what forbids it, and the record to set.
pub fn permitted(
    owner: &str,
    records: &[CaaRecord],
    wanted: &Wanted<'_>,
) -> Result<Vec<ChallengeMethod>, String> {
    let known = ["issue", "issuewild", "iodef", "issuemail", "issuevmc", "contactemail", "contactphone"];
    if let Some(odd) = records.iter().find(|r| r.critical && !known.contains(&r.tag.as_str())) {
        return Err(format!(
            "the CAA record {owner} has the critical property \"{}\", which keeps every CA from issuing that does not \
             know it; remove it",
            odd.tag
        ));
    }
    let tagged = |tag: &str| records.iter().filter(|r| r.tag == tag).collect::<Vec<_>>();
    // RFC 8659 section 4.3: for a wildcard, issuewild alone counts where there is any.
    let wild = if wanted.wildcard { tagged("issuewild") } else { Vec::new() };
    let (tag, relevant) = if wild.is_empty() { ("issue", tagged("issue")) } else { ("issuewild", wild) };
    if relevant.is_empty() {
        return Ok(wanted.methods.to_vec());
    }
    let parsed: Vec<Issue<'_>> = relevant.iter().filter_map(|r| Issue::parse(&r.value)).collect();
    let own: Vec<&Issue<'_>> = parsed
        .iter()
        .filter(|issue| wanted.identities.iter().any(|identity| identity.eq_ignore_ascii_case(issue.issuer)))
        .collect();
    let identity = &wanted.identities[0];
    let set = format!("set {owner} CAA 0 {tag} \"{identity}\"");
    if own.is_empty() {
        let named: Vec<&str> = parsed.iter().map(|issue| issue.issuer).filter(|i| !i.is_empty()).collect();
        let more = named.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(match named.as_slice() {
            [] => format!("CAA records at {owner} let no CA issue; {set}"),
            named => {
                let first = named[..named.len().min(NAMED_MAX)].join(", ");
                format!("CAA records at {owner} let only {first}{more} issue; {set}")
            }
        });
    }
    let for_us: Vec<&&Issue<'_>> = own
        .iter()
        .filter(|issue| issue.account.is_none_or(|a| wanted.account.is_none_or(|our| our == a)))
        .collect();
    if for_us.is_empty() {
        let account = wanted.account.unwrap_or_default();
        return Err(format!(
            "CAA records at {owner} let {identity} issue for another account only; {set}, or with accounturi={account}"
        ));
    }
    let allows = |method: &&ChallengeMethod| for_us.iter().any(|issue| issue.allows(method.as_str()));
    let methods: Vec<ChallengeMethod> = wanted.methods.iter().filter(allows).copied().collect();
    if methods.is_empty() {
        let listed: Vec<&str> = for_us.iter().filter_map(|issue| issue.methods).take(NAMED_MAX).collect();
        let ours: Vec<&str> = wanted.methods.iter().map(|method| method.as_str()).collect();
        return Err(format!(
            "CAA records at {owner} let {identity} validate by {} only, and this name can be validated by {}; {set}; \
             validationmethods={}",
            listed.join(", "),
            ours.join(", "),
            ours.join(",")
        ));
    }
    Ok(methods)
}

/// The value of an `issue` or `issuewild` property (RFC 8659 section 4.2).
#[derive(Debug)]
struct Issue<'a> {
    /// Empty: nobody.
    issuer: &'a str,
    /// RFC 8657 section 3.
    account: Option<&'a str>,
    /// RFC 8657 section 4, separated by commas.
    methods: Option<&'a str>,
}

impl<'a> Issue<'a> {
    /// `None` for a value that is no such property: it lets nobody issue.
    fn parse(value: &'a str) -> Option<Self> {
        let mut parts = value.split(';');
        let mut read = Self { issuer: parts.next()?.trim(), account: None, methods: None };
        for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
            let (tag, value) = part.split_once('=')?;
            let parameter = match tag.trim() {
                "accounturi" => &mut read.account,
                "validationmethods" => &mut read.methods,
                // The CA's own; it does not keep others from reading the record.
                _ => continue,
            };
            // Two accounts: nobody (RFC 8657 section 3). It does not speak of two lists of methods; Boulder takes them so.
            if parameter.replace(value.trim()).is_some() {
                return None;
            }
        }
        Some(read)
    }

    fn allows(&self, method: &str) -> bool {
        self.methods.is_none_or(|methods| methods.split(',').any(|listed| listed.trim() == method))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::ChallengeMethod::{Dns01, Http01};

    fn records(texts: &[&str]) -> Vec<CaaRecord> {
        let record = |text: &&str| {
            let (flags, rest) = text.split_once(' ').unwrap();
            let (tag, value) = rest.split_once(' ').unwrap();
            CaaRecord { critical: flags == "128", tag: tag.to_owned(), value: value.to_owned() }
        };
        texts.iter().map(record).collect()
    }

    /// Records, whether a wildcard is asked for, and what is permitted or part of the words against it.
    type Row<'a> = (&'a [&'a str], bool, Result<&'a [ChallengeMethod], &'a str>);

    #[test]
    fn what_each_record_permits() {
        let identities = ["ca.test".to_owned(), "ca.alias".to_owned()];
        let both = [Http01, Dns01].as_slice();
        let table: &[Row<'_>] = &[
            (&[], false, Ok(both)),
            (&["0 iodef mailto:a@b.test"], false, Ok(both)),
            (&["0 issue ca.test"], false, Ok(both)),
            (&["0 issue other.test", "0 issue CA.alias; x=y"], false, Ok(both)),
            (
                &["0 issue other.test"],
                false,
                Err("let only other.test issue; set a.test CAA 0 issue \"ca.test\""),
            ),
            (
                &["0 issue a", "0 issue b", "0 issue c", "0 issue d", "0 issue e", "0 issue f"],
                false,
                Err("let only a, b, c, d and 2 more issue"),
            ),
            (&["0 issue ;"], false, Err("let no CA issue; set a.test CAA 0 issue \"ca.test\"")),
            (&["0 issue ca.test; what"], false, Err("let no CA issue")),
            (&["0 issue ca.test", "0 issuewild ;"], false, Ok(both)),
            (&["0 issue ca.test", "0 issuewild ;"], true, Err("set a.test CAA 0 issuewild \"ca.test\"")),
            (&["0 issue other.test", "0 issuewild ca.test"], true, Ok(both)),
            (&["0 issue other.test", "0 issuewild ca.test"], false, Err("let only other.test issue")),
            (&["0 issue ca.test"], true, Ok(both)),
            (&["128 tbs x", "0 issue ca.test"], false, Err("critical property \"tbs\"")),
            (&["0 tbs x", "128 issue ca.test"], false, Ok(both)),
            (&["0 issue ca.test; accounturi=https://ca.test/a/1"], false, Ok(both)),
            (&["0 issue ca.test; accounturi=https://ca.test/a/2"], false, Err("for another account only")),
            (
                &["0 issue ca.test; accounturi=https://ca.test/a/2; accounturi=https://ca.test/a/1"],
                false,
                Err("let no CA issue"),
            ),
            (&["0 issue ca.test;validationmethods=dns-01"], false, Ok(&[Dns01])),
            (&["0 issue ca.test; validationmethods=tls-alpn-01,x"], false, Err("by tls-alpn-01,x only")),
        ];
        for (texts, wildcard, expected) in table {
            let account = Some("https://ca.test/a/1");
            let wanted = Wanted { wildcard: *wildcard, identities: &identities, account, methods: both };
            match (permitted("a.test", &records(texts), &wanted), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "{texts:?}"),
                (Err(found), Err(words)) => assert!(found.contains(words), "{texts:?}: {found}"),
                (found, _) => panic!("{texts:?} {wildcard}: {found:?}"),
            }
        }
    }
}
