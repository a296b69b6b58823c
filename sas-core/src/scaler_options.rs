//! The options of one scaler within a [`crate::ScalingSpec`].

use std::{
    any::Any,
    borrow::Cow,
    collections::{BTreeMap, btree_map},
    fmt,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::SpecErrors;

/// What only one scaler knows: values by name. The scaler that a spec names reads them into a type of its own
/// ([`ScalerOptions::read`]) and validates them in [`crate::Scaler::validate`]; nobody else looks inside.
///
/// ```
/// use sas_core::ScalerOptions;
/// use serde::Deserialize;
///
/// #[derive(Clone, Debug, Default, Deserialize)]
/// #[serde(deny_unknown_fields, default)]
/// struct Stepped {
///     step: u32,
/// }
///
/// let mut options = ScalerOptions::new();
/// options.insert("step", 4);
/// assert_eq!(options.read::<Stepped>()?.step, 4);
///
/// options.insert("step", "four");
/// assert_eq!(options.read::<Stepped>().unwrap_err().0[0].field, "options.step");
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScalerOptions {
    values: BTreeMap<String, Value>,
    /// What they were last read as, so that a scaler may ask on every tick.
    #[serde(skip)]
    read: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl ScalerOptions {
    /// No options at all.
    pub const fn new() -> Self {
        Self { values: BTreeMap::new(), read: OnceLock::new() }
    }

    /// The fields of `options`, which serialise to a map.
    ///
    /// # Errors
    /// When they do not, or can't be JSON.
    pub fn of<T: Serialize>(options: &T) -> Result<Self, SpecErrors> {
        match serde_json::to_value(options) {
            Ok(Value::Object(fields)) => {
                Ok(Self { values: fields.into_iter().collect(), read: OnceLock::new() })
            }
            Ok(other) => {
                Err(problem("options", &other, "a struct or a map, whose fields become the options"))
            }
            Err(error) => Err(problem("options", &Value::Null, &error.to_string())),
        }
    }

    /// Sets one, and gives what it was before.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.read = OnceLock::new();
        self.values.insert(name.into(), value.into())
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All of them, by name.
    pub fn iter(&self) -> btree_map::Iter<'_, String, Value> {
        self.values.iter()
    }

    /// All of them as `T`. The first type that they are read as is remembered: a scaler may ask on every tick.
    ///
    /// # Errors
    /// The options that are not as `T` has them, each as `options.NAME`.
    pub fn read<T: DeserializeOwned + Clone + Send + Sync + 'static>(
        &self,
    ) -> Result<Cow<'_, T>, SpecErrors> {
        if let Some(read) = self.read.get() {
            return match read.downcast_ref() {
                Some(read) => Ok(Cow::Borrowed(read)),
                None => self.parse().map(Cow::Owned),
            };
        }
        let parsed: T = self.parse()?;
        match self.read.get_or_init(|| Arc::new(parsed.clone())).downcast_ref() {
            Some(read) => Ok(Cow::Borrowed(read)),
            None => Ok(Cow::Owned(parsed)),
        }
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, SpecErrors> {
        let error = match serde_json::from_value(Value::Object(self.values.clone().into_iter().collect())) {
            Ok(read) => return Ok(read),
            Err(error) => error,
        };
        // Serde tells what is wrong and not where: the options that are wrong alone are named.
        let mut errors = SpecErrors::default();
        for (name, value) in &self.values {
            let alone = [(name.clone(), value.clone())].into_iter().collect();
            if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
                errors.0.append(&mut problem(&format!("options.{name}"), value, &error.to_string()).0);
            }
        }
        if errors.is_empty() {
            return Err(problem("options", &Value::Null, &error.to_string()));
        }
        Err(errors)
    }
}

fn problem(field: &str, value: &Value, problem: &str) -> SpecErrors {
    let mut errors = SpecErrors::default();
    let shown = if value.is_null() { String::new() } else { value.to_string() };
    errors.push(field, shown, problem);
    errors
}

impl<N: Into<String>, V: Into<Value>> FromIterator<(N, V)> for ScalerOptions {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(values: I) -> Self {
        let values = values.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { values, read: OnceLock::new() }
    }
}

impl PartialEq for ScalerOptions {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl fmt::Debug for ScalerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.values).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Mine {
        step: u32,
        name: String,
    }

    #[test]
    fn they_are_read_once_per_change_and_as_other_types_too() {
        let mut options = ScalerOptions::of(&Mine { step: 3, name: "x".to_owned() }).unwrap();
        assert!(matches!(options.read::<Mine>(), Ok(Cow::Borrowed(Mine { step: 3, .. }))));
        assert!(matches!(options.read::<BTreeMap<String, Value>>(), Ok(Cow::Owned(_))));
        options.insert("step", 4);
        assert_eq!(options.read::<Mine>().unwrap().step, 4);
        assert_eq!(options.clone(), options);
    }

    #[test]
    fn each_that_is_wrong_is_named() {
        let options: ScalerOptions =
            [("step", Value::from(-1)), ("stepp", Value::from(1))].into_iter().collect();
        let errors = options.read::<Mine>().unwrap_err();
        let fields: Vec<_> = errors.0.iter().map(|error| &*error.field).collect();
        assert_eq!(fields, ["options.step", "options.stepp"]);
        assert!(ScalerOptions::of(&7).is_err());
    }
}
