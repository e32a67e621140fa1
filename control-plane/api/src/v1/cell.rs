//! Cells: edges that share their keys, or one edge that keeps its own.

use portico_cert_store::CellId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the keys of a cell's certificates are made from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CellCustody {
    /// In the control plane, sealed for the edges of the cell.
    Cell,
    /// On the one edge of the cell, which they never leave.
    Edge,
}

/// Body of `PUT /v1/cells/{cell}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CellRequest {
    pub custody: CellCustody,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Cell {
    #[schema(value_type = String)]
    pub id: CellId,
    pub custody: CellCustody,
    /// That have joined. No second one joins a cell whose keys are on its edge.
    pub edges: u32,
    /// Certificates in use that were issued here.
    pub certificates: u64,
    /// Of them, those whose keys are on the cell's edge alone.
    pub keys_on_edge: u64,
    /// What to know of certificates that are older than the cell's custody: their keys stay where they are until they are renewed or
    /// rekeyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}
