//! What use costs.

use std::collections::BTreeMap;

use sas_core::{Error, ErrorKind, MeterTotals, Result, RevisionUsage, SpecErrors};
use serde::{Deserialize, Serialize};

/// Prices of one unit each, in the smallest unit of the currency times 10^9 (nano-units), so that sums are whole numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct Prices {
    /// An instance-second with requests.
    pub busy_second: u64,
    /// An instance-second without.
    pub idle_second: u64,
    /// An instance-second on the way up.
    pub starting_second: u64,
    /// An instance-second on the way out.
    pub draining_second: u64,
    /// A second of a stem: the host's own.
    pub pooled_second: u64,
    /// A second on a CPU.
    pub cpu_second: u64,
    /// A GiB of memory held for a second.
    pub gib_second: u64,
    /// A million requests.
    pub million_requests: u64,
    /// A GiB that went in or out.
    pub gib_transferred: u64,
}

/// Prices by namespace, with those of all others.
///
/// Read from YAML or JSON. Every price must be said, with 0 where something is free: a price that is missing is refused by
/// name, since it would bill nothing for something that was to cost.
///
/// ```
/// use sas_control::PriceTable;
/// let table = PriceTable::parse("
/// currency: EUR
/// default:
///   busySecond: 12000      # nano-cents: 0.000012 cents a second
///   idleSecond: 3000
///   startingSecond: 0
///   drainingSecond: 0
///   pooledSecond: 0
///   cpuSecond: 0
///   gibSecond: 1700
///   millionRequests: 20000000000
///   gibTransferred: 0
/// ").unwrap();
/// assert_eq!(table.currency, "EUR");
/// let gap = PriceTable::parse("currency: EUR\ndefault: {busySecond: 1}").unwrap_err();
/// assert!(gap.to_string().contains("default.idleSecond"), "{gap}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PriceTable {
    /// The currency that costs are in.
    pub currency: String,
    /// The prices of all who have none of their own.
    pub default: Prices,
    /// The prices of namespaces that have their own.
    pub namespaces: BTreeMap<String, Prices>,
}

const FIELDS: [&str; 9] = [
    "busySecond",
    "idleSecond",
    "startingSecond",
    "drainingSecond",
    "pooledSecond",
    "cpuSecond",
    "gibSecond",
    "millionRequests",
    "gibTransferred",
];

impl PriceTable {
    /// Reads a table from YAML or JSON: `currency`, `default` and, if any, `namespaces`.
    ///
    /// # Errors
    /// `InvalidSpec` with every price that is missing, unknown, negative or no whole number, by its path.
    pub fn parse(text: &str) -> Result<Self> {
        let value: serde_json::Value = sas_knative::manifest::document(text).map_err(refused)?;
        let mut errors = SpecErrors::default();
        let empty = serde_json::Map::new();
        let top = value.as_object().unwrap_or_else(|| {
            errors.push("$", "", "must be an object with currency, default and, if any, namespaces");
            &empty
        });
        for name in top.keys() {
            if !["currency", "default", "namespaces"].contains(&name.as_str()) {
                errors.push(name.as_str(), "", "not known here: use currency, default, namespaces");
            }
        }
        let currency = match top.get("currency").and_then(|currency| currency.as_str()) {
            Some(currency) if !currency.is_empty() => currency.to_owned(),
            _ => {
                errors.push("currency", "", "missing: name the currency, such as EUR");
                String::new()
            }
        };
        let default = match top.get("default") {
            Some(prices) => read_prices("default", prices, &mut errors),
            None => {
                errors.push("default", "", "missing: say the prices of those who have none of their own");
                Prices::default()
            }
        };
        let mut namespaces = BTreeMap::new();
        match top.get("namespaces") {
            None => {}
            Some(serde_json::Value::Object(given)) => {
                for (namespace, prices) in given {
                    let path = format!("namespaces.{namespace}");
                    namespaces.insert(namespace.clone(), read_prices(&path, prices, &mut errors));
                }
            }
            Some(other) => {
                errors.push("namespaces", other.to_string(), "must be an object of prices by namespace")
            }
        }
        if !errors.is_empty() {
            return Err(refused(errors));
        }
        Ok(Self { currency, default, namespaces })
    }

    /// The prices of a namespace.
    pub fn of(&self, namespace: &str) -> &Prices {
        self.namespaces.get(namespace).unwrap_or(&self.default)
    }

    /// What use costs, by revision and in all.
    pub fn cost(&self, used: &[RevisionUsage]) -> Cost {
        let mut cost = Cost { currency: self.currency.clone(), ..Cost::default() };
        for used in used {
            let line = CostLine {
                namespace: used.namespace.clone(),
                service: used.service.clone(),
                revision: used.revision.clone(),
                ..self.of(&used.namespace).line(&used.totals)
            };
            cost.busy += line.busy;
            cost.idle += line.idle;
            cost.other += line.other;
            cost.total += line.total;
            cost.lines.push(line);
        }
        cost
    }
}

fn refused(errors: SpecErrors) -> Error {
    Error::new(ErrorKind::InvalidSpec, "price table", errors.to_string()).with_source(errors)
}

fn read_prices(path: &str, value: &serde_json::Value, errors: &mut SpecErrors) -> Prices {
    let Some(given) = value.as_object() else {
        errors.push(path, value.to_string(), "must be an object of prices");
        return Prices::default();
    };
    let before = errors.0.len();
    for field in FIELDS {
        let at = format!("{path}.{field}");
        match given.get(field) {
            None => errors.push(at, "", "missing: say 0 if it is free"),
            Some(price) if price.as_u64().is_none() => {
                errors.push(
                    at,
                    price.to_string(),
                    "must be a whole number from 0, in billionths of the smallest unit of the currency",
                );
            }
            Some(_) => {}
        }
    }
    for name in given.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
        errors.push(
            format!("{path}.{name}"),
            "",
            format!("no price is called so: use {}", FIELDS.join(", ")),
        );
    }
    if errors.0.len() > before {
        return Prices::default();
    }
    serde_json::from_value(value.clone()).expect("every field was looked at")
}

/// The cost of what one revision used, in nano-units (billionths of the smallest unit of the currency). Each amount is rounded down once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CostLine {
    /// As in [`RevisionUsage`].
    pub namespace: String,
    /// As in [`RevisionUsage`].
    pub service: String,
    /// As in [`RevisionUsage`].
    pub revision: String,
    /// Of time with requests.
    pub busy: u64,
    /// Of time without, while instances were kept ready.
    pub idle: u64,
    /// Of all else: starts, drains, stems, CPU, memory, requests, bytes.
    pub other: u64,
    /// All three.
    pub total: u64,
}

/// The cost of what was used, in nano-units of the currency.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cost {
    /// The currency.
    pub currency: String,
    /// Of time with requests.
    pub busy: u64,
    /// Of time without, while instances were kept ready.
    pub idle: u64,
    /// Of all else.
    pub other: u64,
    /// All three.
    pub total: u64,
    /// By revision.
    pub lines: Vec<CostLine>,
}

const SECOND: u128 = 1_000_000_000;
const GIB: u128 = 1 << 30;

impl Prices {
    fn line(&self, used: &MeterTotals) -> CostLine {
        let charge = |amount: u128, price: u64, unit: u128| amount.saturating_mul(price.into()) / unit;
        let whole = |cost: u128| u64::try_from(cost).unwrap_or(u64::MAX);
        let busy = whole(charge(used.busy_ns, self.busy_second, SECOND));
        let idle = whole(charge(used.idle_ns, self.idle_second, SECOND));
        let bytes = u128::from(used.bytes_in) + u128::from(used.bytes_out);
        let other = whole(
            charge(used.starting_ns, self.starting_second, SECOND)
                + charge(used.draining_ns, self.draining_second, SECOND)
                + charge(used.pooled_ns, self.pooled_second, SECOND)
                + charge(used.cpu_ns, self.cpu_second, SECOND)
                + charge(used.memory_byte_ns, self.gib_second, SECOND * GIB)
                + charge(used.requests.into(), self.million_requests, 1_000_000)
                + charge(bytes, self.gib_transferred, GIB),
        );
        let total = busy.saturating_add(idle).saturating_add(other);
        CostLine { busy, idle, other, total, ..CostLine::default() }
    }
}
