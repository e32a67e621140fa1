//! What an answer is found by.
//!
//! The tenant comes first and cannot be left out; the fields are compared one by one, so that no two resources share a key
//! (THREATS G3). The path is spelt as the client spelt it, because so the origin sees it. What a route adds that decides the
//! content (its origins, its rule) tells answers of one key apart, as the fields of `Vary` do: see `stored`.

use std::borrow::Cow;

use portico_cert_store::TenantId;

use super::spelling;
use crate::{http::authority::Authority, live::Route};

/// A resource as clients see it, for one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheKey {
    tenant: TenantId,
    tls: bool,
    host: Box<str>,
    port: u16,
    path: Box<str>,
    query: Option<Box<str>>,
}

impl CacheKey {
    /// `query` as the route's policy has made it.
    pub fn new(tenant: TenantId, tls: bool, authority: &Authority, path: &str, query: Option<&str>) -> Self {
        Self {
            tenant,
            tls,
            host: authority.name.as_str().into(),
            port: authority.port.unwrap_or(if tls { 443 } else { 80 }),
            path: path.into(),
            query: query.map(Into::into),
        }
    }

    /// Of all that a host's routes may keep for a URL: each has its own idea of a query, and its path has several spellings.
    pub(super) fn all(
        tenant: TenantId,
        routes: &[Route],
        (tls, authority): (bool, &Authority),
        path: &str,
        query: Option<&str>,
    ) -> Vec<Self> {
        let rules = routes.iter().filter_map(Route::cache_rule);
        let mut queries: Vec<_> = rules.map(|rule| rule.query.normalised(query)).collect();
        queries.push(query.map(Cow::Borrowed));
        queries.sort_unstable();
        queries.dedup();
        let paths = spelling::usual(path);
        let keys = paths.iter().flat_map(|path| {
            queries.iter().map(|query| Self::new(tenant, tls, authority, path, query.as_deref()))
        });
        keys.collect()
    }

    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn is_below(&self, tls: bool, host: &str, port: Option<u16>, path: &str) -> bool {
        let on_port = port.is_none_or(|port| port == self.port);
        self.tls == tls && *self.host == *host && on_port && self.path.starts_with(path)
    }

    pub(super) fn weight(&self) -> usize {
        size_of::<Self>()
            + self.host.len()
            + self.path.len()
            + self.query.as_ref().map_or(0, |query| query.len())
    }
}

#[cfg(test)]
mod tests {
    use portico_cert_store::DomainName;
    use proptest::prelude::*;

    use super::*;

    /// What makes a resource, in words that differ by as little as possible.
    type Parts = (usize, bool, &'static str, Option<u16>, String, Option<String>);

    fn parts() -> impl Strategy<Value = Parts> {
        let host = prop_oneof![Just("a.example"), Just("aa.example"), Just("a.example.example")];
        let port = prop_oneof![Just(None), Just(Some(80)), Just(Some(443)), Just(Some(8443))];
        (0..2_usize, any::<bool>(), host, port, "/[a?/:]{0,3}", proptest::option::of("[a?/:&]{0,3}"))
    }

    fn key(tenants: &[TenantId; 2], (tenant, tls, host, port, path, query): &Parts) -> CacheKey {
        let authority = Authority { name: DomainName::parse(host).expect("a name"), port: *port };
        CacheKey::new(tenants[*tenant], *tls, &authority, path, query.as_deref())
    }

    fn hash(key: &CacheKey) -> u64 {
        use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
        BuildHasherDefault::<DefaultHasher>::default().hash_one(key)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// One key is one resource of one tenant. A port that is not said is the scheme's own.
        #[test]
        fn two_resources_never_share_a_key(one in parts(), other in parts()) {
            let tenants = [TenantId::generate(), TenantId::generate()];
            let said = |parts: &Parts| {
                let mut parts = parts.clone();
                parts.3 = parts.3.or(Some(if parts.1 { 443 } else { 80 }));
                parts
            };
            let (first, second) = (key(&tenants, &one), key(&tenants, &other));
            prop_assert_eq!(first == second, said(&one) == said(&other));
            prop_assert!(first != second || hash(&first) == hash(&second));
            // And where they differ in one part alone.
            let mut near = one.clone();
            near.0 = 1 - near.0;
            prop_assert!(key(&tenants, &near) != first);
        }
    }
}
