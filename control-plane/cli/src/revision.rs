//! Changes that are made to the newest revision of an object.

use crate::failure::Outcome;

/// Reads and writes again while somebody's change comes in between (412): a check alone raises a domain's revision.
///
/// # Errors
/// That of the last attempt.
pub(crate) async fn on_newest<T>(mut attempt: impl AsyncFnMut() -> Outcome<T>) -> Outcome<T> {
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match attempt().await {
            Err(failure) if failure.status() == Some(412) => {}
            ended => return ended,
        }
    }
    attempt().await
}
