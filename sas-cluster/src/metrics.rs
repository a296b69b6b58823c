//! Names of the metrics, and their handles.

use metrics::{Counter, Gauge, Unit};
use sas_core::Recorder;

/// Hosts that this one knows to be live, itself included.
pub const HOSTS: &str = "sas_cluster_hosts";
/// Shards that this host owns.
pub const SHARDS: &str = "sas_cluster_shards";
/// Shards that this host took over.
pub const TAKEN: &str = "sas_cluster_shards_taken_total";
/// Shards that this host handed to another one.
pub const HANDED: &str = "sas_cluster_shards_handed_total";
/// Writes of this host that were refused because another host had taken over.
pub const REFUSED: &str = "sas_cluster_writes_refused_total";
/// How often this host's lease ran out before it was renewed.
pub const LAPSES: &str = "sas_cluster_lapses_total";
/// Hosts that this one declared gone after a whole term of silence.
pub const EXPELLED: &str = "sas_cluster_hosts_expelled_total";
/// Commits that this host sent to the store for membership and ownership.
pub const WRITES: &str = "sas_cluster_store_writes_total";

/// Describes all metrics of this crate.
pub fn describe(recorder: &Recorder) {
    recorder.describe_gauge(HOSTS, Unit::Count, "Hosts that are live, as this one knows");
    recorder.describe_gauge(SHARDS, Unit::Count, "Shards that this host owns");
    recorder.describe_counter(TAKEN, "Shards that this host took over");
    recorder.describe_counter(HANDED, "Shards that this host handed to another one");
    recorder.describe_counter(REFUSED, "Writes that were refused since another host had taken over");
    recorder.describe_counter(LAPSES, "How often this host's lease ran out before it was renewed");
    recorder.describe_counter(EXPELLED, "Hosts declared gone after a whole term of silence");
    recorder.describe_counter(WRITES, "Commits for membership and ownership");
}

pub(crate) struct Metrics {
    pub(crate) hosts: Gauge,
    pub(crate) shards: Gauge,
    pub(crate) taken: Counter,
    pub(crate) handed: Counter,
    pub(crate) refused: Counter,
    pub(crate) lapses: Counter,
    pub(crate) expelled: Counter,
    pub(crate) writes: Counter,
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        Self {
            hosts: recorder.gauge(HOSTS, &[]),
            shards: recorder.gauge(SHARDS, &[]),
            taken: recorder.counter(TAKEN, &[]),
            handed: recorder.counter(HANDED, &[]),
            refused: recorder.counter(REFUSED, &[]),
            lapses: recorder.counter(LAPSES, &[]),
            expelled: recorder.counter(EXPELLED, &[]),
            writes: recorder.counter(WRITES, &[]),
        }
    }
}
