//! `portico cell list|show|custody|rekey`: edges that share their keys, and edges that keep their own.

use portico_api::v1::client::ClientError;
use portico_api::v1::{Cell, CellCustody, CellRequest};
use portico_cert_store::CellId;

use crate::commands::rekey::{self, RekeyArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CellCommand {
    /// List the cells with where their keys are made
    List,
    /// Show one cell
    Show {
        /// The cell's name
        cell: CellId,
    },
    /// Say where the keys of a cell are made from now on, before or after its edge has joined
    Custody {
        /// The cell's name
        cell: CellId,
        /// Made by the control plane for all edges of the cell, or by its one edge, which they never leave
        custody: Place,
    },
    /// Replace all keys that the edges of a cell can read, the cell's own data key among them
    Rekey {
        /// The cell's name
        cell: CellId,
        #[command(flatten)]
        args: RekeyArgs,
    },
}

/// Where keys are made.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Place {
    Cell,
    Edge,
}

pub(crate) async fn run(settings: &Settings, command: CellCommand) -> Outcome {
    match command {
        CellCommand::List => list(settings).await,
        CellCommand::Show { cell } => {
            let found = settings.client()?.cell(&cell).await;
            show(settings, &found.map_err(|error| not_found(error, &cell))?)
        }
        CellCommand::Custody { cell, custody } => {
            let custody = match custody {
                Place::Cell => CellCustody::Cell,
                Place::Edge => CellCustody::Edge,
            };
            show(settings, &settings.client()?.put_cell(&cell, &CellRequest { custody }).await?)
        }
        CellCommand::Rekey { cell, args } => rekey::cell(settings, cell, args).await,
    }
}

fn not_found(error: ClientError, cell: &CellId) -> Failure {
    Failure::from(error).about(format!("cell {cell}")).next("cell list")
}

async fn list(settings: &Settings) -> Outcome {
    let cells = settings.client()?.cells().await?.items;
    if settings.format == Format::Json {
        return output::json(&cells);
    }
    let mut table = Table::new(&["CELL", "KEYS", "EDGES", "CERTIFICATES", "KEYS ON THE EDGE"]);
    for cell in &cells {
        table.row([
            cell.id.to_string(),
            place(cell).to_owned(),
            cell.edges.to_string(),
            cell.certificates.to_string(),
            cell.keys_on_edge.to_string(),
        ]);
    }
    table.print();
    Ok(())
}

fn place(cell: &Cell) -> &'static str {
    match cell.custody {
        CellCustody::Cell => "shared",
        CellCustody::Edge => "kept by its edge",
    }
}

fn show(settings: &Settings, cell: &Cell) -> Outcome {
    if settings.format == Format::Json {
        return output::json(cell);
    }
    line(format!("{}  keys {}", cell.id, place(cell)));
    line(format!("  edges        {}", cell.edges));
    line(format!(
        "  certificates {}, of them {} with keys on the edge alone",
        cell.certificates, cell.keys_on_edge
    ));
    if let Some(remark) = &cell.remark {
        line(format!("  note         {remark}"));
    }
    Ok(())
}
