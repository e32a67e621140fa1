//! What is to be done with what was found: which name goes to which tenant with which certificate. Reads the control plane and
//! changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _};
use portico_api::v1::client::Client;
use portico_api::v1::{ADOPTION_DOMAINS_MAX, Action, CertificateSummary, Domain, DomainSpec, Issuer, Route};
use portico_cert_store::{CertificateFacts, NamePattern, TenantId};
use url::{Host, Url};

use super::found::{AccountFile, Ca, Found, FoundCertificate, Site, Skipped};
use super::report::NameReport;
use crate::commands::named_domain::claims;
use crate::commands::{route, tenant};
use crate::failure::{Failure, Outcome};
use crate::progress;

/// Questions about names under way at once.
const CONCURRENCY: usize = 16;

/// What the caller wishes of an adoption.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Whose the names are that nobody has yet.
    pub(super) tenant: Option<String>,
    /// Where requests go of which the folder says nothing that is understood.
    pub(super) proxy: Option<Url>,
    /// What `localhost` of the old machine is called.
    pub(super) localhost_is: Option<String>,
    /// Only these names.
    pub(super) only: BTreeSet<NamePattern>,
}

/// One call: a certificate and domains of one tenant.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) tenant: TenantId,
    /// Index into the certificates.
    pub(super) certificate: usize,
    pub(super) issuer: Option<String>,
    pub(super) domains: Vec<DomainSpec>,
    /// What is to be told of each, in the same order.
    pub(super) names: Vec<NameReport>,
    /// Those that the tenant does not have yet.
    pub(super) new: Vec<String>,
    /// Those that it has, and that are not served with this certificate.
    pub(super) there: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) certificates: Vec<FoundCertificate>,
    pub(super) items: Vec<Item>,
    /// Names that are not adopted, with why.
    pub(super) refused: Vec<NameReport>,
    pub(super) skipped: Vec<Skipped>,
}

/// # Errors
/// The API's; the tenant of the wishes is not there.
pub(super) async fn make(client: &Client, wishes: &Wishes, found: Found) -> Outcome<Plan> {
    let issuers = client.issuers().await?.items;
    let tenant = match &wishes.tenant {
        Some(name) => Some(tenant::find(client, name).await?),
        None => None,
    };
    let tenant = tenant.map(|tenant| Whose { id: tenant.id, name: tenant.spec.name });
    let Found { mut certificates, sites, skipped } = found;
    // The one that ends last comes first, and the others find its names taken.
    certificates.sort_by_key(|one| (std::cmp::Reverse(one.facts.not_after.as_secs()), one.from.clone()));
    let mut taken = BTreeSet::new();
    let mut by_certificate: Vec<(usize, Vec<NamePattern>)> = Vec::new();
    for (index, certificate) in certificates.iter().enumerate() {
        let mut names = candidates(&certificate.facts, &sites);
        names.retain(|name| wishes.only.is_empty() || wishes.only.contains(name));
        names.retain(|name| taken.insert((name.clone(), certificate.facts.key_type.is_rsa())));
        by_certificate.push((index, names));
    }
    let all: BTreeSet<NamePattern> =
        by_certificate.iter().flat_map(|(_, names)| names.iter().cloned()).collect();
    let mut maker = Maker {
        wishes,
        tenant,
        sites: &sites,
        claims: all_claims(client, &all).await?,
        plan: Plan { certificates: Vec::new(), items: Vec::new(), refused: Vec::new(), skipped },
    };
    for (index, names) in by_certificate {
        maker.certificate(index, &certificates[index], names, &issuers);
    }
    let mut plan = maker.plan;
    for (name, site) in &sites {
        if !all.contains(name) && (wishes.only.is_empty() || wishes.only.contains(name)) {
            let why = format!("{}: no certificate that was taken holds it", site.from);
            plan.refused.push(NameReport::refused(name.to_string(), why));
        }
    }
    for name in wishes.only.iter().filter(|name| !all.contains(*name) && !sites.contains_key(*name)) {
        plan.refused.push(NameReport::refused(name.to_string(), "it is not in the folder".to_owned()));
    }
    plan.certificates = certificates;
    Ok(plan)
}

/// A certificate's own names, and those of sites that one of its wildcards covers.
fn candidates(facts: &CertificateFacts, sites: &BTreeMap<NamePattern, Site>) -> Vec<NamePattern> {
    let mut names: BTreeSet<NamePattern> = facts.names.iter().cloned().collect();
    if facts.names.iter().any(NamePattern::is_wildcard) {
        let covered = sites.keys().filter(|name| facts.check_names(std::slice::from_ref(*name)).is_ok());
        names.extend(covered.cloned());
    }
    names.into_iter().collect()
}

async fn all_claims(
    client: &Client,
    names: &BTreeSet<NamePattern>,
) -> Outcome<HashMap<NamePattern, Vec<Domain>>> {
    let bar = progress::bar("looking", names.len() as u64);
    let found = futures_util::stream::iter(names)
        .map(|name| async move {
            Ok::<_, Failure>((name.clone(), claims(client, &name.to_string(), None).await?))
        })
        .buffer_unordered(CONCURRENCY)
        .inspect(|_| bar.inc(1))
        .try_collect()
        .await;
    bar.finish_and_clear();
    found
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Whose {
    id: TenantId,
    name: String,
}

/// Whether a tenant has a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Present {
    No,
    Without,
    /// Served with the certificate that is to be adopted.
    With,
}

struct Maker<'a> {
    wishes: &'a Wishes,
    tenant: Option<Whose>,
    sites: &'a BTreeMap<NamePattern, Site>,
    claims: HashMap<NamePattern, Vec<Domain>>,
    plan: Plan,
}

impl Maker<'_> {
    fn certificate(
        &mut self,
        index: usize,
        certificate: &FoundCertificate,
        names: Vec<NamePattern>,
        issuers: &[Issuer],
    ) {
        let mut kept: Vec<(Whose, DomainSpec, NameReport, Present)> = Vec::new();
        for name in names {
            let mut report = NameReport::of(&name, certificate);
            match self.name(&name, &mut report) {
                Ok((whose, spec, present)) => {
                    report.tenant = Some(whose.name.clone());
                    kept.push((whose, spec, report, present));
                }
                Err(why) => self.plan.refused.push(NameReport { why: Some(why), ..report }),
            }
        }
        let tenants: BTreeSet<&str> = kept.iter().map(|(whose, ..)| whose.name.as_str()).collect();
        if tenants.len() > 1 {
            let tenants = tenants.into_iter().collect::<Vec<_>>().join(" and ");
            let why = format!(
                "its certificate holds names of {tenants}, and a key is one tenant's; with --only NAME and --tenant it is taken \
                 for one of them, and the others have orders of their own"
            );
            let refused =
                kept.into_iter().map(|(_, _, report, _)| NameReport { why: Some(why.clone()), ..report });
            self.plan.refused.extend(refused);
            return;
        }
        let issuer =
            certificate.ca.as_ref().and_then(|ca| issuers.iter().find(|issuer| is_of(ca, &issuer.directory)));
        let issuer = issuer.map(|issuer| issuer.name.clone());
        let mut kept = kept.into_iter().peekable();
        while let Some(first) = kept.peek() {
            let tenant = first.0.id;
            let mut item = Item {
                tenant,
                certificate: index,
                issuer: issuer.clone(),
                domains: Vec::new(),
                names: Vec::new(),
                new: Vec::new(),
                there: Vec::new(),
            };
            for (_, spec, report, present) in kept.by_ref().take(ADOPTION_DOMAINS_MAX) {
                match present {
                    Present::No => item.new.push(spec.hostname.clone()),
                    Present::Without => item.there.push(spec.hostname.clone()),
                    Present::With => {}
                }
                item.domains.push(spec);
                item.names.push(report);
            }
            self.plan.items.push(item);
        }
    }

    /// Whose a name is, its settings, and whether its tenant has it.
    fn name(
        &self,
        name: &NamePattern,
        report: &mut NameReport,
    ) -> Result<(Whose, DomainSpec, Present), String> {
        let claims = self.claims.get(name).map(Vec::as_slice).unwrap_or_default();
        let of = |claim: &Domain| Whose { id: claim.tenant_id, name: claim.tenant_name.clone() };
        let proved = claims.iter().find(|claim| claim.proof.is_some());
        let whose = match (&self.tenant, proved, claims) {
            (Some(tenant), Some(proved), _) if proved.tenant_id != tenant.id => {
                return Err(format!("it is served for tenant {} on a proof of its own", proved.tenant_name));
            }
            (Some(tenant), ..) => tenant.clone(),
            (None, Some(proved), _) => of(proved),
            (None, None, [only]) => of(only),
            (None, None, []) => {
                return Err(
                    "no tenant has it; say whose it is (--tenant), or import domains before".to_owned()
                );
            }
            (None, None, several) => {
                let names: Vec<&str> = several.iter().map(|claim| claim.tenant_name.as_str()).collect();
                return Err(format!("{} claim it; say whose it is (--tenant)", names.join(" and ")));
            }
        };
        if let Some(present) = claims.iter().find(|claim| claim.tenant_id == whose.id) {
            report.route = routes_text(&present.spec.routes);
            report.remarks.push("the domain was there and keeps its routes".to_owned());
            let is_this = |one: &CertificateSummary| {
                Some(&one.fingerprint_sha256) == report.fingerprint_sha256.as_ref()
            };
            let has = if present.certificates.iter().any(is_this) { Present::With } else { Present::Without };
            return Ok((whose, present.spec.clone(), has));
        }
        let mut spec = self.spec(name, report)?;
        spec.hostname = name.to_string();
        report.route = routes_text(&spec.routes);
        Ok((whose, spec, Present::No))
    }

    /// The settings of a name that is new here.
    fn spec(&self, name: &NamePattern, report: &mut NameReport) -> Result<DomainSpec, String> {
        let why = match self.sites.get(name) {
            Some(Site { spec: Ok(spec), remarks, from }) => {
                report.remarks.extend(remarks.iter().cloned());
                report.route_from = Some(from.clone());
                return self.moved(spec.clone());
            }
            Some(Site { spec: Err(why), from, .. }) => {
                if why.starts_with(from.split(':').next().unwrap_or_default()) {
                    why.clone()
                } else {
                    format!("{from}: {why}")
                }
            }
            None => "the folder does not say where its requests go".to_owned(),
        };
        let Some(proxy) = &self.wishes.proxy else {
            return Err(format!("{why}; say where they go (--proxy URL), or add the domain before"));
        };
        if self.sites.contains_key(name) {
            report.remarks.push(format!("{why}, so its requests go to --proxy"));
        }
        let url = proxy.as_str().trim_end_matches('/');
        Ok(DomainSpec { routes: vec![Route::new("/", Action::proxy(url))], ..DomainSpec::new(String::new()) })
    }

    /// With the old machine's own addresses as others call them.
    fn moved(&self, mut spec: DomainSpec) -> Result<DomainSpec, String> {
        let Some(host) = &self.wishes.localhost_is else { return Ok(spec) };
        for route in &mut spec.routes {
            if let Action::Proxy(proxy) = &mut route.action {
                let urls =
                    proxy.origin.iter_mut().chain(proxy.origins.iter_mut().map(|origin| &mut origin.url));
                for url in urls {
                    *url = elsewhere(url, host)?;
                }
            }
        }
        Ok(spec)
    }
}

/// `url` with `host` in the place of the machine itself.
fn elsewhere(url: &str, host: &str) -> Result<String, String> {
    let mut parsed = Url::parse(url).map_err(|error| format!("its origin {url}: {error}"))?;
    let is_own = match parsed.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    if !is_own {
        return Ok(url.to_owned());
    }
    parsed.set_host(Some(host)).map_err(|error| format!("--localhost-is {host}: {error}"))?;
    Ok(parsed.as_str().trim_end_matches('/').to_owned())
}

/// Whether a configured issuer's directory is that of a CA.
fn is_of(ca: &Ca, directory: &str) -> bool {
    match ca {
        Ca::Directory(url) => url.trim_end_matches('/') == directory.trim_end_matches('/'),
        // Host and path, joined; with a port Caddy writes host-port.
        Ca::CaddyKey(key) => {
            let at = directory.trim_start_matches("https://").trim_end_matches('/');
            at.replace(['/', ':'], "-") == *key
        }
    }
}

fn routes_text(routes: &[Route]) -> String {
    match routes {
        [] => "no route: 404".to_owned(),
        [only] if only.path_prefix == "/" && !only.exact => route::action_text(&only.action),
        routes => {
            let text = |route: &Route| {
                let is = if route.exact { "= " } else { "" };
                format!("{is}{} {}", route.path_prefix, route::action_text(&route.action))
            };
            routes.iter().map(text).collect::<Vec<_>>().join("; ")
        }
    }
}

/// The accounts that the certificates of some items need, each with its issuer.
pub(super) fn accounts(plan: &Plan) -> BTreeSet<(String, AccountFile)> {
    let of = |item: &Item| {
        let account = plan.certificates[item.certificate].account.clone()?;
        Some((item.issuer.clone()?, account))
    };
    plan.items.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_known_by_its_directory_as_each_program_writes_it() {
        let directory = "https://acme-v02.api.letsencrypt.org/directory";
        assert!(is_of(&Ca::Directory(directory.to_owned()), directory));
        assert!(is_of(&Ca::CaddyKey("acme-v02.api.letsencrypt.org-directory".to_owned()), directory));
        assert!(is_of(&Ca::CaddyKey("localhost-24000-dir".to_owned()), "https://localhost:24000/dir"));
        assert!(!is_of(
            &Ca::Directory("https://acme-staging-v02.api.letsencrypt.org/directory".to_owned()),
            directory
        ));
    }

    #[test]
    fn the_old_machines_own_addresses_get_its_name_and_others_stay() {
        for (url, moved) in [
            ("http://127.0.0.1:3000", "http://10.0.0.5:3000"),
            ("http://localhost", "http://10.0.0.5"),
            ("https://[::1]:8443", "https://10.0.0.5:8443"),
            ("http://backend:80", "http://backend:80"),
        ] {
            assert_eq!(elsewhere(url, "10.0.0.5").unwrap(), moved);
        }
    }
}
