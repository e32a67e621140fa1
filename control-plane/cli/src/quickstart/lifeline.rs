//! A child's end: its standard input is a pipe that the parent holds and never writes to.

use std::io::Read as _;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// What a child may still do after its parent has gone.
const GRACE: Duration = Duration::from_secs(3);

/// Asks this process to end, as SIGTERM does, once standard input has ended; ends it if it does not.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn watch() -> std::io::Result<()> {
    std::thread::Builder::new().name("lifeline".to_owned()).spawn(|| {
        let mut sink = [0_u8; 64];
        let mut input = std::io::stdin();
        loop {
            match input.read(&mut sink) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _cannot_fail_for_oneself = kill_process(getpid(), Signal::TERM);
        std::thread::sleep(GRACE);
        let _cannot_fail_for_oneself = kill_process(getpid(), Signal::KILL);
    })?;
    Ok(())
}
