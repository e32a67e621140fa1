//! Identities that cross process boundaries: typed ULIDs, the cell's name, and the generation.
//!
//! A typed id is written `<prefix>_<26 characters>` (`ten_01J…`). Exactly one spelling is accepted (upper case, the
//! right prefix), because stores and logs compare ids as text. `Id::generate` is the one place in this crate that reads
//! the clock and the system's randomness; everything else takes both as arguments.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use ulid::Ulid;

pub type TenantId = Id<Tenant>;
pub type DomainId = Id<Domain>;
pub type GroupId = Id<Group>;
pub type LineageId = Id<Lineage>;
pub type CredentialId = Id<CredentialKind>;
pub type OrderId = Id<Order>;
pub type EdgeId = Id<Edge>;

/// A ULID that knows what it names, so that a tenant's id can never be passed for a domain's.
pub struct Id<K>(Ulid, PhantomData<fn() -> K>);

/// What an [`Id`] names.
pub trait IdKind: 'static {
    /// The text before the underscore.
    const PREFIX: &'static str;
    /// The word for it in messages.
    const NOUN: &'static str;
}

/// An operator's name for a set of edges that share keys: `[a-z0-9-]{1,32}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(Arc<str>);

/// A position in the order of published states: (epoch, sequence), compared in that order. The default, (0, 0), means
/// that nothing has been applied yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    pub epoch: u64,
    pub sequence: u64,
}

/// Text that is not an id of the wanted kind. The text shows what was expected; the input is cut to 64 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("`{input}` is no {noun} id; expected `{prefix}_` and a ULID of 26 upper-case characters")]
    Malformed { input: String, noun: &'static str, prefix: &'static str },
    #[error("`{input}` is not a cell name; use 1 to 32 characters of a-z, 0-9 and `-`")]
    Cell { input: String },
    #[error("`{input}` is not a generation; expected `epoch-sequence`, two decimal numbers")]
    Generation { input: String },
}

impl<K: IdKind> Id<K> {
    /// A new id from the present time and the system's randomness.
    pub fn generate() -> Self {
        Self::from_ulid(Ulid::new())
    }

    pub const fn from_ulid(ulid: Ulid) -> Self {
        Self(ulid, PhantomData)
    }

    pub const fn ulid(self) -> Ulid {
        self.0
    }
}

impl CellId {
    /// # Errors
    /// [`IdError::Cell`] if the text is empty, longer than 32 bytes or holds another character.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let fits = (1..=32).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits { Ok(Self(text.into())) } else { Err(IdError::Cell { input: shown(text) }) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The part of foreign text that a message may repeat: at most 64 characters.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let malformed = || IdError::Malformed { input: shown(text), noun: K::NOUN, prefix: K::PREFIX };
        let digits = text
            .strip_prefix(K::PREFIX)
            .and_then(|rest| rest.strip_prefix('_'))
            .filter(|digits| digits.len() == ulid::ULID_LEN)
            .ok_or_else(malformed)?;
        let ulid = Ulid::from_string(digits).map_err(|_| malformed())?;
        // Crockford's alphabet reads lower case and, past 128 bits, several texts as one number; only one is ours.
        let mut canonical = [0; ulid::ULID_LEN];
        if ulid.array_to_str(&mut canonical) == digits { Ok(Self::from_ulid(ulid)) } else { Err(malformed()) }
    }
}

impl<K: IdKind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; ulid::ULID_LEN];
        write!(f, "{}_{}", K::PREFIX, self.0.array_to_str(&mut digits))
    }
}

impl<K: IdKind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// Written out because derives would demand the traits of `K`, which is never stored.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Id<K> {}

impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<K> Eq for Id<K> {}

impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<K: IdKind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: IdKind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for CellId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CellId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CellId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Generation {
    pub const fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

impl FromStr for Generation {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let generation = text.split_once('-').and_then(|(epoch, sequence)| {
            Some(Self { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
        });
        // One spelling only: `+1-01` parses as numbers but is not what `Display` writes.
        generation
            .filter(|generation| generation.to_string() == text)
            .ok_or_else(|| IdError::Generation { input: shown(text) })
    }
}

/// Kind of [`TenantId`].
#[derive(Debug)]
pub enum Tenant {}
/// Kind of [`DomainId`].
#[derive(Debug)]
pub enum Domain {}
/// Kind of [`GroupId`]: a SAN group.
#[derive(Debug)]
pub enum Group {}
/// Kind of [`LineageId`]: (group, cell, custody).
#[derive(Debug)]
pub enum Lineage {}
/// Kind of [`CredentialId`]: one version of a lineage.
#[derive(Debug)]
pub enum CredentialKind {}
/// Kind of [`OrderId`].
#[derive(Debug)]
pub enum Order {}
/// Kind of [`EdgeId`].
#[derive(Debug)]
pub enum Edge {}

impl IdKind for Tenant {
    const PREFIX: &'static str = "ten";
    const NOUN: &'static str = "tenant";
}

impl IdKind for Domain {
    const PREFIX: &'static str = "dom";
    const NOUN: &'static str = "domain";
}

impl IdKind for Group {
    const PREFIX: &'static str = "grp";
    const NOUN: &'static str = "SAN group";
}

impl IdKind for Lineage {
    const PREFIX: &'static str = "lin";
    const NOUN: &'static str = "lineage";
}

impl IdKind for CredentialKind {
    const PREFIX: &'static str = "crd";
    const NOUN: &'static str = "credential";
}

impl IdKind for Order {
    const PREFIX: &'static str = "ord";
    const NOUN: &'static str = "order";
}

impl IdKind for Edge {
    const PREFIX: &'static str = "edge";
    const NOUN: &'static str = "edge";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_reads_back_and_refuses_any_other_spelling() {
        let id = TenantId::generate();
        let text = id.to_string();
        assert!(text.starts_with("ten_") && text.len() == 30, "{text}");
        assert_eq!(text.parse::<TenantId>().unwrap(), id);

        for wrong in [
            text.to_lowercase(),
            text.replace("ten_", "dom_"),
            text[..29].to_owned(),
            format!("{text}0"),
            format!("ten_{}", "Z".repeat(26)), // more than 128 bits
            String::new(),
            "é".repeat(500),
        ] {
            let error = wrong.parse::<TenantId>().unwrap_err().to_string();
            assert!(error.contains("is no tenant id; expected `ten_`") && error.len() < 400, "{error}");
        }
        assert!("x".parse::<EdgeId>().unwrap_err().to_string().starts_with("`x` is no edge id"));
    }

    #[test]
    fn ids_of_two_kinds_have_different_texts() {
        let ulid = Ulid::new();
        let texts = [
            TenantId::from_ulid(ulid).to_string(),
            DomainId::from_ulid(ulid).to_string(),
            GroupId::from_ulid(ulid).to_string(),
            LineageId::from_ulid(ulid).to_string(),
            CredentialId::from_ulid(ulid).to_string(),
            OrderId::from_ulid(ulid).to_string(),
            EdgeId::from_ulid(ulid).to_string(),
        ];
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(distinct.len(), texts.len(), "{texts:?}");
    }

    #[test]
    fn cell_names_are_bounded() {
        assert_eq!(CellId::parse("eu-west-1").unwrap().as_str(), "eu-west-1");
        for wrong in ["", "EU", "a_b", "a b", "a/b", &"a".repeat(33)] {
            assert!(CellId::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn ids_order_as_their_texts(a: u128, b: u128) {
            let (a, b) = (OrderId::from_ulid(Ulid(a)), OrderId::from_ulid(Ulid(b)));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn a_generation_reads_back(epoch: u64, sequence: u64) {
            let generation = Generation::new(epoch, sequence);
            prop_assert_eq!(generation.to_string().parse::<Generation>().unwrap(), generation);
        }

        #[test]
        fn foreign_text_never_panics(text in ".{0,80}") {
            let _ = text.parse::<EdgeId>();
            let _ = text.parse::<Generation>();
            let _ = text.parse::<CellId>();
        }
    }
}
