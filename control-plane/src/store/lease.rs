//! Who does a kind of work that only one replica may do at a time.
//!
//! A term has a number that rises with each holder, and an end by the database's clock. Whoever holds it renews it; each of
//! its transactions that write looks in the same transaction whether the term is still its own ([`super::Store::within`]).
//! A holder that hung and wakes late writes nothing. A replica takes its own term again at once: its data folder's lock says
//! that its last process is gone. Others wait until they have seen it not renewed for as long as it lasts, so that a database
//! whose clock jumps gives it neither to two nor to one that is dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use super::{Connection, StoreError, WriteTx, sql};
use crate::clock;

/// How long a term lasts unless it is renewed: how long the work of a dead replica lies.
pub const LASTS: Duration = Duration::from_secs(15);

/// A term that this process holds, or held. Clones are the same term.
#[derive(Clone, Debug)]
pub struct Term(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    work: &'static str,
    number: i64,
    began: Instant,
    /// Until when it is surely ours, in milliseconds after `began`; 0 when the database has said that it is not.
    good_ms: AtomicI64,
}

impl Term {
    fn new(work: &'static str, number: i64, asked: Instant) -> Self {
        let good_ms = AtomicI64::new(millis(LASTS));
        Self(Arc::new(Inner { work, number, began: asked, good_ms }))
    }

    pub fn work(&self) -> &'static str {
        self.0.work
    }

    /// Whether the term is surely this replica's by its own clock, which runs on while the process is stopped. For what cannot be
    /// undone by a transaction: to be asked right before.
    pub fn stands(&self) -> bool {
        millis(clock::instant().duration_since(self.0.began)) < self.0.good_ms.load(Ordering::Acquire)
    }

    /// The database's word goes before our own clock's.
    fn ends(&self) {
        self.0.good_ms.store(0, Ordering::Release);
    }
}

/// A term that lasts longer by the database as soon as the transaction is committed.
#[derive(Debug)]
#[must_use = "our own clock follows once it is committed"]
pub struct Renewal {
    term: Term,
    good_ms: i64,
}

impl Renewal {
    /// It is committed: the term lasts longer by our own clock, too.
    pub fn committed(self) {
        self.term.0.good_ms.fetch_max(self.good_ms, Ordering::AcqRel);
    }
}

/// What a replica without a term has seen of it: its number and end, and since when both are so by our own clock.
#[derive(Debug, Default)]
pub struct Watched(Option<(i64, i64, Instant)>);

/// A term that may be taken, as it was seen: number and end; `None`: nobody ever had it.
#[derive(Clone, Copy, Debug)]
pub struct Free(Option<(i64, i64)>);

/// Whether the term may be taken. A replica that watches believes its own clock alone: the holder has not renewed it for as long as
/// it lasts, so it does not stand by the holder's own clock either. The database's may jump in either direction meanwhile. At the
/// first look that is all there is to go by.
///
/// # Errors
/// The database's.
pub async fn free(
    connection: &mut Connection,
    work: &str,
    replica: &str,
    watched: &mut Watched,
) -> Result<Option<Free>, StoreError> {
    let now_ms = connection.now_ms().await?;
    let row = sql::query("SELECT holder, number, until FROM leases WHERE work = ?")
        .bind(work)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(Some(Free(None))) };
    let (number, until): (i64, i64) = (row.try_get("number")?, row.try_get("until")?);
    let free = Free(Some((number, until)));
    if row.try_get::<&str>("holder")? == replica || until == 0 {
        return Ok(Some(free));
    }
    let seen = clock::instant();
    let is_over = match watched.0 {
        None => until <= now_ms,
        Some((known, same, since)) if (known, same) == (number, until) => seen.duration_since(since) >= LASTS,
        Some(_) => false,
    };
    if watched.0.is_none_or(|(known, same, _)| (known, same) != (number, until)) {
        watched.0 = Some((number, until, seen));
    }
    Ok(is_over.then_some(free))
}

/// Takes the term if it is still as it was seen; `None`: another replica did, or its holder has renewed it.
///
/// # Errors
/// The database's.
pub async fn take(
    tx: &mut WriteTx,
    work: &'static str,
    replica: &str,
    free: Free,
) -> Result<Option<Term>, StoreError> {
    let asked = clock::instant();
    let now_ms = tx.now_ms().await?;
    let (known, until) = free.0.unwrap_or_default();
    let number: Option<i64> = sql::query_scalar(
        "INSERT INTO leases (work, holder, number, until) VALUES (?1, ?2, 1, ?3) ON CONFLICT (work) DO UPDATE SET \
         holder = excluded.holder, number = leases.number + 1, until = excluded.until \
         WHERE leases.number = ?4 AND leases.until = ?5 OR leases.holder = excluded.holder RETURNING number",
    )
    .bind(work)
    .bind(replica)
    .bind(now_ms + millis(LASTS))
    .bind(known)
    .bind(until)
    .fetch_optional(tx)
    .await?;
    Ok(number.map(|number| Term::new(work, number, asked)))
}

/// Makes the term last from now on, if nobody else has taken it; `None`: it is over.
///
/// # Errors
/// The database's.
pub async fn renew(tx: &mut WriteTx, term: &Term) -> Result<Option<Renewal>, StoreError> {
    let asked = clock::instant();
    let until = tx.now_ms().await? + millis(LASTS);
    let done = sql::query("UPDATE leases SET until = ? WHERE work = ? AND number = ?")
        .bind(until)
        .bind(term.0.work)
        .bind(term.0.number)
        .execute(tx)
        .await?;
    if done.rows_affected() == 0 {
        term.ends();
        return Ok(None);
    }
    let good_ms = millis(asked.duration_since(term.0.began) + LASTS);
    Ok(Some(Renewal { term: term.clone(), good_ms }))
}

/// Lets another replica begin at once.
///
/// # Errors
/// The database's.
pub async fn give_up(tx: &mut WriteTx, term: &Term) -> Result<(), StoreError> {
    term.ends();
    sql::query("UPDATE leases SET until = 0 WHERE work = ? AND number = ?")
        .bind(term.0.work)
        .bind(term.0.number)
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether this replica has the term, or had it last.
///
/// # Errors
/// The database's.
pub async fn is_holder(connection: &mut Connection, work: &str, replica: &str) -> Result<bool, StoreError> {
    Ok(sql::query_scalar("SELECT EXISTS (SELECT 1 FROM leases WHERE work = ? AND holder = ?)")
        .bind(work)
        .bind(replica)
        .fetch_one(connection)
        .await?)
}

/// Whether any replica holds a term now.
///
/// # Errors
/// The database's.
pub async fn is_held(connection: &mut Connection) -> Result<bool, StoreError> {
    let now_ms = connection.now_ms().await?;
    Ok(sql::query_scalar("SELECT EXISTS (SELECT 1 FROM leases WHERE until > ?)")
        .bind(now_ms)
        .fetch_one(connection)
        .await?)
}

/// Refuses a transaction of a term that is over. Nobody can take the term while this transaction is under way.
pub(super) async fn check(connection: &mut Connection, term: &Term) -> Result<(), StoreError> {
    let now_ms = connection.now_ms().await?;
    let holds: bool =
        sql::query_scalar("SELECT EXISTS (SELECT 1 FROM leases WHERE work = ? AND number = ? AND until > ?)")
            .bind(term.0.work)
            .bind(term.0.number)
            .bind(now_ms)
            .fetch_one(connection)
            .await?;
    if holds {
        return Ok(());
    }
    term.ends();
    Err(StoreError::TermOver { work: term.0.work })
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
