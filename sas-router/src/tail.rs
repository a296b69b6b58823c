//! What is to be done when the last byte of an answer is gone.

use std::sync::Arc;

use sas_core::{Deployed, Lease, MeterSink, Metered, RequestUsage, RevisionKey};
use tokio::time::Instant;

use crate::{
    access::{AccessLog, AccessRecord, End},
    admission::Permit,
    span::SpanDraft,
    upstream::Progress,
};

/// An access record that is being written.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) log: Arc<dyn AccessLog>,
    pub(crate) record: AccessRecord,
    pub(crate) arrived: Instant,
    pub(crate) sent: Option<Arc<Progress>>,
}

/// What is told to the meter when the answer of an instance is over.
#[derive(Debug)]
pub(crate) struct MeterDraft {
    pub(crate) sink: Arc<dyn MeterSink>,
    pub(crate) revision: RevisionKey,
    pub(crate) deployed: Arc<Deployed>,
    pub(crate) used: RequestUsage,
    pub(crate) sent: Option<Arc<Progress>>,
}

impl MeterDraft {
    fn tell(mut self) {
        if let Some(sent) = &self.sent {
            self.used.bytes_in = sent.bytes();
        }
        let of = Metered::of(self.revision, self.deployed.tenant, &self.deployed.name);
        self.sink.requests(of, &self.used);
    }
}

/// Travels with a response to its end: lets the next request in, and writes the access record.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) permit: Option<Permit>,
    pub(crate) draft: Option<Box<Draft>>,
    pub(crate) meter: Option<MeterDraft>,
    pub(crate) span: Option<SpanDraft>,
    /// Given back with the last byte, or when the body is dropped.
    pub(crate) lease: Option<Lease>,
}

impl Tail {
    pub(crate) fn passed(&mut self, bytes: usize) {
        if let Some(draft) = &mut self.draft {
            draft.record.bytes_out += bytes as u64;
        }
        if let Some(meter) = &mut self.meter {
            meter.used.bytes_out += bytes as u64;
        }
        if let Some(span) = &mut self.span {
            span.bytes_out += bytes as u64;
        }
    }

    /// Bytes of a connection that was joined to the instance went to it.
    pub(crate) fn received(&mut self, bytes: usize) {
        if let Some(draft) = &mut self.draft {
            draft.record.bytes_in += bytes as u64;
        }
        if let Some(meter) = &mut self.meter {
            meter.used.bytes_in += bytes as u64;
        }
        if let Some(span) = &mut self.span {
            span.bytes_in += bytes as u64;
        }
    }

    pub(crate) fn ended(&mut self, end: End) {
        self.permit = None;
        self.lease = None;
        if let Some(meter) = self.meter.take() {
            meter.tell();
        }
        if let Some(span) = self.span.take() {
            span.tell(end);
        }
        if let Some(draft) = self.draft.take() {
            let Draft { log, mut record, arrived, sent } = *draft;
            record.end = end;
            record.duration = arrived.elapsed();
            if let Some(sent) = sent {
                record.bytes_in = sent.bytes();
            }
            log.record(&record);
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.ended(End::Aborted);
    }
}
