//! `portico domain ...`

use std::path::PathBuf;
use std::time::Duration;

use portico_api::v1::client::{Client, ClientError, DomainQuery};
use portico_api::v1::{
    Action, Actor, Condition, ConditionStatus, DnsRecord, Domain, DomainBatch, DomainSpec, DomainStatus,
    RecordPurpose, Route,
};
use portico_cert_store::{CellId, NamePattern, TenantId};
use serde_json::json;

use crate::commands::cert::{key_text, names_text};
use crate::commands::import::{self, ImportArgs};
use crate::commands::named_domain::{DomainArgs, find, whose};
use crate::commands::policy::{self, MaintenanceArgs, PolicyArgs, SetArgs};
use crate::commands::route::{self, ActionArgs, ProxyArgs, RouteArgs, action_text};
use crate::commands::rule::{AnswerArgs, RuleArgs, changes_text, rule_text};
use crate::commands::suspension::{SuspendArgs, print_answer, suspension_text};
use crate::commands::tenant;
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::progress;
use crate::records;
use crate::revision::on_newest;
use crate::settings::Settings;
use crate::shell::shell_word;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DomainCommand {
    /// Add a domain for a tenant; the same again is no error
    Add(Box<AddArgs>),
    /// Change what is done with its requests: proxy, redirect or a text, for all or below a path
    Route(Box<RouteArgs>),
    /// Change what holds for all its requests: HSTS, the redirect to https, TLS and client certificates
    Set(Box<SetArgs>),
    /// Answer every request with 503 and a text for a while; its certificate and challenges go on
    Maintenance(MaintenanceArgs),
    /// List domains
    List(ListArgs),
    /// Show one domain: status, what is missing, records, certificates
    Show(DomainArgs),
    /// Add the domains of a CSV file (tenant,hostname,action,target[,sharing])
    Import(ImportArgs),
    /// Take a domain out of service for a while; its certificate stays alive
    Suspend {
        #[command(flatten)]
        which: DomainArgs,
        #[command(flatten)]
        suspension: SuspendArgs,
    },
    /// End a suspension
    Resume(DomainArgs),
    /// Remove a domain
    Rm(DomainArgs),
    /// Have a failed certificate tried again now, not after its back-off
    Retry(DomainArgs),
    /// Have its DNS and proofs looked at now
    Check(DomainArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// shop.example or *.shop.example
    hostname: String,
    /// The tenant's name or id [with a tenant's token: that tenant]
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Add its twin too, a domain of its own that redirects here: www.shop.example for shop.example, and the other way round
    #[arg(long)]
    with_www: bool,
    /// A cell of edges that serves it; repeatable [default: the tenant's]
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<CellId>,
    /// Its certificate holds this name only
    #[arg(long)]
    alone: bool,
    #[command(flatten)]
    publish: records::PublishArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Whether to wait until a change is served.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Wait until it is served on all edges
    #[arg(long)]
    wait: bool,
    /// How long --wait waits
    #[arg(long, default_value = "60s", value_parser = crate::duration::parse)]
    timeout: Duration,
}

impl WaitArgs {
    /// Shows the domain, after the wait where one was asked for.
    ///
    /// # Errors
    /// The domain is not active when the wait is over; the API's.
    pub(crate) async fn show(self, settings: &Settings, client: &Client, domain: Domain) -> Outcome {
        if !self.wait {
            return show(settings, &domain);
        }
        let domain = self.waited(client, &domain).await?;
        show(settings, &domain)?;
        self.check_active(&domain)
    }

    /// The wait alone, where one was asked for.
    async fn until_active(self, client: &Client, domain: Domain) -> Outcome {
        if !self.wait {
            return Ok(());
        }
        self.check_active(&self.waited(client, &domain).await?)
    }

    async fn waited(self, client: &Client, domain: &Domain) -> Outcome<Domain> {
        let bar = progress::bar("waiting until it is served", 0);
        let domain = client.domain_wait_active(&domain.id.to_string(), self.timeout).await?;
        bar.finish_and_clear();
        Ok(domain)
    }

    fn check_active(self, domain: &Domain) -> Outcome {
        if domain.status == DomainStatus::Active {
            return Ok(());
        }
        let hostname = &domain.spec.hostname;
        let text =
            format!("{hostname} is {} after {} s", output::word(&domain.status), self.timeout.as_secs());
        Err(Failure::not_ready(text).next(format!("domain show {}", shell_word(hostname))))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Of this tenant only: name or id
    #[arg(long)]
    tenant: Option<String>,
    /// In this state only
    #[arg(long, value_parser = parse_status)]
    status: Option<DomainStatus>,
    /// Whose hostname holds this text
    #[arg(long)]
    q: Option<String>,
    #[command(flatten)]
    limit: LimitArgs,
    /// Write the DNS records that their owners have to set, of all when no --limit is given: CSV, or JSON where the file
    /// ends in .json
    #[arg(long, value_name = "FILE")]
    records_out: Option<PathBuf>,
}

pub(crate) async fn run(settings: &Settings, command: DomainCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        DomainCommand::Add(args) => add(settings, &client, *args).await,
        DomainCommand::Route(args) => route::run(settings, &client, *args).await,
        DomainCommand::Set(args) => policy::set(settings, &client, *args).await,
        DomainCommand::Maintenance(args) => policy::maintenance(settings, &client, args).await,
        DomainCommand::List(args) => list(settings, &client, args).await,
        DomainCommand::Show(which) => show(settings, &which.find(&client).await?),
        DomainCommand::Import(args) => import::run(settings, &client, args).await,
        DomainCommand::Suspend { which, suspension } => {
            let domain = which.find(&client).await?;
            let answer = client.suspend_domain(domain.id, &suspension.into()).await?;
            print_answer(settings, &whose(&domain), &answer)
        }
        DomainCommand::Resume(which) => {
            let domain = which.find(&client).await?;
            print_answer(settings, &whose(&domain), &client.resume_domain(domain.id).await?)
        }
        DomainCommand::Rm(which) => remove(settings, &client, &which).await,
        DomainCommand::Retry(which) => {
            let domain = which.find(&client).await?;
            let tried = client.retry_domain(domain.id).await;
            show(
                settings,
                &tried.map_err(|error| Failure::from(error).next(format!("domain show {}", domain.id)))?,
            )
        }
        DomainCommand::Check(which) => {
            let id = which.find(&client).await?.id;
            show(settings, &client.check_domain(id).await?)
        }
    }
}

async fn remove(settings: &Settings, client: &Client, which: &DomainArgs) -> Outcome {
    let (removed, is_default, held) = on_newest(async || {
        let found = which.find(client).await?;
        let is_default = is_default(client, &found).await;
        let held = client.delete_domain(found.id, Some(found.revision)).await;
        let held = held.map_err(|error| Failure::from(error).about(whose(&found)))?;
        Ok((found, is_default, held.is_some()))
    })
    .await?;
    let document = json!({
        "removed": removed.spec.hostname, "id": removed.id, "tenant_name": removed.tenant_name,
        "still_served": held, "was_default_certificate": is_default,
    });
    let whose = whose(&removed);
    let mut text = if held {
        format!(
            "{whose} is removed here; still served by the edges until an operator signs off: {} removal list",
            crate::invocation()
        )
    } else {
        format!("{whose} is removed")
    };
    if is_default {
        text += "\nits certificate was the default one: names that nobody brought are refused from now on";
    }
    output::done(settings.format, text, &document)
}

/// Whether the domain's certificate answers for names that nobody brought. Only an operator is told, and only it needs to know.
async fn is_default(client: &Client, domain: &Domain) -> bool {
    client.default_certificate().await.is_ok_and(|default| default.domain_id == domain.id)
}

async fn add(settings: &Settings, client: &Client, args: AddArgs) -> Outcome {
    let hostname = NamePattern::parse(&args.hostname).map_err(|error| Failure::usage(error.to_string()))?;
    let tenant = match &args.tenant {
        Some(tenant) => tenant::find(client, tenant).await?,
        None => tenant::own(client).await?,
    };
    let action = args.answer.of(args.proxy.of(args.action.action())?);
    let mut spec = spec(&hostname, action, args.cells, args.alone);
    spec.routes = vec![args.rule.route(spec.routes.remove(0).action)];
    args.policy.apply(&mut spec)?;
    let twin = if args.with_www { Some(twin(&hostname, &spec, settings.https_port())?) } else { None };
    let created = match &twin {
        None => client.create_domain(tenant.id, &spec).await.map_err(Failure::from),
        Some(twin) => create_both(client, tenant.id, &spec, twin).await,
    };
    let domain = created.map_err(|failure| {
        let failure = failure.about(&hostname);
        if failure.problem_code() == Some("domain_exists") {
            let (name, tenant) = (shell_word(&hostname.to_string()), shell_word(&tenant.spec.name));
            let next = format!(
                "domain route {name} --tenant {tenant} --proxy URL   (or look first: domain show {name})"
            );
            return failure.next(next);
        }
        with_grant(failure, &tenant.spec.name)
    })?;
    let twin = match twin {
        Some(twin) => Some(find(client, &twin.hostname, Some(&tenant.id.to_string())).await?),
        None => None,
    };
    if args.publish.is_wanted() {
        args.publish.publish(settings, records::needed([&domain].into_iter().chain(&twin))).await?;
        for id in [domain.id].into_iter().chain(twin.as_ref().map(|twin| twin.id)) {
            client.check_domain(id).await?;
        }
    }
    if let Some(twin) = twin {
        args.wait.until_active(client, twin).await?;
    }
    args.wait.show(settings, client, domain).await
}

/// The domain that redirects to `spec`'s: with `www.` before its name, or without.
fn twin(hostname: &NamePattern, spec: &DomainSpec, https_port: u16) -> Outcome<DomainSpec> {
    let NamePattern::Exact(name) = hostname else {
        return Err(Failure::usage(format!("{hostname} holds its www name already; leave --with-www out")));
    };
    let name = name.as_str();
    let twin = name.strip_prefix("www.").map_or_else(|| format!("www.{name}"), str::to_owned);
    let twin = NamePattern::parse(&twin).map_err(|error| Failure::usage(format!("{twin}: {error}")))?;
    let to = match https_port {
        443 => format!("https://{name}"),
        port => format!("https://{name}:{port}"),
    };
    Ok(self::spec(&twin, Action::redirect(to), spec.cells.clone(), spec.alone))
}

/// Both or none.
async fn create_both(
    client: &Client,
    tenant: TenantId,
    spec: &DomainSpec,
    twin: &DomainSpec,
) -> Outcome<Domain> {
    let batch = DomainBatch { items: vec![spec.clone(), twin.clone()], atomic: true };
    let answer = client.create_domains(tenant, &batch).await?;
    let refused = answer.results.iter().zip([spec, twin]).find_map(|(result, spec)| {
        let problem = result.problem.as_ref().filter(|problem| problem.code != "batch_not_applied")?;
        Some((problem.clone(), &spec.hostname))
    });
    match refused {
        Some((problem, hostname)) => {
            Err(Failure::from(ClientError::Problem(Box::new(problem))).about(hostname))
        }
        None => find(client, &spec.hostname, Some(&tenant.to_string())).await,
    }
}

/// Names the command that lets a tenant's origins be where the egress guard refuses them.
pub(crate) fn with_grant(failure: Failure, tenant: &str) -> Failure {
    if failure.problem_code() != Some("origin_denied") {
        return failure;
    }
    failure.next(format!(
        "tenant set {} --egress-grant CIDR:PORT   (with an operator's token)",
        shell_word(tenant)
    ))
}

/// A domain with one action for all paths.
pub(crate) fn spec(hostname: &NamePattern, action: Action, cells: Vec<CellId>, alone: bool) -> DomainSpec {
    let routes = vec![Route::new("/", action)];
    DomainSpec { routes, cells, alone, ..DomainSpec::new(hostname.to_string()) }
}

async fn list(settings: &Settings, client: &Client, args: ListArgs) -> Outcome {
    let tenant = match &args.tenant {
        Some(tenant) => Some(tenant::find(client, tenant).await?.id),
        None => None,
    };
    let query = DomainQuery { tenant, status: args.status, q: args.q, ..DomainQuery::default() };
    let limit = if args.records_out.is_some() { args.limit.or_all() } else { args.limit.of(settings.format) };
    let domains = listed(client, query, limit).await?;
    if let Some(file) = &args.records_out {
        records::write(file, &records::needed(&domains.items))?;
    }
    if settings.format == Format::Json {
        return output::json(&domains.items);
    }
    let mut table = Table::new(&["HOSTNAME", "TENANT", "STATUS", "CERTIFICATE", "EXPIRES", "NEXT"]);
    for domain in &domains.items {
        let certificate = domain.certificates.first();
        table.row([
            domain.hostname_unicode.clone(),
            domain.tenant_name.clone(),
            output::status(domain.status),
            output::or_dash(certificate.map(|certificate| names_text(&certificate.names))),
            output::or_dash(certificate.map(|certificate| output::date(&certificate.not_after))),
            output::or_dash(domain.next_action.as_ref().map(|next| next.text.clone())),
        ]);
    }
    table.print();
    domains.print_more();
    Ok(())
}

/// The domains of a query, at most `limit` (0: all).
pub(crate) async fn listed(
    client: &Client,
    mut query: DomainQuery,
    limit: usize,
) -> Outcome<Listing<Domain>> {
    let page = async |cursor, items| {
        (query.cursor, query.limit) = (cursor, Some(items));
        client.domains(&query).await
    };
    Listing::read(limit, page).await
}

pub(crate) fn show(settings: &Settings, domain: &Domain) -> Outcome {
    if settings.format == Format::Json {
        return output::json(domain);
    }
    let name = output::paint(&domain.hostname_unicode, output::Colour::Bold);
    line(format!("{name}  {}  {}", output::status(domain.status), domain.id));
    output::fact("tenant", &domain.tenant_name);
    for route in &domain.spec.routes {
        let what = format!("{}{}", action_text(&route.action), changes_text(route));
        output::fact(&rule_text(route), &what);
    }
    if domain.spec.routes.is_empty() {
        output::fact("routes", "none: visitors get 404");
    }
    if let Some(text) = policy::https_text(&domain.spec) {
        output::fact("https", &text);
    }
    if let Some(text) = policy::tls_text(&domain.spec) {
        output::fact("TLS", &text);
    }
    if let Some(maintenance) = &domain.spec.maintenance {
        let (text, seconds) = (&maintenance.text, maintenance.retry_after_seconds);
        output::fact("maintenance", &format!("503, come again in {seconds} s: {text}"));
    }
    if let Some(proof) = &domain.proof {
        let (at, method) = (output::time(&proof.proved_at), output::word(&proof.method));
        output::fact("proved", &format!("{at} by {method}: {}", proof.evidence));
    }
    if let Some(suspension) = &domain.suspension {
        output::fact("suspended", &suspension_text(suspension));
    }
    for certificate in &domain.certificates {
        let (names, until) = (names_text(&certificate.names), output::time(&certificate.not_after));
        let (cell, id, key) = (&certificate.cell, certificate.credential_id, key_text(certificate));
        output::fact("cert", &format!("{names} until {until}, {key}, cell {cell}, {id}"));
    }
    print_conditions(domain);
    if let Some(next) = &domain.next_action {
        let actor = match next.actor {
            Actor::Tenant => "the domain's owner",
            Actor::Operator => "the operator",
            Actor::System => "nobody; it goes on by itself",
        };
        output::fact("next", &format!("{} ({actor})", next.text));
        if let Some(at) = &next.retry_at {
            output::fact("", &format!("looked at again at {}", output::time(at)));
        }
        print_records(&next.records);
        if domain.proof.is_none() && next.actor == Actor::Tenant {
            let again = format!("{} domain check {}", crate::invocation(), domain.id);
            output::fact("then", &format!("{again}   (looks at once, not at the next turn)"));
        }
    } else if domain.proof.is_none() {
        print_records(&domain.dns.records);
    }
    Ok(())
}

fn print_conditions(domain: &Domain) {
    let mut table = Table::new(&["CONDITION", "", "SINCE", "WHY"]).indented(2);
    for condition in &domain.conditions {
        let status = match condition.status {
            ConditionStatus::True => output::paint("yes", output::Colour::Green),
            ConditionStatus::False => output::paint("no", output::Colour::Red),
            ConditionStatus::Unknown => "unknown".to_owned(),
        };
        table.row([format!("{:?}", condition.kind), status, output::time(&condition.since), why(condition)]);
    }
    if !table.is_empty() {
        table.print();
    }
}

fn why(condition: &Condition) -> String {
    if condition.message.is_empty() {
        return condition.reason.clone();
    }
    format!("{}: {}", condition.reason, condition.message)
}

fn print_records(records: &[DnsRecord]) {
    let mut table = Table::new(&["DNS RECORD", "TYPE", "VALUE", "FOR"]).indented(2);
    for record in records {
        let purpose = match record.purpose {
            RecordPurpose::ProofAndTraffic => "proof and traffic at once",
            RecordPurpose::Proof => "proof",
            RecordPurpose::Traffic => "traffic",
            RecordPurpose::ChallengeDelegation => "certificates by DNS (wildcards)",
        };
        table.row([record.name.clone(), record.kind.clone(), record.value.clone(), purpose.to_owned()]);
    }
    if !table.is_empty() {
        table.print();
    }
}

fn parse_status(text: &str) -> Result<DomainStatus, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        format!(
            "{text:?} is no status; one of pending, validating, issuing, deploying, active, degraded, failed, \
             left, suspended, deleting"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_redirects_to_the_port_where_the_edges_are() {
        for (name, port, twin_name, to) in [
            ("shop.example", 443, "www.shop.example", "https://shop.example"),
            ("www.shop.example", 18443, "shop.example", "https://www.shop.example:18443"),
        ] {
            let name = NamePattern::parse(name).unwrap();
            let twin = twin(&name, &spec(&name, Action::text("x"), Vec::new(), false), port).unwrap();
            let wanted = Action::redirect(to);
            assert_eq!((twin.hostname.as_str(), &twin.routes[0].action), (twin_name, &wanted));
        }
    }
}
