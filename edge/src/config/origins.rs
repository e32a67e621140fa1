//! `proxy` of a route: one origin, or several, each with a weight or without.
//!
//! Read by hand: serde's `untagged` takes an array for a struct, and tells of a misspelt field only that nothing fits.

use std::fmt;

use portico_api::v1;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

#[derive(Debug)]
pub(super) enum RawProxy {
    One(String),
    Several(Vec<RawOrigin>),
}

#[derive(Debug)]
pub(super) enum RawOrigin {
    Url(String),
    Weighted(v1::WeightedOrigin),
}

struct ProxyVisitor;

struct OriginVisitor;

impl<'de> Deserialize<'de> for RawProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ProxyVisitor)
    }
}

impl<'de> Deserialize<'de> for RawOrigin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OriginVisitor)
    }
}

impl<'de> Visitor<'de> for ProxyVisitor {
    type Value = RawProxy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an origin's URL, or a list of origins")
    }

    fn visit_str<E: de::Error>(self, url: &str) -> Result<RawProxy, E> {
        Ok(RawProxy::One(url.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, origins: A) -> Result<RawProxy, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(origins)).map(RawProxy::Several)
    }
}

impl<'de> Visitor<'de> for OriginVisitor {
    type Value = RawOrigin;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an origin's URL, or { url = \"http://..\", weight = 1 }")
    }

    fn visit_str<E: de::Error>(self, url: &str) -> Result<RawOrigin, E> {
        Ok(RawOrigin::Url(url.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<RawOrigin, A::Error> {
        v1::WeightedOrigin::deserialize(MapAccessDeserializer::new(fields)).map(RawOrigin::Weighted)
    }
}
