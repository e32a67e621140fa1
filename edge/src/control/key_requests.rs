//! What is asked of this edge's own keys: one after the other, on a thread for disks, for a key is written and synced.

use std::collections::VecDeque;
use std::future::pending;

use portico_api::distribution::{KeyRequest, UrgentAck};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{OwnKeys, limits, urgent};
use crate::live::Fault;

/// Of one stream; what is left when it ends is asked for again.
#[derive(Debug)]
pub(super) struct KeyRequests {
    own: OwnKeys,
    waiting: VecDeque<(u64, KeyRequest)>,
    under_way: Option<(u64, JoinHandle<Made>)>,
}

/// A request for a certificate (PKCS#10, DER).
type Made = Result<Vec<u8>, Fault>;

impl KeyRequests {
    pub(super) fn new(own: OwnKeys) -> Self {
        Self { own, waiting: VecDeque::new(), under_way: None }
    }

    /// Takes the request of an urgent message's number; gives an ack back if too many wait.
    pub(super) fn take(&mut self, sequence: u64, wanted: KeyRequest) -> Option<UrgentAck> {
        if self.waiting.len() >= limits::KEY_REQUESTS_WAITING_MAX {
            let text = format!("{} requests for keys wait; ask again later", self.waiting.len());
            return Some(urgent::refused(sequence, Fault::new("TooManyKeyRequests", text)));
        }
        self.waiting.push_back((sequence, wanted));
        self.begin();
        None
    }

    /// The next answer; never, while nothing is asked for.
    pub(super) async fn next(&mut self) -> UrgentAck {
        let Some((sequence, work)) = &mut self.under_way else { return pending().await };
        let (sequence, made) = (*sequence, work.await);
        self.under_way = None;
        self.begin();
        match made.unwrap_or_else(|error| Err(Fault::new("KeyNotMade", error.to_string()))) {
            Ok(request) => {
                UrgentAck { sequence, certificate_request: request.into(), ..UrgentAck::default() }
            }
            Err(fault) => urgent::refused(sequence, fault),
        }
    }

    fn begin(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        if let Some((sequence, wanted)) = self.waiting.pop_front() {
            let own = self.own.clone();
            self.under_way = Some((sequence, spawn_blocking(move || own.request(&wanted))));
        }
    }
}

#[cfg(test)]
mod tests {
    use portico_cert_store::{CellId, CellKeys};

    use super::*;

    #[tokio::test]
    async fn so_many_wait_and_each_is_answered_in_its_turn() {
        let folder = tempfile::tempdir().expect("a folder");
        let cell = CellId::parse("cell-a").expect("a cell's name");
        let own =
            OwnKeys::open(&folder.path().join("keys"), &cell, &CellKeys::new()).expect("a private folder");
        let mut requests = KeyRequests::new(own);
        // One is under way beside those that wait.
        let most = limits::KEY_REQUESTS_WAITING_MAX as u64 + 1;
        assert!((0..most).all(|sequence| requests.take(sequence, KeyRequest::default()).is_none()));
        let refused = requests.take(most, KeyRequest::default()).expect("one too many");
        assert_eq!((refused.sequence, refused.error_code.as_str()), (most, "TooManyKeyRequests"));
        for sequence in 0..most {
            let ack = requests.next().await;
            assert_eq!((ack.sequence, ack.error_code.as_str()), (sequence, "BadKeyRequest"));
        }
        assert!(requests.take(most, KeyRequest::default()).is_none());
        assert_eq!(requests.next().await.sequence, most);
    }
}
