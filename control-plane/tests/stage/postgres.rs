//! Debian's PostgreSQL, started by the tests themselves: one server for a test process, on a socket in a folder of its own,
//! one database for each test.

#![allow(dead_code, unreachable_pub, reason = "each user takes its part")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// With this in the environment, tests that know a choice use PostgreSQL.
pub const CHOICE: &str = "PORTICO_TEST_DATABASE";

/// The server's own user must not be root; Debian's nobody.
const NOBODY: u32 = 65_534;

/// A running server. Its watcher ends it when this is dropped, and with this process, however that ends.
pub struct Cluster {
    programs: PathBuf,
    pub folder: PathBuf,
    port: String,
    /// Its standard input is closed by the end of this process.
    _watcher: Child,
}

/// Whether the environment asks for PostgreSQL.
pub fn is_chosen() -> bool {
    std::env::var_os(CHOICE).is_some_and(|choice| choice == "postgres")
}

/// The URL of a new, empty database; `None`, said in words, where PostgreSQL is not installed.
pub fn new_database() -> Option<String> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let cluster = CLUSTER.get_or_init(|| Cluster::start(&[], &[])).as_ref()?;
    let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
    cluster.run("createdb", &[&name]);
    Some(format!("postgresql:///{name}?host={}&user=portico", cluster.folder.display()))
}

impl Cluster {
    /// `settings`: of the server, as `name=value`. `files`: into its data folder, over what is there. `None`, said in words,
    /// where PostgreSQL is not installed.
    pub fn start(settings: &[String], files: &[(&str, &str)]) -> Option<Self> {
        let Some(programs) = programs() else {
            portico_skipping::skipped(
                "tests on PostgreSQL: it is not on this machine (apt-get install postgresql)",
            );
            return None;
        };
        let folder = tempfile::Builder::new().prefix("portico-pg").tempdir().unwrap().keep();
        let is_root = rustix::process::getuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = folder.join("data");
        let as_nobody = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(&folder).stdin(Stdio::null());
            if is_root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        let made = as_nobody(&programs.join("initdb"))
            .args(["--auth=trust", "--username=portico", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        for (name, text) in files {
            let path = data.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            if is_root {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        // The shell outlives a killed test, sees its end, and clears away.
        let script = "programs=$1 folder=$2; shift 2; \
                      \"$programs/postgres\" -D \"$folder/data\" -k \"$folder\" -c listen_addresses= -c max_connections=400 \"$@\" \
                      >\"$folder/log\" 2>&1 </dev/null & server=$!; cat >/dev/null; kill -QUIT $server; wait $server; \
                      rm -rf \"$folder\"";
        let watcher = as_nobody(Path::new("/bin/sh"))
            .args(["-c", script, "sh"])
            .args([&programs, &folder])
            .args(settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = settings.iter().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432");
        let cluster = Self { programs, folder, port: port.to_owned(), _watcher: watcher };
        for _ in 0..1_200 {
            if cluster.command("pg_isready").args(["-q", "-U", "portico"]).status().unwrap().success() {
                return Some(cluster);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = std::fs::read_to_string(cluster.folder.join("log")).unwrap_or_default();
        panic!("PostgreSQL does not start:\n{log}");
    }

    /// Runs one of its programs to the end, with success.
    pub fn run(&self, program: &str, args: &[&str]) {
        let done = self.command(program).args(["-U", "portico"]).args(args).output().unwrap();
        assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-h").arg(&self.folder).args(["-p", &self.port]).stdin(Stdio::null());
        command
    }
}

/// Debian keeps each version's programs in a folder of its own.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    folders.filter(|folder| folder.join("initdb").exists()).max()
}
