//! JSON as it is read: each value is counted when it is made, and there is no other tree beside.

use std::cell::Cell;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::{
    Error,
    value::{Maker, Members, Value},
};

pub(crate) enum Wrong {
    Json(serde_json::Error),
    Limit(Error),
}

pub(crate) fn read(make: &Maker, text: &str) -> Result<Value, Wrong> {
    let limit = Cell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Reader { make, limit: &limit }.deserialize(&mut json).and_then(|value| {
        json.end()?;
        Ok(value)
    });
    match (value, limit.take()) {
        (_, Some(error)) => Err(Wrong::Limit(error)),
        (value, None) => value.map_err(Wrong::Json),
    }
}

#[derive(Clone, Copy)]
struct Reader<'m> {
    make: &'m Maker,
    /// The limit that was met: serde's errors are texts.
    limit: &'m Cell<Option<Error>>,
}

impl Reader<'_> {
    fn within<T, E: serde::de::Error>(&self, made: Result<T, Error>) -> Result<T, E> {
        made.map_err(|error| {
            self.limit.set(Some(error));
            E::custom("beyond a limit")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        #[expect(clippy::cast_precision_loss, reason = "beyond whole numbers there are doubles")]
        Ok(i64::try_from(number).map_or(Value::Float(number as f64), Value::Int))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.within(self.make.text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let mut charge = self.within(self.make.charge(0))?;
        while let Some(item) = elements.next_element_seed(self)? {
            let before = items.capacity();
            items.push(item);
            if items.capacity() != before {
                charge = self.within(self.make.charge(items.capacity() * size_of::<Value>()))?;
            }
        }
        drop(charge);
        self.within(self.make.list(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Members::new();
        let mut charges = Vec::new();
        while let Some(name) = entries.next_key::<String>()? {
            charges.push(self.within(self.make.charge(name.len() + 128))?);
            let value = entries.next_value_seed(self)?;
            members.insert(name.into(), value);
        }
        drop(charges);
        self.within(self.make.map(members))
    }
}
