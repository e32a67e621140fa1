//! Starts a successor: the same command line once more.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

/// How this process was started.
#[derive(Debug, Clone)]
pub struct Relaunch {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Relaunch {
    /// By the name that it was called by, so that a new file or a turned symbolic link at that place is what starts next.
    ///
    /// # Errors
    /// When there is no current folder, or the program is not known at all.
    pub fn of_this_process() -> io::Result<Self> {
        let mut words = env::args_os();
        let called = words.next().map(PathBuf::from).unwrap_or_default();
        let program = match called.components().count() {
            // Found by PATH.
            0 | 1 => env::current_exe()?,
            _ => std::path::absolute(called)?,
        };
        Ok(Self { program, arguments: words.filter(|word| !takes_over(word)).collect() })
    }

    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self, hand_over: &Path) -> io::Result<Child> {
        let mut flag = OsString::from("--take-over=");
        flag.push(hand_over);
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(flag).stdin(Stdio::null()).kill_on_drop(false).spawn()
    }
}

fn takes_over(word: &OsStr) -> bool {
    word == "--take-over" || word.to_string_lossy().starts_with("--take-over=")
}
