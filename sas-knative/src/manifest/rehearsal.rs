//! What the annotations try out on a service's traffic: copies of requests to another revision, and faults on purpose.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{RouteMatch, SpecErrors, parse_duration};
use serde::{Deserialize, Serialize};

use super::conditions::{check_conditions, matches};
use crate::keys::own;

/// Most faults of one service.
const MOST_FAULTS: usize = 32;

/// The longest delay of a fault.
const MOST_DELAY: Duration = Duration::from_secs(300);

/// That a share of the requests is copied to the revision of a tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MirrorTo {
    /// The tag of a target in `spec.traffic`.
    pub tag: String,
    /// How many of a hundred requests are copied, 1 to 100.
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 100))]
    pub percent: u32,
}

impl MirrorTo {
    /// Copies `percent` of a hundred requests to the revision of `tag`.
    pub fn new(tag: impl Into<String>, percent: u32) -> Self {
        Self { tag: tag.into(), percent }
    }

    /// Checks it; `at` is where it stands.
    pub fn check(&self, at: &str, errors: &mut SpecErrors) {
        if !(1..=100).contains(&self.percent) {
            errors.push(join(at, "percent"), self.percent, "must be from 1 to 100");
        }
        if self.tag.is_empty() {
            errors.push(join(at, "tag"), "", "must be the tag of a target of the traffic");
        }
    }
}

/// A fault that some requests meet on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FaultRule {
    /// A path, and all below it; empty: every path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Methods; empty: every method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Headers by name, with their values: `*` for any, `b*` for what begins with `b`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Cookies by name, with their values as those of headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cookies: BTreeMap<String, String>,
    /// Only what goes to this revision; left out: to any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How many of a hundred of these requests, 1 to 100; 100 if left out.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 100))]
    pub percent: u32,
    /// How long they wait before they go on, such as `250ms`; at most five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// The status that they are answered with instead of by an instance, 400 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(minimum = 400, maximum = 599))]
    pub abort: Option<u16>,
}

const fn all() -> u32 {
    100
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_all(percent: &u32) -> bool {
    *percent == all()
}

impl FaultRule {
    /// What requests it is for.
    pub fn matches(&self) -> RouteMatch {
        matches(&self.path, &self.methods, &self.headers, &self.cookies)
    }

    /// How long requests wait.
    pub fn delay(&self) -> Option<Duration> {
        let nanos = parse_duration(self.delay.as_deref()?).ok()?;
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }
}

/// Checks faults; `at` is where they stand.
pub fn check_faults(at: &str, faults: &[FaultRule], errors: &mut SpecErrors) {
    if faults.len() > MOST_FAULTS {
        errors.push(at, format!("{} faults", faults.len()), format!("must be at most {MOST_FAULTS}"));
        return;
    }
    for (number, fault) in faults.iter().enumerate() {
        let at = |field: &str| format!("{at}[{number}].{field}");
        check_conditions(&at, (&fault.path, &fault.methods, &fault.headers, &fault.cookies), errors);
        if !(1..=100).contains(&fault.percent) {
            errors.push(at("percent"), fault.percent, "must be from 1 to 100");
        }
        if let Some(text) = &fault.delay
            && fault.delay().is_none_or(|delay| delay.is_zero() || delay > MOST_DELAY)
        {
            errors.push(
                at("delay"),
                text,
                "must be a duration such as 250ms, longer than nothing and at most 5m",
            );
        }
        if let Some(status) = fault.abort
            && !(400..=599).contains(&status)
        {
            errors.push(at("abort"), status, "must be a status from 400 to 599");
        }
        if fault.delay.is_none() && fault.abort.is_none() {
            errors.push(at("abort"), "", "missing: a fault has a delay, an abort, or both");
        }
    }
}

/// What the annotation says of copies.
pub(super) fn mirror<'a>(
    get: &impl Fn(&str) -> Option<(String, &'a str)>,
    errors: &mut SpecErrors,
) -> Option<MirrorTo> {
    let (path, text) = get(own::MIRROR)?;
    let read = text.trim().strip_suffix('%').and_then(|text| text.split_once('='));
    let read = read.and_then(|(tag, percent)| Some(MirrorTo::new(tag.trim(), percent.trim().parse().ok()?)));
    let read = read.filter(|read| (1..=100).contains(&read.percent) && !read.tag.is_empty());
    if read.is_none() {
        errors.push(
            path,
            text,
            "must be a tag of the traffic and a percentage from 1% to 100%, such as next=10%",
        );
    }
    read
}

/// What the annotation says of faults.
pub(super) fn faults<'a>(
    get: &impl Fn(&str) -> Option<(String, &'a str)>,
    errors: &mut SpecErrors,
) -> Vec<FaultRule> {
    let Some((path, text)) = get(own::FAULTS) else { return Vec::new() };
    match serde_json::from_str::<Vec<FaultRule>>(text) {
        Ok(faults) => {
            check_faults(&path, &faults, errors);
            faults
        }
        Err(error) => {
            let problem = format!(
                "must be a list like [{{\"path\": \"/api\", \"percent\": 10, \"delay\": \"250ms\"}}, {{\"headers\": \
                 {{\"x-test\": \"*\"}}, \"abort\": 503}}]: {error}"
            );
            errors.push(path, text, problem);
            Vec::new()
        }
    }
}

fn join(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}
