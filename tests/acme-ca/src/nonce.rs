//! Replay nonces (RFC 8555 section 6.5): random, each good for one request.
//!
//! The pool is bounded; when it is full the oldest nonce is forgotten, as a real CA forgets them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::token::random_token;

/// Nonces handed out and not yet used.
#[derive(Debug, Default)]
pub(crate) struct NoncePool {
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    open: HashSet<String>,
    oldest_first: VecDeque<String>,
}

/// Nonces kept: about 10 MB at the most.
const NONCES_MAX: usize = 65_536;

impl NoncePool {
    /// A fresh nonce of 128 bits.
    pub(crate) fn issue(&self) -> String {
        let nonce = random_token(16);
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        while pool.oldest_first.len() >= NONCES_MAX {
            if let Some(oldest) = pool.oldest_first.pop_front() {
                pool.open.remove(&oldest);
            }
        }
        pool.open.insert(nonce.clone());
        pool.oldest_first.push_back(nonce.clone());
        nonce
    }

    /// Uses a nonce up; false when it was never issued, used before or forgotten.
    pub(crate) fn spend(&self, nonce: &str) -> bool {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).open.remove(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_and_the_pool_is_bounded() {
        let nonces = NoncePool::default();
        let first = nonces.issue();
        assert!(nonces.spend(&first));
        assert!(!nonces.spend(&first));
        let forgotten = nonces.issue();
        for _ in 0..NONCES_MAX {
            nonces.issue();
        }
        assert!(!nonces.spend(&forgotten));
        assert!(nonces.pool.lock().unwrap().open.len() <= NONCES_MAX);
    }
}
