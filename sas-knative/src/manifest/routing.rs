//! What the annotations say about a service's routes: affinity, quotas, roll-outs, and who starts an instance.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{Affinity, Quota, RolloutPlan, RouteMatch, SpecErrors};
use serde::{Deserialize, Serialize};

use super::{
    conditions::{check_conditions, is_token, matches},
    rehearsal::{self, FaultRule, MirrorTo},
    rollout::plan,
};
use crate::keys::own;

/// Most paths that start nothing, of one service.
const MOST_PATHS: usize = 32;

/// Most routes to tags, of one service.
const MOST_ROUTES: usize = 32;

/// Which requests go to the revision of a tag, whatever the shares say. All that is said must match; the longest path
/// goes first, then the most conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TagRoute {
    /// The tag of a target in `spec.traffic`.
    pub tag: String,
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
}

impl TagRoute {
    /// What the router matches by.
    pub fn matches(&self) -> RouteMatch {
        matches(&self.path, &self.methods, &self.headers, &self.cookies)
    }
}

/// What they say.
pub(super) struct Routing {
    pub(super) affinity: Affinity,
    pub(super) placeholder: bool,
    pub(super) no_wake: Vec<String>,
    pub(super) routes: Vec<TagRoute>,
    pub(super) quota: Option<Quota>,
    pub(super) plan: Option<RolloutPlan>,
    pub(super) mirror: Option<MirrorTo>,
    pub(super) faults: Vec<FaultRule>,
}

impl Routing {
    /// `get` gives an annotation with its path; `over` is Knative's `rollout-duration`.
    pub(super) fn read<'a>(
        get: impl Fn(&str) -> Option<(String, &'a str)>,
        over: Duration,
        errors: &mut SpecErrors,
    ) -> Self {
        let affinity = match get(own::AFFINITY) {
            None => Affinity::None,
            Some((path, text)) => match text.split_once('=') {
                Some(("cookie", name)) if is_token(name) => Affinity::Cookie(name.to_owned()),
                Some(("header", name)) if is_token(name) => Affinity::Header(name.to_ascii_lowercase()),
                _ => {
                    errors.push(path, text, "must be cookie=NAME or header=NAME");
                    Affinity::None
                }
            },
        };
        let placeholder = match get(own::PLACEHOLDER) {
            None | Some((_, "false")) => false,
            Some((_, "true")) => true,
            Some((path, text)) => {
                errors.push(path, text, "must be \"true\" or \"false\"");
                false
            }
        };
        let no_wake = get(own::NO_WAKE).map_or_else(Vec::new, |(path, text)| paths(&path, text, errors));
        let routes = get(own::ROUTES).map_or_else(Vec::new, |(path, text)| routes(&path, text, errors));
        let (quota, plan) = (quota(&get, errors), plan(&get, over, errors));
        let (mirror, faults) = (rehearsal::mirror(&get, errors), rehearsal::faults(&get, errors));
        Self { affinity, placeholder, no_wake, routes, quota, plan, mirror, faults }
    }
}

fn routes(at: &str, text: &str, errors: &mut SpecErrors) -> Vec<TagRoute> {
    let routes: Vec<TagRoute> = match serde_json::from_str(text) {
        Ok(routes) => routes,
        Err(error) => {
            let problem = format!(
                "must be a list like [{{\"tag\": \"beta\", \"path\": \"/api\", \"methods\": [\"GET\"], \"headers\": \
                 {{\"x-user\": \"ann\"}}, \"cookies\": {{\"track\": \"b*\"}}}}]: {error}"
            );
            errors.push(at, text, problem);
            return Vec::new();
        }
    };
    if routes.len() > MOST_ROUTES {
        errors.push(at, format!("{} routes", routes.len()), format!("must be at most {MOST_ROUTES}"));
        return Vec::new();
    }
    for (number, route) in routes.iter().enumerate() {
        let at = |field: &str| format!("{at}[{number}].{field}");
        check_conditions(&at, (&route.path, &route.methods, &route.headers, &route.cookies), errors);
        if route.path.is_empty()
            && route.methods.is_empty()
            && route.headers.is_empty()
            && route.cookies.is_empty()
        {
            let problem = "must say which requests: by path, methods, headers or cookies";
            errors.push(at("tag"), &route.tag, problem);
        }
    }
    routes
}

fn paths(at: &str, text: &str, errors: &mut SpecErrors) -> Vec<String> {
    let paths: Vec<String> = text.split(',').map(|path| path.trim().to_owned()).collect();
    let good = |path: &String| {
        path.len() > 1
            && path.starts_with('/')
            && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?')
    };
    if paths.len() > MOST_PATHS || !paths.iter().all(good) {
        let problem = format!(
            "must be up to {MOST_PATHS} paths with commas between, such as /healthz,/livez; not / itself"
        );
        errors.push(at, text, problem);
        return Vec::new();
    }
    let mut distinct = Vec::new();
    for path in paths {
        if !distinct.contains(&path) {
            distinct.push(path);
        }
    }
    distinct
}

fn quota<'a>(get: &impl Fn(&str) -> Option<(String, &'a str)>, errors: &mut SpecErrors) -> Option<Quota> {
    let rate = get(own::QUOTA_RATE).map(|(path, text)| match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => rate,
        _ => {
            errors.push(path, text, "must be requests per second, such as 100 or 0.5");
            f64::INFINITY
        }
    });
    let burst = get(own::QUOTA_BURST).map(|(path, text)| {
        if rate.is_none() {
            errors.push(path.clone(), text, format!("means nothing without {}", own::QUOTA_RATE));
        }
        whole(&path, text, errors)
    });
    let concurrency = get(own::QUOTA_CONCURRENCY).map(|(path, text)| whole(&path, text, errors));
    if rate.is_none() && concurrency.is_none() {
        return None;
    }
    let mut quota = Quota::UNLIMITED;
    if let Some(rate) = rate {
        // Without another word, what comes in a second may come at once.
        let second = rate.ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
        quota = Quota::rate(rate, burst.unwrap_or(second));
    }
    Some(quota.with_concurrency(concurrency.unwrap_or(u32::MAX)))
}

fn whole(path: &str, text: &str, errors: &mut SpecErrors) -> u32 {
    match text.parse::<u32>() {
        Ok(number) if number > 0 => number,
        _ => {
            errors.push(path, text, "must be a whole number, at least 1");
            1
        }
    }
}
