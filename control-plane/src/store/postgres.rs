//! PostgreSQL behind the store: several control planes on one database.
//!
//! The code is written for one writer at a time. So a transaction that writes first takes one lock of the whole database:
//! writers of all replicas queue, the sequencer's order is the order of commits, and there is no lost update and no write
//! skew to think of. Within the lock each statement sees what was committed before (READ COMMITTED); a snapshot taken
//! before the wait for the lock would not. Readers see one state, and wait for nobody.
//!
//! What a replica that hangs can hold is bounded by the server: a transaction that idles is ended and its commit fails.
//!
//! The one write outside of this is a term's renewal ([`Postgres::begin_renewal`]).

use std::net::IpAddr;
use std::str::FromStr as _;
use std::time::Duration;
use std::{fmt, io};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Row as _};
use tokio::time::timeout;

use super::lease::LASTS;
use super::{Connection, READERS, StoreError, WRITER_TIMEOUT};
use crate::limits::WRITER_IDLE_MAX;

/// The oldest release that the tests are run with, as the server says it.
const VERSION_MIN: i64 = 150_000;
/// The lock of writers; advisory locks are a database's own.
const WRITERS_LOCK: i64 = 0x706f_7274_6963_6f00;
/// What a replica hears when another has committed something; a hint, the tables are the truth.
const CHANNEL: &str = "portico";
/// A reader may have a large table to go through while it holds its state.
const READER_IDLE_MAX: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a database is and how to get in. Shows no password.
#[derive(Clone)]
pub struct Server(PgConnectOptions);

impl Server {
    /// `postgresql://USER@HOST/DATABASE`, or `postgresql:///DATABASE?host=/run/postgresql&user=USER`.
    ///
    /// # Errors
    /// What is wrong with the URL, for people; a password in it is one.
    pub fn parse(url: &str, password: Option<&str>) -> Result<Self, String> {
        if !url.starts_with("postgresql://") && !url.starts_with("postgres://") {
            return Err("must be a URL that begins with postgresql://".to_owned());
        }
        let parsed = url::Url::parse(url).map_err(|error| format!("is not a URL: {error}"))?;
        if parsed.password().is_some() || parsed.query_pairs().any(|(key, _)| key == "password") {
            return Err("must not hold the password: put that into database_password_file".to_owned());
        }
        let options = PgConnectOptions::from_str(url).map_err(|error| format!("cannot be used: {error}"))?;
        if options.get_database().is_none() {
            return Err("names no database: end it with /NAME".to_owned());
        }
        check_way(url, &parsed, &options)?;
        let options = options.application_name("portico");
        Ok(Self(match password {
            Some(password) => options.password(password),
            None => options,
        }))
    }

    /// The same server's connections, whose transactions may idle for at most `idle`.
    fn options(&self, idle: Duration) -> PgConnectOptions {
        self.0.clone().options([
            ("idle_in_transaction_session_timeout", idle.as_millis().to_string()),
            ("lock_timeout", WRITER_TIMEOUT.as_millis().to_string()),
            // A commit is on the server's disk before it is acknowledged, whatever its own configuration says (P7).
            ("synchronous_commit", "on".to_owned()),
        ])
    }
}

/// To another machine the password and all of the tables go: there TLS is not left to what both sides happen to agree on.
fn check_way(url: &str, parsed: &url::Url, options: &PgConnectOptions) -> Result<(), String> {
    let host = options.get_host();
    let is_here = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_said = parsed.query_pairs().any(|(key, _)| key == "sslmode" || key == "ssl-mode");
    if is_here || is_said {
        return Ok(());
    }
    let next = if url.contains('?') { '&' } else { '?' };
    Err(format!(
        "is at {host}, so say how: end it with {next}sslmode=verify-full (with &sslrootcert=FILE for a CA of your own), or \
         with {next}sslmode=disable where nobody else is on the way"
    ))
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.0.get_database().unwrap_or_default();
        match self.0.get_socket() {
            Some(socket) => write!(f, "{database} at {}", socket.display()),
            None => write!(f, "{database} at {}:{}", self.0.get_host(), self.0.get_port()),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

/// The connections. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Postgres {
    pub(super) writer: PgPool,
    readers: PgPool,
    renewals: PgPool,
}

impl Postgres {
    pub(super) async fn connect(server: &Server) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new().acquire_timeout(WRITER_TIMEOUT);
        look_at(server).await?;
        // One: writers of this process queue here, in order, and not as so many sessions of the server.
        let writer = pool.clone().max_connections(1);
        // One of its own: it must not queue behind them.
        let renewals = writer.clone();
        // One more than SQLite's: somebody has to listen.
        let readers = pool.max_connections(READERS + 1);
        Ok(Self {
            writer: writer.connect_lazy_with(server.options(WRITER_IDLE_MAX)),
            readers: readers.connect_lazy_with(server.options(READER_IDLE_MAX)),
            renewals: renewals.connect_lazy_with(server.options(WRITER_IDLE_MAX)),
        })
    }

    /// One that works on tables that are altered under it would fail in ways that nobody has thought of.
    pub(super) async fn refuse_earlier_release(
        &self,
        server: &Server,
        migrations: usize,
    ) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await?;
        let made = "SELECT to_regclass('leases') IS NOT NULL AND to_regclass('_sqlx_migrations') IS NOT NULL";
        if !sqlx::query_scalar::<_, bool>(made).fetch_one(&mut *connection).await? {
            return Ok(());
        }
        let at_work = "SELECT (SELECT COUNT(*) FROM _sqlx_migrations) < $1 \
                       AND EXISTS (SELECT 1 FROM leases WHERE until > EXTRACT(EPOCH FROM clock_timestamp()) * 1000)";
        let migrations = i64::try_from(migrations).unwrap_or(i64::MAX);
        if !sqlx::query_scalar::<_, bool>(at_work).bind(migrations).fetch_one(&mut *connection).await? {
            return Ok(());
        }
        let why = format!(
            "a control plane of an earlier release runs on it: stop all of them, then start this one; one that was killed \
             counts for {} s more",
            LASTS.as_secs()
        );
        Err(StoreError::Unsuited { server: server.to_string(), why })
    }

    pub(super) async fn begin(&self) -> Result<Connection, sqlx::Error> {
        let mut tx = self.writer.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITERS_LOCK).execute(&mut *tx).await?;
        Ok(Connection::Postgres(tx))
    }

    /// Waits for no writer, of this process or another: a replica that lives must not lose its terms to a long queue. A term is
    /// renewed by one statement that looks at its number; should another take it at the same moment, the later of the two waits
    /// for the row and sees what the earlier has made of it. Whoever takes a term has the lock, so none changes hands under a
    /// transaction that was begun within it.
    pub(super) async fn begin_renewal(&self) -> Result<Connection, sqlx::Error> {
        Ok(Connection::Postgres(self.renewals.begin().await?))
    }

    pub(super) async fn read(&self) -> Result<Connection, sqlx::Error> {
        let tx = self.readers.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        Ok(Connection::Postgres(tx))
    }

    /// Hears what others commit; `None` while the server is away.
    pub(super) async fn listen(&self) -> Option<PgListener> {
        let mut listener = PgListener::connect_with(&self.readers).await.ok()?;
        listener.listen(CHANNEL).await.ok()?;
        Some(listener)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.readers.is_closed()
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.renewals.close().await;
        self.writer.close().await;
    }
}

/// Whether the server can be reached and is one that we can work with. A pool would try for long, and forget why in vain.
async fn look_at(server: &Server) -> Result<(), StoreError> {
    let failed = |source| StoreError::Connect { server: server.to_string(), advice: advice(&source), source };
    let looked = async {
        let mut connection = PgConnection::connect_with(&server.0).await?;
        let row = sqlx::query(
            "SELECT current_setting('server_version_num')::BIGINT, current_setting('server_encoding'), \
             pg_is_in_recovery()",
        )
        .fetch_one(&mut connection)
        .await?;
        let found: (i64, String, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        connection.close().await?;
        Ok(found)
    };
    let looked = timeout(CONNECT_TIMEOUT, looked).await;
    let in_time = looked.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())));
    let (version, encoding, is_standby) = in_time.map_err(failed)?;
    let why = if version < VERSION_MIN {
        format!("it is PostgreSQL {}; {} or later is needed", version / 10_000, VERSION_MIN / 10_000)
    } else if encoding != "UTF8" {
        format!("its encoding is {encoding}; make it with createdb --template=template0 --encoding=UTF8")
    } else if is_standby {
        "the server is a standby, which only reads; name the primary".to_owned()
    } else {
        return Ok(());
    };
    Err(StoreError::Unsuited { server: server.to_string(), why })
}

/// What the operator is to look at; the error itself follows it.
fn advice(error: &sqlx::Error) -> &'static str {
    const TLS_FAILS: &str = "TLS with it fails; see sslmode and sslrootcert in `database`";
    let code = error.as_database_error().and_then(|error| error.code());
    match (error, code.as_deref()) {
        (sqlx::Error::Tls(_), _) => TLS_FAILS,
        // What rustls finds wrong comes as such an error of the connection.
        (sqlx::Error::Io(error), _) if error.kind() == io::ErrorKind::InvalidData => TLS_FAILS,
        (sqlx::Error::Io(_), _) => "nobody answers there; see that the server runs and listens there",
        (_, Some("28P01" | "28000")) => {
            "it refuses the user; see the user in `database`, database_password_file, and the server's pg_hba.conf"
        }
        (_, Some("3D000")) => "there is no database of this name; make it with createdb --owner=USER NAME",
        (_, Some("42501")) => "the user may not do this; it must own the database",
        _ => "see what the server says, and in its log",
    }
}

/// What differs as soon as the tables are another server's, of another history of it, or were made anew from a dump.
pub(super) async fn origin(connection: &mut Connection) -> Result<String, sqlx::Error> {
    super::sql::query_scalar(
        "SELECT (SELECT system_identifier FROM pg_control_system()) || ' ' || \
         (SELECT timeline_id FROM pg_control_checkpoint()) || ' ' || CAST(CAST('meta' AS regclass) AS oid)",
    )
    .fetch_one(connection)
    .await
}

/// Has the others woken when this transaction commits.
pub(super) async fn wake_others(connection: &mut Connection) -> Result<(), sqlx::Error> {
    if let Connection::Postgres(tx) = connection {
        sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut **tx).await?;
    }
    Ok(())
}

/// Whether the same may succeed in a while: the server cannot be reached, takes no more connections, starts or ends, gave up
/// waiting for the writers' lock, ended a transaction that idled, or has become a standby.
pub(super) fn is_away(error: &sqlx::Error) -> bool {
    const CODES: [&str; 7] = ["25006", "25P03", "53300", "55P03", "57P01", "57P02", "57P03"];
    const CONNECTION_CLASS: &str = "08";
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_))
        || code.is_some_and(|code| CODES.contains(&&*code) || code.starts_with(CONNECTION_CLASS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_stands_in_no_url_and_in_no_text() {
        let url = "postgresql://portico@db.example/portico?sslmode=verify-full";
        let server = Server::parse(url, Some("swordfish")).unwrap();
        assert_eq!(
            format!("{server} {server:?}"),
            "portico at db.example:5432 Server(portico at db.example:5432)"
        );
        for (url, expected) in [
            ("postgresql://portico:swordfish@db.example/portico", "database_password_file"),
            ("postgresql://db.example/portico?password=swordfish", "database_password_file"),
            ("postgresql://portico@db.example", "names no database"),
            ("mysql://portico@db.example/portico", "postgresql://"),
            ("postgresql://portico@db.example/portico?sslmode=perhaps", "cannot be used"),
        ] {
            let refused = Server::parse(url, None).unwrap_err();
            assert!(refused.contains(expected), "{url}: {refused}");
            assert!(!refused.contains("swordfish"), "{url}: {refused}");
        }
    }

    #[test]
    fn the_way_to_another_machine_must_be_said() {
        for here in [
            "postgresql://portico@localhost/portico",
            "postgresql://portico@127.0.0.1:5433/portico",
            "postgresql://portico@[::1]/portico",
            "postgresql:///portico?host=/run/postgresql&user=portico",
            "postgresql://portico@10.0.0.5/portico?sslmode=disable",
            "postgresql://portico@db.example/portico?sslmode=verify-full",
        ] {
            Server::parse(here, None).unwrap();
        }
        let refused = Server::parse("postgresql://portico@10.0.0.5/portico", None).unwrap_err();
        assert!(refused.contains("?sslmode=verify-full"), "{refused}");
        let refused =
            Server::parse("postgresql://portico@db.example/portico?application_name=a", None).unwrap_err();
        assert!(refused.contains("&sslmode=verify-full"), "{refused}");
    }
}
