//! Pages: bounded limits and opaque cursors.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use portico_api::v1::PAGE_ITEMS_MAX;

use super::fault::{Answered, Fault};

const LIMIT_DEFAULT: u32 = 100;

/// The page size asked for, 1 to [`PAGE_ITEMS_MAX`].
///
/// # Errors
/// 400 for 0 and for more.
pub(crate) fn limit(wanted: Option<u32>) -> Answered<u32> {
    let limit = wanted.unwrap_or(LIMIT_DEFAULT);
    if (1..=PAGE_ITEMS_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(Fault::bad_request("limit_invalid", format!("limit must be from 1 to {PAGE_ITEMS_MAX}")))
}

/// The cursor that goes on after the item with this key.
pub(crate) fn cursor_after(key: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(format!("1{key}"))
}

/// The key after which a cursor goes on; the beginning without a cursor.
///
/// # Errors
/// 400 for what [`cursor_after`] never made.
pub(crate) fn read_cursor(cursor: Option<&str>) -> Answered<String> {
    let Some(cursor) = cursor else { return Ok(String::new()) };
    let key = BASE64_URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix('1').map(str::to_owned));
    key.ok_or_else(|| {
        Fault::bad_request(
            "cursor_invalid",
            "give back next_cursor of the page before, or no cursor to begin",
        )
    })
}
