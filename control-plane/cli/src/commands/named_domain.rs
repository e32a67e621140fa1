//! Which domain a command means.
//!
//! Several tenants may claim one name, and only they know which of them is right. A name that is claimed once is enough; of
//! several claims the command lists each and does nothing until `--tenant` or an id says which.

use portico_api::v1::Domain;
use portico_api::v1::client::{Client, DomainQuery};
use portico_cert_store::DomainId;

use crate::commands::tenant;
use crate::failure::{Failure, Outcome};

/// Claims of one name that are listed.
const SHOWN_MAX: u32 = 20;

/// The words of a command line that name a domain.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DomainArgs {
    /// Hostname or id
    pub(crate) domain: String,
    /// Whose domain, when several tenants claim the name: the tenant's name or id
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
}

impl DomainArgs {
    /// # Errors
    /// As [`find`].
    pub(crate) async fn find(&self, client: &Client) -> Outcome<Domain> {
        find(client, &self.domain, self.tenant.as_deref()).await
    }
}

/// The domain of that hostname or id.
///
/// # Errors
/// There is none, or several tenants claim the name and `tenant` does not say whose is meant; the API's.
pub(crate) async fn find(client: &Client, domain: &str, tenant: Option<&str>) -> Outcome<Domain> {
    let missing = || Failure::not_found(format!("no domain {domain}")).next("domain list");
    let tenant = match tenant {
        Some(tenant) => Some(tenant::find(client, tenant).await?),
        None => None,
    };
    let mut claims = if domain.parse::<DomainId>().is_ok() {
        let found = client.domain(domain).await.map_err(|error| match error.status() {
            Some(404) => missing(),
            _ => Failure::from(error).about(format!("domain {domain}")),
        })?;
        let of_tenant = tenant.as_ref().is_none_or(|tenant| tenant.id == found.tenant_id);
        if of_tenant { vec![found] } else { Vec::new() }
    } else {
        claims(client, domain, tenant.as_ref().map(|tenant| tenant.id)).await?
    };
    match (claims.len(), tenant) {
        (0 | 1, None) => claims.pop().ok_or_else(missing),
        (0, Some(tenant)) => {
            let text = format!("tenant {} has no domain {domain}", tenant.spec.name);
            Err(Failure::not_found(text).next(format!("domain list --tenant {}", tenant.spec.name)))
        }
        (1, Some(_)) => claims.pop().ok_or_else(missing),
        _ => Err(ambiguous(domain, &claims)),
    }
}

/// The claims of a name, the caller's own or all.
pub(crate) async fn claims(
    client: &Client,
    hostname: &str,
    tenant: Option<portico_cert_store::TenantId>,
) -> Outcome<Vec<Domain>> {
    let hostname = Some(hostname.to_owned());
    let query = DomainQuery { tenant, hostname, limit: Some(SHOWN_MAX), ..DomainQuery::default() };
    let page = client.domains(&query).await.map_err(|error| Failure::from(error).about("domain"))?;
    Ok(page.items)
}

/// `shop.test of tenant acme`
pub(crate) fn whose(domain: &Domain) -> String {
    format!("{} of tenant {}", domain.spec.hostname, domain.tenant_name)
}

fn ambiguous(name: &str, claims: &[Domain]) -> Failure {
    let mut text = format!("{} tenants claim {name}; nothing was done:", claims.len());
    for claim in claims {
        let stands = if claim.proof.is_some() { "served" } else { "not proved" };
        text += &format!("\n  {}  {}  {}  {stands}", claim.tenant_name, claim.tenant_id, claim.id);
    }
    Failure::usage(text)
        .next_text("the same command with --tenant TENANT, or with an id in the place of the name")
}
