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

    /// Values with commas between them.
    pub fn push_list(&mut self, values: impl IntoIterator<Item = impl Bind>) -> &mut Self {
        for (at, value) in values.into_iter().enumerate() {
            if at > 0 {
                self.text.push_str(", ");
            }
            self.push_bind(value);
        }
        self
    }

    pub fn build(self) -> Query {
        Query { text: Text::Built(self.text), values: self.values }
    }
}
