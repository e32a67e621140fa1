//! Statements whose text depends on what is asked.

use std::fmt::{Display, Write as _};

use super::{Bind, Query, Text, Value};

/// Puts a statement together of fixed parts and values. What comes from outside is bound, never pushed.
#[derive(Debug)]
pub struct QueryBuilder {
    text: String,
    values: Vec<Value>,
}

impl QueryBuilder {
    pub fn new(start: impl Into<String>) -> Self {
        Self { text: start.into(), values: Vec::new() }
    }

    pub fn push(&mut self, part: impl Display) -> &mut Self {
        let _infallible = write!(self.text, "{part}");
        self
    }

    pub fn push_bind(&mut self, value: impl Bind) -> &mut Self {
        self.text.push('?');
        self.values.push(value.into_value());
        self
    }

    /// The inside of an `IN (..)`: values with commas between them. Without any it is NULL, which nothing is in: PostgreSQL refuses
    /// `IN ()`, and SQLite does not. Nothing is outside of NULL either, so whoever writes `NOT IN` asks first whether there are any.
    pub fn push_list(&mut self, values: impl IntoIterator<Item = impl Bind>) -> &mut Self {
        let mut is_empty = true;
        for value in values {
            if !is_empty {
                self.text.push_str(", ");
            }
            is_empty = false;
            self.push_bind(value);
        }
        if is_empty {
            self.text.push_str("NULL");
        }
        self
    }

    pub fn build(self) -> Query {
        Query { text: Text::Built(self.text), values: self.values }
    }
}
