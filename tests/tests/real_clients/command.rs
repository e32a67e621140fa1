//! Programs of the system, with what they said.

use std::process::{Command, Output};

/// Whether a program answers to `--version` or `version`; where it does not, says what is skipped.
pub(crate) fn is_there(program: &str, package: &str) -> bool {
    let asked = if program == "openssl" { "version" } else { "--version" };
    let found = Command::new(program).arg(asked).output().is_ok_and(|output| output.status.success());
    if !found {
        portico_skipping::skipped(&format!("{program} is not installed (Debian package {package})"));
    }
    found
}

/// Runs a program on a thread of its own: the origin of the test is served by this one.
pub(crate) async fn run(program: &'static str, args: &[&str]) -> Said {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(program);
        command.args(args).stdin(std::process::Stdio::null());
        command.output()
    });
    Said(output.await.unwrap().unwrap())
}

#[derive(Debug)]
pub(crate) struct Said(Output);

impl Said {
    pub(crate) fn is_good(&self) -> bool {
        self.0.status.success()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.stdout
    }

    /// Standard output, without what failed.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        assert!(self.is_good(), "{self:?}");
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn complaints(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}
