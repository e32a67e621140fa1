//! Connection ids that say whose they are: eight bytes, the first of them the worker's index modulo the number of workers,
//! else random (RFC 9000 section 5.1 wants them unlinkable; a worker's index links nothing that its address does not).

use std::time::Duration;

use quinn::ConnectionIdGenerator;
use quinn_proto::{ConnectionId, InvalidCid};

const BYTES: usize = 8;

#[derive(Debug)]
pub(super) struct WorkerIds {
    index: usize,
    workers: usize,
}

impl WorkerIds {
    /// For worker `index` of `workers`, of which there are at most 256.
    pub(super) fn new(index: usize, workers: usize) -> Self {
        Self { index, workers: workers.max(1) }
    }

    /// The byte nearest to `random` that stands for this worker.
    fn mark(&self, random: u8) -> u8 {
        let rounds = (256 - self.index).div_ceil(self.workers);
        let marked = usize::from(random) % rounds * self.workers + self.index;
        u8::try_from(marked).expect("rounds are counted so that the mark stays below 256")
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; BYTES];
        // Without randomness the ids still route; quinn itself refuses to run without it.
        let _filled = aws_lc_rs::rand::fill(&mut id);
        id[0] = self.mark(id[0]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let own = id.first().is_some_and(|first| usize::from(*first) % self.workers == self.index);
        if own { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_names_its_worker_whatever_their_number() {
        for workers in 1..=256 {
            for index in 0..workers {
                let ids = WorkerIds::new(index, workers);
                assert!((0..=255).all(|random| usize::from(ids.mark(random)) % workers == index));
            }
        }
        let mut ids = WorkerIds::new(2, 3);
        let id = ids.generate_cid();
        assert!(ids.validate(&id).is_ok());
        assert!(WorkerIds::new(1, 3).validate(&id).is_err());
        assert_ne!(id, ids.generate_cid());
    }
}
