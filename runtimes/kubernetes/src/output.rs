//! To whom what an instance writes goes.

use std::sync::Arc;

use sas_core::{Clock, InstanceId, LogRecord, LogSink, LogStream, RevisionKey, StartRequest};

/// An instance's place in the platform's log.
#[derive(Clone, Debug)]
pub(crate) struct LogTarget {
    instance: InstanceId,
    revision: RevisionKey,
    sink: Arc<dyn LogSink>,
}

impl LogTarget {
    pub(crate) fn of(request: &StartRequest) -> Self {
        Self { instance: request.id, revision: request.revision, sink: Arc::clone(&request.logs) }
    }

    pub(crate) fn tell(&self, clock: &dyn Clock, stream: LogStream, line: &[u8]) {
        self.sink.line(&LogRecord::new(self.instance, self.revision, clock.now(), stream, line));
    }
}
