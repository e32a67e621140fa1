//! Taking answers out before their time: by URL, prefix, host, tag, or everything of a tenant.
//!
//! A purge first dooms what is being fetched for the tenant, so that nothing asked for before it is kept after it; then it
//! walks the index. When it returns, no client gets what it named.

use std::sync::{Arc, atomic::Ordering};

use portico_api::distribution::{self as wire, purge_target::Kind};
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
    Prefix { tls: bool, host: Box<str>, port: u16, paths: Vec<String> },
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
        if purge.targets.len() > limits::PURGE_TARGETS_MAX {
            return Err(bad("too many targets"));
        }
        let targets: Vec<Target> = match tenant {
            // Without a tenant there is only one thing that can be meant.
            None => vec![Target::Everything],
            Some(tenant) => {
                let read = |target| Target::parse(target, tenant, live);
                purge.targets.iter().map(read).collect::<Result<_, _>>()?
            }
        };
        let met = self.purge_targets(tenant, &targets, purge.soft);
        // Also where it falls: a control plane that was restored from a backup counts from there.
        self.purged.store(purge.number, Ordering::Relaxed);
        self.purged_entries.fetch_add(met as u64, Ordering::Relaxed);
        Ok(met)
    }

    /// The number of the last purge that was done; 0: none.
    pub fn last_purge(&self) -> u64 {
        self.purged.load(Ordering::Relaxed)
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
        met.len()
    }
}

impl Target {
    fn parse(from: &wire::PurgeTarget, tenant: TenantId, live: &Live) -> Result<Self, Fault> {
        match &from.kind {
            Some(Kind::Url(text)) => Ok(Self::Keys(keys(text, tenant, live)?)),
            Some(Kind::Prefix(text)) => {
                let url = url(text)?;
                if url.query().is_some() {
                    return Err(bad("a prefix has no query"));
                }
                let authority = authority(&url)?;
                let port = authority.port.unwrap_or_default();
                let host = authority.name.as_str().into();
                let paths = paths(text, &url).iter().flat_map(|path| spelling::usual(path)).collect();
                Ok(Self::Prefix { tls: url.scheme() == "https", host, port, paths })
            }
            Some(Kind::Host(text)) => {
                let name = DomainName::parse(text).map_err(|_| bad("not a host"))?;
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

/// All that the host's routes may keep for it.
fn keys(text: &str, tenant: TenantId, live: &Live) -> Result<Vec<CacheKey>, Fault> {
    let url = url(text)?;
    let authority = authority(&url)?;
    let host = live.host(&authority.name).filter(|host| host.tenant.id == tenant);
    let routes = host.as_ref().map_or(&[][..], |host| &host.routes);
    let resource = (url.scheme() == "https", &authority);
    let keys = paths(text, &url)
        .iter()
        .flat_map(|path| CacheKey::all(tenant, routes, resource, path, url.query()))
        .collect();
    Ok(keys)
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

fn authority(url: &Url) -> Result<Authority, Fault> {
    let name =
        url.host_str().and_then(|host| DomainName::parse(host).ok()).ok_or_else(|| bad("not a host"))?;
    Ok(Authority { name, port: url.port_or_known_default() })
}

fn bad(why: &str) -> Fault {
    Fault::new("BadPurge", why)
}
