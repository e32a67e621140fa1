//! Sessions of names that take early data: kept in this process, and given out once.
//!
//! Whoever has recorded a client's first flight can send it again (RFC 8446 section 8). So a session is resumed at most once
//! (section 8.1): the handshake that names it takes it out in one step, whichever worker it is on. The second copy of a
//! flight finds nothing, becomes a full handshake that its sender cannot end, and its early data is dropped unread. No other
//! edge and no successor of this process knows the session either. What this leaves is a client that sends a request again
//! itself, since it cannot know whether the first one arrived: hence safe methods alone.
//!
//! Early data comes before its sender has shown that its address is its own. So a session counts for the address alone that
//! it was made with: nobody asks in somebody else's name, in an origin's log or under its limits. A client that has moved does
//! a full handshake.
//!
//! Bounded by shards: a domain has its sessions in one of them, and one that fills it costs few others their resumption. No
//! handshake waits for a shard: whoever meets another there does a full handshake, or gets a ticket less.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use portico_cert_store::DomainId;
use rustls::server::StoresServerSessions;
use zeroize::Zeroizing;

use super::TICKET_KEY_SECONDS;
use crate::{clock, limits};

/// How long a session can be resumed: as long as a ticket.
const LIFE: Duration = Duration::from_secs(2 * TICKET_KEY_SECONDS as u64);

/// All sessions of a process.
pub(super) struct Sessions {
    shards: Box<[Mutex<Shard>]>,
    random: RandomState,
}

#[derive(Default)]
struct Shard {
    kept: HashMap<Vec<u8>, Kept, RandomState>,
    /// By age; what was taken out is still named here for a while.
    order: VecDeque<Vec<u8>>,
}

struct Kept {
    domain: DomainId,
    client: IpAddr,
    since: Instant,
    session: Zeroizing<Vec<u8>>,
}

/// The sessions of one domain that were made with one client's address, as rustls asks for them.
pub(crate) struct SessionsOf {
    pub(super) domain: DomainId,
    pub(super) client: IpAddr,
    pub(super) sessions: Arc<Sessions>,
}

impl Default for Sessions {
    fn default() -> Self {
        let shards = (0..limits::SESSION_SHARDS).map(|_| Mutex::default());
        Self { shards: shards.collect(), random: RandomState::default() }
    }
}

impl Sessions {
    fn put(&self, (domain, client): (DomainId, IpAddr), name: Vec<u8>, session: Vec<u8>) -> bool {
        let session = Zeroizing::new(session);
        if session.len() > limits::SESSION_BYTES_MAX {
            return false;
        }
        let since = clock::now();
        let Some(mut shard) = self.shard(domain) else { return false };
        shard.forget(since);
        shard.order.push_back(name.clone());
        shard.kept.insert(name, Kept { domain, client, since, session });
        true
    }

    /// A session that was not taken yet, is young enough, the domain's own, and this client's.
    fn take(&self, (domain, client): (DomainId, IpAddr), name: &[u8]) -> Option<Vec<u8>> {
        let mut shard = self.shard(domain)?;
        let kept = shard.kept.get(name)?;
        if (kept.domain, kept.client) != (domain, client) {
            return None;
        }
        let kept = shard.kept.remove(name)?;
        (clock::now().duration_since(kept.since) < LIFE).then(|| kept.session.to_vec())
    }

    /// None where another worker is at it just now.
    fn shard(&self, domain: DomainId) -> Option<MutexGuard<'_, Shard>> {
        let count = self.shards.len() as u64;
        let index = usize::try_from(self.random.hash_one(domain) % count).unwrap_or_default();
        match self.shards[index].try_lock() {
            Ok(shard) => Some(shard),
            Err(TryLockError::Poisoned(shard)) => Some(shard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Shard {
    /// Makes room for one more: what is too old goes, and then the oldest.
    fn forget(&mut self, now: Instant) {
        while let Some(name) = self.order.front() {
            let kept = self.kept.get(name);
            let is_old = kept.is_none_or(|kept| now.duration_since(kept.since) >= LIFE);
            if !is_old && self.kept.len() < limits::SESSIONS_PER_SHARD_MAX {
                break;
            }
            self.kept.remove(name);
            self.order.pop_front();
        }
        // Names of what was taken out of the middle.
        if self.order.len() >= 2 * limits::SESSIONS_PER_SHARD_MAX {
            self.order.retain(|name| self.kept.contains_key(name));
        }
    }
}

impl StoresServerSessions for SessionsOf {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.sessions.put((self.domain, self.client), key, value)
    }

    /// Only TLS 1.2 asks so; a session that stayed could be used twice.
    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.sessions.take((self.domain, self.client), key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for SessionsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionsOf").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_given_out_once_and_to_its_own_domain_and_address() {
        let sessions = Sessions::default();
        let client = IpAddr::from([192, 0, 2, 1]);
        let own = (DomainId::generate(), client);
        assert!(sessions.put(own, vec![1; 32], vec![7; 200]));
        assert_eq!(sessions.take((DomainId::generate(), client), &[1; 32]), None);
        assert_eq!(sessions.take((own.0, IpAddr::from([192, 0, 2, 2])), &[1; 32]), None, "another address");
        assert_eq!(sessions.take(own, &[2; 32]), None);
        assert_eq!(sessions.take(own, &[1; 32]), Some(vec![7; 200]));
        assert_eq!(sessions.take(own, &[1; 32]), None, "a second time");
    }

    /// Given and taken in another thread, which would never end if it waited.
    #[test]
    fn a_handshake_that_meets_another_does_without() {
        let sessions = Arc::new(Sessions::default());
        let own = (DomainId::generate(), IpAddr::from([192, 0, 2, 1]));
        assert!(sessions.put(own, vec![1; 32], vec![7; 200]));
        let other = sessions.shard(own.0);
        let (told, ended) = std::sync::mpsc::channel();
        let handshake = Arc::clone(&sessions);
        std::thread::spawn(move || {
            let taken = handshake.take(own, &[1; 32]);
            let _ = told.send((taken, handshake.put(own, vec![2; 32], vec![8; 200])));
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(10)), Ok((None, false)));
        drop(other);
        assert_eq!(sessions.take(own, &[1; 32]), Some(vec![7; 200]), "it is still there");
    }

    #[test]
    fn of_many_copies_at_once_one_is_taken() {
        let sessions = Sessions::default();
        let own = (DomainId::generate(), IpAddr::from([192, 0, 2, 1]));
        for round in 0..200_u8 {
            assert!(sessions.put(own, vec![round; 32], vec![round]));
            let taken: usize = std::thread::scope(|scope| {
                let copies = [(); 4].map(|()| scope.spawn(|| sessions.take(own, &[round; 32]).is_some()));
                copies.into_iter().map(|copy| usize::from(copy.join().unwrap())).sum()
            });
            assert_eq!(taken, 1);
        }
    }

    #[test]
    fn the_oldest_goes_and_what_was_taken_leaves_no_trace() {
        let sessions = Sessions::default();
        let own = (DomainId::generate(), IpAddr::from([192, 0, 2, 1]));
        let name = |number: usize| number.to_be_bytes().to_vec();
        for number in 0..=limits::SESSIONS_PER_SHARD_MAX {
            assert!(sessions.put(own, name(number), vec![1]));
        }
        assert_eq!(sessions.take(own, &name(0)), None);
        assert!(sessions.take(own, &name(1)).is_some());
        for number in 0..5 * limits::SESSIONS_PER_SHARD_MAX {
            assert!(sessions.put(own, name(usize::MAX - number), vec![1]));
            assert!(sessions.take(own, &name(usize::MAX - number)).is_some());
            let shard = sessions.shard(own.0).unwrap();
            assert!(shard.kept.len() <= limits::SESSIONS_PER_SHARD_MAX);
            assert!(shard.order.len() <= 2 * limits::SESSIONS_PER_SHARD_MAX);
        }
        assert!(!sessions.put(own, vec![1], vec![0; limits::SESSION_BYTES_MAX + 1]), "too large");
        assert_eq!(sessions.shards.len(), limits::SESSION_SHARDS);
    }
}
