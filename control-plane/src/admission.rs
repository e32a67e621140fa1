//! Connections of strangers: who may reach a port without being known holds a place among few, and for a while only.
//!
//! Nobody waits for a place. Where one address (an IPv4 address, or the /64 that an IPv6 network gives to one customer) has all that
//! it may have, its oldest connection goes; where all are taken, the oldest one of the address that has most. So whoever opens many
//! and says nothing loses their own, and one that does in a moment what it came for is done before its turn to go.
//!
//! A place is free again when its [`Stranger`] is dropped: at the end of the connection, or as soon as it is known whose it is.
//! Deliberately absent: deadlines (each protocol knows its own), and a rate.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{clock, metrics};

/// After an error of accept: out of descriptors it would come again at once, and again, with a core for itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines of the log about such errors.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// How many connections of strangers stand at one listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) in_all: usize,
    pub(crate) of_address: usize,
}

/// A listener for strangers.
#[derive(Debug)]
pub(crate) struct Admission {
    listener: TcpListener,
    /// In metrics and the log.
    name: &'static str,
    bounds: Bounds,
    standing: Arc<Mutex<Standing>>,
    silent_until: Option<Instant>,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Stranger {
    id: u64,
    pushed_out: CancellationToken,
    standing: Arc<Mutex<Standing>>,
}

/// All that stand at a listener.
#[derive(Debug, Default)]
struct Standing {
    next_id: u64,
    /// The oldest first.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    id: u64,
    network: IpAddr,
    pushed_out: CancellationToken,
}

impl Admission {
    pub(crate) fn new(listener: TcpListener, name: &'static str, bounds: Bounds) -> Self {
        Self { listener, name, bounds, standing: Arc::default(), silent_until: None }
    }

    /// The next connection, with its place; the caller ends it when [`Stranger::pushed_out`] says so. May be cancelled at any time.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr, Stranger) {
        // Those that were pushed out go before the next one is taken, also on a runtime of one thread.
        tokio::task::yield_now().await;
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (stream, from, self.admit(from.ip())),
                Err(error) => {
                    self.tell(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, address: IpAddr) -> Stranger {
        let (id, pushed_out, gone) = lock(&self.standing).admit(network_of(address), self.bounds);
        if let Some(gone) = gone {
            gone.cancel();
            metrics::stranger_pushed_out(self.name);
        }
        Stranger { id, pushed_out, standing: self.standing.clone() }
    }

    /// A flood must not be one of the log, too.
    fn tell(&mut self, error: &std::io::Error) {
        let now = clock::instant();
        if self.silent_until.is_none_or(|until| until <= now) {
            self.silent_until = Some(now + LOG_PAUSE);
            tracing::warn!(
                error = error as &dyn std::error::Error,
                listener = self.name,
                "cannot accept a connection; where too many files are open, raise LimitNOFILE"
            );
        }
    }
}

impl Stranger {
    /// Resolves when another connection has taken the place.
    pub(crate) fn pushed_out(&self) -> WaitForCancellationFutureOwned {
        self.pushed_out.clone().cancelled_owned()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        lock(&self.standing).places.retain(|place| place.id != self.id);
    }
}

impl Standing {
    /// The new place, and whose it was if it had to be taken from another.
    fn admit(
        &mut self,
        network: IpAddr,
        bounds: Bounds,
    ) -> (u64, CancellationToken, Option<CancellationToken>) {
        let of_network = self.places.iter().filter(|place| place.network == network).count();
        let from = if of_network >= bounds.of_address {
            Some(network)
        } else if self.places.len() >= bounds.in_all {
            self.largest()
        } else {
            None
        };
        let oldest = from.and_then(|from| self.places.iter().position(|place| place.network == from));
        let gone = oldest.map(|at| self.places.remove(at).pushed_out);
        let (id, pushed_out) = (self.next_id, CancellationToken::new());
        self.next_id += 1;
        self.places.push(Place { id, network, pushed_out: pushed_out.clone() });
        (id, pushed_out, gone)
    }

    /// Whose places are most; of several such, whose oldest is the oldest of all.
    fn largest(&self) -> Option<IpAddr> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for place in &self.places {
            *counts.entry(place.network).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        self.places.iter().map(|place| place.network).find(|network| counts.get(network) == Some(&most))
    }
}

fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What counts as one address.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { in_all: 6, of_address: 4 };

    fn ip(text: &str) -> IpAddr {
        network_of(text.parse().unwrap())
    }

    /// Which of these stand, after they came one after the other.
    fn left_of(came: &[&str]) -> Vec<u64> {
        let mut standing = Standing::default();
        for address in came {
            standing.admit(ip(address), BOUNDS);
        }
        standing.places.iter().map(|place| place.id).collect()
    }

    #[test]
    fn one_address_pushes_out_its_own_connections_and_nobody_elses() {
        let flood =
            ["192.0.2.1", "192.0.2.9", "192.0.2.9", "192.0.2.9", "192.0.2.9", "192.0.2.9", "192.0.2.9"];
        assert_eq!(left_of(&flood), [0, 3, 4, 5, 6]);
        // A customer's /64 is one address; an IPv4 address is the same one in IPv6's dress.
        let v6 =
            ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8:0:1::1", "2001:db8::5"];
        assert_eq!(left_of(&v6), [1, 2, 3, 4, 5]);
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    }

    #[test]
    fn where_all_places_are_taken_whoever_has_most_gives_one() {
        let few = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.3", "192.0.2.3", "192.0.2.4", "192.0.2.5"];
        assert_eq!(left_of(&few), [0, 1, 3, 4, 5, 6]);
        let all_alike =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"];
        assert_eq!(left_of(&all_alike), [1, 2, 3, 4, 5, 6], "the oldest of all");
    }

    #[tokio::test]
    async fn the_connection_that_has_to_go_is_told_and_an_ended_one_leaves_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admission = Admission::new(listener, "test", Bounds { in_all: 2, of_address: 2 });
        let mut clients = Vec::new();
        let mut next = async || {
            clients.push(TcpStream::connect(address).await.unwrap());
            admission.next().await.2
        };
        let (first, second) = (next().await, next().await);
        drop(first);
        let third = next().await;
        assert!(!second.pushed_out.is_cancelled(), "there was a place");
        let _fourth = next().await;
        second.pushed_out().await;
        assert!(!third.pushed_out.is_cancelled());
        drop(second);
        assert_eq!(lock(&third.standing).places.len(), 2, "its place is another's by now");
    }
}
