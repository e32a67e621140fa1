//! A whole system on loopback: DNS stub, CA, control plane, edges in cells, a demo origin for every tenant.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use portico_api::v1::client::Client;
use portico_api::v1::{
    self, DomainSpec, EgressGrant, JoinTokenRequest, RecordPurpose, Route, Tenant, TenantSpec,
};
use portico_cert_store::CellId;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pebble::{self, Pebble};
use crate::{Addresses, Running, binary, wait_until};

/// Parts start within this, even on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Pebble is on this machine and counts nothing.
const PEBBLE_LIMITS: &str = "requests_per_second = 2000\nnonces_per_second = 500\n\n\
     [issuer.limits]\npreset = \"none\"\n";

/// Which CA issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaKind {
    /// `tests/acme-ca`.
    Own,
    /// Debian's Pebble.
    Pebble,
}

/// A cell and how many edges it has.
#[derive(Clone, Debug)]
pub struct CellPlan {
    pub name: &'static str,
    pub edges: u8,
}

/// What a laboratory holds.
#[derive(Clone, Debug)]
pub struct LabOptions {
    pub ca: CaKind,
    pub cells: Vec<CellPlan>,
    /// `uring`, `epoll` or `auto`.
    pub io: &'static str,
    /// Further arguments of our CA.
    pub ca_arguments: Vec<String>,
    /// Whether edges listen for plain HTTP, which HTTP-01 needs.
    pub plain_http: bool,
    /// A further CA of our own kind, the issuer "second".
    pub second_ca: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            ca: CaKind::Own,
            cells: vec![CellPlan { name: "default", edges: 2 }],
            io: "auto",
            ca_arguments: Vec::new(),
            plain_http: true,
            second_ca: false,
        }
    }
}

/// One edge of the laboratory.
#[derive(Debug)]
pub struct LabEdge {
    pub cell: &'static str,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub metrics: SocketAddr,
    pub folder: PathBuf,
    pub process: Running,
}

/// A running system; all of it ends when this is dropped.
#[derive(Debug)]
pub struct Lab {
    pub addresses: Addresses,
    pub folder: TempDir,
    pub client: Client,
    pub edges: Vec<LabEdge>,
    /// PEM file of the root that issued chains end in.
    pub issuing_root: PathBuf,
    pub origin: SocketAddr,
    pub control_plane: Running,
    pub operator_token: String,
    /// The CA's ACME directory, for a client beside ours; its API's own anchor is `api_root` (PEM file).
    pub directory: String,
    pub api_root: PathBuf,
    ca: Running,
    ca_management: SocketAddr,
    /// The second CA, and PEM file of the root that its chains end in.
    second_ca: Option<(Running, PathBuf)>,
    _dns: Running,
    dns_management: SocketAddr,
    origin_task: tokio::task::JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.origin_task.abort();
    }
}

impl Lab {
    /// Starts everything and waits until every edge is ready.
    pub async fn start(options: LabOptions) -> Result<Self> {
        let addresses = Addresses::take();
        let folder = tempfile::tempdir()?;
        let edge_ips: Vec<_> =
            (0..options.cells.iter().map(|c| c.edges).sum()).map(|n| addresses.ip(11 + n)).collect();

        let dns_address = addresses.at(2, 5353);
        let dns_management = addresses.at(2, 5380);
        let list: Vec<String> = edge_ips.iter().map(ToString::to_string).collect();
        let dns = Running::start(
            "dns",
            folder.path(),
            Command::new(binary("portico-acme-ca"))
                .arg("dns")
                .args(["--listen", &dns_address.to_string()])
                .args(["--management", &dns_management.to_string(), "--default-a", &list.join(",")]),
        );
        healthy("the DNS stub", dns_management).await;

        let ca = match options.ca {
            CaKind::Own => {
                start_own_ca("ca", &addresses, folder.path(), dns_address, &options.ca_arguments).await?
            }
            CaKind::Pebble => pebble::start(&addresses, folder.path(), dns_address).await?,
        };
        let origin = addresses.at(3, 9000);
        let origin_task = start_origin(origin).await?;

        let second = match options.second_ca {
            true => Some(start_own_ca("ca2", &addresses, folder.path(), dns_address, &[]).await?),
            false => None,
        };
        let cas = (&ca, second.as_ref());
        let (control_plane, client, operator_token) =
            start_control_plane(&addresses, folder.path(), cas, options.ca, &list, dns_address).await?;
        let mut lab = Self {
            client,
            edges: Vec::new(),
            issuing_root: ca.issuing_root.clone(),
            origin,
            control_plane,
            operator_token,
            directory: ca.directory,
            api_root: ca.api_root,
            ca: ca.process,
            ca_management: addresses.at(1, 15000),
            second_ca: second.map(|ca| (ca.process, ca.issuing_root)),
            _dns: dns,
            dns_management,
            origin_task,
            addresses,
            folder,
        };
        let mut ips = edge_ips.into_iter();
        for cell in &options.cells {
            for _ in 0..cell.edges {
                let ip = ips.next().context("an address for each edge")?;
                lab.add_edge(cell.name, ip, &options).await?;
            }
        }
        lab.forward("acme.provider.test", lab.addresses.at(4, 5354)).await?;
        Ok(lab)
    }

    async fn add_edge(
        &mut self,
        cell: &'static str,
        ip: std::net::IpAddr,
        options: &LabOptions,
    ) -> Result<()> {
        let token = self
            .client
            .create_join_token(&JoinTokenRequest { cell: CellId::parse(cell)?, ttl_seconds: 600 })
            .await?;
        let folder = self.folder.path().join(format!("edge-{ip}"));
        std::fs::create_dir(&folder)?;
        let token_file = folder.join("join-token");
        std::fs::write(&token_file, &token.token)?;
        let (http, https, metrics) =
            (SocketAddr::new(ip, 8080), SocketAddr::new(ip, 8443), SocketAddr::new(ip, 9109));
        let plain =
            format!("[[listen]]\naddress = \"{http}\"\nkind = \"http\"\npublic_https_port = 8443\n\n");
        let config = format!(
            "workers = 1\nio = \"{}\"\nstate = {:?}\nmetrics = \"{metrics}\"\naccess_log = {:?}\ndrain_seconds = 5\n\n\
             {}[[listen]]\naddress = \"{https}\"\nkind = \"https\"\nhttp3 = true\n\n\
             [control]\naddress = \"{}\"\njoin_token_file = {token_file:?}\n",
            options.io,
            folder.join("state"),
            folder.join("access.log"),
            if options.plain_http { plain.as_str() } else { "" },
            token.distribution,
        );
        std::fs::write(folder.join("edge.toml"), config)?;
        let process = start_edge_process(&folder);
        self.edges.push(LabEdge { cell, http, https, metrics, folder, process });
        let edge = self.edges.last_mut().context("just pushed")?;
        edge_ready(edge).await;
        Ok(())
    }

    /// Starts edge `at` again after it was killed; waits until it is ready.
    pub async fn restart_edge(&mut self, at: usize) {
        let edge = &mut self.edges[at];
        edge.process = start_edge_process(&edge.folder);
        edge_ready(edge).await;
    }

    /// Starts the control plane again after it was killed.
    pub async fn restart_control_plane(&mut self) {
        self.control_plane = start_control_plane_process(self.folder.path());
        let client = self.client.clone();
        wait_until("the control plane, again", START_DEADLINE, async || client.ready().await.ok()).await;
    }

    /// A tenant that may reach the laboratory's origin, and ports 9001 to 9003 beside it.
    pub async fn tenant(&self, name: &str, sharing: v1::Sharing, cells: &[&str]) -> Result<Tenant> {
        let spec = TenantSpec {
            name: name.to_owned(),
            sharing,
            cells: cells.iter().map(|c| CellId::parse(c)).collect::<Result<_, _>>()?,
            issuers: Vec::new(),
            backup_certificates: None,
            egress_grants: vec![EgressGrant {
                cidr: format!("{}/32", self.origin.ip()),
                ports: vec![self.origin.port(), 9001, 9002, 9003],
            }],
            limits: v1::TenantLimits::default(),
            order_budget: v1::OrderBudget::default(),
            error_pages: v1::ErrorPages::default(),
            domains_max: 10_000,
        };
        Ok(self.client.create_tenant(&spec).await?)
    }

    /// Claims `hostname` as a proxied domain, puts its TXT proof (and, for a wildcard, the challenge delegation) into DNS.
    pub async fn domain(&self, tenant: &Tenant, hostname: &str) -> Result<v1::Domain> {
        let domain = self.client.create_domain(tenant.id, &self.proxied(hostname)).await?;
        self.publish_records(&domain).await?;
        Ok(self.client.check_domain(domain.id).await?)
    }

    /// A domain that is proxied to the laboratory's origin.
    pub fn proxied(&self, hostname: &str) -> DomainSpec {
        let action = v1::Action::proxy(format!("http://{}", self.origin));
        DomainSpec { routes: vec![Route::new("/", action)], ..DomainSpec::new(hostname) }
    }

    /// Sets the TXT record that proves control, as the tenant would, and for a wildcard the delegation of the DNS
    /// challenge. Another name is left to HTTP-01 and TLS-ALPN-01, so that a test sees where its traffic leads.
    pub async fn publish_records(&self, domain: &v1::Domain) -> Result<()> {
        let wildcard = domain.spec.hostname.starts_with("*.");
        for record in &domain.dns.records {
            let delegation = wildcard && record.purpose == RecordPurpose::ChallengeDelegation;
            if record.purpose == RecordPurpose::Proof || delegation {
                self.set_record(&record.name, &record.kind, &[&record.value]).await?;
            }
        }
        Ok(())
    }

    /// Waits until `hostname` is active on all live edges of its cells.
    pub async fn active(&self, hostname: &str) -> Result<v1::Domain> {
        let domain = self.client.domain_wait_active(hostname, Duration::from_secs(60)).await?;
        if domain.status != v1::DomainStatus::Active {
            bail!("{hostname} is {:?}: {:#?} {:?}", domain.status, domain.conditions, domain.next_action);
        }
        Ok(domain)
    }

    pub async fn set_record(&self, name: &str, kind: &str, values: &[&str]) -> Result<()> {
        tell(self.dns_management, "/records", &json!({ "name": name, "type": kind, "values": values })).await
    }

    /// Sets many at once: a JSON list of `{name, type, values}`.
    pub async fn set_records(&self, list: &str) -> Result<()> {
        tell(self.dns_management, "/records", &serde_json::from_str(list)?).await
    }

    async fn forward(&self, zone: &str, to: SocketAddr) -> Result<()> {
        tell(self.dns_management, "/forward", &json!({ "zone": zone, "address": to })).await
    }

    /// Our CA's own counters.
    pub async fn ca_stats(&self) -> Result<Value> {
        ca_stats_at(self.ca_management).await
    }

    /// Where our CA counts and is told what to do.
    pub fn ca_management(&self) -> SocketAddr {
        self.ca_management
    }

    /// Lets our CA fail as told: one fault or a list.
    pub async fn ca_faults(&self, faults: &Value) -> Result<()> {
        tell(self.ca_management, "/faults", faults).await
    }

    /// Names that our CA refuses to take into any order from now on.
    pub async fn ca_refuses(&self, names: &[&str]) -> Result<()> {
        tell(self.ca_management, "/refused", &json!({ "names": names })).await
    }

    /// PEM file of the root that the second CA's chains end in.
    pub fn second_root(&self) -> &Path {
        &self.second_ca.as_ref().expect("it was asked for").1
    }

    /// All that the CA printed.
    pub fn ca_log(&self) -> String {
        let name = if self.folder.path().join("pebble.log").exists() { "pebble.log" } else { "ca.log" };
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// The command `portico` with this laboratory's address and token.
    pub fn portico(&self) -> Command {
        let mut command = Command::new(binary("portico"));
        command
            .env("PORTICO_API", format!("http://{}", self.addresses.at(4, 7070)))
            .env("PORTICO_TOKEN", &self.operator_token)
            .current_dir(self.folder.path());
        command
    }

    /// Ends the CA, so that whatever goes on does so without it.
    pub fn kill_ca(&mut self) {
        self.ca.kill();
    }
}

/// Has our CA or the DNS stub do something, over its management address.
async fn tell(management: SocketAddr, path: &str, body: &Value) -> Result<()> {
    let (status, answer) = plain_http(management, "POST", path, body.to_string()).await?;
    if !status.is_success() {
        bail!("POST {path} to {management}: {status}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// The counters of our CA whose management listens at `management`.
pub async fn ca_stats_at(management: SocketAddr) -> Result<Value> {
    let (_, body) = plain_http(management, "GET", "/stats", String::new()).await?;
    Ok(serde_json::from_slice(&body)?)
}

async fn start_own_ca(
    name: &str,
    addresses: &Addresses,
    folder: &Path,
    dns: SocketAddr,
    arguments: &[String],
) -> Result<Pebble> {
    let port = if name == "ca" { 0 } else { 1 };
    let (api, management) = (addresses.at(1, 14000 + port), addresses.at(1, 15000 + port));
    let (api_root, issuing_root) =
        (folder.join(format!("{name}-api-root.pem")), folder.join(format!("{name}-issuing-root.pem")));
    let process = Running::start(
        name,
        folder,
        Command::new(binary("portico-acme-ca"))
            .arg("ca")
            .args(["--listen", &api.to_string(), "--management", &management.to_string()])
            .args(["--dns", &dns.to_string(), "--http-port", "8080", "--tls-port", "8443"])
            .arg("--root-out")
            .arg(&issuing_root)
            .arg("--api-ca-out")
            .arg(&api_root)
            .args(arguments),
    );
    healthy("the CA", management).await;
    Ok(Pebble { directory: format!("https://{api}/directory"), api_root, issuing_root, process })
}

async fn start_control_plane(
    addresses: &Addresses,
    folder: &Path,
    (ca, second): (&Pebble, Option<&Pebble>),
    kind: CaKind,
    edges: &[String],
    dns: SocketAddr,
) -> Result<(Running, Client, String)> {
    let api = addresses.at(4, 7070);
    let token_file = folder.join("operator-token");
    let kek = folder.join("kek");
    write_secret(&kek, &"5a".repeat(32))?;
    let config = format!(
        "data = {:?}\napi = \"{api}\"\ndistribution = \"{}\"\nkey_encryption_key_file = {kek:?}\n\
         operator_token_file = {token_file:?}\n\n\
         [dns]\nresolvers = [\"{dns}\"]\nresponder = \"{}\"\nchallenge_zone = \"acme.provider.test\"\n\
         cname_zone = \"edge.provider.test\"\n\n\
         [egress]\nallow = [{{ cidr = \"{}/24\", ports = [8080, 8443] }}]\n\n\
         [fleet]\npublic_addresses = {edges:?}\nhttp_port = 8080\nhttps_port = 8443\n\n\
         [[issuer]]\nname = \"test\"\ndirectory = \"{}\"\nroot_pem = {:?}\nroots_pem = {:?}\n\
         contact = \"mailto:ops@provider.test\"\nserialize_orders = {}\npoll_ms = 50\n{}",
        folder.join("control-plane"),
        addresses.at(4, 7443),
        addresses.at(4, 5354),
        addresses.ip(0),
        ca.directory,
        ca.api_root,
        ca.issuing_root,
        kind == CaKind::Pebble,
        // Pebble has none of Let's Encrypt's limits, so our ledger need not keep to them.
        if kind == CaKind::Pebble { PEBBLE_LIMITS } else { "" },
    );
    let second = second.map(|ca| {
        format!(
            "\n[[issuer]]\nname = \"second\"\ndirectory = \"{}\"\nroot_pem = {:?}\nroots_pem = {:?}\npoll_ms = 50\n",
            ca.directory, ca.api_root, ca.issuing_root
        )
    });
    std::fs::write(folder.join("control-plane.toml"), config + &second.unwrap_or_default())?;
    let mut process = start_control_plane_process(folder);
    let token = wait_until("the operator's token", START_DEADLINE, async || {
        process.assert_alive();
        std::fs::read_to_string(&token_file).ok().filter(|t| !t.trim().is_empty())
    })
    .await;
    let token = token.trim().to_owned();
    let client = Client::new(&format!("http://{api}"), Some(&token), None)?;
    wait_until("the control plane", START_DEADLINE, async || client.ready().await.ok()).await;
    Ok((process, client, token))
}

fn start_control_plane_process(folder: &Path) -> Running {
    let mut command = Command::new(binary("portico-control-plane"));
    command.arg("--config").arg(folder.join("control-plane.toml"));
    Running::start("control-plane", folder, &mut command)
}

fn start_edge_process(folder: &Path) -> Running {
    let mut command = Command::new(binary("portico-edge"));
    command.arg("--config").arg(folder.join("edge.toml"));
    Running::start("edge", folder, &mut command)
}

async fn edge_ready(edge: &mut LabEdge) {
    let metrics = edge.metrics;
    let process = &mut edge.process;
    wait_until("an edge to be ready", START_DEADLINE, async || {
        process.assert_alive();
        plain_http(metrics, "GET", "/readyz", String::new()).await.ok().filter(|(s, _)| s.is_success())
    })
    .await;
}

async fn healthy(what: &str, address: SocketAddr) {
    wait_until(what, START_DEADLINE, async || {
        plain_http(address, "GET", "/healthz", String::new()).await.ok().filter(|(s, _)| s.is_success())
    })
    .await;
}

/// Answers every request with the host it was asked for, so that a test sees whose site it reached.
async fn start_origin(address: SocketAddr) -> Result<tokio::task::JoinHandle<()>> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    Ok(tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
                    let host =
                        request.headers().get(http::header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
                    let body = format!("origin of {host} path {}\n", request.uri().path());
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(body))))
                });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service),
            );
        }
    }))
}

/// One plain HTTP exchange on loopback, within 30 s.
///
/// # Errors
/// When there is no whole answer by then.
pub async fn plain_http(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: String,
) -> Result<(http::StatusCode, Bytes)> {
    let exchange = async {
        let tcp = tokio::net::TcpStream::connect(address).await?;
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
        let driver = tokio::spawn(driver);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, address.to_string())
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        let _closed = driver.await;
        anyhow::Ok((parts.status, body))
    };
    tokio::time::timeout(Duration::from_secs(30), exchange).await.context("no answer in 30 s")?
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
