//! A laboratory: DNS stub, CA, edges, control plane, and what happened in each.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portico_acme_ca::{CaArgs, CaHandle, DnsArgs, DnsHandle};
use portico_api::distribution::ResourceKind;
use portico_cert_store::{CellId, DomainId, Generation, TenantId};
use portico_control_plane::Running;
use portico_control_plane::clock::Clock;
use portico_control_plane::config::Config;
use portico_control_plane::sealer::KeyEncryptionKey;
use portico_control_plane::store::{Server, Store, WriteTx, change, sql};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing_subscriber::filter::LevelFilter;

use crate::edge::{Identity, TestEdge};
use crate::pebble::Pebble;
use crate::postgres;
use crate::stand_in::StandIn;

pub const ZONE: &str = "acme.provider.test";

/// Which CA.
pub enum Ca {
    Ours(CaHandle),
    Pebble(Pebble),
}

/// What surrounds a control plane and outlives it.
pub struct World {
    pub folder: TempDir,
    pub dns: DnsHandle,
    pub ca: Ca,
    /// A CA of another owner, the issuer "second".
    pub second: Option<CaHandle>,
    pub stand_in: StandIn,
    pub clock: Clock,
    /// The URL of a PostgreSQL database; `None`: a file in `data`.
    pub database: Option<String>,
}

/// Settings of a lab; the rest is the default.
pub struct Options {
    pub cells: Vec<&'static str>,
    pub challenges: &'static str,
    pub preflight: bool,
    /// Further lines of the `[[issuer]]` table; `@` stands for the world's folder.
    pub issuer: &'static str,
    /// Further lines of a second issuer, which is there only then.
    pub second: Option<&'static str>,
    /// What stands before the first table.
    pub more: &'static str,
    /// Further lines of `[dns]`.
    pub dns: &'static str,
    pub pebble: bool,
    /// Settings of our own CA.
    pub ca: fn(&mut CaArgs),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cells: vec!["default"],
            challenges: r#"["http-01", "tls-alpn-01", "dns-01"]"#,
            preflight: true,
            issuer: "",
            second: None,
            more: "",
            dns: "",
            pebble: false,
            ca: |_| {},
        }
    }
}

/// A world with a control plane in this process and its edges connected.
pub struct Lab {
    pub world: World,
    pub running: Running,
    pub edges: BTreeMap<String, Arc<TestEdge>>,
}

impl World {
    /// `None`: the wanted CA is not on this machine.
    pub async fn start(options: &Options) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let dns = portico_acme_ca::dns::start(DnsArgs::in_process(vec![Ipv4Addr::LOCALHOST])).await.unwrap();
        let stand_in = StandIn::start().await;
        let start = async |name: &str, change: fn(&mut CaArgs)| {
            let mut args = CaArgs::in_process(dns.addresses.dns);
            args.http_port = stand_in.http_port;
            args.tls_port = stand_in.tls_port;
            args.root_out = Some(folder.path().join(format!("{name}root.pem")));
            args.api_ca_out = Some(folder.path().join(format!("{name}api-ca.pem")));
            change(&mut args);
            portico_acme_ca::start(args).await.unwrap()
        };
        let ca = if options.pebble {
            let mut args = CaArgs::in_process(dns.addresses.dns);
            (options.ca)(&mut args);
            let external = args.external_account.first();
            Ca::Pebble(Pebble::start(folder.path(), dns.addresses.dns, &stand_in, external).await?)
        } else {
            Ca::Ours(start("", options.ca).await)
        };
        let second = match options.second {
            Some(_) => Some(start("second-", |args| args.caa_identity = "second-ca.test".to_owned()).await),
            None => None,
        };
        let database = postgres::is_chosen().then(postgres::new_database).flatten();
        Some(Self { folder, dns, ca, second, stand_in, clock: Clock::default(), database })
    }

    pub fn directory(&self) -> String {
        match &self.ca {
            Ca::Ours(ca) => ca.addresses.directory.clone(),
            Ca::Pebble(pebble) => pebble.directory.clone(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The control plane's database, opened beside it.
    pub async fn store(&self) -> Store {
        match &self.database {
            Some(url) => Store::connect(&Server::parse(url, None).unwrap()).await.unwrap(),
            None => Store::open(&self.path("data")).await.unwrap(),
        }
    }

    /// Writes the control plane's configuration; `distribution`: `127.0.0.1:0` or the port of an earlier start.
    pub fn configure(&self, options: &Options, distribution: &str) -> PathBuf {
        self.configure_as(options, distribution, "data")
    }

    /// The same for one of several on one database; `data`: its folder.
    pub fn configure_as(&self, options: &Options, distribution: &str, data: &str) -> PathBuf {
        let path = self.path(&format!("{data}.toml"));
        let (data, kek) = (self.path(data), self.path("kek"));
        let url = self.database.as_ref().map(|url| format!("database = \"{url}\""));
        if !kek.exists() {
            KeyEncryptionKey::create(&kek, &data).unwrap();
        }
        let text = format!(
            r#"
{database}
data = {data:?}
api = "127.0.0.1:0"
distribution = "{distribution}"
key_encryption_key_file = {kek:?}
operator_token_file = {token:?}
{more}
[dns]
resolvers = ["{dns}"]
responder = "127.0.0.1:0"
challenge_zone = "{ZONE}"
{more_dns}
[fleet]
public_addresses = ["127.0.0.1"]
http_port = {http}
https_port = {tls}
[preflight]
enabled = {preflight}
[[issuer]]
name = "test"
directory = "{directory}"
root_pem = {api_ca:?}
roots_pem = {root:?}
contact = "mailto:ops@provider.test"
challenges = {challenges}
poll_ms = 40
requests_per_second = 5000
nonces_per_second = 5000
{serialize}
{issuer}
"#,
            token = self.path("operator-token"),
            database = url.unwrap_or_default(),
            dns = self.dns.addresses.dns,
            http = self.stand_in.http_port,
            tls = self.stand_in.tls_port,
            preflight = options.preflight,
            directory = self.directory(),
            api_ca = self.path("api-ca.pem"),
            root = self.path("root.pem"),
            challenges = options.challenges,
            serialize = if options.pebble { "serialize_orders = true" } else { "" },
            issuer = options.issuer.replace('@', &self.folder.path().display().to_string()),
            more = options.more,
            more_dns = options.dns,
        );
        let second = options.second.map(|more| self.second_issuer(options, more)).unwrap_or_default();
        std::fs::write(&path, text + &second).unwrap();
        path
    }

    fn second_issuer(&self, options: &Options, more: &str) -> String {
        let ca = self.second.as_ref().expect("it was started");
        format!(
            r#"
[[issuer]]
name = "second"
directory = "{directory}"
root_pem = {api_ca:?}
roots_pem = {root:?}
challenges = {challenges}
poll_ms = 40
requests_per_second = 5000
nonces_per_second = 5000
{more}
"#,
            directory = ca.addresses.directory,
            api_ca = self.path("second-api-ca.pem"),
            root = self.path("second-root.pem"),
            challenges = options.challenges,
        )
    }

    pub async fn set_dns(&self, path: &str, body: Value) {
        let (status, answer) = http(self.dns.addresses.management, "POST", path, &body).await;
        assert!((200..300).contains(&status), "{path} {body}: {status} {answer}");
    }

    /// Waits until the DNS stub was asked that often.
    pub async fn until_dns_asked(&self, least: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let (_, text) = http(self.dns.addresses.management, "GET", "/stats", &Value::Null).await;
            let stats: Value = serde_json::from_str(&text).unwrap();
            if stats["queries"].as_u64().unwrap() >= least {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{stats}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The tenant follows the delegation advice for a name.
    pub async fn delegate(&self, base: &str, domain: DomainId) {
        let value = format!("{}.{ZONE}.", label(domain));
        let name = format!("_acme-challenge.{base}");
        self.set_dns("/records", json!({ "name": name, "type": "CNAME", "values": [value] })).await;
    }

    /// Lets the DNS stub ask the control plane's responder.
    pub async fn forward_zone(&self, responder: SocketAddr) {
        self.set_dns("/forward", json!({ "zone": ZONE, "address": responder })).await;
    }

    /// The counters of our own CA.
    pub async fn stats(&self) -> Value {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble has no counters") };
        let (status, text) = http(ca.addresses.management, "GET", "/stats", &Value::Null).await;
        assert_eq!(status, 200);
        serde_json::from_str(&text).unwrap()
    }

    /// The counters of the second CA.
    pub async fn second_stats(&self) -> Value {
        let second = self.second.as_ref().expect("it was started");
        let (status, text) = http(second.addresses.management, "GET", "/stats", &Value::Null).await;
        assert_eq!(status, 200);
        serde_json::from_str(&text).unwrap()
    }

    /// Nothing goes wrong at our own CA any more.
    pub async fn no_faults(&self) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble has no faults on demand") };
        let (status, text) = http(ca.addresses.management, "DELETE", "/faults", &Value::Null).await;
        assert_eq!(status, 204, "{text}");
    }

    pub async fn faults(&self, faults: Value) {
        self.set_faults("POST", faults).await;
    }

    /// As [`Self::faults`], instead of what went wrong so far.
    pub async fn other_faults(&self, faults: Value) {
        self.set_faults("PUT", faults).await;
    }

    async fn set_faults(&self, method: &str, faults: Value) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble has no faults on demand") };
        let (status, text) = http(ca.addresses.management, method, "/faults", &faults).await;
        assert_eq!(status, 200, "{text}");
    }

    /// Names that our own CA takes into no order from now on.
    pub async fn ca_refuses(&self, names: &[&str]) {
        self.ca_refuses_as(json!({ "names": names })).await;
    }

    /// The same, with the CA's manner of saying so.
    pub async fn ca_refuses_as(&self, refused: Value) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble is told at its start") };
        let (status, text) = http(ca.addresses.management, "POST", "/refused", &refused).await;
        assert_eq!(status, 204, "{text}");
    }

    /// Moves both clocks.
    pub async fn advance(&self, days: u64) {
        self.advance_seconds(days * 86_400).await;
    }

    /// Moves both clocks to a moment, Unix milliseconds, or at most a second beyond.
    pub async fn advance_to(&self, at_ms: i64) {
        let left = u64::try_from(at_ms - self.clock.now_ms()).unwrap_or(0);
        self.advance_seconds(left.div_ceil(1000)).await;
    }

    pub async fn advance_seconds(&self, seconds: u64) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble's clock cannot be moved") };
        let body = json!({ "advance_seconds": seconds });
        for ca in [Some(ca), self.second.as_ref()].into_iter().flatten() {
            let (status, text) = http(ca.addresses.management, "POST", "/clock", &body).await;
            assert_eq!(status, 200, "{text}");
        }
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// What our own CA gives from now on in a profile.
    pub async fn set_profile(&self, wanted: Value) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble's profiles are fixed at its start") };
        let (status, text) = http(ca.addresses.management, "POST", "/profiles", &wanted).await;
        assert!(status < 300, "{text}");
    }

    /// All places of our own CA but its directory go elsewhere.
    pub async fn move_places(&self) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble's places are fixed") };
        let (status, text) = http(ca.addresses.management, "POST", "/move", &json!(null)).await;
        assert_eq!(status, 204, "{text}");
    }

    /// Renewal windows of our own CA's certificates.
    pub async fn set_windows(&self, wanted: Value) {
        let Ca::Ours(ca) = &self.ca else { panic!("Pebble has no renewal information") };
        let (status, text) = http(ca.addresses.management, "POST", "/ari", &wanted).await;
        assert_eq!(status, 200, "{text}");
    }
}

impl Lab {
    pub async fn start(options: &Options) -> Self {
        Self::try_start(options).await.expect("our own CA is always here")
    }

    /// `None`: Pebble is wanted and is not on this machine.
    pub async fn try_start(options: &Options) -> Option<Self> {
        Self::try_start_with(options, |_| {}).await
    }

    /// `prepare` comes before the control plane.
    pub async fn try_start_with(options: &Options, prepare: impl FnOnce(&World)) -> Option<Self> {
        let world = World::start(options).await?;
        prepare(&world);
        Some(Self::in_world(world, options).await)
    }

    pub async fn in_world(world: World, options: &Options) -> Self {
        portico_control_plane::start_logging(LevelFilter::ERROR);
        let config = Config::read(&world.configure(options, "127.0.0.1:0")).unwrap();
        let running = portico_control_plane::start_at(config, world.clock.clone()).await.unwrap();
        world.forward_zone(running.responder.unwrap()).await;
        let mut edges = BTreeMap::new();
        for cell in &options.cells {
            let token = running.distribution.create_join_token(&cell_id(cell), 600).await.unwrap().token;
            let identity = Identity::join(running.distribution.address, &token).await.unwrap();
            let edge = TestEdge::connect(running.distribution.address, identity, Generation::default()).await;
            edge.wait("the first snapshot", |state| state.snapshots == 1).await;
            edges.insert((*cell).to_owned(), Arc::new(edge));
        }
        world.stand_in.set_edges(edges.values().cloned().collect());
        Self { world, running, edges }
    }

    /// A call of the API by an operator.
    pub async fn operator(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let token = std::fs::read_to_string(self.world.path("operator-token")).unwrap();
        let header = format!("authorization: Bearer {}\r\n", token.trim());
        let (status, text) = exchange(self.running.api, method, path, &header, &body).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub fn edge(&self, cell: &str) -> &TestEdge {
        &self.edges[cell]
    }

    pub async fn tenant(&self, cells: &[&str], sharing: &str) -> TenantId {
        let mut tx = self.begin().await;
        let id = add_tenant(&mut tx, cells, sharing).await;
        tx.commit().await.unwrap();
        id
    }

    /// A tenant that names its issuers.
    pub async fn tenant_of(&self, issuers: &[&str]) -> TenantId {
        let mut tx = self.begin().await;
        let id = add_tenant(&mut tx, &[], "registered_domain").await;
        let spec: String = sql::query_scalar("SELECT spec FROM tenants WHERE id = ?")
            .bind(id.to_string())
            .fetch_one(&mut tx)
            .await
            .unwrap();
        let mut spec: Value = serde_json::from_str(&spec).unwrap();
        spec["issuers"] = json!(issuers);
        sql::query("UPDATE tenants SET spec = ? WHERE id = ?")
            .bind(spec.to_string())
            .bind(id.to_string())
            .execute(&mut tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// Domains whose proof stands, written at once.
    pub async fn domains<S: AsRef<str>>(&self, tenant: TenantId, names: &[S]) -> Vec<DomainId> {
        let mut tx = self.begin().await;
        let mut ids = Vec::new();
        for name in names {
            ids.push(add_domain(&mut tx, tenant, name.as_ref()).await);
        }
        tx.commit().await.unwrap();
        ids
    }

    pub async fn begin(&self) -> WriteTx {
        self.running.parts.store.begin().await.unwrap()
    }

    pub async fn delegate(&self, base: &str, domain: DomainId) {
        self.world.delegate(base, domain).await;
    }

    /// Rows of a query, each as text columns.
    pub async fn rows(&self, sql: &'static str) -> Vec<Vec<String>> {
        let mut read = self.running.parts.store.read().await.unwrap();
        let rows = sql::query(sql).fetch_all(&mut read).await.unwrap();
        rows.iter()
            .map(|row| (0..row.columns()).map(|i| row.try_get::<String>(i).unwrap()).collect())
            .collect()
    }

    pub async fn live_credentials(&self) -> Vec<Live> {
        let mut read = self.running.parts.store.read().await.unwrap();
        let rows = sql::query(
            "SELECT c.id, c.names, c.spki_sha256, c.not_after, l.id AS lineage, l.cell FROM lineages l \
             JOIN credentials c ON c.id = l.live_credential WHERE l.retired_at IS NULL ORDER BY c.names, l.cell",
        )
        .fetch_all(&mut read)
        .await
        .unwrap();
        let live = |row: &sql::Row| Live {
            id: row.try_get("id").unwrap(),
            names: serde_json::from_str(&row.try_get::<String>("names").unwrap()).unwrap(),
            spki: row.try_get("spki_sha256").unwrap(),
            not_after: row.try_get("not_after").unwrap(),
            lineage: row.try_get("lineage").unwrap(),
            cell: row.try_get("cell").unwrap(),
        };
        rows.iter().map(live).collect()
    }

    /// Waits until that many names are covered in all cells together.
    pub async fn until_covered(&self, names: usize) -> Vec<Live> {
        let mut live = Vec::new();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let covered: usize = live.iter().map(|live: &Live| live.names.len()).sum();
            if covered >= names {
                return live;
            }
            if tokio::time::Instant::now() > deadline {
                let orders = self.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
                let states =
                    self.rows("SELECT domain_id, methods, COALESCE(error, '') FROM name_states").await;
                let conditions = self.rows("SELECT type, status, reason, message FROM conditions").await;
                panic!("{covered} of {names} names covered; {orders:#?} {states:#?} {conditions:#?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            live = self.live_credentials().await;
        }
    }

    /// Waits until the domain's certificate is told of in these words, looking for new tries at once.
    pub async fn until_text(&self, domain: DomainId, words: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            self.hurry().await;
            let told = self.condition(domain, "CertificateReady").await.unwrap_or_default().join(" ");
            if told.contains(words) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{told}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As [`Self::until_covered`], with no back-off left to wait for.
    pub async fn until_covered_soon(&self, names: usize) -> Vec<Live> {
        let covered = async { self.until_covered(names).await };
        let hurrying = async {
            loop {
                self.hurry().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! { live = covered => live, () = hurrying => unreachable!("it never ends") }
    }

    /// What waits for its next try waits no longer.
    pub async fn hurry(&self) {
        let mut tx = self.begin().await;
        for text in ["UPDATE orders SET next_at = 0 WHERE next_at > 0", "UPDATE name_states SET next_at = 0"]
        {
            sql::query(text).execute(&mut tx).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    pub async fn condition(&self, domain: DomainId, kind: &str) -> Option<Vec<String>> {
        let mut read = self.running.parts.store.read().await.unwrap();
        let row =
            sql::query("SELECT status, reason, message FROM conditions WHERE domain_id = ? AND type = ?")
                .bind(domain.to_string())
                .bind(kind)
                .fetch_optional(&mut read)
                .await
                .unwrap()?;
        Some((0..3).map(|i| row.try_get(i).unwrap()).collect())
    }

    pub async fn until_condition(&self, domain: DomainId, kind: &str, status: &str) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.condition(domain, kind).await;
            match found {
                Some(found) if found[0] == status => return found,
                found if tokio::time::Instant::now() > deadline => {
                    panic!("{kind} is not {status}: {found:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct Live {
    pub id: String,
    pub names: Vec<String>,
    pub spki: Vec<u8>,
    pub not_after: i64,
    pub lineage: String,
    pub cell: String,
}

pub fn cell_id(name: &str) -> CellId {
    CellId::parse(name).unwrap()
}

/// The label below the challenge zone that a test's domain has.
pub fn label(domain: DomainId) -> String {
    domain.to_string().to_ascii_lowercase().replace('_', "-")
}

pub async fn add_tenant(tx: &mut WriteTx, cells: &[&str], sharing: &str) -> TenantId {
    let id = TenantId::generate();
    let spec = json!({ "name": label_of(&id.to_string()), "cells": cells, "sharing": sharing });
    sql::query("INSERT INTO tenants (id, name, spec, revision, created_at) VALUES (?1, ?1, ?2, 1, 0)")
        .bind(id.to_string())
        .bind(spec.to_string())
        .execute(tx)
        .await
        .unwrap();
    change::record(tx, ResourceKind::Tenant, &id.to_string(), Some(&id.to_string())).await.unwrap();
    id
}

pub async fn add_domain(tx: &mut WriteTx, tenant: TenantId, name: &str) -> DomainId {
    let id = DomainId::generate();
    let spec = json!({
        "hostname": name,
        "routes": [{ "action": { "type": "proxy", "origin": "http://192.0.2.1:80" } }],
    });
    sql::query(
        "INSERT INTO domains (id, tenant_id, name, spec, served, proof_label, txt_token, http_token, \
         challenge_label, revision, created_at) VALUES (?1, ?2, ?3, ?4, 1, ?1, ?1, ?1, ?5, 1, ?6)",
    )
    .bind(id.to_string())
    .bind(tenant.to_string())
    .bind(name)
    .bind(spec.to_string())
    .bind(label(id))
    .bind(Clock::default().now_ms())
    .execute(tx)
    .await
    .unwrap();
    change::record(tx, ResourceKind::Domain, &id.to_string(), Some(&tenant.to_string())).await.unwrap();
    id
}

fn label_of(id: &str) -> String {
    id.to_ascii_lowercase().replace('_', "-")
}

/// One small HTTP exchange.
pub async fn http(address: SocketAddr, method: &str, path: &str, body: &Value) -> (u16, String) {
    exchange(address, method, path, "", body).await
}

async fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    header: &str,
    body: &Value,
) -> (u16, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n{header}\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
