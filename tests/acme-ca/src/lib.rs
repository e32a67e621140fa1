//! An ACME server (RFC 8555) and a DNS stub for tests and trials.
//!
//! The CA really validates, over sockets and through DNS; enforces the published Let's Encrypt limits;
//! has a clock that can be moved and faults on demand; and counts all it did, so that a test can ask it
//! what happened rather than what the product believes. It shares no code and no type with the product:
//! a mistake in the product cannot hide here.
//!
//! Absent: CAA, CRL, OCSP and CT. State is in memory.

mod account;
mod authorization;
mod book;
mod budget;
mod ca;
mod clock;
pub mod dns;
mod external_account;
mod faults;
mod identifier;
mod issue;
mod jws;
mod limits;
mod management;
mod nonce;
mod order;
mod problem;
mod profile;
mod renewal_info;
mod request;
mod revoke;
mod server;
mod stats;
mod tls;
mod token;
mod validate;

pub use ca::{AriExemption, CaAddresses, CaArgs, CaHandle, LimitTable, start};
pub use dns::{DnsAddresses, DnsArgs, DnsHandle};
pub use external_account::ExternalAccount;
pub use limits::{Limit, LimitName, LimitOverride};

/// Runs a CA until a signal, or until standard input ends where that was asked for. Prints one line of
/// JSON with the bound addresses once all of them answer.
///
/// # Errors
/// See [`start`].
pub async fn run_ca(args: CaArgs) -> anyhow::Result<()> {
    let wait_for_stdin = args.exit_on_stdin_eof;
    let mut handle = start(args).await?;
    println!("{}", serde_json::to_string(&handle.addresses)?);
    tokio::select! {
        () = handle.stopped() => anyhow::bail!("a listener ended"),
        result = lifetime::ended(wait_for_stdin) => result,
    }
}

/// Runs a DNS stub until a signal, or until standard input ends where that was asked for. Prints one line
/// of JSON with the bound addresses once all of them answer.
///
/// # Errors
/// See [`dns::start`].
pub async fn run_dns(args: DnsArgs) -> anyhow::Result<()> {
    let wait_for_stdin = args.exit_on_stdin_eof;
    let mut handle = dns::start(args).await?;
    println!("{}", serde_json::to_string(&handle.addresses)?);
    tokio::select! {
        () = handle.stopped() => anyhow::bail!("a listener ended"),
        result = lifetime::ended(wait_for_stdin) => result,
    }
}

mod lifetime {
    //! When to end.

    use std::io::Read;

    use anyhow::Context;
    use tokio::signal::unix::{SignalKind, signal};
    use tokio::sync::oneshot;

    /// Returns on SIGTERM, SIGINT, or the end of standard input where that counts.
    pub(crate) async fn ended(wait_for_stdin: bool) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin_end(), if wait_for_stdin => {}
        }
        Ok(())
    }

    async fn stdin_end() {
        let (sender, receiver) = oneshot::channel();
        // A thread of its own: tokio's standard input would hold up the runtime's end.
        std::thread::spawn(move || {
            let mut sink = [0; 256];
            let mut stdin = std::io::stdin();
            while matches!(stdin.read(&mut sink), Ok(n) if n > 0) {}
            sender.send(()).ok();
        });
        receiver.await.ok();
    }
}
