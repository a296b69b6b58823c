//! Faults on purpose: some requests wait, and some are answered with an error instead of by an instance.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode};
use sas_core::{Error, ErrorKind, Fault, Result, RevisionKey, RouteQuery};

use crate::{
    matching::{self, Conditions},
    mirror::is_chosen,
};

/// Says to a client which fault its request met.
pub(crate) const FAULT: HeaderName = HeaderName::from_static("x-sas-fault");

/// What a request meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Met {
    pub(crate) delay: Duration,
    pub(crate) abort: Option<StatusCode>,
}

impl Met {
    /// The header's value: `delay=250ms`, `abort=503`, or both.
    pub(crate) fn header(self) -> HeaderValue {
        let delay = (!self.delay.is_zero()).then(|| format!("delay={}ms", self.delay.as_millis()));
        let abort = self.abort.map(|status| format!("abort={}", status.as_u16()));
        let text: Vec<String> = delay.into_iter().chain(abort).collect();
        HeaderValue::from_str(&text.join(", ")).expect("digits and names")
    }
}

/// A fault, compiled.
#[derive(Debug)]
struct Compiled {
    prefix: Box<str>,
    conditions: Option<Conditions>,
    revision: Option<RevisionKey>,
    percent: u32,
    met: Met,
    seen: AtomicU64,
    count: AtomicU64,
}

/// The faults of a service.
#[derive(Debug)]
pub(crate) struct Faults(Vec<Compiled>);

impl Faults {
    /// The faults of a service, ready to be matched with requests.
    ///
    /// # Errors
    /// `InvalidSpec` with the number of the fault, the field and what it should be.
    pub(crate) fn compile(faults: Vec<Fault>) -> Result<Self> {
        let compile = |(at, fault): (usize, Fault)| {
            let invalid = |field: &str, value: &str, problem: &str| {
                Error::new(
                    ErrorKind::InvalidSpec,
                    "faults",
                    format!("faults[{at}].{field}: {value:?}: {problem}"),
                )
            };
            let prefix = fault.matches.path_prefix.trim_end_matches('/');
            if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.contains(['?', '#'])) {
                return Err(invalid("path", prefix, "a path that begins with /, without query and fragment"));
            }
            let conditions = Conditions::compile(&fault.matches)
                .map_err(|(field, value, problem)| invalid(&field, &value, problem))?;
            let abort = match fault.abort {
                Some(status @ 400..=599) => StatusCode::from_u16(status).ok(),
                Some(status) => {
                    return Err(invalid("abort", &status.to_string(), "a status from 400 to 599"));
                }
                None => None,
            };
            if fault.percent == 0 || fault.percent > 100 {
                return Err(invalid("percent", &fault.percent.to_string(), "from 1 to 100"));
            }
            let met = Met { delay: fault.delay.unwrap_or_default(), abort };
            if met.delay.is_zero() && met.abort.is_none() {
                return Err(invalid("abort", "", "a fault has a delay, an abort, or both"));
            }
            Ok(Compiled {
                prefix: prefix.into(),
                conditions,
                revision: fault.revision,
                percent: fault.percent,
                met,
                seen: AtomicU64::new(0),
                count: AtomicU64::new(0),
            })
        };
        faults.into_iter().enumerate().map(compile).collect::<Result<_>>().map(Self)
    }

    /// What a request to that revision meets: of the first fault that it fits, if it is its turn.
    pub(crate) fn meet(&self, query: &RouteQuery<'_>, revision: RevisionKey) -> Option<Met> {
        let fits = |fault: &&Compiled| {
            fault.revision.is_none_or(|only| only == revision)
                && matching::under(&fault.prefix, query.path)
                && fault.conditions.as_ref().is_none_or(|conditions| conditions.matches(query))
        };
        let fault = self.0.iter().find(fits)?;
        if !is_chosen(fault.seen.fetch_add(1, Ordering::Relaxed), fault.percent) {
            return None;
        }
        fault.count.fetch_add(1, Ordering::Relaxed);
        Some(fault.met)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|fault| fault.count.load(Ordering::Relaxed)).collect()
    }
}
