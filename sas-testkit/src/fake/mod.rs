//! Stand-ins for every trait, scripted by tests. Each passes the suite of its trait, so that what is tested against
//! it meets a backend that keeps the contract.

mod clock;
mod events;
mod runtime;
mod sinks;
mod store;
mod traces;

pub use clock::FakeClock;
pub use events::{BatchEventSink, FakeEventSink, FakeInvoker, FakeSecrets, Invocation, OrderedEventSink};
pub use runtime::{FakeInstance, FakeRuntime};
pub use sinks::{Line, RecordingDecisions, RecordingEvents, RecordingLogs, RecordingMeter};
pub use store::FakeStore;
pub use traces::{RecordingTraces, ToldDelivery, ToldRequest, ToldStep};
