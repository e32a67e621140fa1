//! The servers of a comparison: our edge on both backends, another build of it, and an nginx where there is one.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::CompareArgs;
use super::material::Material;

/// Below it, what an origin says is asked of the cache.
pub(super) const KEPT_PATH: &str = "/kept";
/// From start to the first accepted connection; nginx takes long with many certificates.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// A running server, ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// Name, version and cryptography.
    pub(crate) title: String,
    pub(crate) address: SocketAddr,
    pub(crate) ready_after: Duration,
    child: Child,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process and waits for it.
    pub(crate) fn stop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts every server that the comparison has; a missing nginx is said and left out.
pub(crate) fn start_all(args: &CompareArgs, material: &Material, origin: SocketAddr) -> Result<Vec<Server>> {
    let edge = match &args.edge {
        Some(edge) => edge.clone(),
        None => std::env::current_exe()?.with_file_name("portico-edge"),
    };
    if !edge.exists() {
        bail!(
            "{} does not exist: build it with `cargo build --release -p portico-edge`, or give --edge",
            edge.display()
        );
    }
    let mut servers = vec![
        start_edge(args.server_cpu, material, &edge, "uring", "Portico, io_uring, AWS-LC", Some(origin))?,
        start_edge(args.server_cpu, material, &edge, "epoll", "Portico, epoll, AWS-LC", Some(origin))?,
    ];
    if let Some(other) = &args.other_edge {
        servers.push(start_edge(
            args.server_cpu,
            material,
            other,
            "uring",
            "other Portico, io_uring",
            Some(origin),
        )?);
    }
    match args.nginx.clone().or_else(|| find("nginx")) {
        Some(nginx) => servers.push(start_nginx(args, material, &nginx, origin)?),
        None => eprintln!("skipped: no nginx on this machine (apt-get install nginx-light)"),
    }
    Ok(servers)
}

pub(crate) fn start_edge(
    cpu: usize,
    material: &Material,
    binary: &Path,
    io: &str,
    title: &str,
    origin: Option<SocketAddr>,
) -> Result<Server> {
    let state = material.folder.join(format!("edge-{}", portico_ports::reserve().port()));
    fs::create_dir(&state)?;
    let sections = static_site(material) + &origin.map(kept_route).unwrap_or_default();
    start_edge_with(pinned(cpu, binary), &state, io, title, ("", &sections))
}

/// Serves QUIC as well as TCP.
pub(crate) fn start_quic_edge(material: &Material, binary: &Path, io: &str, title: &str) -> Result<Server> {
    let state = material.folder.join(format!("edge-{}", portico_ports::reserve().port()));
    fs::create_dir(&state)?;
    let sections = format!("http3 = true\n\n{}", static_site(material));
    start_edge_with(pinned(0, binary), &state, io, title, ("", &sections))
}

fn static_site(material: &Material) -> String {
    format!(
        "[standalone]\nunknown_sni = \"refuse\"\n\n[certificates]\nfolder = {:?}\n\n\
         [[route]]\nhost = \"*\"\npath = \"/\"\nstatic_file = {:?}\n",
        material.certificates, material.body
    )
}

/// What an origin says, kept in the cache.
fn kept_route(origin: SocketAddr) -> String {
    format!(
        "\n[[route]]\nhost = \"*\"\npath = \"{KEPT_PATH}\"\nproxy = \"http://{origin}\"\ncache = {{}}\n\n\
         [egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [{}] }}]\n",
        origin.port()
    )
}

/// Serves TCP and QUIC; `attacked` is behind an origin, the other names are not, and who attacks may do so from one address.
pub(crate) fn start_attacked_edge(
    material: &Material,
    binary: &Path,
    (io, title): (&str, &str),
    (attacked, origin): (&str, SocketAddr),
) -> Result<Server> {
    let state = material.folder.join(format!("edge-{}", portico_ports::reserve().port()));
    fs::create_dir(&state)?;
    let sections = format!(
        "http3 = true\n\n[standalone]\nunknown_sni = \"refuse\"\n\n[certificates]\nfolder = {:?}\n\n\
         [client_limits]\nexempt = [\"127.0.0.0/8\"]\n\n\
         [egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [{}] }}]\n\n\
         [[route]]\nhost = \"{attacked}\"\nproxy = \"http://{origin}\"\n\n\
         [[route]]\nhost = \"*\"\npath = \"/\"\nstatic_file = {:?}\n",
        material.certificates,
        origin.port(),
        material.body
    );
    start_edge_with(pinned(0, binary), &state, io, title, ("", &sections))
}

/// On a state folder that stands for a control plane's, with a cache; nobody answers where the control plane should be.
pub(crate) fn start_fleet_edge(state: &Path, binary: &Path, io: &str, cache_bytes: u64) -> Result<Server> {
    let settings = format!("cache_bytes = {cache_bytes}\n");
    let sections = (settings.as_str(), "[control]\naddress = \"127.0.0.1:1\"\n");
    start_edge_with(Command::new(binary), state, io, "Portico", sections)
}

/// One worker and one listener; `settings` go before the first section.
fn start_edge_with(
    mut command: Command,
    state: &Path,
    io: &str,
    title: &str,
    (settings, sections): (&str, &str),
) -> Result<Server> {
    let (address, metrics) = (portico_ports::reserve(), portico_ports::reserve());
    let config = format!(
        "workers = 1\nio = \"{io}\"\nstate = {state:?}\nmetrics = \"{metrics}\"\naccess_log = \"off\"\n{settings}\n\
         [[listen]]\naddress = \"{address}\"\nkind = \"https\"\n\n{sections}"
    );
    let path = state.join("edge.toml");
    fs::write(&path, config)?;
    command.arg("--config").arg(&path);
    start(command, title.to_owned(), address, state)
}

fn start_nginx(args: &CompareArgs, material: &Material, binary: &Path, origin: SocketAddr) -> Result<Server> {
    let address = portico_ports::reserve();
    let state = material.folder.join(format!("nginx-{}", address.port()));
    fs::create_dir(&state)?;
    let mut servers = String::new();
    for name in &material.names {
        let pem = material.certificates.join(format!("{name}.pem"));
        writeln!(
            servers,
            "server {{ listen {address} ssl http2; server_name {name}; ssl_certificate {0}; ssl_certificate_key {0}; \
             root {1}; location / {{ try_files /body.txt =404; }} \
             location {KEPT_PATH} {{ proxy_pass http://{origin}; proxy_cache kept; }} }}",
            pem.display(),
            material.folder.display()
        )?;
    }
    // The same terms for all: one worker, AES-128-GCM first, X25519, no access log, connections kept.
    let config = format!(
        "worker_processes 1;\npid {0}/pid;\nerror_log {0}/error.log;\ndaemon off;\nworker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16384; }}\n\
         http {{ access_log off; keepalive_requests 100000000; open_file_cache max=100; sendfile on; tcp_nopush on;\n\
         server_names_hash_max_size 1048576; server_names_hash_bucket_size 128; default_type text/plain;\n\
         client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         proxy_cache_path {0}/kept keys_zone=kept:1m;\n\
         ssl_protocols TLSv1.2 TLSv1.3; ssl_ecdh_curve X25519; ssl_prefer_server_ciphers on;\n\
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_session_tickets on;\n{servers}}}\n",
        state.display()
    );
    let path = state.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = pinned(args.server_cpu, binary);
    command.arg("-c").arg(&path).arg("-p").arg(&state);
    start(command, nginx_title(binary)?, address, &state)
}

/// Name, version and cryptography as nginx itself says; an OpenSSL 3.0 build is marked as old.
fn nginx_title(binary: &Path) -> Result<String> {
    let output =
        Command::new(binary).arg("-V").output().with_context(|| format!("run {} -V", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = text.lines().find_map(|l| l.split_once("nginx/")).map_or("?", |(_, v)| v);
    let library = text.lines().find_map(|l| l.strip_prefix("built with ")).unwrap_or("unknown cryptography");
    let old = if library.starts_with("OpenSSL 3.0") { " (old build, not a measure of nginx)" } else { "" };
    Ok(format!("nginx {version}, {library}{old}"))
}

fn start(mut command: Command, title: String, address: SocketAddr, state: &Path) -> Result<Server> {
    let log = fs::File::create(state.join("output.log"))?;
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {title}"))?;
    let mut server = Server { title, address, ready_after: Duration::ZERO, child };
    while started.elapsed() < READY_DEADLINE {
        if let Some(status) = server.child.try_wait()? {
            let said = fs::read_to_string(state.join("output.log")).unwrap_or_default();
            return Err(anyhow!("{} ended with {status}: {said}", server.title));
        }
        if std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            server.ready_after = started.elapsed();
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("{} did not listen on {address} within {READY_DEADLINE:?}", server.title)
}

/// `binary` on one core, by taskset(1).
fn pinned(cpu: usize, binary: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpu.to_string()).arg(binary);
    command
}

/// `program` on the PATH or where Debian puts servers.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|d| d.join(program))
        .find(|p| p.exists())
}
