//! The parts as child processes.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use portico_api::v1::client::Client;
use tokio::process::{Child, Command};

use super::addresses::Addresses;
use super::folder::{self, Folder};
use super::{START_DEADLINE, wait};
use crate::failure::{Failure, Outcome};

/// Between a child's loss of its pipe and the moment when it is killed: longer than its own grace.
const END_DEADLINE: Duration = Duration::from_secs(8);
/// The end of a log that is shown when its part fails.
const LAST_LINES: usize = 15;

/// A part to start: this program again, with these arguments.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    arguments: Vec<String>,
}

impl Part {
    fn new(name: impl Into<String>, arguments: &[&str]) -> Self {
        Self {
            name: name.into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        }
    }

    pub(super) fn dns(addresses: &Addresses) -> Self {
        let edges: Vec<String> = addresses.edges.iter().map(ToString::to_string).collect();
        let (listen, management) = (addresses.dns.to_string(), addresses.dns_management.to_string());
        let default_a = edges.join(",");
        Self::new(
            "dns",
            &["quickstart-dns", "--listen", &listen, "--management", &management, "--default-a", &default_a],
        )
    }

    pub(super) fn ca(addresses: &Addresses, folder: &Folder) -> Self {
        let path = |name| folder.file(name).display().to_string();
        Self::new(
            "ca",
            &[
                "quickstart-ca",
                "--listen",
                &addresses.ca.to_string(),
                "--management",
                &addresses.ca_management.to_string(),
                "--dns",
                &addresses.dns.to_string(),
                "--http-port",
                &addresses.http_port.to_string(),
                "--tls-port",
                &addresses.https_port.to_string(),
                "--root-out",
                &path(folder::ROOT),
                "--api-ca-out",
                &path(folder::CA_API_ROOT),
            ],
        )
    }

    pub(super) fn origin(addresses: &Addresses) -> Self {
        let serve =
            |place: usize| format!("{}={}", super::onboarding::TENANTS[place], addresses.origins[place]);
        Self::new("origin", &["quickstart-origin", "--serve", &serve(0), "--serve", &serve(1)])
    }

    pub(super) fn control_plane(folder: &Folder) -> Self {
        let config = folder.file(super::configuration::CONTROL_PLANE).display().to_string();
        Self::new("control-plane", &["control-plane", "run", "--create-kek", "--config", &config])
    }

    pub(super) fn edge(folder: &Folder, edge: usize) -> Self {
        let name = Self::edge_name(edge);
        let config = folder.file(&format!("{name}/edge.toml")).display().to_string();
        Self::new(name, &["edge", "run", "--config", &config])
    }

    pub(super) fn edge_name(edge: usize) -> String {
        format!("edge-{}", edge + 1)
    }
}

/// All children of this quickstart. Each is killed when this is dropped; [`Children::end`] is the orderly way.
#[derive(Debug)]
pub(super) struct Children {
    folder: PathBuf,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Children {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, running: Vec::new() }
    }

    /// Starts a part; its output goes to `logs/<name>.log`.
    pub(super) fn start(&mut self, part: Part) -> Outcome {
        let about = |error: std::io::Error| Failure::failed(format!("start {}: {error}", part.name));
        let log = self.folder.join("logs").join(format!("{}.log", part.name));
        let output = File::create(&log).map_err(about)?;
        let child = Command::new(std::env::current_exe().map_err(about)?)
            .arg("--lifeline")
            .args(&part.arguments)
            // Only the quickstart's own arguments count, not the operator's environment.
            .env_remove("PORTICO_API")
            .env_remove("PORTICO_TOKEN")
            .env_remove("PORTICO_CONTEXT")
            // Its log is a file.
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(about)?)
            .stderr(output)
            // Out of the terminal's group: Ctrl-C reaches the parent, which ends the children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(about)?;
        self.running.push(Running { name: part.name, child, log });
        self.write_pids()
    }

    /// The process ids, for people who look and for tests.
    fn write_pids(&self) -> Outcome {
        let lines: String = self
            .running
            .iter()
            .filter_map(|running| Some(format!("{} {}\n", running.child.id()?, running.name)))
            .collect();
        let file = self.folder.join("pids");
        std::fs::write(&file, lines).map_err(|error| Failure::file(&file, error))
    }

    /// Waits until `path` of the part's plain HTTP answers 2xx.
    pub(super) async fn healthy(&mut self, name: &str, address: SocketAddr, path: &str) -> Outcome {
        let asked = wait::until(START_DEADLINE, async || {
            if let Some(failure) = self.ended() {
                return Some(Err(failure));
            }
            let answer = super::script::plain_get(address, "localhost", path).await.ok()?;
            (200..300).contains(&answer.status).then_some(Ok(()))
        });
        match asked.await {
            Some(outcome) => outcome,
            None => Err(self.failure_of(name, "does not answer")),
        }
    }

    /// Waits until the control plane answers, and returns its client.
    pub(super) async fn control_plane_ready(
        &mut self,
        folder: &Folder,
        addresses: &Addresses,
    ) -> Outcome<Client> {
        let token_file = folder.file(folder::TOKEN);
        let url = format!("http://{}", addresses.api);
        let asked = wait::until(START_DEADLINE, async || {
            if let Some(failure) = self.ended() {
                return Some(Err(failure));
            }
            let token = std::fs::read_to_string(&token_file).ok().filter(|token| !token.trim().is_empty())?;
            let client = match Client::new(&url, Some(&token), None) {
                Ok(client) => client,
                Err(error) => return Some(Err(error.into())),
            };
            client.ready().await.ok().map(|()| Ok(client))
        });
        match asked.await {
            Some(outcome) => outcome,
            None => Err(self.failure_of("control-plane", "does not answer")),
        }
    }

    /// The first child that has ended, as a failure.
    fn ended(&mut self) -> Option<Failure> {
        let (name, status) = self.running.iter_mut().find_map(|running| {
            let status = running.child.try_wait().ok().flatten()?;
            Some((running.name.clone(), status))
        })?;
        Some(self.failure_of(&name, &format!("ended with {status}")))
    }

    /// Waits until a child ends that should not.
    pub(super) async fn failed(&mut self) -> Failure {
        /// A hint is enough: nothing depends on how soon this is seen.
        const LOOK: Duration = Duration::from_millis(100);
        loop {
            if let Some(failure) = self.ended() {
                return failure;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn failure_of(&self, name: &str, what: &str) -> Failure {
        let log = self.running.iter().find(|running| running.name == name).map(|running| running.log.clone());
        let log = log.unwrap_or_else(|| self.folder.join("logs"));
        let words = last_words(&log);
        Failure::failed(format!("{name} {what}; its last words:\n{words}"))
            .next_text(format!("read {}", super::shell_path(&log)))
    }

    /// Closes every pipe, waits, kills what does not end, and makes sure that no child is left.
    ///
    /// # Errors
    /// When a child had to be killed, or one is left all the same.
    pub(super) async fn end(&mut self) -> Outcome {
        for running in &mut self.running {
            drop(running.child.stdin.take());
        }
        let mut killed = Vec::new();
        // Edges first: they drain while the others still answer.
        for mut running in self.running.drain(..).rev() {
            if tokio::time::timeout(END_DEADLINE, running.child.wait()).await.is_err() {
                killed.push(running.name);
                running.child.kill().await?;
            }
        }
        let _nothing_to_show = std::fs::remove_file(self.folder.join("pids"));
        if let Some(left) = a_child_is_left() {
            return Err(Failure::failed(format!("a child is left: {left:?}")));
        }
        if killed.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!("did not end by themselves and were killed: {}", killed.join(", "))))
    }
}

/// The system's own word on whether this process still has children.
fn a_child_is_left() -> Option<Option<ExitStatus>> {
    use rustix::process::{WaitOptions, wait};
    match wait(WaitOptions::NOHANG) {
        Err(rustix::io::Errno::CHILD) => None,
        Ok(Some((_, status))) => {
            use std::os::unix::process::ExitStatusExt as _;
            Some(Some(ExitStatus::from_raw(status.as_raw())))
        }
        Ok(None) | Err(_) => Some(None),
    }
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
