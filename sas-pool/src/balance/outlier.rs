use std::time::Duration;

use sas_core::Outcome;

use crate::config::OutlierConfig;

/// What is remembered of an instance for outlier ejection. Pure: outcomes go in, ejections come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outliers {
    failures: u32,
    ejections: u32,
}

impl Outliers {
    /// Takes the outcome of a call. When the instance has to be left out, for how long: the n-th time n times as long.
    /// `total` instances are in rotation, `out` of them are left out already; the configured share and the last one
    /// never are.
    pub fn observe(
        &mut self,
        config: &OutlierConfig,
        outcome: Outcome,
        total: u32,
        out: u32,
    ) -> Option<Duration> {
        match outcome {
            Outcome::Ok => self.failures = 0,
            Outcome::Failed | Outcome::Lost => self.failures = self.failures.saturating_add(1),
            _ => {}
        }
        if self.failures < config.failures || !may_eject(config, total, out) {
            return None;
        }
        self.failures = 0;
        self.ejections = self.ejections.saturating_add(1);
        Some(config.ejection.saturating_mul(self.ejections).min(config.longest))
    }
}

/// Whether one more of `total` instances may be left out while `out` are.
fn may_eject(config: &OutlierConfig, total: u32, out: u32) -> bool {
    let most = u64::from(total) * u64::from(config.max_ejected_percent) / 100;
    u64::from(out) < most && out + 1 < total
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: OutlierConfig = OutlierConfig {
        failures: 3,
        ejection: Duration::from_secs(10),
        longest: Duration::from_secs(25),
        max_ejected_percent: 50,
    };

    #[test]
    fn failures_in_a_row_eject_and_each_time_for_longer() {
        let mut record = Outliers::default();
        let fail = |record: &mut Outliers| record.observe(&CONFIG, Outcome::Failed, 4, 0);
        assert_eq!([fail(&mut record), fail(&mut record)], [None, None]);
        assert_eq!(record.observe(&CONFIG, Outcome::Ok, 4, 0), None);
        let out: Vec<_> = (0..9).filter_map(|_| fail(&mut record)).map(|time| time.as_secs()).collect();
        assert_eq!(out, [10, 20, 25]);
        assert_eq!(record.observe(&CONFIG, Outcome::Unused, 4, 0), None);
    }

    #[test]
    fn a_floor_stays_in_rotation() {
        for (total, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)] {
            let mut out = 0;
            for _ in 0..total {
                let mut record = Outliers { failures: 2, ejections: 0 };
                out += u32::from(record.observe(&CONFIG, Outcome::Lost, total, out).is_some());
            }
            assert_eq!(out, most, "of {total}");
        }
        let all = OutlierConfig { max_ejected_percent: 100, ..CONFIG };
        assert!(!may_eject(&all, 3, 2), "never the last one");
    }
}
