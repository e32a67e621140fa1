//! Long polls under way, bounded: each of them looks at the store ten times a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;

use super::fault::{Answered, Fault};

/// Of one token.
const PER_TOKEN_MAX: usize = 64;
/// Of all tokens together.
const ALL_MAX: usize = 512;

/// Who waits for how much. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(Arc<Mutex<HashMap<String, usize>>>);

/// A long poll under way; dropped, it is over.
#[derive(Debug)]
pub(crate) struct Wait {
    waits: Waits,
    token: String,
}

impl Waits {
    /// Takes a place for one long poll.
    ///
    /// # Errors
    /// 429 when this token, or all of them together, have as many as there may be.
    pub(crate) fn begin(&self, token: &str) -> Answered<Wait> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = waiting.values().sum();
        let own = waiting.get(token).copied().unwrap_or_default();
        if own >= PER_TOKEN_MAX || all >= ALL_MAX {
            let detail = format!(
                "{own} calls of this token wait already, {all} of all tokens; ask without `wait`, or for several domains \
                 at once by GET /v1/domains?ids="
            );
            return Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_waits", detail).retry_after(1));
        }
        *waiting.entry(token.to_owned()).or_default() += 1;
        Ok(Wait { waits: self.clone(), token: token.to_owned() })
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = self.waits.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = waiting.get_mut(&self.token) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_cannot_take_every_place_and_places_come_back() {
        let waits = Waits::default();
        let own: Vec<Wait> = (0..PER_TOKEN_MAX).map(|_| waits.begin("one").unwrap()).collect();
        assert_eq!(waits.begin("one").unwrap_err().code, "too_many_waits");
        let others: Vec<Wait> = (PER_TOKEN_MAX..ALL_MAX)
            .map(|number| waits.begin(&format!("token {}", number / PER_TOKEN_MAX)).unwrap())
            .collect();
        assert_eq!(waits.begin("late").unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        drop(own);
        drop(waits.begin("one").unwrap());
        drop(others);
        assert!(waits.0.lock().unwrap().is_empty(), "nothing is kept of those who do not wait");
    }
}
