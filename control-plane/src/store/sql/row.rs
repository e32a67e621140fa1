//! Rows that statements answer.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Row as _, TypeInfo as _, ValueRef as _};

/// One row, of whichever database.
#[derive(Debug)]
pub enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A name or a position.
pub trait Index: ColumnIndex<SqliteRow> + ColumnIndex<PgRow> + Copy {}

impl Index for usize {}
impl Index for &str {}

/// What a column can be read as: a [`Column`], or an `Option` of one where it may be NULL.
pub trait Answer<'r>: Sized {
    /// # Errors
    /// There is no such column, or it holds something else.
    fn of(row: &'r Row, index: impl Index) -> Result<Self, sqlx::Error>;
}

/// A type that a column can have.
pub trait Column<'r>: Sized {
    /// `None`: NULL.
    ///
    /// # Errors
    /// There is no such column, or it holds something else.
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error>;
}

impl Row {
    /// The column of that name or position.
    ///
    /// # Errors
    /// There is no such column, or it holds something else.
    pub fn try_get<'r, T: Answer<'r>>(&'r self, index: impl Index) -> Result<T, sqlx::Error> {
        T::of(self, index)
    }

    /// How many columns there are.
    pub fn columns(&self) -> usize {
        match self {
            Self::Sqlite(row) => row.len(),
            Self::Postgres(row) => row.len(),
        }
    }
}

impl<'r, T: Column<'r>> Answer<'r> for T {
    fn of(row: &'r Row, index: impl Index) -> Result<Self, sqlx::Error> {
        T::read(row, index)?.ok_or_else(|| unfit("NULL in a column that has a value".into()))
    }
}

impl<'r, T: Column<'r>> Answer<'r> for Option<T> {
    fn of(row: &'r Row, index: impl Index) -> Result<Self, sqlx::Error> {
        T::read(row, index)
    }
}

impl<'r> Column<'r> for i64 {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        match row {
            Row::Sqlite(row) => row.try_get(index),
            // Columns are BIGINT; an expression may be less, or a truth.
            Row::Postgres(row) => match row.try_get_raw(index)?.type_info().name() {
                "INT4" => Ok(row.try_get::<Option<i32>, _>(index)?.map(Self::from)),
                "BOOL" => Ok(row.try_get::<Option<bool>, _>(index)?.map(Self::from)),
                _ => row.try_get(index),
            },
        }
    }
}

impl<'r> Column<'r> for String {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        match row {
            Row::Sqlite(row) => row.try_get(index),
            Row::Postgres(row) => row.try_get(index),
        }
    }
}

impl<'r> Column<'r> for &'r str {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        match row {
            Row::Sqlite(row) => row.try_get(index),
            Row::Postgres(row) => row.try_get(index),
        }
    }
}

impl<'r> Column<'r> for Vec<u8> {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        match row {
            Row::Sqlite(row) => row.try_get(index),
            Row::Postgres(row) => row.try_get(index),
        }
    }
}

impl<'r> Column<'r> for bool {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        Ok(i64::read(row, index)?.map(|number| number != 0))
    }
}

impl<'r> Column<'r> for i32 {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        narrow(row, index)
    }
}

impl<'r> Column<'r> for u32 {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        narrow(row, index)
    }
}

impl<'r> Column<'r> for u16 {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        narrow(row, index)
    }
}

impl<'r> Column<'r> for u8 {
    fn read(row: &'r Row, index: impl Index) -> Result<Option<Self>, sqlx::Error> {
        narrow(row, index)
    }
}

fn narrow<T>(row: &Row, index: impl Index) -> Result<Option<T>, sqlx::Error>
where
    T: TryFrom<i64, Error = std::num::TryFromIntError>,
{
    i64::read(row, index)?.map(T::try_from).transpose().map_err(|error| unfit(error.into()))
}

fn unfit(why: Box<dyn std::error::Error + Send + Sync>) -> sqlx::Error {
    sqlx::Error::Decode(why)
}
