//! TXT records in zones that others serve, for DNS-01: by dynamic update ([`update`]), by a program ([`program`]) or by a
//! request ([`webhook`]).
//!
//! Of the zones that are configured the longest decides that holds a name. A record counts as written when the servers that
//! are to show it do: a CA asks any of them. Which records are to be taken down the store knows, whatever happens to this
//! process.
//!
//! Deliberately absent: providers' own APIs. A program speaks them, and its operator has the credentials.

mod program;
mod update;
mod webhook;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::lookup::{Found, Lookup};
use crate::clock::{MINUTE_MS, is_within};
use crate::config::{DnsConfig, DnsWriterConfig};
use crate::limits;
use crate::secret_file;

/// Between two looks whether a server shows a record.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Faults of one zone are no news for this long.
const TOLD_AGAIN_MS: i64 = 10 * MINUTE_MS;

/// All that are configured.
#[derive(Debug)]
pub struct Writers {
    all: Vec<Writer>,
    records_deadline: Duration,
}

/// A record that was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritten {
    pub name: String,
    /// Of the writer.
    pub zone: String,
    /// For the operator: whose words these are nobody knows.
    pub why: String,
}

/// Whoever writes the records of one zone.
#[derive(Debug)]
pub struct Writer {
    zone: String,
    way: Way,
    /// Servers that must show a record before it counts as written.
    shown_by: Vec<(SocketAddr, Lookup)>,
    slots: Semaphore,
    told_at_ms: AtomicI64,
}

#[derive(Debug)]
enum Way {
    Update(update::Update),
    Program(program::Program),
    Webhook(webhook::Webhook),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}

impl Writers {
    /// # Errors
    /// A secret that cannot be read or is none.
    pub fn new(config: &DnsConfig) -> anyhow::Result<Self> {
        let all = config.writer.iter().map(Writer::new).collect::<Result<_, _>>()?;
        Ok(Self { all, records_deadline: limits::DNS_RECORDS_DEADLINE })
    }

    /// Who writes the records of a name, without a final dot.
    pub fn of(&self, name: &str) -> Option<&Writer> {
        let holds = |writer: &&Writer| {
            name.strip_suffix(&writer.zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.all.iter().filter(holds).max_by_key(|writer| writer.zone.len())
    }

    /// Puts the records of one order beside those that are there, and waits until they are shown. With the first that cannot be
    /// written the others are left.
    ///
    /// # Errors
    /// The first that was not.
    pub async fn add_all(&self, records: &[(&str, &str)]) -> Result<(), Unwritten> {
        let records: Vec<_> = records
            .iter()
            .map(|&(name, value)| {
                let writer = self.of(name).ok_or_else(|| Unwritten {
                    name: name.to_owned(),
                    zone: String::new(),
                    why: "no dns.writer is of its zone".to_owned(),
                })?;
                Ok((writer, name, value))
            })
            .collect::<Result<_, Unwritten>>()?;
        let Some(&(first, name, _)) = records.first() else { return Ok(()) };
        let count = records.len();
        let writes: Vec<_> = records
            .iter()
            .map(|&(writer, name, value)| {
                let write = async move { writer.write(Action::Add, name, value).await };
                write.map(|written| written.map_err(|why| writer.unwritten(name, why))).boxed()
            })
            .collect();
        let written = stream::iter(writes)
            .buffer_unordered(limits::DNS_WRITES_OF_ORDER_IN_FLIGHT_MAX)
            .try_collect::<()>();
        let in_time = tokio::time::timeout(self.records_deadline, written).await;
        in_time.unwrap_or_else(|_| {
            let seconds = self.records_deadline.as_secs();
            let why = format!("{count} records are not written within {seconds} s");
            Err(first.unwritten(name, why))
        })?;
        let looks: Vec<_> = records
            .iter()
            .map(|&(writer, name, value)| {
                let look = async move { writer.shown(name, value).await };
                look.map(|shown| shown.map_err(|why| writer.unwritten(name, why))).boxed()
            })
            .collect();
        try_join_all(looks).await.map(drop)
    }
}

impl Writer {
    /// # Errors
    /// A secret that cannot be read or is none.
    pub fn new(config: &DnsWriterConfig) -> anyhow::Result<Self> {
        Self::of(config).with_context(|| format!("dns.writer of \"{}\"", config.zone))
    }

    fn of(config: &DnsWriterConfig) -> anyhow::Result<Self> {
        let way = match (&config.update, &config.program, &config.webhook) {
            (Some(update), None, None) => Way::Update(update::Update::new(&config.zone, update)?),
            (None, Some(program), None) => Way::Program(program::Program::new(program)?),
            (None, None, Some(webhook)) => Way::Webhook(webhook::Webhook::new(webhook)?),
            _ => anyhow::bail!("one of update, program and webhook is needed"),
        };
        let by_default = config.update.as_ref().map(|update| update.server);
        let servers = config.shown_by.clone().unwrap_or_else(|| by_default.into_iter().collect());
        let ask = |server: SocketAddr| {
            let only = DnsConfig { resolvers: vec![server], ..DnsConfig::default() };
            anyhow::Ok((server, Lookup::new(&only)?))
        };
        Ok(Self {
            zone: config.zone.clone(),
            way,
            shown_by: servers.into_iter().map(ask).collect::<Result<_, _>>()?,
            slots: Semaphore::new(limits::DNS_WRITES_IN_FLIGHT_MAX),
            told_at_ms: AtomicI64::new(i64::MIN),
        })
    }

    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Whether a fault is news to the operator, who was not told of one of this zone lately; counts as telling it.
    pub fn may_tell(&self, now_ms: i64) -> bool {
        let is_news = |told: i64| (!is_within(TOLD_AGAIN_MS, told, now_ms)).then_some(now_ms);
        self.told_at_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_news).is_ok()
    }

    /// Takes a record down, and those beside it not.
    ///
    /// # Errors
    /// Words for the operator.
    pub async fn remove(&self, name: &str, value: &str) -> Result<(), String> {
        self.write(Action::Remove, name, value).await
    }

    /// Puts a record beside those that are there, and looks at nothing.
    ///
    /// # Errors
    /// Words for the operator.
    pub async fn add(&self, name: &str, value: &str) -> Result<(), String> {
        self.write(Action::Add, name, value).await
    }

    async fn write(&self, action: Action, name: &str, value: &str) -> Result<(), String> {
        // Orders take turns: the wait for one's own is no fault of the zone.
        let _slot = self.slots.acquire().await;
        let written = async {
            match &self.way {
                Way::Update(update) => update.write(action, name, value).await,
                Way::Program(program) => program.write(action, name, value).await,
                Way::Webhook(webhook) => webhook.write(action, name, value).await,
            }
        };
        let seconds = limits::DNS_WRITE_DEADLINE.as_secs();
        let in_time = tokio::time::timeout(limits::DNS_WRITE_DEADLINE, written).await;
        in_time.unwrap_or_else(|_| Err(format!("{}: not done within {seconds} s", self.way.place())))
    }

    /// Waits until all servers show it that are to.
    async fn shown(&self, name: &str, value: &str) -> Result<(), String> {
        let all = self.shown_by.iter().map(|(server, lookup)| shown(*server, lookup, name, value));
        try_join_all(all).await.map(drop)
    }

    fn unwritten(&self, name: &str, why: String) -> Unwritten {
        Unwritten { name: name.to_owned(), zone: self.zone.clone(), why }
    }
}

impl Way {
    /// Who writes, as the operator knows it.
    fn place(&self) -> String {
        match self {
            Self::Update(update) => update.place(),
            Self::Program(program) => program.place().to_owned(),
            Self::Webhook(webhook) => webhook.place().to_owned(),
        }
    }
}

/// A file that holds a secret and nothing else, without the white space around it.
fn secret(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = Zeroizing::new(secret_file::read_text(file)?.trim().to_owned());
    ensure!(!text.is_empty(), "{} is empty; it must hold the secret", file.display());
    Ok(text)
}

/// What somebody said of a failure, fit for a line of a log.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace(char::is_control, " ");
    text.trim().to_owned()
}

async fn shown(server: SocketAddr, lookup: &Lookup, name: &str, value: &str) -> Result<(), String> {
    let mut last = "it has none".to_owned();
    let look = async {
        loop {
            match lookup.txt(name).await {
                Found::Records(found) if found.iter().any(|found| found == value) => return,
                Found::Records(found) => last = format!("it has {} others", found.len()),
                Found::Nothing => "it has none".clone_into(&mut last),
                Found::Unknown(why) => last = why,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    if tokio::time::timeout(limits::DNS_SHOWN_DEADLINE, look).await.is_ok() {
        return Ok(());
    }
    Err(format!(
        "{server} does not show the record at {name} within {} s: {last}",
        limits::DNS_SHOWN_DEADLINE.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use std::fs;

    use super::*;
    use crate::clock;

    #[test]
    fn the_longest_zone_that_holds_a_name_decides() {
        let program = Some(vec!["/bin/true".to_owned()]);
        let writer = |zone: &str| DnsWriterConfig {
            zone: zone.to_owned(),
            program: program.clone(),
            ..DnsWriterConfig::default()
        };
        let config =
            DnsConfig { writer: vec![writer("shop.test"), writer("eu.shop.test")], ..DnsConfig::default() };
        let writers = Writers::new(&config).unwrap();
        let zone = |name: &str| writers.of(name).map(|writer| writer.zone.as_str());
        assert_eq!(zone("_acme-challenge.www.eu.shop.test"), Some("eu.shop.test"));
        assert_eq!(zone("_acme-challenge.www.shop.test"), Some("shop.test"));
        assert_eq!(zone("_acme-challenge.workshop.test"), None);
        assert_eq!(zone("shop.test"), Some("shop.test"));
    }

    #[tokio::test]
    async fn a_zone_is_written_by_so_many_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
        let script = format!("echo x >> {begun:?}; while [ ! -e {go:?} ]; do sleep 0.02; done");
        let program = Some(["/bin/sh", "-c", &script].map(str::to_owned).to_vec());
        let config = DnsWriterConfig { zone: "shop.test".to_owned(), program, ..DnsWriterConfig::default() };
        let writer = Writer::new(&config).unwrap();
        let all = join_all((0..2 * limits::DNS_WRITES_IN_FLIGHT_MAX).map(|_| writer.add("a.shop.test", "x")));
        let lines = || fs::read_to_string(&begun).unwrap_or_default().lines().count();
        let release = async {
            while lines() < limits::DNS_WRITES_IN_FLIGHT_MAX {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!((lines(), writer.slots.available_permits()), (limits::DNS_WRITES_IN_FLIGHT_MAX, 0));
            fs::write(&go, "").unwrap();
        };
        let (written, ()) = tokio::join!(all, release);
        assert!(written.iter().all(Result::is_ok), "{written:?}");
        assert_eq!(lines(), 2 * limits::DNS_WRITES_IN_FLIGHT_MAX);
    }

    /// One that notes in the folder what it is called with, and takes `seconds` for it.
    fn slow(folder: &Path, seconds: &str) -> DnsConfig {
        let script = format!("echo \"$@\" >> {:?}; exec sleep {seconds}", folder.join("called"));
        let program = ["/bin/sh", "-c", &script, "hook"].map(str::to_owned).to_vec();
        let writer =
            DnsWriterConfig { zone: "shop.test".to_owned(), program: Some(program), ..Default::default() };
        DnsConfig { writer: vec![writer], ..DnsConfig::default() }
    }

    fn calls(folder: &Path) -> usize {
        fs::read_to_string(folder.join("called")).unwrap_or_default().lines().count()
    }

    #[tokio::test]
    async fn an_order_of_many_names_leaves_turns_to_others_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut writers = Writers::new(&slow(folder.path(), "600")).unwrap();
        assert_eq!(writers.records_deadline, limits::DNS_RECORDS_DEADLINE);
        writers.records_deadline = Duration::from_secs(4);
        let records: Vec<_> = (0..20).map(|n| (format!("n{n}.shop.test"), "x")).collect();
        let records: Vec<_> = records.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let unwritten = writers.add_all(&records).await.unwrap_err();
        assert_eq!(calls(folder.path()), limits::DNS_WRITES_OF_ORDER_IN_FLIGHT_MAX);
        assert_eq!(unwritten.why, "20 records are not written within 4 s");
        assert_eq!(writers.all[0].slots.available_permits(), limits::DNS_WRITES_IN_FLIGHT_MAX);
    }

    #[tokio::test]
    async fn a_write_that_does_not_end_is_ended_and_the_wait_for_a_turn_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let writers = Writers::new(&slow(folder.path(), "600")).unwrap();
        let writer = writers.of("shop.test").unwrap();
        // More than have turns: the last ones begin when the first are given up.
        let begun = clock::instant();
        let all = join_all((0..=limits::DNS_WRITES_IN_FLIGHT_MAX).map(|_| writer.add("a.shop.test", "x")));
        let short = tokio::time::timeout(limits::DNS_WRITE_DEADLINE + Duration::from_secs(20), all).await;
        assert!(short.is_err(), "who waited had all of its time");
        assert!(begun.elapsed() > limits::DNS_WRITE_DEADLINE);
        assert_eq!(calls(folder.path()), limits::DNS_WRITES_IN_FLIGHT_MAX + 1);
    }

    #[tokio::test]
    async fn a_name_that_nobody_writes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let writers = Writers::new(&slow(folder.path(), "0")).unwrap();
        let unwritten =
            writers.add_all(&[("a.shop.test", "x"), ("a.elsewhere.test", "x")]).await.unwrap_err();
        assert_eq!((unwritten.name.as_str(), calls(folder.path())), ("a.elsewhere.test", 0));
    }

    #[test]
    fn a_fault_of_a_zone_is_told_once_in_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let writers = Writers::new(&slow(folder.path(), "0")).unwrap();
        let writer = writers.of("shop.test").unwrap();
        let told = [5, 6, 5 + TOLD_AGAIN_MS, 6 + TOLD_AGAIN_MS].map(|now| writer.may_tell(now));
        assert_eq!(told, [true, false, true, false]);
    }
}
