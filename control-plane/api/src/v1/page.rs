//! Lists: a page of items and the cursor of the next one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most items that one page holds.
pub const PAGE_ITEMS_MAX: u32 = 1000;

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Opaque; give it back as `cursor` to go on. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
