//! A control plane killed at every step boundary of an issuance, and of a renewal that replaces, and started again: one
//! order, one account, one certificate more, by the CA's own log.
//!
//! The control plane is a child process: this test binary, told to be one. The CA, the DNS and the edge stay here.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use portico_api::distribution::{Resource, ResourceKind};
use portico_cert_store::Custody;
use portico_control_plane::clock::Clock;
use portico_control_plane::config::Config;
use portico_control_plane::plan::ledger::Limits;
use portico_control_plane::store::{edge_key, sql};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::edge::{Identity, State, TestEdge};
use crate::failing::assert_one_order_per_set;
use crate::lab::{Options, World, add_domain, add_tenant, cell_id};
use crate::ledger::assert_we_count_no_less;

const CHILD: &str = "PORTICO_ISSUANCE_CHILD";
const FAIL_POINT: &str = "PORTICO_FAIL_POINT";

/// What the child is; as a test of its own it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_control_plane() {
    let Ok(config) = std::env::var(CHILD) else { return };
    portico_control_plane::tasks::issuance::arm_fail_point(std::env::var(FAIL_POINT).unwrap());
    let config = Config::read(Path::new(&config)).unwrap();
    let running = portico_control_plane::start_at(config, Clock::default()).await.unwrap();
    // There is none where an edge keeps its keys to itself.
    let token = running.distribution.create_join_token(&cell_id("default"), 600).await;
    let token = token.map_or_else(|_| "-".to_owned(), |token| token.token);
    println!(
        "\nready {} {} {token} {}",
        running.distribution.address,
        running.responder.unwrap(),
        running.api
    );
    // Until the parent is done with it.
    let stdin =
        tokio::task::spawn_blocking(|| std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()));
    stdin.await.unwrap().unwrap();
    running.shutdown().await.unwrap();
}

pub struct Plane {
    pub child: Child,
    /// Kept apart: waiting for a child closes its own.
    stdin: ChildStdin,
    _output: Lines<BufReader<ChildStdout>>,
    pub distribution: std::net::SocketAddr,
    pub api: std::net::SocketAddr,
    pub responder: std::net::SocketAddr,
    pub token: String,
}

pub async fn start(config: &Path, fail_point: &str) -> Plane {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_control_plane", "--nocapture", "--test-threads", "1"])
        .env(CHILD, config)
        .env(FAIL_POINT, fail_point)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let line = output.next_line().await.unwrap().expect("the child ended before it was ready");
            if let Some(rest) = line.strip_prefix("ready ") {
                return rest.to_owned();
            }
        }
    });
    let line = line.await.expect("the child was not ready in time");
    let words: Vec<&str> = line.split(' ').collect();
    Plane {
        child,
        stdin,
        _output: output,
        distribution: words[0].parse().unwrap(),
        responder: words[1].parse().unwrap(),
        token: words[2].to_owned(),
        api: words[3].parse().unwrap(),
    }
}

/// A world with two names of a tenant of which none has a certificate, and a control plane that has run once.
struct Stage {
    world: World,
    config: PathBuf,
    identity: Arc<Identity>,
}

impl Stage {
    /// The edge keeps its keys where an order could not come to `fail_point` otherwise.
    async fn set(fail_point: &str) -> Self {
        let options = Options::default();
        let world = World::start(&options).await.unwrap();
        // The first start makes the database and takes a port; tenant and domains are there before issuance looks.
        let config = world.configure(&options, "127.0.0.1:0");
        let first = start(&config, "").await;
        let config = world.configure(&options, &first.distribution.to_string());
        let identity = Arc::new(Identity::join(first.distribution, &first.token).await.unwrap());
        stop(first).await;
        let store = world.store().await;
        let mut tx = store.begin().await.unwrap();
        let tenant = add_tenant(&mut tx, &[], "registered_domain").await;
        for name in ["shop.test", "www.shop.test"] {
            add_domain(&mut tx, tenant, name).await;
        }
        if fail_point.starts_with("order.key_") {
            edge_key::set_custody(&mut tx, &cell_id("default"), Custody::Edge).await.unwrap();
        }
        tx.commit().await.unwrap();
        store.close().await;
        Self { world, config, identity }
    }

    /// Runs until the edge has a version of the credential above `known`, and ends in good order.
    async fn run_until_newer(&self, known: u64) -> u64 {
        let plane = start(&self.config, "").await;
        let edge = connect(&self.world, &plane, self.identity.clone()).await;
        let version = |state: &State| {
            let of_kind = |((kind, _), resource): (&(u32, String), &Resource)| {
                (*kind == ResourceKind::Credential as u32).then_some(resource.version)
            };
            state.resources.iter().filter_map(of_kind).max()
        };
        edge.wait("the credential", |state| version(state).is_some_and(|version| version > known)).await;
        stop(plane).await;
        edge.with(|state| version(state)).unwrap()
    }

    /// Runs until the crash at `fail_point`; fails when the control plane was not killed there.
    async fn crash(&self, fail_point: &str) {
        let mut doomed = start(&self.config, fail_point).await;
        let edge = connect(&self.world, &doomed, self.identity.clone()).await;
        let ended = tokio::time::timeout(Duration::from_secs(60), doomed.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{fail_point} was never reached")).unwrap();
        assert!(!status.success(), "{fail_point}: ended by itself");
        drop(edge);
    }

    /// By the CA's log that many orders and certificates, of one account, and one certificate in force.
    async fn assert_spent(&self, orders: u64, fail_point: &str) {
        let stats = self.world.stats().await;
        assert_eq!(stats["orders"]["created"], orders, "{fail_point}: {}", stats["new_orders"]);
        assert_eq!(stats["orders"]["replacing"], orders - 1, "{fail_point}: {}", stats["new_orders"]);
        assert_eq!(stats["certificates"]["issued"], orders, "{fail_point}");
        assert_eq!(stats["accounts"]["created"], 1, "{fail_point}");
        let store = self.world.store().await;
        let mut read = store.read().await.unwrap();
        let live: i64 = sql::query_scalar("SELECT COUNT(*) FROM lineages WHERE live_credential IS NOT NULL")
            .fetch_one(&mut read)
            .await
            .unwrap();
        assert_eq!(live, 1, "{fail_point}");
        assert_we_count_no_less(&self.world, &mut read, &Limits::default()).await;
    }
}

async fn crash_at(fail_point: &'static str) {
    let stage = Stage::set(fail_point).await;
    stage.crash(fail_point).await;
    stage.run_until_newer(0).await;
    assert_one_order_per_set(&stage.world.stats().await);
    stage.assert_spent(1, fail_point).await;
}

/// The same for a certificate that its CA wants replaced now. What was validated is validated again, so the renewal passes
/// each step that the first issuance did.
async fn crash_of_a_renewal_at(fail_point: &'static str) {
    let stage = Stage::set(fail_point).await;
    let first = stage.run_until_newer(0).await;
    stage.world.set_profile(json!({ "name": "classic", "reuse_seconds": 0 })).await;
    let text = portico_control_plane::clock::rfc3339;
    let now = stage.world.clock.now_ms();
    let window = json!({ "start": text(now - 1_800_000), "end": text(now + 10_000) });
    stage.world.set_windows(window).await;
    let store = stage.world.store().await;
    let mut tx = store.begin().await.unwrap();
    // Else the CA is asked again in some hours.
    sql::query("UPDATE credentials SET window_next_at = 0").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    store.close().await;
    stage.crash(fail_point).await;
    stage.run_until_newer(first).await;
    stage.assert_spent(2, fail_point).await;
}

pub async fn connect(world: &World, plane: &Plane, identity: Arc<Identity>) -> Arc<TestEdge> {
    world.forward_zone(plane.responder).await;
    let edge = Arc::new(TestEdge::resume(plane.distribution, identity, State::default()).await);
    world.stand_in.set_edges(vec![edge.clone()]);
    edge
}

pub async fn stop(mut plane: Plane) {
    drop(plane.stdin);
    let ended = tokio::time::timeout(Duration::from_secs(60), plane.child.wait()).await;
    assert!(ended.expect("the child did not end").unwrap().success());
}

macro_rules! crash_points {
    ($crash:ident: $($test:ident: $point:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crash($point).await;
            }
        )*
        /// The points that are crashed at, for the check that none is left out.
        const TESTED: &[&str] = &[$($point),*];
    };
}

crash_points! {
    crash_at:
    killed_after_the_account_key_is_stored: "account.intended",
    killed_after_the_account_is_registered: "account.registered",
    killed_after_the_account_is_recorded: "account.recorded",
    killed_after_the_order_is_planned: "order.planned",
    killed_after_the_edge_made_the_key: "order.key_made",
    killed_after_the_edges_request_is_recorded: "order.key_recorded",
    killed_after_the_order_is_counted: "order.counted",
    killed_after_the_ca_made_the_order: "order.created",
    killed_after_the_orders_url_is_recorded: "order.created_recorded",
    killed_after_the_challenges_stand: "order.challenges_placed",
    killed_after_the_challenges_are_recorded: "order.challenged_recorded",
    killed_after_the_ca_was_told_to_look: "order.challenges_ready",
    killed_after_the_names_are_validated: "order.validated",
    killed_after_ready_is_recorded: "order.ready_recorded",
    killed_after_the_request_is_sent: "order.finalized",
    killed_after_finalizing_is_recorded: "order.finalizing_recorded",
    killed_after_the_certificate_is_fetched: "order.certificate_fetched",
    killed_after_the_certificate_is_published: "order.published",
}

#[test]
fn every_fail_point_is_crashed_at() {
    assert_eq!(TESTED, portico_control_plane::tasks::issuance::FAIL_POINTS);
}

mod renewal {
    use super::crash_of_a_renewal_at;

    crash_points! {
        crash_of_a_renewal_at:
        killed_after_the_order_is_planned: "order.planned",
        killed_after_the_edge_made_the_key: "order.key_made",
        killed_after_the_edges_request_is_recorded: "order.key_recorded",
        killed_after_the_order_is_counted: "order.counted",
        killed_after_the_ca_made_the_order: "order.created",
        killed_after_the_orders_url_is_recorded: "order.created_recorded",
        killed_after_the_challenges_stand: "order.challenges_placed",
        killed_after_the_challenges_are_recorded: "order.challenged_recorded",
        killed_after_the_ca_was_told_to_look: "order.challenges_ready",
        killed_after_the_names_are_validated: "order.validated",
        killed_after_ready_is_recorded: "order.ready_recorded",
        killed_after_the_request_is_sent: "order.finalized",
        killed_after_finalizing_is_recorded: "order.finalizing_recorded",
        killed_after_the_certificate_is_fetched: "order.certificate_fetched",
        killed_after_the_certificate_is_published: "order.published",
    }

    /// But for those of an account, which is there by then.
    #[test]
    fn every_fail_point_is_crashed_at() {
        let all = portico_control_plane::tasks::issuance::FAIL_POINTS;
        let of_orders: Vec<_> = all.iter().copied().filter(|point| point.starts_with("order.")).collect();
        assert_eq!(TESTED, of_orders);
    }
}
