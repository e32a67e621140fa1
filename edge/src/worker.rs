//! One worker: a thread with its own runtime, listeners, pools and counters. Workers share published tables and nothing
//! that is written per request.

use std::{cell::RefCell, collections::HashMap, fmt, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use portico_cert_store::TenantId;

use crate::{
    clock,
    coding::{CodingPlace, CodingPlaces},
    connection,
    drain::LocalDrain,
    egress::EgressGuard,
    http::unique::{Unique, Uniques},
    io::{Backend, Listener, Runtime, Stream, publish_counts, return_free_memory},
    limits,
    listen::{self, BoundListener},
    metrics::Limited,
    seats::{Seat, Seats},
    server::Edge,
    upstream::{Connector, Names, Origins, tunnel::OriginHalf},
};

/// What the connections of one worker share; never leaves its thread.
pub struct Worker {
    pub edge: Arc<Edge>,
    pub index: usize,
    pub backend: Backend,
    pub origins: Origins,
    pub drain: LocalDrain,
    seats: Seats,
    uniques: Uniques,
    halves: RefCell<HashMap<u64, OriginHalf>>,
    codings: Rc<CodingPlaces>,
}

/// How often a worker does its housekeeping.
const TICK: Duration = Duration::from_millis(200);
/// Ticks between two looks at idle origin connections, and at what clients that are gone have left.
const SWEEP_TICKS: u32 = 25;

/// Runs a worker on the current thread until the drain has ended.
///
/// # Errors
/// When the runtime or a listener cannot be set up.
pub fn run(edge: Arc<Edge>, index: usize, listeners: Vec<BoundListener>) -> io::Result<()> {
    let backend = edge.backend;
    let runtime = Runtime::new(backend)?;
    let result = runtime.block_on(async {
        let worker = Rc::new(Worker::new(edge, index)?);
        worker.serve(listeners).await
    });
    publish_counts();
    result
}

impl Worker {
    fn new(edge: Arc<Edge>, index: usize) -> io::Result<Self> {
        let names = Names::new(&edge.resolvers, edge.deadlines.dns_answer)?;
        let guard = EgressGuard::new(Arc::clone(&edge.live), edge.own_sockets.clone());
        let tls = edge.origin_tls.clone();
        let (metrics, watch) = (Arc::clone(&edge.metrics), Arc::clone(&edge.origin_watch));
        let sockets = Arc::clone(&edge.origin_sockets);
        let connector =
            Connector::new(names, guard, tls, edge.backend, Arc::clone(&metrics), Arc::clone(&sockets));
        let origins = Origins::new(connector, (watch, sockets), metrics, edge.deadlines, random_u64()?);
        Ok(Self {
            backend: edge.backend,
            origins,
            drain: LocalDrain::default(),
            seats: Seats::new(edge.deadlines.evictable_after),
            uniques: Uniques::new()?,
            halves: RefCell::default(),
            codings: Rc::default(),
            edge,
            index,
        })
    }

    async fn serve(self: &Rc<Self>, listeners: Vec<BoundListener>) -> io::Result<()> {
        let mut accepting = Vec::new();
        for mut bound in listeners {
            let listener = Listener::new(bound.socket.try_clone()?, self.backend)?;
            let slots = std::mem::take(&mut bound.quic);
            let bound = Rc::new(bound);
            for quic in slots {
                let serving = listen::quic::serve(Rc::clone(self), quic, Rc::clone(&bound));
                accepting.push(tokio::task::spawn_local(serving));
            }
            accepting.push(tokio::task::spawn_local(Rc::clone(self).accept_from(listener, bound)));
        }
        let ticking = tokio::task::spawn_local(Rc::clone(self).tick());
        self.edge.drain.clone().begun().await;
        self.drain.begin();
        for task in accepting {
            let _ = task.await;
        }
        self.wait_until_idle().await;
        ticking.abort();
        let _ = ticking.await;
        Ok(())
    }

    async fn accept_from(self: Rc<Self>, mut listener: Listener, bound: Rc<BoundListener>) {
        let mut draining = Box::pin(self.drain.begun());
        loop {
            for _ in 0..limits::ACCEPTS_PER_TURN {
                let accepted = tokio::select! {
                    biased;
                    accepted = listener.accept() => accepted,
                    () = &mut draining => return self.stop_accepting(listener, &bound).await,
                };
                self.take(accepted, &bound).await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// A socket that somebody else goes on with is left alone, its queue too.
    async fn stop_accepting(self: &Rc<Self>, mut listener: Listener, bound: &Rc<BoundListener>) {
        let successor = self.edge.successor.get();
        let is_kept = successor.is_some_and(|kept| kept.tcp.contains(&bound.config.address));
        if !is_kept && !bound.of_service_manager {
            self.accept_the_rest(&mut listener, bound).await;
            listener.close();
        }
    }

    /// Connections that the kernel has completed already belong to this socket alone; closing it would reset them.
    async fn accept_the_rest(self: &Rc<Self>, listener: &mut Listener, bound: &Rc<BoundListener>) {
        for _ in 0..limits::ACCEPT_SETTLE_ROUNDS {
            let mut taken = 0;
            // A failure is no empty queue: descriptors may be short until some connection ends.
            while let Some(accepted) = listener.accept_now().transpose() {
                let failed = accepted.is_err();
                self.take(accepted, bound).await;
                taken += 1;
                if failed {
                    break;
                }
            }
            // A client is connected when it has our SYN-ACK; the kernel may have its last ACK still before it.
            tokio::time::sleep(limits::ACCEPT_SETTLE).await;
            if taken == 0 {
                return;
            }
        }
    }

    async fn take(self: &Rc<Self>, accepted: io::Result<(Stream, SocketAddr)>, bound: &Rc<BoundListener>) {
        match accepted {
            Ok((stream, peer)) => self.start(stream, peer, bound),
            Err(error) => {
                self.edge.metrics.accept_errors.increment(1);
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }

    fn start(self: &Rc<Self>, stream: Stream, peer: SocketAddr, bound: &Rc<BoundListener>) {
        if self.lacks_memory() {
            return;
        }
        // Dropped without a place: closed at once, before a byte of TLS is read.
        let Some(place) = self.place() else { return };
        let worker = Rc::clone(self);
        let bound = Rc::clone(bound);
        tokio::task::spawn_local(async move {
            let seat = place.seat();
            let _evicted = seat.until_evicted(connection::serve(worker, stream, peer, &bound, seat)).await;
            drop(place);
        });
    }

    /// Room for one more connection, if need be that of an idle one; counted, also where there is none.
    pub(crate) fn place(self: &Rc<Self>) -> Option<Place> {
        self.edge.metrics.connections_total.increment(1);
        if self.is_full() {
            let Some(evicted) = self.seats.evict(clock::now()) else {
                self.edge.metrics.connections_refused.increment(1);
                return None;
            };
            self.edge.metrics.evicted(evicted);
        }
        Some(Place::taken(self))
    }

    /// Whether memory is too short for a newcomer, who is then counted as refused.
    pub(crate) fn lacks_memory(&self) -> bool {
        let is_short = self.edge.memory.is_short();
        if is_short {
            self.edge.metrics.connections_total.increment(1);
            self.edge.metrics.connections_refused.increment(1);
            self.edge.metrics.limited(Limited::Memory);
        }
        is_short
    }

    /// Whether a newcomer takes another's place, or finds none.
    pub(crate) fn is_full(&self) -> bool {
        self.seats.count() >= self.edge.connections_per_worker_max
    }

    async fn wait_until_idle(&self) {
        while self.seats.count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn tick(self: Rc<Self>) {
        let (mut ticks, mut shortage, mut most) = (0_u32, 0, 0);
        loop {
            tokio::time::sleep(TICK).await;
            publish_counts();
            most = most.max(self.seats.count());
            if self.edge.memory.wants_room(&mut shortage) {
                self.make_room();
            }
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(SWEEP_TICKS) {
                self.origins.sweep();
                // The allocator gives back what is free when the thread allocates, which one that nobody asks does not.
                let count = self.seats.count();
                if 2 * count < std::mem::replace(&mut most, count) {
                    return_free_memory();
                }
            }
        }
    }

    /// Connections without an exchange, of clients and to origins, hold what others need now.
    fn make_room(&self) {
        self.seats.evict_all(clock::now(), |evicted| self.edge.metrics.evicted(evicted));
        self.origins.close_idle();
        return_free_memory();
    }

    /// Room to compress one more body of this tenant; counted where there is none.
    pub(crate) fn coding_place(&self, tenant: TenantId) -> Option<CodingPlace> {
        let place = if self.edge.memory.is_short() { None } else { self.codings.take(tenant) };
        if place.is_none() {
            self.edge.metrics.compressions_refused.increment(1);
        }
        place
    }

    /// A number that no other exchange of this edge's life has.
    pub(crate) fn next_unique(&self) -> Unique {
        self.uniques.next()
    }

    /// Keeps an origin's half of a tunnel until its client has had its 101.
    pub(crate) fn keep_half(&self, half: OriginHalf) -> u64 {
        let ticket = self.next_unique().low;
        self.halves.borrow_mut().insert(ticket, half);
        ticket
    }

    pub(crate) fn take_half(&self, ticket: u64) -> Option<OriginHalf> {
        self.halves.borrow_mut().remove(&ticket)
    }
}

/// One open connection, counted while it lives; also when its task panics.
pub(crate) struct Place {
    worker: Rc<Worker>,
    seat: Rc<Seat>,
}

impl Place {
    fn taken(worker: &Rc<Worker>) -> Self {
        worker.edge.count_connection(true);
        Self { worker: Rc::clone(worker), seat: worker.seats.take() }
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.seats.leave(&self.seat);
        self.worker.edge.count_connection(false);
    }
}

fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
    Ok(u64::from_ne_bytes(bytes))
}

impl fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Worker")
            .field("index", &self.index)
            .field("open", &self.seats.count())
            .finish_non_exhaustive()
    }
}
