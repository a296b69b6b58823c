//! Scaling decisions in words.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use crate::text::bytes;

/// A decision as the admin API tells it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Decision {
    pub(crate) revision: String,
    pub(crate) at: String,
    pub(crate) sequence: u64,
    pub(crate) load: Load,
    pub(crate) previous: Option<u32>,
    pub(crate) decision: Verdict,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Load {
    pub(crate) concurrency: f64,
    pub(crate) requests: u32,
    pub(crate) queued: u32,
    pub(crate) ready: u32,
    pub(crate) starting: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Verdict {
    verdict: Value,
    reason: Value,
    clamps: Vec<String>,
    proposed: Option<u32>,
    votes: Vec<Vote>,
    details: Option<Details>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Vote {
    metric: String,
    name: String,
    value: Option<f64>,
    target: f64,
    desired: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    because: Option<String>,
    votes: Vec<Vote>,
}

impl Decision {
    /// How many instances there are to be.
    pub(crate) fn to(&self) -> u32 {
        let set = self.decision.verdict.get("set").and_then(Value::as_u64);
        set.map_or_else(|| self.previous.unwrap_or(0), |set| u32::try_from(set).unwrap_or(u32::MAX))
    }

    /// From how many to how many.
    pub(crate) fn change(&self) -> String {
        match self.previous {
            Some(from) if from == self.to() => format!("stays {from}"),
            Some(from) => format!("{from} → {}", self.to()),
            None => format!("→ {}", self.to()),
        }
    }

    /// Why, in a sentence.
    pub(crate) fn why(&self) -> String {
        let mut text = self.reason();
        if let Some(because) = self.decision.details.as_ref().and_then(|details| details.because.as_ref()) {
            let _ = write!(text, ", because of {because}");
        }
        let named = self.decision.details.iter().flat_map(|details| &details.votes);
        // Two windows of one metric: the scaler's stable one, then the short one that a panic looks at.
        let windows = match &self.decision.votes[..] {
            [one, other] if one.metric == other.metric => ["in the window ", "in the short one "],
            _ => [""; 2],
        };
        let votes = self.decision.votes.iter().chain(named).enumerate();
        let votes: Vec<String> = votes
            .filter_map(|(at, vote)| Some(format!("{}{}", windows.get(at).unwrap_or(&""), self.vote(vote)?)))
            .collect();
        if !votes.is_empty() {
            let _ = write!(text, ": {}", votes.join("; "));
        }
        let clamps: Vec<&str> = self.decision.clamps.iter().map(|clamp| clamp_words(clamp)).collect();
        if let (Some(proposed), false) = (self.decision.proposed, clamps.is_empty()) {
            let changed =
                if proposed == self.to() { String::new() } else { format!("{proposed} was wanted; ") };
            let _ = write!(text, " ({changed}{})", clamps.join(", "));
        }
        text
    }

    fn reason(&self) -> String {
        let word = match &self.decision.reason {
            Value::String(word) => word.as_str(),
            Value::Object(custom) => match custom.get("custom") {
                Some(number) => return format!("the policy's own reason {number}"),
                None => "",
            },
            _ => "",
        };
        let waiting = self.load.queued;
        match word {
            "activated" => format!(
                "{} waited and no instance was there, so the pool started what they need",
                requests(waiting)
            ),
            "waiting" => format!("{} waited, and the number fits them", requests(waiting)),
            "stable" => "as much as the load asks for".to_owned(),
            "panic" => "the load has risen fast, the short window decides".to_owned(),
            "delayed" => "an earlier, higher number is held for the scale-down delay".to_owned(),
            "idle" => "nothing was asked for a whole window".to_owned(),
            "no_data" => "nothing was measured yet".to_owned(),
            "bad_input" => "what was measured could not be used: the number stays".to_owned(),
            "scaler_failed" => "the scaler failed: the number stays".to_owned(),
            "warming_up" => "just restarted: nothing shrinks before a window was seen".to_owned(),
            "fallback" => "a metric was not measured: what is stated for this case".to_owned(),
            "scheduled" => "a window of the schedule".to_owned(),
            "forecast" => "a forecast raised the floor".to_owned(),
            "timed_out" => "no instance became ready in time".to_owned(),
            "between_ticks" => "not a tick of this scaler: the number stays".to_owned(),
            "expected" => "a call is expected soon: an instance is started ahead of it".to_owned(),
            "not_expected" => "no call is expected any more: the last instance goes".to_owned(),
            "roll_out" => "a roll-out sized the revision for its share of the traffic".to_owned(),
            "part" => "several hosts run the service, and this one's part of it changed".to_owned(),
            "reclaimed" => "an idle instance was stopped, since others lacked room".to_owned(),
            other => other.replace('_', " "),
        }
    }

    fn vote(&self, vote: &Vote) -> Option<String> {
        // Windows that emptied by subtraction hold a little less than nothing.
        let value = vote.value.map(|value| if value.abs() < 0.05 { 0.0 } else { value })?;
        let wants = vote.desired.map_or(String::new(), |desired| format!(" wants {desired}"));
        Some(match vote.metric.as_str() {
            "concurrency" => format!("{value:.1} at once, {:.1} per instance{wants}", vote.target),
            "rps" => format!("{value:.1} requests/s, {:.1} per instance{wants}", vote.target),
            "cpu" => format!("{value:.2} cores, {:.2} per instance{wants}", vote.target),
            "memory" => format!("{}, {} per instance{wants}", bytes(value), bytes(vote.target)),
            "backlog" => format!("{value:.0} wait upstream, {:.0} per instance{wants}", vote.target),
            "" => format!("{} is {value:.1}, {:.1} per instance{wants}", vote.name, vote.target),
            other => format!("{other} {value:.1}{wants}"),
        })
    }
}

fn requests(count: u32) -> String {
    if count == 1 { "1 request".to_owned() } else { format!("{count} requests") }
}

fn clamp_words(clamp: &str) -> &str {
    match clamp {
        "up_rate" => "held down by the rate of scaling up",
        "down_rate" => "held up by the rate of scaling down",
        "activation" => "raised by the activation scale",
        "delay" => "held up by the scale-down delay",
        "min" => "raised to the minimum",
        "max" => "held down by the maximum",
        "initial" => "raised to the initial scale",
        "panic" => "held up by the panic",
        "zero" => "it may not sleep yet",
        "schedule" => "bounded by a schedule",
        "quiet" => "a quiet stretch let it fall",
        "starting" => "those that start will take what waits",
        "tolerance" => "within the tolerance",
        "stabilization" => "held by the stabilisation window",
        "policy" => "held back by a policy",
        "restart" => "just restarted: it may not fall yet",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(text: &str) -> Decision {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_decision_says_what_changed_and_why() {
        let panic = decision(
            r#"{"previous":3,"load":{"queued":2},"decision":{"verdict":{"set":5},"reason":"panic","clamps":["max"],"proposed":7,
                "votes":[{"metric":"concurrency","value":20.0,"target":7.0,"desired":3},
                         {"metric":"concurrency","value":47.25,"target":7.0,"desired":7}]}}"#,
        );
        assert_eq!(panic.change(), "3 → 5");
        assert_eq!(
            panic.why(),
            "the load has risen fast, the short window decides: in the window 20.0 at once, 7.0 per instance wants 3; in the \
             short one 47.2 at once, 7.0 per instance wants 7 (7 was wanted; held down by the maximum)"
        );
        let first =
            decision(r#"{"load":{"queued":1},"decision":{"verdict":{"set":1},"reason":"activated"}}"#);
        assert_eq!(first.change(), "→ 1");
        assert_eq!(
            first.why(),
            "1 request waited and no instance was there, so the pool started what they need"
        );
        assert_eq!(
            decision(r#"{"previous":2,"decision":{"verdict":"hold","reason":"no_data"}}"#).change(),
            "stays 2"
        );
        assert_eq!(decision(r#"{"decision":{"reason":{"custom":7}}}"#).why(), "the policy's own reason 7");
    }

    /// Whatever reasons and bounds the platform has or gets, none is shown as a program's word.
    #[test]
    fn every_bound_has_words() {
        for name in sas_core::Clamps(u16::MAX).names() {
            assert!(clamp_words(name).contains(' '), "{name}");
        }
    }
}
