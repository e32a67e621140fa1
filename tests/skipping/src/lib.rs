//! How a test says that it, or a part of it, is not run on this machine. The test harness hides what a passing test prints;
//! whoever reads its output would take such a test for one that was run.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

/// Says once in each process what is not run and what is missing for it, with the test that lacks it first.
pub fn skipped(what: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned()) {
        // Not by `eprintln!`, which is captured. A closed standard error fails no test.
        let _ = writeln!(std::io::stderr(), "{}", line(what));
    }
}

fn line(what: &str) -> String {
    // The harness names a test's thread after it.
    let thread = std::thread::current();
    format!("skipped: {what} ({})", thread.name().unwrap_or("a thread without a name"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Set in the process that this test starts of itself.
    const CHILD: &str = "PORTICO_SKIPPING_CHILD";

    #[test]
    fn what_is_skipped_is_told_although_the_test_passes_and_told_once() {
        if std::env::var_os(CHILD).is_some() {
            super::skipped("a wheel is not installed");
            super::skipped("a wheel is not installed");
            eprintln!("captured");
            return;
        }
        let name = "tests::what_is_skipped_is_told_although_the_test_passes_and_told_once";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads", "2"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(child.status.success());
        let said = String::from_utf8(child.stderr).unwrap();
        assert_eq!(said, format!("skipped: a wheel is not installed ({name})\n"));
    }
}
