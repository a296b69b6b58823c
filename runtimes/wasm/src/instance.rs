//! An instance of a function: a cheap handle, under which each request gets a sandbox.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Answer, Call, CallError, Cx, Error, ErrorKind, Instance, InstanceId, InstanceTarget, LogStream, Request,
    Result, Retry, StartRequest, TenantKey, Usage,
};
use tokio::sync::oneshot;

use crate::{
    cgi::Output,
    component::{self, Warm, Work},
    files::{self, FilesGuest},
    function::Function,
    lifecycle::{FirstStop, Lifecycle},
    preview1::{self, CgiGuest},
    program::Program,
    run::{ResponseSource, Run, answer},
    sandbox::Sandbox,
    slots::{RETRY_AFTER, Refusal, SlotPermit},
    stdin::Stdin,
    sync::{Lock, Shared},
    usage::CallUsage,
};

/// A running copy of a revision. It holds no sandbox while it has no request (or those it keeps for reuse).
pub(crate) struct WasmInstance {
    life: Arc<Lifecycle>,
    program: Program,
    tenant: TenantKey,
}

impl fmt::Debug for WasmInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmInstance").field("life", &self.life).finish_non_exhaustive()
    }
}

impl WasmInstance {
    pub(crate) fn start(function: Arc<Function>, program: Program, request: &StartRequest) -> Self {
        Self { life: Lifecycle::start(function, request), program, tenant: request.tenant() }
    }

    fn function(&self) -> &Function {
        &self.life.context.function
    }

    async fn wait_for_place(&self, cx: &Cx) -> Result<SlotPermit> {
        let function = self.function();
        function.host.metrics.waited();
        function.slots.enter(Some(self.tenant), function.units, cx.deadline).await.map_err(|refusal| {
            let slots = function.slots.share();
            match refusal {
                Refusal::QueueFull => {
                    let message = format!(
                        "all {slots} sandboxes that a tenant may have, or all there are, are taken and {} requests may \
                         wait for one (WasmConfig.slots, .tenant_slots and .queue)",
                        function.host.config.queue
                    );
                    Error::new(ErrorKind::Exhausted, "call", message).with_retry(Retry::After(RETRY_AFTER))
                }
                Refusal::Deadline => Error::new(
                    ErrorKind::Timeout,
                    "call",
                    format!("the deadline passed while waiting for one of the {slots} sandboxes that a tenant may have \
                         (WasmConfig.slots and .tenant_slots)"),
                ),
            }
        })
    }

    fn output(&self, request: &http::request::Parts) -> Shared<Output> {
        let limit = self.function().options.limits.response_bytes;
        Arc::new(Lock::new(Output::new(limit, request.method == http::Method::HEAD)))
    }

    fn work(
        &self,
        kept: Option<Warm>,
        request: Request,
        cx: &Cx,
        usage: &Arc<CallUsage>,
    ) -> (Work, ResponseSource) {
        let (usage, id, context) = (Arc::clone(usage), cx.request, &self.life.context);
        match &self.program {
            Program::Cgi(program) => {
                let (head, body) = request.into_parts();
                let output = self.output(&head);
                let sandbox = Sandbox::new(context, id);
                let guest = CgiGuest {
                    limiter: sandbox.limiter(usage),
                    stdin: Stdin::new(body, &head.headers),
                    request: head,
                    declared: context.declared.clone(),
                    arguments: Arc::clone(&self.function().arguments),
                    output: Arc::clone(&output),
                    stderr: sandbox.lines(LogStream::Stderr),
                    clock: Arc::clone(&self.function().host.config.clock),
                    started: self.function().host.started,
                    memory: None,
                    environment: None,
                };
                let serving = preview1::serve(Arc::clone(program), guest);
                (Box::pin(async move { serving.await.map(|()| None) }), ResponseSource::Cgi(output))
            }
            Program::Files(program) => {
                let (head, body) = request.into_parts();
                let output = self.output(&head);
                let guest =
                    FilesGuest::new(&Sandbox::new(context, id), usage, head, body, Arc::clone(&output));
                let serving = files::serve(Arc::clone(program), guest);
                (Box::pin(async move { serving.await.map(|()| None) }), ResponseSource::Cgi(output))
            }
            Program::Http(linked) => {
                let (reply, answer) = oneshot::channel();
                (
                    component::serve(linked, kept, context, id, usage, request, reply),
                    ResponseSource::Http(answer),
                )
            }
        }
    }
}

#[async_trait]
impl Call for WasmInstance {
    async fn call(&self, request: Request, cx: &Cx) -> std::result::Result<Answer, CallError> {
        let Some(entered) = self.life.enter() else {
            let error = Error::new(ErrorKind::Unavailable, "call", "the instance is being stopped");
            return Err(CallError::unsent(error.with_retry(Retry::AnotherInstance), request));
        };
        let mut kept = self.life.take_kept();
        let place = match kept.as_mut().and_then(|warm| warm.place.take()) {
            Some((place, _keep)) => place,
            None => match self.function().slots.try_enter(Some(self.tenant), self.function().units) {
                Some(place) => place,
                // In a box, so that calls that need not wait have no room for it in their future.
                None => match Box::pin(self.wait_for_place(cx)).await {
                    Ok(place) => place,
                    Err(error) => return Err(CallError::unsent(error, request)),
                },
            },
        };
        let usage = Arc::new(CallUsage::default());
        let (work, source) = self.work(kept, request, cx, &usage);
        let ticking = self.function().host.ticker.guard();
        let run = Run::new(work, place, usage, cx.deadline, ticking, entered);
        answer(run, source).await.map_err(CallError::sent)
    }
}

#[async_trait]
impl Instance for WasmInstance {
    fn id(&self) -> InstanceId {
        self.life.context.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    fn usage(&self) -> Option<Usage> {
        // The code is in memory as long as there is an instance; sandboxes are while there are requests.
        let memory = self.function().code_bytes + self.life.context.memory();
        Some(Usage::new(self.life.context.cpu_ns(), memory))
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let Some(FirstStop(first)) = self.life.stop() else {
            return Ok(());
        };
        let (host, life) = (Arc::clone(&self.function().host), Arc::clone(&self.life));
        if first {
            let (host, life) = (Arc::clone(&host), Arc::clone(&life));
            let reaping = host.reaping();
            // A task of its own, because the stop goes on when its caller goes away.
            tokio::spawn(async move {
                let _ = tokio::time::timeout(grace, host.gone(|| life.is_gone())).await;
                life.kill();
                host.gone(|| life.is_gone()).await;
                drop(reaping);
            });
        }
        host.gone(|| life.is_gone()).await;
        Ok(())
    }
}
