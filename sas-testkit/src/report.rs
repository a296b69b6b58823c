//! What a suite found out.

use std::{fmt, time::Duration};

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// The sentence holds.
    Passed,
    /// It was not looked at, and why.
    Skipped(String),
    /// It does not hold, and what was seen instead.
    Failed(String),
}

/// One check of a suite.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The sentence of the contract that it proves.
    pub name: &'static str,
    /// How the check ended: passed, failed or skipped.
    pub outcome: CheckResult,
    /// How long it took, in tokio's time.
    pub took: Duration,
}

/// The checks of one suite on one implementation.
#[derive(Clone, Debug)]
pub struct Report {
    suite: &'static str,
    checks: Vec<Checked>,
}

impl Report {
    pub(crate) fn new(suite: &'static str) -> Self {
        Self { suite, checks: Vec::new() }
    }

    pub(crate) fn push(&mut self, checked: Checked) {
        self.checks.push(checked);
    }

    /// Which suite it was, by the name of its trait.
    pub fn suite(&self) -> &'static str {
        self.suite
    }

    /// All checks, in the order in which they ran.
    pub fn checks(&self) -> &[Checked] {
        &self.checks
    }

    /// The names of the checks that passed.
    pub fn passed(&self) -> impl Iterator<Item = &'static str> {
        self.checks.iter().filter(|check| check.outcome == CheckResult::Passed).map(|check| check.name)
    }

    /// The checks that were skipped, with the reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.checks.iter().filter_map(|check| match &check.outcome {
            CheckResult::Skipped(reason) => Some((check.name, reason.as_str())),
            _ => None,
        })
    }

    /// The checks that failed, with what was seen.
    pub fn failed(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.checks.iter().filter_map(|check| match &check.outcome {
            CheckResult::Failed(message) => Some((check.name, message.as_str())),
            _ => None,
        })
    }

    /// Whether no check failed and at least one passed.
    pub fn is_passed(&self) -> bool {
        self.failed().next().is_none() && self.passed().next().is_some()
    }

    /// For tests.
    ///
    /// # Panics
    /// With the whole report, when a check failed or none passed.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.is_passed(), "\n{self}");
    }

    /// For tests that know what their implementation can't do: nothing else may be skipped.
    ///
    /// # Panics
    /// With the whole report, when a check failed, or when other checks were skipped than those whose name
    /// contains one of `expected`.
    #[track_caller]
    pub fn assert_passed_skipping(&self, expected: &[&str]) {
        self.assert_passed();
        for (name, reason) in self.skipped() {
            let known = expected.iter().any(|part| name.contains(part));
            assert!(known, "{name:?} was skipped ({reason}), but is not expected to be\n{self}");
        }
        for part in expected {
            let skipped = self.skipped().any(|(name, _)| name.contains(part));
            assert!(skipped, "no check whose name contains {part:?} was skipped\n{self}");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, skipped, failed) =
            (self.passed().count(), self.skipped().count(), self.failed().count());
        writeln!(f, "{}: {passed} passed, {skipped} skipped, {failed} failed", self.suite)?;
        for check in &self.checks {
            match &check.outcome {
                CheckResult::Passed => writeln!(f, "  pass  {}", check.name)?,
                CheckResult::Skipped(reason) => writeln!(f, "  skip  {} - {reason}", check.name)?,
                CheckResult::Failed(message) => writeln!(f, "  FAIL  {} - {message}", check.name)?,
            }
        }
        Ok(())
    }
}
