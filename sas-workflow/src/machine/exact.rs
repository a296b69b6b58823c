//! Values as text that gives the same values back: with the order of members, and with every bit of a number.

use std::fmt;

use sas_jq::Value;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap as _, SerializeSeq as _},
};

/// The only member of what stands for a number that JSON does not have. A member of data whose name begins like it has one more of the
/// first character.
const NUMBER: &str = "\0number";

/// The text of a value.
pub(super) fn text(value: &Value) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Written(value))
}

/// The value of a text.
pub(super) fn value(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Exact>(text).map(|read| read.0)
}

struct Written<'v>(&'v Value);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => to.serialize_unit(),
            Value::Bool(value) => to.serialize_bool(*value),
            Value::Int(whole) => to.serialize_i64(*whole),
            Value::Float(number) if number.is_finite() => to.serialize_f64(*number),
            Value::Float(number) => {
                let mut map = to.serialize_map(Some(1))?;
                map.serialize_entry(NUMBER, &number.to_bits())?;
                map.end()
            }
            Value::String(text) => to.serialize_str(text.as_str()),
            Value::Array(list) => {
                let items = list.as_slice();
                let mut seq = to.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(&Written(item))?;
                }
                seq.end()
            }
            Value::Object(members) => {
                let mut map = to.serialize_map(Some(members.len()))?;
                for (name, value) in members.iter() {
                    match name.starts_with('\0') {
                        true => map.serialize_entry(&format!("\0{name}"), &Written(value))?,
                        false => map.serialize_entry(name, &Written(value))?,
                    }
                }
                map.end()
            }
        }
    }
}

struct Exact(Value);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reads).map(Self)
    }
}

struct Reads;

impl<'de> Visitor<'de> for Reads {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, whole: i64) -> Result<Value, E> {
        Ok(Value::Int(whole))
    }

    fn visit_u64<E: de::Error>(self, whole: u64) -> Result<Value, E> {
        i64::try_from(whole).map(Value::Int).map_err(E::custom)
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Exact(item)) = seq.next_element()? {
            items.push(item);
        }
        Value::list(items).map_err(de::Error::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == NUMBER {
                return map.next_value().map(|bits| Value::Float(f64::from_bits(bits)));
            }
            let Exact(value) = map.next_value()?;
            members.push((name.strip_prefix('\0').map(str::to_owned).unwrap_or(name), value));
        }
        Value::object(members).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Array(a), Value::Array(b)) => {
                let (a, b) = (a.as_slice(), b.as_slice());
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.0 == b.0 && same(a.1, b.1))
            }
            (Value::Float(_), Value::Int(_)) | (Value::Int(_), Value::Float(_)) => false,
            (a, b) => a == b,
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(|bits| Value::Float(f64::from_bits(bits))),
            prop_oneof![Just(3.0), Just(-0.0), Just(f64::NAN), Just(f64::INFINITY), Just(1e19)]
                .prop_map(Value::Float),
            "\\PC*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let name = prop_oneof![Just(NUMBER.to_owned()), Just("\0\0number".to_owned()), "[a-z\0]{0,3}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6)
                    .prop_map(|items| Value::list(items).expect("shallow")),
                prop::collection::vec((name, inner), 0..6)
                    .prop_map(|members| Value::object(members).expect("shallow")),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_comes_back_to_the_bit(own in values()) {
            let text = text(&own).expect("JSON");
            prop_assert!(!text.contains('\n'));
            let again = value(&text).expect("a value");
            prop_assert!(same(&own, &again), "{own} became {again}");
        }
    }

    #[test]
    fn the_deepest_value_comes_back() {
        let deep = (0..127).fold(Value::Null, |deep, _| Value::list(vec![deep]).expect("not too deep"));
        assert!(same(&deep, &value(&text(&deep).expect("JSON")).expect("a value")));
    }
}
