//! The scripts beside this file, run by the interpreter that `tests/run` has set up.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use portico_tests::{Running, binary, wait_until};

/// The interpreter with the packages of `requirements.txt`; says what is skipped where there is none.
pub(crate) fn interpreter(what: &str) -> Option<PathBuf> {
    let release = binary("portico-edge").parent().map(Path::to_owned).unwrap();
    let python = release.with_file_name("python-peers").join("bin/python");
    if !python.exists() {
        portico_skipping::skipped(&format!("{what}: no {} (tests/run makes it)", python.display()));
        return None;
    }
    Some(python)
}

fn script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    // Compiled files would end up in the source tree.
    command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_clients").join(name));
    command
}

/// Runs a script's checks; those that held have to be all of `checks`.
pub(crate) async fn holds<A: AsRef<OsStr>>(python: &Path, name: &str, args: &[A], checks: &[&str]) {
    let mut command = script(python, name);
    command.args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let held: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    assert!(output.status.success(), "{name}: {held:?} held\n{failed}");
    assert_eq!(held, checks, "{name}\n{failed}");
}

/// Starts a script that serves, and waits for its ports, which it prints as `WORD PORT...`.
pub(crate) async fn serves<A: AsRef<OsStr>>(
    python: &Path,
    name: &str,
    args: &[A],
    folder: &Path,
) -> (Running, Vec<u16>) {
    let mut process = Running::start(name, folder, script(python, name).args(args));
    let ports = wait_until(name, Duration::from_secs(60), async || {
        process.assert_alive();
        let words = process.last_words();
        let line = words.lines().find(|line| line.starts_with("port"))?;
        line.split(' ').skip(1).map(|port| port.parse().ok()).collect()
    })
    .await;
    (process, ports)
}
