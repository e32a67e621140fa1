//! Values that statements take.

/// A value as the tables know it; `None` is NULL.
#[derive(Clone, Debug)]
pub enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// What can be bound.
pub trait Bind {
    /// NULL of this type: a database may want to know the type of what is not there.
    const NULL: Value;

    fn into_value(self) -> Value;
}

impl<T: Bind> Bind for Option<T> {
    const NULL: Value = T::NULL;

    fn into_value(self) -> Value {
        self.map_or(T::NULL, T::into_value)
    }
}

impl<T: Bind + Clone> Bind for &T {
    const NULL: Value = T::NULL;

    fn into_value(self) -> Value {
        self.clone().into_value()
    }
}

impl Bind for i64 {
    const NULL: Value = Value::Integer(None);

    fn into_value(self) -> Value {
        Value::Integer(Some(self))
    }
}

impl Bind for i32 {
    const NULL: Value = Value::Integer(None);

    fn into_value(self) -> Value {
        i64::from(self).into_value()
    }
}

impl Bind for u32 {
    const NULL: Value = Value::Integer(None);

    fn into_value(self) -> Value {
        i64::from(self).into_value()
    }
}

impl Bind for u16 {
    const NULL: Value = Value::Integer(None);

    fn into_value(self) -> Value {
        i64::from(self).into_value()
    }
}

impl Bind for u8 {
    const NULL: Value = Value::Integer(None);

    fn into_value(self) -> Value {
        i64::from(self).into_value()
    }
}

impl Bind for bool {
    const NULL: Value = Value::Integer(None);

    fn into_value(self) -> Value {
        i64::from(self).into_value()
    }
}

impl Bind for String {
    const NULL: Value = Value::Text(None);

    fn into_value(self) -> Value {
        Value::Text(Some(self))
    }
}

impl Bind for &str {
    const NULL: Value = Value::Text(None);

    fn into_value(self) -> Value {
        self.to_owned().into_value()
    }
}

impl Bind for Vec<u8> {
    const NULL: Value = Value::Bytes(None);

    fn into_value(self) -> Value {
        Value::Bytes(Some(self))
    }
}

impl Bind for &[u8] {
    const NULL: Value = Value::Bytes(None);

    fn into_value(self) -> Value {
        self.to_vec().into_value()
    }
}

impl<const N: usize> Bind for [u8; N] {
    const NULL: Value = Value::Bytes(None);

    fn into_value(self) -> Value {
        self.to_vec().into_value()
    }
}
