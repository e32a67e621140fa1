//! Two control planes on one PostgreSQL, one of them killed or stopped at random: no set of names is ordered twice, no
//! acknowledged write is lost and none is done twice, the ledger misses nothing that the CA counts, and edges get their
//! certificates on whichever control plane they hang.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portico_api::distribution::urgent::Action;
use portico_api::distribution::{ResourceKind, SetHttp01, Urgent};
use portico_control_plane::config::Config;
use portico_control_plane::limits::RESPONDERS_DEADLINE;
use portico_control_plane::plan::ledger::Limits;
use portico_control_plane::store::{Store, relay, responder, sql};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::crash::{Plane, start, stop};
use crate::edge::{Identity, State, TestEdge};
use crate::lab::{Lab, Options, World, add_domain, add_tenant};
use crate::ledger::assert_we_count_no_less;
use crate::postgres;

const SEED: &str = "PORTICO_TEST_SEED";
const ROUNDS: usize = 6;
/// One that is stopped takes a call and does not answer.
const CALL_DEADLINE: Duration = Duration::from_secs(3);

/// One control plane and what is needed to start it again.
struct Replica {
    config: PathBuf,
    plane: Plane,
}

impl Replica {
    async fn start(world: &World, options: &Options, name: &str) -> Self {
        let config = world.configure_as(options, "127.0.0.1:0", name);
        let plane = start(&config, "").await;
        // The same port again, as a service has it.
        let config_again = world.configure_as(options, &plane.distribution.to_string(), name);
        assert_eq!(config, config_again);
        Self { config, plane }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.plane.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

/// Both, and the edges between them.
struct Pair {
    world: World,
    replicas: [Replica; 2],
    identities: [Arc<Identity>; 2],
    edges: Vec<Arc<TestEdge>>,
    operator: String,
}

impl Pair {
    /// What fronts the fleet sends nobody to edge `edge`, as it must before the edge is without a control plane: one that
    /// is not connected knows no new challenge, and a CA that met it would call the order invalid.
    fn withdraw(&self, edge: usize) {
        self.world.stand_in.set_edges(vec![self.edges[1 - edge].clone()]);
    }

    /// Edge `edge`, which is withdrawn, goes to replica `to` with what it has, and is back when it knows what the fleet knows.
    async fn hang(&mut self, store: &Store, edge: usize, to: usize) {
        self.withdraw(edge);
        let state = self.edges[edge].leave();
        let address = self.replicas[to].plane.distribution;
        let edge_there = Arc::new(TestEdge::resume(address, self.identities[edge].clone(), state).await);
        self.edges[edge] = edge_there.clone();
        // Messages are passed on in order: with this one it has all that were sent before.
        let token = ulid::Ulid::new().to_string();
        let set = SetHttp01 {
            host: "last.test".to_owned(),
            token: token.clone(),
            key_authorization: String::new(),
        };
        let message = Urgent {
            expires_unix_ms: u64::try_from(self.world.clock.now_ms() + 60_000).unwrap(),
            action: Some(Action::SetHttp01(set)),
            ..Urgent::default()
        };
        let mut tx = store.begin().await.unwrap();
        relay::send(&mut tx, "the test", None, &message.encode_to_vec()).await.unwrap();
        tx.commit().await.unwrap();
        let is_it =
            |urgent: &Urgent| matches!(&urgent.action, Some(Action::SetHttp01(set)) if set.token == token);
        edge_there.wait("what was sent before it came", |state| state.urgents.iter().any(is_it)).await;
        self.world.stand_in.set_edges(self.edges.clone());
    }

    /// As often the one that orders as any.
    async fn victim(&self, store: &Store, random: &mut StdRng) -> usize {
        let any = random.random_range(0..2);
        if random.random() {
            return any;
        }
        let holder = sql::query_scalar("SELECT holder FROM leases WHERE work = 'issuance' AND until > 0");
        let holder: Option<String> = holder.fetch_optional(&mut store.read().await.unwrap()).await.unwrap();
        let second = std::fs::read_to_string(self.world.path("two").join("replica")).unwrap();
        holder.map_or(any, |holder| usize::from(holder == second))
    }
}

/// Tenants that are made through the API all the time, at either control plane.
struct Writers {
    shared: Arc<Written>,
    tasks: tokio::task::JoinSet<()>,
}

struct Written {
    /// Where the API of each control plane is now.
    apis: Mutex<[SocketAddr; 2]>,
    /// Tenants by name, as the API said.
    acknowledged: Mutex<BTreeMap<String, String>>,
    /// Answers that were not hoped for.
    odd: Mutex<Vec<String>>,
    /// Calls that came to nothing, or to nobody knows what, and were sent again.
    again: AtomicUsize,
    ends: AtomicBool,
}

impl Writers {
    fn start(pair: &Pair, seed: u64) -> Self {
        let apis = Mutex::new([pair.replicas[0].plane.api, pair.replicas[1].plane.api]);
        let shared = Arc::new(Written {
            apis,
            acknowledged: Mutex::default(),
            odd: Mutex::default(),
            again: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        });
        let mut tasks = tokio::task::JoinSet::new();
        for home in 0..2 {
            let (shared, operator) = (shared.clone(), pair.operator.clone());
            let mut random = StdRng::seed_from_u64(seed ^ (home as u64 + 1));
            tasks.spawn(async move {
                for number in 0.. {
                    if shared.ends.load(Ordering::Relaxed) {
                        return;
                    }
                    shared.write(home, &format!("tenant-{home}-{number}"), &operator).await;
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
                }
            });
        }
        Self { shared, tasks }
    }

    /// What was acknowledged, when the last write is.
    async fn end(mut self) -> Arc<Written> {
        self.shared.ends.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.shared
    }
}

impl Written {
    /// Until one of the two has answered that it is done; every call has the same key, as a client's must.
    async fn write(&self, home: usize, name: &str, operator: &str) {
        let (key, body) = (ulid::Ulid::new().to_string(), json!({ "name": name }));
        for turn in 0.. {
            let api = self.apis.lock().unwrap()[(home + turn) % 2];
            let call = post(api, "/v1/tenants", operator, &key, &body);
            match tokio::time::timeout(CALL_DEADLINE, call).await {
                Ok(Some((201, body))) => {
                    let id = body["id"].as_str().unwrap().to_owned();
                    self.acknowledged.lock().unwrap().insert(name.to_owned(), id);
                    return;
                }
                // Away, stopped, or its database has ended what it was in.
                Ok(None | Some((503, _))) | Err(_) => {}
                Ok(Some((status, body))) => self.odd.lock().unwrap().push(format!("{name}: {status} {body}")),
            }
            self.again.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_control_planes_never_order_twice_and_lose_no_write() {
    let Some(database) = postgres::new_database() else { return };
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("{SEED}={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let options = Options {
        challenges: r#"["http-01"]"#,
        // Nothing of what is spent comes back while the test runs, so that the counters can be compared.
        issuer: "[issuer.limits]\norders = \"1000/7d\"\nreserve = 0.0\ntenant_1h = 0\ntenant_24h = 0",
        ca: |args| args.limit = vec!["new-orders=1000/7d".parse().unwrap()],
        ..Options::default()
    };
    let mut world = World::start(&options).await.unwrap();
    world.database = Some(database);
    // What the CA has done is often not yet known here when it happens.
    world.faults(json!({ "kind": "slow", "share": 0.3, "delay_ms": 500, "count": 1_000_000 })).await;
    let store = world.store().await;
    let mut pair = begin(world, &options).await;
    let writers = Writers::start(&pair, seed);
    let mut tx = store.begin().await.unwrap();
    let tenant = add_tenant(&mut tx, &[], "registered_domain").await;
    tx.commit().await.unwrap();
    let (mut names, began) = (Vec::new(), Instant::now());
    for round in 0..ROUNDS {
        for of_round in 0..2 {
            let name = format!("shop{round}-{of_round}.test");
            let mut tx = store.begin().await.unwrap();
            add_domain(&mut tx, tenant, &name).await;
            tx.commit().await.unwrap();
            names.push(name);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..4_000))).await;
        let victim = pair.victim(&store, &mut random).await;
        pair.withdraw(victim);
        if random.random() {
            println!("{:?}: round {round}: kill {victim}", began.elapsed());
            pair.replicas[victim].plane.child.kill().await.unwrap();
            pair.hang(&store, victim, 1 - victim).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
            pair.replicas[victim].plane = start(&pair.replicas[victim].config, "").await;
            writers.shared.apis.lock().unwrap()[victim] = pair.replicas[victim].plane.api;
        } else {
            // Half of the time for longer than a term lasts.
            let stopped = random.random_range(0..15_000) + if random.random() { 16_000 } else { 0 };
            println!("{:?}: round {round}: stop {victim} for {stopped} ms", began.elapsed());
            pair.replicas[victim].signal(Signal::STOP);
            pair.hang(&store, victim, 1 - victim).await;
            tokio::time::sleep(Duration::from_millis(stopped)).await;
            pair.replicas[victim].signal(Signal::CONT);
        }
        pair.hang(&store, victim, victim).await;
    }
    until_issued(&store, names.len(), seed).await;
    let written = writers.end().await;
    for (number, edge) in pair.edges.iter().enumerate() {
        edge.wait(&format!("all certificates at edge {number} (seed {seed})"), |state| {
            let is_credential = |(kind, _): &&(u32, String)| *kind == ResourceKind::Credential as u32;
            state.resources.keys().filter(is_credential).count() == names.len()
        })
        .await;
    }
    let limits = Config::read(&pair.replicas[0].config).unwrap().issuers[0].limits();
    end(pair, &store, &limits, &names, seed).await;
    assert_kept_once(&store, &written, seed).await;
}

/// Only the second control plane's responder is asked, and only the first one issues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_control_plane_puts_up_another_ones_responder_answers() {
    let Some(database) = postgres::new_database() else { return };
    let options = Options { challenges: r#"["dns-01"]"#, ..Options::default() };
    let mut world = World::start(&options).await.unwrap();
    world.database = Some(database);
    let store = world.store().await;
    let pair = begin(world, &options).await;
    let issuing: Vec<String> = sql::query_scalar("SELECT holder FROM leases WHERE work = 'issuance'")
        .fetch_all(&mut store.read().await.unwrap())
        .await
        .unwrap();
    assert_eq!(issuing, [std::fs::read_to_string(pair.world.path("one").join("replica")).unwrap()]);
    pair.world.forward_zone(pair.replicas[1].plane.responder).await;
    let mut tx = store.begin().await.unwrap();
    let tenant = add_tenant(&mut tx, &[], "registered_domain").await;
    let domain = add_domain(&mut tx, tenant, "*.shop.test").await;
    pair.world.delegate("shop.test", domain).await;
    tx.commit().await.unwrap();
    pair.edges[1]
        .wait("the wildcard's certificate", |state| {
            state.resources.keys().any(|(kind, _)| *kind == ResourceKind::Credential as u32)
        })
        .await;
    for replica in pair.replicas {
        stop(replica.plane).await;
    }
    let left: i64 = sql::query_scalar("SELECT COUNT(*) FROM responders")
        .fetch_one(&mut store.read().await.unwrap())
        .await
        .unwrap();
    assert_eq!(left, 0, "nobody waits for those that have ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_names_the_control_plane_whose_responder_does_not_answer_and_goes_on_without_it() {
    let Some(database) = postgres::new_database() else { return };
    let options = Options { challenges: r#"["dns-01"]"#, ..Options::default() };
    let mut world = World::start(&options).await.unwrap();
    world.database = Some(database);
    let lab = Lab::in_world(world, &options).await;
    let mut tx = lab.begin().await;
    responder::put(&mut tx, "another", "192.0.2.6:7443", 0).await.unwrap();
    // It lives, and never comes to answer.
    sql::query("UPDATE responders SET seen_at = seen_at + 3600000 WHERE replica = 'another'")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let tenant = lab.tenant(&[], "registered_domain").await;
    let began = Instant::now();
    let domains = lab.domains(tenant, &["*.shop.test"]).await;
    lab.delegate("shop.test", domains[0]).await;
    let said = "SELECT error FROM orders WHERE error LIKE '%192.0.2.6:7443 (another) has not said%'";
    let deadline = began + RESPONDERS_DEADLINE + Duration::from_secs(60);
    while lab.rows(said).await.is_empty() {
        let all = lab.rows("SELECT state, COALESCE(error, '') FROM orders").await;
        assert!(Instant::now() < deadline, "{all:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() >= RESPONDERS_DEADLINE, "as long as it lives it is waited for");
    assert_eq!(lab.world.stats().await["certificates"]["issued"], 0);
    let mut tx = lab.begin().await;
    sql::query("UPDATE responders SET seen_at = 0 WHERE replica = 'another'").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    lab.until_covered(1).await;
}

/// The last term may have to end first, and what was under way is tried again after a pause.
async fn until_issued(store: &Store, names: usize, seed: u64) {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let mut read = store.read().await.unwrap();
        let live: i64 = sql::query_scalar("SELECT COUNT(*) FROM lineages WHERE live_credential IS NOT NULL")
            .fetch_one(&mut read)
            .await
            .unwrap();
        if usize::try_from(live).unwrap() == names {
            return;
        }
        if Instant::now() > deadline {
            let orders: Vec<String> = sql::query_scalar(
                "SELECT names || ' ' || state || ' ' || next_at || ' ' || COALESCE(error, '') FROM orders ORDER BY id",
            )
            .fetch_all(&mut read)
            .await
            .unwrap();
            panic!("seed {seed}: {live} of {names} names have a certificate: {orders:#?}");
        }
        drop(read);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn begin(world: World, options: &Options) -> Pair {
    let one = Replica::start(&world, options, "one").await;
    let two = Replica::start(&world, options, "two").await;
    let operator = std::fs::read_to_string(world.path("operator-token")).unwrap().trim().to_owned();
    let mut identities = Vec::new();
    let mut edges = Vec::new();
    for replica in [&one, &two] {
        // Any replica's token is good at any other.
        let identity = Identity::join(one.plane.distribution, &replica.plane.token).await.unwrap();
        let identity = Arc::new(identity);
        let edge = TestEdge::resume(replica.plane.distribution, identity.clone(), State::default()).await;
        edge.wait("the first snapshot", |state| state.snapshots == 1).await;
        identities.push(identity);
        edges.push(Arc::new(edge));
    }
    world.stand_in.set_edges(edges.clone());
    let identities = identities.try_into().unwrap_or_else(|_| unreachable!("two"));
    Pair { world, replicas: [one, two], identities, edges, operator }
}

/// Ends both and looks at what they and the CA have.
async fn end(pair: Pair, store: &Store, limits: &Limits, names: &[String], seed: u64) {
    let Pair { world, replicas, .. } = pair;
    for replica in replicas {
        stop(replica.plane).await;
    }
    let stats = world.stats().await;
    println!("fetches that were not answered: {:#?}", world.stand_in.missed.lock().unwrap());
    assert_one_order_per_set(&stats, seed);
    let new_orders = stats["new_orders"].as_array().unwrap();
    let sets: BTreeSet<String> = new_orders.iter().map(|entry| entry["names"].to_string()).collect();
    assert_eq!(sets.len(), names.len(), "seed {seed}: {sets:?}");
    assert_eq!(stats["orders"]["created"], names.len(), "seed {seed}: {new_orders:?}");
    assert_eq!(stats["certificates"]["issued"], names.len(), "seed {seed}");
    assert_eq!(stats["accounts"]["created"], 1, "seed {seed}");
    assert_eq!(stats["rate_limited"], json!({}), "seed {seed}");
    println!("{} orders of {} sets, asked for {} times", names.len(), sets.len(), new_orders.len());
    assert_we_count_no_less(&world, &mut store.read().await.unwrap(), limits).await;
}

/// For each set of names one order, and another one only when the CA has called the one before invalid; here every edge that
/// the CA meets knows the challenge, so it never does.
fn assert_one_order_per_set(stats: &Value, seed: u64) {
    let mut orders: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for entry in stats["new_orders"].as_array().unwrap() {
        if let Some(order) = entry["order"].as_str() {
            // Each name is in a set of its own.
            orders.entry(entry["names"][0].as_str().unwrap()).or_default().insert(order);
        }
    }
    let validations = &stats["validations"];
    println!("{} validations, {} failed", validations["performed"], validations["failed"]);
    for (name, orders) in orders {
        let failed = validations["by_name"][name]["http-01"]["failed"].as_u64().unwrap_or(0);
        assert_eq!(
            orders.len() as u64,
            1 + failed,
            "seed {seed}: {name} was ordered {} times, {failed} validations failed",
            orders.len()
        );
    }
    assert_eq!(validations["failed"], 0, "seed {seed}: {}", validations["by_name"]);
}

/// Every write that the API has acknowledged is there, once, and no other.
async fn assert_kept_once(store: &Store, written: &Written, seed: u64) {
    let acknowledged = written.acknowledged.lock().unwrap().clone();
    let again = written.again.load(Ordering::Relaxed);
    println!("{} writes acknowledged, {again} calls sent again", acknowledged.len());
    assert!(acknowledged.len() >= 20 * ROUNDS, "seed {seed}: only {acknowledged:?} were acknowledged");
    assert_eq!(*written.odd.lock().unwrap(), Vec::<String>::new(), "seed {seed}");
    let rows = sql::query("SELECT name, id FROM tenants WHERE name LIKE 'tenant-%' ORDER BY name, id")
        .fetch_all(&mut store.read().await.unwrap())
        .await
        .unwrap();
    let kept: Vec<(String, String)> =
        rows.iter().map(|row| (row.try_get(0).unwrap(), row.try_get(1).unwrap())).collect();
    assert_eq!(kept, Vec::from_iter(acknowledged), "seed {seed}: a write is lost, or done twice");
}

/// `None`: nobody is there, or the answer broke off.
async fn post(at: SocketAddr, path: &str, token: &str, key: &str, body: &Value) -> Option<(u16, Value)> {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         idempotency-key: {key}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
    );
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.get(9..12)?.parse().ok()?, serde_json::from_str(body).ok()?))
}
