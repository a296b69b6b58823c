//! What the annotations say about a service's routes: affinity, quotas, roll-outs, and who starts an instance.

use std::time::Duration;

use sas_core::{Affinity, Quota, RolloutPlan, SpecErrors};

use crate::{keys::own, parse_duration};

/// Most paths that start nothing, of one service.
const MOST_PATHS: usize = 32;

/// What they say.
pub(super) struct Routing {
    pub(super) affinity: Affinity,
    pub(super) placeholder: bool,
    pub(super) no_wake: Vec<String>,
    pub(super) quota: Option<Quota>,
    pub(super) plan: Option<RolloutPlan>,
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
        Self { affinity, placeholder, no_wake, quota: quota(&get, errors), plan: plan(&get, over, errors) }
    }
}

pub(super) fn is_token(name: &str) -> bool {
    name.parse::<http::HeaderName>().is_ok()
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

fn plan<'a>(
    get: &impl Fn(&str) -> Option<(String, &'a str)>,
    over: Duration,
    errors: &mut SpecErrors,
) -> Option<RolloutPlan> {
    let (steps, hold) = (get(own::ROLLOUT_STEPS), get(own::ROLLOUT_HOLD));
    let (requests, more_errors) = (get(own::ROLLOUT_MIN_REQUESTS), get(own::ROLLOUT_MAX_MORE_ERRORS));
    if [&steps, &hold, &requests, &more_errors].into_iter().all(Option::is_none) {
        return None;
    }
    let mut plan = RolloutPlan::default();
    if !over.is_zero() {
        plan = RolloutPlan::over(over);
        for (path, text) in [&steps, &hold].into_iter().flatten() {
            errors.push(path, *text, "contradicts serving.knative.dev/rollout-duration: give one of the two");
        }
    }
    if let Some((path, text)) = steps {
        let read: Option<Vec<u32>> = text.split(',').map(|step| step.trim().parse().ok()).collect();
        match read {
            Some(read)
                if read.last() == Some(&100)
                    && read.first() != Some(&0)
                    && read.is_sorted_by(|one, next| one < next) =>
            {
                plan.steps = read;
            }
            _ => errors.push(path, text, "must be percentages that rise to 100, such as 1,10,50,100"),
        }
    }
    if let Some((path, text)) = hold {
        match parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok()) {
            Some(nanos) => plan.hold = Duration::from_nanos(nanos),
            None => errors.push(path, text, "must be a duration such as 30s or 1m30s, not negative"),
        }
    }
    if let Some((path, text)) = requests {
        match text.parse() {
            Ok(requests) => plan.min_requests = requests,
            Err(_) => errors.push(path, text, "must be a whole number of requests"),
        }
    }
    if let Some((path, text)) = more_errors {
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
            None => text.parse::<f64>(),
        };
        match share {
            Ok(share) if (0.0..=1.0).contains(&share) => plan.max_more_errors = share,
            _ => errors.push(path, text, "must be a share from 0 to 1, or a percentage such as 1%"),
        }
    }
    Some(plan)
}
