//! Domain names and certificate name patterns, parsed once at the border.
//!
//! Inside Portico a [`DomainName`] *is* valid: A-labels in lower case without a trailing dot, at least two labels, and
//! short enough for DNS. Unicode and ASCII spellings of one name become the same value, so nothing behind the border
//! compares, lower-cases or encodes names again. Deliberately absent: IP addresses and single-label names (no public CA
//! certifies them) and any lookup in DNS.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest name in octets without the trailing dot (RFC 1035 section 3.1: 255 on the wire).
pub const NAME_BYTES_MAX: usize = 253;
/// Longest label in octets (RFC 1035 section 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest text that is looked at; a valid name in Unicode needs less than four bytes for each octet of its A-labels.
const INPUT_BYTES_MAX: usize = 4 * NAME_BYTES_MAX;

/// A domain name in A-label form: lower case, no trailing dot, at least two labels. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Arc<str>);

/// What a certificate names, or a tenant brings: one name, or all names one label below a base (RFC 9525 section 6.3).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamePattern {
    Exact(DomainName),
    /// `*.base`; holds the base.
    Wildcard(DomainName),
}

/// Why a text is not a usable name. Each text says what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name is empty; write a domain name such as www.example.org")]
    Empty,
    #[error("the name has {octets} octets and DNS allows 253; use a shorter name")]
    TooLong { octets: usize },
    #[error("`{name}` holds an empty label; remove the extra dot")]
    EmptyLabel { name: String },
    #[error("the label `{label}` has {octets} octets and DNS allows 63; shorten it")]
    LabelTooLong { label: String, octets: usize },
    #[error("`{name}` has one label only; write the full name, such as {name}.example.org")]
    SingleLabel { name: String },
    #[error(
        "`{name}` is an IP address; certificates here are for domain names, so use a name that points to it"
    )]
    IpAddress { name: String },
    #[error(
        "the character {character:?} in `{name}` is not allowed; use letters, digits and hyphens, without scheme, port or path"
    )]
    Character { name: String, character: char },
    #[error("the label `{label}` begins or ends with a hyphen; remove it")]
    OuterHyphen { label: String },
    #[error(
        "the label `{label}` has hyphens in third and fourth place, which is reserved (RFC 5890 section 2.3.1) and which no public CA signs; choose another label"
    )]
    ReservedLabel { label: String },
    #[error(
        "`{name}` is not a valid internationalized name (UTS 46); check its spelling, or write it in its xn-- form"
    )]
    Idna { name: String },
    #[error("`{name}` is a wildcard, and one exact name is wanted here; leave out the `*.`")]
    WildcardNotAllowed { name: String },
    #[error("the `*` in `{name}` is not its whole first label; only *.example.org is possible")]
    WildcardPlace { name: String },
    #[error(
        "`{name}` is a public suffix, below which strangers register their names; bring a name that you registered under it"
    )]
    PublicSuffix { name: String },
}

impl DomainName {
    /// Reads a name in ASCII or Unicode, in any case, with or without one trailing dot.
    ///
    /// # Errors
    /// A [`NameError`] that says what to change.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        parse_labels(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name for people to read, with U-labels where A-labels stand.
    pub fn to_unicode(&self) -> String {
        Uts46::new().to_unicode(self.0.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow).0.into_owned()
    }

    /// The name that somebody registered, by the public suffix list, its private part included: `example.co.uk` of
    /// `www.example.co.uk`, `tenant.github.io` of itself. None for a public suffix.
    pub fn registered_domain(&self) -> Option<&str> {
        psl::domain_str(&self.0)
    }

    /// Whether strangers register names directly below this one (`co.uk`, `github.io`). Unknown top-level domains, such
    /// as `.test`, are suffixes of one label and thus never a `DomainName`.
    pub fn is_public_suffix(&self) -> bool {
        psl::domain_str(&self.0).is_none()
    }

    /// The name without its first label; None where one label would remain.
    pub fn parent(&self) -> Option<Self> {
        self.parent_str().filter(|parent| parent.contains('.')).map(|parent| Self(parent.into()))
    }

    /// The text after the first dot. A handshake looks up wildcards by it without an allocation.
    pub(crate) fn parent_str(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, parent)| parent)
    }

    /// The wildcard name that a rustls or webpki server name cannot express: this name as DNS text.
    pub fn to_server_name(&self) -> rustls_pki_types::ServerName<'static> {
        rustls_pki_types::ServerName::try_from(self.0.to_string())
            .expect("a parsed domain name is a valid DNS name")
    }
}

impl NamePattern {
    /// Reads `www.example.org` or `*.example.org`.
    ///
    /// # Errors
    /// A [`NameError`]; a public suffix and a wildcard directly on one are refused.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let pattern = match text.strip_prefix("*.") {
            Some(base) => {
                Self::Wildcard(DomainName::parse(base).map_err(|error| wildcard_error(error, text))?)
            }
            None => Self::Exact(DomainName::parse(text).map_err(|error| wildcard_error(error, text))?),
        };
        if pattern.base().is_public_suffix() {
            return Err(NameError::PublicSuffix { name: pattern.base().to_string() });
        }
        Ok(pattern)
    }

    /// The exact name itself, or the name below which the wildcard matches.
    pub fn base(&self) -> &DomainName {
        match self {
            Self::Exact(name) | Self::Wildcard(name) => name,
        }
    }

    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Wildcard(_))
    }

    /// Whether a client that asks for `name` accepts this pattern; a wildcard stands for exactly one label.
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Wildcard(base) => name.parent_str() == Some(base.as_str()),
        }
    }

    /// Whether a certificate that holds this pattern serves all that `wanted` stands for.
    pub fn covers(&self, wanted: &Self) -> bool {
        match wanted {
            Self::Exact(name) => self.matches(name),
            Self::Wildcard(_) => self == wanted,
        }
    }

    /// The registered domain of the base; see [`DomainName::registered_domain`].
    pub fn registered_domain(&self) -> Option<&str> {
        self.base().registered_domain()
    }
}

fn parse_labels(text: &str) -> Result<DomainName, NameError> {
    if text.is_empty() || text == "." {
        return Err(NameError::Empty);
    }
    if text.len() > INPUT_BYTES_MAX {
        return Err(too_long(text));
    }
    if text.starts_with("*.") {
        return Err(NameError::WildcardNotAllowed { name: shown(text) });
    }
    refuse_ip_address(text)?;
    let ascii = a_labels(text)?;
    // The mapping turns other full stops and wide digits into ASCII: what counts is what comes out of it.
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    refuse_ip_address(name)?;
    for label in name.split('.') {
        check_label(label, name)?;
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { octets: name.len() });
    }
    match name.rsplit_once('.') {
        None => Err(NameError::SingleLabel { name: shown(name) }),
        // No top-level domain is numeric; texts such as 10.1 or 1.2.3.0x4 are read as IPv4 addresses by many programs.
        Some((_, last)) if is_number(last) => Err(NameError::IpAddress { name: shown(name) }),
        Some(_) => Ok(DomainName(name.into())),
    }
}

/// The text in lower-case A-labels. Nearly all names need no mapping, and then a tenth of the time.
fn a_labels(text: &str) -> Result<Cow<'_, str>, NameError> {
    let is_ldh = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let is_encoded = |label: &str| label.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("xn--"));
    if text.bytes().all(is_ldh) && !text.split('.').any(is_encoded) {
        let has_upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
        return Ok(if has_upper { text.to_ascii_lowercase().into() } else { text.into() });
    }
    map_labels(text)
}

fn map_labels(text: &str) -> Result<Cow<'_, str>, NameError> {
    Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| NameError::Idna { name: shown(text) })
}

fn check_label(label: &str, name: &str) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel { name: shown(name) });
    }
    if label.contains('*') {
        return Err(NameError::WildcardPlace { name: shown(name) });
    }
    if let Some(character) = label.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::Character { name: shown(name), character });
    }
    if label.len() > LABEL_BYTES_MAX {
        return Err(NameError::LabelTooLong { label: shown(label), octets: label.len() });
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::OuterHyphen { label: shown(label) });
    }
    if label.get(2..4) == Some("--") && !label.starts_with("xn--") {
        return Err(NameError::ReservedLabel { label: shown(label) });
    }
    Ok(())
}

fn refuse_ip_address(text: &str) -> Result<(), NameError> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let without_dot = inner.strip_suffix('.').unwrap_or(inner);
    match without_dot.parse::<IpAddr>() {
        Ok(_) => Err(NameError::IpAddress { name: shown(text) }),
        Err(_) => Ok(()),
    }
}

/// Whether a label is a number as the URL standard's IPv4 parser reads them: decimal, or hexadecimal after `0x`.
fn is_number(label: &str) -> bool {
    let digits = label.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal =
        label.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    digits || hexadecimal
}

fn too_long(text: &str) -> NameError {
    // One long label is the likelier mistake, and then the better message.
    match text.split('.').find(|label| label.len() > INPUT_BYTES_MAX / 2) {
        Some(label) => NameError::LabelTooLong { label: shown(label), octets: label.len() },
        None => NameError::TooLong { octets: text.len() },
    }
}

/// Messages about a pattern speak of the text that was given, the `*.` included.
fn wildcard_error(error: NameError, text: &str) -> NameError {
    if matches!(error, NameError::WildcardPlace { .. } | NameError::WildcardNotAllowed { .. }) {
        return NameError::WildcardPlace { name: shown(text) };
    }
    error
}

/// The part of foreign text that a message may repeat: at most 80 characters.
fn shown(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}

impl Borrow<str> for DomainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for DomainName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl FromStr for NamePattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => fmt::Display::fmt(name, f),
            Self::Wildcard(base) => f.pad(&format!("*.{base}")),
        }
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<DomainName> for NamePattern {
    /// No public-suffix check: for names that a certificate already holds or that a pattern was parsed from.
    fn from(name: DomainName) -> Self {
        Self::Exact(name)
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
