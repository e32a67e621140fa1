//! The attacks of `portico-attacker`, many connections at once, beside visitors of another site: the visitors are all
//! answered, the attackers cost the origin little and the edge a bounded amount of memory, and they are cut.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use portico_attacker::{Attack, End, QuicAttack, Target, first_flight};
use portico_edge::{clock, limits};

use crate::client::https;
use crate::harness::PATIENCE;
use crate::http3_client::http3_get;
use crate::origin::{Origin, Reply, ok};
use crate::process::{FILE, Running, pem, prepare, uring_works};

const ATTACKED: &str = "attacked.example";
const GOOD: &str = "good.example";

/// Attacking at once.
const CONNECTIONS: u64 = 32;
/// Where each asks for as many answers as it may: what is held then are connections to the origin, too.
const CONNECTIONS_OF_MANY: u64 = 16;
/// What one attacking connection may bring about at the origin before it ends.
const ORIGIN_REQUESTS_MAX: u64 = 200;
/// Of an attacking connection.
const BYTES_MAX: u64 = 256 * 1024;
/// Of all that is held for addresses that may be forged, of which each attacker has hundreds.
const HALF_OPEN_BYTES_MAX: u64 = 64 * 1024 * 1024 - BYTES_TOLERATED;
/// What memory may differ by without any attack: the allocator's pages, the visitors' own connections.
const BYTES_TOLERATED: u64 = 24 * 1024 * 1024;
/// Longer than the edge's longest deadline for a client that does nothing.
const ATTACK_TIME: Duration = Duration::from_secs(limits::WRITE_STALL_DEADLINE.as_secs() + 30);

/// An edge in a process of its own, so that its memory is its own.
struct Stage {
    edge: Running,
    attacked: Origin,
    _good: Origin,
}

impl Stage {
    fn new(io: &str) -> Self {
        let attacked = Origin::start(|_| Reply::Take(Box::new(pour)));
        let good = Origin::start(|_| Reply::Keep(ok("good")));
        let folder = prepare();
        std::fs::write(folder.path().join("certificates/attacks.pem"), pem(&[ATTACKED, GOOD])).unwrap();
        // QUIC at the same address.
        let mut file = FILE.replace("kind = \"https\"\n", "kind = \"https\"\nhttp3 = true\n");
        for (host, origin) in [(ATTACKED, &attacked), (GOOD, &good)] {
            file += &format!("[[route]]\nhost = \"{host}\"\nproxy = \"{}\"\n", origin.url());
        }
        let ports = [attacked.address.port(), good.address.port()];
        // All attackers have one address, and what one may take is another subject.
        file += "[client_limits]\nexempt = [\"127.0.0.0/8\"]\n";
        file += &format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = {ports:?} }}]\n");
        std::fs::write(folder.path().join("edge.toml"), file).unwrap();
        Self { edge: Running::start(folder, io), attacked, _good: good }
    }

    fn resident_bytes(&self) -> u64 {
        resident_bytes(self.edge.child.id())
    }

    /// Runs the attack beside visitors; says how many of those were answered.
    fn run(&self, attack: Attack) -> u64 {
        let (connections, bytes_max) = match attack.end() {
            _ if attack.is_of_many() => (CONNECTIONS_OF_MANY, limits::MEMORY_OF_CONNECTION_BYTES),
            _ if is_before_handshake(attack) => (CONNECTIONS, HALF_OPEN_BYTES_MAX / CONNECTIONS),
            End::Refused | End::Cut | End::Reset | End::Borne => (CONNECTIONS, BYTES_MAX),
        };
        let (address, process) = (self.edge.https(), self.edge.child.id());
        let target = Target { address, host: ATTACKED.to_owned() };
        let (over, answered, peak) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let (before, asked) = (self.resident_bytes(), self.attacked.messages().len() as u64);
        let outcomes = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    peak.fetch_max(resident_bytes(process), Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            scope.spawn(|| {
                let is_over_quic = matches!(attack, Attack::Quic(_));
                while !over.load(Ordering::SeqCst) {
                    if is_over_quic {
                        assert_eq!(http3_get(address, Some(GOOD), GOOD, "/"), Ok(200), "beside {attack:?}");
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    let mut visitor = https(address, GOOD);
                    for _ in 0..20 {
                        assert_eq!(visitor.get(GOOD, "/").text(), "good", "beside {attack:?}");
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            let attacking: Vec<_> =
                (0..connections).map(|_| scope.spawn(|| attack.run(&target, ATTACK_TIME))).collect();
            let outcomes: Vec<_> = attacking.into_iter().map(|attacking| attacking.join().unwrap()).collect();
            over.store(true, Ordering::SeqCst);
            outcomes
        });
        let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        let ended = outcomes.iter().filter(|outcome| outcome.ended).count() as u64;
        assert_eq!(ended, connections, "{attack:?}: {:?} is what they are to see", attack.end());
        let asked = self.attacked.messages().len() as u64 - asked;
        let asked_max = if attack.end() == End::Refused { 0 } else { connections * ORIGIN_REQUESTS_MAX };
        assert!(asked <= asked_max, "{attack:?}: {asked} requests at the origin");
        let requests: u64 = outcomes.iter().map(|outcome| outcome.requests).sum();
        let grown = peak.load(Ordering::SeqCst).saturating_sub(before);
        let each = grown / connections / 1024;
        eprintln!(
            "{attack:?}: {requests} requests, {asked} at the origin, {each} KiB more memory for each connection"
        );
        assert!(grown <= connections * bytes_max + BYTES_TOLERATED, "{attack:?}: {each} KiB");
        answered.load(Ordering::SeqCst)
    }

    /// Memory and connections come back when it is over, although nobody comes.
    fn recovers(&self, before: u64) {
        // Over QUIC who goes away says nothing, and is missed at the idle deadline.
        let patience = limits::IDLE_DEADLINE + PATIENCE;
        let begun = clock::now();
        let connections = || self.edge.metric("portico_edge_connections ");
        let is_back = || self.resident_bytes() <= before + before / 20 + BYTES_TOLERATED;
        while !is_back() || connections() > 0.0 {
            let (now, open) = (self.resident_bytes() / 1024, connections());
            assert!(begun.elapsed() < patience, "{now} KiB after {} KiB, {open} connections", before / 1024);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(https(self.edge.https(), GOOD).get(GOOD, "/").text(), "good", "after the attack");
        assert_eq!(self.edge.metric("portico_edge_panics_total"), 0.0);
    }
}

/// What an address can do that may be forged.
fn is_before_handshake(attack: Attack) -> bool {
    matches!(
        attack,
        Attack::Quic(
            QuicAttack::InitialFlood
                | QuicAttack::ShortInitials
                | QuicAttack::CoalescedGarbage
                | QuicAttack::BadParameters
                | QuicAttack::CryptoGaps
                | QuicAttack::CryptoBeyond
                | QuicAttack::ForgedTokens
                | QuicAttack::StolenTokens
                | QuicAttack::LateTokens
        )
    )
}

/// Answers more than all buffers between here and a client hold, until nobody wants it.
pub fn pour(mut stream: TcpStream) {
    static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
    const PIECES: usize = 1024;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PIECES * PIECE.len());
    // Thousands of these are blocked at once; the kernel would keep megabytes for each.
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, PIECE.len()).unwrap();
    let mut sent = stream.write_all(head.as_bytes());
    for _ in 0..PIECES {
        sent = sent.and_then(|()| stream.write_all(&PIECE));
    }
}

pub fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn withstands(attacks: &[Attack]) {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let stage = Stage::new(io);
        assert_eq!(https(stage.edge.https(), GOOD).get(GOOD, "/").status, 200);
        let before = stage.resident_bytes();
        for attack in attacks {
            assert!(stage.run(*attack) > 0, "no visitor came while {attack:?} went on");
        }
        stage.recovers(before);
    }
}

#[test]
fn rapid_reset() {
    withstands(&[Attack::RapidReset]);
}

#[test]
fn made_you_reset() {
    withstands(&[
        Attack::WindowIncrementZero,
        Attack::WindowOverflow,
        Attack::PriorityLength,
        Attack::PriorityOnItself,
        Attack::HeadersAfterEnd,
        Attack::DataAfterEnd,
    ]);
}

#[test]
fn frames_for_nothing() {
    withstands(&[
        Attack::Continuations,
        Attack::EmptyContinuations,
        Attack::Settings,
        Attack::Pings,
        Attack::Priorities,
        Attack::WindowUpdates,
        Attack::EmptyData,
        Attack::KeyUpdates,
    ]);
}

#[test]
fn header_bombs() {
    withstands(&[Attack::HpackBomb, Attack::CookieCrumbs]);
}

#[test]
fn answers_that_nobody_takes_over_http2() {
    withstands(&[Attack::ZeroWindow, Attack::UnreadAnswers]);
}

#[test]
fn requests_with_large_heads_that_do_not_end() {
    withstands(&[Attack::OpenHeads]);
}

#[test]
fn answers_that_nobody_takes_over_http1() {
    withstands(&[Attack::SlowRead]);
}

#[test]
fn requests_that_do_not_go_on() {
    withstands(&[Attack::SlowHead, Attack::StalledBody, Attack::SlowBody, Attack::HalfOpen]);
}

fn withstands_over_quic(attacks: &[QuicAttack]) {
    withstands(&attacks.iter().copied().map(Attack::Quic).collect::<Vec<_>>());
}

#[test]
fn quic_handshakes_that_go_nowhere() {
    withstands_over_quic(&[
        QuicAttack::InitialFlood,
        QuicAttack::ShortInitials,
        QuicAttack::CoalescedGarbage,
        QuicAttack::BadParameters,
        QuicAttack::CryptoGaps,
        QuicAttack::CryptoBeyond,
    ]);
}

#[test]
fn quic_tokens_of_others() {
    withstands_over_quic(&[QuicAttack::ForgedTokens, QuicAttack::StolenTokens, QuicAttack::LateTokens]);
}

/// An edge that answers what nobody sent could be kept busy by another of its kind for ever.
#[test]
fn quic_resets_that_answer_resets() {
    withstands_over_quic(&[QuicAttack::ResetLoop]);
}

/// However large what there is to say, an address that has not answered gets three times what it has sent (RFC 9000
/// section 8.1).
#[test]
fn a_large_chain_does_not_make_the_first_flight_larger() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let folder = prepare();
        // 300 names do not compress to less than the bound.
        const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        let names = (1..=300_u128).map(|number| format!("{:032x}.example", number.wrapping_mul(SPREAD)));
        let names: Vec<String> = names.collect();
        let all: Vec<&str> = [ATTACKED].into_iter().chain(names.iter().map(String::as_str)).collect();
        let certificate = pem(&all);
        assert!(certificate.len() > 12_000, "{}", certificate.len());
        std::fs::write(folder.path().join("certificates/large.pem"), certificate).unwrap();
        let file = FILE.replace("kind = \"https\"\n", "kind = \"https\"\nhttp3 = true\n");
        std::fs::write(folder.path().join("edge.toml"), file).unwrap();
        let edge = Running::start(folder, io);
        let target = Target { address: edge.https(), host: ATTACKED.to_owned() };
        // Said again until the edge gives the handshake up, and not more than was allowed at first.
        let flight = first_flight(&target, limits::HANDSHAKE_DEADLINE).unwrap();
        assert!(!flight.retried, "nobody else is there");
        assert!(flight.bytes_received > 2 * flight.bytes_sent, "it is what the bound is for: {flight:?}");
        // And what quinn goes beyond it: less than one datagram (see the attacks on handshakes).
        assert!(flight.bytes_received < 3 * flight.bytes_sent + 1200, "{flight:?}");
        // Who answers gets the rest.
        assert_eq!(http3_get(edge.https(), Some(ATTACKED), ATTACKED, "/"), Ok(200));
    }
}

#[test]
fn quic_frames_for_nothing() {
    withstands_over_quic(&[
        QuicAttack::StreamLimit,
        QuicAttack::StreamGaps,
        QuicAttack::PinnedDatagrams,
        QuicAttack::ConnectionIds,
        QuicAttack::RetiredIds,
        QuicAttack::PathChallenges,
        QuicAttack::Pings,
        QuicAttack::RepeatedPieces,
        QuicAttack::Migrations,
    ]);
}

#[test]
fn requests_over_http3_for_nothing() {
    withstands_over_quic(&[
        QuicAttack::RapidReset,
        QuicAttack::QpackBomb,
        QuicAttack::QpackBlocked,
        QuicAttack::QpackInserts,
        QuicAttack::ControlStreams,
        QuicAttack::SlowHeads,
        QuicAttack::ZeroWindow,
    ]);
}
