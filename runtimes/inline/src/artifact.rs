//! What a registered function is, and what `prepare` makes of it.

use std::{fmt, future::Future, marker::PhantomData, sync::Arc};

use sas_core::{Cx, Request};

use crate::{
    call::{self, CallFuture},
    life::Life,
    reply::IntoReply,
};

/// A registered closure. Cheap to clone; a clone keeps meaning this closure when its name is registered anew.
#[derive(Clone)]
pub(crate) struct Function(Arc<dyn Erased>);

/// A closure without its types. The whole call, with its deadline and its guards, is one boxed future.
pub(crate) trait Erased: Send + Sync {
    fn call<'a>(&'a self, instance: &'a Life, request: Request, cx: Cx) -> CallFuture<'a>;
}

struct Closure<F, Fut>(F, PhantomData<fn() -> Fut>);

impl<F, Fut> Erased for Closure<F, Fut>
where
    F: Fn(Request, Cx) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoReply,
{
    fn call<'a>(&'a self, instance: &'a Life, request: Request, cx: Cx) -> CallFuture<'a> {
        Box::pin(call::run(instance, &self.0, request, cx))
    }
}

impl Function {
    /// Wraps a closure.
    pub(crate) fn new<F, Fut>(function: F) -> Self
    where
        F: Fn(Request, Cx) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoReply,
    {
        Self(Arc::new(Closure(function, PhantomData)))
    }

    pub(crate) fn erased(&self) -> &dyn Erased {
        &*self.0
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function(..)")
    }
}
