//! What the annotations say about how traffic moves to a new revision.

use std::time::Duration;

use sas_core::{RolloutKind, RolloutPlan, SpecErrors, Surge, parse_duration};

use crate::keys::own;

/// Requests that a step waits for where latencies are compared and nothing else was said: fewer tell little about them.
const FOR_LATENCIES: u64 = 200;

/// `get` gives an annotation with its path; `over` is Knative's `rollout-duration`.
pub(super) fn plan<'a>(
    get: &impl Fn(&str) -> Option<(String, &'a str)>,
    over: Duration,
    errors: &mut SpecErrors,
) -> Option<RolloutPlan> {
    const ALL: [&str; 10] = [
        own::ROLLOUT,
        own::ROLLOUT_STEPS,
        own::ROLLOUT_HOLD,
        own::ROLLOUT_MIN_REQUESTS,
        own::ROLLOUT_MAX_MORE_ERRORS,
        own::ROLLOUT_MAX_SLOWER,
        own::ROLLOUT_QUANTILE,
        own::ROLLOUT_SURGE,
        own::ROLLOUT_READY_WITHIN,
        own::ROLLOUT_KEEP_OLD,
    ];
    if ALL.into_iter().all(|name| get(name).is_none()) {
        return None;
    }
    let (steps, hold) = (get(own::ROLLOUT_STEPS), get(own::ROLLOUT_HOLD));
    let kind = get(own::ROLLOUT);
    let mut plan = match &kind {
        None | Some((_, "canary")) if over.is_zero() => RolloutPlan::default(),
        None | Some((_, "canary")) => RolloutPlan::over(over),
        Some((_, "blue-green")) => RolloutPlan::blue_green(),
        Some((path, text)) => {
            errors.push(path.clone(), *text, "must be canary or blue-green");
            RolloutPlan::default()
        }
    };
    if !over.is_zero() {
        let blue_green = kind.filter(|_| plan.kind == RolloutKind::BlueGreen);
        for (path, text) in [&steps, &hold, &blue_green].into_iter().flatten() {
            errors.push(path, *text, "contradicts serving.knative.dev/rollout-duration: give one of the two");
        }
    }
    if plan.kind == RolloutKind::BlueGreen {
        let surge = get(own::ROLLOUT_SURGE);
        for (path, text) in [&steps, &hold, &surge].into_iter().flatten() {
            let problem = "contradicts sas.dev/rollout: blue-green, which sizes the new revision for everything and switches once: \
                           leave it out, or say canary";
            errors.push(path, *text, problem);
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
    let mut time = |name: &str, into: &mut Duration, least: Duration| {
        let Some((path, text)) = get(name) else { return };
        match parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos)
        {
            Some(time) if time >= least => *into = time,
            Some(_) => errors.push(path, text, "must be longer than nothing"),
            None => errors.push(path, text, "must be a duration such as 30s or 1m30s, not negative"),
        }
    };
    time(own::ROLLOUT_HOLD, &mut plan.hold, Duration::ZERO);
    time(own::ROLLOUT_READY_WITHIN, &mut plan.ready_within, Duration::from_nanos(1));
    time(own::ROLLOUT_KEEP_OLD, &mut plan.keep_old, Duration::ZERO);
    if let Some((path, text)) = get(own::ROLLOUT_MAX_MORE_ERRORS) {
        match share(text) {
            Some(share) if (0.0..=1.0).contains(&share) => plan.max_more_errors = share,
            _ => errors.push(path, text, "must be a share from 0 to 1, or a percentage such as 1%"),
        }
    }
    if let Some((path, text)) = get(own::ROLLOUT_MAX_SLOWER) {
        match share(text) {
            Some(slower) if (0.0..=100.0).contains(&slower) => {
                plan.max_slower = Some(slower);
                plan.min_requests = plan.min_requests.max(FOR_LATENCIES);
            }
            _ => errors.push(
                path,
                text,
                "must be a percentage such as 50%, or a part such as 0.5; at most 10000%",
            ),
        }
    }
    if let Some((path, text)) = get(own::ROLLOUT_MIN_REQUESTS) {
        match text.parse() {
            Ok(requests) => plan.min_requests = requests,
            Err(_) => errors.push(path, text, "must be a whole number of requests"),
        }
    }
    if let Some((path, text)) = get(own::ROLLOUT_QUANTILE) {
        let quantile = match text.strip_prefix('p') {
            Some(percent) => percent.parse::<f64>().ok().map(|percent| percent / 100.0),
            None => text.parse().ok(),
        };
        match quantile {
            Some(quantile) if (0.5..=0.99).contains(&quantile) => plan.quantile = quantile,
            _ => errors.push(path, text, "must be from p50 to p99, or from 0.5 to 0.99"),
        }
    }
    if let Some((path, text)) = get(own::ROLLOUT_SURGE)
        && plan.kind == RolloutKind::Canary
    {
        match surge(text) {
            Some(surge) => plan.surge = surge,
            None => errors.push(
                path,
                text,
                "must be a number of instances such as 2, or a percentage from 0% to 100%",
            ),
        }
    }
    Some(plan)
}

/// A part, or a percentage.
fn share(text: &str) -> Option<f64> {
    match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().ok().map(|percent| percent / 100.0),
        None => text.parse().ok(),
    }
}

fn surge(text: &str) -> Option<Surge> {
    match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse().ok().filter(|percent| *percent <= 100).map(Surge::Percent),
        None => text.parse().ok().map(Surge::Instances),
    }
}
