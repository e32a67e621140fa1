//! DNS-01 in zones that others serve: BIND by dynamic update, a program, a service.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use portico_cert_store::DomainId;
use portico_control_plane::config::{Config, DnsConfig, DnsUpdateConfig, DnsWriterConfig};
use portico_control_plane::dns::lookup::{Found, Lookup};
use portico_control_plane::dns::writer::Writers;
use portico_control_plane::limits;
use portico_control_plane::store::{Store, sql};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::crash;
use crate::edge::Identity;
use crate::lab::{Lab, Options, World, add_domain, add_tenant, http};

const ZONE: &str = "customers.test";
const NAMED: &str = "/usr/sbin/named";
const SECRET: &[u8; 32] = b"a secret that nobody else can kn";

/// BIND as the primary server of [`ZONE`]; it ends with this value.
struct Bind {
    folder: TempDir,
    address: SocketAddr,
    _child: Child,
}

impl Bind {
    /// `None`: it is not on this machine.
    async fn start() -> Option<Self> {
        if !Path::new(NAMED).exists() {
            portico_skipping::skipped(&format!("{NAMED} is not on this machine (apt-get install bind9)"));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let address = portico_ports::reserve();
        let secret = BASE64_STANDARD.encode(SECRET);
        let configuration = format!(
            "options {{ directory \"{path}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
             pid-file \"{path}/pid\"; session-keyfile \"{path}/session\"; dnssec-validation no; }};\ncontrols {{ }};\n\
             key \"portico\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n\
             zone \"{ZONE}\" {{ type primary; file \"{path}/zone\"; \
             update-policy {{ grant portico wildcard *.{ZONE}. TXT; }}; }};\n",
            port = address.port(),
        );
        let zone = "$TTL 60\n@ SOA ns root 1 60 60 600 60\n@ NS ns\nns A 127.0.0.1\nshop A 127.0.0.1\nother A 127.0.0.1\n\
                    _acme-challenge.other CNAME elsewhere.test.\n";
        std::fs::write(folder.path().join("named.conf"), configuration).unwrap();
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        write_secret(&folder.path().join("secret"), &secret);
        write_secret(&folder.path().join("wrong"), &BASE64_STANDARD.encode("another"));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(NAMED)
            .args(["-g", "-c"])
            .arg(folder.path().join("named.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
        // It listens before it has its zones, and refuses updates until then.
        while !log().contains("all zones loaded") || TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < deadline, "named does not answer: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(Self { folder, address, _child: child })
    }

    /// The table that has the control plane write here, with the secret of this file.
    fn table(&self, secret: &str) -> String {
        let secret = self.folder.path().join(secret);
        format!(
            "[[dns.writer]]\nzone = \"{ZONE}\"\n\
             update = {{ server = \"{}\", key = \"portico\", secret_file = {secret:?} }}\n",
            self.address
        )
    }

    /// A writer at this server, with a key of this name and the secret of this file.
    fn writer(&self, zone: &str, key: &str, secret: &str) -> DnsWriterConfig {
        let update = DnsUpdateConfig {
            server: self.address,
            key: key.to_owned(),
            algorithm: "hmac-sha256".to_owned(),
            secret_file: self.folder.path().join(secret),
        };
        DnsWriterConfig { zone: zone.to_owned(), update: Some(update), ..DnsWriterConfig::default() }
    }

    /// Whether it shows a record for the CA.
    async fn has_record(&self) -> bool {
        let only = DnsConfig { resolvers: vec![self.address], ..DnsConfig::default() };
        match Lookup::new(&only).unwrap().txt(&format!("_acme-challenge.shop.{ZONE}")).await {
            Found::Records(_) => true,
            Found::Nothing => false,
            Found::Unknown(why) => panic!("{why}"),
        }
    }
}

fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Only DNS can validate, and this writes it.
fn options(table: String) -> Options {
    Options { challenges: r#"["dns-01"]"#, issuer: Box::leak(table.into_boxed_str()), ..Options::default() }
}

async fn forward(lab: &Lab, bind: &Bind) {
    lab.world.set_dns("/forward", json!({ "zone": ZONE, "address": bind.address })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_is_issued_by_updates_of_bind() {
    let Some(bind) = Bind::start().await else { return };
    let lab = Lab::start(&options(bind.table("secret"))).await;
    forward(&lab, &bind).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let wildcard = format!("*.shop.{ZONE}");
    lab.domains(tenant, &[wildcard.as_str(), &format!("shop.{ZONE}")]).await;
    let live = lab.until_covered(2).await;
    assert!(live.iter().any(|live| live.names.contains(&wildcard)), "{live:?}");
    let stats = lab.world.stats().await;
    assert_eq!(stats["validations"]["by_challenge"]["dns-01"]["performed"], 2, "{stats}");
    until(async || !bind.has_record().await, "no record is left").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_orders_of_one_name_have_their_values_beside_each_other() {
    let Some(bind) = Bind::start().await else { return };
    let options = Options { cells: vec!["default", "other"], ..options(bind.table("secret")) };
    let lab = Lab::start(&options).await;
    forward(&lab, &bind).await;
    let tenant = lab.tenant(&["default", "other"], "registered_domain").await;
    lab.domains(tenant, &[format!("shop.{ZONE}"), format!("*.shop.{ZONE}")]).await;
    let live = lab.until_covered(4).await;
    assert_eq!(live.len(), 2, "a certificate for each cell: {live:?}");
    until(async || !bind.has_record().await, "no record is left").await;
    until(async || lab.rows("SELECT label FROM challenge_records").await.is_empty(), "nor known").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_refuses_is_told_with_what_to_look_at() {
    let Some(bind) = Bind::start().await else { return };
    let write = async |writer: DnsWriterConfig, name: &str| {
        let config = DnsConfig { writer: vec![writer], ..DnsConfig::default() };
        Writers::new(&config).unwrap().add_all(&[(name, "value")]).await
    };
    let name = format!("_acme-challenge.shop.{ZONE}");
    write(bind.writer(ZONE, "portico", "secret"), &name).await.unwrap();
    assert!(bind.has_record().await);
    let mut away = bind.writer(ZONE, "portico", "secret");
    let nobody = portico_ports::reserve();
    away.update.as_mut().unwrap().server = nobody;
    for (writer, name, words) in [
        (bind.writer(ZONE, "portico", "wrong"), name.as_str(), "BADSIG: its key portico"),
        (bind.writer(ZONE, "nobody", "secret"), &name, "BADKEY: it knows no key nobody"),
        (
            bind.writer("elsewhere.test", "portico", "secret"),
            "a.elsewhere.test",
            "NOTAUTH: it does not serve",
        ),
        (bind.writer(ZONE, "portico", "secret"), ZONE, "REFUSED: it takes no update of this name"),
        (away, &name, "Connection refused"),
    ] {
        let server = writer.update.as_ref().unwrap().server;
        let why = write(writer, name).await.unwrap_err().why;
        assert!(why.starts_with(&format!("update at {server}: ")) && why.contains(words), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_whose_record_nobody_may_write_is_told_why() {
    let Some(bind) = Bind::start().await else { return };
    let lab = Lab::start(&options(bind.table("wrong"))).await;
    forward(&lab, &bind).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &[format!("shop.{ZONE}"), format!("other.{ZONE}")]).await;
    // A CNAME that somebody else has put there is not overwritten, and no order is spent on it.
    let advice = lab.until_condition(ids[1], "ChallengeReachable", "false").await;
    assert!(advice[2].contains("is a CNAME to elsewhere.test"), "{advice:?}");
    until(async || told(&lab, "BADSIG: its key portico").await, "the operator is told what BIND says").await;
    until(async || error_of(&lab, "zone customers.test does not take it").await, "the order says what waits")
        .await;
    assert!(!error_of(&lab, "BADSIG").await && !error_of(&lab, "127.0.0.1").await, "that is not for tenants");
    assert_eq!(lab.world.stats().await["validations"]["performed"], 0, "the CA was not told to look");
}

/// Whether an order waits because of this.
async fn error_of(lab: &Lab, text: &str) -> bool {
    let errors = lab.rows("SELECT COALESCE(error, '') FROM orders").await;
    errors.iter().any(|row| row[0].contains(text))
}

/// Whether the operator, and no tenant, was told this of a record.
async fn told(lab: &Lab, text: &str) -> bool {
    let events =
        lab.rows("SELECT text, COALESCE(tenant_id, '') FROM events WHERE kind = 'dns.unwritten'").await;
    assert!(events.iter().all(|event| event[1].is_empty()), "{events:?}");
    events.iter().any(|event| event[0].contains(text))
}

async fn until(is_so: impl AsyncFn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_writes_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let (program, done, allowed) =
        (folder.path().join("hook"), folder.path().join("done"), folder.path().join("allowed"));
    // It fails as long as it does not know the stub's address, and says more than anybody reads.
    let script = format!(
        "#!/bin/sh\n[ -e {allowed:?} ] || {{ echo the provider is away >&2; head -c {more} /dev/zero >&2; exit 3; }}\n\
         echo \"$@\" >> {done:?}\n[ \"$3\" = add ] || exit 0\n\
         exec curl -sf -H 'content-type: application/json' \
         -d \"{{\\\"name\\\":\\\"$4\\\",\\\"type\\\":\\\"TXT\\\",\\\"values\\\":[\\\"$5\\\"]}}\" \"http://$(cat {allowed:?})/records\"\n",
        more = 200 * limits::DNS_WRITER_TEXT_MAX
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let table =
        format!("[[dns.writer]]\nzone = \"{ZONE}\"\nprogram = [{program:?}, \"--provider\", \"x\"]\n");
    let lab = Lab::start(&options(table)).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let name = format!("shop.{ZONE}");
    lab.domains(tenant, &[&name]).await;
    until(async || told(&lab, "ended with exit status: 3: the provider is away").await, "why it waits").await;
    std::fs::write(&allowed, lab.world.dns.addresses.management.to_string()).unwrap();
    lab.until_covered(1).await;
    let lines = async || std::fs::read_to_string(&done).unwrap();
    let called: Vec<String> = lines().await.split_whitespace().map(str::to_owned).collect();
    assert_eq!(called[..4], ["--provider", "x", "add", &format!("_acme-challenge.{name}")]);
    let removed = format!("--provider x remove {} {}", called[3], called[4]);
    until(async || lines().await.contains(&removed), "the record is taken down").await;
}

/// A hook that does what it is asked to at the DNS stub, and notes each call in a file beside it.
struct Hook {
    folder: TempDir,
}

impl Hook {
    /// `before` are lines of a shell script; what it is called with are its arguments.
    fn new(dns: SocketAddr, before: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let script = format!(
            "#!/bin/sh\ncd {path}\n{before}\necho \"$1 $2 $3\" >> calls\n\
             case $1 in add) method=POST;; *) method=DELETE;; esac\n\
             exec curl -s -X $method -H 'content-type: application/json' -d \
             \"{{\\\"name\\\":\\\"$2\\\",\\\"type\\\":\\\"TXT\\\",\\\"values\\\":[\\\"$3\\\"]}}\" http://{dns}/records >/dev/null\n"
        );
        let program = folder.path().join("hook");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn table(&self) -> String {
        format!("[[dns.writer]]\nzone = \"{ZONE}\"\nprogram = [{:?}]\n", self.path("hook"))
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until each value that was added has been removed, of at least one.
    async fn until_clean(&self) {
        let is_clean = async || {
            let calls = self.calls();
            let mut added = calls.iter().filter_map(|call| call.strip_prefix("add ")).peekable();
            let is_removed = |record: &str| calls.contains(&format!("remove {record}"));
            added.peek().is_some() && added.all(is_removed)
        };
        until(is_clean, "each record is taken down").await;
    }
}

/// A control plane that is killed at a point, with a name that is validated by records that a program writes, and started again.
async fn killed_at(fail_point: &str) {
    let world = World::start(&Options::default()).await.unwrap();
    let hook = Hook::new(world.dns.addresses.management, "");
    let options = options(hook.table());
    let config = world.configure(&options, "127.0.0.1:0");
    let first = crash::start(&config, "").await;
    let config = world.configure(&options, &first.distribution.to_string());
    let identity = Arc::new(Identity::join(first.distribution, &first.token).await.unwrap());
    crash::stop(first).await;
    let store = Store::open(&world.path("data")).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let tenant = add_tenant(&mut tx, &[], "registered_domain").await;
    add_domain(&mut tx, tenant, &format!("shop.{ZONE}")).await;
    tx.commit().await.unwrap();
    store.close().await;

    let mut doomed = crash::start(&config, fail_point).await;
    let edge = crash::connect(&world, &doomed, identity.clone()).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), doomed.child.wait()).await;
    assert!(!ended.expect("the point is reached").unwrap().success(), "it ended by itself");
    drop(edge);
    assert_eq!(hook.calls().iter().filter(|call| call.starts_with("add ")).count(), 1, "{:?}", hook.calls());

    let second = crash::start(&config, "").await;
    let edge = crash::connect(&world, &second, identity).await;
    hook.until_clean().await;
    until(async || world.stats().await["certificates"]["issued"] == 1, "it is issued").await;
    drop(edge);
    crash::stop(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_record_was_written_it_is_taken_down_all_the_same() {
    killed_at("order.challenges_placed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_certificate_came_the_record_is_taken_down_all_the_same() {
    killed_at("order.published").await;
}

/// A lab whose records a hook writes; with it a name that is being issued.
async fn with_hook(before: &str) -> (Lab, Hook, Vec<DomainId>) {
    let dns = portico_ports::reserve();
    let hook = Hook::new(dns, before);
    // The hook is named before the stub is there.
    let lab = Lab::start(&options(hook.table())).await;
    let script = std::fs::read_to_string(hook.path("hook")).unwrap();
    let script = script.replace(&dns.to_string(), &lab.world.dns.addresses.management.to_string());
    std::fs::write(hook.path("next"), script).unwrap();
    std::fs::set_permissions(hook.path("next"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(hook.path("next"), hook.path("hook")).unwrap();
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &[format!("shop.{ZONE}")]).await;
    (lab, hook, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_taken_down_is_tried_again() {
    let (lab, hook, _) =
        with_hook("[ $1 = add ] || [ -e back ] || { echo x >> refused; echo away >&2; exit 1; }").await;
    lab.until_covered(1).await;
    until(async || hook.path("refused").exists(), "the removal was tried").await;
    assert_eq!(lab.rows("SELECT label FROM challenge_records").await.len(), 1);
    std::fs::write(hook.path("back"), "").unwrap();
    hook.until_clean().await;
    until(async || lab.rows("SELECT label FROM challenge_records").await.is_empty(), "it is forgotten").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_another_order_needs_by_now_is_written_again() {
    let (lab, hook, _) =
        with_hook("[ $1 = add ] || { : > begun; while [ ! -e go ]; do sleep 0.02; done; }").await;
    lab.until_covered(1).await;
    until(async || hook.path("begun").exists(), "the removal has begun").await;
    let mut tx = lab.begin().await;
    sql::query("UPDATE challenge_records SET order_id = 'another'").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    std::fs::write(hook.path("go"), "").unwrap();
    let is_again = async || {
        let calls = hook.calls();
        calls.len() >= 3 && calls[1].starts_with("remove ") && calls[2] == calls[0]
    };
    until(is_again, "it is written again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_taken_down_few_at_a_time_until_none_is_left() {
    let (lab, hook, _) = with_hook(
        "echo b >> times; sleep 0.05; echo e >> times; case $2 in n*) echo \"$1 $2 $3\" >> calls; exit;; esac",
    )
    .await;
    lab.until_covered(1).await;
    hook.until_clean().await;
    let many = limits::DNS_REMOVALS_OF_TURN_MAX + 10;
    let mut tx = lab.begin().await;
    for n in 0..many {
        let text = "INSERT INTO challenge_records SELECT ?, 'x', id, 0 FROM orders WHERE state = 'issued'";
        sql::query(text).bind(format!("n{n}.{ZONE}.")).execute(&mut tx).await.unwrap();
    }
    // And one that nobody writes any more.
    sql::query(
        "INSERT INTO challenge_records SELECT 'n.gone.test.', 'x', id, 0 FROM orders WHERE state = 'issued'",
    )
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    until(async || lab.rows("SELECT label FROM challenge_records").await.is_empty(), "none is left").await;
    let removed = hook.calls().iter().filter(|call| call.starts_with("remove n")).count();
    assert_eq!(removed, usize::try_from(many).unwrap());
    let times = std::fs::read_to_string(hook.path("times")).unwrap();
    let (_, most) = times.lines().fold((0, 0), |(now, most), line| {
        let now = if line == "b" { now + 1 } else { now - 1 };
        (now, most.max(now))
    });
    assert_eq!(most, limits::DNS_REMOVALS_IN_FLIGHT_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_proof_no_record_of_a_name_is_written() {
    let (lab, hook, ids) = with_hook("echo \"$2\" >> asked; exit 1").await;
    let stranger = lab.tenant(&[], "registered_domain").await;
    let mut tx = lab.begin().await;
    let claimed = add_domain(&mut tx, stranger, &format!("victim.{ZONE}")).await;
    let unserved = "UPDATE domains SET served = 0 WHERE id = ?";
    sql::query(unserved).bind(claimed.to_string()).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    until(async || error_of(&lab, "is not written yet").await, "the order waits for the hook").await;
    let mut tx = lab.begin().await;
    sql::query(unserved).bind(ids[0].to_string()).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let is_over = async || {
        lab.hurry().await;
        lab.rows("SELECT state FROM orders").await == [["failed"]]
    };
    until(is_over, "the order ends").await;
    let asked = std::fs::read_to_string(hook.path("asked")).unwrap();
    lab.hurry().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = std::fs::read_to_string(hook.path("asked")).unwrap();
    let adds = |text: &str| text.lines().count();
    assert!(after.lines().all(|name| name == format!("_acme-challenge.shop.{ZONE}")), "{after}");
    // The removal is tried, and a write is not.
    assert!(adds(&after) <= adds(&asked) + 1, "{asked}{after}");
    assert_eq!(lab.world.stats().await["validations"]["performed"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_writes_the_record() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let bearer = folder.path().join("bearer");
    write_secret(&bearer, "sesame\n");
    let table = format!(
        "[[dns.writer]]\nzone = \"{ZONE}\"\n\
         webhook = {{ url = \"http://{}/dns\", bearer_file = {bearer:?} }}\n",
        listener.local_addr().unwrap()
    );
    let lab = Lab::start(&options(table)).await;
    let dns = lab.world.dns.addresses.management;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (head, body) = request(&mut stream).await;
            let record = json!({ "name": body["name"], "type": "TXT", "values": [body["value"]] });
            let method = if body["action"] == "add" { "POST" } else { "DELETE" };
            http(dns, method, "/records", &record).await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            tell.send((head, body)).unwrap();
        }
    });
    let tenant = lab.tenant(&[], "registered_domain").await;
    let name = format!("shop.{ZONE}");
    lab.domains(tenant, &[&name]).await;
    lab.until_covered(1).await;
    let (head, body) = told.recv().await.unwrap();
    assert!(head.starts_with("POST /dns HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("authorization: bearer sesame\r\n"), "{head}");
    assert_eq!(body["name"], format!("_acme-challenge.{name}"));
    assert_eq!((&body["action"], &told.recv().await.unwrap().1["action"]), (&json!("add"), &json!("remove")));
}

/// One request with a length.
async fn request(stream: &mut TcpStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            return (format!("{head}\r\n"), body);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_shows_the_record_delays_its_order_only() {
    // It takes every question and answers none: neither is the record shown, nor does anybody wait for longer than that.
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let table = format!(
        "[[dns.writer]]\nzone = \"{ZONE}\"\nprogram = [\"/bin/true\"]\nshown_by = [\"{}\"]\n",
        silent.local_addr().unwrap()
    );
    let lab = Lab::start(&options(table)).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids: Vec<DomainId> = lab.domains(tenant, &[format!("shop.{ZONE}")]).await;
    let text = format!("does not show the record at _acme-challenge.shop.{ZONE}");
    until(async || told(&lab, &text).await, "the order waits for the server").await;
    assert_eq!(lab.condition(ids[0], "ChallengeReachable").await.unwrap()[0], "true");
    let within = format!("within {} s", limits::DNS_SHOWN_DEADLINE.as_secs());
    assert!(told(&lab, &within).await);
}

#[test]
fn a_writer_that_cannot_work_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("portico.toml");
    let start =
        "data = \"/d\"\napi = \"127.0.0.1:7070\"\ndistribution = \"127.0.0.1:7443\"\n[[dns.writer]]\n";
    for (table, place, words) in [
        ("zone = \"customers.test\"\n", "5:8", "one of update, program and webhook"),
        ("zone = \"Customers.test\"\nprogram = [\"/p\"]\n", "5:8", "write it as \"customers.test\""),
        ("zone = \"customers.test\"\nprogram = [\"p\"]\n", "6:11", "path of a file"),
        ("zone = \"customers.test\"\nwebhook = { url = \"http://provider.test/\" }\n", "6:11", "https://"),
        (
            "zone = \"customers.test\"\nwebhook = { url = \"https://u:p@provider.test/\" }\n",
            "6:11",
            "bearer_file",
        ),
        (
            "zone = \"c.test\"\nprogram = [\"/p\"]\n[[dns.writer]]\nzone = \"c.test\"\nprogram = [\"/p\"]\n",
            "8:8",
            "two writers",
        ),
    ] {
        std::fs::write(&file, format!("{start}{table}")).unwrap();
        let error = Config::read(&file).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(words), "{table}: {error}");
    }
    let zones = "[dns]\nresponder = \"127.0.0.1:0\"\nchallenge_zone = \"c.test\"\n[[dns.writer]]\nzone = \"c.test\"\n";
    std::fs::write(&file, start.replace("[[dns.writer]]\n", zones) + "program = [\"/p\"]\n").unwrap();
    let error = Config::read(&file).unwrap_err().to_string();
    assert!(error.contains("8:8") && error.contains("dns.responder answers this zone"), "{error}");
    let absent = "zone = \"c.test\"\nprogram = [\"/no/such/hook\"]\n";
    std::fs::write(&file, format!("{start}{absent}")).unwrap();
    let error = Config::read_with_files(&file, true).unwrap_err().to_string();
    assert!(error.contains("6:11") && error.contains("/no/such/hook"), "{error}");
}
