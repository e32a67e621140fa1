//! Taking answers out before their time: by URL, prefix, host, tag, or everything of a tenant.
//!
//! A purge first dooms what is being fetched for the tenant, so that nothing asked for before it is kept after it; then it
//! walks the index. When it returns, no client gets what it named.

use std::sync::{Arc, atomic::Ordering};

use portico_api::{
    distribution::{self as wire, purge_target::Kind},
    v1,
};
use portico_cert_store::{DomainName, TenantId};
use url::Url;

use super::{Cache, key::CacheKey, spelling, stored::Stored};
use crate::{
    clock,
    http::authority::Authority,
    live::{Fault, Live, limits},
};

/// One thing to forget.
enum Target {
    Keys(Vec<CacheKey>),
    /// Without a port: on all of them.
    Prefix {
        tls: bool,
        host: Box<str>,
        port: Option<u16>,
        paths: Vec<String>,
    },
    Host(Box<str>),
    Tag(Box<str>),
    Everything,
}

impl Cache {
    /// Does a purge and answers how many entries it met.
    ///
    /// # Errors
    /// A [`Fault`] if a target cannot be read; then nothing is done.
    pub fn purge(&self, purge: &wire::Purge, live: &Live) -> Result<usize, Fault> {
        let tenant = match purge.tenant_id.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| bad("the tenant's id is none"))?),
        };
        let targets: Vec<Target> = match tenant {
            // Without a tenant there is only one thing that can be meant.
            None => vec![Target::Everything],
            Some(tenant) => self.targets(&purge.targets, tenant, live)?,
        };
        let met = self.purge_targets(tenant, &targets, purge.soft);
        // Also where it falls: a control plane that was restored from a backup counts from there.
        self.purged.store(purge.number, Ordering::Relaxed);
        Ok(met)
    }

    /// The same on an edge that stands alone, where nobody counts purges.
    ///
    /// # Errors
    /// As [`Cache::purge`], and where nothing is named.
    pub fn purge_of(&self, tenant: TenantId, asked: v1::PurgeRequest, live: &Live) -> Result<usize, Fault> {
        let soft = asked.soft;
        let targets = wire::PurgeTarget::all_of(asked);
        if targets.is_empty() {
            return Err(bad("it names nothing; give urls, prefixes, hosts, tags or everything"));
        }
        let targets = self.targets(&targets, tenant, live)?;
        Ok(self.purge_targets(Some(tenant), &targets, soft))
    }

    /// The number of the last purge that was done; 0: none.
    pub fn last_purge(&self) -> u64 {
        self.purged.load(Ordering::Relaxed)
    }

    fn targets(
        &self,
        asked: &[wire::PurgeTarget],
        tenant: TenantId,
        live: &Live,
    ) -> Result<Vec<Target>, Fault> {
        if asked.len() > limits::PURGE_TARGETS_MAX {
            return Err(bad("too many targets"));
        }
        asked.iter().map(|target| Target::parse(target, tenant, (live, &*self.ports))).collect()
    }

    fn purge_targets(&self, tenant: Option<TenantId>, targets: &[Target], soft: bool) -> usize {
        self.flights.doom_all(tenant);
        self.store.settle();
        let walks = targets.iter().any(|target| !matches!(target, Target::Keys(_)));
        let mut met: Vec<Arc<Stored>> = Vec::new();
        if walks {
            met = self.store.all(|key, stored| {
                tenant.is_none_or(|tenant| key.tenant() == tenant)
                    && targets.iter().any(|target| target.meets(key, stored))
            });
        }
        for key in targets.iter().flat_map(Target::keys) {
            met.extend(self.store.of_key(key));
        }
        let now = clock::now();
        for stored in &met {
            if soft {
                stored.make_stale(now);
            } else {
                self.store.remove(stored);
            }
        }
        self.purged_entries.fetch_add(met.len() as u64, Ordering::Relaxed);
        met.len()
    }
}

impl Target {
    fn parse(
        from: &wire::PurgeTarget,
        tenant: TenantId,
        (live, ports): (&Live, &[u16]),
    ) -> Result<Self, Fault> {
        match &from.kind {
            Some(Kind::Url(text)) => Ok(Self::Keys(keys(text, tenant, live, ports)?)),
            Some(Kind::Prefix(text)) => {
                let url = url(text)?;
                if url.query().is_some() {
                    return Err(bad("a prefix has no query"));
                }
                let (host, port) = (name(&url)?.as_str().into(), url.port());
                let paths = paths(text, &url).iter().flat_map(|path| spelling::usual(path)).collect();
                Ok(Self::Prefix { tls: url.scheme() == "https", host, port, paths })
            }
            Some(Kind::Host(text)) => {
                let name = host(text)?;
                Ok(Self::Host(name.as_str().into()))
            }
            Some(Kind::Tag(text)) if (1..=limits::PURGE_TARGET_BYTES_MAX).contains(&text.len()) => {
                Ok(Self::Tag(text.as_str().into()))
            }
            Some(Kind::Everything(true)) => Ok(Self::Everything),
            Some(Kind::Tag(_) | Kind::Everything(false)) | None => {
                Err(bad("a target that this edge does not know"))
            }
        }
    }

    fn meets(&self, key: &CacheKey, stored: &Stored) -> bool {
        match self {
            Self::Keys(_) => false,
            Self::Prefix { tls, host, port, paths } => {
                paths.iter().any(|path| key.is_below(*tls, host, *port, path))
            }
            Self::Host(host) => key.host() == &**host,
            Self::Tag(tag) => stored.head.has_tag(tag),
            Self::Everything => true,
        }
    }

    fn keys(&self) -> &[CacheKey] {
        match self {
            Self::Keys(keys) => keys,
            Self::Prefix { .. } | Self::Host(_) | Self::Tag(_) | Self::Everything => &[],
        }
    }
}

/// All that the host's routes may keep for it. A URL without a port is meant as visitors write it, whichever port the edge
/// is reached at: `ports` beside the scheme's own.
fn keys(text: &str, tenant: TenantId, live: &Live, ports: &[u16]) -> Result<Vec<CacheKey>, Fault> {
    let url = url(text)?;
    let name = name(&url)?;
    let host = live.host(&name).filter(|host| host.tenant.id == tenant);
    let routes = host.as_ref().map_or(&[][..], |host| &host.routes);
    let given = url.port();
    let meant =
        url.port_or_known_default().into_iter().chain(ports.iter().copied().filter(|_| given.is_none()));
    let paths = paths(text, &url);
    let keys = meant.flat_map(|port| {
        let authority = Authority { name: name.clone(), port: Some(port) };
        let resource = (url.scheme() == "https", &authority);
        let keys = paths.iter().flat_map(|path| CacheKey::all(tenant, routes, resource, path, url.query()));
        keys.collect::<Vec<_>>()
    });
    Ok(keys.collect())
}

/// The path as it is written, and as browsers send it: they encode some letters that other clients do not.
fn paths(text: &str, url: &Url) -> Vec<String> {
    let written = text.parse::<http::Uri>().ok().map(|uri| uri.path().to_owned());
    let mut paths: Vec<_> = written.into_iter().chain([url.path().to_owned()]).collect();
    paths.dedup();
    paths
}

fn url(text: &str) -> Result<Url, Fault> {
    let url =
        Url::parse(text).ok().filter(|url| text.len() <= limits::PURGE_TARGET_BYTES_MAX && url.has_host());
    url.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| bad("not an http or https URL"))
}

fn name(url: &Url) -> Result<DomainName, Fault> {
    host(url.host_str().unwrap_or_default())
}

fn host(text: &str) -> Result<DomainName, Fault> {
    DomainName::parse(text).map_err(|error| bad(&format!("{text:?} is not a host: {error}")))
}

fn bad(why: &str) -> Fault {
    Fault::new("BadPurge", why)
}
