//! A running copy of a function: nothing but the right to call it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Answer, Call, CallError, Clock, Cx, Instance, InstanceId, InstanceTarget, Request, Result, StartRequest,
};
use tokio_util::task::TaskTracker;

use crate::{
    artifact::Function,
    life::{Alive, Life},
};

/// An instance of an inline function, in one allocation.
#[derive(Debug)]
pub(crate) struct InlineInstance {
    function: Function,
    life: Life,
}

impl InlineInstance {
    pub(crate) fn start(
        request: &StartRequest,
        function: Function,
        clock: Arc<dyn Clock>,
        reapers: TaskTracker,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| {
            let me: Weak<dyn Alive> = Weak::<Self>::clone(me) as _;
            Self { function, life: Life::new(request, me, clock, reapers) }
        })
    }
}

impl Alive for InlineInstance {
    fn life(&self) -> &Life {
        &self.life
    }
}

#[async_trait]
impl Call for InlineInstance {
    // Written out, since the box of the call is the only one that is needed.
    fn call<'life0, 'life1, 'async_trait>(
        &'life0 self,
        request: Request,
        cx: &'life1 Cx,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Answer, CallError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        self.function.erased().call(&self.life, request, *cx)
    }
}

#[async_trait]
impl Instance for InlineInstance {
    fn id(&self) -> InstanceId {
        self.life.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        self.life.stop(grace).await
    }
}
