//! Two control planes on one PostgreSQL, one of them killed or stopped at random: no set of names is ordered twice, no
//! acknowledged write is lost, the ledger misses nothing that the CA counts, and edges get their certificates on whichever
//! control plane they hang.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_control_plane::config::Config;
use portico_control_plane::limits::RESPONDERS_DEADLINE;
use portico_control_plane::plan::ledger::Limits;
use portico_control_plane::store::{Store, responder, sql};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::crash::{Plane, start, stop};
use crate::edge::{Identity, State, TestEdge};
use crate::failing::assert_one_order_per_set;
use crate::lab::{Lab, Options, World, add_domain, add_tenant};
use crate::ledger::assert_same_counters_in;
use crate::postgres;

const SEED: &str = "PORTICO_TEST_SEED";
const ROUNDS: usize = 6;
/// How long a replica is stopped: up to more than a term lasts.
const STOPPED_MS_MAX: u64 = 20_000;

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

    async fn start_again(&mut self) {
        self.plane = start(&self.config, "").await;
    }
}

/// Both, the edges between them, and what was acknowledged.
struct Pair {
    world: World,
    replicas: [Replica; 2],
    identities: [Arc<Identity>; 2],
    edges: Vec<Arc<TestEdge>>,
    operator: String,
    /// Tenants by name.
    acknowledged: BTreeMap<String, String>,
    tried: usize,
}

impl Pair {
    /// Edge `edge` goes to replica `to` with what it has.
    async fn hang(&mut self, edge: usize, to: usize) {
        let state = self.edges[edge].leave();
        let address = self.replicas[to].plane.distribution;
        let edge_there = TestEdge::resume(address, self.identities[edge].clone(), state).await;
        self.edges[edge] = Arc::new(edge_there);
        self.world.stand_in.set_edges(self.edges.clone());
    }

    /// Makes a tenant at this replica; only what is answered counts.
    async fn write(&mut self, at: usize) {
        self.tried += 1;
        let name = format!("tenant-{}", self.tried);
        let api = self.replicas[at].plane.api;
        let body = json!({ "name": name });
        let made = post(api, "/v1/tenants", &self.operator, &body);
        let answer = tokio::time::timeout(Duration::from_secs(5), made).await;
        if let Ok(Some((201, body))) = answer {
            self.acknowledged.insert(name, body["id"].as_str().unwrap().to_owned());
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
    let store = world.store().await;
    let mut pair = begin(world, &options).await;
    let mut tx = store.begin().await.unwrap();
    let tenant = add_tenant(&mut tx, &[], "registered_domain").await;
    tx.commit().await.unwrap();
    let mut names = Vec::new();
    for round in 0..ROUNDS {
        for of_round in 0..2 {
            let name = format!("shop{round}-{of_round}.test");
            let mut tx = store.begin().await.unwrap();
            add_domain(&mut tx, tenant, &name).await;
            tx.commit().await.unwrap();
            names.push(name);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        let victim = random.random_range(0..2);
        if random.random() {
            println!("round {round}: kill {victim}");
            pair.replicas[victim].plane.child.kill().await.unwrap();
            pair.hang(victim, 1 - victim).await;
            pair.write(1 - victim).await;
            pair.replicas[victim].start_again().await;
        } else {
            let stopped = random.random_range(0..STOPPED_MS_MAX);
            println!("round {round}: stop {victim} for {stopped} ms");
            pair.replicas[victim].signal(Signal::STOP);
            pair.hang(victim, 1 - victim).await;
            pair.write(1 - victim).await;
            tokio::time::sleep(Duration::from_millis(stopped)).await;
            pair.replicas[victim].signal(Signal::CONT);
        }
        pair.hang(victim, victim).await;
        pair.write(victim).await;
    }
    until_issued(&store, names.len(), seed).await;
    for (number, edge) in pair.edges.iter().enumerate() {
        edge.wait(&format!("all certificates at edge {number} (seed {seed})"), |state| {
            let is_credential = |(kind, _): &&(u32, String)| *kind == ResourceKind::Credential as u32;
            state.resources.keys().filter(is_credential).count() == names.len()
        })
        .await;
    }
    let limits = Config::read(&pair.replicas[0].config).unwrap().issuers[0].limits();
    end(pair, &store, &limits, names.len(), seed).await;
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
    let acknowledged = BTreeMap::new();
    Pair { world, replicas: [one, two], identities, edges, operator, acknowledged, tried: 0 }
}

/// Ends both and looks at what they and the CA have.
async fn end(pair: Pair, store: &Store, limits: &Limits, names: usize, seed: u64) {
    let Pair { world, replicas, acknowledged, .. } = pair;
    for replica in replicas {
        stop(replica.plane).await;
    }
    let stats = world.stats().await;
    assert_one_order_per_set(&stats);
    assert_eq!(stats["orders"]["created"], names, "seed {seed}: {}", stats["new_orders"]);
    assert_eq!(stats["certificates"]["issued"], names, "seed {seed}");
    assert_eq!(stats["accounts"]["created"], 1, "seed {seed}");
    let mut read = store.read().await.unwrap();
    assert_same_counters_in(&world, &mut read, limits).await;
    let rows = sql::query("SELECT name, id FROM tenants").fetch_all(&mut read).await.unwrap();
    let kept: BTreeMap<String, String> =
        rows.iter().map(|row| (row.try_get(0).unwrap(), row.try_get(1).unwrap())).collect();
    assert!(acknowledged.len() >= ROUNDS, "seed {seed}: only {acknowledged:?} were acknowledged");
    for (name, id) in &acknowledged {
        assert_eq!(kept.get(name), Some(id), "seed {seed}: an acknowledged write is lost");
    }
}

/// `None`: nobody is there, or the answer broke off.
async fn post(at: SocketAddr, path: &str, token: &str, body: &Value) -> Option<(u16, Value)> {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         idempotency-key: {key}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        key = ulid::Ulid::new(),
    );
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.get(9..12)?.parse().ok()?, serde_json::from_str(body).ok()?))
}
