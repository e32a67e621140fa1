//! `portico backup-cert`: what stands by, the drill, the switch and the way back.

use portico_api::v1::client::Client;
use portico_api::v1::{
    BackupDrill, BackupDrillRequest, BackupScope, BackupSwitch, DrilledEdge, WithoutBackup,
};
use portico_cert_store::GroupId;

use crate::commands::cert::names_text;
use crate::commands::tenant;
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

/// Certificates without a backup, and an edge's faults, that are printed.
const PRINTED_MAX: usize = 20;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum BackupCertCommand {
    /// List them: what stands by, what is shown, and what is wanted and not there
    List {
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Have every edge try, in memory, whether it would show each name's backup; nothing changes for visitors
    Drill(ScopeArgs),
    /// Show backups instead of what serves; what serves is renewed all the while
    Switch(OneScopeArgs),
    /// Show again what served before
    SwitchBack(OneScopeArgs),
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct ScopeArgs {
    /// Of this group alone: its id, as the list shows it, and `plan`
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupId>,
    /// Of this tenant's own groups: its name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Of all that this issuer has issued and that serves
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false, required = true)]
pub(crate) struct OneScopeArgs {
    /// Of this group alone: its id, as the list shows it, and `plan`
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupId>,
    /// Of this tenant's own groups: its name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Of all that this issuer has issued and that serves
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
}

pub(crate) async fn run(settings: &Settings, command: BackupCertCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        BackupCertCommand::List { scope, limit } => list(settings, &client, scope, limit).await,
        BackupCertCommand::Drill(args) => drill(settings, &client, args).await,
        BackupCertCommand::Switch(args) => {
            let scope = args.any().scope(&client).await?;
            let answer = client.switch_to_backup(&scope).await?;
            switched(settings, &answer, "shown", "were shown before")
        }
        BackupCertCommand::SwitchBack(args) => {
            let scope = args.any().scope(&client).await?;
            let answer = client.switch_back(&scope).await?;
            switched(settings, &answer, "shown no longer, and stand by", "stood by before")
        }
    }
}

impl OneScopeArgs {
    fn any(self) -> ScopeArgs {
        let Self { group, tenant, issuer } = self;
        ScopeArgs { group, tenant, issuer }
    }
}

impl ScopeArgs {
    async fn scope(self, client: &Client) -> Outcome<BackupScope> {
        let tenant = match &self.tenant {
            Some(tenant) => Some(tenant::find(client, tenant).await?.id),
            None => None,
        };
        Ok(BackupScope { group: self.group, tenant, issuer: self.issuer })
    }
}

async fn list(settings: &Settings, client: &Client, scope: ScopeArgs, limit: LimitArgs) -> Outcome {
    let scope = scope.scope(client).await?;
    let backups = Listing::read(limit.of(settings.format), async |cursor, items| {
        client.backups(&scope, cursor.as_deref(), Some(items)).await
    });
    let backups = backups.await?;
    if settings.format == Format::Json {
        return output::json(&backups.items);
    }
    let mut table = Table::new(&["NAMES", "STATE", "BACKUP", "EXPIRES", "SERVES", "CELL", "GROUP"]);
    for backup in &backups.items {
        table.row([
            names_text(&backup.hostnames),
            output::word(&backup.state),
            output::or_dash(backup.issuer.clone()),
            output::or_dash(backup.not_after.as_deref().map(output::date)),
            output::or_dash(backup.serving_issuer.clone()),
            backup.cell_id.to_string(),
            backup.group_id.to_string(),
        ]);
    }
    table.print();
    for backup in &backups.items {
        if let Some(error) = &backup.error {
            line(format!("{}: {error}", names_text(&backup.hostnames)));
        }
    }
    backups.print_more();
    Ok(())
}

fn switched(settings: &Settings, answer: &BackupSwitch, now: &str, before: &str) -> Outcome {
    if settings.format == Format::Json {
        output::json(answer)?;
    } else {
        line(format!("backup certificates {now}: {}; {} {before}", answer.switched, answer.unchanged));
        if answer.without_backup > 0 {
            line(format!(
                "hostnames without a backup, shown as before: {} (counted in each cell)",
                answer.without_backup
            ));
            print_without(&answer.without);
        }
        if answer.switched > 0 {
            line(format!("edges that have applied it: {}", answer.applied.len()));
        }
        for edge in &answer.behind {
            line(format!("not yet applied: {edge}; it follows as soon as it is told"));
        }
    }
    if answer.switched + answer.unchanged > 0 {
        return Ok(());
    }
    Err(Failure::failed("nothing was switched: there is no backup certificate of these")
        .next("backup-cert list"))
}

fn print_without(some: &[WithoutBackup]) {
    for one in some.iter().take(PRINTED_MAX) {
        line(format!("  {} in cell {}, group {}", names_text(&one.hostnames), one.cell_id, one.group_id));
    }
}

async fn drill(settings: &Settings, client: &Client, args: ScopeArgs) -> Outcome {
    let scope = args.scope(client).await?;
    let scope = (scope != BackupScope::default()).then_some(scope);
    let mut request = BackupDrillRequest { scope, cursor: None };
    let mut drill = client.drill_backups(&request).await?;
    while let Some(cursor) = drill.next_cursor.take() {
        request.cursor = Some(cursor);
        add(&mut drill, client.drill_backups(&request).await?);
    }
    if settings.format == Format::Json {
        output::json(&drill)?;
    } else {
        print(&drill);
    }
    if drill.passed {
        return Ok(());
    }
    let why = if drill.certificates == 0 {
        "the drill has not passed: there is no backup certificate to try"
    } else if drill.edges.is_empty() {
        "the drill has not passed: no edge was there to try it"
    } else {
        "the drill has not passed: not every name would be shown its backup"
    };
    Err(Failure::failed(why).next("backup-cert list"))
}

/// The next part of a large drill.
fn add(drill: &mut BackupDrill, part: BackupDrill) {
    drill.passed &= part.passed;
    drill.certificates += part.certificates;
    drill.names += part.names;
    drill.next_cursor = part.next_cursor;
    for edge in part.edges {
        match drill.edges.iter_mut().find(|known| known.edge_id == edge.edge_id) {
            None => drill.edges.push(edge),
            Some(known) => {
                known.passed &= edge.passed;
                known.faulty += edge.faulty;
                known.error = known.error.take().or(edge.error);
                known.faults.extend(edge.faults);
            }
        }
    }
}

fn print(drill: &BackupDrill) {
    line(format!(
        "tried {} backup certificates with {} hostnames, at {} edges",
        drill.certificates,
        drill.names,
        drill.edges.len()
    ));
    if drill.without_backup > 0 {
        line(format!("hostnames that are to have one and have none: {}", drill.without_backup));
        print_without(&drill.without);
    }
    if drill.edges.is_empty() {
        return;
    }
    let mut table = Table::new(&["EDGE", "CELL", "PASSED", "FAULTY NAMES", "WHY NOT"]);
    for edge in &drill.edges {
        table.row([
            edge.edge_id.to_string(),
            edge.cell_id.to_string(),
            if edge.passed { "yes" } else { "no" }.to_owned(),
            edge.faulty.to_string(),
            output::or_dash(why_not(edge)),
        ]);
    }
    table.print();
    for edge in &drill.edges {
        for fault in edge.faults.iter().take(PRINTED_MAX) {
            line(format!("{} at {}: {}: {}", fault.hostname, edge.edge_id, fault.code, fault.text));
        }
    }
}

fn why_not(edge: &DrilledEdge) -> Option<String> {
    edge.error.clone().or_else(|| edge.faults.first().map(|fault| fault.code.clone()))
}
