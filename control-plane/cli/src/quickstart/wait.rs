//! Waiting for a condition with a deadline.

use std::time::Duration;

use crate::clock;

const POLL: Duration = Duration::from_millis(10);

/// Asks until there is an answer; `None` when the deadline has passed.
pub(super) async fn until<T>(deadline: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = clock::now() + deadline;
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if clock::now() >= end {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}
