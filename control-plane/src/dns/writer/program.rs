//! A program of the operator's: `PROGRAM ARGUMENTS.. add|remove NAME VALUE`; 0 is done.
//!
//! It is the leader of a process group of its own, which ends with it: what it starts and leaves behind does not outlive it, and
//! nobody waits for that.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::Action;
use crate::limits;

/// Until what a program said has been read, after its end. Who has left its group may hold the pipe open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Program {
    program: String,
    /// They are not told to anybody: one may be a secret.
    arguments: Vec<String>,
}

impl Program {
    pub(super) fn new(words: &[String]) -> anyhow::Result<Self> {
        let (program, arguments) = words.split_first().context("program names none")?;
        let file = fs::metadata(Path::new(program)).with_context(|| format!("program \"{program}\""))?;
        let is_program = file.is_file() && file.permissions().mode() & 0o111 != 0;
        ensure!(is_program, "program \"{program}\" is no file that can be run: chmod 755 it");
        Ok(Self { program: program.clone(), arguments: arguments.to_vec() })
    }

    pub(super) fn place(&self) -> &str {
        &self.program
    }

    /// Dropped before its end, the program and what it started are killed.
    pub(super) async fn write(&self, action: Action, name: &str, value: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.program);
        let mut ends = signal(SignalKind::child()).map_err(failed)?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .args([action.as_str(), name, value])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stderr = child.stderr.take();
        let group = Group::of(child.id()).map_err(failed)?;
        let mut said = Vec::new();
        let status = {
            let reading = read(stderr, &mut said).fuse();
            tokio::pin!(reading);
            tokio::select! {
                ended = group.leader_ended(&mut ends) => ended.map_err(failed)?,
                // It has closed the pipe and goes on.
                () = &mut reading => group.leader_ended(&mut ends).await.map_err(failed)?,
            }
            drop(group);
            if !reading.is_terminated() {
                let _ = tokio::time::timeout(LAST_WORDS, reading).await;
            }
            child.wait().await.map_err(failed)?
        };
        if status.success() {
            return Ok(());
        }
        Err(format!("{} {} ended with {status}: {}", self.program, action.as_str(), super::said(&said)))
    }
}

/// The first words; the rest is thrown away, so that who says more need not wait for a reader.
async fn read(stderr: Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let most = u64::try_from(limits::DNS_WRITER_TEXT_MAX).unwrap_or(u64::MAX);
    // What cannot be read is not told; whether it is done its status says.
    let _ = (&mut stderr).take(most).read_to_end(said).await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
}

/// The processes of a program, killed when this is dropped. The leader must not have been waited for before: its number, which
/// is the group's, would be anybody's.
struct Group {
    leader: Pid,
}

impl Group {
    fn of(leader: Option<u32>) -> std::io::Result<Self> {
        let leader = leader.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { leader: leader.ok_or_else(|| std::io::Error::other("it has no process number"))? })
    }

    /// `ends` tells of the ends of children since before this one began.
    async fn leader_ended(&self, ends: &mut tokio::signal::unix::Signal) -> std::io::Result<()> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while waitid(WaitId::Pid(self.leader), look)?.is_none() {
            ends.recv().await;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody may be left in it.
        let _ = kill_process_group(self.leader, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::clock;

    fn shell(script: &str) -> Program {
        Program::new(&["/bin/sh", "-c", script].map(str::to_owned)).unwrap()
    }

    /// Waits until the process whose number is in the file is no more, or a zombie that nobody has waited for.
    async fn until_gone(file: &Path) {
        let deadline = clock::instant() + Duration::from_secs(20);
        let number = fs::read_to_string(file).unwrap();
        let status = format!("/proc/{}/status", number.trim());
        let runs = || fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ"));
        while runs() {
            assert!(clock::instant() < deadline, "process {number} lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_is_ended_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left");
        let program = shell(&format!("sleep 600 & echo $! > {left:?}"));
        let begun: Instant = clock::instant();
        program.write(Action::Add, "a.test", "x").await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        until_gone(&left).await;
    }

    #[tokio::test]
    async fn who_leaves_the_group_with_the_pipe_open_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left");
        let program = shell(&format!(
            "setsid sh -c 'echo $$ > {left:?}; exec sleep 25' & while [ ! -s {left:?} ]; do sleep 0.02; done; \
             echo no >&2; exit 4"
        ));
        let begun = clock::instant();
        let error = program.write(Action::Remove, "a.test", "x").await.unwrap_err();
        assert_eq!(error, "/bin/sh remove ended with exit status: 4: no");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_program_that_hangs_ends_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let (own, left) = (folder.path().join("own"), folder.path().join("left"));
        let program = shell(&format!("exec 2>&-; sleep 600 & echo $! > {left:?}; echo $$ > {own:?}; wait"));
        let written = program.write(Action::Add, "a.test", "x");
        let begun = async {
            while fs::read_to_string(&own).unwrap_or_default().trim().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            written = written => panic!("it ended: {written:?}"),
            () = begun => {}
        }
        until_gone(&own).await;
        until_gone(&left).await;
    }

    #[tokio::test]
    async fn whoever_has_said_all_is_done_at_its_end() {
        let begun = clock::instant();
        for _ in 0..100 {
            shell("exit 0").write(Action::Add, "a.test", "x").await.unwrap();
        }
        assert!(begun.elapsed() < 100 * LAST_WORDS / 2, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn of_a_flood_of_words_the_first_are_told() {
        let program = shell("echo secret-free; head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1");
        let error = program.write(Action::Add, "a.test", "x").await.unwrap_err();
        assert!(error.ends_with(&"x".repeat(limits::DNS_WRITER_TEXT_MAX)), "{}", error.len());
        assert!(error.len() < limits::DNS_WRITER_TEXT_MAX + 100, "{}", error.len());
    }

    #[test]
    fn a_program_that_is_none_is_refused() {
        for (word, why) in
            [("/no/such/hook", "No such file"), ("/etc/passwd", "chmod 755"), ("/tmp", "chmod")]
        {
            let error = format!("{:#}", Program::new(&[word.to_owned()]).unwrap_err());
            assert!(error.contains(word) && error.contains(why), "{error}");
        }
    }
}
