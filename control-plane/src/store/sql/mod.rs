//! How statements are asked, whatever the database: their text is written once, with `?` (or `?1`) for a value.
//!
//! Values are integers, text and bytes, as in the tables; a `bool` is an integer. What a statement answers is read by
//! name or position and is checked against the type that is asked for.
//!
//! Deliberately absent: statements checked when the program is built, and other types.

use std::marker::PhantomData;

use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use sqlx::AssertSqlSafe;

mod builder;
mod connection;
mod row;
mod text;
mod value;

pub use builder::QueryBuilder;
pub use connection::Connection;
pub use row::{Answer, Column, Index, Row};
pub(super) use text::for_postgres;
pub use value::{Bind, Value};

/// One statement with its values.
#[derive(Debug)]
pub struct Query {
    text: Text,
    values: Vec<Value>,
}

/// One statement whose rows have one column that matters: the first.
#[derive(Debug)]
pub struct Scalar<T> {
    query: Query,
    answer: PhantomData<fn() -> T>,
}

/// What a statement that writes has done.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    rows: u64,
}

#[derive(Debug)]
enum Text {
    Fixed(&'static str),
    /// Put together of fixed parts by [`QueryBuilder`].
    Built(String),
}

/// A statement of fixed text: what varies is bound.
pub fn query(text: &'static str) -> Query {
    Query { text: Text::Fixed(text), values: Vec::new() }
}

/// [`query`] for one value a row.
pub fn query_scalar<T>(text: &'static str) -> Scalar<T> {
    Scalar { query: query(text), answer: PhantomData }
}

impl Query {
    /// The value of the next `?`.
    #[must_use]
    pub fn bind(mut self, value: impl Bind) -> Self {
        self.values.push(value.into_value());
        self
    }

    /// # Errors
    /// The database's.
    pub async fn execute(self, connection: &mut Connection) -> Result<Written, sqlx::Error> {
        let rows = match connection {
            Connection::Sqlite(tx) => self.for_sqlite().execute(&mut **tx).await?.rows_affected(),
            Connection::Postgres(tx) => self.for_postgres().execute(&mut **tx).await?.rows_affected(),
        };
        Ok(Written { rows })
    }

    /// Rows as they arrive.
    pub fn fetch(self, connection: &mut Connection) -> BoxStream<'_, Result<Row, sqlx::Error>> {
        match connection {
            Connection::Sqlite(tx) => self.for_sqlite().fetch(&mut **tx).map_ok(Row::Sqlite).boxed(),
            Connection::Postgres(tx) => self.for_postgres().fetch(&mut **tx).map_ok(Row::Postgres).boxed(),
        }
    }

    /// # Errors
    /// The database's.
    pub async fn fetch_all(self, connection: &mut Connection) -> Result<Vec<Row>, sqlx::Error> {
        self.fetch(connection).try_collect().await
    }

    /// # Errors
    /// The database's.
    pub async fn fetch_optional(self, connection: &mut Connection) -> Result<Option<Row>, sqlx::Error> {
        Ok(match connection {
            Connection::Sqlite(tx) => self.for_sqlite().fetch_optional(&mut **tx).await?.map(Row::Sqlite),
            Connection::Postgres(tx) => {
                self.for_postgres().fetch_optional(&mut **tx).await?.map(Row::Postgres)
            }
        })
    }

    /// # Errors
    /// The database's; no row is one.
    pub async fn fetch_one(self, connection: &mut Connection) -> Result<Row, sqlx::Error> {
        self.fetch_optional(connection).await?.ok_or(sqlx::Error::RowNotFound)
    }

    fn for_sqlite(self) -> sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
        let query = match self.text {
            Text::Fixed(text) => sqlx::query(text),
            Text::Built(text) => sqlx::query(AssertSqlSafe(text)),
        };
        self.values.into_iter().fold(query, |query, value| match value {
            Value::Integer(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
        })
    }

    fn for_postgres(self) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
        let text = match self.text {
            Text::Fixed(text) => for_postgres(text),
            Text::Built(text) => for_postgres(&text),
        };
        self.values.into_iter().fold(sqlx::query(AssertSqlSafe(text)), |query, value| match value {
            Value::Integer(value) => query.bind(value),
            // PostgreSQL has no text with a zero in it. What a peer said with one is kept as near as can be.
            Value::Text(Some(value)) if value.contains('\0') => query.bind(value.replace('\0', "\u{fffd}")),
            Value::Text(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
        })
    }
}

impl<T: for<'r> Answer<'r>> Scalar<T> {
    /// The value of the next `?`.
    #[must_use]
    pub fn bind(mut self, value: impl Bind) -> Self {
        self.query = self.query.bind(value);
        self
    }

    /// # Errors
    /// The database's, or a value of another type.
    pub async fn fetch_all(self, connection: &mut Connection) -> Result<Vec<T>, sqlx::Error> {
        self.query.fetch_all(connection).await?.iter().map(|row| row.try_get(0)).collect()
    }

    /// # Errors
    /// The database's, or a value of another type.
    pub async fn fetch_optional(self, connection: &mut Connection) -> Result<Option<T>, sqlx::Error> {
        self.query.fetch_optional(connection).await?.map(|row| row.try_get(0)).transpose()
    }

    /// # Errors
    /// The database's, or a value of another type; no row is one.
    pub async fn fetch_one(self, connection: &mut Connection) -> Result<T, sqlx::Error> {
        self.query.fetch_one(connection).await?.try_get(0)
    }
}

impl Written {
    pub fn rows_affected(self) -> u64 {
        self.rows
    }
}
