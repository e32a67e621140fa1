//! `portico tenant ...`

use portico_api::v1::client::Client;
use portico_api::v1::{
    EgressGrant, ErrorPages, OriginAuthority, SharedGroupOffer, Sharing, SharingConsentRequest, Tenant,
    TenantSpec,
};
use portico_cert_store::{CellId, TenantId};
use serde_json::{Value, json};

use crate::commands::error_pages::{self, ErrorPageArgs};
use crate::commands::order_budget::{self, OrderBudgetArgs};
use crate::commands::suspension::{SuspendArgs, print_answer, suspension_text};
use crate::commands::tenant_limits::{self, TenantLimitArgs};
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::revision::on_newest;
use crate::settings::Settings;
use crate::shell::shell_word;

const DOMAINS_MAX: u32 = 10_000;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TenantCommand {
    /// Add a tenant; the same again is no error
    Add(AddArgs),
    /// Change a tenant: what is not named stays. Its own token may change its error pages, and nothing else
    Set(SetArgs),
    /// List tenants
    List(ListArgs),
    /// Show one tenant
    Show {
        /// Its name or id
        tenant: String,
    },
    /// Show what its origins trust to know the edges by (PEM); made at the first call
    OriginAuthority(OriginAuthorityArgs),
    /// Certificates with names of other tenants: what an operator offers, and the tenant's consent
    SharedGroup(SharedGroupArgs),
    /// Take all its domains out of service for a while; certificates stay alive
    Suspend {
        /// Its name or id
        tenant: String,
        #[command(flatten)]
        suspension: SuspendArgs,
    },
    /// End a suspension
    Resume {
        /// Its name or id
        tenant: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct OriginAuthorityArgs {
    /// The tenant's name or id
    tenant: String,
    /// Make the one that is to take its place; what is printed is for origins to trust before the switch
    #[arg(long)]
    make_next: bool,
    /// Show certificates of the next one from now on: its origins trust both
    #[arg(long, conflicts_with = "make_next")]
    switch: bool,
    /// Drop the next one; all stays as it is
    #[arg(long, conflicts_with_all = ["make_next", "switch"])]
    drop_next: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SharedGroupArgs {
    /// The tenant's name or id
    tenant: String,
    /// Offer it a place in this group; nothing is shared before the tenant consents
    #[arg(long, value_name = "GROUP")]
    offer: Option<String>,
    /// Consent to the group that is offered. Public certificate transparency logs show the names together for ever
    #[arg(long, value_name = "GROUP", conflicts_with = "offer")]
    consent: Option<String>,
    /// With --consent, of an operator: when and how the tenant agreed
    #[arg(long, value_name = "TEXT", requires = "consent")]
    note: Option<String>,
    /// Take offer and consent back; names leave with the next renewal
    #[arg(long, conflicts_with_all = ["offer", "consent"])]
    leave: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// [a-z0-9-], at most 63
    name: String,
    #[command(flatten)]
    spec: TenantArgs,
}

/// What is decided about a tenant, apart from its name.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TenantArgs {
    /// Which of its names may stand on one certificate. `tenant` links them in public CT logs for ever
    #[arg(long, value_enum, default_value_t)]
    sharing: SharingArg,
    /// A cell of edges that serves its domains; repeatable [default: "default"]
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<CellId>,
    /// An issuer that its certificates come from; repeatable, the best first [default: the fleet's]
    #[arg(long = "issuer", value_name = "ISSUER")]
    issuers: Vec<String>,
    /// A backup certificate stands by for each of its names, of another of its issuers and with another key
    #[arg(long)]
    backup_certificates: bool,
    /// An address range and ports that its origins may use although they are private, such as
    /// 10.1.0.0/16:80,8080; repeatable
    #[arg(long = "egress-grant", value_name = "CIDR:PORTS", value_parser = parse_grant)]
    egress_grants: Vec<EgressGrant>,
    /// The most domains that it may have
    #[arg(long, default_value_t = DOMAINS_MAX)]
    domains_max: u32,
    #[command(flatten)]
    limits: TenantLimitArgs,
    #[command(flatten)]
    orders: OrderBudgetArgs,
}

impl TenantArgs {
    /// Whether it says anything that is not the default.
    pub(crate) fn is_given(&self) -> bool {
        let is_default =
            matches!(self.sharing, SharingArg::RegisteredDomain) && self.domains_max == DOMAINS_MAX;
        let no_limits = self.limits.limits().is_empty() && self.orders.budget().is_empty();
        !(is_default
            && no_limits
            && self.cells.is_empty()
            && self.issuers.is_empty()
            && !self.backup_certificates
            && self.egress_grants.is_empty())
    }

    pub(crate) fn spec(&self, name: String, sharing: Option<Sharing>) -> TenantSpec {
        TenantSpec {
            name,
            sharing: sharing.unwrap_or_else(|| self.sharing.into()),
            cells: self.cells.clone(),
            issuers: self.issuers.clone(),
            backup_certificates: self.backup_certificates.then_some(true),
            egress_grants: self.egress_grants.clone(),
            limits: self.limits.limits(),
            order_budget: self.orders.budget(),
            error_pages: ErrorPages::default(),
            domains_max: self.domains_max,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// Its name or id
    tenant: String,
    /// Which of its names may stand on one certificate. `tenant` links them in public CT logs for ever
    #[arg(long, value_enum)]
    sharing: Option<SharingArg>,
    /// A cell of edges that serves its domains; repeatable, in the place of those that did. `default` is what a tenant has
    /// that names none
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<CellId>,
    /// An issuer that its certificates come from; repeatable, the best first, in the place of those that did
    #[arg(long = "issuer", value_name = "ISSUER", conflicts_with = "fleet_issuers")]
    issuers: Vec<String>,
    /// Certificates from the fleet's issuers again
    #[arg(long)]
    fleet_issuers: bool,
    /// Whether a backup certificate stands by for each of its names, where the domain does not say
    #[arg(long, value_name = "BOOL", conflicts_with = "fleet_backup_certificates")]
    backup_certificates: Option<bool>,
    /// Backup certificates as the fleet has them again
    #[arg(long)]
    fleet_backup_certificates: bool,
    /// A further address range and ports that its origins may use although they are private; repeatable
    #[arg(long = "egress-grant", value_name = "CIDR:PORTS", value_parser = parse_grant)]
    egress_grants: Vec<EgressGrant>,
    /// Take a grant back, as `tenant show` prints its range; repeatable
    #[arg(long = "withdraw-egress-grant", value_name = "CIDR")]
    withdrawn: Vec<String>,
    /// The most domains that it may have
    #[arg(long)]
    domains_max: Option<u32>,
    #[command(flatten)]
    limits: TenantLimitArgs,
    #[command(flatten)]
    orders: OrderBudgetArgs,
    #[command(flatten)]
    error_pages: ErrorPageArgs,
}

impl SetArgs {
    /// The change as a merge patch (RFC 7396) of what `spec` is now.
    fn patch(&self, spec: &TenantSpec) -> Outcome<Value> {
        let mut patch = serde_json::Map::new();
        if let Some(sharing) = self.sharing {
            patch.insert("sharing".to_owned(), json!(Sharing::from(sharing)));
        }
        if !self.cells.is_empty() {
            patch.insert("cells".to_owned(), json!(self.cells));
        }
        if !self.issuers.is_empty() || self.fleet_issuers {
            patch.insert("issuers".to_owned(), json!(self.issuers));
        }
        if self.backup_certificates.is_some() || self.fleet_backup_certificates {
            patch.insert("backup_certificates".to_owned(), json!(self.backup_certificates));
        }
        if let Some(domains_max) = self.domains_max {
            patch.insert("domains_max".to_owned(), json!(domains_max));
        }
        if let Some(limits) = self.limits.patch() {
            patch.insert("limits".to_owned(), limits);
        }
        if let Some(budget) = self.orders.patch() {
            patch.insert("order_budget".to_owned(), budget);
        }
        if let Some(pages) = self.error_pages.patch()? {
            patch.insert("error_pages".to_owned(), pages);
        }
        if !(self.egress_grants.is_empty() && self.withdrawn.is_empty()) {
            let has = |cidr: &String| spec.egress_grants.iter().any(|grant| grant.cidr == *cidr);
            if let Some(unknown) = self.withdrawn.iter().find(|cidr| !has(cidr)) {
                return Err(Failure::not_found(format!("tenant {} has no grant of {unknown}", spec.name))
                    .next(format!("tenant show {}", spec.name)));
            }
            let kept = spec.egress_grants.iter().filter(|grant| !self.withdrawn.contains(&grant.cidr));
            let mut grants: Vec<&EgressGrant> = kept.collect();
            grants.extend(self.egress_grants.iter().filter(|grant| !spec.egress_grants.contains(grant)));
            patch.insert("egress_grants".to_owned(), json!(grants));
        }
        if patch.is_empty() {
            return Err(Failure::usage("nothing is to be changed").next("tenant set --help"));
        }
        Ok(Value::Object(patch))
    }
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum SharingArg {
    /// Each name alone
    Alone,
    /// Names below one registered domain
    #[default]
    RegisteredDomain,
    /// All names of the tenant
    Tenant,
}

impl From<SharingArg> for Sharing {
    fn from(sharing: SharingArg) -> Self {
        match sharing {
            SharingArg::Alone => Self::Alone,
            SharingArg::RegisteredDomain => Self::RegisteredDomain,
            SharingArg::Tenant => Self::Tenant,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, command: TenantCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        TenantCommand::Add(args) => {
            let tenant = client.create_tenant(&args.spec.spec(args.name.clone(), None)).await;
            let tenant = tenant.map_err(|error| {
                let failure = Failure::from(error).about(format!("tenant {}", args.name));
                if failure.problem_code() == Some("tenant_exists") {
                    let name = shell_word(&args.name);
                    return failure
                        .next(format!("tenant set {name} ...   (or look first: tenant show {name})"));
                }
                failure
            })?;
            show(settings, &tenant)
        }
        TenantCommand::Set(args) => set(settings, &client, &args).await,
        TenantCommand::List(args) => list(settings, &client, args.limit).await,
        TenantCommand::Show { tenant } => show(settings, &find(&client, &tenant).await?),
        TenantCommand::OriginAuthority(args) => origin_authority(settings, &client, &args).await,
        TenantCommand::SharedGroup(args) => shared_group(settings, &client, args).await,
        TenantCommand::Suspend { tenant, suspension } => {
            let id = find(&client, &tenant).await?.id;
            print_answer(settings, &tenant, &client.suspend_tenant(id, &suspension.into()).await?)
        }
        TenantCommand::Resume { tenant } => {
            let id = find(&client, &tenant).await?.id;
            print_answer(settings, &tenant, &client.resume_tenant(id).await?)
        }
    }
}

async fn set(settings: &Settings, client: &Client, args: &SetArgs) -> Outcome {
    let changed = on_newest(async || {
        let found = find(client, &args.tenant).await?;
        let patched = client.patch_tenant(found.id, &args.patch(&found.spec)?, Some(found.revision)).await;
        patched.map_err(|error| Failure::from(error).about(format!("tenant {}", args.tenant)))
    });
    show(settings, &changed.await?)
}

async fn shared_group(settings: &Settings, client: &Client, args: SharedGroupArgs) -> Outcome {
    let id = find(client, &args.tenant).await?.id;
    if args.leave {
        client.leave_shared_group(id).await?;
        if settings.format != Format::Json {
            line(format!("{}: no further certificate has names of other tenants", args.tenant));
        }
        return Ok(());
    }
    let answer = match (args.offer, args.consent) {
        (Some(group), _) => client.offer_shared_group(id, &SharedGroupOffer { group }).await,
        (None, Some(group)) => {
            client.consent_to_sharing(id, &SharingConsentRequest { group, note: args.note }).await
        }
        (None, None) => client.shared_group(id).await,
    };
    let shown = answer.map_err(|error| Failure::from(error).about(format!("tenant {}", args.tenant)))?;
    if settings.format == Format::Json {
        return output::json(&shown);
    }
    line(format!("group {}, offered {}", shown.group, output::time(&shown.offered_at)));
    match &shown.consent {
        Some(consent) => {
            let note = consent.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            line(format!("consented {} by {}{note}", output::time(&consent.at), consent.by));
        }
        None => line(format!(
            "not consented, so nothing is shared; to consent: {} tenant shared-group {} --consent {}",
            crate::invocation(),
            shell_word(&args.tenant),
            shown.group
        )),
    }
    line(format!("{} tenants have consented to it", shown.tenants));
    output::remark(&shown.meaning);
    Ok(())
}

/// The PEM alone goes to standard output, so that it can be a file.
async fn origin_authority(settings: &Settings, client: &Client, args: &OriginAuthorityArgs) -> Outcome {
    let id = find(client, &args.tenant).await?.id;
    if args.drop_next {
        // Gone is as wished for; whoever mistook the tenant is to see it all the same.
        if !client.origin_authority(id).await.is_ok_and(|authority| authority.next.is_some()) {
            output::remark(format!("tenant {} has no next authority: there is nothing to drop", args.tenant));
        }
        client.delete_next_origin_authority(id).await?;
    }
    let answer = if args.make_next {
        client.create_next_origin_authority(id).await
    } else if args.switch {
        client.switch_origin_authority(id).await
    } else {
        client.create_origin_authority(id).await
    };
    let authority = answer.map_err(|error| Failure::from(error).about(format!("tenant {}", args.tenant)))?;
    if settings.format == Format::Json {
        return output::json(&authority);
    }
    line(authority.trust_pem().trim_end());
    for identity in &authority.identities {
        let until = output::date(&identity.not_after);
        output::remark(format!("cell {} shows {} until {until}", identity.cell, identity.certificate_sha256));
    }
    output::remark(what_next(&authority, &args.tenant));
    Ok(())
}

/// What is to be done with an authority as it stands.
fn what_next(authority: &OriginAuthority, tenant: &str) -> String {
    let command = format!("{} tenant origin-authority {}", crate::invocation(), shell_word(tenant));
    match (&authority.next, &authority.previous) {
        (Some(_), _) => format!(
            "its origins are to trust both certificates; when all of them do: {command} --switch   (or --drop-next)"
        ),
        (None, Some(previous)) if previous.edges_behind.is_empty() => {
            format!("all edges have switched; within seconds its origins need trust one only, see {command}")
        }
        (None, Some(previous)) => {
            let edges: Vec<String> = previous.edges_behind.iter().map(ToString::to_string).collect();
            format!(
                "its origins are to trust both certificates until these edges have switched: {}; look again with {command}, and \
                 take out what does not come back: edge rm",
                edges.join(", ")
            )
        }
        (None, None) => "its origins are to trust this (nginx: ssl_client_certificate, with ssl_verify_client on) before a \
                         route shows itself: domain route NAME --proxy https://.. --origin-client-certificate"
            .to_owned(),
    }
}

/// The tenant of that name or id; with a tenant's token only its own can be found.
pub(crate) async fn find(client: &Client, tenant: &str) -> Outcome<Tenant> {
    find_or_free(client, tenant).await?.ok_or_else(|| {
        Failure::not_found(format!("no tenant is called {tenant:?}"))
            .next(format!("tenant add {}   (or: tenant list)", shell_word(tenant)))
    })
}

/// The tenant of that name or id; `None`: none has the name, and one may be made.
///
/// # Errors
/// There is none of that id, or the token is another tenant's; the API's.
pub(crate) async fn find_or_free(client: &Client, tenant: &str) -> Outcome<Option<Tenant>> {
    if let Some(found) = find_any(client, tenant).await? {
        return Ok(Some(found));
    }
    if let Ok(own) = client.own_tenant().await {
        let text = format!("this token is of tenant {}, not of {tenant}", own.spec.name);
        return Err(Failure::not_found(text)
            .next_text(format!("name {}, or give an operator's token", own.spec.name)));
    }
    if tenant.parse::<TenantId>().is_ok() {
        return Err(Failure::not_found(format!("no tenant {tenant}")).next("tenant list"));
    }
    Ok(None)
}

/// The tenant whose token this is.
pub(crate) async fn own(client: &Client) -> Outcome<Tenant> {
    client.own_tenant().await.map_err(|error| match error.code() {
        Some("no_tenant_of_its_own") => {
            Failure::usage("--tenant is missing: an operator's token does not say whose it is")
                .next("tenant list")
        }
        _ => error.into(),
    })
}

/// The tenant of that name or id, where there is one that the token may see.
async fn find_any(client: &Client, tenant: &str) -> Outcome<Option<Tenant>> {
    let Ok(id) = tenant.parse::<TenantId>() else {
        let page = client.tenants(Some(tenant), None, Some(1)).await?;
        return Ok(page.items.into_iter().find(|found| found.spec.name == tenant));
    };
    match client.tenant(id).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(Failure::from(error).about(format!("tenant {tenant}"))),
    }
}

async fn list(settings: &Settings, client: &Client, limit: LimitArgs) -> Outcome {
    let tenants = Listing::read(limit.of(settings.format), async |cursor, items| {
        client.tenants(None, cursor.as_deref(), Some(items)).await
    });
    let tenants = tenants.await?;
    if settings.format == Format::Json {
        return output::json(&tenants.items);
    }
    let mut table = Table::new(&["NAME", "DOMAINS", "SHARING", "CELLS", "SUSPENDED", "ID"]);
    for tenant in &tenants.items {
        table.row([
            tenant.spec.name.clone(),
            tenant.domains.to_string(),
            output::word(&tenant.spec.sharing),
            cells_text(&tenant.spec.cells),
            output::or_dash(tenant.suspension.as_ref().map(|suspension| output::word(&suspension.mode))),
            tenant.id.to_string(),
        ]);
    }
    table.print();
    tenants.print_more();
    Ok(())
}

fn show(settings: &Settings, tenant: &Tenant) -> Outcome {
    if settings.format == Format::Json {
        return output::json(tenant);
    }
    line(format!("{}  {}", output::paint(&tenant.spec.name, output::Colour::Bold), tenant.id));
    line(format!("  domains   {} of at most {}", tenant.domains, tenant.spec.domains_max));
    line(format!("  sharing   {}", output::word(&tenant.spec.sharing)));
    line(format!("  cells     {}", cells_text(&tenant.spec.cells)));
    if !tenant.spec.issuers.is_empty() {
        line(format!("  issuers   {}", tenant.spec.issuers.join(", ")));
    }
    if let Some(wish) = tenant.spec.backup_certificates {
        line(format!(
            "  backups   {}",
            if wish { "a certificate of another issuer stands by" } else { "none" }
        ));
    }
    if let Some(limits) = tenant_limits::text(&tenant.spec.limits) {
        line(format!("  limits    {limits}; on each edge"));
    }
    if let Some(budget) = order_budget::text(&tenant.spec.order_budget) {
        line(format!("  orders    {budget}"));
    }
    if let Some(pages) = error_pages::text(&tenant.spec.error_pages) {
        line(format!("  pages     {pages}"));
    }
    for grant in &tenant.spec.egress_grants {
        let ports: Vec<String> = grant.ports.iter().map(u16::to_string).collect();
        line(format!("  egress    {} ports {}", grant.cidr, ports.join(",")));
    }
    if let Some(suspension) = &tenant.suspension {
        line(format!("  suspended {}", suspension_text(suspension)));
    }
    line(format!("  created   {}", output::time(&tenant.created_at)));
    Ok(())
}

fn cells_text(cells: &[CellId]) -> String {
    if cells.is_empty() {
        return "default".to_owned();
    }
    cells.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `10.1.0.0/16:80,8080`; the address may be IPv6, so the ports begin at the last colon.
fn parse_grant(text: &str) -> Result<EgressGrant, String> {
    let fault = || format!("{text:?} is no grant; write 10.1.0.0/16:80,8080");
    let (cidr, ports) = text.rsplit_once(':').ok_or_else(fault)?;
    let ports = ports.split(',').map(str::parse).collect::<Result<Vec<u16>, _>>().map_err(|_| fault())?;
    if cidr.split_once('/').is_none() {
        return Err(fault());
    }
    Ok(EgressGrant { cidr: cidr.to_owned(), ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_range_and_ports() {
        let grant = parse_grant("fd00:1::/32:80,8080").unwrap();
        assert_eq!((grant.cidr.as_str(), grant.ports.as_slice()), ("fd00:1::/32", &[80, 8080][..]));
        for text in ["10.0.0.0/8", "10.0.0.0:80", "10.0.0.0/8:", "10.0.0.0/8:http"] {
            parse_grant(text).unwrap_err();
        }
    }
}
