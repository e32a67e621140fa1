//! Who does a kind of work that only one replica may do at a time.
//!
//! A term has a number that rises with each holder, and an end by the database's clock. Whoever holds it renews it; each of
//! its transactions that write looks in the same transaction whether the term is still its own ([`super::Store::within`]).
//! A holder that hung and wakes late writes nothing. A replica takes its own term again at once: its data folder's lock says
//! that its last process is gone.

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

/// Takes the term if nobody has it; `None`: another replica does.
///
/// # Errors
/// The database's.
pub async fn take(tx: &mut WriteTx, work: &'static str, replica: &str) -> Result<Option<Term>, StoreError> {
    let asked = clock::instant();
    let now_ms = tx.now_ms().await?;
    let number: Option<i64> = sql::query_scalar(
        "INSERT INTO leases (work, holder, number, until) VALUES (?1, ?2, 1, ?3) ON CONFLICT (work) DO UPDATE SET \
         holder = excluded.holder, number = leases.number + 1, until = excluded.until \
         WHERE leases.until <= ?4 OR leases.holder = excluded.holder RETURNING number",
    )
    .bind(work)
    .bind(replica)
    .bind(now_ms + millis(LASTS))
    .bind(now_ms)
    .fetch_optional(tx)
    .await?;
    Ok(number.map(|number| Term::new(work, number, asked)))
}

/// Whether [`take`] would take it.
///
/// # Errors
/// The database's.
pub async fn is_free(connection: &mut Connection, work: &str, replica: &str) -> Result<bool, StoreError> {
    let now_ms = connection.now_ms().await?;
    Ok(sql::query_scalar(
        "SELECT NOT EXISTS (SELECT 1 FROM leases WHERE work = ? AND holder <> ? AND until > ?)",
    )
    .bind(work)
    .bind(replica)
    .bind(now_ms)
    .fetch_one(connection)
    .await?)
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
