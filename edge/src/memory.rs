//! What the edge does when memory runs short, before the kernel ends it.
//!
//! A sampler on the service thread reads four times a second, more often as it comes near the mark, how much of the process is resident. From the upper mark on the
//! edge is short of memory: new connections are closed at once, requests that need an origin get 503, nothing is compressed,
//! connections without an exchange are ended, kept answers are forgotten, and what the allocator has free goes back to the
//! kernel. Exchanges under way go on: each is bounded by itself, and ends. Below the lower mark all is as before; so it is when
//! it stays between the marks, or one who keeps a few long exchanges could shut everybody out.
//!
//! Workers look at their tick, more seldom than the sampler. A shortage therefore has a number, so that none of them misses one
//! that the cache has ended meanwhile: idle connections would stay, and the next burst would find the same.
//!
//! An exchange with an origin takes its memory a while after it has begun, so that thousands could begin before the first of it
//! shows. Each look therefore says how many may be under way: those there were at any look of the last second, and as many more
//! as there was room for at [`limits::MEMORY_OF_EXCHANGE_BYTES`] each; and of that no tenant has all.
//!
//! Connections meet one atomic load.
//!
//! Deliberately absent: what the kernel holds for our sockets. It is not in this process's memory; in a control group's bound it
//! is, and has the rest of that bound ([`limits::MEMORY_OF_CGROUP_PERCENT`]).

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{clock, io as sockets, limits, server::Edge};

/// The bound, and whether it is near.
#[derive(Debug)]
pub struct Memory {
    /// Resident bytes; none: unbounded.
    most: Option<u64>,
    short: AtomicBool,
    /// How many there were until now.
    shortages: AtomicU64,
    /// With origins.
    exchanges: AtomicU64,
    exchanges_max: AtomicU64,
}

/// An exchange with an origin; counted until it is dropped.
#[derive(Debug)]
pub struct Exchanging {
    memory: Arc<Memory>,
    of_tenant: Arc<AtomicU64>,
}

impl Memory {
    /// Bounded by what the edge's file says, else by the control group that the process is in, else not at all.
    pub fn new(of_file: Option<u64>) -> Arc<Self> {
        Self::bounded(of_file.or_else(of_cgroup))
    }

    /// `None`: no bound.
    pub fn bounded(most: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            most,
            short: AtomicBool::new(false),
            shortages: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            exchanges_max: AtomicU64::new(u64::MAX),
        })
    }

    /// Resident bytes of the process, at most; `None`: no bound.
    pub fn most(&self) -> Option<u64> {
        self.most
    }

    /// Whether nothing new is begun.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// How often memory became short.
    pub fn shortages(&self) -> u64 {
        self.shortages.load(Ordering::Relaxed)
    }

    /// Whether a worker is to make room: memory is short, or was since the worker asked last. `seen`: the number of the last
    /// shortage that it has met.
    pub(crate) fn wants_room(&self, seen: &mut u64) -> bool {
        let begun = self.shortages();
        let is_new = std::mem::replace(seen, begun) != begun;
        is_new || self.is_short()
    }

    /// Tells workers what a look has brought.
    fn publish(&self, judge: &Judge, change: Option<Change>) {
        if change == Some(Change::Short) {
            self.shortages.fetch_add(1, Ordering::Relaxed);
        }
        self.short.store(judge.is_short, Ordering::Relaxed);
        self.exchanges_max.store(judge.exchanges_max(), Ordering::Relaxed);
    }

    /// Lets an exchange with an origin begin; `None`: there is no room for what it may take, or its tenant has
    /// [`limits::EXCHANGES_PER_FREE`] times as many under way as there is room for: so that a tenant whose origin does not answer
    /// leaves some to the next, as with sockets to origins.
    pub(crate) fn begin_exchange(self: &Arc<Self>, of_tenant: &Arc<AtomicU64>) -> Option<Exchanging> {
        let before = self.exchanges.fetch_add(1, Ordering::Relaxed);
        let own = of_tenant.fetch_add(1, Ordering::Relaxed);
        let begun = Exchanging { memory: Arc::clone(self), of_tenant: Arc::clone(of_tenant) };
        let free = self.exchanges_max.load(Ordering::Relaxed).saturating_sub(before);
        (own < free.saturating_mul(limits::EXCHANGES_PER_FREE)).then_some(begun)
    }

    /// For kept answers, where the file does not say it: no larger share of a small bound than the default is of a usual one.
    pub fn cache_bytes(&self) -> u64 {
        self.most.map_or(limits::CACHE_BYTES, |most| limits::CACHE_BYTES.min(most / 4))
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.memory.exchanges.fetch_sub(1, Ordering::Relaxed);
        self.of_tenant.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resident bytes below which an edge with this bound is not short of memory.
pub(crate) fn lower_mark(most: u64) -> u64 {
    most / 100 * limits::MEMORY_WELL_PERCENT
}

/// Looks for the life of the process, and makes room when memory is short.
pub(crate) async fn watch(edge: Arc<Edge>) {
    let Some(most) = edge.memory.most else { return };
    let resident = match Resident::open() {
        Ok(resident) => resident,
        Err(error) => {
            tracing::error!(%error, "memory is not watched: /proc/self/statm cannot be read");
            return;
        }
    };
    let (mut judge, mut silent_until) = (Judge::new(most), Duration::ZERO);
    loop {
        tokio::time::sleep(judge.pause()).await;
        let Ok(bytes) = resident.bytes() else { continue };
        let exchanges = edge.memory.exchanges.load(Ordering::Relaxed);
        let held = held_at_most(edge.open_connections(), exchanges) + edge.cache.bytes();
        let change = judge.look(bytes, exchanges, held);
        edge.memory.publish(&judge, change);
        if judge.is_short {
            edge.cache.give_back(bytes.saturating_sub(judge.lower()));
            sockets::return_free_memory();
        }
        // Whoever can fill memory can do so again and again.
        if let Some(change) = change.filter(|_| clock::uptime() >= silent_until) {
            silent_until = clock::uptime() + limits::MEMORY_TOLD_PAUSE;
            tell(change, bytes, most);
        }
    }
}

/// Bytes that these may give back when they end.
fn held_at_most(connections: u64, exchanges: u64) -> u64 {
    (connections + exchanges) * limits::MEMORY_HELD_BY_EACH_MAX
}

fn tell(change: Change, resident: u64, memory_bytes: u64) {
    match change {
        Change::Short => tracing::warn!(
            resident,
            memory_bytes,
            "memory is short: new connections are refused until there is room again"
        ),
        Change::Well => tracing::info!(resident, "there is memory again"),
        Change::TooLittle => tracing::error!(
            resident,
            memory_bytes,
            "the bound on memory is too small: the edge takes as much without a visitor and an answer in its cache. It serves \
             on with little room; set memory_bytes to more"
        ),
    }
}

/// Decides by what was seen so far.
#[derive(Debug)]
struct Judge {
    most: u64,
    /// What the edge was seen to take by itself, where that alone was too much; else 0.
    floor: u64,
    is_short: bool,
    /// Looks in a row that found it short, and below the upper mark or with too little left to give back.
    in_vain: u32,
    last: u64,
    /// How many exchanges there was room for at each look of the last second, and how long before the next one.
    room: VecDeque<(u64, Duration)>,
}

/// What a look has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Short,
    Well,
    /// The edge alone is larger than it may be. To refuse everybody for ever would help nobody.
    TooLittle,
}

impl Judge {
    fn new(most: u64) -> Self {
        Self { most, floor: 0, is_short: false, in_vain: 0, last: 0, room: VecDeque::new() }
    }

    /// Until the next look: soon, where a burst could come before a late one.
    fn pause(&self) -> Duration {
        let is_near = self.is_short || self.last > self.most / 100 * limits::MEMORY_NEAR_PERCENT;
        if is_near { limits::MEMORY_LOOK_EVERY_NEAR } else { limits::MEMORY_LOOK_EVERY }
    }

    /// Above what is held by the edge itself.
    fn mark(&self, percent: u64) -> u64 {
        let room = self.most.saturating_sub(self.floor).max(self.most / 10);
        self.floor + room / 100 * percent
    }

    fn lower(&self) -> u64 {
        self.mark(limits::MEMORY_WELL_PERCENT)
    }

    /// Exchanges that may be under way.
    fn exchanges_max(&self) -> u64 {
        self.room.iter().map(|(exchanges, _)| *exchanges).min().unwrap_or(u64::MAX)
    }

    fn note_room(&mut self, exchanges: u64) {
        let left = self.mark(limits::MEMORY_SHORT_PERCENT).saturating_sub(self.last);
        self.room.push_back((exchanges + left / limits::MEMORY_OF_EXCHANGE_BYTES, self.pause()));
        let known =
            |room: &VecDeque<(u64, Duration)>| room.iter().skip(1).map(|(_, pause)| *pause).sum::<Duration>();
        while known(&self.room) >= limits::MEMORY_GROWS_WITHIN {
            self.room.pop_front();
        }
    }

    /// `exchanges`: under way now; `held`: bytes that may be given back in time, at most.
    fn look(&mut self, resident: u64, exchanges: u64, held: u64) -> Option<Change> {
        self.last = resident;
        self.note_room(exchanges);
        if resident < lower_mark(self.most) {
            self.floor = 0;
        }
        let (upper, lower) = (self.mark(limits::MEMORY_SHORT_PERCENT), self.lower());
        let mark = if self.is_short { lower } else { upper };
        let was_short = std::mem::replace(&mut self.is_short, resident > mark);
        let is_vain = self.is_short && (resident <= upper || held < resident - lower);
        self.in_vain = if is_vain { self.in_vain + 1 } else { 0 };
        if self.in_vain > limits::MEMORY_LOOKS_IN_VAIN_MAX {
            (self.is_short, self.in_vain) = (false, 0);
            if resident > upper {
                self.floor = resident;
                return Some(Change::TooLittle);
            }
        }
        match (was_short, self.is_short) {
            (false, true) => Some(Change::Short),
            (true, false) => Some(Change::Well),
            _ => None,
        }
    }
}

/// Resident bytes of this process now; 0 where the kernel does not say.
pub(crate) fn resident_bytes() -> u64 {
    Resident::open().and_then(|resident| resident.bytes()).unwrap_or(0)
}

/// Opened once: a process without descriptors is watched, too.
struct Resident(File);

impl Resident {
    fn open() -> io::Result<Self> {
        File::open("/proc/self/statm").map(Self)
    }

    fn bytes(&self) -> io::Result<u64> {
        let mut text = [0; 128];
        let length = self.0.read_at(&mut text, 0)?;
        let pages = pages_of(&text[..length]).ok_or(io::ErrorKind::InvalidData)?;
        Ok(pages * rustix::param::page_size() as u64)
    }
}

/// The second number: what is resident (proc(5)).
fn pages_of(statm: &[u8]) -> Option<u64> {
    std::str::from_utf8(statm).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What the control group of this process leaves for its resident memory; `None`: it has no bound.
fn of_cgroup() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    share_of(&groups, |path| std::fs::read_to_string(path).ok())
}

/// Of the smallest bound of a group and those above it, in version 2 and in version 1 of control groups (cgroups(7)).
fn share_of(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            named if named.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container the path may be that of the host; its own group is then at the root.
        let within = Path::new(path.trim_start_matches('/'));
        let bounds = within.ancestors().filter_map(|group| {
            let text = read(&Path::new(mount).join(group).join(file))?;
            // "max", or a number that no machine has.
            text.trim().parse().ok().filter(|bytes: &u64| *bytes < 1 << 60)
        });
        bounds.min()
    };
    groups.lines().filter_map(of_line).min().map(|bound| bound / 100 * limits::MEMORY_OF_CGROUP_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_short_from_the_upper_mark_on_until_it_is_below_the_lower_one() {
        let mut judge = Judge::new(1000);
        let (upper, lower) = (limits::MEMORY_SHORT_PERCENT * 10, limits::MEMORY_WELL_PERCENT * 10);
        assert!(lower < upper && upper < 1000);
        assert_eq!((judge.look(upper, 0, u64::MAX), judge.is_short), (None, false));
        assert_eq!((judge.look(upper + 1, 0, u64::MAX), judge.is_short), (Some(Change::Short), true));
        assert_eq!((judge.look(upper, 0, u64::MAX), judge.is_short), (None, true));
        assert_eq!((judge.look(lower + 1, 0, u64::MAX), judge.is_short), (None, true));
        assert_eq!((judge.look(lower, 0, u64::MAX), judge.is_short), (Some(Change::Well), false));
    }

    #[test]
    fn it_looks_more_often_where_memory_may_soon_be_short() {
        let mut judge = Judge::new(1000);
        let near = limits::MEMORY_NEAR_PERCENT * 10;
        judge.look(near, 0, u64::MAX);
        assert_eq!(judge.pause(), limits::MEMORY_LOOK_EVERY);
        judge.look(near + 1, 0, u64::MAX);
        assert_eq!(judge.pause(), limits::MEMORY_LOOK_EVERY_NEAR);
    }

    #[test]
    fn an_edge_that_is_too_large_by_itself_serves_with_little_room_and_says_so() {
        let mut judge = Judge::new(1000);
        let too_large = 1500;
        let looks = limits::MEMORY_LOOKS_IN_VAIN_MAX;
        judge.look(too_large, 0, u64::MAX);
        assert!(
            (0..10 * looks).all(|_| judge.look(too_large, 0, u64::MAX).is_none()),
            "something may still end"
        );
        let beyond = too_large - limits::MEMORY_WELL_PERCENT * 10;
        assert!(
            (0..10 * looks).all(|_| judge.look(too_large, 0, beyond).is_none()),
            "as much as that may end"
        );
        assert!((0..looks).all(|_| judge.look(too_large, 0, beyond - 1).is_none()) && judge.is_short);
        assert_eq!((judge.look(too_large, 0, beyond - 1), judge.is_short), (Some(Change::TooLittle), false));
        assert_eq!(judge.look(too_large + 80, 0, u64::MAX), None);
        assert_eq!(
            judge.look(too_large + 100, 0, u64::MAX),
            Some(Change::Short),
            "it has some room, and no more"
        );
        assert_eq!(judge.look(too_large + 10, 0, u64::MAX), Some(Change::Well));
        judge.look(100, 0, u64::MAX);
        assert_eq!(
            judge.look(1000, 0, u64::MAX),
            Some(Change::Short),
            "and none beyond the bound when it has shrunk"
        );
    }

    #[test]
    fn a_few_connections_are_no_reason_for_an_edge_that_is_too_large_by_itself() {
        let most = 1 << 30;
        let beyond = most - lower_mark(most);
        let reason = beyond.div_ceil(limits::MEMORY_HELD_BY_EACH_MAX);
        let changes = |connections: u64, exchanges: u64| {
            let mut judge = Judge::new(most);
            let looks = 0..10 * limits::MEMORY_LOOKS_IN_VAIN_MAX;
            let changes = looks.filter_map(|_| judge.look(most, 0, held_at_most(connections, exchanges)));
            changes.take(2).collect::<Vec<_>>()
        };
        assert_eq!(changes(reason / 2, reason - reason / 2), [Change::Short]);
        assert_eq!(changes(reason / 2, reason - reason / 2 - 1), [Change::Short, Change::TooLittle]);
    }

    #[test]
    fn who_keeps_memory_between_the_marks_shuts_nobody_out_for_long() {
        let mut judge = Judge::new(1000);
        let upper = limits::MEMORY_SHORT_PERCENT * 10;
        let looks = limits::MEMORY_LOOKS_IN_VAIN_MAX;
        for _ in 0..2 {
            assert_eq!(judge.look(upper + 1, 0, u64::MAX), Some(Change::Short));
            assert!((0..looks).all(|_| judge.look(upper, 0, u64::MAX).is_none()) && judge.is_short);
            assert_eq!((judge.look(upper, 0, u64::MAX), judge.is_short), (Some(Change::Well), false));
            assert_eq!((judge.look(upper, 0, u64::MAX), judge.is_short), (None, false));
        }
    }

    #[test]
    fn a_shortage_that_is_over_before_a_worker_looks_is_met_all_the_same_and_once() {
        let memory = Memory::bounded(Some(1000));
        let (mut judge, mut seen) = (Judge::new(1000), 0);
        let mut look = |resident| {
            let change = judge.look(resident, 0, u64::MAX);
            memory.publish(&judge, change);
        };
        assert!(!memory.wants_room(&mut seen));
        look(1000);
        assert!(memory.wants_room(&mut seen) && memory.wants_room(&mut seen), "as long as it lasts");
        look(0);
        assert!(!memory.wants_room(&mut seen));
        look(1000);
        look(0);
        assert!(!memory.is_short());
        assert!(memory.wants_room(&mut seen) && !memory.wants_room(&mut seen), "once");
    }

    #[test]
    fn no_more_exchanges_begin_than_there_is_room_for_and_those_count_until_they_have_grown() {
        let (each, most) = (limits::MEMORY_OF_EXCHANGE_BYTES, 100 * 1000 * limits::MEMORY_OF_EXCHANGE_BYTES);
        let mut judge = Judge::new(most);
        assert_eq!(judge.exchanges_max(), u64::MAX);
        let upper = most / 100 * limits::MEMORY_SHORT_PERCENT;
        judge.look(upper - 10 * each, 5, u64::MAX);
        assert_eq!(judge.exchanges_max(), 15);
        // They have begun, and nothing of them shows.
        let looks = limits::MEMORY_GROWS_WITHIN.as_millis() / limits::MEMORY_LOOK_EVERY_NEAR.as_millis();
        for _ in 1..looks {
            judge.look(upper - 10 * each, 15, u64::MAX);
            assert_eq!(judge.exchanges_max(), 15);
        }
        judge.look(upper - 10 * each, 15, u64::MAX);
        assert_eq!(judge.exchanges_max(), 25, "what took nothing until now takes nothing");

        let memory = Memory::bounded(Some(most));
        memory.exchanges_max.store(2, Ordering::Relaxed);
        let (one, other) = (Arc::default(), Arc::default());
        let begun = [memory.begin_exchange(&one), memory.begin_exchange(&other)];
        assert!(begun.iter().all(Option::is_some) && memory.begin_exchange(&Arc::default()).is_none());
        drop(begun);
        assert!(memory.begin_exchange(&one).is_some());
        assert_eq!(memory.exchanges.load(Ordering::Relaxed), 0);
        assert_eq!((one.load(Ordering::Relaxed), other.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_tenant_whose_exchanges_do_not_end_leaves_room_to_the_next() {
        let memory = Memory::bounded(Some(1 << 30));
        memory.exchanges_max.store(90, Ordering::Relaxed);
        let tenants: [Arc<AtomicU64>; 3] = Default::default();
        let taken = tenants
            .each_ref()
            .map(|tenant| std::iter::from_fn(|| memory.begin_exchange(tenant)).collect::<Vec<_>>());
        let share = |free: u64| free * limits::EXCHANGES_PER_FREE / (limits::EXCHANGES_PER_FREE + 1);
        assert_eq!(share(90), 60, "two thirds");
        assert_eq!(taken.each_ref().map(Vec::len), [60, 20, 7]);
        drop(taken);
        assert!(tenants.iter().all(|tenant| tenant.load(Ordering::Relaxed) == 0));
        let unbounded = Memory::bounded(None);
        assert!((0..10_000).all(|_| unbounded.begin_exchange(&tenants[0]).is_some()));
    }

    #[test]
    fn what_is_resident_is_read_from_the_kernel_and_follows_what_is_used() {
        assert_eq!(pages_of(b"5000 321 12 1 0 77 0\n"), Some(321));
        assert_eq!((pages_of(b"5000"), pages_of(b"5000 x")), (None, None));
        let resident = Resident::open().expect("there is a /proc");
        let before = resident.bytes().expect("it says so");
        let used = vec![1_u8; 64 << 20];
        let with = resident.bytes().expect("it says so");
        assert!(with >= before + (48 << 20), "{before} bytes, and with 64 MiB more {with}: {}", used.len());
    }

    #[test]
    fn a_share_of_the_smallest_bound_of_a_group_and_those_above_it_counts() {
        let share = |groups: &str, files: &[(&str, &str)]| {
            share_of(groups, |path| {
                let found = files.iter().find(|(name, _)| path == Path::new(name))?;
                Some(found.1.to_owned())
            })
        };
        let of = |hundreds: u64| Some(hundreds * limits::MEMORY_OF_CGROUP_PERCENT);
        let service = "/sys/fs/cgroup/system.slice/edge.service/memory.max";
        let slice = "/sys/fs/cgroup/system.slice/memory.max";
        let version_2 = "0::/system.slice/edge.service\n";
        assert_eq!(share(version_2, &[(service, "4000\n"), (slice, "max\n")]), of(40));
        assert_eq!(share(version_2, &[(service, "max\n"), (slice, "2000\n")]), of(20));
        assert_eq!(share(version_2, &[(service, "max\n"), (slice, "max\n")]), None);
        assert_eq!(share("0::/\n", &[("/sys/fs/cgroup/memory.max", "1000\n")]), of(10), "a container");
        let version_1 = "9:cpu,cpuacct:/x\n4:memory:/docker/f00\n0::/\n";
        let root = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(share(version_1, &[(root, "500\n")]), of(5));
        assert_eq!(share(version_1, &[(root, "9223372036854771712\n")]), None);
        assert_eq!(share("", &[]), None);
    }

    #[test]
    fn a_small_bound_has_a_small_cache_where_the_file_does_not_say_how_large() {
        assert_eq!(Memory::bounded(None).cache_bytes(), limits::CACHE_BYTES);
        assert_eq!(
            Memory::bounded(Some(limits::MEMORY_BYTES_MIN)).cache_bytes(),
            limits::MEMORY_BYTES_MIN / 4
        );
        assert_eq!(Memory::bounded(Some(u64::MAX)).cache_bytes(), limits::CACHE_BYTES);
    }
}
