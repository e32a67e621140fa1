//! SQLite and PostgreSQL behind one store: the same tables, and the same promises to those who write and read.
//!
//! Beside this the store's own unit tests and the suite of ownership run on both (`tests/run`).

#![expect(clippy::unwrap_used, reason = "set-up fails the test")]

#[path = "stage/postgres.rs"]
mod postgres;

use std::collections::BTreeSet;
use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_cert_store::{CellId, EdgeId, Generation};
use portico_control_plane::limits::{RELAYED_PER_LOOK_MAX, WRITER_IDLE_MAX};
use portico_control_plane::store::edge::EdgeRow;
use portico_control_plane::store::relay::RelayedAnswer;
use portico_control_plane::store::{
    Server, Store, StoreError, adopted, change, domain, edge, issuance, lease, meta, relay, responder, sql,
    uploaded,
};
use tempfile::TempDir;

/// One database, and how to open it once more.
struct Database {
    folder: TempDir,
    url: Option<String>,
}

impl Database {
    /// SQLite, and PostgreSQL where it is installed.
    fn both() -> Vec<Self> {
        let sqlite = Self { folder: tempfile::tempdir().unwrap(), url: None };
        std::iter::once(sqlite).chain(Self::postgres()).collect()
    }

    fn postgres() -> Option<Self> {
        let url = postgres::new_database()?;
        Some(Self { folder: tempfile::tempdir().unwrap(), url: Some(url) })
    }

    async fn open(&self) -> Store {
        match &self.url {
            Some(url) => Store::connect(&Server::parse(url, None).unwrap()).await.unwrap(),
            None => Store::open(self.folder.path()).await.unwrap(),
        }
    }

    /// As many replicas as this database may have, at most two.
    async fn replicas(&self) -> Vec<Store> {
        let mut stores = vec![self.open().await];
        if self.url.is_some() {
            stores.push(self.open().await);
        }
        stores
    }
}

async fn number(store: &Store, key: &str) -> i64 {
    let text = meta::find(&mut store.read().await.unwrap(), key).await.unwrap();
    text.map_or(0, |text| text.parse().unwrap())
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_indexes() {
    let databases = Database::both();
    let [sqlite, postgres] = databases.as_slice() else { return };
    let (sqlite, postgres) = (sqlite.open().await, postgres.open().await);
    let columns = |kind: &str| match kind {
        "INTEGER" | "bigint" => "number",
        "TEXT" | "text" => "text",
        "BLOB" | "bytea" => "bytes",
        other => panic!("a column of type {other}"),
    };
    let ours = "SELECT m.name || '.' || p.name, p.type, p.\"notnull\" OR p.pk > 0 FROM sqlite_master m \
                JOIN pragma_table_info(m.name) p WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' \
                AND m.name <> '_sqlx_migrations'";
    let theirs = "SELECT table_name || '.' || column_name, data_type::TEXT, is_nullable = 'NO' \
                  FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'";
    let mut seen = Vec::new();
    for (store, text) in [(&sqlite, ours), (&postgres, theirs)] {
        let rows = sql::query(text).fetch_all(&mut store.read().await.unwrap()).await.unwrap();
        let row = |row: &sql::Row| {
            let kind = columns(row.try_get(1).unwrap());
            (row.try_get::<String>(0).unwrap(), kind, row.try_get::<bool>(2).unwrap())
        };
        seen.push(rows.iter().map(row).collect::<BTreeSet<_>>());
    }
    assert!(seen[0].len() > 200, "{:?}", seen[0]);
    assert_eq!(seen[0], seen[1]);
    let mut seen = Vec::new();
    let ours = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL";
    let theirs = "SELECT indexname::TEXT FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT IN \
                  (SELECT conname FROM pg_constraint)";
    for (store, text) in [(&sqlite, ours), (&postgres, theirs)] {
        let names: Vec<String> =
            sql::query_scalar(text).fetch_all(&mut store.read().await.unwrap()).await.unwrap();
        seen.push(names.into_iter().collect::<BTreeSet<_>>());
    }
    assert!(seen[0].len() > 20, "{:?}", seen[0]);
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_all_replicas_queue_and_none_is_lost() {
    const EACH: i64 = 25;
    for database in Database::both() {
        let stores = database.replicas().await;
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let store = stores[writer % stores.len()].clone();
            tasks.spawn(async move {
                for _ in 0..EACH {
                    let mut tx = store.begin().await.unwrap();
                    let before = meta::find(&mut tx, "count").await.unwrap();
                    let count: i64 = before.map_or(0, |text| text.parse().unwrap());
                    // Whoever read the same would write the same.
                    tokio::task::yield_now().await;
                    meta::put(&mut tx, "count", &(count + 1).to_string()).await.unwrap();
                    let sequence = change::record(&mut tx, ResourceKind::Domain, &count.to_string(), None)
                        .await
                        .unwrap();
                    assert_eq!(sequence, u64::try_from(count + 1).unwrap(), "the order of commits");
                    tx.commit().await.unwrap();
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        assert_eq!(number(&stores[0], "count").await, 4 * EACH);
        // Each of them comes to know by itself.
        for store in &stores {
            let mut changes = store.changes();
            let all = changes.wait_for(|latest| *latest == u64::try_from(4 * EACH).unwrap());
            tokio::time::timeout(Duration::from_secs(30), all).await.expect("a replica hears of it").unwrap();
        }
    }
}

#[tokio::test]
async fn a_reader_sees_one_state_and_a_dropped_writer_leaves_nothing() {
    for database in Database::both() {
        let store = database.open().await;
        let mut read = store.read().await.unwrap();
        assert_eq!(meta::find(&mut read, "fact").await.unwrap(), None);
        let mut tx = store.begin().await.unwrap();
        meta::put(&mut tx, "fact", "1").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(meta::find(&mut read, "fact").await.unwrap(), None, "the state of before");
        drop(read);
        let mut tx = store.begin().await.unwrap();
        meta::put(&mut tx, "fact", "2").await.unwrap();
        drop(tx);
        assert_eq!(number(&store, "fact").await, 1);
        let refused = sql::query("DELETE FROM meta").execute(&mut store.read().await.unwrap()).await;
        assert!(refused.is_err(), "a reader writes nothing");
    }
}

#[tokio::test]
async fn text_with_a_zero_and_numbers_bytes_and_nothing_come_back() {
    for database in Database::both() {
        let store = database.open().await;
        let mut tx = store.begin().await.unwrap();
        sql::query("INSERT INTO idempotency (actor, key, fingerprint, status, etag, body, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind("a'?b")
            .bind("zero \0 within")
            .bind([0_u8, 255].as_slice())
            .bind(None::<i64>)
            .bind(None::<String>)
            .bind(None::<Vec<u8>>)
            .bind(i64::MIN)
            .execute(&mut tx)
            .await
            .unwrap();
        let row = sql::query(
            "SELECT * FROM idempotency WHERE actor = 'a''?b' AND created_at = ?1 AND created_at < ?2",
        )
        .bind(i64::MIN)
        .bind(true)
        .fetch_one(&mut tx)
        .await
        .unwrap();
        assert!(row.try_get::<&str>("key").unwrap().starts_with("zero "));
        assert_eq!(row.try_get::<Vec<u8>>("fingerprint").unwrap(), [0, 255]);
        assert_eq!(row.try_get::<Option<i64>>("status").unwrap(), None);
        assert_eq!(row.try_get::<Option<&str>>("etag").unwrap(), None);
        assert_eq!(row.try_get::<Option<Vec<u8>>>("body").unwrap(), None);
        // A number that does not fit, nothing where something must be, another type, a column that is not there.
        assert!(row.try_get::<u32>("created_at").is_err());
        assert!(row.try_get::<i64>("status").is_err());
        assert!(row.try_get::<String>("created_at").is_err());
        assert!(row.try_get::<i64>("absent").is_err());
    }
}

#[tokio::test]
async fn values_of_a_list_are_bound_in_order_and_no_row_is_an_error_only_where_one_is_asked_for() {
    for database in Database::both() {
        let store = database.open().await;
        let mut tx = store.begin().await.unwrap();
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
            meta::put(&mut tx, key, value).await.unwrap();
        }
        let mut query = sql::QueryBuilder::new("SELECT key, value FROM meta WHERE key IN (");
        query
            .push_list(["c", "a", "x') OR ('' = '"])
            .push(") AND value <> ")
            .push_bind("0")
            .push(" ORDER BY key");
        let rows = query.build().fetch_all(&mut tx).await.unwrap();
        let found: Vec<(String, String)> =
            rows.iter().map(|row| (row.try_get(0).unwrap(), row.try_get(1).unwrap())).collect();
        assert_eq!(found, [("a".to_owned(), "1".to_owned()), ("c".to_owned(), "3".to_owned())]);
        let absent = || sql::query_scalar::<String>("SELECT value FROM meta WHERE key = 'd'");
        assert_eq!(absent().fetch_optional(&mut tx).await.unwrap(), None);
        assert!(absent().fetch_one(&mut tx).await.is_err());
        assert!(absent().fetch_all(&mut tx).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn nothing_is_in_an_empty_list_and_it_is_no_error() {
    for database in Database::both() {
        let store = database.open().await;
        let mut tx = store.begin().await.unwrap();
        meta::put(&mut tx, "a", "1").await.unwrap();
        change::record(&mut tx, ResourceKind::Domain, "a", None).await.unwrap();
        for column in ["key FROM meta WHERE key", "sequence FROM changes WHERE sequence"] {
            let mut query = sql::QueryBuilder::new("SELECT ");
            query.push(column).push(" IN (").push_list(Vec::<String>::new()).push(")");
            assert!(query.build().fetch_all(&mut tx).await.unwrap().is_empty(), "{column}");
        }
        let mut query = sql::QueryBuilder::new("SELECT id FROM credentials WHERE spki_sha256 IN (");
        query.push_list(Vec::<Vec<u8>>::new()).push(")");
        assert!(query.build().fetch_all(&mut tx).await.unwrap().is_empty());
        // Whoever asks for what is due asks with none, most of the time.
        assert!(domain::find_many(&mut tx, &[]).await.unwrap().is_empty());
        assert!(adopted::of_domains(&mut tx, &[]).await.unwrap().is_empty());
        assert!(uploaded::of_domains(&mut tx, &[]).await.unwrap().is_empty());
        assert!(issuance::certificates_of(&mut tx, &[]).await.unwrap().is_empty());
        assert!(issuance::troubles(&mut tx, &[]).await.unwrap().is_empty());
        assert!(edge::refusals_of(&mut tx, &[]).await.unwrap().is_empty());
    }
}

/// A term that nobody renews.
async fn end_all_terms(store: &Store) {
    let mut tx = store.begin().await.unwrap();
    sql::query("UPDATE leases SET until = 0").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

async fn take(store: &Store, replica: &str) -> Option<lease::Term> {
    let mut tx = store.begin().await.unwrap();
    let free = lease::free(&mut tx, "work", replica, &mut lease::Watched::default()).await.unwrap()?;
    let term = lease::take(&mut tx, "work", replica, free).await.unwrap();
    tx.commit().await.unwrap();
    term
}

#[tokio::test]
async fn a_term_goes_by_what_was_seen_of_it_whatever_the_databases_clock_does() {
    for database in Database::both() {
        let store = database.open().await;
        let first = take(&store, "one").await.unwrap();
        let mut watched = lease::Watched::default();
        let mut looks = async |clock: i64| {
            let mut tx = store.begin().await.unwrap();
            if clock != 0 {
                let moved = sql::query("UPDATE leases SET until = until - ?").bind(clock);
                moved.execute(&mut tx).await.unwrap();
            }
            let free = lease::free(&mut tx, "work", "two", &mut watched).await.unwrap();
            tx.commit().await.unwrap();
            free
        };
        let day = 24 * 3600 * 1000;
        assert!(looks(0).await.is_none(), "it is held");
        assert!(looks(day).await.is_none(), "as if the clock had gone forward by a day");
        assert!(looks(0).await.is_none() && first.stands());
        // It goes back by two, and the holder is gone.
        assert!(looks(-2 * day).await.is_none());
        let seen = tokio::time::Instant::now();
        let free = loop {
            if let Some(free) = looks(0).await {
                break free;
            }
            assert!(seen.elapsed() < lease::LASTS * 2, "it is held for ever");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        assert!(seen.elapsed() >= lease::LASTS - Duration::from_secs(1) && !first.stands());
        let mut tx = store.begin().await.unwrap();
        assert!(lease::take(&mut tx, "work", "two", free).await.unwrap().is_some());
        assert!(
            lease::take(&mut tx, "work", "three", free).await.unwrap().is_none(),
            "it was seen otherwise"
        );
    }
}

#[tokio::test]
async fn a_holder_whose_term_is_over_writes_nothing() {
    for database in Database::both() {
        let store = database.open().await;
        let first = take(&store, "one").await.unwrap();
        assert!(first.stands());
        assert!(take(&store, "two").await.is_none(), "it is held");
        let held = store.within(first.clone());
        let mut tx = held.begin().await.unwrap();
        meta::put(&mut tx, "by", "1").await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let renewal = lease::renew(&mut tx, &first).await.unwrap().expect("it is ours");
        tx.commit().await.unwrap();
        renewal.committed();
        assert!(first.stands());

        end_all_terms(&store).await;
        let refused = held.begin().await.unwrap_err();
        assert!(matches!(refused, StoreError::TermOver { work: "work" }), "{refused}");
        assert!(!first.stands(), "the database's word goes before our own clock's");
        assert!(matches!(held.assert_in_term(), Err(StoreError::TermOver { work: "work" })));
        let second = take(&store, "two").await.unwrap();
        assert!(matches!(held.begin().await, Err(StoreError::TermOver { .. })));
        let mut tx = store.begin().await.unwrap();
        assert!(lease::renew(&mut tx, &first).await.unwrap().is_none(), "another's term");
        drop(tx);
        drop(store.within(second.clone()).begin().await.unwrap());

        // The same replica begins anew at once, with a number of its own.
        let third = take(&store, "two").await.unwrap();
        assert!(matches!(store.within(second).begin().await, Err(StoreError::TermOver { .. })));
        let mut tx = store.begin().await.unwrap();
        lease::give_up(&mut tx, &third).await.unwrap();
        tx.commit().await.unwrap();
        assert!(!third.stands());
        assert!(take(&store, "one").await.is_some(), "it was given up");
        assert_eq!(number(&store, "by").await, 1);
    }
}

#[tokio::test]
async fn a_term_is_renewed_however_long_others_write() {
    let Some(database) = Database::postgres() else { return };
    let (own, other) = (database.open().await, database.open().await);
    let term = take(&own, "one").await.unwrap();
    // Where a writer waits for its turn: in its own process, then for the lock of all.
    for writing in [&own, &other] {
        let held = writing.begin().await.unwrap();
        let renewed = async {
            let mut tx = own.begin_renewal().await.unwrap();
            let renewal = lease::renew(&mut tx, &term).await.unwrap().expect("it is ours");
            tx.commit().await.unwrap();
            renewal.committed();
        };
        tokio::time::timeout(Duration::from_secs(10), renewed).await.expect("it waits for no writer");
        drop(held);
    }

    // Another takes it: whoever has waited for that sees it.
    end_all_terms(&own).await;
    let mut taking = other.begin().await.unwrap();
    let free = lease::free(&mut taking, "work", "two", &mut lease::Watched::default()).await.unwrap();
    lease::take(&mut taking, "work", "two", free.unwrap()).await.unwrap().expect("it is free");
    let renewed = async {
        let mut tx = own.begin_renewal().await.unwrap();
        lease::renew(&mut tx, &term).await.unwrap().is_some()
    };
    let committed = async {
        // The renewal is on its way by then, most times; if not, it sees the same.
        tokio::time::sleep(Duration::from_millis(200)).await;
        taking.commit().await.unwrap();
    };
    let (is_ours, ()) = tokio::join!(renewed, committed);
    assert!(!is_ours && !term.stands(), "the term is the other's");
}

#[tokio::test]
async fn a_replica_that_hangs_in_a_transaction_is_ended_and_nothing_of_it_happens() {
    let Some(database) = Database::postgres() else { return };
    let (hung, other) = (database.open().await, database.open().await);
    let mut tx = hung.begin().await.unwrap();
    meta::put(&mut tx, "fact", "1").await.unwrap();
    // Until the server ends it, the other waits.
    let mut after = tokio::time::timeout(WRITER_IDLE_MAX * 3, other.begin()).await.unwrap().unwrap();
    meta::put(&mut after, "fact", "2").await.unwrap();
    after.commit().await.unwrap();
    let refused = tx.commit().await.expect_err("it was ended");
    assert!(refused.is_busy(), "the same may succeed: {refused:?}");
    assert_eq!(number(&hung, "fact").await, 2, "and the replica goes on");
}

#[tokio::test]
async fn while_the_server_is_away_the_same_may_succeed_later() {
    let Some(cluster) = postgres::Cluster::start(&[], &[]) else { return };
    cluster.run("createdb", &["good"]);
    let url = format!("postgresql:///good?host={}&user=portico", cluster.folder.display());
    let store = Store::connect(&Server::parse(&url, None).unwrap()).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    meta::put(&mut tx, "fact", "1").await.unwrap();
    drop(cluster);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while store.read().await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the server does not end");
    }
    for refused in [tx.commit().await.unwrap_err(), store.begin().await.unwrap_err()] {
        assert!(refused.is_busy(), "{refused:?}");
    }
}

#[tokio::test]
async fn a_commit_waits_for_the_servers_disk() {
    let Some(database) = Database::postgres() else { return };
    let store = database.open().await;
    let mut tx = store.begin().await.unwrap();
    let commits: String =
        sql::query_scalar("SELECT current_setting('synchronous_commit')").fetch_one(&mut tx).await.unwrap();
    assert_eq!(commits, "on");
    drop(tx);
    let mut read = store.read().await.unwrap();
    let isolation: String = sql::query_scalar("SELECT current_setting('transaction_isolation')")
        .fetch_one(&mut read)
        .await
        .unwrap();
    assert_eq!(isolation, "repeatable read");
}

#[tokio::test]
async fn replicas_tell_each_other_of_edges_and_messages() {
    for database in Database::both() {
        let store = database.open().await;
        let cell = CellId::parse("default").unwrap();
        let edge = EdgeId::generate();
        let mut tx = store.begin().await.unwrap();
        sql::query("INSERT INTO cells (id, created_at) VALUES ('default', 0)")
            .execute(&mut tx)
            .await
            .unwrap();
        let row = EdgeRow {
            id: edge,
            cell: cell.clone(),
            hpke_public_key: vec![1],
            identity_not_after_ms: 0,
            build: String::new(),
            io_backend: String::new(),
            listeners: Vec::new(),
            applied: Generation::default(),
            connections: 0,
            names: 0,
            joined_at_ms: 0,
            last_seen_at_ms: None,
        };
        edge::insert(&mut tx, &row, "1").await.unwrap();
        let applied = Generation { epoch: 2, sequence: 7 };
        let stranger = EdgeId::generate();
        let streams = [(edge, Generation::default()), (stranger, applied)];
        relay::put_streams(&mut tx, "three", &streams).await.unwrap();
        relay::put_streams(&mut tx, "one", &[(edge, applied)]).await.unwrap();
        let number = relay::send(&mut tx, "one", Some(std::slice::from_ref(&cell)), b"hello").await.unwrap();
        let said = |number, ack: &[u8]| RelayedAnswer { number, edge, ack: ack.to_vec() };
        let other = RelayedAnswer { number, edge: stranger, ack: b"two\0".to_vec() };
        relay::answer(&mut tx, &[said(number, b"one"), said(number, b"more"), other.clone()]).await.unwrap();
        relay::answer(&mut tx, &[said(number, b""), said(number + 1, b"")]).await.unwrap();
        relay::answer(&mut tx, &[]).await.unwrap();

        let elsewhere = relay::elsewhere(&mut tx, "two", 10_000).await.unwrap();
        assert_eq!(elsewhere, [relay::Elsewhere { edge, applied }], "an unknown edge hangs nowhere");
        assert!(relay::elsewhere(&mut tx, "one", 10_000).await.unwrap().is_empty(), "its own");
        let messages = relay::since(&mut tx, 0, "two").await.unwrap();
        assert_eq!(
            messages,
            [relay::Relayed { number, cells: Some(vec![cell]), message: b"hello".to_vec() }]
        );
        assert!(relay::since(&mut tx, number, "two").await.unwrap().is_empty());
        assert!(relay::since(&mut tx, 0, "one").await.unwrap().is_empty(), "its own");
        let mut answers = relay::answers(&mut tx, &[number, number + 1]).await.unwrap();
        answers.sort_by_key(|answer| answer.ack.clone());
        assert_eq!(answers, [said(number, b"one"), other], "the first word counts");
        assert_eq!(relay::newest(&mut tx).await.unwrap(), number);
        relay::drop_stream(&mut tx, "two", edge).await.unwrap();
        assert_eq!(relay::elsewhere(&mut tx, "two", 10_000).await.unwrap().len(), 1, "not the holder's word");
        relay::drop_stream(&mut tx, "one", edge).await.unwrap();
        assert!(relay::elsewhere(&mut tx, "two", 10_000).await.unwrap().is_empty());
        relay::prune(&mut tx, -1_000).await.unwrap();
        assert!(relay::since(&mut tx, 0, "two").await.unwrap().is_empty());
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn one_look_takes_a_bounded_number_of_messages_and_the_next_one_goes_on() {
    for database in Database::both() {
        let store = database.open().await;
        let mut tx = store.begin().await.unwrap();
        for _ in 0..=RELAYED_PER_LOOK_MAX {
            relay::send(&mut tx, "one", None, b"hello").await.unwrap();
        }
        let first = relay::since(&mut tx, 0, "two").await.unwrap();
        assert_eq!(first.len(), RELAYED_PER_LOOK_MAX);
        let rest = relay::since(&mut tx, first.last().unwrap().number, "two").await.unwrap();
        assert_eq!(rest.len(), 1);
    }
}

#[tokio::test]
async fn a_responder_is_waited_for_until_it_answers_or_is_gone() {
    for database in Database::both() {
        let store = database.open().await;
        let mut tx = store.begin().await.unwrap();
        responder::put(&mut tx, "one", "10.0.0.1:7443", 0).await.unwrap();
        responder::put(&mut tx, "two", "10.0.0.2:7443", 0).await.unwrap();
        let number = responder::records_change(&mut tx).await.unwrap();
        assert_eq!(responder::number(&mut tx).await.unwrap(), number);
        let two = responder::Behind { replica: "two".to_owned(), address: "10.0.0.2:7443".to_owned() };
        assert_eq!(
            responder::behind(&mut tx, "one", number, 10_000).await.unwrap(),
            [two],
            "not for oneself"
        );
        assert!(responder::behind(&mut tx, "one", number, -1_000).await.unwrap().is_empty(), "it is gone");
        responder::put(&mut tx, "two", "10.0.0.2:7443", number).await.unwrap();
        assert!(responder::behind(&mut tx, "one", number, 10_000).await.unwrap().is_empty());
        let next = responder::records_change(&mut tx).await.unwrap();
        assert!(next > number);
        assert_eq!(responder::behind(&mut tx, "one", next, 10_000).await.unwrap().len(), 1);
        responder::leave(&mut tx, "two").await.unwrap();
        assert!(responder::behind(&mut tx, "one", next, 10_000).await.unwrap().is_empty());
    }
}

/// What an operator reads when the database cannot be opened: the error and its causes.
async fn refused(url: &str, password: Option<&str>) -> String {
    let server = Server::parse(url, password).unwrap();
    let error = Store::connect(&server).await.expect_err("it cannot be opened");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_refused_with_what_to_do() {
    let rules = "local all guarded scram-sha-256\nlocal all all trust\n";
    let Some(cluster) = postgres::Cluster::start(&[], &[("pg_hba.conf", rules)]) else { return };
    let at = |name: &str, user: &str| {
        format!("postgresql:///{name}?host={}&user={user}", cluster.folder.display())
    };
    cluster.run("psql", &["-d", "postgres", "-c", "CREATE ROLE guarded LOGIN PASSWORD 'swordfish'"]);
    cluster.run("createdb", &["--owner=guarded", "good"]);
    cluster.run("createdb", &["--template=template0", "--encoding=SQL_ASCII", "ascii"]);
    cluster.run("createdb", &["newer"]);

    let text = refused(&at("good", "guarded"), Some("herring")).await;
    assert!(
        text.contains("database_password_file") && text.contains("password authentication failed"),
        "{text}"
    );
    assert!(!text.contains("herring"), "{text}");
    let text = refused(&at("absent", "portico"), None).await;
    assert!(
        text.contains("createdb --owner=USER NAME") && text.contains("\"absent\" does not exist"),
        "{text}"
    );
    let text = refused(&at("ascii", "portico"), None).await;
    assert!(text.contains("encoding is SQL_ASCII") && text.contains("--encoding=UTF8"), "{text}");
    let nobody = TempDir::new().unwrap();
    let url = format!("postgresql:///good?host={}&user=portico", nobody.path().display());
    let text = refused(&url, None).await;
    assert!(text.contains("nobody answers there") && text.contains("good at "), "{text}");
    let text = refused("postgresql://portico@127.0.0.1:1/good", None).await;
    assert!(text.contains("good at 127.0.0.1:1") && text.contains("nobody answers there"), "{text}");

    let newer = Server::parse(&at("newer", "portico"), None).unwrap();
    Store::connect(&newer).await.unwrap().close().await;
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (99999, 'of a later release', true, '', 0)";
    cluster.run("psql", &["-d", "newer", "-c", later]);
    let text = refused(&at("newer", "portico"), None).await;
    assert!(text.contains("written by a newer release") && text.contains("99999"), "{text}");
    cluster.run("psql", &["-d", "newer", "-c", "DELETE FROM _sqlx_migrations WHERE version IN (99999, 491)"]);
    let working =
        "INSERT INTO leases VALUES ('work', 'another', 1, EXTRACT(EPOCH FROM now()) * 1000 + 3600000)";
    cluster.run("psql", &["-d", "newer", "-c", working]);
    let text = refused(&at("newer", "portico"), None).await;
    assert!(text.contains("of an earlier release runs on it: stop all of them"), "{text}");

    // With its password it is opened, by the owner of the database alone.
    let good = Server::parse(&at("good", "guarded"), Some("swordfish")).unwrap();
    let store = Store::connect(&good).await.unwrap();
    assert_eq!(number(&store, "fact").await, 0);
}

#[tokio::test]
async fn a_dump_that_is_put_back_begins_an_epoch_that_no_edge_has_followed() {
    let Some(cluster) = postgres::Cluster::start(&[], &[]) else { return };
    cluster.run("psql", &["-d", "postgres", "-c", "CREATE ROLE owner LOGIN"]);
    cluster.run("createdb", &["--owner=owner", "before"]);
    let url = |name: &str| format!("postgresql:///{name}?host={}&user=owner", cluster.folder.display());
    let epoch = async |name: &str| {
        let store = Store::connect(&Server::parse(&url(name), None).unwrap()).await.unwrap();
        let epoch = meta::epoch(&mut store.read().await.unwrap()).await.unwrap();
        store.close().await;
        epoch
    };
    assert_eq!((epoch("before").await, epoch("before").await), (1, 1), "a start changes nothing");
    let dump = TempDir::new().unwrap();
    let dump = dump.path().join("dump").display().to_string();
    cluster.run("pg_dump", &["--format=custom", "--file", &dump, "before"]);
    cluster.run("createdb", &["--owner=owner", "after"]);
    cluster.run("pg_restore", &["--dbname", "after", &dump]);
    let raised = epoch("after").await;
    assert!(raised > 1);
    assert_eq!(epoch("after").await, raised, "once");
    // Over what is there, too.
    cluster.run("pg_restore", &["--clean", "--dbname", "before", &dump]);
    assert!(epoch("before").await > 1);
}

#[tokio::test]
async fn the_way_to_the_server_is_checked_as_the_url_says() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (ca, other) = (authority(), authority());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &ca.1).unwrap();
    let settings = ["listen_addresses=127.0.0.1".to_owned(), format!("port={port}"), "ssl=on".to_owned()];
    let files = [
        ("server.crt", certificate.pem()),
        ("server.key", key.serialize_pem()),
        ("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.1/32 trust\n".to_owned()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let Some(cluster) = postgres::Cluster::start(&settings, &files) else { return };
    cluster.run("createdb", &["good"]);
    let folder = TempDir::new().unwrap();
    let written = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (written("right.pem", &ca.0), written("wrong.pem", &other.0));
    let url = |rest: &str| format!("postgresql://portico@127.0.0.1:{port}/good?{rest}");
    let store = Server::parse(&url(&format!("sslmode=verify-full&sslrootcert={right}")), None).unwrap();
    let store = Store::connect(&store).await.unwrap();
    let encrypted: bool = sql::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&mut store.read().await.unwrap())
        .await
        .unwrap();
    assert!(encrypted);
    let text = refused(&url(&format!("sslmode=verify-full&sslrootcert={wrong}")), None).await;
    assert!(text.contains("TLS with it fails; see sslmode and sslrootcert"), "{text}");
    let text = refused(&url("sslmode=disable"), None).await;
    assert!(text.contains("pg_hba.conf"), "{text}");
}

/// A CA's certificate, and what signs by it.
fn authority() -> (String, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, rcgen::Issuer::new(params, key))
}
