//! `/v1/cells`: where the keys of cells are made.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use portico_api::v1::{Cell, CellCustody, CellRequest, Page};
use portico_cert_store::{CellId, Custody};

use super::call::OperatorCall;
use super::fault::{Answered, Fault};
use super::json_body::JsonBody;
use super::write::{Answer, Begun, Write};
use crate::app::App;
use crate::store::edge_key::CellRow;
use crate::store::{Connection, cell, edge_key};

/// Lists the cells, which come to be with their first join token or custody.
#[utoipa::path(get, path = "/v1/cells", tag = "edges", responses((status = 200, body = Page<Cell>)))]
pub(super) async fn list(State(app): State<App>, _call: OperatorCall) -> Answered<axum::Json<Page<Cell>>> {
    let rows = edge_key::cells(&mut *app.parts.store.read().await?).await?;
    Ok(axum::Json(Page { items: rows.iter().map(shown).collect(), next_cursor: None }))
}

/// Shows a cell.
#[utoipa::path(get, path = "/v1/cells/{cell}", tag = "edges", params(("cell" = String, Path)),
    responses((status = 200, body = Cell), (status = 404)))]
pub(super) async fn show(
    State(app): State<App>,
    _call: OperatorCall,
    Path(id): Path<String>,
) -> Answered<axum::Json<Cell>> {
    let id = CellId::parse(&id).map_err(|_| missing())?;
    Ok(axum::Json(find(&mut *app.parts.store.read().await?, &id).await?.ok_or_else(missing)?))
}

/// Says where the keys of a cell's certificates are made from now on; the cell comes to be when it is first named. With `edge` the
/// one edge of the cell makes them and keeps them, and no second one can join it. Certificates that are in use keep their keys until
/// they are renewed or rekeyed. 409 `several_edges` for a cell that has more than one.
#[utoipa::path(put, path = "/v1/cells/{cell}", tag = "edges", params(("cell" = String, Path)), request_body = CellRequest,
    responses((status = 200, body = Cell), (status = 404), (status = 409), (status = 422)))]
pub(super) async fn put(
    State(app): State<App>,
    OperatorCall(call): OperatorCall,
    Path(id): Path<String>,
    body: JsonBody<CellRequest>,
) -> Answered<Response> {
    let id = CellId::parse(&id)
        .map_err(|e| Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "cell_name_invalid", e.to_string()))?;
    let CellRequest { custody } = body.value;
    let mut write = match Write::begin(&app, &call, &body.raw).await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Fresh(write) => write,
    };
    let edges = edge_key::edges(&mut write.tx, &id).await?;
    if custody == CellCustody::Edge && edges > 1 {
        let text = format!(
            "cell {id} has {edges} edges, and a key that stays on one of them could not serve on the others; take all but one \
             out (`portico edge rm`), or use a cell of its own for that edge"
        );
        return Err(Fault::conflict("several_edges", text));
    }
    cell::ensure(&mut write.tx, &app.parts.sealer, &id, write.now_ms).await?;
    let before = find(&mut write.tx, &id).await?.ok_or_else(missing)?;
    if before.custody != custody {
        let stored = match custody {
            CellCustody::Cell => Custody::Cell,
            CellCustody::Edge => Custody::Edge,
        };
        edge_key::set_custody(&mut write.tx, &id, stored).await?;
        write.audit("cell.custody", id.as_str(), &before.custody, &custody).await?;
    }
    let after = find(&mut write.tx, &id).await?.ok_or_else(missing)?;
    write.finish(Answer::json(StatusCode::OK, &after)).await
}

async fn find(connection: &mut Connection, id: &CellId) -> Answered<Option<Cell>> {
    Ok(edge_key::cells(connection).await?.iter().find(|row| row.id == *id).map(shown))
}

fn shown(row: &CellRow) -> Cell {
    let CellRow { id, edges, certificates, keys_on_edge, .. } = row.clone();
    let (custody, of_before) = match row.custody {
        Custody::Edge => (CellCustody::Edge, certificates.saturating_sub(keys_on_edge)),
        Custody::Cell | Custody::Uploaded => (CellCustody::Cell, keys_on_edge),
    };
    let remark = (of_before > 0).then(|| {
        let place = if custody == CellCustody::Edge { "in the control plane" } else { "on the cell's edge" };
        format!(
            "{of_before} certificates in use have keys that were made {place}; each gets its next key where the cell says when it is \
             renewed, or now with `portico cell rekey {id}`"
        )
    });
    Cell { id, custody, edges, certificates, keys_on_edge, remark }
}

fn missing() -> Fault {
    Fault::not_found("cell")
}
