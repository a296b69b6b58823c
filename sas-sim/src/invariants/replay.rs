//! Every stretch of decisions that is kept gives the same decisions again, bit for bit.

use sas_core::Decision;

use crate::{Plant, host::Host};

/// What replays otherwise than it was decided.
pub(crate) fn differences(host: &Host, plant: Option<Plant>) -> Vec<String> {
    let mut seen = Vec::new();
    for (name, key) in host.revisions() {
        let Some(mut stretch) = host.driver().stretch(key) else { continue };
        let Some(scaler) = host.driver().scaler(&stretch.checkpoint.scaler) else { continue };
        if plant == Some(Plant::RewritesHistory)
            && let Some(last) = stretch.records.last_mut()
        {
            last.decision = Decision::set(77, last.decision.reason);
        }
        match sas_autoscale::replay(&*scaler, &stretch) {
            Ok(again) => {
                let mut pairs = stretch.records.iter().map(|record| &record.decision).zip(&again);
                if let Some(at) = pairs.position(|(kept, again)| kept != again) {
                    seen.push(format!("decision {at} of {name} replays differently"));
                }
                if again.len() != stretch.records.len() {
                    seen.push(format!(
                        "{} decisions of {name} replay as {}",
                        stretch.records.len(),
                        again.len()
                    ));
                }
            }
            Err(error) => seen.push(format!("{name} does not replay: {error}")),
        }
    }
    seen
}
