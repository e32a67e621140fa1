//! A control plane in this process, and the shipped `portico` that talks to it as an operator.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use portico_control_plane::clock::Clock;
use portico_control_plane::config::Config;
use portico_control_plane::{Running, start_at};
use serde_json::Value;

pub(crate) struct Plane {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) running: Running,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let text = format!(
            "data = \"{0}/data\"\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\n\
             key_encryption_key_file = \"{0}/kek\"\noperator_token_file = \"{0}/operator\"\n\
             [dns]\nresolvers = [\"127.0.0.1:1\"]\n[fleet]\npublic_addresses = [\"127.0.0.11\"]\n",
            at.display()
        );
        std::fs::write(at.join("kek"), "ab".repeat(32)).unwrap();
        std::fs::set_permissions(at.join("kek"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = Config::parse(&text, Path::new("plane.toml")).unwrap();
        let running = start_at(config, Clock::default()).await.unwrap();
        Self { folder, running }
    }

    /// `portico` with this control plane's address and the operator's token.
    pub(crate) async fn portico(&self, line: &[&str]) -> Ended {
        let mut command = portico();
        command.arg("--api").arg(format!("http://{}", self.running.api));
        command.arg("--token-file").arg(self.folder.path().join("operator")).args(line);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        Ended::of(&output)
    }

    /// `portico` with another token.
    pub(crate) async fn portico_as(&self, token: &str, line: &[&str]) -> Ended {
        let mut command = portico();
        command.arg("--api").arg(format!("http://{}", self.running.api)).args(line);
        command.env("PORTICO_TOKEN", token);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        Ended::of(&output)
    }

    /// A command that has to succeed; answers its standard output.
    pub(crate) async fn succeeds(&self, line: &[&str]) -> String {
        let ended = self.portico(line).await;
        assert_eq!(ended.code, 0, "{line:?}: {ended:?}");
        ended.stdout
    }

    /// The one JSON document of a command that has to succeed.
    pub(crate) async fn json(&self, line: &[&str]) -> Value {
        let line: Vec<&str> = ["-o", "json"].iter().chain(line).copied().collect();
        let printed = self.succeeds(&line).await;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{line:?}: {error}: {printed}"))
    }
}

impl Ended {
    pub(crate) fn of(output: &std::process::Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// `portico`, with nothing of the tester's own settings.
pub(crate) fn portico() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command.env_remove("PORTICO_API").env_remove("PORTICO_TOKEN").env_remove("PORTICO_CONTEXT");
    command.stdin(Stdio::null());
    command
}
