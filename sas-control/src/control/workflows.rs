//! Workflows: their definitions and runs are with whoever runs them; here is who may have them.

use std::sync::Arc;

use sas_core::{
    Error, ErrorKind, GraphOf, Result, RunAction, RunDetail, RunPage, RunQuery, RunStart, RunView,
    WorkflowHost, WorkflowInfo, WorkflowSpec,
};
use serde_json::Value;

use super::{Control, refused};

impl Control {
    pub(crate) fn workflow_host(&self) -> Result<&Arc<dyn WorkflowHost>> {
        self.workflows.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "workflow", "this platform was composed without workflows")
        })
    }

    pub(super) fn check_workflow(&self, spec: &WorkflowSpec) -> Result<()> {
        self.workflow_host()?.check(spec).map_err(|errors| refused("manifest", errors))
    }

    /// Stores a definition of a workflow. Whether it is new.
    ///
    /// # Errors
    /// `InvalidSpec` with fields; `Conflict` when the version has another document; `Unsupported` when the platform runs no
    /// workflows.
    pub async fn apply_workflow(&self, spec: &WorkflowSpec) -> Result<bool> {
        self.open()?;
        self.check_workflow(spec)?;
        self.check_purges(&spec.namespace, None)?;
        self.tenant(&spec.namespace).await?;
        self.workflow_host()?.apply(spec).await
    }

    /// Forgets a definition.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while runs of it have not ended.
    pub async fn delete_workflow(&self, namespace: &str, name: &str, version: &str) -> Result<()> {
        self.open()?;
        self.workflow_host()?.remove(namespace, name, version).await
    }

    /// Definitions of a namespace, or of all: those after `after`, at most `limit`; and where the next ones begin.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn workflows(
        &self,
        namespace: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<WorkflowInfo>, Option<String>)> {
        self.workflow_host()?.definitions(namespace, after, limit).await
    }

    /// The document of a definition; without a version, of the greatest.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn workflow_document(
        &self,
        namespace: &str,
        name: &str,
        version: Option<&str>,
    ) -> Result<Value> {
        self.workflow_host()?.document(namespace, name, version).await
    }

    /// Starts a run of a workflow. Whether it is new.
    ///
    /// # Errors
    /// As [`WorkflowHost::start`].
    pub async fn start_run(&self, start: RunStart) -> Result<(RunView, bool)> {
        self.open()?;
        self.workflow_host()?.start(start).await
    }

    /// A page of runs.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn runs(&self, query: &RunQuery) -> Result<RunPage> {
        self.workflow_host()?.runs(query).await
    }

    /// A run with its path.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn run(&self, namespace: &str, id: &str) -> Result<RunDetail> {
        self.workflow_host()?.detail(namespace, id).await
    }

    /// Waits until a run has ended.
    ///
    /// **Cancel safety:** dropping it leaves nothing behind.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn run_ended(&self, namespace: &str, id: &str) -> Result<RunView> {
        self.workflow_host()?.ended(namespace, id).await
    }

    /// Does something with a run.
    ///
    /// # Errors
    /// As [`WorkflowHost::steer`].
    pub async fn steer_run(&self, namespace: &str, id: &str, action: RunAction) -> Result<RunView> {
        self.open()?;
        self.workflow_host()?.steer(namespace, id, action).await
    }

    /// A picture in SVG.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn workflow_graph(&self, namespace: &str, of: GraphOf<'_>) -> Result<String> {
        self.workflow_host()?.graph(namespace, of).await
    }
}
