//! The audit trail: who wrote what, before and after. Each entry's hash covers the entry before it.
//!
//! An entry holds whole documents, and a tenant chooses how large its own are: whatever reads entries reads them within
//! [`READ_BYTES_MAX`].
//!
//! Entries are kept for `[audit] keep_days`; of those that were forgotten the last one's hash stays, from which the chain
//! goes on.
//!
//! Deliberately absent: secrets (callers pass API documents, which hold none) and a signature; whoever can rewrite the
//! whole file can rewrite the chain or cut its end, so an operator notes the chain's end elsewhere now and then ([`Mark`]),
//! or ships the entries elsewhere.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::TryStreamExt as _;
use portico_api::v1::AuditEntry;

use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_json, meta, sql, to_json};

const META_FORGOTTEN: &str = "audit_forgotten";
/// Texts of entries that one read takes; the entry that passes it is the last.
const READ_BYTES_MAX: usize = 16 << 20;

/// One write, as its author reports it.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Unix milliseconds.
    pub at: i64,
    /// A token's id, or `system`.
    pub actor: &'a str,
    pub request_id: &'a str,
    /// `domain.create`, `tenant.suspend`, ..
    pub action: &'a str,
    pub subject: &'a str,
    pub before: serde_json::Value,
    pub after: serde_json::Value,
}

/// A row as it is, whether or not anybody has changed it.
struct Stored {
    sequence: i64,
    at: i64,
    actor: String,
    request_id: String,
    action: String,
    subject: String,
    before: String,
    after: String,
    hash: Vec<u8>,
}

/// Answers how many bytes of text were written.
///
/// # Errors
/// The database's.
pub async fn append(tx: &mut WriteTx, entry: &Entry<'_>) -> Result<usize, StoreError> {
    let last = sql::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(tx)
        .await?;
    let (sequence, previous): (i64, Vec<u8>) = match last {
        Some(row) => (row.try_get("sequence")?, row.try_get("hash")?),
        None => (0, Vec::new()),
    };
    let sequence = sequence + 1;
    let (before, after) = (to_json(&entry.before)?, to_json(&entry.after)?);
    let texts = [entry.actor, entry.request_id, entry.action, entry.subject, &before, &after];
    let hash = chain(&previous, sequence, entry.at, texts);
    sql::query(
        "INSERT INTO audit (sequence, at, actor, request_id, action, subject, before, after, hash) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(sequence)
    .bind(entry.at)
    .bind(entry.actor)
    .bind(entry.request_id)
    .bind(entry.action)
    .bind(entry.subject)
    .bind(&before)
    .bind(&after)
    .bind(hash)
    .execute(tx)
    .await?;
    Ok(texts.iter().map(|text| text.len()).sum())
}

/// Entries after `since`, oldest first, and whether they are the last ones: large ones make a page short.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut Connection,
    since: u64,
    limit: u32,
) -> Result<(Vec<AuditEntry>, bool), StoreError> {
    let (rows, is_end) = stored(connection, since.cast_signed(), limit).await?;
    Ok((rows.into_iter().map(Stored::shown).collect::<Result<_, _>>()?, is_end))
}

/// Where a walk along the chain stands: an entry and its hash. The default is before the first entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub sequence: i64,
    pub hash: Vec<u8>,
}

/// `SEQUENCE:HASH`, the hash in hex; `0:` before the first entry.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex::encode(&self.hash))
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (sequence, digits) = text.split_once(':').ok_or(())?;
        let sequence: i64 = sequence.parse().map_err(|_| ())?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if sequence < 0 || !is_hex || digits.len() != if sequence == 0 { 0 } else { 64 } {
            return Err(());
        }
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| ());
        let hash = (0..digits.len()).step_by(2).map(byte).collect::<Result<_, _>>()?;
        Ok(Self { sequence, hash })
    }
}

/// How far the chain holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// `checked` entries follow on from the start; `to` is the last of them, and the trail's end where `is_end`.
    Holds { to: Mark, checked: u64, is_end: bool },
    /// The first entry that does not follow from the one before it, or is not the one that was noted, or is gone.
    Altered { sequence: u64, checked: u64 },
    /// The noted entry is older than what is kept.
    Forgotten,
}

/// Follows the chain over at most `limit` entries, fewer where they are large: from the beginning of what is kept, or from an entry that was noted.
///
/// # Errors
/// The database's.
pub async fn follow(
    connection: &mut Connection,
    noted: Option<Mark>,
    limit: u32,
) -> Result<Followed, StoreError> {
    let beginning = forgotten(connection).await?;
    let altered =
        |sequence: i64, checked| Ok(Followed::Altered { sequence: sequence.unsigned_abs(), checked });
    let mut to = match noted {
        None => beginning,
        Some(noted) if noted.sequence < beginning.sequence => return Ok(Followed::Forgotten),
        Some(noted) if noted.sequence == beginning.sequence => {
            if noted != beginning {
                return altered(noted.sequence, 0);
            }
            beginning
        }
        Some(noted) => {
            let hash: Option<Vec<u8>> = sql::query_scalar("SELECT hash FROM audit WHERE sequence = ?")
                .bind(noted.sequence)
                .fetch_optional(&mut *connection)
                .await?;
            if hash.as_ref() != Some(&noted.hash) {
                return altered(noted.sequence, 0);
            }
            noted
        }
    };
    let (rows, is_end) = stored(connection, to.sequence, limit).await?;
    let mut checked = 0;
    for row in rows {
        let sequence = to.sequence + 1;
        if row.sequence != sequence || row.hash != chain(&to.hash, sequence, row.at, row.texts()) {
            return altered(sequence, checked);
        }
        to = Mark { sequence, hash: row.hash };
        checked += 1;
    }
    Ok(Followed::Holds { to, checked, is_end })
}

/// The last entry that was forgotten; the trail begins after it.
///
/// # Errors
/// The database's.
pub async fn forgotten(connection: &mut Connection) -> Result<Mark, StoreError> {
    let Some(text) = meta::find(connection, META_FORGOTTEN).await? else { return Ok(Mark::default()) };
    text.parse().map_err(|()| StoreError::Unreadable { what: format!("meta: {META_FORGOTTEN}") })
}

/// Forgets entries older than `before_ms`, at most `limit` of them; the newest one stays, so that the chain goes on. The
/// last one's hash is kept, so that the rest can be verified still. Answers how many went.
///
/// # Errors
/// The database's.
pub async fn purge(tx: &mut WriteTx, before_ms: i64, limit: u32) -> Result<usize, StoreError> {
    let rows = sql::query(
        "SELECT sequence, at, hash FROM audit WHERE sequence < (SELECT MAX(sequence) FROM audit) \
         ORDER BY sequence LIMIT ?",
    )
    .bind(limit)
    .fetch_all(tx)
    .await?;
    let (mut last, mut count) = (None, 0);
    for row in rows {
        if row.try_get::<i64>("at")? >= before_ms {
            break;
        }
        last = Some(Mark { sequence: row.try_get("sequence")?, hash: row.try_get("hash")? });
        count += 1;
    }
    if let Some(last) = last {
        meta::put(tx, META_FORGOTTEN, &last.to_string()).await?;
        sql::query("DELETE FROM audit WHERE sequence <= ?").bind(last.sequence).execute(tx).await?;
    }
    Ok(count)
}

/// At most `limit` entries after `since`, and whether these are the last ones.
async fn stored(
    connection: &mut Connection,
    since: i64,
    limit: u32,
) -> Result<(Vec<Stored>, bool), StoreError> {
    let mut found = sql::query("SELECT * FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?")
        .bind(since)
        .bind(limit)
        .fetch(connection);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.try_next().await? {
        let row = Stored::read(&row)?;
        bytes += row.texts().iter().map(|text| text.len()).sum::<usize>();
        rows.push(row);
        if bytes >= READ_BYTES_MAX {
            return Ok((rows, false));
        }
    }
    let is_end = rows.len() < limit as usize;
    Ok((rows, is_end))
}

impl Stored {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            sequence: row.try_get("sequence")?,
            at: row.try_get("at")?,
            actor: row.try_get("actor")?,
            request_id: row.try_get("request_id")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
            before: row.try_get("before")?,
            after: row.try_get("after")?,
            hash: row.try_get("hash")?,
        })
    }

    fn texts(&self) -> [&str; 6] {
        [&self.actor, &self.request_id, &self.action, &self.subject, &self.before, &self.after]
    }

    fn shown(self) -> Result<AuditEntry, StoreError> {
        Ok(AuditEntry {
            sequence: self.sequence.unsigned_abs(),
            at: crate::clock::rfc3339(self.at),
            before: from_json(&self.before, "audit")?,
            after: from_json(&self.after, "audit")?,
            actor: self.actor,
            request_id: self.request_id,
            action: self.action,
            subject: self.subject,
        })
    }
}

/// SHA-256 over the previous hash and every field, each with its length before it.
fn chain(previous: &[u8], sequence: i64, at: i64, texts: [&str; 6]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    let (sequence, at) = (sequence.to_be_bytes(), at.to_be_bytes());
    let fields = [previous, &sequence, &at].into_iter().chain(texts.iter().map(|text| text.as_bytes()));
    for field in fields {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field);
    }
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Store;

    /// A trail of `count` entries, written at 0, 1, 2, .. ms.
    async fn trail(store: &Store, count: i64) {
        for at in 0..count {
            let mut tx = store.begin().await.unwrap();
            let entry = Entry {
                at,
                actor: "tok_1",
                request_id: "req_1",
                action: "domain.create",
                subject: "dom_1",
                before: json!(null),
                after: json!({ "number": at }),
            };
            append(&mut tx, &entry).await.unwrap();
            tx.commit().await.unwrap();
        }
    }

    /// What the walk says after `sql`, which is undone.
    async fn after(store: &Store, sql: &'static str, noted: Option<Mark>) -> Followed {
        let mut tx = store.begin().await.unwrap();
        sql::query(sql).execute(&mut tx).await.unwrap();
        follow(&mut tx, noted, 100).await.unwrap()
    }

    async fn end(store: &Store) -> Mark {
        let followed = follow(&mut store.read().await.unwrap(), None, 100).await.unwrap();
        let Followed::Holds { to, is_end: true, .. } = followed else { panic!("{followed:?}") };
        to
    }

    #[tokio::test]
    async fn an_entry_altered_or_removed_afterwards_shows() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        trail(&store, 5).await;
        let whole = end(&store).await;
        assert_eq!(whole.sequence, 5);
        assert_eq!(list(&mut store.read().await.unwrap(), 3, 10).await.unwrap().0.len(), 2);

        let altered = |sequence, checked| Followed::Altered { sequence, checked };
        for sql in [
            "UPDATE audit SET actor = 'tok_2' WHERE sequence = 3",
            "UPDATE audit SET at = 0 WHERE sequence = 3",
            // Not even JSON any more.
            "UPDATE audit SET after = '{' WHERE sequence = 3",
            "DELETE FROM audit WHERE sequence = 3",
        ] {
            assert_eq!(after(&store, sql, None).await, altered(3, 2), "{sql}");
        }
        // The end can be cut without a trace in the chain; whoever noted it sees that it is gone.
        let cut = "DELETE FROM audit WHERE sequence > 3";
        assert!(matches!(after(&store, cut, None).await, Followed::Holds { checked: 3, .. }));
        assert_eq!(after(&store, cut, Some(whole.clone())).await, altered(5, 0));
        assert!(matches!(after(&store, "SELECT 1", Some(whole)).await, Followed::Holds { checked: 0, .. }));
    }

    #[tokio::test]
    async fn the_chain_is_followed_in_steps_from_mark_to_mark() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        trail(&store, 5).await;
        let mut read = store.read().await.unwrap();
        let (mut mark, mut steps) = (None, 0);
        loop {
            let followed = follow(&mut read, mark, 2).await.unwrap();
            let Followed::Holds { to, is_end, .. } = followed else { panic!("{followed:?}") };
            // As it goes over the wire.
            assert_eq!(to.to_string().parse(), Ok(to.clone()));
            steps += 1;
            if is_end {
                assert_eq!((to.sequence, steps), (5, 3));
                break;
            }
            mark = Some(to);
        }
    }

    /// A tenant's documents are as large as the API takes them, ten thousand of them as many as it likes.
    #[tokio::test]
    async fn entries_of_any_size_are_read_within_a_bound_and_none_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let (size, count) = (1 << 20, 40);
        for _ in 0..count {
            let mut tx = store.begin().await.unwrap();
            let (before, after) = (json!(null), json!("x".repeat(size)));
            let (actor, request_id, action, subject) = ("tok_1", "req_1", "domain.patch", "dom_1");
            append(&mut tx, &Entry { at: 0, actor, request_id, action, subject, before, after })
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
        let mut read = store.read().await.unwrap();
        let (mut listed, mut pages) = (0, 0);
        loop {
            let (page, is_end) = list(&mut read, listed, 1000).await.unwrap();
            assert!(page.len() * size <= READ_BYTES_MAX + size, "{} entries at once", page.len());
            listed = page.last().unwrap().sequence;
            pages += 1;
            if is_end {
                break;
            }
        }
        assert_eq!((listed, pages), (count, 3));
        let (mut mark, mut followed, mut steps) = (None, 0, 0);
        loop {
            let step = follow(&mut read, mark, 10_000).await.unwrap();
            let Followed::Holds { to, checked, is_end } = step else { panic!("{step:?}") };
            (followed, steps) = (followed + checked, steps + 1);
            if is_end {
                break;
            }
            mark = Some(to);
        }
        assert_eq!((followed, steps), (count, 3));
    }

    #[tokio::test]
    async fn what_is_kept_can_be_verified_after_the_old_was_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        trail(&store, 5).await;
        let mut tx = store.begin().await.unwrap();
        assert_eq!(purge(&mut tx, 3, 2).await.unwrap(), 2, "no more than asked for in one go");
        assert_eq!(purge(&mut tx, 3, 2).await.unwrap(), 1);
        assert_eq!(purge(&mut tx, 3, 2).await.unwrap(), 0);
        tx.commit().await.unwrap();
        let mut read = store.read().await.unwrap();
        let kept = follow(&mut read, None, 100).await.unwrap();
        assert!(matches!(kept, Followed::Holds { checked: 2, is_end: true, .. }), "{kept:?}");
        let old = Mark { sequence: 2, hash: vec![0; 32] };
        assert_eq!(follow(&mut read, Some(old), 100).await.unwrap(), Followed::Forgotten);
        drop(read);

        let altered = after(&store, "UPDATE audit SET subject = 'dom_2' WHERE sequence = 4", None).await;
        assert_eq!(altered, Followed::Altered { sequence: 4, checked: 0 });
        // The newest entry stays however old it is, so that the numbers and the chain go on.
        let mut tx = store.begin().await.unwrap();
        assert_eq!(purge(&mut tx, i64::MAX, 100).await.unwrap(), 1);
        tx.commit().await.unwrap();
        trail(&store, 1).await;
        assert_eq!(end(&store).await.sequence, 6);
    }
}
