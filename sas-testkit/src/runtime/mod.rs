//! The suite for [`sas_core::Runtime`], [`sas_core::Instance`] and [`sas_core::Stem`].
//!
//! The builder gives the runtime and the specs of programs that it can run, the [`Fixtures`]. Only `echo` is
//! required; a check whose fixture is absent is skipped and says so.

mod calls;
mod faults;
mod kit;
mod lifecycle;
mod optional;

use std::{fmt, sync::Arc, time::Duration};

use sas_core::{RevisionSpec, Runtime};

use crate::{
    Report,
    check::{self, checks},
};
use kit::Kit;

/// A runtime and programs for it.
#[derive(Clone)]
pub struct Fixtures {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) echo: RevisionSpec,
    pub(crate) slow: Option<RevisionSpec>,
    pub(crate) endless: Option<RevisionSpec>,
    pub(crate) crash_on_start: Option<RevisionSpec>,
    pub(crate) never_ready: Option<RevisionSpec>,
    pub(crate) crash_on_call: Option<RevisionSpec>,
    pub(crate) ignores_stop: Option<RevisionSpec>,
    pub(crate) chatty: Option<RevisionSpec>,
    pub(crate) environment: Option<RevisionSpec>,
    pub(crate) invalid: Vec<(RevisionSpec, String)>,
    pub(crate) census: Option<Census>,
    pub(crate) start_limit: Duration,
}

/// Lists what exists of a runtime's instances right now.
type Census = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

impl fmt::Debug for Fixtures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixtures").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

impl Fixtures {
    /// `echo` answers every request with status 200 and the request's body.
    pub fn new(runtime: Arc<dyn Runtime>, echo: RevisionSpec) -> Self {
        Self {
            runtime,
            echo,
            slow: None,
            endless: None,
            crash_on_start: None,
            never_ready: None,
            crash_on_call: None,
            ignores_stop: None,
            chatty: None,
            environment: None,
            invalid: Vec::new(),
            census: None,
            start_limit: Duration::from_secs(20),
        }
    }

    /// Answers 200 with the body `slow`, half a second after the request.
    #[must_use]
    pub fn slow(mut self, spec: RevisionSpec) -> Self {
        self.slow = Some(spec);
        self
    }

    /// Answers 200 at once, and then sends pieces of a body without end, at least ten a second.
    #[must_use]
    pub fn endless(mut self, spec: RevisionSpec) -> Self {
        self.endless = Some(spec);
        self
    }

    /// Ends by itself before it is ready.
    #[must_use]
    pub fn crash_on_start(mut self, spec: RevisionSpec) -> Self {
        self.crash_on_start = Some(spec);
        self
    }

    /// Runs, but never becomes ready.
    #[must_use]
    pub fn never_ready(mut self, spec: RevisionSpec) -> Self {
        self.never_ready = Some(spec);
        self
    }

    /// Crashes on every request to `/crash`, and echoes all others.
    #[must_use]
    pub fn crash_on_call(mut self, spec: RevisionSpec) -> Self {
        self.crash_on_call = Some(spec);
        self
    }

    /// Echoes, and does not end when it is asked to politely.
    #[must_use]
    pub fn ignores_stop(mut self, spec: RevisionSpec) -> Self {
        self.ignores_stop = Some(spec);
        self
    }

    /// Echoes, and writes a line that contains `conformance-output` for every request.
    #[must_use]
    pub fn chatty(mut self, spec: RevisionSpec) -> Self {
        self.chatty = Some(spec);
        self
    }

    /// Answers with its environment, one `NAME=value` a line. The suite adds variables to the spec.
    #[must_use]
    pub fn environment(mut self, spec: RevisionSpec) -> Self {
        self.environment = Some(spec);
        self
    }

    /// A spec that `prepare` has to refuse with an error whose message contains `mentions`: the field or value that
    /// is wrong. May be called several times.
    #[must_use]
    pub fn invalid(mut self, spec: RevisionSpec, mentions: impl Into<String>) -> Self {
        self.invalid.push((spec, mentions.into()));
        self
    }

    /// Lists what exists of instances right now (processes, sandboxes, directories), so that the suite can see
    /// what is left behind. Without it only the runtime's own word is taken.
    #[must_use]
    pub fn census(mut self, census: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        self.census = Some(Arc::new(census));
        self
    }

    /// How long a start of `echo` takes at the very most, and cleaning up after what was started; 20 s unless said.
    #[must_use]
    pub fn start_limit(mut self, limit: Duration) -> Self {
        self.start_limit = limit;
        self
    }
}

/// Runs every check on a runtime of its own, made by `builder`. The guard is dropped after the runtime.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use sas_testkit::{fake::FakeRuntime, runtime};
///
/// let report = runtime::suite(async || ((), FakeRuntime::fixtures())).await;
/// report.assert_passed();
/// # }
/// ```
pub async fn suite<G>(builder: impl AsyncFn() -> (G, Fixtures)) -> Report {
    check::run(
        "Runtime",
        check::LIMIT,
        builder,
        Kit::new,
        checks![
            "name and capabilities are constant" => lifecycle::constant,
            "prepare is idempotent" => lifecycle::prepare_twice,
            "prepare refuses what can never run and says what is wrong" => lifecycle::prepare_refuses,
            "a dropped prepare leaves nothing half-made" => lifecycle::dropped_prepare,
            "start resolves when the instance can serve" => lifecycle::serves_at_once,
            "try_start does what start does" => lifecycle::try_start,
            "an instance has the id of its request, and its endpoint is constant" => lifecycle::identity,
            "phases are told in order, under the instance's id, before start resolves" => lifecycle::phases,
            "a start refuses an artifact of another runtime" => lifecycle::foreign_artifact,
            "a dropped start leaves nothing behind after quiesce" => lifecycle::dropped_start,
            "a start whose deadline has passed leaves nothing behind" => lifecycle::late_start,
            "instances that start at the same time are independent" => lifecycle::together,
            "stop ends the instance and tells its exit once" => lifecycle::stop_once,
            "stop is idempotent, one after another and at once" => lifecycle::stop_often,
            "a stop that is dropped goes on" => lifecycle::dropped_stop,
            "the end of one instance touches no other" => lifecycle::independent,
            "quiesce stops nothing" => lifecycle::quiesce_keeps,
            "many starts and stops leave nothing behind" => lifecycle::churn,
            "a call gets its answer" => calls::one,
            "concurrent calls each get their own answer" => calls::concurrent,
            "a large body comes back whole" => calls::large,
            "a streamed body comes back whole" => calls::streamed,
            "an empty body and an unusual method are fine" => calls::unusual,
            "a call ends at its deadline with a timeout" => calls::deadline,
            "a dropped call is aborted, and the instance serves on" => calls::dropped,
            "a dropped body aborts the call, and the instance serves on" => calls::dropped_body,
            "a stopping instance lets running calls finish within the grace" => calls::graceful,
            "a call on a gone instance fails and hands the request back" => calls::after_stop,
            "a crash fails its call, and its exit is told once" => faults::crash_on_call,
            "a program that ends before it is ready is a crash that says so" => faults::crash_on_start,
            "a program that is never ready times out and leaves nothing behind" => faults::never_ready,
            "a dropped start of a program that is never ready leaves nothing behind" => faults::dropped_never_ready,
            "a program that ignores the polite stop is ended by force" => faults::ignores_stop,
            "a stop with no grace ends at once, also under load" => faults::stop_under_load,
            "output reaches the log sink with instance and revision" => faults::chatty,
            "the declared environment reaches the instance, secrets included" => faults::environment,
            "secrets are in no Debug output" => faults::secrets_hidden,
            "usage is told and never runs backwards" => optional::usage,
            "suspend and resume are idempotent, and the instance serves afterwards" => optional::suspend,
            "a suspended instance can be stopped" => optional::stop_suspended,
            "a stem becomes an instance once and serves" => optional::stem,
            "a stem that is stopped or dropped leaves nothing behind" => optional::stem_ends,
            "abilities that are not claimed are refused as unsupported" => optional::unsupported,
        ],
    )
    .await
}
