//! What the control planes on one database tell each other about edges: where each hangs, urgent messages for those that
//! hang elsewhere, and their answers.

use std::collections::HashSet;

use portico_cert_store::{CellId, EdgeId, Generation};

use super::sql::{QueryBuilder, Row};
use super::{Connection, StoreError, WriteTx, from_id, from_json, sql, to_json};
use crate::limits::RELAYED_PER_LOOK_MAX;

/// Ids, or rows of three values, in one statement.
const TOGETHER: usize = 500;

/// An urgent message of another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    pub number: i64,
    /// `None`: all.
    pub cells: Option<Vec<CellId>>,
    /// As on the wire.
    pub message: Vec<u8>,
}

/// What an edge says to a message of another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayedAnswer {
    pub number: i64,
    pub edge: EdgeId,
    /// Its acknowledgement, as on the wire.
    pub ack: Vec<u8>,
}

/// An edge that hangs on another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    pub edge: EdgeId,
    pub applied: Generation,
}

/// Has the other replicas tell their edges; answers the message's number.
///
/// # Errors
/// The database's.
pub async fn send(
    tx: &mut WriteTx,
    replica: &str,
    cells: Option<&[CellId]>,
    message: &[u8],
) -> Result<i64, StoreError> {
    let now_ms = tx.now_ms().await?;
    tx.wake_others();
    Ok(sql::query_scalar(
        "INSERT INTO relayed (replica, cells, message, at) VALUES (?, ?, ?, ?) RETURNING number",
    )
    .bind(replica)
    .bind(cells.map(to_json).transpose()?)
    .bind(message)
    .bind(now_ms)
    .fetch_one(tx)
    .await?)
}

/// What other replicas have sent after `number`, oldest first.
///
/// # Errors
/// The database's.
pub async fn since(
    connection: &mut Connection,
    number: i64,
    replica: &str,
) -> Result<Vec<Relayed>, StoreError> {
    let rows = sql::query(
        "SELECT number, cells, message FROM relayed WHERE number > ? AND replica <> ? ORDER BY number LIMIT ?",
    )
    .bind(number)
    .bind(replica)
    .bind(i64::try_from(RELAYED_PER_LOOK_MAX).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    let relayed = |row: &Row| {
        let cells: Option<String> = row.try_get("cells")?;
        Ok(Relayed {
            number: row.try_get("number")?,
            cells: cells.map(|cells| from_json(&cells, "relayed: cells")).transpose()?,
            message: row.try_get("message")?,
        })
    };
    rows.iter().map(relayed).collect()
}

/// The number of the newest message; 0 when there is none.
///
/// # Errors
/// The database's.
pub async fn newest(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sql::query_scalar("SELECT COALESCE(MAX(number), 0) FROM relayed").fetch_one(connection).await?)
}

/// Edges have answered; the senders are told. Of what an edge says to one message the first word counts.
///
/// # Errors
/// The database's.
pub async fn answer(tx: &mut WriteTx, answers: &[RelayedAnswer]) -> Result<(), StoreError> {
    // Which of two rows of one statement comes first is the database's choice.
    let mut said = HashSet::new();
    let first: Vec<&RelayedAnswer> =
        answers.iter().filter(|answer| said.insert((answer.number, answer.edge))).collect();
    for answers in first.chunks(TOGETHER) {
        tx.wake_others();
        let mut insert = QueryBuilder::new(
            "INSERT INTO relayed_answers (number, edge_id, ack) SELECT a.column1, a.column2, a.column3 FROM (VALUES ",
        );
        for (at, RelayedAnswer { number, edge, ack }) in answers.iter().enumerate() {
            insert.push(if at == 0 { "(" } else { ", (" }).push_bind(*number).push(", ");
            insert.push_bind(edge.to_string()).push(", ").push_bind(ack.as_slice()).push(")");
        }
        // A message may have been forgotten meanwhile.
        insert.push(
            ") a WHERE a.column1 IN (SELECT number FROM relayed) ON CONFLICT (number, edge_id) DO NOTHING",
        );
        insert.build().execute(tx).await?;
    }
    Ok(())
}

/// What edges have answered to these messages so far.
///
/// # Errors
/// The database's.
pub async fn answers(connection: &mut Connection, numbers: &[i64]) -> Result<Vec<RelayedAnswer>, StoreError> {
    let mut answers = Vec::new();
    for numbers in numbers.chunks(TOGETHER) {
        let mut query =
            QueryBuilder::new("SELECT number, edge_id, ack FROM relayed_answers WHERE number IN (");
        query.push_list(numbers).push(")");
        for row in query.build().fetch_all(&mut *connection).await? {
            answers.push(RelayedAnswer {
                number: row.try_get("number")?,
                edge: from_id(&row.try_get::<String>("edge_id")?, "relayed_answers")?,
                ack: row.try_get("ack")?,
            });
        }
    }
    Ok(answers)
}

/// These edges, each named once, hang on `replica` now, and have applied that.
///
/// # Errors
/// The database's.
pub async fn put_streams(
    tx: &mut WriteTx,
    replica: &str,
    streams: &[(EdgeId, Generation)],
) -> Result<(), StoreError> {
    let now_ms = tx.now_ms().await?;
    for streams in streams.chunks(TOGETHER) {
        tx.wake_others();
        let mut upsert = QueryBuilder::new(
            "INSERT INTO edge_streams (edge_id, replica, applied_epoch, applied_sequence, seen_at) SELECT e.id, ",
        );
        upsert.push_bind(replica).push(", a.column2, a.column3, ").push_bind(now_ms).push(" FROM (VALUES ");
        for (at, (edge, applied)) in streams.iter().enumerate() {
            upsert.push(if at == 0 { "(" } else { ", (" }).push_bind(edge.to_string()).push(", ");
            upsert.push_bind(applied.epoch.cast_signed()).push(", ");
            upsert.push_bind(applied.sequence.cast_signed()).push(")");
        }
        upsert.push(
            ") a JOIN edges e ON e.id = a.column1 WHERE e.removed_at IS NULL \
             ON CONFLICT (edge_id) DO UPDATE SET replica = excluded.replica, applied_epoch = excluded.applied_epoch, \
             applied_sequence = excluded.applied_sequence, seen_at = excluded.seen_at",
        );
        upsert.build().execute(tx).await?;
    }
    Ok(())
}

/// An edge no longer hangs on `replica`.
///
/// # Errors
/// The database's.
pub async fn drop_stream(tx: &mut WriteTx, replica: &str, edge: EdgeId) -> Result<(), StoreError> {
    tx.wake_others();
    sql::query("DELETE FROM edge_streams WHERE edge_id = ? AND replica = ?")
        .bind(edge.to_string())
        .bind(replica)
        .execute(tx)
        .await?;
    Ok(())
}

/// Edges that hang on other replicas and were seen within the last `within_ms`.
///
/// # Errors
/// The database's.
pub async fn elsewhere(
    connection: &mut Connection,
    replica: &str,
    within_ms: i64,
) -> Result<Vec<Elsewhere>, StoreError> {
    let since = connection.now_ms().await? - within_ms;
    let rows = sql::query(
        "SELECT edge_id, applied_epoch, applied_sequence FROM edge_streams WHERE replica <> ? AND seen_at > ?",
    )
    .bind(replica)
    .bind(since)
    .fetch_all(connection)
    .await?;
    let elsewhere = |row: &Row| {
        Ok(Elsewhere {
            edge: from_id(&row.try_get::<String>("edge_id")?, "edge_streams")?,
            applied: Generation {
                epoch: row.try_get::<i64>("applied_epoch")?.unsigned_abs(),
                sequence: row.try_get::<i64>("applied_sequence")?.unsigned_abs(),
            },
        })
    };
    rows.iter().map(elsewhere).collect()
}

/// Forgets messages that are older than `kept_ms`.
///
/// # Errors
/// The database's.
pub async fn prune(tx: &mut WriteTx, kept_ms: i64) -> Result<(), StoreError> {
    let before = tx.now_ms().await? - kept_ms;
    sql::query("DELETE FROM relayed WHERE at < ?").bind(before).execute(tx).await?;
    Ok(())
}
