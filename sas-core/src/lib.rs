#![forbid(unsafe_code)]
//! Vocabulary and traits of the `sas` serverless SDK.
//!
//! This crate is what a *backend author* depends on: it says what a [`Runtime`], a [`Pool`], a [`Scaler`], a
//! [`Router`] or a [`TriggerSource`] is, and nothing about how one works. It opens no socket and spawns no task.
//!
//! | You write | Implement | Prove it with `sas-testkit` |
//! |---|---|---|
//! | a way to run code (a microVM, a remote worker) | [`Runtime`], [`Instance`] | `runtime::suite` |
//! | a scaling policy | [`Policy`] (pure), or [`Scaler`] for state in columns | `scaler::suite` |
//! | a pool, a balancer, a capacity or keep-alive policy | [`Pool`], [`Balancer`], [`CapacityPolicy`], [`KeepAlivePolicy`] | `pool::suite` |
//! | a source of events | [`TriggerSource`] | `trigger::suite` |
//! | routing of one's own | [`Router`] | `router::suite` |
//! | state elsewhere than in memory or on redb | [`Store`] | `store::suite` |
//!
//! A handler in one line, the smallest thing that a gateway can serve:
//!
//! ```
//! use sas_core::{Body, Handler, Request, Response};
//!
//! #[derive(Debug)]
//! struct Hello;
//!
//! #[async_trait::async_trait]
//! impl Handler for Hello {
//!     async fn handle(&self, _request: Request) -> Response {
//!         Response::new(Body::from("hello"))
//!     }
//! }
//! ```

pub mod package;

mod auth;
mod blob;
mod body;
mod call;
mod clock;
mod connected;
mod container;
mod context;
mod deliveries;
mod duration;
mod engine;
mod error;
mod event;
mod event_log;
mod hosts;
mod id;
mod instance;
mod invoke;
mod lifecycle;
mod load;
mod memory;
mod meter;
mod named_values;
mod object;
mod ownership;
mod pool;
mod pool_policy;
mod probe;
mod program;
mod quota;
mod recorder;
mod rehearsal;
mod rollout;
mod route;
mod runtime;
mod scaler;
mod scaler_options;
mod scalers;
mod scaling_spec;
mod settling;
mod sink;
mod spec;
mod spec_error;
mod store;
mod store_copy;
mod trace;
mod trigger;
mod trigger_options;
mod workflow;

pub use auth::{Authenticator, Denied, Principal, Scope};
pub use blob::{Blob, BlobStore};
pub use body::{Body, Request, Response};
pub use call::{Answer, Call, CallError, Io};
pub use clock::{Clock, SystemClock, Timestamp, TokioClock};
pub use connected::{Connected, ConnectedRun, Reconnecting};
pub use container::{Companion, ContainerSpec, EnvFrom, Mount, SecurityContext, Volume, VolumeSource};
pub use context::{Cx, FaasTrigger, IdempotencyKey, Payer, Purpose};
pub use deliveries::{Deliveries, with_renewal};
pub use duration::{DurationError, parse_duration};
pub use engine::{DEFAULT_ENGINE, DataPlane, Engine, EngineFactory, EngineKind, EngineSpec, Reserved};
pub use error::{BoxError, Error, ErrorKind, Result, Retry};
pub use event::{Ack, AttributeValue, Event, EventError, EventPublisher, EventSink, Schedule, Slot};
pub use event_log::{AppendLimits, EventLog, LogEntry, StoreLog};
pub use hosts::{HostShare, HostShares, HostStatus, Hosts, Place, commit_as_owner};
pub use id::{EngineKey, InstanceId, RequestId, RevisionKey, RevisionName, TenantKey};
pub use instance::{
    Endpoint, ExecOutput, ExitReport, Instance, InstanceEvents, InstanceTarget, SocketSource, StartPhase,
    StartTimings, Usage,
};
pub use invoke::{CallTimings, Handler, Invoker, Target};
pub use lifecycle::{LifecycleEvent, LifecycleKind, LifecycleSink};
pub use load::Load;
pub use memory::MemoryStore;
pub use meter::{
    Hour, HourUsage, MeterPhase, MeterSink, MeterTotals, Metered, RequestUsage, RevisionUsage, UsageGap,
    UsagePage, UsageQuery, UsageScope,
};
pub use named_values::{NamedValues, NamedVote};
pub use object::ObjectStore;
pub use ownership::{Candidacy, Owned};
pub use pool::{
    CapacityReason, Claim, ClaimError, InstanceState, InstanceView, Lease, LeaseOwner, Outcome, Pool,
    PoolBudget, PoolDecision, PoolTotals, RevisionStatus, SizeBounds, StemView, WaitList, Waiting,
};
pub use pool_policy::{Balancer, CapacityInput, CapacityPolicy, KeepAlive, KeepAlivePolicy, Pick, SlotView};
pub use probe::{Probe, ProbeAction};
pub use program::{EnvValue, Resources, Secret};
pub use quota::{Quota, QuotaExceeded, QuotaPressure, QuotaResource, Quotas, Rate, TenantQuota, TokenBucket};
pub use recorder::Recorder;
pub use rehearsal::{Fault, Mirror, MirrorCounts, Rehearsals};
pub use rollout::{AnswerCounter, AnswerCounts, LatencyCounts, RolloutKind, RolloutPlan, Surge};
pub use route::{
    Affinity, HostPattern, RemoteTarget, Route, RouteAction, RouteChange, RouteError, RouteMatch, RouteQuery,
    RouteRule, RouteTarget, Router, Split, ValueMatch,
};
pub use runtime::{
    Artifact, ArtifactInfo, Capabilities, Deployed, Isolation, Runtime, StartRequest, Stem, StemClass,
    StemRequest,
};
pub use scaler::{Clamps, Decision, Details, Policy, Reason, ScaleInput, Scaler, Verdict, Vote, Votes};
pub use scaler_options::ScalerOptions;
pub use scalers::Scalers;
pub use scaling_spec::{Aggregation, Fidelity, Metric, ScalingSpec};
pub use settling::{Caller, Settling, Work};
pub use sink::{
    DecisionQuery, DecisionRecord, DecisionSink, LogFilter, LogLevel, LogLine, LogPage, LogQuery, LogRecord,
    LogSink, LogStream, NoSink, SecretSource, secret_bytes,
};
pub use spec::{Protocol, RevisionSpec, Source, Timeouts};
pub use spec_error::{SpecError, SpecErrors};
pub use store::{Change, Commit, Entry, Guard, Store, StoreLimits, Version, Watched, Write, guard_failed};
pub use store_copy::{StoreCopy, copy_store};
pub use trace::{
    AttemptSpan, DeliverySpan, ParentSpan, RequestSpan, StepSpan, TraceContext, TraceSink, UpstreamSpan,
};
pub use trigger::{
    BrokerIngress, BrokerSpec, BrokerStatus, Fires, Redrive, Redriven, SinkSpec, TriggerCx, TriggerSecrets,
    TriggerSource, TriggerSpec, TriggerStatus, Triggers,
};
pub use trigger_options::{ServerUrl, TriggerOptions, host_name};
pub use workflow::{
    GraphOf, RunAction, RunDetail, RunPage, RunQuery, RunStart, RunStatus, RunView, StepView, StuckRun,
    WorkflowHost, WorkflowInfo, WorkflowSpec,
};
