//! Errors as the language knows them.

use sas_jq::Value;
use serde_json::{Map, Value as Json};

/// What errors of the language itself are called, with their status.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standard {
    Configuration,
    Validation,
    Expression,
    Authorization,
    Timeout,
    Communication,
    Runtime,
}

const BASE: &str = "https://open-workflow-specification.org/spec/1.0.0/errors/";

/// The spellings of the base that are in use.
const BASES: [&str; 5] = [
    BASE,
    "https://open-workflow-specification.org/dsl/errors/types/",
    "https://serverlessworkflow.io/spec/1.0.0/errors/",
    "https://serverlessworkflow.io/dsl/errors/types/",
    "https://serverlessworkflow.io/errors/",
];

/// An error: members `type`, `status`, `title`, `detail`, `instance` and others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault(pub(crate) Map<String, Json>);

impl Fault {
    pub(crate) fn new(standard: Standard, pointer: &str, detail: impl Into<String>) -> Self {
        let (name, title, status) = match standard {
            Standard::Configuration => ("configuration", "Configuration Error", 400),
            Standard::Validation => ("validation", "Validation Error", 400),
            Standard::Expression => ("expression", "Expression Error", 400),
            Standard::Authorization => ("authorization", "Authorization Error", 403),
            Standard::Timeout => ("timeout", "Timeout Error", 408),
            Standard::Communication => ("communication", "Communication Error", 500),
            Standard::Runtime => ("runtime", "Runtime Error", 500),
        };
        let mut members = Map::new();
        members.insert("type".to_owned(), format!("{BASE}{name}").into());
        members.insert("title".to_owned(), title.into());
        members.insert("status".to_owned(), status.into());
        members.insert("detail".to_owned(), detail.into().into());
        members.insert("instance".to_owned(), pointer.into());
        Self(members)
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.0.insert("status".to_owned(), status.into());
        self
    }

    pub(crate) fn evaluation(pointer: &str, error: &sas_jq::Error) -> Self {
        Self::new(Standard::Expression, pointer, error.to_string())
    }

    pub(crate) fn value(&self) -> Value {
        Value::from_json(&Json::Object(self.0.clone())).unwrap_or_default()
    }

    /// Whether it has these members. Types of the language match whatever the spelling of their base.
    pub(crate) fn is(&self, with: &[(String, Json)]) -> bool {
        with.iter().all(|(name, wanted)| {
            let name = if name == "details" { "detail" } else { name };
            match (self.0.get(name), wanted) {
                (Some(Json::String(own)), Json::String(wanted)) if name == "type" => {
                    own == wanted || standard(own).is_some_and(|own| standard(wanted) == Some(own))
                }
                (Some(own), wanted) => own == wanted,
                (None, _) => false,
            }
        })
    }
}

fn standard(kind: &str) -> Option<&str> {
    BASES.iter().find_map(|base| kind.strip_prefix(base))
}
